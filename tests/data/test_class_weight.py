"""Balanced weights against numbers worked out by hand."""

import numpy as np
import pytest

from thaw.data.splits import Balance, balanced_class_weight, resolve_balance


def test_weights_are_n_over_k_times_count():
    y = np.repeat([0, 1, 2], [6, 3, 1])
    assert balanced_class_weight(y, 3) == {0: 10 / 18, 1: 10 / 9, 2: 10 / 3}


def test_on_only_below_a_third():
    assert balanced_class_weight(np.repeat([0, 1], [9, 3]), 2) is None
    assert balanced_class_weight(np.repeat([0, 1], [10, 3]), 2) is not None


def test_a_class_without_examples_is_not_counted():
    assert balanced_class_weight(np.repeat([0, 2], [4, 1]), 3) == {0: 5 / 8, 1: 1.0, 2: 5 / 2}


UNEVEN, EVEN = np.repeat([0, 1], [10, 3]), np.repeat([0, 1], [9, 3])
WEIGHTS = {0: 12 / 18, 1: 12 / 6}  # of EVEN


@pytest.mark.parametrize(
    ("balance", "y", "expected"),
    [
        ("auto", UNEVEN, Balance("balanced", {0: 13 / 20, 1: 13 / 6})),
        ("auto", EVEN, Balance("none")),
        ("none", UNEVEN, Balance("none")),
        ("balanced", EVEN, Balance("balanced", WEIGHTS)),
        ("balanced", [0, 1], Balance("none")),
        ("logit-adjustment", EVEN, Balance("logit-adjustment", class_counts=(9, 3))),
        ("logit-adjustment", [1, 0], Balance("none")),
    ],
)
def test_what_is_done_about_uneven_classes(balance, y, expected):
    assert resolve_balance(balance, y, 2) == expected


def test_a_balance_that_does_not_exist_or_cannot_be():
    with pytest.raises(ValueError, match="balance='even'; expected one of auto, none, balanced, logit-adjustment"):
        resolve_balance("even", EVEN, 2)
    with pytest.raises(ValueError, match="Class 2 has no training example"):
        resolve_balance("logit-adjustment", EVEN, 3)


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
