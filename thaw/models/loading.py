"""Load model files safely."""

import contextlib
import importlib.util
import json
import re
import warnings
import zipfile
from pathlib import Path

from thaw._keras import sublayers
from thaw.models.keras2 import copy_with_config, is_before_keras_3, upgrade_config

MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
MAX_CONFIG_BYTES = 64_000_000  # those of deep networks have one or two million
KERAS_PACKAGES = ("keras", "keras_hub")  # whose classes a file may name without being registered
_UNKNOWN = re.compile(r"Could not locate (class|function) '(\w+)'|Unknown (layer): '?(\w+)")
_SAVE_AGAIN = 'save the model again, with Keras 3, where it was made: model.save("model.keras")'
_GET_CONFIG = "let the get_config of each class of your own return what it was made with, in plain values"
# The weights of a normalization have one shape, so that only their names say which is which; they are those of Keras 2.
_NORMALIZATION_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def load_model_file(path):
    """Load the layers and weights of a ``.keras`` or ``.h5`` file without running code from it.

    The file is inspected before Keras opens it: pickles, SavedModel folders and ``Lambda`` layers contain code and are
    refused. A file of Keras 2 is read in the words of Keras 3. Afterwards every weight of an ``.h5`` file is compared
    with the weight of the model that it belongs to. The optimizer is not loaded.

    Args:
        path: path of a file written by ``model.save`` of Keras 2 or 3.

    Returns:
        A ``keras.Model``, not compiled.

    Raises:
        FileNotFoundError: the file does not exist.
        ModuleNotFoundError: it has classes of KerasHub, which is not installed.
        ValueError: it is no complete Keras model, or one that needs code to be loaded.

    Example:
        >>> load_model_file("dogs.keras")
        Traceback (most recent call last):
        ...
        FileNotFoundError: dogs.keras does not exist; expected a model file, .keras or .h5.
    """
    path = Path(path)
    found = model_format(path)
    hdf5 = found == "hdf5"
    try:
        config, version = _read_h5(path) if hdf5 else _read_zip(path)
        code = _code_in(config)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged (its configuration is nested too deeply); copy it again.") from error
    if code:
        what, advice = code
        if what.endswith("OpLambda layer"):
            raise ValueError(f"{path} has {what}, which only Keras 2 can load. There, {advice} and save it again.")
        raise ValueError(
            f"{path} has {what}, which would run code from the file; it is not loaded. {advice}, and save it again."
        )
    if path.suffix.lower() not in ((".h5", ".hdf5") if hdf5 else (".keras",)):
        right = ".h5" if hdf5 else ".keras"
        raise ValueError(f"{path} holds a {right} model; Keras goes by the suffix: rename it to end in {right}.")
    import_keras_hub(path, config)
    try:
        with _readable(path, config, version, found) as file, warnings.catch_warnings():
            # Keras would leave these layers as they were initialized, and only warn.
            warnings.filterwarnings("error", "Skipping nested container")
            model = _load(file)
    except Exception as error:  # Keras raises almost any type for a file it cannot read
        reason, advice = explain_load_error(error)
        if is_before_keras_3(version):
            advice = (
                f"Keras {version} wrote it: replace that layer there and save the model again, or build the model "
                'again with Keras 3 and load the weights that Keras 2 saves with model.save_weights("model.weights.h5")'
            )
        raise ValueError(f"{path} cannot be loaded ({reason}); {advice}.") from error
    if hdf5:
        _verify_h5(path, model, version)
    return model


def _load(path):
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True)


@contextlib.contextmanager
def _readable(path, config, version, found):
    """Yield the path of the file, or of a copy of a file of Keras 2 that Keras 3 can read."""
    if not is_before_keras_3(version):
        yield path
        return
    with copy_with_config(path, upgrade_config(config), found) as copy:
        yield copy


def explain_load_error(error):
    """Say in short why Keras could not read a model, and what to do.

    Args:
        error: what Keras raised.

    Returns:
        ``(reason, advice)``, parts of a sentence.

    Example:
        >>> from thaw.models.loading import explain_load_error
        >>> explain_load_error(TypeError("Could not locate class 'Own'."))[0]
        "it uses the class 'Own', which Keras does not know"
    """
    text = str(error)
    unknown = _UNKNOWN.search(text)
    name = unknown and (unknown[2] or unknown[4])
    if unknown and unknown[3] and _is_operation(name):
        return (
            f"it has the operation {name}, which an .h5 file cannot hold",
            _SAVE_AGAIN,
        )
    if unknown:
        kind = "function" if unknown[1] == "function" else "class"
        return (
            f"it uses the {kind} {name!r}, which Keras does not know",
            f"register that {kind} with keras.saving.register_keras_serializable before loading",
        )
    if "Skipping nested container" in text:
        return "it lacks the weights of layers in a nested list", "save it again with this version of Keras"
    if isinstance(error, (OSError, zipfile.BadZipFile, EOFError)):
        return _first_line(error), "the file is cut short or damaged; save or copy it again"
    return _first_line(error), _SAVE_AGAIN


def _is_operation(name):
    """Say whether a class has the name of an operation of ``keras.ops``: ``GetItem`` is that of ``get_item``."""
    import keras

    return hasattr(keras.ops, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())


def _first_line(error):
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


def import_keras_hub(path, config):
    """Import KerasHub where a file names its classes, so that Keras knows them; it takes seconds.

    Args:
        path: the file, for the message.
        config: the configuration in it.

    Raises:
        ModuleNotFoundError: KerasHub is not installed.

    Example:
        >>> from thaw.models.loading import import_keras_hub
        >>> import_keras_hub("dogs.keras", {"module": "keras.layers", "class_name": "Dense"})  # imports nothing
    """
    text = json.dumps(config)
    if "keras_hub" not in text and "keras_nlp" not in text:
        return
    if importlib.util.find_spec("keras_hub") is None:
        raise ModuleNotFoundError(
            f"{path} has layers of KerasHub, which is not installed; install it: pip install keras-hub."
        )
    importlib.import_module("keras_hub")


def _verify_h5(path, model, version):
    """Bring over what Keras does not load of an ``.h5`` file, and refuse what the file does not hold.

    Keras sets the weights of nested layers and does not tell the layers (keras#20147); it goes by the order of the
    weights, never by their names; and the vocabulary of a lookup layer is not in such a file.
    """
    from keras import layers

    from thaw.models.preprocessing import finalize_normalizations
    from thaw.models.stages import calls_of

    lookups = (layers.StringLookup, layers.IntegerLookup, layers.TextVectorization)
    for layer in sublayers(model):
        if isinstance(layer, lookups) and not layer.get_config().get("vocabulary"):
            raise ValueError(
                f"{path} lacks the vocabulary of its layer {layer.name}, which an .h5 file cannot hold; {_SAVE_AGAIN}."
            )
    finalize_normalizations(model)
    # Keras 2 had other names for some weights, and for the layers around them.
    named = None if is_before_keras_3(version) else {call.layer.name for call in calls_of(model) or ()}
    try:
        wrong = [name for name, value, weight in _pairs_h5(path, model) if not _same(name, value, weight, named)]
    except (KeyError, ValueError) as error:  # zip(strict=True), or a name without an array
        raise ValueError(
            f"{path} does not hold one array for each weight of its model ({_first_line(error)}); {_SAVE_AGAIN}."
        ) from error
    if wrong:
        raise ValueError(
            f"{path} does not load as it was saved ({len(wrong)} weights, the first of them {wrong[0]}); {_SAVE_AGAIN}."
        )


def _pairs_h5(path, model):
    """Yield the name and the value of each weight in an ``.h5`` file, and the weight that Keras loads it into."""
    import h5py
    import numpy as np

    def ordered(layer):
        return [*layer.trainable_weights, *layer.non_trainable_weights]

    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        own = [layer for layer in model.layers if ordered(layer)]
        saved = [group[name] for name in _names(group, "layer_names")]
        for layer, part in zip(own, [part for part in saved if len(_names(part, "weight_names"))], strict=True):
            for name, weight in zip(_names(part, "weight_names"), ordered(layer), strict=True):
                yield name, np.asarray(part[name]), weight


def _names(group, attribute):
    """Read a list of names, which is cut in pieces where it is long."""
    pieces = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(pieces)}" in group.attrs:
        pieces.append(f"{attribute}{len(pieces)}")
    return [name.decode() if isinstance(name, bytes) else name for piece in pieces for name in group.attrs[piece]]


def _same(name, value, weight, named):
    """Say whether a weight has the value and the name of one in the file, in which these layers are named.

    ``named`` is ``None`` for a file of Keras 2.
    """
    import numpy as np

    if not np.array_equal(value.astype(weight.dtype), weight.numpy(), equal_nan=value.dtype.kind == "f"):
        return False
    (*_, saved_in, saved), (*_, found_in, found) = ["", *name.split("/")], ["", *weight.path.split("/")]
    if named is None:
        saved = saved.removesuffix(":0")
        return saved == found or saved not in _NORMALIZATION_WEIGHTS
    # Layers inside one of another class get new names when they are loaded.
    return not named or (saved == found and (saved_in == found_in or saved_in not in named))


def unsaveable_reason(model):
    """Say why a file of a model could not be opened again, before it is trained.

    The configuration is written and read as it would be in a file, without the weights and without the compilation.

    Args:
        model: a built ``keras.Model``; neither it nor the random state changes.

    Returns:
        ``(what, fix)``, two sentences: why not, and what to write instead; ``None`` where the file can be opened.

    Example:
        >>> import keras
        >>> from thaw.models.loading import unsaveable_reason
        >>> print(unsaveable_reason(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])))
        None
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x), keras.layers.Dense(1)])
        >>> unsaveable_reason(model)[1]
        'Write that layer as a class, or as Keras operations.'
    """
    import keras

    from thaw.models.state import preserve_rng

    cannot = f"{model.name} cannot be saved so that the file opens again"
    compiled, model.compiled = model.compiled, False  # a run is saved without its compilation
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    except Exception as error:  # code of the user's, which may raise anything
        return f"{cannot} ({_first_line(error)}).", _sentence(_GET_CONFIG)
    finally:
        model.compiled = compiled
    if code := _code_in(config):
        what, advice = code
        what = f"{model.name} has {what}, whose code would be in its file, so that it would not be opened."
        return what, _sentence(advice)
    if _is_plain(config):
        return None  # reading the configuration of a deep network takes seconds, and Keras can
    try:
        with preserve_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:
        reason, advice = explain_load_error(error)
        return f"{cannot} ({reason}).", _sentence(advice if _UNKNOWN.search(str(error)) else _GET_CONFIG)
    if _shapes(again) != _shapes(model):
        return f"{cannot} (its configuration makes weights of other shapes).", _sentence(_GET_CONFIG)
    return None


def _shapes(model):
    # A layer that is saved adds the product of its LoRA weights to its kernel, and needs none where it is loaded.
    return [w.shape for w in model.weights if not w.name.startswith("lora_")]


def _sentence(text):
    return f"{text[0].upper()}{text[1:]}."


def is_model_file(name):
    """Return whether a name or path is that of a model file, by its ending.

    Args:
        name: str or ``Path``.

    Example:
        >>> from thaw.models.loading import is_model_file
        >>> is_model_file("Dogs.KERAS"), is_model_file("mobilenet_v2")
        (True, False)
    """
    return str(name).lower().endswith(MODEL_SUFFIXES)


def model_format(path):
    """Return the format of a model file, by its first bytes and without importing Keras.

    Args:
        path: ``Path`` of a file.

    Returns:
        ``"hdf5"`` or ``"zip"``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is a folder, a pickle, or anything else that is no model file.

    Example:
        >>> from pathlib import Path
        >>> import keras
        >>> from thaw.models.loading import model_format
        >>> keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save("dogs.keras")
        >>> model_format(Path("dogs.keras"))
        'zip'
    """
    if path.is_dir():
        kind = "a SavedModel folder" if (path / "saved_model.pb").exists() else "a folder"
        raise ValueError(
            f"{path} is {kind}; expected a .keras or .h5 file. Load it where it was made and save it with "
            'model.save("model.keras").'
        )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a model file, .keras or .h5.")
    with open(path, "rb") as file:
        start = file.read(8)
    if start == _HDF5_MAGIC:
        return "hdf5"
    if start[:2] == b"PK":
        return "zip"
    if start[:1] == b"\x80" or path.suffix.lower() in (".pkl", ".pickle", ".joblib"):
        raise ValueError(
            f"{path} is a pickle, which can run any code when opened; expected a .keras or .h5 file. "
            'Open it where it was made and save the model with model.save("model.keras").'
        )
    what = "empty" if not start else "not a Keras model"
    raise ValueError(f"{path} is {what}; expected a file made by model.save, .keras or .h5.")


def _read_zip(path):
    """Return the configuration in a ``.keras`` file, and the version of Keras that wrote it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for name in names & {"config.json", "metadata.json"}:
                if (size := archive.getinfo(name).file_size) > MAX_CONFIG_BYTES:  # a small zip can hold any number
                    raise ValueError(
                        f"{path} is no Keras model: its {name} has {size / 1e6:.0f} MB; expected at most "
                        f"{MAX_CONFIG_BYTES // 1_000_000}, in a file made by model.save, .keras or .h5."
                    )
            damaged = archive.testzip()
            if "config.json" not in names or not names & {
                "model.weights.h5",
                "model.weights.json",
                "model.weights.npz",
            }:
                raise ValueError(
                    f"{path} is a zip file but not a Keras model; expected a file made by model.save, .keras or .h5."
                )
            if damaged:
                raise ValueError(f"{path} is damaged ({damaged} does not match its checksum); copy it again.")
            about = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
            return json.loads(archive.read("config.json")), str(about.get("keras_version", ""))
    except (zipfile.BadZipFile, EOFError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or damaged; save or copy it again.") from error


def _read_h5(path):
    """Return the configuration in an ``.h5`` file, and the version of Keras that wrote it."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            if text is None:
                raise ValueError(
                    f"{path} holds weights without a model; name the model they belong to: "
                    f'backbone(NAME, weights="{path}").'
                )
            version = file.attrs.get("keras_version", "1")
            return json.loads(text), version.decode() if isinstance(version, bytes) else str(version)
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or damaged; save or copy it again.") from error


def _code_in(config):
    """Say what in a configuration is code, and what to do: ``Lambda`` layers, and what Keras 2 wrote in their place."""
    for kind in _class_names(config):
        if kind in ("Lambda", "__lambda__"):
            what = "a Lambda layer" if kind == "Lambda" else "a lambda function"
            return what, "Write that layer as a class, or as Keras operations"
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            advice = "replace the bare TensorFlow operation by a layer (preprocess_input by Rescaling, x + y by Add)"
            return f"a {kind} layer", advice
    return None


def _is_plain(config):
    """Return whether all that a configuration names are layers of Keras, which it can read again.

    ``True`` for ``{"module": "keras.layers", "class_name": "Dense", ...}``, also where such dicts are inside one
    another; ``False`` where one of them is a class of the user's own, a function, or an operation of ``keras.ops``.
    """
    if isinstance(config, dict):
        module = config.get("module", "builtins")
        if isinstance(config.get("class_name"), str) and (
            config["class_name"] == "function"
            or (module or "").split(".")[0] not in ("builtins", *KERAS_PACKAGES)
            or ".ops" in module
        ):
            return False
        config = list(config.values())
    return not isinstance(config, list) or all(map(_is_plain, config))


def _class_names(config):
    if isinstance(config, dict):
        code = config.get("value")
        if set(config) == {"value"} and isinstance(code, list) and len(code) == 3 and isinstance(code[0], str):
            yield "__lambda__"  # as Keras writes a lambda that is an activation: code, defaults and closure
        if isinstance(config.get("class_name"), str):
            yield config["class_name"]
        config = list(config.values())
    for value in config if isinstance(config, list) else ():
        yield from _class_names(value)
