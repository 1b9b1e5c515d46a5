"""A new head on a backbone."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.stages import stages_of
from thaw.tuning.attach_head import attach_head


def backbone(shape=(8, 8, 3)):
    entry = keras.Input(shape)
    x = layers.Conv2D(4, 3, 2, "same")(entry) if len(shape) == 3 else layers.Dense(4)(entry)
    return keras.Model(entry, x, name="little")


def test_the_first_prediction_is_the_same_for_every_class():
    model = attach_head(backbone(), 4)
    assert type(model) is keras.Model or type(model).__module__.startswith("keras.")
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3))
    assert np.array_equal(model.predict(x, verbose=0), np.full((5, 4), 0.25, "float32"))
    assert not model.layers[-1].kernel.numpy().any()


def test_the_layers_are_shared():
    inner = backbone()
    model = attach_head(inner, 3)
    assert model.layers[1] is inner.layers[1]
    assert [layer.name for layer in model.layers[-3:]] == ["head_pool", "head_dropout", "head_classes"]
    assert stages_of(model)[-1].layers[0].name == "head_pool"


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 3)])
def test_pooling_over_all_positions(pooling, shape):
    model = attach_head(backbone(shape), 2, pooling=pooling, dropout=0)
    assert "head_dropout" not in [layer.name for layer in model.layers]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    features = keras.Model(model.inputs[0], model.layers[1].output)(x).numpy().reshape(2, -1, 4)
    pooled = keras.Model(model.inputs[0], model.get_layer("head_pool").output)(x).numpy()
    np.testing.assert_allclose(pooled, features.mean(1) if pooling == "avg" else features.max(1), rtol=1e-5, atol=1e-6)


def test_a_vector_needs_no_pooling():
    model = attach_head(backbone((5,)), 2)
    assert "head_pool" not in [layer.name for layer in model.layers]
    assert model.output_shape == (None, 2)


def test_probabilities_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = attach_head(backbone(), 3)
    assert model.layers[1].compute_dtype == "float16"
    assert model.layers[-1].compute_dtype == "float32"
    out = model(np.zeros((1, 8, 8, 3), "float32"))
    assert keras.backend.standardize_dtype(out.dtype) == "float32"


def test_dropout_follows_its_seed():
    def draw(seed):
        model = attach_head(backbone((5,)), 2, dropout=0.5, seed=seed)
        return model.get_layer("head_dropout")(np.ones((4, 4), "float32"), training=True).numpy()

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "classes=1; expected a whole number from 2"),
        ({"classes": 2.0}, r"classes=2.0; expected a whole number"),
        ({"classes": True}, "classes=True; expected a whole number"),
        ({"classes": 3, "dropout": 1.0}, "dropout=1.0; expected a share from 0 to below 1"),
        ({"classes": 3, "dropout": -0.1}, "dropout=-0.1"),
        ({"classes": 3, "pooling": "sum"}, 'pooling=\'sum\'; expected "avg" or "max"'),
    ],
)
def test_what_cannot_be_meant(arguments, message):
    with pytest.raises(ValueError, match=message):
        attach_head(backbone(), **arguments)


def test_a_backbone_that_will_not_do():
    with pytest.raises(ValueError, match="already ends in 3 classes; build it without its head"):
        attach_head(attach_head(backbone(), 3), 2)
    entry = keras.Input((4,))
    two = keras.Model(entry, [layers.Dense(2)(entry), layers.Dense(3)(entry)], name="two")
    with pytest.raises(ValueError, match="two has 2 outputs; expected one"):
        attach_head(two, 2)
    entry = keras.Input((4, 4, 4, 1))
    volume = keras.Model(entry, layers.Conv3D(2, 3)(entry), name="volume")
    with pytest.raises(ValueError, match=r"volume puts out shape \(None, 2, 2, 2, 2\); expected a map"):
        attach_head(volume, 2)


def test_on_a_sequential_model():
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.ReLU()], name="row")
    model = attach_head(net, 2)
    assert model.output_shape == (None, 2)
    assert model.layers[1] is net.layers[0]
    assert [stage.name for stage in stages_of(model)][-1] == "head"
    with pytest.raises(ValueError, match="bare is no functional or sequential model with an Input"):
        attach_head(keras.Sequential([layers.Dense(2)], name="bare"), 2)
