"""The textbook recipe and `thaw tune`: the same backbone and images, six sets, whole processes, in turn.

    scripts/setup --benchmarks
    python benchmarks/against_recipe.py [SET ...] [--seeds N] [--data FOLDER] [--result FILE]

The sets are those of benchmarks/image_sets.py; --data is the folder that holds two of them. The recipe in its best
honest form: everything frozen but the last twenty layers, BatchNorm held, a new head, Adam 1e-4, ten epochs with early
stopping on validation, mirrored images, decoded ones cached, no XLA. thaw: `thaw tune -p probe`, one pass and a
solved head, and `thaw tune -p probe_then_tune`; each is the command in a process of its own with an empty cache.
Seconds are of whole processes, from the command to the written model, imports and compilation included.

How many times faster thaw reaches the recipe's accuracy: the recipe's seconds over those of the first of thaw's two
ways whose test accuracy is at least the recipe's, of the same seed; none where neither is. Finished runs are kept in
the result file, and read, not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from image_sets import ELSEWHERE, IMAGE_SIZE, write_set

WAYS = ("recipe", "one pass", "tuned")


def recipe(folder, size, seed):
    """Train as the tutorials do; returns the accuracy and the log loss on the test images."""
    import keras
    import numpy as np
    import tensorflow as tf

    from thaw import attach_head, backbone

    keras.utils.set_random_seed(seed)

    def images(part):
        return keras.utils.image_dataset_from_directory(
            folder / part, image_size=(size, size), interpolation="bicubic", batch_size=None, shuffle=False, verbose=0
        )

    train, classes = images("train"), len(images("train").class_names)
    model = attach_head(backbone("efficientnet_lite0", input_shape=(size, size, 3)), classes, seed=seed)
    for layer in model.layers[:-20]:
        layer.trainable = False
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    optimizer = keras.optimizers.Adam(1e-4)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    mirror = keras.layers.RandomFlip("horizontal", seed=seed)
    count = int(train.cardinality())
    train = train.cache().shuffle(count, seed=seed).batch(32)
    train = train.map(lambda x, y: (mirror(x, training=True), y)).prefetch(tf.data.AUTOTUNE)
    checks = images("validation").batch(32).cache().prefetch(tf.data.AUTOTUNE)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    model.fit(train, validation_data=checks, epochs=10, callbacks=[stop], verbose=0)
    with tempfile.TemporaryDirectory() as place:
        model.save(Path(place, "model.keras"))
    tested = images("test")
    y = np.array([int(label) for _, label in tested])
    p = model.predict(tested.batch(32), verbose=0)
    log_loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
    return {"accuracy": float((p.argmax(1) == y).mean()), "log_loss": float(log_loss)}


def measure(way, name, seed, data):
    """Run one way in a process of its own; a dict of seconds, accuracy and log loss."""
    size = IMAGE_SIZE[name]
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as place:
        images, run = Path(place, "images"), Path(place, "run")
        write_set(name, seed, images, data)
        if way == "recipe":
            command = [__file__, "--recipe", images, "--size", size, "--seed", seed]
        else:
            plan = {"one pass": "probe", "tuned": "probe_then_tune"}[way]
            flips = ["--flips", "both"] if name == "solar-cells" else []
            command = [
                "-m",
                "thaw",
                "tune",
                images,
                "-o",
                run,
                "-p",
                plan,
                "--image-size",
                size,
                "--seed",
                seed,
                *flips,
            ]
        environment = os.environ | {"THAW_CACHE": str(Path(place, "cache")), "TF_CPP_MIN_LOG_LEVEL": "2"}
        begin = time.monotonic()
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - begin
        if done.returncode:
            sys.exit(f"{done.stderr}\n{' '.join(command)} ended with code {done.returncode}.")
        if way == "recipe":
            figures = json.loads(done.stdout.splitlines()[-1])
        else:
            metrics = json.loads((run / "metrics.json").read_text())
            figures = {figure: metrics[figure]["value"] for figure in ("accuracy", "log_loss")}
    return figures | {"seconds": seconds}


def main(sets, seeds, data, result):
    found = json.loads(result.read_text()) if result.exists() else {}
    for name in sets:
        for seed in range(seeds):
            for way in WAYS[:: 1 if seed % 2 == 0 else -1]:
                key = f"{name} {seed} {way}"
                if key not in found:
                    found[key] = measure(way, name, seed, data)
                    result.parent.mkdir(parents=True, exist_ok=True)
                    result.write_text(json.dumps(found, indent=1))
                shown = ", ".join(f"{figure} {value:.4g}" for figure, value in found[key].items())
                print(f"  {key}: {shown}", file=sys.stderr, flush=True)
    report(found, sets, seeds, WAYS)


def report(found, sets, seeds, ways):
    """Print the table; the first of the ways is the one to be compared with."""
    print(f"{'set':15}{'way':10}{'accuracy':>17}{'log loss':>10}{'seconds':>9}{f'faster to the {ways[0]}':>22}")
    for name in sets:
        rows = {way: [found[f"{name} {seed} {way}"] for seed in range(seeds)] for way in ways}
        for way in ways:
            accuracy = [row["accuracy"] for row in rows[way]]
            spread = statistics.stdev(accuracy) if seeds > 1 else 0.0
            log_loss, seconds = (statistics.mean(row[key] for row in rows[way]) for key in ("log_loss", "seconds"))
            cells = f"{statistics.mean(accuracy):>8.4f} ± {spread:.4f}{log_loss:>10.3f}{seconds:>9.0f}"
            print(f"{name:15}{way:10}{cells}{faster(rows) if way == ways[-1] else '':>22}")


def faster(rows):
    """How many times faster thaw reaches the accuracy of the first way: the median over the seeds; and where never."""
    ratios = []
    for other, *ours in zip(*rows.values()):
        reached = [row["seconds"] for row in ours if row["accuracy"] >= other["accuracy"]]
        ratios.append(other["seconds"] / reached[0] if reached else 0.0)
    missed = ratios.count(0.0)
    return f"{statistics.median(ratios):.1f}" + (f", {missed} of {len(ratios)} never" if missed else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--result", type=Path, default=Path("runs/against-recipe.json"))
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.recipe:
        print(json.dumps(recipe(given.recipe, given.size, given.seed)))
    else:
        known = [name for name in IMAGE_SIZE if given.data or name not in ELSEWHERE]
        main(given.sets or known, given.seeds, given.data, given.result)
