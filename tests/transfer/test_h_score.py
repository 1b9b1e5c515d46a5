"""The H-score against its formula written with matrices, and against scikit-learn's Ledoit-Wolf estimate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from thaw.transfer.transferability import h_score


def data(n, d, classes, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(classes, d))[y] + 3, y


def class_means(f, y):
    return np.stack([f[y == c].mean(axis=0) for c in y])


def test_by_hand():
    """Spread 2 around 1, of which the means 0 and 2 of the classes are 1."""
    f, y = np.array([[-1.0], [1.0], [1.0], [3.0]]), np.array([0, 0, 1, 1])
    assert h_score(f, y) == pytest.approx(0.5, abs=1e-12)
    assert h_score(f, np.array([0, 1, 0, 1])) == pytest.approx(0.5, abs=1e-12)  # means 0 and 2 again
    assert h_score(f, np.array([0, 1, 1, 0])) == pytest.approx(0.0, abs=1e-12)  # means 1 and 1
    assert h_score(np.array([[5.0], [5.0], [9.0]]), np.array([4, 4, 2])) == pytest.approx(1.0, abs=1e-12)
    # One feature leaves nothing to shrink towards but itself.
    assert h_score(f, y, shrink=True) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (40, 39)])
def test_equal_to_the_published_formula(n, d):
    f, y = data(n, d, 4, seed=n)
    expected = np.trace(np.linalg.inv(np.cov(f, rowvar=False)) @ np.cov(class_means(f, y), rowvar=False))
    assert h_score(f, y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (200, 3), (20, 60)])
def test_the_regularised_form_is_equal_to_the_published_formula(n, d):
    f, y = data(n, d, 3, seed=n)
    fitted = LedoitWolf().fit(f)
    between = np.cov(class_means(f, y), rowvar=False, bias=True)
    expected = np.trace(np.linalg.inv(fitted.covariance_) @ ((1 - fitted.shrinkage_) * between))
    assert 0 < fitted.shrinkage_ < 1
    assert h_score(f, y, shrink=True) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_no_linear_map_that_can_be_undone_matters(seed):
    f, y = data(30, 4, 3, seed)
    rng = np.random.default_rng(seed)
    rotation, stretched = np.linalg.qr(rng.normal(size=(4, 4)))[0], np.diag([0.1, 1.0, 3.0, 10.0])
    relabelled = np.array([9, -1, 5])[y]
    assert h_score(f @ rotation @ stretched + 7, relabelled) == pytest.approx(h_score(f, y), abs=1e-8)
    assert h_score(f @ rotation + 7, relabelled, shrink=True) == pytest.approx(h_score(f, y, shrink=True), abs=1e-8)


def test_with_more_features_than_examples_only_the_regularised_form_sees_a_difference():
    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    noise = rng.normal(size=(30, 100))
    signal = noise + 2 * rng.normal(size=(3, 100))[y]
    assert h_score(noise, y) == pytest.approx(2, abs=1e-9)
    assert h_score(signal, y) == pytest.approx(2, abs=1e-9)
    assert h_score(signal, y, shrink=True) > h_score(noise, y, shrink=True) + 0.2


@pytest.mark.parametrize(
    ("features", "y", "message"),
    [
        (np.ones((4, 2)), np.arange(3), "expected"),
        (np.ones((4, 2)), np.ones(4), "class numbers"),
        (np.eye(4), np.zeros(4, int), "at least two classes"),
        (np.full((4, 2), np.inf), np.arange(4), "NaN or infinity"),
        (np.ones((4, 2)), np.arange(4), "the same for all"),
    ],
)
def test_what_does_not_fit_is_said(features, y, message):
    with pytest.raises(ValueError, match=message):
        h_score(features, y)
