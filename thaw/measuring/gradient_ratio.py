"""Which stage the loss pulls at, for its size."""

from __future__ import annotations

import math

import numpy as np

from thaw.examples import Examples
from thaw.forward import held
from thaw.stages import stages_of


def gradient_ratio(model, data, *, batches=8, batch_size=32, seed=0):
    """The norm of the loss's gradient at each stage relative to the norm of its weights, over a few batches.

    Where the data have shifted, the stage that the shift concerns is pulled at hardest: Auto-RGN (Lee et al. 2022)
    gives each layer a rate by this ratio. It is a hint and no proof; a stage of few weights near zero has a high ratio
    whatever the shift. The model is only called, as in inference: nothing in it changes.

    Args:
        model: a built and compiled ``keras.Model`` with one output; its loss is used.
        data: :class:`thaw.Examples`, read without augmentation, or arrays ``(x, y)``.
        batches: how many, drawn at random.
        batch_size: examples in a batch.
        seed: of the drawing.

    Returns:
        A dict from the name of each stage to its ratio, the median over the batches.

    Raises:
        ValueError: the model is not compiled with a single loss, or the data are something else.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.gradient_ratio import gradient_ratio
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        >>> net.compile("sgd", "mse")
        >>> list(gradient_ratio(net, (np.ones((8, 2), "float32"), np.ones((8, 1), "float32"))))
        ['stage1', 'head']
    """
    import keras
    import tensorflow as tf

    loss = model._compile_config.config["loss"] if model.compiled else None
    if loss is None or isinstance(loss, (dict, list, tuple)):
        raise ValueError(f"{model.name} is not compiled with one loss; write model.compile(optimizer, loss) first.")
    loss = keras.losses.get(loss)
    data = Examples.of(data)
    if not isinstance(data, Examples):
        raise ValueError(f"data is {type(data).__name__}; expected thaw.Examples or arrays (x, y).")
    batch_size = min(batch_size, len(data))
    most = min(len(data) // batch_size, batches) * batch_size
    drawn = np.random.default_rng(seed).choice(len(data), most, replace=False)
    stages = stages_of(model)
    # What would learn if its layer moved: statistics never do.
    learns = {id(v) for layer in model._flatten_layers() for v in layer._trainable_variables}
    weights = [[w for layer in stage.layers for w in layer.weights if id(w) in learns] for stage in stages]
    flat = [w for stage in weights for w in stage]

    def norms(x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([w.value for w in flat])
            p = model(x, training=False)
            if p.shape.rank == y.shape.rank + 1 and p.shape[-1] == 1:  # one number for each example, as fit takes it
                y = tf.expand_dims(y, -1)
            value = tf.reduce_mean(loss(y, p))
        found = iter(tape.gradient(value, [w.value for w in flat], unconnected_gradients="zero"))
        return [
            tf.sqrt(sum((tf.reduce_sum(tf.square(tf.cast(next(found), tf.float32))) for _ in stage), tf.constant(0.0)))
            for stage in weights
        ]

    with held(model.non_trainable_variables):
        traced = tf.function(norms, jit_compile=False)
        pulled = [[float(n) for n in traced(x, y)] for x, y, *_ in data.take(drawn).ordered(batch_size)]
    sizes = [math.sqrt(sum(float((np.asarray(w, np.float64) ** 2).sum()) for w in stage)) for stage in weights]
    ratios = np.median(np.asarray(pulled), axis=0) / np.maximum(sizes, 1e-12)
    return {stage.name: float(ratio) for stage, ratio in zip(stages, ratios)}
