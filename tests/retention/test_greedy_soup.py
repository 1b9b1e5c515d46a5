"""Each run is added to the average where it does no harm."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw.retention.merging import greedy_soup


def net():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[7.0]])])
    return model


def versions(*values):
    return [[np.array([[v]], "float32")] for v in values]


def weight(model):
    return float(model.weights[0][0, 0])


def near(target):
    return lambda model: -abs(weight(model) - target)


@pytest.mark.parametrize(
    ("values", "taken", "result"),
    [
        ((9.0, 1.0, 4.0), (2, 1), 2.5),  # 4: off by 1; with 1: by 0.5; with 9 as well: worse
        ((3.0, 3.5, 2.0), (0,), 3.0),  # nothing is better than exact
        ((2.0, 4.0), (0, 1), 3.0),
        ((4.0, 2.0, 4.0, 2.0), (0, 1), 3.0),  # 4; 3; then 10/3 is worse than exact, and so is 8/3
        ((4.0, 4.0), (0, 1), 4.0),  # a score that is not lower is enough
        ((8.0,), (0,), 8.0),
    ],
)
def test_by_hand(values, taken, result):
    model = net()
    found = greedy_soup(model, versions(*values), near(3.0))
    assert found.taken == taken
    assert weight(model) == pytest.approx(result)
    assert found.score.value == near(3.0)(model)
    assert [alone.value for alone in found.single_scores] == [-abs(v - 3) for v in values]


def test_never_worse_than_the_best_alone():
    rng = np.random.default_rng(0)
    for _ in range(10):
        found = greedy_soup(net(), versions(*rng.normal(3, 2, 5)), near(3.0))
        assert found.score.value >= max(alone.value for alone in found.single_scores)


def test_a_broken_run_is_left_out():
    model = net()
    found = greedy_soup(model, versions(np.nan, 2.0, 4.0), near(3.0))
    assert found.taken == (1, 2)
    assert weight(model) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted(error):
    model, calls = net(), []

    def stops(m):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return 1.0

    with pytest.raises(error):
        greedy_soup(model, versions(1.0, 2.0), stops)
    assert weight(model) == 7


def test_mistakes():
    model = net()
    with pytest.raises(ValueError, match="There are no versions"):
        greedy_soup(model, [], near(1))
    with pytest.raises(ValueError, match="None of the 2 versions has a score that is a number"):
        greedy_soup(model, versions(1.0, 2.0), lambda m: float("nan"))
    assert weight(model) == 7
