"""Defective solar cells, five seeds: one pass and fine-tuned, beside the published figures.

    python benchmarks/solar_cells.py [SEEDS] [--ways one-pass tuned] [--size 224] [--result FILE]

one-pass is the command `thaw tune cells.csv -p probe --flips both` in a process of its own with an empty cache, from
start to written run, evaluated with one and with four views of each photograph. tuned is examples/solar_cells.py,
which scripts/demo runs. Every seed is a split, an order and an augmentation of its own. Finished seeds are kept in the
result file, and read, not run again.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
PUBLISHED = {
    "SVM (Deitsch et al. 2019)": 0.8244,
    "VGG19, GPU (Deitsch et al. 2019)": 0.8842,
    "ResNet152, GPU (published)": 0.9013,
}
FIGURES = ("accuracy", "macro_f1", "roc_auc", "log_loss")


def timed(command, place):
    """Run a command with an empty cache; returns its seconds."""
    begin = time.monotonic()
    environment = os.environ | {"THAW_CACHE": str(Path(place, "cache"))}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(map(str, command))} ended with code {done.returncode}.")
    return time.monotonic() - begin


def one_pass(seed, size):
    """Solve for a head on frozen features; returns a row for one view and one for four."""
    from solar_cells import table

    from thaw import open_run

    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as place:
        data, test, run = table(seed, Path(place, "cells.csv")), Path(place, "test.csv"), Path(place, "run")
        options = ["-p", "probe", "--flips", "both", "--image-size", size, "--seed", seed]
        seconds = timed([sys.executable, "-m", "thaw", "tune", data, "-o", run, *options], place)
        with open(data, newline="", encoding="utf-8") as file, open(test, "w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(row[:2] for row in csv.reader(file) if row[2] in ("split", "test"))
        opened = open_run(run)
        return {
            "one pass": figures(opened.metrics) | {"minutes": seconds / 60},
            "one pass, 4 views": figures(opened.evaluate(test, views=4)) | {"minutes": seconds / 60},
        }


def tuned(seed, size):
    """Fine-tune as the example does."""
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as place:
        run = Path(place, "run")
        seconds = timed([sys.executable, HERE.parent / "examples/solar_cells.py", seed, run], place)
        return {"tuned": figures(json.loads((run / "metrics.json").read_text())) | {"minutes": seconds / 60}}


def figures(metrics):
    return {name: metrics[name]["value"] for name in FIGURES}


WAYS = {"one-pass": one_pass, "tuned": tuned}


def main(seeds, ways, size, result):
    kept = json.loads(result.read_text()) if result.exists() else {}
    rows = {}
    for way in ways:
        for seed in range(seeds):
            key = f"{way} {size} {seed}" if way == "one-pass" else f"{way} {seed}"
            if key not in kept:
                kept[key] = WAYS[way](seed, size)
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text(json.dumps(kept, indent=1))
            for name, row in kept[key].items():
                rows.setdefault(name, []).append(row)
                shown = "  ".join(f"{figure} {value:.4f}" for figure, value in row.items())
                print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
    print(f"{'mean ± deviation':34}{'accuracy':17}{'macro F1':17}{'ROC AUC':17}{'log loss':17}minutes")
    for name, measured in rows.items():
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in measured]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}  ")
        minutes = statistics.mean(row["minutes"] for row in measured)
        print(f"{f'thaw {name}, {len(measured)} seeds':34}{''.join(cells)}{minutes:.1f}")
    for name, accuracy in PUBLISHED.items():
        print(f"{name:34}{accuracy:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--result", type=Path, default=Path("runs/solar-cells.json"))
    given = parser.parse_args()
    main(given.seeds, given.ways, given.size, given.result)
