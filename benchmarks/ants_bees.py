"""Ants and bees, the data of the PyTorch transfer learning tutorial: accuracy and seconds from command to written run.

    python benchmarks/ants_bees.py FOLDER [--splits N] [--result FILE] [-- OPTIONS OF thaw tune ...]

FOLDER holds train/ and val/, 245 and 153 photographs. The published split, and N others of the same sizes, stratified
by class. Each is a process of its own with an empty cache: the command `thaw tune ... -p probe`, or with other options
behind --. Finished splits are kept in the result file, and read, not run again. Published: .954 to .961 for a
fine-tuned ResNet-18, in 15 to 25 minutes on a CPU (PyTorch tutorial, 2017).
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

AIM_ACCURACY, AIM_SECONDS = 0.957, 40


def write_table(folder, split, file):
    """Write the CSV of a split: 0 the published one, others drawn at random; returns the number of images."""
    from sklearn.model_selection import train_test_split

    images = [path for path in sorted(folder.glob("*/*/*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    labels, parts = [path.parent.name for path in images], [path.parent.parent.name for path in images]
    if split:
        size = parts.count("val")
        _, held_out = train_test_split(range(len(images)), test_size=size, stratify=labels, random_state=split)
        parts = ["val" if i in set(held_out) else "train" for i in range(len(images))]
    with open(file, "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["image", "label", "split"])
        rows.writerows(zip(images, labels, parts))
    return len(images)


def run(folder, split, options):
    """Fine-tune on a split in a process of its own; returns seconds and metrics."""
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as place:
        table = Path(place, "images.csv")
        write_table(folder, split, table)
        command = [sys.executable, "-m", "thaw", "tune", table, "-o", Path(place, "run"), *options]
        begin = time.monotonic()
        done = subprocess.run(
            [str(part) for part in command],
            env=os.environ | {"THAW_CACHE": place},
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - begin
        if done.returncode:
            sys.exit(f"{done.stderr}\nthaw tune ended with code {done.returncode}.")
        metrics = json.loads(Path(place, "run", "metrics.json").read_text())
    return {name: metrics[name]["value"] for name in ("accuracy", "log_loss")} | {"seconds": seconds}


def main(folder, splits, result, options):
    kept = json.loads(result.read_text()) if result.exists() else {}
    rows = []
    for split in range(splits + 1):
        key = f"{' '.join(options)} {split}"
        if key not in kept:
            kept[key] = run(folder, split, options)
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps(kept, indent=1))
        rows.append(kept[key])
        name = "published" if not split else f"split {split}"
        print(f"{name:10}" + "  ".join(f"{k} {v:.3f}" for k, v in rows[-1].items()), file=sys.stderr, flush=True)
    accuracies, seconds = ([row[name] for row in rows] for name in ("accuracy", "seconds"))
    spread = statistics.stdev(accuracies) if splits else 0.0
    print(f"published split  {accuracies[0]:.4f}")
    print(f"mean of {len(rows):2}       {statistics.mean(accuracies):.4f} ± {spread:.4f} (aim: {AIM_ACCURACY})")
    print(f"log loss         {statistics.mean(row['log_loss'] for row in rows):.4f}")
    print(f"seconds, median  {statistics.median(seconds):.1f} (aim: {AIM_SECONDS})")


if __name__ == "__main__":
    own, more = sys.argv[1:], ["-p", "probe"]
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--result", type=Path, default=Path("runs/ants-bees.json"))
    given = parser.parse_args(own)
    main(given.folder, given.splits, given.result, more)
