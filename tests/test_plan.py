"""Plans: values that print, compare and go through TOML."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thaw.plan import PLANS, Phase, Plan

words = st.text(min_size=1, max_size=12).filter(str.strip)
shares = st.floats(0, 1)
phases = st.builds(
    Phase,
    name=words,
    epochs=st.integers(1, 10**6),
    train=st.one_of(words, st.integers(0, 99), st.lists(words, min_size=1, max_size=3).map(tuple)),
    learning_rate=st.one_of(st.floats(0, exclude_min=True, allow_infinity=False), st.integers(1, 10**30)),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=shares,
    layer_decay=st.floats(0, 1, exclude_min=True),
    batchnorm=st.sampled_from(["frozen", "trained"]),
    patience=st.integers(0, 50),
    views=st.integers(0, 50),
    l2_sp=st.floats(0, 10),
    cache_dtype=st.sampled_from(["float32", "float16"]),
    soup=st.integers(0, 1),
)
plans = st.lists(phases, min_size=1, max_size=4, unique_by=lambda p: p.name).map(Plan)


def head(**changed):
    return Phase(**{"name": "head", "epochs": 3} | changed)


@settings(max_examples=200, deadline=None)
@given(plans)
@example(Plan([head(name='"\\\x00\x07\x1f\x7f\x85\u2028 \t\r\n é 日本 \U0001f600')]))
@example(Plan([head(train=("stage1", 'a "quoted" one', "\x7f"))]))
@example(Plan([head(learning_rate=5e-324)]))
@example(Plan([head(learning_rate=1.7976931348623157e308)]))
@example(Plan([head(learning_rate=1e16), head(name="b", learning_rate=1e-5)]))
def test_any_plan_reads_back_as_it_was_written(plan):
    again = Plan.from_toml(plan.to_toml())
    assert again == plan
    assert again.to_toml() == plan.to_toml()
    # The file is UTF-8, whatever the names are, and one line holds one key.
    assert Plan.from_toml(plan.to_toml().encode().decode()) == plan
    assert plan.to_toml().encode().count(b"\n") == (len(dataclasses.fields(Phase)) + 2) * len(plan) - 1


def test_a_rate_from_numpy_goes_through_the_file():
    plan = Plan([head(learning_rate=np.float64(3e-4), warmup=np.float64(0.25))])
    assert "learning_rate = 0.0003\nschedule" in plan.to_toml()
    assert Plan.from_toml(plan.to_toml()) == plan


def test_what_is_left_out_is_the_default():
    (phase,) = Plan.from_toml('[[phase]]\nname = "a"\nepochs = 2\n')
    assert phase == Phase(name="a", epochs=2)
    assert (phase.train, phase.learning_rate, phase.schedule, phase.warmup) == ("all", 1e-4, "cosine", 0.1)
    assert (phase.layer_decay, phase.batchnorm, phase.patience, phase.views) == (1.0, "frozen", 0, 0)


def test_a_list_of_stages_becomes_a_tuple():
    (phase,) = Plan.from_toml('[[phase]]\nname = "a"\nepochs = 2\ntrain = ["stage3", "head"]\n')
    assert phase.train == ("stage3", "head")
    assert head(train=["stage3"]) == head(train=("stage3",))


GOOD = 'name = "a"\nepochs = 2\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"The plan has no phase; expected at least one phase \(\[\[phase\]\] in a file\)\."),
        ("phase = []", r"The plan has no phase"),
        ("[[phase", r"The plan is not valid TOML: Expected"),
        ("[phase]\n" + GOOD, r"phase is not a list of tables; write \[\[phase\]\], with two brackets"),
        ('phase = "a"', r"with two brackets"),
        ('phase = ["a"]', r"with two brackets"),
        ("[[phases]]\n" + GOOD, r'The plan has a key "phases"; expected nothing but \[\[phase\]\] tables\.'),
        ("seed = 1\n[[phase]]\n" + GOOD, r'The plan has a key "seed"'),
        ("[[phase]]\n" + GOOD + "learnin_rate = 1e-3", r'Phase 1 has a key "learnin_rate"; expected "learning_rate"'),
        ("[[phase]]\n" + GOOD + "[[phase]]\nepoch = 3", r'Phase 2 has a key "epoch"; expected "epochs"'),
        ("[[phase]]\n" + GOOD + "qqqqq = 1", r'Phase 1 has a key "qqqqq"; expected one of name, epochs, train'),
        ("[[phase]]\nepochs = 3", r'Phase 1 has no "name"; every phase needs one'),
        ('[[phase]]\nname = "a"', r'Phase 1 has no "epochs"'),
        ("[[phase]]\n" + GOOD + "[[phase]]\n" + GOOD, r'Two phases are named "a"; give each a name of its own'),
        ("[[phase]]\n" + GOOD + "learning_rate = nan", r'Phase "a" has learning_rate = nan; expected a number above 0'),
        ("[[phase]]\n" + GOOD + "learning_rate = inf", r"learning_rate = inf; expected a number above 0"),
        ("[[phase]]\n" + GOOD + 'learning_rate = "1e-3"', r"learning_rate = '1e-3'; expected a number above 0"),
        ("[[phase]]\n" + GOOD + "learning_rate = true", r"learning_rate = True; expected a number"),
        ("[[phase]]\n" + GOOD + "train = {}", r'train = \{\}; expected "head", "all", a number of stages'),
        ("[[phase]]\n" + GOOD + "train = 2020-01-01", r"train = datetime.date"),
    ],
)
def test_a_bad_file_says_what_to_write(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_toml(text)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "", "a word"),
        ("name", "  ", "a word"),
        ("name", 3, "a word"),
        ("epochs", 0, "a whole number from 1"),
        ("epochs", -1, "a whole number from 1"),
        ("epochs", True, "a whole number from 1"),
        ("epochs", 2.0, "a whole number from 1"),
        ("epochs", "2", "a whole number from 1"),
        ("train", -1, "a number of stages below the head"),
        ("train", True, '"head", "all"'),
        ("train", "", '"head", "all"'),
        ("train", (), "a list of stage names"),
        ("train", [], "a list of stage names"),
        ("train", ("a", 1), "a list of stage names"),
        ("train", None, "a list of stage names"),
        ("train", 1.0, "a list of stage names"),
        ("learning_rate", 0, "a number above 0"),
        ("learning_rate", -1e-3, "a number above 0"),
        ("learning_rate", math.nan, "a number above 0"),
        ("learning_rate", 10**400, "a number above 0"),
        ("learning_rate", None, "a number above 0"),
        ("schedule", "cosin", "one of cosine, linear, constant"),
        ("schedule", ["cosine"], "one of cosine, linear, constant"),
        ("warmup", -0.1, "a number from 0 to 1"),
        ("warmup", 1.1, "a number from 0 to 1"),
        ("warmup", math.nan, "a number from 0 to 1"),
        ("warmup", False, "a number from 0 to 1"),
        ("layer_decay", 0, "above 0, at most 1"),
        ("layer_decay", 1.5, "above 0, at most 1"),
        ("batchnorm", True, '"frozen" or "trained"'),
        ("batchnorm", "thawed", '"frozen" or "trained"'),
        ("patience", -1, "a whole number from 0"),
        ("patience", True, "a whole number from 0"),
        ("l2_sp", -0.1, "a number from 0"),
        ("cache_dtype", "int8", '"float32" or "float16"'),
        ("views", 1.5, "a whole number from 0"),
        ("views", -1, "a whole number from 0"),
        ("soup", -1, "a whole number from 0"),
        ("soup", True, "a whole number from 0"),
    ],
)
def test_a_value_that_cannot_be_meant(field, value, expected):
    with pytest.raises(ValueError) as error:
        head(**{field: value})
    assert f"has {field} = " in str(error.value)
    assert f"expected {expected}" in str(error.value) or expected in str(error.value)


def test_a_phase_does_not_change():
    phase = head()
    with pytest.raises(dataclasses.FrozenInstanceError):
        phase.epochs = 4
    with pytest.raises((AttributeError, TypeError)):
        phase.epoch = 4
    assert hash(phase) == hash(head())
    assert dataclasses.replace(phase, epochs=4) == head(epochs=4)
    with pytest.raises(ValueError, match="epochs = 0"):
        dataclasses.replace(phase, epochs=0)


def test_statistics_are_not_averaged():
    with pytest.raises(ValueError, match=r'has batchnorm = .*; expected "frozen", because statistics cannot be'):
        head(soup=3, batchnorm="trained")
    assert head(soup=1, batchnorm="trained").soup == 1
    plan = Plan([head(), head(name="b", batchnorm="trained")])
    assert [phase.soup for phase in plan.with_soup(3)] == [3, 0]


def test_a_plan_is_made_of_phases():
    with pytest.raises(ValueError, match="A plan is made of phases; 'head' is a str"):
        Plan(["head"])
    with pytest.raises(ValueError, match="no phase"):
        Plan([])
    plan = Plan([head(), head(name="b", epochs=4)])
    assert plan.epochs == 7
    assert plan == (head(), head(name="b", epochs=4))
    assert eval(repr(plan), {"Plan": Plan, "Phase": Phase}) == plan


def test_named_plans():
    assert [p.name for p in Plan.named("probe")] == ["head"]
    assert Plan.named("probe", epochs=4)[0].epochs == 4
    assert Plan.named("probe", head_epochs=3)[0].epochs == 3
    assert Plan.named("probe", learning_rate=0.01)[0].learning_rate == 0.01
    tuned = Plan.named("probe_then_tune", head_epochs=2, epochs=7, learning_rate=1e-3)
    assert [(p.epochs, p.train, p.learning_rate) for p in tuned] == [(2, "head", 1e-3), (7, 2, 1e-3)]
    gradual = Plan.named("gradual", learning_rate=6e-4)
    assert [p.train for p in gradual] == ["head", 1, 2, 3]
    assert [p.learning_rate for p in gradual[1:]] == pytest.approx([6e-4, 3e-4, 2e-4])
    first, full = Plan.named("full")
    assert first.solves
    assert first.train == "head"
    assert (full.train, full.learning_rate, full.layer_decay) == ("all", 1e-4, 0.7)
    for name in PLANS:
        assert Plan.from_toml(Plan.named(name).to_toml()) == Plan.named(name)
        assert all(phase.batchnorm == "frozen" for phase in Plan.named(name))


@pytest.mark.parametrize("name", PLANS)
def test_zero_is_not_the_default(name):
    with pytest.raises(ValueError, match="epochs = 0"):
        Plan.named(name, epochs=0)
    with pytest.raises(ValueError, match="learning_rate = 0"):
        Plan.named(name, learning_rate=0)
    if name in ("probe_then_tune", "gradual"):
        with pytest.raises(ValueError, match="epochs = 0"):
            Plan.named(name, head_epochs=0)


def test_a_name_that_is_not_there():
    with pytest.raises(ValueError, match='There is no plan "probe_and_tune"; expected "probe_then_tune", or the path'):
        Plan.named("probe_and_tune")
    with pytest.raises(ValueError, match='no plan "zzz"; expected one of probe, probe_then_tune, gradual, full'):
        Plan.named("zzz")


def test_printed():
    plan = Plan(
        [
            head(epochs=10, train="head", learning_rate=1e-3),
            Phase(name="tune", epochs=5, train=2, learning_rate=5e-4, layer_decay=0.7),
            Phase(name="b", epochs=1, train=("stage3", "head"), schedule="constant", batchnorm="trained"),
        ]
    )
    assert str(plan).splitlines() == [
        "phase  epochs  train        rate                  schedule  batchnorm",
        "head       10  head         0.001                 cosine    frozen",
        "tune        5  head + 2     0.0005 x 0.7 a stage  cosine    frozen",
        "b           1  stage3 head  0.0001                constant  trained",
    ]
