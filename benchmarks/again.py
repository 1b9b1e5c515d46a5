"""The same photographs a second time, under another plan: what the second run costs beside the first.

    scripts/setup
    python benchmarks/again.py [PAIRS] [--pictures 2000] [--plan probe]

Both are whole processes of what a person would run: a plan with a name, four mirrored views of each picture. The second
has another rate and another seed, as many epochs, and what the first run cached. Every pair begins with an empty
cache. The aim is at most a quarter of the first run.
"""

import argparse
import dataclasses
import json
import tempfile

from both_ways import BATCH, SIZE, Clock, network, timed_phases
from in_pairs import in_pairs, print_ratio, print_seconds, ratios, run
from photographs import photographs


def child(given):
    import keras

    from thaw import Plan, augment, fine_tune, load_images

    clock = Clock(given.began)
    clock("imports")
    keras.utils.set_random_seed(given.seed)
    pictures = load_images(photographs(given.pictures), image_size=SIZE)
    train = dataclasses.replace(pictures.train, augment=augment(flips="horizontal"))
    clock("pictures")
    model = network(given.seed)
    clock("backbone and head")
    optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    plan = Plan.named(given.plan, learning_rate=given.rate, epochs=given.epochs, head_epochs=given.epochs)
    data = train, pictures.validation
    history = fine_tune(
        model,
        plan,
        data[0],
        validation_data=data[1],
        batch_size=BATCH,
        seed=given.seed,
        callbacks=[timed_phases(clock)],
    )
    print(json.dumps({"accuracy": max(history.history["val_accuracy"]), "parts": clock.parts}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="?", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--plan", default="probe", choices=("probe", "probe_then_tune", "gradual"))
    parser.add_argument("--epochs", type=int, help="of every phase, to try the benchmark out")
    for name, kind in (("--rate", float), ("--seed", int), ("--began", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.began:
        return child(given)
    photographs(given.pictures)
    same = ["--plan", given.plan, "--pictures", given.pictures]
    same += [] if given.epochs is None else ["--epochs", given.epochs]
    answers = {"first": [], "second": []}
    for number in range(given.pairs):  # the first must come first: no turns here
        with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as cache:
            for name, rate, seed in (("first", 1e-3, 2 * number), ("second", 5e-4, 2 * number + 1)):
                way = (name, lambda _: run(__file__, *same, "--rate", rate, "--seed", seed, cache=cache))  # noqa: B023
                answers[name] += in_pairs(1, way)[name]
    print(f"again.py: {given.pictures} photographs, {SIZE} x {SIZE}, plan {given.plan}, {given.pairs} pairs\n")
    print(f"{'':14}{'least':>8} {'median':>8} {'most':>8}")
    print_seconds(answers)
    for name, rows in answers.items():
        best = " ".join(f"{row['accuracy']:.4f}" for row in rows)
        print(f"{name} run, best validation accuracy: {best}")
    print_ratio("second run / first run", ratios(answers, "second", "first"), "at most 0.25")


if __name__ == "__main__":
    main()
