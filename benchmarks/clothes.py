"""Fashion-MNIST for the benchmarks: ten kinds of clothes, 28 x 28, grey; 60,000 to train on and 10,000 to test on."""

import gzip
import sys
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent.parent / ".data"


def clothes():
    """Pictures as bytes ``(n, 28, 28)`` and their class numbers: ``(x, y)`` to train on, ``(x, y)`` to test on."""
    folder = next(DATA.glob("dataset-fashion-mnist/**/fashion-mnist"), None)
    if folder is None:
        sys.exit("Fashion-MNIST is not in .data/; run scripts/setup --benchmarks.")

    def read(name, offset):
        return np.frombuffer(gzip.decompress((folder / f"{name}.gz").read_bytes()), np.uint8, offset=offset)

    def both(part):
        return read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28), read(f"{part}-labels-idx1-ubyte", 8)

    return tuple((x, y.astype("int32")) for x, y in map(both, ("train", "t10k")))
