"""The pull to the start equals the penalty in the loss, under every kind of optimizer."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
import tensorflow as tf
from keras import layers, optimizers

from thaw.models.stages import stages_of
from thaw.training.optimizers import ewc, l2_sp, layerwise_lr_decay

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype("float32")
Y = RNG.normal(size=(8, 1)).astype("float32")


def net(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh"), layers.BatchNormalization(), layers.Dense(1, name="head")]
    )


def shifted(model):
    """Other weights than the start, the same in every test."""
    rng = np.random.default_rng(1)
    for w in model.trainable_weights:
        w.assign(w + 0.3 * rng.normal(size=w.shape).astype("float32"))


def factors(model):
    rng = np.random.default_rng(2)
    return [rng.uniform(0, 2, w.shape).astype("float32") for w in model.weights]


def steps_with_the_loss_term(make, strength, importance, steps=4):
    """The explicit form: gradients of loss + strength / 2 sum importance (w - start)^2."""
    model = net()
    start = {id(w): w.numpy() for w in model.weights}
    factor = {id(w): f for w, f in zip(model.weights, importance)}
    shifted(model)
    optimizer = make()
    optimizer.build(model.trainable_variables)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=False) - Y) ** 2)
            for w in model.trainable_weights:
                loss += strength / 2 * tf.reduce_sum(factor[id(w)] * (w.value - start[id(w)]) ** 2)
        optimizer.apply(tape.gradient(loss, [w.value for w in model.trainable_weights]))
    return model.get_weights()


def steps_anchored(make, strength, importance, steps=4):
    model = net()
    optimizer = ewc(make(), model, strength, importance)
    shifted(model)
    optimizer.build(model.trainable_variables)

    @tf.function  # as fit runs it
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=False) - Y) ** 2)
        optimizer.apply(tape.gradient(loss, [w.value for w in model.trainable_weights]))

    for _ in range(steps):
        step()
    return model.get_weights()


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: optimizers.Adam(0.05),
    "rmsprop": lambda: optimizers.RMSprop(0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_to_the_penalty_in_the_loss(name):
    make, importance = OPTIMIZERS[name], factors(net())
    ours, plain = (f(make, 0.7, importance) for f in (steps_anchored, steps_with_the_loss_term))
    without = steps_anchored(make, 0.0, importance)
    for a, b in zip(ours, plain):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    assert max(np.abs(a - b).max() for a, b in zip(ours, without)) > 0.01


def test_one_step_of_sgd_by_hand_in_fit():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[2.0]])])
    optimizer = ewc(optimizers.SGD(0.1), model, 0.5, [4.0])
    model.set_weights([np.array([[3.0]])])
    model.compile(optimizer, "mse")
    loss = model.fit(np.array([[1.0]]), np.array([[1.0]]), verbose=0).history["loss"]
    # d/dw (w - 1)^2 = 4; the pull is 0.5 * 4 * (3 - 2) = 2.
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(3 - 0.1 * (4 + 2))
    assert loss == [4.0]  # that of the new task alone


def test_decoupled_decay_comes_first():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[3.0]])])
    optimizer = l2_sp(optimizers.SGD(0.1, weight_decay=0.5), model, 2.0, start=[np.array([[2.0]])])
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.zeros((1, 1))])
    decayed = 3 * (1 - 0.1 * 0.5)
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(decayed - 0.1 * 2 * (decayed - 2))


@pytest.mark.parametrize("pull_first", [True, False])
def test_under_per_stage_the_pull_learns_at_the_rate_of_its_stage(pull_first):
    model = net()
    start, optimizer = model.get_weights(), optimizers.SGD(0.1)
    if pull_first:
        optimizer = layerwise_lr_decay(l2_sp(optimizer, model, 1.0), stages_of(model), 0.5)
    else:
        optimizer = l2_sp(layerwise_lr_decay(optimizer, stages_of(model), 0.5), model, 1.0)
    shifted(model)
    before = model.get_weights()
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables])
    for w, s, b, now in zip(model.weights, start, before, model.get_weights()):
        rate = 0.1 if any(w is v for v in model.layers[-1].weights) else 0.05
        np.testing.assert_allclose(now, b - rate * (b - s), rtol=1e-4, atol=1e-6)


def test_a_new_head_is_free():
    pixels = keras.Input((3,))
    backbone = keras.Model(pixels, layers.Dense(4)(pixels))
    model = keras.Model(pixels, layers.Dense(1, name="head")(backbone.output))
    for make in (
        lambda o: l2_sp(o, backbone, 1.0),
        lambda o: l2_sp(o, model, 1.0, free=stages_of(model)[-1].layers),
        lambda o: ewc(o, model, 1.0, [1, 1, 0, 0]),
    ):
        optimizer = make(optimizers.SGD(0.1))
        before = model.get_weights()
        shifted(model)
        there = model.get_weights()
        optimizer.build(model.trainable_variables)
        optimizer.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables])
        now = model.get_weights()
        for i in range(4):
            expected = there[i] - 0.1 * (there[i] - before[i]) if i < 2 else there[i]
            np.testing.assert_allclose(now[i], expected, rtol=1e-4, atol=1e-6)


def test_two_old_tasks_pull_together():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[1.0]])])
    optimizer = l2_sp(optimizers.SGD(0.1), model, 1.0, start=[np.array([[0.0]])])
    l2_sp(optimizer, model, 2.0, start=[np.array([[3.0]])])
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.zeros((1, 1))])
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(1 - 0.1 * (1.0 * 1 + 2.0 * -2))


def test_scaled_and_accumulated_gradients_leave_the_pull_as_it_is():
    for make, gradients in (
        (lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=8.0), [8.0]),
        (lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2), [0.5, 1.5]),
        (lambda: optimizers.SGD(0.1, clipvalue=1.0), [7.0]),
    ):
        model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
        model.set_weights([np.array([[5.0]])])
        optimizer = l2_sp(make(), model, 2.0, start=[np.array([[2.0]])])
        optimizer.build(model.trainable_variables)
        for g in gradients:
            optimizer.apply([np.full((1, 1), g, "float32")])
        assert float(model.get_weights()[0][0, 0]) == pytest.approx(5 - 0.1 * (1 + 2 * 3))


def test_rows_of_an_embedding_that_were_not_read_are_pulled_too():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), layers.Embedding(3, 2), layers.Flatten()])
    start = [np.zeros((3, 2))]
    model.compile(l2_sp(optimizers.SGD(0.1), model, 1.0, start=start), "mse")
    before = model.get_weights()[0]
    model.fit(np.array([[0, 1]]), np.zeros((1, 4)), verbose=0)
    np.testing.assert_allclose(model.get_weights()[0][2], 0.9 * before[2], rtol=1e-5)


def test_statistics_are_left_alone():
    model = net()
    start = [np.full(w.shape, 9.0) for w in model.weights]
    model.compile(l2_sp(optimizers.SGD(0.1), model, 1.0, start=start), "mse", run_eagerly=True)
    plain = net()
    plain.compile(optimizers.SGD(0.1), "mse", run_eagerly=True)
    for m in (model, plain):
        m.fit(X, Y, batch_size=8, verbose=0)
    assert np.array_equal(model.layers[1].moving_mean.numpy(), plain.layers[1].moving_mean.numpy())
    assert not np.array_equal(model.layers[1].gamma.numpy(), plain.layers[1].gamma.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1}, "strength=-1; expected a finite number from 0"),
        ({"strength": float("nan")}, "expected a finite number"),
        ({"strength": 1, "importance": [1.0]}, "importance has 1 arrays; expected 8"),
        ({"strength": 1, "start": [np.zeros(2)] * 8}, r"start holds shape \(2,\)"),
        ({"strength": 1, "importance": [-1.0] * 8}, "below 0 or not finite"),
    ],
)
def test_l2_sp_and_ewc_refuse_invalid_arguments(arguments, message):
    penalty = ewc if "importance" in arguments else l2_sp
    with pytest.raises(ValueError, match=message):
        penalty(optimizers.SGD(), net(), **arguments)


def test_without_strength_the_optimizer_is_left_alone():
    optimizer = optimizers.Adam()
    assert l2_sp(optimizer, net(), 0) is optimizer
    assert "update_step" not in vars(optimizer)


def test_l2_sp_and_layerwise_lr_decay_leave_nothing_of_thaw_in_the_saved_file(tmp_path, with_keras_alone):
    model = net()
    optimizer = layerwise_lr_decay(optimizers.AdamW(0.01, weight_decay=0.1), stages_of(model), 0.5)
    model.compile(l2_sp(optimizer, model, 0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply([np.ones(v.shape, "float32") for v in model.trainable_variables])
    model.save(tmp_path / "model.keras")
    code = (
        "import sys, keras; m = keras.saving.load_model('model.keras'); "
        "print(type(m.optimizer).__module__.split('.')[0], type(m.optimizer).__name__, "
        "int(m.optimizer.iterations), any(n.split('.')[0] == 'thaw' for n in sys.modules))"
    )
    assert with_keras_alone(tmp_path, code) == ["keras", "AdamW", "1", "False"]
