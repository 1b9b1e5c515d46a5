"""A phase with an l2_sp stays nearer to where the run began."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.finetune import fine_tune
from thaw.plan import Phase, Plan


def net():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(seed, n):
    x = np.random.default_rng(seed).normal(size=(n, 4)).astype("float32")
    return Dataset(x=x, y=x[:, :3].argmax(axis=1))


def changes(l2_sp):
    """How far each kernel went by the end of the second phase."""
    model = net()
    before = [w.numpy() for w in model.weights]
    options = {"epochs": 3, "learning_rate": 0.02, "l2_sp": l2_sp}
    plan = [Phase(name="top", train=1, **options), Phase(name="all", **options)]
    history = fine_tune(model, Plan(plan), data(0, 320), validation_data=data(1, 64), batch_size=16)
    assert type(model.optimizer) is keras.optimizers.Adam
    far = [float(np.linalg.norm(w.numpy() - b)) for w, b in zip(model.weights, before)]
    return np.array(far[::2]), history


def test_fine_tune_with_l2_sp_keeps_the_stages_near_the_start_of_the_run_and_leaves_the_head_free():
    free, one = changes(0.0)
    held, two = changes(1.0)
    assert (held[:2] < 0.5 * free[:2]).all()
    assert held[2] > 0.5 * free[2]
    assert one.history["loss"] != two.history["loss"]
