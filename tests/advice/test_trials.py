"""A trial by hand: its values, the difference of two, and the phase that it stands for."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Dataset, Phase, attach_head
from thaw.advice.trials import (
    Candidate,
    Trials,
    avoided_errors,
    can_solve_head,
    is_better,
    paired_difference,
)
from thaw.transfer import solve_head

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


def test_trials_solve_for_the_head_from_all_examples():
    """The trials of the backbone have a part of them; augmentation is left out."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((6,))
    model = attach_head(keras.Model(entry, layers.Dense(8, "relu")(entry)), 2)
    x = RNG.normal(size=(200, 6)).astype("float32")
    y = (x[:, 0] + RNG.normal(size=200) > 0).astype("int32")
    train, validation = Dataset(x=x[:120], y=y[:120]), Dataset(x=x[120:], y=y[120:])
    augmented = train.replace(augment=lambda x, seed: 0 * x)
    options = {"batch_size": 16, "seed": 0, "accuracy": True, "views": 2}
    trials = Trials(model, augmented.take(np.arange(40)), validation, head_examples=augmented, **options)
    trial = trials.run(Candidate("head", 1e-2, solver="lbfgs"), 40, None)
    assert (trial.name, trial.epochs, trial.solver, trial.train) == ("solved head", 1, "lbfgs", "head")
    solved = model.layers[-1].get_weights()
    trials.assign(trials.start)
    model.compile("adam", "sparse_categorical_crossentropy")
    solve_head(model, train, batch_size=16)
    np.testing.assert_array_equal(solved[0], model.layers[-1].get_weights()[0])
    assert trial.score.value == np.mean(model.predict(validation.x, verbose=0).argmax(axis=1) == validation.y)


def test_can_solve_head():
    entry = keras.Input((6,))
    model = attach_head(keras.Model(entry, layers.Dense(4, "relu")(entry)), 2)
    assert can_solve_head(model, np.array([0, 1]))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert not can_solve_head(model, np.array([0, 1]))  # behind a softmax
    x = layers.Dense(3, "relu", name="hidden")(layers.Dense(4, "relu")(entry))
    model = keras.Model(entry, layers.Dense(2, "softmax", name="last")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    assert can_solve_head(model, np.array([0, 1]))  # the hidden layer is a stage below the head
    maps = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(maps))
    model = keras.Model(maps, layers.Dense(2, "softmax")(layers.LayerNormalization()(x)))
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not can_solve_head(model, np.array([0, 1]))  # the head has a layer of scales besides the one that is solved


def test_avoided_errors_by_hand():
    assert avoided_errors([1, 0, 0, 0, 0], [1, 1, 1, 1, 0]).value == 0.75
    assert avoided_errors([0, 1], [0, 0]).value is None
    errors, random_errors = RNG.random(400) < 0.1, RNG.random(400) < 0.4
    value, low, high = avoided_errors(errors, random_errors)
    assert value == 1 - errors.sum() / random_errors.sum()
    # The ratio r of two means, by the delta method.
    ratio = errors.mean() / random_errors.mean()
    half = 1.96 * (errors - ratio * random_errors).std() / random_errors.mean() / 20
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.02)


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
    solved = Phase(name="tune", epochs=5, train="head", learning_rate=1e-3, solver="lbfgs")
    assert Candidate("head", 1e-3, solver="lbfgs").phase(5, l2_sp=0.1) == solved
    assert [Candidate(*c).name for c in (((), 0.0), (("stage1",), 0.01), (1, 5e-4), ("all", 1e-4))] == [
        "unchanged",
        "stage1 at 0.01",
        "head + 1 at 0.0005",
        "all at 0.0001",
    ]
