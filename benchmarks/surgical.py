"""Which stage to tune when the data shift: is what `advise` moves what an exhaustive search would move?

    scripts/setup --benchmarks
    python benchmarks/surgical.py [SEEDS] [--shifts noise,kinds,labels]

After Lee et al. (2022), "Surgical fine-tuning improves adaptation to distribution shifts". A small net of four stages
is trained on clothes (Fashion-MNIST, 28 x 28) and keeps its head; then the data change, and 1,000 examples of the new
kind are there to train on, 500 to validate on, and 5,000 of the test pictures to measure on:

- noise: the same clothes, taken by a bad camera. The input is another: the first stages should move.
- kinds: the classes are families of clothes, and every family has members that the net never saw (it knew sneakers as
  shoes, now there are sandals). What the parts mean is another: a middle stage should move.
- labels: the same pictures, class c is now called 9 - c. The output is another: the head should move.

The table: each stage moved alone, the head, and all, at each of two rates, of which validation chooses, five seeds
(other pictures, other noise, another order; the net is the same). Beside it what `thaw.advise(head="kept")` moves.
The aim: for each shift `advise` moves the right place with at least four seeds of five.
"""

import argparse
import collections
import statistics
import sys
import time

import numpy as np
from clothes import clothes
from in_pairs import empty_cache
from small_net import pre_train, small_net

TRAIN, VALIDATION, TEST = 1000, 500, 5000
EPOCHS, RATES, SIGMA, MINUTES = 10, (2e-3, 1e-2), 80, 6.0
# Families: what the net is trained on, and what comes later. Bags have no relatives.
FAMILIES = {"top": ((0,), (6,)), "coat": ((2,), (4,)), "long": ((1,), (3,)), "shoe": ((7,), (5, 9))}
RIGHT = {"noise": ("stage1", "stage2"), "kinds": ("stage2", "stage3"), "labels": ("head",)}


def sources(given):
    """The nets before the shift: one that knows all ten classes, one that knows a member of each family."""
    x, y = given[0]
    nets = {}
    for name in ("classes", "families"):
        members = family(y, 0) if name == "families" else y
        rows = np.flatnonzero(members >= 0)[:30_000]
        nets[name] = pre_train(small_net(), x[rows], members[rows], epochs=4)
    return nets


def family(y, side):
    """The number of each example's family; -1 where it is not on this side (0: before the shift, 1: after)."""
    table = np.full(10, -1)
    for number, sides in enumerate(FAMILIES.values()):
        table[list(sides[side])] = number
    return table[y]


def shifted(given, shift, seed):
    """Training, validation and test data of a shift: pairs of pictures and labels."""
    random = np.random.default_rng(seed)
    (x, y), (test_x, test_y) = given
    if shift == "kinds":
        y, test_y = family(y, 1), family(test_y, 1)
    elif shift == "labels":
        y, test_y = 9 - y, 9 - test_y
    rows = random.permutation(np.flatnonzero(y[30_000:] >= 0) + 30_000)[: TRAIN + VALIDATION]  # new to the net
    tested = np.flatnonzero(test_y >= 0)[:TEST]
    x, y = np.concatenate([x[rows], test_x[tested]]).astype("float32"), np.concatenate([y[rows], test_y[tested]])
    if shift == "noise":
        x = np.clip(np.round(x + SIGMA * random.normal(size=x.shape)), 0, 255).astype("float32")
    parts = slice(0, TRAIN), slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, None)
    return [(x[part], y[part]) for part in parts]


def copied(source):
    """The same net once more, ready to be tuned."""
    import keras

    model = keras.models.clone_model(source)
    model.set_weights(source.get_weights())
    optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def accuracy(model, data):
    x, y = data
    return 100 * float((model.predict(x, batch_size=256, verbose=0).argmax(1) == y).mean())


def exhaustive(source, data, seed):
    """Test accuracy of every way, each with the rate that validation chooses."""
    import keras

    from thaw import Phase, Plan, fine_tune, stages_of

    ways = [(stage.name,) for stage in stages_of(source)] + ["all"]
    found = {"nothing": accuracy(source, data[2])}
    for train in ways:
        tried = []
        for rate in RATES:
            keras.utils.set_random_seed(seed)
            model = copied(source)
            plan = Plan([Phase(name="only", train=train, epochs=EPOCHS, learning_rate=rate, views=1)])
            history = fine_tune(model, plan, *data[0], validation_data=data[1], seed=seed)
            tried.append((max(history.history["val_accuracy"]), accuracy(model, data[2])))
        found[train if train == "all" else train[0]] = max(tried)[1]
    return found


def advised(source, data, seed):
    """Which stages `advise` moves, and the test accuracy of its plan."""
    import keras

    from thaw import advise, fine_tune, freeze

    keras.utils.set_random_seed(seed)
    model = copied(source)
    advice = advise(model, *data[0], validation_data=data[1], minutes=MINUTES, epochs=EPOCHS, head="kept", seed=seed)
    print(advice, file=sys.stderr)
    moved = {stage.name for phase in advice.plan for stage in freeze(copied(source), phase.train)}
    fine_tune(model, advice.plan, *data[0], validation_data=data[1], seed=seed)
    return tuple(sorted(moved, key=lambda name: (name == "head", name))), accuracy(model, data[2])


def mean(values):
    """Mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):5.1f} ± {error:3.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="?", type=int, default=5)
    parser.add_argument("--shifts", default="noise,kinds,labels")
    parser.add_argument("--no-advice", action="store_true", help="the table alone")
    options = parser.parse_args()
    given, begin = [(x[..., None], y) for x, y in clothes()], time.monotonic()
    nets = sources(given)
    print(f"  the nets before the shift: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    table, advice, good = {}, {}, True
    for shift in options.shifts.split(","):
        table[shift], advice[shift] = collections.defaultdict(list), []
        source = nets["families" if shift == "kinds" else "classes"]
        for seed in range(options.seeds):
            data = shifted(given, shift, seed)
            for way, value in exhaustive(source, data, seed).items():
                table[shift][way].append(value)
            if not options.no_advice:
                moved, value = advised(source, data, seed)
                advice[shift].append(moved)
                table[shift]["advised"].append(value)
            said = ", ".join(f"{way} {values[-1]:.1f}" for way, values in table[shift].items())
            said += f"; advised {advice[shift][-1]}" if advice[shift] else ""
            print(f"  {shift} {seed}: {said} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    print(f"surgical.py: {TRAIN} examples, {options.seeds} seeds; test accuracy in %, mean ± standard error\n")
    print(f"{'moved':12}" + "".join(f"{shift:>16}" for shift in table))
    for way in next(iter(table.values())):
        print(f"{way:12}" + "".join(f"{mean(rows[way]):>16}" for rows in table.values()))
    for shift, rows in table.items():
        means = {way: statistics.mean(values) for way, values in rows.items() if way not in ("nothing", "advised")}
        best = max(means, key=means.get)
        print(f"\n{shift}: best alone: {best}; expected: {' or '.join(RIGHT[shift])}.")
        if advice[shift]:
            counts = collections.Counter(" + ".join(moved) for moved in advice[shift])
            right = sum(set(moved) <= set(RIGHT[shift]) for moved in advice[shift])
            enough = right >= 0.8 * len(advice[shift])
            good = good and enough
            said = ", ".join(f"{what} ({count})" for what, count in counts.most_common())
            print(f"advise moved: {said}: right {right} times of {len(advice[shift])}.")
            apart = [a - b for a, b in zip(rows["advised"], rows[best])]
            print(f"advised - best alone, seed by seed: {mean(apart)} points.")
    if not options.no_advice:
        print(f"\n{'Holds' if good else 'Does not hold'}: advise moves the right place for each shift.")
    return 0 if good else 1


if __name__ == "__main__":
    with empty_cache():
        sys.exit(main())
