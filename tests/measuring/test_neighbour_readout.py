"""The nearest neighbours against scikit-learn's, and ties."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from thaw.measuring import neighbour_readout as home
from thaw.measuring.neighbour_readout import neighbour_readout


def test_equal_to_scikit_learn(monkeypatch):
    monkeypatch.setattr(home, "_ROWS", 7)  # several blocks in a fold
    rng = np.random.default_rng(0)
    y = np.arange(90) % 2  # two classes and an odd number of neighbours: no ties
    x = (rng.normal(size=(90, 6)) + np.array([[-1, 1, -1, 1, 0, 0], [1, -1, 1, -1, 0, 0]])[y]) * rng.uniform(0.1, 10, 6)
    fold = np.arange(90) // 2 % 3
    found = neighbour_readout(x, y, fold, neighbours=5)
    for f in range(3):
        scaler = StandardScaler().fit(x[fold != f])
        theirs = KNeighborsClassifier(5, metric="cosine").fit(scaler.transform(x[fold != f]), y[fold != f])
        assert (found[fold == f] == theirs.predict(scaler.transform(x[fold == f]))).all()
    assert 0.7 < (found == y).mean() < 1


def test_between_equally_frequent_classes_the_nearer_one_wins():
    # Fold 1 is asked: its one example looks along (1, 0). Class 1 is nearest, and each class has one vote.
    x = np.array([[3.0, 0.1], [3.0, 2.0], [-3.0, -1.1], [-3.0, -1.0], [1.0, 0.0]])
    y, fold = np.array([1, 0, 2, 2, 0]), np.array([0, 0, 0, 0, 1])
    assert neighbour_readout(x, y, fold, neighbours=2)[4] == 1
    swapped = np.array([0, 1, 2, 2, 0])
    assert neighbour_readout(x, swapped, fold, neighbours=2)[4] == 0


def test_more_votes_beat_a_nearer_one():
    x = np.array([[3.0, 0.0], [3.0, 2.0], [3.0, 2.1], [-9.0, -4.1], [1.0, 0.0]])
    y, fold = np.array([1, 0, 0, 2, 1]), np.array([0, 0, 0, 0, 1])
    assert neighbour_readout(x, y, fold, neighbours=3)[4] == 0


def test_fewer_examples_than_neighbours():
    x, y = np.array([[1.0], [-1.0], [2.0]]), np.array([0, 1, 0])
    assert neighbour_readout(x, y, np.array([0, 0, 1]), neighbours=50).shape == (3,)


@pytest.mark.parametrize(
    ("y", "fold", "k", "message"),
    [
        (np.ones(3), np.arange(3), 1, "class numbers"),
        (np.arange(3), np.zeros(3), 1, "one fold"),
        (np.arange(3), np.arange(3), 0, "from 1"),
    ],
)
def test_what_does_not_fit_is_said(y, fold, k, message):
    with pytest.raises(ValueError, match=message):
        neighbour_readout(np.eye(3), y, fold, k)
