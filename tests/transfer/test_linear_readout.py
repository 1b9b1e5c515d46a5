"""The solved readout against scikit-learn's solvers on the same features, and no fold tells on itself."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.svm import LinearSVC

from thaw.transfer import linear_readout
from thaw.transfer.calibration import TEMPERATURES
from thaw.transfer.linear_readout import (
    STRENGTHS,
    CrossValidation,
    Standardization,
    cross_validate,
    fit_readout,
    prefer_narrow,
)


def blobs(n=150, d=400, classes=3, distance=1.0, seed=0):
    """Classes around random centers, in features of different units; some of them heavy-tailed."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, d)) + distance * rng.normal(size=(classes, d))[y] / np.sqrt(d) * 6
    x[:, ::7] **= 3
    return (x * rng.uniform(0.01, 100, d) + rng.normal(size=d)).astype(np.float32), y


def softmax(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("n", "d"), [(200, 30), (120, 500)])
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_log_loss_equals_scikit_learn(n, d, strength, clip):
    x, y = blobs(n + 100, d)
    weight = np.random.default_rng(1).uniform(0.2, 3, n)
    found = fit_readout(x[:n], y[:n], classes=3, strength=strength, sample_weight=weight, clip=clip)
    z = found.standardization(x, clip)
    theirs = LogisticRegression(C=strength / d, tol=1e-10, max_iter=10_000)
    theirs.fit(z[:n].astype(np.float64), y[:n], sample_weight=weight / weight.mean())
    for rows in (slice(n), slice(n, None)):
        expected = log_loss(y[rows], theirs.predict_proba(z[rows].astype(np.float64)))
        assert log_loss(y[rows], softmax(found.logits(x[rows]))) == pytest.approx(expected, abs=1e-4)
    if not clip:
        kernel, bias = found.folded()
        assert x @ kernel + bias == pytest.approx(found.logits(x), abs=1e-3)


def test_two_classes_equal_binary_logistic_regression():
    x, y = blobs(120, 20, classes=2)
    found = fit_readout(x, y, classes=2, strength=2.0)
    z = found.standardization(x).astype(np.float64)
    # Two kernels share the penalty of one, so that it counts half.
    theirs = LogisticRegression(C=2 * 2.0 / 20, tol=1e-10, max_iter=10_000).fit(z, y)
    assert softmax(found.logits(x)) == pytest.approx(theirs.predict_proba(z), abs=1e-3)


@pytest.mark.parametrize(("n", "d"), [(150, 20), (80, 300)])
def test_svm_equals_scikit_learn(n, d):
    x, y = blobs(n, d)
    found = fit_readout(x, y, classes=3, solver="svm", strength=1.0)
    z = found.standardization(x).astype(np.float64)
    # A large scale all but frees the intercept of its penalty.
    theirs = LinearSVC(C=1.0 / d, dual=False, tol=1e-8, intercept_scaling=1000, max_iter=100_000).fit(z, y)
    assert found.logits(x) == pytest.approx(theirs.decision_function(z), abs=0.01)


@pytest.mark.parametrize(("n", "d"), [(100, 20), (60, 300)])
def test_ridge_equals_scikit_learn(n, d):
    x, _ = blobs(n, d)
    rng = np.random.default_rng(0)
    y, weight = rng.normal(size=(n, 2)) + x[:, :1] / x[:, 0].std(), rng.uniform(0.5, 2, n)
    found = fit_readout(x, y, solver="ridge", strength=0.5, sample_weight=weight)
    z = found.standardization(x).astype(np.float64)
    theirs = Ridge(alpha=d / 0.5).fit(z, y, sample_weight=weight / weight.mean())
    assert found.logits(x) == pytest.approx(theirs.predict(z), abs=1e-4)
    result = cross_validate(x, y, solver="ridge")
    assert result.temperature == 1
    assert result.losses == pytest.approx(((result.logits - y) ** 2).mean(axis=1))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("n", "d"), [(150, 12), (90, 200)])
def test_folds_by_hand(n, d, grouped):
    from sklearn.model_selection import StratifiedGroupKFold

    x, y = blobs(n, d, distance=0.3)
    groups = np.arange(n) // 6 * 3 + y if grouped else None
    result = cross_validate(x, y, classes=3, groups=groups, seed=5)
    if grouped:
        splits = StratifiedGroupKFold(5, shuffle=True, random_state=5).split(x, y, groups)
        fold = np.empty(n, int)
        for number, (_, held_out) in enumerate(splits):
            fold[held_out] = number
    else:
        fold = linear_readout.stratified_folds(y, 5, 5)
    logits = np.empty((n, 3))
    for number in range(5):
        train = fold != number
        scale = Standardization.of(x[train])
        model = LogisticRegression(C=result.strength / d, tol=1e-10, max_iter=10_000)
        model.fit(scale(x[train]).astype(np.float64), y[train])
        logits[~train] = model.decision_function(scale(x[~train]).astype(np.float64))
    assert softmax(result.logits) == pytest.approx(softmax(logits), abs=2e-3)
    calibrated = softmax(logits / result.temperature)
    assert result.log_loss == pytest.approx(log_loss(y, calibrated), abs=1e-4)
    assert result.losses.mean() == pytest.approx(result.log_loss, abs=1e-6)
    assert result.log_losses[result.strength] == min(result.log_losses.values())
    assert tuple(result.log_losses) == STRENGTHS[: len(result.log_losses)]


def test_temperature_equals_a_grid_search():
    x, y = blobs(150, 300, distance=0.3)
    weight = np.random.default_rng(0).uniform(0.1, 2, 150)
    result = cross_validate(x, y, classes=3, solver="svm", sample_weight=weight)
    grid = np.exp(np.linspace(-4, 4, 2001))
    targets = np.eye(3)[y] * (1 - 1 / 152) + 1 / 152 / 3  # with the doubt of Platt (1999)
    losses = [-np.average((targets * np.log(softmax(result.logits / t))).sum(1), weights=weight) for t in grid]
    assert result.temperature == pytest.approx(grid[np.argmin(losses)], rel=0.005)
    assert result.log_losses[result.strength] == pytest.approx(min(losses), abs=1e-6)
    plain = fit_readout(x, y, classes=3, solver="svm", strength=result.strength, sample_weight=weight)
    found = fit_readout(x, y, classes=3, solver="svm", cross_validation=result, sample_weight=weight)
    assert found.logits(x) * result.temperature == pytest.approx(plain.logits(x), abs=1e-4)


def test_copies_of_the_group_do_not_help():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    y = rng.integers(0, 2, 40)[groups]
    x = 3 * np.eye(40)[groups] @ rng.normal(size=(40, 60)) + rng.normal(size=(200, 60))
    assert cross_validate(x, y, classes=2).log_loss < 0.1
    assert cross_validate(x, y, classes=2, groups=groups).log_loss > 0.6


@pytest.mark.parametrize("solver", ["lbfgs", "svm", "ridge"])
def test_projection_agrees_with_the_exact_solution(solver):
    rng = np.random.default_rng(0)
    x, y = blobs(1000, 1500, classes=4, distance=0.6)
    x = (x[:, :200] @ rng.normal(size=(200, 1500)) / 10 + x).astype(np.float32)
    train, test = slice(600), slice(600, None)
    targets = np.eye(4)[y] if solver == "ridge" else y
    given = {"classes": 4, "solver": solver, "strength": 1.0}
    exact = fit_readout(x[train], targets[train], **given).logits(x[test])
    given["max_exact_rows"] = 512
    projected = fit_readout(x[train], targets[train], **given).logits(x[test])
    again = fit_readout(x[train], targets[train], **given).logits(x[test])
    assert (projected == again).all()
    assert (projected != exact).any()
    accuracy = [(z.argmax(axis=1) == y[test]).mean() for z in (exact, projected)]
    assert accuracy[0] > 0.4
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.004)


def test_a_memory_map_gives_the_same(tmp_path):
    x, y = blobs(60, 100)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    a, b = fit_readout(x, y, classes=3), fit_readout(mapped, y, classes=3)
    assert (a.kernel == b.kernel).all()
    assert (a.logits(x) == b.logits(mapped)).all()


def test_standardization_by_hand():
    x, _ = blobs(50, 8)
    weight = np.arange(50.0)
    scale = Standardization.of(x, weight)
    mean = np.average(x.astype(np.float64), axis=0, weights=weight)
    variance = np.average((x - mean) ** 2, axis=0, weights=weight)
    assert scale.mean == pytest.approx(mean, rel=1e-5)
    assert scale.variance == pytest.approx(variance, rel=1e-5)
    outlier = x[:1] + 100 * np.sqrt(variance)
    assert scale(outlier).tolist() == [[5.0] * 8]
    assert (scale(outlier, clip=False) > 50).all()
    assert scale(x).dtype == np.float32


def test_constant_features_and_duplicates_change_nothing():
    x, y = blobs(60, 100)
    rng = np.random.default_rng(0)
    still = np.concatenate([x, (7 + 1e-6 * rng.normal(size=(60, 100))).astype(np.float32)], axis=1)
    plain = fit_readout(x, y, classes=3, strength=1.0)
    found = fit_readout(still, y, classes=3, strength=2.0)  # the same C
    assert found.logits(still) == pytest.approx(plain.logits(x), abs=1e-3)
    assert np.abs(found.standardization(still + 1)[:, 100:]).max() < 1e-15
    twice = fit_readout(np.concatenate([x, x]), np.concatenate([y, y]), classes=3, strength=0.5)
    # Two copies weigh as much as twice the strength, and the Gram matrix is singular.
    assert twice.logits(x) == pytest.approx(plain.logits(x), abs=1e-3)
    only = fit_readout(np.ones((6, 2)), np.array([0, 0, 0, 0, 1, 1]), classes=2, strength=1.0)
    assert softmax(only.logits(np.ones((1, 2))))[0] == pytest.approx([4 / 6, 2 / 6], abs=1e-3)


def test_a_class_without_examples_has_a_finite_low_bias():
    x, y = blobs(60, 100, classes=2)
    found = fit_readout(x, 2 * y, classes=3)
    assert found.cross_validation.folds == 5
    assert "1 of 3 classes have no example" in found.notes[0]
    assert not found.kernel[:, 1].any()
    found = fit_readout(x, 2 * y, classes=3, strength=1.0)
    p = softmax(found.logits(x))
    assert np.exp(np.log(p[:, 1]).mean()) == pytest.approx(0.5 / 60, rel=0.02)
    assert (p.argmax(axis=1) == 2 * y).mean() > 0.9


def test_few_examples_of_a_class():
    x, y = blobs(30, 20, classes=2)
    y[:] = 0
    y[:3] = 1
    result = cross_validate(x, y, classes=2)
    assert result.folds == 3
    assert "3 folds in place of 5" in result.notes[0]
    found = fit_readout(x, y, classes=2, groups=np.where(y == 1, 0, np.arange(30)))
    assert (found.cross_validation.folds, found.temperature, found.strength) == (0, 1, linear_readout.DEFAULT_STRENGTH)
    assert "one group only" in found.notes[0]


def test_prefer_narrow_uses_paired_losses_of_groups():
    def candidate(losses, groups=None):
        groups = np.arange(len(losses)) if groups is None else groups
        return CrossValidation(losses.mean(), 0.0, losses, None, 1.0, 1.0, 5, {}, groups, np.ones(len(losses)))

    rng = np.random.default_rng(0)
    common = 10 * rng.random(400)
    better = rng.normal(0.2, 1, 400)
    assert prefer_narrow([candidate(common), candidate(common - better)]) == 1  # a difference of four standard errors
    assert prefer_narrow([candidate(common), candidate(common - better * np.sign(rng.normal(size=400)))]) == 0
    # As views of 20 examples the same difference is one of chance more often.
    groups, difference = np.repeat(np.arange(20), 20), np.repeat(rng.normal(size=20), 20)
    difference += 0.15 - difference.mean()
    assert prefer_narrow([candidate(common), candidate(common - difference)]) == 1
    assert prefer_narrow([candidate(common, groups), candidate(common - difference, groups)]) == 0
    with pytest.raises(ValueError, match="different rows"):
        prefer_narrow([candidate(common), candidate(common, groups)])


def test_same_seed_same_result_and_progress_per_fold():
    x, y = blobs(60, 100)
    calls = []
    a = fit_readout(x, y, classes=3, seed=1, progress=lambda done, total: calls.append((done, total)))
    b, c = fit_readout(x, y, classes=3, seed=1), fit_readout(x, y, classes=3, seed=2)
    assert (a.kernel == b.kernel).all()
    assert (a.cross_validation.logits == b.cross_validation.logits).all()
    assert (a.cross_validation.logits != c.cross_validation.logits).any()
    assert calls == [(i, 5) for i in range(1, 6)]


def test_invalid_input_is_named():
    x, y = blobs(30, 5)
    bad = x.copy()
    bad[17, 2] = np.nan
    for features in (bad, np.where(np.isnan(bad), np.inf, bad)):
        with pytest.raises(ValueError, match="row 17; expected finite"):
            fit_readout(features, y, classes=3)
    for given, words in (
        ({"y": y[:-1]}, "expected 30 class numbers"),
        ({"y": y / 2}, "expected 30 class numbers"),
        ({"classes": 2}, "below 2"),
        ({"solver": "adam"}, "lbfgs, svm, ridge"),
        ({"strength": 0}, "above 0"),
        ({"sample_weight": -np.ones(30)}, "from 0"),
        ({"groups": np.arange(3)}, "groups has shape"),
        ({"features": x[0]}, "examples, features"),
        ({"solver": "ridge", "y": np.full(30, np.nan)}, "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            fit_readout(**{"features": x, "y": y, "classes": 3, **given})
    with pytest.raises(ValueError, match="clip=False"):
        fit_readout(x, y, classes=3, strength=1.0).folded()


def test_where_all_rows_are_right_the_penalty_is_not_the_weakest():
    """The plain log loss is the lower, the surer the predictions are; the doubt of Platt (1999) ends that."""
    x, y = blobs(90, 40, distance=30.0)
    result = cross_validate(x, y, classes=3)
    assert (result.logits.argmax(axis=1) == y).all()
    assert result.strength < max(linear_readout.STRENGTHS)
    assert result.temperature > min(TEMPERATURES) * 1.01
