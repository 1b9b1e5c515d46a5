"""The precision of the computations: chosen for the machine, set for a while, changed in a model."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.precision import resolve_precision, use_precision, with_precision


def net():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, name="conv")(x))
    x = layers.add([x, layers.Conv2D(4, 1, name="branch")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, "softmax", name="classes")(x))


def test_resolve_precision_is_float32_on_a_cpu():
    import tensorflow as tf

    if tf.config.get_visible_devices("GPU"):
        pytest.skip("there is a GPU")
    assert resolve_precision("auto") == "float32"
    assert resolve_precision("mixed_bfloat16") == "mixed_bfloat16"
    with pytest.raises(ValueError, match="precision='half'; expected one of auto, float32, mixed_float16"):
        resolve_precision("half")


def test_use_precision_restores_the_policy_after_an_error():
    def fail():
        with use_precision("mixed_float16"):
            assert keras.config.dtype_policy().name == "mixed_float16"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_with_precision_changes_the_layers_but_not_the_last_softmax(policy):
    model = net()
    mixed = with_precision(model, policy)
    assert mixed.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
    assert mixed.get_layer("classes").compute_dtype == "float32"
    assert all(w.dtype == "float32" for w in mixed.weights)
    for before, after in zip(model.get_weights(), mixed.get_weights()):
        np.testing.assert_array_equal(before, after)
    x = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(mixed(x), model(x), atol=0.02)
    back = with_precision(mixed, "float32")
    np.testing.assert_array_equal(back(x), model(x))


def test_with_precision_returns_the_model_where_nothing_changes():
    model = net()
    assert with_precision(model, "float32") is model


def test_with_precision_changes_nested_models():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="last")])
    mixed = with_precision(model, "mixed_bfloat16")
    assert mixed.layers[0].layers[0].compute_dtype == mixed.layers[1].compute_dtype == "bfloat16"


def test_with_precision_refuses_a_subclassed_model():
    class Own(keras.Model):
        pass

    with pytest.raises(ValueError, match="is a subclassed model, whose precision cannot be changed"):
        with_precision(Own(), "mixed_float16")


def _double(x):
    return 2 * x


def test_with_precision_takes_a_function_as_activation():
    entry = keras.Input((3,))
    model = keras.Model(entry, layers.Dense(2)(layers.Dense(4, activation=_double)(entry)))
    assert with_precision(model, "float32") is model


def test_an_adapted_normalization_inside():
    """Its mean is a weight and a copy of it, and only the weight is set from outside (keras#20147)."""
    x = np.random.default_rng(0).uniform(0, 255, (8, 4)).astype("float32")
    norm = keras.layers.Normalization()
    norm.adapt(x)
    inner = keras.Sequential([keras.Input((4,)), norm])
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])
    again = with_precision(model, "mixed_bfloat16")
    np.testing.assert_allclose(np.asarray(again(x), "float32"), model(x), atol=0.05)
