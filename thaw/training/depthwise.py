"""Gradients of wide depthwise filters, computed as depthwise convolutions: faster than TensorFlow's own on a CPU."""

from __future__ import annotations

import functools

from thaw._keras import graph_nodes
from thaw.features.split import submodel

# oneDNN has fast code for the gradients of filters up to this width, and multiplies channel by channel above.
MAX_FAST_WIDTH = 3


def with_fast_depthwise(model, flat):
    """Return a model with faster gradients of its wide depthwise filters, which shares all variables with it.

    On a CPU, TensorFlow takes about twice as long for the gradient of a depthwise filter wider than 3 as for the
    convolution that it equals: one over height and width, of the inputs with the upstream gradients as filters, each
    pair of example and channel a channel of its own. The gradient of the inputs is a convolution with the turned
    filter. Both are exact: equal to TensorFlow's up to the order of the sums.

    Replaced are plain ``DepthwiseConv2D`` layers in float32 whose filters are trained, of odd size and stride 1, with
    ``padding="same"``. The model given stays what it is; the one returned is for training, not for saving.

    Args:
        model: a ``keras.Model`` that is to be trained.
        flat: the same from :func:`thaw.models.flat.flatten_model`; ``None`` where it has no graph.

    Returns:
        A ``keras.Model``; ``model`` itself where there is nothing to replace, or a GPU to compute on.

    Example:
        >>> import keras
        >>> from thaw.training.depthwise import with_fast_depthwise
        >>> entry = keras.Input((8, 8, 4))
        >>> model = keras.Model(entry, keras.layers.DepthwiseConv2D(5, padding="same")(entry))
        >>> fast = with_fast_depthwise(model, model)
        >>> fast.trainable_variables[0] is model.trainable_variables[0]
        True
    """
    import tensorflow as tf

    if flat is None or not any(_is_slow(node.operation) for node in graph_nodes(flat)):
        return model
    if tf.config.get_visible_devices("GPU"):
        return model

    @functools.cache  # a layer that is called twice stays one layer
    def replacement(layer):
        return _substitute(layer) if _is_slow(layer) else layer

    return submodel(flat, replace=replacement)


def _is_slow(layer):
    """Return whether a layer is a depthwise convolution whose gradients are computed faster here."""
    import keras

    return (
        type(layer) is keras.layers.DepthwiseConv2D
        and layer.kernel_size[1] > MAX_FAST_WIDTH
        and tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1)
        and all(size % 2 for size in layer.kernel_size)
        and layer.padding == "same"
        and layer.data_format == "channels_last"
        and layer.depth_multiplier == 1
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and layer.kernel.trainable
    )


def _substitute(layer):
    import keras

    class FastDepthwise(keras.layers.Layer):
        """Compute a depthwise convolution of another layer, with its variables."""

        def __init__(self):
            super().__init__(name=layer.name, dtype=layer.dtype_policy)
            self.depthwise = layer
            self.built = True

        def call(self, inputs):
            outputs = _convolve(inputs, layer.kernel)
            if layer.use_bias:
                outputs = keras.ops.add(outputs, layer.bias)
            return layer.activation(outputs)

        def compute_output_shape(self, input_shape):
            return layer.compute_output_shape(input_shape)

    return FastDepthwise()


def _convolve(inputs, kernel):
    """Convolve each channel with its filter, with gradients that are convolutions.

    Args:
        inputs: ``(n, h, w, c)`` float32.
        kernel: variable ``(kh, kw, c, 1)``, both sizes odd.

    Returns:
        ``(n, h, w, c)`` float32.
    """
    import tensorflow as tf

    sizes = kernel.shape[:2]
    margins = [[0, 0], *([size // 2, size // 2] for size in sizes), [0, 0]]

    # TensorFlow 2.21 aborts the process where it fuses a depthwise convolution of explicit margins with a bias: only
    # the one below has them, behind which no bias can come.
    def depthwise(x, filters, padding="SAME"):
        return tf.nn.depthwise_conv2d(x, filters, [1, 1, 1, 1], padding)

    def channel_of_each_example(x):
        """``(n, h, w, c)`` to ``(h, w, n * c)``."""
        n, h, w, c = tf.unstack(tf.shape(x))
        return tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (h, w, n * c))

    @tf.custom_gradient
    def convolution(x, filters):
        def gradients(upstream):
            for_inputs = depthwise(upstream, tf.reverse(filters, [0, 1]))
            image, window = channel_of_each_example(x)[None], channel_of_each_example(upstream)[..., None]
            of_examples = tf.reshape(depthwise(image, window, margins), (*sizes, -1, tf.shape(x)[3]))
            return for_inputs, tf.reduce_sum(of_examples, 2)[..., None]

        return depthwise(x, filters), gradients

    return convolution(inputs, tf.convert_to_tensor(kernel))
