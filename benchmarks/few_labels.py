"""Few labels: 8, 16 and 64 questions of each class of TREC-6, error on the 500 test questions, and seconds.

    python benchmarks/few_labels.py FOLDER [--labels 8 16 64] [--draws 5] [--result FILE]

FOLDER holds trec6.csv, as for benchmarks/trec.py. A draw takes so many training questions of each class, the same for
all ways, the smaller draw inside the larger one; nothing else of the training set is used, and no validation. Each row
is all-MiniLM-L6-v2 with an empty cache, at 32 pieces, which 18 of the 5,952 questions exceed:

    solved       the head solved on frozen features
    tuned        the head solved, then the top two blocks trained with it
    contrastive  the top two blocks trained on pairs, then the head solved

Both trainings have 20 epochs at a rate of 1e-4. Finished rows are kept in the result file, and read, not run again.
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
from thaw.transfer.contrastive import contrastive_tuning

WAYS = ("solved", "tuned", "contrastive")
LENGTH, EPOCHS, RATE, BLOCKS = 32, 20, 1e-4, 2
FRACTIONS = (0.85, 0.05, 0.1)  # the test is given; what would validate is not used


def draw(train, labels, seed):
    """Take some examples of each class at random; a Dataset."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(train.y):
        rows = rng.permutation(np.flatnonzero(train.y == number))
        if len(rows) < labels:
            sys.exit(f"Class {number} has {len(rows)} examples; expected {labels}.")
        chosen.append(rows[:labels])
    return train.take(np.concatenate(chosen))


def measure(way, splits, labels, seed):
    """Learn from one draw in one of the ways; a dict of the error on the test and seconds."""
    seed_everything(seed)
    train = draw(splits.train, labels, seed)
    model = attach_head(backbone("minilm", input_shape=train.x.shape[1:]), splits.task, seed=seed)
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as cache:
        begin = time.monotonic()
        if way == "tuned":
            head = Phase(name="head", epochs=1, train="head", solver="lbfgs")
            top = Phase(name="top", epochs=EPOCHS, train=BLOCKS, learning_rate=RATE)
            fine_tune(model, Plan([head, top]), train, cache_dir=cache, seed=seed, verbose=0)
        else:
            if way == "contrastive":
                options = {"stages": BLOCKS, "epochs": EPOCHS, "learning_rate": RATE}
                contrastive_tuning(model, train, cache_dir=cache, seed=seed, **options)
            solve_head(model, train, cache_dir=cache, seed=seed)
        seconds = time.monotonic() - begin
    predictions = model.predict(splits.test.x, batch_size=64, verbose=0).argmax(-1)
    return {"error": float(np.mean(predictions != splits.test.y)), "seconds": seconds}


def main(folder, sizes, draws, result):
    kept = json.loads(result.read_text()) if result.exists() else {}
    splits = load_text(folder / "trec6.csv", max_length=LENGTH, splits=FRACTIONS, balance="none")
    for seed in range(draws):
        for labels in sizes:
            for way in WAYS:
                key = f"{way} {labels} {seed}"
                if key not in kept:
                    kept[key] = measure(way, splits, labels, seed)
                    result.parent.mkdir(parents=True, exist_ok=True)
                    result.write_text(json.dumps(kept, indent=1))
                row = kept[key]
                print(f"  {key:20} error {row['error']:.3f}  {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(f"{'labels':>6}  {'way':12}{'error':>15}{'seconds':>9}")
    for labels in sizes:
        for way in WAYS:
            rows = [kept[f"{way} {labels} {seed}"] for seed in range(draws)]
            errors = [row["error"] for row in rows]
            spread = statistics.stdev(errors) if draws > 1 else 0.0
            seconds = statistics.median(row["seconds"] for row in rows)
            print(f"{labels:>6}  {way:12}{statistics.mean(errors):>6.3f} ± {spread:.3f}{seconds:>11.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--result", type=Path, default=Path("runs/few-labels.json"))
    given = parser.parse_args()
    main(given.folder, given.labels, given.draws, given.result)
