"""``open_run``: the runs of this version, and those of version 0.1."""

import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from thaw.features import predict_proba
from thaw.plan import Phase, Plan
from thaw.runs.folder import Run, open_run, refuse_finished, write_run
from thaw.runs.predictor import evaluate_files

PLAN_OF_0_1 = """\
[[phase]]
name = "head"
epochs = 2
train = "head"
learning_rate = 0.001
schedule = "cosine"
warmup = 0.1
stage_decay = 1.0
batchnorm = "frozen"
patience = 0
views = 4
anchor = 0.0
precision = "float32"
"""
METRICS_OF_0_1 = {
    "split": "test",
    "examples": 4,
    "accuracy": {"value": 0.75, "low": 0.25, "high": 1.0},
    "moved": [{"stage": "head", "weights": 1.0, "statistics": 0.0}],
    "moved_in_phases": {"head": [{"stage": "head", "weights": 1.0, "statistics": 0.0}]},
    "majority": 0.5,
    "notes": ["4 pictures of 2 classes."],
}


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax")]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def write_run_of_0_1(folder, model):
    """Write the files of a finished run as version 0.1 did, without any code of this version."""
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.out").write_bytes(b"log")
    (folder / ".lock").touch()
    model.save(folder / "model.keras")
    for name, value in (("labels", ["cat", "dog"]), ("metrics", METRICS_OF_0_1)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    (folder / "plan.toml").write_text(PLAN_OF_0_1)
    for name, rows in (
        (
            "history",
            [
                ("epoch", "phase", "loss", "val_accuracy", "rate"),
                (1, "head", 0.5, 0.5, ""),
                (2, "head", 0.25, 1.0, 0.1),
            ],
        ),
        ("quarantine", [("path", "reason"), ("a.png", "is empty (0 bytes)")]),
    ):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            files[path.relative_to(folder).as_posix()] = entry
    manifest = {
        "format": 1,
        "versions": {"python": "3.11.7", "thaw": "0.1.0", "keras": "3.15.1", "numpy": "2.4.6", "tensorflow": "2.21.0"},
        "weights_sha256": "0" * 64,
        "seed": 0,
        "data_sha256": "1" * 64,
        "files": files,
    }
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


@pytest.fixture
def run(tmp_path, model):
    return write_run_of_0_1(tmp_path / "old", model)


def test_open_run_opens_a_run_of_version_0_1(run, model):
    opened = open_run(run)
    assert opened.labels == opened.task.labels == ("cat", "dog")
    assert opened.plan == Plan([Phase(name="head", epochs=2, train="head", learning_rate=1e-3, views=4)])
    assert opened.metrics["weight_change"] == METRICS_OF_0_1["moved"]
    assert opened.metrics["weight_change_by_phase"] == METRICS_OF_0_1["moved_in_phases"]
    assert "moved" not in opened.metrics
    assert opened.history == {
        "epoch": [1, 2],
        "phase": ["head", "head"],
        "loss": [0.5, 0.25],
        "val_accuracy": [0.5, 1.0],
        "rate": [None, 0.1],
    }
    assert opened.notes == ["4 pictures of 2 classes."]
    assert opened.rejected == {"a.png": "is empty (0 bytes)"}
    assert opened.config == {}
    assert opened.manifest["versions"]["thaw"] == "0.1.0"
    assert opened.evaluate() == opened.metrics
    assert opened.verify() == opened.manifest
    x = np.zeros((1, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(opened.model.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not opened.model.compiled
    assert opened.model is opened.model  # loaded once


def test_run_prints_what_it_is(run):
    opened = open_run(run)
    assert repr(opened) == f"Run({str(run)!r})"
    assert str(opened).splitlines() == [
        f"Run {run}, 2 classes: cat, dog",
        "accuracy on test: 0.750 (95 % interval 0.250 to 1.000)",
        "plan: head; 2 epochs",
    ]


def test_predict_takes_files_and_arrays(run, tmp_path):
    opened = open_run(run)
    pixels = np.full((8, 8, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"")
    array = opened.predict(pixels[None], top=1)
    (good, bad) = opened.predict([tmp_path / "a.png", str(tmp_path / "bad.png")], top=1)
    assert good == {"file": str(tmp_path / "a.png"), **array[0]}
    assert bad == {"file": str(tmp_path / "bad.png"), "error": "is empty (0 bytes)"}
    assert opened.predict(tmp_path / "a.png", top=1) == [good]
    with pytest.raises(ValueError, match="top=0"):
        opened.predict([tmp_path / "a.png"], top=0)


def test_evaluate_takes_a_folder_and_arrays(run, tmp_path):
    opened, images = open_run(run), []
    for i, label in enumerate(("cat", "dog", "cat", "dog")):
        path = tmp_path / "more" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append(np.full((8, 8, 3), 60 * i, np.uint8))
        Image.fromarray(images[-1]).save(path)
    (tmp_path / "more/cat/bad.png").write_bytes(b"")
    files = opened.evaluate(tmp_path / "more")
    arrays = opened.evaluate(np.stack(images), np.array([0, 1, 0, 1]))
    assert files.pop("rejected") == {str(tmp_path / "more/cat/bad.png"): "is empty (0 bytes)"}
    assert files["accuracy"] == arrays["accuracy"]
    assert files["examples"] == 4
    rows = "".join(f"more/{label}/{i}.png,{label},test\n" for i, label in enumerate(("cat", "dog", "cat", "dog")))
    (tmp_path / "test.csv").write_text("image,label,split\n" + rows)  # to measure on, no split need be trained on
    assert opened.evaluate(tmp_path / "test.csv")["accuracy"] == arrays["accuracy"]
    (tmp_path / "more/fish").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "more/fish/0.png")
    with pytest.raises(ValueError, match="has a class 'fish' that the model does not know; it knows cat, dog"):
        opened.evaluate(tmp_path / "more")


@pytest.mark.parametrize(("flips", "views"), [("both", 4), ("horizontal", 2), ("none", 1), (None, 1)])
def test_views_are_the_flips_that_the_run_was_trained_with(tmp_path, flips, views):
    import keras

    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(2, "softmax")
    net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 50), keras.layers.Flatten(), last])
    config = None if flips is None else f'data = "../more"\nflips = "{flips}"\n'
    write_run(tmp_path / "run", net, ["cat", "dog"], plan="", tables={}, metrics={}, config=config)
    opened, images, y = open_run(tmp_path / "run"), [], [0, 1, 0, 1]
    for i, label in enumerate(y):
        images.append(np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8))
        path = tmp_path / "more" / ("cat", "dog")[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[-1]).save(path)
    images = np.stack(images)
    p = predict_proba(net, images, views=views, flips=flips or "none")
    for row, found in zip(p, opened.predict(images, views=4, top=2), strict=True):
        assert found["views"] == views
        assert {best["label"]: best["probability"] for best in found["top"]} == dict(zip(("cat", "dog"), row))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    (good, wrong) = opened.predict([tmp_path / "more/cat/0.png", bad], views=4, top=2)
    assert good["probability"] == pytest.approx(p[0].max(), abs=1e-6)
    assert (good["views"], set(wrong)) == (views, {"file", "error"})
    files, arrays = opened.evaluate(tmp_path / "more", views=4), opened.evaluate(images, np.array(y), views=4)
    assert files["views"] == arrays["views"] == views
    loss = -np.log(p[np.arange(4), y]).mean()
    assert files["log_loss"]["value"] == pytest.approx(loss, abs=1e-6)
    assert arrays["log_loss"]["value"] == pytest.approx(loss, abs=1e-6)
    assert "views" not in opened.evaluate(images, np.array(y))
    # Images that the run was trained on: its own folder, by its config.
    assert any("was trained on examples of" in note for note in files["notes"]) is (flips is not None)
    assert not any("was trained on examples of" in note for note in arrays["notes"])
    with pytest.raises(ValueError, match="views=4, and the metrics at the end of the run are of one view"):
        opened.evaluate(views=4)


def test_verify_finds_what_is_damaged_after_opening(run):
    opened = open_run(run)
    (run / "history.csv").write_text("epoch\n")
    with pytest.raises(ValueError, match=r"history\.csv is damaged"):
        opened.verify()
    assert isinstance(opened, Run)


def test_open_run_refuses_an_unfinished_one(tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(FileNotFoundError, match="its run has not ended"):
        open_run(tmp_path)


def test_a_run_is_named_by_its_folder(run, capsys):
    from thaw.cli.main import main

    with pytest.raises(ValueError, match=r"model.keras is a file of a run; give its folder, .*"):
        open_run(run / "model.keras")
    for nothing in (None, 3):
        with pytest.raises(ValueError, match=f"folder={nothing}; expected the path of a run folder"):
            open_run(nothing)
    with pytest.raises(SystemExit) as ended:
        main(["stages", str(run)])
    assert ended.value.code == 0
    assert "head" in capsys.readouterr().out


def test_predict_names_a_folder_among_the_files(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (found,) = open_run(run).predict([tmp_path / "photos"])
    assert found["error"].startswith("is a folder; give the images in it, such as ")


def test_refuse_finished_says_what_to_do_with_an_unfinished_run_of_version_0_1(tmp_path):
    """It holds a lock, a checkpoint, and nothing that says which options it began with."""
    (tmp_path / ".lock").touch()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "checkpoint.npz").write_bytes(b"")
    message = r"began and this version cannot resume: finish it with thaw 0\.1, give another folder with -o, or delete"
    with pytest.raises(ValueError, match=message) as error:
        refuse_finished(tmp_path)
    assert str(error.value).count("\n") == 0
    (tmp_path / "config.toml").touch()  # as a run of this version begins
    refuse_finished(tmp_path)


@pytest.mark.parametrize("folder", ["cat", "cat "])
def test_evaluate_with_labels_that_look_the_same(tmp_path, folder):
    """Runs of before such names were one class may have both."""
    import keras

    net = [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential(net)
    model.layers[-1].set_weights([np.zeros((3, 3)), np.array([9.0, 0, 0])])  # it always predicts the first label
    (tmp_path / "more" / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "more" / folder / "0.png")
    found = evaluate_files(model, tmp_path / "more", ["cat", "cat ", "dog"])
    assert found["accuracy"]["value"] == 1.0
    with pytest.raises(ValueError, match=r"and the model has the labels ' cat' and 'cat ', which .*; eval"):
        evaluate_files(model, tmp_path / "more", [" cat", "cat ", "dog"])
    assert evaluate_files(model, tmp_path / "more", [" cat", "dog", "eel"])["accuracy"]["value"] == 1.0
