"""A probe against its floor: every picture decoded once, and one forward of the backbone over all of them.

    scripts/setup
    python benchmarks/probe_floor.py [PAIRS] [--pictures 2000]

Nobody who trains a head on a frozen backbone can do with less than the floor. Both are whole processes with their
imports. The floor decodes in as many threads as there are cores and runs the fastest runtime that is installed, at
thaw's own batch size; the probe is thaw's named plan, which solves for the head and measures it on validation, and
begins with an empty cache. The aim is at most 1.3 times the floor.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor

from both_ways import BATCH, SIZE, Clock, network, ours
from in_pairs import in_pairs, print_ratio, print_seconds, ratios, run
from photographs import photographs


def probe(folder, seed, clock, epochs):
    from thaw import Plan

    sizes, accuracy, notes = ours(folder, Plan.named("probe", epochs=epochs), seed, clock)
    return {"pictures": sum(sizes), "accuracy": max(accuracy), "notes": notes}


def floor(folder, seed, clock, epochs):
    import keras
    import numpy as np

    from thaw.data import decode
    from thaw.features.inference import inference_runner

    clock("imports")
    files = sorted(folder.rglob("*.png"))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        pictures = list(threads.map(lambda file: decode(file, SIZE), files))
    clock("pictures")
    model = network(seed)
    prefix = keras.Model(model.input, model.get_layer("head_pool").output)
    clock("backbone and head")
    run_batch = inference_runner(prefix, BATCH, examples=len(files))
    features = 0
    for begin in range(0, len(files), BATCH):
        (rows,) = run_batch(np.stack(pictures[begin : begin + BATCH]).astype("float32"))
        features += len(rows)
    clock("forward")
    return {"pictures": features, "notes": [run_batch.name, run_batch.note]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="?", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--epochs", type=int, help="of the probe, to try the benchmark out")
    parser.add_argument("--way", choices=("probe", "floor"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = photographs(given.pictures)
    if given.way:
        way = {"probe": probe, "floor": floor}[given.way]
        clock = Clock(given.began)
        print(json.dumps(way(folder, given.seed, clock, given.epochs) | {"parts": clock.parts}))
        return
    same = ["--pictures", given.pictures, *([] if given.epochs is None else ["--epochs", given.epochs])]

    def way(name):
        return name, lambda seed: run(__file__, "--way", name, "--seed", seed, *same)

    answers = in_pairs(given.pairs, way("floor"), way("probe"))
    print(f"probe_floor.py: {given.pictures} photographs, {SIZE} x {SIZE}, {given.pairs} pairs of processes\n")
    print(f"{'':14}{'least':>8} {'median':>8} {'most':>8}")
    print_seconds(answers)
    runtime, note = answers["floor"][0]["notes"]
    print(f"\nThe floor ran in {runtime}. {note}".rstrip())
    for note in answers["probe"][0]["notes"]:
        print(f"probe: {note}")
    print_ratio("probe / floor", ratios(answers, "probe", "floor"), "at most 1.3")


if __name__ == "__main__":
    main()
