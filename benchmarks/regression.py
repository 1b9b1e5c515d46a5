"""Three tables of numbers, 20 published splits: thaw's net from random weights beside MC dropout and boosted trees.

    python benchmarks/regression.py FOLDER [--only energy] [--splits 20] [--result FILE]

FOLDER has concrete.csv, energy.csv and wine-quality-red.csv and the rows of their published test sets
(NAME.test_rows.txt, a split in each line), as in the repository of Gal and Ghahramani (2016), whose results are printed
beside. Of the other rows of a split a tenth chooses nothing: its residuals are the standard deviation of the normal
distribution by which the log-likelihood of the test rows is measured, and the half width of the intervals (split
conformal prediction, 90 %). All others train the net, whose rate decays to zero in a fixed number of epochs. The trees
are fitted twice: a tenth of the rows chooses their number first, and then trains too. The settings are the same for all
tables; they were chosen on held-out rows of the first two splits, of which none was a test row of its split. Finished
splits are kept in the result file, and read, not run again.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

from tables import REGRESSION, splits_of

FIGURES = ("rmse", "log_likelihood", "coverage")
# Mean and standard error over the 20 splits, one hidden layer, from the files of results of their code (2018).
MC_DROPOUT = {
    "concrete": {"rmse": (4.82, 0.16), "log_likelihood": (-2.94, 0.03)},
    "energy": {"rmse": (0.54, 0.06), "log_likelihood": (-1.21, 0.01)},
    "wine-quality-red": {"rmse": (0.62, 0.01), "log_likelihood": (-0.93, 0.01)},
}


def net(splits, seed, settings):
    """Train the model for tables from random weights."""
    import keras

    from thaw import Phase, Plan, fine_tune, seed_everything
    from thaw._keras import compile_settings
    from thaw.models.table_backbone import table_model

    keras.backend.clear_session()
    seed_everything(seed)
    model = table_model(splits, members=settings.members, dropout=settings.dropout, seed=seed)
    # An epoch in one call: the steps are short.
    steps = -(-len(splits.train) // settings.batch)
    model.compile(**compile_settings(model) | {"steps_per_execution": steps})
    plan = Plan([Phase(name="all", epochs=settings.epochs, learning_rate=settings.rate)])
    fine_tune(model, plan, splits.train, batch_size=settings.batch, seed=seed, verbose=0)
    return model


def both_parts(splits):
    """Let the validation rows train too."""
    import numpy as np

    from thaw import Dataset

    x = {name: np.concatenate([splits.train.x[name], splits.validation.x[name]]) for name in splits.train.x}
    train = Dataset(x=x, y=np.concatenate([splits.train.y, splits.validation.y]))
    return dataclasses.replace(splits, train=train, task=splits.task.standardized_by(train.y))


def measure(name, split, settings):
    """Train the net and the trees on one split; a dict of figures for each."""
    from thaw.features.predictions import predict_targets
    from thaw.metrics import regression_metrics, residual_spread
    from thaw.runs.task_file import hold_out
    from thaw.transfer.boosted_trees import gradient_boosting

    *_, splits = splits_of(name, split + 1, settings.folder)
    splits, held_out, _ = hold_out(splits, split)
    begin = time.perf_counter()
    number = gradient_boosting(splits, seed=split).estimator.max_iter
    splits = both_parts(splits)
    # On rows that train, the loss is the lowest with all of the trees.
    trees = gradient_boosting(splits, max_trees=number, seed=split)
    middle = time.perf_counter()
    model = net(splits, split, settings)
    seconds = {"thaw": time.perf_counter() - middle, "trees": middle - begin}
    predict = {
        "thaw": lambda data: predict_targets(model, data, task=splits.task, runtime="tensorflow"),
        "trees": lambda data: (data.y, trees.predict(data.x)),
    }
    found = {}
    for way in predict:
        spread = residual_spread(*predict[way](held_out))
        metrics = regression_metrics(*predict[way](splits.test), spread=spread)
        found[way] = {figure: metrics[figure]["value"] for figure in FIGURES}
        found[way] |= {"half_width": spread["half_width"][0], "seconds": seconds[way]}
    return found


def main(names, settings):
    result = settings.result
    kept = json.loads(result.read_text()) if result.exists() else {}
    for split in range(settings.splits):
        for name in names:
            key = f"{name} {split}"
            if key not in kept:
                kept[key] = measure(name, split, settings)
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text(json.dumps(kept, indent=1))
            rows = ((way, kept[key][way]) for way in ("thaw", "trees"))
            shown = "; ".join(f"{way} " + ", ".join(f"{f} {row[f]:.3f}" for f in FIGURES) for way, row in rows)
            print(f"  {key}: {shown}", file=sys.stderr, flush=True)
    report(kept, names, settings.splits)


def report(kept, names, splits):
    """Print mean and standard error over the splits, and the proportion of the intervals that hold."""
    print(f"{'table':18}{'way':12}{'RMSE':>15}{'log-likelihood':>18}{'in 90 %':>9}{'width':>8}{'seconds':>9}")
    for name in names:
        for way in ("thaw", "trees"):
            rows = [kept[f"{name} {split}"][way] for split in range(splits)]
            cells = [mean_and_error([row[figure] for row in rows]) for figure in ("rmse", "log_likelihood")]
            coverage, width, seconds = (
                statistics.mean(row[figure] for row in rows) for figure in ("coverage", "half_width", "seconds")
            )
            numbers = f"{coverage:>9.3f}{2 * width:>8.2f}{seconds:>9.1f}"
            print(f"{name:18}{way:12}{cells[0]:>15}{cells[1]:>18}{numbers}")
        cells = ["{:.3f} ± {:.3f}".format(*MC_DROPOUT[name][figure]) for figure in ("rmse", "log_likelihood")]
        print(f"{name:18}{'MC dropout':12}{cells[0]:>15}{cells[1]:>18}")


def mean_and_error(values):
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default=",".join(REGRESSION))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--result", type=Path, default=Path("runs/regression.json"))
    given = parser.parse_args()
    main(given.only.split(","), given)
