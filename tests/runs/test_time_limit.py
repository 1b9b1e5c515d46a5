"""A plan that is shortened to end in time."""

import json

import numpy as np
import pytest

from thaw import Dataset, Plan
from thaw.plan import Phase
from thaw.runs.time_limit import advice_minutes, epochs_in_time, plan_in_time


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1000, [1, 8, 4]),  # 1 + 2 + 80 + 3 + 80 = 166 s: all of it
        (166, [1, 8, 4]),
        (165, [1, 7, 3]),  # both by the same factor: 1 + 2 + 70 + 3 + 60
        (76, [1, 3, 1]),
        (36, [1, 1, 1]),
        (35, [1, 3, 0]),  # the last phase is left out, and the one before has its time: 1 + 2 + 30
        (2, [1, 0, 0]),
        (0.5, [0, 0, 0]),
    ],
)
def test_epochs_in_time(seconds, expected):
    # 1 s for the head; 2 s before the second phase and 10 s an epoch; 3 s before the third and 20 s an epoch
    assert epochs_in_time([1, 8, 4], [0, 2, 3], [1, 10, 20], seconds) == expected


def test_a_quarter_of_the_time_is_for_advice():
    assert advice_minutes(8) == 2
    assert advice_minutes(1.9) is None


@pytest.fixture(scope="module")
def model():
    import keras

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2, "softmax", name="classes")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(n=64):
    return Dataset(x=np.zeros((n, 8), "float32"), y=np.arange(n) % 2)


PLAN = Plan([Phase(name="head", epochs=2, train="head"), Phase(name="tune", epochs=100, train=1, views=1)])


def test_a_plan_that_has_time_is_unchanged(model, tmp_path):
    plan, notes = plan_in_time(PLAN, model, (data(), data()), 1e6, work=tmp_path, asked={"minutes": 1}, batch_size=32)
    assert plan == PLAN
    assert notes == ()


def test_a_plan_without_time_is_its_first_phase_and_says_so(model, tmp_path):
    plan, notes = plan_in_time(PLAN, model, (data(), data()), 1e-6, work=tmp_path, asked={"minutes": 1}, batch_size=32)
    assert [(phase.name, phase.epochs) for phase in plan] == [("head", 1)]
    assert "1 of 2 epochs of head; it leaves out tune" in notes[0]
    assert "The shortest plan takes about" in notes[1]


def test_a_resumed_run_keeps_its_plan(model, tmp_path):
    first = plan_in_time(PLAN, model, (data(), data()), 1e-6, work=tmp_path, asked={"minutes": 1}, batch_size=32)
    assert plan_in_time(PLAN, model, (data(), data()), 1e6, work=tmp_path, asked={"minutes": 1}, batch_size=32) == first
    assert json.loads((tmp_path / "time.json").read_text())["notes"] == list(first[1])
    other = plan_in_time(PLAN, model, (data(), data()), 1e6, work=tmp_path, asked={"minutes": 2}, batch_size=32)
    assert other == (PLAN, ())


def test_the_model_is_unchanged(model, tmp_path):
    before = model.get_weights()
    plan_in_time(PLAN, model, (data(), data()), 10, work=tmp_path, asked={"minutes": 1}, batch_size=32)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))
