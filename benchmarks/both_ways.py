"""The same phases on the same photographs in plain Keras and by thaw: the frame of three benchmarks.

Plain Keras in its best honest form: `image_dataset_from_directory`, decoded once and cached in memory, shuffled again
in every epoch, prefetched; what is frozen has `trainable=False`, so that no gradients are computed for it; no XLA
(`jit_compile=False`), which is several times slower on a CPU. The backbone, the head, the optimizer, its rates, the
epochs, the batches and the validation after each epoch are the same, and both restore the best weights at the end of
a phase. The pictures are not augmented, so that thaw caches one view of each and both train on the same. Each reads and
resizes the photographs in its own way.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

from in_pairs import in_pairs, print_ratio, print_seconds, ratios, run
from photographs import photographs

SIZE, BATCH = 224, 32


class Clock:
    """Seconds of each part of a run, one after the other."""

    def __init__(self, began):
        self.parts, self.last = {}, began

    def __call__(self, part):
        now = time.monotonic()
        self.parts[part] = round(self.parts.get(part, 0.0) + now - self.last, 2)
        self.last = now


def timed_phases(clock):
    """A Keras callback that tells the clock how long each phase needs before its first epoch, and in its epochs."""
    from thaw import TuneCallback

    class TimedPhases(TuneCallback):
        phase = ""

        def on_phase_begin(self, phase, stages=None):
            self.begun, self.phase = False, phase.name

        def on_epoch_begin(self, epoch, logs=None):
            if not self.begun:
                clock(f"{self.phase}: before the first epoch")
            self.begun = True

        def on_epoch_end(self, epoch, logs=None):
            clock(f"{self.phase}: epochs")

    return TimedPhases()


def network(seed):
    from thaw import attach_head, backbone

    return attach_head(backbone("efficientnet_lite0", input_shape=(SIZE, SIZE, 3)), 2, seed=seed)


def in_plain_keras(folder):
    """The pictures of a folder one by one, as Keras reads them."""
    import keras

    return keras.utils.image_dataset_from_directory(
        folder, image_size=(SIZE, SIZE), interpolation="bicubic", batch_size=None, verbose=False
    )


def plain(folder, plan, seed, clock):
    import keras
    import tensorflow as tf

    from thaw import freeze
    from thaw.training import lr_schedule

    clock("imports")
    keras.utils.set_random_seed(seed)

    train, checks = in_plain_keras(folder / "train"), in_plain_keras(folder / "validation")
    sizes = [int(train.cardinality()), int(checks.cardinality())]
    train = train.cache().shuffle(sizes[0], seed=seed).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    checks = checks.batch(BATCH).cache().prefetch(tf.data.AUTOTUNE)
    clock("pictures")  # decoded in the first epoch
    model = network(seed)
    clock("backbone and head")
    timed, accuracy = timed_phases(clock), []
    for phase in plan:
        freeze(model, phase.train, phase.batchnorm)  # sets trainable, and nothing else
        steps = -(-sizes[0] // BATCH)
        rate = lr_schedule(phase.schedule, phase.learning_rate, phase.epochs * steps, phase.warmup)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=1.0)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
        best = keras.callbacks.EarlyStopping(
            "val_accuracy", mode="max", patience=phase.epochs, restore_best_weights=True
        )
        timed.on_phase_begin(phase)
        history = model.fit(train, validation_data=checks, epochs=phase.epochs, callbacks=[timed, best], verbose=0)
        accuracy += history.history["val_accuracy"]
    return sizes, accuracy, []


def ours(folder, plan, seed, clock, runtime="auto"):
    import keras

    from thaw import fine_tune, load_images

    clock("imports")
    keras.utils.set_random_seed(seed)
    pictures = load_images(folder, image_size=SIZE, seed=seed)
    clock("pictures")
    model = network(seed)
    clock("backbone and head")
    optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = pictures.train, pictures.validation
    options = {"batch_size": BATCH, "seed": seed, "callbacks": [timed_phases(clock)], "runtime": runtime}
    history = fine_tune(model, plan, data[0], validation_data=data[1], **options)
    return [len(part) for part in data], history.history["val_accuracy"], history.notes


def both_ways(script, plan, *, aim, points=None, also=None, kept=None, aims=None):
    """Run a plan in plain Keras and by thaw, and say how many times faster thaw was: the whole of a benchmark.

    Args:
        script: the file that calls; it is run again, once for each way and pair.
        plan: a ``thaw.Plan`` whose phases have ``views=1`` and ``layer_decay=1``.
        aim: at least this many times faster.
        points: the validation accuracies may lie this many points apart, or ``None`` to print them only.
        also: other ways to run in turn with the two, each a name and a function like :func:`plain`.
        kept: for each of these whose cache is not empty, patterns of the files in it that an earlier run, which is not
            timed, has left there. Nothing else of that run is kept.
        aims: for each of these that has an aim of its own, at least so many times faster.
    """
    ways = {"plain Keras": plain, "thaw": ours} | (also or {})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="?", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--epochs", type=int, help="of every phase, to try the benchmark out")
    parser.add_argument("--way", choices=ways, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = photographs(given.pictures)
    if given.way:
        _child(given, folder, plan, ways[given.way])
        return

    few = [] if given.epochs is None else ["--epochs", given.epochs]

    def timed(name, seed, cache=None):
        return run(script, "--way", name, "--seed", seed, "--pictures", given.pictures, *few, cache=cache)

    left = {
        name: _left_by(lambda cache, name=name: timed(name, 0, cache), patterns)
        for name, patterns in (kept or {}).items()
    }

    def way(name):
        def once(seed):
            with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as cache:
                for file, content in left.get(name, {}).items():
                    Path(cache, file).parent.mkdir(parents=True, exist_ok=True)
                    Path(cache, file).write_bytes(content)
                return timed(name, seed, cache)

        return name, once

    answers = in_pairs(given.pairs, *map(way, ways))
    print(f"{Path(script).name}: {given.pictures} photographs, {SIZE} x {SIZE}, {given.pairs} pairs of processes")
    print(f"{plan}\n\n{'':14}{'least':>8} {'median':>8} {'most':>8}")
    print_seconds(answers)
    for name, rows in answers.items():
        train, checks = rows[0]["sizes"]
        best = " ".join(f"{row['accuracy']:.4f}" for row in rows)
        print(f"\n{name}: best validation accuracy {best} ({train} to train on, {checks} to validate)")
        for note in rows[0]["notes"]:
            print(f"  {note}")
    apart = [100 * (o["accuracy"] - p["accuracy"]) for o, p in zip(answers["thaw"], answers["plain Keras"])]
    said = "" if points is None else f"; aim: within {points} points"
    spread = f" ± {statistics.stdev(apart):.2f}" if len(apart) > 1 else ""
    print(f"thaw - plain Keras, seed by seed: {statistics.mean(apart):+.2f}{spread} points{said}")
    for name in also or {}:
        if name in (aims or {}):
            print_ratio(f"plain Keras / {name}", ratios(answers, "plain Keras", name), f"at least {aims[name]}")
        else:
            print_ratio(f"{name} / thaw", ratios(answers, name, "thaw"), "none, for comparison")
    print_ratio("plain Keras / thaw", ratios(answers, "plain Keras", "thaw"), f"at least {aim}")


def _left_by(earlier, patterns):
    """What a run has left in its cache: the content of each file that fits one of the patterns."""
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as cache:
        earlier(cache)
        files = [file for pattern in patterns for file in Path(cache).glob(pattern)]
        return {file.relative_to(cache): file.read_bytes() for file in files}


def _child(given, folder, plan, way):
    from thaw import Plan

    if given.epochs:
        plan = Plan([dataclasses.replace(phase, epochs=given.epochs) for phase in plan])
    clock = Clock(given.began)
    sizes, accuracy, notes = way(folder, plan, given.seed, clock)
    print(json.dumps({"sizes": sizes, "accuracy": max(accuracy), "parts": clock.parts, "notes": notes}))
