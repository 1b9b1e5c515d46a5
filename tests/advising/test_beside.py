"""One step from the best: to a rate, to a depth, and down where everything diverged."""

import dataclasses
import math

import pytest

from thaw.advising.beside import beside, depths_of

DEPTHS, RATES = [1, 2, "all"], [1e-4, 1e-3, 1e-2]


@dataclasses.dataclass
class Made:
    train: object
    learning_rate: float
    score: float = 0.5


def steps(*made):
    return [(c.train, c.learning_rate) for c in beside(list(made), DEPTHS, RATES)]


def test_rates_that_are_new_to_all_come_first():
    assert steps(Made(2, 1e-3)) == [(2, 1e-2), (2, 1e-4), ("all", 1e-3), (1, 1e-3), (2, 1e-2), (2, 1e-4)]
    assert steps(Made("all", 1e-3), Made(2, 1e-2))[:3] == [("all", 1e-4), (2, 1e-3), ("all", 1e-2)]
    assert steps(Made(1, 1e-4), Made(2, 1e-3)) == [(2, 1e-4), (1, 1e-3)]


def test_down_where_even_the_best_diverged():
    nan = math.nan
    assert steps(Made(2, 1e-3, nan)) == [(2, 1e-4)]
    assert steps(Made(2, 1e-3, nan), Made(2, 1e-4, nan)) == []
    assert steps(Made(2, 1e-4), Made(2, 1e-3, nan))[0] == ("all", 1e-4)


@pytest.mark.parametrize("made", [[], [Made("scratch", 1e-2)], [Made("head", 1e-2)]])
def test_nothing_beside_what_moves_no_backbone(made):
    assert steps(*made) == []


def test_depths():
    assert depths_of(1) == ["all"]
    assert depths_of(2) == [1, "all"]
    assert depths_of(5) == [1, 2, 3, 4, "all"]
    assert depths_of(6) == [1, 2, 4, "all"]
