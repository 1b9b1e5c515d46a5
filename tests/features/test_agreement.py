"""Agreement of two sets of answers, by hand."""

import numpy as np
import pytest

from thaw.features.similarity import agreement

RNG = np.random.default_rng(0)


def test_by_hand():
    before = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [1.0, 0.0]])
    after = np.array([[0.25, 0.75], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    found = agreement(before, after)
    assert found["examples"] == 4
    assert found["same"]["value"] == 0.75
    # 0.5 ln 2 + 0.5 ln(2/3); 0; 0; ln 2 (and 0 ln 0 is 0).
    assert found["divergence"]["value"] == pytest.approx((0.5 * np.log(4 / 3) + np.log(2)) / 4, abs=1e-6)
    # Clopper and Pearson, 3 of 4: roots of the binomial tails.
    low, high = found["same"]["low"], found["same"]["high"]
    assert 4 * low**3 * (1 - low) + low**4 == pytest.approx(0.025)
    assert 1 - high**4 == pytest.approx(0.025)


def test_against_scipy():
    from scipy.stats import entropy

    p, q = RNG.dirichlet(np.ones(5), 50), RNG.dirichlet(np.ones(5), 50)
    found = agreement(p, q)
    assert found["divergence"]["value"] == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-6)
    assert found["divergence"]["low"] < found["divergence"]["value"] < found["divergence"]["high"]
    assert found == agreement(p, q)


def test_equal_to_the_bit_leaves_no_doubt_but_nearly_equal_does():
    p = RNG.dirichlet(np.ones(3), 40)
    assert agreement(p, p)["same"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    near = agreement(p, (p + 1e-6) / (1 + 3e-6))["same"]
    assert (near["value"], near["high"]) == (1.0, 1.0)
    assert near["low"] == pytest.approx(0.025 ** (1 / 40))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (np.ones((3, 1)), np.ones((2, 1)), r"\(3, 1\) and after \(2, 1\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "expected"),
        (np.array([[2.0, -1.0]]), np.array([[0.5, 0.5]]), "rows of before do not sum to 1"),
        (np.array([[0.5, 0.5]]), np.array([[0.5, 0.7]]), "rows of after do not sum to 1"),
    ],
)
def test_what_does_not_belong_together(before, after, message):
    with pytest.raises(ValueError, match=message):
        agreement(before, after)


def test_one_example_has_no_interval_of_the_mean():
    found = agreement(np.array([[0.5, 0.5]]), np.array([[0.6, 0.4]]))
    assert found["divergence"]["low"] is None
    assert "one example" in found["divergence"]["reason"]
