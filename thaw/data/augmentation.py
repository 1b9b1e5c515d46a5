"""Augment images as a pure function of the image and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

# Increased when the same arguments give other images, so that features cached for an older version are not used.
VERSION = 1
FLIPS = {
    "none": (),
    "horizontal": ("horizontal",),
    "vertical": ("vertical",),
    "both": ("horizontal", "vertical"),
}
AXES = {"horizontal": -2, "vertical": -3}  # of (..., height, width, channels)


def augment(
    *,
    flips: str = "horizontal",
    rotation: float = 0.0,
    zoom: float = 0.0,
    translation: float = 0.0,
    contrast: float = 0.0,
    brightness: float = 0.0,
) -> Callable | None:
    """Build a function that augments one image, from Keras' own augmentation layers.

    The layers draw every number from the seed that comes with the image. The function has no state and uses no global
    random state, so that it runs in a parallel ``tf.data`` map and a resumed run sees the same images. Flips are not
    drawn but alternate, by the second number of the seed: of four versions of an image with consecutive numbers, no two
    are flipped alike with "both". Rotation, zoom and translation are one warp of the image, with the border reflected:
    one interpolation is faster than three and blurs less.

    Args:
        flips: "none", "horizontal" (default), "vertical" or "both".
        rotation: largest rotation either way, as a fraction of a full turn, 0 to 0.5; default 0.
        zoom: largest change of size either way, as a fraction, 0 to below 1; default 0.
        translation: largest shift either way, as a fraction of the side, 0 to 1; default 0.
        contrast: largest change of contrast either way, as a fraction, 0 to 1; default 0.
        brightness: largest change of brightness either way, as a fraction of 255, 0 to 1; default 0.

    Returns:
        Function from a float32 image of shape ``(height, width, channels)``, 0 to 255, and an int32 seed of shape
        ``(2,)`` to an image of the same shape; ``None`` if nothing is to be changed.

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> import numpy as np
        >>> image = np.arange(12, dtype="float32").reshape(2, 2, 3)
        >>> function = augment(flips="both", brightness=0.1)
        >>> bool(np.all(function(image, (1, 2)) == function(image, (1, 2))))
        True
    """
    count_flips(flips)  # raises for another name
    limits = {"rotation": 0.5, "zoom": 0.99, "translation": 1.0, "contrast": 1.0, "brightness": 1.0}
    values = (rotation, zoom, translation, contrast, brightness)
    for (name, limit), value in zip(limits.items(), values, strict=True):
        # Written so that NaN fails too.
        if not 0 <= value <= limit:
            raise ValueError(f"{name}={value}; expected a fraction from 0 to {limit}.")

    from keras import layers

    # A layer without a seed draws one from Python's global random state; a float16 policy would round pixels.
    fixed = {"seed": 0, "dtype": "float32"}
    # A layer for each direction: "horizontal_and_vertical" draws once for both, which is a half turn or nothing.
    steps = [_AlternatingFlip(layers.RandomFlip(mode, **fixed), bit) for bit, mode in enumerate(FLIPS[flips])]
    if rotation or zoom or translation:
        steps = [_Warp(steps, rotation, zoom, translation, fixed)]
    if contrast:
        # A pair: Keras takes one number for the upper bound only, and contrast would never decrease.
        steps.append(layers.RandomContrast((contrast, contrast), **fixed))
    if brightness:
        steps.append(layers.RandomBrightness(brightness, **fixed))
    return _apply(steps, f"flips {flips} {values}, version {VERSION}") if steps else None


def count_flips(flips: str) -> int:
    """Return the number of different versions that flips make of an image, the image itself included.

    Args:
        flips: as for :func:`augment`.

    Raises:
        ValueError: another name.

    Example:
        >>> count_flips("both"), count_flips("horizontal"), count_flips("none")
        (4, 2, 1)
    """
    if flips not in FLIPS:
        raise ValueError(f"flips={flips!r}; expected one of {', '.join(map(repr, FLIPS))}.")
    return 2 ** len(FLIPS[flips])


def flipped(images, flips: str, views: int) -> Iterator:
    """Yield versions of images: as they are, then their flips in the order in which :func:`augment` takes them in turn.

    Args:
        images: array ``(..., height, width, channels)``.
        flips: as for :func:`augment`.
        views: number of versions, at most :func:`count_flips`.

    Yields:
        Arrays of the same shape, which share the memory of ``images``.

    Example:
        >>> import numpy as np
        >>> image = np.array([[[1], [2]], [[3], [4]]])
        >>> [version.ravel().tolist() for version in flipped(image, "both", 4)]
        [[1, 2, 3, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 3, 2, 1]]
    """
    for version in range(views):
        axes = {AXES[name] for bit, name in enumerate(FLIPS[flips]) if version >> bit & 1}
        rows, columns = (slice(None, None, -1 if axis in axes else None) for axis in (-3, -2))
        yield images[..., rows, columns, :]


def _apply(steps: list, identity: str) -> Callable:
    generator_class = _seed_generator_class()

    def augmented(image, seed):
        import tensorflow as tf

        image = tf.cast(image, tf.float32)
        generator = generator_class(tf.cast(seed, tf.int32))
        batch = image[None]
        for step in steps:
            batch = step.transform_images(batch, step.get_random_transformation(batch, seed=generator))
        return tf.ensure_shape(batch[0], image.shape)

    augmented.identity = identity
    return augmented


def _seed_generator_class() -> type:
    """Return the class that gives Keras' layers one seed after another, all derived from the seed of the image."""
    import keras
    import tensorflow as tf

    class StatelessSeedGenerator(keras.random.SeedGenerator):
        # Without the parent's constructor, which would create a variable: there is no state.
        def __init__(self, seed):
            self.seed = seed
            self.count = 0

        def next(self, ordered=True):
            # Counted while the graph is traced: the n-th draw of an image is always the n-th.
            self.count += 1
            return tf.random.experimental.stateless_fold_in(self.seed, self.count)

    return StatelessSeedGenerator


class _AlternatingFlip:
    """Keras' flip in one direction, decided by one bit of the seed's second number."""

    def __init__(self, layer, bit):
        self.layer, self.mode, self.bit = layer, layer.mode, bit

    def get_random_transformation(self, batch, seed):
        import tensorflow as tf

        drawn = self.layer.get_random_transformation(batch, seed=seed)
        bit = tf.bitwise.bitwise_and(tf.bitwise.right_shift(seed.seed[1], self.bit), 1)
        return {**drawn, "flips": tf.fill(tf.shape(drawn["flips"]), bit == 1)}

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
        rotated = _square_matrix(drawn["rotation_matrix"])
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
        # As in the layers: from a position in the output to the position in the input.
        zoomed = [x, none, middle[1] * (1 - x), none, y, middle[0] * (1 - y), none, none]
        shifted = [one, none, -shift[:, 0], none, one, -shift[:, 1], none, none]
        product = rotated @ _square_matrix(tf.stack(zoomed, axis=1)) @ _square_matrix(tf.stack(shifted, axis=1))
        return {**drawn, "rotation_matrix": tf.reshape(product, (-1, 9))[:, :8]}

    def transform_images(self, batch, transformation):
        return self.rotation.transform_images(batch, transformation)


def _square_matrix(eight):
    """Return the ``(n, 8)`` numbers of TensorFlow's warps as ``(n, 3, 3)`` matrices."""
    import tensorflow as tf

    return tf.reshape(tf.concat([eight, tf.ones_like(eight[:, :1])], axis=1), (-1, 3, 3))
