"""Hold a forgetting budget by interpolation with the source weights (WiSE-FT)."""

import dataclasses
import functools
import math

import numpy as np

from thaw.features.cached_predictor import CachedPredictor
from thaw.metrics.intervals import Estimate
from thaw.models.stages import HEAD, stages_of
from thaw.models.state import preserve_flags
from thaw.retention.batchnorm import changed_batchnorms
from thaw.retention.fisher_information import fisher
from thaw.retention.merging import accuracy_of, combine_stages, interpolate_weights, score_of
from thaw.training.freezing import batchnorm_layers, freeze

ALPHAS = tuple(i / 10 for i in range(11))
IMPORTANCE_EXAMPLES = 100  # of each task, to estimate the importance of the weights
STATISTICS_EXAMPLES = 256  # of each task, to estimate BatchNorm statistics


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """Scores of one interpolation between the weights before and after fine-tuning.

    Args:
        alpha: 0 is before, 1 is after.
        target: :class:`~thaw.metrics.intervals.Estimate` of the target task's score.
        source: the same of the source task.
        forgotten: fraction of the source score before the fine-tuning that is lost; negative where it has grown.
    """

    alpha: float
    target: Estimate
    source: Estimate
    forgotten: float

    def to_dict(self):
        """Return a dict that goes into JSON."""
        estimates = {"target": self.target.to_dict(), "source": self.source.to_dict()}
        return {"alpha": self.alpha} | estimates | {"forgotten": self.forgotten}


@dataclasses.dataclass(frozen=True)
class InterpolationSearch:
    """Result of :func:`wise_ft_search`; as a string it is a table.

    Args:
        rows: a tuple of :class:`Interpolation`, by alpha.
        alpha: the chosen one, whose weights are in the model now; ``None`` where the weights were restored.
        max_forgetting: the budget.
        reason: one sentence on the choice.
    """

    rows: tuple[Interpolation, ...]
    alpha: float | None
    max_forgetting: float
    reason: str

    def __str__(self):
        lines = ["alpha  target task              source task              forgotten"]
        for row in self.rows:
            chosen = "  <- chosen" if row.alpha == self.alpha else ""
            scores = f"{row.target!s:23}  {row.source!s:23}"
            lines.append(f"{row.alpha:5.3g}  {scores}  {100 * row.forgotten:6.1f} %{chosen}")
        return "\n".join([*lines, self.reason])


def wise_ft_search(
    model, before, target_score, source_score, *, max_forgetting=0.02, alphas=ALPHAS, interpolate=interpolate_weights
):
    """Find the interpolation with the best target score that forgets no more of the source task than a budget.

    The model comes with the weights after fine-tuning. At each alpha it gets those of
    :func:`thaw.retention.interpolate_weights`, and both tasks are scored (WiSE-FT, Wortsman et al. 2022): this costs
    evaluations and no training. Among those inside the budget the best target score is chosen; of equal ones, that
    which forgets less. Where none is inside, the weights are restored.

    The choice goes by the scores alone; the intervals say how far they can be trusted. The score of the chosen one is
    the best of several, and so a little too good: measure it once more on other data.

    Args:
        model: a built ``keras.Model`` with the weights after fine-tuning; changed in place. After an error or an
            interruption they are restored.
        before: arrays in the order of ``model.weights``, from before the fine-tuning. A head that was random then is
            better taken from after it: ``thaw.retention.combine_stages(model, before, model.get_weights())``.
        target_score: how the target task is scored, on validation data: :class:`thaw.Dataset` or ``(x, y)``; a pair of
            another model that shares the variables and such data; or a function of the model, higher is better.
        source_score: how the source task is scored, in the same ways.
        max_forgetting: largest fraction of the source score before the fine-tuning that may be lost. Default 0.02.
        alphas: the interpolations to try, floats from 0 to 1. Default 0, 0.1, ..., 1.
        interpolate: :func:`thaw.retention.interpolate_weights`, or that with more arguments, such as
            ``functools.partial(thaw.retention.interpolate_weights, importance=...)``, which loses less of the target
            task for as much of the source task, or ``x=...`` for the BatchNorm statistics.

    Returns:
        :class:`InterpolationSearch`.

    Raises:
        ValueError: a budget or an alpha outside its range, or a source score before the fine-tuning that is not above
            0.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import wise_ft_search
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[1.0]])])
        >>> weight = lambda m: float(m.weights[0][0, 0])
        >>> before = [np.array([[0.0]])]
        >>> search = wise_ft_search(model, before, weight, lambda m: 1 - weight(m) ** 2, max_forgetting=0.3)
        >>> search.alpha, round(weight(model), 3)
        (0.5, 0.5)
    """
    alphas = sorted({float(alpha) for alpha in alphas})
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas={alphas}; expected one or more numbers from 0 to 1.")
    if not 0 <= max_forgetting <= 1:
        raise ValueError(f"max_forgetting={max_forgetting!r}; expected a fraction from 0 to 1, such as 0.02.")
    after = [v.numpy() for v in model.weights]
    best = weights = None
    rows = []
    try:
        interpolate(model, before, after, 0.0)
        first = score_of(model, source_score)
        if not 0 < first.value < math.inf:
            raise ValueError(
                f"The source task's score before the fine-tuning is {first.value}; expected a number above 0, of which "
                "a fraction can be lost. Give a score that is higher when the model is better, such as the accuracy."
            )
        for alpha in alphas:
            interpolate(model, before, after, alpha)
            source = first if alpha == 0 else score_of(model, source_score)
            row = Interpolation(alpha, score_of(model, target_score), source, 1 - source.value / first.value)
            rows.append(row)
            if _is_candidate(row, max_forgetting) and (best is None or _rank(row) > _rank(best)):
                best, weights = row, [v.numpy() for v in model.weights]
    except BaseException:
        weights = None
        raise
    finally:
        for variable, value in zip(model.weights, after if weights is None else weights):
            variable.assign(value)
    return InterpolationSearch(tuple(rows), best and best.alpha, max_forgetting, _reason(rows, best, max_forgetting))


def is_inside(forgotten, max_forgetting):
    """Say whether a forgotten fraction is inside a budget; rounding does not count, and NaN is never inside."""
    return math.isfinite(forgotten) and forgotten <= max_forgetting + 1e-9


def _is_candidate(row, max_forgetting):
    return math.isfinite(row.target.value) and is_inside(row.forgotten, max_forgetting)


def _rank(row):
    return row.target.value, -row.forgotten, -row.alpha


def _reason(rows, best, max_forgetting):
    budget = f"{100 * max_forgetting:.3g} %"
    if best is None:
        known = [row for row in rows if math.isfinite(row.target.value) and not math.isnan(row.forgotten)]
        if not known:
            return "None was chosen: no interpolation has scores that are numbers. The weights were restored."
        nearest = min(known, key=lambda row: row.forgotten)
        return (
            f"None was chosen: no interpolation forgets at most {budget}. The nearest is alpha = {nearest.alpha:.3g}, "
            f"which forgets {100 * nearest.forgotten:.3g} %. The weights were restored."
        )
    inside = sum(_is_candidate(row, max_forgetting) for row in rows)
    return (
        f"Chosen: alpha = {best.alpha:.3g}, the best target score among {inside} of {len(rows)} interpolations that "
        f"forget at most {budget}."
    )


# The budget of a whole run.


@dataclasses.dataclass(frozen=True)
class PathAlphas:
    """The interpolations that :func:`enforce_budget` tries on each path between the source and the tuned backbone.

    Args:
        line: on the straight line. The first steps away from the source weights cost the source task most.
        curve: on the curve by the importance of the weights, between the same ends; empty for no curve.
        estimated: on the line with BatchNorm statistics estimated too, which takes longer; empty for none.
    """

    line: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, *(i / 10 for i in range(2, 11)))
    curve: tuple[float, ...] = (0.05, *(i / 10 for i in range(1, 10)))
    estimated: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)


PATH_ALPHAS = PathAlphas()


@dataclasses.dataclass(frozen=True)
class _Path:
    """One way between the weights before and after: on the line or the curve, with one kind of BatchNorm statistics."""

    name: str
    statistics: str  # "frozen" or "estimated"
    interpolate: object
    alphas: tuple[float, ...]


def enforce_budget(
    model,
    before,
    source,
    splits,
    *,
    examples,
    predictor,
    measure,
    best_epoch=None,
    alphas=PATH_ALPHAS,
    batch_size=32,
    seed=0,
):
    """Set the weights of a tuned model to the best ones that forget no more than a budget, or to the nearest.

    If the best epoch of all is inside the budget, nothing is changed. If not, the choice is between the best of the
    epochs that were inside (that of a head alone always is) and the interpolations between the backbone before and
    after, with the tuned head (:func:`thaw.retention.wise_ft_search`), on the line and on the curve by the importance
    of each weight to both tasks (:func:`thaw.retention.interpolate_weights`). The training itself is not constrained:
    an epoch outside may lead to the best interpolation of all.

    The source backbone is inside any budget. What is no better at the target task than the majority class does not
    count: the budget could then not be held, and of what has learned, that which forgets least is chosen, or the best
    epoch where that is inside.

    Where the run has changed the BatchNorm statistics, they are estimated on images of both tasks, and the line alone
    is tried. Where they were frozen, both ends and all between use the same ones; estimated ones may restore much more
    of the source task, or less, when the two tasks look different. With images of the source task both are tried.

    Args:
        model: the tuned ``keras.Model``, with the weights of its best epoch; changed in place. Its ``trainable`` flags
            are restored; it is left uncompiled where it was changed.
        before: arrays in the order of ``model.weights``, from before the fine-tuning.
        source: a :class:`thaw.retention.SourceTask` with a ``max_forgetting``.
        splits: :class:`thaw.data.splits.Splits` of the target task.
        examples: the :class:`thaw.Dataset` on which forgetting is measured.
        predictor: the :class:`~thaw.features.cached_predictor.CachedPredictor` of the source model on the examples.
        measure: ``retention_callback(...).measure``.
        best_epoch: the best epoch inside the budget, a :class:`~thaw.training.callbacks.BestWeights`; or
            ``None``.
        alphas: the interpolations to try, :class:`PathAlphas`.
        batch_size: examples in a batch. Default 32.
        seed: seed of the draws.

    Returns:
        ``(result, notes)``: a dict that goes into JSON with ``max_forgetting``, ``inside``, ``chosen`` (a phrase),
        ``alpha`` (of the chosen interpolation, or ``None``) and ``interpolation`` (what was tried); and sentences to
        show.

    Example:
        >>> from thaw.retention.budget import enforce_budget
        >>> result, notes = enforce_budget(model, before, source, splits, examples=examples,    # doctest: +SKIP
        ...     predictor=predictor, measure=watch.measure)
        >>> result["inside"], result["alpha"]                                                   # doctest: +SKIP
        (True, 0.6)
    """
    validation, budget = splits.validation, source.max_forgetting
    majority = splits.task.baseline(validation.y)
    epoch_score = None
    if best_epoch is not None:  # Keras reports float32, which may be slightly above the true value
        epoch_score = round(best_epoch.value * len(validation)) / len(validation)
    forgotten = 1 - measure()["kept"]["value"]
    result = {"max_forgetting": budget, "inside": True, "chosen": "the best epoch", "alpha": None, "interpolation": []}
    if is_inside(forgotten, budget):  # then the best epoch is the best of those inside
        if epoch_score is None or epoch_score > majority:
            return result, []
        return result | {"inside": False}, [
            f"The best epoch forgets no more than {budget:.1%}, but on the target task it is no better than the "
            "majority class: the budget does not count as held."
        ]
    after = [w.numpy() for w in model.weights]
    before = combine_stages(model, before, after)
    with preserve_flags(model):
        paths = _paths(model, before, after, source, splits.train, examples, alphas, seed)
        # The stages that have not changed in the whole run are computed once, for both tasks.
        freeze(model, _changed_stages(model, before, after), "trained")
        target_predictor = CachedPredictor(model, validation, batch_size=batch_size)
        target_predictor.follow()
        predictor.follow()
        tried = []
        for path in paths:
            rows = wise_ft_search(
                interpolate_weights(model, before, after, 1.0),
                before,
                lambda _: accuracy_of(target_predictor(), validation.y),
                lambda _: measure()["after"],
                max_forgetting=budget,
                alphas=path.alphas,
                interpolate=path.interpolate,
            ).rows
            tried += [(row, path) for row in rows]
        result["interpolation"] = [
            row.to_dict() | {"path": path.name, "statistics": path.statistics} for row, path in tried
        ]
        learned = [pair for pair in tried if pair[0].target.value > majority]
        inside = [pair for pair in learned if is_inside(pair[0].forgotten, budget)]
        if epoch_score is not None and epoch_score > max([majority, *(row.target.value for row, _ in inside)]):
            result["chosen"] = f"epoch {best_epoch.epoch + 1}, the best that was inside the budget"
            for variable, value in zip(model.weights, best_epoch.weights):
                variable.assign(value)
        else:
            chosen = None
            if inside:
                chosen = max(inside, key=lambda pair: (pair[0].target.value, -pair[0].forgotten))
            else:
                result["inside"] = False
                chosen = min(learned, key=lambda pair: pair[0].forgotten) if learned else None
            if chosen is None:
                interpolate_weights(model, before, after, 1.0)
            else:
                row, path = chosen
                path.interpolate(model, before, after, row.alpha)
                result["alpha"], result["chosen"] = row.alpha, _description(row, path)
    model.compiled = False
    return result, [_note(result, forgotten)]


def _paths(model, before, after, source, train, examples, alphas, seed):
    """Choose the paths to try; the weights of the model are restored."""
    estimated = functools.partial(interpolate_weights, x=_inputs_of_both(train, examples))
    if not _equal_statistics(model, before, after):
        return [_Path("line", "estimated", estimated, alphas.line)]
    paths = [_Path("line", "frozen", interpolate_weights, alphas.line)]
    if alphas.curve:
        importance = _importance(model, before, after, source, train, examples, seed)
        curve = functools.partial(interpolate_weights, importance=importance)
        paths.append(_Path("curve", "frozen", curve, alphas.curve))
    if alphas.estimated and source.examples is not None and changed_batchnorms(model, [before, after]):
        paths.append(_Path("line", "estimated", estimated, alphas.estimated))
    return paths


def _importance(model, before, after, source, train, examples, seed):
    """Estimate how much each weight matters to the source task before, and to the target task after."""
    importance = []
    try:
        for alpha, classifier, data in ((0.0, source.model, examples), (1.0, model, train)):
            interpolate_weights(model, before, after, alpha)
            importance.append(fisher(classifier, data, max_examples=IMPORTANCE_EXAMPLES, weights_of=model, seed=seed))
    finally:
        interpolate_weights(model, before, after, 1.0)
    return importance


def _changed_stages(model, before, after):
    """Return the names of the stages whose weights differ, and the head."""
    changed = {id(w) for w, a, b in zip(model.weights, before, after) if not np.array_equal(a, b)}
    names = [s.name for s in stages_of(model) if any(id(w) in changed for layer in s.layers for w in layer.weights)]
    return (*(name for name in names if name != HEAD), HEAD)


def _equal_statistics(model, before, after):
    statistics = {id(v) for layer in batchnorm_layers(model) for v in (layer.moving_mean, layer.moving_variance)}
    weights = zip(model.weights, before, after)
    return all(np.array_equal(a, b) for w, a, b in weights if id(w) in statistics)


def _inputs_of_both(train, examples):
    """Mix inputs of both tasks, the same ones in the same order every time, in batches."""
    import tensorflow as tf

    parts = [
        part.take(np.argsort(part.content_keys, kind="stable")[:STATISTICS_EXAMPLES]).replace(augment=None)
        for part in (train, examples)
    ]
    turns = np.random.default_rng(0).permutation(np.repeat([0, 1], [len(part) for part in parts]))
    inputs = [part.inputs(1).unbatch() for part in parts]
    return tf.data.Dataset.choose_from_datasets(inputs, tf.data.Dataset.from_tensor_slices(turns)).batch(64)


def _description(row, path):
    statistics = ", BatchNorm statistics estimated again" if path.statistics == "estimated" else ""
    return f"alpha = {row.alpha:g} on the {path.name} from the source backbone to the tuned one{statistics}"


def _note(result, forgotten):
    budget = f"{result['max_forgetting']:.1%}"
    start = f"The best epoch forgets {forgotten:.1%}, more than the {budget} that it may"
    if result["inside"]:
        return (
            f"{start}; {result['chosen']} was taken instead. It was chosen on the images on which forgetting and "
            "validation are measured: both look a little too good."
        )
    return (
        f"{start}, and nothing that has learned the target task forgets no more: the budget could not be held. The "
        f"model is {result['chosen']}."
    )
