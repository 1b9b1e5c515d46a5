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

import thaw.advice.advise as advising
from thaw import Dataset, Plan, TuneCallback, attach_head
from thaw.cli.main import main
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
    named = [
        "-m",
        place / "small.keras",
        "--batch-size",
        "32",
        "--minutes",
        "0.3",
        "--epochs",
        "1",
        "--head-epochs",
        "1",
    ]
    return [str(a) for a in ["tune", place / "photos", "-o", out, *named, *more]]


@pytest.mark.slow
def test_without_a_plan_there_is_advice_and_a_kill_does_not_change_it(place, python):
    """kill -9 in the trials, and after the advice: the same plan, and the second time no trial is made again."""
    out = place / "run"
    command = ["-m", "thaw", *tune(place, out)]
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


class Advice:
    """Always the same."""

    plan, scratch, reasons = Plan.named("probe"), True, ("Because.",)

    def __str__(self):
        return "the advice"

    def to_dict(self):
        return {"scratch": True, "reasons": ["Because."]}


@pytest.fixture
def asked(monkeypatch):
    """Advice costs nothing; the list of what it was asked."""
    calls = []

    def advise(model, x, y=None, **options):
        calls.append((model, x, options))
        return Advice()

    monkeypatch.setattr(advising, "advise", advise)
    return calls


def test_advise_command_hands_its_options_on_and_leaves_nothing(place, capsys, asked):
    before = sorted(os.listdir(place))
    for shown in ((), ("--json",)):
        given = ["advise", place / "photos", "-m", place / "small.keras", "--minutes", "2", "--epochs", "3", *shown]
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in given])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert json.loads(out) == Advice().to_dict() if shown else out == "the advice\n"
    model, train, options = asked[0]
    assert (options["minutes"], options["epochs"], options.get("head", "new")) == (2, 3, "new")
    assert model.compiled
    assert train.augment is not None
    assert len(train) > 2 * len(options["validation_data"]) > 0
    assert sorted(os.listdir(place)) == before


def test_each_reason_is_shown_once(place, tmp_path, capsys, monkeypatch, asked):
    """In a run that goes through, in one that is interrupted after the advice, and where it is resumed."""
    from thaw.training.callbacks import ProgressBar

    on_epoch_end = ProgressBar.on_epoch_end

    def run(out):
        with pytest.raises(SystemExit) as ended:
            main(tune(place, tmp_path / out))
        return ended.value.code, capsys.readouterr().err.count("Because.")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    assert run("whole") == (0, 1)
    monkeypatch.setattr(ProgressBar, "on_epoch_end", interrupted)
    assert run("cut") == (130, 1)
    monkeypatch.setattr(ProgressBar, "on_epoch_end", on_epoch_end)
    assert run("cut") == (0, 1)
    assert len(asked) == 2


def test_minutes_belong_to_advice(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(tune(place, place / "other", "-p", "probe"))
    assert ended.value.code == 2
    assert "minutes is the time for advice" in capsys.readouterr().err


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


def test_resolve_plan_returns_a_plan_that_is_given(tmp_path):
    plan = Plan.named("full")
    assert resolve_plan(plan, None, None, None, tmp_path).plan is plan
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("m", [0, 10])
def test_resolve_plan_with_too_few_examples_is_probe_then_tune(tmp_path, m, asked):
    class Listen(TuneCallback):
        def on_no_advice(self, reason):
            self.reason = reason

    listen, (train, validation) = Listen(), parts(60, 10)
    settings = {"epochs": 3, "learning_rate": None}
    more = {"settings": settings, "callbacks": [listen]}
    found = resolve_plan("auto", net(), train, validation if m else None, tmp_path, **more)
    head, tune = Plan.named("probe_then_tune", epochs=3)
    assert found.plan == Plan([head, dataclasses.replace(tune, train=1)])  # the net has no more below its head
    assert f"60 training and {m} validation images, too few for advice" in found.notes[0]
    assert found.notes == (listen.reason,)
    assert found.advice is None
    assert not asked
    slow = resolve_plan("auto", net("sgd"), train, None, tmp_path).plan
    assert [p.learning_rate for p in slow] == pytest.approx([20e-3, 10e-3])  # rates for SGD


def test_resolve_plan_asks_once(tmp_path, asked):
    first, again = (resolve_plan("auto", net(), *parts(), tmp_path, settings={"seed": 0}) for _ in range(2))
    assert first == again
    assert (first.plan, first.scratch, first.notes) == (Plan.named("probe"), True, ("Because.",))
    assert len(asked) == 1
    with pytest.raises(ValueError, match="unfinished run of another plan, model, data or seed"):
        resolve_plan("auto", net(), *parts(), tmp_path, settings={"seed": 1})
    with pytest.raises(ValueError, match="unfinished run of another"):
        resolve_plan("auto", net(), *parts(61), tmp_path, settings={"seed": 0})
    assert len(asked) == 1


def test_resolve_plan_asks_again_where_the_record_is_incomplete(tmp_path, asked):
    """The plan is written first: without the advice next to it, it does not count."""
    (tmp_path / "plan.toml").write_text("half")
    assert resolve_plan("auto", net(), *parts(), tmp_path).plan == Plan.named("probe")
    assert len(asked) == 1


def test_resolve_plan_refuses_a_run_that_began_with_a_plan_of_its_own(tmp_path, asked):
    (tmp_path / "checkpoint.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="an unfinished run with a plan of its own"):
        resolve_plan("auto", net(), *parts(), tmp_path)
    assert not asked
