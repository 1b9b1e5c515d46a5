"""What tune costs over plain fit when the whole model moves: the same network, pictures, batches and loss.

    python benchmarks/overhead.py [PAIRS]

Both run in this process, in turn; the first epoch of each, with its compilation, is not counted. The aim is a
ratio of medians of at most 1.05.
"""

import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from thaw import Phase, Plan, attach_head, backbone, fine_tune

SIZE, PICTURES, BATCH, EPOCHS = 96, 512, 32, 4


class Clock(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)


def network():
    model = attach_head(backbone("efficientnet_lite0", input_shape=(SIZE, SIZE, 3)), 2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    # Keras would compile for XLA, which makes this net several times slower on a CPU: its best form is without.
    model.compile(
        keras.optimizers.AdamW(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    return model


def plain(x, y):
    clock = Clock()
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(PICTURES).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    checks = tf.data.Dataset.from_tensor_slices((x[:64], y[:64])).batch(BATCH)
    network().fit(data, validation_data=checks, epochs=EPOCHS, callbacks=[clock], verbose=0)
    return clock.seconds[1:]


def ours(x, y):
    clock = Clock()
    plan = Plan([Phase(name="all", epochs=EPOCHS, learning_rate=1e-4, schedule="constant", warmup=0.0)])
    fine_tune(network(), plan, x, y, validation_data=(x[:64], y[:64]), batch_size=BATCH, callbacks=[clock])
    return clock.seconds[1:]


def main(pairs):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (PICTURES, SIZE, SIZE, 3)).astype("float32")
    y = random.integers(0, 2, PICTURES)
    seconds = {"plain fit": [], "tune": []}
    for pair in range(pairs):
        for name, run in (("plain fit", plain), ("tune", ours))[:: 1 if pair % 2 == 0 else -1]:
            seconds[name] += run(x, y)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:10} epoch of {PICTURES} pictures: {min(values):.2f} {medians[name]:.2f} {max(values):.2f} s")
    print(f"ratio of medians, tune / plain fit: {medians['tune'] / medians['plain fit']:.3f} (aim: at most 1.05)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
