"""Load model files safely."""

import json
import re
import zipfile
from pathlib import Path

MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def load_model_file(path):
    """Load the layers and weights of a ``.keras`` or ``.h5`` file without running code from it.

    The file is inspected before Keras opens it: pickles, SavedModel folders and ``Lambda`` layers contain code and are
    refused. The optimizer is not loaded.

    Args:
        path: path of a file written by ``model.save`` of Keras 2 (``.h5``) or 3.

    Returns:
        A ``keras.Model``, not compiled.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no complete Keras model, or one that needs code to be loaded.

    Example:
        >>> load_model_file("dogs.keras")
        Traceback (most recent call last):
        ...
        FileNotFoundError: dogs.keras does not exist; expected a model file, .keras or .h5.
    """
    import keras

    path = Path(path)
    hdf5 = model_format(path) == "hdf5"
    _refuse_code(path, _config_h5(path) if hdf5 else _config_zip(path))
    if path.suffix.lower() not in ((".h5", ".hdf5") if hdf5 else (".keras",)):
        right = ".h5" if hdf5 else ".keras"
        raise ValueError(f"{path} holds a {right} model; Keras goes by the suffix: rename it to end in {right}.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises almost any type for a file it cannot read
        text = str(error)
        first = text.strip().split("\n")[0][:200]
        unknown = re.search(r"Could not locate class '(\w+)'|Unknown layer: '?(\w+)", text)
        if unknown:
            first = f"it uses the class {unknown[1] or unknown[2]!r}, which Keras does not know"
            advice = "register that class with keras.saving.register_keras_serializable before loading"
        elif isinstance(error, (OSError, zipfile.BadZipFile, EOFError)):
            advice = "the file is cut short or damaged; save or copy it again"
        else:
            advice = "save it again with Keras 3"
        raise ValueError(f"{path} cannot be loaded ({first}); {advice}.") from error


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


def _config_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
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
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, EOFError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or damaged; save or copy it again.") from error


def _config_h5(path):
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            if text is None:
                raise ValueError(
                    f"{path} holds weights without a model; name the model they belong to: "
                    f'backbone(NAME, weights="{path}").'
                )
            return json.loads(text)
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or damaged; save or copy it again.") from error


def _refuse_code(path, config):
    """Refuse ``Lambda`` layers, and the operations that Keras 2 wrote in their place, before Keras reads the file."""
    for kind in _class_names(config):
        if kind in ("Lambda", "__lambda__"):
            raise ValueError(
                f"{path} has a Lambda layer, which would run code from the file; it is not loaded. Write that layer "
                "as a class, or as Keras operations, and save the model again."
            )
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            raise ValueError(
                f"{path} has a {kind} layer, which only Keras 2 can load. There, replace the bare TensorFlow operation "
                "(often preprocess_input) by a Rescaling layer and save the model again."
            )


def _class_names(config):
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config["class_name"]
        config = list(config.values())
    for value in config if isinstance(config, list) else ():
        yield from _class_names(value)
