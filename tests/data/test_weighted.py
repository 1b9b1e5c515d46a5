"""weighted: the weight of each example by its class, as plain Keras has it (keras#9186, keras#5536)."""

import numpy as np
import pytest

from thaw.data.conversion import as_dataset
from thaw.data.dataset import Dataset

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

NUMBERS = np.array([0, 1, 2, 1, 0])
WEIGHTS = {0: 1.0, 1: 2.0, 2: 5.0}
EXPECTED = [1.0, 2.0, 5.0, 2.0, 1.0]
LABELS = {
    "numbers": NUMBERS,
    "a list": NUMBERS.tolist(),
    "bytes": NUMBERS.astype("uint8"),
    "floats": NUMBERS.astype("float32"),
    "a column": NUMBERS[:, None],
    "a column of floats": NUMBERS[:, None].astype("float32"),
    "one-hot": np.eye(3, dtype="float32")[NUMBERS],
    "one-hot bools": np.eye(3, dtype=bool)[NUMBERS],
}
X = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")


def stream(y):
    return as_dataset(tf.data.Dataset.from_tensor_slices((X, np.asarray(y))).batch(2))


def weights_of(stream, class_weight=WEIGHTS):
    batches = stream.weighted(class_weight).ordered()
    return np.concatenate([w.numpy() for _, _, w in batches]).tolist()


@pytest.mark.parametrize("kind", LABELS)
def test_every_kind_of_label(kind):
    assert as_dataset(X, LABELS[kind]).weighted(WEIGHTS).sample_weight.tolist() == EXPECTED
    assert weights_of(stream(LABELS[kind])) == EXPECTED


@pytest.mark.parametrize("kind", ["numbers", "a column", "one-hot", "floats"])
def test_training_step_is_that_of_keras(kind):
    y = np.asarray(LABELS[kind])
    loss = "categorical_crossentropy" if kind == "one-hot" else "sparse_categorical_crossentropy"
    results = []
    for data in ({"x": X, "y": y, "class_weight": WEIGHTS}, {"x": as_dataset(X, y).weighted(WEIGHTS).ordered(5)}):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax", kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        history = model.fit(**data, batch_size=5 if "y" in data else None, shuffle=False, verbose=0)
        results.append((history.history["loss"], model.layers[-1].kernel.numpy().tolist()))
    assert results[0] == results[1]


def test_labels_of_unknown_shape():
    def read():
        yield X[:3], np.eye(3)[NUMBERS[:3]]
        yield X[3:], np.eye(3)[NUMBERS[3:]]

    for shape in (None, (None, None)):
        spec = (tf.TensorSpec((None, 2)), tf.TensorSpec(shape))
        assert weights_of(as_dataset(tf.data.Dataset.from_generator(read, output_signature=spec))) == EXPECTED


def test_classes_without_a_weight_count_1():
    assert as_dataset(X, NUMBERS).weighted({1: 3.0}).sample_weight.tolist() == [1, 3, 1, 3, 1]
    assert weights_of(stream(NUMBERS), {1: 3.0}) == [1, 3, 1, 3, 1]
    plain = as_dataset(X, NUMBERS)
    assert plain.weighted(None) is plain


def test_own_weights_are_multiplied():
    own = Dataset(x=X, y=NUMBERS, sample_weight=np.array([1.0, 0.0, 3.0, 0.5, 2.0]))
    assert own.weighted(WEIGHTS).sample_weight.tolist() == [1.0, 0.0, 15.0, 1.0, 2.0]
    batches = tf.data.Dataset.from_tensor_slices((X, NUMBERS, own.sample_weight)).batch(5)
    assert weights_of(as_dataset(batches)) == [1.0, 0.0, 15.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ("balanced", "class_weight='balanced'; expected a dict from class number to weight, such as {0: 1.0, 1: 2.5}"),
        ([1.0, 2.0], r"class_weight=\[1.0, 2.0\]; expected a dict"),
        ({"cat": 2.0}, "class_weight has the key 'cat'; expected class numbers: 0, 1"),
        ({"0": 2.0}, "class_weight has the key '0'; expected class numbers"),
        ({0.5: 2.0}, "class_weight has the key 0.5; expected class numbers"),
        ({-1: 2.0}, "class_weight has the key -1; expected class numbers"),
        ({0: None}, "class_weight has None for class 0; expected a finite number of 0 or more"),
        ({0: -1.0}, "class_weight has -1.0 for class 0; expected a finite number"),
        ({0: float("nan")}, "class_weight has nan for class 0; expected a finite number"),
    ],
)
def test_weights_that_are_refused(class_weight, message):
    for data in (as_dataset(X, NUMBERS), stream(NUMBERS)):
        with pytest.raises(ValueError, match=message):
            data.weighted(class_weight)


def test_weights_of_no_class_in_the_labels():
    with pytest.raises(ValueError, match="names the classes 3, 4; expected some of those in the labels: 0, 1, 2"):
        as_dataset(X, NUMBERS).weighted({3: 1.0, 4: 2.0})


@pytest.mark.parametrize("several", [tuple, lambda parts: dict(zip("ab", parts))])
def test_several_outputs_are_refused(several):
    y = several([NUMBERS, NUMBERS])
    of_tf = as_dataset(tf.data.Dataset.from_tensor_slices((X, y)).batch(2))
    for data in (Dataset(x=X, y=y), of_tf):
        with pytest.raises(ValueError, match="several outputs; class_weight needs one class for each example"):
            data.weighted(WEIGHTS)


def test_data_without_labels_are_refused():
    for data in (Dataset(x=X), as_dataset(tf.data.Dataset.from_tensor_slices(X).batch(2))):
        with pytest.raises(ValueError, match="There are no labels; class_weight needs one class"):
            data.weighted(WEIGHTS)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[1, 0, 1]] * 5, "one-hot"),
        ([[0, 0]] * 5, "one-hot"),
        ([[0.5, 0.5]] * 5, "one-hot"),
        ([[1, 0.5]] * 5, "one-hot"),
        ([0.5, 1, 0, 0, 0], "whole|float"),
        ([[0.5], [1], [0], [0], [0]], "whole|float"),
    ],
)
def test_labels_that_are_no_class(y, message):
    with pytest.raises(ValueError, match=f"({message}).*; class_weight needs one class for each example"):
        as_dataset(X, y).weighted(WEIGHTS)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"({message}).*; class_weight needs one class"):
        weights_of(stream(y))


def test_labels_that_are_texts():
    y = np.array(["0", "1", "2", "1", "0"])
    for data in (as_dataset(X, y), stream(y)):
        with pytest.raises(ValueError, match="class_weight needs one class for each example"):
            data.weighted(WEIGHTS)
