"""A run without a plan looks for one once; killed or not, it goes on by what was advised."""

import dataclasses
import json
import os
import signal

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from thaw import Dataset, Plan, TuneCallback, attach_head
from thaw.cli.main import main
from thaw.features.cache_folder import list_cache
from thaw.models.precision import resolve_precision
from thaw.runs.resolved_plan import resolve_plan


def small():
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(x)
    for filters in (4, 8):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)))
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bright and a dark class, and a small backbone as somebody's file."""
    place, rng = tmp_path_factory.mktemp("advised"), np.random.default_rng(0)
    for label, level in (("bright", 150), ("dark", 100)):
        (place / "photos" / label).mkdir(parents=True)
        for i in range(100):
            pixels = np.clip(rng.normal(level, 60, (16, 16, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(place / "photos" / label / f"{i}.png")
    small().save(place / "small.keras")
    return place


def tune(place, out, *more):
    short = ["--minutes", "2", "--epochs", "1", "--head-epochs", "1"]  # of these, half a minute for trials
    return [str(a) for a in ["tune", place / "photos", "-o", out, "-m", place / "small.keras", *short, *more]]


@pytest.mark.slow
def test_tune_without_a_plan_takes_advice_that_a_kill_does_not_change(place, python):
    """kill -9 in the trials, and after the advice: the same plan, and the second time no trial is made again."""
    out = place / "run"
    command = ["-m", "thaw", *tune(place, out, "--verbose")]
    said = []
    for line in (r"^  tried .*: 0\.\d", r"  epoch +1 of"):
        killed = python(*command, kill_at=line)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        said.append(killed.stderr)
    assert "advice: " not in said[0]
    assert "advice: " in said[1]
    plan = Plan.from_toml((out / "unfinished/plan.toml").read_text())
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert "tried " not in done.stderr
    assert Plan.from_toml((out / "plan.toml").read_text()) == plan
    advice = json.loads((out / "advice.json").read_text())
    assert "advice.json" in json.loads((out / "manifest.json").read_text())["files"]
    assert len(advice["trials"]) > 1
    assert set(advice["reasons"]) <= set(json.loads((out / "metrics.json").read_text())["notes"])
    assert not (out / "unfinished").exists()
    for shown in (said[1], done.stderr):
        assert [shown.count(reason) for reason in advice["reasons"]] == [1] * len(advice["reasons"])


def test_tune_shows_each_reason_of_its_advice_once(place, tmp_path, capsys):
    """Also where it is cut off after the advice and resumed, which the test of a kill looks at."""
    with pytest.raises(SystemExit) as ended:
        main(tune(place, tmp_path / "run", "--learning-rate", "1e-3"))
    assert ended.value.code == 0
    shown = capsys.readouterr().err
    reasons = json.loads((tmp_path / "run/advice.json").read_text())["reasons"]
    assert len(reasons) > 1
    assert [shown.count(reason) for reason in reasons] == [1] * len(reasons)


def test_advise_command_hands_its_options_on_and_leaves_nothing(place, capsys):
    before, cached, said = sorted(os.listdir(place)), [], []
    given = ["advise", place / "photos", "-m", place / "small.keras", "--epochs", "3"]
    one_trial, other = ["--minutes", "0.2"], ["--learning-rate", "0.003", "--flips", "none"]
    for more in (["--json", "--minutes", "1e-6"], one_trial, [*one_trial, *other]):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in [*given, *more]])
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
        cached.append(sum(row["rows"] - row["examples"] for row in list_cache() if row["what"] == "activations"))
    advice = json.loads(said[0])
    assert advice["plan"][-1]["epochs"] == 3
    assert "this task is to the source task, on which the network was trained" in advice["reasons"][0]
    assert advice["reasons"][1] == "The budget allowed no trials, so the plan is the default; give more minutes."
    assert advice["reasons"][0] in " ".join(said[1].split())
    assert "at 0.003 " in said[2]
    assert "at 0.003 " not in said[1]
    assert cached[0] == 0  # a solved head sees the images as they are
    assert cached[2] == 2 * cached[1] > 0  # versions of each image; of those that are not flipped none was there
    assert sorted(os.listdir(place)) == before


@keras.saving.register_keras_serializable("thaw-tests-advice")
class Interrupt(layers.Layer):
    """Note the precision of the first batch that is computed, and end there."""

    precisions = []  # noqa: RUF012 it is one for all

    def compute_output_spec(self, x):  # where the model is built, nothing is called
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x):
        Interrupt.precisions.append(x.dtype)
        raise KeyboardInterrupt


def test_advise_command_computes_in_the_precision_of_tune(place, tmp_path):
    """A file keeps the precision that it was saved with, and tune leaves it behind."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, 2, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, Interrupt()(x)).save(tmp_path / "mixed.keras")
    keras.config.set_dtype_policy("float32")
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in ("advise", place / "photos", "-m", tmp_path / "mixed.keras")])
    assert ended.value.code == 130
    expected = keras.DTypePolicy(resolve_precision("auto")).compute_dtype
    assert {keras.backend.standardize_dtype(dtype) for dtype in Interrupt.precisions} == {expected}


def test_without_time_there_are_no_trials_and_a_shorter_plan(place, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(tune(place, tmp_path / "run", "--minutes", "1e-6"))
    assert ended.value.code == 0
    shown = capsys.readouterr().err
    assert "tried " not in shown
    assert "it leaves out tune" in shown
    assert not (tmp_path / "run/advice.json").exists()
    assert [phase.name for phase in Plan.load(tmp_path / "run/plan.toml")] == ["head"]


def parts(n=60, m=40):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n + m, 4)).astype("float32"), np.arange(n + m) % 2
    return Dataset(x=x[:n], y=y[:n]), Dataset(x=x[n:], y=y[n:])


def net(optimizer="adam"):
    keras.utils.set_random_seed(0)
    entry = keras.Input((4,))
    model = attach_head(keras.Model(entry, layers.Dense(5, "relu")(entry)), 2)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


SHORT = {"minutes": 1e-6, "epochs": 1}


class Listen(TuneCallback):
    """Hear of the trials, and why there are none."""

    def __init__(self):
        super().__init__()
        self.trials, self.reasons = [], []

    def on_trial(self, number, total, name):
        self.trials.append(name)

    def on_no_advice(self, reason):
        self.reasons.append(reason)


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """A folder with recorded advice, what was resolved, and the trials that it took; only to be read."""
    folder, listen = tmp_path_factory.mktemp("resolved"), Listen()
    (folder / "plan.toml").write_text("half")  # the plan is written first: without the advice it does not count
    return folder, resolve_plan("auto", net(), *parts(), folder, settings=SHORT, callbacks=[listen]), listen.trials


def test_resolve_plan_returns_a_plan_that_is_given(tmp_path):
    plan = Plan.named("full")
    assert resolve_plan(plan, None, None, None, tmp_path).plan is plan
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("m", [0, 10])
def test_resolve_plan_with_too_few_examples_is_probe_then_tune(tmp_path, m):
    listen, (train, validation) = Listen(), parts(60, 10)
    settings = {"epochs": 3, "learning_rate": None}
    more = {"settings": settings, "callbacks": [listen]}
    found = resolve_plan("auto", net(), train, validation if m else None, tmp_path, **more)
    head, tune = Plan.named("probe_then_tune", epochs=3)
    assert found.plan == Plan([head, dataclasses.replace(tune, train=1)])  # the net has no more below its head
    assert f"60 training and {m} validation examples, too few for advice" in found.notes[0]
    assert list(found.notes) == listen.reasons
    assert found.advice is None
    assert not listen.trials
    slow = resolve_plan("auto", net("sgd"), train, None, tmp_path).plan
    assert [p.learning_rate for p in slow] == pytest.approx([20e-3, 10e-3])  # rates for SGD


def test_resolve_plan_records_the_advice_also_over_an_incomplete_record(advised):
    folder, found, trials = advised
    assert trials
    assert Plan.from_toml((folder / "plan.toml").read_text()) == found.plan
    assert found.advice == json.loads((folder / "advice.json").read_text())["advice"]
    assert (found.scratch, list(found.notes)) == (found.advice["scratch"], found.advice["reasons"])
    assert found.notes


def test_resolve_plan_asks_once(advised):
    folder, found, _ = advised
    listen = Listen()

    def again(*data, **settings):
        return resolve_plan("auto", net(), *data, folder, settings=SHORT | settings, callbacks=[listen])

    assert again(*parts()) == found
    with pytest.raises(ValueError, match="unfinished run of another plan, model, data or seed"):
        again(*parts(), seed=1)
    with pytest.raises(ValueError, match="unfinished run of another"):
        again(*parts(61))
    assert not listen.trials


def test_resolve_plan_refuses_a_run_that_began_with_a_plan_of_its_own(tmp_path):
    listen = Listen()
    (tmp_path / "checkpoint.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="an unfinished run with a plan; give the same command again, with that plan"):
        resolve_plan("auto", net(), *parts(), tmp_path, callbacks=[listen])
    assert not listen.trials
