"""What is kept has the bits of the live forward."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.examples import Examples
from thaw.tuning.precompute import precompute


def prefix():
    keras.utils.set_random_seed(0)
    entry = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(entry)
    x = layers.BatchNormalization()(x)
    return keras.Model(entry, layers.GlobalAveragePooling2D()(x))


def examples(n=11, **more):
    x = np.random.default_rng(0).normal(size=(n, 12, 12, 3)).astype("float32")
    return Examples(x=x, y=np.arange(n), weight=np.linspace(0, 1, n), **more)


def noise(x, seed):
    return x + tf.random.stateless_normal(tf.shape(x), seed)


def live(model, batches, size):
    """Forward in full batches, as in the middle of an epoch."""
    run = tf.function(lambda x: model(x, training=False))
    rows = []
    for x, *_ in batches:
        full = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), "float32")])
        rows.append(run(full).numpy()[: len(x)])
    return np.concatenate(rows)


def test_bits_of_the_live_forward_and_the_short_last_batch(tmp_path):
    model, data = prefix(), examples()
    kept = precompute(model, data, tmp_path / "x.npy", batch_size=4)
    assert len(kept) == 11
    assert np.array_equal(kept.x, live(model, data.ordered(4), 4))
    assert np.array_equal(kept.y, data.y)
    assert np.array_equal(kept.weight, data.weight)
    assert (kept.load, kept.augment, kept.views) == (None, None, None)


def test_one_example_in_another_batch_has_the_same_bits(tmp_path):
    model, data = prefix(), examples(8)
    kept = precompute(model, data, tmp_path / "a.npy", batch_size=4).x
    turned = precompute(model, data.take(np.arange(8)[::-1]), tmp_path / "b.npy", batch_size=4).x
    assert np.array_equal(kept, turned[::-1])


def test_views(tmp_path):
    model, data = prefix(), examples(augment=noise)
    kept = precompute(model, data, tmp_path / "x.npy", batch_size=4, views=3)
    assert (kept.views, kept.x.shape) == (3, (3, 11, 8))
    for view in range(3):
        assert np.array_equal(kept.x[view], live(model, data.ordered(4, view=view), 4))
    assert not np.array_equal(kept.x[0], kept.x[1])
    # An epoch of what was kept is what the prefix says of the same epoch of the pictures.
    for epoch in (0, 4):
        raw = list(data.epochs(4, seed=5, first=epoch, views=3).take(2))
        ours = list(kept.epochs(4, seed=5, first=epoch).take(2))
        for (x, y, w), (features, labels, weights) in zip(raw, ours):
            assert np.array_equal(y, labels)
            assert np.array_equal(w, weights)
            assert np.array_equal(tf.function(lambda x: model(x, training=False))(x), features)


def test_random_layers_and_statistics_stand_still(tmp_path):
    entry = keras.Input((12, 12, 3))
    x = layers.Dropout(0.9)(layers.BatchNormalization()(entry))
    model = keras.Model(entry, x)
    data = examples(4)
    kept = precompute(model, data, tmp_path / "x.npy", batch_size=4).x
    np.testing.assert_allclose(kept, data.x / np.sqrt(1.001), rtol=1e-5)
    assert not model.layers[1].moving_mean.numpy().any()


def test_progress_counts_all_batches(tmp_path):
    seen = []
    precompute(
        prefix(), examples(), tmp_path / "x.npy", batch_size=4, views=2, progress=lambda *step: seen.append(step)
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_it_is_written_beside_and_renamed(tmp_path):
    def stop(done, total):
        assert [p.name for p in tmp_path.iterdir()] == ["x.npy.partial"]
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute(prefix(), examples(), tmp_path / "x.npy", batch_size=4, progress=stop)
    assert not (tmp_path / "x.npy").exists()
    again = precompute(prefix(), examples(), tmp_path / "x.npy", batch_size=4)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    assert np.isfinite(again.x).all()


def test_a_file_of_other_examples_is_not_taken(tmp_path):
    precompute(prefix(), examples(8), tmp_path / "x.npy", batch_size=4)
    with pytest.raises(ValueError, match=r"x\.npy holds an array of shape \(8, 8\).*expected \(11, 8\).*delete it"):
        precompute(prefix(), examples(11), tmp_path / "x.npy", batch_size=4)


def test_half_precision_is_kept_as_it_is(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = prefix()
    keras.config.set_dtype_policy("float32")
    kept = precompute(model, examples(), tmp_path / "x.npy", batch_size=4)
    assert kept.x.dtype == np.float16
    assert np.array_equal(kept.x, live(model, examples().ordered(4), 4))
