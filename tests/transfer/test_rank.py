"""The order of backbones, and the published figures it leans on."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import weightedtau

from thaw.transfer.probing import rank
from thaw.transfer.transferability import logme

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 5)).astype("float32")
Y = (X[:, 0] + 0.3 * RNG.normal(size=100) > 0).astype(int)


def net(*inputs):
    """Its features are some of the inputs; its head is never looked at."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(len(inputs)), layers.Dense(7)])
    model.layers[0].set_weights([np.eye(5)[:, list(inputs)], np.zeros(len(inputs))])
    return model


def test_rank_orders_by_logme_and_shows_the_accuracy():
    names = {"nothing": (3, 4), "much": (0, 1), "some other name that is rather long": (0,), "also": (2,)}
    found = rank({name: net(*inputs) for name, inputs in names.items()}, X, Y)
    expected = {name: logme(X[:, list(inputs)], Y) for name, inputs in names.items()}
    assert [row.name for row in found.rows] == sorted(expected, key=expected.get, reverse=True)
    for row in found.rows:
        assert row.logme == pytest.approx(expected[row.name], abs=1e-6)
        assert row.score.low < row.score.value < row.score.high
        assert row.score == row.probe.rows[-1].score
    assert {row.name for row in found.rows[:2]} == {"much", "some other name that is rather long"}
    assert found.rows[0].score.value > 0.75
    lines = str(found).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80


def test_rank_orders_equal_backbones_by_name():
    models = {name: net(0, 1) for name in ("b", "c", "a")}
    first, again = rank(models, X, Y), rank(dict(reversed(models.items())), X, Y)
    assert [row.name for row in first.rows] == ["a", "b", "c"]
    assert str(first) == str(again)


def test_rank_names_the_backbone_that_fails():
    with pytest.raises(ValueError, match=r'Backbone "bare": .* all head'):
        rank({"good": net(0), "bare": keras.Sequential([keras.Input((5,)), layers.Dense(2)])}, X, Y)
    with pytest.raises(ValueError, match="no backbones"):
        rank({}, X, Y)


# From the model-selection page of thuml/Transfer-Learning-Library: the accuracy after fine-tuning and the scores
# before, for GoogLeNet, Inception v3, ResNet-50, -101, -152, DenseNet-121, -169, -201, MobileNet v2 and MNASNet; and
# the weighted Kendall's tau as printed there.
ACCURACY = {
    "CIFAR-10": [96.2, 97.5, 96.8, 97.7, 97.9, 97.2, 97.4, 97.4, 95.7, 96.8],
    "Stanford Cars": [91.0, 92.3, 91.7, 91.7, 92.0, 91.5, 91.5, 91.0, 91.0, 88.5],
    "SUN397": [62.0, 65.7, 64.7, 64.8, 66.0, 62.3, 63.0, 64.7, 60.5, 60.7],
}
PUBLISHED = [
    ("CIFAR-10", "H-score", [5.911, 6.363, 6.567, 6.901, 6.945, 6.21, 6.547, 6.706, 5.928, 6.018], 0.8),
    ("CIFAR-10", "LEEP", [-1.385, -1.259, -1.01, -0.829, -0.838, -1.035, -0.934, -0.888, -1.1, -1.066], 0.638),
    ("CIFAR-10", "LogME", [0.293, 0.349, 0.388, 0.463, 0.469, 0.302, 0.343, 0.369, 0.291, 0.304], 0.785),
    ("CIFAR-10", "NCE", [-1.139, -1.06, -1.007, -0.838, -0.851, -1.006, -0.946, -0.866, -1.089, -1.086], 0.714),
    ("Stanford Cars", "H-score", [41.47, 73.68, 72.94, 73.98, 76.17, 45.82, 63.4, 70.5, 51.12, 51.91], 0.638),
    ("Stanford Cars", "LEEP", [-4.612, -4.268, -4.366, -4.281, -4.215, -4.437, -4.286, -4.319, -4.463, -4.423], 0.703),
    ("Stanford Cars", "LogME", [1.246, 1.259, 1.253, 1.255, 1.26, 1.249, 1.252, 1.251, 1.25, 1.254], 0.654),
    ("Stanford Cars", "NCE", [-4.312, -4.11, -4.221, -4.218, -4.142, -4.271, -4.175, -4.151, -4.306, -4.338], 0.75),
    ("SUN397", "H-score", [71.35, 114.21, 110.39, 113.63, 116.51, 72.16, 95.8, 103.09, 75.9, 80.91], 0.918),
    ("SUN397", "LEEP", [-3.744, -3.372, -3.198, -3.103, -3.056, -3.311, -3.165, -3.205, -3.338, -3.234], 0.581),
    ("SUN397", "LogME", [1.621, 1.648, 1.638, 1.642, 1.646, 1.614, 1.623, 1.624, 1.617, 1.625], 0.748),
    ("SUN397", "NCE", [-3.055, -2.844, -2.894, -2.837, -2.822, -2.945, -2.903, -2.896, -2.968, -2.933], 0.873),
]


@pytest.mark.parametrize(("data", "score", "values", "tau"), PUBLISHED)
def test_rank_published_agreement_of_score_and_accuracy(data, score, values, tau):
    """The order that each score gives to ten models agrees with their fine-tuned accuracy as far as was printed."""
    assert weightedtau(ACCURACY[data], values).statistic == pytest.approx(tau, abs=6e-4)


def test_rank_documents_the_published_agreement():
    for data, score, _, tau in PUBLISHED:
        assert (f"{tau} on {data}" in " ".join(rank.__doc__.split())) == (score == "LogME"), (data, score)


def test_rank_reports_its_progress():
    told = []
    rank({"first": net(0), "second": net(1)}, X, Y, batch_size=50, progress=lambda *count: told.append(count))
    assert told == [(done, 100, name) for name in ("first", "second") for done in (50, 100)]
