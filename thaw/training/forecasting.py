"""Forecast what each phase of a plan trains, and how long it takes."""

import contextlib
import dataclasses
import functools
import time

import numpy as np

from thaw._keras import functional_graph
from thaw.features.inference import inference_runner
from thaw.features.split import CannotSplit, split_model
from thaw.models.stages import stages_of
from thaw.models.state import preserve_model
from thaw.training.depthwise import with_fast_depthwise
from thaw.training.freezing import freeze

TIMED_CALLS = 4  # the first one, which compiles, and three more


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Forecast of one phase of a plan: the stages it trains, and for how long.

    Args:
        phase: name of the phase.
        stages: names of the trainable stages.
        parameters: number of trainable parameters.
        rates: peak learning rate of each trainable stage, by name.
        seconds: estimated duration, from a few batches of noise, with compilation and without reading the data; 0
            where it was not measured.
        seconds_before: how much of it passes before the first epoch: compilation, and the features of the frozen
            prefix.
    """

    phase: str
    stages: tuple[str, ...]
    parameters: int
    rates: dict[str, float]
    seconds: float
    seconds_before: float = 0.0


def forecast(model, plan, examples, *, batch_size=32, measure=True):
    """Forecast what each phase of a plan trains and how long it takes, without training.

    A solved phase is forecast as one pass and one epoch, without the solver itself, which takes seconds for thousands
    of examples. With ``views=0`` the forecast of other phases assumes augmentation, so that each epoch computes the
    whole model. Without augmentation the frozen part is cached, and training takes less time than forecast.

    Args:
        model: a built ``keras.Model`` with its head. Weights, ``trainable`` flags, compilation and random states are
            bit-identical afterwards.
        plan: a :class:`thaw.Plan`.
        examples: ``(train, validation)``, the numbers of examples, ints.
        batch_size: examples in a batch. Default 32.
        measure: whether to run a few batches to estimate the time. Default ``True``.

    Returns:
        A tuple of :class:`Forecast`, one for each phase.

    Raises:
        ValueError: the plan names a stage that the model does not have; or, with ``measure``, the model takes inputs of
            any length, or is subclassed.

    Example:
        >>> import keras
        >>> from thaw import Plan, forecast
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> [f.parameters for f in forecast(model, Plan.named("probe"), (100, 20), measure=False)]
        [18]
    """
    stages = stages_of(model)
    depth = {stage.name: i for i, stage in enumerate(reversed(stages))}
    forecasts, cached_for, cached_versions = [], None, 0
    with preserve_model(model):
        for phase in plan:
            trainable = freeze(model, phase.train, phase.batchnorm, stages, phase.variables)
            # The features cached for an earlier phase serve this one if it trains more; only further versions of the
            # examples are computed.
            is_served = cached_for is not None and cached_for <= set(trainable) and phase.versions >= cached_versions
            served = cached_versions if is_served else 0
            cached_for, cached_versions = (set(trainable), phase.versions) if phase.views else (None, 0)
            epochs = 1 if phase.solves else phase.epochs
            rates = {s.name: phase.learning_rate * phase.layer_decay ** depth[s.name] for s in trainable}
            parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
            before, epoch = _seconds(model, phase, examples, batch_size, served) if measure else (0.0, 0.0)
            names = tuple(stage.name for stage in trainable)
            seconds = before + epochs * epoch
            forecasts.append(Forecast(phase.name, names, parameters, rates, seconds, before))
    return tuple(forecasts)


def _seconds(model, phase, examples, batch_size, cached_versions):
    """Estimate the seconds before the first epoch, and of each epoch."""
    import keras
    import tensorflow as tf

    train, validation = (-(-n // batch_size) for n in examples)
    lengths = {t.name: t.shape[1:] for t in getattr(model, "inputs", None) or ()}
    if not lengths or any(None in shape for shape in lengths.values()):
        what = f"takes inputs of any length ({lengths})" if lengths else "is a subclassed model, without an Input"
        raise ValueError(f"{model.name} {what}, so that there is nothing to measure with; write measure=False.")
    prefix, suffix = None, model
    if phase.views or phase.solves:
        with contextlib.suppress(CannotSplit):
            prefix, suffix = split_model(model)
            suffix = with_fast_depthwise(suffix, suffix)
    x = keras.tree.map_structure(lambda t: _noise((batch_size, *t.shape[1:]), t.dtype), functional_graph(model).input)
    before = 0.0
    if prefix is not None:
        versions = phase.versions if phase.views else 1  # a solver sees the examples as they are
        batches = train * (versions - cached_versions) + (0 if cached_versions else validation)
        usual, compiling = _timed(inference_runner(prefix, batch_size, examples=batch_size * batches), x)
        before = compiling + usual * batches
        x = prefix(x, training=False)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(suffix(x, training=True))
            loss = sum(tf.reduce_mean(tf.cast(output, tf.float32) ** 2) for output in outputs)
        return tape.gradient(loss, suffix.trainable_variables)

    training, compiling = _timed(step, x)
    validating, compiling_more = _timed(tf.function(lambda x: suffix(x, training=False)), x)
    return before + compiling + compiling_more, train * training + validation * validating


def _noise(shape, dtype):
    """Make random inputs: pixels for floats; ones for integers, which any table of words has; the same for texts."""
    import tensorflow as tf

    if dtype == "string":
        return tf.fill(shape, "1")

    if tf.as_dtype(dtype).is_floating:
        return tf.cast(tf.random.stateless_uniform(shape, (0, 0), 0, 255), dtype)
    return tf.ones(shape, dtype)


def _timed(function, x):
    """Measure the median seconds of a call, and how much longer the first one took."""
    times = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        function(x)
        times.append(time.perf_counter() - start)
    usual = float(np.median(times[1:]))
    return usual, max(0.0, times[0] - usual)


def epoch_overheads(plan, data, batch_size):
    """Measure what an epoch of each phase takes besides the steps that :func:`forecast` measures.

    Args:
        plan: a :class:`thaw.Plan`.
        data: pair of training and validation :class:`thaw.Dataset`.
        batch_size: examples in a batch.

    Returns:
        A list of seconds: the overhead of ``fit``, and where nothing is cached the reading of the examples.
    """
    step, epoch = _seconds_of_fit()
    overheads = [epoch + step * sum(part.steps(batch_size) for part in data)] * len(plan)
    for i, phase in enumerate(plan):  # without a cache the examples are read and augmented in every epoch
        is_cached = phase.views or phase.solves
        overheads[i] += 0.0 if is_cached else _seconds_to_read(data[0], batch_size) * data[0].steps(batch_size)
    return overheads


@functools.cache
def _seconds_of_fit():
    """Measure the overhead of ``fit`` in seconds, for each step and for each epoch."""
    import keras

    from thaw.data.dataset import Dataset

    seconds = {}
    for steps in (10, 100):
        data = Dataset(x=np.zeros((steps, 1), "float32"), y=np.zeros((steps, 1), "float32"))
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("adam", "mse", metrics=["mae"], jit_compile=False)
        fit = {"steps_per_epoch": steps, "validation_data": data.ordered(1), "shuffle": False, "verbose": 0}
        model.fit(data.epochs(1, seed=0), **fit)
        begin = time.perf_counter()
        model.fit(data.epochs(1, seed=0), epochs=3, **fit)
        seconds[steps] = (time.perf_counter() - begin) / 3
    step = max(0.0, seconds[100] - seconds[10]) / 180
    return step, max(0.0, seconds[10] - 20 * step)


def _seconds_to_read(dataset, batch_size):
    """Measure the seconds to read and augment a batch."""
    batches = iter(dataset.epochs(batch_size, seed=0).take(9))
    next(batches)
    begin = time.perf_counter()
    read = sum(1 for _ in batches)
    return (time.perf_counter() - begin) / read
