"""One training step of the top stages: TensorFlow's gradients of depthwise filters, thaw's, and none.

    scripts/setup
    python benchmarks/training_step.py [ROUNDS]

EfficientNet-Lite0 at 224 x 224, batches of 32, AdamW as attach_head compiles it, no XLA. The ways take turns in one
process, and the figures are medians of ratios within a round. Seconds of both cores together (CPU time) depend less
on what else the machine does than those of the clock.
"""

import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from thaw import attach_head, backbone, freeze, seed_everything, split_model
from thaw.training.depthwise import with_fast_depthwise

BATCH, WARM_UP = 32, 3
WAYS = {"TensorFlow": ("all", False), "thaw": ("all", True), "pointwise": ("pointwise", True)}


def stepper(train, variables, fast):
    """Return a function that does one training step."""
    seed_everything(0)
    model = attach_head(backbone("efficientnet_lite0"), 2)
    freeze(model, train, variables=variables)
    prefix, suffix = split_model(model)
    suffix = with_fast_depthwise(suffix, suffix) if fast else suffix
    suffix.compile(
        keras.optimizers.AdamW(5e-4, weight_decay=1e-4, global_clipnorm=1.0),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    x = np.random.default_rng(0).normal(size=(BATCH, *prefix.output_shape[1:])).astype("float32")
    batches = iter(tf.data.Dataset.from_tensors((x, np.arange(BATCH) % 2)).repeat())
    step = suffix.make_train_function() or suffix.train_function
    return lambda: float(step(batches)["loss"])


def measure(train, rounds):
    steps = {name: stepper(train, *way) for name, way in WAYS.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for name, pairs in seconds.items():
        ratios = [[one / base for one, base in zip(p, b)] for p, b in zip(pairs, seconds["TensorFlow"])]
        cpu, wall = (statistics.median(column) for column in zip(*ratios))
        best = 1000 * min(pair[0] for pair in pairs)
        print(f"top {train}, {name:<10}  {best:5.0f} ms CPU at best; ratio {cpu:.2f} CPU, {wall:.2f} clock", flush=True)


if __name__ == "__main__":
    for number in (1, 2):
        measure(number, int(sys.argv[1]) if len(sys.argv) > 1 else 15)
