"""What several tests of models share."""

import math

import pytest


def leaves(model):
    """All layers that a model is made of, nested models opened."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


@pytest.fixture(scope="session")
def assert_partition():
    """Assert that every layer is in one stage, and that they are in the order of the calls."""
    from thaw.models.stages import calls_of

    def check(model, stages):
        found = [id(layer) for stage in stages for layer in stage.layers]
        assert len(found) == len(set(found))
        assert set(found) == {id(layer) for layer in leaves(model)}
        assert sum(stage.parameters for stage in stages) == sum(math.prod(w.shape) for w in model.weights)
        order = {id(call.layer): i for i, call in reversed(list(enumerate(calls_of(model))))}
        positions = [order[id(layer)] for stage in stages for layer in stage.layers]
        assert positions == sorted(positions)

    return check
