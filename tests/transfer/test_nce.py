"""NCE by hand, and against entropies that scipy computes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from thaw.transfer.transferability import nce

PAIRS = st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 3)), min_size=1, max_size=40)


def test_nce_by_hand():
    """Old class 0 has each new label once, entropy log 2; old class 1 has one label: half of the examples each."""
    assert nce(np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])) == pytest.approx(-math.log(2) / 2, abs=1e-12)
    assert nce(np.array([1, 1, 0]), np.array([5, 6, 7])) == 0
    assert nce(np.arange(4), np.zeros(4, int)) == pytest.approx(-math.log(4), abs=1e-12)


@given(PAIRS)
def test_nce_equals_the_difference_of_two_entropies(pairs):
    """H(new | old) = H(new, old) - H(old)."""
    source, y = np.array(pairs).T
    both = np.unique(np.array(pairs), axis=0, return_counts=True)[1]
    old = np.unique(source, return_counts=True)[1]
    assert nce(y, source) == pytest.approx(-(entropy(both) - entropy(old)), abs=1e-9)


@given(PAIRS)
def test_nce_ignores_class_numbers(pairs):
    source, y = np.array(pairs).T
    assert nce(y + 100, 10 - 3 * source) == pytest.approx(nce(y, source), abs=1e-12)


@pytest.mark.parametrize(
    ("source", "y", "message"),
    [
        (np.arange(3), np.arange(4), "expected two class numbers"),
        (np.empty(0, int), np.empty(0, int), "expected two class numbers"),
        (np.ones(3), np.arange(3), "expected class numbers"),
    ],
)
def test_nce_names_what_is_invalid(source, y, message):
    with pytest.raises(ValueError, match=message):
        nce(y, source)
