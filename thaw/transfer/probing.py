"""Probe the stages of a frozen model, and rank backbones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from thaw._validation import as_int, as_seed, check_model
from thaw.data.conversion import as_dataset
from thaw.features.stage_features import stage_features
from thaw.metrics.intervals import Estimate, binomial_interval, bootstrap
from thaw.tasks import class_numbers
from thaw.transfer.readouts import knn_readout, ridge_readout, stratified_folds
from thaw.transfer.transferability import h_score, logme

N_NEIGHBORS = 5
MIN_EXAMPLES_PER_FEATURE = 10  # below which the H-score is regularized
R2_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeRow:
    """The scores of one stage.

    Attributes:
        stage: name of the stage.
        width: number of features.
        score: :class:`~thaw.metrics.intervals.Estimate` of the cross-validated ridge readout: the accuracy, in
            regression R².
        knn_score: :class:`~thaw.metrics.intervals.Estimate` of the accuracy of the nearest neighbors; ``None`` in
            regression.
        logme: see :func:`thaw.transfer.logme`; in regression for standardized targets, so that their unit does not
            matter.
        h_score: see :func:`thaw.transfer.h_score`; ``None`` in regression.
        errors: ``(n,)`` of the ridge readout for each example: 1 where it is wrong, else 0; in regression the squared
            error relative to the variance. Paired differences of two stages or models on the same examples are
            sharper than their intervals.
    """

    stage: str
    width: int
    score: Estimate
    knn_score: Estimate | None
    logme: float
    h_score: float | None
    errors: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """The result of :func:`probe`; ``str()`` is a table.

    Attributes:
        rows: one :class:`ProbeRow` for each stage but the head, from input to output.
        examples: number of examples.
        classes: number of classes that occur; ``None`` in regression.
        majority: proportion of the most frequent class, the accuracy without any features; ``None`` in regression.
        folds: number of folds of the cross-validation.
        shrunk: whether the H-scores are regularized, because there are fewer than ten examples for each feature of
            the widest stage.
    """

    rows: tuple[ProbeRow, ...]
    examples: int
    classes: int | None
    majority: float | None
    folds: int
    shrunk: bool

    @property
    def best(self):
        """The row with the highest score, the deepest of equals."""
        return max(reversed(self.rows), key=lambda row: row.score.value)

    def __str__(self):
        title = f"{self.examples} examples, {self.folds} folds"
        header = f"{'stage':<8} {'width':>5}  {'ridge R2':<20}  {'LogME':>7}"
        if self.classes is not None:
            title += f", {self.classes} classes, the most frequent {self.majority:.3f}"
            header = f"{'stage':<8} {'width':>5}  {'ridge accuracy':<20}  {f'{N_NEIGHBORS} neighbors':<20}  "
            header += f"{'LogME':>7}  {'H shr.' if self.shrunk else 'H-score':>7}"
        lines = [title, header]
        for row in self.rows:
            line = f"{row.stage:<8} {row.width:>5}  {f'{row.score:.3f}':<20}  "
            if self.classes is None:
                line += f"{row.logme:>7.3f}"
            else:
                line += f"{f'{row.knn_score:.3f}':<20}  {row.logme:>7.3f}  {row.h_score:>7.3g}"
            lines.append(line + (" *" if row is self.best and len(self.rows) > 1 else ""))
        return "\n".join(lines)


def probe(model, x, y=None, *, folds=5, max_examples=5000, batch_size=32, regression=False, seed=0, progress=None):
    """Measure how well the labels can be read from each stage of a frozen model, in one pass over the data.

    At every stage boundary the features, averaged over positions, are read out linearly (ridge) and by nearest
    neighbors, each cross-validated with the same stratified folds, and scored by LogME and the H-score. Where an
    early stage is as good as a late one, the stages between do not help this task as they are.

    The interval of an accuracy is that of Wilson (1927) over the examples, each predicted once. In 150 simulations
    with 100 to 500 examples of normal classes it covered the mean accuracy of readouts fitted to as many examples in
    93 to 97 %, that of a readout fitted to all of them in 89 to 93 %. It does not account for the choice of the best
    stage.

    Args:
        model: a functional or sequential ``keras.Model``, with or without a head, which is left out. It is
            bit-identical afterwards.
        x: inputs: arrays, a :class:`thaw.Dataset`, or a batched ``tf.data.Dataset`` of ``(x, y)``.
        y: ``(n,)`` class numbers or one-hot rows; with ``regression``, ``(n,)`` or ``(n, targets)`` numbers; ``None``
            where ``x`` brings the labels.
        folds: number of folds of the cross-validation. Default 5.
        max_examples: use this many examples at most: of arrays and a :class:`thaw.Dataset` drawn at random, of a
            ``tf.data.Dataset`` the first. ``None`` for all. Default 5000.
        batch_size: examples in a batch; a ``tf.data.Dataset`` keeps its own. Default 32.
        regression: whether the labels are numbers to predict, not classes. Default ``False``.
        seed: seed of the sampling, the folds, and the bootstrap of R². Default 0.
        progress: called with ``(done, total)`` examples after each batch. Default ``None``.

    Returns:
        :class:`Probe`.

    Raises:
        ValueError: a model without a graph or with nothing but a head, labels that are no classes, a single class, or
            too few examples.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import probe
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
        >>> result = probe(model, x, (x[:, 0] > 0).astype(int))
        >>> [row.stage for row in result.rows], result.classes, result.best.score.value > 0.8
        (['stage1'], 2, True)
    """
    _check_settings(folds, regression, seed)
    dataset = as_dataset(x, y, labelled=True)
    drawing = {"max_examples": max_examples, "batch_size": batch_size, "seed": seed}
    features, y = stage_features(model, dataset, **drawing, progress=progress)
    return probe_features(features, y, folds=folds, regression=regression, seed=seed)


def probe_features(features, y, *, folds=5, regression=False, seed=0):
    """Score features as :func:`probe` does, where they are computed already.

    Args:
        features: ``{stage: (n, width)}``, from :func:`thaw.transfer.stage_features`.
        y: the labels, as in :func:`probe`.
        folds: number of folds of the cross-validation. Default 5.
        regression: whether the labels are numbers to predict, not classes. Default ``False``.
        seed: seed of the folds, and the bootstrap of R². Default 0.

    Returns:
        :class:`Probe`.

    Raises:
        ValueError: labels that are no classes, a single class, or too few examples.

    Example:
        >>> from thaw.transfer import probe_features
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(60) % 2
        >>> features = {"stage1": rng.normal(size=(60, 4)), "stage2": rng.normal(size=(60, 4)) + y[:, None]}
        >>> probe_features(features, y).best.stage
        'stage2'
    """
    _check_settings(folds, regression, seed)
    if not isinstance(features, dict) or not features:
        given = "empty" if isinstance(features, dict) else f"a {type(features).__name__}"
        raise ValueError(
            f"features is {given}; expected a dict from stages to (n, width) arrays, as thaw.transfer.stage_features "
            "returns it."
        )
    features, y = {stage: np.asarray(x) for stage, x in features.items()}, np.asarray(y)
    for stage, x in features.items():
        if x.ndim != 2 or x.shape[:1] != y.shape[:1] or not len(x):
            raise ValueError(
                f"The features of {stage} have shape {x.shape} and the labels {y.shape}; expected one row of numbers "
                "and one label for each example."
            )
    if regression:
        targets, labels = _numbers(y), np.zeros(len(y), np.int64)
    else:
        labels = _consecutive_class_numbers(y)
        targets = np.eye(labels.max() + 1)[labels]
    fold = stratified_folds(labels, folds, seed)
    shrink = len(y) < MIN_EXAMPLES_PER_FEATURE * max(x.shape[1] for x in features.values())
    rows = []
    for stage, x in features.items():
        predicted = ridge_readout(x, targets, fold)
        if regression:
            errors = ((predicted - targets) ** 2 / targets.var(axis=0)).mean(axis=1)
            standardized = (targets - targets.mean(axis=0)) / targets.std(axis=0)
            scores = _r2(targets, predicted, seed), None, _logme(x, standardized, True), None
        else:
            errors = (predicted.argmax(axis=1) != labels).astype(np.float64)
            neighbors = knn_readout(x, labels, fold, N_NEIGHBORS)
            scores = (
                binomial_interval((errors == 0).sum(), len(y)),
                binomial_interval((neighbors == labels).sum(), len(y)),
                _logme(x, labels, False),
                _h_score(x, labels, shrink),
            )
        rows.append(ProbeRow(stage, x.shape[1], *scores, errors))
    frequencies = np.bincount(labels) / len(labels)
    known = (None, None) if regression else (len(frequencies), float(frequencies.max()))
    return Probe(tuple(rows), len(y), *known, folds, shrink)


def _check_settings(folds, regression, seed):
    as_int("folds", folds, 2)
    as_seed(seed)
    if not isinstance(regression, (bool, np.bool_)):
        raise ValueError(f"regression={regression!r}; expected True or False.")


def _consecutive_class_numbers(y):
    """Number the classes that occur from 0 without gaps."""
    y = class_numbers(
        y, expected="expected one class number for each example, or regression=True for numbers to predict."
    )
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"All {len(y)} examples are of class {classes[0]}; expected at least two classes. A tf.data.Dataset is "
            "read from its beginning: shuffle it before."
        )
    return labels


def _numbers(y):
    if y.dtype.kind not in "iubf" or y.ndim > 2 or not np.isfinite(y).all():
        raise ValueError(f"The labels are {y.dtype} of shape {y.shape}; expected numbers, (n,) or (n, targets).")
    targets = y.astype(np.float64).reshape(len(y), -1)
    if (targets.std(axis=0) == 0).any():
        raise ValueError("The labels are the same for all examples; expected numbers that differ.")
    return targets


def _r2(targets, predicted, seed):
    """Estimate R², the mean over the targets, with the bootstrap over examples."""

    def r2(targets, predicted):  # (resamples, n, targets) each
        spread = ((targets - targets.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (1 - ((targets - predicted) ** 2).sum(axis=1) / spread).mean(axis=1)

    return bootstrap(r2, targets, predicted, resamples=R2_RESAMPLES, seed=seed)


def _logme(features, y, regression):
    """LogME; minus infinity for features that are all 0, which explain nothing."""
    return logme(features, y, regression=regression) if features.any() else -math.inf


def _h_score(features, y, shrink):
    """The H-score; 0 for features that are the same for all examples."""
    return h_score(features, y, shrink=shrink) if (features != features[0]).any() else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class RankedBackbone:
    """One backbone in a :class:`Ranking`.

    Attributes:
        name: its name.
        logme: LogME of its last stage, by which it is ranked.
        score: :class:`~thaw.metrics.intervals.Estimate` of the ridge readout of its last stage: accuracy, or R².
        parameters: number of parameters.
        probe: the :class:`Probe` of all its stages.
    """

    name: str
    logme: float
    score: Estimate
    parameters: int
    probe: Probe = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The result of :func:`rank`; ``str()`` is a table.

    Attributes:
        rows: one :class:`RankedBackbone` for each backbone, the best first.
    """

    rows: tuple[RankedBackbone, ...]

    def __str__(self):
        score = "ridge R2" if self.rows[0].probe.classes is None else "ridge accuracy"
        longest = min(26, max(8, *(len(row.name) for row in self.rows)))
        lines = [f"{'backbone':<{longest}} {'parameters':>11}  {'LogME':>8}  {score:<21}  best"]
        for row in self.rows:
            name = row.name if len(row.name) <= longest else row.name[: longest - 1] + "…"
            estimate = f"{row.score:.3f}"
            lines.append(
                f"{name:<{longest}} {row.parameters:>11,}  {row.logme:>8.3f}  {estimate:<21}  {row.probe.best.stage}"
            )
        return "\n".join(lines)


def rank(backbones, x, y=None, *, folds=5, max_examples=5000, batch_size=32, regression=False, seed=0, progress=None):
    """Rank pre-trained models by how well their last features explain the labels.

    By LogME (You et al. 2021), which on ten ImageNet models orders their fine-tuned accuracy with a weighted
    Kendall's tau of 0.785 on CIFAR-10, 0.654 on Stanford Cars and 0.748 on SUN397 (Transfer-Learning-Library); the
    cross-validated accuracy is shown next to it. It says nothing about training from scratch, and a difference in LogME
    has no interval: where the intervals of the accuracies overlap, take the smaller model.

    Args:
        backbones: dict from a name to a ``keras.Model``, with or without a head, all for the same inputs. They are
            bit-identical afterwards.
        x: inputs: arrays, a :class:`thaw.Dataset`, or a batched ``tf.data.Dataset`` of ``(x, y)`` that gives the same
            examples every time.
        y: labels, as in :func:`thaw.probe`; ``None`` where ``x`` brings them.
        folds: number of folds of the cross-validation. Default 5.
        max_examples: use this many examples at most, the same for all backbones: of arrays and a
            :class:`thaw.Dataset` drawn at random, of a ``tf.data.Dataset`` the first. ``None`` for all. Default 5000.
        batch_size: examples in a batch; a ``tf.data.Dataset`` keeps its own. Default 32.
        regression: whether the labels are numbers to predict, not classes. Default ``False``.
        seed: seed of the sampling and the folds. Default 0.
        progress: called with ``(done, total, name)`` after each batch: examples, and the backbone. Default ``None``.

    Returns:
        :class:`Ranking`, highest LogME first; equal ones in the order of their accuracy, then of their names.

    Raises:
        ValueError: no backbones, or one that cannot be probed; the message names it.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import rank
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
        >>> def net(*weights):
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1), keras.layers.Dense(2)])
        ...     model.layers[0].set_weights([np.array(weights)[:, None], np.zeros(1)])
        ...     return model
        >>> ranking = rank({"blind": net(0, 0, 1), "useful": net(1, 0, 0)}, x, (x[:, 0] > 0).astype(int))
        >>> [row.name for row in ranking.rows]
        ['useful', 'blind']
    """
    if not isinstance(backbones, dict) or not backbones:
        raise ValueError("There are no backbones; expected a dict from names to models.")
    for name, model in backbones.items():
        check_model(model, f"backbones[{name!r}]")
    dataset = as_dataset(x, y, labelled=True)
    settings = {"folds": folds, "max_examples": max_examples, "batch_size": batch_size, "regression": regression}
    rows = []
    for name, model in backbones.items():
        shown = progress and (lambda done, total, name=name: progress(done, total, name))
        try:
            result = probe(model, dataset, **settings, seed=seed, progress=shown)
        except ValueError as error:
            raise ValueError(f'Backbone "{name}": {error}') from error
        last = result.rows[-1]
        rows.append(RankedBackbone(name, last.logme, last.score, model.count_params(), result))
    return Ranking(tuple(sorted(rows, key=lambda row: (-row.logme, -row.score.value, row.name))))
