"""How much each weight matters to a task: the diagonal Fisher information."""

import numpy as np

from thaw.examples import Examples
from thaw.forward import held
from thaw.number import all_finite
from thaw.stages import sublayers
from thaw.tuning.log_probabilities import log_probabilities


def fisher(model, data, *, labels="sample", examples=200, of=None, seed=0):
    """Estimate the diagonal of a classifier's Fisher information: the mean square of d log p(class | x) / d w.

    It says how much the answers change when a weight does, and is the importance that elastic weight
    consolidation (Kirkpatrick et al. 2017) needs: ``anchored(optimizer, model, strength, importance=fisher(model,
    data))``. The gradient is squared for each example by itself; squaring that of a batch would be another
    number. How the class is chosen makes a difference (Kunstner et al. 2019, van de Ven 2025). The model is run
    with ``training=False`` and is the same afterwards, to the bit; ``trainable`` is not looked at.

    Args:
        model: a ``keras.Model`` with the old head: softmax, logits, or a single sigmoid unit.
        data: examples of the old task: :class:`thaw.Examples`, arrays ``(x, y)``, or a batched ``tf.data.Dataset``.
        labels: ``"sample"``, one class drawn from what the model says (unbiased, one backward pass an example);
            ``"all"``, the expectation over all classes (exact, one backward pass a class); ``"true"``, the class in
            the data (the empirical Fisher, near zero for a model that has learned them by heart).
        examples: how many at most, drawn at random; of a data set, the first. ``None`` for all.
        of: a model that shares variables with this one, such as one with a new head on the same backbone, whose
            weights are meant; ``None`` for this one.
        seed: of both draws.

    Returns:
        Float32 arrays in the order of ``model.weights``, or of ``of.weights``; zero for what no gradient reaches and
        what is not learned, such as BatchNorm's statistics.

    Raises:
        ValueError: another kind of labels or data, or labels that are not class numbers.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.fisher import fisher
        >>> dense = keras.layers.Dense(2, kernel_initializer="zeros", use_bias=False)
        >>> model = keras.Sequential([keras.Input((1,)), dense])
        >>> fisher(model, (np.array([[1.0], [3.0]]), np.array([0, 1])), labels="all")[0].tolist()
        [[1.25, 1.25]]
    """
    import tensorflow as tf

    if labels not in ("sample", "all", "true"):
        raise ValueError(f'labels={labels!r}; expected "sample", "all" or "true".')
    learned = {id(w) for layer in sublayers(model) for w in getattr(layer, "_trainable_variables", ())}
    weights = [w for w in model.weights if id(w) in learned]
    values = [w.value for w in weights]

    def log_p(x):
        return log_probabilities(model, model(x, training=False))[0]

    # Traced once for all examples; the class is a tensor, so that it is not traced for each.
    @tf.function(reduce_retracing=True, jit_compile=False)
    def step(x, label):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)  # whether or not they are frozen
            chosen = log_p(x)[label]
        found = tape.gradient(chosen, values, unconnected_gradients="zero")
        return [tf.square(tf.cast(tf.convert_to_tensor(g), tf.float32)) for g in found]

    forward = tf.function(log_p, reduce_retracing=True, jit_compile=False)
    rng, count = np.random.default_rng(seed), 0
    sums = [np.zeros(w.shape, np.float64) for w in weights]
    with held(model.non_trainable_variables):
        for x, y in _one_by_one(data, examples, rng):
            if not all_finite(x):
                raise ValueError(f"Example {count} holds NaN or infinity; expected numbers. Leave such examples out.")
            p = np.exp(np.asarray(forward(x), np.float64))
            for label, share in _classes(labels, p / p.sum(), y, rng):
                for total, square in zip(sums, step(x, tf.constant(label))):
                    total += share * square.numpy()
            count += 1
    if not count:
        raise ValueError("There are no examples; expected at least one.")
    by_variable = {id(w): (total / count).astype(np.float32) for w, total in zip(weights, sums)}
    asked = (model if of is None else of).weights
    return [by_variable.get(id(w), np.zeros(w.shape, np.float32)) for w in asked]


def _one_by_one(data, examples, rng):
    """Batches of one example and its label."""
    data = Examples.of(data)
    if isinstance(data, Examples):
        if examples is not None and examples < len(data):
            data = data.take(np.sort(rng.permutation(len(data))[:examples]))
        batches = data.ordered(1)
    elif hasattr(data, "unbatch"):
        batches = data.unbatch().batch(1)
        batches = batches if examples is None else batches.take(examples)
    else:
        raise ValueError(
            f"The data are a {type(data).__name__}; expected thaw.Examples, arrays (x, y) or a tf.data.Dataset."
        )
    for x, y, *_ in batches:
        yield x, np.asarray(y)[0]


def _classes(labels, p, y, rng):
    """Pairs of a class and how much its square counts."""
    if labels == "all":
        return list(enumerate(p))
    if labels == "sample":
        return [(int(rng.choice(len(p), p=p)), 1.0)]
    y = y.argmax() if np.ndim(y) == 1 and len(y) == len(p) > 1 else np.ravel(y)[0]
    if np.asarray(y).dtype.kind not in "iubf" or not 0 <= y < len(p) or y != int(y):
        raise ValueError(f"A label is {np.asarray(y).item()!r}; expected a class number from 0 to {len(p) - 1}.")
    return [(int(y), 1.0)]
