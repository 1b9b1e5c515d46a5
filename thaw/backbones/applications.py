"""The families of keras.applications, found by looking at keras.applications itself."""

import difflib
import inspect
import re
import types


def application_names():
    """Names of every net in ``keras.applications``.

    Returns:
        A sorted tuple of names in small letters; the class names of Keras are understood as well.

    Example:
        >>> [name for name in application_names() if name.startswith("mobilenet")]
        ['mobilenet', 'mobilenet_v2', 'mobilenet_v3_large', 'mobilenet_v3_small']
    """
    return tuple(sorted(_snake(build.__name__) for build, _ in _families().values()))


def find_application(name):
    """The function that builds a net of ``keras.applications``, and its family's ``preprocess_input``.

    Args:
        name: as in :func:`application_names`, or the class name, such as ``"MobileNetV2"``.

    Returns:
        ``(build, preprocess_input)``.

    Raises:
        ValueError: no such net; the closest names are given.

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
    """The family of ``keras.applications`` that a user's model comes from, by its own names.

    First the names of the model and the models inside it are compared with the names of the families; then,
    as a flat model keeps only its layers' names, these with the layers' names of one net of each family.

    Args:
        model: a functional or sequential ``keras.Model``.

    Returns:
        ``(name, preprocess_input)``, or ``None`` where no family fits.

    Example:
        >>> import keras
        >>> net = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3))
        >>> family_of(keras.Sequential([net, keras.layers.GlobalAveragePooling2D()]))[0]
        'mobilenet_v2'
    """
    import keras

    by_key = {key: (_snake(build.__name__), function) for key, (build, function) in _families().items()}
    by_key |= {_key(_module(function)): (_module(function), function) for _, function in _families().values()}
    nested = [layer for layer in model._flatten_layers() if isinstance(layer, keras.Model)]
    for name in (_key(m.name) for m in nested):
        fitting = [key for key in by_key if name.startswith(key)]
        if fitting:
            _, function = found = by_key[max(fitting, key=len)]
            # A net that could scale its pixels itself and does not was built so on purpose: nobody knows how.
            return None if _scales_itself(function) else found
    return _by_layers(model)


def _by_layers(model):
    own = _given_names(model)
    if len(own) < 5:
        return None
    smallest = {}
    for build, function in _families().values():
        if not _scales_itself(function):
            smallest[function] = min(smallest.get(function, build), build, key=_numbers)
    # Building a net takes a second, reading its source nothing: the likely ones are tried first, and a net
    # whose names no source mentions is a stranger.
    mentions = {function: _mentions(build, own) for function, build in smallest.items()}
    if not any(mentions.values()):
        return None
    best, most = None, 0.5
    for function, build in sorted(smallest.items(), key=lambda pair: -mentions[pair[0]]):
        names = _given_names(build(weights=None, include_top=False, input_shape=(96, 96, 3)))
        share = len(own & names) / max(1, min(len(own), len(names)))
        if share > most:
            best, most = (_module(function), function), share
        if most > 0.95:
            break
    return best


def mend_published_scaling(model, rebuild):
    """Divide by the deviation where EfficientNet's published file holds it in place of the variance.

    ``keras.applications`` adds that division only when it downloads the file itself
    (keras.applications.efficientnet, tensorflow#49930); the same file given as a path would see pixels
    scaled wrongly.

    Args:
        model: an EfficientNet with weights just loaded from a local file.
        rebuild: :func:`thaw.backbones.rebuild.rebuild`.

    Returns:
        ``model`` itself, or one with a ``Rescaling`` more.
    """
    import numpy as np
    from keras import layers

    deviation = np.array([0.229, 0.224, 0.225])
    norms = [layer for layer in model.layers if isinstance(layer, layers.Normalization) and layer.weights]
    if len(norms) != 1 or not np.allclose(np.ravel(norms[0].get_weights()[1]), deviation, atol=1e-3):
        return model
    again = layers.Rescaling((1 / np.sqrt(deviation)).tolist(), name="published_scaling")
    return rebuild(model, after={norms[0].name: again})


def _families():
    """From key to ``(build, preprocess_input)``: what builds a net and what scales its pixels share a
    module."""
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
    """Names that somebody gave to layers, without those that Keras made by counting."""
    import keras

    names = set()
    for layer in model._flatten_layers(include_self=False):
        counted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower()
        by_keras = re.fullmatch(rf"({counted}|\w*conv2d|\w*pooling2d|input_layer)(_\d+)?", layer.name)
        if not isinstance(layer, keras.Model) and not by_keras:
            names.add(layer.name)
    return names
