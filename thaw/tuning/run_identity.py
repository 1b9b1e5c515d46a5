"""What must be the same for a run to go on where it stopped."""

import hashlib
import json
import re

import numpy as np

from thaw.examples import Examples
from thaw.tuning.first_metric import given_metrics, metric_name


def run_identity(model, plan, data, batch_size, seed):
    """A digest of everything that a run's result depends on.

    Args:
        model: the compiled model, before its first step.
        plan: the :class:`thaw.Plan`.
        data: the parts of the data; of a ``tf.data.Dataset`` nothing is known without reading it.
        batch_size: examples in a batch.
        seed: of the order and the augmentation.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import keras
        >>> from thaw import Plan
        >>> from thaw.tuning.run_identity import run_identity
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> len(run_identity(model, Plan.named("probe"), (), 32, 0))
        64
    """
    import keras

    digest = hashlib.sha256()
    for part in data:
        if isinstance(part, Examples):
            digest.update(part.content_keys.tobytes() + np.asarray(part.y).tobytes())
            if part.weight is not None:
                digest.update(np.asarray(part.weight).tobytes())
            # One example as the training sees it: how it is loaded, at what size, and how it is augmented.
            x, *_ = next(iter(part.ordered(1, view=0, seed=seed)))
            for array in keras.tree.flatten(x):
                digest.update(np.asarray(array).tobytes())
    digest.update(" ".join(type(layer).__name__ for layer in model.layers).encode())
    for variable in model.weights:
        digest.update(variable.numpy().tobytes())
    settings = model._compile_config.config
    losses = map(keras.losses.get, keras.tree.flatten(settings["loss"]))
    for part in (keras.optimizers.get(settings["optimizer"]), *losses):
        config = part.get_config() if hasattr(part, "get_config") else {}
        name = getattr(part, "__name__", type(part).__name__)
        digest.update(json.dumps([name, _without_names(config)], default=_text, sort_keys=True).encode())
    names = [metric_name(metric) for metric in given_metrics(model)]  # the first decides which weights are best
    digest.update(str(names).encode())
    digest.update(f"{plan.to_toml()} {batch_size} {seed} {keras.__version__}".encode())
    return digest.hexdigest()


def _without_names(config):
    """Keras numbers optimizers and losses within a process, also one inside another."""
    if isinstance(config, dict):
        if config.get("class_name") == "__lambda__":  # its code, with the path and the line where it stands
            return "lambda"
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    return [_without_names(part) for part in config] if isinstance(config, (list, tuple)) else config


def _text(thing):
    """A function or an object without its address, which is another in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(thing))
