"""linear_head: the features that a model's predictions are linear in."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw import attach_head
from thaw.features.split import submodel
from thaw.models.flat import flatten_model
from thaw.models.linear_heads import linear_head


def net(*last):
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu", name="conv"), *last])


POOLED = (layers.GlobalAveragePooling2D, lambda: layers.Dropout(0.5, name="drop"))


@pytest.mark.parametrize(
    ("last", "activation", "width"),
    [
        (lambda: [layers.Dense(3, "softmax", name="last")], "softmax", 4),
        (lambda: [layers.Dense(1, "sigmoid", name="last")], "sigmoid", 4),
        (lambda: [layers.Dense(3, name="last")], "linear", 4),
        (lambda: [layers.Dense(3, name="last"), layers.Softmax()], "softmax", 4),
        (lambda: [layers.Dense(3, name="last"), layers.Activation("softmax", dtype="float32")], "softmax", 4),
        (lambda: [layers.Dense(3, name="last"), layers.Activation("sigmoid")], "sigmoid", 4),
        (lambda: [layers.Dense(64, "relu"), layers.Dense(3, "softmax", name="last")], "softmax", 64),
        (lambda: [layers.Dense(3, "softmax", name="last"), layers.Activation("linear")], "softmax", 4),
    ],
)
def test_narrow_heads(last, activation, width):
    flat = flatten_model(net(*(make() for make in POOLED), *last()))
    head = linear_head(flat)
    assert (head.dense.name, head.activation, head.norms, head.clip) == ("last", activation, (), None)
    assert [t.shape for t in head.inputs] == [(None, width)]
    head.dense.bias.assign(np.arange(head.dense.units, dtype="float32"))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    logits = np.asarray(submodel(flat, None, head.inputs)(x)) @ head.dense.kernel.numpy() + head.dense.bias.numpy()
    activate = {"linear": np.asarray, "softmax": keras.ops.softmax, "sigmoid": keras.ops.sigmoid}[activation]
    np.testing.assert_allclose(np.asarray(activate(logits)), flat(x), atol=1e-6)


def test_inputs_of_a_narrow_head_lie_before_its_dropout():
    flat = flatten_model(net(*(make() for make in POOLED), layers.Dense(3)))
    submodel(flat, None, linear_head(flat).inputs)
    assert not [layer for layer in submodel(flat, None, linear_head(flat).inputs).layers if layer.name == "drop"]


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_wide_heads(dropout):
    backbone = net(layers.Conv2D(6, 3, 2, "same", activation="relu"), layers.Conv2D(8, 3, 2, "same"))
    model = attach_head(backbone, 3, features="all", dropout=dropout)
    rng = np.random.default_rng(0)
    for w in model.weights:
        w.assign(rng.uniform(0.2, 1, w.shape))
    head = linear_head(model)
    assert (head.activation, head.clip, len(head.norms)) == ("softmax", 5.0, len(head.inputs))
    assert sum(t.shape[-1] for t in head.inputs) == head.dense.kernel.shape[0]
    x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    raw = submodel(model, None, head.inputs)(x)
    rows = [
        np.clip((np.asarray(a) - n.moving_mean.numpy()) / np.sqrt(n.moving_variance.numpy() + n.epsilon), -5, 5)
        for a, n in zip(raw, head.norms)
    ]
    logits = np.concatenate(rows, 1) @ head.dense.kernel.numpy() + head.dense.bias.numpy()
    np.testing.assert_allclose(np.asarray(keras.ops.softmax(logits)), model(x), atol=1e-5)


@pytest.mark.parametrize(
    "last",
    [
        list,
        lambda: [layers.Flatten(), layers.Dense(3, "relu")],
        lambda: [layers.Dense(3, "softmax")],
        lambda: [layers.Flatten(), layers.Dense(3, "relu"), layers.Softmax()],
        lambda: [layers.Flatten(), layers.Dense(3, "softmax"), layers.Softmax()],
        lambda: [layers.Flatten(), layers.Dense(3), layers.BatchNormalization()],
        lambda: [layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(3, 1), layers.Flatten(), layers.Softmax()],
    ],
)
def test_heads_that_are_not_linear(last):
    with pytest.raises(
        ValueError, match=r"does not end in a dense layer of vectors.*: attach_head\(backbone, task\)\."
    ):
        linear_head(flatten_model(net(*last())))


def test_models_that_are_not_flat():
    with pytest.raises(ValueError, match=r"is nested or has no graph; expected a flat model: flatten_model\(model\)"):
        linear_head(keras.Sequential([keras.Input((8, 8, 3)), net(layers.Flatten(), layers.Dense(2))]))
    entry = keras.Input((4,))
    with pytest.raises(ValueError, match="has 2 outputs; expected one, behind a dense layer"):
        linear_head(keras.Model(entry, [layers.Dense(2)(entry), layers.Dense(2)(entry)]))
