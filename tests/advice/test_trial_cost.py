"""The count of a trial, by hand."""

import keras
import pytest
from keras import layers

from thaw.advice import cost as trial_cost
from thaw.advice.cost import TrialCost, operations_in


@pytest.fixture
def plain(monkeypatch):
    """Nothing but the operations."""
    for name in ("OPERATIONS_PER_TRIAL", "OPERATIONS_PER_LAYER", "OPERATIONS_PER_EPOCH", "OPERATIONS_PER_BATCH"):
        monkeypatch.setattr(trial_cost, name, 0)
    return keras.Sequential([keras.Input((4,)), layers.Dense(100), layers.Dense(8), layers.Dense(2)])


def test_trial_cost_counts_frozen_stages_once_and_trained_ones_three_times(plain):
    cost = TrialCost(plain, views=2)
    below, middle, head = 2 * 500, 2 * 808, 2 * 18  # a multiplication and an addition for each weight
    assert cost.forward == below + middle + head
    assert cost.parts("head") == (below + middle, head, 1)
    assert cost.parts(1) == (below, middle + head, 2)
    assert cost.parts("all") == (0, cost.forward, 3)
    # 30 examples in two versions and 10 more once; then 3 epochs, 4 scorings.
    once = 0.5 * (below + middle) * (30 * 2 + 10)
    steps = 3 * head * 30 * 3 + head * 10 * 4
    assert cost.of("head", 30, 10, epochs=3) == once + steps
    assert cost.of("head", 30, 10, epochs=3, cached=True) == steps


def test_trial_cost_counts_overheads(plain, monkeypatch):
    cost = TrialCost(plain, views=1, batch_size=10)
    before = cost.of(1, 25, 5, epochs=2)
    for name, price in (
        ("OPERATIONS_PER_TRIAL", 7e6),
        ("OPERATIONS_PER_LAYER", 3e6),
        ("OPERATIONS_PER_EPOCH", 5e6),
        ("OPERATIONS_PER_BATCH", 1e6),
    ):
        monkeypatch.setattr(trial_cost, name, price)
    assert cost.of(1, 25, 5, epochs=2) - before == 7e6 + 2 * 3e6 + 2 * (5e6 + 3 * 1e6)


def test_operations_in():
    assert operations_in(2) == 2 * operations_in(1) > 0
