"""Models of every kind: their stages hold every layer once, and frozen prefix and trainable suffix are the model.

A kind that cannot be split says why, and ``fine_tune`` then computes all of it.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

from thaw.features.split import CannotSplit, split_model
from thaw.models.stages import stages_of
from thaw.training.freezing import freeze

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(4, 6)).astype("float32")
STEPS = RNG.normal(size=(4, 5, 6)).astype("float32")
PIXELS = RNG.normal(size=(4, 8, 8, 3)).astype("float32")
TOKENS = np.array([[1, 2, 3, 4, 5], [3, 1, 0, 0, 0], [2, 2, 8, 0, 0], [7, 6, 5, 4, 0]], "int32")
TEXTS = np.array([["a"], ["b"], ["c"], ["a"]])
KINDS = {}


def kind(*x, refused=None):
    """Note a model under the name of its function; ``x`` are its inputs, ``refused`` is why it cannot be split."""

    def note(build):
        KINDS[build.__name__] = (build, x, refused)
        return build

    return note


def graph(inputs, build, count=2):
    """A functional model that ends in a dense layer."""
    return keras.Model(inputs, layers.Dense(count)(build))


@kind(VECTORS)
def nested_three_deep():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.Dense(5, "relu")])
    entry = keras.Input((6,))
    middle = keras.Sequential([keras.Input((6,)), graph(entry, inner(entry), 4), layers.Dense(4)])
    entry = keras.Input((6,))
    return graph(entry, middle(entry))


@kind(VECTORS, VECTORS[::-1])
def siamese():
    base = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.Dense(5)])
    a, b = keras.Input((6,)), keras.Input((6,))
    return graph([a, b], ops.abs(base(a) - base(b)), 1)


@kind(VECTORS)
def shared_layer():
    entry, shared = keras.Input((6,)), layers.Dense(6, "relu")
    return graph(entry, shared(shared(layers.Dense(6)(entry))))


@kind({"a": VECTORS, "b": VECTORS[:, :3]})
def dicts_in_and_out():
    a, b = keras.Input((6,), name="a"), keras.Input((3,), name="b")
    x = layers.Dense(5, "relu")(layers.Concatenate()([layers.Dense(4)(a), layers.Dense(4)(b)]))
    return keras.Model({"a": a, "b": b}, {"p": layers.Dense(2, name="p")(x), "q": layers.Dense(3, name="q")(x)})


@kind(VECTORS, VECTORS[:, :3])
def lists_in_and_out():
    a, b = keras.Input((6,)), keras.Input((3,))
    x = layers.Dense(5, "relu")(layers.Concatenate()([layers.Dense(4)(a), b]))
    return keras.Model([a, b], [layers.Dense(2)(x), layers.Dense(3)(x)])


@kind({"a": VECTORS, "b": VECTORS[:, :3]})
def nested_dicts():
    a, b = keras.Input((6,), name="a"), keras.Input((3,), name="b")
    outputs = {"f": layers.Dense(4)(layers.Concatenate()([a, b])), "g": layers.Dense(3)(a)}
    inner = keras.Model({"a": a, "b": b}, outputs)
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((3,), name="b")}
    found = inner(inputs)
    return graph(inputs, layers.Concatenate()([found["f"], found["g"]]))


@kind(np.stack([PIXELS, -PIXELS], axis=1))
def time_distributed():
    frames = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    return keras.Sequential(
        [keras.Input((2, 8, 8, 3)), layers.TimeDistributed(frames), layers.LSTM(4), layers.Dense(2)]
    )


@kind(TOKENS)
def bidirectional_with_mask():
    net = [layers.Embedding(9, 4, mask_zero=True), layers.Bidirectional(layers.LSTM(3, return_sequences=True))]
    return keras.Sequential(
        [keras.Input((5,), dtype="int32"), *net, layers.Bidirectional(layers.GRU(3)), layers.Dense(2)]
    )


@kind(np.where(np.arange(5)[None, :, None] < 3, STEPS, 0))
def masking():
    net = [layers.Masking(), layers.Dense(4), layers.LSTM(4, return_sequences=True), layers.LSTM(4)]
    return keras.Sequential([keras.Input((5, 6)), *net, layers.Dense(2)])


@kind(TOKENS)
def attention_with_masks():
    entry = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(entry)
    for _ in range(2):
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)]))
    return graph(entry, layers.GlobalAveragePooling1D()(x))


@kind(STEPS, np.tril(np.ones((4, 5, 5), bool)))
def attention_mask_as_input():
    entry, mask = keras.Input((5, 6)), keras.Input((5, 5), dtype="bool")
    x = layers.MultiHeadAttention(2, 4)(entry, entry, attention_mask=mask)
    return graph([entry, mask], layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask))


@kind(TOKENS)
def causal_language_model():
    entry = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 8)(entry)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
        x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, "gelu")(x)))
    return graph(entry, x, 9)


@kind(TOKENS, refused="carries a mask, which the loss reads")
def a_mask_at_the_end():
    net = [layers.Embedding(9, 8, mask_zero=True), layers.LSTM(4, return_sequences=True), layers.Dense(3)]
    return keras.Sequential([keras.Input((5,), dtype="int32"), *net])


@kind(PIXELS)
def spectral_normalization():
    net = [layers.SpectralNormalization(layers.Conv2D(4, 3)), layers.ReLU(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3)), *net, layers.Dense(2)])


@kind(PIXELS)
def group_normalization():
    net = [layers.Conv2D(4, 3), layers.GroupNormalization(2), layers.Conv2D(4, 3, 2), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *net, layers.Dense(2)])


@kind(TEXTS)
def text_vectorization():
    texts = layers.TextVectorization(9, output_sequence_length=2, vocabulary=["a", "b"])
    net = [texts, layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(4, "relu")]
    return keras.Sequential([keras.Input((1,), dtype="string"), *net, layers.Dense(2)])


@kind({"s": TEXTS, "n": VECTORS})
def string_lookup():
    texts, numbers = keras.Input((1,), dtype="string", name="s"), keras.Input((6,), name="n")
    x = layers.Flatten()(layers.Embedding(3, 4)(layers.StringLookup(vocabulary=["a", "b"])(texts)))
    return graph({"s": texts, "n": numbers}, layers.Dense(5, "relu")(layers.Concatenate()([x, numbers])))


@kind(PIXELS)
def u_net():
    entry = keras.Input((8, 8, 3))
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(entry)
    b = layers.Conv2D(6, 3, 2, padding="same", activation="relu")(a)
    up = layers.Conv2DTranspose(4, 3, 2, padding="same")(b)
    x = layers.Conv2D(4, 3, padding="same")(layers.Concatenate()([a, up]))
    return keras.Model(entry, layers.Conv2D(2, 1, activation="softmax")(x))


@kind(VECTORS)
def lora():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(8), layers.Dense(2)])
    for layer in model.layers[:2]:
        layer.enable_lora(2)
    return model


@kind(VECTORS)
def int8():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(8, "relu"), layers.Dense(2)])
    model.quantize("int8")
    return model


@kind(PIXELS)
def mixed_precision_inside():
    base = [layers.Conv2D(4, 3, dtype="mixed_float16"), layers.ReLU(dtype="mixed_float16")]
    base = keras.Sequential([keras.Input((8, 8, 3)), *base, layers.Conv2D(4, 3, dtype="mixed_bfloat16")])
    entry = keras.Input((8, 8, 3))
    return graph(entry, layers.GlobalAveragePooling2D()(base(entry)))


@kind(STEPS)
def several_outputs_of_a_layer():
    entry = keras.Input((5, 6))
    steps, h, c = layers.LSTM(4, return_sequences=True, return_state=True)(entry)
    return graph(entry, layers.Dense(4)(layers.Concatenate()([layers.GlobalAveragePooling1D()(steps), h, c])))


@kind(STEPS, STEPS[:, :3])
def initial_state():
    a, b = keras.Input((5, 6)), keras.Input((3, 6))
    _, h, c = layers.LSTM(4, return_state=True)(a)
    return graph([a, b], layers.LSTM(4, return_sequences=True)(b, initial_state=[h, c]))


@kind(STEPS[:, :, :3], refused="no frozen layer with weights before the trainable layers")
def stateful_recurrent():
    """What a layer says that carries its state on depends on the batch before, so it is no feature of an example."""
    net = [layers.GRU(4, stateful=True), layers.Dense(3)]
    return keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), *net, layers.Dense(2)])


@kind(VECTORS)
def operations():
    entry = keras.Input((6,))
    x = layers.Dense(4)(entry)
    x = ops.concatenate([ops.relu(x) * 2.0 + ops.mean(x, axis=-1, keepdims=True), x[:, :2]], axis=-1)
    a, b = ops.split(layers.Dense(4)(ops.where(x > 0, x, 0.1 * x)), 2, axis=-1)
    return graph(entry, ops.stack([a, b], axis=1)[:, 0])


@kind(VECTORS)
def lambda_with_arguments():
    entry = keras.Input((6,))
    x = layers.Lambda(lambda t, factor: t * factor, arguments={"factor": 2.0})(layers.Dense(4)(entry))
    return graph(entry, layers.Dense(4)(x))


class Own(layers.Layer):
    """Takes options and constants, asks whether it is trained, and returns a dict."""

    def build(self, shape):
        self.dense, self.drop = layers.Dense(4), layers.Dropout(0.5)
        self.dense.build(shape)

    def call(self, x, factor=1.0, other=None, mode="a", training=False):
        y = self.drop(self.dense(x) * factor, training=training)
        return {"a": y, "b": [y * 2, y if other is None else y + other]}


@kind(VECTORS)
def own_layer():
    entry = keras.Input((6,))
    first = Own()(layers.Dense(4)(entry), factor=3.0, mode="b")
    second = Own()(first["a"], other=np.ones((1, 4), "float32"))
    return graph(entry, layers.Add()([second["b"][0], second["b"][1], first["b"][0]]))


@kind(PIXELS)
def called_in_inference():
    net = [layers.RandomFlip(), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.3)]
    base, entry = keras.Sequential([keras.Input((8, 8, 3)), *net]), keras.Input((8, 8, 3))
    return graph(entry, layers.GlobalAveragePooling2D()(base(entry, training=False)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(4), layers.Dense(2)

    def call(self, x):
        return self.last(self.first(x))


@kind(VECTORS, refused="is a subclassed model, whose graph cannot be read")
def subclassed():
    model = Subclassed()
    model(VECTORS)
    return model


@kind(VECTORS)
def subclassed_inside():
    entry = keras.Input((6,))
    return graph(entry, Subclassed()(layers.Dense(5)(entry)))


class OwnCall(keras.Model):
    def call(self, x, training=None, mask=None):
        return 2 * super().call(x, training=training, mask=mask)


@kind(VECTORS, refused="has a call of its own, so that its graph does not describe the computation")
def own_call():
    entry = keras.Input((6,))
    return OwnCall(entry, layers.Dense(2)(layers.Dense(4)(entry)))


@kind(STEPS)
def recurrent_cells():
    entry = keras.Input((5, 6))
    x = layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], return_sequences=True)(entry)
    return graph(entry, layers.RNN(layers.SimpleRNNCell(3))(x))


@pytest.mark.filterwarnings("ignore:.*does not support masking")  # Keras counts the suffix, which reads no mask
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")  # of an InputLayer
@pytest.mark.parametrize("name", KINDS)
def test_kinds(name):
    build, x, refused = KINDS[name]
    keras.utils.set_random_seed(0)
    model = build()
    x = keras.tree.map_structure(ops.convert_to_tensor, x[0] if len(x) == 1 else list(x))
    stages = stages_of(model)
    placed = [id(w) for stage in stages for layer in stage.layers for w in layer.weights]
    assert {id(w) for w in model.weights} == set(placed)
    assert stages[-1].name == "head"
    assert len(stages) > 1
    reasons = []
    for train in range(min(3, len(stages) - 1)):
        freeze(model, train, stages=stages)
        try:
            prefix, suffix = split_model(model)
        except CannotSplit as reason:
            reasons.append(str(reason))
            continue
        assert refused is None
        whole = keras.tree.flatten(model(x, training=False))
        parts = keras.tree.flatten(suffix(prefix(x, training=False), training=False))
        assert len(whole) == len(parts)
        for one, other in zip(whole, parts):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
        assert not prefix.trainable_variables
        assert {id(v) for v in suffix.trainable_variables} == {id(v) for v in model.trainable_variables}
    assert [reason for reason in reasons if refused is None or refused not in reason] == []


def test_frozen_spectral_normalization():
    """In training Keras scales its kernel again, frozen or not; in a prefix it stays bit-identical."""
    model = KINDS["spectral_normalization"][0]()
    freeze(model, "head")
    prefix, suffix = split_model(model)
    before = [w.numpy() for w in prefix.weights]
    suffix.compile("sgd", "mse")
    suffix.fit(prefix(PIXELS), np.zeros((4, 2)), verbose=0)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, prefix.weights))
    freeze(model, "all")
    with pytest.raises(CannotSplit):  # its statistics are trained with it
        split_model(model)


def test_stages_of_a_u_net():
    """Each upsampling begins a stage, and the last layer, which predicts a class for each pixel, is the head."""
    model = KINDS["u_net"][0]()
    kinds = [[type(layer).__name__ for layer in stage.layers] for stage in stages_of(model)]
    assert kinds == [["Conv2D"], ["Conv2D"], ["Conv2DTranspose", "Concatenate", "Conv2D"], ["Conv2D"]]
    autoencoder = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2, "same"), layers.UpSampling2D(), layers.Conv2D(3, 3)]
    )
    assert [stage.name for stage in stages_of(autoencoder)] == ["stage1", "head"]
