"""A model that was made under a strategy of tf.distribute is trained on all of its devices, as fit does."""

import json

import pytest

pytest.importorskip("keras")

RUN = """
import dataclasses, json
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from keras import layers
from thaw import Phase, Plan, fine_tune

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = (x[:, 0] > 0).astype("int32")
head = Phase(name="head", epochs=1, train="head", learning_rate=1e-2, l2_sp=0.1)
plan = Plan([head, dataclasses.replace(head, name="top", epochs=2, train=1, layer_decay=0.5)])

def net(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        below = [layers.Dense(8, "relu"), layers.Dense(8, "relu")]
        model = keras.Sequential([keras.Input((4,)), *below, layers.Dense(2, "softmax")])
        model.compile(keras.optimizers.AdamW(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

def tuned(strategy, folder=None, callbacks=()):
    model = net(strategy)
    history = fine_tune(
        model, plan, x, y, validation_data=(x, y), batch_size=16, backup_dir=folder, callbacks=callbacks, verbose=0
    )
    return [w.numpy() for w in model.weights], history.history["val_loss"]

def stop(epoch, logs):
    if epoch == 2:
        raise KeyboardInterrupt

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
weights, losses = tuned(two)
plain, expected = tuned(tf.distribute.get_strategy())
first = [w.numpy() for w in net(tf.distribute.get_strategy()).weights]
saver = keras.callbacks.ModelCheckpoint("{epoch}.keras")
try:
    tuned(two, "run", [keras.callbacks.LambdaCallback(on_epoch_begin=stop), saver])
except KeyboardInterrupt:
    resumed, _ = tuned(two, "run")
print(json.dumps({
    "losses": float(np.abs(np.subtract(losses, expected)).max()),
    "weights": float(max(np.abs(a - b).max() for a, b in zip(weights, plain))),
    "frozen": all(np.array_equal(a, b) for a, b in zip(weights[:2], first)),
    "changed": [bool(np.any(a != b)) for a, b in zip(weights[2:], first[2:])],
    "resumed": all(np.array_equal(a, b) for a, b in zip(weights, resumed)),
    "layers": len(keras.saving.load_model("2.keras").layers),
}))
"""


@pytest.mark.slow
def test_mirrored_strategy(python, tmp_path):
    """https://github.com/keras-team/keras/issues/20045"""
    done = python("-c", RUN, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    # Each device adds up half of a batch, and so the last bits differ.
    assert result.pop("losses") < 1e-5
    assert result.pop("weights") < 1e-4
    assert result == {"frozen": True, "changed": [True] * 4, "resumed": True, "layers": 3}
