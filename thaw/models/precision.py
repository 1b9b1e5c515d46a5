"""Choose the floating-point precision of the computations."""

from __future__ import annotations

import contextlib

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


def resolve_precision(precision="auto"):
    """Choose a dtype policy for this machine.

    ``"auto"`` is float32 on a CPU, where half precision is slower. On a GPU it is ``"mixed_bfloat16"`` from compute
    capability 8.0 (Ampere), ``"mixed_float16"`` from 7.0 (Volta), else float32.

    Args:
        precision: ``"auto"`` (default), ``"float32"``, ``"mixed_float16"`` or ``"mixed_bfloat16"``.

    Returns:
        Name of a Keras dtype policy.

    Raises:
        ValueError: another precision.

    Example:
        >>> from thaw.models.precision import resolve_precision
        >>> resolve_precision("mixed_float16")
        'mixed_float16'
    """
    check_precision(precision)
    if precision != "auto":
        return precision
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability") or (0, 0)
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"


def check_precision(precision):
    """Refuse what :func:`resolve_precision` does not know, without importing TensorFlow.

    Raises:
        ValueError: not one of ``PRECISIONS``.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; expected one of {', '.join(PRECISIONS)}.")


@contextlib.contextmanager
def use_precision(policy):
    """Set Keras' global dtype policy inside a ``with`` block, and restore it at its end.

    Args:
        policy: name of a Keras dtype policy.

    Example:
        >>> import keras
        >>> from thaw.models.precision import use_precision
        >>> with use_precision("mixed_bfloat16"):
        ...     keras.layers.Dense(1).compute_dtype
        'bfloat16'
    """
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_precision(model, policy):
    """Build a model again with another precision of its computations; the weights stay float32.

    Layers keep the dtype of their file or of the moment they were made, whatever Keras' global policy is. A last
    softmax or sigmoid stays as it is, since half precision would round small probabilities to zero.

    Args:
        model: functional or sequential ``keras.Model``.
        policy: name of a Keras dtype policy.

    Returns:
        A ``keras.Model`` with copies of the weights, not compiled; ``model`` itself where nothing has to change.

    Raises:
        ValueError: a subclassed model, which cannot be built again.

    Example:
        >>> import keras
        >>> from thaw.models.precision import with_precision
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> with_precision(model, "mixed_bfloat16").layers[0].compute_dtype
        'bfloat16'
    """
    import keras

    from thaw.models.preprocessing import finalize_normalizations

    plain = {"float32", "mixed_float16", "mixed_bfloat16"} - {policy}
    changes = []

    def convert(value):
        if isinstance(value, dict):
            if value.get("class_name") == "DTypePolicy" and value["config"].get("name") in plain:
                changes.append(value["config"]["name"])
                return value | {"config": {"name": policy}}
            config = value.get("config")
            activation = config.get("activation") if isinstance(config, dict) else None  # of a function it is a text
            if activation in ("softmax", "sigmoid") and _is_output(value, model):
                return value
            return {key: convert(item) for key, item in value.items()}
        return [convert(item) for item in value] if isinstance(value, (list, tuple)) else value

    if isinstance(model, keras.Sequential) or hasattr(model, "operations"):
        config = convert(model.get_config())
        if not changes:
            return model
        again = type(model).from_config(config)
        again.set_weights(model.get_weights())
        finalize_normalizations(again)
        return again
    raise ValueError(f"{model.name} is a subclassed model, whose precision cannot be changed; leave precision out.")


def _is_output(config, model):
    return config["config"].get("name") == model.layers[-1].name
