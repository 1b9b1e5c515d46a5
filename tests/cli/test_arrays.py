"""``thaw tune`` and what follows it, for arrays and a model of the user's own."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``waves.npz``, time series of three frequencies, and ``net.keras``, a small network that knows other ones."""
    import keras
    from keras import layers

    place, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    y = np.arange(180) % 3
    steps = np.arange(32)[None, :, None]
    x = np.sin((0.2 + 0.4 * y)[:, None, None] * steps + rng.uniform(0, 6, (180, 1, 2)))
    x = (x + rng.normal(0, 0.1, x.shape)).astype("float32")
    np.savez(place / "waves.npz", x=x, y=np.array(["slow", "middle", "fast"])[y])
    np.savez(place / "rates.npz", x=x, y=0.2 + 0.4 * y + x[:, 0, 0])
    np.save(place / "new.npy", x[:5])
    keras.utils.set_random_seed(3)
    net = [layers.Conv1D(8, 5, activation="relu"), layers.Conv1D(8, 5, activation="relu")]
    keras.Sequential([keras.Input((32, 2)), *net, layers.GlobalAveragePooling1D(), layers.Dense(4, "softmax")]).save(
        place / "net.keras"
    )
    return place


def test_tune_arrays_with_a_model_of_ones_own_predict_and_evaluate(place, thaw, tmp_path):
    options = ("-m", place / "net.keras", "-p", "probe_then_tune", "--epochs", 8)
    code, out, err = thaw("tune", place / "waves.npz", *options, "-o", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"]["value"] > 0.8
    code, out, err = thaw("predict", tmp_path / "run", place / "new.npy", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["row"] for row in found] == [f"new.npy, row {i}" for i in range(1, 6)]
    assert [row["label"] for row in found] == ["slow", "middle", "fast", "slow", "middle"]
    code, out, err = thaw("evaluate", tmp_path / "run", place / "waves.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"]["value"] > 0.8


def test_tune_arrays_with_numbers(place, tmp_path):
    import keras

    from thaw import open_run, tune

    x, y = (np.load(place / "rates.npz")[name] for name in "xy")
    model = keras.saving.load_model(place / "net.keras")
    run = tune((x, y), tmp_path / "run", model=model, plan="probe", verbose=0)
    assert run.metrics["rmse"]["value"] < run.metrics["baseline"]
    opened = open_run(tmp_path / "run")
    p = [row["prediction"] for row in opened.predict(x[:7])]
    np.testing.assert_allclose(p, opened.model.predict(x[:7], verbose=0)[:, 0], rtol=1e-4)
    assert opened.evaluate(place / "rates.npz")["rmse"]["value"] < run.metrics["baseline"]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, (), "Arrays have no model of their own"),
        (
            {"x": np.random.default_rng(1).normal(size=(6, 8))},
            ("-m", "net.keras"),
            "takes inputs of shape (32, 2), and the arrays hold (8,)",
        ),
        ({"y": np.zeros(5, int)}, ("-m", "net.keras"), "expected a row of both for each example"),
        ({"x": np.full((6, 32, 2), np.nan)}, ("-m", "net.keras"), "6 of 6 rows hold NaN"),
        ({"y": np.array([{}] * 6)}, ("-m", "net.keras"), "cannot be read"),
        ({"y": np.array(["a", "b"] * 3)}, ("-m", "net.keras", "--task", "regression"), "expected numbers"),
        ({}, ("-m", "net.keras", "--group", "patient"), "group names a column of a table"),
        ({}, ("-m", "net.keras", "--zoom", 0.1), "zoom=0.1 is for images, and the data are arrays"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_a_sentence(place, thaw, tmp_path, change, options, said):
    arrays = {"x": np.random.default_rng(0).normal(size=(6, 32, 2)), "y": np.array([0, 1, 0, 1, 0, 1])} | change
    np.savez(tmp_path / "data.npz", **arrays)
    options = [place / option if option == "net.keras" else option for option in options]
    code, out, err = thaw("tune", tmp_path / "data.npz", *options, "-p", "probe", "-o", tmp_path / "run")
    assert code != 0
    assert out == ""
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.array([0.0, 1.0, 1.0]), "softmax"),
        (np.array([0.5, 1.0, 1.5]), "linear"),
        (np.array([[0, 1], [1, 1], [1, 0]]), "sigmoid"),
        (np.array([[0.1, 2], [1, 1], [3, 0]]), "linear"),
        (np.arange(3), "softmax"),
    ],
)
def test_the_task_is_found_from_the_targets(y, task):
    from thaw.data.arrays import load_arrays

    x = np.random.default_rng(0).normal(size=(60, 4))
    assert load_arrays((x, np.tile(y.T, 20).T)).task.activation == task


def test_given_splits_are_used_as_they_are(tmp_path):
    from thaw.data.arrays import load_arrays

    x = np.arange(40.0).reshape(20, 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.tile([0, 1], 10), split=["train"] * 12 + ["val"] * 4 + ["test"] * 4)
    splits = load_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(splits.test.x, x[16:])
    assert (len(splits.train), len(splits.validation)) == (12, 4)
