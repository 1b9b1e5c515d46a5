"""Find defective solar cells: fine-tune EfficientNet-Lite0 on the ELPV photographs, on a CPU, in minutes.

    python examples/solar_cells.py [SEED] [RUN_FOLDER]

2,624 electroluminescence photographs of solar cells, 300 x 300, from the package elpv-dataset (Deitsch et al.
2019; CC BY-NC-SA 4.0). A cell counts as defective when its probability of a defect is above 0.5. 75 % are for
training and 25 % for the test, stratified by probability and cell type, as in the publication; a tenth of the
training photographs is held back for validation.
"""

import csv
import importlib.util
import json
import sys
import time
from pathlib import Path

PUBLISHED = {"SVM": 0.8244, "VGG19 on a GPU": 0.8842}
SIZE = 300  # as photographed: fine cracks are lost in smaller pictures
FIRST = 300  # photographs for the first accuracy
PLAN = """
[[phase]]
name = "head"
epochs = 5
train = "head"
learning_rate = 0.001
solver = "lbfgs"

[[phase]]
name = "top stage"
epochs = 12
train = 1
learning_rate = 0.0005
views = 4
"""


def table(seed, file):
    """Write the CSV that thaw reads: image, label, split."""
    from sklearn.model_selection import train_test_split

    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None:
        sys.exit("The photographs are not installed; run scripts/setup, or pip install --no-deps elpv-dataset.")
    data = Path(spec.submodule_search_locations[0]) / "data"
    cells = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    kinds = [f"{float(probability):.1f} {kind}" for _, probability, kind in cells]
    train, test = train_test_split(range(len(cells)), test_size=0.25, stratify=kinds, random_state=seed)
    _, validation = train_test_split(train, test_size=0.1, stratify=[kinds[i] for i in train], random_state=seed)
    split = dict.fromkeys(range(len(cells)), "train") | dict.fromkeys(validation, "val") | dict.fromkeys(test, "test")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["image", "label", "split"])
        for i, (name, probability, _) in enumerate(cells):
            rows.writerow([data / name, "defective" if float(probability) > 0.5 else "intact", split[i]])
    return file


def run(seed, folder):
    """Fine-tune with one seed; returns the metrics on the test photographs."""
    began = time.monotonic()
    say("Find defective solar cells in 2,624 photographs: solve for a head, then train the top stage.")
    say("This takes about 9 minutes on an idle machine with two cores.")
    say("importing Keras")
    from thaw.cli.options import import_keras

    import_keras()  # without the messages that TensorFlow writes when it starts
    import thaw
    from thaw.training.progress import count_progress

    data = table(seed, Path(folder).with_suffix(".csv"))
    with count_progress() as progress:
        say("reading 2,624 photographs")
        some = thaw.load_images(data, image_size=SIZE, seed=seed, progress=progress).train
        say(f"computing the features of {FIRST} of them")
        backbone = thaw.backbone("efficientnet_lite0", input_shape=(SIZE, SIZE, 3))
        probed = thaw.probe(
            backbone,
            some,
            max_examples=FIRST,
            seed=seed,
            progress=lambda done, total: progress(done, total, "features"),
        )
    first = probed.rows[-1].score
    say(f"first accuracy after {time.monotonic() - began:.0f} s, frozen features of {FIRST} photographs: {first:.3f}")

    # A cell has no up and no left, so all flips are views of the same cell.
    plan = thaw.Plan.from_toml(PLAN)
    say("training: the frozen layers are computed first, once for each phase")
    return thaw.tune(data, folder, plan=plan, image_size=SIZE, flips="both", seed=seed).metrics


def say(text):
    print(text, file=sys.stderr)


def main():
    """Train, unless the run is finished, and print its figures beside the published ones."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    folder = sys.argv[2] if len(sys.argv) > 2 else f"runs/solar-cells-{seed}"
    finished = Path(folder) / "metrics.json"
    metrics = json.loads(finished.read_text()) if finished.exists() else run(seed, folder)
    print(f"{'':28}accuracy  macro F1  ROC AUC")
    figures = "  ".join(f"{metrics[name]['value']:8.4f}" for name in ("accuracy", "macro_f1", "roc_auc"))
    low, high = metrics["accuracy"]["low"], metrics["accuracy"]["high"]
    print(f"{'thaw, this run':28}{figures}   accuracy within {low:.3f} to {high:.3f} (95 %)")
    for name, accuracy in PUBLISHED.items():
        print(f"{name + ' (published)':28}{accuracy:8.4f}")
    print(f"The model is {Path(folder) / 'model.keras'}: a plain Keras file.", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted; the same command resumes.")
        sys.exit(130)
