"""Is advice worth it? On six tasks, the plan of `advise` against the best of an exhaustive search, and their times.

    scripts/setup --benchmarks
    python benchmarks/advice.py [SEEDS] [--tasks few,many,digits,defects,crystals,shuffled]

The backbone is a small net of four stages that was trained on five kinds of clothes (Fashion-MNIST). The tasks:

- few, many: 200 and 2,000 pictures of the five other kinds of clothes, 28 x 28.
- digits: 300 handwritten digits (scikit-learn), brought from 8 x 8 to 28 x 28.
- defects, crystals: 600 solar cells, 48 x 48: defective or not, of one crystal or of many.
- shuffled: 1,000 of the five other clothes with their pixels in another order, the same for all: pre-training is of
  no use, and from scratch is as good.

The search trains a head at three rates, and from the best one every number of stages at each of four rates to the end;
and the whole net from random weights at each of the four, three times as long. It takes what is best on the validation
data, as a user would. `advise` gets a quarter of the search's work, counted beforehand (`minutes`), of which it uses a
part, and its plan is then carried out. Both begin with an empty cache and end with a tuned model; both times are all of
that. The difference is of the two models on the same test pictures. The search's pick, too, is one draw, so each task
is drawn three times: other examples, another backbone, another order. Seeds begin at 2, because `advise` was looked at
with 0 and 1 while it was built. The aim: no task more than one point behind in the mean, in at most a quarter of the
time of all.
"""

import argparse
import importlib.util
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from clothes import clothes
from in_pairs import empty_cache
from small_net import pre_train, small_net

RATES, HEAD_RATES = (1e-4, 3e-4, 1e-3, 3e-3), (1e-3, 1e-2, 1e-1)
LONGER = 3  # times as many epochs from scratch
SHARE = 1 / 4  # of the search's work for the trials of advise
KNOWN, NEW = (0, 1, 4, 5, 8), (2, 3, 6, 7, 9)
BATCH = 32
FIRST = 2  # seed: see above


def new_clothes(count, validation, seed, shuffled=False):
    (x, y), (test_x, test_y) = clothes()
    x, y, test_x, test_y = (
        part[np.isin(labels, NEW)] for part, labels in zip((x, y, test_x, test_y), (y, y, test_y, test_y))
    )
    rows = np.random.default_rng(seed).permutation(len(y))[: count + validation]
    x, y = np.concatenate([x[rows], test_x]), np.searchsorted(NEW, np.concatenate([y[rows], test_y]))
    if shuffled:
        x = x.reshape(len(x), -1)[:, np.random.default_rng(0).permutation(28 * 28)].reshape(x.shape)
    return x, y, count, validation


def handwriting(count, validation, seed):
    from PIL import Image
    from sklearn.datasets import load_digits

    small = np.uint8(load_digits().images * 255 / 16)
    x = np.stack([Image.fromarray(digit).resize((28, 28), Image.Resampling.BILINEAR) for digit in small])
    rows = np.random.default_rng(seed).permutation(len(x))
    return x[rows], load_digits().target[rows], count, validation


def solar_cells(count, validation, seed, column):
    from PIL import Image

    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None:
        sys.exit("The photographs are not installed; run scripts/setup, or pip install --no-deps elpv-dataset.")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    cells = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    x = np.stack([Image.open(folder / name).convert("L").resize((48, 48), Image.Resampling.BOX) for name, *_ in cells])
    y = [float(p) > 0.5 if column == "defects" else kind == "mono" for _, p, kind in cells]
    rows = np.random.default_rng(seed).permutation(len(x))
    return x[rows], np.array(y)[rows], count, validation


# How to get the data, and epochs of the phase that trains the backbone.
TASKS = {
    "few": (lambda seed: new_clothes(200, 200, seed), 20),
    "many": (lambda seed: new_clothes(2000, 500, seed), 6),
    "digits": (lambda seed: handwriting(300, 300, seed), 15),
    "defects": (lambda seed: solar_cells(600, 400, seed, "defects"), 8),
    "crystals": (lambda seed: solar_cells(600, 400, seed, "crystals"), 8),
    "shuffled": (lambda seed: new_clothes(1000, 500, seed, shuffled=True), 8),
}


def parts_of(x, y, count, validation):
    """Training, validation and test data, each ``(x, y)``."""
    from thaw import Dataset

    x, y = np.asarray(x, "float32").reshape(len(x), *x.shape[1:3], 1), np.asarray(y).astype("int64")
    cuts = slice(0, count), slice(count, count + validation), slice(count + validation, None)
    return [Dataset(x=x[cut], y=y[cut]) for cut in cuts]


def network(weights, train, seed):
    """The pre-trained backbone with a new head, compiled."""
    import keras

    from thaw import attach_head

    keras.utils.set_random_seed(seed)
    backbone = small_net(train.x.shape[1])
    backbone.set_weights(weights)
    model = attach_head(backbone, int(train.y.max()) + 1, seed=seed)
    optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def head_epochs(train):
    return min(40, max(5, math.ceil(200 / math.ceil(len(train) / BATCH))))


def grid(model):
    """What the search tries: each number of stages, all, and from scratch, at each rate."""
    from thaw import stages_of

    depths = ["head", *range(1, len(stages_of(model)) - 1), "all", "scratch"]
    return [(train, rate) for train in depths for rate in RATES]


def search(weights, train, validation, epochs, seed):
    """The best of all on the validation data: what it is, its accuracy there, and the model."""
    from thaw import Phase, Plan, fine_tune
    from thaw.advice.trials import randomize_weights

    model, start, found = network(weights, train, seed), None, []

    def attempt(what, phase):
        history = fine_tune(model, Plan([phase]), train, validation_data=validation, batch_size=BATCH, seed=seed)
        found.append((max(history.history["val_accuracy"]), what, model.get_weights()))

    for rate in HEAD_RATES:
        if start is not None:
            model.set_weights(start)
        else:
            start = model.get_weights()
        phase = Phase(name="head", train="head", epochs=head_epochs(train), learning_rate=rate, views=1)
        attempt(f"head at {rate:g}", phase)
    start = max(found, key=lambda one: one[0])[2]
    for moved, rate in grid(model):
        if moved == "scratch":
            randomize_weights(model, train, seed)
            phase = Phase(name="scratch", epochs=LONGER * epochs, learning_rate=rate, batchnorm="trained")
        else:
            model.set_weights(start)
            decay = 1.0 if moved == "head" else 0.7
            phase = Phase(name="tune", train=moved, epochs=epochs, learning_rate=rate, layer_decay=decay, views=1)
        attempt(f"{f'head + {moved}' if isinstance(moved, int) else moved} at {rate:g}", phase)
    for value, what, _ in found:
        print(f"    {what}: {value:.3f}", file=sys.stderr)
    value, what, best = max(found, key=lambda one: one[0])  # of equal ones the first
    model.set_weights(best)
    return what, value, model


def minutes_for(weights, train, validation, epochs, seed):
    """A share of the search's work, counted as `advise` counts its own."""
    from thaw.advice.cost import TrialCost, operations_in

    model = network(weights, train, seed)
    cost, work = TrialCost(model, 1, BATCH), 0.0
    for moved, rate in [("head", rate) for rate in HEAD_RATES] + grid(model):
        passes = {"scratch": LONGER * epochs, "head": head_epochs(train)}.get(moved, epochs)
        cached = rate != RATES[0]
        work += cost.of("all" if moved == "scratch" else moved, len(train), len(validation), passes, cached=cached)
    return SHARE * work / operations_in(1.0)


def advised(weights, train, validation, epochs, seed, minutes):
    """The plan of `advise`, carried out: what it is, its accuracy on the validation data, and the model."""
    from thaw import advise, fine_tune
    from thaw.advice.trials import randomize_weights

    model = network(weights, train, seed)
    options = {"epochs": epochs, "batch_size": BATCH, "seed": seed}
    advice = advise(model, train, validation_data=validation, minutes=minutes, **options)
    print(advice, file=sys.stderr)
    if advice.scratch:
        randomize_weights(model, train, seed)
    history = fine_tune(model, advice.plan, train, validation_data=validation, batch_size=BATCH, seed=seed)
    last = advice.plan[-1]
    moved = f"head + {last.train}" if isinstance(last.train, int) else last.train
    what = f"{'scratch' if advice.scratch else moved} at {last.learning_rate:g}"
    return what, max(history.history["val_accuracy"]), model


def timed(way, *arguments):
    """What a way finds, and its seconds, from an empty cache."""
    with empty_cache():
        begin = time.monotonic()
        found = way(*arguments)
        return found, time.monotonic() - begin


def compare(weights, name, seed, epochs, search_first):
    """One task, one seed: what both ways find, their test accuracies, and their seconds."""
    load, usual = TASKS[name]
    train, validation, test = parts_of(*load(seed))
    arguments = weights, train, validation, epochs or usual, seed
    minutes = minutes_for(*arguments)
    ways = [lambda: timed(search, *arguments), lambda: timed(advised, *arguments, minutes)]
    if search_first:
        by_search, by_advice = ways[0](), ways[1]()
    else:
        by_advice, by_search = ways[1](), ways[0]()
    rows = []
    for (what, _, model), seconds in (by_search, by_advice):
        right = model.predict(test.x, batch_size=256, verbose=0).argmax(1) == test.y
        rows.append((what, 100 * float(right.mean()), seconds))
    said = ", ".join(f"{what} ({score:.1f}, {seconds:.0f} s)" for what, score, seconds in rows)
    print(f"  {name} {seed}: {said}, minutes={minutes:.2f}", file=sys.stderr, flush=True)
    return rows


def main():
    import keras

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="?", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--first", type=int, default=FIRST, help="the first seed")
    parser.add_argument("--epochs", type=int, help="of every task, to try the benchmark out")
    given = parser.parse_args()
    (x, y), _ = clothes()
    known, found = np.flatnonzero(np.isin(y, KNOWN)), {}
    for seed in range(given.first, given.first + given.seeds):
        keras.utils.set_random_seed(seed)
        backbone = small_net()
        pre_train(backbone, x[known, ..., None], np.searchsorted(KNOWN, y[known]), epochs=4, seed=seed)
        weights = backbone.get_weights()
        if seed == given.first:  # what TensorFlow does but once in a process is nobody's
            train, validation, _ = parts_of(*TASKS["few"][0](seed))
            timed(advised, weights, train.take(range(64)), validation.take(range(64)), 1, seed, 1e-3)
        for number, name in enumerate(given.tasks.split(",")):
            found.setdefault(name, []).append(compare(weights, name, seed, given.epochs, (number + seed) % 2))
    return report(found, given.seeds)


def report(found, seeds):
    """The tables and the verdict; 0 where the claim holds."""
    print(f"advice.py: test accuracy in %, {len(found)} tasks, {seeds} seeds\n")
    print(f"{'':10}{'best of the search':26}{'advised':26}{'difference':>12}{'time':>8}")
    for name, pairs in found.items():
        for (best, score, seconds), (advice, other, less) in pairs:
            cells = f"{f'{best}, {score:.1f}':26}{f'{advice}, {other:.1f}':26}"
            print(f"{name:10}{cells}{other - score:+12.1f}{less / seconds:8.2f}")
    print(f"\n{'mean':10}{'difference':>16}{'time':>8}")
    behind = []
    for name, pairs in found.items():
        apart = [pair[1][1] - pair[0][1] for pair in pairs]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else math.nan
        behind.append(statistics.mean(apart))
        time_of = [sum(pair[way][2] for pair in pairs) for way in (0, 1)]
        print(f"{name:10}{f'{behind[-1]:+.1f} ± {error:.1f}':>16}{time_of[1] / time_of[0]:8.2f}")
    spent = [sum(pair[way][2] for pairs in found.values() for pair in pairs) for way in (0, 1)]
    share, worst = spent[1] / spent[0], min(behind)
    print(f"\nSeconds of all: search {spent[0]:.0f}, advice and its plan {spent[1]:.0f}: {share:.2f}")
    good = worst >= -1 and share <= 1 / 4
    said = "Holds" if good else "Does not hold"
    print(f"{said}: at most one point behind in the mean ({worst:+.1f} at worst), in a quarter of the time.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
