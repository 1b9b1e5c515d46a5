"""Choose the shares of a blend on validation examples, and whether there should be one."""

from __future__ import annotations

import dataclasses

import numpy as np

from thaw.metrics.classification import MIN_PROBABILITY
from thaw.tasks import class_numbers

STEPS = 20  # shares are multiples of 1/20: the log loss near its minimum is flat, and a finer share is noise
CLEAR_ERRORS = 2  # standard errors: one example of a difference is always a little more than one
MIN_GAIN = 0.01  # share of the log loss that a blend has to save, for it costs a fifth to a third more to compute


@dataclasses.dataclass(frozen=True)
class Blend:
    """The shares of models in the mean of their probabilities, and what it gives; ``str()`` is a table.

    Attributes:
        shares: tuple of a share for each model, which sum to 1: those of the blend where it helps, else 1 for the best
            model and 0 for the others.
        helps: whether the blend is kept.
        best: position of the best single model: the lowest log loss, or one whose accuracy is clearly higher.
        names: tuple of the names of the models.
        log_losses: tuple of the log loss of each model, in nats.
        accuracies: tuple of the accuracy of each model.
        log_loss: that of the blend, kept or not.
        accuracy: that of the blend, kept or not.
        gain: how much lower the log loss of the blend is than that of the model with the lowest.
        standard_error: of the gain, over the examples.
        notes: tuple of sentences.
    """

    shares: tuple[float, ...]
    helps: bool
    best: int
    names: tuple[str, ...]
    log_losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    log_loss: float
    accuracy: float
    gain: float
    standard_error: float
    notes: tuple[str, ...] = ()

    def __str__(self):
        width = max(map(len, (*self.names, "blend")))
        lines = [f"{'model':<{width}}  share  log loss  accuracy"]
        for name, share, log_loss, accuracy in zip(self.names, self.shares, self.log_losses, self.accuracies):
            lines.append(f"{name:<{width}}  {share:>5.2f}  {log_loss:>8.3f}  {accuracy:>8.3f}")
        lines.append(f"{'blend':<{width}}  {'':>5}  {self.log_loss:>8.3f}  {self.accuracy:>8.3f}")
        return "\n".join([*lines, *self.notes])


def choose_blend(probabilities, y, *, sample_weight=None, names=None):
    """Choose the shares of models in a blend by the log loss on validation examples, and whether to blend at all.

    For two models every multiple of 0.05 is tried; for more, models are added one at a time, again and again, each time
    the one that lowers the log loss most (Caruana et al. 2004), and the best of the first 20 sums is taken. The blend
    is kept where its log loss is lower than that of the best model by a hundredth, and its accuracy is not clearly
    lower than that of any model; clearly is by more than two standard errors of the difference, example by example. The
    log loss decides, because on a few hundred examples two models often differ in the accuracy by two or three of them.
    Else the simpler wins, a single model, which costs less to compute: the one with the lowest log loss, unless the
    accuracy of another one is clearly higher.

    The shares are chosen on these examples, so that the log loss and the accuracy of the blend are optimistic on them:
    measure it on others before you report it. The examples should be no training examples of any of the models.

    Args:
        probabilities: list of arrays ``(n, classes)``, the probabilities that each of two or more models gives the same
            examples, such as those of :func:`thaw.features.predict_proba`.
        y: ``(n,)`` class numbers, or one-hot rows.
        sample_weight: ``(n,)`` weights of the examples in the log loss and in the accuracy. Default ``None``.
        names: list of a name for each model, for the notes. Default ``None``: "model 1", "model 2", ...

    Returns:
        :class:`Blend`; give :func:`thaw.models.blend_models` the models whose share is above 0.

    Raises:
        ValueError: fewer than two arrays, or arrays of other shapes, that are no probabilities; labels or weights that
            do not suit them.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import choose_blend
        >>> y = np.tile([0, 1, 1, 0], 10)
        >>> p = np.tile([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]], (10, 1))
        >>> blend = choose_blend([p, p[::-1]], y)
        >>> blend.helps, blend.shares, blend.accuracy
        (True, (0.5, 0.5), 1.0)
    """
    probabilities, y, weight, names = _checked(probabilities, y, sample_weight, names)
    rows = np.arange(len(y))
    of_truth = np.stack([p[rows, y] for p in probabilities])  # (models, n)

    def loss_of_rows(shares):
        return -np.log(np.maximum(np.asarray(shares) @ of_truth, MIN_PROBABILITY))

    def log_loss(shares):
        return float(np.average(loss_of_rows(shares), weights=weight))

    def is_right(shares):
        return (np.tensordot(np.asarray(shares), probabilities, axes=1).argmax(axis=1) == y).astype(float)

    def mean_and_error(differences):
        mean = float(np.average(differences, weights=weight))
        return mean, float(np.sqrt(((weight * (differences - mean)) ** 2).sum()) / weight.sum())

    def is_clearly_better(right, other):
        difference, error = mean_and_error(right - other)
        return difference > CLEAR_ERRORS * error

    singles = np.eye(len(probabilities))
    log_losses, right = tuple(map(log_loss, singles)), list(map(is_right, singles))
    accuracies = tuple(float(np.average(r, weights=weight)) for r in right)
    mixed = _grid_search(log_loss) if len(singles) == 2 else _greedy_selection(log_loss, len(singles))
    best = lowest = int(np.argmin(log_losses))
    better = [i for i in range(len(singles)) if is_clearly_better(right[i], right[lowest])]
    if better:
        best = max(better, key=lambda i: (accuracies[i], -log_losses[i]))
    gain, error = mean_and_error(loss_of_rows(singles[lowest]) - loss_of_rows(mixed))
    blended = is_right(mixed)
    reached = float(np.average(blended, weights=weight))
    helps = bool(
        np.count_nonzero(mixed) > 1
        and gain > MIN_GAIN * log_losses[lowest]
        and not any(is_clearly_better(r, blended) for r in right)
    )
    shares = tuple(map(float, mixed if helps else singles[best]))
    figures = (log_losses, accuracies, log_loss(mixed), reached, gain, error)
    return Blend(shares, helps, best, names, *figures, (_note(helps, mixed, best, names, *figures),))


def _checked(probabilities, y, sample_weight, names):
    """Return float64 ``(models, n, classes)``, class numbers, weights of mean 1, and names."""
    arrays = [np.asarray(p, np.float64) for p in probabilities]
    if len(arrays) < 2:
        raise ValueError(f"There are probabilities of {len(arrays)} models; expected at least two to blend.")
    shapes = [p.shape for p in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] < 2 or not shapes[0][0]:
        raise ValueError(
            f"The probabilities have the shapes {', '.join(map(str, shapes))}; expected the same (examples, classes) "
            "of every model, with at least one example and two classes."
        )
    stacked = np.stack(arrays)
    if not (np.allclose(stacked.sum(axis=2), 1, atol=1e-3) and stacked.min() >= 0):
        raise ValueError("The rows of the probabilities do not sum to 1; expected probabilities, not logits.")
    y = class_numbers(y, stacked.shape[2])
    if len(y) != stacked.shape[1]:
        raise ValueError(f"There are {len(y)} labels for {stacked.shape[1]} examples; expected one for each.")
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weight.shape != y.shape or not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise ValueError(
            f"sample_weight has shape {weight.shape}; expected {len(y)} finite numbers from 0, not all of them 0."
        )
    names = tuple(f"model {i + 1}" for i in range(len(arrays))) if names is None else tuple(map(str, names))
    if len(names) != len(arrays):
        raise ValueError(f"There are {len(names)} names for {len(arrays)} models; expected one for each.")
    return stacked, y, weight / weight.mean(), names


def _grid_search(log_loss):
    """Return the shares of two models with the lowest log loss; one of them may be 0."""
    pairs = [np.array([1 - step / STEPS, step / STEPS]) for step in range(STEPS + 1)]
    return min(pairs, key=log_loss)


def _greedy_selection(log_loss, models):
    """Return the shares of many models: the best of the means to which one is added at a time, with replacement."""
    counts, found = np.zeros(models), []
    for _ in range(STEPS):
        counts = min((counts + one for one in np.eye(models)), key=lambda c: log_loss(c / c.sum()))
        found.append(counts / counts.sum())
    return min(found, key=log_loss)


def _note(helps, mixed, best, names, log_losses, accuracies, log_loss, accuracy, gain, error):
    parts = [f"{share:.2f} of {name}" for name, share in zip(names, mixed) if share]
    alone = ", ".join(f"{name} {a:.3f} and {b:.3f}" for name, a, b in zip(names, accuracies, log_losses))
    if len(parts) == 1:
        lowest = names[int(np.argmax(mixed))]
        return f"No blend, but {names[best]} alone: the log loss is lowest with all of the share for {lowest}."
    figures = (
        f"accuracy {accuracy:.3f} and log loss {log_loss:.3f} on the validation examples, by which the shares were "
        f"chosen; alone, {alone}."
    )
    blend = " and ".join([", ".join(parts[:-1]), parts[-1]])
    if helps:
        return f"A blend of {blend}: {figures}"
    why = f"its log loss is lower by only {gain:.3f}, with a standard error of {error:.3f}"
    if gain > MIN_GAIN * min(log_losses):
        why = f"its accuracy is {accuracy:.3f}, clearly below the {max(accuracies):.3f} of one model"
    return f"No blend, but {names[best]} alone: of the blend of {blend}, {why}."
