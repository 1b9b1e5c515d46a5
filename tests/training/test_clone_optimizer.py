"""A new optimizer like another."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import optimizers

from thaw.training.optimizers import clone_optimizer


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.SGD(0.5, momentum=0.9, nesterov=True),
        optimizers.AdamW(0.5, weight_decay=0.1, beta_2=0.9, global_clipnorm=2.0),
        optimizers.Lion(0.5, use_ema=True, ema_momentum=0.3, gradient_accumulation_steps=4),
    ],
)
def test_the_same_settings_and_nothing_learned(optimizer):
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer.build([variable])
    optimizer.apply([np.ones(2, "float32")])
    fresh = clone_optimizer(optimizer)
    assert type(fresh) is type(optimizer)
    assert fresh.get_config() == optimizer.get_config()
    assert int(fresh.iterations) == 0
    assert not fresh.built
    other = optimizers.get(clone_optimizer(optimizer, 0.25))
    assert float(other.learning_rate) == 0.25
    assert other.get_config() | {"learning_rate": 0} == optimizer.get_config() | {"learning_rate": 0}


def test_a_name_and_a_schedule():
    rate = optimizers.schedules.CosineDecay(0.5, 10)
    fresh = clone_optimizer("rmsprop", rate)
    assert type(fresh) is optimizers.RMSprop
    assert float(fresh.learning_rate) == 0.5


def test_inside_a_loss_scale_optimizer():
    optimizer = optimizers.LossScaleOptimizer(optimizers.Adam(0.5), initial_scale=64.0, dynamic_growth_steps=7)
    fresh = clone_optimizer(optimizer, 0.25)
    assert type(fresh) is optimizers.LossScaleOptimizer
    assert (fresh.initial_scale, fresh.dynamic_growth_steps) == (64.0, 7)
    assert float(fresh.inner_optimizer.learning_rate) == 0.25
    assert fresh.inner_optimizer is not optimizer.inner_optimizer


def test_what_does_not_decay():
    optimizer = optimizers.AdamW(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    fresh = clone_optimizer(optimizer)
    bias = keras.Variable(np.ones(2, "float32"), name="bias")
    fresh.build([bias])
    fresh.apply([np.zeros(2, "float32")])
    assert bias.numpy().tolist() == [1, 1]
