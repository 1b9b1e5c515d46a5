"""Ways to use a network, at the same wall-clock time."""

import functools
import itertools
import os
import random
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import thaw.advice.compare as job
from thaw import Dataset, compare, freeze
from thaw.advice.compare import _clip_epochs, _values
from thaw.training.callbacks import TuneCallback


def data(n=48, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return (rng.normal(size=(n, 16, 16, 3)) + y[:, None, None, None]).astype("float32"), y


def build(seed, metrics=("accuracy",), stages=3):
    entry = keras.Input((16, 16, 3))
    x = entry
    for filters in (4, 4, 6)[:stages]:
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, 2, padding="same")(x))
    x = layers.Dense(2, "softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=list(metrics))
    return model


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.fixture
def short(monkeypatch):
    """Two epochs always."""
    monkeypatch.setattr(job, "_forecast_epochs", lambda *_: 2)
    monkeypatch.setattr(job, "_clip_epochs", lambda _: 2)


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained: only what would be is told."""
    import thaw.finetune

    def fine_tune(model, plan, x, *, callbacks, **options):
        for callback, phase in itertools.product(callbacks, plan):
            callback.on_phase_begin(phase, freeze(model, phase.train, phase.batchnorm))
            for epoch in range(phase.epochs):
                callback.on_epoch_begin(epoch)
                callback.on_epoch_end(epoch)
        settings = model._compile_config.config
        model.compile(**settings)
        time.sleep(0.01)

    monkeypatch.setattr(thaw.finetune, "fine_tune", fine_tune)


def run_compare(build, parts, **options):
    (x, y), validation, test = parts
    return compare(build, x, y, validation_data=validation, test_data=test, **options)


class Told(TuneCallback):
    def __init__(self):
        super().__init__()
        self.ways, self.phases, self.rates, self.caches = [], [], {}, set()

    def on_way_begin(self, way, seed, epochs, done, total):
        self.ways.append((way, seed, epochs, done, total))
        self.caches |= set(map(str, Path(os.environ["THAW_CACHE"]).glob("compare-*")))

    def on_phase_begin(self, phase, stages):
        self.phases.append((phase.name, phase.epochs, len(stages), phase.batchnorm))
        self.rates[self.ways[-1][0], phase.name] = phase.learning_rate


def test_all_ways_with_all_seeds(short, untrained):
    told, cache = Told(), os.environ["THAW_CACHE"]
    keras.utils.set_random_seed(5)
    states = random.getstate(), numpy_state()
    drawn = [float(keras.random.uniform(())) for _ in range(2)]
    keras.utils.set_random_seed(5)
    keras.random.uniform(())
    found = run_compare(build, [data(), data(seed=1), data(seed=2)], minutes=0.5, seeds=2, callbacks=[told])
    names = ["frozen features", "top 2 stages", "whole network", "from scratch"]
    assert [way[0] for way in told.ways] == names * 2
    assert [way[1] for way in told.ways] == [0] * 4 + [1] * 4
    assert told.ways[-1][2:] == (2, 7, 8)
    assert told.phases[:6] == [
        ("head", 2, 1, "frozen"),
        ("head", 5, 1, "frozen"),
        ("top", 2, 3, "frozen"),
        ("head", 5, 1, "frozen"),
        ("all", 2, 4, "frozen"),
        ("all", 2, 4, "trained"),
    ]
    assert sorted(row.name for row in found.rows) == sorted(names)
    assert found.examples == 48
    assert all(len(row.scores) == len(row.minutes) == 2 for row in found.rows)
    assert all(row.score.low <= row.score.value <= row.score.high for row in found.rows)
    assert all("of 0.5 minutes, less than forecast" in note for note in found.notes)
    assert len(found.notes) == 4
    # Nothing of it is left: no random state, no cache.
    assert float(keras.random.uniform(())) == drawn[1]
    keras.utils.set_random_seed(5)
    assert (random.getstate(), numpy_state()) == states
    assert os.environ["THAW_CACHE"] == cache
    assert len(told.caches) == 8  # each began with an empty one
    assert not any(map(os.path.exists, told.caches))


def test_random_states_also_after_an_error(short):
    def broken(seed):
        random.random()
        np.random.random()  # noqa: NPY002
        raise RuntimeError("mine")

    states = random.getstate(), numpy_state()
    with pytest.raises(RuntimeError, match="mine"):
        run_compare(broken, [data()] * 3)
    assert (random.getstate(), numpy_state()) == states


@pytest.mark.slow
def test_from_scratch_is_from_scratch(short):
    """A backbone that is good at nothing else cannot help it: the same bits whatever weights it brings."""
    seen = []

    def brings(seed, scale):
        model = build(seed)
        for layer in model.layers[1:-2]:
            layer.set_weights([w * scale for w in layer.get_weights()])
        return model

    class Seen(TuneCallback):
        def on_phase_begin(self, phase, stages):
            self.begins = True

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0 and self.begins:
                self.begins = False
                seen.append(self.model.get_weights()[0])

    for scale in (2, 100):
        ways = ("frozen", "scratch")
        run_compare(lambda s, k=scale: brings(s, k), [data()] * 3, seeds=1, ways=ways, callbacks=[Seen()])
    np.testing.assert_array_equal(seen[1], seen[3])
    np.testing.assert_allclose(seen[2], 50 * seen[0], rtol=1e-6)
    assert not np.array_equal(seen[0], seen[1])


def test_more_time_more_epochs(untrained):
    """By the forecast; and what one seed took decides about the next."""
    epochs = {}
    for minutes in (0.05, 0.2):
        told = Told()
        run_compare(build, [data()] * 3, minutes=minutes, seeds=1, ways=("frozen", "whole"), callbacks=[told])
        epochs[minutes] = [way[2] for way in told.ways]
    assert all(late > early for early, late in zip(epochs[0.05], epochs[0.2]))
    told = Told()
    run_compare(build, [data()] * 3, minutes=0.2, seeds=2, ways=("frozen", "whole"), callbacks=[told])
    assert [way[2] for way in told.ways[2:]] == [1000, 1000]  # the first seed was done in a moment
    assert (_clip_epochs(0.2), _clip_epochs(7.9), _clip_epochs(1e9)) == (1, 7, 1000)


def test_epochs_after_a_run_that_ended_early():
    run = {"planned": 40, "epochs": 10, "in_epochs": 80.0, "seconds": 100.0, "diverged": False}
    assert job._epochs_after(run, 300) == 35  # 20 s before the first epoch, 8 s for each
    assert job._epochs_after(run, 1e4) == 1000
    # One that diverged is no reason for more, and one without an epoch no reason for anything.
    assert job._epochs_after(run | {"diverged": True}, 1e4) == 40
    assert job._epochs_after(run | {"diverged": True}, 100) == 10
    assert job._epochs_after(run | {"epochs": 0, "in_epochs": 0.0, "diverged": True}, 1e4) == 40


def test_no_more_epochs_after_a_run_that_diverged(monkeypatch):
    import thaw.finetune

    def fine_tune(model, plan, x, *, callbacks, **options):
        for callback in callbacks:
            callback.on_phase_begin(plan[0], ())
        raise FloatingPointError("The loss became nan.")

    monkeypatch.setattr(thaw.finetune, "fine_tune", fine_tune)
    monkeypatch.setattr(job, "_forecast_epochs", lambda *_: 3)
    told = Told()
    ways = ("frozen", "whole")
    found = run_compare(build, [data()] * 3, minutes=60, seeds=3, ways=ways, callbacks=[told])
    assert [way[2] for way in told.ways] == [3] * 6
    assert [row.epochs for row in found.rows] == [(0, 0, 0)] * 2  # what was made, and not what was planned
    assert "frozen features, seed 1: The loss became nan." in found.notes
    assert sum("it ended before its last epoch" in note for note in found.notes) == 2


def test_the_epochs_that_were_made_are_counted(monkeypatch):
    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    monkeypatch.setattr(job, "_forecast_epochs", lambda *_: 50)
    found = run_compare(build, [data()] * 3, minutes=60, seeds=1, ways=("frozen", "whole"), callbacks=[Stops()])
    assert [row.epochs for row in found.rows] == [(1,), (1,)]


@pytest.mark.parametrize(("optimizer", "unit"), [("adam", 1), ("sgd", 20), ("lion", 0.2)])
def test_rates_are_those_of_the_optimizer(short, untrained, optimizer, unit):
    def with_it(seed):
        model = build(seed)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    told = Told()
    run_compare(with_it, [data()] * 3, seeds=1, callbacks=[told])
    assert told.rates == {
        ("frozen features", "head"): pytest.approx(1e-3 * unit),
        ("top 2 stages", "head"): pytest.approx(1e-3 * unit),
        ("top 2 stages", "top"): pytest.approx(5e-4 * unit),
        ("whole network", "head"): pytest.approx(1e-3 * unit),
        ("whole network", "all"): pytest.approx(1e-4 * unit),
        ("from scratch", "all"): pytest.approx(1e-3 * unit),
    }


def test_several_inputs(short):
    def two(seed, form):
        keras.utils.set_random_seed(seed)
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        x = layers.Concatenate()([layers.Dense(3, "relu")(a), layers.Dense(3, "relu")(b)])
        model = keras.Model({"a": a, "b": b} if form is dict else [a, b], layers.Dense(2, "softmax")(x))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 24, 4)).astype("float32")
    y = (a[:, 0] > 0).astype(int)
    scores = []
    for form, x in ((dict, {"a": a, "b": b}), (list, [a, b])):
        found = run_compare(functools.partial(two, form=form), [(x, y)] * 3, seeds=1, ways=("frozen", "scratch"))
        scores.append([row.scores for row in found.rows])
    assert scores[0] == scores[1]


def test_a_small_model_has_no_top_stage_of_its_own(short, untrained):
    found = run_compare(lambda seed: build(seed, stages=1), [data()] * 3, seeds=1)
    assert sorted(row.name for row in found.rows) == ["from scratch", "frozen features", "whole network"]
    assert "one stage below the head" in found.notes[0]


def test_the_score_is_the_first_metric():
    x, y = data()
    examples = Dataset(x=x, y=y)
    model = build(0)
    right = model.predict(x, verbose=0).argmax(axis=1) == y
    assert _values(model, examples, 16).tolist() == right.astype(float).tolist()
    entry = keras.Input((16, 16, 3))
    model = keras.Model(entry, layers.Dense(1)(layers.Flatten()(entry)))
    model.compile("adam", "mse", metrics=["mae"])
    by_hand = np.abs(model.predict(x, verbose=0)[:, 0] - y)
    np.testing.assert_allclose(_values(model, examples, 16), by_hand, rtol=1e-5)


def test_top_k_accuracy_is_not_the_accuracy():
    """It chooses the epochs, and so it is the score."""
    keras.utils.set_random_seed(0)
    x, y = data()
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(9, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["sparse_top_k_categorical_accuracy"])
    p = model.predict(x, verbose=0)
    among_five = (p > p[np.arange(len(y)), y][:, None]).sum(axis=1) < 5
    assert _values(model, Dataset(x=x, y=y), 16).tolist() == among_five.astype(float).tolist()
    assert 0 < among_five.mean() < 1
    assert job._metric(model) == ("sparse_top_k_categorical_accuracy", "max")
    assert job._metric(build(0)) == ("accuracy", "max")


def test_a_score_that_cannot_be_measured_is_refused_before_anything_is_trained(monkeypatch):
    import thaw.finetune

    monkeypatch.setattr(thaw.finetune, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(job, "_forecast_epochs", lambda *_: pytest.fail("measured"))
    auc = keras.metrics.AUC(name="area")
    with pytest.raises(ValueError, match="The first metric is area, which is no mean over examples"):
        run_compare(lambda seed: build(seed, metrics=[auc]), [data()] * 3)


def test_bad_input(short):
    three = [data()] * 3
    with pytest.raises(ValueError, match="compare needs test data: give test_data"):
        run_compare(build, [*three[:2], None])
    with pytest.raises(ValueError, match="minutes=0; expected a number above 0"):
        run_compare(build, three, minutes=0)
    with pytest.raises(ValueError, match=r"seeds=1\.5; expected a whole number"):
        run_compare(build, three, seeds=1.5)
    with pytest.raises(ValueError, match="no way 'lora'; expected some of frozen, top, whole, scratch"):
        run_compare(build, three, ways=("frozen", "lora"))
    with pytest.raises(ValueError, match="at least two ways"):
        run_compare(build, three, ways=("frozen",))
    with pytest.raises(ValueError, match=r"a built and compiled keras\.Model"):
        run_compare(lambda seed: keras.Sequential([keras.Input((2,)), layers.Dense(2)]), three)
    with pytest.raises(ValueError, match="test data"):
        run_compare(build, [*three[:2], "test"])
