"""The image sets of the benchmarks, as people have them: train, validation and test folders with one for each class.

solar-cells (ELPV, 1,771 to train on), stamps (Tux Paint, about 150), clothes (Fashion-MNIST, 500) and emoji (Google's,
by category, 1,020); and, with the folder that holds them, ants-bees (train/ and val/, of the PyTorch transfer learning
tutorial) and cifar10-small (train/ and test/, of CIFAR-10; 1,700 are drawn to train on). Each seed draws a split of its
own; where a test set is published, it stays. `scripts/setup --benchmarks` fetches all but the last two.
"""

import gzip
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent.parent / ".data"
IMAGE_SIZE = {
    "solar-cells": 224,
    "stamps": 224,
    "clothes": 96,
    "emoji": 96,
    "ants-bees": 224,
    "cifar10-small": 128,
}
ELSEWHERE = ("ants-bees", "cifar10-small")
STAMPS = ["animals/mammals", "animals/birds", "animals/fish", "animals/insects", "food/fruit", "food/vegetables"]
STAMPS += ["plants/flowers", "household/tools", "hobbies/music", "town/roadsigns"]


def write_set(name, seed, folder, data=None):
    """Write an image set into a folder, of links to its files where it has files.

    Args:
        name: a key of ``IMAGE_SIZE``.
        seed: of the split.
        folder: an empty folder; gets train, validation and test.
        data: the folder that holds ants-bees and cifar10-small.
    """
    write = {"solar-cells": _solar_cells, "stamps": _stamps, "clothes": _clothes, "emoji": _emoji}.get(name)
    if write:
        write(seed, Path(folder))
    else:
        _elsewhere(Path(data, name), seed, Path(folder))


def _solar_cells(seed, folder):
    import csv

    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from solar_cells import table

    with tempfile.TemporaryDirectory() as place, open(table(seed, Path(place, "cells.csv")), newline="") as file:
        for row in csv.DictReader(file):
            part = {"val": "validation"}.get(row["split"], row["split"])
            _link(folder / part / row["label"], Path(row["image"]))


def _stamps(seed, folder):
    stamps = DATA / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    files = [(kind, path) for kind in STAMPS for path in sorted((stamps / kind).rglob("*.png"))]
    files = [(kind, path) for kind, path in files if "cartoon" not in str(path.relative_to(stamps))]
    # Some have the same name in two folders
    named = [(Path(kind).name, path, "-".join(path.relative_to(stamps / kind).parts)) for kind, path in files]
    for part, (label, path, name) in zip(_parts([label for label, *_ in named], seed), named):
        _link(folder / part / label, path, name)


def _emoji(seed, folder, most=1600):
    package = DATA / "emoji-datasource-google/package"
    emoji = [e for e in json.loads((package / "emoji.json").read_text()) if e["category"] != "Component"]
    files = [(e["category"], package / "img/google/64" / e["image"]) for e in emoji]
    files = [pair for pair in files if pair[1].exists()]
    files = [files[i] for i in sorted(np.random.default_rng(seed).permutation(len(files))[:most])]
    for part, (label, path) in zip(_parts([label for label, _ in files], seed), files):
        _link(folder / part / label, path)


def _clothes(seed, folder, train=500, validation=150, test=1000):
    """Of 28 x 28 pixels; the test images are of the published test set."""
    from PIL import Image

    source = next(DATA.glob("dataset-fashion-mnist/**/fashion-mnist"))

    def read(name, offset):
        return np.frombuffer(gzip.decompress((source / f"{name}.gz").read_bytes()), np.uint8, offset=offset)

    draw = np.random.default_rng(seed)
    for kind, parts in (("train", {"train": train, "validation": validation}), ("t10k", {"test": test})):
        x, y = read(f"{kind}-images-idx3-ubyte", 16).reshape(-1, 28, 28), read(f"{kind}-labels-idx1-ubyte", 8)
        rows = iter(draw.permutation(len(x)))
        for part, count in parts.items():
            for row, _ in zip(rows, range(count)):
                place = folder / part / f"{y[row]}"
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(x[row]).save(place / f"{row}.png")


def _elsewhere(source, seed, folder, most=2000):
    """Ants and bees have no test images apart, so that their validation images are tested on."""
    files = {
        part.name: [(path.parent.name, path) for path in sorted(part.glob("*/*")) if not path.name.startswith(".")]
        for part in source.iterdir()
        if part.is_dir()
    }
    tested = files.get("test") or files["val"]
    drawn = np.random.default_rng(seed).permutation(len(files["train"]))[:most]
    files["train"] = [files["train"][i] for i in sorted(drawn)]
    learned = _parts([label for label, _ in files["train"]], seed, test=0)
    for part, (label, path) in [*zip(learned, files["train"]), *(("test", pair) for pair in tested)]:
        _link(folder / part / label, path)


def _parts(labels, seed, validation=0.15, test=0.25):
    """Return a split for each file, stratified by class."""
    from sklearn.model_selection import train_test_split

    parts, rows = np.full(len(labels), "validation", dtype=object), np.arange(len(labels))
    if test:
        rows, tested = train_test_split(rows, test_size=test, stratify=labels, random_state=seed)
        parts[tested] = "test"
    trained, _ = train_test_split(rows, test_size=validation, stratify=[labels[i] for i in rows], random_state=seed)
    parts[trained] = "train"
    return parts.tolist()


def _link(place, path, name=None):
    place.mkdir(parents=True, exist_ok=True)
    (place / (name or path.name)).symlink_to(path.resolve())
