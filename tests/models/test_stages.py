"""Stages are found from the graph: convolutions, nested models, transformers, and what has no grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.stages import Stage, calls_of, crossing_bytes, operations_of, stages_of


def names(stages):
    return [stage.name for stage in stages]


def first_and_last(stages):
    return [(stage.layers[0].name, stage.layers[-1].name) for stage in stages]


def nested(inner, size=224):
    """As the guide to transfer learning writes it."""
    entry = keras.Input((size, size, 3))
    x = inner(entry, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(entry, layers.Dense(5)(x))


@pytest.mark.parametrize(
    ("family", "size", "head"),
    [
        ("MobileNet", 64, ["GlobalAveragePooling2D", "Dropout", "Conv2D", "Reshape", "Activation"]),
        ("MobileNetV3Small", 64, None),
        ("EfficientNetB0", 64, ["GlobalAveragePooling2D", "Dropout", "Dense"]),
        ("VGG16", 64, ["Flatten", "Dense", "Dense", "Dense"]),
    ],
)
def test_with_their_own_top(assert_partition, family, size, head):
    model = getattr(keras.applications, family)(weights=None, input_shape=(size, size, 3), classes=4)
    found = stages_of(model)
    assert_partition(model, found)
    assert found[-1].name == "head"
    assert 5 <= len(found) <= 7
    assert found[-1].shape == (4,)
    kinds = [type(layer).__name__ for layer in found[-1].layers]
    if head is not None:
        assert kinds == head
    else:
        assert kinds[0] == "GlobalAveragePooling2D"


def test_twice_nested(assert_partition):
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3, 2, "same"), layers.Conv2D(8, 3, 2, "same")])
    entry = keras.Input((16, 16, 3))
    middle = keras.Model(entry, layers.BatchNormalization()(inner(layers.Rescaling(1 / 255)(entry))))
    model = nested(middle, 16)
    found = stages_of(model)
    assert_partition(model, found)
    assert [[type(layer).__name__ for layer in stage.layers] for stage in found] == [
        ["Rescaling", "Conv2D"],
        ["Conv2D", "BatchNormalization"],
        ["GlobalAveragePooling2D", "Dropout", "Dense"],
    ]
    assert [stage.shape for stage in found] == [(8, 8, 4), (4, 4, 8), (5,)]
    assert [stage.crossing for stage in found] == [4 * 16 * 16 * 3, 4 * 8 * 8 * 4, 4 * 4 * 4 * 8]
    assert [stage.parameters for stage in found] == [3 * 3 * 3 * 4 + 4, 3 * 3 * 4 * 8 + 8 + 4 * 8, 8 * 5 + 5]


# ----------------------------------------------------------------- transformers


def primitive_block(x, i, *, pre):
    attention = layers.MultiHeadAttention(2, 4, name=f"attention{i}")
    if pre:
        y = layers.LayerNormalization(name=f"norm_a{i}")(x)
        x = layers.Add(name=f"add_a{i}")([x, attention(y, y)])
        y = layers.LayerNormalization(name=f"norm_b{i}")(x)
        y = layers.Dense(8, name=f"down{i}")(layers.Dense(16, activation="gelu", name=f"up{i}")(y))
        return layers.Add(name=f"add_b{i}")([x, y])
    x = layers.LayerNormalization(name=f"norm_a{i}")(layers.Add(name=f"add_a{i}")([x, attention(x, x)]))
    y = layers.Dense(8, name=f"down{i}")(layers.Dense(16, activation="gelu", name=f"up{i}")(x))
    return layers.LayerNormalization(name=f"norm_b{i}")(layers.Add(name=f"add_b{i}")([x, y]))


@keras.saving.register_keras_serializable("thaw-tests")
class EncoderBlock(layers.Layer):
    """A transformer block as one layer, pre-norm."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm_a, self.norm_b = layers.LayerNormalization(), layers.LayerNormalization()
        self.attention = layers.MultiHeadAttention(2, 4)
        self.up, self.down = layers.Dense(16, activation="gelu"), layers.Dense(8)

    def build(self, shape):
        self.norm_a.build(shape)
        self.attention.build(shape, shape)
        self.norm_b.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], 16))
        self.built = True

    def call(self, x):
        y = self.norm_a(x)
        x = x + self.attention(y, y)
        return x + self.down(self.up(self.norm_b(x)))


def transformer(kind, blocks=3):
    entry = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="embedding")(entry)
    for i in range(blocks):
        if kind == "composite":
            x = EncoderBlock(name=f"block{i}")(x)
        else:
            x = primitive_block(x, i, pre=kind == "pre")
    if kind != "post":
        x = layers.LayerNormalization(name="final_norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(entry, layers.Dense(3, name="classes")(x))


def test_transformer_of_primitives_pre_norm(assert_partition):
    model = transformer("pre")
    found = stages_of(model)
    assert_partition(model, found)
    assert first_and_last(found) == [
        ("embedding", "embedding"),
        ("norm_a0", "add_b0"),
        ("norm_a1", "add_b1"),
        ("norm_a2", "final_norm"),
        ("pool", "classes"),
    ]
    assert names(found)[-1] == "head"


def test_transformer_of_primitives_post_norm(assert_partition):
    model = transformer("post")
    found = stages_of(model)
    assert_partition(model, found)
    assert first_and_last(found) == [
        ("embedding", "embedding"),
        ("attention0", "norm_b0"),
        ("attention1", "norm_b1"),
        ("attention2", "norm_b2"),
        ("pool", "classes"),
    ]


def test_transformer_of_composite_layers(assert_partition):
    model = transformer("composite")
    found = stages_of(model)
    assert_partition(model, found)
    assert names(found) == ["stage1", "stage2", "stage3", "stage4", "head"]
    assert [stage.layers[0].name for stage in found[:4]] == ["embedding", "block0", "block1", "block2"]
    assert found[-1].layers[-1].name == "classes"
    assert {stage.parameters for stage in found[1:4]} == {found[1].parameters}


def test_vision_transformer_of_primitives(assert_partition):
    """Patches have a grid, and are no reason to cut the blocks apart."""
    entry = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 8, 8, name="patches")(entry)
    x = layers.Reshape((16, 8), name="sequence")(x)
    for i in range(2):
        x = primitive_block(x, i, pre=True)
    x = layers.LayerNormalization(name="final_norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    model = keras.Model(entry, layers.Dense(3, name="classes")(x))
    found = stages_of(model)
    assert_partition(model, found)
    assert first_and_last(found) == [
        ("patches", "sequence"),
        ("norm_a0", "add_b0"),
        ("norm_a1", "final_norm"),
        ("pool", "classes"),
    ]


# ----------------------------------------------------------------- everything else


def test_hidden_layers_of_an_mlp(assert_partition):
    entry = keras.Input((4,))
    x = layers.Normalization(name="scale")(entry)
    for i, width in enumerate((8, 6)):
        x = layers.Dense(width, name=f"dense{i}")(x)
        x = layers.BatchNormalization(name=f"norm{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    model = keras.Model(entry, layers.Dense(2, name="classes")(x))
    found = stages_of(model)
    assert_partition(model, found)
    assert first_and_last(found) == [("scale", "relu0"), ("dense1", "relu1"), ("classes", "classes")]
    assert [s.shape for s in found] == [(8,), (6,), (2,)]
    assert [s.crossing for s in found] == [16, 32, 24]


def test_sequential_and_one_layer(assert_partition):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    (only,) = stages_of(model)
    assert only.name == "head"
    assert only.parameters == 10
    model = keras.Sequential([layers.Dense(3), layers.ReLU(), layers.Dense(2)])
    model.build((None, 4))
    found = stages_of(model)
    assert_partition(model, found)
    assert [len(stage.layers) for stage in found] == [2, 1]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = layers.Dense(3), layers.Dropout(0.1), layers.Dense(2)

    def call(self, x, training=None):
        return self.last(self.drop(self.first(x), training=training))


def test_subclassed():
    model = Subclassed()
    with pytest.raises(ValueError, match="is not built yet; call it on an input"):
        stages_of(model)
    model(np.zeros((1, 4), "float32"))
    found = stages_of(model)
    assert names(found) == ["stage1", "head"]
    assert [stage.layers for stage in found] == [(model.first,), (model.last,)]


def test_many_inputs(assert_partition):
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Concatenate()([layers.Dense(5)(a), layers.Dense(5)(b)])
    model = keras.Model({"a": a, "b": b}, layers.Dense(2)(layers.Dense(6)(x)))
    found = stages_of(model)
    assert_partition(model, found)
    assert found[-1].layers == (model.layers[-1],)
    assert [stage.crossing for stage in found][-1] == 24


def test_a_picture_and_a_table(assert_partition):
    picture, table = keras.Input((16, 16, 3)), keras.Input((5,))
    x = layers.Conv2D(4, 3, 2, "same")(picture)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, 2, "same")(x))
    x = layers.Concatenate()([x, layers.Dense(4)(table)])
    model = keras.Model([picture, table], layers.Dense(2)(x))
    found = stages_of(model)
    assert_partition(model, found)
    assert found[-1].layers[-1] is model.layers[-1]


def test_a_layer_used_twice_belongs_where_it_is_first_used(assert_partition):
    entry = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    x = shared(layers.Dense(4, name="first")(entry))
    x = shared(layers.Dense(4, name="middle")(x))
    model = keras.Model(entry, layers.Dense(2, name="classes")(x))
    found = stages_of(model)
    assert_partition(model, found)
    assert [[layer.name for layer in stage.layers] for stage in found] == [
        ["first"],
        ["shared"],
        ["middle"],
        ["classes"],
    ]


def test_no_weights():
    with pytest.raises(ValueError, match="has no weights; there is nothing to tune"):
        stages_of(keras.Sequential([keras.Input((4,)), layers.Rescaling(2.0)]))
    with pytest.raises(ValueError, match=r"is not built yet; call it on an input, or begin it with keras\.Input"):
        stages_of(keras.Sequential([layers.Dense(2)]))


def test_channels_first():
    was = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        entry = keras.Input((3, 16, 16))
        x = layers.Conv2D(6, 3, 2, "same")(entry)
        x = layers.Conv2D(20, 3, 2, "same")(x)
        model = keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
        assert [stage.shape for stage in stages_of(model)] == [(6, 8, 8), (20, 4, 4), (2,)]
    finally:
        keras.config.set_image_data_format(was)


@pytest.mark.parametrize(
    ("made_as", "shapes"),
    [("channels_first", [(6, 8, 8), (20, 4, 4), (2,)]), ("channels_last", [(8, 8, 6), (4, 4, 20), (2,)])],
)
@pytest.mark.parametrize("setting", ["channels_first", "channels_last"])
def test_layers_say_the_data_format(made_as, shapes, setting):
    """Whatever keras.json says now."""
    was = keras.config.image_data_format()
    entry = keras.Input((3, 16, 16) if made_as == "channels_first" else (16, 16, 3))
    x = layers.Rescaling(2.0)(entry)
    for filters in (6, 20):
        x = layers.Conv2D(filters, 3, 2, "same", data_format=made_as)(x)
    model = keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling2D(data_format=made_as)(x)))
    keras.config.set_image_data_format(setting)
    try:
        assert [stage.shape for stage in stages_of(model)] == shapes
    finally:
        keras.config.set_image_data_format(was)


def test_looking_changes_nothing():
    model = nested(keras.applications.MobileNet(weights=None, include_top=False, input_shape=(224, 224, 3)))
    before = [(layer.trainable, len(layer._inbound_nodes)) for layer in model._flatten_layers()]
    model.layers[1].layers[2].trainable = False
    stages_of(model)
    model.layers[1].layers[2].trainable = True
    assert [(layer.trainable, len(layer._inbound_nodes)) for layer in model._flatten_layers()] == before


def test_crossing_bytes_by_hand():
    entry = keras.Input((10,))
    a = layers.Dense(3)(entry)
    b = layers.Dense(5)(a)
    c = layers.Concatenate()([a, b])
    model = keras.Model(entry, layers.Dense(2)(c))
    # The input; then a; then a and b; then the two joined; nothing after the end.
    assert crossing_bytes(model, calls_of(model)) == [40, 12, 32, 32, 0]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Dense(5), (3,), 2 * (3 * 5 + 5)),
        (layers.Dense(5), (7, 3), 2 * (3 * 5 + 5) * 7),
        (layers.Conv2D(6, 3, 2, "same", use_bias=False), (8, 8, 4), 2 * 3 * 3 * 4 * 6 * 4 * 4),
        (layers.DepthwiseConv2D(3, padding="same", use_bias=False), (8, 8, 4), 2 * 3 * 3 * 4 * 8 * 8),
        # Each of the 16 positions that are read is spread over 3 x 3.
        (layers.Conv2DTranspose(6, 3, 2, "same", use_bias=False), (4, 4, 5), 2 * 3 * 3 * 5 * 6 * 4 * 4),
        (layers.Conv2D(6, 3, data_format="channels_first", use_bias=False), (4, 8, 9), 2 * 3 * 3 * 4 * 6 * 6 * 7),
        (layers.BatchNormalization(), (8, 8, 4), 2 * 4 * 4 * 8 * 8),
        # Both sets of weights at each of nine steps, whatever is put out.
        (layers.LSTM(2, use_bias=False), (9, 3), 2 * (3 * 8 + 2 * 8) * 9),
        (layers.Bidirectional(layers.LSTM(2, use_bias=False)), (9, 3), 2 * 2 * (3 * 8 + 2 * 8) * 9),
        (layers.Embedding(100, 8), (6,), 6 * 8),
        (layers.ReLU(), (8, 8, 4), 8 * 8 * 4),
        (layers.Flatten(), (8, 8, 4), 8 * 8 * 4),
        (layers.GlobalAveragePooling2D(), (8, 8, 4), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else None,
)
def test_operations_by_hand(layer, shape, expected):
    # A transposed convolution of channels first, say, cannot be run on a CPU; only its shapes are asked for.
    entry = keras.Input(shape)
    (call,) = calls_of(keras.Model(entry, layer(entry)))
    assert operations_of(call) == expected


def test_operations_at_the_size_a_model_is_used_at():
    entry = keras.Input((None, None, 3))
    inner = keras.Model(entry, layers.Conv2D(4, 1, use_bias=False)(entry))
    entry = keras.Input((10, 12, 3))
    assert [operations_of(call) for call in calls_of(keras.Model(entry, inner(entry)))] == [2 * 3 * 4 * 10 * 12]


def test_a_mask_does_not_end_the_last_block():
    """In the graph the masks are operations of their own, flatter than the sequence."""
    entry = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(entry)
    for i in range(2):
        x = primitive_block(x, i, pre=False)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    found = stages_of(keras.Model(entry, layers.Dense(3, name="classes")(x)))
    assert first_and_last(found)[-2:] == [("attention1", "norm_b1"), ("pool", "classes")]


convolutions = st.lists(
    st.tuples(st.sampled_from(["conv", "down", "pool", "norm", "relu", "skip", "drop"]), st.integers(1, 5)),
    min_size=1,
    max_size=14,
)


def test_layers_at_the_full_size_of_a_narrow_picture_are_a_stage():
    """A grey picture is the narrowest place of all; no boundary before it swallows the first stage."""
    x = entry = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(x)
    for stage, width in enumerate((8, 16, 24)):
        x = layers.Conv2D(width, 3, 2 if stage else 1, padding="same", name=f"down{stage}")(x)
        x = layers.Conv2D(width, 3, padding="same", name=f"conv{stage}")(x)
    found = stages_of(keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling2D(name="pool")(x))))
    assert [stage.shape for stage in found] == [(28, 28, 8), (14, 14, 16), (7, 7, 24), (2,)]
    assert first_and_last(found)[1:3] == [("down1", "conv1"), ("down2", "conv2")]
    assert (found[0].layers[-1].name, found[3].layers[0].name) == ("conv0", "pool")


@settings(max_examples=40, deadline=None)
@given(convolutions, st.booleans())
def test_any_chain_of_convolutions(assert_partition, parts, with_head):
    x = entry = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, padding="same")(x)
    for kind, width in parts:
        if kind == "conv":
            x = layers.Conv2D(width, 3, padding="same")(x)
        elif kind == "down":
            x = layers.Conv2D(width, 3, 2, padding="same")(x)
        elif kind == "pool" and x.shape[1] > 1:
            x = layers.MaxPooling2D()(x)
        elif kind == "norm":
            x = layers.BatchNormalization()(x)
        elif kind == "relu":
            x = layers.ReLU()(x)
        elif kind == "skip":
            x = layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(x)])
        elif kind == "drop":
            x = layers.Dropout(0.5)(x)
    if with_head:
        x = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    found = stages_of(model)
    assert_partition(model, found)
    assert names(found)[:-1] == [f"stage{i + 1}" for i in range(len(found) - 1)]
    assert all(stage.parameters for stage in found)
    if with_head:
        assert found[-1].name == "head"
        assert found[-1].layers[-1] is model.layers[-1]
    assert all(isinstance(stage, Stage) for stage in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["dense", "norm", "relu", "drop", "scale"]), max_size=12))
def test_any_chain_of_dense_layers(assert_partition, parts):
    make = {
        "dense": lambda: layers.Dense(3),
        "norm": layers.BatchNormalization,
        "relu": layers.ReLU,
        "drop": lambda: layers.Dropout(0.5),
        "scale": lambda: layers.Rescaling(2.0),
    }
    model = keras.Sequential([keras.Input((4,)), *(make[part]() for part in parts), layers.Dense(2)])
    found = stages_of(model)
    assert_partition(model, found)
    assert found[-1].name == "head"
    assert len(found) == parts.count("dense") + 1 or parts.count("norm")
    assert found[-1].layers == (model.layers[-1],) or "dense" not in parts
