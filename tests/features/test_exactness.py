"""A phase with a frozen prefix computed once gives the same bits as one that computes it in every epoch."""

import importlib.util

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw import finetune as module
from thaw.data.dataset import Dataset
from thaw.features.split import CannotSplit
from thaw.finetune import fine_tune
from thaw.models.stages import stages_of
from thaw.plan import Phase, Plan


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
    """A mask from the embedding, which attention and pooling read, and dropout in every block."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((10,), dtype="int32")
    x = layers.Embedding(30, 16, mask_zero=True)(entry)
    for i in range(3):
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


def run(kind, plan=None, model=None, live=None, **phase):
    """By default two phases; with ``live`` (a monkeypatch) nothing is kept."""
    make, data = NETS[kind]
    model = model or make()
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    options = {"views": 2, "schedule": "constant", "warmup": 0} | phase
    plan = plan or [
        Phase(name="head", epochs=2, train="head", learning_rate=1e-2, **options),
        Phase(name="top", epochs=2, train=1, learning_rate=3e-3, **options),
    ]
    if live:

        def refuse(*_, **__):
            raise CannotSplit("the test wants it so")

        live.setattr(module, "precompute_phase", refuse)
    history = fine_tune(model, Plan(plan), data(48), validation_data=data(16, 1), batch_size=8)
    return model, history


def weights(model):
    return [w.numpy() for w in model.weights]


def equal(a, b):
    return all(np.array_equal(p, q) for p, q in zip(weights(a), weights(b)))


def close(a, b):
    """Equal but for the last bits: on some CPUs they depend on the position of an example in its batch."""
    return all(np.allclose(p, q, rtol=0, atol=1e-5) for p, q in zip(weights(a), weights(b)))


def test_kept_and_live_are_equal(monkeypatch):
    kept, one = run("convolutions")
    assert sum("were computed once, in TensorFlow" in note for note in one.notes) == 2
    live, two = run("convolutions", live=monkeypatch)
    assert sum("all of the model is computed in every epoch" in note for note in two.notes) == 2
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert one.history[name] == pytest.approx(two.history[name], abs=1e-5)
    assert close(kept, live)


@pytest.mark.slow
def test_a_transformer_with_a_mask_and_dropout(monkeypatch):
    """Dropout in what stands still is off; above, it draws what it would have drawn."""
    top = {"plan": [Phase(name="top", epochs=3, train=1, learning_rate=3e-3, views=1)]}
    kept, one = run("transformer", **top)
    assert any("dropout" in note and "its randomness is off" in note for note in one.notes)
    other = transformer()
    standing = [layer for stage in stages_of(other)[:-2] for layer in stage.layers]
    for layer in standing:
        for inside in layer._flatten_layers():
            if isinstance(inside, layers.Dropout):
                inside.rate = 0
    live, two = run("transformer", model=other, live=monkeypatch, **top)
    assert any("all of the model is computed in every epoch" in note for note in two.notes)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert one.history[name] == pytest.approx(two.history[name], abs=1e-5)
    assert close(kept, live)
    # The mask and the dropout matter: without them there is nothing to prove.
    third, _ = run("transformer", live=monkeypatch, **top)
    assert not close(third, live)


@pytest.mark.parametrize("kind", NETS)
def test_two_kept_runs_are_equal_to_the_bit(kind, monkeypatch, tmp_path):
    one, _ = run(kind)
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "another"))
    two, _ = run(kind)
    assert equal(one, two)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_in_another_runtime(monkeypatch, tmp_path):
    """OpenVINO's last bits differ; the training is the same within what the design allows."""
    import thaw.features.extraction as extraction
    from thaw.features.inference import inference_runner

    def always(model, batch_size, *, runtime="auto", examples=None):
        return inference_runner(model, batch_size, runtime="openvino")

    monkeypatch.setattr(extraction, "inference_runner", always)
    first, one = run("convolutions")
    assert sum("were computed once, in OpenVINO" in note for note in one.notes) == 2
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "another"))
    second, again = run("convolutions")
    assert sum("were computed once, in OpenVINO" in note for note in again.notes) == 2
    assert equal(first, second)
    monkeypatch.undo()
    _, two = run("convolutions", live=monkeypatch)
    assert one.history["loss"][0] == pytest.approx(two.history["loss"][0], rel=1e-3)
    assert one.history["loss"] == pytest.approx(two.history["loss"], rel=1e-2)


def test_half_precision_is_near():
    _, one = run("convolutions")
    _, two = run("convolutions", cache_dtype="float16")
    assert one.history["loss"] == pytest.approx(two.history["loss"], rel=1e-2)
    assert one.history["loss"] != two.history["loss"]
