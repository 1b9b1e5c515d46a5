"""The manners of the command line: one sentence for an error, data to stdout, talk to stderr, whatever they are."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image
from rich.console import Console

from thaw.cli.main import _sentence, main
from thaw.cli.output import print_table
from thaw.training.progress import ProgressBar


def net(path, scaled=False):
    keras.utils.set_random_seed(0)
    entry = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(entry) if scaled else entry
    model = keras.Model(entry, layers.Conv2D(4, 3, 2, activation="relu")(x), name="small")
    model.save(path)
    return path


def thaw(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize("damage", ["cut", "pickle", "zip", "empty"])
def test_check_says_what_is_wrong_with_a_file(tmp_path, capsys, damage):
    """As tune says it."""
    path = net(tmp_path / "mine.keras")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "pickle": b"\x80\x04" + whole, "zip": b"PK" + bytes(99), "empty": b""}[damage]
    )
    code, out, err = thaw(capsys, "check", path)
    assert (code, out) == (2, "")
    expected = {"cut": "cut short or damaged", "pickle": "is a pickle, which can run any code", "empty": "is empty"}
    assert expected.get(damage, "damaged") in err
    assert err == thaw(capsys, "tune", tmp_path, "-o", tmp_path / "run", "-m", path, "-p", "probe")[2]


def test_check_looks_at_a_model_whose_loss_is_unknown(tmp_path, capsys):
    @keras.saving.register_keras_serializable("mine")
    def loss(y, p):
        return keras.ops.mean(p)

    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", loss)
    model.save(tmp_path / "mine.keras")
    del keras.saving.get_custom_objects()["mine>loss"]
    code, out, _ = thaw(capsys, "check", tmp_path / "mine.keras")
    assert code == 0
    assert "warning: Its compilation cannot be restored" in out


def test_sentence_of_an_error():
    assert _sentence(PermissionError(13, "Permission denied", "a.csv")) == (
        "a.csv is not accessible (Permission denied); change its permissions, or name another path."
    )
    assert _sentence(IsADirectoryError(21, "Is a directory", "photos")) == "photos: Is a directory."
    assert _sentence(OSError(28, "The disk is full at /x: make room")) == "The disk is full at /x: make room"
    assert str(_sentence(FileNotFoundError("x does not exist; expected y."))) == "x does not exist; expected y."
    graph = 'in user code:\n\n    File "x.py", line 1, in call  *\n\n    ValueError: The net is odd.\n'
    assert _sentence(ValueError(graph)) == "The net is odd."  # TensorFlow wrote around it


@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        ("stages mine.keras --json", "<&- 2>&-", 0),  # TensorFlow is imported, and finds no stderr
        ("plan probe --toml", ">&- 2>&-", 0),
        ("stages nothing.keras", "2>&-", 2),
    ],
)
def test_a_closed_stderr_is_no_mistake_of_ours(command, closed, code, tmp_path):
    net(tmp_path / "mine.keras", scaled=True)
    command = f"{sys.executable} -m thaw {command} {closed}"
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == code
    assert (b'"stage1"' in done.stdout) == closed.startswith("<")


def test_a_reader_that_goes_away_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m thaw plan gradual --toml | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141)  # 0 where all was written before the reader had gone
    assert done.stderr == ""


@pytest.mark.filterwarnings("always:.* does not scale its pixels:UserWarning")
def test_an_unknown_scaling_of_pixels_is_one_line(tmp_path, capsys):
    path = net(tmp_path / "mine.keras")
    before = warnings.showwarning
    code, _, err = thaw(capsys, "plan", "probe", "-m", path, "--epochs", "1")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "scale" in line]
    assert line.startswith(f"note: {path} does not scale its pixels")
    assert "choose another preprocessing (--preprocessing): none, -1..1" in line
    assert "UserWarning" not in err
    assert "Timing a few batches of each phase" in err
    assert warnings.showwarning is before
    code, _, err = thaw(capsys, "plan", "probe", "-m", path, "--epochs", "1", "--preprocessing", "0..1")
    assert code == 0
    assert "scale its pixels" not in err


@pytest.mark.parametrize("command", ["tune", "advise", "plan", "probe", "find-rate", "compare"])
def test_preprocessing_goes_to_the_model(tmp_path, capsys, command):
    path = net(tmp_path / "mine.keras", scaled=True)
    for i in range(8):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    what = ["probe"] if command == "plan" else [tmp_path / "photos"]
    more = ["-o", tmp_path / "run"] if command == "tune" else []
    code, _, err = thaw(capsys, command, *what, *more, "-m", path, "--preprocessing", "0..1")
    assert code == 2
    assert "preprocessing='0..1' would do it twice" in err


def test_a_row_is_one_line_where_nobody_looks(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(["file", "label"], [("/a/very/long/path/" + "x" * 120 + ".jpg", "cat and dog")])
    header, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["/a/very/long/path/" + "x" * 120 + ".jpg", "cat", "and", "dog"]
    assert header.split() == ["file", "label"]


def test_a_line_of_progress_is_not_folded(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ProgressBar().console.print("a word " * 30 + "end")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_goes_on_says_so(tmp_path):
    import io

    from thaw import Phase, Plan, fine_tune

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    x, y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.arange(16) % 2
    plan = Plan([Phase(name="head", epochs=2, train="head"), Phase(name="top", epochs=3)])
    with pytest.raises(KeyboardInterrupt):
        fine_tune(model(), plan, x, y, validation_data=(x, y), backup_dir=tmp_path, callbacks=[Stop()])
    text = io.StringIO()
    with ProgressBar(Console(file=text, width=80), verbose=2) as shown:
        fine_tune(model(), plan, x, y, validation_data=(x, y), backup_dir=tmp_path, callbacks=[shown])
    lines = text.getvalue().splitlines()
    assert "resuming at epoch 4, phase top" in lines
    assert lines.index("resuming at epoch 4, phase top") < next(
        i for i, line in enumerate(lines) if "epoch   4" in line
    )
    assert not any("epoch   3" in line for line in lines)
    text = io.StringIO()
    with ProgressBar(Console(file=text, width=80)) as shown:
        fine_tune(model(), Plan(plan[:1]), x, y, validation_data=(x, y), callbacks=[shown])
    assert "resuming" not in text.getvalue()
    assert os.path.exists(tmp_path / "checkpoint.npz")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("plan", "auto"), "The plan auto is made of measurements on your images, by thaw tune"),
        (("plan", "probe", "--toml", "--json"), "--toml and --json were given; expected one of them."),
        (("tune", ".", "-o", "run", "--mode", "up"), "mode='up'; expected"),
        (("advise", ".", "--learning-rate", "-1"), "-1"),
        (("probe", ".", "--seed", str(2**32)), "4294967296 was given; expected a whole number from 0 to 4294967295"),
        (("compare", ".", "--seed", "-1"), "-1 was given; expected a whole number from 0 to 4294967295"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be_meant_are_refused_before_a_model_is_opened(tmp_path, capsys, arguments, sentence):
    code, out, err = thaw(capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_part_of_thaw_that_is_missing_is_an_internal_error(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "thaw.runs.folder", None)  # what Python finds after a broken installation
    code, _, err = thaw(capsys, "evaluate", "run")
    assert code == 70
    assert err.startswith("thaw: internal error: ModuleNotFoundError")
    assert "pip install" not in err
