"""Ways to use a network, at the same wall-clock time."""

import itertools
import os
import random
import time

import keras
import numpy as np
import pytest
from keras import layers

import thaw.advising.compare as job
from thaw import Examples, compare, freeze
from thaw.advising.compare import _values, _whole


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
    monkeypatch.setattr(job, "_epochs", lambda *_: 2)
    monkeypatch.setattr(job, "_whole", lambda _: 2)


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained: only what would be is told."""
    import thaw.tuning.tune

    def tune(model, plan, data, *, callbacks, **options):
        for callback, phase in itertools.product(callbacks, plan):
            callback.on_phase_begin(phase, freeze(model, phase.train, phase.batchnorm))
        settings = model._compile_config.config
        model.compile(**settings)
        time.sleep(0.01)

    monkeypatch.setattr(thaw.tuning.tune, "tune", tune)


class Told(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.ways, self.phases, self.caches = [], [], set()

    def on_way_begin(self, way, seed, epochs, done, total):
        self.ways.append((way, seed, epochs, done, total))
        self.caches.add(os.environ["THAW_CACHE"])

    def on_phase_begin(self, phase, moving):
        self.phases.append((phase.name, phase.epochs, len(moving), phase.batchnorm))


def test_all_ways_with_all_seeds(short, untrained):
    told, cache = Told(), os.environ["THAW_CACHE"]
    keras.utils.set_random_seed(5)
    states = random.getstate(), numpy_state()
    drawn = [float(keras.random.uniform(())) for _ in range(2)]
    keras.utils.set_random_seed(5)
    keras.random.uniform(())
    found = compare(build, [data(), data(seed=1), data(seed=2)], minutes=0.5, seeds=2, callbacks=[told])
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
    assert all(row.low <= row.score <= row.high for row in found.rows)
    assert all("of 0.5 minutes, less than its share" in note for note in found.notes)
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
        compare(broken, [data()] * 3)
    assert (random.getstate(), numpy_state()) == states


def test_from_scratch_is_from_scratch(short):
    """A backbone that is good at nothing else cannot help it: the same bits whatever weights it brings."""
    seen = []

    def brings(seed, scale):
        model = build(seed)
        for layer in model.layers[1:-2]:
            layer.set_weights([w * scale for w in layer.get_weights()])
        return model

    class Seen(keras.callbacks.Callback):
        def on_phase_begin(self, phase, moving):
            self.begins = True

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0 and self.begins:
                self.begins = False
                seen.append(self.model.get_weights()[0])

    for scale in (2, 100):
        ways = ("frozen", "scratch")
        compare(lambda s, k=scale: brings(s, k), [data()] * 3, seeds=1, ways=ways, callbacks=[Seen()])
    np.testing.assert_array_equal(seen[1], seen[3])
    np.testing.assert_allclose(seen[2], 50 * seen[0], rtol=1e-6)
    assert not np.array_equal(seen[0], seen[1])


def test_more_time_more_epochs(untrained):
    """By the forecast; and what one seed took decides about the next."""
    epochs = {}
    for minutes in (0.05, 0.2):
        told = Told()
        compare(build, [data()] * 3, minutes=minutes, seeds=1, ways=("frozen", "whole"), callbacks=[told])
        epochs[minutes] = [way[2] for way in told.ways]
    assert all(late > early for early, late in zip(epochs[0.05], epochs[0.2]))
    told = Told()
    compare(build, [data()] * 3, minutes=0.2, seeds=2, ways=("frozen", "whole"), callbacks=[told])
    assert [way[2] for way in told.ways[2:]] == [1000, 1000]  # the first seed was done in a moment
    assert (_whole(0.2), _whole(7.9), _whole(1e9)) == (1, 7, 1000)


def test_a_small_model_has_no_top_stage_of_its_own(short, untrained):
    found = compare(lambda seed: build(seed, stages=1), [data()] * 3, seeds=1)
    assert sorted(row.name for row in found.rows) == ["from scratch", "frozen features", "whole network"]
    assert "one stage below the head" in found.notes[0]


def test_the_score_is_the_first_metric():
    x, y = data()
    examples = Examples(x=x, y=y)
    model = build(0)
    right = model.predict(x, verbose=0).argmax(axis=1) == y
    assert _values(model, examples, 16).tolist() == right.astype(float).tolist()
    entry = keras.Input((16, 16, 3))
    model = keras.Model(entry, layers.Dense(1)(layers.Flatten()(entry)))
    model.compile("adam", "mse", metrics=["mae"])
    by_hand = np.abs(model.predict(x, verbose=0)[:, 0] - y)
    np.testing.assert_allclose(_values(model, examples, 16), by_hand, rtol=1e-5)
    model.compile("adam", "mse", metrics=[keras.metrics.AUC()])
    with pytest.raises(ValueError, match="which is no mean over examples"):
        _values(model, examples, 16)


def test_bad_input(short):
    three = [data()] * 3
    with pytest.raises(ValueError, match="has to be \\(train, validation, test\\)"):
        compare(build, three[:2])
    with pytest.raises(ValueError, match="minutes=0; expected a number above 0"):
        compare(build, three, minutes=0)
    with pytest.raises(ValueError, match=r"seeds=1\.5; expected a whole number"):
        compare(build, three, seeds=1.5)
    with pytest.raises(ValueError, match="no way 'lora'; expected some of frozen, top, whole, scratch"):
        compare(build, three, ways=("frozen", "lora"))
    with pytest.raises(ValueError, match="two ways at least"):
        compare(build, three, ways=("frozen",))
    with pytest.raises(ValueError, match=r"a built and compiled keras\.Model"):
        compare(lambda seed: keras.Sequential([keras.Input((2,)), layers.Dense(2)]), three)
    with pytest.raises(ValueError, match="holds a str; expected"):
        compare(build, [*three[:2], "test"])
