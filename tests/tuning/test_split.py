"""The two parts are the model, to the bit, and the user's layers are as they were."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.tuning.attach_head import attach_head
from thaw.tuning.freeze import freeze
from thaw.tuning.split import split


def backbone():
    keras.utils.set_random_seed(0)
    entry = keras.Input((16, 16, 1))
    x = layers.Rescaling(1 / 16, name="scale")(entry)
    for i, filters in enumerate((4, 6, 8)):
        y = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False, name=f"down{i}")(x)
        y = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(name=f"norm{i}")(y))
        z = layers.Conv2D(filters, 3, padding="same", name=f"conv{i}")(y)
        x = layers.Add(name=f"add{i}")([y, z])
    return keras.Model(entry, x)


def net():
    model = attach_head(backbone(), 3)
    model.layers[-1].kernel.assign(np.random.default_rng(1).normal(size=(8, 3)))
    return model


def pictures(n=8):
    return np.random.default_rng(0).normal(8, 4, (n, 16, 16, 1)).astype("float32")


@pytest.mark.parametrize(
    ("train", "crossing"), [("head", (8,)), (1, (4, 4, 6)), (2, (8, 8, 4)), (("stage2",), (8, 8, 4))]
)
def test_prefix_and_suffix_are_the_model(train, crossing):
    model = net()
    freeze(model, train)
    whole = model(pictures(), training=False).numpy()
    prefix, suffix = split(model)
    assert prefix.output_shape[1:] == crossing
    assert np.array_equal(suffix(prefix(pictures(), training=False), training=False).numpy(), whole)
    assert not prefix.trainable_variables
    assert {id(v) for v in suffix.trainable_variables} == {id(v) for v in model.trainable_variables}


def test_training_the_suffix_trains_the_model():
    model = net()
    freeze(model, 1)
    before = model(pictures(), training=False).numpy()
    prefix, suffix = split(model)
    suffix.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    suffix.fit(prefix(pictures()), np.zeros(8), verbose=0)
    after = model(pictures(), training=False).numpy()
    assert not np.array_equal(before, after)
    assert np.array_equal(after, suffix(prefix(pictures()), training=False).numpy())


def test_dropout_goes_on_dropping():
    model = net()
    freeze(model, "head")
    prefix, suffix = split(model)
    assert "head_dropout" in [layer.name for layer in suffix.layers]
    features = prefix(pictures())
    assert not np.array_equal(suffix(features, training=True), suffix(features, training=True))


def test_the_layers_are_as_they_were(tmp_path):
    model = net()
    freeze(model, 1)
    notes = [(op, list(op._inbound_nodes), list(op._outbound_nodes)) for op in model.operations]
    for _ in range(3):
        split(model)
    for op, inbound, outbound in notes:
        assert (op._inbound_nodes, op._outbound_nodes) == (inbound, outbound)
    features = keras.Model(model.inputs, model.get_layer("add2").output)
    assert features.output_shape == (None, 2, 2, 8)
    assert model.get_layer("norm1").output.shape == (None, 4, 4, 6)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert np.array_equal(again(pictures(), training=False), model(pictures(), training=False))
    assert len(keras.models.clone_model(model).layers) == len(model.layers)


def test_nothing_stands_still_in_front():
    model = net()
    freeze(model, "all")
    parts = split(model)
    # What has no weights may stand in front of the first that moves; nothing is kept of a picture that is not smaller.
    assert parts is None or parts[0].count_params() == 0
    freeze(model, ("stage1",))
    assert split(model) is None or split(model)[0].count_params() == 0


def test_a_model_that_cannot_be_cut():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(np.zeros((1, 3), "float32"))
    assert split(own) is None
    a, b = keras.Input((4,)), keras.Input((4,))
    two = keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([layers.Dense(3)(a), layers.Dense(3)(b)])))
    freeze(two, "head")
    assert split(two) is None
    # The input itself is read above the cut as well: two tensors would cross.
    entry = keras.Input((4,))
    moving = layers.Dense(5)(layers.Dense(9)(entry))
    skipping = keras.Model(entry, layers.Dense(2)(layers.Concatenate()([entry, moving])))
    freeze(skipping, ("stage2", "head"))
    assert split(skipping) is None


@pytest.mark.parametrize("kind", ["nested", "sequential"])
def test_nested_and_sequential_where_they_are_cut(kind):
    """Left whole, or cut so that the parts are the model."""
    if kind == "nested":
        entry = keras.Input((16, 16, 1))
        x = layers.GlobalAveragePooling2D()(backbone()(entry, training=False))
        model = keras.Model(entry, layers.Dense(3)(x))
    else:
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((16, 16, 1)),
                layers.Conv2D(4, 3, 2),
                layers.Conv2D(4, 3, 2),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
    freeze(model, "head")
    parts = split(model)
    if parts is not None:
        prefix, suffix = parts
        assert np.array_equal(suffix(prefix(pictures())), model(pictures()))


def test_randomness_inside_what_stands_still_is_not_kept():
    """Dropout between layers that stand still is on in fit; a cut behind it would turn it off."""
    entry = keras.Input((4,))
    x = layers.Dense(8, name="low")(entry)
    x = layers.GaussianNoise(1.0)(x)
    model = keras.Model(entry, layers.Dense(2)(x))
    freeze(model, "head")
    prefix, suffix = split(model)
    assert [type(layer).__name__ for layer in prefix.layers] == ["InputLayer", "Dense"]
    assert [type(layer).__name__ for layer in suffix.layers] == ["InputLayer", "GaussianNoise", "Dense"]
