"""Write the files of this folder with Keras 2: ``pip install tf-keras``, then ``python make.py``."""

import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf

keras = pytest.importorskip("tf_keras")  # Keras 2 under its last name; the tests read the files, and do not make them
layers = keras.layers


def images():
    """A nested model with augmentation; arguments that Keras 3 does not have: groups, rng_type, alpha."""
    net = [layers.RandomFlip("horizontal"), layers.Normalization(mean=[0.5] * 3, variance=[0.2] * 3)]
    net += [layers.DepthwiseConv2D(3, 2), layers.BatchNormalization(), layers.LeakyReLU(0.2)]
    base = keras.Sequential([layers.Input((8, 8, 3)), *net], name="base")
    pixels = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(base(pixels, training=False))
    return keras.Model(pixels, layers.Dense(2, "softmax")(layers.Dropout(0.5)(x))), (2, 8, 8, 3)


def sequences():
    """An initial state, tensors given by name, and a cell inside a wrapper; arguments: time_major, query_shape."""
    steps = keras.Input((5, 4))
    x, h, c = layers.LSTM(4, return_sequences=True, return_state=True)(steps)
    x = layers.LSTM(4, return_sequences=True)(x, initial_state=[h, c])
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, value=x, key=x)]))
    x = layers.Bidirectional(layers.GRU(3))(x)
    return keras.Model(steps, layers.Dense(2, "sigmoid")(x)), (2, 5, 4)


if __name__ == "__main__":
    predictions = {}
    for build in (images, sequences):
        keras.utils.set_random_seed(1)
        model, shape = build()
        for weight in model.trainable_weights:
            weight.assign_add(tf.random.normal(weight.shape, stddev=0.1))
        x = np.linspace(-1, 2, int(np.prod(shape)), dtype="float32").reshape(shape)
        predictions[build.__name__] = model(x).numpy().tolist()
        model.save(f"{build.__name__}.h5")
        model.save(f"{build.__name__}.keras")
        with zipfile.ZipFile(f"{build.__name__}.keras") as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(f"{build.__name__}.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content.replace(b"tf_keras.", b"keras.") if name.endswith(".json") else content)
    with open("predictions.json", "w") as file:
        json.dump(predictions, file)
