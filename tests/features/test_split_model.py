"""The two parts are the model, to the bit, and the user's layers are as they were."""

import gc
import weakref

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw._keras import graph_nodes
from thaw.features.split import (
    CannotSplit,
    _tensor_bytes,
    covers,
    find_cut_point,
    flatten_model,
    is_random,
    split_model,
    submodel,
)
from thaw.models.heads import attach_head
from thaw.training.freezing import freeze

# Keras says so when a tensor is given where a list of one was meant: nobody shall see that from the parts.
pytestmark = pytest.mark.filterwarnings("error:The structure of `inputs`")


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
    return keras.ops.convert_to_tensor(np.random.default_rng(0).normal(8, 4, (n, 16, 16, 1)).astype("float32"))


@pytest.mark.parametrize(
    ("train", "crossing"), [("head", (8,)), (1, (4, 4, 6)), (2, (8, 8, 4)), (("stage2",), (8, 8, 4))]
)
def test_prefix_and_suffix_are_the_model(train, crossing):
    model = net()
    freeze(model, train)
    whole = model(pictures(), training=False).numpy()
    prefix, suffix = split_model(model)
    assert prefix.output_shape[1:] == crossing
    assert np.array_equal(suffix(prefix(pictures(), training=False), training=False).numpy(), whole)
    assert not prefix.trainable_variables
    assert {id(v) for v in suffix.trainable_variables} == {id(v) for v in model.trainable_variables}


def test_training_the_suffix_trains_the_model():
    model = net()
    freeze(model, 1)
    before = model(pictures(), training=False).numpy()
    prefix, suffix = split_model(model)
    suffix.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    suffix.fit(prefix(pictures()), np.zeros(8), verbose=0)
    after = model(pictures(), training=False).numpy()
    assert not np.array_equal(before, after)
    assert np.array_equal(after, suffix(prefix(pictures()), training=False).numpy())


def test_dropout_goes_on_dropping():
    model = net()
    freeze(model, "head")
    prefix, suffix = split_model(model)
    assert "head_dropout" in [layer.name for layer in suffix.layers]
    features = prefix(pictures())
    assert not np.array_equal(suffix(features, training=True), suffix(features, training=True))


def test_the_layers_are_as_they_were(tmp_path):
    model = net()
    freeze(model, 1)
    notes = [(op, list(op._inbound_nodes), list(op._outbound_nodes)) for op in model.operations]
    for _ in range(3):
        split_model(model)
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
    with pytest.raises(CannotSplit, match="no frozen layer with weights before the trainable layers"):
        split_model(model)
    freeze(model, ("stage1",))
    with pytest.raises(CannotSplit, match="no frozen layer with weights before the trainable layers"):
        split_model(model)
    model.trainable = False
    with pytest.raises(CannotSplit, match=r"No weights of .* are trainable"):
        split_model(model)


def test_randomness_inside_what_stands_still_is_not_kept():
    """Dropout between layers that stand still is on in fit; a cut behind it would turn it off."""
    entry = keras.Input((4,))
    x = layers.Dense(8, name="low")(entry)
    x = layers.GaussianNoise(1.0)(x)
    model = keras.Model(entry, layers.Dense(2)(x))
    freeze(model, "head")
    prefix, suffix = split_model(model)
    assert [type(layer).__name__ for layer in prefix.layers] == ["InputLayer", "Dense"]
    assert [type(layer).__name__ for layer in suffix.layers] == ["InputLayer", "GaussianNoise", "Dense"]


# ----------------------------------------------------------------- what crosses


def train_once(model, x):
    """A step of training without ``fit``, which would have to be traced."""
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_mean((output - 1) ** 2) for output in keras.tree.flatten(model(x, training=True)))
    gradients = tape.gradient(loss, model.trainable_variables)
    keras.optimizers.SGD(0.1).apply(gradients, model.trainable_variables)


def same(model, x, train):
    """Cut the model and compare: prefix and suffix are the model, before and after a step of training."""
    freeze(model, train)
    notes = [(op, list(op._inbound_nodes), list(op._outbound_nodes), op.name) for op in every_operation(model)]
    prefix, suffix = split_model(model)
    for op, inbound, outbound, name in notes:
        assert (op._inbound_nodes, op._outbound_nodes, op.name) == (inbound, outbound, name)
    assert not prefix.trainable_variables
    assert {id(v) for v in suffix.trainable_variables} == {id(v) for v in model.trainable_variables}
    before = model(x, training=False)
    kept = prefix(x, training=False)
    assert_equal(suffix(kept, training=False), before)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(7).normal(size=variable.shape))
    train_once(suffix, kept)
    after = model(x, training=False)
    assert not np.array_equal(keras.tree.flatten(before)[0], keras.tree.flatten(after)[0])
    assert_equal(prefix(x, training=False), kept)  # what stands still stood still
    assert_equal(suffix(kept, training=False), after)
    return prefix, suffix


def every_operation(model):
    for node in graph_nodes(model):
        yield node.operation
        if isinstance(node.operation, keras.Model):
            yield from every_operation(node.operation)


def assert_equal(a, b):
    a, b = keras.tree.flatten(a), keras.tree.flatten(b)
    assert len(a) == len(b)
    for one, other in zip(a, b):
        assert np.array_equal(one, other)


def shapes(tensors):
    return [tuple(t.shape[1:]) for t in tensors]


def two_skips():
    """A net in which two tensors cross everywhere below the head."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((16, 16, 1))
    low = layers.Conv2D(4, 3, 4, padding="same", name="low")(entry)
    low = layers.BatchNormalization(name="norm")(low)
    high = layers.Conv2D(64, 3, padding="same", activation="relu", name="wide")(low)
    high = layers.Conv2D(5, 3, padding="same", activation="relu", name="high")(high)
    moved = layers.Conv2D(6, 3, padding="same", name="moved")(high)
    x = layers.Concatenate(name="join")([moved, layers.BatchNormalization(name="norm_moved")(low)])
    return keras.Model(entry, layers.Dense(3, name="classes")(layers.GlobalAveragePooling2D()(x)))


def test_two_tensors_cross_a_net_with_skips():
    model = two_skips()
    model.trainable = False
    model.trainable = True
    for layer in model.layers:
        layer.trainable = layer.name in ("moved", "classes", "norm_moved")
    prefix, suffix = split_model(model)
    assert shapes(prefix.outputs) == [(4, 4, 4), (4, 4, 5)]
    assert_equal(suffix(prefix(pictures())), model(pictures()))
    # Side by side with what moves: the second norm stands still too, and is computed once.
    model.get_layer("norm_moved").trainable = False
    prefix, suffix = split_model(model)
    assert "norm_moved" in [layer.name for layer in prefix.layers]
    assert shapes(prefix.outputs) == [(4, 4, 5), (4, 4, 4)] or shapes(prefix.outputs) == [(4, 4, 4), (4, 4, 5)]
    train_once(suffix, prefix(pictures()))
    assert_equal(suffix(prefix(pictures())), model(pictures()))


def words(n=6, length=7):
    tokens = np.random.default_rng(3).integers(1, 20, (n, length))
    tokens[:, 5:] = 0  # padding
    return keras.ops.convert_to_tensor(tokens.astype("int32"))


def transformer(blocks=3, dropout=0.1):
    keras.utils.set_random_seed(0)
    entry = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(entry)
    for i in range(blocks):
        y = layers.MultiHeadAttention(2, 4, dropout=dropout, name=f"attention{i}")(x, x)
        x = layers.LayerNormalization(name=f"norm{i}")(layers.Add(name=f"add{i}")([x, layers.Dropout(dropout)(y)]))
    return keras.Model(entry, layers.Dense(3, name="classes")(layers.GlobalAveragePooling1D(name="pool")(x)))


def test_a_transformer_with_a_mask_and_dropout():
    model = transformer()
    prefix, _ = same(model, words(), 1)
    # The sequence, and the mask that the attention and the pooling above ask for.
    assert sorted(shapes(prefix.outputs)) == [(7,), (7, 8)]
    assert {t.dtype for t in prefix.outputs} == {"bool", "float32"}
    prefix, _ = same(transformer(), words(), "head")
    assert len(prefix.outputs) == 1


def test_the_mask_makes_a_difference():
    """Else the test above could not tell a lost mask."""
    model = transformer()
    tokens = words().numpy()
    model.get_layer("classes").kernel.assign(np.random.default_rng(0).normal(size=(8, 3)))
    freeze(model, 1)
    prefix, suffix = split_model(model)
    kept = prefix(tokens)
    unmasked = [keras.ops.ones_like(t) if t.dtype == "bool" else t for t in kept]
    assert_equal(suffix(kept), model(tokens))
    assert not np.allclose(suffix(unmasked), suffix(kept))


def sequential():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Conv2D(4, 3, 2), layers.Conv2D(4, 3, 2), layers.Flatten(), layers.Dense(3)]
    )


def nested(inner, *, once_more=False):
    entry = keras.Input(inner.input_shape[1:])
    x = inner(entry, training=False)
    if once_more:
        outer = keras.Model(entry, layers.ReLU()(x))
        entry = keras.Input(inner.input_shape[1:])
        x = outer(entry)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model([entry], layers.Dense(3)(x))


@pytest.mark.parametrize(
    "make",
    [
        sequential,
        lambda: nested(backbone()),
        lambda: nested(backbone(), once_more=True),
        lambda: nested(keras.Sequential([keras.Input((16, 16, 1)), layers.Conv2D(4, 3, 2), layers.Conv2D(5, 3, 2)])),
        lambda: keras.Sequential([backbone(), layers.GlobalAveragePooling2D(), layers.Dense(3)]),
        net,
    ],
    ids=["sequential", "nested", "twice nested", "sequential inside", "inside a sequential", "attach_head"],
)
@pytest.mark.parametrize("train", ["head", 1])
def test_nested_and_sequential(make, train):
    prefix, _ = same(make(), pictures(), train)
    assert len(prefix.outputs) == 1


def test_a_mask_from_inside_a_nested_model():
    """At run time a nested model hands its mask on, although its symbolic output has none."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    inner = keras.Model(tokens, layers.Embedding(20, 8, mask_zero=True)(tokens))
    entry = keras.Input((None,), dtype="int32")
    model = keras.Model(entry, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Dense(8)(inner(entry)))))
    whole = model(words())
    assert_equal(flatten_model(model)(words()), whole)
    assert np.allclose(model(words()[:, :5]), whole, atol=1e-6)  # the padding counts for nothing, so there is a mask
    prefix, _ = same(model, words(), "head")
    assert shapes(prefix.outputs) == [(8,)]


def test_a_net_called_twice_and_a_layer_called_twice():
    keras.utils.set_random_seed(0)
    inner = backbone()
    a, b = keras.Input((16, 16, 1), name="a"), keras.Input((16, 16, 1), name="b")
    pool, dense, first = layers.GlobalAveragePooling2D(), layers.Dense(4), layers.Dense(4)
    x = [dense(dense(first(pool(inner(t))))) for t in (a, b)]
    model = keras.Model([a, b], layers.Dense(2)(layers.Concatenate()(x)))
    both = [pictures(), pictures() * 0.5]
    same(model, both, "head")
    model.trainable = False
    model.trainable = True
    for layer in (inner, first):
        layer.trainable = False
    prefix, suffix = split_model(model)
    assert len(prefix.outputs) == 2
    assert_equal(suffix(prefix(both)), model(both))


def test_several_inputs_and_an_input_that_crosses():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = layers.Concatenate()([layers.Dense(3)(a), layers.Dense(3)(b)])
    model = keras.Model({"a": a, "b": b}, layers.Dense(2)(x))
    numbers = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    prefix, _ = same(model, {"a": numbers, "b": -numbers}, "head")
    assert shapes(prefix.outputs) == [(6,)]
    entry = keras.Input((4,))
    x = layers.Dense(5)(layers.Dense(9)(entry))
    model = keras.Model(entry, layers.Dense(2)(layers.Concatenate()([entry, x])))
    prefix, _ = same(model, keras.ops.convert_to_tensor(numbers), ("stage2", "head"))
    assert shapes(prefix.outputs) == [(4,), (9,)]


def test_an_output_that_stands_still():
    entry = keras.Input((4,))
    still = layers.Dense(3, name="still")(entry)
    model = keras.Model(entry, {"still": still, "moves": layers.Dense(2, name="moves")(still)})
    model.get_layer("still").trainable = False
    prefix, suffix = split_model(model)
    x = keras.ops.ones((2, 4))
    found, whole = suffix(prefix(x)), model(x)
    assert set(found) == {"still", "moves"}
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert suffix.output_names == model.output_names


def test_two_layers_of_one_name():
    """Of two loaded models, say; in one graph Keras wants them different, and they keep their names."""
    inner = [keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense_a")], name=f"net{i}") for i in range(2)]
    entry = keras.Input((4,))
    model = keras.Model(entry, layers.Dense(2)(inner[1](inner[0](entry))))
    same(model, keras.ops.ones((2, 4)), "head")
    assert [layer.name for net in inner for layer in net.layers] == ["dense_a", "dense_a"]


@pytest.mark.parametrize("form", ["nested", "flat", "classifier"])
def test_a_backbone_of_keras_hub(form):
    keras_hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=12, max_sequence_length=9
    )
    if form == "nested":
        entry = {name: keras.Input((7,), dtype="int32", name=name) for name in bert.input}
        model = keras.Model(entry, layers.Dense(3)(bert(entry)["pooled_output"]))
    elif form == "flat":
        model = keras.Model(bert.input, layers.Dense(3)(bert.output["sequence_output"][:, 0]))
    else:
        model = keras_hub.models.BertTextClassifier(bert, num_classes=3, preprocessor=None)
    padding = keras.ops.cast(words() > 0, "int32")
    x = {"token_ids": words(), "segment_ids": keras.ops.zeros((6, 7), "int32"), "padding_mask": padding}
    freeze(model, 1)
    prefix, suffix = split_model(model)
    assert [t.dtype for t in prefix.outputs] == ["int32", "float32"]  # the padding mask and the sequence
    assert all(is_random(layer) for layer in prefix.layers if type(layer).__name__ == "TransformerEncoder")
    kept = prefix(x)
    assert_equal(suffix(kept), model(x))
    before = model(x)
    train_once(suffix, kept)
    assert not np.array_equal(model(x), before)
    assert_equal(suffix(kept), model(x))


# ----------------------------------------------------------------- what cannot be cut


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class OwnCall(keras.Model):
    def call(self, x, training=None):
        return 2 * super().call(x, training=training)


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


def small():
    entry = keras.Input((4,))
    return entry, layers.Dense(2)(layers.Dense(3)(entry))


def test_what_cannot_be_cut_says_why():
    own = Own()
    own(np.zeros((1, 3), "float32"))
    with pytest.raises(CannotSplit, match=r"own(_\d+)? is a subclassed model, whose graph cannot be read"):
        split_model(own)
    with pytest.raises(CannotSplit, match="has no graph yet"):
        split_model(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(CannotSplit, match="has a call of its own"):
        split_model(OwnCall(*small()))
    with pytest.raises(CannotSplit, match="has a train_step of its own"):
        split_model(OwnStep(*small()))
    entry = keras.Input((4,))
    with pytest.raises(CannotSplit, match="has a call of its own"):
        split_model(keras.Model(entry, layers.Dense(2)(OwnCall(*small())(entry))))
    with pytest.raises(CannotSplit, match=r"is called inside .* with options of its own"):
        split_model(keras.Model(entry, layers.Dense(2)(keras.Model(*small())(entry, training=True))))
    with pytest.raises(CannotSplit, match=r"Dense is not a keras\.Model"):
        split_model(layers.Dense(2))


def test_a_mask_that_the_loss_would_read():
    entry = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(entry)
    model = keras.Model(entry, layers.Dense(3)(layers.Dense(4)(x)))
    freeze(model, "head")
    with pytest.raises(CannotSplit, match="carries a mask, which the loss reads"):
        split_model(model)


def test_a_model_that_stands_still_with_a_layer_inside_that_moves():
    model = nested(backbone())
    model.trainable = False
    model.layers[-1].trainable = True  # Keras trains nothing in a model that is frozen, whatever its layers say
    with pytest.raises(CannotSplit, match="is frozen as a whole, with trainable layers inside"):
        split_model(model)
    # A model inside is another matter: what moves in it does move.
    model.trainable = True
    model.layers[1].trainable = False
    model.layers[1].get_layer("conv2").trainable = True
    prefix, suffix = split_model(model)
    assert "conv2" in [layer.name for layer in suffix.layers]
    assert_equal(suffix(prefix(pictures())), model(pictures()))


def test_statistics_that_move_without_weights_that_do():
    entry = keras.Input((4,))
    x = layers.BatchNormalization(center=False, scale=False, name="norm")(layers.Dense(8, name="still")(entry))
    model = keras.Model(entry, layers.Dense(2)(x))
    model.get_layer("still").trainable = False
    prefix, _ = split_model(model)
    assert [layer.name for layer in prefix.layers][1:] == ["still"]
    model.get_layer("norm").trainable = False
    prefix, _ = split_model(model)
    assert [layer.name for layer in prefix.layers][1:] == ["still", "norm"]


class ReadsMask(layers.Layer):
    """A layer that takes the mask from the tensor itself, as KerasHub's encoder does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(4)

    def call(self, x):
        mask = getattr(x, "_keras_mask", None)
        x = self.dense(x)
        return x if mask is None else x * keras.ops.cast(mask, "float32")[..., None]


@pytest.mark.filterwarnings("ignore:Layer 'reads'")  # Keras says that it destroys the mask
def test_a_mask_that_a_layer_takes_from_the_tensor_itself():
    """A tensor that was kept carries none: only a place behind such a layer, or before the mask, will do."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((7,), dtype="int32")
    x = layers.Dense(8, name="low")(layers.Embedding(20, 8, mask_zero=True)(entry))
    x = layers.Lambda(lambda x: keras.ops.sum(x, 1), output_shape=(4,))(ReadsMask(name="reads")(x))
    model = keras.Model(entry, layers.Dense(3, name="classes")(x))
    for layer in model.layers[:-1]:
        layer.trainable = False
    prefix, suffix = split_model(model)
    assert prefix.output_shape == (None, 4)
    assert_equal(suffix(prefix(words())), model(words()))
    model.get_layer("reads").trainable = True
    with pytest.raises(CannotSplit, match="rows or a mask would get lost"):
        split_model(model)


def test_where_keeping_costs_more_than_computing():
    """An embedding is looked up faster than its output is read."""
    entry = keras.Input((512,), dtype="int32")
    x = layers.Dense(4)(layers.Embedding(9, 64)(entry))
    model = keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    freeze(model, 1)
    with pytest.raises(CannotSplit, match="Caching 131,072 bytes for each example costs more than computing"):
        split_model(model)


def test_a_little_earlier_where_that_is_much_smaller():
    """1,024 numbers cross behind a cheap layer, 16 before it; behind a dear one the 1,024 are kept."""
    for width, kept in ((4, (16,)), (4096, (1024,))):
        entry = keras.Input((64, width))
        x = layers.Dense(16, name="low")(layers.GlobalAveragePooling1D()(entry))
        y = layers.Dense(width * 4, name="wide")(x) if kept != (16,) else x
        y = layers.Dense(1024, name="still")(y)
        model = keras.Model(entry, layers.Dense(2)(y))
        freeze(model, "head")
        # 2 * 16 * 1024 operations against 100 * 4 * (1024 - 16) for the bytes; 2 * 16384 * 1024 are more.
        assert split_model(model)[0].output_shape[1:] == kept


def test_rows_are_examples():
    """A place where an axis is folded into the first is none."""
    entry = keras.Input((6, 4))
    x = layers.Dense(3, name="low")(entry)
    x = keras.ops.reshape(x, (-1, 3))
    x = layers.Dense(2, name="moves")(x)
    model = keras.Model(entry, keras.ops.reshape(x, (-1, 12)))
    model.get_layer("low").trainable = False
    prefix, suffix = split_model(model)
    assert prefix.output_shape == (None, 6, 3)
    x = keras.ops.ones((2, 6, 4))
    assert_equal(suffix(prefix(x)), model(x))


# ----------------------------------------------------------------- the pieces


def test_parts_and_what_covers_what():
    model = net()
    assert flatten_model(model) is model
    freeze(model, 1)
    early = find_cut_point(model)
    freeze(model, "head")
    late = find_cut_point(model)
    assert shapes(early) == [(4, 4, 6)]
    assert shapes(late) == [(8,)]
    assert covers(model, early, late)
    assert not covers(model, late, early)
    assert covers(model, model.inputs, early)
    prefix, middle, suffix = submodel(model, None, early), submodel(model, early, late), submodel(model, late, None)
    assert_equal(suffix(middle(prefix(pictures()))), model(pictures()))
    with pytest.raises(ValueError, match="cannot be computed from those to begin from"):
        submodel(model, late, early)


def test_flattened_once_and_cut_often():
    model = nested(backbone())
    flat = flatten_model(model)
    assert_equal(flat(pictures()), model(pictures()))
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    for train in ("head", 1, 2):
        freeze(model, train)
        crossing = find_cut_point(flat)
        keras.Model(model.inputs, model.layers[1](model.inputs[0]))  # somebody else uses the layers meanwhile
        parts = submodel(flat, None, crossing), submodel(flat, crossing, None)
        assert_equal(parts[1](parts[0](pictures())), model(pictures()))


def test_what_is_random():
    assert is_random(layers.Dropout(0.5))
    assert is_random(layers.RandomFlip())
    assert is_random(layers.GaussianNoise(0.1))
    assert is_random(layers.Bidirectional(layers.LSTM(2, dropout=0.1)))
    attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
    attention.build((None, 3, 8), (None, 3, 8))
    assert is_random(attention)
    for still in (layers.Dropout(0.0), layers.LSTM(2), layers.Dense(2), layers.MultiHeadAttention(2, 4)):
        assert not is_random(still)


def test_nothing_is_held_on_to():
    """Parts that are no longer used go, and with them their graphs."""
    model = net()
    freeze(model, 1)
    seen = [weakref.ref(one) for one in split_model(model)]
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


@pytest.mark.parametrize(("dtype", "expected"), [("float8_e4m3fn", 6), ("bfloat16", 12), ("bool", 6), ("int64", 48)])
def test_bytes_of_a_tensor_follow_its_dtype(dtype, expected):
    assert _tensor_bytes(dtype, (None, 2, 3)) == expected
