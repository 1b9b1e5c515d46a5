"""BatchNorm's statistics describe what arrives, over all of the data."""

import _thread
import signal

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.retention.batchnorm import changed_batchnorms, estimate_batchnorm
from thaw.training.freezing import batchnorm_layers

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (50, 8, 8, 2)).astype("float32")
X[:25] += 4  # in order of two kinds, so that a batch is not like the whole


@keras.saving.register_keras_serializable("thaw-tests-estimate")
class Block(layers.Layer):
    """A layer made of layers, BatchNorm among them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(3), layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 3))
        self.built = True

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


def chain(depth=3):
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((8, 8, 2))
    for _ in range(depth):
        x = layers.Conv2D(4, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Dropout(0.5)(layers.ReLU()(x))
    return keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def arriving(model, layer, x=X):
    """Mean and variance of what arrives at a BatchNorm of a flat model, all at once and in double precision."""
    out = np.asarray(keras.Model(model.input, layer.input)(x, training=False), np.float64)
    return out.mean(axis=(0, 1, 2)), out.var(axis=(0, 1, 2))


def held(layer):
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


@pytest.mark.parametrize(("batch_size", "off"), [(50, 1e-4), (25, 0.25)])
def test_what_each_layer_holds_is_what_arrives_at_it(batch_size, off):
    """In one batch to rounding; in two batches nearly."""
    model = chain()
    assert estimate_batchnorm(model, X, batch_size=batch_size) == batchnorm_layers(model)
    for layer in batchnorm_layers(model):
        mean, variance = arriving(model, layer)
        assert (np.abs(held(layer)[0] - mean) / np.sqrt(variance)).max() < off
        np.testing.assert_allclose(np.sqrt(held(layer)[1]), np.sqrt(variance), rtol=off)


def test_the_first_layer_is_exact_whatever_the_batches():
    model = chain(1)
    for batch_size in (7, 50):
        (layer,) = estimate_batchnorm(model, X, batch_size=batch_size)
        mean, variance = arriving(model, layer)
        np.testing.assert_allclose(held(layer)[0], mean, rtol=1e-5)
        np.testing.assert_allclose(held(layer)[1], variance, rtol=1e-5)


def test_momentum_plays_no_part():
    model = chain(1)
    batchnorm_layers(model)[0].momentum = 0.9999
    estimate_batchnorm(model, X)
    np.testing.assert_allclose(
        held(batchnorm_layers(model)[0])[0], arriving(model, batchnorm_layers(model)[0])[0], rtol=1e-5
    )


def test_all_kinds_of_data_say_the_same():
    import tensorflow as tf

    found = []
    y = np.zeros(50, np.int32)
    kinds = (
        X,
        Dataset(x=X, y=y, augment=lambda x, seed: x * 0),
        tf.data.Dataset.from_tensor_slices(X).batch(9),
    )
    for data in kinds:
        model = chain(1)
        estimate_batchnorm(model, data)
        found.append(held(batchnorm_layers(model)[0]))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)


def test_wherever_the_layer_is():
    inner = keras.Sequential([keras.Input((2,)), Block()])
    entry = keras.Input((2,))
    model = keras.Model(entry, layers.Dense(1)(inner(entry)))
    x = X.reshape(-1, 2)[:40]
    (layer,) = estimate_batchnorm(model, x, batch_size=16)
    arrives = x @ inner.layers[0].dense.kernel.numpy()
    np.testing.assert_allclose(held(layer)[0], arrives.mean(0), rtol=1e-4)
    np.testing.assert_allclose(held(layer)[1], arrives.var(0), rtol=1e-4)


def test_other_axes_and_masked_steps():
    first = keras.Sequential([keras.Input((2, 5)), layers.BatchNormalization(axis=1)])
    x = RNG.normal(size=(6, 2, 5)).astype("float32")
    estimate_batchnorm(first, x, batch_size=4)
    np.testing.assert_allclose(held(first.layers[0])[1], x.var(axis=(0, 2)), rtol=1e-5)
    masked = keras.Sequential([keras.Input((5, 2)), layers.Masking(0.0), layers.BatchNormalization()])
    x = RNG.normal(size=(6, 5, 2)).astype("float32")
    x[:, 3:] = 0
    x[0, 1:] = 0
    estimate_batchnorm(masked, x, batch_size=4)
    rows = x[(x != 0).any(axis=-1)]
    np.testing.assert_allclose(held(masked.layers[1]), (rows.mean(0), rows.var(0)), rtol=1e-4)


def test_nothing_else_changes():
    model = chain()
    model.layers[2].trainable = False
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        variable.assign(variable + 3)  # as after some steps
    statistics = {id(v) for layer in batchnorm_layers(model) for v in layer.non_trainable_variables[-2:]}
    statistics |= {id(v) for layer in batchnorm_layers(model) for v in (layer.moving_mean, layer.moving_variance)}

    def others():
        variables = [*model.variables, *model.optimizer.variables]
        flags = [layer.trainable for layer in model.layers]
        attributes = [sorted(vars(layer)) for layer in model.layers]
        return [v.numpy().tobytes() for v in variables if id(v) not in statistics], flags, attributes, model.compiled

    before = others()
    estimate_batchnorm(model, X)
    assert others() == before


def test_layers_that_are_not_asked_for_stay():
    model = chain(2)
    first, second = batchnorm_layers(model)
    before = [v.tobytes() for v in held(first)]
    assert estimate_batchnorm(model, X, [second]) == (second,)
    assert [v.tobytes() for v in held(first)] == before
    np.testing.assert_allclose(held(second)[0], arriving(model, second)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_estimate_batchnorm_restores_everything_after_an_interruption(error):
    import tensorflow as tf

    model = chain(2)
    before = [v.numpy().tobytes() for v in model.variables]

    def batches():
        yield X[:20]
        if error is MemoryError:
            raise error
        for i in range(1000):
            if i % 200 == 0:  # again: one that comes inside a destructor is lost
                _thread.interrupt_main()  # as Ctrl-C does
            yield X[20:40]

    data = tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec((None, *X.shape[1:])))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
    try:
        with pytest.raises((KeyboardInterrupt, tf.errors.ResourceExhaustedError)) as raised:
            estimate_batchnorm(model, data)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert error.__name__ in f"{raised.type.__name__}: {raised.value}"
    assert [v.numpy().tobytes() for v in model.variables] == before


def test_wrong_data():
    model = chain(1)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        estimate_batchnorm(model, np.where(X > 9, np.nan, X))
    import tensorflow as tf

    with pytest.raises(ValueError, match="There are no examples"):
        estimate_batchnorm(model, tf.data.Dataset.from_tensor_slices(X[:0]).batch(2))
    with pytest.raises(ValueError, match="expected"):
        estimate_batchnorm(model, "pictures")


def test_a_model_without_batchnorm():
    assert estimate_batchnorm(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), X[:, 0, 0]) == ()


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ("conv1.kernel", ["bn1", "bn2"]),
        ("conv2.bias", ["bn2"]),
        ("bn1.gamma", ["bn2"]),
        ("bn1.moving_mean", ["bn2"]),
        ("bn2.beta", []),
        ("head.kernel", []),
        (None, []),
    ],
)
def test_where_something_else_arrives(changed, found):
    x = entry = keras.Input((8, 8, 2))
    for i in (1, 2):
        x = layers.ReLU()(layers.BatchNormalization(name=f"bn{i}")(layers.Conv2D(3, 3, name=f"conv{i}")(x)))
    model = keras.Model(entry, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))
    before = model.get_weights()
    if changed:
        layer, weight = changed.split(".")
        variable = getattr(model.get_layer(layer), weight)
        variable.assign(variable + 1)
    assert [layer.name for layer in changed_batchnorms(model, [before, model.get_weights()])] == found


def test_inside_a_layer_nobody_can_see_what_is_in_front():
    model = keras.Sequential([keras.Input((2,)), Block(), layers.Dense(1)])
    before = model.get_weights()
    model.layers[0].dense.bias.assign_add([1, 1, 1])
    assert changed_batchnorms(model, [before, model.get_weights()]) == (model.layers[0].norm,)


class Plain(layers.Layer):
    """A layer made of layers that takes no ``training`` argument, with dropout inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.drop, self.norm = layers.Dropout(0.5), layers.BatchNormalization(momentum=0.9)

    def build(self, shape):
        self.norm.build(shape)
        self.built = True

    def call(self, x):
        return self.norm(self.drop(x))


def test_estimate_batchnorm_of_layers_made_of_layers_without_dropout():
    entry = keras.Input((2,))
    last = layers.BatchNormalization()
    model = keras.Model(entry, last(layers.Dropout(0.5)(Plain()(entry))))
    x = X.reshape(-1, 2)[:40]
    before = [v.numpy().tobytes() for v in model.layers[1].norm.trainable_variables]
    inner, outer = estimate_batchnorm(model, x, batch_size=40)
    assert (inner, outer) == (model.layers[1].norm, last)
    np.testing.assert_allclose(held(inner)[0], x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(held(inner)[1], x.var(0), rtol=1e-4)
    np.testing.assert_allclose(held(outer)[1], x.var(0) / (x.var(0) + 1e-3), rtol=1e-4)
    assert inner.momentum == 0.9
    assert model.layers[1].drop.rate == 0.5
    assert [v.numpy().tobytes() for v in inner.trainable_variables] == before


def test_estimate_batchnorm_refuses_a_layer_that_cannot_be_copied():
    class Opaque(Plain):
        def __init__(self, size):
            super().__init__()

        def get_config(self):
            return {}

    model = keras.Sequential([keras.Input((2,)), Opaque(3)])
    with pytest.raises(ValueError, match=r"cannot be copied from its config \(.*; let get_config return every"):
        estimate_batchnorm(model, X.reshape(-1, 2))
