"""What to tune and whether, with the evidence: a value."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import Any

from thaw.plain import plain
from thaw.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What :func:`thaw.advise` found; ``str()`` is a table of the evidence, 80 columns wide.

    Attributes:
        plan: the :class:`thaw.Plan` to tune by.
        scratch: begin from random weights (:func:`thaw.tuning.reinitialise.reinitialise`) and tune by the plan.
        trials: every :class:`thaw.advising.trials.Trial`, in the order in which they were made.
        chosen: the one whose plan it is.
        probe: how far each stage of the frozen network gets, a :class:`thaw.measuring.probe.Probe`.
        untrained: the same for random weights; ``None`` where that was not measured.
        curve: frozen features with fewer examples, a :class:`thaw.measuring.learning_curve.LearningCurve`.
        ratios: how hard the loss pulls at each stage (:func:`thaw.measuring.gradient_ratio.gradient_ratio`), where the
            head was kept; else empty.
        reasons: sentences: what to do and why, and what is not known.
        work: what was spent of the budget, as a share of it.

    Example:
        >>> from thaw import advise
        >>> advice = advise(model, (train, validation))                     # doctest: +SKIP
        >>> print(advice)                                                   # doctest: +SKIP
        >>> history = tune(model, advice.plan, (train, validation))         # doctest: +SKIP
    """

    plan: Plan
    scratch: bool
    trials: tuple
    chosen: Any
    probe: Any
    untrained: Any
    curve: Any
    ratios: dict
    reasons: tuple[str, ...]
    work: float

    def __str__(self):
        yardstick = "the model as it is" if any(t.train == () for t in self.trials) else "frozen features"
        lines = [f"{'trial':<21} {'epochs':>6}  {'score':<23}  against {yardstick}"]
        lines += [_row(trial, trial is self.chosen) for trial in self.trials]
        lines += ["", "frozen features: " + str(self.probe)]
        if self.untrained is not None:
            row = self.untrained.best
            lines.append(f"random weights: at best {_between(row.score, row.low, row.high)}, behind {row.stage}")
        if self.ratios:
            shown = ", ".join(f"{stage} {ratio:.2g}" for stage, ratio in self.ratios.items())
            lines += textwrap.wrap(f"gradient for the size of the weights: {shown}", 80)
        lines += ["", str(self.curve), ""]
        for reason in self.reasons:
            lines += textwrap.wrap(reason, 80)
        return "\n".join([*lines, "", str(self.plan)])

    def to_dict(self):
        """All of it, for JSON; but for what each single example added."""
        return {
            "reasons": list(self.reasons),
            "scratch": self.scratch,
            "plan": plain(list(self.plan)),
            "trials": [plain(trial, "values") | {"chosen": trial is self.chosen} for trial in self.trials],
            "probe": plain(self.probe.rows, "errors"),
            "untrained": None if self.untrained is None else plain(self.untrained.rows, "errors"),
            "curve": plain(self.curve, "right"),
            "ratios": plain(self.ratios),
            "work": self.work,
        }


def _row(trial, chosen):
    score = "diverged" if math.isnan(trial.score) else _between(trial.score, trial.low, trial.high)
    against = "" if trial.against is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*trial.against)
    mark = "*" if chosen else " "
    return f"{trial.name[:20]:<20}{mark} {trial.epochs:>6}  {score:<23}  {against}".rstrip()


def _between(value, low, high):
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
