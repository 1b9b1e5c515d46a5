"""Pictures as a worse camera takes them: five corruptions, two severities (after Hendrycks and Dietterich 2019)."""

import numpy as np


def corruptions(pictures, seed=0):
    """The same pictures, spoiled.

    Args:
        pictures: ``(n, height, width, channels)``, 0 to 255.
        seed: of the noise.

    Returns:
        A dict from names such as ``"blur 2"`` to float32 pictures 0 to 255, whole numbers as in a file.
    """
    x = np.asarray(pictures, np.float32)
    noise = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    made = {}
    for severity, (sigma, width, contrast, cell, light) in enumerate(SEVERITIES, 1):
        made[f"noise {severity}"] = x + sigma * noise
        made[f"blur {severity}"] = _blurred(x, width)
        made[f"contrast {severity}"] = mean + contrast * (x - mean)
        made[f"pixelation {severity}"] = _coarse(x, cell)
        made[f"brightness {severity}"] = x + light
    return {name: np.clip(np.round(rows), 0, 255).astype(np.float32) for name, rows in made.items()}


# Deviation of the noise, of the blur in pixels, share of the contrast left, pixels of a cell, light added.
SEVERITIES = ((25, 0.7, 0.6, 2, 40), (50, 1.2, 0.35, 3, 80))


def _blurred(x, width):
    reach = int(np.ceil(3 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    for axis in (1, 2):
        padded = np.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
        shifts = range(2 * reach + 1)
        x = sum(k * np.take(padded, range(i, i + x.shape[axis]), axis) for i, k in zip(shifts, kernel / kernel.sum()))
    return x.astype(np.float32)


def _coarse(x, cell):
    """Each cell of pixels gets its mean; what is left over at the border is a smaller cell."""
    height, width = x.shape[1:3]
    rows, columns = np.arange(height) // cell, np.arange(width) // cell
    sums = np.add.reduceat(np.add.reduceat(x, range(0, height, cell), 1), range(0, width, cell), 2)
    sizes = np.bincount(rows)[:, None] * np.bincount(columns)
    return (sums / sizes[..., None])[:, rows][:, :, columns]
