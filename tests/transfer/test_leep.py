"""LEEP by hand, and against its three formulas written with loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thaw.transfer.transferability import leep, nce


def published(p, y):
    """Nguyen et al. (2020): the joint distribution, the conditional one, and the mean logarithm."""
    n, old = p.shape
    joint = {(c, z): sum(p[i, z] for i in range(n) if y[i] == c) / n for c in set(y) for z in range(old)}
    shares = {(c, z): joint[c, z] / sum(joint[d, z] for d in set(y)) for c, z in joint}
    return sum(math.log(sum(shares[y[i], z] * p[i, z] for z in range(old))) for i in range(n)) / n


def data(seed, n=20, old=5, classes=3):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(old, 0.3), n) + 0.0, rng.permutation(np.arange(n) % classes)


def test_leep_by_hand():
    """Old class 0 is seen with weight 0.5 + 1 and old class 1 with 0.5, both by new class 0 with weight 0.5."""
    p, y = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1])
    # Of old class 0 a third is new class 0, of old class 1 all: 0.5 / 3 + 0.5 = 2 / 3, and 2 / 3.
    assert leep(y, p) == pytest.approx(math.log(2 / 3), abs=1e-12)


@given(st.integers(0, 10_000))
def test_leep_equals_the_published_formulas(seed):
    p, y = data(seed)
    assert leep(y, p) == pytest.approx(published(p, y.tolist()), abs=1e-9)


@given(st.integers(0, 10_000))
def test_leep_ignores_class_numbers_and_order(seed):
    p, y = data(seed)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(y)), rng.permutation(p.shape[1])
    assert leep(np.array([3, 0, 11])[y][rows], p[rows][:, columns]) == pytest.approx(leep(y, p), abs=1e-9)
    assert leep(y, p) <= 0


def test_leep_of_certain_predictions_is_nce():
    rng = np.random.default_rng(0)
    source, y = rng.integers(0, 4, 50), rng.integers(0, 3, 50)
    assert leep(y, np.eye(6)[source]) == pytest.approx(nce(y, source), abs=1e-12)  # two old classes never occur


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        (np.ones((2, 2)), np.arange(2), "sum to 1"),
        (np.array([[2.0, -1.0]]), np.array([0]), "sum to 1"),
        (np.ones((2, 1)), np.arange(3), "expected"),
        (np.ones((2, 1)), np.ones(2), "class numbers"),
    ],
)
def test_leep_names_what_is_invalid(p, y, message):
    with pytest.raises(ValueError, match=message):
        leep(y, p)
