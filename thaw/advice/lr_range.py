"""lr_finder: the learning-rate range test."""

import contextlib
import dataclasses
import math

import keras
import numpy as np

from thaw._keras import compile_settings, forget_compiled_metrics, inner_optimizer, loss_variables
from thaw._validation import as_int, as_number, as_seed, check_model
from thaw.checks import check_data, raise_on_errors
from thaw.data.conversion import as_dataset
from thaw.models.state import preserve_model
from thaw.training.optimizers import clone_optimizer

TABLE_ROWS = 11
MAX_SUGGESTION_RATIO = 10.0  # between the suggestions of two repeats; with more there is none
MIN_RELATIVE_FALL = 0.01  # of the loss, for a suggestion
MIN_FALL_STANDARD_ERRORS = 4.0
DIVERGED_LOSS_RATIO = 4.0  # to the loss at the start
MIN_STEPS, MIN_REPEATS = 20, 2


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTest:
    """The result of :func:`lr_finder`; ``str()`` is a table.

    Args:
        rates: ``(steps,)`` learning rates, from the lowest to the highest.
        losses: ``(repeats, steps)``, the loss at each rate; NaN after a repeat has diverged.
        suggestion: the suggested learning rate; ``None`` where there is no clear one.
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
        for i in sorted({round(last * k / (TABLE_ROWS - 1)) for k in range(TABLE_ROWS)}):
            losses = self.losses[:, i]
            finite = np.isfinite(losses).sum()
            columns = f"{finite} of {len(losses)} repeats have a loss here"
            if finite == len(losses):
                columns = f"{np.median(losses):8.4g}  {losses.min():8.4g}  {losses.max():8.4g}"
            lines.append(f"{self.rates[i]:9.2e}  {columns}")
        return "\n".join([*lines, self.reason])


def lr_finder(
    model,
    x,
    y=None,
    *,
    sample_weight=None,
    class_weight=None,
    batch_size=32,
    rates=(1e-6, 1.0),
    steps=100,
    repeats=3,
    seed=0,
    progress=None,
):
    """Run a learning-rate range test on a compiled model, and restore the model.

    The learning rate grows from step to step by the same factor, and the loss stays, falls, and rises in the end
    (Smith 2017). The suggestion is the rate at which half of the fall is reached, after a running median; there the
    loss falls fastest, well below the rate at which it rises. The test is repeated from the same weights on other
    batches. ``suggestion`` is the median over the repeats; ``low`` and ``high`` are the lowest and the highest of them.
    There is none where the loss does not fall clearly in every repeat (by a hundredth and by more than its noise),
    falls already at the lowest rate or still at the highest, or where the repeats differ by a factor of ten.

    Each repeat trains with a new optimizer of the same class and settings, through the model's own ``train_step``.
    Afterwards, also after an error or an interruption, the weights, BatchNorm statistics, the optimizer, the
    metrics, the ``trainable`` flags, the compilation and the random states are bit-identical.

    Args:
        model: a built, compiled ``keras.Model``. A learning rate that a schedule has set is not used.
        x: inputs as ``fit`` takes them, a :class:`thaw.Dataset`, or a batched ``tf.data.Dataset``, whose own shuffling
            goes on where the test has left it; see :func:`thaw.as_dataset`.
        y: targets; ``None`` where ``x`` brings them. Default ``None``.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        class_weight: dict from class number to weight in the loss. Default ``None``.
        batch_size: examples in a batch, as in the training that follows. Default 32.
        rates: the lowest and the highest learning rate. Default ``(1e-6, 1.0)``.
        steps: number of learning rates, with one training step each; at least 20. Default 100.
        repeats: number of repeats, at least 2. Default 3.
        seed: seed of the order of the examples. Default 0.
        progress: called with ``(done, total)`` steps after each step. Default ``None``.

    Returns:
        :class:`RangeTest`; as a string it is a table.

    Raises:
        ValueError: data that do not fit the model; a model that is not compiled, or whose optimizer was changed on the
            instance, as :func:`thaw.layerwise_lr_decay` does; or invalid numbers.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import lr_finder
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((8, 1), "float32")
        >>> result = lr_finder(model, x, 9 * x, rates=(1e-5, 10), steps=40, repeats=2)
        >>> result.losses.shape, 0.01 < result.suggestion < 1
        ((2, 40), True)
    """
    check_model(model)
    batch_size, seed = as_int("batch_size", batch_size, 1), as_seed(seed)
    steps, repeats = as_int("steps", steps, 1), as_int("repeats", repeats, 1)
    low, high = map(as_number, rates) if np.shape(rates) == (2,) else (None, None)
    are_numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not (are_numbers and 0 < low < high < math.inf and steps >= MIN_STEPS and repeats >= MIN_REPEATS):
        raise ValueError(
            f"rates={rates!r}, steps={steps!r}, repeats={repeats!r}; expected a rate above 0 and a higher one, at "
            f"least {MIN_STEPS} steps and at least {MIN_REPEATS} repeats."
        )
    settings = _settings(model)
    dataset = as_dataset(x, y, sample_weight).weighted(class_weight)
    raise_on_errors(check_data(model, dataset, batch_size=batch_size))
    rates = np.geomspace(low, high, steps)
    losses = np.full((repeats, steps), np.nan)
    with _restored(model) as variables:
        for repeat in range(repeats):
            batches, spec = _batches(dataset, batch_size, seed, repeat, steps)
            for variable, value in variables.items():
                variable.assign(value)
            # Keras' own compile: that of a subclass might change what is not restored.
            optimizer = clone_optimizer(settings["optimizer"], float(rates[0]))
            keras.Model.compile(model, **settings | {"optimizer": optimizer})
            forget_compiled_metrics(model)
            model.optimizer.build(model.trainable_variables)
            step = _step(model, spec, variables)
            for i, (rate, batch) in enumerate(zip(rates, batches)):
                model.optimizer.learning_rate = float(rate)
                model.reset_metrics()
                loss = losses[repeat, i] = float(step(batch))
                if progress is not None:
                    progress(repeat * steps + i + 1, repeats * steps)
                if not math.isfinite(loss) or _diverged(losses[repeat, : i + 1], _half_window(steps)):
                    break
    return RangeTest(rates, losses, *_suggest(rates, losses))


def _settings(model):
    if not model.built:
        raise ValueError(f"{model.name} is not built; call it on an input, or begin it with keras.Input.")
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"{model.name} is not compiled; call model.compile(optimizer, loss) first, also after a change of "
            "trainable."
        )
    inner = inner_optimizer(model.optimizer)
    if "update_step" in vars(inner):
        raise ValueError(
            "The optimizer's update_step was changed on the instance, and the test needs a new optimizer, which would "
            "not have the change; compile the model with an unchanged optimizer for the test."
        )
    settings = compile_settings(model)
    # No metrics: they are not used, and must not change. No XLA: compiling takes longer than the test.
    return settings | {"metrics": None, "weighted_metrics": None, "jit_compile": False, "steps_per_execution": 1}


@contextlib.contextmanager
def _restored(model):
    """Restore the model at the end, and what is added to the yielded variables meanwhile."""
    variables = _SavedVariables()
    variables.add(v.value for v in (*model.variables, *model.metrics_variables))
    with preserve_model(model) as drawn:
        variables.add(drawn)
        try:
            yield variables
        finally:
            for variable, value in variables.items():
                variable.assign(value)


class _SavedVariables:
    """TensorFlow variables and the values that they had when they were added."""

    def __init__(self):
        self._values = {}

    def add(self, variables):
        for variable in variables:
            if variable.ref() not in self._values:
                self._values[variable.ref()] = variable.numpy()

    def items(self):
        return [(ref.deref(), value) for ref, value in self._values.items()]


def _step(model, spec, variables):
    """Return a training step that returns its loss. Variables that it changes besides are saved."""
    import tensorflow as tf

    def step(batch):
        logs = model.train_step(batch)
        if "loss" not in logs:
            raise ValueError(f"The train_step of {model.name} returns {', '.join(logs) or 'nothing'}; expected a loss.")
        return logs["loss"]

    if model.run_eagerly:
        return step
    own = {v.value.ref() for v in model.optimizer.variables} | {v.value.ref() for v in loss_variables(model)}
    traced = tf.function(step, input_signature=[spec], jit_compile=False).get_concrete_function()
    # Such as those of a layer or a second optimizer that are in no list of the model.
    variables.add(v for v in traced.variables if v.ref() not in own)
    return lambda batch: traced(*tf.nest.flatten(batch, expand_composites=True))


def _batches(dataset, batch_size, seed, repeat, steps):
    """Return the batches of one repeat, and their spec."""
    batches = dataset.epochs(batch_size, seed=seed + repeat)
    if not dataset.random_access:
        batches = batches.skip(repeat * steps)
    return batches.take(steps), batches.element_spec


def _half_window(steps):
    return max(1, steps // 20)


def _diverged(row, k):
    size = 2 * k + 1
    if len(row) < 2 * size:
        return False
    start = np.median(row[:size])
    return np.median(row[-size:]) > start + (DIVERGED_LOSS_RATIO - 1) * abs(start)


def _suggest(rates, losses):
    """Return the suggestion, the lowest, the highest and the reason, from the losses of all repeats."""
    of_repeats = [_of_repeat(rates, row) for row in losses]
    reasons = {}
    for _, reason in of_repeats:
        if reason:  # the same reason may name different rates
            reasons.setdefault(reason.partition(" at ")[0], []).append(reason)
    if reasons:
        n = len(of_repeats)
        sentences = [
            (f"in {len(same)} of {n} repeats " if len(same) < n else "") + same[0] for same in reasons.values()
        ]
        return None, None, None, f"There is no clear suggestion: {' And '.join(sentences)}"
    each = np.array([rate for rate, _ in of_repeats])
    low, high = float(each.min()), float(each.max())
    if high > MAX_SUGGESTION_RATIO * low:
        reason = f"the repeats suggest rates from {low:.2g} to {high:.2g}. Take more steps or larger batches."
        return None, low, high, f"There is no clear suggestion: {reason}"
    suggestion = float(np.exp(np.median(np.log(each))))
    return (
        suggestion,
        low,
        high,
        f"Suggested: {suggestion:.2g} ({low:.2g} to {high:.2g} over {len(each)} repeats), where half of the fall of "
        "the loss is reached.",
    )


def _of_repeat(rates, row):
    """Return ``(rate, "")`` for one repeat, or ``(None, reason)``."""
    k = _half_window(len(rates))
    size = 2 * k + 1
    finite = np.isfinite(row)
    n = len(row) if finite.all() else int(finite.argmin())
    if n < 2 * size:
        return None, f"the loss is not finite at a rate of {rates[n]:.2g}. Try lower rates, and look at the inputs."
    row = row[:n]
    smooth = np.array([np.median(row[max(0, i - k) : i + k + 1]) for i in range(n)])
    start, bottom = np.median(row[:size]), int(smooth.argmin())
    fall = start - smooth[bottom]
    # Differences of adjacent losses are noise whatever the trend; from them follows the error of two medians.
    noise = 1.4826 * np.median(np.abs(np.diff(row[: max(bottom, size) + 1]))) / math.sqrt(2)
    error = math.sqrt(2) * 1.2533 * noise / math.sqrt(size)
    if not fall > max(MIN_FALL_STANDARD_ERRORS * error, MIN_RELATIVE_FALL * abs(start)):
        return None, "the loss does not fall clearly at any rate. Take larger batches, or more steps."
    half = start - fall / 2
    above = np.flatnonzero(smooth[: bottom + 1] > half)
    after = int(above[-1]) + 1 if len(above) else 0
    if after < size + k:
        return None, f"the loss falls already at the lowest rate, {rates[0]:.2g}. Begin lower."
    if n == len(rates) and bottom >= n - 1 - k:
        return None, f"the loss still falls at the highest rate, {rates[-1]:.2g}. Go higher."
    fraction = (smooth[after - 1] - half) / (smooth[after - 1] - smooth[after])
    return float(np.exp(np.interp(fraction, [0, 1], np.log(rates[[after - 1, after]])))), ""
