"""choose_blend: the shares against a search, and when a blend is kept."""

import numpy as np
import pytest

from thaw.transfer import choose_blend


def simulated(models, n=400, classes=3, noise=1.0, seed=0):
    """Softmax of a logit of the true class plus noise of each model's own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    noises = np.broadcast_to(noise, models)
    z = np.stack([1.5 * np.eye(classes)[y] + s * rng.normal(size=(n, classes)) for s in noises])
    p = np.exp(z)
    return list(p / p.sum(axis=2, keepdims=True)), y


def log_loss(p, y, weight=None):
    return np.average(-np.log(p[np.arange(len(y)), y]), weights=weight)


@pytest.mark.parametrize("noise", [(1, 1), (1, 1.2), (1.2, 1)])
def test_the_share_of_two_is_the_best_multiple_of_a_twentieth(noise):
    (p, q), y = simulated(2, noise=noise)
    blend = choose_blend([p, q], y, names=["a", "b"])
    losses = [log_loss(p * (1 - i / 20) + q * i / 20, y) for i in range(21)]
    i = int(np.argmin(losses))
    assert blend.helps
    assert blend.shares == pytest.approx((1 - i / 20, i / 20))
    mean = p * (1 - i / 20) + q * i / 20
    assert (blend.log_loss, blend.accuracy) == pytest.approx((min(losses), (mean.argmax(1) == y).mean()))
    assert blend.log_losses == pytest.approx((losses[0], losses[-1]))
    assert blend.accuracies == pytest.approx(((p.argmax(1) == y).mean(), (q.argmax(1) == y).mean()))
    assert "A blend of" in blend.notes[0]
    assert "by which the shares were chosen" in blend.notes[0]
    assert str(blend).splitlines()[1].startswith("a ")


def test_numbers_by_hand():
    """Two examples; each model is sure of one: -log 0.65 in the middle, below (-log 0.9 - log 0.4) / 2."""
    y = np.array([0, 1])
    p = np.array([[0.9, 0.1], [0.6, 0.4]])
    q = np.array([[0.4, 0.6], [0.1, 0.9]])
    blend = choose_blend([p, q], y)
    alone, differences = -np.log([0.9, 0.4]), -np.log([0.9, 0.4]) + np.log(0.65)
    assert blend.log_losses == pytest.approx((alone.mean(), alone.mean()))
    assert blend.log_loss == pytest.approx(-np.log(0.65))
    assert (blend.accuracies, blend.accuracy) == ((0.5, 0.5), 1.0)
    assert blend.gain == pytest.approx(differences.mean())
    assert blend.standard_error == pytest.approx(differences.std() / np.sqrt(2))
    assert blend.helps  # by 0.08 of 0.51: a sixth
    assert blend.shares == (0.5, 0.5)
    many = choose_blend([np.tile(p, (50, 1)), np.tile(q, (50, 1))], np.tile(y, 50))
    assert many.helps
    assert many.shares == (0.5, 0.5)


def test_a_blend_that_lowers_the_accuracy_is_not_kept():
    """One model decides by little and is always right; the other is sure, and wrong one time in five."""
    y = np.zeros(100, int)
    p, q = np.tile([0.55, 0.45], (100, 1)), np.tile([0.9, 0.1], (100, 1))
    q[::5] = [0.02, 0.98]
    blend = choose_blend([p, q], y, names=["timid", "bold"])
    assert blend.gain > blend.standard_error
    assert blend.accuracy == pytest.approx(0.8)
    assert not blend.helps
    assert (blend.best, blend.shares) == (0, (1, 0))
    assert "its accuracy is 0.800, clearly below the 1.000 of one model" in blend.notes[0]
    assert "timid alone" in blend.notes[0]


def test_equal_models_are_not_blended():
    (p,), y = simulated(1)
    blend = choose_blend([p, p, p], y)
    assert not blend.helps
    assert (blend.gain, sum(blend.shares)) == (0, 1)
    assert sorted(blend.shares) == [0, 0, 1]


def test_a_useless_model_gets_no_share():
    (p,), y = simulated(1)
    blend = choose_blend([np.full_like(p, 1 / 3), p], y)
    assert (blend.helps, blend.best, blend.shares) == (False, 1, (0, 1))
    assert blend.notes == ("No blend, but model 2 alone: the log loss is lowest with all of the share for model 2.",)


def test_without_a_blend_the_log_loss_decides():
    """One example of ten is no clear difference."""
    y = np.zeros(10, int)
    timid, sure = np.tile([0.51, 0.49], (10, 1)), np.tile([0.99, 0.01], (10, 1))
    sure[0] = [0.49, 0.51]
    blend = choose_blend([sure, timid], y, names=["sure", "timid"])
    assert (blend.helps, blend.best, blend.shares) == (False, 0, (1, 0))
    assert blend.accuracies[0] < blend.accuracies[1]
    assert blend.notes == ("No blend, but sure alone: the log loss is lowest with all of the share for sure.",)


def test_of_several_models_one_is_added_at_a_time():
    """Against the selection written out again, and near the best of a fine grid over two free shares."""
    probabilities, y = simulated(3, noise=(1, 1.3, 1.6))
    blend = choose_blend(probabilities, y)
    chosen, losses = [], []
    for _ in range(20):
        losses_of_one = [log_loss(np.mean([probabilities[i] for i in [*chosen, j]], axis=0), y) for j in range(3)]
        chosen.append(int(np.argmin(losses_of_one)))
        losses.append(min(losses_of_one))
    size = int(np.argmin(losses)) + 1
    assert blend.shares == pytest.approx(np.bincount(chosen[:size], minlength=3) / size)
    grid = [
        log_loss(a * probabilities[0] + b * probabilities[1] + (1 - a - b) * probabilities[2], y)
        for a in np.linspace(0, 1, 41)
        for b in np.linspace(0, 1 - a, 41)
    ]
    assert min(grid) <= blend.log_loss + 1e-12
    assert blend.log_loss < min(grid) + 1e-3
    assert blend.helps
    assert all(share > 0 for share in blend.shares)


def test_weights_count_as_repetitions():
    (p, q), y = simulated(2)
    weight = np.random.default_rng(1).integers(0, 4, len(y))
    once = choose_blend([p, q], y, sample_weight=weight)
    repeated = choose_blend([np.repeat(p, weight, axis=0), np.repeat(q, weight, axis=0)], np.repeat(y, weight))
    for name in ("shares", "log_losses", "accuracies", "log_loss", "accuracy", "gain"):
        assert getattr(once, name) == pytest.approx(getattr(repeated, name))
    doubled = choose_blend([p, q], y, sample_weight=2.0 * weight)
    assert doubled.standard_error == pytest.approx(once.standard_error)
    assert once.standard_error > repeated.standard_error  # fewer examples of their own


def test_the_gain_is_mostly_real_on_other_examples():
    """The share is chosen on the examples by which it is judged; where a blend is kept, it should help on others."""
    gains = []
    for seed in range(20):
        (p, q), y = simulated(2, n=1200, noise=(1, 1.2), seed=seed)
        blend = choose_blend([p[:200], q[:200]], y[:200])
        if blend.helps:
            mean = blend.shares[0] * p[200:] + blend.shares[1] * q[200:]
            gains.append(min(log_loss(p[200:], y[200:]), log_loss(q[200:], y[200:])) - log_loss(mean, y[200:]))
    assert len(gains) >= 10
    assert min(gains) > 0


def test_one_hot_labels():
    probabilities, y = simulated(2)
    assert choose_blend(probabilities, np.eye(3)[y]) == choose_blend(probabilities, y)


P = np.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("probabilities", "y", "options", "message"),
    [
        ([P], [0, 1, 0, 1], {}, "probabilities of 1 models; expected at least two"),
        ([P, P[:3]], [0, 1, 0, 1], {}, r"shapes \(4, 2\), \(3, 2\); expected the same"),
        ([P[:, :1], P[:, :1]], [0, 1, 0, 1], {}, "two classes"),
        ([P[:0], P[:0]], [], {}, "at least one example"),
        ([P, 3 * P], [0, 1, 0, 1], {}, "do not sum to 1; expected probabilities, not logits"),
        ([P, np.full((4, 2), np.nan)], [0, 1, 0, 1], {}, "do not sum to 1"),
        ([P, P], [0, 1, 0], {}, "There are 3 labels for 4 examples"),
        ([P, P], [0, 1, 0, 2], {}, "expected class numbers 0 to 1"),
        ([P, P], [0, 1, 0, 1], {"sample_weight": [1, 1]}, "expected 4 finite numbers from 0"),
        ([P, P], [0, 1, 0, 1], {"sample_weight": [0, 0, 0, 0]}, "not all of them 0"),
        ([P, P], [0, 1, 0, 1], {"sample_weight": [1, 1, 1, -1]}, "finite numbers from 0"),
        ([P, P], [0, 1, 0, 1], {"names": ["a"]}, "There are 1 names for 2 models"),
    ],
)
def test_what_is_refused(probabilities, y, options, message):
    with pytest.raises(ValueError, match=message):
        choose_blend(probabilities, y, **options)


def test_the_log_loss_decides_unless_an_accuracy_is_clearly_higher():
    """Both are right and sure of most rows; the second is wrong about fewer, but sure of it."""
    y, sure, unsure = np.zeros(100, int), [0.9, 0.1], [0.45, 0.55]
    p, q = np.tile(sure, (100, 1)), np.tile(sure, (100, 1))
    p[:3] = unsure
    q[10:12] = [0.001, 0.999]
    blend = choose_blend([p, q], y)
    assert (blend.accuracies, blend.best, blend.helps) == ((0.97, 0.98), 0, False)
    p[:9], q[:] = unsure, [0.55, 0.45]  # nine more are right, with a standard error of three
    blend = choose_blend([p, q], y)
    assert (blend.accuracies, blend.best, blend.helps) == ((0.91, 1.0), 1, False)
    assert blend.log_losses[0] < blend.log_losses[1]
