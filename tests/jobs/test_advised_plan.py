"""A run without a plan looks for one once; killed or not, it goes on by what was advised."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from thaw import Advisor, Examples, Plan, attach_head
from thaw.cli import main
from thaw.jobs.advised_plan import advised_plan


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


def test_without_a_plan_there_is_advice_and_a_kill_does_not_change_it(place):
    """kill -9 in the trials, and after the advice: the same plan, and the second time no trial is made again."""
    out = place / "run"
    command = [sys.executable, "-m", "thaw", *tune(place, out)]
    said = []
    for line in (r"^  tried .*: 0\.\d", r"  epoch +1 of"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        lines = []
        for text in process.stderr:
            lines.append(text)
            if re.search(line, text):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        assert process.returncode == -signal.SIGKILL, "".join(lines)
        said.append("".join(lines))
    assert "advice: " not in said[0]
    assert "advice: " in said[1]
    plan = Plan.from_toml((out / "unfinished/plan.toml").read_text())
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tried " not in done.stderr
    assert Plan.from_toml((out / "plan.toml").read_text()) == plan
    advice = json.loads((out / "advice.json").read_text())
    assert "advice.json" in json.loads((out / "manifest.json").read_text())["files"]
    assert len(advice["trials"]) > 1
    assert set(advice["reasons"]) <= set(json.loads((out / "metrics.json").read_text())["notes"])
    assert not (out / "unfinished").exists()


def test_the_command_alone(place, capsys, monkeypatch):
    """What it hands to the advisor, and that it leaves nothing behind."""
    asked = []

    def call(self, model, data):
        asked.append((self, model, data))
        return said

    said = Fixed()(None, None)
    monkeypatch.setattr(Advisor, "__call__", call)
    before = sorted(os.listdir(place))
    for shown in ((), ("--json",)):
        given = ["advise", place / "photos", "-m", place / "small.keras", "--minutes", "2", "--epochs", "3", *shown]
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in given])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert json.loads(out) == said.to_dict() if shown else out == "what was found\n"
    advisor, model, (train, validation) = asked[0]
    assert (advisor.minutes, advisor.epochs, advisor.head) == (2, 3, "new")
    assert model.compiled
    assert train.augment is not None
    assert len(train) > 2 * len(validation) > 0
    assert sorted(os.listdir(place)) == before


def test_each_reason_is_said_once(place, tmp_path, capsys, monkeypatch):
    """In a run that goes through, in one that is cut off after the advice, and where it goes on."""
    from thaw.progress import Progress

    monkeypatch.setattr(Advisor, "__call__", lambda self, model, data: Fixed()(model, data))
    epoch_ends = Progress.on_epoch_end

    def run(out):
        with pytest.raises(SystemExit) as ended:
            main(tune(place, tmp_path / out))
        return ended.value.code, capsys.readouterr().err.count("Because.")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    assert run("whole") == (0, 1)
    monkeypatch.setattr(Progress, "on_epoch_end", interrupted)
    code, told = run("cut")
    assert code != 0
    assert told == 1
    monkeypatch.setattr(Progress, "on_epoch_end", epoch_ends)
    assert run("cut") == (0, 1)


def test_minutes_belong_to_advice(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(tune(place, place / "other", "-p", "probe"))
    assert ended.value.code == 2
    assert "--minutes is for advice" in capsys.readouterr().err


def parts(n=60, m=40):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n + m, 4)).astype("float32"), np.arange(n + m) % 2
    return Examples(x=x[:n], y=y[:n]), Examples(x=x[n:], y=y[n:])


def net():
    keras.utils.set_random_seed(0)
    entry = keras.Input((4,))
    model = attach_head(keras.Model(entry, layers.Dense(5, "relu")(entry)), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Fixed(Advisor):
    """Says always the same, and counts."""

    calls: ClassVar = []

    def __call__(self, model, data):
        self.calls.append(self.seed)

        class Said:
            plan, scratch, reasons = Plan.named("probe"), True, ("Because.",)

            def __str__(self):
                return "what was found"

            def to_dict(self):
                return {"scratch": True, "reasons": ["Because."]}

        return Said()


def test_a_plan_is_taken_as_it_is(tmp_path):
    plan = Plan.named("full")
    assert advised_plan(plan, None, None, tmp_path).plan is plan
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("m", [0, 10])
def test_too_few_pictures_for_advice(tmp_path, m):
    train, validation = parts(60, 10)
    found = advised_plan(Advisor(epochs=3), net(), (train, validation if m else None), tmp_path)
    head, tune = Plan.named("probe_then_tune", epochs=3)
    assert found.plan == Plan([head, dataclasses.replace(tune, train=1)])  # the net has no more below its head
    assert f"60 training and {m} validation pictures, too few for advice" in found.notes[0]
    assert found.advice is None


def test_it_is_asked_once(tmp_path):
    Fixed.calls.clear()
    first, again = (advised_plan(Fixed(), net(), parts(), tmp_path) for _ in range(2))
    assert first == again
    assert (first.scratch, first.notes) == (True, ("Because.",))
    assert Fixed.calls == [0]
    with pytest.raises(ValueError, match="unfinished run of another plan, model, data or seed"):
        advised_plan(Fixed(seed=1), net(), parts(), tmp_path)
    with pytest.raises(ValueError, match="unfinished run of another"):
        advised_plan(Fixed(), net(), parts(61), tmp_path)
    assert Fixed.calls == [0]


def test_half_written_advice_is_asked_again(tmp_path):
    """The plan is written first: without the advice beside it, it does not count."""
    Fixed.calls.clear()
    (tmp_path / "plan.toml").write_text("half")
    assert advised_plan(Fixed(), net(), parts(), tmp_path).plan == Plan.named("probe")
    assert Fixed.calls == [0]


def test_a_run_that_began_with_a_plan_of_its_own(tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="whose plan was not looked for"):
        advised_plan(Fixed(), net(), parts(), tmp_path)
