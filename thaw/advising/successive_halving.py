"""Spend a budget on many candidates: all a little, the better ones more."""

from __future__ import annotations

import math

ETA = 3
RUNGS = 3
FEWEST = 2  # go on to the next rung
TRIED = 4  # candidates that are worth fewer epochs


def successive_halving(candidates, run, cost, *, budget, epochs, least=1, extra=None):
    """Try candidates for a short while, keep the better third, try these longer, and so on.

    Successive halving (Jamieson and Talwalkar 2016), in three rungs: a ninth of the epochs, a third, and all; or in
    fewer, where beginning with longer trials is cheaper, because each costs something of its own. What is tried
    follows from the counted costs alone. The candidates are taken in the order given, as many as will do with the
    budget if a third of them goes on; a trial that would not fit into what is left is not made, and an extra one only
    where enough is left for those that go on, or at the end.

    Args:
        candidates: what is to be tried, the most promising first; each is something with a ``protected`` flag, which
            goes on to the last rung whatever its rank is.
        run: ``run(candidate, epochs, rung)`` makes a trial and returns something with a ``rank``, higher is better; or
            ``None``, to stop.
        cost: ``cost(candidate, epochs, before)``, in the unit of the budget; ``before`` are the candidates that were
            tried already, which may have paid for something that this one needs too.
        budget: what all trials may cost together.
        epochs: in the last rung; down to half of them where the budget would not allow four candidates, and fewer
            where it would not allow two, but no fewer than ``least``.
        least: epochs of the first rung, where a ninth would be fewer: some steps must have been made.
        extra: ``extra(before, following)`` gives more candidates for the next rung, from all that were tried and those
            that go on, the best first.

    Returns:
        ``(trials, epochs, last)``: what ``run`` returned, in the order of the trials; the epochs of the last rung; and
        of each candidate that came as far as the last rung that was begun, its longest trial, which is a shorter one
        where the budget ended, or ``run`` did.

    Example:
        >>> import dataclasses
        >>> from thaw.advising.successive_halving import successive_halving
        >>> Toy = dataclasses.make_dataclass("Toy", ["rank", ("protected", bool, False)])
        >>> toys = [Toy(i) for i in (3, 9, 4, 1, 8, 2, 5)]
        >>> made, epochs, last = successive_halving(toys, lambda t, e, r: t, lambda t, e, b: e, budget=60, epochs=9)
        >>> [toy.rank for toy in made], epochs, [toy.rank for toy in last]
        ([3, 9, 4, 1, 8, 2, 5, 9, 8, 5, 9, 8], 9, [9, 8])
    """
    chosen, epochs, first = affordable(candidates, cost, budget, epochs, least)
    trials, before, left, extras, longest = [], [], budget, [], {}

    def attempt(these, rung, reserve=0.0):
        """Make the trials that fit into what is left; false where there are to be no more."""
        nonlocal left
        for candidate in these:
            passes = rung_epochs(epochs, rung, least)
            price = cost(candidate, passes, before)
            if price > left - reserve:
                continue  # a cheaper one may still fit
            trial = run(candidate, passes, rung)
            if trial is None:
                return False
            left -= price
            before.append(candidate)
            trials.append(trial)
            longest[id(candidate)] = trial
            scored.append((trial.rank, candidate))
        return True

    def more():
        """Of equal ranks the one that was named first is the better: sorting is stable."""
        scored.sort(key=lambda found: -math.inf if math.isnan(found[0]) else found[0], reverse=True)
        return [] if extra is None else [c for c in extra(before, tuple(c for _, c in scored)) if c not in before]

    for rung in range(first, RUNGS):
        scored = []
        if rung > first and rung_epochs(epochs, rung, least) == rung_epochs(epochs, rung - 1, least):
            continue  # the same once more would say nothing new
        going_on = attempt([c for c in chosen if c not in extras], rung)
        if going_on and rung < RUNGS - 1:
            reserve = sum(sorted((cost(c, epochs, before) for _, c in scored), reverse=True)[:FEWEST])
            going_on = attempt(extras, rung, reserve)
        elif going_on:
            going_on = attempt(extras, rung)
        if not going_on or not scored:
            break
        extras = more()
        if rung == RUNGS - 1:
            chosen = [*chosen, *extras]
            attempt(extras, rung)  # with what is left
            break
        keep = max(FEWEST, math.ceil(len(scored) / ETA))
        chosen = [*(c for _, c in scored[:keep]), *extras, *(c for _, c in scored[keep:] if c.protected)]
    return trials, epochs, [longest[id(candidate)] for candidate in chosen if id(candidate) in longest]


def rung_epochs(epochs, rung, least=1):
    """Epochs in a rung, counted from 0, where the last has ``epochs``."""
    return min(epochs, max(least, math.ceil(epochs / ETA ** (RUNGS - 1 - rung))))


def planned_trials(count):
    """How many trials so many candidates come to, and how many there are in each rung."""
    sizes = [count]
    for _ in range(RUNGS - 1):
        sizes.append(min(sizes[-1], max(FEWEST, math.ceil(sizes[-1] / ETA))))
    return sizes


def affordable(candidates, cost, budget, epochs, least=1):
    """As many of the candidates, and as many epochs of the last rung, as the budget is for; arguments as above.

    Returns:
        ``(candidates, epochs, first)``; ``first`` is the rung to begin with, the one that makes all of it cheapest. It
        is the last where a trial costs much whatever its length: then short ones save nothing.
    """

    def from_rung(first, count, epochs):
        tried = candidates[:count]
        total = sum(cost(c, rung_epochs(epochs, first, least), tried[:i]) for i, c in enumerate(tried))
        for rung, size in enumerate(planned_trials(count)[1 : RUNGS - first], first + 1):
            passes = rung_epochs(epochs, rung, least)
            if passes > rung_epochs(epochs, rung - 1, least):
                total += size * sum(cost(c, passes, tried) for c in tried) / count
        return total

    def cheapest(count, epochs):
        """Cost and first rung; of equal ones the longer trials."""
        return min((from_rung(first, count, epochs), -first) for first in range(RUNGS))

    for wanted, shortest in ((TRIED, max(least, math.ceil(epochs / 2))), (FEWEST, min(least, epochs))):
        while epochs > shortest and cheapest(min(wanted, len(candidates)), epochs)[0] > budget:
            epochs -= 1
    count = len(candidates)
    while count > 1 and cheapest(count, epochs)[0] > budget:
        count -= 1
    protected = [c for c in candidates[count:] if c.protected]
    return [*candidates[:count], *protected], epochs, -cheapest(count, epochs)[1]
