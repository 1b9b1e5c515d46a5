"""Try things on a model, and leave no trace."""

import contextlib
import random

import keras
import numpy as np


@contextlib.contextmanager
def untouched(model):
    """Whatever is done to a model inside, afterwards it is as it was, to the bit, also after an error.

    That is its weights and random states, its ``trainable`` flags, its compilation with the optimizer and the metrics
    and what they hold, and the global random states of Python, NumPy and Keras.

    Args:
        model: a built ``keras.Model``, compiled or not.

    Yields:
        What :func:`same_randomness` does.

    Example:
        >>> import keras
        >>> from thaw import freeze
        >>> from thaw.tuning.untouched import untouched
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with untouched(model):
        ...     moving = freeze(model, "head")
        >>> model.layers[0].trainable, model.compiled
        (True, True)
    """
    variables = {id(v): v for v in [*model.variables, *model.metrics_variables, *_of_compilation(model)]}.values()
    put_back = _set_up(model, variables)
    values = [(v.value, v.numpy()) for v in variables]
    metrics = [(m, dict(vars(m)), len(m._variables)) for m in _given(model) if isinstance(m, keras.metrics.Metric)]
    with same_randomness() as drawn:
        try:
            yield drawn
        finally:
            put_back()
            for variable, value in values:
                variable.assign(value)
            for metric, attributes, count in metrics:  # some make their variables at the first batch
                for ids in metric._tracker.stored_ids.values():
                    ids.difference_update(map(id, metric._variables[count:]))
                del metric._variables[count:]
                _restore(metric, attributes)


@contextlib.contextmanager
def put_back_after_error(model):
    """Where an error ends the block, the ``trainable`` flags and the compilation are as they were; weights are left.

    After a FloatingPointError, with which a training ends that has gone wrong, they stay what they are.

    Args:
        model: a built ``keras.Model``, compiled or not.

    Example:
        >>> import keras
        >>> from thaw import freeze
        >>> from thaw.tuning.untouched import put_back_after_error
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> with contextlib.suppress(ValueError), put_back_after_error(model):
        ...     moving = freeze(model, "head")
        ...     raise ValueError
        >>> model.layers[0].trainable
        True
    """
    put_back = _set_up(model, model.variables)
    try:
        yield
    except FloatingPointError:
        raise
    except Exception:
        put_back()
        raise


def _set_up(model, variables):
    """A function that puts the flags and the compilation back."""
    # Compiling sets attributes of the model and nothing else; put back, they are the same objects as before.
    attributes = dict(vars(model))
    flags = [(layer, layer._trainable) for layer in model._flatten_layers()]
    moving = [(v, v.trainable) for v in variables]

    def put_back():
        for layer, flag in flags:
            layer._trainable = flag
        for variable, flag in moving:
            variable.trainable = flag
        _restore(model, attributes)

    return put_back


def _restore(thing, attributes):
    for name in set(vars(thing)) - set(attributes):
        vars(thing).pop(name)
    vars(thing).update(attributes)


def _of_compilation(model):
    """Variables of the metrics and the optimizer that were given to ``compile``; the model lists them only later."""
    for thing in [*_given(model), getattr(model, "optimizer", None)]:
        yield from getattr(thing, "variables", ())


def _given(model):
    """Metrics and optimizer as they were given to ``compile``."""
    config = getattr(model, "_compile_config", None)
    settings = {} if config is None else config.config
    return keras.tree.flatten([settings.get(key) for key in ("metrics", "weighted_metrics", "optimizer")])


@contextlib.contextmanager
def same_randomness():
    """Put the global random states of Python, NumPy and Keras back at the end, to the bit, also after an error.

    Yields:
        The variables that ``keras.random`` draws from where it is given no seed.

    Example:
        >>> import random
        >>> from thaw.tuning.untouched import same_randomness
        >>> before = random.getstate()
        >>> with same_randomness():
        ...     _ = random.random()
        >>> random.getstate() == before
        True
    """
    import tensorflow as tf

    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    # What Keras draws from is listed nowhere; a function that draws knows it. It is traced and never run.
    drawn = tf.function(lambda: keras.random.uniform(())).get_concrete_function().variables
    values = [v.numpy() for v in drawn]
    try:
        yield drawn
    finally:
        for variable, value in zip(drawn, values):
            variable.assign(value)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
