"""Solar cells as a class, as a number and as two labels: solved heads on one pass of a frozen EfficientNet-Lite0.

    scripts/setup
    python benchmarks/solar_targets.py [SEEDS] [--size 224] [--result FILE]

The photographs and splits are those of examples/solar_cells.py. The class is a defect with a probability above 0.5; the
number is this probability (0, 1/3, 2/3 or 1); the two labels are a defect and a monocrystalline cell. The features are
computed once and found again in the cache for all three. Heads read the last layer, the upper half or all of the
network; cross-validation on the training photographs chooses one of them, marked with *. The validation photographs
choose nothing: on them the interval of a predicted number is measured. accuracy and ROC AUC are those of the defect,
also where a number or a label says it. Finished seeds are kept in the result file, and read, not run again.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
HEADS = ("last", "upper", "all")
TARGETS = {
    "class": {},
    "number": {"task": "regression", "label": "probability"},
    "labels": {"task": "multilabel", "label": ["defective", "monocrystalline"]},
}
SHOWN = {
    "class": ("accuracy", "roc_auc", "log_loss"),
    "number": ("accuracy", "roc_auc", "rmse", "r2", "log_likelihood", "coverage", "quadratic_weighted_kappa"),
    "labels": ("accuracy", "roc_auc", "log_loss", "accuracy of the type", "roc_auc of the type"),
}


def table_of_targets(seed, file):
    """Write the table of the example with the columns probability, defective and monocrystalline."""
    from solar_cells import table

    with open(table(seed, file), newline="", encoding="utf-8") as rows:
        rows = list(csv.DictReader(rows))
    data = Path(rows[0]["image"]).parents[1]
    cells = {str(data / name): (p, kind) for name, p, kind in map(str.split, (data / "labels.csv").open())}
    with open(file, "w", newline="", encoding="utf-8") as out:
        written = csv.DictWriter(out, [*rows[0], "probability", "defective", "monocrystalline"])
        written.writeheader()
        for row in rows:
            probability, kind = cells[row["image"]]
            mono = int(kind.startswith("mono"))
            row |= {"probability": probability, "defective": int(row["label"] == "defective"), "monocrystalline": mono}
            written.writerow(row)


def measure(seed, size):
    """Solve all heads of all targets; a dict of target to the chosen features, and the figures of each head."""
    from thaw import attach_head, backbone, load_images, seed_everything
    from thaw.transfer import choose_head, solve_head

    seed_everything(seed)
    net, found = backbone("efficientnet_lite0", input_shape=(size, size, 3)), {}
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as place:
        file = Path(place, "cells.csv")
        table_of_targets(seed, file)
        options = {"cache_dir": place, "seed": seed}
        for target, given in TARGETS.items():
            begin = time.perf_counter()
            splits = load_images(file, image_size=size, balance="none", **options, **given)
            train = splits.train.replace(augment=None)
            choice = choose_head(net, splits.task, train, **options)
            seconds = time.perf_counter() - begin
            found[target] = {"chosen": choice.features, "seconds_to_choose": seconds, "heads": {}}
            for features in HEADS:
                model = attach_head(net, splits.task, features=features)
                begin = time.perf_counter()
                solve_head(model, train, **options)
                seconds = time.perf_counter() - begin
                found[target]["heads"][features] = figures(target, model, splits) | {"seconds": seconds}
                print(f"  seed {seed}, {target}, {features}", file=sys.stderr, flush=True)
    return found


def figures(target, model, splits):
    """Measure a model on the test photographs."""
    import numpy as np

    from thaw.features.predictions import predict_proba_with_labels, predict_targets
    from thaw.metrics import regression_metrics, residual_spread

    if target == "class":
        y, p = predict_proba_with_labels(model, splits.test)
        return of_one_label(y == splits.labels.index("defective"), p[:, splits.labels.index("defective")])
    y, p = predict_targets(model, splits.test, task=splits.task)
    if target == "labels":
        mono = of_one_label(y[:, 1] > 0, p[:, 1])
        return of_one_label(y[:, 0] > 0, p[:, 0]) | {f"{name} of the type": value for name, value in mono.items()}
    spread = residual_spread(*predict_targets(model, splits.validation, task=splits.task))
    metrics = regression_metrics(y, p, spread=spread, levels=np.unique(splits.train.y))
    found = of_one_label(y[:, 0] > 0.5, np.clip(p[:, 0], 0, 1))
    return {name: found[name] for name in ("accuracy", "roc_auc")} | {
        name: metrics[name]["value"] for name in SHOWN["number"][2:]
    }


def of_one_label(is_positive, p):
    import numpy as np
    from sklearn.metrics import log_loss, roc_auc_score

    return {
        "accuracy": float(np.mean((p > 0.5) == is_positive)),
        "roc_auc": float(roc_auc_score(is_positive, p)),
        "log_loss": float(log_loss(is_positive, p.astype(np.float64))),
    }


def main(seeds, size, result):
    kept = json.loads(result.read_text()) if result.exists() else {}
    for seed in range(seeds):
        if (key := f"{size} {seed}") not in kept:
            kept[key] = measure(seed, size)
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps(kept, indent=1))
    for target, shown in SHOWN.items():
        print(
            f"{target:9}" + "".join(f"{name.replace('quadratic_weighted_', ''):>22}" for name in shown) + "   seconds"
        )
        runs = [kept[f"{size} {seed}"][target] for seed in range(seeds)]
        for features in HEADS:
            rows = [run["heads"][features] for run in runs]
            cells = "".join(f"{mean_and_deviation([row[name] for row in rows]):>22}" for name in shown)
            mark = "*" * sum(run["chosen"] == features for run in runs)
            seconds = statistics.mean(row["seconds"] for row in rows)
            print(f"{features + ' ' + mark:9}{cells}{seconds:>10.1f}")


def mean_and_deviation(values):
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--result", type=Path, default=Path("runs/solar-targets.json"))
    given = parser.parse_args()
    main(given.seeds, given.size, given.result)
