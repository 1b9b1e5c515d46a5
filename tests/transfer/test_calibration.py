"""Temperatures and priors against numbers worked out by hand; nothing is changed by chance."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Dataset, attach_head
from thaw.features import predict_proba
from thaw.models.linear_heads import linear_head
from thaw.transfer import CannotCalibrate, adjust_logits, calibrate, fit_temperature, scale_logits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 5)).astype("float32")


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def draw(p, seed=0):
    return (np.random.default_rng(seed).random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1)


def net(*last, nested=False, seed=0):
    """A net with large weights in its last layer, so that it is sure of what it says."""
    keras.utils.set_random_seed(seed)
    body = [keras.Input((5,)), layers.Dense(6, "tanh")]
    body = [keras.Sequential(body)] if nested else body
    model = keras.Sequential([*body, *last])
    model.build((None, 5))
    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense)][-1]
    dense.kernel.assign(np.random.default_rng(seed).normal(size=dense.kernel.shape) * 2)
    if dense.use_bias:
        dense.bias.assign(np.linspace(-1, 1, dense.units))
    return model


HEADS = {
    "softmax": lambda: [layers.Dense(3, "softmax")],
    "softmax layer": lambda: [layers.Dense(3), layers.Softmax()],
    "logits": lambda: [layers.Dropout(0.5), layers.Dense(3)],
    "sigmoid": lambda: [layers.Dense(1, "sigmoid")],
    "one logit": lambda: [layers.Dense(1)],
}
EVERY_HEAD = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def test_temperature_by_hand():
    """Logits log 9, and right in three of four cases: the odds are 3, but for the doubt, so that T = log 9 / log 3."""
    n = 400
    y = np.array([0, 0, 0, 1] * 100)
    doubt = 1 / (n + 2)
    rate = 0.75 * (1 - doubt) + doubt / 2
    logits = np.tile([np.log(9), 0.0], (n, 1))
    assert fit_temperature(logits, y) == pytest.approx(np.log(9) / np.log(rate / (1 - rate)), rel=1e-3)
    # A row of weight 3 counts as three, up to the doubt, which counts rows.
    four = fit_temperature(np.tile(logits[:1], (200, 1)), [0, 1] * 100, np.tile([3.0, 1.0], 100))
    assert four == pytest.approx(2.0, rel=0.03)


def test_temperature_of_doubled_logits_is_doubled_and_constants_of_a_row_do_not_count():
    true = RNG.normal(size=(5000, 4)) * 2
    y = draw(softmax(true))
    one = fit_temperature(true, y)
    assert one == pytest.approx(1, abs=0.05)
    assert fit_temperature(2 * true, y) == pytest.approx(2 * one, rel=1e-3)
    assert fit_temperature(np.log(softmax(2 * true)), y) == pytest.approx(2 * one, rel=1e-3)


def test_where_all_rows_are_right_the_temperature_has_an_end():
    assert 0.11 < fit_temperature(np.eye(3)[[0, 1, 2] * 20] * 5, [0, 1, 2] * 20) < 5


@pytest.mark.parametrize(
    ("logits", "y", "weight", "message"),
    [
        (np.zeros((3, 2)), [0, 1], None, "3 logits, 2 labels"),
        (np.zeros((2, 2)), [0, 2], None, "expected class numbers 0 to 1"),
        (np.zeros(2), [0, 1], None, r"shape \(2,\)"),
        (np.full((2, 2), np.inf), [0, 1], None, "finite"),
        (np.zeros((2, 2)), [0, 1], [0, 0], "not all 0"),
        (np.zeros((2, 2)), [0, 1], [-1, 2], "negative"),
    ],
)
def test_bad_input_of_fit_temperature(logits, y, weight, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, y, weight)


@EVERY_HEAD
def test_scale_logits_divides_them_and_back(head):
    model = net(*head(), nested=head is HEADS["softmax"])
    before = [w.copy() for w in model.get_weights()]
    p = predict_proba(model, X)
    scale_logits(model, 2)
    expected = p**0.5
    assert predict_proba(model, X) == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)
    assert (predict_proba(model, X).argmax(axis=1) == p.argmax(axis=1)).all()
    scale_logits(model, 0.5)
    for w, old in zip(model.get_weights(), before):
        np.testing.assert_array_equal(w, old)


def test_scale_logits_of_a_wide_head_changes_the_last_layer_alone():
    backbone = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2, activation="relu"), layers.Conv2D(4, 3)]
    )
    model = attach_head(backbone, 3, features="all")
    dense = linear_head(model).dense
    dense.kernel.assign(RNG.normal(size=dense.kernel.shape))
    images = RNG.uniform(0, 255, (9, 8, 8, 3)).astype("float32")
    kernel, p = dense.kernel.numpy(), predict_proba(model, images)
    others = [w.numpy() for w in model.weights if w is not dense.kernel and w is not dense.bias]
    scale_logits(model, 4)
    np.testing.assert_array_equal(dense.kernel.numpy(), kernel / 4)
    expected = p**0.25
    assert predict_proba(model, images) == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)
    for w, old in zip((w for w in model.weights if w is not dense.kernel and w is not dense.bias), others):
        np.testing.assert_array_equal(w.numpy(), old)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: scale_logits(net(layers.Dense(3, "softmax")), 0), ValueError, "temperature=0"),
        (lambda: scale_logits(net(layers.Dense(3, "softmax")), float("nan")), ValueError, "temperature=nan"),
        (lambda: scale_logits(net(layers.Dense(3), layers.ReLU()), 2), CannotCalibrate, "not linear in any features"),
        (lambda: adjust_logits(net(layers.Dense(2, use_bias=False)), [1, 2]), CannotCalibrate, "has no bias"),
        (lambda: adjust_logits(net(layers.Dense(3, "sigmoid")), [1, 2, 3]), CannotCalibrate, "independent"),
        (lambda: adjust_logits(net(layers.Dense(3)), [1, 2]), ValueError, "expected 3 numbers above 0"),
        (lambda: adjust_logits(net(layers.Dense(3)), [1, 2, 0]), ValueError, "expected 3 numbers above 0"),
        (lambda: adjust_logits(net(layers.Dense(3)), [1, 2, 3], tau=-1), ValueError, "tau=-1"),
    ],
)
def test_what_cannot_be_calibrated_is_named(change, error, message):
    with pytest.raises(error, match=message):
        change()


def test_a_mean_of_two_heads_is_refused_before_anything_is_computed():
    inputs = keras.Input((5,))
    mean = layers.Average()([layers.Dense(3, "softmax")(inputs), layers.Dense(3, "softmax")(inputs)])
    with pytest.raises(CannotCalibrate):
        calibrate(keras.Model(inputs, mean), (X, np.zeros(len(X), int)))


def test_adjusted_bias_by_hand():
    model = net(layers.Dense(3, "softmax"))
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    adjust_logits(model, [6, 3, 1])
    expected = [1 - np.log(0.6), 2 - np.log(0.3), 3 - np.log(0.1)]
    assert model.layers[-1].bias.numpy() == pytest.approx(np.array(expected), abs=1e-6)
    adjust_logits(model, [0.6, 0.3, 0.1], tau=0)
    assert model.layers[-1].bias.numpy() == pytest.approx(np.array(expected), abs=1e-6)


@EVERY_HEAD
def test_adjusted_probabilities_are_those_of_balanced_classes(head):
    model, tau = net(*head()), 0.5 if head is HEADS["softmax layer"] else 1.0
    p = predict_proba(model, X)
    prior = np.array([0.7, 0.2, 0.1][: p.shape[1]])
    prior /= prior.sum()
    adjust_logits(model, 50 * prior, tau=tau)
    balanced = p / prior**tau
    assert predict_proba(model, X) == pytest.approx(balanced / balanced.sum(axis=1, keepdims=True), abs=1e-5)


@EVERY_HEAD
def test_calibrate_finds_the_temperature_and_leaves_the_accuracy(head):
    model = net(*head())
    y = draw(predict_proba(model, X))
    scale_logits(model, 1 / 3)
    sure = predict_proba(model, X)
    found = calibrate(model, (X, y))
    assert found.temperature == found.fitted == pytest.approx(3, rel=0.25)
    p = predict_proba(model, X)
    assert (p.argmax(axis=1) == sure.argmax(axis=1)).all()
    rows = np.arange(len(y))
    assert found.log_loss_before == pytest.approx(-np.log(np.maximum(sure[rows, y], 1e-7)).mean(), abs=1e-3)
    # That of the pairs is of temperatures that have not seen the row: a little higher than with the one folded in.
    assert -np.log(p[rows, y]).mean() < found.log_loss_after < -np.log(p[rows, y]).mean() + 0.01
    assert str(found).startswith("Calibrated: temperature")


def test_calibrate_changes_nothing_by_chance():
    model = net(layers.Dense(3, "softmax"))
    before = [w.copy() for w in model.get_weights()]
    changed = 0
    for seed in range(6):
        found = calibrate(model, (X, draw(predict_proba(model, X), seed)))
        changed += found.temperature != 1
        assert found.fitted != 1
        if found.temperature == 1:
            assert found.log_loss_after == found.log_loss_before
            assert "no more than chance" in str(found)
            for w, old in zip(model.get_weights(), before):
                np.testing.assert_array_equal(w, old)
        model.set_weights(before)
    assert changed <= 1


def test_calibrate_needs_twenty_examples_and_counts_groups_and_weights():
    model = net(layers.Dense(3, "softmax"))
    y = draw(predict_proba(model, X))
    scale_logits(model, 1 / 4)
    for data in (
        (X[:19], y[:19]),
        (X, y, (np.arange(240) < 19).astype("float32")),
        Dataset(x=X, y=y, groups=np.arange(240) % 19),
    ):
        found = calibrate(model, data)
        assert (found.temperature, found.fitted) == (1, None)
        assert "fewer than 20" in str(found)
    assert calibrate(model, Dataset(x=X, y=y, groups=np.arange(240) // 3)).temperature > 2


def test_examples_of_weight_0_do_not_count():
    weights, found = net(layers.Dense(3, "softmax")), []
    y = draw(predict_proba(weights, X))
    for data in (
        (X[:120], y[:120]),
        (X, np.where(np.arange(240) < 120, y, 0), (np.arange(240) < 120).astype("float32")),
    ):
        model = net(layers.Dense(3, "softmax"))
        scale_logits(model, 1 / 4)
        found.append(calibrate(model, data))
    assert found[0] == found[1]
