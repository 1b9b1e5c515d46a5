"""What stands still stands still, BatchNorm's statistics included."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.stages import stages_of
from thaw.training.freezing import freeze, trainable_stages


@keras.saving.register_keras_serializable("thaw-tests")
class Block(layers.Layer):
    """A layer made of layers, BatchNorm among them."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))
        self.built = True

    def call(self, x, training=None):
        return layers.ReLU()(self.norm(self.conv(x), training=training))


def backbone(composite=False):
    x = entry = keras.Input((16, 16, 1))
    for i, filters in enumerate((4, 6, 8)):
        if composite:
            x = Block(filters, name=f"block{i}")(x)
        else:
            x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x)
    return keras.Model(entry, x)


def net(kind):
    keras.utils.set_random_seed(0)
    if kind == "nested":
        entry = keras.Input((16, 16, 1))
        x = backbone()(entry, training=False)
    else:
        inner = backbone(kind == "composite")
        entry, x = inner.input, inner.output
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(entry, layers.Dense(3, activation="softmax")(x))


def fit(model):
    """Train for one step; without a trace, which takes longer."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (16, 16, 16, 1)).astype("float32"), rng.integers(0, 3, 16)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(x, y, batch_size=16, verbose=0)


def norms(model):
    return [n for n in model._flatten_layers() if isinstance(n, layers.BatchNormalization)]


def values(model):
    return {id(v): v.numpy().copy() for v in model.weights}


def moved(model, before):
    return {id(v) for v in model.weights if not np.array_equal(v.numpy(), before[id(v)])}


@pytest.mark.parametrize("kind", ["flat", "nested", "composite"])
@pytest.mark.parametrize("train", ["head", 1, ("stage1",)])
@pytest.mark.parametrize("batchnorm", ["frozen", "trained"])
def test_freeze_lets_just_the_chosen_stages_move(kind, train, batchnorm):
    model = net(kind)
    stages = stages_of(model)
    moving = freeze(model, train, batchnorm)
    expected = {"head": {"head"}, 1: {stages[-2].name, "head"}, ("stage1",): {"stage1"}}[train]
    assert {stage.name for stage in moving} == expected
    before = values(model)
    fit(model)
    statistics = {id(v) for n in norms(model) for v in n.weights}
    may_move = {id(v) for stage in moving for layer in stage.layers for v in layer.weights}
    if batchnorm == "frozen":
        may_move -= statistics
    assert moved(model, before) == may_move  # to the bit, and nothing less


def test_stages_named_from_another_reading_are_the_same_layers():
    model = net("nested")
    assert [a.layers for a in freeze(model, 2)] == [b.layers for b in stages_of(model)[-3:]]


@pytest.mark.parametrize("kind", ["flat", "nested", "composite"])
def test_freezing_again_thaws_what_was_frozen(kind):
    model = net(kind)
    total = len(model.trainable_variables)
    frozen_norms = len(norms(model)) * 2
    for _ in range(2):
        freeze(model, "head")
        assert len(model.trainable_variables) == 2
        freeze(model, "all", "trained")
        assert len(model.trainable_variables) == total
        freeze(model, "all")
        assert len(model.trainable_variables) == total - frozen_norms
        assert not any(norm.trainable for norm in norms(model))


def test_frozen_by_the_user_before():
    """Keras sets nothing where trainable is True already, so a layer inside would have stayed frozen."""
    model = net("nested")
    total = len(model.trainable_variables)
    model.layers[1].layers[1].trainable = False
    model.trainable = True  # does nothing: it was True
    assert len(model.trainable_variables) == total - 1
    freeze(model, "all", "trained")
    assert len(model.trainable_variables) == total


def test_the_model_has_to_be_compiled_again():
    model = net("flat")
    fit(model)
    freeze(model, "head")
    assert not model.compiled
    with pytest.raises(ValueError, match="compile"):
        model.fit(np.zeros((2, 16, 16, 1)), np.zeros(2), verbose=0)


def test_a_layer_that_never_learns_by_design():
    model = keras.Sequential([keras.Input((4,)), layers.Normalization(), layers.Dense(3), layers.Dense(2)])
    freeze(model, "all")
    assert len(model.trainable_variables) == 4


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("stage9", 'The model has no stage "stage9"; it has stage1, stage2, stage3, head'),
        (("head", "stem"), 'The model has no stage "stem"'),
        (4, 'train=4 asks for 4 stages below the head, and the model has 3; write "all", or a number up to 3'),
        (-1, r'train=-1; expected "head", "all", a number from 0, or stage names'),
        (True, r'train=True; expected "head"'),
        (None, r'train=None; expected "head"'),
        ((), r'train=\(\); expected "head"'),
    ],
)
def test_wrong_names(train, message):
    model = net("flat")
    flags = [layer.trainable for layer in model._flatten_layers()]
    with pytest.raises(ValueError, match=message):
        freeze(model, train)
    assert [layer.trainable for layer in model._flatten_layers()] == flags


def test_wrong_batchnorm():
    with pytest.raises(ValueError, match='batchnorm=\'half\'; expected "frozen" or "trained"'):
        freeze(net("flat"), "head", "half")


def test_a_backbone_has_no_head():
    with pytest.raises(ValueError, match='no stage "head"; it has stage1, stage2, stage3'):
        freeze(backbone(), "head")
    assert [s.name for s in trainable_stages(stages_of(backbone()), "all")] == ["stage1", "stage2", "stage3"]


# ----------------------------------------------------------------- single variables


def adapted():
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32")
    embedding, dense = layers.Embedding(9, 8), layers.Dense(8)
    x = layers.GlobalAveragePooling1D()(dense(embedding(words)))
    model = keras.Model(words, layers.Dense(2, "softmax")(x))
    embedding.enable_lora(2)
    dense.enable_lora(2)
    return model, embedding, dense


def fit_words(model):
    rng = np.random.default_rng(0)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(rng.integers(0, 9, (16, 6)), rng.integers(0, 2, 16), verbose=0)


@pytest.mark.parametrize("train", ["all", "head"])
def test_freeze_keeps_the_base_weights_of_lora_frozen(train):
    model, embedding, dense = adapted()
    base = [embedding._embeddings, dense._kernel]
    adapters = [embedding.lora_embeddings_b, dense.lora_kernel_b]
    freeze(model, train)
    before = values(model)
    fit_words(model)
    changed = moved(model, before)
    assert not {id(v) for v in base} & changed
    assert ({id(v) for v in adapters} <= changed) is (train == "all")


def test_freeze_keeps_lora_that_was_enabled_while_the_layer_was_frozen():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(2)])
    freeze(model, "head")
    model.layers[0].enable_lora(2)
    freeze(model, "all")
    dense = model.layers[0]
    assert [v.trainable for v in (dense._kernel, dense.bias, dense.lora_kernel_a)] == [False, True, True]


def test_freeze_keeps_a_variable_that_the_user_froze_through_all_phases():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(2)])
    dense = model.layers[0]
    dense.kernel.trainable = False
    for _ in range(2):
        freeze(model, "head")
        assert not dense.bias.trainable
        freeze(model, "all")
        assert [v.trainable for v in dense.weights] == [False, True]
    dense.kernel.trainable = True
    freeze(model, "head")
    freeze(model, "all")
    assert [v.trainable for v in dense.weights] == [True, True]


def test_freeze_takes_stages_that_are_known():
    model = net("flat")
    stages = stages_of(model)
    assert freeze(model, 1, stages=stages) == stages[-2:]


def test_fine_tune_keeps_the_base_weights_of_lora_frozen():
    from thaw import Phase, Plan, fine_tune

    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2, "softmax")])
    model.layers[0].enable_lora(2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    base = model.layers[0]._kernel.numpy()
    plan = Plan([Phase(name="head", epochs=1, train="head"), Phase(name="all", epochs=2, learning_rate=0.1)])
    fine_tune(model, plan, x, y, validation_data=(x, y), verbose=0)
    np.testing.assert_array_equal(model.layers[0]._kernel.numpy(), base)
    assert model.layers[0].lora_kernel_b.numpy().any()
