"""What a model takes: names, shapes and types."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.inputs import as_declared, check_inputs, fits_shape

X = np.zeros((3, 4), "float32")


def named(structure):
    inputs = {name: keras.Input((4,), name=f"input_{name}") for name in "ab"}
    given = inputs if structure is dict else structure(inputs.values())
    return keras.Model(given, layers.Add()(list(inputs.values())), name="net")


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict, all keys:UserWarning")
def test_the_keys_of_a_dict_of_inputs_are_its_names():
    check_inputs(named(dict), {"a": X, "b": X})
    check_inputs(named(list), {"input_a": X, "input_b": X, "more": X})
    with pytest.raises(ValueError, match="named input_a, input_b; net takes a, b: a is missing"):
        check_inputs(named(dict), {"input_a": X, "input_b": X})
    with pytest.raises(ValueError, match="The inputs are 1 arrays; net takes 2"):
        check_inputs(named(list), X)
    with pytest.raises(ValueError, match=r"given inputs of shape \(3,\); expected \(4,\)"):
        check_inputs(named(list), [X, X[:, :3]])


def test_one_input_by_its_name_and_a_function_takes_anything():
    entry = keras.Input((4,), name="a")
    model = keras.Model(entry, layers.Dense(2)(entry))
    check_inputs(model, {"a": X, "b": X})
    with pytest.raises(ValueError, match=r"named b; .* takes a: a is missing"):
        check_inputs(model, {"b": X})
    check_inputs(lambda x: x, X)


@pytest.mark.parametrize(
    ("shape", "expected", "fits"),
    [
        ((None, 4), (None, 4), True),
        ((None,), (None, 1), True),
        ((None, 4, 1), (None, 4), True),
        ((None, 4, 2), (None, 4), False),
        ((None, 1), (None, 4), False),
        ((None,), (None, 4), False),
    ],
)
def test_shapes(shape, expected, fits):
    assert fits_shape(shape, expected) is fits


def test_types_are_those_that_the_model_declares():
    floats = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    whole = keras.Sequential([keras.Input((2,), dtype="int32"), layers.Embedding(9, 2)])
    texts = keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=["a"])])
    for given in (np.array([[1, 300]], "int64"), np.array([[1.0, 300.0]]), [[1, 300]]):
        given = np.asarray(given)
        (cast,) = as_declared(floats, given)
        assert cast.dtype.name == "float32"
        np.testing.assert_array_equal(cast, given)
    assert as_declared(whole, np.zeros((1, 2), "int64"))[0].dtype.name == "int32"
    words = np.array([["a"]])
    assert as_declared(texts, words)[0] is words
    same = np.zeros((1, 2), "float32")
    assert as_declared(floats, same)[0] is same
    assert as_declared(lambda x: x, words)[0] is words


def test_a_dict_is_cast_by_name_and_not_by_the_order_of_the_inputs():
    """It is flattened by its keys; a model has its inputs in an order of its own."""
    b, a = keras.Input((1,), dtype="int32", name="b"), keras.Input((1,), name="a")
    model = keras.Model([b, a], layers.Concatenate()([a, layers.Rescaling(2.0)(b)]))
    first, second = as_declared(model, {"a": np.array([[0.5]]), "b": np.array([[1.0]])})
    assert (first.dtype.name, second.dtype.name) == ("float32", "int32")
    assert float(first[0, 0]) == 0.5
