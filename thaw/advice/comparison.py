"""The result of a comparison: a table and a sentence."""

from __future__ import annotations

import dataclasses
import textwrap

import numpy as np

from thaw._files import to_jsonable
from thaw.metrics.intervals import Estimate, binomial_interval, bootstrap

WIDTH = 80  # of a printed line


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One way, over all seeds.

    Attributes:
        name: name of the way.
        score: :class:`~thaw.metrics.intervals.Estimate` of the mean over the seeds.
        difference: :class:`~thaw.metrics.intervals.Estimate` of the difference from the best way; ``None`` for the
            best itself.
        epochs: number of epochs of the last phase, for each seed.
        minutes: training time, for each seed.
        scores: mean score, for each seed.
    """

    name: str
    score: Estimate
    difference: Estimate | None
    epochs: tuple[int, ...]
    minutes: tuple[float, ...]
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The result of :func:`thaw.compare`; ``str()`` is a table and a sentence.

    Attributes:
        rows: one :class:`ComparisonRow` for each way, the best first.
        metric: name of the score.
        minutes: training time that each way had.
        examples: number of test examples.
        sentence: the conclusion.
        notes: further sentences.
    """

    rows: tuple[ComparisonRow, ...]
    metric: str
    minutes: float
    examples: int
    sentence: str
    notes: tuple[str, ...]

    def __str__(self):
        lines = [f"{'':<15}  {self.metric.replace('_', ' '):<20}  {'from the best':<23}  epochs  minutes"]
        for row in self.rows:
            difference = "the best" if row.difference is None else f"{row.difference:+z.3f}"
            lines.append(
                f"{row.name:<15}  {f'{row.score:.3f}':<20}  {difference:<23}  {np.mean(row.epochs):>6.0f}  "
                f"{np.mean(row.minutes):>7.2g}"
            )
        return "\n".join([*lines, *(textwrap.fill(text, WIDTH) for text in (self.sentence, *self.notes))])

    def to_dict(self):
        """Return everything for JSON."""
        return to_jsonable(self, "reason")


def compared(ways, runs, minutes, metric, mode, notes=()):
    """Compare the runs of several ways.

    Args:
        ways: objects with ``name``, ``subject`` and ``verb``, the cheapest first.
        runs: for each name a list of dicts, one for each seed, with ``values`` (``(n,)``, the score of each test
            example), ``epochs`` and ``seconds``.
        minutes: training time that each way had.
        metric: name of the score.
        mode: ``"max"`` or ``"min"``.
        notes: further sentences. Default ``()``.

    Returns:
        :class:`Comparison`.

    Example:
        >>> from types import SimpleNamespace
        >>> ways = [SimpleNamespace(name=name, subject=name, verb="is") for name in ("one", "other")]
        >>> correct = {"one": [1.0] * 90 + [0.0] * 10, "other": [0.0] * 50 + [1.0] * 50}
        >>> runs = {name: [{"values": np.array(v), "epochs": 3, "seconds": 60.0}] for name, v in correct.items()}
        >>> print(compared(ways, runs, 1.0, "accuracy", "max").sentence)  # doctest: +ELLIPSIS
        One is best: +40.0 points (2... to 5...) over other. It rests on one seed.
    """
    values = np.stack([[run["values"] for run in runs[way.name]] for way in ways])  # (ways, seeds, examples)
    means = values.mean(axis=(1, 2))
    best = int(np.argmax(means if mode == "max" else -means))

    def statistics(resampled):  # (resamples, seeds, examples, ways) -> the scores and the differences
        scores = resampled.mean(axis=(1, 2))
        return np.concatenate([scores, scores - scores[:, best : best + 1]], axis=1)

    estimates = bootstrap(statistics, np.moveaxis(values, 0, 2), axes=2)
    scores, differences = estimates[: len(ways)], estimates[len(ways) :]
    n = values.shape[2]
    rows = []
    for i, way in enumerate(ways):
        score = scores[i]
        if metric == "accuracy" and means[i] in (0, 1):  # where all are correct the bootstrap has no variance
            score = binomial_interval(means[i] * n, n, "exact")
        rows.append(
            ComparisonRow(
                name=way.name,
                score=score,
                difference=None if i == best else differences[i],
                epochs=tuple(run["epochs"] for run in runs[way.name]),
                minutes=tuple(run["seconds"] / 60 for run in runs[way.name]),
                scores=tuple(map(float, values[i].mean(axis=1))),
            )
        )
    sentence = _sentence(ways, rows, best, metric, mode)
    if values.shape[1] == 1:
        sentence += " It rests on one seed."
    rows = tuple(sorted(rows, key=lambda row: -row.score.value if mode == "max" else row.score.value))
    return Comparison(rows, metric, float(minutes), n, sentence, tuple(notes))


def _sentence(ways, rows, best, metric, mode):
    """Name the best way, its gain over the cheapest other one, and the ways that do not differ significantly."""
    others = [i for i in range(len(ways)) if i != best]
    equal = [i for i in others if rows[i].difference.low <= 0 <= rows[i].difference.high]
    sign = -1 if mode == "max" else 1
    # The gain is over the cheapest way, because that is what the best one would replace; of the cheapest way itself,
    # over the second best.
    reference = 0 if best else min(others, key=lambda i: sign * rows[i].score.value)
    scale, unit, digits = (100, " points", ".1f") if metric == "accuracy" else (1, "", ".3g")
    difference = rows[reference].difference
    gain, low, high = (scale * (0.0 - d) for d in (difference.value, difference.high, difference.low))
    gain = f"{gain:+z{digits}}{unit} ({low:z{digits}} to {high:z{digits}}) over {ways[reference].subject}"
    winner = f"{ways[best].subject[0].upper()}{ways[best].subject[1:]} {ways[best].verb}"
    names = _listed([ways[i].subject for i in equal])
    if reference not in equal:
        sentence = f"{winner} best: {gain}."
        return f"{sentence} The difference from {names} is not significant." if equal else sentence
    rank = "ahead, but" if difference.value else "as good as any, and"
    sentence = f"{winner} {rank} the difference from {names} is not significant: {gain}."
    return f"{sentence} The cheapest of them: {ways[0].subject}." if best and 0 in equal else sentence


def _listed(names):
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
