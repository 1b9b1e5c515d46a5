"""How large a rate is, beside Adam."""

import keras
import pytest

from thaw.training.optimizers import lr_scale


@pytest.mark.parametrize(("name", "unit"), [("SGD", 20.0), ("Lion", 0.2), ("Adam", 1.0), ("AdamW", 1.0)])
def test_of_an_optimizer_and_inside_loss_scaling(name, unit):
    optimizer = getattr(keras.optimizers, name)()
    assert lr_scale(optimizer) == lr_scale(keras.optimizers.LossScaleOptimizer(optimizer)) == unit
