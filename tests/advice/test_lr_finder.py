"""A range test leaves no trace, and suggests nothing that it does not know."""

import random

import numpy as np
import pytest

keras = pytest.importorskip("keras")
import tensorflow as tf
from keras import layers
from keras.src.random.seed_generator import global_seed_generator

from thaw.advice import lr_range as module
from thaw.advice.lr_range import RangeTest, lr_finder
from thaw.data.dataset import Dataset
from thaw.models.stages import stages_of
from thaw.training.optimizers import layerwise_lr_decay

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 64).astype("int32")
X = RNG.normal(size=(64, 6, 6, 1)).astype("float32") + 2 * Y[:, None, None, None]
SHORT = {"batch_size": 8, "steps": 20, "repeats": 2}


@keras.saving.register_keras_serializable("thaw-tests-find")
class Draws(layers.Layer):
    """Draws from the generators that no model lists: that of Keras, of NumPy and of Python."""

    def call(self, x, training=None):
        if training:
            x = x + 0.01 * keras.random.normal(tf.shape(x))
            drawn = tf.numpy_function(lambda: np.float32(np.random.rand() + random.random()), [], "float32")  # noqa: NPY002
            x = x + tf.reshape(drawn, ())
        return x


class Own(keras.Model):
    """A model with a training step of its own, and a second optimizer in it."""

    def compile(self, second, **options):
        super().compile(**options)
        self.second = second

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        half = len(self.trainable_variables) // 2
        for optimizer, part in ((self.optimizer, slice(half)), (self.second, slice(half, None))):
            moving = self.trainable_variables[part]
            optimizer.apply_gradients(zip(tape.gradient(loss, moving), moving))
        return {"loss": loss}


def net(kind="plain", trained=True):
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((6, 6, 1))
    x = layers.GaussianNoise(0.1)(x)
    x = layers.Conv2D(4, 3, name="still")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3)(Draws()(layers.ReLU()(x)))
    x = layers.GlobalAveragePooling2D()(x)
    out = layers.Dense(2, name="out")(x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"optimizer": keras.optimizers.Adam(1e-3), "loss": loss, "metrics": ["accuracy"]}
    if kind == "own step":
        model = Own(entry, out)
        options |= {"second": keras.optimizers.SGD(0.1, momentum=0.9), "metrics": None}
        options["second"].build(model.trainable_variables[len(model.trainable_variables) // 2 :])
    elif kind == "two outputs":
        model = keras.Model(entry, {"a": out, "b": layers.Dense(1, name="b")(x)})
        options |= {"loss": {"a": loss, "b": "mse"}, "metrics": {"a": ["accuracy"]}}
    else:
        model = keras.Model(entry, out)
    if kind == "schedule":
        options["optimizer"] = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 100), momentum=0.9)
    if kind == "eager":
        options["run_eagerly"] = True
    if kind == "loss scaling":
        options["optimizer"] = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3))
    model.get_layer("still").trainable = False
    model.compile(**options, **({} if kind == "eager" else {"jit_compile": False}))
    if trained and kind == "schedule":
        model.fit(X, labels(kind), epochs=1, batch_size=32, verbose=0)
    elif trained:
        model.train_step((X, labels(kind)))  # as fit does, and without a trace
    return model


def labels(kind):
    return {"a": Y, "b": Y[:, None].astype("float32")} if kind == "two outputs" else Y


def state(model):
    """All that a model and the process know, in bytes and identities."""
    optimizers = [model.optimizer, *([model.second] if hasattr(model, "second") else [])]
    return {
        "variables": [(v.path, v.numpy().tobytes()) for v in model.variables],
        "optimizer": [(id(v), v.numpy().tobytes()) for o in optimizers for v in o.variables],
        "built": [o.built for o in optimizers],
        "rate": [id(getattr(o, "_learning_rate", o)) for o in optimizers],
        "metrics": [(id(v), v.numpy().tobytes()) for v in model.metrics_variables],
        "trainable": [layer.trainable for layer in model._flatten_layers()],
        "attributes": {name: id(value) for name, value in vars(model).items()},
        "lists": {name: len(value) for name, value in vars(model).items() if isinstance(value, list)},
        "layers": [sorted(vars(layer)) for layer in model.layers],
        "compiled": model.compiled,
        "keras": global_seed_generator().state.numpy().tobytes(),
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
    }


def drawn():
    """The next numbers of every generator there is."""
    numbers = [random.random(), np.random.rand()]  # noqa: NPY002
    return [*numbers, float(tf.random.uniform(())), float(keras.random.uniform(()))]


@pytest.mark.parametrize("kind", ["schedule", "two outputs", "own step", "eager", "loss scaling"])
def test_lr_finder_restores_everything(kind):
    model = net(kind)
    before = state(model)
    found = lr_finder(model, data_of(kind), rates=(1e-4, 1), **SHORT)
    assert state(model) == before
    assert np.isfinite(found.losses[:, 0]).all()
    assert len(np.unique(found.losses[:, :5])) == 10  # other batches in every repeat, and other losses at every step


def data_of(kind):
    return tf.data.Dataset.from_tensor_slices((X, labels(kind))).batch(8)


def test_lr_finder_changes_nothing_that_comes_after():
    """A model that was never trained: the next numbers and the next training are those without the test."""
    after, told = [], []
    for searched in (False, True):
        model = net(trained=False)
        before = state(model)
        assert before["built"] == [False]
        if searched:
            progress = lambda *count: told.append(count)  # noqa: E731
            lr_finder(model, Dataset(x=X, y=Y), **SHORT, rates=(1e-6, 1e-4), progress=progress)
            assert state(model) == before
        numbers = drawn()
        model.fit(X, Y, epochs=1, batch_size=16, verbose=0)
        after.append((numbers, [v.numpy().tobytes() for v in model.variables + model.optimizer.variables]))
    assert after[0] == after[1]
    assert told == [(step, 40) for step in range(1, 41)]


def test_lr_finder_restores_everything_after_an_interruption():
    model = net()

    def interrupt(done, total):
        if done == 26:  # in the second repeat
            raise KeyboardInterrupt

    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        lr_finder(model, X, Y, **SHORT, rates=(1e-6, 1e-4), progress=interrupt)
    assert state(model) == before


def test_lr_finder_suggests_nothing_where_the_loss_is_not_a_number():
    model = net()
    before = state(model)
    found = lr_finder(model, np.where(X > 3, np.float32(3e38), X), Y, **SHORT)
    assert found.suggestion is None
    assert found.low is None
    assert "the loss is not finite at a rate of 1e-06" in found.reason
    assert np.isnan(found.losses[:, 1:]).all()
    assert state(model) == before
    assert np.isfinite(model.get_weights()[0]).all()


def test_lr_finder_steps_with_its_rates():
    """By hand: SGD on (3 w - 27)² from w = 0 gives w ← w - 6 rate (3 w - 27)."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.123), "mse")
    data = (np.full((8, 1), 3.0, "float32"), np.full((8, 1), 27.0))
    found = lr_finder(model, data, rates=(1e-3, 3), steps=24, repeats=2)
    w, expected = 0.0, []
    for rate in np.geomspace(1e-3, 3, 24):
        expected.append((3 * w - 27) ** 2)
        w -= 6 * rate * (3 * w - 27)
    known = np.isfinite(found.losses[0])
    assert known.tolist() == [True] * 22 + [False] * 2  # two of the last three are above four times the start
    np.testing.assert_allclose(found.losses[0][known], np.array(expected)[known], rtol=1e-2, atol=1e-3)
    assert found.low == found.suggestion == found.high  # the repeats are equal here
    assert 0.002 < found.suggestion < 1 / 9  # from there on it diverges
    assert float(model.optimizer.learning_rate) == pytest.approx(0.123)


def test_lr_finder_suggests_a_good_rate():
    """A hundred times less is too slow, and a hundred times more too much, on data with a few wrong labels."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(256, 10)).astype("float32")
    y = np.where(rng.random(256) < 0.1, rng.integers(0, 2, 256), x[:, 0] + x[:, 1] > 0).astype("int32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), layers.Dense(32, "relu"), layers.Dense(2)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    found = lr_finder(model, x, y, batch_size=64, rates=(1e-6, 100), repeats=2)
    assert found.low <= found.suggestion <= found.high
    model.optimizer.build(model.trainable_variables)
    start, ends = [v.numpy() for v in model.variables + model.optimizer.variables], []
    for factor in (0.01, 1, 100):
        for variable, value in zip(model.variables + model.optimizer.variables, start):
            variable.assign(value)
        model.optimizer.learning_rate = factor * found.suggestion
        ends.append(model.fit(x, y, epochs=6, batch_size=32, verbose=0).history["loss"][-1])
    assert ends[1] < ends[0] - 0.05
    assert not ends[2] < ends[1] + 0.05  # it may be no number at all


def curve(rates, at=1e-3, noise=0.05, seed=0, repeats=3):
    """A loss that falls by half at one rate and goes up a hundred times above."""
    depth = np.log10(rates / at)
    clean = 2.3 - 1.8 / (1 + np.exp(-4 * depth)) + np.exp(6 * (depth - 2))
    return clean + noise * np.random.default_rng(seed).normal(size=(repeats, len(rates)))


RATES = np.geomspace(1e-6, 1, 100)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("at", [1e-4, 1e-3])
def test_suggest_finds_half_of_the_fall(noise, at):
    suggestion, low, high, reason = module._suggest(RATES, curve(RATES, at, noise))
    assert suggestion == pytest.approx(at, rel=0.5 if noise else 0.1)
    assert low <= suggestion <= high
    assert (low < high) == (noise > 0)
    assert f"Suggested: {suggestion:.2g}" in reason


def test_suggest_finds_nothing_in_noise():
    rng = np.random.default_rng(0)
    given = [module._suggest(RATES, 3 + rng.normal(size=(3, 100)))[0] for _ in range(100)]
    assert given == [None] * 100


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (np.ones((2, 100)), "the loss does not fall clearly at any rate"),
        (np.ones((2, 100)) - 0.005 * (RATES > 1e-3), "the loss does not fall clearly"),  # by half a hundredth
        (curve(RATES, 1e-6), "falls already at the lowest rate, 1e-06. Begin lower"),
        (curve(RATES, 1.0), "still falls at the highest rate, 1. Go higher"),
        (np.stack([curve(RATES, 3e-5)[0], curve(RATES, 1e-3)[0]]), "the repeats suggest rates from"),
        (np.stack([curve(RATES)[0], np.ones(100)]), "in 1 of 2 repeats the loss does not fall"),
        (np.where(RATES > 3e-6, np.nan, 1.0) * np.ones((2, 1)), "is not finite at a rate of 3"),
    ],
)
def test_suggest_says_why_there_is_nothing(losses, reason):
    suggestion, *_, said = module._suggest(RATES, losses)
    assert suggestion is None
    assert said.startswith("There is no clear suggestion: ")
    assert reason in said


def test_suggest_counts_each_reason():
    none = np.where(RATES > 3e-6, np.nan, 1.0)
    later = np.where(RATES > 4e-6, np.nan, 1.0)
    *_, said = module._suggest(RATES, np.stack([none, np.ones(100), curve(RATES)[0]]))
    assert "in 1 of 3 repeats the loss is not finite" in said
    assert "And in 1 of 3 repeats the loss does not fall clearly" in said
    *_, said = module._suggest(RATES, np.stack([none, np.ones(100), later]))
    assert "in 2 of 3 repeats the loss is not finite at a rate of 3" in said
    *_, said = module._suggest(RATES, np.stack([none, none, later]))
    assert said.startswith("There is no clear suggestion: the loss is not finite")


def test_lr_finder_takes_several_inputs():
    a, b = RNG.normal(size=(2, 32, 3)).astype("float32")
    losses = []
    for x in ({"a": a, "b": b}, (a, b), [a, b]):
        keras.utils.set_random_seed(0)
        entries = {name: keras.Input((3,), name=name) for name in "ab"}
        out = layers.Dense(1)(layers.Concatenate()([entries["a"], entries["b"]]))
        model = keras.Model(entries if isinstance(x, dict) else list(entries.values()), out)
        model.compile("sgd", "mse", jit_compile=False)
        losses.append(lr_finder(model, x, a[:, :1], **SHORT).losses)
    assert np.isfinite(losses[0][:, 0]).all()
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    lr_finder(model, [[1.0]] * 8, [2.0] * 8, **SHORT)  # a list of numbers is one input


def test_range_test_prints_80_columns():
    losses = curve(RATES)
    losses[0, 90:] = np.nan
    lines = str(RangeTest(RATES, losses, *module._suggest(RATES, losses))).splitlines()
    assert len(lines) == 13
    assert max(map(len, lines[:-1])) <= 80
    assert lines[1].split() == [
        "1.00e-06",
        *(f"{v:.4g}" for v in (np.median(losses[:, 0]), *sorted(losses[:, 0])[::2])),
    ]
    assert "2 of 3 repeats have a loss here" in lines[11]
    assert lines[-1].startswith("Suggested: ")


def test_lr_finder_names_what_is_invalid():
    model = net(trained=False)
    for wrong in ({"rates": (0, 1)}, {"rates": (1, 0.1)}, {"steps": 5}, {"repeats": 1}):
        with pytest.raises(ValueError, match="expected a rate above 0 and a higher one"):
            lr_finder(model, X, Y, **wrong)
    with pytest.raises(ValueError, match="str"):
        lr_finder(model, "pictures")
    layerwise_lr_decay(model.optimizer, stages_of(model), 0.5)
    with pytest.raises(ValueError, match="update_step was changed on the instance"):
        lr_finder(model, X, Y)
    model.compiled = False
    with pytest.raises(ValueError, match="is not compiled; call model"):
        lr_finder(model, X, Y)
    with pytest.raises(ValueError, match="is not built;"):
        lr_finder(keras.Sequential([layers.Dense(1)]), X, Y)


def test_lr_finder_leaves_nothing_in_a_saved_file(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=True)
    lr_finder(model, X, Y, **SHORT)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.optimizer.iterations == model.optimizer.iterations
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
