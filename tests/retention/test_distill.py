"""Learning without forgetting: targets, gradients, and nothing but Keras."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.retention.distillation import distill, soft_targets

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


def outputs(model, x=X):
    """What the model puts out, without a trace of ``predict``, which takes longer."""
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def pair(old_activation="softmax"):
    keras.utils.set_random_seed(0)
    pixels = keras.Input((4,))
    features = layers.Dense(6, "tanh", name="features")(pixels)
    old = keras.Model(pixels, layers.Dense(3, old_activation, name="old")(features))
    new = keras.Model(pixels, layers.Dense(2, "softmax", name="new")(features), name="both_of_us")
    return new, old


@pytest.mark.parametrize("activation", ["softmax", None])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_answers_by_the_formula_of_the_paper(activation, temperature):
    new, old = pair(activation)
    _, (y, answers) = soft_targets(distill(new, old, temperature=temperature), X, Y)
    p = outputs(old)[0].astype("float64")
    if activation is None:
        p = np.exp(p)
        p /= p.sum(axis=1, keepdims=True)
    expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    assert np.array_equal(y, Y)


def test_one_step_goes_along_the_gradient_by_hand():
    new, old = pair()
    both = distill(new, old, temperature=2.0)
    x, y = soft_targets(both, X, Y)
    # Away from the answers, so that there is something to keep.
    features = new.get_layer("features")
    features.kernel.assign(features.kernel + 0.5)
    before = {w.path: w.numpy() for w in both.weights}
    loss = ["sparse_categorical_crossentropy", "kl_divergence"]
    both.compile(keras.optimizers.SGD(0.1), loss, loss_weights=[1.0, 3.0], run_eagerly=True)
    both.fit(x, y, batch_size=24, verbose=0)
    # The old head's bias, by hand: d KL / d z = (softened now - answers) / temperature.
    logits = (
        np.tanh(X @ before["features/kernel"] + before["features/bias"]) @ before["old/kernel"] + before["old/bias"]
    )
    now = np.exp(logits / 2)
    now /= now.sum(axis=1, keepdims=True)
    expected = before["old/bias"] - 0.1 * 3.0 * ((now - y[1]) / 2).mean(axis=0)
    np.testing.assert_allclose(old.layers[-1].bias.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_distill_begins_at_a_divergence_of_zero_and_forgets_less():
    def trained(weight):
        new, old = pair()
        (first,) = outputs(old)
        both = distill(new, old)
        x, y = soft_targets(both, X, Y)
        # The divergence alone, before anything is learned.
        divergence = keras.losses.kl_divergence(y[1], outputs(both, x)[1])
        assert float(np.mean(divergence)) == pytest.approx(0, abs=1e-6)
        loss = ["sparse_categorical_crossentropy", "kl_divergence"]
        old.layers[-1].trainable = False
        both.compile(keras.optimizers.Adam(0.05), loss, loss_weights=[1.0, weight])
        # Sixty passes in one epoch, for each epoch takes time of its own.
        both.fit(np.tile(x, (60, 1)), [np.tile(y[0], 60), np.tile(y[1], (60, 1))], batch_size=24, verbose=0)
        assert (outputs(new)[0].argmax(1) == Y).mean() > 0.9
        return np.abs(outputs(old)[0] - first).mean()

    assert trained(20.0) < 0.5 * trained(0.0)


def test_it_is_plain_keras_and_shares_its_variables(tmp_path):
    new, old = pair()
    both = distill(new, old)
    assert {id(w) for w in both.weights} == {id(w) for w in (*new.weights, *old.weights)}
    both.compile("adam", ["sparse_categorical_crossentropy", "kl_divergence"])
    both.save(tmp_path / "both.keras")
    import zipfile

    with zipfile.ZipFile(tmp_path / "both.keras") as file:
        assert b"thaw" not in file.read("config.json")
    again = keras.saving.load_model(tmp_path / "both.keras", safe_mode=True, compile=False)
    np.testing.assert_allclose(outputs(again)[1], outputs(both)[1], atol=1e-6)
    # Making it left no note on the layers of either model.
    assert new.layers[1].output is new.layers[1]._inbound_nodes[0].outputs[0]


def test_heads_whose_layers_have_the_same_names():
    keras.utils.set_random_seed(0)
    pixels = keras.Input((4,))
    features = layers.Dense(6, "tanh")(pixels)
    old, new = (keras.Model(pixels, layers.Dense(n, "softmax", name="head_classes")(features)) for n in (3, 2))
    both = distill(new, old)
    assert [model.layers[-1].name for model in (new, old)] == ["head_classes", "head_classes"]
    first, softened = outputs(both)
    np.testing.assert_allclose(first, outputs(new)[0], atol=1e-6)
    p = np.sqrt(outputs(old)[0])
    np.testing.assert_allclose(softened, p / p.sum(axis=1, keepdims=True), atol=1e-6)
    x, y = soft_targets(both, X, Y)
    loss = ["sparse_categorical_crossentropy", "kl_divergence"]
    both.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    before = [w.numpy() for w in (*new.weights, *old.weights)]
    both.fit(x, y, verbose=0)
    assert not any(np.array_equal(b, w.numpy()) for b, w in zip(before[2:4], new.weights[2:]))


def test_answers_travel_with_the_examples():
    new, old = pair()
    both = distill(new, old)
    data = soft_targets(both, Dataset(x=X, y=Y, sample_weight=np.ones(24)))
    _, (_, answers) = soft_targets(both, X, Y)
    by_input = {x.tobytes(): a for x, a in zip(X, answers)}
    for e, (x, (y, a), w) in enumerate(data.take(np.arange(20)[::-1]).epochs(5, seed=1).take(8)):
        assert len(w) == len(y) == 5, e
        for row, answer in zip(x.numpy(), a.numpy()):
            np.testing.assert_allclose(answer, by_input[row.tobytes()], atol=1e-6)
    both.compile("adam", ["sparse_categorical_crossentropy", "kl_divergence"], run_eagerly=True)
    batches, validation = data.epochs(8, seed=0), data.ordered(8)
    both.fit(batches, steps_per_epoch=3, epochs=2, validation_data=validation, shuffle=False, verbose=0)


def test_each_version_has_its_own_answers():
    import tensorflow as tf

    def augment(x, seed):
        return x + tf.random.stateless_normal(tf.shape(x), seed)

    new, old = pair()
    both = distill(new, old, temperature=1.0)
    data = soft_targets(both, Dataset(x=X, y=Y, augment=augment), views=3)
    assert data.soft_targets.shape == (3, 24, 3)
    for x, (_, answers) in data.epochs(8, seed=5, views=3).take(9 + 3):
        np.testing.assert_allclose(answers, outputs(old, x)[0], atol=1e-5)


def test_answers_stay_with_what_is_kept_of_the_standing_part(tmp_path):
    from thaw import freeze, precompute, split_model

    new, old = pair()
    both = distill(new, old)
    data = soft_targets(both, Dataset(x=X, y=Y))
    freeze(both, "head")
    prefix, suffix = split_model(both)
    kept = precompute(prefix, data, cache_dir=tmp_path, batch_size=8)
    # Nothing moved yet: the old head's loss is 0, if the answers are with their own examples in whatever order.
    loss = ["sparse_categorical_crossentropy", "kl_divergence"]
    suffix.compile(keras.optimizers.SGD(0.0), loss)
    history = suffix.fit(kept.epochs(8, seed=2), steps_per_epoch=3, epochs=2, shuffle=False, verbose=0).history
    assert history["soft_targets_loss"] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_soft_targets_of_a_mix_with_replay():
    from thaw.data.replay import mix_replay

    new, old = pair()
    both = distill(new, old)
    target, source = Dataset(x=X, y=Y), Dataset(x=X[::-1] * 2, y=Y)
    with pytest.raises(ValueError, match=r"soft targets for 24 of them; .* soft_targets\(both, mix_replay\("):
        mix_replay(soft_targets(both, target), source, 0.3)
    mixed = soft_targets(both, mix_replay(target, source, 0.3))
    both.compile("adam", ["sparse_categorical_crossentropy", "kl_divergence"], run_eagerly=True)
    both.fit(mixed.epochs(8, seed=0), steps_per_epoch=mixed.steps(8), shuffle=False, verbose=0)


def test_what_cannot_be_put_together():
    new, old = pair()
    other, _ = pair()
    with pytest.raises(ValueError, match="does not begin at the input"):
        distill(other, old)
    with pytest.raises(ValueError, match="temperature=0; expected"):
        distill(new, old, temperature=0)
    alone = keras.Model(new.input, layers.Dense(2, "softmax")(new.input))
    with pytest.raises(ValueError, match="share no variables"):
        distill(alone, old)
    with pytest.raises(ValueError, match="2 outputs and"):
        distill(distill(new, old), old)
    with pytest.raises(ValueError, match="views=-1"):
        soft_targets(distill(new, old), X, Y, views=-1)
    with pytest.raises(ValueError, match="are a str"):
        soft_targets(distill(new, old), "photos")
