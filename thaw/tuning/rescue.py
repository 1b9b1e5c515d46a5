"""Give back part of what tuning made a model forget."""

import dataclasses
import math

from thaw.tuning.interpolate import interpolate
from thaw.tuning.scored import Scored, score_of

ALPHAS = tuple(i / 10 for i in range(11))


@dataclasses.dataclass(frozen=True)
class Tried:
    """One place between the weights before the tuning and after it.

    Args:
        alpha: 0 is before, 1 is after.
        new: score of the new task.
        old: score of the old task.
        forgotten: share of the old score before the tuning that is gone; below 0 where it has grown.
    """

    alpha: float
    new: Scored
    old: Scored
    forgotten: float


@dataclasses.dataclass(frozen=True)
class Rescued:
    """What :func:`rescue` tried, and what it chose.

    Args:
        rows: every place that was tried, in the order of alpha.
        alpha: the one whose weights are in the model now, or ``None``: the model is as it was.
        max_forgetting: the budget.
        reason: one sentence on the choice.
    """

    rows: tuple[Tried, ...]
    alpha: float | None
    max_forgetting: float
    reason: str

    def __str__(self):
        lines = ["alpha  new task                 old task                 forgotten"]
        for row in self.rows:
            chosen = "  <- chosen" if row.alpha == self.alpha else ""
            lines.append(f"{row.alpha:5.3g}  {row.new!s:23}  {row.old!s:23}  {100 * row.forgotten:6.1f} %{chosen}")
        return "\n".join([*lines, self.reason])


def rescue(model, before, new, old, *, max_forgetting=0.02, alphas=ALPHAS, path=interpolate):
    """Find the place between two sets of weights that is best at the new task and forgets little enough.

    The model comes with the weights after the tuning. At each alpha it gets those of :func:`thaw.interpolate`, and
    both tasks are measured: this costs evaluations and no training. Of the places inside the budget it keeps the one
    with the best score of the new task; of equal ones that which forgets less. Where none is inside, the model gets
    back the weights that it came with.

    The choice is made by the scores as they are; how far they can be trusted is what their intervals say. The score
    of the chosen place is the best of several, and so a little too good: measure it once more on other data.

    Args:
        model: a built ``keras.Model`` with the weights after the tuning; changed in place. After an error or an
            interruption it has these again.
        before: arrays in the order of ``model.weights``, from before the tuning. A head that was random then is
            better taken from after it: ``thaw.keep_stages(model, before, model.get_weights())``.
        new: how the new task is scored, with validation data: :class:`thaw.Examples` or ``(x, y)``; a pair of
            another model that shares the variables and such data; or a function of the model, higher is better.
        old: how the old task is scored, in the same ways.
        max_forgetting: the share of the old task's score before the tuning that may be lost.
        alphas: the places to try, numbers from 0 to 1.
        path: :func:`thaw.interpolate`, or that with more arguments: ``functools.partial(thaw.interpolate,
            importance=...)``, which gives back more for less, or ``data=...`` for BatchNorm's statistics.

    Returns:
        :class:`Rescued`; as a string it is a table.

    Raises:
        ValueError: a budget or an alpha outside its range, or an old score before the tuning that is not above 0.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.rescue import rescue
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[1.0]])])
        >>> weight = lambda m: float(m.weights[0][0, 0])
        >>> found = rescue(model, [np.array([[0.0]])], weight, lambda m: 1 - weight(m) ** 2, max_forgetting=0.3)
        >>> found.alpha, round(weight(model), 3)
        (0.5, 0.5)
    """
    alphas = sorted({float(alpha) for alpha in alphas})
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas={alphas}; expected one or more numbers from 0 to 1.")
    if not 0 <= max_forgetting <= 1:
        raise ValueError(f"max_forgetting={max_forgetting!r}; expected a share from 0 to 1, such as 0.02.")
    after = [v.numpy() for v in model.weights]
    best = weights = None
    rows = []
    try:
        path(model, before, after, 0.0)
        first = score_of(model, old)
        if not 0 < first.value < math.inf:
            raise ValueError(
                f"The old task's score before the tuning is {first.value}; expected a number above 0, of which a share "
                "can be lost. Give a score that is higher when the model is better, such as the accuracy."
            )
        for alpha in alphas:
            path(model, before, after, alpha)
            kept = first if alpha == 0 else score_of(model, old)
            row = Tried(alpha, score_of(model, new), kept, 1 - kept.value / first.value)
            rows.append(row)
            if _inside(row, max_forgetting) and (best is None or _rank(row) > _rank(best)):
                best, weights = row, [v.numpy() for v in model.weights]
    except BaseException:
        weights = None
        raise
    finally:
        for variable, value in zip(model.weights, after if weights is None else weights):
            variable.assign(value)
    return Rescued(tuple(rows), best and best.alpha, max_forgetting, _reason(rows, best, max_forgetting))


def _inside(row, max_forgetting):
    # A hair of rounding is no forgetting; a score that is not a number is never inside.
    return math.isfinite(row.new.value) and row.forgotten <= max_forgetting + 1e-12


def _rank(row):
    return row.new.value, -row.forgotten, -row.alpha


def _reason(rows, best, max_forgetting):
    budget = f"{100 * max_forgetting:.3g} %"
    if best is None:
        known = [row for row in rows if math.isfinite(row.new.value) and not math.isnan(row.forgotten)]
        if not known:
            return "Nothing was chosen: no place gave scores that are numbers. The weights are as they were."
        nearest = min(known, key=lambda row: row.forgotten)
        return (
            f"Nothing was chosen: no place forgets at most {budget}. The nearest is alpha = {nearest.alpha:.3g}, which "
            f"forgets {100 * nearest.forgotten:.3g} %. The weights are as they were."
        )
    inside = sum(_inside(row, max_forgetting) for row in rows)
    return (
        f"Chosen: alpha = {best.alpha:.3g}, the best score of the new task among {inside} of {len(rows)} places that "
        f"forget at most {budget}."
    )
