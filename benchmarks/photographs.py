"""The photographs of the benchmarks: solar cells in class folders, written once into .data/."""

import importlib.util
import os
import random
import shutil
import sys
from pathlib import Path

DATA = Path(__file__).parent.parent / ".data"


def photographs(count=2000):
    """A folder split/class/picture of PNG files, as people have them: four fifths to train on, the rest to validate.

    The pictures are from the package elpv-dataset: 300 x 300, grey, in two classes, as in examples/solar_cells.py.
    The choice and the split are the same on every machine, and both classes are shared out alike.
    """
    folder = DATA / f"solar-cells-{count}"
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None:
        sys.exit("The photographs are not installed; run scripts/setup, or pip install --no-deps elpv-dataset.")
    source = Path(spec.submodule_search_locations[0]) / "data"
    cells = [line.split()[:2] for line in (source / "labels.csv").read_text().splitlines()]
    if not 20 <= count <= len(cells):
        sys.exit(f"{count} pictures; expected 20 to {len(cells)}.")
    random.Random(0).shuffle(cells)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    number = {"defective": 0, "intact": 0}
    for name, probability in cells[:count]:
        label = "defective" if float(probability) > 0.5 else "intact"
        number[label] += 1
        place = beside / ("validation" if number[label] % 5 == 0 else "train") / label
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, place / Path(name).name)
    try:
        os.replace(beside, folder)
    except OSError:  # another process was faster, and its pictures are the same
        shutil.rmtree(beside)
    return folder
