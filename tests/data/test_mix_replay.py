"""A share of old examples: counts, labels, classes, and the same mixture every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.data.dataset import Dataset
from thaw.data.replay import mix_replay

NEW = Dataset(x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
OLD = Dataset(x=-np.arange(1.0, 61).reshape(30, 2), y=np.repeat([0, 1, 2], [24, 4, 2]))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.95), st.integers(0, 99))
def test_counts_and_classes(share, seed):
    mixed = mix_replay(NEW, OLD, share, labels={0: 2, 1: 3, 2: 4}, seed=seed)
    count = len(mixed) - 20
    assert count == max(1, round(share / (1 - share) * 20))
    rows = mixed.x[np.arange(20, len(mixed))]
    which = (-rows[:, 0].astype(int) - 1) // 2
    assert np.array_equal(mixed.y[20:], OLD.y[which] + 2)
    times = np.bincount(which, minlength=30)
    assert times.max() - times.min() <= 1  # each equally often, give or take one
    if count < 30:  # every class as many as the others, as far as it has them
        found = np.bincount(OLD.y[which], minlength=3)
        for c, has in enumerate((24, 4, 2)):
            assert found[c] == has or found[c] >= found.max() - 1


@pytest.mark.parametrize("kind", ["a column", "one-hot", "floats"])
def test_classes_are_balanced_for_every_kind_of_label(kind):
    labels = {"a column": lambda y: y[:, None], "one-hot": lambda y: np.eye(3)[y], "floats": lambda y: y.astype(float)}[
        kind
    ]
    plain = mix_replay(NEW, OLD, 0.3)
    mixed = mix_replay(NEW.replace(y=labels(NEW.y)), OLD.replace(y=labels(OLD.y)), 0.3)
    assert np.array_equal(np.asarray(mixed.x), np.asarray(plain.x))
    assert np.array_equal(mixed.y, labels(plain.y))


def test_several_outputs_are_refused():
    several = NEW.replace(y=(NEW.y, NEW.y))
    for target, source in ((several, OLD), (OLD, several), (NEW.replace(y=None), OLD)):
        with pytest.raises(ValueError, match="need the labels of one output; expected y as one array in both"):
            mix_replay(target, source, 0.3)


def test_the_new_ones_come_first_and_unchanged():
    mixed = mix_replay(NEW, OLD, 0.5)
    assert np.array_equal(mixed.x[np.arange(20)], NEW.x)
    assert np.array_equal(mixed.y[:20], NEW.y)


def test_it_is_a_function_of_the_seed():
    a, b, c = (mix_replay(NEW, OLD, 0.3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(np.asarray(a.x), np.asarray(b.x))
    assert not np.array_equal(np.asarray(a.x), np.asarray(c.x))

    def order(examples, first):
        return [x.numpy().tolist() for x, _ in examples.epochs(8, seed=3, first=first).take(examples.steps(8))]

    assert order(a, 0) == order(b, 0) != order(a, 1)
    whole = [x.numpy().tolist() for x, _ in a.epochs(8, seed=3).take(2 * a.steps(8))]
    assert whole[a.steps(8) :] == order(b, 1)


@pytest.mark.parametrize(
    "index",
    [3, 25, -1, slice(18, 24), slice(None, None, 5), np.array([27, 0, 20]), np.arange(29) > 18, np.array([], int)],
)
def test_rows_are_read_as_numpy_reads_them(index):
    x = mix_replay(NEW, OLD, 0.3).x
    whole = np.concatenate([NEW.x, x[np.arange(20, len(x))]])
    assert x.shape == whole.shape == (29, 2)
    assert np.array_equal(x[index], whole[index])
    assert x[index].dtype == whole.dtype


def test_memory_maps_stay_on_the_disk(tmp_path):
    np.save(tmp_path / "x.npy", NEW.x)
    mapped = Dataset(x=np.load(tmp_path / "x.npy", mmap_mode="r"), y=NEW.y)
    mixed = mix_replay(mapped, OLD, 0.3)
    assert mixed.x._target is mapped.x
    assert mixed.take(np.array([21, 2])).x.shape == (2, 2)


def test_several_inputs_and_paths():
    def both(e):
        return {"a": e.x, "b": e.x[:, 0]}

    mixed = mix_replay(Dataset(x=both(NEW), y=NEW.y), Dataset(x=both(OLD), y=OLD.y), 0.3)
    (x, _) = next(iter(mixed.ordered(29)))
    assert np.array_equal(x["a"][:, 0], x["b"])

    def load(path):
        import tensorflow as tf

        return tf.strings.to_number(path)

    paths = Dataset(x=np.array(["1", "2"]), y=np.array([0, 0]), load=load)
    longer = Dataset(x=np.array(["333", "444"]), y=np.array([1, 1]), load=load)
    (x, y) = next(iter(mix_replay(paths, longer, 0.5).ordered(4)))
    assert sorted(x.numpy().tolist()) == [1, 2, 333, 444]
    assert ((x.numpy() > 2) == y.numpy()).all()


def test_weights_count_one_where_there_were_none():
    weighted = Dataset(x=NEW.x, y=NEW.y, sample_weight=np.full(20, 3.0))
    assert mix_replay(weighted, OLD, 0.3).sample_weight.tolist() == [3.0] * 20 + [1.0] * 9
    assert mix_replay(NEW, OLD, 0.3).sample_weight is None


def test_what_comes_again_is_augmented_again():
    import tensorflow as tf

    def augment(x, seed):
        return x + tf.cast(tf.random.stateless_normal(tf.shape(x), seed), x.dtype)

    old = OLD.take(np.array([0]))
    mixed = mix_replay(Dataset(x=NEW.x, y=NEW.y, augment=augment), old, 0.2)  # the same one five times
    x = np.concatenate([x for x, _ in mixed.ordered(25, view=0)])
    assert len(np.unique(x[20:, 0])) == 5
    assert len(set(mixed.keys.tolist())) == 25


@pytest.mark.parametrize(
    ("new", "old", "options", "message"),
    [
        (NEW, OLD, {"share": 0}, "share=0; expected"),
        (NEW, OLD, {"share": 1.0}, "share=1.0; expected"),
        (NEW, OLD, {"labels": {0: 1}}, "no entry for source class 1"),
        (NEW, Dataset(x=OLD.x, y=np.eye(3)[OLD.y]), {}, "A target label has shape"),
        (NEW, Dataset(x=OLD.x, y=np.eye(3)[OLD.y]), {"labels": {0: 1}}, "expected class numbers to map"),
        (NEW, Dataset(x=OLD.x.astype("float32"), y=OLD.y), {}, "a source input float32"),
        (NEW, Dataset(x=OLD.x[:, :1], y=OLD.y), {}, "expected the same"),
        (NEW, Dataset(x={"a": OLD.x}, y=OLD.y), {}, "different inputs"),
        (NEW, Dataset(x=OLD.x, y=OLD.y, load=abs), {}, "loaded differently"),
        (NEW, Dataset(x=OLD.x, y=OLD.y, augment=abs), {}, "augmented differently"),
        (NEW, Dataset(x=OLD.x[None], y=OLD.y, views=1), {}, "several augmented versions"),
    ],
)
def test_what_cannot_be_mixed(new, old, options, message):
    with pytest.raises(ValueError, match=message):
        mix_replay(new, old, **({"share": 0.5} | options))


def test_groups_of_both_stay_apart_and_a_repeated_example_is_one_group():
    assert mix_replay(NEW, OLD, 0.3).groups is None
    ours = np.arange(20) // 2
    mixed = mix_replay(NEW.replace(groups=ours), OLD, 0.8)  # 80 of 30 old ones
    rows = np.asarray(mixed.x)
    assert np.array_equal(mixed.groups[:20], ours)
    assert not set(mixed.groups[:20]) & set(mixed.groups[20:])
    numbers = {tuple(row): set(mixed.groups[(rows == row).all(1)].tolist()) for row in rows[20:]}
    assert len(numbers) == 30
    assert all(len(found) == 1 for found in numbers.values())
    assert len(set.union(*numbers.values())) == 30
    alone = mix_replay(NEW, OLD.replace(groups=np.array(["a", "b"] * 15)), 0.3).groups
    assert (len(set(alone[:20])), len(set(alone[20:]))) == (20, 2)
