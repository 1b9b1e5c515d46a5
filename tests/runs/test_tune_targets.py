"""tune of several labels and of numbers: what is reported decided nothing, and the run predicts in its own words."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from thaw import open_run, tune
from thaw.metrics import best_thresholds, residual_spread
from thaw.plan import Phase
from thaw.targets import MultiLabel, Regression


def net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, -1)(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x), name="net")


PLAN = [
    Phase(name="head", epochs=1, train="head", solver="lbfgs"),
    Phase(name="tune", epochs=2, train=1, learning_rate=1e-3),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """300 images: how bright each channel is makes the price; two of them make the labels."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    lines = ["image,price,tags,group"]
    for i in range(300):
        level = rng.integers(60, 200, 3)
        pixels = np.clip(level + rng.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        tags = "|".join(name for name, value in zip(("red", "green"), level) if value > 130)
        lines.append(f"{i}.png,{1000 * level.sum() + rng.normal(0, 3000):.1f},{tags},g{i // 2}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def priced(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "price"
    options = {"task": "regression", "label": "price", "model": net(), "plan": PLAN, "verbose": 0}
    return tune(table, folder, flips="none", **options)


@pytest.fixture(scope="module")
def tagged(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tags"
    options = {"task": "multilabel", "label": "tags", "model": net(), "plan": PLAN, "verbose": 0}
    return tune(table, folder, flips="none", **options)


def test_a_number_is_learned_and_reported_beside_the_mean(priced):
    metrics = priced.metrics
    assert metrics["split"] == "test"
    assert metrics["rmse"]["value"] < 0.6 * metrics["baseline"]
    assert metrics["r2"]["low"] > 0.5
    assert "majority" not in metrics
    assert isinstance(priced.task, Regression)
    assert priced.labels == ("price",)
    assert priced.plan[0].solver == "ridge"
    assert "RMSE on test" in str(priced)
    assert min(priced.history["val_root_mean_squared_error"]) > 0


def test_the_interval_comes_from_images_that_decide_and_report_nothing(priced, table):
    metrics = priced.metrics
    held_out = metrics["interval"]["examples"]
    assert held_out >= 15
    reported = (priced.folder / "predictions.csv").read_text().splitlines()
    assert len(reported) - 1 == metrics["examples"]
    note = next(note for note in metrics["notes"] if "choose nothing" in note)
    total = int(note.split(" of ")[1].split()[0])
    assert note.startswith(f"{held_out} of {total} validation examples")
    assert 0.75 <= metrics["coverage"]["value"] <= 1
    assert metrics["interval"]["level"] == 0.9


def test_a_run_predicts_numbers_with_their_intervals(priced, table):
    again = open_run(priced.folder)
    files = [table.parent / f"{i}.png" for i in range(3)]
    rows = again.predict([*files, table.parent / "none.png"])
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    expected = again.model.predict(pixels, verbose=0)[:, 0]
    width = again.metrics["interval"]["half_width"][0]
    for row, value in zip(rows, expected):
        assert row["prediction"] == pytest.approx(value, rel=1e-4)
        assert row["high"] - row["prediction"] == pytest.approx(width)
        assert row["prediction"] - row["low"] == pytest.approx(width)
    assert "error" in rows[3]
    found = again.evaluate(table)
    assert found["examples"] == 300
    assert found["coverage"]["value"] is not None


def test_labels_are_learned_and_reported_by_thresholds_of_the_validation(tagged):
    metrics = tagged.metrics
    assert metrics["split"] == "test"
    assert metrics["mean_average_precision"]["value"] > metrics["baseline"] + 0.2
    assert isinstance(tagged.task, MultiLabel)
    assert tagged.labels == ("green", "red")
    assert [row["threshold"] for row in metrics["labels"]] == list(tagged.task.thresholds)
    assert max(tagged.history["val_pr_auc"]) > 0.7
    assert "mean average precision on test" in str(tagged)


def test_a_run_predicts_labels(tagged, table):
    again = open_run(tagged.folder)
    assert again.task == tagged.task
    [row] = again.predict([table.parent / "0.png"])
    assert set(row["probabilities"]) == {"green", "red"}
    thresholds = dict(zip(again.labels, again.task.thresholds))
    assert row["labels"] == [name for name, p in row["probabilities"].items() if p >= thresholds[name]]
    assert again.evaluate(table)["examples"] == 300


def test_the_predictions_are_those_of_the_metrics(tagged, priced):
    header, *rows = (line.split(",") for line in (tagged.folder / "predictions.csv").read_text().splitlines())
    columns = dict(zip(header, zip(*rows)))
    right = np.mean([columns[name] == columns[f"predicted {name}"] for name in ("green", "red")] or [0])
    subset = np.mean(
        [
            all(columns[name][i] == columns[f"predicted {name}"][i] for name in ("green", "red"))
            for i in range(len(rows))
        ]
    )
    assert subset == pytest.approx(tagged.metrics["subset_accuracy"]["value"])
    assert right <= 1
    header, *rows = (line.split(",") for line in (priced.folder / "predictions.csv").read_text().splitlines())
    columns = {name: np.array(values, float) for name, values in zip(header[1:], list(zip(*rows))[1:])}
    rmse = np.sqrt(np.mean((columns["price"] - columns["predicted price"]) ** 2))
    assert rmse == pytest.approx(priced.metrics["rmse"]["value"])
    assert header == ["path", "price", "predicted price", "low price", "high price"]


def test_the_task_file_says_it_all(priced, tagged):
    saved = json.loads((priced.folder / "task.json").read_text())
    assert (saved["task"], saved["targets"]) == ("regression", ["price"])
    assert saved["interval"] == priced.metrics["interval"]
    assert json.loads((tagged.folder / "task.json").read_text())["task"] == "multilabel"
    assert "task.json" in tagged.manifest["files"]
    assert priced.config["task"] == "regression"
    assert best_thresholds([[1], [0]], [[0.9], [0.1]]) == (0.5,)
    assert residual_spread([0.0], [1.0])["half_width"] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 3}, "folds is for classes, and the task is regression"),
        ({"max_forgetting": 0.1}, "max_forgetting is for classes"),
        ({"label_smoothing": 0.1}, "label_smoothing is for classes"),
        ({"balance": "balanced"}, "balance is for classes"),
        ({"task": "ranking"}, "expected one of classification, multilabel, regression"),
    ],
)
def test_options_for_classes_are_refused_before_the_first_epoch(table, tmp_path, options, message):
    given = {"task": "regression", "label": "price", "model": net(), "plan": PLAN, "verbose": 0} | options
    with pytest.raises(ValueError, match=message):
        tune(table, tmp_path / "run", **given)


def test_one_pass_of_numbers_reads_as_many_layers_as_it_needs(table, tmp_path):
    options = {"task": "regression", "label": "price", "model": net(), "plan": "probe", "flips": "none", "verbose": 0}
    run = tune(table, tmp_path / "run", **options)
    assert [note for note in run.metrics["notes"] if "cross-validated squared error: last " in note]
    wide = tune(table, tmp_path / "wide", features="all", **options)
    for metrics in (run.metrics, wide.metrics):
        assert metrics["rmse"]["value"] < 0.3 * metrics["baseline"]
