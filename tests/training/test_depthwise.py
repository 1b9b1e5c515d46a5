"""Gradients of wide depthwise filters, against TensorFlow's own."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.data.conversion import as_dataset
from thaw.finetune import fine_tune
from thaw.models.flat import flatten_model
from thaw.plan import Phase, Plan
from thaw.training.callbacks import TuneCallback
from thaw.training.depthwise import with_fast_depthwise


def one_layer(size, strides=1, shape=(9, 8, 6), **options):
    keras.utils.set_random_seed(0)
    entry = keras.Input(shape)
    options = {"padding": "same", "bias_initializer": "uniform"} | options
    return keras.Model(entry, layers.DepthwiseConv2D(size, strides, name="depthwise", **options)(entry))


def gradients(model, x):
    """Outputs, and the gradients of inputs, kernel and bias for a random upstream gradient, in a graph as in fit."""

    @tf.function
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x)
            weight = tf.random.stateless_normal(tf.shape(y), (1, 2))
            loss = tf.reduce_sum(weight * y)
        return y, tape.gradient(loss, [x, *(v.value for v in model.trainable_variables)])

    return compute(x)


@pytest.mark.parametrize("options", [{}, {"use_bias": False, "activation": "relu"}])
@pytest.mark.parametrize("size", [5, (3, 5), (7, 5)])
def test_gradients_are_those_of_tensorflow(size, options):
    model = one_layer(size, **options)
    fast = with_fast_depthwise(model, model)
    assert fast is not model
    assert type(fast.layers[-1]) is not layers.DepthwiseConv2D
    x = tf.constant(np.random.default_rng(0).normal(size=(5, *model.input_shape[1:])).astype("float32"))
    (expected, wanted), (outputs, given) = gradients(model, x), gradients(fast, x)
    np.testing.assert_array_equal(outputs, expected)
    assert len(given) == len(wanted) == 1 + len(model.trainable_variables)
    for one, other in zip(given, wanted):
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()


def test_gradient_of_a_filter_by_hand():
    """One channel in a row: the gradient of tap j sums the inputs j - 2 to the right, over two examples."""
    model = one_layer((1, 5), shape=(1, 3, 1), use_bias=False)
    fast = with_fast_depthwise(model, model)
    x = tf.constant([[1.0, 2, 3], [10, 0, 0]])[:, None, :, None]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fast(x) * tf.constant([0.0, 1, 100])[None, None, :, None])
    (gradient,) = tape.gradient(loss, [v.value for v in fast.trainable_variables])
    assert gradient.numpy().ravel().tolist() == [100 + 1000, 201 + 10, 2 + 300, 3, 0]


@pytest.mark.parametrize(
    "model",
    [
        lambda: one_layer(3),  # TensorFlow's own are fast
        lambda: one_layer((5, 3)),
        lambda: one_layer(5, 2),
        lambda: one_layer(4),
        lambda: one_layer(5, padding="valid"),
        lambda: one_layer(5, dilation_rate=2),
        lambda: one_layer(5, depth_multiplier=2),
        lambda: one_layer(5, dtype="mixed_bfloat16"),
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]),
    ],
)
def test_other_layers_stay(model):
    model = model()
    assert with_fast_depthwise(model, flatten_model(model)) is model


def test_a_model_without_a_graph_stays():
    model = one_layer(5)
    assert with_fast_depthwise(model, None) is model


def test_a_frozen_filter_stays():
    model = one_layer(5)
    model.layers[-1].kernel.trainable = False
    assert with_fast_depthwise(model, model) is model


def net(nested=False):
    keras.utils.set_random_seed(0)
    entry = keras.Input((16, 16, 3))
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu", name="stem")(entry)
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu", name="top")(x)
    for i in range(2):
        y = layers.DepthwiseConv2D(5, padding="same", use_bias=False, name=f"wide{i}")(x)
        y = layers.Conv2D(6, 1, name=f"point{i}")(layers.ReLU()(layers.BatchNormalization()(y)))
        x = layers.Add()([x, y])
    backbone = keras.Model(entry, x)
    if nested:
        entry = keras.Input((16, 16, 3))
        x = backbone(entry)
    x = layers.Dense(2, "softmax", name="out")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 16, 16, 3)).astype("float32"), np.arange(16) % 2
    x[y == 1, 2:5, 2:5] += 2
    return x, y


def phase(**options):
    return Phase(**{"name": "top", "epochs": 2, "learning_rate": 0.1, "train": 1} | options)


def train(model, plan, **options):
    x, y = data()
    return fine_tune(model, Plan(plan), x, y, validation_data=(x, y), batch_size=8, verbose=0, **options)


def arrays(model):
    return [w.numpy() for w in model.weights]


@pytest.mark.parametrize("nested", [False, True])
def test_fine_tune_trains_as_keras_does(nested):
    """Cached and live, SGD gives the weights that plain fit gives, in the order of the examples."""
    model = net(nested)
    trained = train(model, [phase(train="all", epochs=1, schedule="constant", warmup=0)])
    assert len(trained.epoch) == 1
    plain = net(nested)
    for layer in plain._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    plain.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    x, y = data()
    plain.fit(as_dataset(x, y).epochs(8, 0), steps_per_epoch=2, epochs=1, shuffle=False, verbose=0)
    for one, other in zip(arrays(model), arrays(plain)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_cached_is_as_live(monkeypatch, tmp_path):
    cached, live = net(), net()
    train(cached, [phase()])
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    monkeypatch.setenv("THAW_CACHE_GB", "0")
    notes = train(live, [phase()]).notes
    assert any("all of the model is computed in every epoch" in note for note in notes)
    for one, other in zip(arrays(cached), arrays(live)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


class StopAfter(TuneCallback):
    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epochs:
            raise KeyboardInterrupt


def test_a_resumed_run_is_bit_identical(tmp_path):
    whole, stopped = net(), net()
    plan = [phase(epochs=3)]
    train(whole, plan)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, plan, backup_dir=tmp_path, callbacks=[StopAfter(2)])
    resumed = net()
    train(resumed, plan, backup_dir=tmp_path)
    assert all(np.array_equal(one, other) for one, other in zip(arrays(whole), arrays(resumed)))


def test_a_saved_model_holds_nothing_of_ours(tmp_path):
    model = net()
    train(model, [phase(epochs=1)])
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    model.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras")
    assert "FastDepthwise" not in opened.to_json()
    assert "thaw" not in opened.to_json()
    x = data()[0]
    np.testing.assert_array_equal(opened.predict(x, verbose=0), model.predict(x, verbose=0))
