"""What BatchNorm forgets while nothing is learned: the usual recipe and thaw's freeze, side by side, in two minutes.

    python examples/batchnorm.py

A small net learns the digits 0 to 4. Then it is fine-tuned on 200 inverted digits 5 to 9, in the way most guides
show: the backbone is called with `training=False` and made trainable again after the new head has learned. `fit`
overrides that argument, the statistics of BatchNorm follow the new pictures, and the old task suffers, even at a
learning rate of 1e-9, at which nothing is learned at all. `thaw.freeze` holds BatchNorm layer by layer.
"""

import numpy as np


def digits():
    """(x, y) of the old and the new task, each for training and for the test; 8 x 8 pixels, 0 to 1."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = (found.images[..., None] / 16).astype("float32"), found.target
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    low = y < 5
    old, new = (x[low], y[low]), (1 - x[~low], y[~low] - 5)
    return [(part[0][:200], part[1][:200]) if part is new else (part[0][:600], part[1][:600]) for part in (old, new)], [
        (part[0][600:], part[1][600:]) if part is old else (part[0][200:], part[1][200:]) for part in (old, new)
    ]


def backbone():
    import keras
    from keras import layers

    x = entry = keras.Input((8, 8, 1))
    for filters in (16, 32, 32):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(entry, layers.GlobalAveragePooling2D()(x), name="backbone")


def with_head(inner, name):
    import keras

    entry = keras.Input((8, 8, 1))
    x = inner(entry, training=False)  # as the guides have it
    return keras.Model(entry, keras.layers.Dense(5, "softmax", name=name)(x))


def fit(model, data, rate, epochs):
    import keras

    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*data, batch_size=8, epochs=epochs, verbose=0)


def accuracy(model, data):
    return float((model.predict(data[0], verbose=0).argmax(axis=1) == data[1]).mean())


def run(hold, rate):
    """Accuracy of the old task before and after, and of the new one; ``hold`` for thaw's freeze."""
    import keras

    from thaw import freeze

    keras.utils.set_random_seed(0)
    (old_train, new_train), (old_test, new_test) = digits()
    inner = backbone()
    old = with_head(inner, "old")
    fit(old, old_train, 1e-3, 15)
    before = accuracy(old, old_test)
    inner.trainable = False
    new = with_head(inner, "new")
    fit(new, new_train, 1e-2, 15)
    if hold:
        freeze(new, "all")
    else:
        inner.trainable = True
    fit(new, new_train, rate, 10)
    return before, accuracy(old, old_test), accuracy(new, new_test)


if __name__ == "__main__":
    print(f"{'':34}{'old task':>20}{'new task':>10}")
    print(f"{'':34}{'before':>10}{'after':>10}")
    for rate in (1e-9, 1e-4):
        for hold in (False, True):
            before, after, new = run(hold, rate)
            name = "thaw.freeze" if hold else "the usual recipe"
            print(f"{name + f', rate {rate:g}':34}{before:10.3f}{after:10.3f}{new:10.3f}")
