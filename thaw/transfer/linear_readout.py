"""A linear readout of wide frozen features, solved in place of trained by gradient descent.

Logistic regression, linear SVM or ridge regression on standardized features; the strength of the penalty and the
temperature (Guo et al. 2017) come from cross-validation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import weakref

import numpy as np

from thaw._validation import as_int
from thaw.targets import label_rows
from thaw.transfer.calibration import fit_temperature, smoothed_log_loss, standard_error
from thaw.transfer.linear_solvers import (
    LOSSES,
    MAX_EXACT_ROWS,
    MIN_FOLDED_SPREAD,
    PATH_TOLERANCE,
    Standardization,
    binary_problems,
    log_partition,
    refine,
    row_blocks,
    solution_path,
    space_of,
    standardizations,
    threads_for,
)
from thaw.transfer.readouts import stratified_folds

# Prior variance of a logit; C of scikit-learn is the strength over the width. From strong to weak penalties.
STRENGTHS = tuple(float(s) for s in np.logspace(-2, 4, 13).round(6))
DEFAULT_STRENGTH = 1.0
ONE_GROUP = "a class has examples of one group only, which cannot be predicted from other groups"

# Results of cross_validate that somebody holds, by the digest of all that they depend on.
_RESULTS = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class CrossValidation:
    """What cross-validation found.

    Args:
        log_loss: weighted mean of ``losses``, for ``"ridge"`` the mean squared error; ``None`` where there were too few
            examples for two folds.
        standard_error: of that mean, over groups.
        losses: ``(n,)`` out-of-fold log loss of each row at the best strength and the temperature, in nats, of several
            labels the mean over them; for ``"ridge"`` the squared error.
        logits: float32 ``(n, k)`` out-of-fold logits before the temperature; for ``"ridge"`` the predictions.
        strength: prior variance of a logit, with the smallest log loss; C of scikit-learn is the strength over the
            number of features.
        temperature: that the logits are divided by.
        folds: number of folds; 0 where there was no cross-validation.
        log_losses: dict of strength to the smoothed log loss by which they are compared.
        groups: ``(n,)`` group numbers.
        sample_weight: ``(n,)``, with mean 1.
        notes: tuple of sentences.
    """

    log_loss: float | None
    standard_error: float | None
    losses: np.ndarray | None
    logits: np.ndarray | None
    strength: float
    temperature: float
    folds: int
    log_losses: dict
    groups: np.ndarray
    sample_weight: np.ndarray
    notes: tuple = ()


@dataclasses.dataclass(frozen=True, eq=False)
class LinearReadout:
    """A solved readout.

    Args:
        kernel: float32 ``(d, k)``, for standardized features, divided by the temperature.
        bias: float32 ``(k,)``, divided by the temperature.
        standardization: of the features.
        clip: whether standardized features are clipped.
        strength: as in :class:`CrossValidation`.
        temperature: that kernel and bias were divided by.
        cross_validation: :class:`CrossValidation`, or ``None``.
        notes: tuple of sentences.
    """

    kernel: np.ndarray
    bias: np.ndarray
    standardization: Standardization
    clip: bool
    strength: float
    temperature: float
    cross_validation: CrossValidation | None = None
    notes: tuple = ()

    def logits(self, features):
        """Return float32 ``(n, k)`` calibrated logits of ``(n, d)`` features; for ``"ridge"`` the predictions."""
        features = _checked_features(features)
        return np.concatenate(
            [self.standardization(features[rows], self.clip) @ self.kernel + self.bias for rows in row_blocks(features)]
        )

    def folded(self):
        """Return kernel and bias for features that are not standardized, of a readout with ``clip=False``."""
        if self.clip:
            raise ValueError("This readout clips its features; expected one fitted with clip=False to be folded.")
        kernel = self.kernel / np.sqrt(self.standardization.variance.astype(np.float64))[:, None]
        bias = self.bias - self.standardization.mean.astype(np.float64) @ kernel
        return kernel.astype(np.float32), bias.astype(np.float32)


def cross_validate(
    features,
    y,
    *,
    classes=None,
    solver="lbfgs",
    sample_weight=None,
    groups=None,
    folds=5,
    clip=True,
    seed=0,
    max_exact_rows=MAX_EXACT_ROWS,
    progress=None,
):
    """Find the strength and the temperature of a readout by cross-validation.

    In each fold the features are standardized on the other folds, and the penalty is weakened step by step until the
    log loss of the fold has become worse twice in a row. Every strength that all folds reached is compared. A result
    that somebody holds, such as a :class:`~thaw.transfer.head_choice.HeadChoice`, is not computed again.

    Args:
        features: ``(n, d)`` finite numbers; a memory map is read in blocks.
        y: ``(n,)`` class numbers from 0; ``(n, labels)`` numbers 0 or 1, where an example has several labels; for
            ``"ridge"`` ``(n,)`` or ``(n, t)`` numbers.
        classes: number of classes or labels; not needed for ``"ridge"``.
        solver: ``"lbfgs"`` (default), multinomial logistic regression, of several labels one binary problem for each,
            of one strength; ``"svm"``, linear SVM with squared hinge loss,
            one class against the rest; ``"ridge"``, ridge regression. The intercept has no penalty.
        sample_weight: ``(n,)`` numbers from 0, scaled to mean 1. Default ``None``: equal weights.
        groups: ``(n,)`` numbers or texts; the rows of a group, such as views of one picture, stay in one fold. Default
            ``None``: every row is a group.
        folds: number of folds, at least 2; fewer where the smallest class has fewer groups. Default 5.
        clip: bool, clip standardized features at 5 standard deviations. Default ``True``.
        seed: of the folds and of the random projection. Default 0.
        max_exact_rows: above it wider features are projected to as many numbers. Default 4,096.
        progress: function of the number of folds done and of all folds. Default ``None``.

    Returns:
        :class:`CrossValidation`. Where a class has one group only there are no folds: default strength, temperature 1.

    Raises:
        ValueError: arrays of different length, numbers that are not finite, class numbers outside the classes.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.linear_readout import cross_validate
        >>> y = np.arange(40) % 2
        >>> x = np.random.default_rng(0).normal(size=(40, 3)) + 4 * y[:, None]
        >>> result = cross_validate(x, y, classes=2)
        >>> result.folds, bool(result.log_loss < 0.1)
        (5, True)
    """
    data = _Data(features, y, classes, solver, sample_weight, groups)
    digest = data.digest(folds, clip, seed, max_exact_rows)
    if (known := _RESULTS.get(digest)) is not None:
        return known
    fold, notes = data.folds(as_int("folds", folds, 2), seed)
    if fold is None:
        weight = data.weight
        return CrossValidation(None, None, None, None, DEFAULT_STRENGTH, 1.0, 0, {}, data.groups, weight, notes)
    numbers = np.unique(fold)
    if any(not data.weight[fold != number].any() for number in numbers):
        raise ValueError(
            "All rows with a sample weight above 0 are in one fold; expected more such rows, or strength=."
        )
    weights = [np.where(fold == number, 0, data.weight) for number in numbers]
    folds = zip(numbers, standardizations(data.features, np.stack(weights), _least(clip)))
    found = {}  # strength to logits
    reached = len(STRENGTHS)
    with threads_for(data.features):
        for done, (number, standardization) in enumerate(folds, 1):
            held_out, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            space = space_of(data.features, train, standardization, clip, seed, max_exact_rows)
            losses = []
            path = solution_path(space, train, data, STRENGTHS[:reached], tolerance=PATH_TOLERANCE)
            for strength, coefficients in path:
                logits = found.setdefault(strength, np.empty((len(fold), data.outputs), np.float32))
                logits[held_out] = coefficients.outputs(space.scores(coefficients.weights, held_out), data.outputs)
                losses.append(data.comparable_loss(logits, held_out))
                # One fold of few rows may rise by chance and fall again.
                if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3] and losses[-1] > 1.05 * min(losses):
                    break
            reached = len(losses)
            if progress is not None:
                progress(done, len(numbers))
    log_losses = {strength: data.comparable_loss(found[strength]) for strength in STRENGTHS[:reached]}
    strength = min(log_losses, key=log_losses.get)
    temperature = data.temperature(found[strength])
    losses = data.losses(found[strength] / temperature)
    _RESULTS[digest] = result = CrossValidation(
        log_loss=float(np.average(losses, weights=data.weight)),
        standard_error=standard_error(losses, data.weight, data.groups),
        losses=losses,
        logits=found[strength],
        strength=strength,
        temperature=temperature,
        folds=len(numbers),
        log_losses=log_losses,
        groups=data.groups,
        sample_weight=data.weight,
        notes=notes,
    )
    return result


def fit_readout(
    features,
    y,
    *,
    classes=None,
    solver="lbfgs",
    strength=None,
    cross_validation=None,
    sample_weight=None,
    groups=None,
    folds=5,
    clip=True,
    seed=0,
    max_exact_rows=MAX_EXACT_ROWS,
    progress=None,
):
    """Solve a linear readout of frozen features.

    A class that has no example gets a kernel of 0 and the bias that gives it the probability of half an example, on
    the geometric mean over the rows.

    Args:
        features: as for :func:`cross_validate`.
        y: as for :func:`cross_validate`.
        classes: as for :func:`cross_validate`.
        solver: as for :func:`cross_validate`.
        strength: prior variance of a logit, with temperature 1. Default ``None``: by cross-validation.
        cross_validation: result of :func:`cross_validate` for the same data, so that it is not computed again.
        sample_weight: as for :func:`cross_validate`.
        groups: as for :func:`cross_validate`.
        folds: as for :func:`cross_validate`.
        clip: as for :func:`cross_validate`.
        seed: as for :func:`cross_validate`.
        max_exact_rows: as for :func:`cross_validate`; the projected solution is refined with all features.
        progress: as for :func:`cross_validate`.

    Returns:
        :class:`LinearReadout`.

    Raises:
        ValueError: as for :func:`cross_validate`; or a strength that is not above 0.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.linear_readout import fit_readout
        >>> x, y = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
        >>> fit_readout(x, y, classes=2).logits(x).argmax(axis=1).tolist()
        [0, 0, 1, 1]
    """
    data = _Data(features, y, classes, solver, sample_weight, groups)
    if strength is None and cross_validation is None:
        cross_validation = cross_validate(
            features,
            y,
            classes=classes,
            solver=solver,
            sample_weight=sample_weight,
            groups=groups,
            folds=folds,
            clip=clip,
            seed=seed,
            max_exact_rows=max_exact_rows,
            progress=progress,
        )
    temperature, notes = 1.0, ()
    if strength is None:
        strength, temperature = cross_validation.strength, cross_validation.temperature
        notes = cross_validation.notes
    if not 0 < strength < np.inf:
        raise ValueError(f"strength={strength!r}; expected a number above 0, or None to find it by cross-validation.")
    standardization = Standardization.of(data.features, data.weight, _least(clip))
    train = np.arange(len(data.features))
    with threads_for(data.features):
        space = space_of(data.features, train, standardization, clip, seed, max_exact_rows)
        ((_, coefficients),) = solution_path(space, train, data, (strength,), temperature)
    columns = coefficients.columns
    solved, intercept = space.kernel(coefficients.weights), coefficients.bias
    if space.projection is not None:
        solved, intercept = refine(
            solved * temperature, intercept * temperature, columns, data, standardization, clip, strength
        )
        solved, intercept = solved / temperature, intercept / temperature
    kernel = np.zeros((len(standardization.mean), data.outputs), np.float32)
    kernel[:, columns] = solved
    bias = np.full(data.outputs, coefficients.floor, np.float32)
    bias[columns] = intercept
    return LinearReadout(
        kernel, bias, standardization, bool(clip), float(strength), temperature, cross_validation, notes
    )


def prefer_narrow(candidates):
    """Choose the narrowest features that are as good as the best, by the one-standard-error rule (Breiman et al. 1984).

    The standard error is that of the paired differences of the losses, over groups.

    Args:
        candidates: :class:`CrossValidation` of the same rows, from narrow to wide features.

    Returns:
        Index of the first whose log loss is at most one standard error above the smallest; 0 where there was no
        cross-validation.

    Raises:
        ValueError: results of different rows.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.linear_readout import cross_validate, prefer_narrow
        >>> y = np.arange(60) % 2
        >>> x = np.random.default_rng(0).normal(size=(60, 2)) + [0, 4] * y[:, None]
        >>> prefer_narrow([cross_validate(x[:, :1], y, classes=2), cross_validate(x, y, classes=2)])
        1
    """
    first = candidates[0]
    if any(not np.array_equal(c.groups, first.groups) for c in candidates):
        raise ValueError("The candidates are of different rows or groups; expected the same for all, to be compared.")
    if any(c.folds == 0 for c in candidates):
        return 0
    best = min(candidates, key=lambda c: c.log_loss)
    for index, candidate in enumerate(candidates):
        if candidate.log_loss - best.log_loss <= standard_error_of_difference(candidate, best):
            return index
    raise AssertionError("the best candidate is within any distance of itself")


def standard_error_of_difference(a, b):
    """Return the standard error of the difference of two log losses on the same rows, over groups.

    Args:
        a: :class:`CrossValidation`.
        b: :class:`CrossValidation` of the same rows.

    Returns:
        A float, in nats.
    """
    return standard_error(a.losses - b.losses, a.sample_weight, a.groups)


def groups_of_smallest_class(y, groups):
    """Count the groups of the class that has the fewest, which bounds the number of folds.

    Args:
        y: ``(n,)`` class numbers.
        groups: ``(n,)`` group numbers.

    Returns:
        An int; classes without examples are left out.

    Example:
        >>> from thaw.transfer.linear_readout import groups_of_smallest_class
        >>> groups_of_smallest_class([0, 0, 0, 1, 1], [0, 1, 2, 2, 2])
        1
    """
    counts = np.bincount(np.unique(np.stack([y, groups]), axis=1)[0])
    return int(counts[counts > 0].min())


def _least(clip):
    """Return the smallest spread of a channel: a head that clips keeps the constants, others fold them into weights."""
    return 0.0 if clip else MIN_FOLDED_SPREAD


class _Data:
    """Checked features, labels, weights and groups, and the loss that the solver is judged by."""

    def __init__(self, features, y, classes, solver, sample_weight, groups):
        if solver not in LOSSES:
            raise ValueError(f"solver={solver!r}; expected one of {', '.join(LOSSES)}.")
        self.features, self.solver = _checked_features(features), solver
        n, self.y = len(self.features), np.asarray(y)
        self.multilabel = solver != "ridge" and self.y.ndim == 2
        if solver == "ridge":
            self.y = self.y.astype(np.float64).reshape(len(self.y), -1)
            if len(self.y) != n or not np.isfinite(self.y).all():
                raise ValueError(
                    f"y has shape {np.shape(y)}; expected {n} rows of finite numbers, one for each example."
                )
            self.outputs = self.y.shape[1]
        elif self.multilabel:
            self.outputs, self.y = as_int("classes", classes, 1), label_rows(self.y, classes)
            if len(self.y) != n:
                raise ValueError(f"y has {len(self.y)} rows; expected {n} rows of 0 and 1, one for each example.")
        else:
            self.outputs = as_int("classes", classes, 1)
            if self.y.shape != (n,) or self.y.dtype.kind not in "iub":
                raise ValueError(f"y is {self.y.dtype} of shape {self.y.shape}; expected {n} class numbers.")
            if self.y.min() < 0 or self.y.max() >= classes:
                raise ValueError(
                    f"y goes from {self.y.min()} to {self.y.max()}; expected class numbers below {classes}."
                )
            self.y = self.y.astype(np.int64)
        weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
        if weight.shape != (n,) or not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
            raise ValueError(f"sample_weight has shape {weight.shape}; expected {n} finite numbers from 0, not all 0.")
        self.weight = weight / weight.mean()
        groups = np.arange(n) if groups is None else np.asarray(groups)
        if groups.shape != (n,):
            raise ValueError(f"groups has shape {groups.shape}; expected ({n},), one number or text for each example.")
        self.groups = np.unique(groups, return_inverse=True)[1]

    def digest(self, *settings):
        """Hash the numbers and the settings: what a result depends on."""
        shape, dtype = self.features.shape, self.features.dtype.str
        digest = hashlib.sha256(repr((self.solver, self.outputs, shape, dtype, settings)).encode())
        for values in (self.y, self.weight, self.groups, *(self.features[rows] for rows in row_blocks(self.features))):
            digest.update(np.ascontiguousarray(values))
        return digest.digest()

    def folds(self, folds, seed):
        """Return fold numbers, or ``None`` where there are too few groups; and the notes."""
        alike = self.solver == "ridge" or self.multilabel
        labels, notes = (np.zeros(len(self.y), np.int64) if alike else self.y), []
        smallest = groups_of_smallest_class(labels, self.groups)
        if self.multilabel and (constant := int((self.y == self.y[0]).all(axis=0).sum())):
            notes.append(f"{constant} of {self.outputs} labels are the same for all examples.")
        elif not alike and len(np.unique(labels)) < self.outputs:
            notes.append(f"{self.outputs - len(np.unique(labels))} of {self.outputs} classes have no example.")
        if smallest < 2:
            notes.append(f"Not cross-validated, strength {DEFAULT_STRENGTH:g} and temperature 1: {ONE_GROUP}.")
            return None, tuple(notes)
        if smallest < folds:
            notes.append(f"{smallest} folds in place of {folds}: the smallest class has no more examples or groups.")
        folds = min(folds, smallest)
        groups = None if len(labels) == self.groups.max() + 1 else self.groups
        return stratified_folds(labels, folds, seed, groups), tuple(notes)

    def losses(self, outputs, rows=slice(None)):
        """Return the loss of each row, float64."""
        outputs = outputs.astype(np.float64)
        if self.solver == "ridge":
            return ((outputs - self.y[rows]) ** 2).mean(axis=1)
        logits, y, _ = self._classes(outputs, rows)
        return (log_partition(logits) - logits[np.arange(len(y)), y]).reshape(len(outputs), -1).mean(axis=1)

    def penalty(self, strength, total):
        """Return the factor of half the squared kernel, where the loss is a mean over a total weight."""
        return self.features.shape[1] / (strength * total)

    def comparable_loss(self, outputs, rows=slice(None)):
        """Return the weighted mean loss by which strengths are compared.

        Logits of logistic regression are compared as they are: with a temperature of their own, weak penalties are as
        good as strong ones where all rows are right. Those of a support vector machine have no scale of their own.
        """
        return self._mean_loss(outputs, rows, self.temperature(outputs, rows) if self.solver == "svm" else 1.0)

    def temperature(self, outputs, rows=slice(None)):
        """Return the temperature with the smallest weighted mean of the smoothed losses of some rows."""
        if self.solver == "ridge":
            return 1.0
        return fit_temperature(*self._classes(outputs[rows], rows))

    def _mean_loss(self, outputs, rows, temperature):
        outputs = outputs[rows] / temperature
        if self.solver == "ridge":
            return float(np.average(self.losses(outputs, rows), weights=self._weights(rows)))
        return smoothed_log_loss(*self._classes(outputs, rows))

    def _classes(self, outputs, rows):
        """Return logits, class numbers and weights of some rows; each of several labels is a row of two classes."""
        y, weight = self.y[rows], self._weights(rows)
        return binary_problems(outputs, y, weight) if self.multilabel else (outputs, y, weight)

    def _weights(self, rows):
        weight = self.weight[rows]
        return weight if weight.any() else np.ones(len(weight))  # rows that count for nothing


def _checked_features(features):
    if not hasattr(features, "dtype"):
        features = np.asarray(features)
    if features.ndim != 2 or features.dtype.kind not in "fiub" or 0 in features.shape:
        raise ValueError(
            f"features is {features.dtype} of shape {features.shape}; expected numbers of shape (examples, features), "
            "at least one of each."
        )
    return features
