"""What is kept has the bits of the live forward, and is found again by what it was made from."""

import os
import re
import textwrap

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features import extraction as module
from thaw.features import precompute as phase_module
from thaw.features.precompute import precompute
from thaw.features.store import FeatureCache
from thaw.finetune import fine_tune
from thaw.plan import Phase, Plan


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


@pytest.fixture
def computed(monkeypatch):
    """Counts the rows that a prefix computes."""
    rows = []
    call = module.inference_runner

    def counting(*arguments, **options):
        run = call(*arguments, **options)

        class Counted:
            name, note = run.name, run.note

            def __call__(self, x):
                rows.append(len(keras.tree.flatten(x)[0]))
                return run(x)

        return Counted()

    monkeypatch.setattr(module, "inference_runner", counting)
    return rows


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
def test_only_what_is_missing_is_computed(computed, cache_dtype):
    options = {"batch_size": 4, "cache_dtype": cache_dtype}
    precompute(prefix(), examples(8), **options)
    assert sum(computed) == 8
    # The same again; and the same in another order, or a part of it.
    precompute(prefix(), examples(8), **options)
    part = precompute(prefix(), examples(8).take([5, 2]), **options)
    assert sum(computed) == 8
    assert np.array_equal(part.x, np.asarray(precompute(prefix(), examples(8), **options).x)[[5, 2]])
    # Three more.
    more = examples(8), examples(3, 1)
    both = Dataset(x=np.concatenate([part.x for part in more]), y=np.arange(11))
    precompute(prefix(), both, **options)
    assert sum(computed) == 11
    # Each of these is something else.
    precompute(prefix(1), examples(8), **options)
    assert sum(computed) == 19
    precompute(prefix(), examples(8), **options | {"batch_size": 8})
    assert sum(computed) == 27
    precompute(prefix(), examples(8), **options | {"cache_dtype": "float16" if cache_dtype == "float32" else "float32"})
    assert sum(computed) == 35
    precompute(prefix(), examples(8, augment=noise), views=2, **options)
    assert sum(computed) == 51


def test_functions_without_a_name_are_not_found_again(computed):
    """They may do anything, and the same ones may do something else tomorrow."""
    for more in ({"augment": lambda x, seed: 2 * x}, {"load": lambda x: x + 1}):
        views = 1 if "augment" in more else None
        for _ in range(2):
            computed.clear()
            kept = precompute(prefix(), examples(8, **more), batch_size=4, views=views)
            assert sum(computed) == 8
        assert len(kept) == 8


def test_a_file_that_changed_is_read_again(computed, tmp_path):
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


def test_a_prefix_without_a_name_is_computed_anew(computed):
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


def test_large_inputs_are_taken_in_blocks(monkeypatch):
    taken = []
    take = Dataset.take
    monkeypatch.setattr(Dataset, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows))
    monkeypatch.setattr(module, "MAX_BLOCK_BYTES", 9 * 12 * 12 * 3 * 4)
    model, data = prefix(), examples(11)
    assert np.array_equal(precompute(model, data, batch_size=4).x, live(model, data.ordered(4), 4))
    assert taken == [8, 3]


def test_functions_with_an_identity_serve_other_data(computed):
    def named(factor):
        def load(x):
            return factor * x

        load.identity = f"times {factor}"
        return load

    precompute(prefix(), examples(8, load=named(2)), batch_size=4)
    precompute(prefix(), examples(8, load=named(2)).take([7, 1, 3]), batch_size=4)
    assert sum(computed) == 8
    precompute(prefix(), examples(8, load=named(3)), batch_size=4)
    assert sum(computed) == 16


def test_damage_is_found_and_said(computed, tmp_path):
    kept = np.asarray(precompute(prefix(), examples(8), cache_dir=tmp_path, batch_size=4).x)
    (file,) = tmp_path.rglob("0.npy")
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)
    again = precompute(prefix(), examples(8), cache_dir=tmp_path, batch_size=4).x
    assert sum(computed) == 16
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


# Below: phases, as tune runs them.


def net():
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((16, 16, 3))
    for i, filters in enumerate((4, 6, 8)):
        x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu", name=f"down{i}")(x)
        x = layers.BatchNormalization(name=f"norm{i}")(x)
    x = layers.Dense(3, "softmax", name="out")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def pictures(n=24, seed=0, **more):
    x = np.random.default_rng(seed).normal(size=(n, 16, 16, 3)).astype("float32")
    return Dataset(x=x, y=np.arange(n) % 3, **more)


def phases(*trains, views=1, epochs=1):
    return Plan([Phase(name=f"p{i}", epochs=epochs, train=t, views=views) for i, t in enumerate(trains)])


def run(plan, n=24, model=None, **more):
    model = model or net()
    history = fine_tune(model, plan, pictures(n, augment=noise, **more), validation_data=pictures(8, 1), batch_size=8)
    return model, history


def weights(model):
    return [w.numpy() for w in model.weights]


def test_one_pass_serves_the_phases_that_follow(computed):
    run(phases("head", 1, 2))
    assert sum(computed) == 24 + 8


def test_a_later_phase_with_more_views_computes_those(computed):
    plan = [Phase(name="a", epochs=1, train="head", views=1), Phase(name="b", epochs=3, train=1, views=3)]
    run(Plan(plan))
    assert sum(computed) == 24 + 8 + 2 * 24


def test_another_plan_and_another_seed_find_what_is_there(computed):
    run(phases("head", 2))
    assert sum(computed) == 32
    model = net()
    fine_tune(model, phases("head"), pictures(augment=noise), validation_data=pictures(8, 1), batch_size=8, seed=9)
    assert sum(computed) == 32
    run(phases(2, epochs=3))
    assert sum(computed) == 32


def test_the_nearest_earlier_place_is_where_it_begins(monkeypatch):
    """Kept at the second stage: the third is computed from there, and not from the pictures."""
    begun = []
    part = phase_module.submodel

    def watched(flat, begin=None, end=None):
        made = part(flat, begin, end)
        begun.append((None if begin is None else tuple(begin[0].shape[1:]), [tuple(t.shape[1:]) for t in made.outputs]))
        return made

    one, _ = run(phases(2))
    one, first = run(phases(1))
    monkeypatch.setattr(phase_module, "submodel", watched)
    monkeypatch.setenv("THAW_CACHE", os.environ["THAW_CACHE"] + "-fresh")
    run(phases(2))
    assert ((8, 8, 4), [(4, 4, 6)]) not in begun
    two, second = run(phases(1))
    assert ((8, 8, 4), [(4, 4, 6)]) in begun
    assert first.history["loss"] == second.history["loss"]
    assert all(np.array_equal(a, b) for a, b in zip(weights(one), weights(two)))


def test_what_moved_before_is_not_taken(computed):
    """After the whole net has moved, what was kept of its old weights is of no use."""
    run(phases("head", "all", 1))
    assert sum(computed) == 32 + 32


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


def test_without_room_the_model_is_computed_whole(computed, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_GB", "0.000001")
    _, history = run(phases("head"))
    assert sum(computed) == 0
    (note,) = [note for note in history.notes if "every epoch" in note]
    assert "features do not fit into the 0.0 GB that the cache may take" in note


def test_what_later_phases_need_is_left_out_where_there_is_no_room(computed, monkeypatch):
    row = 4 * 8 + 16
    monkeypatch.setenv("THAW_CACHE_GB", str((32 * row + 10_000) / 1e9))
    _, history = run(phases("head", 2), 24)
    # The second phase needs 8 x 8 x 4 numbers for each: too much beside the first, and too much at all.
    assert sum(computed) == 32
    assert any('Phase "p0": the frozen layers were computed once' in note for note in history.notes)
    assert any('Phase "p1": all of the model' in note and "do not fit" in note for note in history.notes)


def test_augmentation_inside_the_model_stays_alive():
    model = net()
    x = layers.RandomFlip()(entry := keras.Input((16, 16, 3)))
    model = keras.Model(entry, model(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = fine_tune(model, phases("head"), pictures(), validation_data=pictures(8, 1), batch_size=8)
    (note,) = [note for note in history.notes if "every epoch" in note]
    assert re.search(r"random_flip\w* augments at random inside the model", note)


def test_what_only_this_run_can_use_is_gone_afterwards():
    def own(x, seed):
        return x + 1

    fine_tune(net(), phases("head", 1), pictures(augment=own), validation_data=pictures(8, 1), batch_size=8)
    store = FeatureCache()
    assert [p for p in store.folder.iterdir() if p.is_dir()] == []


def test_half_precision_never_begins_in_the_middle(computed):
    """What was rounded at another place would give other bits."""

    def half(*trains):
        return Plan([Phase(name=f"{t}", epochs=1, train=t, views=1, cache_dtype="float16") for t in trains])

    run(half(2))
    _, after = run(half("head"))
    assert sum(computed) == 64
    os.environ["THAW_CACHE"] += "-empty"
    _, cold = run(half("head"))
    assert after.history["loss"] == cold.history["loss"]


def test_live_phases_say_so():
    _, history = run(Plan([Phase(name="a", epochs=1, train="head")]))
    (note,) = [note for note in history.notes if 'Phase "a"' in note]
    assert "all of the model is computed in every epoch: its examples are augmented differently" in note


def test_without_augmentation_there_is_nothing_new_in_an_epoch(computed):
    model = net()
    fine_tune(
        model, Plan([Phase(name="a", epochs=2, train="head")]), pictures(), validation_data=pictures(8, 1), batch_size=8
    )
    assert sum(computed) == 32


def test_the_runtime_is_chosen_once_for_good(monkeypatch):
    """A choice by time may fall one way today and the other way tomorrow; the bits would differ."""
    chosen = []

    class Quick:
        note = ""

        def __init__(self, name):
            self.name = name

        def __call__(self, x):
            return [np.zeros((len(x), 8), "float32")]

    def fake(model, batch_size, *, runtime="auto", examples=None):
        chosen.append(runtime)
        return Quick("openvino" if runtime == "auto" else runtime)

    monkeypatch.setattr(module, "inference_runner", fake)
    monkeypatch.setattr(module, "MIN_BATCH_OPERATIONS_TO_CONVERT", 0)
    for _ in range(2):
        precompute(prefix(), examples(300), batch_size=32)
    assert chosen == ["auto", "openvino"]
    precompute(prefix(), examples(200), batch_size=32)
    assert chosen[2:] == ["tensorflow"]
    monkeypatch.setattr(module, "MIN_BATCH_OPERATIONS_TO_CONVERT", 1e9)
    precompute(prefix(), examples(300), batch_size=32)
    assert chosen[3:] == ["tensorflow"]


def test_openvino_that_cannot_do_it_after_all(monkeypatch):
    """Chosen before, for this place; now it gives other numbers: TensorFlow, and it is said."""
    monkeypatch.setattr(module, "MIN_BATCH_OPERATIONS_TO_CONVERT", 0)
    monkeypatch.setattr(module, "MIN_EXAMPLES_TO_CONVERT", 0)
    model, data = prefix(), examples(8)
    call = module.inference_runner

    class Wrong:
        name, note = "openvino", ""

        def __call__(self, x):
            raise ValueError("OpenVINO cannot be used: its numbers differ.")

    def fake(model, batch_size, *, runtime="auto", examples=None):
        return Wrong() if runtime == "openvino" else call(model, batch_size, runtime="tensorflow")

    monkeypatch.setattr(module, "inference_runner", fake)
    keep = module.FeatureExtraction(FeatureCache(), [module.RowKeys.of(data, None, "")], 4, "float32", "")
    run = keep.runner(model, "openvino")
    assert np.array_equal(run(data.x[:4])[0], live(model, data.ordered(4), 4)[:4])
    assert keep.notes == ["TensorFlow is used: OpenVINO cannot be used: its numbers differ."]


@pytest.mark.slow
def test_a_kill_in_the_middle_and_two_at_once(tmp_path, python):
    """What was complete stays, what was not is computed; two processes at the same rows both succeed."""
    code = """
        import os, sys, numpy as np, keras, tensorflow
        from thaw import Dataset
        from thaw.features import store
        from thaw.features.precompute import precompute
        store.SHARD_BYTES = 4000

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
            x = np.asarray(precompute(model, data, batch_size=10, progress=progress).x)
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
