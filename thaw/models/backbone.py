"""Load a pre-trained backbone by name or from a file."""

import contextlib
import sys
import warnings
from pathlib import Path

from thaw.models.loading import is_model_file, load_model_file
from thaw.models.preprocessing import KINDS

EMBEDDED = "efficientnet_lite0"
EMBEDDED_TEXT = "minilm"
TEXT_LENGTH = 128  # word pieces
MIN_SIDE = 32  # pixels


class ScalingWarning(UserWarning):
    """A model file does not scale its pixels and does not say how they were scaled in training."""


def backbone(name=EMBEDDED, *, weights="imagenet", head=False, input_shape=None, preprocessing="auto"):
    """Load a pre-trained model from raw pixels to a feature map, or from the word pieces of a text to a sequence.

    Pixels are 0 to 255, in the order red, green, blue; the preprocessing is a part of the model. Texts are cut into
    pieces before: :func:`thaw.data.text.load_text`.

    Args:
        name: ``"efficientnet_lite0"`` (default; its ImageNet weights come with the extras ``[cpu]`` and ``[gpu]``), a
            model of ``keras.applications`` such as ``"mobilenet_v2"`` (Keras downloads the weights), or the path of
            your own ``.keras`` or ``.h5`` file, whose head is removed. For English texts ``"minilm"``, which is
            all-MiniLM-L6-v2 (:func:`thaw.models.minilm.minilm`).
        weights: ``"imagenet"`` (default), which are the published ones for ``"minilm"`` too, the path of a local file
            of weights, or ``None`` for random weights. Your own model file contains its weights.
        head: bool, keep the original head; default ``False``.
        input_shape: ``(height, width, 3)``; ``None`` (default) for 224 x 224, or the size that the model file or the
            original head was made for. For texts ``(length,)`` in pieces; ``None`` for 128.
        preprocessing: ``"auto"`` (default), or how the pixels are scaled: ``"none"``, ``"-1..1"``, ``"0..1"``,
            ``"caffe"``, ``"torch"``.

    Returns:
        A plain ``keras.Model``, not compiled.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: an unknown name, a file that is no Keras model, weights of another model, an invalid size.
        ConnectionError: Keras could not download the weights.

    Warns:
        ScalingWarning: a model file does not scale its pixels; the message says what is assumed.

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
    if name == EMBEDDED_TEXT:
        return _build_minilm(weights, head, input_shape, preprocessing)
    shape = None if input_shape is None else _check_shape(input_shape)
    # A bare word is a name, even if a folder is called like it.
    bare = isinstance(name, str) and name.isidentifier()
    if is_model_file(name) or (not bare and Path(name).exists()):
        return _load_user_model(Path(name), weights, head, shape, preprocessing)
    if name == EMBEDDED:
        return _build_embedded(weights, head, shape or (224, 224, 3), preprocessing)
    return _build_application(name, weights, head, shape, preprocessing)


def _check_shape(shape):
    shape = tuple(shape)
    if (
        len(shape) != 3
        or shape[2] != 3
        or any(n is not None and (type(n) is not int or n < MIN_SIDE) for n in shape[:2])
    ):
        raise ValueError(f"input_shape={shape}; expected height and width of {MIN_SIDE} or more, and 3: (224, 224, 3).")
    return shape


def _build_embedded(weights, head, shape, preprocessing):
    from thaw.models.efficientnet_lite0 import efficientnet_lite0

    if preprocessing != "auto":
        raise ValueError(f"{EMBEDDED} scales its pixels itself; leave preprocessing={preprocessing!r} out.")
    if weights in ("imagenet", None):
        return efficientnet_lite0(weights, head=head, input_shape=shape)
    return _load_into(lambda top: efficientnet_lite0(None, head=top, input_shape=shape), EMBEDDED, weights, head)


def _build_minilm(weights, head, shape, preprocessing):
    from thaw.models.minilm import minilm

    if head or preprocessing != "auto":
        given = "head=True" if head else f"preprocessing={preprocessing!r}"
        raise ValueError(f"{EMBEDDED_TEXT} has no head of classes and takes the pieces of texts; leave {given} out.")
    shape = (TEXT_LENGTH,) if shape is None else tuple(shape)
    if len(shape) != 1:
        raise ValueError(f"input_shape={shape}; {EMBEDDED_TEXT} takes texts of (length,) pieces, such as (128,).")
    if weights in ("imagenet", None):
        return minilm("published" if weights else None, length=shape[0])
    return _load_into(lambda top: minilm(None, length=shape[0]), EMBEDDED_TEXT, weights, head)


def _build_application(name, weights, head, shape, preprocessing):
    import keras

    from thaw.models.applications import correct_published_scaling, find_application
    from thaw.models.preprocessing import preprocess

    build, own = find_application(name)
    if head and shape is None:  # only the function itself knows the size that the head was made for
        shape = build(weights=None, include_top=True).input_shape[1:]
    pixels = keras.Input(shape or (224, 224, 3), name="pixels")
    scaled = preprocess(pixels, own if preprocessing == "auto" else preprocessing)
    if preprocessing != "auto" and preprocess(pixels, own) is pixels:
        raise ValueError(f"{name} scales its pixels itself; leave preprocessing={preprocessing!r} out.")

    def build_model(top, weights=None):
        net = build(weights=weights, include_top=top, input_shape=pixels.shape[1:], input_tensor=scaled)
        # Given a tensor, keras.applications builds a model with a list of inputs, which warns at every call.
        return keras.Model(pixels, net.outputs[0], name=net.name)

    if weights in ("imagenet", None):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras prints the progress of a download
                return build_model(head, weights)
        except Exception as error:  # get_file raises a bare Exception
            if not any(t in str(error) for t in ("URL fetch failure", "corrupted file", "urlopen error")):
                if isinstance(error, ValueError):
                    raise ValueError(f"{name} cannot be built: {' '.join(str(error).split())}") from error
                raise
            raise ConnectionError(
                f"The ImageNet weights of {name} could not be downloaded ({str(error).split(' -- ')[-1]}); pass a "
                f"local file, weights=PATH (--weights PATH), or use {EMBEDDED}, which needs no download."
            ) from error
    return correct_published_scaling(_load_into(build_model, name, weights, head))


def _load_into(build_model, name, weights, head):
    """Build a model and load a local file of weights, with or without a head in it."""
    from thaw.models.heads import remove_head

    errors = []
    for top in (True,) if head else (False, True):
        model = build_model(top)
        try:
            _load_all_weights(model, weights)
        except Exception as error:  # Keras raises almost any type for weights that do not fit
            errors.append(error)
            continue
        return model if top == head else remove_head(model)
    first = str(errors[0]).strip().split("\n")[0][:200]
    raise ValueError(
        f"{weights} does not fit {name} ({first}); expected weights of that model, or pass a whole model file: "
        "backbone(FILE)."
    ) from errors[0]


def _load_all_weights(model, path):
    """Load weights and check that none is missing: Keras may leave some random with only a warning."""
    import numpy as np

    blank = [np.full_like(w, np.nan) if w.dtype.kind == "f" else w for w in model.get_weights()]
    model.set_weights(blank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.load_weights(str(path))
    missing = [w.path for w in model.weights if np.isnan(np.asarray(w, "float64")).any()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(model.weights)} weights are not in it, such as {missing[0]}")


def _load_user_model(path, weights, head, shape, preprocessing):
    from thaw.models.heads import remove_head
    from thaw.models.preprocessing import preprocess, rebuild

    if weights != "imagenet":
        raise ValueError(f"{path} contains its own weights; leave weights={weights!r} out.")
    loaded = load_model_file(path)
    try:
        model = remove_head(loaded)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    scaling = _choose_scaling(path, model, preprocessing)
    own = tuple(loaded.inputs[0].shape[1:])
    if shape and not (len(own) == 3 and all(n in (None, m) for n, m in zip(own, shape))):
        raise ValueError(f"{path} takes inputs of {own}; input_shape={shape} does not fit, leave it out.")
    model = loaded if head else model
    if scaling == "none" and (shape is None or shape == own):
        return model
    return rebuild(model, lambda pixels: preprocess(pixels, scaling), input_shape=shape)


def _choose_scaling(path, model, preprocessing):
    """Return the kind of preprocessing to put before a user's model; warn if it is only assumed."""
    from thaw.models.applications import family_of
    from thaw.models.preprocessing import scales_pixels

    if preprocessing != "auto":
        if preprocessing != "none" and scales_pixels(model):
            raise ValueError(
                f"{path} scales its inputs itself, so that preprocessing={preprocessing!r} would do it twice; "
                'leave it out, or pass "none".'
            )
        return preprocessing
    if len(model.inputs[0].shape) != 4 or scales_pixels(model):
        return "none"
    family = family_of(model)
    assumed = f"that of keras.applications' {family[0]}, which its names resemble" if family else "none"
    warnings.warn(
        f"{path} does not scale its pixels and does not say how that was done in training; assumed: {assumed}. "
        f"If that is wrong, choose another preprocessing (--preprocessing): {', '.join(KINDS)}.",
        ScalingWarning,
        stacklevel=4,
    )
    return family[1] if family else "none"


def input_size(backbone, name=None):
    """Return the image size of a backbone, and check that it takes square color images.

    Args:
        backbone: ``keras.Model``.
        name: the user's name for it in messages; ``None`` (default) for ``backbone.name``.

    Returns:
        int, the side of the images in pixels.

    Raises:
        ValueError: it takes other inputs, or images of any size.

    Example:
        >>> from thaw import backbone
        >>> from thaw.models.backbone import input_size
        >>> input_size(backbone(weights=None, input_shape=(64, 64, 3)))
        64
    """
    name, shape = name or backbone.name, tuple(backbone.inputs[0].shape[1:])
    if shape == (None, None, 3):
        raise ValueError(
            f"{name} takes images of any size; choose one: --image-size 224, in Python input_shape=(224, 224, 3)."
        )
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3 or shape[0] is None:
        raise ValueError(
            f"{name} takes inputs of shape {shape}; expected square images of one size with 3 channels, such as "
            "(224, 224, 3). Choose another model, or build this one for such images and save it again."
        )
    return shape[0]
