"""Ways to use a network, at the same wall-clock time."""

import os
import random
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

import thaw.advice.compare as job
from thaw import Dataset, compare
from thaw.advice.compare import TimedTraining, _clip_epochs, _epochs_that_fit, _time_notes, _values, _ways, train_ways
from thaw.training.callbacks import TuneCallback

FOUR_WAYS = ["frozen features", "top 2 stages", "whole network", "from scratch"]


def data(n=48, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return (rng.normal(size=(n, 6)) + y[:, None]).astype("float32"), y


def build(seed, stages=3, optimizer="adam", scale=None):
    """Build a model; with a scale, one whose backbone has other weights, and BatchNorm with other statistics."""
    x = entry = keras.Input((6,))
    for _ in range(stages):
        x = layers.Dense(4, "relu")(x)
        x = x if scale is None else layers.BatchNormalization()(x)
    model = keras.Model(entry, layers.Dense(2, "softmax")(x))
    for layer in () if scale is None else model.layers[1:-1]:
        layer.set_weights([w * scale for w in layer.get_weights()])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run_compare(build, parts, **options):
    (x, y), validation, test = parts
    return compare(build, x, y, validation_data=validation, test_data=test, **options)


class Told(TuneCallback):
    def __init__(self):
        super().__init__()
        self.ways, self.caches = [], set()

    def on_way_begin(self, way, seed, epochs, done, total):
        self.ways.append((way, seed, epochs, done, total))
        self.caches |= set(map(str, Path(os.environ["THAW_CACHE"]).glob("compare-*")))


class FakeTraining:
    """Training that trains nothing: it notes what it would train, and takes 10 seconds and one for each epoch."""

    def __init__(self, forecast=2, diverges=False):
        self.forecast, self.diverges = forecast, diverges
        self.batch_size, self.callbacks, self.plans, self.kernels, self.seconds = 32, [Told()], [], [], []

    def forecast_epochs(self, model, plan, seconds):
        assert plan[-1].epochs == job.MAX_EPOCHS
        self.seconds.append(seconds)
        return self.forecast

    def run(self, model, plan, seed, cache_dir):
        assert model.compiled
        assert str(cache_dir) in self.callbacks[0].caches
        assert not Path(cache_dir, "activations").exists()
        self.plans.append(plan)
        self.kernels.append(model.get_weights()[0])
        epochs = 0 if self.diverges else plan[-1].epochs
        run = {"planned": plan[-1].epochs, "epochs": epochs, "in_epochs": float(epochs), "seconds": 10.0 + epochs}
        return run | {"diverged": self.diverges}, "The loss became nan." if self.diverges else ""


def train(training, *, names=None, minutes=0.5, seeds=1, build=build):
    x, y = data()
    model, examples = build(0), Dataset(x=x, y=y)
    ways, _ = _ways(model, names, examples)
    runs, notes = train_ways(build, model, ways, training, examples, minutes=minutes, seeds=seeds)
    return runs, notes, training.callbacks[0]


def test_train_ways_trains_all_ways_with_all_seeds():
    training = FakeTraining()
    built = []
    runs, notes, told = train(training, seeds=2, build=lambda seed: built.append(seed) or build(seed))
    assert [way[0] for way in told.ways] == FOUR_WAYS * 2 == list(runs) * 2
    assert [way[1] for way in told.ways] == [0] * 4 + [1] * 4 == built[1:]
    assert told.ways[3][2:] == (2, 3, 8)
    assert training.seconds == [30.0] * 4
    assert [(p.name, p.epochs, p.train, p.batchnorm) for plan in training.plans[:4] for p in plan] == [
        ("head", 2, "head", "frozen"),
        ("head", 5, "head", "frozen"),
        ("top", 2, 2, "frozen"),
        ("head", 5, "head", "frozen"),
        ("all", 2, "all", "frozen"),
        ("all", 2, "all", "trained"),
    ]
    assert all(run["values"].shape == (48,) for of_way in runs.values() for run in of_way)
    assert not notes
    assert len(told.caches) == 8  # each began with an empty one
    assert not any(map(os.path.exists, told.caches))


def test_train_ways_learns_the_epochs_from_the_run_before():
    training = FakeTraining(forecast=7)
    _, _, told = train(training, names=("frozen", "whole"), minutes=0.5, seeds=2)
    assert [way[2] for way in told.ways] == [7, 7, 20, 20]  # 10 s before the first epoch, 1 s for each


def test_train_ways_trains_no_more_epochs_after_a_run_that_diverged():
    training = FakeTraining(forecast=3, diverges=True)
    runs, notes, told = train(training, names=("frozen", "whole"), minutes=60, seeds=2)
    assert [way[2] for way in told.ways] == [3] * 4
    assert [[run["epochs"] for run in of_way] for of_way in runs.values()] == [[0, 0]] * 2  # not what was planned
    assert "frozen features, seed 1: The loss became nan." in notes
    assert sum("it ended before its last epoch" in note for note in _time_notes(runs, 60)) == 2


def test_ways_from_scratch_are_from_scratch():
    """A backbone that is good at nothing else cannot help it: the same bits whatever weights it brings."""
    kernels = {}
    for scale in (2, 100):
        training = FakeTraining()
        train(training, names=("frozen", "scratch"), build=lambda seed, k=scale: build(seed, scale=k))
        kernels[scale] = training.kernels
    frozen, scratch = zip(kernels[2], kernels[100])
    np.testing.assert_allclose(frozen[1], 50 * frozen[0], rtol=1e-6)
    np.testing.assert_array_equal(*scratch)
    assert not np.array_equal(frozen[0], scratch[0])


def test_epochs_that_fit_follow_the_forecast():
    """The head takes 10 s and 5 times 0.2 s more, then 3 s once, and an epoch 2.5 s: (100 - 11 - 3) / 2.5."""
    forecasts = [SimpleNamespace(seconds=10.0), SimpleNamespace(seconds=3 + 1000 * 2.0, seconds_before=3.0)]
    fit = lambda seconds: _epochs_that_fit(forecasts, [0.2, 0.5], [5, 1000], seconds)  # noqa: E731
    assert [fit(seconds) for seconds in (5, 100, 1e6)] == [1, 34, 1000]
    assert (_clip_epochs(0.2), _clip_epochs(7.9), _clip_epochs(1e9)) == (1, 7, 1000)


def test_epochs_after_a_run_that_ended_early():
    run = {"planned": 40, "epochs": 10, "in_epochs": 80.0, "seconds": 100.0, "diverged": False}
    assert job._epochs_after(run, 300) == 35  # 20 s before the first epoch, 8 s for each
    assert job._epochs_after(run, 1e4) == 1000
    # One that diverged is no reason for more, and one without an epoch no reason for anything.
    assert job._epochs_after(run | {"diverged": True}, 1e4) == 40
    assert job._epochs_after(run | {"diverged": True}, 100) == 10
    assert job._epochs_after(run | {"epochs": 0, "in_epochs": 0.0, "diverged": True}, 1e4) == 40


@pytest.mark.parametrize(
    ("seconds", "planned", "said"),
    [
        (60.0, 9, None),
        (70.0, 9, None),  # within a fifth
        (30.0, 9, "one took 0.5 of 1 minutes, less than forecast"),
        (90.0, 9, "one took 1.5 of 1 minutes, more than forecast"),
        (90.0, 1, "not even one epoch fits into the time"),
        (30.0, 1000, "1,000 epochs are the most"),
    ],
)
def test_time_notes_say_what_missed_its_time(seconds, planned, said):
    notes = list(_time_notes({"one": [{"seconds": seconds, "planned": planned, "epochs": planned}]}, 1.0))
    assert len(notes) == (said is not None)
    assert all(said in note for note in notes)


def test_compare_stops_with_its_callbacks_and_leaves_no_trace():
    """Inputs in a dict and in a list are the same task; the epochs that were made are counted."""

    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    def two(form):
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        x = layers.Concatenate()([layers.Dense(3, "relu")(a), layers.Dense(3, "relu")(b)])
        model = keras.Model({"a": a, "b": b} if form is dict else [a, b], layers.Dense(2, "softmax")(x))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def numpy_state():
        return np.random.get_state()[1].tolist()  # noqa: NPY002

    a, b = np.random.default_rng(0).normal(size=(2, 24, 4)).astype("float32")
    y = (a[:, 0] > 0).astype(int)
    cache = os.environ["THAW_CACHE"]
    keras.utils.set_random_seed(5)
    states = random.getstate(), numpy_state()
    drawn = [float(keras.random.uniform(())) for _ in range(2)]
    scores = []
    for form, x in ((dict, {"a": a, "b": b}), (list, [a, b])):
        keras.utils.set_random_seed(5)
        keras.random.uniform(())
        told, ways = Told(), ("frozen", "scratch")
        found = run_compare(
            lambda seed, form=form: two(form),
            [(x, y)] * 3,
            minutes=600,  # the most epochs
            seeds=1,
            ways=ways,
            callbacks=[told, Stops()],
        )
        assert float(keras.random.uniform(())) == drawn[1]
        keras.utils.set_random_seed(5)
        assert (random.getstate(), numpy_state()) == states
        assert os.environ["THAW_CACHE"] == cache
        assert len(told.caches) == 2
        assert not any(map(os.path.exists, told.caches))
        assert [way[2] for way in told.ways] == [1000, 1000]
        assert [row.epochs for row in found.rows] == [(1,), (1,)]
        assert found.examples == 24
        assert all(row.score.low <= row.score.value <= row.score.high for row in found.rows)
        assert [note for note in found.notes if "it ended before its last epoch" in note] == list(found.notes)
        scores.append({row.name: row.scores for row in found.rows})
    assert scores[0] == scores[1]
    assert set(scores[0]) == {"frozen features", "from scratch"}


def test_compare_restores_random_states_also_after_an_error():
    def broken(seed):
        random.random()
        np.random.random()  # noqa: NPY002
        raise RuntimeError("mine")

    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(RuntimeError, match="mine"):
        run_compare(broken, [data()] * 3)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_timed_training_counts_the_epochs_of_the_last_phase():
    class Diverges(TuneCallback):
        def on_phase_begin(self, phase, stages):
            if phase.name == "all":
                raise FloatingPointError("The loss became nan.")

    x, y = data()
    model, examples = build(0), Dataset(x=x, y=y)
    whole = _ways(model, ["frozen", "whole"], examples)[0][1]
    training = TimedTraining((examples, examples), 32, [Diverges()])
    run, note = training.run(model, whole.plan(3), 0, None)
    assert (run["planned"], run["epochs"], run["in_epochs"], run["diverged"]) == (3, 0, 0.0, True)
    assert run["seconds"] > 0
    assert note == "The loss became nan."
    stopwatch = job._stopwatch()
    for phase, epochs in zip(whole.plan(3), (5, 2)):
        stopwatch.on_phase_begin(phase, ())
        for epoch in range(epochs):
            stopwatch.on_epoch_begin(epoch)
            stopwatch.on_epoch_end(epoch)
    assert (stopwatch.phase, stopwatch.epochs) == ("all", 2)
    assert stopwatch.seconds > 0


@pytest.mark.parametrize(("optimizer", "unit"), [("adam", 1), ("sgd", 20), ("lion", 0.2)])
def test_ways_have_the_rates_of_the_optimizer(optimizer, unit):
    ways, _ = _ways(build(0, optimizer=optimizer), None, None)
    rates = {(way.name, phase.name): phase.learning_rate for way in ways for phase in way.plan(2)}
    assert rates == {
        ("frozen features", "head"): pytest.approx(1e-3 * unit),
        ("top 2 stages", "head"): pytest.approx(1e-3 * unit),
        ("top 2 stages", "top"): pytest.approx(5e-4 * unit),
        ("whole network", "head"): pytest.approx(1e-3 * unit),
        ("whole network", "all"): pytest.approx(1e-4 * unit),
        ("from scratch", "all"): pytest.approx(1e-3 * unit),
    }


def test_ways_of_a_small_model_have_no_top_stage():
    ways, notes = _ways(build(0, stages=1), None, None)
    assert [way.name for way in ways] == ["frozen features", "whole network", "from scratch"]
    assert "one stage below the head" in notes[0]


def test_values_are_those_of_the_first_metric():
    x, y = data()
    examples = Dataset(x=x, y=y)
    model = build(0)
    right = model.predict(x, verbose=0).argmax(axis=1) == y
    assert _values(model, examples, 16).tolist() == right.astype(float).tolist()
    entry = keras.Input((6,))
    model = keras.Model(entry, layers.Dense(1)(entry))
    model.compile("adam", "mse", metrics=["mae"])
    by_hand = np.abs(model.predict(x, verbose=0)[:, 0] - y)
    np.testing.assert_allclose(_values(model, examples, 16), by_hand, rtol=1e-5)


def test_values_of_top_k_accuracy_are_not_the_accuracy():
    """It chooses the epochs, and so it is the score."""
    keras.utils.set_random_seed(0)
    x, y = data()
    model = keras.Sequential([keras.Input((6,)), layers.Dense(9, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["sparse_top_k_categorical_accuracy"])
    p = model.predict(x, verbose=0)
    among_five = (p > p[np.arange(len(y)), y][:, None]).sum(axis=1) < 5
    assert _values(model, Dataset(x=x, y=y), 16).tolist() == among_five.astype(float).tolist()
    assert 0 < among_five.mean() < 1
    assert job._metric(model) == ("sparse_top_k_categorical_accuracy", "max")
    assert job._metric(build(0)) == ("accuracy", "max")


def test_compare_refuses_a_score_that_cannot_be_measured_before_anything_is_trained():
    trained = []

    class Trained(layers.Layer):
        def call(self, x, training=None):
            trained.append(bool(training))
            return x

    def watched(seed):
        entry = keras.Input((6,))
        x = layers.Dense(3)(Trained()(entry))
        model = keras.Model(entry, layers.Dense(2, "softmax")(x))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=[keras.metrics.AUC(name="area")])
        return model

    told = Told()
    with pytest.raises(ValueError, match="The first metric is area, which is no mean over examples"):
        run_compare(watched, [data()] * 3, callbacks=[told])
    assert not told.ways
    assert trained
    assert not any(trained)


def test_compare_names_what_is_invalid():
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
