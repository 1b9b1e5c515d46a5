"""Does thaw grow with the data as it should: time in a straight line, memory not at all?

    python benchmarks/growth.py [ROUNDS] [--sizes 1000 3000 10000 30000 100000]

One phase of the head at each size, in a process of its own with an empty cache, on pictures that are made up while they
are read, so that the data themselves take no memory. The backbone's weights are random: they cost the same. The times
are those of `tune`, medians of the rounds; the straight line through them leaves out what does not depend on the size.
The memory is the kernel's VmHWM, the most that was ever resident, pages of mapped files among it; "anon" is what was
resident at the end without those, which the kernel cannot take back. The aims are a time
within 10 % of the line, and less than 2 GB throughout.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from in_pairs import in_pairs, run

SIDE, BATCH, EPOCHS = 64, 32, 3


def made_up(begin, count):
    """Examples whose pictures are a function of their number; those of the second class are brighter."""
    from thaw import Dataset

    def load(number):
        import tensorflow as tf

        number = tf.strings.to_number(number, tf.int32)
        pixels = tf.random.stateless_uniform((SIDE, SIDE, 3), (7, number), 0, 200)
        return pixels + 55.0 * tf.cast(number % 2, tf.float32)

    numbers = np.arange(begin, begin + count)
    return Dataset(x=numbers.astype(str), y=numbers % 2, load=load)


def child(pictures, began):
    import keras

    from thaw import Phase, Plan, attach_head, backbone, fine_tune

    keras.utils.set_random_seed(0)
    model = attach_head(backbone("efficientnet_lite0", weights=None, input_shape=(SIDE, SIDE, 3)), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    plan = Plan([Phase(name="head", epochs=EPOCHS, train="head", learning_rate=1e-3, views=1)])
    checks = max(BATCH, pictures // 10)
    data = made_up(0, pictures - checks), made_up(pictures - checks, checks)
    begin = time.monotonic()
    history = fine_tune(model, plan, data[0], validation_data=data[1], batch_size=BATCH)
    seconds = time.monotonic() - begin
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {name: int(status[name].split()[0]) / 1e6 for name in ("VmHWM", "RssAnon")}
    fitting = sum(history.history["seconds"])
    said = {"tune": seconds, "fitting": fitting, "before": begin - began, "notes": history.notes}
    print(json.dumps(said | memory))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", nargs="?", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--pictures", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pictures:
        return child(given.pictures, given.began)

    def way(size):
        return f"{size:,} pictures", lambda _: run(__file__, "--pictures", size)

    answers = list(in_pairs(given.rounds, *map(way, given.sizes)).values())
    median = [{k: statistics.median(r[k] for r in rows) for k in rows[0] if k != "notes"} for rows in answers]
    sizes, seconds = np.array(given.sizes, float), np.array([row["tune"] for row in median])
    line = straight_line(sizes, seconds)
    off = 100 * (seconds / line - 1)
    print(f"growth.py: made-up pictures, {SIDE} x {SIDE}, {EPOCHS} epochs of the head, batches of {BATCH}\n")
    columns = ("pictures", "tune (s)", "fitting", "line", "off", "ms each", "peak GB", "anon GB")
    print("".join(f"{column:>10}" for column in columns))
    for size, row, on, away in zip(given.sizes, median, line, off):
        cells = f"{row['tune']:10.1f}{row['fitting']:10.1f}{on:10.1f}{away:+9.1f}%{1e3 * row['tune'] / size:10.2f}"
        print(f"{size:10,}{cells}{row['VmHWM']:10.2f}{row['RssAnon']:10.2f}")
    for note in answers[-1][0]["notes"]:
        print(f"  {note}")
    print(f"\nfurthest from a straight line: {np.abs(off).max():.1f} % (aim: within 10 %)")
    print(f"most memory: {max(row['VmHWM'] for row in median):.2f} GB (aim: below 2 GB)")


def straight_line(sizes, seconds):
    """What the line with the least relative errors gives at each size."""
    if len(sizes) < 3:
        return seconds
    sides = np.stack([np.ones_like(sizes), sizes], axis=1)
    found, *_ = np.linalg.lstsq(sides / seconds[:, None], np.ones_like(seconds), rcond=None)
    return sides @ found


if __name__ == "__main__":
    main()
