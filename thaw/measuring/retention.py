"""How much of an old task is kept while a new one is learned."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np

from thaw.measuring.agreement import agreement
from thaw.measuring.inputs_of import inputs_of
from thaw.measuring.predict_probabilities import predict_probabilities
from thaw.probabilities import probabilities
from thaw.share import share

RESAMPLES = 2000


def retention(old, data, *, score="accuracy", batch_size=32, seed=0, answers=None):
    """Watch what a model forgets: a callback that writes ``logs["retention"]`` after every epoch.

    **Retention is the share of the old score that is kept**: the score now over the score when this function
    was called. 1 means that nothing is lost, 0.9 that a tenth is; above 1 the old task got better. Whatever acts
    on the logs acts on it too, for instance ``EarlyStopping("retention", mode="max")``.

    The old model shares its variables with the one that is tuned, so that nothing is copied: it is the tuned
    backbone with the old head on it, ``keras.Model(backbone.input, old_head(backbone.output))``, or the tuned
    model itself. It is run with ``training=False`` and is the same afterwards, to the bit. TensorFlow computes
    it every time, because the same weights must give the same number in every epoch. Where the optimizer keeps
    a moving average of the weights, the average is measured, as it is what the training leaves behind.

    Args:
        old: a ``keras.Model`` that answers the old task, at the state to compare with. It is measured at once.
        data: examples of the old task: :class:`thaw.Examples`, arrays ``(x, y)``, or a batched, finite
            ``tf.data.Dataset``. For ``score="agreement"`` any inputs; labels are not looked at.
        score: ``"accuracy"``; or ``"agreement"``, the share of examples with the same most probable class as at
            first, for when there are no labels of the old task.
        batch_size: examples in a batch.
        seed: of the resampling behind the intervals.
        answers: a function without arguments that gives ``old``'s probabilities ``(n, classes)`` for the examples as
            it is now, for when there is a faster way than to run all of it; ``data`` are then :class:`thaw.Examples`.

    Returns:
        A ``keras.callbacks.Callback``. It also has ``share()``, the retention now as a number, and ``measure()``,
        the same with intervals: a dict that goes into JSON, with ``examples``, ``score``, and ``before``,
        ``after``, ``kept`` (after / before) and ``lost`` (before - after), each ``{"value", "low", "high"}``,
        95 %; for ``"agreement"`` also ``divergence`` (see :func:`thaw.measuring.agreement.agreement`).

    Raises:
        ValueError: another score, data that cannot be measured, or an old model with no right answer at all;
            in ``fit``, an old model that shares no variable with the one that is fitted.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.retention import retention
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax", kernel_initializer="zeros")])
        >>> model.layers[0].kernel.assign(np.eye(2)) is None
        False
        >>> x = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
        >>> watch = retention(model, (x, np.array([0, 1, 1, 0])))
        >>> model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
        >>> model.fit(x, np.zeros(4), verbose=0, callbacks=[watch]).history["retention"]
        [1.0]
    """
    import keras

    if score not in ("accuracy", "agreement"):
        raise ValueError(f'score={score!r}; expected "accuracy" or "agreement".')

    def asked():
        """What is right, ``None`` where nobody knows, the probabilities, and a digest of the inputs' order."""
        if answers is not None:
            return np.asarray(data.y) if score == "accuracy" else None, answers(), data.content_keys.tobytes()
        if score == "accuracy":
            y, p = predict_probabilities(old, _of_unknown_length(data, batch_size))
            return y, p, y.tobytes()
        digest = hashlib.sha256()
        p = probabilities(old, inputs_of(data, batch_size, digest))
        return None, p, digest.hexdigest()

    class Retention(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self._y, self._p, self._order = asked()
            if self._y is None:
                self._y = self._p.argmax(axis=1)

        def on_train_begin(self, logs=None):
            fitted = {id(v) for v in self.model.weights}
            if not any(id(v) in fitted for v in old.weights):
                raise ValueError(
                    f"{old.name} shares no variable with {self.model.name}, so that its retention would be 1 for ever; "
                    "build it on the layers that are tuned: keras.Model(backbone.input, old_head(backbone.output))."
                )

        def on_epoch_end(self, epoch, logs=None):
            if logs is not None:
                with _averaged(self.model.optimizer):
                    logs["retention"] = self.share()

        def share(self):
            """The retention now."""
            return _share(self._right(self._p), self._right(self._now()))

        def measure(self):
            """Before, after, what is kept and what is lost, with intervals."""
            p = self._now()
            if score == "agreement":
                return {"score": score} | _agreed(agreement(self._p, p, seed=seed))
            same = np.array_equal(self._p, p)
            return {"score": score} | _compare(self._right(self._p), self._right(p), same, seed)

        def _now(self):
            _, p, order = asked()
            if order != self._order:
                raise ValueError(
                    "The examples came in another order than at first, or are others; leave shuffle() out."
                )
            return p

        def _right(self, p):
            return p.argmax(axis=1) == self._y

    watch = Retention()
    if not watch._right(watch._p).any():
        raise ValueError(
            f"{old.name} has none of the {len(watch._y)} old examples right; there is nothing that could be kept. "
            "Are the labels those that its head was trained on?"
        )
    return watch


def _of_unknown_length(data, batch_size):
    """The same data, without saying how many: TensorFlow computes them, whichever runtime would be faster."""
    import tensorflow as tf

    from thaw.examples import Examples

    data = Examples.of(data)
    if isinstance(data, Examples):
        data = data.ordered(batch_size)
    finite = isinstance(data, tf.data.Dataset) and int(data.cardinality()) >= 0
    return data.filter(lambda *_: True) if finite else data


@contextlib.contextmanager
def _averaged(optimizer):
    """The variables at the optimizer's moving average, where it keeps one; afterwards as they were, to the bit."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not (getattr(inner, "use_ema", False) and inner.built):
        yield
        return
    pairs = list(zip(inner._trainable_variables, inner._model_variables_moving_average))
    raw = [variable.numpy().copy() for variable, _ in pairs]
    try:
        for variable, average in pairs:
            variable.assign(average)
        yield
    finally:
        for (variable, _), value in zip(pairs, raw):
            variable.assign(value)


def _agreed(found):
    """The same form for agreement: everything agrees with itself at first, so that what agrees is what is kept."""
    same = found.pop("same")
    lost = {"value": 1 - same["value"], "low": 1 - same["high"], "high": 1 - same["low"]}
    return found | {"before": dict.fromkeys(same, 1.0), "after": same, "kept": dict(same), "lost": lost}


def _share(was, now):
    return float(now.sum() / was.sum())


def _compare(was, now, same, seed):
    """Right answers before and after, example by example: the same examples, so the pairs stay together."""
    n = len(was)
    found = {"examples": n}
    for name, right in (("before", was), ("after", now)):
        value, low, high = share(right.sum(), n, "exact")
        found[name] = {"value": value, "low": low, "high": high}
    if same:  # to the bit
        ends = (1.0, 1.0), (0.0, 0.0)
    elif np.array_equal(was, now):
        # A bootstrap of pairs without a change sees no doubt. So many examples without one change bound how often
        # there may be one (Clopper and Pearson 1934).
        most = 1 - 0.025 ** (1 / n)
        ends = (max(0.0, 1 - most / was.mean()), 1 + most / was.mean()), (-most, most)
    else:
        # Bootstrap over examples (Efron 1979): resampling pairs of right and wrong is drawing from four cells.
        cells = np.bincount(2 * was + now, minlength=4)
        drawn = np.random.default_rng(seed).multinomial(n, cells / n, RESAMPLES)
        old, new = drawn[:, 2] + drawn[:, 3], drawn[:, 1] + drawn[:, 3]
        ratio = new[old > 0] / old[old > 0]
        ends = np.quantile(ratio, (0.025, 0.975)), np.quantile((old - new) / n, (0.025, 0.975))
    values = _share(was, now), float(was.mean() - now.mean())
    for name, value, (low, high) in zip(("kept", "lost"), values, ends):
        found[name] = {"value": value, "low": float(low), "high": float(high)}
    return found
