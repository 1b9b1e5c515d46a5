"""NCE by hand, and against entropies that scipy computes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from thaw.measuring.nce import nce

PAIRS = st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 3)), min_size=1, max_size=40)


def test_by_hand():
    """Old class 0 has each new label once, entropy log 2; old class 1 has one label: half of the examples each."""
    assert nce(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0])) == pytest.approx(-math.log(2) / 2, abs=1e-12)
    assert nce(np.array([5, 6, 7]), np.array([1, 1, 0])) == 0
    assert nce(np.zeros(4, int), np.arange(4)) == pytest.approx(-math.log(4), abs=1e-12)


@given(PAIRS)
def test_equal_to_the_difference_of_two_entropies(pairs):
    """H(new | old) = H(new, old) - H(old)."""
    source, y = np.array(pairs).T
    both = np.unique(np.array(pairs), axis=0, return_counts=True)[1]
    old = np.unique(source, return_counts=True)[1]
    assert nce(source, y) == pytest.approx(-(entropy(both) - entropy(old)), abs=1e-9)


@given(PAIRS)
def test_names_do_not_matter(pairs):
    source, y = np.array(pairs).T
    assert nce(10 - 3 * source, y[::1] + 100) == pytest.approx(nce(source, y), abs=1e-12)


@pytest.mark.parametrize(
    ("source", "y", "message"),
    [
        (np.arange(3), np.arange(4), "expected two class numbers"),
        (np.empty(0, int), np.empty(0, int), "expected two class numbers"),
        (np.ones(3), np.arange(3), "expected class numbers"),
    ],
)
def test_what_does_not_fit_is_said(source, y, message):
    with pytest.raises(ValueError, match=message):
        nce(source, y)
