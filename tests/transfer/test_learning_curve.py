"""A learning curve climbs where more examples help, and is flat where they do not."""

import numpy as np
import pytest

from thaw.features.ridge import ridge_predict
from thaw.transfer.learning_curves import learning_curve
from thaw.transfer.readouts import ridge_readout, stratified_folds


def noisy(n, seed, width=40, apart=0.25):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return rng.normal(size=(n, width)) + apart * (2 * y[:, None] - 1), y


def wide(n, seed):
    return noisy(n, seed, 200, 0.12)


def test_learning_curve_rises_where_more_examples_help():
    found = learning_curve(*wide(200, 0), *wide(1000, 9))
    assert [p.examples for p in found.points] == [50, 100, 200]
    assert [p.draws for p in found.points] == [12, 6, 1]
    scores = [p.score.value for p in found.points]
    assert scores[0] < scores[1] < scores[2]
    assert 0 < found.gain.low < found.gain.value < found.gain.high
    assert 0.5 * found.gain.value <= found.expected_gain <= found.gain.value
    more = learning_curve(*wide(400, 0), *wide(1000, 9))
    assert more.points[2].score.value > found.points[2].score.value


def test_learning_curve_is_flat_where_there_is_nothing_to_learn():
    claims = 0
    for seed in range(20):  # labels that depend on nothing: a rise is chance
        x, _ = noisy(80, seed)
        y = np.random.default_rng(seed + 100).integers(0, 2, 80)
        found = learning_curve(x, y, *noisy(300, seed + 50), seed=seed)
        claims += found.gain.low > 0
    assert claims <= 2
    easy = np.eye(2)[np.arange(80) % 2]
    found = learning_curve(easy, np.arange(80) % 2, easy, np.arange(80) % 2)
    assert [p.score.value for p in found.points] == [1, 1, 1]
    assert (*found.gain, found.expected_gain) == (0, 0, 0, 0)


def test_learning_curve_points_are_those_of_a_readout():
    """By hand: the same parts, the same readout, the mean over the draws."""
    (x, y), (new, new_y) = noisy(60, 0), noisy(200, 1)
    found = learning_curve(x, y, new, new_y, draws=3, seed=7)
    deals = [stratified_folds(y, 4, 7 + draw) % 2 for draw in range(3)]
    told = [ridge_predict(x[d == i], np.eye(2)[y[d == i]], new) for d in deals for i in (0, 1)]
    right = np.array([t.argmax(axis=1) == new_y for t in told])
    assert found.points[1].score.value == pytest.approx(right.mean())
    whole = ridge_predict(x, np.eye(2)[y], new).argmax(axis=1) == new_y
    assert found.correct.tolist() == whole.tolist()
    difference = whole - right.mean(axis=0)
    assert found.gain.value == pytest.approx(difference.mean())
    halves = right.mean(axis=1).reshape(3, 2)
    doubt = ((halves[:, 0] - halves[:, 1]) ** 2 / 2).mean() / 2
    half = 1.959964 * np.sqrt(difference.var(ddof=1) / 200 + doubt)
    assert found.gain.high - found.gain.value == pytest.approx(half)


def test_learning_curve_fit_equals_the_cross_validated_readout():
    x, y = noisy(40, 3)
    fold = np.arange(40) % 2
    both = ridge_readout(x, np.eye(2)[y], fold)
    np.testing.assert_array_equal(both[fold == 1], ridge_predict(x[fold == 0], np.eye(2)[y[fold == 0]], x[fold == 1]))


def test_learning_curve_class_of_the_test_examples_alone():
    x, y = noisy(40, 0)
    new, new_y = noisy(100, 1)
    found = learning_curve(x, y, new, np.where(np.arange(100) < 50, 2, new_y))
    assert found.points[2].score.value <= 0.5


def test_learning_curve_follows_the_seed_and_prints_80_columns():
    one, two = (learning_curve(*noisy(80, 0), *noisy(100, 1), seed=4) for _ in range(2))
    assert one == two
    assert all(len(line) <= 80 for line in str(one).splitlines())


@pytest.mark.parametrize(
    ("n", "m", "y", "said"),
    [
        (7, 10, 7, "expected at least 8"),
        (10, 1, 10, "and 1 test examples"),
        (10, 10, 9, "one class number for each row"),
    ],
)
def test_learning_curve_names_what_is_invalid(n, m, y, said):
    with pytest.raises(ValueError, match=said):
        learning_curve(np.zeros((n, 2)), np.arange(y) % 2, np.zeros((m, 2)), np.arange(m) % 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"draws": 0}, "draws=0; expected a whole number from 1"),
        ({"seed": -1}, "seed=-1; expected a whole number"),
        ({"test_features": np.zeros((10, 3))}, r"shape \(10, 2\) and the test features \(10, 3\); expected \(n, d\)"),
        ({"y": np.arange(10) / 3}, "The labels are float64 of shape"),
    ],
)
def test_learning_curve_names_which_setting_is_invalid(change, said):
    x, y = np.zeros((10, 2)), np.arange(10) % 2
    with pytest.raises(ValueError, match=said):
        learning_curve(**{"features": x, "y": y, "test_features": x, "test_y": y} | change)
