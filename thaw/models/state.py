"""Restore weights, flags, compilation and random state; seed everything."""

import contextlib
import random

import numpy as np

from thaw._keras import (
    compile_settings,
    forget_metric_variables,
    metric_variables,
    set_trainable_flag,
    sublayers,
    trainable_flag,
)
from thaw._validation import as_seed


@contextlib.contextmanager
def preserve_model(model):
    """Restore a model and the global random state at the end of the block, bit-identical, also after an error.

    Restored are the weights and the state of random and of stateful layers, the ``trainable`` flags, the compilation
    with the optimizer and the metrics and the values that they hold, and the random states of Python, NumPy and Keras.

    Args:
        model: built ``keras.Model``, compiled or not.

    Yields:
        The variables that :func:`preserve_rng` yields.

    Example:
        >>> import keras
        >>> from thaw import freeze
        >>> from thaw.models.state import preserve_model
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with preserve_model(model):
        ...     trainable = freeze(model, "head")
        >>> model.layers[0].trainable, model.compiled
        (True, True)
    """
    import keras

    variables = [*model.variables, *state_variables(model), *model.metrics_variables, *_compiled_variables(model)]
    variables = {id(v): v for v in variables}.values()
    restore_settings = _capture_settings(model, variables)
    values = [(v.value, v.numpy()) for v in variables]
    metrics = [
        (m, dict(vars(m)), len(metric_variables(m)))
        for m in _compiled_objects(model)
        if isinstance(m, keras.metrics.Metric)
    ]
    with preserve_rng() as rng_variables:
        try:
            yield rng_variables
        finally:
            restore_settings()
            for variable, value in values:
                variable.assign(value)
            for metric, attributes, count in metrics:  # some metrics create their variables at the first batch
                forget_metric_variables(metric, count)
                _restore_attributes(metric, attributes)


@contextlib.contextmanager
def restore_after_error(model):
    """Restore the ``trainable`` flags and the compilation if the block ends early; the weights are left alone.

    Ctrl-C in a notebook (``KeyboardInterrupt``) and ``SystemExit`` count as errors too.

    Args:
        model: built ``keras.Model``, compiled or not.

    Example:
        >>> import keras
        >>> from thaw import freeze
        >>> from thaw.models.state import restore_after_error
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> with contextlib.suppress(ValueError), restore_after_error(model):
        ...     trainable = freeze(model, "head")
        ...     raise ValueError
        >>> model.layers[0].trainable
        True
    """
    restore_settings = _capture_settings(model, model.variables)
    try:
        yield
    except BaseException:
        restore_settings()
        raise


@contextlib.contextmanager
def preserve_flags(model):
    """Restore every ``trainable`` flag at the end of the block, of layers and of variables, also after an error.

    The two are restored separately: Keras' public setter of a layer would also unfreeze single variables in it, such as
    the kernel that ``enable_lora`` froze.

    Args:
        model: built ``keras.Model``.

    Example:
        >>> import keras
        >>> from thaw.models.state import preserve_flags
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> with preserve_flags(model):
        ...     model.trainable = False
        >>> len(model.trainable_variables)
        2
    """
    restore_flags = _capture_flags(model, model.variables)
    try:
        yield
    finally:
        restore_flags()


def _capture_settings(model, variables):
    """Return a function that restores the flags and the compilation of this moment."""
    # Compiling sets attributes of the model and nothing else, so restoring them brings back the same objects.
    attributes = dict(vars(model))
    restore_flags = _capture_flags(model, variables)

    def restore_settings():
        restore_flags()
        _restore_attributes(model, attributes)

    return restore_settings


def _capture_flags(model, variables):
    layer_flags = [(layer, trainable_flag(layer)) for layer in sublayers(model)]
    variable_flags = [(v, v.trainable) for v in variables]

    def restore_flags():
        for layer, flag in layer_flags:
            set_trainable_flag(layer, flag)
        for variable, flag in variable_flags:
            variable.trainable = flag

    return restore_flags


def _restore_attributes(thing, attributes):
    for name in set(vars(thing)) - set(attributes):
        vars(thing).pop(name)
    vars(thing).update(attributes)


def _compiled_variables(model):
    """Variables of the metrics and the optimizer given to ``compile``; the model itself lists them only after a fit."""
    for thing in [*_compiled_objects(model), getattr(model, "optimizer", None)]:
        yield from getattr(thing, "variables", ())


def _compiled_objects(model):
    """Metrics and optimizer in the form given to ``compile``."""
    import keras

    settings = compile_settings(model)
    return keras.tree.flatten([settings.get(key) for key in ("metrics", "weighted_metrics", "optimizer")])


@contextlib.contextmanager
def preserve_variables(variables):
    """Restore the values of variables at the end of the block, bit-identical, also after an error.

    Layers that are random at inference too, and layers that count their calls, change variables whenever the model is
    called.

    Args:
        variables: ``keras.Variable`` objects.

    Example:
        >>> import keras
        >>> from thaw.models.state import preserve_variables
        >>> count = keras.Variable(1.0)
        >>> with preserve_variables([count]):
        ...     _ = count.assign(5.0)
        >>> float(count)
        1.0
    """
    values = [(v, v.numpy()) for v in variables]
    try:
        yield
    finally:
        for variable, value in values:
            if not np.array_equal(variable.numpy(), value, equal_nan=variable.dtype != "string"):
                variable.assign(value)


@contextlib.contextmanager
def preserve_rng():
    """Restore the global random states of Python, NumPy and Keras at the end of the block, also after an error.

    Yields:
        The variables that ``keras.random`` draws from when it is given no seed.

    Example:
        >>> import random
        >>> from thaw.models.state import preserve_rng
        >>> before = random.getstate()
        >>> with preserve_rng():
        ...     _ = random.random()
        >>> random.getstate() == before
        True
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    rng_variables = _rng_variables()
    values = [v.numpy() for v in rng_variables]
    try:
        yield rng_variables
    finally:
        for variables in (rng_variables, _rng_variables()):  # others, where the block called set_random_seed
            for variable, value in zip(variables, values):
                variable.assign(value)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _rng_variables():
    """The state of Keras' global seed generator. Keras lists it nowhere, but a traced function that draws does."""
    import keras
    import tensorflow as tf

    return tf.function(lambda: keras.random.uniform(())).get_concrete_function().variables  # never run


def reinitialize_weights(model, seed=0):
    """Draw every weight of a model again from its layer's own initializer, in place.

    Training from random weights is the baseline of pre-training: if it is as good, pre-training did not help. BatchNorm
    statistics are reset too; ``Normalization`` layers, which only scale the inputs, keep theirs. The ``trainable``
    flags, the compilation, and the random states of Python and NumPy are left alone.

    Args:
        model: built functional or sequential ``keras.Model``, changed in place.
        seed: int, default 0. Initializers that were given a seed of their own draw the same values for every seed.

    Returns:
        The model.

    Raises:
        ValueError: the model is not built, or cannot be cloned from its config.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.models.state import reinitialize_weights
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> before = model.get_weights()[0]
        >>> same = np.array_equal(before, reinitialize_weights(model, seed=1).get_weights()[0])
        >>> again = np.array_equal(model.get_weights()[0], reinitialize_weights(model, seed=1).get_weights()[0])
        >>> same, again
        (False, True)
    """
    import keras

    if not model.built:
        raise ValueError(f"{model.name} is not built yet; call it on an input, or begin it with keras.Input.")
    state = random.getstate()
    random.seed(seed)  # Keras draws the seed of an initializer that has none from Python's generator
    try:
        fresh = keras.models.clone_model(model)
    except Exception as error:  # the config of a user's layer may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{model.name} cannot be cloned from its config ({first}); expected a functional or sequential model "
            "whose layers have get_config."
        ) from error
    finally:
        random.setstate(state)
    if [w.shape for w in fresh.weights] != [w.shape for w in model.weights]:
        raise ValueError(f"{model.name}, cloned from its config, has other weights; expected the same shapes.")
    scaling = {
        id(w) for layer in sublayers(model) if isinstance(layer, keras.layers.Normalization) for w in layer.weights
    }
    for own, new in zip(model.weights, fresh.weights):
        if id(own) not in scaling:
            own.assign(new)
    return model


def seed_everything(seed):
    """Seed Python, NumPy, Keras and TensorFlow, and make TensorFlow's operations deterministic.

    Call it before a model is built. From then on, the same seed, data and machine give bit-identical results in this
    process.

    Args:
        seed: int, at least 0.

    Example:
        >>> from thaw.models.state import seed_everything
        >>> seed_everything(7)
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(as_seed(seed))
    tf.config.experimental.enable_op_determinism()


def stateful_layers(model):
    """Return the recurrent layers of a built model that pass the states of one batch on to the next.

    Args:
        model: ``keras.Model``.

    Example:
        >>> import keras
        >>> from thaw.models.state import stateful_layers
        >>> gru = keras.layers.GRU(2, stateful=True, name="gru")
        >>> model = keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), gru, keras.layers.Dense(2)])
        >>> [layer.name for layer in stateful_layers(model)]
        ['gru']
    """
    return [layer for layer in sublayers(model) if getattr(layer, "stateful", False) and getattr(layer, "states", None)]


def state_variables(model):
    """Return the variables in which the stateful layers of a model keep the states of a batch for the next.

    Args:
        model: ``keras.Model``.

    Example:
        >>> import keras
        >>> from thaw.models.state import state_variables
        >>> lstm = keras.layers.LSTM(2, stateful=True)
        >>> model = keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), lstm])
        >>> [tuple(v.shape) for v in state_variables(model)]
        [(8, 2), (8, 2)]
    """
    import keras

    # Stacked cells have a list of states each.
    return keras.tree.flatten([layer.states for layer in stateful_layers(model)])


def stateful_batch_size(model):
    """Return the first stateful layer of a model and the only size of batch that it takes.

    Args:
        model: ``keras.Model``.

    Returns:
        ``(layer, examples)``; ``None`` where no layer is stateful.

    Example:
        >>> import keras
        >>> from thaw.models.state import stateful_batch_size
        >>> cells = [keras.layers.LSTMCell(2), keras.layers.GRUCell(3)]
        >>> stacked = keras.layers.RNN(cells, stateful=True, name="stacked")
        >>> layer, examples = stateful_batch_size(keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), stacked]))
        >>> layer.name, examples
        ('stacked', 8)
    """
    states = state_variables(model)
    return (stateful_layers(model)[0], states[0].shape[0]) if states else None
