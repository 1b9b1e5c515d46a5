"""The options of ``thaw tune``: optimizer, clipping, patience, precision, splits by column, and old names."""

import csv
import inspect
import json
import os
import re
import signal
import tomllib

import numpy as np
import pytest

from thaw.plan import Phase, Plan


def short(place, *more):
    return ("-m", place / "small.keras", "-p", "probe_then_tune", "--epochs", 1, "--head-epochs", 1, *more)


def weights_of(run):
    return json.loads((run / "manifest.json").read_text())["weights_sha256"]


@pytest.mark.parametrize(("name", "scale", "clip"), [("sgd", 20, 1e-6), ("sgd", 20, 0), ("lion", 0.2, 0)])
def test_tune_scales_the_rates_for_the_optimizer_and_clips_gradients(small_place, thaw, tmp_path, name, scale, clip):
    """0 is no clipping."""
    from thaw import Classification, backbone
    from thaw.runs.tuning import build_model

    options = short(small_place, "--optimizer", name, "--clip-norm", clip, "--patience", 3)
    code, _, err = thaw("tune", small_place / "photos", "-o", tmp_path / "run", *options)
    assert code == 0, err
    plan = Plan.load(tmp_path / "run/plan.toml")
    assert [p.learning_rate for p in plan] == pytest.approx([1e-3 * scale, 5e-4 * scale])
    assert [p.patience for p in plan] == [3, 3]
    model = build_model(backbone(small_place / "small.keras"), Classification(["a", "b"]), (name, clip))
    assert model.optimizer.global_clipnorm == (clip or None)


@pytest.mark.parametrize(
    ("column", "more", "rates", "l2_sp"),
    [
        (("--group", "lot"), ("--optimizer", "sgd", "--learning-rate", 0.01), [0.02, 0.01], [0, 0]),
        (("--time", "day"), ("--anchor", 0.01), [0.001, 0.0005], [0, 0.01]),
    ],
    ids=["group", "time"],
)
def test_tune_splits_by_a_column_keeps_a_given_rate_and_knows_old_options(
    small_place, thaw, tmp_path, column, more, rates, l2_sp
):
    """The rate that is given is not scaled for SGD, that of the head is; --anchor is now --l2-sp."""
    options = short(small_place, *column, *more)
    code, _, err = thaw("tune", small_place / "table.csv", "-o", tmp_path / "run", *options)
    assert code == 0, err
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert config[column[0][2:]] == column[1]
    plan = Plan.load(tmp_path / "run/plan.toml")
    assert [p.learning_rate for p in plan] == pytest.approx(rates)
    assert [p.l2_sp for p in plan] == l2_sp


def test_metric_and_mode_decide_which_epoch_is_best(small_place, thaw, tmp_path):
    """With labels of chance, the lowest loss is that of small weights, and the best accuracy a matter of luck."""
    table, rng = tmp_path / "table.csv", np.random.default_rng(0)
    files = sorted((small_place / "photos").rglob("*.png"))
    table.write_text("image,label\n" + "".join(f"{file},{'ab'[rng.integers(2)]}\n" for file in files))
    plan = Plan([Phase(name="head", epochs=8, train="head", learning_rate=3.0, schedule="constant", views=4)])
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    kept = {}
    for name, options in (("loss", ["--metric", "loss", "--mode", "min"]), ("accuracy", [])):
        out = tmp_path / name
        arguments = ("-m", small_place / "small.keras", "-p", tmp_path / "plan.toml", *options)
        code, _, err = thaw("tune", table, "-o", out, *arguments)
        assert code == 0, err
        with open(out / "history.csv", newline="") as file:
            losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
        kept[name] = (losses, weights_of(out))
    config = tomllib.loads((tmp_path / "loss/config.toml").read_text())
    assert (config["metric"], config["mode"]) == ("loss", "min")
    assert kept["loss"][0] == kept["accuracy"][0]  # the same training
    assert kept["loss"][1] != kept["accuracy"][1]  # and another epoch


def test_old_names_of_options_still_work_and_are_not_shown(small_place, thaw):
    assert "--anchor" not in thaw("tune", "--help")[1]
    assert thaw("plan", "probe", "--toml", "--pictures=9")[0] == 0
    assert thaw("probe", small_place / "photos", "-m", small_place / "small.keras", "--most", "30", "--json")[0] == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--optimizer", "adm"), "optimizer='adm'; expected one of adamw, adam"),
        (("--precision", "half"), "precision='half'; expected one of auto, float32"),
        (("--clip-norm", "-1"), "Invalid value for '--clip-norm'"),
        (("--patience", "0"), "Invalid value for '--patience'"),
        (("--group", "lot"), "is a folder and has no column for group='lot'"),
        (("--metric", "f2"), "There is no metric 'f2'; expected one of loss, accuracy."),
        (("--metric", "retention"), "There is no metric 'retention'"),
        (("--metric", "loss", "--mode", "up"), "mode='up'; expected"),
        (("--metric", "loss", "--mode", "max"), "mode='max', and loss is better when lower; leave mode (--mode) out."),
        (("--mode", "min"), "mode='min', and accuracy is better when higher; leave mode (--mode) out."),
        (
            ("--metric", "loss", "--max-forgetting", "0.1"),
            "A budget for forgetting chooses by accuracy",
        ),
    ],
)
def test_invalid_options_are_refused_before_anything_is_trained(small_place, thaw, tmp_path, option, message):
    code, out, err = thaw("tune", small_place / "photos", "-o", tmp_path / "run", *short(small_place), *option)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "run/model.keras").exists()


def test_precision_is_recorded_and_a_killed_run_resumes_bit_identically(small_place, tmp_path, python):
    """Loss scaling has a state too; killed in the first epoch of the second phase, and given again."""
    options = ["--precision", "mixed_float16", "--epochs", "3", "--verbose"]
    command = ["-m", "thaw", "tune", small_place / "photos", *short(small_place), *options, "--head-epochs", "2"]
    env = os.environ | {"THAW_CACHE": str(tmp_path / "cache")}
    whole = python(*command, "-o", tmp_path / "whole", env=env)
    assert whole.returncode == 0, whole.stderr
    again = [*command, "-o", tmp_path / "killed"]
    assert python(*again, env=env, kill_at="epoch   3 of 4").returncode == -signal.SIGKILL
    other = python(*again, "--precision", "float32", env=env)
    assert other.returncode == 2
    assert "holds an unfinished run with precision = 'mixed_float16', and now it is 'float32'" in other.stderr
    done = python(*again, env=env)
    assert done.returncode == 0, done.stderr
    assert re.search("resuming at epoch [34]", done.stderr)  # the line is printed before the epoch is saved
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")
    import keras

    model = keras.saving.load_model(tmp_path / "killed/model.keras", safe_mode=True, compile=False)
    computed = {layer.compute_dtype for layer in model.layers if layer.weights and "head" not in layer.name}
    assert computed == {"float16"}
    assert model.layers[-1].compute_dtype == "float32"
    assert tomllib.loads((tmp_path / "killed/config.toml").read_text())["precision"] == "mixed_float16"


def test_the_command_has_the_options_of_the_function_with_their_defaults():
    import thaw.cli.train
    import thaw.workflow

    def defaults(function):
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    function, command = defaults(thaw.workflow.tune), defaults(thaw.cli.train.tune)
    function["metric"] = function.pop("monitor")
    for name in ("folder", "callbacks", "verbose"):  # -o, none, and a switch
        del function[name]
    for name in ("out", "config", "verbose", "as_json"):
        del command[name]
    assert command == function
