"""Examples: the order and the augmentation are functions of seed, epoch and content."""

import functools
import itertools

import numpy as np
import pytest

from thaw.data.conversion import as_dataset, as_validation
from thaw.data.dataset import Dataset

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")


def noise(x, seed):
    return x + tf.random.stateless_normal(tf.shape(x), seed)


def rows(n, width=3):
    return np.arange(n * width, dtype="float32").reshape(n, width)


def batches(dataset, count=None):
    return [tuple(np.asarray(part) for part in batch) for batch in itertools.islice(dataset, count)]


def epoch_of(examples, batch_size, seed, epoch, **options):
    """Rows of one epoch, as one array for each part."""
    found = batches(examples.epochs(batch_size, seed, first=epoch, **options), examples.steps(batch_size))
    return [np.concatenate(parts) for parts in zip(*found)]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(p, q) for x, y in zip(a, b) for p, q in zip(x, y))


def test_length_and_steps():
    examples = Dataset(x=rows(7), y=np.arange(7))
    assert len(examples) == 7
    assert [examples.steps(size) for size in (1, 2, 3, 7, 8)] == [7, 4, 3, 1, 1]


def test_ordered_is_the_order_of_the_file():
    examples = Dataset(x=rows(5), y=np.array([4, 3, 2, 1, 0]), sample_weight=np.array([1, 2, 3, 4, 5], "float64"))
    found = batches(examples.ordered(2))
    assert [len(x) for x, _, _ in found] == [2, 2, 1]
    x, y, w = (np.concatenate(parts) for parts in zip(*found))
    assert np.array_equal(x, rows(5))
    assert y.tolist() == [4, 3, 2, 1, 0]
    assert w.dtype == np.float32
    assert w.tolist() == [1, 2, 3, 4, 5]


def test_an_epoch_holds_every_example_once_and_batches_never_straddle_two():
    examples = Dataset(x=rows(7), y=np.arange(7))
    found = batches(examples.epochs(3, seed=1), 9)
    assert [len(y) for _, y in found] == [3, 3, 1] * 3
    for epoch in range(3):
        y = np.concatenate([y for _, y in found[3 * epoch : 3 * epoch + 3]])
        assert sorted(y) == list(range(7))
    for x, y in found:
        assert np.array_equal(x, rows(7)[y])  # a label stays with its input


def test_the_order_follows_seed_and_epoch():
    examples = Dataset(x=rows(50), y=np.arange(50))
    orders = {(s, e): tuple(epoch_of(examples, 8, s, e)[1]) for s in (0, 1) for e in (0, 1, 2)}
    assert len(set(orders.values())) == 6
    assert orders[0, 2] == tuple(epoch_of(examples, 8, 0, 2)[1])
    # It does not depend on the batch size, nor on the examples themselves.
    assert orders[0, 2] == tuple(epoch_of(examples, 50, 0, 2)[1])
    assert orders[0, 2] == tuple(epoch_of(Dataset(x=rows(50) * 2, y=np.arange(50)), 8, 0, 2)[1])


def test_the_order_is_what_tensorflow_shuffles_statelessly():
    examples = Dataset(x=rows(20), y=np.arange(20))
    expected = tf.random.experimental.stateless_shuffle(tf.range(20, dtype=tf.int64), seed=(7, 3))
    assert np.array_equal(epoch_of(examples, 4, 7, 3)[1], expected)


@pytest.mark.parametrize("views", [None, 2])
def test_first_is_the_same_as_skipping(views):
    examples = Dataset(x=rows(7), y=np.arange(7), augment=noise)
    whole = batches(examples.epochs(2, seed=5, views=views), 16)
    assert same(batches(examples.epochs(2, seed=5, first=3, views=views), 4), whole[12:])
    assert same(batches(examples.epochs(2, seed=5, views=views), 16), whole)  # and again the same


def test_augmentation_is_a_function_of_seed_epoch_and_content():
    examples = Dataset(x=rows(6), y=np.arange(6), augment=noise)
    by_label = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        x, y = epoch_of(examples, 4, seed, epoch)
        by_label[seed, epoch] = {int(label): row for label, row in zip(y, x)}
    assert not np.array_equal(by_label[0, 0][2], by_label[0, 1][2])
    assert not np.array_equal(by_label[0, 0][2], by_label[1, 0][2])
    assert not np.array_equal(by_label[0, 0][2] - rows(6)[2], by_label[0, 0][3] - rows(6)[3])
    # More examples, in another order, and in batches of another size: each keeps its own augmentation.
    more = Dataset(x=np.concatenate([rows(9)[6:], rows(6)[::-1]]), y=np.arange(9), augment=noise)
    x, y = epoch_of(more, 3, 0, 1)
    for label, row in zip(y, x):
        if label >= 3:
            assert np.array_equal(row, by_label[0, 1][8 - int(label)])


def test_the_augmentation_can_be_computed_by_hand():
    keys = np.array([11, 12, -5], np.int64)
    examples = Dataset(x=rows(3), y=np.arange(3), augment=noise, keys=keys)
    x, y = epoch_of(examples, 2, 9, 4)
    for label, row in zip(y, x):
        fold = tf.random.experimental.stateless_fold_in
        drawn = fold(tf.constant([9, 4], tf.int64), keys[label])[0]
        turn = fold(tf.constant([9, -1], tf.int64), keys[label])[1] + 4
        seed = (tf.stack([drawn, turn]) % (2**31 - 1)).numpy().astype("int32")
        expected = rows(3)[label] + tf.random.stateless_normal((3,), seed).numpy()
        assert np.array_equal(row, expected)


def test_the_seed_given_to_augment_is_two_int32():
    seen = []

    def note(x, seed):
        seen.append((seed.dtype, tuple(seed.shape), tuple(x.shape)))
        return x

    batches(Dataset(x=rows(2), y=np.arange(2), augment=note).epochs(2, 0), 1)
    assert seen
    assert set(seen) == {(tf.int32, (2,), (3,))}


def test_views_repeat_in_turn():
    examples = Dataset(x=rows(5), y=np.arange(5), augment=noise)

    @functools.cache
    def of(epoch):
        return epoch_of(examples, 2, 3, epoch, views=2)

    def sorted_epoch(epoch):
        x, y = of(epoch)
        return x[np.argsort(y)]

    assert np.array_equal(sorted_epoch(0), sorted_epoch(2))
    assert np.array_equal(sorted_epoch(1), sorted_epoch(5))
    assert not np.array_equal(sorted_epoch(0), sorted_epoch(1))
    # A view is named by its number everywhere: `ordered` gives the same one.
    for view in (0, 1):
        x = np.concatenate([x for x, _ in batches(examples.ordered(3, view=view))])
        assert np.array_equal(x, sorted_epoch(view + 2))
    # The order goes on changing.
    assert not np.array_equal(of(0)[1], of(2)[1])


def test_stored_views():
    stored = np.stack([rows(4), rows(4) + 100, rows(4) + 200])
    examples = Dataset(x=stored, y=np.arange(4), views=3)
    assert len(examples) == 4
    for epoch, shift in ((0, 0), (1, 100), (2, 200), (3, 0), (7, 100)):
        x, y = epoch_of(examples, 3, 0, epoch)
        assert np.array_equal(x, rows(4)[y] + shift)
    for view, shift in ((None, 0), (1, 100), (2, 200)):
        x = np.concatenate([x for x, _ in batches(examples.ordered(3, view=view))])
        assert np.array_equal(x, rows(4) + shift)
    part = examples.take([2, 0])
    assert part.x.shape == (3, 2, 3)
    assert np.array_equal(part.x[1], rows(4)[[2, 0]] + 100)


def test_ordered_is_not_augmented_unless_a_view_is_named():
    examples = Dataset(x=rows(3), y=np.arange(3), augment=noise)
    assert np.array_equal(batches(examples.ordered(3))[0][0], rows(3))
    assert not np.array_equal(batches(examples.ordered(3, view=0))[0][0], rows(3))


def test_take():
    examples = Dataset(
        x=rows(5), y=np.arange(5), sample_weight=np.arange(5.0), keys=np.arange(5) * 10, augment=noise, load=tf.identity
    )
    part = examples.take(np.array([4, 1]))
    assert np.array_equal(part.x, rows(5)[[4, 1]])
    assert (part.y.tolist(), part.sample_weight.tolist(), part.keys.tolist()) == ([4, 1], [4, 1], [40, 10])
    assert (part.augment, part.load) == (noise, tf.identity)
    assert len(examples.take(np.array([True, False, True, False, False]))) == 2
    # With keys of their own making the augmentation stays with the example.
    plain = Dataset(x=rows(5), y=np.arange(5), augment=noise)
    whole = batches(plain.ordered(5, view=2))[0][0]
    assert np.array_equal(batches(plain.take([3, 1]).ordered(5, view=2))[0][0], whole[[3, 1]])


@pytest.mark.parametrize("kind", [tuple, dict])
def test_several_inputs(kind):
    a, b = rows(5), np.arange(5) * 10
    x = (a, b) if kind is tuple else {"a": a, "b": b}
    examples = Dataset(x=x, y=np.arange(5))
    inputs, y = next(examples.epochs(2, 1).as_numpy_iterator())
    first, second = inputs if kind is tuple else (inputs["a"], inputs["b"])
    assert type(inputs) is kind
    assert np.array_equal(first, a[y])
    assert np.array_equal(second, b[y])
    part = examples.take([4, 0])
    leaves = part.x if kind is tuple else list(part.x.values())
    assert np.array_equal(leaves[0], a[[4, 0]])
    # The content is that of all inputs.
    other = (a, b + 1) if kind is tuple else {"a": a, "b": b + 1}
    assert not (examples.content_keys == Dataset(x=other, y=np.arange(5)).content_keys).any()
    with pytest.raises(ValueError, match="There are 4 inputs and 5 labels"):
        Dataset(x=(a, b[:4]) if kind is tuple else {"a": a, "b": b[:4]}, y=np.arange(5))


def test_strings_are_loaded(tmp_path):
    files = []
    for i, name in enumerate(["a.bin", "ä β.bin", "c.bin"]):
        (tmp_path / name).write_bytes(bytes([i] * 4))
        files.append(str(tmp_path / name))

    def load(path):
        return tf.ensure_shape(tf.io.decode_raw(tf.io.read_file(path), tf.uint8), (4,))

    examples = Dataset(x=np.array(files), y=np.arange(3), load=load)
    (x, y), (last, _) = batches(examples.ordered(2))
    assert x.dtype == np.uint8
    assert x.tolist() == [[0] * 4, [1] * 4]
    assert last.tolist() == [[2] * 4]
    x, y = epoch_of(examples, 2, 0, 1)
    assert np.array_equal(x[:, 0], y)
    assert examples.ordered(2).element_spec[0].shape.as_list() == [None, 4]
    assert batches(Dataset(x=np.array(files), y=np.arange(3)).ordered(3))[0][0].tolist() == [f.encode() for f in files]


def test_a_memory_map_is_read(tmp_path):
    np.save(tmp_path / "x.npy", rows(6))
    examples = Dataset(x=np.load(tmp_path / "x.npy", mmap_mode="r"), y=np.arange(6))
    x, y = epoch_of(examples, 4, 0, 0)
    assert np.array_equal(x, rows(6)[y])


def test_shapes_are_known_to_the_graph():
    examples = Dataset(x=np.zeros((5, 4, 4, 3), "uint8"), y=np.zeros((5, 2), "float32"))
    spec = examples.ordered(2).element_spec
    assert [(s.shape.as_list(), s.dtype) for s in spec] == [
        ([None, 4, 4, 3], tf.uint8),
        ([None, 2], tf.float32),
    ]
    assert examples.epochs(2, 0).element_spec == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": rows(0), "y": np.zeros(0)}, "There are no examples; expected at least one"),
        ({"x": rows(3), "y": np.arange(2)}, "There are 3 inputs and 2 labels; expected one label for each input"),
        ({"x": rows(2), "y": np.arange(2), "sample_weight": np.ones(3)}, "There are 2 examples and 3 sample_weight"),
        ({"x": rows(2), "y": np.arange(2), "keys": np.ones(1, int)}, "There are 2 examples and 1 keys"),
        ({"x": np.zeros((2, 3, 1)), "y": np.arange(3), "views": 4}, "x holds 2 versions, but views=4"),
        ({"x": np.zeros((2, 3, 1)), "y": np.arange(4), "views": 2}, "There are 3 inputs and 4 labels"),
    ],
)
def test_parts_that_do_not_belong_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset(**arguments)


def test_the_order_is_the_same_while_maps_run_in_parallel():
    """A slow example does not let the one behind it pass."""

    def slow(x):
        def wait(row):
            import time

            time.sleep(0.02 if row[0] == 0 else 0)
            return row

        y = tf.numpy_function(wait, [x], tf.float32)
        y.set_shape((3,))
        return y

    examples = Dataset(x=rows(12), y=np.arange(12), load=slow, augment=noise)
    quick = Dataset(x=rows(12), y=np.arange(12), augment=noise)
    assert same(batches(examples.epochs(5, 2), 6), batches(quick.epochs(5, 2), 6))


def test_importing_it_imports_no_tensorflow():
    import subprocess
    import sys

    code = "import sys, thaw.data.dataset; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nobody_waits_for_a_data_set_that_tunes_itself():
    """tf.data's own tuning looks at the data set in ever longer steps, and who drops it waits for the next look: phases
    of 26 and 57 seconds took 44 and 87."""
    examples = Dataset(x=np.zeros((4, 2)), y=np.arange(4))
    for dataset in (examples.epochs(2, 0), examples.ordered(2)):
        assert dataset.options().autotune.enabled is False


def test_as_dataset_takes_arrays_as_fit_does():
    a, b, y = np.zeros((3, 2)), np.ones((3, 4)), [0, 1, 0]
    for x in ((a, b), [a, b]):
        assert [part.shape for part in as_dataset(x, y).x] == [(3, 2), (3, 4)]
    assert as_dataset({"a": a, "b": b}, y).x["b"] is b
    assert as_dataset([[1, 2], [3, 4]], [0, 1], [1.0, 0.5]).sample_weight.tolist() == [1.0, 0.5]
    dataset = Dataset(x=a, y=np.array(y))
    assert as_dataset(dataset) is dataset
    several = as_dataset(a, {"one": y, "two": np.zeros((3, 4))})
    assert [(sorted(y), y["two"].shape) for _, y in several.ordered(3)] == [(["one", "two"], (3, 4))]
    assert [tuple(part.shape) for part in next(iter(as_dataset(a, [y, b]).ordered(2)))[1]] == [(2,), (2, 4)]
    assert [x.shape.as_list() for x in as_dataset(a).ordered(2)] == [[2, 2], [1, 2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("photos",), "The data are a str; expected thaw.Dataset, arrays x and y"),
        ((7,), "The data are a int; expected"),
        (([[1, 2], [3]], [0, 1]), "rows of different lengths; expected one shape"),
        ((np.array([1, None, "a"]), [0, 1, 0]), r"hold objects \(NoneType, int\); expected numbers or texts"),
        ((np.zeros((3, 2)), 5), "The labels are 5; expected one for each input"),
        ((np.zeros((3, 2)), [0, 1]), "There are 3 inputs and 2 labels"),
        (({}, [0, 1]), "an empty dict; expected an array for each input"),
        (
            (Dataset(x=np.zeros((3, 2)), y=np.zeros(3)), [0, 1, 0]),
            "a Dataset, which brings its own labels; leave y out",
        ),
        ((np.array([[0.0], [np.nan]]), [0, 1]), "1 of 2 inputs hold NaN or infinity, the first of them at 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_as_dataset_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        as_dataset(*given)


def test_as_dataset_needs_labels_where_they_are_asked_for():
    with pytest.raises(ValueError, match="The data have no labels: y is None"):
        as_dataset(np.zeros((3, 2)), labelled=True)
    assert as_validation(None) is None
    with pytest.raises(ValueError, match=r"The validation data are 4 arrays; expected \(x, y\)"):
        as_validation((1, 2, 3, 4))


def test_as_dataset_takes_texts_beside_numbers():
    """B5 of the first version: a dict with an array of strings had no ``tolist``."""
    x = {"text": np.array(["a", "b", "c"]), "age": np.array([1.0, 2.0, 3.0])}
    dataset = as_dataset(x, [0, 1, 0])
    assert not dataset.is_files
    (first, second) = dataset.ordered(2)
    assert first[0]["text"].numpy().tolist() == [b"a", b"b"]
    assert second[0]["age"].numpy().tolist() == [3.0]
    assert len(set(dataset.content_keys.tolist())) == 3
    assert as_dataset(["one", "two"], [0, 1]).x.dtype.kind == "U"
    assert as_dataset(np.array(["one", "two"], object), [0, 1]).x.dtype.kind == "U"
    assert Dataset(x=np.array(["a.png"]), y=np.zeros(1), load=lambda name: name).is_files


def test_as_dataset_takes_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    assert as_dataset(frame, pandas.Series([0, 1])).x.tolist() == [[1.0, 0.5], [2.0, 1.5]]
    mixed = as_dataset(frame.assign(c=["x", "y"]), frame[["a"]])
    assert sorted(mixed.x) == ["a", "b", "c"]
    assert mixed.x["c"].tolist() == ["x", "y"]
    assert mixed.y.tolist() == [1, 2]


def test_as_dataset_leaves_streams_as_they_are():
    import keras
    import tensorflow as tf

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.full((3, 2), index, "float32"), np.arange(3)

    x, y = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 0])
    of_tf = as_dataset(tf.data.Dataset.from_tensor_slices((x, y)).batch(2))
    of_keras = as_dataset(Batches())
    of_generator = as_dataset((x[i : i + 2], y[i : i + 2]) for i in (0, 2))
    assert [s.random_access for s in (of_tf, of_keras, of_generator)] == [False] * 3
    assert (of_tf.steps(), of_keras.steps()) == (2, 2)
    assert [batch.numpy().tolist() for batch in of_keras.inputs()] == [[[0, 0]] * 3, [[1, 1]] * 3]
    assert len(list(of_keras.epochs().take(5))) == 5
    assert [b.numpy().tolist() for _, b in of_generator.ordered()] == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="length of the training data set is not known"):
        of_generator.steps()
    with pytest.raises(ValueError, match="never ends"):
        next(as_dataset(of_tf.batches.repeat()).inputs())


def test_an_error_in_the_length_of_a_py_dataset_is_not_hidden():
    import keras

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(None)

        def __getitem__(self, index):
            return np.zeros((3, 2), "float32"), np.arange(3)

    with pytest.raises(TypeError, match="'NoneType' has no len"):
        as_dataset(Batches())


def test_what_was_checked_is_not_checked_again():
    dataset = as_dataset(np.zeros((3, 2)), [0, 1, 0])
    for copy in (dataset.take([0, 1]), dataset.replace(y=None), dataset.replace(augment=None)):
        assert "_finite" in vars(copy)
    assert "_finite" not in vars(dataset.replace(sample_weight=np.ones(3)))


def test_groups_stay_with_their_examples():
    data = Dataset(x=rows(4), y=np.array([0, 1, 0, 1]), groups=np.array(["p", "q", "p", "r"]))
    assert data.take([3, 0]).groups.tolist() == ["r", "p"]
    assert data.weighted({0: 2.0}).groups.tolist() == ["p", "q", "p", "r"]
    assert data.replace(x=rows(4) + 1).groups.tolist() == ["p", "q", "p", "r"]
    assert as_dataset(data) is data
    assert np.array_equal(data.content_keys, data.replace(groups=None).content_keys)
    assert Dataset(x=rows(2), groups=np.array(["b", "a"], object)).groups.dtype.kind == "U"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, 2, 3], "There are 3 groups for 2 examples"),
        (np.zeros((2, 1)), r"groups has shape \(2, 1\); expected \(2,\)"),
        ([1.0, np.nan], "with gaps"),
        (np.array(["p", None], object), "with gaps"),
    ],
)
def test_groups_that_say_nothing_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        Dataset(x=rows(2), groups=groups)
