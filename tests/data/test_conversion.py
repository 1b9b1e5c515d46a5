"""Tables and streams of other libraries go straight in: frames, PyArrow, Hugging Face, TensorFlow Datasets."""

import datetime

import numpy as np
import pytest

from thaw import Phase, Plan, as_dataset, evaluate, fine_tune
from thaw.data.conversion import as_validation

keras = pytest.importorskip("keras")
pd = pytest.importorskip("pandas")
from keras import layers

NUMBERS = {"a": [1, 2, 3, 4], "b": [0.5, 1.5, 2.5, 3.5]}
MIXED = NUMBERS | {"town": ["Ulm", "Bonn", "Ulm", "Bonn"], "member": [True, False, False, True]}
LABELS = [0, 1, 0, 1]
ROWS = [[1.0, 0.5], [2.0, 1.5], [3.0, 2.5], [4.0, 3.5]]


class Table:
    """What a dataset of Hugging Face and a PyArrow table can do: names, a length, a column by its name."""

    def __init__(self, columns):
        self.columns_by_name = columns

    @property
    def column_names(self):
        return list(self.columns_by_name)

    def __len__(self):
        return len(next(iter(self.columns_by_name.values())))

    def __getitem__(self, name):
        return self.columns_by_name[name]


def of_polars(columns):
    return pytest.importorskip("polars").DataFrame(columns)


def of_arrow(columns):
    return pytest.importorskip("pyarrow").table(columns)


def of_hugging_face(columns):
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


MAKERS = [pd.DataFrame, Table, of_polars, of_arrow, of_hugging_face]
EVERY_LIBRARY = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def small_net(inputs):
    """A model from the inputs to two classes, compiled."""
    x = layers.Concatenate()([layers.Dense(4, "relu")(t) for t in keras.tree.flatten(inputs)])
    model = keras.Model(inputs, layers.Dense(2, "softmax")(x), name="net")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def one_epoch(model, x, y=None, validation_data=None):
    plan = Plan([Phase(name="all", epochs=1, learning_rate=1e-2)])
    return fine_tune(model, plan, x, y, validation_data=validation_data, batch_size=2, verbose=0)


@EVERY_LIBRARY
def test_numbers_become_one_array(make):
    dataset = as_dataset(make(NUMBERS), make({"label": LABELS})["label"])
    assert dataset.x.tolist() == ROWS
    assert dataset.y.tolist() == LABELS


@EVERY_LIBRARY
def test_columns_of_several_kinds_become_a_dict(make):
    dataset = as_dataset(make(MIXED), make({"label": LABELS}))
    assert {name: rows.tolist() for name, rows in dataset.x.items()} == MIXED
    assert [dataset.x[name].dtype.kind for name in MIXED] == ["i", "f", "U", "b"]
    assert dataset.y.tolist() == LABELS


@EVERY_LIBRARY
def test_the_labels_may_be_a_column_by_its_name(make):
    dataset = as_dataset(make(MIXED | {"label": LABELS}), "label", [1, 2, 3, 4])
    assert (sorted(dataset.x), dataset.y.tolist()) == (sorted(MIXED), LABELS)
    assert dataset.sample_weight.tolist() == [1, 2, 3, 4]
    assert as_dataset(make({"label": LABELS} | NUMBERS), "label").x.tolist() == ROWS
    assert as_validation((make({"text": ["a", "b"], "label": [0, 1]}), "label")).x.tolist() == ["a", "b"]


@EVERY_LIBRARY
def test_a_model_takes_the_columns_that_its_inputs_are_named_after(make):
    frame = make(NUMBERS | {"label": LABELS, "identifier": [7, 8, 9, 10]})
    by_name = small_net({"b": keras.Input((1,), name="b"), "a": keras.Input((1,), name="a")})
    dataset = as_dataset(frame, "label", model=by_name)
    assert {name: rows.tolist() for name, rows in dataset.x.items()} == NUMBERS
    as_list = small_net([keras.Input((1,), name="b"), keras.Input((1,), name="a")])
    assert sorted(as_dataset(frame, "label", model=as_list).x) == ["a", "b"]
    # With a column too few nothing is left out, so that the check of the inputs names what is missing.
    assert sorted(as_dataset(make({"a": [1, 2], "c": [3, 4]}), [0, 1], model=by_name).x) == ["a", "c"]
    one_input = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    assert as_dataset(make(NUMBERS), LABELS, model=one_input).x.shape == (4, 2)


@EVERY_LIBRARY
def test_a_column_of_lists_is_an_array(make):
    tokens = make({"tokens": [[5, 6, 7], [8, 9, 0]]})
    assert as_dataset(tokens, [0, 1]).x.tolist() == [[5, 6, 7], [8, 9, 0]]
    with pytest.raises(ValueError, match=r"^The values of 'tokens' in the data are rows of different lengths"):
        as_dataset(make({"tokens": [[5, 6, 7], [8]]}), [0, 1])


@EVERY_LIBRARY
@pytest.mark.parametrize(
    ("columns", "y", "message"),
    [
        ({"town": ["Ulm", None]}, [0, 1], r"^The values of 'town' in the data hold objects|^In the data"),
        (
            {"day": [datetime.datetime(2024, 5, 31)] * 2},
            [0, 1],
            r"^The values of 'day' in the data (are date|hold obj)",
        ),
        (MIXED, "labl", r"^The data have no column 'labl' for the labels \(they have: a, b, town, member\)\.$"),
        (MIXED, None, r'^The data are a table and y is None; expected the labels, or y="label" for one of its columns'),
        ({"label": LABELS}, "label", "^The data have the column 'label' alone, the labels; expected inputs beside"),
        (MIXED, [0, 1], "There are 4 inputs and 2 labels"),
    ],
    ids=["gap", "date", "another name", "no labels", "labels alone", "too few labels"],
)
def test_a_table_that_cannot_be_converted_is_refused_in_one_sentence(make, columns, y, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_dataset(make(columns), y, labelled=True)
    assert "\n" not in str(caught.value)


def test_gaps_in_numbers_are_refused():
    for frame in (pd.DataFrame({"a": [1.0, None]}), pd.DataFrame({"a": pd.array([1, None], "Int64")})):
        with pytest.raises(ValueError, match="1 of 2 inputs hold NaN or infinity, the first of them at 1"):
            as_dataset(frame, [0, 1])


def test_frames_of_pandas_with_names_and_types_of_their_own():
    numbered = pd.DataFrame([[1.0, 0.5], [2.0, 1.5]])
    assert as_dataset(numbered, "1").x.tolist() == [[1.0], [2.0]]
    types = pd.DataFrame(MIXED).astype({"town": "category", "a": "Int64"})
    assert as_dataset(types, LABELS).x["town"].tolist() == MIXED["town"]
    assert as_dataset(pd.DataFrame({"a": [1, 2], "b": [True, False]}), [0, 1]).x.tolist() == [[1, 1], [2, 0]]
    assert as_dataset(pd.DataFrame(NUMBERS), pd.DataFrame({"p": LABELS, "q": LABELS[::-1]})).y.shape == (4, 2)
    two = as_dataset((pd.DataFrame(NUMBERS), np.zeros((4, 3))), LABELS)
    assert [part.shape for part in two.x] == [(4, 2), (4, 3)]
    beside = as_dataset({"picture": np.zeros((4, 3)), "row": pd.DataFrame(NUMBERS), "label": LABELS}, "label")
    assert (beside.x["row"].tolist(), beside.y.tolist()) == (ROWS, LABELS)
    with pytest.raises(ValueError, match=r"^The data have the column 'p' 2 times; expected it once"):
        as_dataset(pd.DataFrame([[1, "x"]], columns=["p", "p"]), [0])
    with pytest.raises(ValueError, match=r"^The data are a table without columns"):
        as_dataset(pd.DataFrame(), [0])
    with pytest.raises(ValueError, match=r"^The data hold a table of a, b, town, member, not all numbers"):
        as_dataset((pd.DataFrame(MIXED), np.zeros((4, 3))), LABELS)


def test_several_tables_by_name_are_refused():
    class Splits(dict):
        """As a DatasetDict has it."""

        @property
        def column_names(self):
            return {name: table.column_names for name, table in self.items()}

    two = Splits(train=Table(MIXED), test=Table(MIXED))
    for y in (None, "label", LABELS):
        with pytest.raises(ValueError, match=r"are tables by name \(train, test\); expected one of them, such as data"):
            as_dataset(two, y, name="training data")
    datasets = pytest.importorskip("datasets")
    part = of_hugging_face(MIXED)
    with pytest.raises(ValueError, match=r"are tables by name \(train, test\); expected one of them"):
        as_dataset(datasets.DatasetDict({"train": part, "test": part}), "label")


def test_a_table_without_random_access_is_refused():
    class Lazy:
        """A frame that is computed later."""

        @property
        def columns(self):
            raise AssertionError("asking for the names would compute them")

        def __getitem__(self, name):
            return None

    with pytest.raises(ValueError, match=r"are a Lazy, which has no random access; expected a table in memory"):
        as_dataset(Lazy(), LABELS)


def test_lazy_and_iterable_tables_of_the_libraries_are_refused():
    with pytest.raises(ValueError, match="are a LazyFrame, which has no random access"):
        as_dataset(of_polars(NUMBERS).lazy(), LABELS)
    with pytest.raises(ValueError, match="are a IterableDataset, which has no random access"):
        as_dataset(of_hugging_face(NUMBERS).to_iterable_dataset(), LABELS)


def test_images_of_hugging_face():
    image = pytest.importorskip("PIL.Image")
    photographs = [image.new("RGB", (4, 3), (9 * i, 0, 0)) for i in range(2)]
    dataset = as_dataset(of_hugging_face({"image": photographs, "label": [0, 1]}), "label")
    assert dataset.x.shape == (2, 3, 4, 3)
    assert dataset.x[1, 0, 0].tolist() == [9, 0, 0]
    with pytest.raises(ValueError, match=r"^The values of 'image' in the data are rows of different lengths"):
        as_dataset(of_hugging_face({"image": [image.new("RGB", (4, 3)), image.new("RGB", (5, 3))]}), [0, 1])


def test_streams_of_dicts_name_their_labels():
    """TensorFlow Datasets yields dicts, unless as_supervised=True."""
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices({"image": np.zeros((4, 2), "float32"), "label": LABELS}).batch(2)
    (x, y), _ = as_dataset(rows, "label", labelled=True).batches
    assert (x.shape, y.numpy().tolist()) == ((2, 2), [0, 1])
    more = tf.data.Dataset.from_tensor_slices({"a": [1, 2], "b": [3, 4], "label": [0, 1]}).batch(2)
    ((x, y),) = as_dataset(more, "label").batches
    assert sorted(x) == ["a", "b"]
    with pytest.raises(ValueError, match=r'expected batches of \(x, y\), or y="label" for one of image, label\.$'):
        as_dataset(rows, labelled=True)
    with pytest.raises(ValueError, match=r"^The data have no column 'kind' for the labels \(they have: image, label\)"):
        as_dataset(rows, "kind")
    with pytest.raises(ValueError, match="brings its own labels; leave y out"):
        as_dataset(rows.map(lambda row: (row["image"], row["label"])), "label")


@EVERY_LIBRARY
def test_tables_go_straight_into_fine_tune_and_evaluate(make):
    frame = make(NUMBERS | {"label": LABELS})
    one = keras.Sequential([keras.Input((2,)), layers.Dense(2, "softmax")])
    one.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = one_epoch(one, frame, "label", validation_data=(frame, "label"))
    assert history.history["val_accuracy"][-1] == evaluate(one, frame, "label")["accuracy"]["value"]
    by_hand = (one.predict(np.array(ROWS), verbose=0).argmax(axis=1) == LABELS).mean()
    assert evaluate(one, frame, "label")["accuracy"]["value"] == pytest.approx(by_hand)


@EVERY_LIBRARY
def test_a_model_with_named_inputs_is_tuned_on_the_columns_of_a_table(make):
    frame = make(MIXED | {"label": LABELS})
    town = keras.Input((1,), dtype="string", name="town")
    number = keras.Input((1,), name="b")
    known = layers.StringLookup(vocabulary=["Bonn", "Ulm"], output_mode="one_hot")(town)
    x = layers.Concatenate()([known, layers.Dense(3, "relu")(number)])
    model = keras.Model({"town": town, "b": number}, layers.Dense(2, "softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = [w.numpy() for w in model.weights]
    one_epoch(model, as_dataset(frame, "label", model=model))
    assert any(not np.array_equal(a, w.numpy()) for a, w in zip(before, model.weights))
    inputs = {"town": np.array(MIXED["town"])[:, None], "b": np.array(MIXED["b"])[:, None]}
    by_hand = np.asarray(model({k: keras.ops.convert_to_tensor(v) for k, v in inputs.items()})).argmax(1) == LABELS
    found = evaluate(model, as_dataset(frame, "label", model=model))["accuracy"]["value"]
    assert found == pytest.approx(by_hand.mean())
