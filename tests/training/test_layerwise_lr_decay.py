"""Rates that fall from stage to stage, exact under every kind of optimizer."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers, optimizers

from thaw.models.stages import stages_of
from thaw.training.optimizers import layerwise_lr_decay


def net(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, activation="tanh"), layers.Dense(3, activation="tanh"), layers.Dense(1)]
    )


def gradients(steps=3):
    rng = np.random.default_rng(0)
    shapes = [(4, 5), (5,), (5, 3), (3,), (3, 1), (1,)]  # of the net
    return [[rng.normal(size=shape).astype("float32") for shape in shapes] for _ in range(steps)]


def moved(optimizer, model, variables):
    optimizer.build(variables)
    where = [any(v is w for w in variables) for v in model.trainable_variables]
    for step in gradients():
        optimizer.apply([g for g, here in zip(step, where) if here])


OPTIMIZERS = {
    "momentum": lambda rate: optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "decay": lambda rate: optimizers.SGD(rate, weight_decay=0.3),
    "amsgrad": lambda rate: optimizers.Adam(rate, amsgrad=True),
    "adam": lambda rate: optimizers.Adam(rate),
    "adamw": lambda rate: optimizers.AdamW(rate, weight_decay=0.3),
    "lion": lambda rate: optimizers.Lion(rate, weight_decay=0.3),
    "rmsprop": lambda rate: optimizers.RMSprop(rate, momentum=0.5),
    "adagrad": lambda rate: optimizers.Adagrad(rate),
    "schedule": lambda rate: optimizers.AdamW(
        optimizers.schedules.PolynomialDecay(rate, 10, end_learning_rate=0.0), weight_decay=0.3
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layerwise_lr_decay_trains_each_stage_as_with_an_optimizer_of_its_own(name):
    make = OPTIMIZERS[name]
    model = net()
    start = model.get_weights()
    moved(layerwise_lr_decay(make(0.1), stages_of(model), 0.5), model, model.trainable_variables)
    for stage, factor in zip((0, 1, 2), (0.25, 0.5, 1.0)):
        other = net()
        moved(make(0.1 * factor), other, other.layers[stage].trainable_variables)
        for i in (2 * stage, 2 * stage + 1):
            ours, plain = model.weights[i].numpy(), other.weights[i].numpy()
            np.testing.assert_allclose(ours, plain, rtol=2e-6, atol=1e-7)
            assert not np.array_equal(ours, start[i])


def test_one_step_by_hand():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False), layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[2.0]])
    model.layers[1].kernel.assign([[3.0]])
    model.compile(layerwise_lr_decay(optimizers.SGD(0.01), stages_of(model), 0.1), "mse")
    model.fit(np.array([[1.0]]), np.array([[5.0]]), verbose=0)
    # y = 6, error 1: d/da = 2 * 1 * b * x = 6 and d/db = 2 * 1 * a * x = 4.
    assert float(model.layers[0].kernel[0, 0]) == pytest.approx(2 - 0.1 * 0.01 * 6, rel=1e-6)
    assert float(model.layers[1].kernel[0, 0]) == pytest.approx(3 - 0.01 * 4, rel=1e-6)


def test_decoupled_decay_by_hand():
    """With no gradient AdamW only decays: by rate times decay, each stage at its own rate."""
    model = net()
    before = [w.numpy() for w in model.weights]
    optimizer = layerwise_lr_decay(optimizers.AdamW(0.1, weight_decay=0.5), stages_of(model), 0.5)
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables])
    for old, now, factor in zip(before, model.weights, (0.25, 0.25, 0.5, 0.5, 1, 1)):
        np.testing.assert_allclose(now.numpy(), old * (1 - 0.1 * factor * 0.5), rtol=1e-6)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


def test_what_is_left_out_of_the_decay_stays_out():
    model = net()
    optimizer = optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    for layer in model.layers:
        layer.bias.assign(np.ones(layer.bias.shape))
    layerwise_lr_decay(optimizer, stages_of(model), 0.5).build(model.trainable_variables)
    optimizer.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables])
    assert all(np.array_equal(layer.bias.numpy(), np.ones(layer.bias.shape)) for layer in model.layers)


def test_one_clip_norm_over_all_stages():
    model = net()
    before = [w.numpy() for w in model.weights]
    optimizer = layerwise_lr_decay(optimizers.SGD(1.0, global_clipnorm=0.5), stages_of(model), 0.5)
    optimizer.build(model.trainable_variables)
    step = gradients(1)[0]
    optimizer.apply(step)
    norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in step))
    assert norm > 0.5
    for old, now, g, factor in zip(before, model.weights, step, (0.25, 0.25, 0.5, 0.5, 1, 1)):
        np.testing.assert_allclose(now.numpy(), old - factor * g * 0.5 / norm, rtol=1e-5, atol=1e-6)


def test_inside_a_loss_scale_optimizer():
    model = net()
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=8.0)
    assert layerwise_lr_decay(optimizer, stages_of(model), 0.5) is optimizer
    optimizer.build(model.trainable_variables)
    before = [w.numpy() for w in model.weights]
    step = gradients(1)[0]
    optimizer.apply([g * 8 for g in step])
    for old, now, g, factor in zip(before, model.weights, step, (0.25, 0.25, 0.5, 0.5, 1, 1)):
        np.testing.assert_allclose(now.numpy(), old - 0.1 * factor * g, rtol=1e-5, atol=1e-6)


def test_accumulated_gradients():
    model = net()
    optimizer = layerwise_lr_decay(optimizers.SGD(0.1, gradient_accumulation_steps=2), stages_of(model), 0.5)
    optimizer.build(model.trainable_variables)
    before = [w.numpy() for w in model.weights]
    first, second = gradients(2)
    optimizer.apply(first)
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(before, model.weights))
    optimizer.apply(second)
    for old, now, a, b, factor in zip(before, model.weights, first, second, (0.25, 0.25, 0.5, 0.5, 1, 1)):
        np.testing.assert_allclose(now.numpy(), old - 0.1 * factor * (a + b) / 2, rtol=1e-5, atol=1e-6)


def test_the_moving_average_follows():
    model = net()
    optimizer = layerwise_lr_decay(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), stages_of(model), 0.5)
    optimizer.build(model.trainable_variables)
    average = None
    for step in gradients(3):
        optimizer.apply(step)
        now = [w.numpy() for w in model.weights]  # Keras begins the average with the weights after one step
        average = now if average is None else [0.5 * a + 0.5 * w for a, w in zip(average, now)]
    optimizer.finalize_variable_values(model.trainable_variables)
    for a, w in zip(average, model.weights):
        np.testing.assert_allclose(w.numpy(), a, rtol=1e-5, atol=1e-6)


def test_callbacks_steer_all_stages():
    model = net()
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    model.compile(layerwise_lr_decay(optimizers.SGD(0.1), stages_of(model), 0.5), "mse")
    before = [w.numpy() for w in model.weights]
    stop = keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)
    model.fit(x, y, epochs=1, callbacks=[stop], verbose=0)
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(before, model.weights))
    # A step after the rate was divided by ten, against plain optimizers at the divided rates.
    reduce = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=100.0)
    model.optimizer.learning_rate = 0.1
    model.fit(x, y, epochs=2, callbacks=[reduce], verbose=0)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    before = [w.numpy() for w in model.weights]
    model.fit(x, y, epochs=1, verbose=0)
    after = [w.numpy() for w in model.weights]
    for w, value in zip(model.weights, before):
        w.assign(value)
    model.compile(optimizers.SGD(0.01), "mse")
    model.fit(x, y, epochs=1, verbose=0)
    for old, now, plain, factor in zip(before, after, model.weights, (0.25, 0.25, 0.5, 0.5, 1, 1)):
        np.testing.assert_allclose(now - old, (plain.numpy() - old) * factor, rtol=1e-3, atol=1e-7)


def test_without_decay_it_is_left_alone():
    optimizer = optimizers.Adam(0.1)
    assert layerwise_lr_decay(optimizer, stages_of(net()), 1) is optimizer
    assert "update_step" not in vars(optimizer)


@pytest.mark.parametrize("decay", [0, -1, 1.01, float("nan")])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"decay=.*; expected a number above 0, at most 1"):
        layerwise_lr_decay(optimizers.SGD(), stages_of(net()), decay)


def test_layerwise_lr_decay_takes_a_model_or_its_stages():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    results = []
    for given in (model, stages_of(model)):
        start = [v.numpy() for v in model.trainable_variables]
        optimizer = layerwise_lr_decay(keras.optimizers.SGD(1.0), given, 0.5)
        optimizer.build(model.trainable_variables)
        optimizer.apply([np.ones(v.shape, "float32") for v in model.trainable_variables])
        results.append([float((s - v.numpy()).mean()) for s, v in zip(start, model.trainable_variables)])
    assert results[0] == pytest.approx([0.5, 0.5, 1.0, 1.0], rel=1e-4)
    assert results[1] == pytest.approx(results[0], rel=1e-4)
