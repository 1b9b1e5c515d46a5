"""Everything that a result depends on changes the identity, and nothing else does."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw.examples import Examples
from thaw.plan import Plan
from thaw.tuning.run_identity import run_identity


def identity(model_seed=0, optimizer=None, loss="mse", plan="probe", n=4, label=0, weight=None, batch_size=8, seed=0):
    keras.utils.set_random_seed(model_seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.Adam(), loss)
    y = np.zeros(n)
    y[0] = label
    examples = Examples(x=np.arange(2.0 * n).reshape(n, 2), y=y, weight=weight)
    return run_identity(model, Plan.named(plan), (examples, None), batch_size, seed)


def test_the_same_again():
    assert identity() == identity()
    assert len(identity()) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"model_seed": 1},
        {"optimizer": keras.optimizers.Adam(beta_1=0.8)},
        {"optimizer": keras.optimizers.SGD()},
        {"loss": "mae"},
        {"loss": keras.losses.Huber(delta=2.0)},
        {"plan": "full"},
        {"n": 5},
        {"label": 1},
        {"weight": np.ones(4)},
        {"batch_size": 4},
        {"seed": 1},
    ],
)
def test_what_matters(changed):
    assert identity(**changed) != identity()


def test_settings_inside_a_loss_scale_optimizer_matter():
    def scaled(rate):
        return identity(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(beta_1=rate)))

    assert scaled(0.9) == scaled(0.9)
    assert scaled(0.9) != scaled(0.5)
