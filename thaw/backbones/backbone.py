"""A pre-trained backbone by name or by file: raw pixels in, features out."""

import contextlib
import sys
import warnings
from pathlib import Path

from thaw.backbones.preprocess import KINDS

EMBEDDED = "efficientnet_lite0"
_ENDINGS = (".keras", ".h5", ".hdf5")


def backbone(name=EMBEDDED, *, weights="imagenet", head=False, input_shape=None, preprocessing="auto"):
    """Give a pre-trained model that takes raw pixels and puts out a feature map.

    Pixels are 0 to 255 in the order red, green, blue; scaling them is part of the model, once.

    Args:
        name: ``"efficientnet_lite0"`` (its ImageNet weights come with the installation), a net of
            ``keras.applications`` such as ``"mobilenet_v2"`` (Keras downloads the weights), or a ``.keras``
            or ``.h5`` file of your own, whose head is taken off.
        weights: ``"imagenet"``, a local file of weights, or ``None`` for random ones. A file of your own
            brings its weights along.
        head: keep the original classes.
        input_shape: height, width and 3. ``None`` means 224 x 224, or the size that a file or a kept head
            was made for.
        preprocessing: ``"auto"``, or how the pixels are to be scaled: ``"none"``, ``"-1..1"``,
            ``"0..1"``, ``"caffe"``, ``"torch"``.

    Returns:
        A plain ``keras.Model``, not compiled.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: an unknown name, a file that is not a Keras model, weights of another net, a size that
            does not fit.
        ConnectionError: Keras could not download the weights.

    Example:
        >>> backbone("mobilenet_v2", weights=None, input_shape=(96, 96, 3)).output_shape
        (None, 3, 3, 1280)
    """
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise ValueError("Keras is set to channels_first; expected channels_last (keras.config.set_image_data_format).")
    if preprocessing != "auto" and preprocessing not in KINDS:
        raise ValueError(f"preprocessing={preprocessing!r}; expected auto, {', '.join(KINDS)}.")
    if weights not in ("imagenet", None) and not Path(weights).is_file():
        raise FileNotFoundError(f'weights={str(weights)!r} is no file; expected "imagenet", None or a file of weights.')
    shape = None if input_shape is None else _checked(input_shape)
    # A bare word is a name, even where a folder is called so.
    bare = isinstance(name, str) and name.isidentifier()
    if str(name).lower().endswith(_ENDINGS) or (not bare and Path(name).exists()):
        return _user_file(Path(name), weights, head, shape, preprocessing)
    if name == EMBEDDED:
        return _embedded(weights, head, shape or (224, 224, 3), preprocessing)
    return _application(name, weights, head, shape, preprocessing)


def backbone_names():
    """Names that :func:`backbone` understands, the embedded one first.

    Returns:
        A tuple of names.

    Example:
        >>> backbone_names()[0]
        'efficientnet_lite0'
    """
    from thaw.backbones.applications import application_names

    return (EMBEDDED, *application_names())


def _checked(shape):
    shape = tuple(shape)
    if len(shape) != 3 or shape[2] != 3 or any(n is not None and (type(n) is not int or n < 32) for n in shape[:2]):
        raise ValueError(f"input_shape={shape}; expected height and width of 32 or more, and 3: (224, 224, 3).")
    return shape


def _embedded(weights, head, shape, preprocessing):
    from thaw.backbones.efficientnet_lite0 import efficientnet_lite0

    if preprocessing != "auto":
        raise ValueError(f"{EMBEDDED} scales its pixels itself; leave preprocessing={preprocessing!r} out.")
    if weights in ("imagenet", None):
        return efficientnet_lite0(weights, head=head, input_shape=shape)
    return _with_file(lambda top: efficientnet_lite0(None, head=top, input_shape=shape), EMBEDDED, weights, head)


def _application(name, weights, head, shape, preprocessing):
    import keras

    from thaw.backbones.applications import find_application, mend_published_scaling
    from thaw.backbones.preprocess import preprocess
    from thaw.backbones.rebuild import rebuild

    build, own = find_application(name)
    if head and shape is None:  # the size the head was made for is known only to the function itself
        shape = build(weights=None, include_top=True).input_shape[1:]
    pixels = keras.Input(shape or (224, 224, 3), name="pixels")
    scaled = preprocess(pixels, own if preprocessing == "auto" else preprocessing)
    if preprocessing != "auto" and preprocess(pixels, own) is pixels:
        raise ValueError(f"{name} scales its pixels itself; leave preprocessing={preprocessing!r} out.")

    def made(top, weights=None):
        net = build(weights=weights, include_top=top, input_shape=pixels.shape[1:], input_tensor=scaled)
        # Given a tensor, keras.applications makes a model of a list of inputs, which warns at every call.
        return keras.Model(pixels, net.outputs[0], name=net.name)

    if weights in ("imagenet", None):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # where Keras talks about its downloads
                return made(head, weights)
        except Exception as error:  # get_file raises a bare Exception
            if not any(t in str(error) for t in ("URL fetch failure", "corrupted file", "urlopen error")):
                if isinstance(error, ValueError):
                    raise ValueError(f"{name} cannot be built: {' '.join(str(error).split())}") from error
                raise
            raise ConnectionError(
                f"The ImageNet weights of {name} could not be downloaded ({str(error).split(': ')[-1]}); "
                f"pass a file "
                f"you have, weights=PATH, or take the embedded backbone({EMBEDDED!r})."
            ) from error
    return mend_published_scaling(_with_file(made, name, weights, head), rebuild)


def _with_file(made, name, weights, head):
    """Build a net and load a local file into it; a file that has a head too is read whole and cut."""
    from thaw.backbones.remove_head import remove_head

    errors = []
    for top in (True,) if head else (False, True):
        model = made(top)
        try:
            _load_whole(model, weights)
        except Exception as error:  # Keras raises almost any type for weights that do not fit
            errors.append(error)
            continue
        return model if top == head else remove_head(model)
    first = str(errors[0]).strip().split("\n")[0][:200]
    raise ValueError(
        f"{weights} does not fit {name} ({first}); expected weights of that net, or pass a whole model as "
        "backbone(FILE)."
    ) from errors[0]


def _load_whole(model, path):
    """Load weights and make sure that none is left out: Keras may keep random ones under a mere warning."""
    import numpy as np

    blank = [np.full_like(w, np.nan) if w.dtype.kind == "f" else w for w in model.get_weights()]
    model.set_weights(blank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.load_weights(str(path))
    missing = [w.path for w in model.weights if np.isnan(np.asarray(w, "float64")).any()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(model.weights)} weights are not in it, such as {missing[0]}")


def _user_file(path, weights, head, shape, preprocessing):
    from thaw.backbones.model_file import model_file
    from thaw.backbones.preprocess import preprocess
    from thaw.backbones.rebuild import rebuild
    from thaw.backbones.remove_head import remove_head

    if weights != "imagenet":
        raise ValueError(f"{path} brings its own weights; leave weights={weights!r} out.")
    loaded = model_file(path)
    try:
        model = remove_head(loaded)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    like = _scaling(path, model, preprocessing)
    own = tuple(loaded.inputs[0].shape[1:])
    if shape and not (len(own) == 3 and all(n in (None, m) for n, m in zip(own, shape))):
        raise ValueError(f"{path} takes inputs of {own}; input_shape={shape} does not fit, leave it out.")
    model = loaded if head else model
    if like == "none" and (shape is None or shape == own):
        return model
    return rebuild(model, lambda pixels: preprocess(pixels, like), input_shape=shape)


def _scaling(path, model, preprocessing):
    """How pixels are to be scaled in front of a user's model; what is only supposed is said."""
    from thaw.backbones.applications import family_of
    from thaw.backbones.scales_pixels import scales_pixels

    if preprocessing != "auto":
        if preprocessing != "none" and scales_pixels(model):
            raise ValueError(
                f"{path} scales its inputs itself, so that preprocessing={preprocessing!r} would do it "
                f"twice; "
                'leave it out, or pass "none".'
            )
        return preprocessing
    if len(model.inputs[0].shape) != 4 or scales_pixels(model):
        return "none"
    family = family_of(model)
    supposed = f"that of keras.applications' {family[0]}, which its names resemble" if family else "none"
    warnings.warn(
        f"{path} does not scale its pixels and does not say how that was done in training; assumed: "
        f"{supposed}. "
        f"If that is wrong, pass preprocessing= one of {', '.join(KINDS)}.",
        stacklevel=4,
    )
    return family[1] if family else "none"
