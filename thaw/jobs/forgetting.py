"""What a run forgets: measured before it, in every epoch, and after it, and held inside a budget."""

import dataclasses
import hashlib

import numpy as np

from thaw.jobs.stay_within import inside, stay_within
from thaw.stages import HEAD

MOST = 1000  # old pictures at most
FEWEST = 100  # and so many even where an epoch is short: fewer would tell next to nothing
# Of an epoch's work, a step of training counted as three times the work of a look. Counted and not timed: what is
# measured must not depend on how busy the machine is.
SHARE = 0.1
SIMILAR = 256  # pictures for the similarity of the stages, eight batches of 32


class Forgetting:
    """Watch what is forgotten while a model is tuned; made before the first step, settled after the last.

    Args:
        old: an :class:`thaw.OldTask`.
        model: the model that is tuned, on ``old.backbone``.
        pictures: :class:`thaw.data.pictures.Pictures` of the new task.
        folder: where the best epoch inside the budget is kept, so that an interrupted run can go on.
        batch_size: pictures in a batch.
        seed: of the intervals.

    Attributes:
        callbacks: for :func:`thaw.tune`, in front of all others.
        notes: sentences to show.

    Raises:
        ValueError: nothing can be measured where it was asked for, or the folder holds a run with other old pictures
            or another budget.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> from thaw import Examples, OldTask, attach_head
        >>> from thaw.data.pictures import Pictures
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2, "softmax")])
        >>> old = OldTask.of(net)
        >>> model = attach_head(old.backbone, 2)
        >>> some = Examples(x=np.eye(4, dtype="float32"), y=np.array([0, 1, 0, 1]))
        >>> pictures = Pictures(train=some, validation=some, test=None, labels=("a", "b"), files={}, quarantine=(),
        ...     class_weight=None, notes=(), digest="")
        >>> forgetting = Forgetting(old, model, pictures, tempfile.mkdtemp())
        >>> forgetting.settle(None)["forgotten"]["value"]
        0.0
    """

    def __init__(self, old, model, pictures, folder, *, batch_size=32, seed=0):
        from pathlib import Path

        self.old, self.model, self.pictures = old, model, pictures
        self.batch_size, self.seed = batch_size, seed
        self.notes, self.callbacks = list(old.notes), []
        self._file, self._best, self._grams = Path(folder) / "forgetting.npz", None, None
        self._examples = self._watched()
        self._watch = self._begin()
        self._take_up()

    def settle(self, plan):
        """Hold the budget, if there is one; then measure.

        Args:
            plan: the plan that was run; its last phase says what the model's ``trainable`` flags are to say.

        Returns:
            What was scored and how, ``before``, ``after`` and ``forgotten`` with intervals, and what else is known,
            as a dict that goes into JSON; or ``None`` where nothing could be measured. The model then holds what was
            chosen.
        """
        from thaw.measuring.cka import stage_cka, stage_grams

        if self._watch is None:
            return None
        held = {}
        if self.old.max_forgetting is not None:
            held, notes = stay_within(self, plan)
            self.notes += notes
        found = self._watch.measure()
        kept = found.pop("kept")
        # Of a share that is kept, the rest is forgotten; the ends of its interval change places.
        found["forgotten"] = {"value": 1 - kept["value"], "low": 1 - kept["high"], "high": 1 - kept["low"]}
        found = {"measured": self._measured()} | found | held
        if self._grams is not None:
            moved = not self.unchanged()
            after = stage_grams(self.model, self._some(), batch_size=32) if moved else self._grams
            similar = stage_cka(self._grams, after, seed=self.seed)
            found["similarity"] = {name: value for name, value in similar.items() if name != HEAD}
        return found

    # What the settling needs to know.

    @property
    def start(self):
        """The model's weights before the first step."""
        return self._start

    @property
    def answers(self):
        """The :class:`~thaw.jobs.answers.Answers` of the old model."""
        return self._answers

    @property
    def examples(self):
        """The pictures on which forgetting is measured."""
        return self._examples

    @property
    def best_inside(self):
        """The best epoch that was inside the budget, as a ``BestWeights``, or ``None``."""
        return self._best if self._best is not None and self._best.weights else None

    def measure(self):
        """See :func:`thaw.measuring.retention.retention`."""
        return self._watch.measure()

    def unchanged(self):
        """Is the backbone to the bit what it was?"""
        own = {id(w) for w in self.old.backbone.weights}
        pairs = zip(self.model.weights, self._start)
        return all(np.array_equal(w.numpy(), value) for w, value in pairs if id(w) in own)

    def _watched(self):
        """The pictures to measure on, as many as an epoch's length allows, by their content."""
        train, validation = self.pictures.train, self.pictures.validation
        most = min(MOST, max(FEWEST, int(SHARE * (3 * len(train) + len(validation)))))
        examples = self.old.examples
        if examples is None:
            examples = dataclasses.replace(validation, augment=None, weight=None)
        else:
            strangers = np.flatnonzero(~np.isin(examples.content_keys, train.content_keys))
            if not len(strangers):
                raise ValueError("All of the old pictures are training pictures of the new task; expected others.")
            if len(strangers) < len(examples):
                self.notes.append(
                    f"{len(examples) - len(strangers)} old pictures are training pictures of the new task too, and are "
                    "left out."
                )
                examples = examples.take(strangers)
        return examples.take(np.argsort(examples.content_keys, kind="stable")[:most])

    def _some(self):
        return self._examples.take(np.arange(min(SIMILAR, len(self._examples))))

    def _begin(self):
        """Measure what is known now; the watch, or ``None`` where nothing can be measured."""
        from thaw.jobs.answers import Answers
        from thaw.measuring.cka import FEWEST as LEAST
        from thaw.measuring.cka import stage_grams
        from thaw.measuring.retention import retention

        self._start = [w.numpy() for w in self.model.weights]
        asked = self.old.examples is not None or self.old.max_forgetting is not None
        if self.old.model is None:
            self.notes.append(
                f"What is forgotten was not measured: {self.old.backbone.name} came without its original head."
            )
            return None
        self._answers = Answers(self.old.model, self._examples, batch_size=self.batch_size)
        score = "accuracy" if self.old.labelled else "agreement"
        try:
            watch = retention(self.old.model, self._examples, score=score, seed=self.seed, answers=self._answers)
        except ValueError as error:
            if asked:
                raise
            self.notes.append(f"What is forgotten was not measured: {error}")
            return None
        if self.old.labelled:
            self._doubt(watch.measure()["before"])
        if asked:
            self.callbacks = _callbacks(self, watch)
        if self.old.examples is None and len(self._examples) >= LEAST:
            self._grams = stage_grams(self.model, self._some(), batch_size=32)
        return watch

    def _doubt(self, before):
        y = self._examples.y
        commonest = float(np.bincount(y).max() / len(y))
        if before["low"] <= commonest < 1:
            self.notes.append(
                f"The old head has {before['value']:.1%} of the old pictures right, which cannot be told from "
                f"{commonest:.1%}, what always naming the commonest class gives. Are the labels those of its classes?"
            )

    def _take_up(self):
        """Go on with what an interrupted run has kept, or begin to keep."""
        from thaw.tuning.checkpoint import read_checkpoint, write_checkpoint

        identity = self._identity()
        if not self._file.with_name("checkpoint.npz").exists():  # no epoch is over: there is nothing to lose
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return write_checkpoint(self._file, {"identity": identity}, {})
        meta, arrays = read_checkpoint(self._file) if self._file.exists() else ({}, {})
        if meta.get("identity") != identity:
            raise ValueError(
                f"{self._file.parent} holds an unfinished run with other old pictures or another budget; give the same "
                "command again to go on with it, name another folder, or delete this one."
            )
        if "best" in arrays:
            self._best.value, self._best.tie, self._best.epoch = meta["best"]
            self._best.weights = arrays["best"]

    def keep(self):
        """Write down the best epoch inside the budget, before the run notes that the epoch is over."""
        from thaw.tuning.checkpoint import write_checkpoint

        best = self._best
        meta = {"identity": self._identity(), "best": [best.value, best.tie, best.epoch]}
        write_checkpoint(self._file, meta, {"best": best.weights})

    def _identity(self):
        if self.old.model is None:
            return "nothing is measured"
        digest = hashlib.sha256(f"{self.old.labelled} {self.old.max_forgetting} {bool(self.callbacks)}".encode())
        digest.update(self._examples.content_keys.tobytes() + np.asarray(self._examples.y).tobytes())
        return digest.hexdigest()

    def _measured(self):
        n, own = len(self._examples), self.old.examples is None
        pictures = f"{n} validation pictures of the new task" if own else f"{n} old pictures"
        if self.old.labelled:
            return f"share of {pictures} that the original head has right"
        return f"share of {pictures} on which the original head says the same as before"


def _callbacks(forgetting, watch):
    """What measures, what tells it what stands still, and what keeps the best epoch inside the budget."""
    import keras

    from thaw.tuning.best_weights import BestWeights

    budget = forgetting.old.max_forgetting
    if budget is not None:
        forgetting._best = BestWeights(forgetting.model, "val_accuracy")

    class Follow(keras.callbacks.Callback):
        def on_phase_begin(self, phase, moving):
            forgetting.answers.follow()

        def on_epoch_end(self, epoch, logs=None):
            if budget is None or not inside(1 - logs["retention"], budget):
                return
            best = forgetting._best
            before = best.epoch
            best.on_epoch_end(epoch, logs)
            if best.epoch != before:
                forgetting.keep()

    return [watch, Follow()]
