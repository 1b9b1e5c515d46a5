"""What a plan would do: what moves, how fast, and for how long."""

import contextlib
import dataclasses
import time

import numpy as np

from thaw.forward import forward
from thaw.stages import graph_of, stages_of
from thaw.tuning.flatten import CannotSplit
from thaw.tuning.freeze import freeze
from thaw.tuning.split import split


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One phase as it would run.

    Args:
        phase: its name.
        moving: names of the stages that move.
        parameters: how many weights move.
        rates: peak learning rate of each moving stage, by name.
        seconds: estimated from a few batches of noise, with the first compilation; reading the data not counted.
        once: how many of these go by before the first epoch: what stands still, and the compilation.
    """

    phase: str
    moving: tuple[str, ...]
    parameters: int
    rates: dict[str, float]
    seconds: float
    once: float = 0.0


def dry_run(model, plan, counts, *, batch_size=32, measure=True):
    """Say what each phase would do, without training.

    Args:
        model: a built ``keras.Model`` with its head. Weights, ``trainable`` flags and random states are the same
            afterwards; it is left uncompiled, as after any change of ``trainable``.
        plan: a :class:`thaw.Plan`.
        counts: number of training and of validation examples.
        batch_size: examples in a batch.
        measure: run a few batches to estimate the time; otherwise ``seconds`` is 0.

    Returns:
        A tuple of :class:`Forecast`, one for each phase.

    Raises:
        ValueError: the plan names a stage that the model does not have.

    Example:
        >>> import keras
        >>> from thaw import Plan, dry_run
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> [f.parameters for f in dry_run(model, Plan.named("probe"), (100, 20), measure=False)]
        [18]
    """
    stages = stages_of(model)
    flags = {layer: layer.trainable for layer in model._flatten_layers()}
    states = [(v, v.numpy()) for v in model.non_trainable_variables]
    forecasts, before, kept = [], None, 0
    try:
        for phase in plan:
            moving = freeze(model, phase.train, phase.batchnorm)
            # One pass serves the phases after it that move more: of their versions only further ones are computed.
            served = before is not None and before <= set(moving) and phase.versions >= kept
            kept_before = kept if served else 0
            before, kept = (set(moving), phase.versions) if phase.views else (None, 0)
            depth = {stage.name: i for i, stage in enumerate(reversed(stages))}
            rates = {s.name: phase.learning_rate * phase.stage_decay ** depth[s.name] for s in moving}
            parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
            once, epoch = _seconds(model, phase, counts, batch_size, kept_before) if measure else (0.0, 0.0)
            seconds = once + phase.epochs * epoch
            forecasts.append(Forecast(phase.name, tuple(s.name for s in moving), parameters, rates, seconds, once))
    finally:
        for layer, flag in flags.items():
            layer._trainable = flag
            for variable in layer._trainable_variables:
                variable.trainable = flag
        model.compiled = False
        for variable, value in states:
            variable.assign(value)
    return tuple(forecasts)


def _seconds(model, phase, counts, batch_size, kept):
    """Before the first epoch, and in each."""
    import keras
    import tensorflow as tf

    train, validation = (-(-n // batch_size) for n in counts)
    prefix, suffix = None, model
    if phase.views:
        with contextlib.suppress(CannotSplit):
            prefix, suffix = split(model)
    x = keras.tree.map_structure(lambda t: _noise((batch_size, *t.shape[1:]), t.dtype), graph_of(model).input)
    once = 0.0
    if prefix is not None:
        batches = train * (phase.versions - kept) + (0 if kept else validation)
        usual, compiling = _timed(forward(prefix, batch_size, examples=batch_size * batches), x)
        once = compiling + usual * batches
        x = prefix(x, training=False)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            out = keras.tree.flatten(suffix(x, training=True))
            loss = sum(tf.reduce_mean(tf.cast(part, tf.float32) ** 2) for part in out)
        return tape.gradient(loss, suffix.trainable_variables)

    training, compiling = _timed(step, x)
    checking, more = _timed(tf.function(lambda x: suffix(x, training=False)), x)
    return once + compiling + more, train * training + validation * checking


def _noise(shape, dtype):
    """Inputs of a kind: pixels, or numbers that any table of words has."""
    import tensorflow as tf

    if tf.as_dtype(dtype).is_floating:
        return tf.cast(tf.random.stateless_uniform(shape, (0, 0), 0, 255), dtype)
    return tf.ones(shape, dtype)


def _timed(function, x):
    """Median seconds of a call, and what the first one took more."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        function(x)
        times.append(time.perf_counter() - begin)
    usual = float(np.median(times[1:]))
    return usual, max(0.0, times[0] - usual)
