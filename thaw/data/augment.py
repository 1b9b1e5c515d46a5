"""Random changes to a picture that are no chance at all: a function of the picture and a seed."""

from __future__ import annotations

from collections.abc import Callable

# Raised when the same arguments give other pictures, so that what was kept of the old ones is not taken for new.
VERSION = 1
FLIPS = {
    "none": (),
    "horizontal": ("horizontal",),
    "vertical": ("vertical",),
    "both": ("horizontal", "vertical"),
}


def augment(
    *,
    flips: str = "horizontal",
    rotation: float = 0.0,
    zoom: float = 0.0,
    translation: float = 0.0,
    contrast: float = 0.0,
    brightness: float = 0.0,
) -> Callable | None:
    """Make the function that augments one picture, out of Keras' own augmentation layers.

    The layers draw every number from the seed that comes with the picture. Nothing is remembered between
    calls and no global random state is read or moved, so the function runs in a parallel `tf.data` map, and a
    run that is resumed sees the same pictures. Flips are not drawn but taken in turn, from the seed's second
    number: of four versions of a picture with it counting up, no two are flipped alike where "both" is given.
    Rotation, zoom and translation are one warp of the picture, with the border reflected: one interpolation
    is faster than three and blurs less.

    Args:
        flips: "none", "horizontal", "vertical" or "both".
        rotation: Largest turn either way, as a fraction of a full turn, 0 to 0.5.
        zoom: Largest change of size either way, as a fraction, 0 to below 1.
        translation: Largest shift either way, as a fraction of the side, 0 to 1.
        contrast: Largest change of contrast either way, as a fraction, 0 to 1.
        brightness: Largest change of brightness either way, as a fraction of 255, 0 to 1.

    Returns:
        Function from a float32 picture of shape (height, width, channels), 0 to 255, and an int32 seed of
        shape (2,) to a picture of the same kind; None when nothing is to be changed.

    Raises:
        ValueError: An argument is outside its range.

    Example:
        >>> import numpy as np
        >>> picture = np.arange(12, dtype="float32").reshape(2, 2, 3)
        >>> change = augment(flips="both", brightness=0.1)
        >>> bool(np.all(change(picture, (1, 2)) == change(picture, (1, 2))))
        True
    """
    if flips not in FLIPS:
        raise ValueError(f"flips is {flips!r}, expected one of {', '.join(map(repr, FLIPS))}")
    limits = {"rotation": 0.5, "zoom": 0.99, "translation": 1.0, "contrast": 1.0, "brightness": 1.0}
    given = (rotation, zoom, translation, contrast, brightness)
    for (name, limit), value in zip(limits.items(), given, strict=True):
        # Written so that NaN fails too.
        if not 0 <= value <= limit:
            raise ValueError(f"{name} is {value}, expected a fraction from 0 to {limit}")

    from keras import layers

    # A layer without a seed draws one from Python's global random state; a float16 policy would round pixels.
    fixed = {"seed": 0, "dtype": "float32"}
    # A layer for each direction: "horizontal_and_vertical" tosses one coin for both: a half turn or nothing.
    steps = [_InTurn(layers.RandomFlip(mode, **fixed), place) for place, mode in enumerate(FLIPS[flips])]
    if rotation or zoom or translation:
        steps = [_Warp(steps, rotation, zoom, translation, fixed)]
    if contrast:
        # A pair: from one number Keras takes the upper bound only, and contrast would never fall.
        steps.append(layers.RandomContrast((contrast, contrast), **fixed))
    if brightness:
        steps.append(layers.RandomBrightness(brightness, **fixed))
    return _apply(steps, f"flips {flips} {given}, version {VERSION}") if steps else None


def _apply(steps: list, identity: str) -> Callable:
    draws = _draws()

    def augmented(picture, seed):
        import tensorflow as tf

        picture = tf.cast(picture, tf.float32)
        generator = draws(tf.cast(seed, tf.int32))
        batch = picture[None]
        for step in steps:
            batch = step.transform_images(batch, step.get_random_transformation(batch, seed=generator))
        return tf.ensure_shape(batch[0], picture.shape)

    augmented.identity = identity
    return augmented


def _draws() -> type:
    """The class that hands Keras' layers one seed after another, all from the picture's own."""
    import keras
    import tensorflow as tf

    class Draws(keras.random.SeedGenerator):
        # No call of the parent's constructor: it would create a variable, and there is no state to keep.
        def __init__(self, seed):
            self.seed = seed
            self.count = 0

        def next(self, ordered=True):
            # Counted while the graph is traced: the n-th draw of a picture is always the n-th.
            self.count += 1
            return tf.random.experimental.stateless_fold_in(self.seed, self.count)

    return Draws


class _InTurn:
    """Keras' flip in one direction, decided by one binary digit of the seed's second number."""

    def __init__(self, layer, place):
        self.layer, self.mode, self.place = layer, layer.mode, place

    def get_random_transformation(self, batch, seed):
        import tensorflow as tf

        drawn = self.layer.get_random_transformation(batch, seed=seed)
        digit = tf.bitwise.bitwise_and(tf.bitwise.right_shift(seed.seed[1], self.place), 1)
        return {**drawn, "flips": tf.fill(tf.shape(drawn["flips"]), digit == 1)}

    def transform_images(self, batch, transformation):
        return self.layer.transform_images(batch, transformation)


class _Warp:
    """Flips, rotation, zoom and translation, drawn by Keras' layers and applied as one matrix."""

    def __init__(self, flips, rotation, zoom, translation, fixed):
        from keras import layers

        self.flips = flips
        self.rotation = layers.RandomRotation(rotation, **fixed)
        self.zoom = layers.RandomZoom(zoom, **fixed)
        self.translation = layers.RandomTranslation(translation, translation, **fixed)

    def get_random_transformation(self, batch, seed):
        import tensorflow as tf

        drawn = self.rotation.get_random_transformation(batch, seed=seed)
        turn = _square_matrix(drawn["rotation_matrix"])
        size = self.zoom.get_random_transformation(batch, seed=seed)["height_zoom"][:, 0]
        # A flip is a zoom by -1 about the middle.
        scale = {"horizontal": size, "vertical": size}
        for layer in self.flips:
            flipped = layer.get_random_transformation(batch, seed=seed)["flips"][:, 0, 0, 0]
            scale[layer.mode] = tf.where(flipped, -size, size)
        x, y = scale["horizontal"], scale["vertical"]
        shift = self.translation.get_random_transformation(batch, seed=seed)["translations"]
        middle = (tf.cast(tf.shape(batch)[1:3], tf.float32) - 1.0) / 2.0
        none, one = tf.zeros_like(size), tf.ones_like(size)
        # As in the layers: from a place in the new picture to the place in the old one.
        zoomed = [x, none, middle[1] * (1 - x), none, y, middle[0] * (1 - y), none, none]
        moved = [one, none, -shift[:, 0], none, one, -shift[:, 1], none, none]
        product = turn @ _square_matrix(tf.stack(zoomed, axis=1)) @ _square_matrix(tf.stack(moved, axis=1))
        return {**drawn, "rotation_matrix": tf.reshape(product, (-1, 9))[:, :8]}

    def transform_images(self, batch, transformation):
        return self.rotation.transform_images(batch, transformation)


def _square_matrix(eight):
    """(n, 8) numbers as TensorFlow's warps take them, to matrices (n, 3, 3)."""
    import tensorflow as tf

    return tf.reshape(tf.concat([eight, tf.ones_like(eight[:, :1])], axis=1), (-1, 3, 3))
