"""Measure what a model forgets of its source task, after every epoch and at the end."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from thaw._keras import moving_averages
from thaw.data.conversion import as_dataset
from thaw.features.cached_predictor import CachedPredictor
from thaw.features.predictions import batch_probabilities
from thaw.features.similarity import MIN_BATCH_SIZE, agreement, stage_cka, stage_grams
from thaw.metrics.intervals import Estimate, binomial_interval, bootstrap
from thaw.models.heads import task_of
from thaw.models.stages import HEAD
from thaw.retention.budget import PATH_ALPHAS, enforce_budget, is_inside
from thaw.targets import Regression
from thaw.tasks import class_numbers

MAX_MONITORED_EXAMPLES = 1000
MIN_MONITORED_EXAMPLES = 100  # also where an epoch is short: fewer would tell next to nothing
# Of an epoch's work, a training step counted as three times the work of a prediction. Counted and not timed: what is
# measured must not depend on how busy the machine is.
MAX_SHARE_OF_EPOCH = 0.1
SIMILARITY_EXAMPLES = 256  # for the similarity of the stages
SIMILARITY_BATCH_SIZE = 32


def retention_callback(source, x, y=None, *, score="accuracy", batch_size=32, seed=0, predictions=None):
    """Make a callback that measures what a model forgets: it writes ``logs["retention"]`` after every epoch.

    **Retention is the score on the source task divided by the score when this function was called.** 1 means that
    nothing is lost, 0.9 that a tenth is; above 1 the source task got better. Whatever acts on the logs acts on it too,
    such as ``EarlyStopping("retention", mode="max")``.

    The source model shares its variables with the model that is tuned, so that nothing is copied: it is the tuned
    backbone with the source head on it, ``keras.Model(backbone.input, source_head(backbone.output))``, or the tuned
    model itself. It runs with ``training=False``, always in TensorFlow, so that equal weights give equal numbers, and
    is bit-identical afterwards. Where the optimizer keeps a moving average of the weights, the average is measured, as
    it is what the training ends with.

    Args:
        source: a ``keras.Model`` for the source task, in the state to compare with. It is measured at once.
        x: examples of the source task: arrays, a :class:`thaw.Dataset`, or a batched, finite ``tf.data.Dataset``.
        y: labels, for arrays; not used with ``score="agreement"``.
        score: ``"accuracy"``; or ``"agreement"``, the fraction of examples with the same most probable class as at
            first, for when there are no labels of the source task. Default ``"accuracy"``.
        batch_size: examples in a batch. Default 32.
        seed: seed of the bootstrap.
        predictions: a function without arguments that returns the present probabilities ``(n, classes)`` of the source
            model for a :class:`thaw.Dataset` ``x``, where there is a faster way than to run all of it; ``None`` to run
            it.

    Returns:
        A ``keras.callbacks.Callback``. ``retention()`` returns the present retention as a float, and ``measure()`` the
        same with 95 % intervals: a dict that goes into JSON, with ``examples``, ``score``, and ``before``, ``after``,
        ``kept`` (after / before) and ``lost`` (before - after), each ``{"value", "low", "high"}``; for ``"agreement"``
        also ``divergence`` (see :func:`thaw.retention.agreement`).

    Raises:
        ValueError: another score, invalid data, or a source model with no correct prediction at all; in ``fit``, a
            source model that shares no variable with the fitted one.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import retention_callback
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax", kernel_initializer="zeros")])
        >>> _ = model.layers[0].kernel.assign(np.eye(2))
        >>> x = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
        >>> watch = retention_callback(model, x, np.array([0, 1, 1, 0]))
        >>> model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
        >>> model.fit(x, np.zeros(4), verbose=0, callbacks=[watch]).history["retention"]
        [1.0]
    """
    import keras

    if score not in ("accuracy", "agreement"):
        raise ValueError(f'score={score!r}; expected "accuracy" or "agreement".')
    dataset = as_dataset(x, y, labelled=score == "accuracy")

    class Retention(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.before, labels, self.order = _predicted(source, dataset, batch_size, predictions)
            if score == "accuracy":
                self.labels = class_numbers(labels, self.before.shape[1])
            else:
                self.labels = self.before.argmax(axis=1)

        def on_train_begin(self, logs=None):
            fitted = {id(v) for v in self.model.weights}
            if fitted.isdisjoint(id(v) for v in source.weights):
                raise ValueError(
                    f"{source.name} shares no variable with {self.model.name}, so that its retention would always be "
                    "1; build it on the layers that are tuned: keras.Model(backbone.input, "
                    "source_head(backbone.output))."
                )

        def on_epoch_end(self, epoch, logs=None):
            if logs is not None:
                with _with_moving_average(self.model.optimizer):
                    logs["retention"] = self.retention()

        def retention(self):
            """Return the present score divided by the first one."""
            return _ratio(self.is_correct(self.before), self.is_correct(self.now()))

        def measure(self):
            """Return the scores before and after, their ratio and their difference, with intervals."""
            p = self.now()
            if score == "agreement":
                return {"score": score} | _of_agreement(agreement(self.before, p, seed=seed))
            identical = np.array_equal(self.before, p)
            return {"score": score} | _compare(self.is_correct(self.before), self.is_correct(p), identical, seed)

        def now(self):
            p, _, order = _predicted(source, dataset, batch_size, predictions)
            if order != self.order:
                raise ValueError("The examples came in another order than at first; leave shuffle() out.")
            return p

        def is_correct(self, p):
            return p.argmax(axis=1) == self.labels

    watch = Retention()
    if not watch.is_correct(watch.before).any():
        raise ValueError(
            f"{source.name} predicts none of the {len(watch.labels)} source examples correctly; there is nothing that "
            "could be kept. Are the labels those that its head was trained on?"
        )
    return watch


def _predicted(model, dataset, batch_size, predictions):
    """Return probabilities, labels (``None`` where there are none), and a digest of the order of a stream."""
    if predictions is not None:
        return predictions(), dataset.y, ""
    if dataset.random_access:
        return batch_probabilities(model, dataset.inputs(batch_size)), dataset.y, ""
    labels, digest = [], hashlib.sha256()

    def inputs():
        import keras

        for batch in dataset.finite():
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            if isinstance(batch, (tuple, list)):
                labels.append(np.asarray(batch[1]))
            for part in keras.tree.flatten(x):
                digest.update(np.ascontiguousarray(part).tobytes())
            yield x

    p = batch_probabilities(model, inputs())
    return p, np.concatenate(labels) if labels else None, digest.hexdigest()


@contextlib.contextmanager
def _with_moving_average(optimizer):
    """Give the variables the optimizer's moving average, where it keeps one; they are restored, bit-identical."""
    pairs = moving_averages(optimizer)
    if not pairs:
        yield
        return
    values = [variable.numpy().copy() for variable, _ in pairs]
    try:
        for variable, average in pairs:
            variable.assign(average)
        yield
    finally:
        for (variable, _), value in zip(pairs, values):
            variable.assign(value)


def _ratio(before, after):
    return float(after.sum() / before.sum())


def _kept_and_lost(before, after):
    """The share of the accuracy that was kept, and the accuracy that was lost, of each resample."""
    first, last = before.mean(axis=1), after.mean(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([last / first, first - last], axis=1)


def _of_agreement(result):
    """Bring agreement into the same form: everything agrees with itself at first."""
    same = result.pop("same")
    lost = {"value": 1 - same["value"], "low": 1 - same["high"], "high": 1 - same["low"]}
    return result | {"before": dict.fromkeys(same, 1.0), "after": same, "kept": dict(same), "lost": lost}


def _compare(before, after, identical, seed):
    """Compare correct predictions as :func:`kept_and_lost_intervals` takes them.

    Returns:
        A dict with ``examples``, ``before``, ``after``, ``kept`` and ``lost``.
    """
    n = len(before)
    kept, lost = kept_and_lost_intervals(before, after, identical, seed)
    estimates = {
        "before": binomial_interval(before.sum(), n, "exact"),
        "after": binomial_interval(after.sum(), n, "exact"),
        "kept": Estimate(_ratio(before, after), *kept),
        "lost": Estimate(float(before.mean() - after.mean()), *lost),
    }
    return {"examples": n} | {name: estimate.to_dict() for name, estimate in estimates.items()}


def kept_and_lost_intervals(before, after, identical, seed):
    """Return the 95 % intervals of what was kept and of what was lost, from the same examples before and after.

    Args:
        before: ``(n,)`` bools, which were predicted correctly.
        after: ``(n,)`` bools.
        identical: whether the probabilities are bit-identical.
        seed: seed of the bootstrap.

    Returns:
        ``((low, high), (low, high))``.

    Example:
        >>> from thaw.retention.monitor import kept_and_lost_intervals
        >>> kept_and_lost_intervals(np.ones(9, bool), np.ones(9, bool), True, 0)
        ((1.0, 1.0), (0.0, 0.0))
    """
    if identical:
        return (1.0, 1.0), (0.0, 0.0)
    if np.array_equal(before, after):
        # A bootstrap of pairs without a change sees no uncertainty. So many examples without one change bound how
        # often there may be one (Clopper and Pearson 1934).
        bound = 1 - 0.025 ** (1 / len(before))
        return (max(0.0, 1 - bound / before.mean()), 1 + bound / before.mean()), (-bound, bound)
    kept, lost = bootstrap(_kept_and_lost, before, after, seed=seed)
    return (kept.low, kept.high), (lost.low, lost.high)


class ForgettingMonitor:
    """Measure what is forgotten of the source task while a model is tuned, and hold a budget at the end.

    Args:
        source: a :class:`thaw.retention.SourceTask`.
        model: the ``keras.Model`` that is tuned, on ``source.backbone``, before its first step.
        splits: :class:`thaw.data.splits.Splits` of the target task.
        folder: where the best epoch inside the budget is saved, so that an interrupted run can be resumed.
        monitor: name in the logs by which an epoch inside the budget is better. Default ``"val_accuracy"``.
        mode: ``"max"`` or ``"min"``: which direction of it is better. Default ``"max"``.
        alphas: the interpolations to try where a budget is exceeded, :class:`thaw.retention.budget.PathAlphas`.
        trains_backbone: whether more than the head may be trained; else stages stay the same, and their similarity is
            not computed. Default ``True``.
        batch_size: examples in a batch. Default 32.
        seed: seed of the intervals.

    Attributes:
        callbacks: for :func:`thaw.fine_tune`, before all others; empty where nothing is to be measured in every epoch.
        notes: sentences to show.
        examples: the :class:`thaw.Dataset` on which forgetting is measured.
        start: arrays of the model's weights before the first step.

    Raises:
        ValueError: there are no validation data, nothing can be measured where it was asked for, or the folder holds a
            run with other images of the source task or another budget.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> from thaw import Classification, Dataset, attach_head
        >>> from thaw.retention import SourceTask
        >>> from thaw.data.splits import Splits
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2, "softmax")])
        >>> source = SourceTask.of(net)
        >>> model = attach_head(source.backbone, 2)
        >>> some = Dataset(x=np.eye(4, dtype="float32"), y=np.array([0, 1, 0, 1]))
        >>> splits = Splits(train=some, validation=some, test=None, task=Classification(["a", "b"]))
        >>> monitor = ForgettingMonitor(source, model, splits, tempfile.mkdtemp())
        >>> monitor.settle()["forgotten"]["value"]
        0.0
    """

    def __init__(
        self,
        source,
        model,
        splits,
        folder,
        *,
        monitor="val_accuracy",
        mode="max",
        alphas=PATH_ALPHAS,
        trains_backbone=True,
        batch_size=32,
        seed=0,
    ):
        if splits.validation is None:
            raise ValueError("There are no validation data; what is forgotten can be measured only beside them.")
        self.source, self.model, self.splits = source, model, splits
        self.monitor, self.mode, self.alphas = monitor, mode, alphas
        self.trains_backbone, self.batch_size, self.seed = trains_backbone, batch_size, seed
        self.notes, self.callbacks = list(source.notes), []
        self.start = [w.numpy() for w in model.weights]
        self.examples = self._select_examples()
        self._watch = self._predictor = self._best = self._grams = None
        self._begin()
        self._best_file = _BestFile(Path(folder), self._fingerprint())
        self._best_file.resume(self._best)

    def measure(self):
        """Return the dict of ``retention_callback(...).measure()``; ``None`` where nothing is measured."""
        return None if self._watch is None else self._watch.measure()

    def settle(self):
        """Hold the budget, if there is one, after the last step; then measure.

        Returns:
            A dict that goes into JSON: how it was ``measured``, ``score``, ``before``, ``after``, ``lost`` and
            ``forgotten`` with intervals, what :func:`~thaw.retention.budget.enforce_budget` returned, and
            ``similarity`` of the stages where they may be trained and no images of the source task are given; or
            ``None`` where nothing can be measured. The model then holds the chosen weights.
        """
        if self._watch is None:
            return None
        held = {}
        if self.source.max_forgetting is not None:
            held, notes = enforce_budget(
                self.model,
                self.start,
                self.source,
                self.splits,
                examples=self.examples,
                predictor=self._predictor,
                measure=self._watch.measure,
                best_epoch=self._best if self._best.weights else None,
                alphas=self.alphas,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            self.notes += notes
        result = self._watch.measure()
        kept = result.pop("kept")
        # What is not kept is forgotten; the ends of the interval change places.
        result["forgotten"] = {"value": 1 - kept["value"], "low": 1 - kept["high"], "high": 1 - kept["low"]}
        result = {"measured": self._description()} | result | held
        if self._grams is not None:
            similarity = stage_cka(self._grams, self._grams_now(), seed=self.seed)
            result["similarity"] = {name: value for name, value in similarity.items() if name != HEAD}
        return result

    def _select_examples(self):
        """Select the examples to measure on, as many as an epoch's length allows, by their content."""
        train, validation = self.splits.train, self.splits.validation
        affordable = int(MAX_SHARE_OF_EPOCH * (3 * len(train) + len(validation)))
        count = min(MAX_MONITORED_EXAMPLES, max(MIN_MONITORED_EXAMPLES, affordable))
        examples = self.source.examples
        if examples is None:
            examples = validation.replace(augment=None, sample_weight=None)
        else:
            unseen = np.flatnonzero(~np.isin(examples.content_keys, train.content_keys))
            if not len(unseen):
                raise ValueError(
                    "All of the source task's images are training images of the target task; expected others."
                )
            if len(unseen) < len(examples):
                self.notes.append(
                    f"{len(examples) - len(unseen)} images of the source task are training images of the target task "
                    "too, and are left out."
                )
                examples = examples.take(unseen)
        return examples.take(np.argsort(examples.content_keys, kind="stable")[:count])

    def _begin(self):
        """Measure the source model before the first step, and make the callbacks."""
        source = self.source
        is_required = source.examples is not None or source.max_forgetting is not None
        if source.model is None:
            self.notes.append(
                f"What is forgotten was not measured: {source.backbone.name} came without its original head."
            )
            return
        if isinstance(task_of(source.model), Regression):
            if is_required:
                raise ValueError(
                    f"{source.model.name} predicts numbers, and what is forgotten is measured for classes; leave out "
                    "the images of the source task and the budget."
                )
            self.notes.append(f"What is forgotten was not measured: {source.model.name} predicts numbers.")
            return
        self._predictor = CachedPredictor(source.model, self.examples, batch_size=self.batch_size)
        score = "accuracy" if source.labelled else "agreement"
        try:
            self._watch = retention_callback(
                source.model, self.examples, score=score, seed=self.seed, predictions=self._predictor
            )
        except ValueError as error:
            if is_required:
                raise
            self.notes.append(f"What is forgotten was not measured: {error}")
            return
        if source.labelled:
            self._check_labels(self._watch.measure()["before"])
        if is_required:
            if source.max_forgetting is not None:
                self._best = _best_weights(self.model, self.monitor, self.mode)
            self.callbacks = [self._watch, self._follower()]
        if source.examples is None and self.trains_backbone and len(self.examples) >= MIN_BATCH_SIZE:
            self._grams = stage_grams(self.model, self._similarity_examples(), batch_size=SIMILARITY_BATCH_SIZE)

    def _follower(self):
        """Make the callback that caches the frozen prefix of each phase, and saves the best epoch inside the budget."""
        from thaw.training.callbacks import TuneCallback

        class Follower(TuneCallback):
            def on_phase_begin(_, phase, stages):
                self._predictor.follow()

            def on_epoch_end(_, epoch, logs=None):
                best, budget = self._best, self.source.max_forgetting
                if best is None or not is_inside(1 - logs["retention"], budget):
                    return
                epoch_before = best.epoch
                best.on_epoch_end(epoch, logs)
                if best.epoch != epoch_before:
                    self._best_file.write(best)

        return Follower()

    def _check_labels(self, before):
        labels = self.examples.y
        majority = float(np.bincount(labels).max() / len(labels))
        if before["low"] <= majority < 1:
            self.notes.append(
                f"The source head predicts {before['value']:.1%} of the source task's images correctly, which cannot "
                f"be told from {majority:.1%}, the share of the most frequent class. Are the labels those of its "
                "classes?"
            )

    def _similarity_examples(self):
        return self.examples.take(np.arange(min(SIMILARITY_EXAMPLES, len(self.examples))))

    def _grams_now(self):
        backbone = {id(w) for w in self.source.backbone.weights}
        weights = zip(self.model.weights, self.start)
        if all(np.array_equal(w.numpy(), value) for w, value in weights if id(w) in backbone):
            return self._grams
        return stage_grams(self.model, self._similarity_examples(), batch_size=SIMILARITY_BATCH_SIZE)

    def _fingerprint(self):
        source = self.source
        if source.model is None:
            return "nothing is measured"
        digest = hashlib.sha256(f"{source.labelled} {source.max_forgetting} {bool(self.callbacks)}".encode())
        digest.update(self.examples.content_keys.tobytes() + np.asarray(self.examples.y).tobytes())
        return digest.hexdigest()

    def _description(self):
        n, is_target = len(self.examples), self.source.examples is None
        images = f"{n} validation examples of the target task" if is_target else f"{n} images of the source task"
        if self.source.labelled:
            return f"share of {images} that the original head predicts correctly"
        return f"share of {images} on which the original head predicts the same as before"


class _BestFile:
    """The best epoch inside the budget, in a file next to the checkpoint of the run."""

    def __init__(self, folder, fingerprint):
        self.folder, self.file, self.fingerprint = folder, folder / "forgetting.npz", fingerprint

    def resume(self, best):
        """Read what an interrupted run has saved into ``best``, or begin a new file."""
        from thaw.training.checkpoint import CHECKPOINT, read_checkpoint, unfinished_run_error, write_checkpoint

        if not (self.folder / CHECKPOINT).exists():  # no epoch is complete: there is nothing to lose
            write_checkpoint(self.file, {"fingerprint": self.fingerprint}, {})
            return
        meta, arrays = read_checkpoint(self.file) if self.file.exists() else ({}, {})
        if meta.get("fingerprint") != self.fingerprint:
            raise unfinished_run_error(self.folder, "with other images of the source task or another budget")
        if "best" in arrays:
            best.value, best.tie, best.epoch = meta["best"]
            best.weights = arrays["best"]

    def write(self, best):
        """Save the best epoch, before the checkpoint of the run says that it is complete."""
        from thaw.training.checkpoint import write_checkpoint

        meta = {"fingerprint": self.fingerprint, "best": [best.value, best.tie, best.epoch]}
        write_checkpoint(self.file, meta, {"best": best.weights})


def _best_weights(model, monitor, mode):
    from thaw.training.callbacks import BestWeights

    return BestWeights(model, monitor, mode)
