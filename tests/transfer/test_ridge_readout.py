"""The ridge readout against scikit-learn's, penalty by penalty, and no fold tells on itself."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from thaw.features.ridge import RIDGE_PENALTIES
from thaw.transfer.readouts import ridge_readout


@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 80)])
def test_ridge_readout_equals_scikit_learn(n, d):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + 5
    y = x @ rng.normal(size=(d, 2)) / 10 + rng.normal(size=(n, 2))
    fold = np.arange(n) % 3
    found = ridge_readout(x, y, fold)
    for f in range(3):
        scaler = StandardScaler().fit(x[fold != f])
        z = scaler.transform(x[fold != f])
        values = np.linalg.eigvalsh(z @ z.T)
        mean = values[values > values[-1] * 1e-10].mean()
        theirs = RidgeCV(RIDGE_PENALTIES * mean).fit(z, y[fold != f])  # by leaving one out
        assert found[fold == f] == pytest.approx(theirs.predict(scaler.transform(x[fold == f])), abs=1e-6)


def test_ridge_readout_ignores_labels_of_the_predicted_fold():
    rng = np.random.default_rng(0)
    x, y, fold = rng.normal(size=(40, 5)), rng.normal(size=(40, 1)), np.arange(40) % 4
    other = np.where((fold == 2)[:, None], 1e6, y)
    before, after = ridge_readout(x, y, fold), ridge_readout(x, other, fold)
    assert (before[fold == 2] == after[fold == 2]).all()
    assert (before[fold != 2] != after[fold != 2]).all()


def test_ridge_readout_does_not_fit_noise():
    """More features than examples and nothing in them: what is told stays near the mean."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 200)), rng.normal(size=(60, 1))
    told = ridge_readout(x, y, np.arange(60) % 5)
    assert ((told - y) ** 2).mean() < 1.3 * y.var()


def test_ridge_readout_ignores_constant_features():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 3)).astype("float32")
    y, fold = x[:, :1].astype(float), np.arange(30) % 3
    still = np.concatenate([np.full((30, 2), 0.1, "float32"), x], axis=1)
    assert ridge_readout(still, y, fold) == pytest.approx(ridge_readout(x, y, fold), abs=1e-9)
    only = ridge_readout(still[:, :2], y, fold)
    assert only[fold == 0] == pytest.approx(np.full((10, 1), y[fold != 0].mean()), abs=1e-12)


def test_ridge_readout_names_what_is_invalid():
    with pytest.raises(ValueError, match="expected"):
        ridge_readout(np.ones((3, 2)), np.ones(3), np.arange(3))
    with pytest.raises(ValueError, match="one fold"):
        ridge_readout(np.ones((3, 2)), np.ones((3, 1)), np.zeros(3))
