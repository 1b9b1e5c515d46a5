"""Show progress on stderr, with an estimate of the time left."""

from __future__ import annotations

import contextlib
import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from thaw.training.callbacks import TuneCallback

# Epochs that take less are reported in one line for the whole phase.
MIN_SECONDS_FOR_A_LINE = 2.0
STEPS_FOR_ESTIMATE = 5


def _bars(console, shown=True):
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not (console.is_terminal and shown),
    )


@contextlib.contextmanager
def count_progress():
    """Yield a function ``(done, total, what)`` that shows how far a count has come, on stderr.

    Nothing is shown where stderr is no terminal.

    Example:
        >>> with count_progress() as progress:
        ...     progress(1, 2, "reading")
    """
    tasks = {}
    with _bars(Console(stderr=True)) as bars:

        def progress(done, total, what):
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield progress


def with_estimate(progress, say):
    """Wrap a function of progress: after a few steps say, once, how long the others take.

    The first step is left out of the estimate, because it compiles.

    Args:
        progress: function of ``(done, total)``, or ``None``.
        say: function of a line of text.

    Returns:
        A function of ``(done, total)``, for one count from 1 to ``total``.

    Example:
        >>> progress = with_estimate(None, print)
        >>> for done in range(1, 10):
        ...     progress(done, 9)
        about 0 s
    """
    began = None

    def counted(done, total):
        nonlocal began
        if done == 1:
            began = time.monotonic()
        elif done == 1 + STEPS_FOR_ESTIMATE:
            say(f"about {(time.monotonic() - began) / STEPS_FOR_ESTIMATE * (total - done):.0f} s")
        if progress:
            progress(done, total)

    return counted


def _count(number, noun):
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


class ProgressBar(TuneCallback):
    """Show the progress of :func:`thaw.fine_tune` on stderr: a bar while a phase runs, and a line for each epoch.

    The bar, with an estimate of the time left, is shown on a terminal only. Epochs that take less than two seconds get
    one line for the whole phase.

    Args:
        console: a ``rich.console.Console``; stderr by default.
        verbose: 1 for both, 2 for a line for each epoch and no bar. Default 1.
        trainings: whether each training is shown; ``False`` for the trainings of :func:`thaw.compare`, which get one
            line each. Default ``True``.

    Attributes:
        said: set of the notes and reasons that were shown.

    Example:
        >>> import io
        >>> from rich.console import Console
        >>> with ProgressBar(Console(file=io.StringIO(), width=80)) as progress:
        ...     progress.set_params({"epochs": 1, "steps": 2})
        ...     progress.on_epoch_begin(0)
    """

    def __init__(self, console=None, verbose=1, trainings=True):
        super().__init__()
        self.summary = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.console = self.summary if trainings else Console(quiet=True)
        self.verbose = verbose
        self.bars = _bars(self.summary, verbose == 1)
        self.phase, self.task, self.first, self.waiting, self.said = None, None, None, None, set()
        self.is_resumed = False

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *error):
        self._remove_bar()
        self.bars.stop()

    def on_way_begin(self, way, seed, epochs, done, total):
        line = f"{done + 1} of {total}: {way}, seed {seed}, {_count(epochs, 'epoch')}"
        self.summary.print(line, soft_wrap=True)

    def on_cross_validate(self, done, total):
        self._bar("head: comparing what it may read", done, total)

    def on_fold_begin(self, number, total):
        self._remove_bar()
        self.phase = None
        self.console.print(f"fold {number} of {total}")

    def on_trial(self, number, total, name):
        self._bar(f"trying {name}", number - 1, total)

    def on_trial_end(self, trial):
        score = "diverged" if trial.diverged else f"{trial.score.value:.3f}"
        self.console.print(f"  tried {trial.name}, {_count(trial.epochs, 'epoch')}: {score}")

    def on_advice(self, advice):
        self._remove_bar()
        self.said.update(advice.reasons)
        for reason in advice.reasons:
            self.console.print(f"advice: {reason}")

    def on_no_advice(self, reason):
        self.said.add(reason)
        self.console.print(reason)

    def on_preflight(self, findings):
        self.is_resumed = False
        self.said.update(map(str, findings))
        for finding in findings:
            self.console.print(f"{finding.level}: {finding}", style="bold yellow")

    def on_resume(self, phase, epoch):
        self.is_resumed = True  # it is said where an epoch begins: a finished run has none left

    def on_phase_begin(self, phase, stages):
        self.phase, self.first, self.waiting = phase, None, None
        names = "all stages" if phase.train == "all" else " ".join(stage.name for stage in stages)
        how = f"at {phase.learning_rate:g}, {_count(phase.epochs, 'epoch')}"
        if phase.solves:
            how = f"by the solver {phase.solver}"
        self.console.print(f"{phase.name}: {names} {how}")

    def on_precompute(self, done, total):
        name = "head" if self.phase is None else self.phase.name  # before the first phase, its head is chosen
        self._bar(f"{name}: computing the frozen layers once", done, total)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.began = epoch, time.monotonic()
        if self.is_resumed:
            self.console.print(f"resuming at epoch {epoch + 1}, phase {self.phase.name}")
            self.is_resumed = False
        if self.first is None:
            self.first, self.phase_began = epoch, self.began
            self._remove_bar()

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params["steps"]
        done = (self.epoch - self.first) * steps + batch + 1
        self._bar(getattr(self.phase, "name", "training"), done, (self.params["epochs"] - self.first) * steps)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        names = [name for name in ("loss", "val_loss") if name in logs]
        names += [name for name in logs if name.startswith("val_") and name != "val_loss"]
        shown = [f"{name.replace('_', ' ')} {_shown(logs[name], 4 if 'loss' in name else 3)}" for name in names]
        if "retention" in logs:  # the source task next to the target task
            shown.append(f"retention {_shown(logs['retention'], 3)}")
        now = time.monotonic()
        line = f"  epoch {epoch + 1:>3} of {self.params['epochs']}  {'  '.join(shown)}"
        slow = now - self.began >= MIN_SECONDS_FOR_A_LINE
        # The first epoch is slower than the others: it traces the training step.
        if self.verbose == 2 or (slow and (epoch > self.first or now - self.began >= 3 * MIN_SECONDS_FOR_A_LINE)):
            self._print_waiting()
            self.console.print(f"{line}  {now - self.began:.1f} s", soft_wrap=True)  # in a log it stays one line
        else:
            self.waiting = f"{line}  {now - self.phase_began:.1f} s in all", slow

    def on_phase_end(self, phase, changes, notes):
        self._remove_bar()
        self._print_waiting(last=True)
        for stage in changes:
            if stage.weights or stage.statistics:
                text = f"  {stage.stage} changed by {stage.weights:.2%}"
                text += f", its statistics by {stage.statistics:.2%}" if stage.statistics else ""
                self.console.print(text)
        self.said.update(notes)
        for note in notes:
            self.console.print(f"  {note}")

    def _print_waiting(self, last=False):
        """Print the line of an epoch that was held back, unless it was a quick one among others."""
        if self.waiting is not None and (last or self.waiting[1]):
            self.console.print(self.waiting[0], soft_wrap=True)
        self.waiting = None

    def _remove_bar(self):
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None

    def _bar(self, what, done, total):
        if self.task is None:
            self.task = self.bars.add_task(what, total=None)
        self.bars.update(self.task, description=what, completed=done, total=total)


def _shown(value, digits):
    """A logged value as text; a metric of several numbers as its mean."""
    try:
        return f"{float(np.mean(np.asarray(value, np.float64))):.{digits}f}"
    except (TypeError, ValueError):
        return str(value)
