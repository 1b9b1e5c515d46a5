"""Weights of some stages after fine-tuning, of the others before."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.stages import stages_of
from thaw.retention.merging import combine_stages


def net():
    x = entry = keras.Input((16, 16, 1))
    for filters in (4, 6, 8):
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, 2, padding="same")(x))
    return keras.Model(entry, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("stages", [("head",), ("stage1", "head"), ()])
def test_combine_stages_takes_the_named_ones_from_after(stages):
    model = net()
    before, after = ([np.full(w.shape, v) for w in model.weights] for v in (0, 1))
    combined = combine_stages(model, before, after, stages)
    model.set_weights(combined)
    for stage in stages_of(model):
        for layer in stage.layers:
            for w in layer.weights:
                assert (w.numpy() == (stage.name in stages)).all()


def test_combine_stages_refuses_other_stages_and_weights():
    model = net()
    weights = model.get_weights()
    with pytest.raises(ValueError, match='no stage "top"; it has stage1, stage2, stage3, head'):
        combine_stages(model, weights, weights, ("top",))
    with pytest.raises(ValueError, match="There are 20 arrays before, 19 after"):
        combine_stages(model, weights, weights[1:])
