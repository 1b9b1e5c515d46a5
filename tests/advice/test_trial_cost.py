"""The count of a trial, by hand."""

import keras
import pytest
from keras import layers

from thaw.advice import cost as trial_cost
from thaw.advice.cost import OPERATIONS_PER_SOLVED_NUMBER, TrialCost, operations_in

NO_OVERHEADS = {"per_trial": 0, "per_layer": 0, "per_epoch": 0, "per_batch": 0}


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((4,)), layers.Dense(100), layers.Dense(8), layers.Dense(2)])


def test_trial_cost_counts_frozen_stages_once_and_trained_ones_three_times(model):
    cost = TrialCost(model, views=2, **NO_OVERHEADS)
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


def test_trial_cost_of_a_solved_head_is_one_pass_and_the_solver(model):
    one_view, several = (TrialCost(model, views=views, **NO_OVERHEADS) for views in (1, 3))
    solver = OPERATIONS_PER_SOLVED_NUMBER * 30 * (18 / 2)  # 18 weights of 2 classes
    assert one_view.of_solved_head(30, 10) == several.of_solved_head(30, 10)  # of the examples as they are
    assert one_view.of_solved_head(30, 10) == pytest.approx(one_view.of("head", 30, 10, epochs=1) + solver)
    few = one_view.of_solved_head(5, 0) - one_view.of("head", 5, 0, epochs=1)
    assert few == pytest.approx(OPERATIONS_PER_SOLVED_NUMBER * 5 * 5)


def test_trial_cost_counts_overheads(model):
    bare = TrialCost(model, views=1, batch_size=10, **NO_OVERHEADS).of(1, 25, 5, epochs=2)
    priced = TrialCost(model, views=1, batch_size=10, per_trial=7e6, per_layer=3e6, per_epoch=5e6, per_batch=1e6)
    assert priced.of(1, 25, 5, epochs=2) - bare == 7e6 + 2 * 3e6 + 2 * (5e6 + 3 * 1e6)
    usual = TrialCost(model, views=1)
    overheads = usual.per_trial, usual.per_layer, usual.per_epoch, usual.per_batch
    names = "OPERATIONS_PER_TRIAL", "OPERATIONS_PER_LAYER", "OPERATIONS_PER_EPOCH", "OPERATIONS_PER_BATCH"
    assert overheads == tuple(getattr(trial_cost, name) for name in names)
    assert min(overheads) > 0


def test_operations_in():
    assert operations_in(2) == 2 * operations_in(1) > 0
