"""A range test for the learning rate, which leaves the model as it was."""

import contextlib
import dataclasses
import math

import keras
import numpy as np

from thaw.examples import Examples
from thaw.number import plain_number, whole_number
from thaw.tuning.fresh_optimizer import fresh_optimizer
from thaw.tuning.mistakes import mistakes, refuse
from thaw.tuning.untouched import untouched

SHOWN = 11  # rows of the table
DISAGREE = 10.0  # repeats whose suggestions are this many times apart suggest nothing
FALL = 0.01  # of the loss; a smaller fall is no reason for a rate
SURE = 4.0  # standard errors
DIVERGED = 4.0  # times the loss at the start


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTest:
    """What :func:`find_learning_rate` found.

    Args:
        rates: ``(steps,)``, from the lowest to the highest.
        losses: ``(repeats, steps)``, the loss at each rate; NaN after a repeat has diverged.
        suggestion: the learning rate, or ``None``: there is no clear one.
        low: lowest suggestion of a repeat, or ``None``.
        high: highest suggestion of a repeat, or ``None``.
        reason: one sentence: why this one, or why none.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    low: float | None
    high: float | None
    reason: str

    def __str__(self):
        lines = ["     rate      loss    lowest   highest"]
        last = len(self.rates) - 1
        for i in sorted({round(last * k / (SHOWN - 1)) for k in range(SHOWN)}):
            at = self.losses[:, i]
            known = at[np.isfinite(at)]
            what = f"{len(known)} of {len(at)} repeats have a loss here"
            if len(known) == len(at):
                what = f"{np.median(at):8.4g}  {at.min():8.4g}  {at.max():8.4g}"
            lines.append(f"{self.rates[i]:9.2e}  {what}")
        return "\n".join([*lines, self.reason])


def find_learning_rate(model, data, *, batch_size=32, rates=(1e-6, 1.0), steps=100, repeats=3, seed=0):
    """Try learning rates from low to high on a compiled model, and put everything back.

    The range test (Smith 2017): the rate grows from step to step by the same factor, and the loss stays, falls, and
    goes up in the end. Suggested is the rate at which half of the fall is behind it, after a running median; it
    lies where the loss falls fastest and well below where it goes up. The test is repeated from the same weights
    on other batches. The suggestion is the median of the repeats' suggestions; ``low`` and ``high`` are the lowest and
    the highest of them. There is none where the loss does not fall clearly in every repeat (by a hundredth and by
    more than its noise), falls already at the lowest rate or still at the highest, or where the repeats are ten
    times apart.

    Each repeat trains with a new optimizer of the same class and settings, through the model's own ``train_step``.
    Afterwards, also after an error or an interruption, the weights, BatchNorm's statistics, the optimizer, the
    metrics, the ``trainable`` flags, the compilation and the random states are what they were, to the bit.

    Args:
        model: a built, compiled ``keras.Model``. A rate that a schedule has set is not used.
        data: what it is to be trained on, :class:`thaw.Examples`, ``(x, y)`` arrays, or a batched
            ``tf.data.Dataset``, whose own shuffling goes on where the test has left it.
        batch_size: examples in a batch, as in the training that follows.
        rates: the lowest and the highest learning rate.
        steps: rates in all, a step of training for each.
        repeats: at least 2; from one there is no interval.
        seed: of the order of the examples.

    Returns:
        :class:`RangeTest`; as a string it is a table.

    Raises:
        ValueError: data that do not fit the model; a model that is not compiled, or whose optimizer was changed on the
            instance, as :func:`thaw.per_stage` does; or numbers outside their range.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.find_learning_rate import find_learning_rate
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((8, 1), "float32")
        >>> found = find_learning_rate(model, (x, 9 * x), rates=(1e-5, 10), steps=40, repeats=2)
        >>> found.losses.shape, 0.01 < found.suggestion < 1
        ((2, 40), True)
    """
    batch_size, seed = whole_number("batch_size", batch_size, 1), whole_number("seed", seed)
    steps, repeats = whole_number("steps", steps, 1), whole_number("repeats", repeats, 1)
    low, high = map(plain_number, rates) if np.shape(rates) == (2,) else (None, None)
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not (numbers and 0 < low < high < math.inf and steps >= 20 and repeats >= 2):
        raise ValueError(
            f"rates={rates!r}, steps={steps!r}, repeats={repeats!r}; expected a rate above 0 and a higher one, at "
            "least 20 steps and at least 2 repeats."
        )
    settings = _settings(model)
    refuse(mistakes(model, data, batch_size=batch_size))
    rates = np.geomspace(low, high, steps)
    losses = np.full((repeats, steps), np.nan)
    with _as_it_was(model) as variables:
        for repeat in range(repeats):
            batches, spec = _batches(data, batch_size, seed, repeat, steps)
            for variable, value in variables.items():
                variable.assign(value)
            # Keras' own compile: a subclass may have another, which would make more than is put back.
            fresh = fresh_optimizer(settings["optimizer"], float(rates[0]))
            keras.Model.compile(model, **settings | {"optimizer": fresh})
            model._compile_metrics = None  # compile leaves those from before
            model.optimizer.build(model.trainable_variables)
            step = _step(model, spec, variables)
            for i, (rate, batch) in enumerate(zip(rates, batches)):
                model.optimizer.learning_rate = float(rate)
                model.reset_metrics()
                loss = losses[repeat, i] = float(step(batch))
                if not math.isfinite(loss) or _diverged(losses[repeat, : i + 1], _half_window(steps)):
                    break
    return RangeTest(rates, losses, *_suggest(rates, losses))


def _settings(model):
    if not model.built:
        raise ValueError(f"{model.name} is not built yet; call it on an input, or begin it with keras.Input.")
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"{model.name} is not compiled; write model.compile(optimizer, loss) first, also after a change of "
            "trainable."
        )
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if "update_step" in vars(inner):
        raise ValueError(
            "The optimizer's update_step was changed on the instance, and the test needs a new optimizer that would "
            "not have the change; compile the model with the optimizer as it was before, then look for the rate."
        )
    settings = dict(model._compile_config.config)  # what the user gave to compile, as it was given
    # No metrics: they are not looked at, and not to be touched. No XLA: compiling takes longer than the test.
    return settings | {"metrics": None, "weighted_metrics": None, "jit_compile": False, "steps_per_execution": 1}


@contextlib.contextmanager
def _as_it_was(model):
    """Leave the model untouched, and put back what is added on the way; gives the variables and their values."""
    variables = _Values()
    variables.add(v.value for v in (*model.variables, *model.metrics_variables))
    with untouched(model) as drawn:
        variables.add(drawn)
        try:
            yield variables
        finally:
            for variable, value in variables.items():
                variable.assign(value)


class _Values:
    """Variables of TensorFlow and what they held when they were added."""

    def __init__(self):
        self._held = {}

    def add(self, variables):
        for variable in variables:
            if variable.ref() not in self._held:
                self._held[variable.ref()] = variable.numpy()

    def items(self):
        return [(ref.deref(), value) for ref, value in self._held.items()]


def _step(model, spec, variables):
    """One step of training that gives its loss. Whatever else it changes is added to the variables."""
    import tensorflow as tf

    def step(batch):
        logs = model.train_step(batch)
        if "loss" not in logs:
            raise ValueError(f"The train_step of {model.name} gives {', '.join(logs) or 'nothing'}; expected a loss.")
        return logs["loss"]

    if model.run_eagerly:
        return step
    own = {v.value.ref() for v in model.optimizer.variables} | {v.value.ref() for v in model._loss_tracker.variables}
    traced = tf.function(step, input_signature=[spec], jit_compile=False).get_concrete_function()
    # Such as what a layer or a second optimizer changes and no list of the model's has.
    variables.add(v for v in traced.variables if v.ref() not in own)
    return lambda batch: traced(*tf.nest.flatten(batch, expand_composites=True))


def _batches(data, batch_size, seed, repeat, steps):
    """Batches for one repeat, and what they look like."""
    data = Examples.of(data)
    if isinstance(data, Examples):
        batches = data.epochs(batch_size, seed=seed + repeat)
    else:
        batches = data.repeat().skip(repeat * steps)
    return batches.take(steps), batches.element_spec


def _half_window(steps):
    return max(1, steps // 20)


def _diverged(row, k):
    size = 2 * k + 1
    if len(row) < 2 * size:
        return False
    start = np.median(row[:size])
    return np.median(row[-size:]) > start + (DIVERGED - 1) * abs(start)


def _suggest(rates, losses):
    """Suggestion, lowest, highest and the reason, from the losses of all repeats."""
    found = [_of_one(rates, row) for row in losses]
    wrong = {}
    for _, reason in found:
        if reason:  # one of a kind may name another rate
            wrong.setdefault(reason.partition(" at ")[0], []).append(reason)
    if wrong:
        told = [
            (f"in {len(alike)} of {len(found)} repeats " if len(alike) < len(found) else "") + alike[0]
            for alike in wrong.values()
        ]
        return None, None, None, f"There is no clear suggestion: {' And '.join(told)}"
    each = np.array([rate for rate, _ in found])
    low, high = float(each.min()), float(each.max())
    if high > DISAGREE * low:
        reason = f"the repeats suggest rates from {low:.2g} to {high:.2g}. Take more steps or larger batches."
        return None, low, high, f"There is no clear suggestion: {reason}"
    suggestion = float(np.exp(np.median(np.log(each))))
    return (
        suggestion,
        low,
        high,
        f"Suggested: {suggestion:.2g} ({low:.2g} to {high:.2g} over {len(each)} repeats), where half of the fall of "
        "the loss is behind it.",
    )


def _of_one(rates, row):
    """``(rate, "")`` of one repeat, or ``(None, why not)``."""
    k = _half_window(len(rates))
    size = 2 * k + 1
    known = np.isfinite(row)
    n = len(row) if known.all() else int(known.argmin())
    if n < 2 * size:
        return None, f"the loss is not a number at a rate of {rates[n]:.2g}. Try lower rates, and look at the inputs."
    row = row[:n]
    smooth = np.array([np.median(row[max(0, i - k) : i + k + 1]) for i in range(n)])
    start, bottom = np.median(row[:size]), int(smooth.argmin())
    fall = start - smooth[bottom]
    # Differences of neighbours show the noise whatever the trend; from them the error of two medians.
    noise = 1.4826 * np.median(np.abs(np.diff(row[: max(bottom, size) + 1]))) / math.sqrt(2)
    error = math.sqrt(2) * 1.2533 * noise / math.sqrt(size)
    if not fall > max(SURE * error, FALL * abs(start)):
        return None, "the loss does not fall clearly at any rate. Take larger batches, or more steps."
    half = start - fall / 2
    above = np.flatnonzero(smooth[: bottom + 1] > half)
    after = int(above[-1]) + 1 if len(above) else 0
    if after < size + k:
        return None, f"the loss falls already at the lowest rate, {rates[0]:.2g}. Begin lower."
    if n == len(rates) and bottom >= n - 1 - k:
        return None, f"the loss still falls at the highest rate, {rates[-1]:.2g}. Go higher."
    share = (smooth[after - 1] - half) / (smooth[after - 1] - smooth[after])
    return float(np.exp(np.interp(share, [0, 1], np.log(rates[[after - 1, after]])))), ""
