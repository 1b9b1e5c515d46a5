"""Going on with a trained model: what has the same name predicts the same, and what is new begins at zero."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Classification, MultiLabel, Phase, Plan, Regression, attach_head, fine_tune
from thaw.models import copy_model
from thaw.models.continuation import continue_head
from thaw.models.ensemble_heads import attach_ensemble_heads
from thaw.models.heads import compile_classifier

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
ANIMALS = ("ant", "bee", "wasp")


def randomize(model, seed=1):
    """Stand for training: draw every weight."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(0.1, 0.7, weight.shape))
    return model


def net(*last, compiled=None):
    model = randomize(keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu"), layers.Dropout(0.2), *last]))
    if compiled is not None:
        model.compile("adam", compiled)
    return model


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logits_by_hand(model):
    """The hidden layer and the head in NumPy, from the weights."""
    hidden, head = (layer for layer in model.layers if isinstance(layer, layers.Dense))
    kernel, bias = (np.asarray(w, np.float64) for w in hidden.weights)
    vector = np.maximum(X.astype(np.float64) @ kernel + bias, 0)
    kernel, bias = (np.asarray(w, np.float64) for w in head.weights)
    return vector @ kernel + bias


def test_classes_that_stay_keep_their_logits_and_new_ones_begin_at_zero():
    model = net(layers.Dense(3, "softmax", name="classes"))
    before = logits_by_hand(model)
    continued = continue_head(model, ANIMALS, Classification(["wasp", "fly", "ant"]))
    expected = np.stack([before[:, 2], np.zeros(len(X)), before[:, 0]], axis=1)
    assert np.allclose(logits_by_hand(continued), expected, atol=1e-6)
    assert np.allclose(np.asarray(continued(X)), softmax(expected), atol=1e-6)
    source = np.asarray(model(X))
    p = np.asarray(continued(X))
    assert np.allclose(p[:, 0] / p[:, 2], source[:, 2] / source[:, 0], rtol=1e-5)  # the ratios stay
    kernel, bias = continued.layers[-1].get_weights()
    assert not kernel[:, 1].any()
    assert bias[1] == 0
    assert (continued.loss, continued.layers[-1].name) == ("sparse_categorical_crossentropy", "classes")
    assert continued.layers[1] is model.layers[0]  # below the head it is the same model
    assert np.array_equal(np.asarray(model(X)), source)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_same_classes_in_another_order_are_predicted_the_same(order):
    model = net(layers.Dense(3), layers.Softmax())
    names = [ANIMALS[i] for i in order]
    continued = continue_head(model, Classification(ANIMALS), Classification(names))
    expected = np.asarray(model(X))[:, order]
    assert np.abs(np.asarray(continued(X)) - expected).max() < 1e-6


def test_logits_become_the_probabilities_that_they_stand_for():
    model = net(layers.Dense(3), compiled=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    continued = continue_head(model, ANIMALS, Classification(ANIMALS))
    assert np.allclose(np.asarray(continued(X)), softmax(logits_by_hand(model)), atol=1e-6)


def test_a_single_sigmoid_unit_is_the_second_of_two_classes():
    model = net(layers.Dense(1, "sigmoid"))
    yes = np.asarray(model(X))[:, 0]
    two = np.asarray(continue_head(model, ["no", "yes"], Classification(["yes", "no"]))(X))
    assert np.allclose(two, np.stack([yes, 1 - yes], axis=1), atol=1e-6)
    three = np.asarray(continue_head(model, ["no", "yes"], Classification(["no", "yes", "maybe"]))(X))
    assert np.allclose(three[:, 1] / three[:, 0], yes / (1 - yes), rtol=1e-4)
    assert np.allclose(three[:, 2], three[:, 0], atol=1e-6)  # both have the logit 0


@pytest.mark.parametrize("from_logits", [False, True])
def test_several_labels_keep_their_probabilities(from_logits):
    last = layers.Dense(3, None if from_logits else "sigmoid")
    model = net(last, compiled=keras.losses.BinaryCrossentropy(from_logits=from_logits))
    p = 1 / (1 + np.exp(-logits_by_hand(model)))
    continued = continue_head(model, ["red", "round", "old"], MultiLabel(["old", "small", "red"]))
    expected = np.stack([p[:, 2], np.full(len(X), 0.5), p[:, 0]], axis=1)
    assert np.allclose(np.asarray(continued(X)), expected, atol=1e-6)


def test_numbers_keep_their_units_where_they_are_standardized_otherwise():
    task = Regression(["price", "size"], mean=[100.0, 3.0], deviation=[40.0, 0.5])
    backbone = keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu")])
    model = randomize(attach_head(backbone, task))
    before = np.asarray(model(X))
    other = Regression(["age", "price"], mean=[30.0, 250.0], deviation=[9.0, 7.0])
    after = np.asarray(continue_head(model, task, other)(X))
    assert np.allclose(after, np.stack([np.full(len(X), 30.0), before[:, 0]], axis=1), rtol=1e-6)
    plain = continue_head(model, task, Regression(["size"]))  # not standardized
    assert np.allclose(np.asarray(plain(X))[:, 0], before[:, 1], atol=1e-5)
    again = continue_head(plain, ["size"], task)
    assert np.allclose(np.asarray(again(X))[:, 1], before[:, 1], atol=1e-5)


@pytest.mark.parametrize("numeric", [False, True])
def test_the_heads_of_an_ensemble(numeric):
    inputs = keras.Input((4,))
    members = keras.Model(inputs, layers.EinsumDense("bd,kdh->bkh", (3, 5), activation="tanh")(inputs))
    tasks = [Classification(["a", "b"]), Classification(["b", "c", "a"])]
    if numeric:
        more = Regression(["b", "c", "a"], [1.0, 2.0, 3.0], [4.0] * 3)
        tasks = [Regression(["a", "b"], [5.0, 9.0], [2.0, 3.0]), more]
    model = randomize(attach_ensemble_heads(members, tasks[0]))
    before = np.asarray(model(X))
    after = np.asarray(continue_head(model, tasks[0], tasks[1])(X))
    if numeric:
        expected = np.stack([before[:, 1], np.full(len(X), 2.0), before[:, 0]], axis=1)
        assert np.allclose(after, expected, rtol=1e-5)
    else:
        assert np.allclose(after[:, 2] / after[:, 0], before[:, 0] / before[:, 1], rtol=1e-4)
        same = np.asarray(continue_head(model, tasks[0], Classification(["b", "a"]))(X))
        assert np.abs(same - before[:, ::-1]).max() < 1e-6


def pictures(features, nested):
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for width in (4, 6):
        x = layers.ReLU()(layers.Conv2D(width, 3, 2, padding="same")(x))
    backbone = keras.Model(inputs, x, name="backbone")
    if nested:
        backbone = keras.Model(inputs, backbone(inputs), name="outer")
    return backbone, attach_head(backbone, Classification(ANIMALS), features=features)


@pytest.mark.parametrize(("features", "nested"), [("last", False), ("last", True), ("all", False)])
def test_backbones_of_pictures_also_nested_and_under_a_wide_head(features, nested):
    _, model = pictures(features, nested)
    model.layers[-1].set_weights([np.random.default_rng(2).normal(size=w.shape) for w in model.layers[-1].weights])
    x = np.random.default_rng(3).normal(size=(5, 8, 8, 3)).astype("float32")
    before = np.asarray(model(x))
    p = np.asarray(continue_head(model, ANIMALS, Classification([*ANIMALS, "fly"]))(x))
    assert np.allclose(p[:, :3] / p[:, :3].sum(axis=1, keepdims=True), before, atol=1e-6)
    assert not np.allclose(before, before[:1], atol=1e-3)  # the pictures differ, so that it says something


def test_half_precision_and_adapters_in_the_head():
    hidden = layers.Dense(6, "relu", dtype="mixed_bfloat16")
    head = layers.Dense(3, "softmax", use_bias=False)
    model = randomize(keras.Sequential([keras.Input((4,)), hidden, head]))
    head.enable_lora(2)
    head.lora_kernel_b.assign(np.full((2, 3), 0.3, "float32"))
    before = np.asarray(model(X))
    continued = continue_head(model, ANIMALS, Classification(ANIMALS[::-1]))
    assert np.abs(np.asarray(continued(X)) - before[:, ::-1]).max() < 1e-5
    assert not continued.layers[-1].bias.numpy().any()


def test_names_are_the_same_however_they_are_encoded():
    model = net(layers.Dense(2, "softmax"))
    before = np.asarray(model(X))
    names = Classification(["big cat", "\u00c4pfel"])
    after = np.asarray(continue_head(model, ["A\u0308pfel ", "big\u00a0cat"], names)(X))
    assert np.abs(after - before[:, ::-1]).max() < 1e-6


def test_a_name_that_may_be_meant_is_said():
    model = net(layers.Dense(2, "softmax"))
    with pytest.warns(UserWarning, match="'Bee' begins at zero, and differs in form only from 'bee'; if"):
        continue_head(model, ["ant", "bee"], Classification(["ant", "Bee"]))


def test_a_copy_is_trained_and_the_source_model_stays_as_it_is(tmp_path):
    model = net(layers.Dense(3, "softmax"))
    compile_classifier(model, Classification(ANIMALS))
    before = np.asarray(model(X))
    continued = continue_head(copy_model(model), ANIMALS, Classification([*ANIMALS, "fly"]))
    y = np.arange(len(X)) % 4
    fine_tune(continued, Plan([Phase(name="all", epochs=2, learning_rate=1e-2)]), X, y, verbose=0)
    assert np.array_equal(np.asarray(model(X)), before)
    assert continued.layers[-1].kernel.numpy()[:, 3].any()  # the class that is new has learned
    continued.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert np.array_equal(np.asarray(opened(X)), np.asarray(continued(X)))


CLASSES = Classification(ANIMALS)


@pytest.mark.parametrize(
    ("last", "labels", "task", "message"),
    [
        ("softmax", ANIMALS, 3, r"new_task=3; expected a task with the names of its classes, such as splits\.task"),
        ("softmax", "ant", CLASSES, "old_labels='ant'; expected a list of names, one for each output"),
        ("softmax", ["ant", "bee"], CLASSES, "old_labels are 2 names and .* has 3 outputs; expected as many"),
        ("softmax", ["ant", "bee", "ant "], CLASSES, "old_labels names 'ant' more than once"),
        (
            "softmax",
            ["x", "y", "z"],
            CLASSES,
            r"no name in common \(ant, bee, wasp and x, y, z\)",
        ),
        (
            "softmax",
            ANIMALS,
            MultiLabel(ANIMALS),
            "to predict one class of several, and new_task is about sev",
        ),
        ("sigmoid", ANIMALS, CLASSES, "to predict several labels at once, and new_task is about one class of several"),
        ("softmax", ANIMALS, Regression(ANIMALS), "to predict one class of several, and new_task is about numbers"),
        ("mse", ANIMALS, CLASSES, "to predict numbers, and new_task is about one class of several"),
        ("relu", ANIMALS, CLASSES, "does not end in a dense layer of vectors"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_one_sentence(last, labels, task, message):
    model = net(layers.Dense(3, last if last != "mse" else None), compiled="mse" if last == "mse" else None)
    with pytest.raises(ValueError, match=message) as caught:
        continue_head(model, labels, task)
    assert "\n" not in str(caught.value)


def test_a_subclassed_and_a_quantized_model_are_refused():
    class Net(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="is a subclassed model, whose graph cannot be read"):
        continue_head(Net(), ANIMALS, CLASSES)
    model = net(layers.Dense(3, "softmax"))
    model.layers[-1].quantize("int8")
    with pytest.raises(ValueError, match="is quantized; expected the model from before quantize"):
        continue_head(model, ANIMALS, CLASSES)
