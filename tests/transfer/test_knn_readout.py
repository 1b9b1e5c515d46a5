"""The nearest neighbors against scikit-learn's, and ties."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from thaw.transfer.readouts import knn_readout


def test_knn_readout_equals_scikit_learn():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 2  # two classes and an odd number of neighbors: no ties
    x = (rng.normal(size=(90, 6)) + np.array([[-1, 1, -1, 1, 0, 0], [1, -1, 1, -1, 0, 0]])[y]) * rng.uniform(0.1, 10, 6)
    fold = np.arange(90) // 2 % 3
    found = knn_readout(x, y, fold, n_neighbors=5)
    for f in range(3):
        scaler = StandardScaler().fit(x[fold != f])
        theirs = KNeighborsClassifier(5, metric="cosine").fit(scaler.transform(x[fold != f]), y[fold != f])
        assert (found[fold == f] == theirs.predict(scaler.transform(x[fold == f]))).all()
    assert 0.7 < (found == y).mean() < 1


def test_knn_readout_breaks_ties_by_nearness():
    # Fold 1 is asked: its one example looks along (1, 0). Class 1 is nearest, and each class has one vote.
    x = np.array([[3.0, 0.1], [3.0, 2.0], [-3.0, -1.1], [-3.0, -1.0], [1.0, 0.0]])
    y, fold = np.array([1, 0, 2, 2, 0]), np.array([0, 0, 0, 0, 1])
    assert knn_readout(x, y, fold, n_neighbors=2)[4] == 1
    swapped = np.array([0, 1, 2, 2, 0])
    assert knn_readout(x, swapped, fold, n_neighbors=2)[4] == 0


def test_knn_readout_prefers_votes_to_nearness():
    x = np.array([[3.0, 0.0], [3.0, 2.0], [3.0, 2.1], [-9.0, -4.1], [1.0, 0.0]])
    y, fold = np.array([1, 0, 0, 2, 1]), np.array([0, 0, 0, 0, 1])
    assert knn_readout(x, y, fold, n_neighbors=3)[4] == 0


def test_knn_readout_fewer_examples_than_neighbors():
    x, y = np.array([[1.0], [-1.0], [2.0]]), np.array([0, 1, 0])
    assert knn_readout(x, y, np.array([0, 0, 1]), n_neighbors=50).shape == (3,)


@pytest.mark.parametrize(
    ("y", "fold", "k", "message"),
    [
        (np.ones(3), np.arange(3), 1, "class numbers"),
        (np.arange(3), np.zeros(3), 1, "one fold"),
        (np.arange(3), np.arange(3), 0, "from 1"),
    ],
)
def test_knn_readout_names_what_is_invalid(y, fold, k, message):
    with pytest.raises(ValueError, match=message):
        knn_readout(np.eye(3), y, fold, k)
