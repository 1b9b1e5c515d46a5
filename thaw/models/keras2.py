"""Read the model files of Keras 2: rewrite their configuration in the words of Keras 3."""

import contextlib
import inspect
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

# Arguments of Keras 2 that Keras 3 does not have and that change no prediction.
_NO_EFFECT = (
    "batch_input_shape",
    "dtype",  # of an initializer
    "force_generator",
    "implementation",
    "input_length",
    "key_shape",
    "query_shape",
    "rng_type",
    "value_shape",
    "vocabulary_size",
)
_ONE_GROUP = ("groups", 1)
_RENAMED = {("LeakyReLU", "alpha"): "negative_slope"}
_OF_EVERY_LAYER = ("name", "trainable", "dtype", "activity_regularizer", "autocast")
_PACKAGES = ("keras", "tf_keras", "tensorflow")


def is_before_keras_3(version):
    """Say whether a version of Keras, as a file names it, is before 3.

    Args:
        version: such as ``"2.15.0"``; files of Keras 1 name none, for which ``"1"`` is given.

    Returns:
        bool.

    Example:
        >>> from thaw.models.keras2 import is_before_keras_3
        >>> is_before_keras_3("1"), is_before_keras_3("2.15.0"), is_before_keras_3("3.15.1")
        (True, True, False)
    """
    return version.split(".")[0] in ("1", "2")


@contextlib.contextmanager
def copy_with_config(path, config, file_format):
    """Copy a model file, for the time of a ``with`` block, with another configuration in it.

    Args:
        path: path of a ``.keras`` or ``.h5`` file.
        config: dict, the configuration of the model.
        file_format: ``"zip"`` or ``"hdf5"``, as :func:`thaw.models.loading.model_format` finds it.

    Yields:
        Path of the copy, which is deleted when the block ends.

    Example:
        >>> import keras
        >>> from thaw.models.keras2 import copy_with_config
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.save("old.keras")
        >>> config = keras.saving.serialize_keras_object(model)
        >>> config["config"]["name"] = "copy"
        >>> with copy_with_config("old.keras", config, "zip") as path:
        ...     keras.saving.load_model(path).name
        'copy'
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"model{path.suffix.lower()}"
        if file_format == "zip":
            with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
                for item in old.infolist():
                    own = item.filename == "config.json"
                    new.writestr(item, json.dumps(config) if own else old.read(item))
        else:
            import h5py

            shutil.copyfile(path, copy)
            with h5py.File(copy, "r+") as file:
                file.attrs["model_config"] = json.dumps(config)
        yield copy


def upgrade_config(config):
    """Rewrite the configuration of a model of Keras 2 as Keras 3 would have written it.

    Args:
        config: the configuration in a ``.keras`` or ``.h5`` file.

    Returns:
        A new configuration.

    Raises:
        ValueError: a layer was made with an argument that Keras 3 does not have.

    Example:
        >>> from thaw.models.keras2 import upgrade_config
        >>> upgrade_config({"class_name": "LSTM", "config": {"units": 2, "time_major": False}})
        {'class_name': 'LSTM', 'config': {'units': 2}}
    """
    if isinstance(config, list):
        return [upgrade_config(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: upgrade_config(value) for key, value in config.items() if key != "compile_config"}
    kind, inside = config.get("class_name"), config.get("config")
    if not isinstance(kind, str) or not isinstance(inside, dict):
        return config
    own = (config.get("module") or "keras").split(".")[0] in _PACKAGES
    if not own or ">" in (config.get("registered_name") or ""):
        return config
    if kind in ("Policy", "PolicyV1"):
        name = inside["name"]
        return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}, "registered_name": None}
    if kind in ("Functional", "Model") and "layers" in inside:
        config["class_name"] = "Functional"
        config = _in_module(config, "keras.src.models.functional")
        config["config"] = _upgrade_graph(inside)
        return config
    if kind == "Sequential":
        return _in_module(config, "keras")
    return _upgrade_arguments(config)


def _in_module(config, module):
    """Name another module, where one is named: files ending in ``.h5`` name none."""
    return config | {"module": module, "registered_name": None} if "module" in config else config


def _upgrade_arguments(config):
    import keras

    kind, inside = config["class_name"], config["config"]
    for package in ("layers", "initializers"):
        cls = getattr(getattr(keras, package), kind, None)
        if inspect.isclass(cls):
            break
    else:
        return config
    if kind == "GRU" and "reset_after" not in inside:
        inside["reset_after"] = False  # the default before Keras 2.3
    if kind == "BatchNormalization" and isinstance(inside.get("axis"), list):
        (inside["axis"],) = inside["axis"]
    known, arguments = _parameters(cls), {}
    for key, value in inside.items():
        key = _RENAMED.get((kind, key), key)
        if value == "hard_sigmoid":  # 0.2 x + 0.5 in Keras 2, x / 6 + 0.5 in Keras 3
            raise ValueError(f"a {kind} layer of it has the activation hard_sigmoid, which Keras 3 computes otherwise")
        if key in known or (kind == "InputLayer" and key == "batch_input_shape"):
            arguments[key] = value
        elif key in _NO_EFFECT or key.endswith("_initializer") or (key, value) == _ONE_GROUP or _is_unset(value):
            continue
        else:
            raise ValueError(f"a {kind} layer of it was made with {key}={value!r}, which Keras 3 does not have")
    # Layers are built when the graph is; what they note themselves has another form in Keras 3.
    kept = {key: value for key, value in config.items() if key != "build_config"}
    return _in_module(kept | {"config": arguments}, f"keras.{package}")


def _is_unset(value):
    return value is None or value is False  # and not 0 or 0.0, which equal False


def _parameters(cls):
    """Return the names of all arguments of a class, those that it passes on included."""
    import keras

    names = set(_OF_EVERY_LAYER) if issubclass(cls, keras.Layer) else set()
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters if "__init__" in vars(base) else {}
        names.update(parameters)
        if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def _upgrade_graph(config):
    """Rewrite the calls of a graph: what refers to other layers, and what is given by name."""
    counted = {
        layer.get("name"): layer["class_name"]
        for layer in config["layers"]
        if layer["class_name"] in ("Sequential", "Functional")
        and max(_indices(config, layer.get("name")), default=0) >= max(1, len(layer.get("inbound_nodes") or ()))
    }

    def shift(value, kinds=("Sequential", "Functional")):
        """Count the calls of nested models from 0: in Keras 2 the model itself was the first."""
        if _is_reference(value):
            options = [shift(item, kinds) for item in value[2:]]
            return [value[0], value[1] - (counted.get(value[0]) in kinds), *options]
        if isinstance(value, list):
            return [shift(item, kinds) for item in value]
        return {key: shift(item, kinds) for key, item in value.items()} if isinstance(value, dict) else value

    layers = [
        layer | {"inbound_nodes": [_upgrade_call(layer, shift(call)) for call in layer.get("inbound_nodes") or []]}
        for layer in config["layers"]
    ]
    # In the outputs Keras 3 does that for functional models itself.
    outputs = shift(config.get("output_layers"), ("Sequential",))
    inputs = config.get("input_layers")
    return config | {"layers": layers, "input_layers": _single(inputs), "output_layers": _single(outputs)}


def _single(references):
    """Name one tensor, not a list of one: a model with a list of inputs warns at every call with a tensor."""
    return references[0] if isinstance(references, list) and len(references) == 1 else references


def _upgrade_call(layer, call):
    """Write a call with tensors among its options, or with the initial state of a recurrent layer, as Keras 3 does."""
    import keras

    if not isinstance(call, list) or not all(map(_is_reference, call)):
        return call
    cls = getattr(keras.layers, layer["class_name"], None)
    recurrent = inspect.isclass(cls) and issubclass(cls, (keras.layers.RNN, keras.layers.Bidirectional))
    options = call[0][3] if len(call[0]) == 4 else {}
    if not (recurrent and len(call) > 1) and not any(_references(list(options.values()))):
        return call
    tensors, options = [_tensor(item) for item in call], {key: _tensor(value) for key, value in options.items()}
    if recurrent and len(tensors) > 1:
        options["initial_state"] = tensors[1:]
        tensors = tensors[:1]
    return {"args": [tensors[0] if len(tensors) == 1 else tensors], "kwargs": options}


def _tensor(value):
    if _is_reference(value):  # shape and dtype are those of the tensor that the reference stands for
        config = {"shape": [None], "dtype": "float32", "keras_history": value[:3]}
        return {"class_name": "__keras_tensor__", "config": config}
    return [_tensor(item) for item in value] if isinstance(value, list) else value


def _indices(config, name):
    """Return the numbers of the calls of a layer that the graph refers to."""
    values = [[layer.get("inbound_nodes") for layer in config["layers"]], config.get("output_layers")]
    return [reference[1] for reference in _references(values) if reference[0] == name]


def _references(value):
    """Yield what names a tensor in nested lists and dicts."""
    if _is_reference(value):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _references(item)


def _is_reference(value):
    """Say whether a value names a tensor: layer, number of its call, number of its output, and options."""
    return isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str) and type(value[1]) is int
