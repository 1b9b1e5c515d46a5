"""The command line from end to end, as a person meets it: small pictures, a small network, real commands."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from thaw.cli.main import main

PLAN = """
[[phase]]
name = "head"
epochs = 4
train = "head"
learning_rate = 0.05
views = 2

[[phase]]
name = "all"
epochs = 6
learning_rate = 0.02
layer_decay = 0.5
patience = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of digits in three classes, a small backbone as somebody's file, and a plan."""
    import keras
    from keras import layers

    place = tmp_path_factory.mktemp("cli")
    digits = load_digits()
    for kind in (0, 1, 4):
        folder = place / "digits" / str(kind)
        folder.mkdir(parents=True)
        for i in np.flatnonzero(digits.target == kind)[:60]:
            pixels = np.kron(digits.images[i] * 15, np.ones((2, 2))).astype("uint8")
            Image.fromarray(pixels).save(folder / f"{i}.png")
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    keras.Model(inputs, x).save(place / "small.keras")
    (place / "plan.toml").write_text(PLAN)
    return place


def thaw(*arguments):
    """Run a command; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def tune(place, out, *more):
    return [
        "tune",
        place / "digits",
        "-o",
        out,
        "-m",
        place / "small.keras",
        "-p",
        place / "plan.toml",
        "--batch-size",
        "16",
        "--verbose",
        *more,
    ]


@pytest.fixture(scope="module")
def run(place, python):
    """A finished run, made by a process of its own."""
    out = place / "run"
    done = python("-m", "thaw", *tune(place, out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_run_shows_what_it_does(run):
    _, done = run
    assert re.search(r"epoch +1 of 4 +loss \d", done.stderr)
    assert "head changed by 100" in done.stderr  # the head starts at zero
    assert re.search(r"accuracy +[01]\.\d{3} +[01]\.\d{3} to [01]\.\d{3}", done.stdout)
    assert "most frequent class" in done.stdout
    assert "Traceback" not in done.stderr
    assert "oneDNN" not in done.stderr


def test_a_run_leaves_its_folder(run):
    out, _ = run
    for name in ("model.keras", "labels.json", "plan.toml", "history.csv", "metrics.json", "quarantine.csv"):
        assert (out / name).is_file(), name
        assert name in json.loads((out / "manifest.json").read_text())["files"]
    assert not (out / "unfinished").exists()
    assert json.loads((out / "labels.json").read_text()) == ["0", "1", "4"]
    assert list((out / "tensorboard").rglob("events.*"))
    assert (out / "history.csv").read_text().splitlines()[0].count(",") >= 6


def test_it_learned(run):
    out, _ = run
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"]["low"] > metrics["majority"]


def test_the_model_opens_with_keras_alone(run, place, python):
    """In an interpreter that cannot see thaw, without a warning, and predicts the same."""
    import keras

    out, _ = run
    picture = place / "digits/0"
    x = np.stack([np.asarray(Image.open(p).convert("RGB"), "float32") for p in sorted(picture.iterdir())[:4]])
    np.save(place / "x.npy", x)
    code = (
        "import sys, warnings, json, numpy as np; warnings.simplefilter('error', UserWarning); import keras\n"
        f"model = keras.saving.load_model({str(out / 'model.keras')!r}, safe_mode=True)\n"
        f"p = model.predict(np.load({str(place / 'x.npy')!r}), verbose=0)\n"
        "assert not any(name.split('.')[0] == 'thaw' for name in sys.modules)\n"
        "print(json.dumps(p.tolist()))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    here = keras.saving.load_model(out / "model.keras").predict(x, verbose=0)
    np.testing.assert_array_equal(np.array(json.loads(done.stdout.splitlines()[-1]), "float32"), here)


def test_predict_evaluate_and_check(run, place, capsys):
    out, _ = run
    file = sorted((place / "digits/4").iterdir())[0]
    assert thaw("predict", out, file, "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(file)
    assert answer["label"] in ("0", "1", "4")
    assert sum(t["probability"] for t in answer["top"]) == pytest.approx(1, abs=1e-5)
    assert thaw("evaluate", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["split"] == "test"
    assert thaw("evaluate", out, place / "digits", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["examples"] == 180
    assert "The run was trained on examples of" in said.err
    assert thaw("predict", out, file, "--views", "4", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["views"] == 2
    assert "2 of 4 views of each image: the run was trained with --flips horizontal" in said.err
    assert thaw("check", out) == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert thaw("check", place / "digits") == 0


def test_predict_goes_on_past_a_bad_file(run, place, capsys):
    out, _ = run
    bad = place / "notes.jpg"
    bad.write_text("not a picture")
    good = sorted((place / "digits/1").iterdir())[0]
    assert thaw("predict", out, bad, good, place / "nowhere.png") == 1
    said = capsys.readouterr()
    assert good.name in said.out.replace("\n", "")
    assert "notes.jpg: is not an image" in said.err
    assert "nowhere.png: No such file" in said.err


def test_stages_and_plan(place, capsys):
    assert thaw("stages", place / "small.keras", "--json") == 0
    stages = json.loads(capsys.readouterr().out)
    assert [s["stage"] for s in stages] == ["stage1", "stage2"]
    assert thaw("plan", place / "plan.toml", "-m", place / "small.keras", "--json") == 0
    head, everything = json.loads(capsys.readouterr().out)
    assert head["stages"] == ["head"]
    assert head["parameters"] == 16 * 2 + 2
    assert everything["rates"] == {"stage1": 0.005, "stage2": 0.01, "head": 0.02}
    assert everything["seconds"] > 0
    assert thaw("plan", "gradual", "--toml") == 0
    assert capsys.readouterr().out.count("[[phase]]") == 4


@pytest.mark.slow
def test_kill_and_again_gives_the_same_weights(run, place, python):
    """kill -9 in the first and in the second phase, the same command after each: the same SHA-256."""
    whole, _ = run
    out = place / "killed"
    command = ["-m", "thaw", *tune(place, out)]
    for line in ("epoch   1 of 4", "epoch   6 of 10"):
        assert python(*command, kill_at=line).returncode == -signal.SIGKILL
    assert python(*command).returncode == 0
    weights = [json.loads((folder / "manifest.json").read_text())["weights_sha256"] for folder in (whole, out)]
    assert weights[0] == weights[1]


def test_a_second_process_is_turned_away(place, capsys):
    from thaw._files import lock_run

    with lock_run(place / "held"):
        assert thaw(*tune(place, place / "held")) == 2
    assert "held" in capsys.readouterr().err


def test_divergence_names_where_it_was(place, capsys):
    plan = place / "wild.toml"
    plan.write_text('[[phase]]\nname = "wild"\nepochs = 2\nlearning_rate = 1e30\nwarmup = 0.0\n')
    assert thaw(*tune(place, place / "wild"), "-p", plan) == 3
    said = capsys.readouterr().err
    assert re.search(
        r'became (nan|inf) in phase "wild", epoch 1, batch \d+ .*learning rate of (1e\+30|9\.\d+e\+29)', said
    ), said
    assert "Try a tenth" in said
    assert not (place / "wild/model.keras").exists()
    import keras

    assert "The last good weights are in" in said
    kept = keras.models.load_model(place / "wild/last-good.keras", safe_mode=True, compile=False)
    assert all(np.isfinite(w.numpy()).all() for w in kept.weights)


BAD = {
    "no such data": (["tune", "nowhere", "-o", "{out}"], "nowhere does not exist"),
    "no data": (["tune", "-o", "{out}"], "Missing argument"),
    "no run folder": (["tune", "{digits}"], "Missing option '--out'"),
    "a finished run": (["tune", "{digits}", "-o", "{run}"], "holds a finished run"),
    "a class for data": (["tune", "{digits}/0", "-o", "{out}"], "expected one folder for each class"),
    "a picture for data": (["tune", "{small}", "-o", "{out}"], "expected a folder of images, or a table"),
    "unknown plan": (["tune", "{digits}", "-o", "{out}", "-p", "graduel"], 'no plan "graduel"; expected "gradual"'),
    "missing plan": (["tune", "{digits}", "-o", "{out}", "-p", "x.toml"], "x.toml does not exist"),
    "plan with options": (["tune", "{digits}", "-o", "{out}", "-p", "{plan}", "--epochs", "3"], "set in the plan file"),
    "bad rate": (["tune", "{digits}", "-o", "{out}", "--learning-rate", "-1"], "expected a number above 0"),
    "rate in words": (
        ["tune", "{digits}", "-o", "{out}", "--learning-rate", "small"],
        "Invalid value for '--learning-rate'",
    ),
    "no epochs": (["tune", "{digits}", "-o", "{out}", "--epochs", "0"], "Invalid value for '--epochs'"),
    "no batch": (["tune", "{digits}", "-o", "{out}", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    "bad flips": (["tune", "{digits}", "-o", "{out}", "--flips", "up"], "expected one of"),
    "bad max-bad": (["tune", "{digits}", "-o", "{out}", "-m", "{small}", "--max-bad", "2"], "from 0 to 1"),
    "unknown backbone": (["tune", "{digits}", "-o", "{out}", "-m", "resnet5"], "did you mean resnet50"),
    "no such file": (["tune", "{digits}", "-o", "{out}", "-m", "mine.keras"], "mine.keras"),
    "size of a file": (["tune", "{digits}", "-o", "{out}", "-m", "{small}", "--image-size", "64"], "16"),
    "not a run": (["predict", "{digits}", "a.png"], "not a run folder"),
    "nothing to predict": (["predict", "{run}"], "Missing argument"),
    "top of none": (["predict", "{run}", "a.png", "--top", "0"], "Invalid value for '--top'"),
    "no such run": (["evaluate", "nowhere"], "nowhere"),
    "data of other classes": (["evaluate", "{run}", "{other}"], "does not know; it knows 0, 1, 4"),
    "nothing to check": (["check", "nowhere"], "nowhere does not exist"),
    "a text as a model": (["check", "{text}"], "is not a Keras model; expected a file made by model.save"),
    "stages of nothing": (["stages", "nothing.keras"], "nothing.keras"),
    "unknown command": (["tuna"], "tuna"),
    "unknown option": (["stages", "--depth"], "--depth"),
    "too many stages": (["plan", "{deep}", "-m", "{small}"], "asks for 9 stages below the head"),
    "stage without a name": (["plan", "{unnamed}", "-m", "{small}"], 'no stage "stage9"; it has'),
    "broken toml": (["plan", "{broken}"], "not valid TOML"),
    "unknown key": (["plan", "{key}"], 'a key "learning_rat"; expected "learning_rate"'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name, place, run, capsys, tmp_path):
    given, expected = BAD[name]
    other = place / "other/cat"
    other.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(other / "a.png")
    phase = '[[phase]]\nname = "a"\nepochs = 1\n'
    texts = {
        "text": ("text.keras", "hello"),
        "deep": ("deep.toml", phase + "train = 9\n"),
        "unnamed": ("unnamed.toml", phase + 'train = ["stage9"]\n'),
        "broken": ("broken.toml", "[[phase"),
        "key": ("key.toml", phase + "learning_rat = 1.0\n"),
    }
    paths = {
        "digits": place / "digits",
        "run": run[0],
        "small": place / "small.keras",
        "plan": place / "plan.toml",
        "out": tmp_path / "out",
        "other": place / "other",
    }
    for key, (file, text) in texts.items():
        paths[key] = tmp_path / file
        paths[key].write_text(text)
    assert thaw(*[argument.format(**paths) for argument in given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("thaw: "), said.err
    assert expected in said.err, said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "out/model.keras").exists()


def test_every_command_has_help(capsys):
    for command in ("stages", "plan", "tune", "evaluate", "predict", "check"):
        assert thaw(command, "--help") == 0
        assert "Usage:" in capsys.readouterr().out


def test_demo_table_is_the_published_split(tmp_path):
    """75 % and 25 %, a tenth of the 75 held back; every photograph once."""
    import csv
    import importlib.util

    spec = importlib.util.spec_from_file_location("solar", Path(__file__).parents[2] / "examples/solar_cells.py")
    solar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(solar)
    text = solar.table(0, tmp_path / "cells.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    splits = [row["split"] for row in rows]
    assert len({row["image"] for row in rows}) == 2624
    assert splits.count("test") == 656
    assert splits.count("val") == 197
    assert sum(row["label"] == "defective" for row in rows) == 106 + 715


@pytest.mark.slow
def test_what_it_knew_before(place, tmp_path, capsys):
    """Pictures of the old task and a budget, from the command line; a run that cannot hold it is written."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    body = keras.saving.load_model(place / "small.keras")
    x = layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(body.output))
    keras.Model(body.input, x).save(tmp_path / "knowing.keras")
    (tmp_path / "all.toml").write_text('[[phase]]\nname = "all"\nepochs = 2\nlearning_rate = 0.02\n')
    budget = ("--retain", place / "digits/0", "--max-forgetting", 0, "-p", tmp_path / "all.toml")
    command = tune(place, tmp_path / "run", *budget)
    command[command.index(place / "small.keras")] = tmp_path / "knowing.keras"
    code = thaw(*command, "--json")
    said = capsys.readouterr()
    assert code in (0, 4), said.err
    found = json.loads(said.out)["retention"]
    assert found["score"] == "agreement"
    assert "have no labels" in said.err
    assert re.search(r"epoch .* retention [01]\.\d{3} ", said.err)
    assert code == (0 if found["inside"] else 4)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["retention"] == found
    assert "retention" in (tmp_path / "run/history.csv").read_text().splitlines()[0]
    command[2:4] = ["-o", tmp_path / "none"]
    command[command.index(tmp_path / "knowing.keras")] = place / "small.keras"
    assert thaw(*command) == 2
    assert "has no head of its own" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
