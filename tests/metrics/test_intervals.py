"""Estimates and their intervals, by hand and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from thaw.metrics.intervals import Estimate, binomial_interval, bootstrap


def test_estimate_prints_for_sentences_and_tables():
    estimate = Estimate(0.906, 0.89, 0.9201)
    assert str(estimate) == f"{estimate}" == "0.906 (0.89 to 0.92)"
    assert f"{estimate:.3f}" == "0.906 [0.890, 0.920]"
    assert f"{Estimate(0.05, -0.01, 0.11):+.2f}" == "+0.05 [-0.01, +0.11]"
    assert str(Estimate(0.5)) == f"{Estimate(0.5):.3f}" == "0.500"
    assert str(Estimate(None, reason="one example")) == "unknown: one example"


def test_estimate_to_dict_names_a_reason_only_where_a_number_is_missing():
    assert Estimate(0.5, 0.25, 1.0).to_dict() == {"value": 0.5, "low": 0.25, "high": 1.0}
    assert Estimate(0.5, reason="one example").to_dict() == {
        "value": 0.5,
        "low": None,
        "high": None,
        "reason": "one example",
    }
    assert tuple(Estimate(0.5, 0.25, 1.0)) == (0.5, 0.25, 1.0)


@pytest.mark.parametrize("count", [0, 3, 10])
def test_binomial_interval_holds_the_value(count):
    for method in ("wilson", "exact"):
        estimate = binomial_interval(count, 10, method)
        assert 0 <= estimate.low <= estimate.value == count / 10 <= estimate.high <= 1
    assert binomial_interval(10, 10, "exact").low == pytest.approx(0.025**0.1)


def test_bootstrap_draws_what_scipy_draws():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    expected = stats.bootstrap(
        (a, b),
        lambda a, b, axis: (a * b).mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=400,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    result = bootstrap(lambda a, b: (a * b).mean(axis=1), a, b, resamples=400, seed=3)
    assert result.value == pytest.approx((a * b).mean())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_bootstrap_of_several_statistics_uses_the_same_resamples():
    values = np.random.default_rng(0).normal(size=(30, 2))
    both = bootstrap(lambda v: v.mean(axis=1), values, seed=1)
    alone = [bootstrap(lambda v: v.mean(axis=1), values[:, i], seed=1) for i in range(2)]
    np.testing.assert_allclose([tuple(e) for e in both], [tuple(e) for e in alone], rtol=1e-12)
    assert bootstrap(lambda v: v.mean(axis=1), values, seed=1, block=10) == both


def test_bootstrap_computes_two_million_numbers_at_a_time():
    values, blocks = np.random.default_rng(0).normal(size=1250), []

    def statistic(drawn):
        blocks.append(len(drawn))
        return drawn.mean(axis=1)

    assert bootstrap(statistic, values) == bootstrap(statistic, values, block=2000)
    assert blocks == [1, 1600, 400, 1, 2000]  # the value itself comes first


def test_bootstrap_leaves_out_undefined_resamples():
    def ratio(a, b):
        with np.errstate(divide="ignore", invalid="ignore"):
            return a.sum(axis=1) / b.sum(axis=1)

    a, b = np.ones(3), np.array([1.0, 0.0, 0.0])  # b is nowhere in 8 of 27 resamples
    assert bootstrap(ratio, a, b).high == 3.0
    assert bootstrap(ratio, a, b, max_undefined=0.2) == Estimate(3.0)
    assert bootstrap(ratio, a, np.zeros(3)) == Estimate(None)


def test_bootstrap_of_two_axes_resamples_each():
    """Where all rows of a seed are equal, only the seeds make a difference, and the other way round."""
    of_seeds, of_rows = np.arange(4.0)[:, None].repeat(50, axis=1), np.arange(50.0)[None].repeat(4, axis=0)
    for values, along in ((of_seeds, of_seeds[:, 0]), (of_rows, of_rows[0])):
        result = bootstrap(lambda v: v.mean(axis=(1, 2)), values, axes=2)
        spread = 1.96 * along.std() / np.sqrt(len(along))
        assert result.high - result.low == pytest.approx(2 * spread, rel=0.1)
