"""A table and a sentence from scores that were made up."""

from types import SimpleNamespace

import numpy as np
import pytest

from thaw.advice.comparison import compared

WAYS = [
    SimpleNamespace(name="frozen features", subject="frozen features", verb="are"),
    SimpleNamespace(name="top 2 stages", subject="fine-tuning the top two stages", verb="is"),
    SimpleNamespace(name="whole network", subject="fine-tuning the whole network", verb="is"),
]


def runs(*values, seconds=60.0):
    """Of each way a list of seeds, each a vector of scores."""
    return {
        way.name: [{"values": np.asarray(v, float), "epochs": 7, "seconds": seconds} for v in of_way]
        for way, of_way in zip(WAYS, values)
    }


def right(share, n=400, shift=0):
    """This share of right answers, always of the first examples: as paired as can be."""
    return np.roll(np.arange(n) < round(share * n), shift).astype(float)


def test_compared_pairs_the_examples():
    found = compared(WAYS, runs([right(0.80)], [right(0.84)], [right(0.79)]), 1.0, "accuracy", "max")
    best, second, third = found.rows
    assert [row.name for row in found.rows] == ["top 2 stages", "frozen features", "whole network"]
    assert (best.score.value, second.score.value) == (0.84, 0.80)
    assert best.score.low < second.score.high  # the two intervals overlap,
    assert second.difference.high < 0  # and yet it is sure which is better: the same 16 examples of 400
    assert second.difference.value == pytest.approx(-0.04)
    expected = 1.96 * np.sqrt(0.04 * 0.96 / 400)
    assert second.difference.high - second.difference.low == pytest.approx(2 * expected, rel=0.1)
    assert best.difference is None
    assert third.difference.value == pytest.approx(-0.05)
    assert found.sentence.startswith("Fine-tuning the top two stages is best: +4.0 points (2.")
    assert found.sentence.endswith("over frozen features. It rests on one seed.")


def test_compared_names_what_is_not_significant():
    a, b = right(0.9), right(0.9)
    a[:8], b[20:26] = 0, 0  # 6 examples of 400 that only the one has right, 8 that only the other has
    found = compared(WAYS[:2], runs([a], [b]), 1.0, "accuracy", "max")
    assert found.rows[0].name == "top 2 stages"
    assert (
        "Fine-tuning the top two stages is ahead, but the difference from frozen features is not significant"
        in found.sentence
    )
    assert "The cheapest of them: frozen features." in found.sentence
    same = compared(WAYS[:2], runs([a], [a]), 1.0, "accuracy", "max")
    assert same.rows[0].name == "frozen features"  # of equals the cheapest
    said = (
        "Frozen features are as good as any, and the difference from fine-tuning the top two stages is not "
        "significant: +0.0 points"
    )
    assert same.sentence.startswith(said)


def test_compared_lists_three_names_without_minus_zero():
    four = [*WAYS, SimpleNamespace(name="from scratch", subject="training from scratch", verb="is")]
    a, b = right(0.9), right(0.9)
    a[0] = 0
    values = {way.name: [{"values": v, "epochs": 1, "seconds": 60.0}] for way, v in zip(four, (a, b, a, a))}
    found = compared(four, values, 1.0, "accuracy", "max")
    assert (
        "from frozen features, fine-tuning the whole network and training from scratch is not significant: +0."
        in found.sentence
    )
    assert "-0.000" not in str(found)
    assert "(0.0 to " in found.sentence


def test_compared_resamples_seeds():
    """Every example alike: all doubt comes from the seeds."""
    ones, zeros = np.ones(50), np.zeros(50)
    found = compared(WAYS[:2], runs([zeros, ones], [ones, ones]), 1.0, "accuracy", "max")
    frozen = next(row for row in found.rows if row.name == "frozen features")
    assert tuple(frozen.score) == (0.5, 0.0, 1.0)
    assert (frozen.difference.low, frozen.difference.high) == (-1.0, 0.0)
    assert frozen.scores == (0.0, 1.0)
    best = found.rows[0]
    assert best.score.low == pytest.approx(0.025 ** (1 / 50))  # all right: exact, by hand
    assert "one seed" not in found.sentence


def test_compared_minimizes_an_error():
    rng = np.random.default_rng(0)
    errors = rng.uniform(1, 2, 200)
    found = compared(WAYS[:2], runs([errors], [errors - 0.5]), 1.0, "mean_absolute_error", "min")
    assert found.rows[0].name == "top 2 stages"
    assert found.rows[1].difference.value == pytest.approx(0.5)
    assert found.sentence.startswith(
        "Fine-tuning the top two stages is best: -0.5 (-0.5 to -0.5) over frozen features."
    )


def test_compared_prints_80_columns_and_goes_into_json():
    import json

    found = compared(WAYS, runs([right(0.8)], [right(0.84)], [right(0.79)]), 5.0, "accuracy", "max", ["A note " * 20])
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("top 2 stages")
    assert "-0.040 [-0.0" in lines[2]
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["minutes"] == [1.0]
