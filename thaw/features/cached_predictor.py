"""Predict the same examples again and again while only the suffix of a model is trained."""

from __future__ import annotations

import numpy as np

from thaw.data.conversion import as_dataset
from thaw.features.inference import inference_runner
from thaw.features.predictions import as_probabilities, single_output
from thaw.features.split import CannotSplit, find_cut_point, flatten_model, submodel
from thaw.models.state import preserve_variables

MAX_CACHED_BYTES = 512e6  # of features in memory


class CachedPredictor:
    """Predict the probabilities of the same examples again, computing only what has changed.

    The features of the frozen prefix are computed once and held in memory, so that a later call computes the suffix
    only; where no weight has changed since the last call, nothing is computed. Everything runs in TensorFlow: the same
    weights give the same bits, also after a resumed run. The model is bit-identical afterwards.

    Args:
        model: a ``keras.Model`` that puts out one score for each class.
        x: inputs, as :func:`thaw.as_dataset` takes them, or a :class:`thaw.Dataset`, whose labels are not used.
        batch_size: examples in a batch. Default 32.
        max_bytes: of features in memory; where they would take more, the whole model is computed. Default 512 MB.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.cached_predictor import CachedPredictor
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> CachedPredictor(model, np.zeros((1, 2), "float32"))().tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, model, x, *, batch_size=32, max_bytes=MAX_CACHED_BYTES):
        self.model, self.dataset = model, as_dataset(x)
        self.batch_size, self.max_bytes = min(batch_size, len(self.dataset)), max_bytes
        self._probabilities = None
        self._weights = {}  # the values behind the probabilities and the features, by id of the variable
        self._reset()
        try:
            self._flat = flatten_model(model, training=False)
        except CannotSplit:
            self._flat = None

    def follow(self):
        """Cache the features of the layers that are frozen now.

        They are computed at the next call, and again whenever a weight of these layers has changed nevertheless.
        """
        self._reset()
        if self._flat is not None:
            try:
                self._cut = find_cut_point(self._flat)
                self._prefix = submodel(self._flat, None, self._cut)
            except CannotSplit:
                pass  # there is no frozen prefix that is worth caching

    def __call__(self):
        """Return the probabilities for the present weights, float64 ``(n, classes)``, in the order of the examples."""
        if self._features is not None and self._changed(self._prefix.weights):
            self._features = None
        if self._probabilities is None or self._changed(self.model.weights):
            with preserve_variables(self.model.non_trainable_variables):
                # Before they run: a layer may change its own variables.
                self._weights = {id(variable): _snapshot(variable) for variable in self.model.weights}
                output = np.concatenate([single_output(self.model, self._runner(x)) for x in self._batches()])
            self._probabilities = as_probabilities(self.model, output.astype(np.float64))
        return self._probabilities

    def _reset(self):
        self._cut = self._prefix = self._runner = self._features = None

    def _changed(self, variables):
        """Return whether a variable has another value than at the last call."""
        return any(not _is_equal(variable, self._weights.get(id(variable))) for variable in variables)

    def _batches(self):
        """Return batches of inputs for the part of the model that has to run, after preparing its runner."""
        if self._prefix is not None and self._features is None:
            self._features = self._compute_features()
            if self._features is None:
                self._reset()
        if self._features is not None:
            self._runner = self._runner or self._runner_of(submodel(self._flat, self._cut, None))
            return self._feature_batches()
        self._runner = self._runner or self._runner_of(self.model)
        return self.dataset.inputs(self.batch_size)

    def _compute_features(self):
        """Return one array of features for each tensor of the cut; ``None`` where they take too much memory."""
        runner, features, start = self._runner_of(self._prefix), None, 0
        for x in self.dataset.inputs(self.batch_size):
            outputs = runner(x)
            if features is None:
                if sum(a.nbytes for a in outputs) / len(outputs[0]) * len(self.dataset) > self.max_bytes:
                    return None
                features = [np.empty((len(self.dataset), *a.shape[1:]), a.dtype) for a in outputs]
            for rows, a in zip(features, outputs):
                rows[start : start + len(a)] = a
            start += len(outputs[0])
        return features

    def _feature_batches(self):
        for start in range(0, len(self.dataset), self.batch_size):
            batch = [rows[start : start + self.batch_size] for rows in self._features]
            yield batch[0] if len(batch) == 1 else batch

    def _runner_of(self, model):
        return inference_runner(model, self.batch_size, runtime="tensorflow")


def _snapshot(variable):
    """Return the value of a variable without a copy: TensorFlow copies it when the variable is next changed."""
    import tensorflow as tf

    return tf.identity(variable.value)


def _is_equal(variable, value):
    import tensorflow as tf

    return value is not None and bool(tf.reduce_all(tf.equal(_snapshot(variable), value)))
