"""LogME against the evidence itself, written as one normal distribution over all labels, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from thaw.transfer.transferability import logme


def largest_evidence(f, y):
    """The same without singular values: labels are normal with covariance ``1 / beta + f f' / alpha``."""
    n = len(y)

    def minus(logs):
        covariance = np.eye(n) * np.exp(-logs[1]) + f @ f.T * np.exp(-logs[0])
        _, log_determinant = np.linalg.slogdet(covariance)
        return (log_determinant + y @ np.linalg.solve(covariance, y) + n * math.log(2 * math.pi)) / 2

    starts = [(a, b) for a in (-4.0, 0.0, 4.0) for b in (0.0, 4.0)]
    found = [minimize(minus, s, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11}) for s in starts]
    return -min(f.fun for f in found)


def published(f, y):
    """The fixed-point iteration of You et al. (2021), carried on until it stands; fewer features than examples."""
    (n, d), scores = f.shape, []
    values, vectors = np.linalg.eigh(f.T @ f)
    for c in np.unique(y):
        target, alpha, beta = (y == c) * 1.0, 1.0, 1.0
        for _ in range(5000):
            m = vectors @ ((vectors.T @ (f.T @ target)) * beta / (alpha + beta * values))
            gamma = (beta * values / (alpha + beta * values)).sum()
            residual = ((f @ m - target) ** 2).sum()
            alpha, beta = gamma / (m @ m), (n - gamma) / residual
        m = vectors @ ((vectors.T @ (f.T @ target)) * beta / (alpha + beta * values))
        scores.append(
            n / 2 * math.log(beta)
            + d / 2 * math.log(alpha)
            - n / 2 * math.log(2 * math.pi)
            - beta / 2 * ((f @ m - target) ** 2).sum()
            - alpha / 2 * (m @ m)
            - np.log(alpha + beta * values).sum() / 2
        )
    return np.mean(scores) / n


def data(n, d, classes, seed, shift=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.normal(size=(n, d)) + shift * rng.normal(size=(classes, d))[y], y


@pytest.mark.parametrize(("n", "d"), [(30, 4), (25, 25), (20, 60)])
def test_equal_to_the_largest_evidence(n, d):
    f, y = data(n, d, 3, seed=n)
    expected = np.mean([largest_evidence(f, (y == c) * 1.0) for c in range(3)]) / n
    assert logme(f, y) == pytest.approx(expected, abs=1e-6)


def test_equal_to_the_published_iteration():
    for seed in range(3):
        f, y = data(60, 8, 4, seed)
        assert logme(f, y) == pytest.approx(published(f, y), abs=1e-6)


def test_by_hand():
    """One feature that is always 1: the labels' mean and what is left are two independent normal parts.

    Three of class 1 and one of class 0. Class 1: the mean's part is 3²/4 = 2.25, what is left 0.75 over three, 0.25
    each. Class 0: the mean's part is 0.25 too, so no larger variance in it pays, and all four have 0.25.
    """
    one = -(math.log(2.25) + 3 * math.log(0.25) + 4 + 4 * math.log(2 * math.pi)) / 2
    zero = -(4 * math.log(0.25) + 4 + 4 * math.log(2 * math.pi)) / 2
    assert logme(np.ones((4, 1)), np.array([1, 1, 1, 0])) == pytest.approx((one + zero) / 2 / 4, abs=1e-9)


def test_features_that_say_nothing_leave_the_labels_variance():
    """Orthogonal to every class: the weights are 0, and the evidence is that of noise alone."""
    f, y = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0, 0, 1, 1])
    expected = -(math.log(0.5) + 1 + math.log(2 * math.pi)) / 2
    assert logme(f, y) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(24, 5), (12, 20)]), st.floats(0.01, 100))
def test_no_rotation_scale_order_or_relabelling_matters(seed, shape, scale):
    f, y = data(*shape, 3, seed)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(shape[1],) * 2))[0]
    order = rng.permutation(len(y))
    changed = logme(scale * (f @ rotation)[order], np.array([7, -2, 40])[y][order])
    assert changed == pytest.approx(logme(f, y), abs=1e-9)


def test_regression_is_the_evidence_of_the_numbers():
    rng = np.random.default_rng(0)
    f = rng.normal(size=(30, 4))
    y = f @ rng.normal(size=(4, 2)) + 0.3 * rng.normal(size=(30, 2))
    expected = np.mean([largest_evidence(f, y[:, i]) for i in range(2)]) / 30
    assert logme(f, y, regression=True) == pytest.approx(expected, abs=1e-6)
    assert logme(f, y[:, 0], regression=True) == pytest.approx(largest_evidence(f, y[:, 0]) / 30, abs=1e-6)


def test_float32_features_and_copies_of_features_do_no_harm():
    f, y = data(40, 6, 3, seed=1)
    assert logme(f.astype("float32"), y) == pytest.approx(logme(f, y), abs=1e-6)
    twice = np.concatenate([f, f], axis=1)
    assert logme(twice, y) == pytest.approx(logme(f, y), abs=1e-9)


def test_an_exact_readout_is_infinite():
    assert logme(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1])) == math.inf


@pytest.mark.parametrize(
    ("features", "y", "options", "message"),
    [
        (np.ones(4), np.arange(4), {}, "features has shape"),
        (np.ones((4, 2)), np.arange(3), {}, "for 4 examples"),
        (np.ones((4, 2)), np.ones(4), {}, "expected class numbers"),
        (np.ones((4, 2)), np.zeros(4, int), {}, "at least two classes"),
        (np.full((4, 2), np.nan), np.arange(4), {}, "NaN"),
        (np.zeros((4, 2)), np.arange(4), {}, "All features are 0"),
        (np.ones((4, 2)), np.zeros(4), {"regression": True}, "all 0"),
    ],
)
def test_what_does_not_fit_is_said(features, y, options, message):
    with pytest.raises(ValueError, match=message):
        logme(features, y, **options)
