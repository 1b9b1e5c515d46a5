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


def data(seed):
    x = np.random.default_rng(seed).normal(size=(64, 4)).astype("float32")
    return Dataset(x=x, y=x[:, :3].argmax(axis=1))


def moved(l2_sp, phases=1):
    """How far each kernel went, by the end of the last phase; a later phase pulls to the start of the run."""
    model = net()
    before = [w.numpy() for w in model.weights]
    options = {"epochs": 15, "learning_rate": 0.02, "l2_sp": l2_sp}
    plan = [Phase(name=f"p{i}", train=1 if i == 0 and phases > 1 else "all", **options) for i in range(phases)]
    history = fine_tune(model, Plan(plan), data(0), validation_data=data(1), batch_size=16)
    assert type(model.optimizer) is keras.optimizers.Adam
    far = [float(np.linalg.norm(w.numpy() - b)) for w, b in zip(model.weights, before)]
    return np.array(far[::2]), history


@pytest.mark.parametrize("phases", [1, 2])
def test_the_stages_stay_near_and_the_head_is_free(phases):
    free, one = moved(0.0, phases)
    held, two = moved(1.0, phases)
    assert (held[:2] < 0.5 * free[:2]).all()
    assert held[2] > 0.5 * free[2]
    assert one.history["loss"] != two.history["loss"]
