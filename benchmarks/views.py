"""What fixed versions of each picture cost in accuracy, beside new ones in every epoch; and half precision beside them.

    scripts/setup
    python benchmarks/views.py [SEEDS] [--pictures 2000] [--train head] [--epochs 10]

A phase whose pictures are augmented again in every epoch sees as many versions of each as it has epochs: it is run here
with `views` = epochs, from cached features, which is the same training and far quicker. Beside it are 1, 2 and 4
versions, and 4 cached in half precision. Every seed has a head, an order and dropout of its own, and the same ones in
every row. The aim is that 4 views cost at most 0.3 points: the mean over the seeds, with its standard error beside it.
"""

import argparse
import dataclasses
import statistics
import time

from both_ways import BATCH, SIZE, network
from in_pairs import empty_cache
from photographs import photographs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="?", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--train", default="head", help="head, or how many stages below it move as well")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    train = given.train if given.train == "head" else int(given.train)
    with empty_cache():
        rows = measure(photographs(given.pictures), train, given.epochs, given.seeds)
    print(
        f"views.py: {given.pictures} photographs, {given.epochs} epochs, moving: {given.train}, {given.seeds} seeds\n"
    )
    print(f"{'':24}{'val accuracy':>14}{'against new ones':>24}{'GB kept':>10}")
    new = rows["new in every epoch"][0]
    for name, (accuracies, kept) in rows.items():
        apart = [100 * (a - b) for a, b in zip(accuracies, new)]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        said = "" if accuracies is new else f"{statistics.mean(apart):+.2f} ± {error:.2f} points"
        print(f"{name:24}{statistics.mean(accuracies):14.4f}{said:>24}{kept / 1e9:10.3f}")


def measure(folder, train, epochs, seeds):
    """Best validation accuracies of every seed, and bytes kept, for each row."""
    import keras

    from thaw import Phase, Plan, augment, fine_tune, load_images

    pictures = load_images(folder, image_size=SIZE)
    data = dataclasses.replace(pictures.train, augment=augment(flips="both", rotation=0.02, zoom=0.1, brightness=0.1))
    ways = {"new in every epoch": (epochs, "float32")} | {f"{n} views": (n, "float32") for n in (4, 2, 1)}
    ways["4 views, half precision"] = 4, "float16"
    rows = {}
    for name, (views, cache_dtype) in ways.items():
        begin = time.monotonic()
        options = {"epochs": epochs, "views": views, "cache_dtype": cache_dtype}
        phase = Phase(name="only", train=train, learning_rate=1e-3 if train == "head" else 5e-4, **options)
        accuracies = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            model = network(seed)
            optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
            model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
            history = fine_tune(
                model, Plan([phase]), data, validation_data=pictures.validation, batch_size=BATCH, seed=seed
            )
            accuracies.append(max(history.history["val_accuracy"]))
        rows[name] = accuracies, kept_bytes(model, phase, len(data) * views + len(pictures.validation))
        print(f"  {name}: {time.monotonic() - begin:.0f} s", flush=True)
    return rows


def kept_bytes(model, phase, rows):
    """Bytes of the cached features of so many rows."""
    import math

    from thaw import freeze, split_model

    freeze(model, phase.train)
    prefix, _ = split_model(model)
    numbers = sum(math.prod(tensor.shape[1:]) for tensor in prefix.outputs)
    return rows * numbers * (2 if phase.cache_dtype == "float16" else 4)


if __name__ == "__main__":
    main()
