"""``thaw tune --config``: the options of a run as a file that repeats it."""

import json
import shutil
import tomllib

import pytest

from thaw.plan import Plan


def weights_of(run):
    return json.loads((run / "manifest.json").read_text())["weights_sha256"]


def short(place):
    return ("-m", place / "small.keras", "-p", "probe", "--epochs", 2, "--learning-rate", 0.05)


@pytest.fixture(scope="module")
def first(small_place, tmp_path_factory):
    """A finished run with other options than the default ones."""
    from thaw.cli.main import main

    out = tmp_path_factory.mktemp("config") / "first"
    options = ["--seed", 3, "--rotation", 0.1, "--optimizer", "adam", "--clip-norm", 0.5, "--batch-size", 16]
    options += ["--metric", "loss", "--mode", "min"]
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in ("tune", small_place / "photos", "-o", out, *short(small_place), *options)])
    assert ended.value.code == 0
    return out


def test_tune_with_the_config_of_a_run_repeats_it_bit_identically(first, thaw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its paths are relative to the file
    config = tomllib.loads((first / "config.toml").read_text())
    assert config["seed"] == 3
    assert config["optimizer"] == "adam"
    assert config["precision"] == "float32"
    assert (config["metric"], config["mode"]) == ("loss", "min")
    assert not config["data"].startswith("/")
    code, _, err = thaw("tune", "--config", first / "config.toml", "-o", "again")
    assert code == 0, err
    assert weights_of(tmp_path / "again") == weights_of(first)
    assert (tmp_path / "again/plan.toml").read_text() == (first / "plan.toml").read_text()


def test_tune_prefers_options_on_the_command_line_to_the_config(first, thaw, tmp_path):
    code, _, err = thaw("tune", "--config", first / "config.toml", "-o", tmp_path / "run", "--seed", 4)
    assert code == 0, err
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (config["seed"], config["optimizer"], config["clip_norm"]) == (4, "adam", 0.5)
    assert weights_of(tmp_path / "run") != weights_of(first)


def test_tune_with_a_plan_file_keeps_the_plan_in_the_run(small_place, thaw, tmp_path):
    """The config of the run names its own copy, so that the original may change."""
    plan = Plan.named("probe", epochs=2)
    (tmp_path / "mine.toml").write_text(plan.to_toml())
    arguments = ("-m", small_place / "small.keras", "-p", tmp_path / "mine.toml")
    assert thaw("tune", small_place / "photos", "-o", tmp_path / "run", *arguments)[0] == 0
    (tmp_path / "mine.toml").unlink()
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["plan"] == "plan.toml"
    assert thaw("tune", "--config", tmp_path / "run/config.toml", "-o", tmp_path / "again")[0] == 0
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", 'has an option "epoch"; expected "epochs".'),
        ("learning-rat = 3", 'has an option "learning-rat"; expected "learning_rate".'),
        ("qqqq = 3", 'has an option "qqqq"; expected one of data, out, task'),
        ('data = "photos"\nepochs = "three"', "Invalid value for '--epochs'"),
        ('data = "photos"\nepochs = 2.5', "Invalid value for '--epochs'"),
        ("epochs = true", "has epochs = True; expected a number or a string"),
        ("epochs = [3]", "has epochs = [3]; expected a number or a string"),
        ("epochs", "is not valid TOML"),
        ("", "Missing argument"),
    ],
)
def test_tune_refuses_an_invalid_config_in_one_sentence(thaw, tmp_path, text, message):
    (tmp_path / "config.toml").write_text(text)
    code, out, err = thaw("tune", "--config", tmp_path / "config.toml", "-o", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.startswith("thaw: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_tune_refuses_a_config_that_does_not_exist(thaw, tmp_path):
    code, _, err = thaw("tune", "--config", tmp_path / "no.toml", "-o", tmp_path / "run")
    assert (code, err) == (2, f"thaw: {tmp_path / 'no.toml'} does not exist; expected options in TOML.\n")


def test_tune_names_the_option_in_which_an_unfinished_run_differs(first, small_place, thaw, tmp_path):
    run = tmp_path / "run"
    (run / "unfinished").mkdir(parents=True)
    (run / "unfinished" / "checkpoint.npz").touch()
    shutil.copy(first / "config.toml", run)
    code, _, err = thaw("tune", "--config", first / "config.toml", "-o", run, "--clip-norm", 2)
    assert code == 2
    assert "holds an unfinished run with clip_norm = 0.5, and now it is 2.0; give the same command again" in err


def test_config_of_a_run_with_a_model_in_memory_is_refused(small_place, thaw, tmp_path):
    import keras

    from thaw import Phase, tune

    model = keras.saving.load_model(small_place / "small.keras")
    phases = [Phase(name="head", epochs=1, train="head", learning_rate=1e-2)]
    tune(small_place / "photos", tmp_path / "run", model=model, plan=phases, verbose=0)
    assert Plan.load(tmp_path / "run/plan.toml") == Plan(phases)
    code, _, err = thaw("tune", "--config", tmp_path / "run/config.toml", "-o", tmp_path / "again")
    assert code == 2
    assert "is of a run whose model was given in Python as an object, so it cannot repeat the run; write" in err
    assert not (tmp_path / "again").exists()
