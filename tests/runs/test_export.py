"""A tuned model is exported, and what is served is its prediction (https://github.com/keras-team/keras/issues/19100)."""

import errno

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from thaw import Phase, Plan, fine_tune
from thaw.runs import export_model

NET = [
    lambda: layers.RandomFlip(),
    lambda: layers.Rescaling(1 / 255),
    lambda: layers.Conv2D(8, 3, 2),
    lambda: layers.BatchNormalization(),
]
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0, 255, (24, 12, 12, 3)).astype("float32"), RNG.integers(0, 3, 24)


@pytest.fixture(scope="module", params=["nested", "flat"])
def tuned(request):
    """A model with augmentation, BatchNorm and dropout, after two phases."""
    keras.utils.set_random_seed(0)
    net = [make() for make in NET]
    inputs = keras.Input((12, 12, 3))
    if request.param == "nested":
        x = keras.Sequential([keras.Input((12, 12, 3)), *net])(inputs, training=False)
    else:
        x = keras.Sequential([inputs, *net]).outputs[0]
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(x), name=request.param)
    model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    options = {"epochs": 1, "learning_rate": 0.01}
    decay = Phase(name="top", train=1, layer_decay=0.7, l2_sp=0.01, **options)
    fine_tune(
        model, Plan([Phase(name="head", train="head", **options), decay]), X, Y, validation_data=(X, Y), verbose=0
    )
    return model


def served(folder, x):
    loaded = tf.saved_model.load(str(folder))  # without a name for it, its variables would be deleted before the call
    return [np.asarray(loaded.serve(x)) for _ in range(2)]


def assert_served(model, folder):
    first, again = served(folder, X)
    np.testing.assert_allclose(first, model.predict(X, verbose=0), atol=1e-6)
    np.testing.assert_array_equal(first, again)


def test_export_model(tuned, tmp_path):
    before = tuned.get_weights()
    export_model(tuned, tmp_path / "served")
    assert_served(tuned, tmp_path / "served")
    assert all(np.array_equal(a, b) for a, b in zip(before, tuned.get_weights()))


def test_export_of_keras(tuned, tmp_path):
    """Nothing of ours is in its way; but in a flat model it serves the augmentation, tuned or not."""
    tuned.export(tmp_path / "served", verbose=False)
    if tuned.name == "nested":
        assert_served(tuned, tmp_path / "served")
    else:
        assert np.abs(served(tmp_path / "served", X)[0] - tuned.predict(X, verbose=0)).max() > 1e-4


@pytest.mark.parametrize("structure", [list, dict])
def test_several_inputs(structure, tmp_path):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    inputs = [a, b] if structure is list else {"a": a, "b": b}
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([a, b])))
    x = [np.ones((4, 2), "float32"), np.ones((4, 3), "float32")]
    x = x if structure is list else dict(zip("ab", x))
    export_model(model, tmp_path / "served")
    np.testing.assert_allclose(served(tmp_path / "served", x)[0], model(x), atol=1e-6)


def test_inputs_with_any_name_have_an_endpoint_each(tmp_path):
    names = ["size 1", "size-1", "größe (missing)"]
    entries = {name: keras.Input((1,), name=name) for name in names}
    model = keras.Model(entries, keras.layers.Concatenate()(list(entries.values())))
    export_model(model, tmp_path / "served")
    x = {name: np.array([[float(i)]], "float32") for i, name in enumerate(names)}
    np.testing.assert_array_equal(tf.saved_model.load(tmp_path / "served").serve(x), [[0, 1, 2]])


def test_subclassed(tmp_path):
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"is a subclassed model, whose inputs are not known; write model.export"):
        export_model(Own(), tmp_path)


def small(value):
    return keras.Sequential([keras.Input((2,)), layers.Rescaling(value)])


@pytest.mark.parametrize("other", ["note.txt", "saved_model.pb", "a file"])
def test_an_existing_folder(other, tmp_path):
    """What is in it may be an export that is served at this moment, or anything else."""
    folder = tmp_path / "served"
    if other == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / other).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=r"served exists( and is not empty)?; name another folder\."):
        export_model(small(2.0), folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder(tmp_path):
    (tmp_path / "served").mkdir()
    export_model(small(2.0), tmp_path / "served")
    assert served(tmp_path / "served", np.ones((1, 2), "float32"))[0].tolist() == [[2.0, 2.0]]
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        export_model(small(2.0), tmp_path / "new" / "served")
    assert list((tmp_path / "new").iterdir()) == []
