"""The best place inside the budget, or none."""

import functools

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.retention.budget import wise_ft_search
from thaw.retention.merging import combine_stages, interpolate_weights


def line():
    """A model of one weight that is 1, and was 0: its weight is the alpha."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[1.0]])])
    return model, [np.array([[0.0]], "float32")]


def weight(model):
    return float(model.weights[0][0, 0])


def new(model):
    return weight(model) * (2 - weight(model))  # 1 at 1, flat there


def old(model):
    return 0.8 * (1 - weight(model) ** 2)  # 0.8 at 0, nothing at 1


@pytest.mark.parametrize(
    ("budget", "alpha"), [(0.0, 0.0), (0.011, 0.1), (0.02, 0.1), (0.26, 0.5), (0.5, 0.7), (1.0, 1.0)]
)
def test_the_best_inside_the_budget(budget, alpha):
    model, before = line()
    found = wise_ft_search(model, before, new, old, max_forgetting=budget)
    assert found.alpha == alpha
    assert weight(model) == pytest.approx(alpha)
    assert [row.alpha for row in found.rows] == [i / 10 for i in range(11)]
    for row in found.rows:
        assert row.target.value == pytest.approx(row.alpha * (2 - row.alpha), abs=1e-6)
        assert row.forgotten == pytest.approx(row.alpha**2, abs=1e-6)  # a share of the old score, not points
    assert f"alpha = {alpha:.3g}" in found.reason


def test_the_best_is_not_always_the_last_inside():
    model, before = line()
    found = wise_ft_search(
        model, before, lambda m: -((weight(m) - 0.3) ** 2), old, max_forgetting=0.5, alphas=(0, 0.3, 0.6)
    )
    assert found.alpha == 0.3


def test_of_equal_ones_that_which_forgets_less():
    model, before = line()
    assert wise_ft_search(model, before, lambda m: 1, old, max_forgetting=1, alphas=(0.4, 0.2, 0.6)).alpha == 0.2


def test_none_inside():
    model, before = line()
    found = wise_ft_search(model, before, new, old, max_forgetting=0.02, alphas=(0.5, 1))
    assert found.alpha is None
    assert weight(model) == 1
    assert "no interpolation forgets at most 2 %" in found.reason
    assert "nearest is alpha = 0.5, which forgets 25 %" in found.reason
    assert len(found.rows) == 2


def test_a_score_that_is_no_number_is_never_chosen():
    model, before = line()
    broken = lambda m: float("nan") if weight(m) > 0.15 else new(m)  # noqa: E731
    assert wise_ft_search(model, before, broken, old, max_forgetting=1).alpha == 0.1
    assert wise_ft_search(model, before, new, lambda m: old(m) if weight(m) < 0.15 else float("nan")).alpha is not None
    model, before = line()
    found = wise_ft_search(model, before, lambda m: float("nan"), old)
    assert found.alpha is None
    assert weight(model) == 1
    assert "no interpolation has scores that are numbers" in found.reason


def test_interrupted():
    model, before = line()
    calls = []

    def stops(m):
        calls.append(weight(m))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return new(m)

    with pytest.raises(KeyboardInterrupt):
        wise_ft_search(model, before, stops, old)
    assert calls == pytest.approx([0, 0.1, 0.2, 0.3])
    assert weight(model) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": ()}, "expected one or more numbers from 0 to 1"),
        ({"alphas": (0.5, 2)}, "expected one or more numbers from 0 to 1"),
        ({"max_forgetting": 2}, "expected a fraction from 0 to 1, such as 0.02"),
        ({"source_score": lambda m: -1.0}, "before the fine-tuning is -1.0; expected a number above 0"),
        ({"source_score": lambda m: float("nan")}, "before the fine-tuning is nan"),
    ],
)
def test_mistakes(options, message):
    model, before = line()
    with pytest.raises(ValueError, match=message):
        wise_ft_search(model, before, **({"target_score": new, "source_score": old} | options))
    assert weight(model) == 1


def task(tuned, n=300):
    """Two classes apart in the first feature; for the tuning in the second, and the first is loud noise."""
    rng = np.random.default_rng(int(tuned))
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 6)).astype("float32")
    x[:, 0] *= 10 if tuned else 1
    x[:, int(tuned)] += 3 * (2 * y - 1)
    return Dataset(x=x, y=y)


def test_wise_ft_search_brings_back_a_task_that_was_forgotten():
    """BatchNorm inside, and an old head that shares the backbone."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((6,))
    features = layers.ReLU()(layers.BatchNormalization()(layers.Dense(8)(entry)))
    first = keras.Model(entry, layers.Dense(2)(features))
    second = keras.Model(entry, layers.Dense(2)(features))
    source, target = task(False), task(True)

    def fit(model, data, passes):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.05), loss)
        model.fit(np.tile(data.x, (passes, 1)), np.tile(data.y, passes), batch_size=50, verbose=0)

    fit(first, source, 6)
    before = second.get_weights()
    fit(second, target, 12)
    after = second.get_weights()
    inputs = np.concatenate([source.x, target.x])
    before = combine_stages(second, before, after)
    path = functools.partial(interpolate_weights, x=inputs)
    found = wise_ft_search(
        second, before, target, (first, source), max_forgetting=0.05, alphas=(0, 0.4, 1), interpolate=path
    )
    start, end = found.rows[0], found.rows[-1]
    chosen = next(row for row in found.rows if row.alpha == found.alpha)
    assert start.forgotten == 0
    assert end.forgotten > 0.05  # else there were nothing to restore
    assert chosen.forgotten <= 0.05
    assert 0 < chosen.alpha < 1
    assert chosen.target.value > start.target.value
    assert chosen.source.low < chosen.source.value < chosen.source.high
    table = str(found).splitlines()
    assert len(table) == 5
    assert max(map(len, table[:-1])) <= 80
    assert sum("<- chosen" in row for row in table) == 1
