"""Heads of several labels and of numbers: attached, recognized, saved, taken off, and divided into stages."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw import attach_head, fine_tune, stages_of
from thaw.models.activations import output_activation
from thaw.models.heads import remove_head, task_of
from thaw.plan import Phase
from thaw.targets import MultiLabel, Regression


def images():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x), name="net")


TASKS = {
    "labels": MultiLabel(["a", "b", "c"]),
    "number": Regression(["price"], mean=[200.0], deviation=[50.0]),
    "numbers": Regression(["x", "y"], mean=[0.0, 1e5], deviation=[0.1, 1e4]),
    "plain": Regression(["x", "y"]),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_head_is_attached_recognized_and_taken_off(name):
    task = TASKS[name]
    model = attach_head(images(), task)
    assert model.output_shape == (None, task.units)
    found = task_of(model)
    assert type(found) is type(task)
    assert found.units == task.units
    if name in ("number", "numbers"):
        assert output_activation(model) == "rescaled"
        assert found.mean == task.mean
        assert found.deviation == task.deviation
    assert remove_head(model).output_shape == (None, 2, 2, 6)
    *_, head = stages_of(model)
    assert head.name == "head"
    assert [layer.name for layer in head.layers if layer.weights] == ["head_classes"]
    assert model.layers[-1] in head.layers


def test_what_a_linear_layer_puts_out_is_said_by_its_loss():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert task_of(model) is None
    model.compile("sgd", "mae")
    assert task_of(model) == Regression(["0", "1"])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert task_of(model) is None
    assert task_of(keras.Sequential([keras.Input((4,)), layers.Dense(3, "sigmoid")])) == MultiLabel(["0", "1", "2"])
    assert output_activation(keras.Sequential([keras.Input((4,)), layers.Softmax(), layers.Rescaling(2.0)])) == "other"


def test_a_wide_head_of_numbers_begins_at_their_mean():
    model = attach_head(images(), TASKS["number"], features="all")
    assert output_activation(model) == "rescaled"
    predicted = model.predict(np.ones((2, 8, 8, 3), "float32"), verbose=0)
    assert np.allclose(predicted, TASKS["number"].mean)


def test_the_files_open_with_keras_alone(python, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    models = {name: attach_head(images(), task) for name, task in TASKS.items()}
    for name, model in models.items():
        model.get_layer("head_classes").kernel.assign(keras.random.normal((6, TASKS[name].units), seed=1))
        model.save(tmp_path / f"{name}.keras")
    code = (
        "import keras, sys, numpy as np; x = np.load('x.npy')\n"
        "for name in sys.argv[1:]:\n"
        "    m = keras.saving.load_model(name + '.keras', safe_mode=True); np.save(name + '.npy', m(x))\n"
        "    m.fit(x, np.ones((3, m.output_shape[-1])), verbose=0)\n"
        "assert 'thaw' not in sys.modules"
    )
    done = python("-c", code, *TASKS, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), np.asarray(model(x)))


def test_gradients_learn_numbers_alike_in_any_unit(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 8, 8, 3)).astype("float32")
    relative = []
    for unit in (1.0, 1e6):
        y = (unit * (x[:, :4].mean(axis=(1, 2, 3)) * 10 + 3)).astype("float32")
        model = attach_head(images(), Regression(["y"]).standardized_by(y), dropout=0)
        plan = [Phase(name="all", epochs=20, train="all", learning_rate=1e-2)]
        history = fine_tune(model, plan, x, y, validation_data=(x, y), verbose=0, cache_dir=tmp_path)
        best = min(history.history["val_root_mean_squared_error"])
        relative.append(best / y.std())
        found = model.evaluate(x, y, verbose=0, return_dict=True)
        assert found["root_mean_squared_error"] == pytest.approx(best, rel=1e-3)
        assert found["loss"] == pytest.approx(relative[-1] ** 2, rel=1e-3)
    assert relative[0] < 0.9
    assert relative[1] == pytest.approx(relative[0], rel=1e-3)


def test_a_phase_solves_for_numbers_and_gradients_go_on(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 8, 8, 3)).astype("float32")
    y = np.stack([1000 * x[:, :4].mean(axis=(1, 2, 3)), x[:, 4:].mean(axis=(1, 2, 3))], axis=1).astype("float32")
    model = attach_head(images(), Regression(["a", "b"]).standardized_by(y), dropout=0)
    plan = [
        Phase(name="head", epochs=1, train="head", solver="ridge"),
        Phase(name="all", epochs=5, train="all", learning_rate=3e-3),
    ]
    history = fine_tune(model, plan, x, y, validation_data=(x, y), verbose=0, cache_dir=tmp_path)
    r2 = history.history["val_r2_score"]
    assert r2[0] > 0
    assert max(r2[1:]) > r2[0]


def test_a_phase_solves_for_labels_and_gradients_go_on(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (96, 2)).astype("float32")
    x = rng.normal(size=(96, 8, 8, 3)).astype("float32") + y[:, 0, None, None, None] - y[:, 1, None, None, None]
    model = attach_head(images(), MultiLabel(["a", "b"]), dropout=0)
    plan = [
        Phase(name="head", epochs=1, train="head", solver="lbfgs"),
        Phase(name="all", epochs=5, train="all", learning_rate=3e-3),
    ]
    history = fine_tune(model, plan, x, y, validation_data=(x, y), verbose=0, cache_dir=tmp_path)
    area = history.history["val_pr_auc"]
    assert area[0] > y.mean() + 0.1
    assert history.history["val_loss"][-1] < history.history["val_loss"][0]
