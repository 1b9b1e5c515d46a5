"""attach_head: a compiled head on a backbone."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.heads import attach_head, remove_head
from thaw.models.stages import stages_of
from thaw.tasks import Classification


def backbone(shape=(8, 8, 3)):
    entry = keras.Input(shape)
    x = layers.Conv2D(4, 3, 2, "same")(entry) if len(shape) == 3 else layers.Dense(4)(entry)
    return keras.Model(entry, x, name="little")


def test_attach_head_predicts_every_class_alike_at_first():
    model = attach_head(backbone(), 4)
    assert type(model) is keras.Model or type(model).__module__.startswith("keras.")
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3))
    assert np.array_equal(model.predict(x, verbose=0), np.full((5, 4), 0.25, "float32"))
    assert not model.layers[-1].kernel.numpy().any()


def test_attach_head_shares_the_layers_of_the_backbone():
    inner = backbone()
    model = attach_head(inner, 3)
    assert model.layers[1] is inner.layers[1]
    assert [layer.name for layer in model.layers[-3:]] == ["head_pool", "head_dropout", "head_classes"]
    assert stages_of(model)[-1].layers[0].name == "head_pool"


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 3)])
def test_attach_head_pools_over_all_positions(pooling, shape):
    model = attach_head(backbone(shape), 2, pooling=pooling, dropout=0)
    assert "head_dropout" not in [layer.name for layer in model.layers]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    features = keras.Model(model.inputs[0], model.layers[1].output)(x).numpy().reshape(2, -1, 4)
    pooled = keras.Model(model.inputs[0], model.get_layer("head_pool").output)(x).numpy()
    np.testing.assert_allclose(pooled, features.mean(1) if pooling == "avg" else features.max(1), rtol=1e-5, atol=1e-6)


def test_attach_head_does_not_pool_a_vector():
    model = attach_head(backbone((5,)), 2)
    assert "head_pool" not in [layer.name for layer in model.layers]
    assert model.output_shape == (None, 2)


def test_attach_head_predicts_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = attach_head(backbone(), 3)
    assert model.layers[1].compute_dtype == "float16"
    assert model.layers[-1].compute_dtype == "float32"
    out = model(np.zeros((1, 8, 8, 3), "float32"))
    assert keras.backend.standardize_dtype(out.dtype) == "float32"


def test_attach_head_seeds_the_dropout():
    def draw(seed):
        model = attach_head(backbone((5,)), 2, dropout=0.5, seed=seed)
        return model.get_layer("head_dropout")(np.ones((4, 4), "float32"), training=True).numpy()

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": 1}, "classes=1; expected a whole number from 2"),
        ({"task": 2.5}, r"classes=2.5; expected a whole number"),
        ({"task": True}, "classes=True; expected a whole number"),
        ({"task": 3, "dropout": 1.0}, "dropout=1.0; expected a fraction from 0 to below 1"),
        ({"task": 3, "dropout": -0.1}, "dropout=-0.1"),
        ({"task": 3, "pooling": "sum"}, 'pooling=\'sum\'; expected "avg" or "max"'),
    ],
)
def test_attach_head_refuses_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        attach_head(backbone(), **arguments)


def test_attach_head_compiles_for_the_task():
    model = attach_head(backbone(), Classification(["ant", "bee", "cat"]))
    assert model.compiled
    assert model.output_shape == (None, 3)
    assert model.loss == "sparse_categorical_crossentropy"
    optimizer = model.optimizer
    assert type(optimizer) is keras.optimizers.AdamW
    assert (optimizer.weight_decay, optimizer.global_clipnorm) == (1e-4, 1.0)
    x, y = np.zeros((6, 8, 8, 3), "float32"), np.arange(6) % 3
    assert model.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx({"accuracy": 1 / 3, "loss": np.log(3)})


def test_attach_head_can_be_compiled_again_with_the_same_weights():
    def weights(compiled_again):
        keras.utils.set_random_seed(1)
        model = attach_head(backbone(), 3, seed=4)
        if compiled_again:
            model.compile(keras.optimizers.SGD(), "sparse_categorical_crossentropy")
        return model.get_weights()

    assert all(np.array_equal(a, b) for a, b in zip(weights(False), weights(True)))


def softmax_heads():
    inner = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(10)]
    features = keras.Sequential(inner[:2])
    pixels = keras.Input((8, 8, 3))
    logits = keras.Sequential(inner)
    return {
        "layer": keras.Sequential([*inner, layers.Softmax()]),
        "activation": keras.Sequential([*inner, layers.Activation("softmax")]),
        "cast": keras.Sequential([*inner, layers.Softmax(), layers.Activation("linear", dtype="float32")]),
        "operation": keras.Model(pixels, keras.ops.cast(keras.ops.softmax(logits(pixels)), "float32")),
        "nested": keras.Sequential([features, keras.Sequential([*inner[2:], layers.Softmax()])]),
        "whole": keras.Sequential(
            [keras.Input((8, 8, 3)), layers.Rescaling(1.0), keras.Sequential([*inner, layers.Softmax()])]
        ),
    }


@pytest.mark.parametrize("kind", ["layer", "activation", "cast", "operation", "nested", "whole"])
def test_attach_head_refuses_a_softmax_of_every_kind(kind):
    """A head of Dense(10) and Softmax() is a head too; another one on ten probabilities would learn little."""
    model = softmax_heads()[kind]
    with pytest.raises(ValueError, match=r"already ends in 10 softmax units; take its head off"):
        attach_head(model, 2)
    bare = remove_head(model)
    assert bare.output_shape == (None, 6, 6, 4)
    assert attach_head(bare, 2).output_shape == (None, 2)


def test_attach_head_refuses_other_backbones():
    with pytest.raises(ValueError, match="already ends in 3 softmax units"):
        attach_head(attach_head(backbone(), 3), 2)
    entry = keras.Input((4,))
    two = keras.Model(entry, [layers.Dense(2)(entry), layers.Dense(3)(entry)], name="two")
    with pytest.raises(ValueError, match="two has 2 outputs; expected one"):
        attach_head(two, 2)
    entry = keras.Input((4, 4, 4, 1))
    volume = keras.Model(entry, layers.Conv3D(2, 3)(entry), name="volume")
    with pytest.raises(ValueError, match=r"volume has an output of shape \(None, 2, 2, 2, 2\); expected a feature map"):
        attach_head(volume, 2)


def test_attach_head_takes_a_sequential_model():
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.ReLU()], name="row")
    model = attach_head(net, 2)
    assert model.output_shape == (None, 2)
    assert model.layers[1] is net.layers[0]
    assert [stage.name for stage in stages_of(model)][-1] == "head"
    with pytest.raises(ValueError, match="bare is no functional or sequential model with an Input"):
        attach_head(keras.Sequential([layers.Dense(2)], name="bare"), 2)


@pytest.mark.parametrize(
    ("last", "loss", "units"),
    [
        (layers.Dense(1), None, "1 linear unit"),
        (layers.Dense(1, "relu"), None, "1 other unit"),
        (layers.Dense(10), keras.losses.SparseCategoricalCrossentropy(from_logits=True), "10 linear units"),
    ],
)
def test_one_number_and_logits_of_a_loss_are_no_features(last, loss, units):
    """https://github.com/keras-team/keras-io/blob/master/guides/transfer_learning.py ends in ``Dense(1)``."""
    model = keras.Sequential([*backbone().layers, layers.GlobalAveragePooling2D(), last])
    if loss is not None:
        model.compile("sgd", loss)
    with pytest.raises(ValueError, match=f"already ends in {units}; take its head off"):
        attach_head(model, 3)
    bare = remove_head(model)
    assert bare.output_shape == (None, 4, 4, 4)
    assert attach_head(bare, 3).output_shape == (None, 3)


def test_names_of_classes_are_no_task():
    sentence = r"classes=\['ants', 'bees'\]; expected a number of classes from 2, or a task: Classification\(\['ants'"
    with pytest.raises(ValueError, match=sentence):
        attach_head(backbone(), ["ants", "bees"])


def test_a_linear_layer_may_be_logits():
    image_model = keras.Sequential([*backbone().layers, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    with pytest.warns(UserWarning, match="ends in 10 linear units; if they are the logits of classes and no features"):
        attach_head(image_model, 3)
