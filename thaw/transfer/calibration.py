"""Calibrate a trained classifier on held-out examples, or correct it for the frequencies of its classes.

Both change nothing but the weights of the last dense layer, so that the model stays a plain Keras model.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from thaw._validation import as_seed
from thaw.data.conversion import as_validation
from thaw.features.predictions import MIN_PROBABILITY, predict_proba_with_labels
from thaw.models.flat import CannotSplit, flatten_model
from thaw.models.linear_heads import linear_head
from thaw.tasks import class_numbers
from thaw.transfer.linear_solvers import log_partition

TEMPERATURES = (0.1, 10.0)
FOLDS = 5
MIN_EXAMPLES = 20  # a temperature of fewer is worse than none more often than not


class CannotCalibrate(ValueError):
    """Raised where the weights of the last layer do not set the probabilities; the message says why.

    Example:
        >>> from thaw.transfer import CannotCalibrate
        >>> issubclass(CannotCalibrate, ValueError)
        True
    """


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found and did.

    Args:
        temperature: that the logits were divided by; 1 where the model is unchanged.
        log_loss_before: weighted mean log loss of the examples, in nats.
        log_loss_after: the same afterwards, each example with a temperature fitted to others; ``log_loss_before`` where
            the model is unchanged.
        n: number of examples.
        fitted: temperature that was found, folded or not; ``None`` where there were too few examples.
        gain: how much ``fitted`` lowers the log loss, each example with a temperature fitted to others; ``None`` where
            there were too few examples.
        standard_error: of the gain, over pairs.

    Example:
        >>> from thaw.transfer import Calibration
        >>> print(Calibration(1.5, 0.62, 0.571, 300, 1.5, 0.049, 0.012))
        Calibrated: temperature 1.50, log loss 0.571 after 0.620 on 300 validation examples.
        >>> print(Calibration(1.0, 0.62, 0.62, 12))
        Not calibrated: there are fewer than 20 validation examples, or groups of them.
    """

    temperature: float
    log_loss_before: float
    log_loss_after: float
    n: int
    fitted: float | None = None
    gain: float | None = None
    standard_error: float | None = None

    def __str__(self):
        if self.fitted is None:
            return f"Not calibrated: there are fewer than {MIN_EXAMPLES} validation examples, or groups of them."
        if self.temperature != 1:
            return (
                f"Calibrated: temperature {self.temperature:.2f}, log loss {self.log_loss_after:.3f} after "
                f"{self.log_loss_before:.3f} on {self.n:,} validation examples."
            )
        return (
            f"Not calibrated: temperature {self.fitted:.2f} would change the log loss of {self.n:,} validation "
            f"examples by {-self.gain:+.4f}, no more than chance (standard error {self.standard_error:.4f})."
        )


def fit_temperature(logits, y, sample_weight=None):
    """Find the temperature by which logits are divided to give the best probabilities (Guo et al. 2017).

    It minimizes the log loss with a little doubt in the labels (Platt 1999): where all rows are right, the plain log
    loss is the lower, the lower the temperature is.

    Args:
        logits: ``(n, k)`` finite numbers of examples that the model was not trained on. The logarithms of
            probabilities are logits.
        y: ``(n,)`` class numbers.
        sample_weight: ``(n,)`` numbers from 0. Default ``None``: equal weights.

    Returns:
        A float from 0.1 to 10; above 1 for a model that is too sure.

    Raises:
        ValueError: arrays of different length, numbers that are not finite, or class numbers outside the classes.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import fit_temperature
        >>> logits = np.log([[0.9, 0.1]]).repeat(400, axis=0)  # right in three of four cases, not in nine of ten
        >>> round(fit_temperature(logits, np.arange(400) % 4 == 0), 1)
        2.0
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or 0 in logits.shape or not np.isfinite(logits).all():
        raise ValueError(f"logits has shape {logits.shape}; expected finite numbers, (examples, classes).")
    y = class_numbers(y, logits.shape[1])
    weight = np.ones(len(logits)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if len(y) != len(logits) or weight.shape != y.shape:
        raise ValueError(
            f"There are {len(logits)} logits, {len(y)} labels and {len(weight)} weights; expected one of each."
        )
    if not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise ValueError("sample_weight holds negative numbers, gaps or only 0; expected numbers from 0, not all 0.")
    found = minimize_scalar(
        lambda t: smoothed_log_loss(logits / np.exp(t), y, weight),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def smoothed_log_loss(logits, y, sample_weight):
    """Return the weighted mean log loss for targets that leave some doubt (Platt 1999).

    Args:
        logits: ``(n, k)``.
        y: ``(n,)`` class numbers.
        sample_weight: ``(n,)`` numbers from 0, not all 0.

    Returns:
        A float, in nats. Each target is 1 - d for its class, and d in equal parts for all, with d = 1 / (n + 2) for n
        rows of a weight above 0.
    """
    doubt = 1 / (np.count_nonzero(sample_weight) + 2)
    logits = logits.astype(np.float64)
    right = logits[np.arange(len(y)), y]
    losses = log_partition(logits) - (1 - doubt) * right - doubt * logits.mean(axis=1)
    return float(np.average(losses, weights=sample_weight))


def standard_error(losses, weight, groups):
    """Return the standard error of a weighted mean; what one group has in common is counted once.

    Args:
        losses: ``(n,)`` numbers.
        weight: ``(n,)`` weights.
        groups: ``(n,)`` group numbers from 0, without gaps.
    """
    deviations = np.bincount(groups, weight * (losses - np.average(losses, weights=weight)))
    count = len(deviations)
    return float(np.sqrt((deviations**2).sum() * count / max(1, count - 1)) / weight.sum())


def scale_logits(model, temperature):
    """Divide the logits of a model by a temperature, in the kernel and the bias of its last dense layer.

    The order of the classes stays, and with it the accuracy. The model is changed in place.

    Args:
        model: functional or sequential ``keras.Model``, flat or nested, that ends in a dense layer with a softmax, a
            sigmoid or no activation (logits).
        temperature: a number above 0; above 1 the probabilities become less sure.

    Raises:
        CannotCalibrate: the model ends otherwise, or its last layer is quantized or has LoRA.
        ValueError: a temperature that is not above 0.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import scale_logits
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, kernel_initializer="ones")])
        >>> scale_logits(model, 4)
        >>> np.asarray(model(np.ones((1, 1)))).tolist()
        [[0.25, 0.25]]
    """
    if isinstance(temperature, bool) or not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature!r}; expected a finite number above 0.")
    dense = _head_of(model).dense
    for variable in (dense.kernel, dense.bias) if dense.use_bias else (dense.kernel,):
        variable.assign(variable.numpy() / np.float32(temperature))


def adjust_logits(model, class_frequencies, tau=1.0):
    """Correct a model that was trained on uneven classes, so that it treats all classes alike (Menon et al. 2021).

    The logarithm of each class' frequency, times ``tau``, is subtracted from the bias of the last dense layer: with
    ``tau=1`` the probabilities become those of classes that are equally frequent, p(y|x) / p(y), scaled to a sum of 1.
    It is for a model that was trained without class weights, which do the same during the training. On data as uneven
    as those of the training the accuracy falls, and the balanced accuracy rises. The model is changed in place.

    Args:
        model: as for :func:`scale_logits`; its last dense layer has a bias, and one unit for each class or one for two.
        class_frequencies: numbers above 0, one for each class: frequencies, or numbers of training examples.
        tau: strength; 0 changes nothing. Default 1.

    Raises:
        CannotCalibrate: the model ends otherwise.
        ValueError: another number of frequencies, or some that are not above 0.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import adjust_logits
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "softmax")])
        >>> adjust_logits(model, [9, 1])
        >>> [round(float(p), 3) for p in model(np.zeros((1, 1)))[0]]  # [0.5, 0.5] before
        [0.1, 0.9]
    """
    if isinstance(tau, bool) or not 0 <= tau < np.inf:
        raise ValueError(f"tau={tau!r}; expected a finite number from 0.")
    head = _head_of(model)
    dense = head.dense
    if not dense.use_bias:
        raise CannotCalibrate(f"{dense.name} has no bias, which is what is adjusted; build it with use_bias=True.")
    if head.activation == "sigmoid" and dense.units > 1:
        raise CannotCalibrate(
            f"{dense.name} has {dense.units} sigmoid units, which are independent of one another; expected one class "
            "for each input."
        )
    classes = max(2, dense.units)
    frequencies = np.asarray(class_frequencies, np.float64)
    if frequencies.shape != (classes,) or not np.isfinite(frequencies).all() or frequencies.min() <= 0:
        raise ValueError(
            f"class_frequencies={np.asarray(class_frequencies).tolist()}; expected {classes} numbers above 0, one for "
            "each class."
        )
    shift = tau * np.log(frequencies / frequencies.sum())
    if dense.units == 1:  # one logit, that of class 1 against class 0
        shift = shift[1:] - shift[:1]
    dense.bias.assign(dense.bias.numpy() - shift)


def calibrate(model, validation_data, *, batch_size=32, seed=0):
    """Fit a temperature to held-out examples and fold it into the model, where that is more than chance.

    The temperature (Guo et al. 2017) is fitted on four fifths of the examples and measured on the rest, five times. It
    is folded in only where the mean log loss falls by more than one standard error of the pairs; else the model is
    bit-identical. The order of the classes never changes, and with it the accuracy.

    Args:
        model: as for :func:`scale_logits`; a classifier, compiled or not.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)`` or a :class:`thaw.Dataset` that the model was not trained
            on; the test examples decide nothing. Groups of a :class:`thaw.Dataset` stay together.
        batch_size: examples in a batch. Default 32.
        seed: seed of the five parts. Default 0.

    Returns:
        :class:`Calibration`, which prints as a sentence.

    Raises:
        CannotCalibrate: as :func:`scale_logits`.
        ValueError: data that cannot be evaluated, as for :func:`thaw.evaluate`.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import calibrate
        >>> last = keras.layers.Dense(2, "softmax", kernel_initializer="identity")
        >>> model = keras.Sequential([keras.Input((2,)), last])
        >>> x = np.log([[0.99, 0.01]]).repeat(200, axis=0)  # as sure as that, and right in three of four cases
        >>> print(calibrate(model, (x, (np.arange(200) % 4 == 0).astype(int))))
        Calibrated: temperature 4.21, log loss 0.565 after 1.159 on 200 validation examples.
    """
    seed = as_seed(seed)
    head = _head_of(model)
    dataset = as_validation(validation_data)
    # Always TensorFlow, so that a resumed run has the same bits.
    y, p = predict_proba_with_labels(model, dataset, batch_size=batch_size, runtime="tensorflow")
    # What a softmax in float32 still tells from 0, and of one sigmoid unit also from 1.
    single = head.dense.units == 1 and head.activation == "sigmoid"
    logits = np.log(np.maximum(p, np.finfo(np.float32).eps / 2 if single else np.finfo(np.float32).tiny))
    weight, groups = (getattr(dataset, name, None) for name in ("sample_weight", "groups"))
    weight = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    groups = np.arange(len(y)) if groups is None else groups
    counted = weight > 0
    y, logits, weight = y[counted], logits[counted], weight[counted]
    groups = np.unique(groups[counted], return_inverse=True)[1]
    before = _losses(logits, y)
    log_loss = float(np.average(before, weights=weight))
    count = int(groups.max()) + 1
    if count < MIN_EXAMPLES:
        return Calibration(1.0, log_loss, log_loss, len(y))
    fold = (np.random.default_rng(seed).permutation(count) % FOLDS)[groups]
    after = np.empty(len(y))
    for number in range(FOLDS):
        held_out = fold == number
        temperature = fit_temperature(logits[~held_out], y[~held_out], weight[~held_out])
        after[held_out] = _losses(logits[held_out] / temperature, y[held_out])
    gain = float(np.average(before - after, weights=weight))
    error = standard_error(before - after, weight, groups)
    fitted = fit_temperature(logits, y, weight)
    if gain <= error:
        return Calibration(1.0, log_loss, log_loss, len(y), fitted, gain, error)
    scale_logits(model, fitted)
    return Calibration(fitted, log_loss, float(np.average(after, weights=weight)), len(y), fitted, gain, error)


def _losses(logits, y):
    """Return the log loss of each row, as the metrics have it."""
    return np.minimum(log_partition(logits) - logits[np.arange(len(y)), y], -np.log(MIN_PROBABILITY))


def _head_of(model):
    """Return the linear head of a model, whose dense layer can be written to."""
    try:
        head = linear_head(flatten_model(model, training=False))
    except (CannotSplit, ValueError) as reason:
        raise CannotCalibrate(str(reason)) from None
    if head.units is not None:
        raise CannotCalibrate(f"{model.name} puts out numbers in units of their own; expected probabilities or logits.")
    if getattr(head.dense, "lora_enabled", False) or getattr(head.dense, "quantization_mode", None):
        raise CannotCalibrate(f"{head.dense.name} is quantized or has LoRA, so that its kernel cannot be set.")
    return head
