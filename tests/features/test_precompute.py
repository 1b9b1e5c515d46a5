"""What is kept has the bits of the live forward, and is found again by what it was made from."""

import importlib.util
import textwrap

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features.cache_folder import list_cache
from thaw.features.extraction import FeatureExtraction, RowKeys
from thaw.features.precompute import precompute, precompute_phase
from thaw.features.split import CannotSplit, find_cut_point, flatten_model
from thaw.features.store import FeatureCache
from thaw.finetune import fine_tune
from thaw.models.stages import stages_of
from thaw.plan import Phase, Plan
from thaw.training.callbacks import TuneCallback
from thaw.training.freezing import freeze

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def prefix(seed=0):
    keras.utils.set_random_seed(seed)
    entry = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(entry)
    x = layers.BatchNormalization()(x)
    return keras.Model(entry, layers.GlobalAveragePooling2D()(x))


def examples(n=11, seed=0, **more):
    x = np.random.default_rng(seed).normal(size=(n, 12, 12, 3)).astype("float32")
    return Dataset(x=x, y=np.arange(n), sample_weight=np.linspace(0, 1, n), **more)


def noise(x, seed):
    return x + tf.random.stateless_normal(tf.shape(x), seed)


noise.identity = "noise"


def live(model, batches, size):
    """Forward in full batches, as in the middle of an epoch."""
    run = tf.function(lambda x: model(x, training=False))
    rows = []
    for x, *_ in batches:
        full = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), "float32")])
        rows.append(run(full).numpy()[: len(x)])
    return np.concatenate(rows)


class Reader:
    """A ``load`` that counts the examples that were read: a prefix reads what it computes, cached features nothing."""

    def __init__(self, factor=1):
        self.count, self.identity, self.factor = 0, f"times {factor}", factor

    def __call__(self, x):
        def read(x):
            self.count += 1
            return self.factor * x

        return tf.ensure_shape(tf.numpy_function(read, [x], tf.float32), x.shape)


def test_bits_of_the_live_forward_and_the_short_last_batch():
    model, data = prefix(), examples()
    kept = precompute(model, data, batch_size=4)
    assert len(kept) == 11
    assert np.array_equal(kept.x, live(model, data.ordered(4), 4))
    assert np.array_equal(kept.y, data.y)
    assert np.array_equal(kept.sample_weight, data.sample_weight)
    assert (kept.load, kept.augment, kept.views) == (None, None, None)
    # Behind another place the content is another, and the same there again.
    assert not (kept.keys == data.content_keys).any()
    assert np.array_equal(kept.keys, precompute(model, data, batch_size=4).keys)


def test_views():
    model, data = prefix(), examples(augment=noise)
    kept = precompute(model, data, batch_size=4, views=3)
    assert (kept.views, kept.x.shape) == (3, (3, 11, 8))
    for view in range(3):
        assert np.array_equal(np.asarray(kept.x)[view], live(model, data.ordered(4, view=view), 4))
    assert not np.array_equal(kept.x[0, np.arange(11)], kept.x[1, np.arange(11)])
    # An epoch of what was kept is what the prefix says of the same epoch of the pictures.
    for epoch in (0, 4):
        raw = list(data.epochs(4, seed=5, first=epoch, views=3).take(2))
        ours = list(kept.epochs(4, seed=5, first=epoch).take(2))
        for (x, y, w), (features, labels, weights) in zip(raw, ours):
            assert np.array_equal(y, labels)
            assert np.array_equal(w, weights)
            assert np.array_equal(tf.function(lambda x: model(x, training=False))(x), features)


def test_random_layers_and_statistics_stand_still():
    entry = keras.Input((12, 12, 3))
    x = layers.Dropout(0.9)(layers.BatchNormalization()(entry))
    model = keras.Model(entry, x)
    data = examples(4)
    kept = precompute(model, data, batch_size=4).x
    np.testing.assert_allclose(kept, data.x / np.sqrt(1.001), rtol=1e-5)
    assert not model.layers[1].moving_mean.numpy().any()


def test_progress_counts_all_batches():
    seen = []
    precompute(prefix(), examples(augment=noise), batch_size=4, views=2, progress=lambda *step: seen.append(step))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_several_tensors_and_several_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), dtype="int32", name="b")
    model = keras.Model({"a": a, "b": b}, [layers.Dense(4)(a), b, keras.ops.equal(b, 0)])
    x = {"a": np.random.default_rng(0).normal(size=(5, 3)).astype("float32"), "b": np.arange(10, dtype="int32")}
    x["b"] = x["b"].reshape(5, 2) % 3
    kept = precompute(model, Dataset(x=x, y=np.arange(5)), batch_size=2)
    expected = model(x)
    assert [rows.dtype for rows in kept.x] == ["float32", "int32", "bool"]
    for rows, value in zip(kept.x, expected):
        np.testing.assert_allclose(np.asarray(rows).astype("float32"), np.asarray(value, "float32"), rtol=1e-6)
    inputs, y = next(kept.epochs(5, 0).as_numpy_iterator())
    assert np.array_equal(inputs[1], x["b"][y])


def test_a_model_for_pictures_of_any_size():
    entry = keras.Input((None, None, 3))
    model = keras.Model(entry, layers.Conv2D(2, 3, 2)(entry))
    data = examples(5)
    kept = precompute(model, data, batch_size=5)
    assert kept.x.shape == (5, 5, 5, 2)
    assert np.array_equal(kept.x, live(model, data.ordered(5), 5))


@pytest.mark.parametrize("cache_dtype", ["float32", "float16"])
def test_precompute_computes_only_what_is_missing(cache_dtype):
    read = Reader()
    options = {"batch_size": 4, "cache_dtype": cache_dtype}
    data = examples(8, load=read)
    precompute(prefix(), data, **options)
    assert read.count == 8
    # The same again; and the same in another order, or a part of it.
    whole = precompute(prefix(), data, **options)
    part = precompute(prefix(), data.take([5, 2]), **options)
    assert read.count == 8
    assert np.array_equal(part.x, np.asarray(whole.x)[[5, 2]])
    # Three more.
    both = Dataset(x=np.concatenate([data.x, examples(3, 1).x]), y=np.arange(11), load=read)
    precompute(prefix(), both, **options)
    assert read.count == 11
    # Each of these is something else.
    precompute(prefix(1), data, **options)
    assert read.count == 19
    precompute(prefix(), data, **options | {"batch_size": 8})
    assert read.count == 27
    precompute(prefix(), data, **options | {"cache_dtype": "float16" if cache_dtype == "float32" else "float32"})
    assert read.count == 35
    precompute(prefix(), data.replace(augment=noise), views=2, **options)
    assert read.count == 51


def test_precompute_does_not_find_functions_without_a_name_again():
    """They may do anything, and the same ones may do something else tomorrow."""
    read = Reader()
    for more in ({"load": read, "augment": lambda x, seed: 2 * x}, {"load": lambda x: read(x) + 1}):
        views = 1 if "augment" in more else None
        for _ in range(2):
            before = read.count
            kept = precompute(prefix(), examples(8, **more), batch_size=4, views=views)
            assert read.count == before + 8
        assert len(kept) == 8


def test_precompute_reads_a_file_that_changed_again(tmp_path):
    """Without keys the content of an example would be its path."""

    def load(path):
        return tf.ensure_shape(tf.io.decode_raw(tf.io.read_file(path), tf.float32), (12 * 12 * 3,))

    load.identity = "raw"
    file = tmp_path / "a.raw"
    model = keras.Sequential([keras.Input((12 * 12 * 3,)), layers.Rescaling(2.0)])
    for value in (1.0, 9.0):
        np.full(12 * 12 * 3, value, "float32").tofile(file)
        data = Dataset(x=np.array([str(file)]), y=np.zeros(1), load=load)
        assert np.asarray(precompute(model, data).x)[0, 0] == 2 * value


def test_precompute_computes_a_prefix_without_a_name_anew():
    for factor in (2.0, 3.0):
        model = keras.Sequential([keras.Input((12, 12, 3)), layers.Lambda(lambda x, f=factor: f * x)])
        data = examples(4)
        np.testing.assert_allclose(precompute(model, data, batch_size=4).x, factor * data.x, rtol=1e-6)


def test_what_was_kept_may_be_computed_further():
    """Behind two places the same example is two things."""

    def times(factor):
        return keras.Sequential([keras.Input((1,)), layers.Rescaling(factor)])

    data = Dataset(x=np.array([[1.0], [2.0]], "float32"), y=np.arange(2))
    for factor in (2.0, 5.0):
        twice = precompute(times(3.0), precompute(times(factor), data))
        assert np.asarray(twice.x)[:, 0].tolist() == [3 * factor, 6 * factor]


def test_stored_versions_stay_versions():
    stored = Dataset(x=np.arange(6, dtype="float32").reshape(3, 2, 1), y=np.arange(2), views=3)
    kept = precompute(keras.Sequential([keras.Input((1,)), layers.Rescaling(2.0)]), stored)
    assert kept.views == 3
    assert np.array_equal(np.asarray(kept.x), 2 * stored.x)


def test_names_of_inputs_belong_to_the_content():
    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Subtract()([a, b]))
    one, two = np.ones((2, 1), "float32"), np.full((2, 1), 5, "float32")
    for x, expected in (({"a": one, "b": two}, -4), ({"b": one, "a": two}, 4)):
        kept = precompute(model, Dataset(x=x, y=np.arange(2)))
        assert np.asarray(kept.x)[:, 0].tolist() == [expected] * 2


def test_only_examples_can_be_kept():
    with pytest.raises(ValueError, match=r"The data are a \w+, which is read in its own order only"):
        precompute(prefix(), tf.data.Dataset.from_tensor_slices(np.zeros((2, 12, 12, 3))).batch(2))


class Watched:
    """Rows on a disk, say; it is noted how many are taken at a time."""

    def __init__(self, rows):
        self.rows, self.shape, self.dtype, self.taken = rows, rows.shape, rows.dtype, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if np.ndim(index):
            self.taken.append(len(index))
        return self.rows[index]


def test_row_keys_batches_takes_large_inputs_in_blocks():
    rows = Watched(examples(11).x)
    keys = RowKeys.of(Dataset(x=rows, y=np.arange(11)), None, "")
    batches = list(keys.batches(4, None, np.arange(11), max_block_bytes=9 * 12 * 12 * 3 * 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert np.array_equal(np.concatenate(batches), rows.rows)
    assert rows.taken == [8, 3]  # whole batches of at most nine


def test_precompute_finds_functions_with_an_identity_again_for_other_data():
    twice = [Reader(2), Reader(2)]
    precompute(prefix(), examples(8, load=twice[0]), batch_size=4)
    precompute(prefix(), examples(8, load=twice[1]).take([7, 1, 3]), batch_size=4)
    assert [read.count for read in twice] == [8, 0]
    thrice = Reader(3)
    precompute(prefix(), examples(8, load=thrice), batch_size=4)
    assert thrice.count == 8


def test_precompute_finds_damage(tmp_path):
    read = Reader()
    kept = np.asarray(precompute(prefix(), examples(8, load=read), cache_dir=tmp_path, batch_size=4).x)
    (file,) = tmp_path.rglob("0.npy")
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)
    again = precompute(prefix(), examples(8, load=read), cache_dir=tmp_path, batch_size=4).x
    assert read.count == 16
    assert np.array_equal(kept, again)


def test_numbers_too_large_for_half_precision():
    model = keras.Sequential([keras.Input((1,)), layers.Rescaling(1e6)])
    data = Dataset(x=np.ones((3, 1), "float32"), y=np.arange(3))
    with pytest.raises(ValueError, match=r'Activations reach 1e\+06, and half precision ends at 65504; .*"float32"'):
        precompute(model, data, cache_dtype="float16")
    with pytest.raises(ValueError, match="cache_dtype is 'int8'; expected one of float32, float16"):
        precompute(model, data, cache_dtype="int8")


def test_half_precision_of_the_model_is_kept_as_it_is():
    keras.config.set_dtype_policy("mixed_float16")
    model = prefix()
    keras.config.set_dtype_policy("float32")
    kept = precompute(model, examples(), batch_size=4)
    assert kept.x.dtype == np.float16
    assert np.array_equal(kept.x, live(model, examples().ordered(4), 4))


# Below: phases, as fine_tune runs them.


def net():
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((16, 16, 3))
    for i, filters in enumerate((4, 6, 8)):
        x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu", name=f"down{i}")(x)
        x = layers.BatchNormalization()(x) if i == 1 else x
    x = layers.Dense(3, "softmax", name="out")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def pictures(n=24, seed=0, **more):
    x = np.random.default_rng(seed).normal(size=(n, 16, 16, 3)).astype("float32")
    return Dataset(x=x, y=np.arange(n) % 3, **more)


def phases(*trains, **options):
    return Plan([Phase(name=f"p{i}", train=t, **{"epochs": 1, "views": 1} | options) for i, t in enumerate(trains)])


def phase_features(plan, read=None, model=None, augment=noise):
    """Return a function of a phase's number that computes its features, as fine_tune does before it trains."""
    model = model or net()
    flat = flatten_model(model)

    def cut(train):
        freeze(model, train)
        return find_cut_point(flat)

    cuts = [cut(phase.train) for phase in plan], [cut(n) for n in range(len(stages_of(model)) - 1)]
    data = pictures(augment=augment, load=read), pictures(8, 1, load=read)
    return lambda index: precompute_phase(flat, *cuts, plan, index, *data, batch_size=8)


def arrays(features):
    return [np.asarray(part.x) for part in (features.train, features.validation)]


def cached_rows():
    return [table["rows"] for table in list_cache() if table["rows"]]


class CountFromHere(TuneCallback):
    """The checks before a run read some pictures too: count from there."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def on_preflight(self, findings):
        self.read.count = 0


def run(plan, seed=0, read=None):
    model, data = net(), (pictures(augment=noise, load=read), pictures(8, 1, load=read))
    callbacks = [] if read is None else [CountFromHere(read)]
    history = fine_tune(model, plan, data[0], validation_data=data[1], batch_size=8, seed=seed, callbacks=callbacks)
    return model, history


def weights(model):
    return [w.numpy() for w in model.weights]


def test_one_pass_serves_the_phases_that_follow_and_another_plan_with_another_seed():
    read = Reader()
    run(phases("head", 1, 2), read=read)
    assert read.count == 24 + 8
    run(phases(2, epochs=3), seed=9, read=read)
    assert read.count == 0


def test_precompute_phase_computes_the_further_views_of_a_later_phase():
    read = Reader()
    plan = [Phase(name="a", epochs=1, train="head", views=1), Phase(name="b", epochs=3, train=1, views=3)]
    features = phase_features(Plan(plan), read)
    features(0)
    assert read.count == 24 + 8
    assert features(1).train.views == 3
    assert read.count == 24 + 8 + 2 * 24


def test_precompute_phase_starts_from_the_nearest_cached_features(monkeypatch, tmp_path):
    """Cached at the second stage: the third is computed from there, and not from the pictures."""
    read = Reader()
    phase_features(phases(2), read)(0)
    assert read.count == 32
    near = phase_features(phases(1), read)(0)
    assert read.count == 32
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    cold = phase_features(phases(1), read)(0)
    assert read.count == 64
    assert all(np.array_equal(a, b) for a, b in zip(arrays(near), arrays(cold), strict=True))


def test_features_of_weights_that_moved_are_computed_anew():
    """After the whole net has moved, what was cached of its old weights is of no use."""
    phase_features(phases("head"))(0)
    assert cached_rows() == [32]
    run(phases("all", "head"))
    assert cached_rows() == [32, 32]


def test_a_run_that_goes_on_without_what_was_kept(tmp_path, monkeypatch):
    """What stands still now moved in an earlier phase: it is computed from where it went."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    plan = Plan(
        [
            Phase(name="a", epochs=2, learning_rate=0.01),
            Phase(name="b", epochs=4, train="head", learning_rate=0.1, views=1),
        ]
    )
    data = pictures(augment=noise), pictures(8, 1)
    whole = net()
    expected = fine_tune(whole, plan, data[0], validation_data=data[1], batch_size=8)
    assert expected.weight_change["a"][0]["weights"] > 0
    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            net(), plan, data[0], validation_data=data[1], batch_size=8, backup_dir=tmp_path / "run", callbacks=[Kill()]
        )
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "empty"))
    model = net()
    history = fine_tune(model, plan, data[0], validation_data=data[1], batch_size=8, backup_dir=tmp_path / "run")
    assert history.history["loss"] == expected.history["loss"]
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), weights(whole)))


def test_precompute_phase_without_room_cannot_split(monkeypatch):
    monkeypatch.setenv("THAW_CACHE_GB", "0.000001")
    with pytest.raises(CannotSplit, match=r"features do not fit into the 0\.0 GB that the cache may take"):
        phase_features(phases("head"))(0)
    assert cached_rows() == []


def test_precompute_phase_leaves_out_what_later_phases_need_where_there_is_no_room(monkeypatch):
    row = 4 * 8 + 16
    monkeypatch.setenv("THAW_CACHE_GB", str((32 * row + 10_000) / 1e9))
    features = phase_features(phases("head", 2))
    # The second phase needs 8 x 8 x 4 numbers for each: too much beside the first, and too much at all.
    (note,) = features(0).notes
    assert 'Phase "p0": the frozen layers were computed once' in note
    assert cached_rows() == [32]
    with pytest.raises(CannotSplit, match="do not fit"):
        features(1)


def test_precompute_phase_keeps_augmentation_inside_the_model_alive():
    x = layers.RandomFlip()(entry := keras.Input((16, 16, 3)))
    with pytest.raises(CannotSplit, match=r"random_flip\w* augments at random inside the model"):
        phase_features(phases("head"), model=keras.Model(entry, net()(x)), augment=None)(0)


def test_what_only_this_run_can_use_is_gone_afterwards():
    def own(x, seed):
        return x + 1

    fine_tune(net(), phases("head", 1), pictures(augment=own), validation_data=pictures(8, 1), batch_size=8)
    store = FeatureCache()
    assert [p for p in store.folder.iterdir() if p.is_dir()] == []


def test_half_precision_never_begins_in_the_middle(monkeypatch, tmp_path):
    """What was rounded at another place would give other bits."""
    read = Reader()
    phase_features(phases(2, cache_dtype="float16"), read)(0)
    after = phase_features(phases("head", cache_dtype="float16"), read)(0)
    assert read.count == 64
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    cold = phase_features(phases("head", cache_dtype="float16"), read)(0)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(after), arrays(cold), strict=True))


def test_precompute_phase_cannot_cache_what_is_augmented_differently_in_every_epoch():
    with pytest.raises(CannotSplit, match=r"its examples are augmented differently in every epoch \(views = 0\)"):
        phase_features(phases("head", views=0))(0)


def test_precompute_phase_without_augmentation_computes_each_example_once():
    features = phase_features(phases("head", epochs=2, views=0), augment=None)(0)
    assert cached_rows() == [32]
    assert features.train.views is None


def dense(name, *units):
    return keras.Sequential([keras.Input((1024,)), *map(layers.Dense, units)], name=name)


@needs_openvino
def test_choose_runtime_measures_once_and_for_good():
    """A choice by time may fall one way today and the other way tomorrow; the bits would differ."""
    x = np.random.default_rng(0).normal(size=(511, 1024)).astype("float32")
    many, few = Dataset(x=x[:256]), Dataset(x=x[256:])
    small, large = dense("small", 2), dense("large", 4096, 2)  # a billion operations for a batch of 128
    precompute(small, many, batch_size=128)
    assert list(FeatureCache().folder.glob("*.runtime")) == []
    expected = precompute(large, many, batch_size=128).x
    (chosen,) = FeatureCache().folder.glob("*.runtime")
    assert chosen.read_text() in ("tensorflow", "openvino")
    # Now as if the other one had been the faster that day, whichever it was.
    for name in ("openvino", "tensorflow"):
        chosen.write_text(name)
        np.testing.assert_allclose(precompute(large, many, batch_size=128).x, expected, rtol=1e-3, atol=1e-4)
        assert chosen.read_text() == name
        if name == "openvino":
            precompute(large, few, batch_size=128)  # for so few it is TensorFlow in any case
    rows = {(table["about"]["model"], table["about"]["runtime"]): table["rows"] for table in list_cache()}
    assert rows == {("small", "tensorflow"): 256, ("large", "openvino"): 256, ("large", "tensorflow"): 511}


@needs_openvino
def test_feature_extraction_runs_in_tensorflow_what_openvino_cannot_do_after_all():
    """OpenVINO was chosen for another cut through the model; what is behind it cannot be converted, and it is said."""

    class Bits(layers.Layer):
        def call(self, x):
            return tf.bitcast(x, tf.int32)

    model, data = keras.Sequential([keras.Input((12, 12, 3)), Bits()]), examples(4)
    extraction = FeatureExtraction(FeatureCache(), [RowKeys.of(data, None, "")], 4, "float32", "")
    run = extraction.runner(model, "openvino")
    for _ in range(2):
        assert np.array_equal(run(data.x)[0], data.x.view("int32"))
    (note,) = extraction.notes
    assert note.startswith("TensorFlow is used: OpenVINO cannot be used: OpenVINO does not take the model")


@pytest.mark.slow
def test_a_kill_in_the_middle_and_two_at_once(tmp_path, python):
    """What was complete stays, what was not is computed; two processes at the same rows both succeed."""
    code = """
        import os, numpy as np, keras, tensorflow
        from thaw import Dataset
        from thaw.features.extraction import FeatureExtraction, RowKeys
        from thaw.features.store import FeatureCache

        def job(name):  # in a child: TensorFlow has done nothing yet, so it is as good as a new process
            how, cache, _ = name.split("-")
            os.environ["THAW_CACHE"] = cache
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((50,)), keras.layers.Dense(50)])
            data = Dataset(x=np.random.default_rng(0).normal(size=(100, 50)).astype("float32"), y=np.arange(100))
            done = []
            def progress(i, n):
                done.append(i)
                if how == "kill" and i == 6:
                    os.kill(os.getpid(), 9)
            rows = RowKeys.of(data, None, "")  # as precompute does, in shards of 18 rows
            extraction = FeatureExtraction(FeatureCache(shard_bytes=4000), [rows], 10, "float32", "")
            cut = extraction.cut_point(model)
            runner = extraction.choose_runtime(model, [cut])
            table = extraction.table(cut, runner.name)
            extraction.fill(runner, [table], progress=progress)
            x = np.asarray(rows.cached(table).x)
            print(name, len(done), x.tobytes().hex()[:4000], flush=True)
            os._exit(0)

        for together in (["kill-cache-1"], ["whole-cache-2"], ["whole-other-3", "whole-other-4"]):
            children = [os.fork() or job(name) for name in together]
            print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
    """
    process = python("-c", textwrap.dedent(code), folder=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "-9"
    name, steps, after = lines[1].split()
    assert (name, lines[2]) == ("whole-cache-2", "0")
    assert 0 < int(steps) < 10
    assert sorted(line.split()[0] for line in lines[3:5]) == ["whole-other-3", "whole-other-4"]
    assert [line.split()[2] for line in lines[3:5]] == [after, after]
    assert lines[5] == "0 0"
    assert FeatureCache(tmp_path / "cache").notes == []
