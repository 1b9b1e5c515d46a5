"""Compare what the columns of a table tell, each alone and all together, by linear heads on frozen features."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from thaw._validation import as_seed
from thaw.data.joined_columns import NUMBERS, select_inputs
from thaw.features.precompute import precompute
from thaw.features.split import submodel
from thaw.metrics.intervals import Estimate, binomial_interval
from thaw.models.column_features import column_features
from thaw.models.flat import flatten_model
from thaw.models.joined import join_backbones
from thaw.models.linear_heads import linear_head
from thaw.tasks import class_numbers
from thaw.transfer.calibration import standard_error
from thaw.transfer.linear_readout import ONE_GROUP, LinearReadout, cross_validate, fit_readout
from thaw.transfer.linear_solvers import Standardization, log_partition
from thaw.transfer.readouts import stratified_folds
from thaw.transfer.solved_head import assign_readout, readout_problem

ONE_HEAD, SUM_OF_HEADS = "all, one head", "all, sum of heads"
SOLVERS = ("lbfgs", "svm")


@dataclasses.dataclass(frozen=True)
class ColumnScore:
    """What a head on one column, or on all of them, gives.

    Args:
        name: of the column, ``"all, one head"`` or ``"all, sum of heads"``.
        width: number of features.
        log_loss: of the training rows, each out of fold, in nats, weighted as the loss is.
        standard_error: of the log loss, over groups.
        accuracy: of the training rows, each out of fold.
        test_accuracy: of the test rows, :class:`thaw.metrics.intervals.Estimate` with its 95 % interval.
        test_log_loss: of the test rows, in nats.
    """

    name: str
    width: int
    log_loss: float
    standard_error: float
    accuracy: float
    test_accuracy: Estimate
    test_log_loss: float


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnComparison:
    """What each column tells alone, and all together; ``str()`` is a table.

    The log losses out of fold choose; the test rows decide nothing.

    Attributes:
        chosen: name of the score with the lowest log loss out of fold.
        model: the compiled ``keras.Model`` of that head, from a dict of the inputs that it reads.
        scores: tuple of :class:`ColumnScore`, each column alone first.
        measured_on: "test", or "validation" where there is no test.
        baseline: accuracy of always predicting the most frequent class there.
        notes: tuple of sentences.
    """

    chosen: str
    model: Any
    scores: tuple[ColumnScore, ...]
    measured_on: str
    baseline: float
    notes: tuple[str, ...] = ()

    def __str__(self):
        width = max(len(score.name) for score in self.scores)
        on = self.measured_on
        lines = [f"{'column':<{width}}  width  log loss  accuracy  {on} log loss  {on} accuracy"]
        for score in self.scores:
            line = f"{score.name:<{width}}  {score.width:>5}  {score.log_loss:>8.3f}  {score.accuracy:>8.3f}"
            line += f"  {score.test_log_loss:>{len(on) + 9}.3f}  {score.test_accuracy:.3f}"
            lines.append(line + ("  chosen" if score.name == self.chosen else ""))
        return "\n".join([*lines, *self.notes])


def compare_columns(
    splits, backbones, *, solver="lbfgs", folds=5, batch_size=32, cache_dir=None, seed=0, progress=None
):
    """Compare what the columns of a table tell about its classes, and solve for a head on the best of them, or on all.

    Each backbone runs once over its column. A head is solved for each column alone, and for all together in two ways:
    one head on all features (early fusion); and the sum of the heads of the columns, each times a weight of 0 or more,
    which a logistic regression on the logits out of fold finds (stacking: Wolpert 1992, Breiman 1996). The sum gives
    each column a strength of its own, so that 1,280 features of a picture do not drown a price. Either is linear in the
    features. What has the lowest log loss out of fold is put into a model: the columns together are never returned
    where one of them alone was better.

    Args:
        splits: :class:`thaw.Splits` whose datasets hold a dict of inputs, such as those of
            :func:`thaw.data.joined_columns.load_columns`; one class for each row.
        backbones: dict from "image" and "text" to models without a head, as for
            :func:`thaw.models.joined.join_backbones`. For "numbers", which may be left out or ``None``, it is
            :func:`thaw.models.column_features.column_features`.
        solver: ``"lbfgs"`` (default), multinomial logistic regression; ``"svm"``, as in
            :func:`thaw.transfer.solve_head`.
        folds: number of folds, at least 2; a group stays in one. Default 5.
        batch_size: examples in a batch. Default 32.
        cache_dir: the cache folder, as in :func:`thaw.precompute`.
        seed: seed of the folds and of random projections. Default 0.
        progress: called with ``(done, total)`` after each batch of features. Default ``None``.

    Returns:
        :class:`ColumnComparison`.

    Raises:
        ValueError: fewer than two columns, an input without a backbone, another task, a class with one group only, or
            what :func:`thaw.models.joined.join_backbones` refuses.

    Example:
        >>> import keras
        >>> from thaw.data.joined_columns import load_columns
        >>> from thaw.transfer.joined_readout import compare_columns
        >>> table = {"title": ["red shirt", "blue sock", "red sock"] * 40, "price": [i * 7 % 101 for i in range(120)],
        ...          "label": ["yes" if i * 7 % 101 + 30 * (i % 3) > 80 else "no" for i in range(120)]}
        >>> rows = load_columns(table, text="title", numbers="price")
        >>> words = keras.Sequential([keras.Input((32,), dtype="int32"), keras.layers.Embedding(30522, 4)])
        >>> comparison = compare_columns(rows, {"text": words})
        >>> [score.name for score in comparison.scores]
        ['text', 'numbers', 'all, one head', 'all, sum of heads']
    """
    seed, task = as_seed(seed), splits.task
    if solver not in SOLVERS:
        raise ValueError(f'solver={solver!r}; expected "lbfgs" or "svm".')
    backbones = _with_numbers(splits, backbones)
    train = splits.train.weighted(splits.class_weight)
    on, held_out = ("test", splits.test) if splits.test is not None else ("validation", splits.validation)
    y, y_held_out = class_numbers(train.y, task.units), class_numbers(held_out.y, task.units)
    models, features, features_held_out = {}, {}, {}
    for name, backbone in backbones.items():
        models[name] = join_backbones({name: backbone}, task)
        for part, found in ((train, features), (held_out, features_held_out)):
            options = {"batch_size": batch_size, "cache_dir": cache_dir, "progress": progress}
            found[name] = _features(models[name], part, **options)
    together = [train.replace(x=tuple(part.x for part in features.values()), load=None, keys=None)]
    together += [held_out.replace(x=tuple(part.x for part in features_held_out.values()), load=None, keys=None)]
    settings = {"classes": task.units, "solver": solver, "folds": folds, "seed": seed}
    heads = {name: _solved(features[name], y, features_held_out[name], settings) for name in backbones}
    heads[ONE_HEAD] = _solved(*together[:1], y, *together[1:], settings)
    heads[SUM_OF_HEADS] = _summed([heads[name] for name in backbones], y, folds, seed)
    scores = tuple(_score(name, head, y, y_held_out) for name, head in heads.items())
    chosen = min(scores, key=lambda score: score.log_loss).name
    if chosen not in models:
        models[chosen] = join_backbones(backbones, task)
    model = models[chosen]
    assign_readout(linear_head(flatten_model(model)), heads[chosen].readout)
    notes = [_note(heads, list(backbones), chosen)]
    baseline = task.baseline(y_held_out)
    notes.append(f"Always the most frequent class: accuracy {baseline:.3f} on the {on} rows.")
    return ColumnComparison(chosen, model, scores, on, baseline, tuple(notes))


@dataclasses.dataclass(frozen=True, eq=False)
class _Head:
    """A solved head, its logits out of fold and on the test rows, and what they are weighted by."""

    readout: LinearReadout
    logits: np.ndarray
    test_logits: np.ndarray
    losses: np.ndarray
    weight: np.ndarray
    groups: np.ndarray

    @property
    def log_loss(self):
        return float(np.average(self.losses, weights=self.weight))


def _with_numbers(splits, backbones):
    """Return the backbones, with one for the numbers; refuse what does not fit the inputs."""
    if splits.task.activation != "softmax":
        raise ValueError("The task is another than one class for each row; expected a Classification.")
    if splits.class_counts is not None:
        raise ValueError('balance="logit-adjustment" changes a model after its training; load with another balance.')
    found = {name: backbone for name, backbone in dict(backbones).items() if backbone is not None}
    columns = getattr(splits, "columns", ())
    if NUMBERS not in found and columns:
        found[NUMBERS] = column_features(columns, splits.train.x)
    if len(found) < 2:
        raise ValueError(f"There are {len(found)} columns with a backbone; expected two or more to compare.")
    if without := [name for name in getattr(splits, "inputs", found) if name not in found]:
        raise ValueError(f"backbones has none for {without[0]!r}; expected one for each of {', '.join(splits.inputs)}.")
    return found


def _features(model, dataset, **options):
    """Compute the pooled features of a column once, cached."""
    flat = flatten_model(model)
    prefix = submodel(flat, None, linear_head(flat).inputs)
    return precompute(prefix, select_inputs(dataset, list(model.input)), **options)


def _solved(features, y, held_out, settings):
    """Cross-validate and solve for a head."""
    rows, targets, options = readout_problem(features, y)
    options |= settings
    validation = cross_validate(rows, targets, **options)
    if not validation.folds:
        raise ValueError(f"The columns cannot be compared by cross-validation: {ONE_GROUP}.")
    readout = fit_readout(rows, targets, cross_validation=validation, **options)
    rows, _, _ = readout_problem(held_out, np.zeros(len(held_out), np.int64))
    return _Head(
        readout,
        validation.logits / validation.temperature,
        readout.logits(rows),
        validation.losses,
        validation.sample_weight,
        validation.groups,
    )


def _summed(heads, y, folds, seed):
    """Return the sum of heads with weights, which are found on logits out of fold; its own logits out of fold too."""
    first = heads[0]
    logits = np.stack([head.logits for head in heads]).astype(np.float64)
    weights, bias = sum_weights(logits, y, first.weight)
    # The folds of the heads: no row has a part in the weights that it is measured with.
    groups = None if len(y) == first.groups.max() + 1 else first.groups
    fold = stratified_folds(y, first.readout.cross_validation.folds, seed, groups)
    out_of_fold = np.empty(logits.shape[1:])
    for number in np.unique(fold):
        fitted = fold != number
        w, b = sum_weights(logits[:, fitted], y[fitted], first.weight[fitted])
        out_of_fold[~fitted] = np.tensordot(w, logits[:, ~fitted], axes=1) + b
    readouts = [head.readout for head in heads]
    standardization = Standardization(
        np.concatenate([readout.standardization.mean for readout in readouts]),
        np.concatenate([readout.standardization.variance for readout in readouts]),
    )
    readout = LinearReadout(
        np.concatenate([w * readout.kernel for w, readout in zip(weights, readouts)]).astype(np.float32),
        (sum(w * readout.bias for w, readout in zip(weights, readouts)) + bias).astype(np.float32),
        standardization,
        clip=True,
        strength=float("nan"),  # each column has its own
        temperature=1.0,
    )
    test_logits = np.tensordot(weights, np.stack([head.test_logits for head in heads]), axes=1) + bias
    return _Head(readout, out_of_fold, test_logits, _losses(out_of_fold, y), first.weight, first.groups)


def sum_weights(logits, y, sample_weight=None):
    """Find the weights of a sum of logits, and the bias of each class, by logistic regression.

    The weights are 0 or more (Breiman 1996): logits out of fold of a column that tells nothing point the wrong way by a
    little, and would otherwise be turned around. The targets leave a little doubt (Platt 1999), so that the weights
    stay finite where all rows are right.

    Args:
        logits: ``(columns, n, classes)``, of examples that none of the heads was fitted to.
        y: ``(n,)`` class numbers.
        sample_weight: ``(n,)`` numbers from 0, not all 0. Default ``None``: equal weights.

    Returns:
        ``(weights, bias)``: float64 ``(columns,)`` and ``(classes,)``.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.joined_readout import sum_weights
        >>> y = np.arange(100) % 2
        >>> says = np.where((np.arange(100) < 80)[:, None], np.eye(2)[y], np.eye(2)[1 - y])  # right in four of five
        >>> weights, _ = sum_weights(np.stack([says, np.zeros((100, 2))]), y)
        >>> round(float(weights[0]), 1), round(float(np.log(4)), 1)
        (1.4, 1.4)
    """
    from scipy.optimize import minimize

    columns, n, classes = logits.shape
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    doubt = 1 / (np.count_nonzero(weight) + 2)
    targets = (1 - doubt) * np.eye(classes)[y] + doubt / classes
    weight = (weight / weight.sum())[:, None]

    def loss(parameters):
        z = np.tensordot(parameters[:columns], logits, axes=1) + parameters[columns:]
        partition = log_partition(z)[:, None]
        slope = weight * (np.exp(z - partition) - targets)
        gradient = np.concatenate([(logits * slope).sum(axis=(1, 2)), slope.sum(axis=0)])
        return float((weight * targets * (partition - z)).sum()), gradient

    begin = np.concatenate([np.full(columns, 1 / columns), np.zeros(classes)])
    bounds = [(0, None)] * columns + [(None, None)] * classes
    options = {"maxiter": 500, "ftol": 1e-10, "gtol": 1e-7}
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return found[:columns], found[columns:]


def _losses(logits, y):
    logits = logits.astype(np.float64)
    return log_partition(logits) - logits[np.arange(len(y)), y]


def _score(name, head, y, y_held_out):
    right = int((head.test_logits.argmax(axis=1) == y_held_out).sum())
    return ColumnScore(
        name=name,
        width=len(head.readout.kernel),
        log_loss=head.log_loss,
        standard_error=standard_error(head.losses, head.weight, head.groups),
        accuracy=float((head.logits.argmax(axis=1) == y).mean()),
        test_accuracy=binomial_interval(right, len(y_held_out)),
        test_log_loss=float(_losses(head.test_logits, y_held_out).mean()),
    )


def _note(heads, columns, chosen):
    """Say what is returned, and how far it is from what comes next."""
    best = min(columns, key=lambda name: heads[name].log_loss)
    joined = min((ONE_HEAD, SUM_OF_HEADS), key=lambda name: heads[name].log_loss)
    a, b = heads[joined], heads[best]
    difference = a.log_loss - b.log_loss
    error = standard_error(a.losses - b.losses, a.weight, a.groups)
    figures = f"by {abs(difference):.3f} (standard error {error:.3f})"
    chance = ", which may be chance" if abs(difference) < 2 * error else ""
    if chosen in columns:
        return (
            f"The model reads {best} alone: with all columns together ({joined.removeprefix('all, ')}) the log loss "
            f"out of fold is higher {figures}{chance}."
        )
    return (
        f"The model reads all columns ({joined.removeprefix('all, ')}): its log loss out of fold is lower than that of "
        f"{best} alone, the best of them, {figures}{chance}."
    )
