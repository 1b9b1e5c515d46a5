"""What people give to the commands that look and compare: one sentence, and exit code 2."""

import shutil

import numpy as np
import pytest
from PIL import Image

keras = pytest.importorskip("keras")
from keras import layers

from thaw.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classes of noise, and small backbones as somebody's files."""
    place, rng = tmp_path_factory.mktemp("bad"), np.random.default_rng(0)
    for label in "ab":
        (place / "photos" / label).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(place / "photos" / label / f"{i}.png")
    for name, shape in (("small", (16, 16, 3)), ("gray", (16, 16, 1)), ("any", (None, None, 3)), ("wide", (8, 16, 3))):
        net = [keras.Input(shape), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, 2, activation="relu")]
        keras.Sequential(net, name=name).save(place / f"{name}.keras")
    x = keras.Input((16, 16, 3))
    keras.Model(x, layers.Conv2D(3, 3)(x), name="plain").save(place / "plain.keras")
    two = [layers.Dense(2)(layers.Flatten()(x)) for _ in range(2)]
    keras.Model(x, two, name="two").save(place / "two.keras")
    return place


def thaw(capsys, *arguments):
    """Exit code, and what was said to stdout and to stderr."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, *capsys.readouterr()


def commands(place, model, out):
    """Every command that opens a backbone for pictures."""
    photos = place / "photos"
    for name in ("probe", "advise", "compare", "find-rate"):
        yield name, photos, "-m", model
    yield "rank", photos, "-m", place / "small.keras", "-m", model
    yield "plan", "probe", "-m", model
    yield "tune", photos, "-m", model, "-o", out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gray", "gray.keras takes inputs of shape (16, 16, 1); expected square images of one size with 3 channels"),
        ("wide", "wide.keras takes inputs of shape (8, 16, 3); expected square images of one size with 3 channels"),
        ("any", "any.keras takes images of any size; choose one: --image-size 224"),
        ("two", "two.keras: two has 1 inputs and 2 outputs; expected one of each"),
    ],
)
def test_a_model_that_takes_no_square_colours(place, tmp_path, capsys, name, expected):
    for command in commands(place, place / f"{name}.keras", tmp_path / "run"):
        code, out, err = thaw(capsys, *command)
        assert (code, out) == (2, ""), command
        assert err.splitlines()[-1].startswith("thaw: "), command  # one line
        assert expected in err, command
        assert "images of 2 classes" not in err, command  # before any is read
    assert not (tmp_path / "run").exists()


def test_find_rate_of_more_stages_than_the_net_has(place, capsys):
    code, _, err = thaw(capsys, "find-rate", place / "photos", "-m", place / "small.keras", "--train", "2")
    assert code == 2
    assert "train=2 asks for 2 stages below the head, and the model has 1" in err


def test_rank_takes_what_the_others_take(place, capsys):
    command = ("rank", place / "photos", "-m", place / "small.keras", "-m", place / "plain.keras")
    code, _, err = thaw(capsys, *command, "--preprocessing", "none", "--preprocessing", "torch")
    assert code == 0
    assert "does not scale its pixels" not in err  # it was said
    code, _, err = thaw(capsys, *command, "--preprocessing", "torch")
    assert code == 2
    assert "small.keras scales its inputs itself" in err
    code, _, err = thaw(capsys, *command, *["--weights", "imagenet"] * 3)
    assert code == 2
    assert "--weights is given 3 times and --model 2 times; expected it once, for all of them, or once for each" in err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_cannot_be_meant(capsys, minutes):
    for command in (["advise"], ["compare"], ["tune", "-o", "run"]):
        code, out, err = thaw(capsys, *command, "photos", "--minutes", minutes)
        assert (code, out) == (2, "")
        expected = f"{float(minutes):g} was given; expected a number above 0. See thaw {command[0]} --help.\n"
        assert err.endswith(expected)
        assert err.count("\n") == 1


def test_no_command_is_answered_with_help_alone(capsys):
    code, out, err = thaw(capsys)
    assert (code, err) == (2, "")
    assert "Usage" in out


def test_a_run_folder_that_is_a_file(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, err = thaw(capsys, "tune", place / "photos", "-m", place / "small.keras", "-o", out)
        assert code == 2
        assert err == f"thaw: {tmp_path / 'file'} is a file; expected a folder for the run. Name another one.\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_too_few_pictures_for_advice(place, capsys):
    code, _, err = thaw(capsys, "advise", place / "photos", "-m", place / "small.keras")
    assert code == 2
    assert "too few for advice (at least 20 of each): take more examples, or fine-tune without advice: thaw tune" in err


def test_a_class_under_two_names(place, tmp_path, capsys):
    shutil.copytree(place / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "b").rename(tmp_path / "photos" / "A ")
    code, out, _ = thaw(capsys, "check", tmp_path / "photos")
    assert code == 0
    assert "The classes 'A' and 'a' differ in form only" in out


def test_a_cache_that_is_a_file(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "cache").write_text("mine")
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    code, _, err = thaw(capsys, "probe", place / "photos", "-m", place / "small.keras")
    assert code == 2
    assert "(Not a directory): set THAW_CACHE to another folder.\n" in err
    assert (tmp_path / "cache").read_text() == "mine"


def test_as_many_bad_files_as_are_put_up_with(place, tmp_path, capsys):
    shutil.copytree(place / "photos", tmp_path / "photos")
    for i in range(2):
        (tmp_path / "photos" / "a" / f"{i}.png").write_bytes(b"")
    command = ("probe", tmp_path / "photos", "-m", place / "small.keras")
    code, _, err = thaw(capsys, *command)
    assert code == 2
    assert "2 of 24 files are bad, more than the accepted 5%" in err
    assert thaw(capsys, *command, "--max-bad", "0.1")[0] == 0
    code, out, _ = thaw(capsys, "check", tmp_path / "photos")
    assert code == 1
    assert out.startswith("error: 2 of 24 files are bad, more than the 5% that thaw tune accepts. Repair or remove")
    code, out, _ = thaw(capsys, "check", tmp_path / "photos", "--max-bad", "0.1")
    assert code == 0
    assert "error:" not in out


def test_too_few_pictures_for_advice_is_said_before_the_training(place, tmp_path, capsys):
    short = ("--epochs", "1", "--head-epochs", "1")
    code, _, err = thaw(capsys, "tune", place / "photos", "-m", place / "small.keras", "-o", tmp_path / "run", *short)
    assert code == 0
    assert err.count("too few for advice (at least 20 of each): the plan is probe_then_tune.") == 1
    assert err.index("too few for advice") < err.index("epoch   1")
    assert "tune: stage1 head at 0.0005, 1 epoch\n" in err  # one stage, where there are no two
