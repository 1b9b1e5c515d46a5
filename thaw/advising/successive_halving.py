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
            them goes on. Each has a ``kind``, of which at least two go on, because some kinds learn faster than
            others; and a flag ``whole``: such a one is tried once, for all epochs, because a short trial would say
            nothing about it.
        run: ``run(candidate, epochs, rung)`` makes a trial and returns something with a ``rank``, higher is better; or
            ``None``, to stop.
        cost: ``cost(candidate, epochs, before)``, in the unit of the budget; ``before`` are the candidates that were
            tried already, which may have paid for something that this one needs too.
        budget: what all trials may cost together.
        epochs: in the last rung; down to half of them where the budget would not allow four candidates, and fewer
            where it would not allow two, but no fewer than ``least``.
        least: epochs of the first rung, where a ninth would be fewer: some steps must have been made.
        follow: where it is given, only the first candidate that fits is tried as it is, and the others are what room is
            made for. ``follow(ranked)`` names what to try next, the most promising first, from the trials of this
            rung, the best first; the first one that is new and fits is tried, and then it is asked again. Enough is
            left for those that go on to the next rung.

    Returns:
        ``(trials, epochs, last)``: what ``run`` returned, in the order of the trials; the epochs of the last rung; and
        of each candidate that went on to the end, or would have if the budget or ``run`` had not ended, its longest
        trial.

    Example:
        >>> import dataclasses
        >>> from thaw.advising.successive_halving import successive_halving
        >>> Toy = dataclasses.make_dataclass("Toy", ["rank", ("whole", bool, False), ("kind", str, "")])
        >>> toys = [Toy(i) for i in (3, 9, 4, 1, 8, 2, 5)]
        >>> made, epochs, last = successive_halving(toys, lambda t, e, r: t, lambda t, e, b: e, budget=60, epochs=9)
        >>> [toy.rank for toy in made], epochs, [toy.rank for toy in last]
        ([3, 9, 4, 1, 8, 2, 5, 9, 8, 5, 9, 8], 9, [9, 8])
    """
    chosen, epochs, first = affordable(candidates, cost, budget, epochs, least)
    whole = [c for c in candidates if c.whole]
    chosen, kinds = [c for c in chosen if not c.whole], len({c.kind for c in candidates if not c.whole})
    trials, before, left, going, longest = [], [], budget, True, {}
    found = [[] for _ in range(RUNGS)]  # of each rung: trial and candidate

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
            found[rung].append((trial, candidate))
        return going

    def ranked(rung):
        """Of equal ranks the one that was tried first is the better: sorting is stable."""
        return sorted(found[rung], key=lambda one: one[0].rank, reverse=True)

    def to_come(rung, candidate):
        """What the later rungs will cost, if this one is tried and goes on."""
        going_on, later = [candidate, *(c for _, c in ranked(rung))], _rungs(rung, epochs, least)
        sizes = planned_trials(len(going_on), kinds, len(later))
        longer = [(c, rung_epochs(epochs, r, least)) for r, n in zip(later[1:], sizes[1:]) for c in going_on[:n]]
        return sum(cost(c, passes, before) for c, passes in longer)

    def climb(rung):
        new = [c for c in follow([trial for trial, _ in ranked(rung)]) if c not in before]
        return next(([c] for c in new if attempt(c, rung, to_come(rung, c))), [])

    missed, last = [], RUNGS - 1  # what went on, and did not fit
    for rung in _rungs(first, epochs, least):
        if follow is not None and rung == first:
            chosen = next(([c] for c in candidates if not c.whole and attempt(c, rung)), [])
        else:
            missed += [c for c in chosen if not attempt(c, rung)]
        if rung == first:
            for candidate in whole:
                attempt(candidate, last)
        if follow is not None and found[rung] and rung in (first, last):
            while new := climb(rung):
                chosen += new
        if not going or not found[rung]:
            break
        if rung < last:
            size = planned_trials(len(found[rung]), kinds)[1]
            chosen = _going_on([candidate for _, candidate in ranked(rung)], size)
    final = {id(c): c for c in (*chosen, *missed, *whole)}
    return trials, epochs, [longest[key] for key in final if key in longest]


def _rungs(first, epochs, least):
    """The rungs from the first on, without those that would be the same once more and say nothing new."""
    passes = [rung_epochs(epochs, rung, least) for rung in range(RUNGS)]
    return [rung for rung in range(first, RUNGS) if rung == first or passes[rung] > passes[rung - 1]]


def rung_epochs(epochs, rung, least=1):
    """Epochs in a rung, counted from 0, where the last has ``epochs``."""
    return min(epochs, max(least, math.ceil(epochs / ETA ** (RUNGS - 1 - rung))))


def planned_trials(count, kinds=1, rungs=RUNGS):
    """How many trials there are in each rung, of so many candidates of so many kinds."""
    sizes = [count]
    for _ in range(rungs - 1):
        sizes.append(min(sizes[-1], max(FEWEST * kinds, math.ceil(sizes[-1] / ETA))))
    return sizes


def _going_on(ranked, size):
    """The best, with the best two of each kind among them; in the same order."""
    kinds = {c.kind: [] for c in ranked}
    for candidate in ranked:
        kinds[candidate.kind].append(candidate)
    sure = [id(c) for these in kinds.values() for c in these[:FEWEST]]
    rest = [id(c) for c in ranked if id(c) not in sure][: size - len(sure)]
    return [c for c in ranked if id(c) in (*sure, *rest)]


def affordable(candidates, cost, budget, epochs, least=1):
    """As many of the candidates, and as many epochs of the last rung, as the budget is for; arguments as above.

    Returns:
        ``(candidates, epochs, first)``; ``first`` is the rung to begin with, the one that makes all of it cheapest. It
        is the last where a trial costs much whatever its length: then short ones save nothing.
    """
    short, whole = [c for c in candidates if not c.whole], [c for c in candidates if c.whole]
    kinds = len({c.kind for c in short})

    def from_rung(first, count, epochs):
        tried = short[:count]
        total = sum(cost(c, epochs, whole[:i]) for i, c in enumerate(whole))
        total += sum(cost(c, rung_epochs(epochs, first, least), tried[:i]) for i, c in enumerate(tried))
        rungs = _rungs(first, epochs, least)
        for rung, size in zip(rungs[1:], planned_trials(count, kinds, len(rungs))[1:]):
            total += size * sum(cost(c, rung_epochs(epochs, rung, least), tried) for c in tried) / max(1, count)
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
