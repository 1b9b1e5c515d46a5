"""A phase with a frozen prefix computed once gives the same bits as one that computes it in every epoch."""

import importlib.util

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features.precompute import precompute
from thaw.features.split import split_model
from thaw.features.store import FeatureCache
from thaw.finetune import fine_tune
from thaw.plan import Phase, Plan
from thaw.training.freezing import freeze


def convolutions():
    """BatchNorm, and skips that are open wherever a stage begins: two tensors cross."""
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((16, 16, 3))
    skip = None
    for i, filters in enumerate((6, 8, 10)):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False, name=f"down{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm{i}")(x))
        if skip is not None:
            x = layers.Add()([x, layers.Conv2D(filters, 1, 2, name=f"skip{i}")(skip)])
        skip = x
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{i}")(x)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(layers.Add()([x, skip])))
    return keras.Model(entry, layers.Dense(3, "softmax", name="out")(x))


def transformer():
    """A mask from the embedding, which attention and pooling read, and dropout in both blocks."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((10,), dtype="int32")
    x = layers.Embedding(30, 16, mask_zero=True)(entry)
    for i in range(2):
        y = layers.MultiHeadAttention(2, 8, dropout=0.1, name=f"attention{i}")(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.2)(y)]))
        y = layers.Dense(16, name=f"down{i}")(layers.Dense(32, "gelu", name=f"up{i}")(x))
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.2)(y)]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(entry, layers.Dense(3, "softmax", name="out")(x))


def pictures(n, seed=0, **more):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 16, 16, 3)).astype("float32")
    x[np.arange(n), 2:9, 3, y] += 2
    return Dataset(x=x, y=y, **more)


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.integers(1, 30, (n, 10))
    x[np.arange(n), 0] = 1 + y
    x[np.arange(10)[None] >= rng.integers(3, 11, (n, 1))] = 0
    return Dataset(x=x.astype("int32"), y=y, sample_weight=rng.uniform(0.5, 1.5, n).astype("float32"))


def noise(x, seed):
    return x + 0.2 * tf.random.stateless_normal(tf.shape(x), seed)


noise.identity = "noise"


NETS = {
    "convolutions": (convolutions, lambda n, seed=0: pictures(n, seed, augment=noise if seed == 0 else None)),
    "transformer": (transformer, texts),
}


def run(kind, plan, model=None):
    make, data = NETS[kind]
    model = model or make()
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return model, fine_tune(model, plan, data(48), validation_data=data(16, 1), batch_size=8)


def head_phase(**options):
    return Phase(name="head", epochs=2, train="head", learning_rate=1e-2, **SETTINGS | options)


SETTINGS = {"views": 2, "schedule": "constant", "warmup": 0}
TWO_PHASES = Plan([head_phase(), Phase(name="top", epochs=2, train=1, learning_rate=3e-3, **SETTINGS)])


def weights(model):
    return [w.numpy() for w in model.weights]


def equal(a, b):
    return all(np.array_equal(p, q) for p, q in zip(weights(a), weights(b)))


def close(a, b):
    """Equal but for the last bits: on some CPUs they depend on the position of an example in its batch."""
    return all(np.allclose(p, q, rtol=0, atol=1e-5) for p, q in zip(weights(a), weights(b)))


def assert_near(one, two):
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert one.history[name] == pytest.approx(two.history[name], abs=1e-5)


@pytest.fixture(scope="module")
def cached_run():
    """A model and the history of two phases on cached features, which were computed in this run."""
    return run("convolutions", TWO_PHASES)


def nothing_cached(monkeypatch, folder):
    """An empty cache in which there is no room."""
    monkeypatch.setenv("THAW_CACHE", str(folder / "empty"))
    monkeypatch.setenv("THAW_CACHE_GB", "0")


def test_a_run_on_cached_features_equals_the_live_run(cached_run, monkeypatch, tmp_path):
    cached, one = cached_run
    assert sum("were computed once, in TensorFlow" in note for note in one.notes) == 2
    nothing_cached(monkeypatch, tmp_path)
    live, two = run("convolutions", TWO_PHASES)
    assert sum("all of the model is computed in every epoch" in note for note in two.notes) == 2
    assert_near(one, two)
    assert close(cached, live)


def test_two_runs_on_cached_features_are_equal_to_the_bit(cached_run):
    again, _ = run("convolutions", TWO_PHASES)  # each test has a cache of its own
    assert equal(cached_run[0], again)


def test_features_in_half_precision_are_near(cached_run):
    _, half = run("convolutions", Plan([head_phase(cache_dtype="float16")]))
    expected = cached_run[1].history["loss"][:2]
    assert half.history["loss"] == pytest.approx(expected, rel=1e-2)
    assert half.history["loss"] != expected


def test_a_transformer_with_a_mask_and_dropout_on_cached_features(monkeypatch, tmp_path):
    """Dropout in frozen layers is off; above, it draws what it would have drawn."""
    plan = Plan([Phase(name="top", epochs=3, train=1, learning_rate=3e-3, views=1)])
    cached, one = run("transformer", plan)
    assert any("dropout" in note and "its randomness is off" in note for note in one.notes)
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "another"))
    assert equal(cached, run("transformer", plan)[0])
    nothing_cached(monkeypatch, tmp_path)
    other = transformer()
    freeze(other, 1)
    prefix = split_model(other)[0]
    # The dropout matters: otherwise there would be nothing to prove.
    x = texts(8).x
    assert not np.allclose(prefix(x, training=True)[0], prefix(x, training=False)[0])
    for layer in prefix._flatten_layers():
        if isinstance(layer, layers.Dropout):
            layer.rate = 0
    live, two = run("transformer", plan, other)
    assert any("all of the model is computed in every epoch" in note for note in two.notes)
    assert_near(one, two)
    assert close(cached, live)


def heavy():
    """A frozen part that takes some time: 1.3e9 operations for a batch of 64."""
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((16, 16, 3))
    for _ in range(2):
        x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(8, 1, 4)(x)  # so that few bytes are cached
    x = layers.Conv2D(16, 3, 2, "same", activation="relu")(x)
    model = keras.Model(entry, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_fine_tune_in_openvino_is_repeatable_and_near_tensorflow(monkeypatch, tmp_path):
    """OpenVINO's last bits differ; the training is the same within what the design allows."""
    data = pictures(256)
    plan = Plan([Phase(name="top", epochs=2, train=1, learning_rate=3e-3)])

    def run():
        model = heavy()
        history = fine_tune(
            model, plan, data.take(range(192)), validation_data=data.take(range(192, 256)), batch_size=64
        )
        return model, history, [note for note in history.notes if "computed" in note]

    freeze(model := heavy(), 1)
    precompute(split_model(model)[0], data, batch_size=64)
    (chosen,) = FeatureCache().folder.glob("*.runtime")
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("THAW_CACHE", str(tmp_path / name))
        FeatureCache().folder.mkdir(parents=True)
        # As if OpenVINO had been the faster, which it was in all likelihood.
        (FeatureCache().folder / chosen.name).write_text("openvino")
        model, history, notes = run()
        assert ["were computed once, in OpenVINO" in note for note in notes] == [True]
        found.append((model, history.history["loss"]))
    assert equal(found[0][0], found[1][0])
    nothing_cached(monkeypatch, tmp_path)
    _, live, notes = run()
    assert ["all of the model is computed in every epoch" in note for note in notes] == [True]
    assert found[0][1][0] == pytest.approx(live.history["loss"][0], rel=1e-3)
    assert found[0][1] == pytest.approx(live.history["loss"], rel=1e-2)
