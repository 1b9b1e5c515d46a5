"""A small net that is pre-trained in a minute on some of the clothes: the backbone of three benchmarks."""

WIDTHS = (12, 24, 48, 64)


def small_net(size=28):
    """A convolution net of four stages for grey pictures of 0 to 255; it ends in a feature map, as backbones do."""
    import keras
    from keras import layers

    pixels = keras.Input((size, size, 1), name="pixels")
    x = layers.Rescaling(1 / 255)(pixels)
    for stage, width in enumerate(WIDTHS, 1):
        for number, stride in enumerate((1 if stage == 1 else 2, 1), 1):
            name = f"block{stage}_{number}"
            x = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(pixels, x, name="small_net")


def pre_train(backbone, x, y, *, epochs=4, seed=0):
    """Train a backbone with a head from nothing, as one does who gives weights away.

    Args:
        backbone: a model that ends in a feature map; changed in place.
        x: pictures ``(n, height, width, 1)``, 0 to 255.
        y: class numbers from 0.
        epochs: passes over them.
        seed: of the order.

    Returns:
        The backbone with the head that it was trained with, compiled.
    """
    import keras
    import tensorflow as tf

    from thaw import attach_head
    from thaw.training import lr_schedule

    model = attach_head(backbone, int(y.max()) + 1, dropout=0.0, seed=seed)
    rate = lr_schedule("cosine", 3e-3, epochs * (len(y) // 128), 0.1)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-3)
    # No XLA: it makes convolution nets several times slower on a CPU.
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=seed).batch(128, drop_remainder=True)
    data = data.map(lambda x, y: (tf.cast(x, tf.float32), y))
    model.fit(data.prefetch(2), epochs=epochs, verbose=0)
    return model
