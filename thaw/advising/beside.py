"""Where to look next, from the best that was found so far."""

import math

from thaw.advising.trials import Candidate


def depths_of(below):
    """How many stages may move besides the head, from few to all.

    Args:
        below: how many stages there are below the head.

    Returns:
        A list of numbers with ``"all"`` at the end; where there are many stages, powers of two.

    Example:
        >>> from thaw.advising.beside import depths_of
        >>> depths_of(4), depths_of(9)
        ([1, 2, 3, 'all'], [1, 2, 4, 8, 'all'])
    """
    return [*(n for n in range(1, below) if below <= 5 or n & (n - 1) == 0), "all"]


def beside(ranked, depths, rates):
    """One step from the best that moves the backbone: to a rate that is new to all, to another depth, to a rate.

    Rates come first: what is far from the right one says nothing about depths, and the right one is nearly the same
    for all of them.

    Args:
        ranked: the :class:`thaw.advising.trials.Trial` s that were made, the best first.
        depths: how many stages may move, in order.
        rates: learning rates, in order.

    Yields:
        Candidates, the most promising first. Some may have been tried. Where even the best diverged, the lower rate.

    Example:
        >>> import dataclasses
        >>> from thaw.advising.beside import beside
        >>> Toy = dataclasses.make_dataclass("Toy", ["train", "learning_rate", "score"])
        >>> ranked = [Toy(2, 0.01, 0.9), Toy(2, 0.001, 0.8)]
        >>> [candidate.name for candidate in beside(ranked, [1, 2, "all"], [0.001, 0.01, 0.1])]
        ['head + 2 at 0.1', 'all at 0.01', 'head + 1 at 0.01', 'head + 2 at 0.1', 'head + 2 at 0.001']
    """
    moving = [trial for trial in ranked if trial.train not in ("head", "scratch")]
    if not moving:
        return
    best, known = moving[0], {trial.learning_rate for trial in moving}
    beside_rate = _neighbours(rates, best.learning_rate)
    if math.isnan(best.score):
        yield from (Candidate(best.train, rate) for rate in beside_rate if rate < min(known))
        return
    yield from (Candidate(best.train, rate) for rate in beside_rate if rate not in known)
    yield from (Candidate(depth, best.learning_rate) for depth in _neighbours(depths, best.train))
    yield from (Candidate(best.train, rate) for rate in beside_rate)


def _neighbours(values, value):
    """The next higher and the next lower one, where there are such."""
    place = values.index(value)
    return [values[i] for i in (place + 1, place - 1) if 0 <= i < len(values)]
