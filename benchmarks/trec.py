"""TREC-6, questions by what they ask for: error on the 500 test questions, and seconds.

    python benchmarks/trec.py FOLDER [--seeds N] [--length 64] [--rate 1e-4] [--epochs 4] [--result FILE]

FOLDER holds trec6.csv with the columns text, label and split: 5,452 questions to learn from, those left out that are in
the test too, and 500 to test. Each row is all-MiniLM-L6-v2 with an empty cache: the head solved for the last block
("last"), for all blocks ("all"), and the head solved, then the top two blocks trained ("tuned"). Another seed is
another validation split and another order; the test stays. Published: 3.6 % for ULMFiT (Howard and Ruder 2018), which
was trained on these questions through three stages of pre-training. Finished rows are kept in the result file, and
read, not run again.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from thaw import Phase, Plan, attach_head, backbone, fine_tune, seed_everything
from thaw.data.text import load_text
from thaw.transfer import solve_head

WAYS = ("last", "all", "tuned")
AIM_ERROR, AIM_SECONDS = 0.036, 600
FRACTIONS = (0.85, 0.05, 0.1)  # the test is given, so that a 18th of the others validates


def measure(way, splits, seed, rate, epochs):
    """Train in one of the ways; a dict of the error on the test and seconds."""
    seed_everything(seed)
    model = backbone("minilm", input_shape=splits.train.x.shape[1:])
    model = attach_head(model, splits.task, features="all" if way == "all" else "last", seed=seed)
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as cache:
        begin = time.monotonic()
        if way == "tuned":
            head = Phase(name="head", epochs=1, train="head", solver="lbfgs")
            top = Phase(name="top", epochs=epochs, train=2, learning_rate=rate)
            options = {"validation_data": splits.validation, "cache_dir": cache, "seed": seed, "verbose": 0}
            fine_tune(model, Plan([head, top]), splits.train, **options)
        else:
            solve_head(model, splits.train, cache_dir=cache, seed=seed)
        seconds = time.monotonic() - begin
    predictions = model.predict(splits.test.x, batch_size=64, verbose=0).argmax(-1)
    return {"error": float(np.mean(predictions != splits.test.y)), "seconds": seconds}


def main(folder, seeds, length, rate, epochs, result):
    kept = json.loads(result.read_text()) if result.exists() else {}
    for seed in range(seeds):
        splits = load_text(folder / "trec6.csv", max_length=length, splits=FRACTIONS, balance="none", seed=seed)
        for way in WAYS:
            key = f"{way} {length} {seed}" + (f" {rate} {epochs}" if way == "tuned" else "")
            if key not in kept:
                kept[key] = measure(way, splits, seed, rate, epochs) | {"way": way}
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text(json.dumps(kept, indent=1))
            row = kept[key]
            print(f"{key:24} error {row['error']:.3f}  {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(splits.notes), file=sys.stderr)
    for way in WAYS:
        rows = [row for row in kept.values() if row["way"] == way]
        errors = [row["error"] for row in rows]
        spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
        seconds = statistics.median(row["seconds"] for row in rows)
        print(f"{way:6} {statistics.mean(errors):.4f} ± {spread:.4f}  {seconds:.0f} s")
    print(f"aim    {AIM_ERROR}, under {AIM_SECONDS} s on two quiet cores")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--result", type=Path, default=Path("runs/trec.json"))
    given = parser.parse_args()
    main(given.folder, given.seeds, given.length, given.rate, given.epochs, given.result)
