"""Every fold has its share of every class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thaw.transfer.readouts import stratified_folds


@given(st.lists(st.integers(0, 4), min_size=7, max_size=60), st.integers(2, 7), st.integers(0, 100))
def test_stratified_folds_sizes_differ_by_at_most_one(y, folds, seed):
    y = np.array(y)
    fold = stratified_folds(y, folds, seed)
    assert set(fold.tolist()) == set(range(folds))
    for part in (fold, *(fold[y == c] for c in set(y.tolist()))):
        counts = np.bincount(part, minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert (stratified_folds(y, folds, seed) == fold).all()


def test_stratified_folds_follow_the_seed():
    y = np.zeros(40, int)
    assert (stratified_folds(y, 5, 0) != stratified_folds(y, 5, 1)).any()


@pytest.mark.parametrize(("n", "folds"), [(3, 4), (10, 1)])
def test_stratified_folds_name_what_is_invalid(n, folds):
    with pytest.raises(ValueError, match=f"{n} examples for {folds} folds"):
        stratified_folds(np.zeros(n, int), folds)
