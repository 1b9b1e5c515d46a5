"""Merge weights: averages, model soups and interpolation (WiSE-FT)."""

import dataclasses
import math

import numpy as np

from thaw.data.conversion import as_validation
from thaw.features.predictions import batch_probabilities
from thaw.metrics.intervals import Estimate, binomial_interval
from thaw.models.stages import HEAD, stages_of
from thaw.retention.batchnorm import changed_batchnorms, estimate_batchnorm
from thaw.tasks import class_numbers

BATCH_SIZE = 32  # examples in a batch, where a model is scored
# Added to importances of mean 1, so that weights that matter to no version are averaged as usual.
IMPORTANCE_OFFSET = 0.1


def score_of(model, score):
    """Score a model; it is not changed.

    Args:
        model: the ``keras.Model``.
        score: one of

            - labelled data, :class:`thaw.Dataset` or arrays ``(x, y)``: the accuracy, with the interval of Wilson
              (1927);
            - ``(other, data)``: the accuracy of another model that shares variables with this one: the source head on
              the same backbone, or a suffix from :func:`thaw.split_model` on what :func:`thaw.precompute` has cached;
            - a function of the model that returns a number, higher is better, or an
              :class:`~thaw.metrics.intervals.Estimate`, or a dict with ``value``, ``low`` and ``high``, such as
              ``lambda m: thaw.evaluate(m, x, y)["balanced_accuracy"]``.

    Returns:
        :class:`~thaw.metrics.intervals.Estimate`, without ends where a function returns a number.

    Raises:
        ValueError: other data, or a function that returns no number.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention.merging import score_of
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> print(score_of(model, (np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))))
        0.500 (0.095 to 0.905)
    """
    import keras

    if callable(score) and not isinstance(score, keras.Model):
        return _of_function(score, score(model))
    if isinstance(score, (tuple, list)) and len(score) == 2 and isinstance(score[0], keras.Model):
        model, score = score
    dataset = as_validation(score, name="data to score by")
    if dataset is None or not dataset.random_access:
        raise ValueError("A model cannot be scored by a stream; expected thaw.Dataset, arrays (x, y), or a function.")
    p = batch_probabilities(model, dataset.inputs(BATCH_SIZE), examples=len(dataset))
    return accuracy_of(p, class_numbers(dataset.y, p.shape[1]))


def accuracy_of(p, y):
    """Estimate the accuracy, with the interval of Wilson (1927).

    Args:
        p: ``(n, classes)`` probabilities.
        y: ``(n,)`` class numbers.

    Returns:
        :class:`~thaw.metrics.intervals.Estimate`.

    Example:
        >>> from thaw.retention.merging import accuracy_of
        >>> accuracy_of(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1])).value
        0.5
    """
    return binomial_interval((p.argmax(axis=1) == y).sum(), len(y))


def _of_function(function, result):
    try:
        if isinstance(result, Estimate):
            return result
        if isinstance(result, dict):
            low, high = result.get("low"), result.get("high")
            if low is None or high is None:
                return Estimate(float(result["value"]))
            return Estimate(float(result["value"]), float(low), float(high))
        return Estimate(float(result))
    except (TypeError, KeyError, ValueError) as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(
            f"The function {name} returned {result!r}; expected a number, higher is better, or a dict with value, "
            "low and high."
        ) from error


def average_weights(model, versions, shares=None, x=None, *, importance=None, batch_size=128):
    """Set the weights of a model to the average of several versions.

    The average of several fine-tuned runs that began from the same weights is often better than the best of them, and
    costs no more than one to use (model soups, Wortsman et al. 2022). It is computed in double precision; weights that
    are equal in all versions stay bit-identical, and so does everything where one version has the whole share. What
    cannot be averaged, such as a counter, is taken from the version with the largest share.

    The state of the optimizer belongs to other weights: compile again before training on. After an error or an
    interruption the weights are restored.

    Args:
        model: a built ``keras.Model``; changed in place.
        versions: a list of versions, each a list of arrays in the order of ``model.weights``, as
            ``model.get_weights()`` gives them.
        shares: weight of each version in the average, floats from 0; ``None`` for equal ones.
        x: inputs to estimate BatchNorm statistics on, as for :func:`thaw.retention.estimate_batchnorm`, of the layers
            whose inputs differ between the versions; ``None`` to average the statistics with the rest.
        importance: for each version a list of arrays in the order of ``model.weights``: how much each weight matters to
            it, from 0, such as :func:`thaw.retention.fisher` gives. A weight then comes more from the version to which
            it matters more (Matena and Raffel 2022): the shares are multiplied by the importances, each version's
            scaled to a mean of 1, plus 0.1. ``None`` for equal ones.
        batch_size: examples of ``x`` in a batch; all in one batch make the statistics exact. Default 128.

    Returns:
        The same model.

    Raises:
        ValueError: versions or importances that do not fit the model, or shares that are not one number for each.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import average_weights
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> average_weights(model, [[np.array([[1.0]])], [np.array([[4.0]])]]).get_weights()[0].tolist()
        [[2.5]]
    """
    versions = [_checked(model, version, i) for i, version in enumerate(versions)]
    shares = np.ones(len(versions)) if shares is None else np.asarray(shares, np.float64)
    if shares.shape != (len(versions),) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise ValueError(
            f"There are {len(versions)} versions and the shares {shares.tolist()}; expected one number from 0 for "
            "each, and one at least above 0."
        )
    if importance is None:
        factors = [[1.0] * len(model.weights)] * len(versions)
    else:
        factors = _normalized(model, versions, importance)
    used = [row for row in zip(versions, shares / shares.sum(), factors) if row[1] > 0]
    versions, shares, factors = zip(*used)
    start = [v.numpy() for v in model.weights]
    try:
        for i, variable in enumerate(model.weights):
            parts = [share * own[i] for share, own in zip(shares, factors)]
            variable.assign(_averaged([version[i] for version in versions], parts, shares, variable.dtype))
        layers = changed_batchnorms(model, versions) if x is not None and len(versions) > 1 else ()
        if layers:
            estimate_batchnorm(model, x, layers, batch_size=batch_size)
    except BaseException:
        for variable, value in zip(model.weights, start):
            variable.assign(value)
        raise
    return model


def _averaged(values, parts, shares, dtype):
    largest = values[int(np.argmax(shares))]
    if "float" not in dtype or all(np.array_equal(largest, value) for value in values):
        return largest
    mixed = sum(part * value.astype(np.float64) for part, value in zip(parts, values)) / sum(parts)
    # Rounding must not change what is equal in all versions.
    equal = np.all([value == values[0] for value in values], axis=0)
    return np.where(equal, values[0].astype(np.float64), mixed).astype(largest.dtype)


def _normalized(model, versions, importance):
    """Scale the importances of each version to a mean of 1 over the weights that differ, and add an offset."""
    if len(importance) != len(versions):
        raise ValueError(
            f"There are {len(versions)} versions and {len(importance)} importances; expected one for each version."
        )
    differ = [np.any([a != arrays[0] for a in arrays[1:]], axis=0) for arrays in zip(*versions)]
    normalized = []
    for i, arrays in enumerate(importance):
        arrays = _checked(model, arrays, i, "Importance")
        if not all(np.isfinite(a).all() and (a >= 0).all() for a in arrays):
            raise ValueError(f"Importance {i} holds numbers below 0 or not finite; expected numbers from 0.")
        arrays = [a.astype(np.float64) for a in arrays]
        mean = sum(a[where].sum() for a, where in zip(arrays, differ)) / max(1, sum(map(np.count_nonzero, differ)))
        normalized.append([(a / mean if mean > 0 else np.ones_like(a)) + IMPORTANCE_OFFSET for a in arrays])
    return normalized


def _checked(model, version, i, name="Version"):
    version = [np.asarray(value) for value in version]
    if len(version) != len(model.weights):
        raise ValueError(
            f"{name} {i} holds {len(version)} arrays and {model.name} has {len(model.weights)} weights; expected "
            "one array for each, as model.get_weights() gives them."
        )
    for variable, value in zip(model.weights, version):
        if tuple(variable.shape) != value.shape:
            raise ValueError(
                f"{name} {i} holds an array of shape {value.shape} for {variable.path}, which has "
                f"{tuple(variable.shape)}; expected weights of the same model."
            )
    return version


@dataclasses.dataclass(frozen=True)
class Soup:
    """Result of :func:`greedy_soup`.

    Args:
        taken: numbers of the versions in the average, the best one first.
        score: :class:`~thaw.metrics.intervals.Estimate` of the average.
        single_scores: :class:`~thaw.metrics.intervals.Estimate` of each version by itself.
    """

    taken: tuple[int, ...]
    score: Estimate
    single_scores: tuple[Estimate, ...]


def greedy_soup(model, versions, score, x=None, *, batch_size=128):
    """Average the best of several versions with those others that do not lower the score.

    The greedy model soup (Wortsman et al. 2022): from the best version to the worst, each is added to the average and
    stays in it where the score is not lower than before. So the score is at least that of the best version, on the data
    that it was selected on; measure it once more on other data.

    Args:
        model: a built ``keras.Model``; changed in place. After an error or an interruption its weights are restored.
        versions: a list of versions, each a list of arrays in the order of ``model.weights``.
        score: how a model is scored, on validation data: :class:`thaw.Dataset`, ``(x, y)``, or a function of the model,
            higher is better; see :func:`thaw.retention.merging.score_of`.
        x: inputs to estimate BatchNorm statistics on, or ``None``; see :func:`thaw.retention.average_weights`.
        batch_size: examples of ``x`` in a batch. Default 128.

    Returns:
        :class:`Soup`.

    Raises:
        ValueError: no versions, versions that do not fit the model, or no version whose score is a number.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import greedy_soup
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> versions = [[np.array([[w]])] for w in (9.0, 1.0, 4.0)]
        >>> near = lambda m: -abs(float(m.weights[0][0, 0]) - 3)
        >>> greedy_soup(model, versions, near).taken
        (2, 1)
    """
    versions = list(versions)
    if not versions:
        raise ValueError("There are no versions to average; expected a list of weights for each run.")
    weights = start = [v.numpy() for v in model.weights]
    try:
        single = [score_of(average_weights(model, [version]), score) for version in versions]
        order = [i for i in range(len(versions)) if math.isfinite(single[i].value)]
        if not order:
            raise ValueError(f"None of the {len(versions)} versions has a score that is a number; look at the runs.")
        order.sort(key=lambda i: -single[i].value)  # of equal ones the first
        taken, best, weights_of_best = [order[0]], single[order[0]], versions[order[0]]
        for i in order[1:]:
            candidate = [versions[j] for j in (*taken, i)]
            estimate = score_of(average_weights(model, candidate, None, x, batch_size=batch_size), score)
            if estimate.value >= best.value:
                taken.append(i)
                best, weights_of_best = estimate, [v.numpy() for v in model.weights]
        weights = weights_of_best
    except BaseException:
        weights = start
        raise
    finally:
        for variable, value in zip(model.weights, weights):
            variable.assign(value)
    return Soup(tuple(taken), best, tuple(single))


def interpolate_weights(model, before, after, alpha, x=None, *, importance=None, batch_size=128):
    """Set the weights of a model to an interpolation between those before and after fine-tuning.

    Fine-tuning forgets; part of the way back, much of what was forgotten is there again, and most of what was learned
    is still there (WiSE-FT, Wortsman et al. 2022). It costs no training. At both ends the weights are bit-identical,
    and no statistics are estimated.

    A head that was random before the fine-tuning is of no use half way: use that from after it on both sides, with
    :func:`thaw.retention.combine_stages`.

    With ``importance`` each weight goes its own way: back where it matters to the source task, and not where it matters
    to the target task (Matena and Raffel 2022). From handwritten digits to clothes (EfficientNet-Lite0) that restored
    as much as the line for half the cost, the other way round more for a little less.

    Args:
        model: a built ``keras.Model``; changed in place. Compile it again before training on: the state of its
            optimizer belongs to other weights.
        before: arrays in the order of ``model.weights``, as ``model.get_weights()`` gives them.
        after: the same, after the fine-tuning.
        alpha: a float from 0 for ``before`` to 1 for ``after``: each weight is ``(1 - alpha) * before + alpha *
            after``. What cannot be averaged, such as a counter, is taken from the nearer end, half way from ``before``.
        x: inputs to estimate BatchNorm statistics on, as for :func:`thaw.retention.estimate_batchnorm`, of both tasks
            where both matter, for layers whose inputs differ between before and after; ``None`` to interpolate the
            statistics. Try both where BatchNorm was frozen, as in thaw's plans: the weights are then used to those
            statistics, and EfficientNet-Lite0 forgot more with others than by the fine-tuning.
        importance: ``(source, target)``: importances of the weights to both tasks, each as
            :func:`thaw.retention.fisher` gives it, the first measured at the weights before, the second at those after,
            both ``weights_of=model``; see :func:`thaw.retention.average_weights`. The path between the two ends is then
            a curve. ``None`` for equal ones.
        batch_size: examples of ``x`` in a batch; all in one batch make the statistics exact. Default 128.

    Returns:
        The same model.

    Raises:
        ValueError: an alpha outside 0 to 1, or weights of another model.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import interpolate_weights
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> before, after = [np.array([[1.0]])], [np.array([[5.0]])]
        >>> interpolate_weights(model, before, after, 0.25).get_weights()[0].tolist()
        [[2.0]]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}; expected a number from 0, the weights before, to 1, those after.")
    return average_weights(model, (before, after), (1 - alpha, alpha), x, importance=importance, batch_size=batch_size)


def combine_stages(model, before, after, stages=(HEAD,)):
    """Combine the weights of some stages after fine-tuning with those of all others before it.

    A new head is random before the fine-tuning: the interpolation is better done with the learned head on both sides.

    Args:
        model: a built ``keras.Model``.
        before: arrays in the order of ``model.weights``.
        after: the same, after the fine-tuning.
        stages: names of the stages to take from ``after``. Default ``("head",)``.

    Returns:
        A list of arrays in the order of ``model.weights``.

    Raises:
        ValueError: lists of another length, or a stage that the model does not have.

    Example:
        >>> import keras
        >>> from thaw.retention import combine_stages
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dense(1)])
        >>> combine_stages(model, ["a", "b", "c", "d"], ["A", "B", "C", "D"])
        ['a', 'b', 'C', 'D']
    """
    if not len(before) == len(after) == len(model.weights):
        raise ValueError(
            f"There are {len(before)} arrays before, {len(after)} after, and {model.name} has {len(model.weights)} "
            "weights; expected one array for each, as model.get_weights() gives them."
        )
    all_stages = stages_of(model)
    names = [stage.name for stage in all_stages]
    for name in stages:
        if name not in names:
            raise ValueError(f'The model has no stage "{name}"; it has {", ".join(names)}.')
    tuned = {id(w) for stage in all_stages if stage.name in stages for layer in stage.layers for w in layer.weights}
    return [new if id(w) in tuned else old for w, old, new in zip(model.weights, before, after)]
