"""Plans by name and from files, with L2-SP and patience; plan files of version 0.1."""

import re

import pytest

from thaw.plan import Phase, Plan, read_plan

# All keys, as version 0.1 wrote them.
PLAN_OF_0_1 = """\
[[phase]]
name = "head"
epochs = 5
train = "head"
learning_rate = 0.001
schedule = "cosine"
warmup = 0.1
stage_decay = 1.0
batchnorm = "frozen"
patience = 0
views = 4
anchor = 0.0
precision = "float32"

[[phase]]
name = "tune"
epochs = 12
train = ["stage7", "head"]
learning_rate = 0.0005
schedule = "linear"
warmup = 0.2
stage_decay = 0.7
batchnorm = "trained"
patience = 3
views = 0
anchor = 0.01
precision = "float16"
"""


def test_read_plan_sets_l2_sp_in_the_phases_that_train_the_backbone():
    assert [p.l2_sp for p in read_plan("gradual", l2_sp=0.01)] == [0.0, 0.01, 0.01, 0.01]
    assert read_plan("gradual", l2_sp=None) == Plan.named("gradual")
    phases = [Phase(name=str(train), epochs=1, train=train) for train in ("head", 0, ("head",), 1, "all", ("stage1",))]
    assert [p.l2_sp for p in Plan(phases).with_l2_sp(0.1)] == [0, 0, 0, 0.1, 0.1, 0.1]


def test_read_plan_refuses_l2_sp_without_a_backbone_to_train(tmp_path):
    with pytest.raises(ValueError, match="The plan trains the head alone"):
        read_plan("probe", l2_sp=0.01)
    with pytest.raises(ValueError, match="expected a number from 0"):
        read_plan("full", l2_sp=-1.0)


@pytest.mark.parametrize("option", ["epochs", "head_epochs", "learning_rate", "l2_sp", "patience"])
def test_read_plan_refuses_options_with_a_file(tmp_path, option):
    (tmp_path / "plan.toml").write_text(Plan.named("full").to_toml())
    with pytest.raises(ValueError, match="set in the plan file; leave these options out"):
        read_plan(str(tmp_path / "plan.toml"), **{option: 1})


def test_read_plan_sets_patience_in_every_phase():
    assert [p.patience for p in read_plan("probe_then_tune", patience=3)] == [3, 3]


def test_load_reads_a_plan_file_of_version_0_1(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN_OF_0_1)
    plan = Plan.load(path)
    assert plan == read_plan(path)
    options = {"schedule": "linear", "warmup": 0.2, "batchnorm": "trained", "patience": 3, "l2_sp": 0.01}
    tune = {"epochs": 12, "train": ("stage7", "head"), "learning_rate": 5e-4, "layer_decay": 0.7}
    assert plan == Plan(
        [
            Phase(name="head", epochs=5, train="head", learning_rate=1e-3, views=4),
            Phase(name="tune", **tune, **options, cache_dtype="float16"),
        ]
    )
    text = PLAN_OF_0_1.replace("stage_decay", "layer_decay").replace("anchor", "l2_sp")
    added = '\nsolver = "gradient"\nsoup = 0\nvariables = "all"'
    assert plan.to_toml() == re.sub('precision = "(.*)"', rf'cache_dtype = "\1"{added}', text)


def test_from_toml_refuses_a_key_under_both_names():
    text = '[[phase]]\nname = "a"\nepochs = 1\nanchor = 0.1\nl2_sp = 0.1\n'
    with pytest.raises(ValueError, match='Phase 1 has both "anchor" and its new name "l2_sp"'):
        Plan.from_toml(text)


def test_load_names_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder; expected a plan in TOML"):
        Plan.load(tmp_path)
