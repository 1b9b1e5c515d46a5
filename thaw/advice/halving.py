"""Successive halving of candidates under a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

FACTOR = 3  # of the candidates of a rung, one in three is promoted; a promoted one gets three times the resources
N_RUNGS = 3
MIN_PROMOTED = 2  # candidates of each kind that are promoted
MIN_CANDIDATES = 4  # for so many candidates, up to half of the resources are given up


class HalvingCandidate(Protocol):
    """One candidate of a search.

    Attributes:
        kind: candidates of one kind learn about equally fast; at least two of each kind are promoted.
        full_length: try it once, with all resources, because it learns slowly at first and a short trial would say
            nothing.
    """

    kind: str
    full_length: bool


class HalvingTrial(Protocol):
    """The result of trying a candidate; a higher ``rank`` is better."""

    rank: Any


@dataclasses.dataclass(frozen=True)
class HalvingPlan:
    """Rungs and candidates that a budget allows.

    Args:
        candidates: those that it is enough for.
        max_resources: resources, such as epochs, of a trial in the last rung.
        min_resources: resources of any trial at least.
        first_rung: number of the rung to begin with, from 0.
    """

    candidates: list
    max_resources: int
    min_resources: int
    first_rung: int

    def n_resources(self, rung):
        """Return the resources of a trial in a rung."""
        return resources_of_rung(rung, self.max_resources, self.min_resources)

    def rungs_from(self, first):
        """Return the numbers of the rungs from the first on, without those that would repeat the one before."""
        resources = [self.n_resources(rung) for rung in range(N_RUNGS)]
        return [rung for rung in range(first, N_RUNGS) if rung == first or resources[rung] > resources[rung - 1]]


@dataclasses.dataclass(frozen=True)
class HalvingResult:
    """The result of :func:`successive_halving`.

    Args:
        trials: what ``run`` returned, in order.
        max_resources: resources of the last rung.
        finalists: the longest trial of each candidate that was promoted to the end, or would have been if the budget or
            ``run`` had not ended.
        left_out: candidates that were never tried, because what was left of the budget was not enough.
    """

    trials: list
    max_resources: int
    finalists: list
    left_out: list


def resources_of_rung(rung, max_resources, min_resources=1):
    """Return the resources of a trial in a rung, counted from 0, where the last rung has ``max_resources``."""
    return min(max_resources, max(min_resources, math.ceil(max_resources / FACTOR ** (N_RUNGS - 1 - rung))))


def candidates_of_rungs(n_candidates, n_kinds=1, n_rungs=N_RUNGS):
    """Return the number of candidates in each rung."""
    sizes = [n_candidates]
    for _ in range(n_rungs - 1):
        sizes.append(min(sizes[-1], max(MIN_PROMOTED * n_kinds, math.ceil(sizes[-1] / FACTOR))))
    return sizes


def plan_halving(candidates, cost, budget, max_resources, min_resources=1):
    """Fit the number of candidates and the resources of a trial into a budget.

    Args:
        candidates: the most promising first.
        cost: see :func:`successive_halving`.
        budget: cost of all trials together.
        max_resources: resources of the last rung; down to half of them where the budget would not allow four
            candidates, and fewer where it would not allow two, but no fewer than ``min_resources``.
        min_resources: resources of a trial at least. Default 1.

    Returns:
        :class:`HalvingPlan`. Its first rung is the one that makes all of it cheapest: the last one where a trial costs
        much whatever its length, so that short trials save nothing.
    """
    halved = [c for c in candidates if not c.full_length]
    full_length = [c for c in candidates if c.full_length]
    n_kinds = len({c.kind for c in halved})

    def expected_cost(plan, n_candidates):
        tried = halved[:n_candidates]
        total = sum(cost(c, plan.max_resources, full_length[:i]) for i, c in enumerate(full_length))
        total += sum(cost(c, plan.n_resources(plan.first_rung), tried[:i]) for i, c in enumerate(tried))
        rungs = plan.rungs_from(plan.first_rung)
        for rung, size in zip(rungs[1:], candidates_of_rungs(n_candidates, n_kinds, len(rungs))[1:]):
            total += size * sum(cost(c, plan.n_resources(rung), tried) for c in tried) / max(1, n_candidates)
        return total

    def cheapest(n_candidates, max_resources):
        """Return the cost and the plan; of equally cheap ones that with the longer trials."""
        plans = [
            HalvingPlan([*halved[:n_candidates], *full_length], max_resources, min_resources, rung)
            for rung in reversed(range(N_RUNGS))
        ]
        return min(((expected_cost(plan, n_candidates), plan) for plan in plans), key=lambda pair: pair[0])

    wanted = (MIN_CANDIDATES, max(min_resources, math.ceil(max_resources / 2)))
    for n_candidates, shortest in (wanted, (MIN_PROMOTED, min(min_resources, max_resources))):
        n_candidates = min(n_candidates, len(halved))
        while max_resources > shortest and cheapest(n_candidates, max_resources)[0] > budget:
            max_resources -= 1
    n_candidates = len(halved)
    while n_candidates > 1 and cheapest(n_candidates, max_resources)[0] > budget:
        n_candidates -= 1
    return cheapest(n_candidates, max_resources)[1]


def successive_halving(candidates, run, cost, *, budget, max_resources, min_resources=1, propose=None):
    """Try candidates with few resources, promote the best third, try these with more, and so on.

    Successive halving (Jamieson and Talwalkar 2016) in three rungs: a ninth of the resources, a third, and all; or in
    fewer, where beginning with longer trials is cheaper, because each trial has a fixed cost. In the first rung and in
    the last the search also climbs: after each trial ``propose`` names what to try next. Only the computed costs decide
    what is tried; a trial that does not fit into what is left of the budget is not made.

    Args:
        candidates: :class:`HalvingCandidate` s, the most promising first.
        run: ``run(candidate, n_resources, rung)`` makes a trial and returns a :class:`HalvingTrial`, or ``None`` to
            stop.
        cost: ``cost(candidate, n_resources, tried)``, in the unit of the budget; ``tried`` are the candidates that were
            tried before, whose trials may have paid for something that this one needs too.
        budget: cost of all trials together.
        max_resources: resources of the last rung, such as epochs; fewer where the budget needs it, see
            :func:`plan_halving`.
        min_resources: resources of a trial at least. Default 1.
        propose: ``propose(ranked)`` names what to try next, the most promising first, from the trials of this rung, the
            best first; the first candidate that is new and fits is tried, until none is. Only the first of
            ``candidates`` that fits is then tried as it is, and the others are what room is made for. Enough is left
            for those that are promoted. Default ``None``: all candidates are tried, and no others.

    Returns:
        :class:`HalvingResult`.

    Example:
        >>> import dataclasses
        >>> from thaw.advice.halving import successive_halving
        >>> fields = ["rank", ("full_length", bool, False), ("kind", str, "")]
        >>> Toy = dataclasses.make_dataclass("Toy", fields)
        >>> toys = [Toy(i) for i in (3, 9, 4, 1, 8, 2, 5)]
        >>> run, cost = lambda toy, epochs, rung: toy, lambda toy, epochs, tried: epochs
        >>> result = successive_halving(toys, run, cost, budget=60, max_resources=9)
        >>> [toy.rank for toy in result.trials], [toy.rank for toy in result.finalists]
        ([3, 9, 4, 1, 8, 2, 5, 9, 8, 5, 9, 8], [9, 8])
    """
    plan = plan_halving(candidates, cost, budget, max_resources, min_resources)
    search = _Search(plan, run, cost, propose, budget, len({c.kind for c in candidates if not c.full_length}))
    full_length = [_Entry(c) for c in candidates if c.full_length]
    halved = plan.candidates if propose is None else candidates
    active, missed = [_Entry(c) for c in halved if not c.full_length], []  # missed: promoted, and did not fit
    last = N_RUNGS - 1
    for rung in plan.rungs_from(plan.first_rung):
        if propose is not None and rung == plan.first_rung:
            active = next(([entry] for entry in active if search.attempt(entry, rung)), [])
        else:
            missed += [entry for entry in active if not search.attempt(entry, rung)]
        if rung == plan.first_rung:
            for entry in full_length:
                search.attempt(entry, last)
        if propose is not None and search.rungs[rung] and rung in (plan.first_rung, last):
            while entry := search.climb(rung):
                active.append(entry)
        if search.stopped or not search.rungs[rung]:
            break
        if rung < last:
            active = search.promoted(rung)
    finalists = dict.fromkeys([*active, *missed, *full_length])
    wanted = search.too_expensive if propose is not None else candidates
    left_out = []
    for candidate in wanted:
        if candidate not in search.tried and candidate not in left_out:
            left_out.append(candidate)
    return HalvingResult(search.trials, plan.max_resources, [e.trials[-1] for e in finalists if e.trials], left_out)


@dataclasses.dataclass(eq=False)
class _Entry:
    """A candidate and its trials, the longest last."""

    candidate: HalvingCandidate
    trials: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class _Search:
    """The state of one search: what was tried, in which rung, and what is left of the budget."""

    plan: HalvingPlan
    run: Callable
    cost: Callable
    propose: Callable | None
    left: float
    n_kinds: int
    stopped: bool = False
    trials: list = dataclasses.field(default_factory=list)
    tried: list = dataclasses.field(default_factory=list)  # candidates, in the order of the trials
    too_expensive: list = dataclasses.field(default_factory=list)  # candidates, at some time
    rungs: list = dataclasses.field(default_factory=lambda: [[] for _ in range(N_RUNGS)])  # entries with a trial

    def attempt(self, entry, rung, reserve=0.0):
        """Make a trial if it fits into what is left; return whether it was made."""
        n_resources = self.plan.n_resources(rung)
        price = self.cost(entry.candidate, n_resources, self.tried)
        if self.stopped:
            return False
        if price > self.left - reserve:
            self.too_expensive.append(entry.candidate)
            return False
        trial = self.run(entry.candidate, n_resources, rung)
        if trial is None:
            self.stopped = True
            return False
        self.left -= price
        self.tried.append(entry.candidate)
        self.trials.append(trial)
        entry.trials.append(trial)
        self.rungs[rung].append(entry)
        return True

    def ranked(self, rung):
        """Return the entries of a rung, the best first; of equal ones the one that was tried first."""
        return sorted(self.rungs[rung], key=lambda entry: entry.trials[-1].rank, reverse=True)

    def promoted(self, rung):
        """Return the best entries of a rung, with at least two of each kind, the best first."""
        ranked = self.ranked(rung)
        size = candidates_of_rungs(len(ranked), self.n_kinds)[1]
        by_kind = {}
        for entry in ranked:
            by_kind.setdefault(entry.candidate.kind, []).append(entry)
        of_kinds = [entry for entries in by_kind.values() for entry in entries[:MIN_PROMOTED]]
        rest = [entry for entry in ranked if entry not in of_kinds][: size - len(of_kinds)]
        return [entry for entry in ranked if entry in of_kinds or entry in rest]

    def climb(self, rung):
        """Try the first proposal that is new and fits; return its entry, or ``None``."""
        proposals = self.propose([entry.trials[-1] for entry in self.ranked(rung)])
        entries = (_Entry(c) for c in proposals if c not in self.tried)
        return next((e for e in entries if self.attempt(e, rung, self._cost_of_later_rungs(rung, e.candidate))), None)

    def _cost_of_later_rungs(self, rung, candidate):
        """Return what the later rungs will cost if this candidate is tried and promoted."""
        promoted = [candidate, *(entry.candidate for entry in self.ranked(rung))]
        later = self.plan.rungs_from(rung)
        sizes = candidates_of_rungs(len(promoted), self.n_kinds, len(later))
        longer = [(c, self.plan.n_resources(r)) for r, n in zip(later[1:], sizes[1:]) for c in promoted[:n]]
        return sum(self.cost(c, n_resources, self.tried) for c, n_resources in longer)
