"""Balanced weights against numbers worked out by hand."""

import numpy as np
import pytest

from thaw.data.splits import balanced_class_weight


def test_weights_are_n_over_k_times_count():
    y = np.repeat([0, 1, 2], [6, 3, 1])
    assert balanced_class_weight(y, 3) == {0: 10 / 18, 1: 10 / 9, 2: 10 / 3}


def test_on_only_below_a_third():
    assert balanced_class_weight(np.repeat([0, 1], [9, 3]), 2) is None
    assert balanced_class_weight(np.repeat([0, 1], [10, 3]), 2) is not None


def test_a_class_without_examples_is_not_counted():
    assert balanced_class_weight(np.repeat([0, 2], [4, 1]), 3) == {0: 5 / 8, 1: 1.0, 2: 5 / 2}


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([], r"y has shape \(0,\), expected \(n,\)"),
        ([[0, 1]], r"y has shape \(1, 2\), expected \(n,\)"),
        ([0, 2], "class numbers from 0 to 2, expected 0 to 1"),
        ([-1, 0], "class numbers from -1 to 0, expected 0 to 1"),
    ],
)
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=message):
        balanced_class_weight(np.array(y, int), 2)
