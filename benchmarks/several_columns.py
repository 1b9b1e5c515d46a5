"""Defective solar cells from a photograph and the kind of the crystal: each column alone, and both together.

    scripts/setup
    python benchmarks/several_columns.py [SEEDS] [--size 224] [--balance none]

The 2,624 photographs of the package elpv-dataset (Deitsch et al. 2019) say of each cell whether it is of a
monocrystalline or a polycrystalline module. EfficientNet-Lite0 runs once over the photographs, frozen; the crystal is
one-hot. Every seed is a split of its own, that of examples/solar_cells.py. The log loss out of fold chooses what the
model reads; the test photographs decide nothing.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))


def rows_of(seed):
    """The table of the example, with the kind of each crystal."""
    from solar_cells import table

    with tempfile.TemporaryDirectory() as folder:
        lines = table(seed, Path(folder, "cells.csv")).read_text(encoding="utf-8").splitlines()
    photo, label, split = zip(*list(csv.reader(lines))[1:])
    described = Path(photo[0]).parents[1] / "labels.csv"
    crystal = [line.split()[2] for line in described.read_text().splitlines()]
    return {"photo": photo, "crystal": crystal, "label": label, "split": split}


def main(seeds, size, balance):
    import thaw
    from thaw.data.joined_columns import load_columns
    from thaw.transfer.joined_readout import compare_columns

    backbone = thaw.backbone("efficientnet_lite0", input_shape=(size, size, 3))
    tables = []
    for seed in range(seeds):
        begin = time.monotonic()
        splits = load_columns(
            rows_of(seed), image="photo", numbers="crystal", image_size=size, seed=seed, balance=balance
        )
        tables.append(compare_columns(splits, {"image": backbone}, seed=seed))
        print(f"seed {seed}, {time.monotonic() - begin:.0f} s\n{tables[-1]}\n", flush=True)
    print(f"{'mean ± deviation':22}{'log loss':18}{'test log loss':18}test accuracy")
    for scores in zip(*(table.scores for table in tables)):
        figures = [[s.log_loss for s in scores], [s.test_log_loss for s in scores]]
        figures.append([s.test_accuracy.value for s in scores])
        cells = [f"{statistics.mean(f):.4f} ± {statistics.stdev(f) if len(f) > 1 else 0:.4f}" for f in figures]
        print(f"{scores[0].name:22}{cells[0]:18}{cells[1]:18}{cells[2]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--balance", default="none", choices=("none", "auto", "balanced"))
    given = parser.parse_args()
    main(given.seeds, given.size, given.balance)
