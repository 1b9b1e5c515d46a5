"""Metrics of numbers, compared with scikit-learn and SciPy; conformal intervals cover what they promise."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, r2_score, root_mean_squared_error

from thaw.metrics import regression_metrics, residual_spread


def some(n=80, k=1, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(10, 3, (n, k))
    return y, y + rng.normal(0, 1, (n, k))


def test_the_values_are_those_of_scikit_learn():
    y, p = some()
    found = regression_metrics(y, p, targets=["price"])
    expected = {
        "rmse": root_mean_squared_error(y, p),
        "mae": mean_absolute_error(y, p),
        "r2": r2_score(y, p),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
        assert found[name]["low"] < value < found[name]["high"]
    assert found["baseline"] == pytest.approx(root_mean_squared_error(y, np.full_like(y, y.mean())))
    assert found["targets"][0]["target"] == "price"
    assert found["targets"][0]["rmse"] == found["rmse"]


def test_several_targets_share_the_mean_of_their_r2():
    y, p = some(k=2)
    y[:, 1] *= 1000
    found = regression_metrics(y, p, targets=["a", "b"])
    assert found["r2"]["value"] == pytest.approx(r2_score(y, p, multioutput="uniform_average"))
    assert "rmse" not in found  # in which unit?
    rmse = [part["rmse"]["value"] for part in found["targets"]]
    assert rmse == pytest.approx([root_mean_squared_error(y[:, c], p[:, c]) for c in (0, 1)])


def test_the_interval_is_that_of_a_bootstrap_one_sample_at_a_time():
    y, p = some()
    rows = np.random.default_rng(7).integers(0, len(y), (1000, len(y)))
    scores = [r2_score(y[r], p[r]) for r in rows]
    found = regression_metrics(y, p, seed=7)["r2"]
    np.testing.assert_allclose([found["low"], found["high"]], np.quantile(scores, (0.025, 0.975)))


def test_the_likelihood_is_that_of_a_normal_distribution_of_other_residuals():
    y, p = some()
    spread = residual_spread(*some(seed=1))
    found = regression_metrics(y, p, spread=spread)
    expected = norm.logpdf(y, p, spread["deviation"][0]).mean()
    assert found["log_likelihood"]["value"] == pytest.approx(expected)
    inside = np.abs(y - p) <= spread["half_width"][0]
    assert found["coverage"]["value"] == pytest.approx(inside.mean())
    assert found["interval"] == spread


def test_conformal_intervals_cover_what_they_promise():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        residuals = rng.standard_t(2, 20)  # heavy tails: no assumption of a normal distribution
        width = residual_spread(residuals[:19], np.zeros(19))["half_width"][0]
        covered.append(abs(residuals[19]) <= width)
    # 18 of 19 ranks and the new one: exactly 18 / 20.
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (19, 18), (99, 90), (100, 91)])
def test_the_rank_of_the_half_width(n, rank):
    assert residual_spread(np.arange(1.0, n + 1), np.zeros(n))["half_width"] == [rank]


def test_too_few_examples_for_an_interval():
    spread = residual_spread(np.ones(8), np.zeros(8))
    assert spread["half_width"] == [None]
    found = regression_metrics(*some(), spread=spread)
    assert found["coverage"]["reason"] == "too few held-out examples for an interval"
    assert found["log_likelihood"]["value"] is not None


def test_ordered_classes_report_the_quadratic_weighted_kappa():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 4, 100) / 3
    p = np.clip(y + rng.normal(0, 0.25, 100), -0.2, 1.2)
    levels = np.array([0, 1 / 3, 2 / 3, 1])
    nearest = np.abs(p[:, None] - levels).argmin(axis=1)
    expected = cohen_kappa_score(np.rint(3 * y).astype(int), nearest, weights="quadratic")
    found = regression_metrics(y, p, levels=levels)["quadratic_weighted_kappa"]
    assert found["value"] == pytest.approx(expected)
    assert found["low"] < expected < found["high"]


def test_a_constant_target_has_no_r2():
    found = regression_metrics(np.ones(5), np.ones(5), targets=["a"])
    assert found["r2"]["value"] is None
    assert found["notes"] == ["All examples have the same 'a'; R² is not defined."]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression_metrics([1.0, 2.0], [1.0]), "expected the same"),
        (lambda: regression_metrics([np.nan], [1.0]), "NaN or infinity"),
        (lambda: regression_metrics([1.0], [1.0], targets=["a", "b"]), "2 names and 1 targets"),
        (lambda: residual_spread([1.0], [1.0], level=1), "between 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
