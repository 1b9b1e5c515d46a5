"""Linear CKA against a second implementation, its invariances, and stages before and after a change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.data.dataset import Dataset
from thaw.features.similarity import linear_cka, stage_cka, stage_grams

keras = pytest.importorskip("keras")
RNG = np.random.default_rng(0)


def hsic(k, m):
    """Equation 5 of Song et al. 2012, written out."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    inner = (
        np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return inner / (n * (n - 3))


def published(a, b):
    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("n", [5, 12, 40])
def test_the_published_formula(n):
    a, b = RNG.normal(size=(n, 3)), RNG.normal(size=(n, 7))
    b[:, :2] += a[:, :2]
    assert linear_cka(a, b) == pytest.approx(published(a, b), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_turning_scaling_and_shifting_change_nothing(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(15, 4)), rng.normal(size=(15, 6))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    value = linear_cka(a, b)
    assert linear_cka(3 * a @ turn + rng.normal(size=4), b) == pytest.approx(value, abs=1e-9)
    assert linear_cka(b, a) == pytest.approx(value, abs=1e-9)


def test_it_is_unbiased_where_the_plain_estimate_is_not():
    values, plain = [], []
    for _ in range(200):
        a, b = RNG.normal(size=(10, 100)), RNG.normal(size=(10, 100))
        values.append(linear_cka(a, b))
        k, m = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
        plain.append((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    assert abs(np.mean(values)) < 0.05
    assert np.mean(plain) > 0.8


def test_what_does_not_vary_has_no_similarity():
    assert np.isnan(linear_cka(np.ones((6, 3)), RNG.normal(size=(6, 3))))
    with pytest.raises(ValueError, match="expected the same 4 or more"):
        linear_cka(np.ones((3, 2)), np.ones((3, 2)))


def net():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 3, activation="relu", padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(3, "softmax"),
        ]
    )


X = RNG.normal(size=(90, 8, 8, 1)).astype("float32")


def test_batches_of_stages_as_by_hand():
    model = net()
    grams = stage_grams(model, X, batch_size=40)
    assert [len(gram) for gram in grams["head"]] == [40, 40, 10]
    out = model.predict(X, verbose=0).astype("float64")
    model.layers[-1].kernel.assign(RNG.normal(size=(4, 3)))
    now = model.predict(X, verbose=0).astype("float64")
    found = stage_cka(grams, stage_grams(model, X, batch_size=40))
    sums = np.zeros(3)
    for rows in (slice(0, 40), slice(40, 80), slice(80, 90)):
        k, m = out[rows] @ out[rows].T, now[rows] @ now[rows].T
        sums += len(k) * np.array([hsic(k, m), hsic(k, k), hsic(m, m)])
    assert found["head"]["value"] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-3)
    assert found["stage1"] == {"value": pytest.approx(1.0, abs=1e-12)} | {
        end: pytest.approx(1.0, abs=1e-12) for end in ("low", "high")
    }
    assert "3 batches are too few" in found["head"]["reason"]


def test_an_interval_with_enough_batches():
    model = net()
    before = stage_grams(model, X, batch_size=9)
    model.layers[-1].kernel.assign(RNG.normal(size=(4, 3)))
    found = stage_cka(before, stage_grams(model, X, batch_size=9))["head"]
    assert found["low"] < found["value"] < found["high"]


def test_nothing_is_touched():
    model = net()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    before = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    stage_grams(model, Dataset(x=X, y=np.zeros(90)))
    assert before == [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]


def test_stage_grams_of_two_inputs_and_of_named_ones():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    one, two = keras.Input((3,), name="one"), keras.Input((2,), name="two")
    x = layers.Concatenate()([layers.Dense(4)(one), layers.Dense(4)(two)])
    model = keras.Model([one, two], layers.Dense(2)(layers.Dense(5)(x)))
    a, b = RNG.normal(size=(20, 3)).astype("float32"), RNG.normal(size=(20, 2)).astype("float32")
    grams = stage_grams(model, (a, b))
    assert [gram.shape for gram in grams["head"]] == [(20, 20)]
    out = model([a, b]).numpy()
    out = out - out.mean(axis=0)
    np.testing.assert_allclose(grams["head"][0], out @ out.T, rtol=1e-4, atol=1e-5)
    for other in ({"one": a, "two": b}, Dataset(x=(a, b), y=np.zeros(20))):
        for name, cka in stage_cka(grams, stage_grams(model, other)).items():
            assert cka["value"] == pytest.approx(1.0, abs=1e-6), name


def test_a_shuffled_data_set_is_found_out():
    import tensorflow as tf

    model = net()
    data = tf.data.Dataset.from_tensor_slices(X).shuffle(90, seed=1).batch(30)
    with pytest.raises(ValueError, match="another order"):
        stage_cka(stage_grams(model, data), stage_grams(model, data))


def test_what_does_not_belong_together():
    model = net()
    grams = stage_grams(model, X[:20])
    with pytest.raises(ValueError, match="20 examples in 1 batches before, 10 in 1"):
        stage_cka(grams, stage_grams(model, X[:10]))
    with pytest.raises(ValueError, match="none is in both"):
        stage_cka(grams, {"other": []})
    with pytest.raises(ValueError, match="no batch of 4"):
        stage_grams(model, X[:3])
