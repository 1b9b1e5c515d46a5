"""A budget is never overdrawn, and the better candidates get more of it."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thaw.advice.halving import candidates_of_rungs, plan_halving, resources_of_rung, successive_halving


@dataclasses.dataclass(frozen=True)
class Toy:
    score: float
    price: float = 1.0
    full_length: bool = False
    kind: str = ""


@dataclasses.dataclass
class Made:
    toy: Toy
    epochs: int
    rung: int

    @property
    def rank(self):
        return self.toy.score


def halve(toys, budget, epochs=9, **more):
    spent = []

    def run(toy, passes, rung):
        spent.append(toy.price * passes)
        return Made(toy, passes, rung)

    cost = lambda t, e, b: t.price * e  # noqa: E731
    result = successive_halving(toys, run, cost, budget=budget, max_resources=epochs, **more)
    return result.trials, result.max_resources, sum(spent)


def plan_of(*arguments, **more):
    plan = plan_halving(*arguments, **more)
    return plan.candidates, plan.max_resources, plan.first_rung


def test_successive_halving_promotes_the_best_third():
    made, epochs, _ = halve([Toy(i) for i in range(9)], 1000)
    assert epochs == 9
    assert [m.toy.score for m in made if m.rung == 0] == list(range(9))
    assert [m.toy.score for m in made if m.rung == 1] == [8, 7, 6]
    assert [m.toy.score for m in made if m.rung == 2] == [8, 7]
    assert [m.epochs for m in made] == [1] * 9 + [3] * 3 + [9] * 2
    assert candidates_of_rungs(9) == [9, 3, 2]


def test_successive_halving_ranks_a_diverged_trial_last():
    toys = [Toy(-math.inf), Toy(3), Toy(2), Toy(1), Toy(0.5)]
    made, _, _ = halve(toys, 1000)
    assert [m.toy.score for m in made if m.rung == 1] == [3, 2]
    assert not any(m.toy is toys[0] for m in made if m.rung)


def test_successive_halving_promotes_two_of_each_kind():
    """Those that learn fast are not to crowd out the others before these have learned."""
    toys = [Toy(i, kind="fast") for i in range(5, 11)] + [Toy(i, kind="slow") for i in (1, 4, 2)]
    made, _, _ = halve(toys, 1000)
    assert [m.toy.score for m in made if m.rung == 1] == [m.toy.score for m in made if m.rung == 2] == [10, 9, 4, 2]
    assert candidates_of_rungs(9, 2) == [9, 4, 4]


def test_successive_halving_tries_full_length_candidates_once():
    toys = [Toy(i) for i in range(6)] + [Toy(-1, full_length=True), Toy(9, full_length=True)]
    result = successive_halving(toys, Made, lambda t, e, b: e, budget=100, max_resources=9)
    made, last = result.trials, result.finalists
    assert [(m.toy.score, m.epochs) for m in made if m.toy.full_length] == [(-1, 9), (9, 9)]
    assert [m.toy.score for m in made if m.rung == 1] == [5, 4]  # and takes no place of another
    assert [m.toy.score for m in last] == [5, 4, -1, 9]
    # Its cost is planned for: 6 + 2 * 3 + 2 * 9 + 18 = 48.
    cost = lambda t, e, b: e  # noqa: E731
    assert len(plan_of(toys, cost, 48, 9)[0]) == 8
    assert len(plan_of(toys, cost, 47, 9)[0]) < 8


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 20), st.booleans()), min_size=1, max_size=20),
    st.floats(0.5, 400),
    st.integers(1, 30),
)
def test_successive_halving_stays_within_the_budget(toys, budget, epochs):
    made, reached, spent = halve([Toy(*toy) for toy in toys], budget, epochs)
    assert spent <= budget + 1e-6
    assert reached <= epochs
    assert all(m.epochs <= reached for m in made)


def test_plan_halving_gives_up_candidates_and_then_resources():
    toys = [Toy(i) for i in range(9)]
    cost = lambda t, e, b: t.price * e  # noqa: E731
    assert len(plan_of(toys, cost, 1000, 9)[0]) == 9
    few, epochs, _ = plan_of(toys, cost, 28, 9)
    assert 2 <= len(few) < 9
    assert epochs == 9
    assert plan_of(toys, cost, 10, 9) == (toys[:2], 5, 2)  # four would have room for 3 epochs, less than half of 9
    few, epochs, _ = plan_of(toys, cost, 20, 9)
    assert (len(few), epochs) == (4, 6)  # 4 * 1 + 2 * 2 + 2 * 6: epochs are given up, and not the fourth candidate
    few, epochs, _ = plan_of(toys, cost, 2.5, 9)
    assert (len(few), epochs) == (2, 1)
    assert plan_of(toys, cost, 2.5, 9, min_resources=3) == ([toys[0]], 3, 2)  # too short a trial says nothing
    assert plan_of([*toys, Toy(0, full_length=True)], cost, 28, 9)[0][-1].full_length


def test_successive_halving_names_what_it_left_out():
    toys = [Toy(1), Toy(2), Toy(3), Toy(9, price=100)]
    cost = lambda t, e, b: t.price * e  # noqa: E731
    assert successive_halving(toys, Made, cost, budget=1000, max_resources=1).left_out == []
    assert successive_halving(toys, Made, cost, budget=20, max_resources=1).left_out == [toys[3]]
    # Where the search climbs, only what was proposed counts, and not what was tried in the end.
    propose = lambda ranked: [toys[3], toys[1]]  # noqa: E731
    result = successive_halving(toys, Made, cost, budget=20, max_resources=1, propose=propose)
    assert [m.toy for m in result.trials] == toys[:2]
    assert result.left_out == [toys[3]]


def test_successive_halving_pays_shared_costs_once():
    """The second candidate of a kind is cheaper, in the planning and in the run: 100 + 4 * 1 + 2 * 3 + 2 * 9."""

    def cost(toy, epochs, before):
        return epochs + (0 if any(b.score == toy.score for b in before) else 100)

    twins = [Toy(1), Toy(1, price=2), Toy(1, price=3), Toy(1, price=4)]
    assert plan_of(twins, cost, 128, 9) == (twins, 9, 0)
    made = successive_halving(twins, Made, cost, budget=128, max_resources=9).trials
    assert [m.rung for m in made] == [0, 0, 0, 0, 1, 1, 2, 2]


def test_successive_halving_climbs_from_the_best_so_far():
    """From 3 to 4, 5 and 6, each time one step; room is made for the others, and nobody names them."""
    toys, steps = [Toy(3), Toy(2), Toy(1), Toy(0)], []

    def propose(ranked):
        steps.append(ranked[0].toy.score)
        return [Toy(min(6.0, ranked[0].toy.score + 1))]

    made, _, _ = halve(toys, 1000, propose=propose)
    assert [m.toy.score for m in made if m.rung == 0] == [3, 4, 5, 6]
    assert steps[:4] == [3, 4, 5, 6]
    assert [m.toy.score for m in made if m.rung == 1] == [6, 5]
    assert [m.toy.score for m in made if m.rung == 2] == [6, 5]


def test_successive_halving_tries_the_first_proposal_that_is_new_and_fits():
    toys, named = [Toy(3), Toy(2)], [Toy(3), Toy(9, price=1000), Toy(1)]
    made, _, _ = halve(toys, 60, propose=lambda ranked: named)
    assert [m.toy.score for m in made if m.rung == made[0].rung] == [3, 1]


def test_successive_halving_stops_where_run_returns_none():
    calls = []

    def run(toy, epochs, rung):
        calls.append(toy)
        return Made(toy, epochs, rung) if len(calls) < 4 else None

    result = successive_halving([Toy(i) for i in range(9)], run, lambda t, e, b: e, budget=1000, max_resources=9)
    assert len(result.trials) == 3
    assert result.finalists == result.trials


def test_successive_halving_reserves_the_cost_of_later_rungs():
    """The best is as dear as nine others; what is tried beside it must not take its longer trials from it."""
    toys = [Toy(9, price=9), Toy(2), Toy(1), Toy(0)]
    added = [Toy(2), Toy(1.5, price=9), Toy(1.6, price=9)]
    made, _, _ = halve(toys, 10 + 30 + 90 + 8, propose=lambda ranked: added)
    assert [m.toy.score for m in made if m.rung == 0] == [9, 2]
    assert [(m.toy.score, m.epochs) for m in made if m.rung == 2] == [(9, 9), (2, 9)]
    assert any(m.toy in added[1:] for m in halve(toys, 400, propose=lambda ranked: added)[0])


def test_successive_halving_keeps_finalists_without_a_longer_trial():
    """The best is too dear for the last rung: its shorter trial counts."""

    def cost(toy, epochs, before):
        return 1000 if toy.score == 8 and epochs == 9 else epochs

    toys = [Toy(7), Toy(1), Toy(8)]
    last = successive_halving(toys, Made, cost, budget=700, max_resources=9).finalists
    assert [(m.toy.score, m.epochs) for m in last] == [(8, 3), (7, 9)]


@pytest.mark.parametrize("budget", [30, 40, 50, 80, 131, 132, 200])
def test_successive_halving_keeps_expensive_finalists(budget):
    """The dear one is found by climbing, and is the best: whatever is left, it is not forgotten."""
    cheap, dear = Toy(1), Toy(9, price=10)
    result = successive_halving(
        [cheap, Toy(0), Toy(0.5)],
        Made,
        lambda t, e, b: t.price * e,
        budget=budget,
        max_resources=9,
        propose=lambda ranked: [dear],
    )
    made, last = result.trials, result.finalists
    if any(m.toy is dear for m in made):
        assert any(m.toy is dear for m in last)
        assert [m.epochs for m in made if m.toy is dear][-1] == 9  # its longer trials were reserved


def test_successive_halving_begins_with_the_first_that_fits():
    made, _, _ = halve([Toy(9, price=100), Toy(1), Toy(2)], 40, propose=lambda ranked: [])
    assert {m.toy.score for m in made} == {1}


def test_successive_halving_skips_short_rungs_where_fixed_costs_dominate():
    """Three trials of 9 epochs: 3 * (20 + 9) = 87. By halving: 3 * 21 + 2 * 23 + 2 * 29 = 167."""
    toys = [Toy(1), Toy(3), Toy(2)]
    cost = lambda t, e, b: 20 + e  # noqa: E731
    assert plan_of(toys, cost, 100, 9) == (toys, 9, 2)
    result = successive_halving(toys, Made, cost, budget=100, max_resources=9)
    made, last = result.trials, result.finalists
    assert [(m.toy.score, m.epochs, m.rung) for m in made] == [(1, 9, 2), (3, 9, 2), (2, 9, 2)]
    assert len(last) == 3


def test_successive_halving_climbs_in_the_last_rung():
    toys, added = [Toy(1), Toy(3)], [Toy(4), Toy(5), Toy(6)]
    seen = []

    def propose(ranked):
        seen.append([made.toy.score for made in ranked])
        return added

    result = successive_halving(toys, Made, lambda t, e, b: 20 + e, budget=29 * 3 + 5, max_resources=9, propose=propose)
    made, last = result.trials, result.finalists
    assert [m.toy.score for m in made] == [m.toy.score for m in last] == [1, 4, 5]
    assert seen == [[1], [4, 1], [5, 4, 1]]


def test_successive_halving_respects_min_resources():
    assert [resources_of_rung(rung, 10, 5) for rung in range(3)] == [5, 5, 10]
    assert [resources_of_rung(rung, 3, 5) for rung in range(3)] == [3, 3, 3]
    made, _, _ = halve([Toy(i) for i in range(9)], 1000, min_resources=4)
    assert [(m.rung, m.epochs) for m in made] == [(1, 4)] * 9 + [(2, 9)] * 3  # the first two rungs would be the same


@pytest.mark.parametrize(("epochs", "rungs"), [(10, [2, 4, 10]), (9, [1, 3, 9]), (3, [1, 1, 3]), (1, [1, 1, 1])])
def test_resources_of_rung(epochs, rungs):
    assert [resources_of_rung(rung, epochs) for rung in range(3)] == rungs


def test_successive_halving_skips_equal_rungs():
    made, _, _ = halve([Toy(i) for i in range(4)], 1000, epochs=1)
    assert [m.rung for m in made] == [2, 2, 2, 2]
    made, _, _ = halve([Toy(i) for i in range(4)], 1000, epochs=3)
    assert [(m.rung, m.epochs) for m in made] == [(1, 1)] * 4 + [(2, 3)] * 2
