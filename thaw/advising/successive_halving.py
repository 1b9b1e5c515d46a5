"""Spend a budget on many candidates: all a little, the better ones more."""

from __future__ import annotations

import math

ETA = 3
RUNGS = 3
FEWEST = 2  # go on to the next rung
TRIED = 4  # candidates that are worth fewer epochs


def successive_halving(candidates, run, cost, *, budget, epochs, least=1, follow=None):
    """Try candidates for a short while, keep the better third, try these longer, and so on.

    Successive halving (Jamieson and Talwalkar 2016), in three rungs: a ninth of the epochs, a third, and all; or in
    fewer, where beginning with longer trials is cheaper, because each costs something of its own. In the first rung
    and in the last the search also climbs: after each trial ``follow`` names what to try next. What is tried follows
    from the counted costs alone; a trial that would not fit into what is left is not made.

    Args:
        candidates: what is to be tried, the most promising first, as many as will do with the budget if a third of
            them goes on; each is something with a ``whole`` flag: such a one is tried once, for all epochs, because a
            short trial would say nothing about it.
        run: ``run(candidate, epochs, rung)`` makes a trial and returns something with a ``rank``, higher is better; or
            ``None``, to stop.
        cost: ``cost(candidate, epochs, before)``, in the unit of the budget; ``before`` are the candidates that were
            tried already, which may have paid for something that this one needs too.
        budget: what all trials may cost together.
        epochs: in the last rung; down to half of them where the budget would not allow four candidates, and fewer
            where it would not allow two, but no fewer than ``least``.
        least: epochs of the first rung, where a ninth would be fewer: some steps must have been made.
        follow: where it is given, only the first candidate is tried as it is, and the others are what room is made for.
            ``follow(ranked)`` names what to try next, the most promising first, from what was tried in this rung, the
            best first; the first one that is new and fits is tried, and then it is asked again. Enough is left for
            those that go on to the next rung.

    Returns:
        ``(trials, epochs, last)``: what ``run`` returned, in the order of the trials; the epochs of the last rung; and
        of each candidate that came as far as the last rung that was begun, its longest trial, which is a shorter one
        where the budget ended, or ``run`` did.

    Example:
        >>> import dataclasses
        >>> from thaw.advising.successive_halving import successive_halving
        >>> Toy = dataclasses.make_dataclass("Toy", ["rank", ("whole", bool, False)])
        >>> toys = [Toy(i) for i in (3, 9, 4, 1, 8, 2, 5)]
        >>> made, epochs, last = successive_halving(toys, lambda t, e, r: t, lambda t, e, b: e, budget=60, epochs=9)
        >>> [toy.rank for toy in made], epochs, [toy.rank for toy in last]
        ([3, 9, 4, 1, 8, 2, 5, 9, 8, 5, 9, 8], 9, [9, 8])
    """
    chosen, epochs, first = affordable(candidates, cost, budget, epochs, least)
    whole = [c for c in candidates if c.whole]
    chosen = [c for c in chosen if not c.whole][: None if follow is None else 1]
    trials, before, left, going, longest = [], [], budget, True, {}
    found = [[] for _ in range(RUNGS)]  # of each rung: rank and candidate

    def attempt(candidate, rung, reserve=0.0):
        """Make the trial if it fits into what is left; was it made?"""
        nonlocal left, going
        passes = rung_epochs(epochs, rung, least)
        price = cost(candidate, passes, before)
        if not going or price > left - reserve:
            return False
        trial = run(candidate, passes, rung)
        going = trial is not None
        if going:
            left -= price
            before.append(candidate)
            trials.append(trial)
            longest[id(candidate)] = trial
            found[rung].append((trial.rank, candidate))
        return going

    def ranked(rung):
        """Of equal ranks the one that was tried first is the better: sorting is stable."""
        return [candidate for _, candidate in sorted(found[rung], key=lambda one: one[0], reverse=True)]

    def to_come(rung):
        """What the later rungs will cost, if one more is tried in this one."""
        best, sizes = ranked(rung), planned_trials(len(found[rung]) + 1)
        later = [r for r in range(rung + 1, RUNGS) if rung_epochs(epochs, r, least) > rung_epochs(epochs, r - 1, least)]
        return sum(cost(c, rung_epochs(epochs, r, least), before) for r in later for c in best[: sizes[r - rung]])

    def climb(rung):
        new = [c for c in follow(ranked(rung)) if c not in before]
        return next(([c] for c in new if attempt(c, rung, to_come(rung))), [])

    last = RUNGS - 1
    for rung in range(first, RUNGS):
        if rung > first and rung_epochs(epochs, rung, least) == rung_epochs(epochs, rung - 1, least):
            continue  # the same once more would say nothing new
        for candidate in chosen:
            attempt(candidate, rung)
        if rung == first:
            for candidate in whole:
                attempt(candidate, last)
        if follow is not None and rung in (first, last):
            while new := climb(rung):
                chosen += new
        if not going or not found[rung]:
            break
        if rung < last:
            chosen = ranked(rung)[: max(FEWEST, math.ceil(len(found[rung]) / ETA))]
    return trials, epochs, [longest[id(c)] for c in [*chosen, *whole] if id(c) in longest]


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
    short, whole = [c for c in candidates if not c.whole], [c for c in candidates if c.whole]

    def from_rung(first, count, epochs):
        tried = short[:count]
        total = sum(cost(c, epochs, whole[:i]) for i, c in enumerate(whole))
        total += sum(cost(c, rung_epochs(epochs, first, least), tried[:i]) for i, c in enumerate(tried))
        for rung, size in enumerate(planned_trials(count)[1 : RUNGS - first], first + 1):
            passes = rung_epochs(epochs, rung, least)
            if passes > rung_epochs(epochs, rung - 1, least):
                total += size * sum(cost(c, passes, tried) for c in tried) / max(1, count)
        return total

    def cheapest(count, epochs):
        """Cost and first rung; of equal ones the longer trials."""
        return min((from_rung(first, count, epochs), -first) for first in range(RUNGS))

    for wanted, shortest in ((TRIED, max(least, math.ceil(epochs / 2))), (FEWEST, min(least, epochs))):
        while epochs > shortest and cheapest(min(wanted, len(short)), epochs)[0] > budget:
            epochs -= 1
    count = len(short)
    while count > 1 and cheapest(count, epochs)[0] > budget:
        count -= 1
    return [*short[:count], *whole], epochs, -cheapest(count, epochs)[1]
