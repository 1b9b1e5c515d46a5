"""A plan, and the pull back to the start in the phases that move the backbone."""

import pytest

from thaw.jobs.read_plan import anchored_plan, read_plan
from thaw.plan import Phase, Plan


def test_the_phases_that_move_the_backbone_are_anchored():
    assert [p.anchor for p in read_plan("gradual", anchor=0.01)] == [0.0, 0.01, 0.01, 0.01]
    assert read_plan("gradual", anchor=None) == Plan.named("gradual")
    moving = [Phase(name=str(train), epochs=1, train=train) for train in ("head", 0, ("head",), 1, "all", ("stage1",))]
    assert [p.anchor for p in anchored_plan(Plan(moving), 0.1)] == [0, 0, 0, 0.1, 0.1, 0.1]


def test_what_cannot_be_anchored(tmp_path):
    with pytest.raises(ValueError, match="The plan moves the head alone"):
        read_plan("probe", anchor=0.01)
    with pytest.raises(ValueError, match="expected a number from 0"):
        read_plan("full", anchor=-1.0)
    (tmp_path / "plan.toml").write_text(Plan.named("full").to_toml())
    with pytest.raises(ValueError, match="stand in the plan file; leave the options out"):
        read_plan(str(tmp_path / "plan.toml"), anchor=0.01)
