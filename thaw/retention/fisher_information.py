"""Estimate the diagonal of the Fisher information."""

import numpy as np

from thaw._keras import learnable_variables, sublayers
from thaw._validation import all_finite
from thaw.data.conversion import as_dataset
from thaw.features.predictions import log_proba
from thaw.models.state import preserve_variables


def fisher(model, x, y=None, *, classes="sample", max_examples=200, weights_of=None, seed=0):
    """Estimate the diagonal of a classifier's Fisher information: the mean square of d log p(class | x) / d w.

    It says how much the predictions change when a weight does, and is the importance that elastic weight consolidation
    (Kirkpatrick et al. 2017) needs: ``ewc(optimizer, model, strength, importance=fisher(model, x))``. The gradient is
    squared for each example by itself; squaring that of a batch would be another number. How the class is chosen makes
    a difference (Kunstner et al. 2019, van de Ven 2025). The model runs with ``training=False`` and is bit-identical
    afterwards; ``trainable`` flags do not matter.

    Args:
        model: a ``keras.Model`` with the source head: softmax, logits, or a single sigmoid unit.
        x: examples of the source task: arrays, a :class:`thaw.Dataset`, or a batched ``tf.data.Dataset``.
        y: labels, for arrays; needed for ``classes="true"`` alone.
        classes: ``"sample"``, one class drawn from the predictions (unbiased, one backward pass an example);
            ``"all"``, the expectation over all classes (exact, one backward pass a class); ``"true"``, the label (the
            empirical Fisher, near zero for a model that has memorized the examples). Default ``"sample"``.
        max_examples: number of examples, drawn at random; the first ones of a stream. ``None`` for all. Default 200.
        weights_of: a model that shares variables with this one, such as one with a new head on the same backbone, for
            whose weights the result is; ``None`` for ``model``.
        seed: seed of both draws.

    Returns:
        A list of float32 arrays in the order of ``model.weights``, or of ``weights_of.weights``; zero where no gradient
        arrives and for what is not learned, such as BatchNorm statistics.

    Raises:
        ValueError: an invalid ``classes``, invalid data, or labels that are not class numbers.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import fisher
        >>> dense = keras.layers.Dense(2, kernel_initializer="zeros", use_bias=False)
        >>> model = keras.Sequential([keras.Input((1,)), dense])
        >>> fisher(model, np.array([[1.0], [3.0]]), classes="all")[0].tolist()
        [[1.25, 1.25]]
    """
    import tensorflow as tf

    if classes not in ("sample", "all", "true"):
        raise ValueError(f'classes={classes!r}; expected "sample", "all" or "true".')
    dataset = as_dataset(x, y, labelled=classes == "true")
    learned = {id(w) for layer in sublayers(model) for w in learnable_variables(layer)}
    weights = [w for w in model.weights if id(w) in learned]
    values = [w.value for w in weights]

    def log_p(x):
        return log_proba(model, model(x, training=False))[0]

    # Traced once for all examples; the class is a tensor, so that it is not traced for each.
    @tf.function(reduce_retracing=True, jit_compile=False)
    def step(x, label):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)  # whether or not they are frozen
            chosen = log_p(x)[label]
        gradients = tape.gradient(chosen, values, unconnected_gradients="zero")
        return [tf.square(tf.cast(tf.convert_to_tensor(g), tf.float32)) for g in gradients]

    forward = tf.function(log_p, reduce_retracing=True, jit_compile=False)
    rng, count = np.random.default_rng(seed), 0
    sums = [np.zeros(w.shape, np.float64) for w in weights]
    with preserve_variables(model.non_trainable_variables):
        for inputs, label in _one_by_one(dataset, max_examples, rng):
            if not all_finite(inputs):
                raise ValueError(f"Example {count} holds NaN or infinity; expected numbers. Leave such examples out.")
            p = np.exp(np.asarray(forward(inputs), np.float64))
            for number, share in _weighted_classes(classes, p / p.sum(), label, rng):
                for total, square in zip(sums, step(inputs, tf.constant(number))):
                    total += share * square.numpy()
            count += 1
    if not count:
        raise ValueError("There are no examples; expected at least one.")
    by_variable = {id(w): (total / count).astype(np.float32) for w, total in zip(weights, sums)}
    result_weights = (model if weights_of is None else weights_of).weights
    return [by_variable.get(id(w), np.zeros(w.shape, np.float32)) for w in result_weights]


def _one_by_one(dataset, max_examples, rng):
    """Yield batches of one example with its label, or ``None`` where there is none."""
    if dataset.random_access:
        if max_examples is not None and max_examples < len(dataset):
            dataset = dataset.take(np.sort(rng.permutation(len(dataset))[:max_examples]))
        batches = dataset.ordered(1)
    else:
        batches = dataset.ordered().unbatch().batch(1)
        batches = batches if max_examples is None else batches.take(max_examples)
    for batch in batches:
        if isinstance(batch, tuple):
            yield batch[0], np.asarray(batch[1])[0]
        else:
            yield batch, None


def _weighted_classes(classes, p, y, rng):
    """Return pairs of a class number and the weight of its squared gradient."""
    if classes == "all":
        return list(enumerate(p))
    if classes == "sample":
        return [(int(rng.choice(len(p), p=p)), 1.0)]
    y = y.argmax() if np.ndim(y) == 1 and len(y) == len(p) > 1 else np.ravel(y)[0]
    if np.asarray(y).dtype.kind not in "iubf" or not 0 <= y < len(p) or y != int(y):
        raise ValueError(f"A label is {np.asarray(y).item()!r}; expected a class number from 0 to {len(p) - 1}.")
    return [(int(y), 1.0)]
