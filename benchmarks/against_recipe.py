"""The textbook recipe and thaw's default plan: same backbone, same pictures, same split, five seeds, two data sets.

    scripts/setup --benchmarks
    python benchmarks/against_recipe.py [SEEDS]

The recipe in its best honest form: everything frozen but the last twenty layers, BatchNorm held, a new head,
Adam 1e-4, ten epochs with early stopping on validation, mirrored pictures, decoded pictures cached, no XLA.
Ours is what `thaw tune` does. Both times are of the training in this process, with all compilation.
"""

import dataclasses
import gzip
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from thaw import Dataset, Plan, attach_head, augment, backbone, evaluate, fine_tune, load_images, seed_everything

DATA = Path(__file__).parent.parent / ".data"
KINDS = ["animals/mammals", "animals/birds", "animals/fish", "animals/insects", "food/fruit", "food/vegetables"]
KINDS += ["plants/flowers", "household/tools", "hobbies/music", "town/roadsigns"]


def tux_paint(seed):
    """About 250 cut-out photographs in ten uneven classes, in a folder as people have them, at 224 x 224."""
    stamps = DATA / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            place = Path(folder, Path(kind).name)
            place.mkdir()
            for path in sorted((stamps / kind).rglob("*.png")):
                if "cartoon" not in str(path.relative_to(stamps)):
                    (place / "-".join(path.relative_to(stamps / kind).parts)).symlink_to(path)
        return load_images(folder, image_size=224, seed=seed), 224


def fashion(seed, n_train=500):
    """Training pictures of ten kinds of clothes, 28 x 28, brought to 96 x 96; 150 to validate, 1,000 to test."""
    folder = next(DATA.glob("dataset-fashion-mnist/**/fashion-mnist"))

    def read(name, offset):
        return np.frombuffer(gzip.decompress((folder / f"{name}.gz").read_bytes()), np.uint8, offset=offset)

    x = np.concatenate([read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1) for part in ("train", "t10k")])
    y = np.concatenate([read(f"{part}-labels-idx1-ubyte", 8) for part in ("train", "t10k")]).astype("int64")
    chosen = np.random.default_rng(seed).permutation(60_000)[: n_train + 150]
    tested = 60_000 + np.random.default_rng(seed).permutation(10_000)[:1000]

    def examples(indices):
        large = tf.image.resize(np.repeat(x[indices], 3, -1), (96, 96)).numpy().astype("float32")
        return Dataset(x=large, y=y[indices])

    parts = {"train": examples(chosen[:n_train]), "validation": examples(chosen[n_train:]), "test": examples(tested)}
    return dataclasses.make_dataclass("Clothes", [*parts, "labels"])(**parts, labels=tuple("0123456789")), 96


def recipe(data, size, seed):
    model = attach_head(backbone("efficientnet_lite0", input_shape=(size, size, 3)), len(data.labels), seed=seed)
    for layer in model.layers[:-20]:
        layer.trainable = False
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    model.compile(
        keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    mirror = keras.layers.RandomFlip("horizontal", seed=seed)
    train = data.train.ordered(32).unbatch().cache().shuffle(len(data.train), seed=seed).batch(32)
    train = train.map(lambda x, y: (mirror(x, training=True), y)).prefetch(tf.data.AUTOTUNE)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    checks = data.validation.ordered(32).cache()
    model.fit(train, validation_data=checks, epochs=10, callbacks=[stop], verbose=0)
    return model


def ours(data, size, seed):
    model = attach_head(backbone("efficientnet_lite0", input_shape=(size, size, 3)), len(data.labels), seed=seed)
    optimizer = keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    # Tux Paint's classes are uneven, and weighed as thaw tune weighs them.
    train = data.train.weighted(getattr(data, "class_weight", None))
    train = dataclasses.replace(train, augment=augment(flips="horizontal"))
    fine_tune(model, Plan.named("probe_then_tune"), train, validation_data=data.validation, seed=seed)
    return model


def main(seeds):
    print(f"{'data':14}{'':8}{'accuracy':>18}{'seconds':>10}")
    for name, load in (("Tux Paint", tux_paint), ("Fashion-MNIST", fashion)):
        results = {"recipe": [], "thaw": []}
        for seed in range(seeds):
            data, size = load(seed)
            for way, run in (("recipe", recipe), ("thaw", ours))[:: 1 if seed % 2 == 0 else -1]:
                seed_everything(seed)
                begin = time.perf_counter()
                model = run(data, size, seed)
                seconds = time.perf_counter() - begin
                results[way].append((evaluate(model, data.test)["accuracy"]["value"], seconds))
                print(f"  {name} {seed} {way}: {results[way][-1][0]:.4f}, {seconds:.0f} s", file=sys.stderr)
        for way, pairs in results.items():
            accuracy, seconds = zip(*pairs)
            spread = statistics.stdev(accuracy) if seeds > 1 else 0.0
            mean = f"{statistics.mean(accuracy):.4f} ± {spread:.4f}"
            print(f"{name:14}{way:8}{mean:>18}{statistics.median(seconds):>10.0f}")
        gain = [ours[0] - theirs[0] for ours, theirs in zip(results["thaw"], results["recipe"])]
        ratio = statistics.median(o[1] / t[1] for o, t in zip(results["thaw"], results["recipe"]))
        print(f"{name:14}thaw - recipe, seed by seed: {statistics.mean(gain):+.4f}; time ratio {ratio:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
