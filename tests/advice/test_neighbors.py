"""One step from the best: to a rate, to a depth, and down where everything diverged."""

import dataclasses

import pytest

from thaw.advice.trials import depths_of, neighbors

DEPTHS, RATES = [1, 2, "all"], [1e-4, 1e-3, 1e-2]


@dataclasses.dataclass
class Made:
    train: object
    learning_rate: float
    diverged: bool = False


def steps(*made):
    return [(c.train, c.learning_rate) for c in neighbors(list(made), DEPTHS, RATES)]


def test_neighbors_begin_with_new_rates():
    assert steps(Made(2, 1e-3)) == [(2, 1e-2), (2, 1e-4), ("all", 1e-3), (1, 1e-3), (2, 1e-2), (2, 1e-4)]
    assert steps(Made("all", 1e-3), Made(2, 1e-2))[:3] == [("all", 1e-4), (2, 1e-3), ("all", 1e-2)]
    assert steps(Made(1, 1e-4), Made(2, 1e-3)) == [(2, 1e-4), (1, 1e-3)]


def test_neighbors_lower_the_rate_after_divergence():
    assert steps(Made(2, 1e-3, True)) == [(2, 1e-4)]
    assert steps(Made(2, 1e-3, True), Made(2, 1e-4, True)) == []
    assert steps(Made(2, 1e-4), Made(2, 1e-3, True))[0] == ("all", 1e-4)


@pytest.mark.parametrize("made", [[], [Made("scratch", 1e-2)], [Made("head", 1e-2)]])
def test_neighbors_need_a_trial_of_the_backbone(made):
    assert steps(*made) == []


def test_depths_of():
    assert depths_of(1) == ["all"]
    assert depths_of(2) == [1, "all"]
    assert depths_of(5) == [1, 2, 3, 4, "all"]
    assert depths_of(6) == [1, 2, 4, "all"]
