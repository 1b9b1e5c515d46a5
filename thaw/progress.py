"""What a person sees while they wait: on stderr, with an estimate of what is left."""

import contextlib
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


def _bars(console):
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[said]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def counting():
    """A function ``(done, total, what)`` that shows how far a count has come.

    Nothing is shown where stderr is no terminal.

    Example:
        >>> with counting() as progress:
        ...     progress(1, 2, "reading")
    """
    tasks = {}
    with _bars(Console(stderr=True)) as bars:

        def progress(done, total, what):
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, said="")
            bars.update(tasks[what], completed=done, total=total)

        yield progress


def _epochs(count):
    return "1 epoch" if count == 1 else f"{count} epochs"


class Progress(keras.callbacks.Callback):
    """Show a run of :func:`thaw.tune`: a bar while a phase runs, a line for each epoch that is over.

    The bar is shown on a terminal only, the lines everywhere.

    Args:
        console: a ``rich`` console; stderr by default.
        lines: without them there is the bar alone, and a line for each run where there are many.

    Attributes:
        reasons: of the advice, where it was shown.

    Example:
        >>> import io
        >>> from rich.console import Console
        >>> with Progress(Console(file=io.StringIO(), width=80)) as shown:
        ...     shown.set_params({"epochs": 1, "steps": 2})
        ...     shown.on_epoch_begin(0)
    """

    def __init__(self, console=None, lines=True):
        super().__init__()
        self.told = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.console = self.told if lines else Console(quiet=True)
        self.bars = _bars(self.told)
        self.phase, self.task, self.first, self.reasons = "", None, None, ()

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *error):
        self.bars.stop()

    def on_way_begin(self, way, seed, epochs, done, total):
        self.told.print(f"{done + 1} of {total}: {way}, seed {seed}, {_epochs(epochs)}", soft_wrap=True)

    def on_trial(self, number, total, name):
        self._bar(f"trying {name}", number - 1, total)

    def on_trial_end(self, trial):
        score = "diverged" if trial.score != trial.score else f"{trial.score:.3f}"
        self.console.print(f"  tried {trial.name}, {_epochs(trial.epochs)}: {score}")

    def on_advice(self, advice):
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        self.reasons = advice.reasons
        for reason in self.reasons:
            self.console.print(f"advice: {reason}")

    def on_no_advice(self, reason):
        self.reasons = (reason,)
        self.console.print(reason)

    def on_preflight(self, findings):
        for finding in findings:
            self.console.print(f"{finding.level}: {finding}", style="bold yellow")

    def on_resume(self, phase, epoch):
        self.console.print(f"going on at epoch {epoch + 1} of phase {phase.name}")

    def on_phase_begin(self, phase, moving):
        self.phase, self.first = phase, None
        stages = "all stages" if phase.train == "all" else " ".join(stage.name for stage in moving)
        self.console.print(f"{phase.name}: {stages} at {phase.learning_rate:g}, {_epochs(phase.epochs)}")

    def on_precompute(self, done, total):
        self._bar(f"{self.phase.name}: what stands still, once", done, total)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.began = epoch, time.monotonic()
        if self.first is None:
            self.first = epoch
            self.task = self._new_task()

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params["steps"]
        done = (self.epoch - self.first) * steps + batch + 1
        self._bar(getattr(self.phase, "name", "training"), done, (self.params["epochs"] - self.first) * steps)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        shown = [f"{name.replace('_', ' ')} {logs[name]:.4f}" for name in ("loss", "val_loss") if name in logs]
        shown += [
            f"{name.replace('_', ' ')} {value:.3f}"
            for name, value in logs.items()
            if name.startswith("val_") and name != "val_loss"
        ]
        if "retention" in logs:  # the old task beside the new one
            shown.append(f"kept {logs['retention']:.3f}")
        seconds = time.monotonic() - self.began
        line = f"  epoch {epoch + 1:>3} of {self.params['epochs']}  {'  '.join(shown)}  {seconds:.1f} s"
        self.console.print(line, soft_wrap=True)  # in a log it stays one line

    def on_phase_end(self, phase, moved, notes):
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        for stage in moved:
            if stage.weights or stage.statistics:
                said = f"  {stage.stage} moved by {stage.weights:.2%}"
                self.console.print(said + (f", its statistics by {stage.statistics:.2%}" if stage.statistics else ""))
        for note in notes:
            self.console.print(f"  {note}")

    def _new_task(self):
        if self.task is not None:
            self.bars.remove_task(self.task)
        return self.bars.add_task(getattr(self.phase, "name", "training"), total=None, said="")

    def _bar(self, what, done, total):
        if self.task is None:
            self.task = self._new_task()
        self.bars.update(self.task, description=what, completed=done, total=total)
