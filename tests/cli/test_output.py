"""What the table of a run says, and what stands below it because it is of other pictures."""

import json

import pytest

from thaw.cli.output import print_json, print_metrics

SCORE = {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}, "majority": 0.5, "split": "test"}


def share(value, low, high):
    return {"value": value, "low": low, "high": high}


def shown(capsys, **retention):
    found = {
        "measured": "accuracy of the original head on 99 images of the source task",
        "score": "accuracy",
        "before": share(0.8, 0.7, 0.9),
        "after": share(0.6, 0.5, 0.7),
        "forgotten": share(0.25, 0.2, 0.3),
    }
    print_metrics(SCORE | {"retention": found | retention}, False)
    table, _, below = capsys.readouterr().out.partition("most frequent class")
    return table, below.splitlines()[1:]


def test_the_old_score_stands_below_the_table_and_says_what_it_is_of(capsys):
    table, below = shown(capsys)
    assert "on test" in table
    assert below == [
        "Forgotten: 25.0% (20.0% to 30.0%) of the source score, from 80.0% to 60.0%: the accuracy of the original head "
        "on 99 images of the source task."
    ]


def test_what_is_no_score_of_an_old_task_is_not_called_one(capsys):
    what = "share of 60 validation pictures of the new task on which the original head says the same as before"
    _, below = shown(
        capsys, score="agreement", before=share(1.0, 1.0, 1.0), after=share(0.58, 0.5, 0.66), measured=what
    )
    assert below == [f"Agreement: 58.0% (50.0% to 66.0%): the {what}."]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 0.999, 0.98, 0.714], "stage3 0.98, stage4 0.71"),  # what moved
        ([1.0, 1.0], "stage2 1.00"),  # nothing did
        ([1.0, None, 0.5], "stage3 0.50"),  # one that does not vary
        ([i / 20 for i in range(12)], "stage9 0.40, stage10 0.45, stage11 0.50, stage12 0.55"),
    ],
)
def test_how_alike_the_stages_still_see_them(capsys, values, expected):
    _, below = shown(capsys, similarity={f"stage{i + 1}": {"value": value} for i, value in enumerate(values)})
    assert below[1:] == [f"Similarity (linear CKA): {expected}"]
    assert len(below[1]) <= 80


def test_without_a_backbone_that_knew_something_there_is_the_table_alone(capsys):
    print_metrics(SCORE, False)
    assert capsys.readouterr().out.splitlines()[-1].startswith("  most frequent class")


def test_json_has_no_nan(capsys):
    print_json({"score": float("nan"), "shape": (1, 2)})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"score": None, "shape": [1, 2]}
