"""solve_head: the weights that scikit-learn finds on the same features, and nothing else changed."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.linear_model import LogisticRegression, Ridge

from thaw import Dataset, attach_head
from thaw.features.split import submodel
from thaw.models.linear_heads import linear_head
from thaw.transfer import CannotSolve, solve_head


def backbone(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    return keras.Model(inputs, x, name="net")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 8, 8, 3)).astype("float32") + 0.6 * y[:, None, None, None] * (np.arange(8) % 2)[:, None]
    return x.astype("float32"), y


def features_of(model, x):
    return np.concatenate(
        [np.asarray(part) for part in keras.tree.flatten(submodel(model, None, linear_head(model).inputs)(x))], axis=-1
    )


def spread_of(raw):
    """Standard deviations, of which those below half of the median are raised to it, where the head folds them in."""
    varies = raw.std(0) > 1e-6
    return np.maximum(raw.std(0), 0.5 * np.sqrt(np.median(raw.var(0)[varies])))


def log_loss(p, y):
    return -np.log(p[np.arange(len(y)), y]).mean()


@pytest.mark.parametrize("features", ["last", "all"])
def test_is_logistic_regression_on_standardized_features(features, pictures, tmp_path):
    x, y = pictures
    model = attach_head(backbone(), 3, features=features)
    before = [w.numpy() for w in model.layers[1].weights + model.layers[2].weights]
    raw = features_of(model, x)
    readout = solve_head(model, x, y, cache_dir=tmp_path)
    z = (raw - raw.mean(0)) / (np.maximum(raw.std(0), 1e-9) if features == "all" else spread_of(raw))
    z = np.clip(z, -5, 5) if features == "all" else z
    z = z[:, raw.std(0) > 1e-6]
    oracle = LogisticRegression(C=readout.strength / raw.shape[1], tol=1e-8, max_iter=10_000).fit(z, y)
    logits = oracle.decision_function(z) / readout.temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    predicted = model.predict(x, verbose=0)
    assert log_loss(predicted, y) == pytest.approx(log_loss(p, y), abs=1e-4)
    np.testing.assert_allclose(predicted, p, atol=2e-3)
    after = [w.numpy() for w in model.layers[1].weights + model.layers[2].weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    assert model.compiled


def test_one_logit_is_that_of_two_classes(pictures, tmp_path):
    x, y = pictures
    x, y = x[y < 2], y[y < 2]
    net = backbone()
    pooled = layers.GlobalAveragePooling2D()(net.output)
    two = keras.Model(net.input, layers.Dense(2, "softmax")(pooled))
    two.compile("adam", "sparse_categorical_crossentropy")
    one = keras.Model(net.input, layers.Dense(1)(pooled))
    one.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    sigmoid = keras.Model(net.input, layers.Dense(1, "sigmoid")(pooled))
    sigmoid.compile("adam", "binary_crossentropy")
    for model in (two, one, sigmoid):
        solve_head(model, x, y, cache_dir=tmp_path)
    of_two = two.predict(x, verbose=0)[:, 1]
    np.testing.assert_allclose(sigmoid.predict(x, verbose=0)[:, 0], of_two, atol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-one.predict(x, verbose=0)[:, 0])), of_two, atol=1e-5)


def test_one_hot_labels_and_logits(pictures, tmp_path):
    x, y = pictures
    net = backbone()
    pooled = layers.Flatten()(net.output)
    probabilities = keras.Model(net.input, layers.Dense(3, "softmax")(pooled))
    probabilities.compile("adam", "sparse_categorical_crossentropy")
    logits = keras.Model(net.input, layers.Activation("linear")(layers.Dense(3)(layers.Dropout(0.5)(pooled))))
    logits.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    solve_head(probabilities, x, y, cache_dir=tmp_path)
    solve_head(logits, x, np.eye(3)[y], cache_dir=tmp_path)
    softmax = keras.ops.softmax(logits.predict(x, verbose=0)).numpy()
    np.testing.assert_allclose(softmax, probabilities.predict(x, verbose=0), atol=1e-5)


def test_a_class_weight_is_a_sample_weight(pictures, tmp_path):
    x, y = pictures
    models = [attach_head(backbone(), 3) for _ in range(3)]
    solve_head(models[0], x, y, class_weight={0: 3.0}, cache_dir=tmp_path)
    solve_head(models[1], x, y, sample_weight=np.where(y == 0, 3.0, 1.0), cache_dir=tmp_path)
    solve_head(models[2], x, y, cache_dir=tmp_path)
    kernels = [model.layers[-1].kernel.numpy() for model in models]
    assert np.array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3


def test_ridge_for_numbers(pictures, tmp_path):
    x, y = pictures
    targets = np.stack([y + 0.1 * x[:, 0, 0, 0], -2.0 * y], 1)
    model = keras.Sequential([backbone(), layers.GlobalAveragePooling2D(), layers.Dense(2)])
    model.build((None, 8, 8, 3))
    model.compile("adam", "mse")
    readout = solve_head(model, x, targets, solver="ridge", cache_dir=tmp_path)
    raw = np.asarray(keras.ops.mean(model.layers[0](x), (1, 2)))
    varies = raw.std(0) > 1e-6
    z = (raw[:, varies] - raw[:, varies].mean(0)) / spread_of(raw)[varies]
    oracle = Ridge(raw.shape[1] / readout.strength).fit(z, targets)
    np.testing.assert_allclose(model.predict(x, verbose=0), oracle.predict(z), atol=1e-3)


def test_views_are_fitted_together_and_stay_in_one_fold(pictures, tmp_path):
    """With two views of every example, one of them noise, folds by rows would read the labels from the other view."""
    import tensorflow as tf

    x, y = np.random.default_rng(1).normal(size=(90, 8, 8, 3)).astype("float32"), np.arange(90) % 3

    def same(x, seed):
        return x + 0.0 * tf.cast(seed[0], tf.float32)

    same.identity = "same"
    model = attach_head(backbone(), 3, features="all")
    readout = solve_head(model, Dataset(x=x, y=y, augment=same), views=2, cache_dir=tmp_path)
    assert readout.cross_validation.logits.shape == (180, 3)
    accuracy = (readout.cross_validation.logits.argmax(1) == np.tile(y, 2)).mean()
    assert accuracy < 0.5  # the labels are chance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}, "softmax"),
        ({"loss": lambda y, p: keras.ops.mean(p)}, "not one of Keras"),
        ({"loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=2)}, "ignores a class"),
        ({"loss": "mse"}, "crossentropy"),
    ],
)
def test_what_it_cannot_solve_is_said(change, message, pictures):
    x, y = pictures
    model = attach_head(backbone(), 3)
    model.compile("adam", **change)
    before = [w.numpy() for w in model.weights]
    with pytest.raises(CannotSolve, match=message):
        solve_head(model, x, y)
    assert all(np.array_equal(a, b) for a, b in zip(before, [w.numpy() for w in model.weights]))


def test_a_stream_is_refused(pictures):
    import tensorflow as tf

    x, y = pictures
    with pytest.raises(CannotSolve, match="its own order"):
        solve_head(attach_head(backbone(), 3), tf.data.Dataset.from_tensor_slices((x, y)).batch(8))


def dense_of(**options):
    net = backbone()
    last = layers.Dense(3, "softmax", **options)
    model = keras.Model(net.input, last(layers.GlobalAveragePooling2D()(net.output)))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model, last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_constraint": keras.constraints.NonNeg()}, "kernel_constraint"),
        ({"kernel_regularizer": "l2"}, "kernel_regularizer"),
        ({"activity_regularizer": "l2"}, "activity_regularizer"),
        ({"use_bias": False}, "no bias"),
        ({"trainable": False}, "is frozen"),
    ],
)
def test_what_a_solver_does_not_keep_to_is_refused(options, message, pictures):
    x, y = pictures
    model, last = dense_of(**options)
    before = last.kernel.numpy()
    with pytest.raises(CannotSolve, match=message):
        solve_head(model, x, y)
    assert np.array_equal(before, last.kernel.numpy())


def test_a_layer_between_the_features_and_the_dense_layer_is_part_of_the_features(pictures, tmp_path):
    """Not passed over: then the solution would be that of another model."""
    x, y = pictures
    wide = attach_head(backbone(), 3, features="all")
    between = layers.Activation("relu")(wide.get_layer("head_features").output)
    model = keras.Model(wide.input, layers.Dense(3, "softmax")(between))
    model.compile("adam", "sparse_categorical_crossentropy")
    norms = [w.numpy() for layer in wide.layers if layer.name.endswith("norm") for w in layer.weights]
    readout = solve_head(model, x, y, cache_dir=tmp_path)
    features = keras.Model(wide.input, between).predict(x, verbose=0)
    logits = readout.logits(features)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    after = [w.numpy() for layer in wide.layers if layer.name.endswith("norm") for w in layer.weights]
    assert all(np.array_equal(a, b) for a, b in zip(norms, after))


def test_a_dense_layer_that_is_called_twice_is_refused(pictures):
    x, y = pictures
    net = backbone()
    last = layers.Dense(8)
    vector = layers.GlobalAveragePooling2D()(net.output)
    model = keras.Model(net.input, last(layers.Activation("tanh")(last(vector))))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(CannotSolve, match="more than once"):
        solve_head(model, x, y)


def test_channels_that_hardly_vary_are_constants_for_solver_and_model(pictures, tmp_path):
    x, y = pictures
    net = backbone()
    tiny = layers.Conv2D(4, 1, activation="relu")
    small = keras.Model(net.input, tiny(net.output))
    tiny.kernel.assign(1e-8 * tiny.kernel)
    model = attach_head(small, 3, features="all")
    raw = features_of(model, x)
    readout = solve_head(model, x, y, cache_dir=tmp_path)
    logits = readout.logits(raw)
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(model.predict(x, verbose=0), p / p.sum(1, keepdims=True), atol=1e-4)


def test_mistakes_are_found_before_anything_is_computed(pictures):
    x, y = pictures
    batches = []
    for options, message in (
        ({"solver": "newton"}, "solver='newton'; expected one of lbfgs, svm, ridge"),
        ({"seed": -1}, "seed"),
        ({"groups": [1, 2]}, "There are 2 groups for 90 examples"),
    ):
        with pytest.raises(ValueError, match=message):
            solve_head(attach_head(backbone(), 3), x, y, progress=lambda *given: batches.append(given), **options)
    with pytest.raises(CannotSolve, match="go from 0 to 2"):
        solve_head(attach_head(backbone(), 2), x, y)
    assert not batches
