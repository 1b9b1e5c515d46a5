"""Find the models of keras.applications, and the classes of ImageNet."""

import difflib
import importlib.resources
import inspect
import json
import os
import re
import types
from pathlib import Path

from thaw._keras import sublayers


def application_names():
    """Return the names of the models in ``keras.applications``.

    Returns:
        A sorted tuple of names in lower case; :func:`find_application` takes Keras' own names as well.

    Example:
        >>> [name for name in application_names() if name.startswith("mobilenet")]
        ['mobilenet', 'mobilenet_v2', 'mobilenet_v3_large', 'mobilenet_v3_small']
    """
    return tuple(sorted(_snake(build.__name__) for build, _ in _families().values()))


def find_application(name):
    """Return the function that builds a model of ``keras.applications``, and the ``preprocess_input`` of its family.

    Args:
        name: str, as in :func:`application_names`, or Keras' own, such as ``"MobileNetV2"``.

    Returns:
        ``(build, preprocess_input)``.

    Raises:
        ValueError: there is no such model; the message gives the closest names.

    Example:
        >>> find_application("mobilenet_v2")[0].__name__
        'MobileNetV2'
    """
    families = _families()
    if _key(name) in families:
        return families[_key(name)]
    known = {_key(n): n for n in ("efficientnet_lite0", *application_names())}
    close = [known[k] for k in difflib.get_close_matches(_key(name), known, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known.values())}."
    raise ValueError(f"There is no backbone {name!r}, nor a .keras or .h5 file of that name; {hint}")


def family_of(model):
    """Recognize the family of ``keras.applications`` that a user's model comes from, by its names.

    First the names of the model and of nested models are compared with those of the families. A flat model keeps only
    the names of its layers; these are compared with those of one model of each family.

    Args:
        model: functional or sequential ``keras.Model``.

    Returns:
        ``(name, preprocess_input)``, or ``None`` if no family fits.

    Example:
        >>> import keras
        >>> net = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3))
        >>> family_of(keras.Sequential([net, keras.layers.GlobalAveragePooling2D()]))[0]
        'mobilenet_v2'
    """
    import keras

    by_key = {key: (_snake(build.__name__), function) for key, (build, function) in _families().items()}
    by_key |= {_key(_module(function)): (_module(function), function) for _, function in _families().values()}
    nested = [layer for layer in sublayers(model) if isinstance(layer, keras.Model)]
    for name in (_key(m.name) for m in nested):
        matches = [key for key in by_key if name.startswith(key)]
        if matches:
            family, function = by_key[max(matches, key=len)]
            # A model of a family that scales its own pixels, built without that: the scaling is unknown.
            return None if _scales_itself(function) else (family, function)
    return _family_by_layers(model)


def _family_by_layers(model):
    own = _given_names(model)
    if len(own) < 5:
        return None
    smallest = {}
    for build, function in _families().values():
        if not _scales_itself(function):
            smallest[function] = min(smallest.get(function, build), build, key=_numbers)
    # Building a model takes a second and reading its source no time: the likely families are tried first, and none at
    # all if no source mentions a name.
    mentions = {function: _mentions(build, own) for function, build in smallest.items()}
    if not any(mentions.values()):
        return None
    best, best_overlap = None, 0.5
    for function, build in sorted(smallest.items(), key=lambda pair: -mentions[pair[0]]):
        names = _given_names(build(weights=None, include_top=False, input_shape=(96, 96, 3)))
        overlap = len(own & names) / max(1, min(len(own), len(names)))
        if overlap > best_overlap:
            best, best_overlap = (_module(function), function), overlap
        if best_overlap > 0.95:
            break
    return best


def correct_published_scaling(model):
    """Divide by the standard deviation where EfficientNet's published file holds it in place of the variance.

    ``keras.applications`` adds that division only when it downloads the file itself (keras.applications.efficientnet,
    tensorflow#49930); with the same file given as a path, pixels would be scaled wrongly.

    Args:
        model: EfficientNet with weights just loaded from a local file.

    Returns:
        ``model`` itself, or a copy with one more ``Rescaling``.
    """
    import numpy as np
    from keras import layers

    from thaw.models.preprocessing import rebuild

    deviation = np.array([0.229, 0.224, 0.225])
    norms = [layer for layer in model.layers if isinstance(layer, layers.Normalization) and layer.weights]
    if len(norms) != 1 or not np.allclose(np.ravel(norms[0].get_weights()[1]), deviation, atol=1e-3):
        return model
    correction = layers.Rescaling((1 / np.sqrt(deviation)).tolist(), name="published_scaling")
    return rebuild(model, after={norms[0].name: correction})


def _families():
    """Return key to ``(build, preprocess_input)``; both functions of a family are defined in one module."""
    import keras

    public = vars(keras.applications).values()
    modules = [m for m in public if isinstance(m, types.ModuleType) and hasattr(m, "preprocess_input")]
    scaling = {m.preprocess_input.__module__: m.preprocess_input for m in modules}
    builds = [f for f in public if inspect.isfunction(f) and "include_top" in inspect.signature(f).parameters]
    return {_key(f.__name__): (f, scaling[f.__module__]) for f in builds if f.__module__ in scaling}


def _scales_itself(preprocess_input):
    import numpy as np

    pixels = np.array([[[[0.0, 100.0, 255.0]]]])
    return bool(np.all(np.asarray(preprocess_input(pixels.copy())) == pixels))


def _module(function):
    return function.__module__.split(".")[-1]


def _numbers(build):
    return [int(n) for n in re.findall(r"\d+", build.__name__)]


def _mentions(build, names):
    try:
        source = inspect.getsource(inspect.getmodule(build))
    except OSError:  # installed without its source
        return 1
    return sum(f'"{name}"' in source for name in names)


def _key(name):
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])(?!Net|NeXt|Xt)", "_", name).lower()


def _given_names(model):
    """Return the layer names that were given, without those that Keras generated by counting."""
    import keras

    names = set()
    for layer in sublayers(model, include_self=False):
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower()
        generated = re.fullmatch(rf"({prefix}|\w*conv2d|\w*pooling2d|input_layer)(_\d+)?", layer.name)
        if not isinstance(layer, keras.Model) and not generated:
            names.add(layer.name)
    return names


def imagenet_classes():
    """Return the names of the thousand classes of ILSVRC 2012 (Russakovsky et al. 2015), without a download.

    The folders of ImageNet are named by WordNet numbers, ``n01443537``, which come with the package; a head has its
    classes in the order of these numbers. English names, ``goldfish``, are added if Keras has downloaded its class
    index before, as ``keras.applications.imagenet_utils.decode_predictions`` does; names of two classes ("crane") are
    left out.

    Returns:
        A dict from name, in lower case, to class number, 0 to 999.

    Example:
        >>> from thaw.models.applications import imagenet_classes
        >>> imagenet_classes()["n01443537"]
        1
    """
    numbers = importlib.resources.files("thaw.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    classes = {f"n{number}": i for i, number in enumerate(numbers.split())}
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        index = json.loads((home / "models" / "imagenet_class_index.json").read_text(encoding="utf-8"))
        names = {int(i): str(name).lower().replace(" ", "_") for i, (_, name) in index.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return classes
    for i, name in names.items():
        if 0 <= i < 1000 and list(names.values()).count(name) == 1:
            classes[name] = i
    return classes
