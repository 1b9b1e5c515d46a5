"""A trial by hand: its values, the difference of two, and the phase that it stands for."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Dataset, Phase, attach_head
from thaw.advice.trials import Candidate, Trials, is_better, paired_difference

RNG = np.random.default_rng(0)


def test_trials_values_are_what_the_model_predicts():
    """What is frozen is read from the disk: the same predictions as of the whole model."""
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((6,))
    for _ in range(3):
        x = layers.Dense(12, "relu")(x)
    model = attach_head(keras.Model(entry, x), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = RNG.normal(size=(200, 6)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    train, validation = Dataset(x=x[:120], y=y[:120]), Dataset(x=x[120:], y=y[120:])
    trials = Trials(model, train, validation, batch_size=16, seed=0, accuracy=True, views=1)
    trial = trials.run(Candidate(1, 0.03), 3, 0)
    p = model.predict(validation.x, verbose=0)
    correct = (p.argmax(axis=1) == validation.y).astype(float)
    log_likelihood = np.log(p[np.arange(80), validation.y])
    np.testing.assert_array_equal(trial.values, correct)
    assert trial.score.value == pytest.approx(correct.mean())
    assert trial.certainty == pytest.approx(log_likelihood.mean(), abs=1e-5)
    trained = [*model.layers[-1].weights, *model.layers[3].weights]
    assert trial.trainable_weights == sum(int(np.prod(w.shape)) for w in trained)
    trials.accuracy = False
    values, certainty = trials.values(1)
    np.testing.assert_allclose(values, log_likelihood, atol=1e-5)
    assert certainty == trial.certainty


@pytest.mark.parametrize("has_name", [True, False])
def test_trials_values_leave_no_features_that_cannot_be_found_again(has_name):
    """A layer of the user's own computes what nobody can name."""

    class Own(layers.Layer):
        def call(self, x):
            return 2 * x

    entry = keras.Input((6,))
    x = layers.Rescaling(2.0)(entry) if has_name else Own()(entry)
    model = attach_head(keras.Model(entry, layers.Dense(4)(x)), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = RNG.normal(size=(40, 6)).astype("float32")
    examples = Dataset(x=x, y=np.arange(40) % 2)
    trials = Trials(model, examples, examples, batch_size=16, seed=0, accuracy=True, views=1)
    values, _ = trials.values("head")
    assert values.tolist() == (model.predict(x, verbose=0).argmax(axis=1) == examples.y).tolist()
    assert any(Path(os.environ["THAW_CACHE"]).rglob("*.json")) == has_name


def test_paired_difference_and_is_better_by_hand():
    difference, low, high = paired_difference([1, 1, 0, 1], [0, 1, 0, 1])
    assert difference == 0.25
    assert (low, high) == (0.0, 0.75)
    a, b = RNG.random(500) < 0.8, RNG.random(500) < 0.7
    difference, low, high = paired_difference(a, b)
    half = 1.96 * (a.astype(float) - b).std(ddof=1) / np.sqrt(500)
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.006)
    assert is_better([1, 1, 1, 1, 0], [0, 0, 0, 1, 0])
    assert not is_better([1, 0, 0, 0, 0], [0, 0, 0, 0, 0])
    assert not is_better([1, 0], [1, 0])
    assert is_better([1] * 4 + [0] * 96, [0] * 100, standard_errors=2)  # 0.04 and 2 * 0.0197
    assert not is_better([1] * 3 + [0] * 97, [0] * 100, standard_errors=2)  # 0.03 and 2 * 0.0171


def test_candidate_phase_and_name():
    assert Candidate("all", 1e-4).phase(5).views == 0
    assert Candidate(2, 1e-4).phase(5, l2_sp=0.1) == Phase(
        name="tune", epochs=5, train=2, learning_rate=1e-4, layer_decay=0.7, views=4, l2_sp=0.1
    )
    assert Candidate("head", 1e-3).phase(5, l2_sp=0.1).l2_sp == 0
    assert [Candidate(*c).name for c in (((), 0.0), (("stage1",), 0.01), (1, 5e-4), ("all", 1e-4))] == [
        "unchanged",
        "stage1 at 0.01",
        "head + 1 at 0.0005",
        "all at 0.0001",
    ]
