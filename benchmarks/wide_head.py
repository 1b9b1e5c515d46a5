"""Solved heads on a frozen EfficientNet-Lite0: of its last layer, its upper half or all of it, and the chosen one.

    scripts/setup --benchmarks
    python benchmarks/wide_head.py [--seeds N] [--data FOLDER] [--result FILE] [SET ...]

The sets are those of benchmarks/image_sets.py; --data is the folder that holds two of them. Validation images are not
used. For each head: accuracy and log loss on the test images, seconds to solve, and the log loss that scikit-learn's
LogisticRegression reaches on the same features at the same strength and temperature (up to 2,500 rows). Finished rows
are kept in the result file, and read, not run again.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from image_sets import ELSEWHERE, IMAGE_SIZE, write_set
from sklearn.linear_model import LogisticRegression

from thaw import Dataset, attach_head, backbone, load_images, precompute, seed_everything
from thaw.features import predict_proba
from thaw.features.split import submodel
from thaw.models.linear_heads import linear_head
from thaw.transfer import choose_head, solve_head
from thaw.transfer.solved_head import FeatureRows

MAX_COMPARED_ROWS = 2500  # scikit-learn works on all features, in float64, and takes minutes for more
HEADS = ("last", "upper", "all")


def load(name, seed, folder):
    """Return train and test, and the number of classes."""
    place = tempfile.TemporaryDirectory(prefix="thaw-benchmark-")
    write_set(name, seed, place.name, folder)
    splits = load_images(place.name, image_size=IMAGE_SIZE[name], seed=seed)
    return splits.train, splits.test, len(splits.labels), place


def measure(name, seed, folder):
    """Solve each head for one split; a dict for each, and the name of the chosen one."""
    train, test, classes, _place = load(name, seed, folder)
    size = IMAGE_SIZE[name]
    seed_everything(seed)
    net = backbone("efficientnet_lite0", input_shape=(size, size, 3))
    begin = time.perf_counter()
    choice = choose_head(net, classes, train.replace(augment=None), seed=seed)
    rows = {"chosen": choice.features, "seconds_to_choose": time.perf_counter() - begin, "heads": {}}
    for features in HEADS:
        try:
            model = attach_head(net, classes, features=features)
        except ValueError as error:
            print(f"  {name} {features}: {error}", file=sys.stderr)
            continue
        begin = time.perf_counter()
        readout = solve_head(model, train.replace(augment=None), seed=seed)
        seconds = time.perf_counter() - begin
        p = predict_proba(model, test)
        rows["heads"][features] = scores(test.y, p) | {
            "seconds": seconds,
            "scikit_learn": scikit_learn(model, readout, train.replace(augment=None), test, classes),
        }
    return rows


def scores(y, p):
    y = np.asarray(y)
    return {
        "accuracy": float((p.argmax(1) == y).mean()),
        "log_loss": float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()),
    }


def scikit_learn(model, readout, train, test, classes):
    """The same by scikit-learn: standardized features, the same strength, the same temperature."""
    if len(train) > MAX_COMPARED_ROWS:
        return float("nan")
    head = linear_head(model)
    prefix = submodel(model, None, head.inputs)
    z, new = (
        readout.standardization(FeatureRows(precompute(prefix, part))[:], clip=head.clip is not None)
        for part in (train, Dataset(x=test.x, y=test.y, load=test.load, keys=test.keys))
    )
    # Two classes are one logit there, whose penalty is half that of two
    strength = readout.strength / z.shape[1] * (2 if classes == 2 else 1)
    solver = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(z.astype(np.float64), train.y)
    logits = solver.decision_function(new) / readout.temperature
    logits = np.stack([np.zeros_like(logits), logits], 1) if logits.ndim == 1 else logits
    p = np.exp(logits - logits.max(1, keepdims=True))
    return scores(test.y, p / p.sum(1, keepdims=True))["log_loss"]


def main(sets, seeds, folder, result):
    kept = json.loads(result.read_text()) if result.exists() else {}
    for name in sets:
        for seed in range(seeds):
            key = f"{name} {seed}"
            if key not in kept:
                kept[key] = measure(name, seed, folder)
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text(json.dumps(kept, indent=1))
            row = kept[key]
            shown = "  ".join(f"{head} {m['accuracy']:.4f}/{m['log_loss']:.3f}" for head, m in row["heads"].items())
            print(f"{key}: {shown}  chosen {row['chosen']}", file=sys.stderr)
    print(f"{'set':15}{'head':8}{'accuracy':>10}{'log loss':>10}{'sklearn':>10}{'seconds':>9}")
    for name in sets:
        runs = [kept[f"{name} {seed}"] for seed in range(seeds)]
        for head in [h for h in HEADS if h in runs[0]["heads"]]:
            show(name, head, [run["heads"][head] for run in runs])
        show(name, "chosen", [run["heads"][run["chosen"]] for run in runs])


def show(name, head, rows):
    mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    line = f"{name:15}{head:8}{mean['accuracy']:>10.4f}{mean['log_loss']:>10.4f}{mean['scikit_learn']:>10.4f}"
    print(f"{line}{mean['seconds']:>9.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--result", type=Path, default=Path("runs/wide-head.json"))
    given = parser.parse_args()
    known = [name for name in IMAGE_SIZE if given.data or name not in ELSEWHERE]
    main(given.sets or known, given.seeds, given.data, given.result)
