"""The count of a trial, by hand."""

import keras
import pytest
from keras import layers

from thaw.advising import trial_cost
from thaw.advising.trial_cost import TrialCost, budget_of


@pytest.fixture
def plain(monkeypatch):
    """Nothing but the operations."""
    for name in ("PER_TRIAL", "PER_LAYER", "PER_EPOCH", "PER_BATCH"):
        monkeypatch.setattr(trial_cost, name, 0)
    return keras.Sequential([keras.Input((4,)), layers.Dense(100), layers.Dense(8), layers.Dense(2)])


def test_what_stands_still_is_counted_once_and_what_moves_three_times(plain):
    cost = TrialCost(plain, views=2)
    below, middle, head = 2 * 500, 2 * 808, 2 * 18  # a multiplication and an addition for each weight
    assert cost.forward == below + middle + head
    assert cost.moving("head") == (below + middle, head, 1)
    assert cost.moving(1) == (below, middle + head, 2)
    assert cost.moving("all") == (0, cost.forward, 3)
    # 30 examples in two versions and 10 more once; then 3 epochs, 4 scorings.
    once = 0.5 * (below + middle) * (30 * 2 + 10)
    steps = 3 * head * 30 * 3 + head * 10 * 4
    assert cost.of("head", 30, 10, epochs=3) == once + steps
    assert cost.of("head", 30, 10, epochs=3, kept=True) == steps


def test_what_goes_on_around_is_counted_too(plain, monkeypatch):
    cost = TrialCost(plain, views=1, batch_size=10)
    before = cost.of(1, 25, 5, epochs=2)
    for name, price in (("PER_TRIAL", 7e6), ("PER_LAYER", 3e6), ("PER_EPOCH", 5e6), ("PER_BATCH", 1e6)):
        monkeypatch.setattr(trial_cost, name, price)
    assert cost.of(1, 25, 5, epochs=2) - before == 7e6 + 2 * 3e6 + 2 * (5e6 + 3 * 1e6)


def test_minutes():
    assert budget_of(2) == 2 * budget_of(1) > 0
