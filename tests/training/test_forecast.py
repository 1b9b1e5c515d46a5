"""What a plan would do, without doing it."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.heads import attach_head
from thaw.plan import Phase, Plan
from thaw.training.forecasting import forecast


def net():
    entry = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, 2, padding="same", use_bias=False)(entry))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, 2, padding="same", use_bias=False)(x))
    model = attach_head(keras.Model(entry, x), 3)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


PLAN = Plan(
    [
        Phase(name="head", epochs=2, train="head", learning_rate=1e-2, views=2),
        Phase(name="top", epochs=3, train=1, learning_rate=1e-3, layer_decay=0.5, batchnorm="trained"),
        Phase(name="all", epochs=1, learning_rate=1e-4),
    ]
)


def test_by_hand():
    head, top, everything = forecast(net(), PLAN, (40, 10), measure=False)
    assert (head.phase, head.stages, head.parameters, head.rates) == ("head", ("head",), 6 * 3 + 3, {"head": 1e-2})
    assert top.stages == ("stage2", "head")
    assert top.parameters == 21 + 3 * 3 * 4 * 6 + 12
    assert top.rates == {"stage2": 5e-4, "head": 1e-3}
    assert everything.parameters == 21 + 216 + 36
    assert everything.rates == {"stage1": 1e-4, "stage2": 1e-4, "head": 1e-4}
    assert [f.seconds for f in (head, top, everything)] == [0, 0, 0]


def test_it_leaves_the_model_as_it_was():
    model = net()
    model.layers[1].trainable = False
    model.compile("adam", "mse")
    flags = [layer.trainable for layer in model._flatten_layers()]
    trainable = [v.trainable for v in model.weights]
    state = [v.numpy() for v in [*model.trainable_variables, *model.non_trainable_variables]]
    found = forecast(model, PLAN, (40, 10), batch_size=8)
    assert all(forecast.seconds > 0 for forecast in found)
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    assert [v.trainable for v in model.weights] == trainable
    now = [*model.trainable_variables, *model.non_trainable_variables]
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(state, now))
    assert model.compiled


def test_a_stage_that_is_not_there():
    model = net()
    model.compile("adam", "mse")
    flags = [layer.trainable for layer in model._flatten_layers()]
    with pytest.raises(ValueError, match='The model has no stage "stage7"'):
        forecast(model, Plan([PLAN[0], Phase(name="b", epochs=1, train="stage7")]), (4, 4), measure=False)
    assert model.compiled
    assert [layer.trainable for layer in model._flatten_layers()] == flags


def test_a_sequential_model_that_nobody_has_called():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2, "softmax")])
    plan = Plan([Phase(name="all", epochs=2)])
    (found,) = forecast(model, plan, (40, 10))
    assert 0 < found.seconds_before < found.seconds
    (longer,) = forecast(model, Plan([Phase(name="all", epochs=10**6)]), (40, 10))
    assert longer.seconds - longer.seconds_before > 1000 * (found.seconds - found.seconds_before)


def test_forecast_leaves_lora_as_it_is():
    """The base kernel stays frozen, during the forecast and after it."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2, "softmax")])
    model.layers[0].enable_lora(2)
    flags = [v.trainable for v in model.weights]
    (forecasted,) = forecast(model, Plan([Phase(name="all", epochs=1)]), (40, 10), measure=False)
    assert forecasted.parameters == 4 * 2 + 2 * 8 + 8 + 8 * 2 + 2
    assert [v.trainable for v in model.weights] == flags
    assert flags.count(False) == 1
