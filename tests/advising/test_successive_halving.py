"""A budget is never overdrawn, and the better candidates get more of it."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thaw.advising.successive_halving import affordable, planned_trials, rung_epochs, successive_halving


@dataclasses.dataclass(frozen=True)
class Toy:
    score: float
    price: float = 1.0
    whole: bool = False
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

    made, reached, _ = successive_halving(toys, run, lambda t, e, b: t.price * e, budget=budget, epochs=epochs, **more)
    return made, reached, sum(spent)


def test_the_better_third_goes_on():
    made, epochs, _ = halve([Toy(i) for i in range(9)], 1000)
    assert epochs == 9
    assert [m.toy.score for m in made if m.rung == 0] == list(range(9))
    assert [m.toy.score for m in made if m.rung == 1] == [8, 7, 6]
    assert [m.toy.score for m in made if m.rung == 2] == [8, 7]
    assert [m.epochs for m in made] == [1] * 9 + [3] * 3 + [9] * 2
    assert planned_trials(9) == [9, 3, 2]


def test_a_diverged_trial_goes_last():
    toys = [Toy(-math.inf), Toy(3), Toy(2), Toy(1), Toy(0.5)]
    made, _, _ = halve(toys, 1000)
    assert [m.toy.score for m in made if m.rung == 1] == [3, 2]
    assert not any(m.toy is toys[0] for m in made if m.rung)


def test_two_of_each_kind_go_on():
    """Those that learn fast are not to crowd out the others before these have learned."""
    toys = [Toy(i, kind="fast") for i in range(5, 11)] + [Toy(i, kind="slow") for i in (1, 4, 2)]
    made, _, _ = halve(toys, 1000)
    assert [m.toy.score for m in made if m.rung == 1] == [m.toy.score for m in made if m.rung == 2] == [10, 9, 4, 2]
    assert planned_trials(9, 2) == [9, 4, 4]


def test_what_begins_slowly_is_tried_once_for_all_epochs():
    toys = [Toy(i) for i in range(6)] + [Toy(-1, whole=True), Toy(9, whole=True)]
    made, _, last = successive_halving(toys, lambda t, e, r: Made(t, e, r), lambda t, e, b: e, budget=100, epochs=9)
    assert [(m.toy.score, m.epochs) for m in made if m.toy.whole] == [(-1, 9), (9, 9)]
    assert [m.toy.score for m in made if m.rung == 1] == [5, 4]  # and takes no place of another
    assert [m.toy.score for m in last] == [5, 4, -1, 9]
    # Its cost is planned for: 6 + 2 * 3 + 2 * 9 + 18 = 48.
    cost = lambda t, e, b: e  # noqa: E731
    assert len(affordable(toys, cost, 48, 9)[0]) == 8
    assert len(affordable(toys, cost, 47, 9)[0]) < 8


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 20), st.booleans()), min_size=1, max_size=20),
    st.floats(0.5, 400),
    st.integers(1, 30),
)
def test_never_more_than_the_budget(toys, budget, epochs):
    made, reached, spent = halve([Toy(*toy) for toy in toys], budget, epochs)
    assert spent <= budget + 1e-6
    assert reached <= epochs
    assert all(m.epochs <= reached for m in made)


def test_with_little_there_are_fewer_candidates_and_then_fewer_epochs():
    toys = [Toy(i) for i in range(9)]
    cost = lambda t, e, b: t.price * e  # noqa: E731
    assert len(affordable(toys, cost, 1000, 9)[0]) == 9
    few, epochs, _ = affordable(toys, cost, 28, 9)
    assert 2 <= len(few) < 9
    assert epochs == 9
    assert affordable(toys, cost, 10, 9) == (toys[:2], 5, 2)  # four would have room for 3 epochs, less than half of 9
    few, epochs, _ = affordable(toys, cost, 20, 9)
    assert (len(few), epochs) == (4, 6)  # 4 * 1 + 2 * 2 + 2 * 6: epochs are given up, and not the fourth candidate
    few, epochs, _ = affordable(toys, cost, 2.5, 9)
    assert (len(few), epochs) == (2, 1)
    assert affordable(toys, cost, 2.5, 9, least=3) == ([toys[0]], 3, 2)  # too short a trial says nothing
    assert affordable([*toys, Toy(0, whole=True)], cost, 28, 9)[0][-1].whole


def test_what_was_paid_is_paid_once():
    """The second candidate of a kind is cheaper, in the planning and in the run: 100 + 4 * 1 + 2 * 3 + 2 * 9."""

    def cost(toy, epochs, before):
        return epochs + (0 if any(b.score == toy.score for b in before) else 100)

    twins = [Toy(1), Toy(1, price=2), Toy(1, price=3), Toy(1, price=4)]
    assert affordable(twins, cost, 128, 9) == (twins, 9, 0)
    made, _, _ = successive_halving(twins, lambda t, e, r: Made(t, e, r), cost, budget=128, epochs=9)
    assert [m.rung for m in made] == [0, 0, 0, 0, 1, 1, 2, 2]


def test_it_climbs_from_what_is_the_best_by_then():
    """From 3 to 4, 5 and 6, each time one step; room is made for the others, and nobody names them."""
    toys, steps = [Toy(3), Toy(2), Toy(1), Toy(0)], []

    def follow(ranked):
        steps.append(ranked[0].toy.score)
        return [Toy(min(6.0, ranked[0].toy.score + 1))]

    made, _, _ = halve(toys, 1000, follow=follow)
    assert [m.toy.score for m in made if m.rung == 0] == [3, 4, 5, 6]
    assert steps[:4] == [3, 4, 5, 6]
    assert [m.toy.score for m in made if m.rung == 1] == [6, 5]
    assert [m.toy.score for m in made if m.rung == 2] == [6, 5]


def test_the_first_that_is_new_and_fits():
    toys, named = [Toy(3), Toy(2)], [Toy(3), Toy(9, price=1000), Toy(1)]
    made, _, _ = halve(toys, 60, follow=lambda ranked: named)
    assert [m.toy.score for m in made if m.rung == made[0].rung] == [3, 1]


def test_it_can_be_stopped():
    calls = []

    def run(toy, epochs, rung):
        calls.append(toy)
        return Made(toy, epochs, rung) if len(calls) < 4 else None

    made, _, last = successive_halving([Toy(i) for i in range(9)], run, lambda t, e, b: e, budget=1000, epochs=9)
    assert len(made) == 3
    assert last == made


def test_the_climb_leaves_enough_for_those_that_go_on():
    """The best is as dear as nine others; what is tried beside it must not take its longer trials from it."""
    toys = [Toy(9, price=9), Toy(2), Toy(1), Toy(0)]
    added = [Toy(2), Toy(1.5, price=9), Toy(1.6, price=9)]
    made, _, _ = halve(toys, 10 + 30 + 90 + 8, follow=lambda ranked: added)
    assert [m.toy.score for m in made if m.rung == 0] == [9, 2]
    assert [(m.toy.score, m.epochs) for m in made if m.rung == 2] == [(9, 9), (2, 9)]
    assert any(m.toy in added[1:] for m in halve(toys, 400, follow=lambda ranked: added)[0])


def test_what_was_not_tried_for_longer_is_still_in_the_choice():
    """The best is too dear for the last rung: its shorter trial counts."""

    def cost(toy, epochs, before):
        return 1000 if toy.score == 8 and epochs == 9 else epochs

    toys = [Toy(7), Toy(1), Toy(8)]
    _, _, last = successive_halving(toys, lambda t, e, r: Made(t, e, r), cost, budget=700, epochs=9)
    assert [(m.toy.score, m.epochs) for m in last] == [(8, 3), (7, 9)]


@pytest.mark.parametrize("budget", [30, 40, 50, 80, 131, 132, 200])
def test_what_went_on_is_in_the_choice_even_if_it_is_too_dear_for_more(budget):
    """The dear one is found by climbing, and is the best: whatever is left, it is not forgotten."""
    cheap, dear = Toy(1), Toy(9, price=10)
    made, _, last = successive_halving(
        [cheap, Toy(0), Toy(0.5)],
        lambda t, e, r: Made(t, e, r),
        lambda t, e, b: t.price * e,
        budget=budget,
        epochs=9,
        follow=lambda ranked: [dear],
    )
    if any(m.toy is dear for m in made):
        assert any(m.toy is dear for m in last)
        assert [m.epochs for m in made if m.toy is dear][-1] == 9  # its longer trials were reserved


def test_a_cheaper_one_where_the_first_does_not_fit():
    made, _, _ = halve([Toy(9, price=100), Toy(1), Toy(2)], 40, follow=lambda ranked: [])
    assert {m.toy.score for m in made} == {1}


def test_where_every_trial_costs_much_of_its_own_short_ones_save_nothing():
    """Three trials of 9 epochs: 3 * (20 + 9) = 87. By halving: 3 * 21 + 2 * 23 + 2 * 29 = 167."""
    toys = [Toy(1), Toy(3), Toy(2)]
    cost = lambda t, e, b: 20 + e  # noqa: E731
    assert affordable(toys, cost, 100, 9) == (toys, 9, 2)
    made, _, last = successive_halving(toys, lambda t, e, r: Made(t, e, r), cost, budget=100, epochs=9)
    assert [(m.toy.score, m.epochs, m.rung) for m in made] == [(1, 9, 2), (3, 9, 2), (2, 9, 2)]
    assert len(last) == 3


def test_what_is_left_at_the_end_is_climbed_with():
    toys, added = [Toy(1), Toy(3)], [Toy(4), Toy(5), Toy(6)]
    seen = []

    def follow(ranked):
        seen.append([made.toy.score for made in ranked])
        return added

    made, _, last = successive_halving(
        toys, lambda t, e, r: Made(t, e, r), lambda t, e, b: 20 + e, budget=29 * 3 + 5, epochs=9, follow=follow
    )
    assert [m.toy.score for m in made] == [m.toy.score for m in last] == [1, 4, 5]
    assert seen == [[1], [4, 1], [5, 4, 1]]


def test_some_steps_must_have_been_made():
    assert [rung_epochs(10, rung, 5) for rung in range(3)] == [5, 5, 10]
    assert [rung_epochs(3, rung, 5) for rung in range(3)] == [3, 3, 3]
    made, _, _ = halve([Toy(i) for i in range(9)], 1000, least=4)
    assert [(m.rung, m.epochs) for m in made] == [(1, 4)] * 9 + [(2, 9)] * 3  # the first two rungs would be the same


@pytest.mark.parametrize(("epochs", "rungs"), [(10, [2, 4, 10]), (9, [1, 3, 9]), (3, [1, 1, 3]), (1, [1, 1, 1])])
def test_epochs_of_the_rungs(epochs, rungs):
    assert [rung_epochs(epochs, rung) for rung in range(3)] == rungs


def test_the_same_once_more_is_not_run():
    made, _, _ = halve([Toy(i) for i in range(4)], 1000, epochs=1)
    assert [m.rung for m in made] == [2, 2, 2, 2]
    made, _, _ = halve([Toy(i) for i in range(4)], 1000, epochs=3)
    assert [(m.rung, m.epochs) for m in made] == [(1, 1)] * 4 + [(2, 3)] * 2
