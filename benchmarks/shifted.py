"""Probe, then tune: does it beat plain full tuning on pictures that are worse than those trained on?

    scripts/setup --benchmarks
    python benchmarks/shifted.py [SEEDS] [--pictures 100] [--kinds same]

Kumar et al. (2022), "Fine-tuning can distort pretrained features and underperform out-of-distribution". It is said of
good pre-trained features: those that tell the new classes apart already, as ImageNet's do with most photographs. So the
backbone, a small net, is pre-trained on 30,000 of Fashion-MNIST's clothes, and its users have 100 others of the same
ten kinds, clean ones, and no head. (With --kinds new the net has seen five kinds and is tuned to the five others, which
it can hardly tell apart: the condition does not hold there, and the claim need not.)

- full: a fresh head with random weights, as Keras makes it, and all layers at one rate from the first step on.
- full, head at zero: the same, and the head begins at zero, as `attach_head` makes it.
- probe then tune: the head alone for a third of the epochs, then all layers.

Epochs in total, optimizer and batches are the same; the rate of the phase that moves all is chosen by validation (on
clean pictures) from the same grid for each way and seed. Measured on 2,000 clean test pictures and on these with noise,
blur, less contrast, coarser pixels and more light, two severities each (after Hendrycks and Dietterich 2019): the mean
of the ten. The aim: probe then tune beats full tuning on the shifted pictures, and the 95 % interval of the difference,
seed by seed, lies above zero.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from clothes import clothes
from corruptions import corruptions
from in_pairs import empty_cache
from small_net import pre_train, small_net

# Kinds that the net is trained on, and those of the task.
KINDS = {"same": (tuple(range(10)), tuple(range(10))), "new": ((0, 1, 4, 5, 8), (2, 3, 6, 7, 9))}
HEAD, TUNE, RATES, HEAD_RATE = 10, 20, (3e-4, 1e-3, 3e-3), 1e-1
SEEN = 30_000  # training pictures that the net is trained on; the task takes others
VALIDATION, TEST = 300, 2000
WAYS = ("full", "full, head at zero", "probe then tune")


def pre_trained(given, known):
    """The weights of the backbone."""
    import keras

    keras.utils.set_random_seed(0)
    x, y = given[0]
    rows, backbone = np.flatnonzero(np.isin(y[:SEEN], known)), small_net()
    pre_train(backbone, x[rows], np.searchsorted(known, y[rows]), epochs=4)
    return backbone.get_weights()


def pictures(part, rows, kinds):
    x, y = part
    return x[rows].astype("float32"), np.searchsorted(kinds, y[rows])


def tuned(way, weights, data, classes, rate, seed):
    """The model and its best accuracy on the validation data."""
    import keras

    from thaw import Phase, Plan, attach_head, fine_tune

    keras.utils.set_random_seed(seed)
    backbone = small_net()
    backbone.set_weights(weights)
    model = attach_head(backbone, classes, dropout=0.0, seed=seed)
    if way == "full":
        kernel = model.layers[-1].kernel
        kernel.assign(keras.initializers.GlorotUniform(seed)(kernel.shape))
    optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    if way == "probe then tune":
        phases = [
            Phase(name="head", train="head", epochs=HEAD, learning_rate=HEAD_RATE, views=1),
            Phase(name="all", epochs=TUNE, learning_rate=rate),
        ]
    else:
        phases = [Phase(name="all", epochs=HEAD + TUNE, learning_rate=rate)]
    history = fine_tune(model, Plan(phases), *data[0], validation_data=data[1], seed=seed)
    return model, max(history.history["val_accuracy"])


def accuracy(model, x, y):
    return 100 * float((model.predict(x, batch_size=256, verbose=0).argmax(1) == y).mean())


def mean(values):
    """Mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def interval(values):
    """Mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    middle = statistics.mean(values)
    if len(values) < 2:
        return middle, float("nan"), float("nan")
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return middle, middle - half, middle + half


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="?", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--kinds", choices=KINDS, default="same")
    options = parser.parse_args()
    begin = time.monotonic()
    given = [(x[..., None], y) for x, y in clothes()]
    known, kinds = KINDS[options.kinds]
    weights = pre_trained(given, known)
    print(f"  pre-trained: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    pool = np.flatnonzero(np.isin(given[0][1], kinds))
    pool = pool[pool >= SEEN]
    clean, labels = pictures(given[1], np.flatnonzero(np.isin(given[1][1], kinds))[:TEST], kinds)
    worse = corruptions(clean)
    found = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        rows = np.random.default_rng(seed).permutation(pool)[: options.pictures + VALIDATION]
        cuts = rows[: options.pictures], rows[options.pictures :]
        data = [pictures(given[0], cut, kinds) for cut in cuts]
        for way in WAYS:
            best = None
            for rate in RATES:
                model, score = tuned(way, weights, data, len(kinds), rate, seed)
                if best is None or score > best[0]:
                    best = score, rate, model
            on = {"clean": accuracy(best[2], clean, labels)}
            on |= {name: accuracy(best[2], x, labels) for name, x in worse.items()}
            on["shifted"] = statistics.mean(on[name] for name in worse)
            found[way].append(on)
            said = f"clean {on['clean']:.1f}, shifted {on['shifted']:.1f}, rate {best[1]:g}"
            print(f"  {seed} {way}: {said} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    return report(found, options)


def report(found, options):
    """The tables and the verdict; 0 where the claim holds."""
    said = f"{options.pictures} pictures of {options.kinds} kinds, {options.seeds} seeds"
    print(f"shifted.py: {said}; accuracy in %, mean ± standard error\n")
    print(f"{'':18}" + "".join(f"{way:>20}" for way in WAYS))
    for name in found["full"][0]:
        print(f"{name:18}" + "".join(f"{mean([on[name] for on in found[way]]):>20}" for way in WAYS))
    print()
    apart = {}
    for name in ("clean", "shifted"):
        for way in WAYS[:2]:
            pairs = zip(found["probe then tune"], found[way])
            middle, low, high = apart[name, way] = interval([ours[name] - theirs[name] for ours, theirs in pairs])
            said = f"{middle:+.1f} points ({low:+.1f} to {high:+.1f})"
            print(f"{name}: probe then tune - {way}, seed by seed: {said}")
    good = apart["shifted", "full"][1] > 0
    print(f"\n{'Holds' if good else 'Does not hold'}: probe then tune beats full tuning on shifted pictures.")
    return 0 if good else 1


if __name__ == "__main__":
    with empty_cache():
        sys.exit(main())
