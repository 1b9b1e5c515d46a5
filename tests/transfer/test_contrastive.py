"""contrastive_tuning: the loss against one written apart, what changes and what does not, and that it separates."""

import math

import keras
import numpy as np
import pytest
from keras import layers

from thaw import as_dataset, attach_head, seed_everything
from thaw.features import isolated_cache
from thaw.transfer import solve_head
from thaw.transfer.contrastive import contrastive_tuning, supervised_contrastive_loss


def written_apart(labels, vectors, temperature):
    """Equation 2 of Khosla et al. 2020, term by term."""
    unit = [v / np.linalg.norm(v) for v in np.asarray(vectors, np.float64)]
    losses = []
    for i, anchor in enumerate(unit):
        others = [a for a in range(len(unit)) if a != i]
        total = sum(math.exp(anchor @ unit[a] / temperature) for a in others)
        terms = [-math.log(math.exp(anchor @ unit[p] / temperature) / total) for p in others if labels[p] == labels[i]]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


def texts(n=48, length=8, seed=0):
    """Rows of word numbers, 0 for padding; the class is whether two of the words, of many, occur together."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 30, (n, length)).astype("int32")
    x[:, -2:] = 0
    y = np.arange(n) % 2
    x[y == 1, 0], x[y == 1, 1] = 31, 32
    return x, y


def encoder(seed=0, length=8):
    """Three blocks of attention over words."""
    keras.utils.set_random_seed(seed)
    words = keras.Input((length,), dtype="int32")
    x = layers.Embedding(40, 8, mask_zero=True, name="words")(words)
    for i in range(3):
        x = layers.LayerNormalization(name=f"norm{i}")(x + layers.MultiHeadAttention(2, 4, name=f"block{i}")(x, x))
    return keras.Model(words, x, name="encoder")


def weights_of(model, *names):
    return [w.numpy() for name in names for w in model.get_layer(name).weights]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_that_of_the_paper(temperature):
    rng = np.random.default_rng(0)
    labels, vectors = np.array([0, 1, 0, 2, 1, 0]), rng.normal(size=(6, 5)).astype("float32")
    found = np.asarray(supervised_contrastive_loss(labels[:, None].astype("float32"), vectors, temperature))
    assert found == pytest.approx(written_apart(labels, vectors, temperature), rel=1e-5)
    assert found[3] == 0  # alone in its class


def test_the_length_of_a_vector_does_not_count():
    rng = np.random.default_rng(1)
    labels, vectors = [0, 0, 1, 1], rng.normal(size=(4, 3)).astype("float32")
    longer = vectors * np.array([[1], [20], [3], [0.1]], "float32")
    found = [np.asarray(supervised_contrastive_loss(labels, v)) for v in (vectors, longer)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_only_the_chosen_stages_change_and_a_class_comes_together():
    x, y = texts(128)
    model = attach_head(encoder(), 2)
    flags = [(v.path, v.trainable) for v in model.variables]
    below, head = weights_of(model, "words", "block0", "norm0"), weights_of(model, "head_classes")
    top = weights_of(model, "block1", "block2")
    optimizer = model.optimizer
    history = contrastive_tuning(model, x, y, stages=2, epochs=15, learning_rate=1e-2, batch_size=16)
    assert len(history.history["loss"]) == 15
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    after = weights_of(model, "words", "block0", "norm0")
    assert all(np.array_equal(a, b) for a, b in zip(below, after))
    assert all(np.array_equal(a, b) for a, b in zip(head, weights_of(model, "head_classes")))
    assert not any(np.array_equal(a, b) for a, b in zip(top, weights_of(model, "block1", "block2")) if a.ndim > 2)
    assert [(v.path, v.trainable) for v in model.variables] == flags
    assert model.compiled
    assert model.optimizer is optimizer

    solve_head(model, x, y)
    frozen = attach_head(encoder(), 2)
    solve_head(frozen, x, y)
    new_x, new_y = texts(400, seed=1)
    assert frozen.evaluate(new_x, new_y, verbose=0)[1] < 0.85
    assert model.evaluate(new_x, new_y, verbose=0)[1] > 0.95


def test_it_learns_more_than_a_head_on_frozen_features_does():
    """The sign of a product, which is linear in no features of a random layer of four."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    accuracies = []
    for tuned in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        hidden = layers.Dense(32, "relu")(inputs)
        model = attach_head(keras.Model(inputs, layers.Dense(4, "tanh")(hidden)), 2)
        if tuned:
            contrastive_tuning(model, x, y, epochs=60, learning_rate=1e-2)
        solve_head(model, x, y)
        accuracies.append(model.evaluate(x, y, verbose=0)[1])
    assert accuracies[0] < 0.75
    assert accuracies[1] > 0.9


def test_the_frozen_part_is_computed_once_and_gives_what_the_whole_gives(tmp_path):
    """Against plain ``fit`` on the whole model with the same batches."""
    x, y = texts(24)
    model, other = attach_head(encoder(), 2), attach_head(encoder(), 2)
    cache = tmp_path / "cache"
    history = contrastive_tuning(model, x, y, stages=1, epochs=3, batch_size=8, temperature=0.5, cache_dir=cache)
    assert any(path.is_file() for path in cache.rglob("*"))

    whole = keras.Model(other.input, other.get_layer("head_pool").output)
    for layer in whole.layers:
        layer.trainable = layer.name in ("block2", "norm2")
    rate = keras.optimizers.schedules.CosineDecay(1e-4, 8, warmup_target=1e-4, warmup_steps=1)
    loss = lambda labels, features: supervised_contrastive_loss(labels, features, 0.5)  # noqa: E731
    whole.compile(keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=1.0), loss, jit_compile=False)
    plain = whole.fit(as_dataset(x, y).epochs(8, 0), steps_per_epoch=3, epochs=3, shuffle=False, verbose=0)
    assert history.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-4)
    for a, b in zip(weights_of(model, "block2"), weights_of(other, "block2")):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_same_seed_gives_the_same_bits():
    x, y = texts()
    runs = []
    for seed in (3, 3, 4):
        seed_everything(0)
        model = attach_head(encoder(), 2)
        with isolated_cache():
            contrastive_tuning(model, x, y, epochs=2, batch_size=16, seed=seed)
        runs.append(weights_of(model, "block1", "block2"))
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1]))
    assert not all(np.array_equal(a, b) for a, b in zip(runs[0], runs[2]))


def test_all_stages_and_batchnorm_that_stays_frozen():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 2.0, size=(20, 8, 8, 3)).astype("float32"), np.arange(20) % 2
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(name="norm")])
    model = attach_head(net, 2)
    before = model.get_weights()
    contrastive_tuning(model, x, keras.utils.to_categorical(y), stages=1, epochs=2, learning_rate=1e-3)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights())]
    assert changed == [True, True] + [False] * 4 + [False] * 2  # filters and biases; BatchNorm; the head


def test_an_error_restores_the_weights():
    x, y = texts(24)
    model = attach_head(encoder(), 2)
    before = model.get_weights()
    with pytest.raises(FloatingPointError, match="NaN or infinite; the weights are restored"):
        contrastive_tuning(model, x, y, epochs=3, batch_size=8, learning_rate=1e38)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 0}, "stages=0; expected a whole number from 1 to 4"),
        ({"stages": 9}, "stages=9; expected a whole number from 1 to 4"),
        ({"epochs": 0}, "epochs=0; expected a whole number from 1"),
        ({"batch_size": 1}, "batch_size=1; expected a whole number from 2"),
        ({"learning_rate": 0}, "learning_rate=0; expected a number above 0"),
        ({"temperature": float("nan")}, "temperature=nan; expected a number above 0"),
        ({"y": np.zeros(24, int)}, "24 examples of 1 classes"),
        ({"y": np.arange(24)}, "at most 1 of a class; expected two of one class"),
        ({"y": np.full((24, 2), 0.3)}, "not one-hot"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    x, y = texts(24)
    options = {"y": y} | change
    with pytest.raises(ValueError, match=message):
        contrastive_tuning(attach_head(encoder(), 2), x, **options)


def test_a_head_on_many_layers_is_refused():
    x, y = texts(24)
    with pytest.raises(ValueError, match='expected one vector: attach_head\\(backbone, task, features="last"\\)'):
        contrastive_tuning(attach_head(encoder(), 2, features="all"), x, y)


def test_a_stream_is_refused():
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices(texts(24)).batch(8)
    with pytest.raises(ValueError, match="in its own order only"):
        contrastive_tuning(attach_head(encoder(), 2), stream)
