"""What a comparison found: a table with intervals, and one sentence."""

from __future__ import annotations

import dataclasses
import textwrap

import numpy as np

from thaw.share import share

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """One way, over all seeds.

    Attributes:
        name: of the way.
        subject: as a sentence begins with it, with "is" or "are".
        score, low, high: mean over the seeds, with its 95 % interval.
        difference, difference_low, difference_high: from the best way; ``None`` for the best itself.
        epochs: of the last phase that were made, for each seed.
        minutes: that each seed took.
        scores: of each seed.
    """

    name: str
    subject: str
    score: float
    low: float
    high: float
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    epochs: tuple[int, ...]
    minutes: tuple[float, ...]
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`thaw.compare` found; ``str()`` is a table and a sentence.

    Attributes:
        rows: one :class:`Compared` for each way, the best first.
        metric: what the score is.
        minutes: that each way had.
        examples: how many the score was measured on.
        sentence: what it comes to.
        notes: what else there is to say.
    """

    rows: tuple[Compared, ...]
    metric: str
    minutes: float
    examples: int
    sentence: str
    notes: tuple[str, ...]

    def __str__(self):
        lines = [f"{'':<15}  {self.metric.replace('_', ' '):<20}  {'from the best':<23}  epochs  minutes"]
        for row in self.rows:
            apart = "the best"
            if row.difference is not None:
                apart = f"{row.difference:+z.3f} [{row.difference_low:+z.3f}, {row.difference_high:+z.3f}]"
            score = f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
            lines.append(
                f"{row.name:<15}  {score:<20}  {apart:<23}  {np.mean(row.epochs):>6.0f}  {np.mean(row.minutes):>7.2g}"
            )
        return "\n".join([*lines, *(textwrap.fill(text, 80) for text in (self.sentence, *self.notes))])

    def to_dict(self):
        """Everything, for JSON."""
        return dataclasses.asdict(self)


def compared(ways, runs, minutes, score, notes=()):
    """Put the runs of several ways side by side.

    Args:
        ways: with ``name`` and ``subject``, the cheapest first.
        runs: for each name a list, one dict for each seed, with ``values`` (the score of each test example),
            ``epochs`` and ``seconds``.
        minutes: that each way had.
        score: ``(name, higher is better)``.
        notes: what else there is to say.

    Returns:
        :class:`Comparison`.

    Example:
        >>> from types import SimpleNamespace
        >>> ways = [SimpleNamespace(name=n, subject=f"{n.capitalize()} is") for n in ("one", "other")]
        >>> right = {"one": [1.0] * 90 + [0.0] * 10, "other": [0.0] * 50 + [1.0] * 50}
        >>> runs = {n: [{"values": np.array(v), "epochs": 3, "seconds": 60.0}] for n, v in right.items()}
        >>> print(compared(ways, runs, 1.0, ("accuracy", True)).sentence)
        One is best: +40.0 points (27.0 to 52.0) over other. It rests on one seed.
    """
    metric, higher = score
    values = np.stack([[run["values"] for run in runs[way.name]] for way in ways])  # (ways, seeds, examples)
    means, drawn = values.mean(axis=(1, 2)), _resampled(values)
    best = int(np.argmax(means if higher else -means))
    rows = []
    for i, way in enumerate(ways):
        low, high = np.quantile(drawn[:, i], (0.025, 0.975))
        if metric == "accuracy" and means[i] in (0, 1):  # a bootstrap of nothing but right answers sees no doubt
            _, low, high = share(means[i] * values.shape[2], values.shape[2], "exact")
        apart = (None,) * 3
        if i != best:
            apart = (means[i] - means[best], *np.quantile(drawn[:, i] - drawn[:, best], (0.025, 0.975)))
            apart = tuple(map(float, apart))
        done = runs[way.name]
        rows.append(
            Compared(
                way.name,
                way.subject,
                float(means[i]),
                float(low),
                float(high),
                *apart,
                tuple(run["epochs"] for run in done),
                tuple(run["seconds"] / 60 for run in done),
                tuple(map(float, values[i].mean(axis=1))),
            )
        )
    sentence = _sentence(rows, best, metric == "accuracy", higher)
    if values.shape[1] == 1:
        sentence += " It rests on one seed."
    rows = tuple(sorted(rows, key=lambda row: -row.score if higher else row.score))
    return Comparison(rows, metric, float(minutes), values.shape[2], sentence, tuple(notes))


def _resampled(values):
    """Means of the ways over resampled seeds and examples, the same in all ways, ``(RESAMPLES, ways)``."""
    _, seeds, examples = values.shape
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES // 100):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), 100) / seeds
        of_examples = rng.multinomial(examples, np.full(examples, 1 / examples), 100) / examples
        drawn.append(np.einsum("rs,wsr->rw", of_seeds, values @ of_examples.T))
    return np.concatenate(drawn)


def _sentence(rows, best, points, higher):
    """Which is best, by how much over the cheapest other one, and what cannot be told apart from it."""
    winner, others = rows[best], [row for i, row in enumerate(rows) if i != best]
    same = [row for row in others if row.difference_low <= 0 <= row.difference_high]
    # Over the cheapest, which is what it would be saved by; the cheapest itself over the next best.
    order = sorted(others, key=lambda row: -row.score if higher else row.score)
    against = rows[0] if best else order[0]
    scale, unit = (100, " points") if points else (1, "")
    digits = ".1f" if points else ".3g"
    by, low, high = (scale * (0.0 - d) for d in (against.difference, against.difference_high, against.difference_low))
    gain = f"{by:+z{digits}}{unit} ({low:z{digits}} to {high:z{digits}}) over {_small(against)}"
    *first, last = [*map(_small, same)] or [""]
    names = f"{', '.join(first)} and {last}" if first else last
    if against not in same:
        told = f"{winner.subject} best: {gain}."
        return told + (f" It cannot be told apart from {names}." if same else "")
    ahead = "ahead, but" if against.difference else "as good as any, and"
    told = f"{winner.subject} {ahead} cannot be told apart from {names}: {gain}."
    return told + (f" The cheapest of them: {_small(rows[0])}." if best and rows[0] in same else "")


def _small(row):
    return row.subject[0].lower() + row.subject[1:].rsplit(" ", 1)[0]
