"""Small models of every kind that people fine-tune, each compiled and with data: what contract.py goes through.

``MODELS`` maps a name to a :class:`Kind`; ``MODELS["u_net"].build()`` returns ``(model, x, y)``. The classes and
functions in this file stand for a user's own: a file that names them opens where this module is imported.
"""

import dataclasses
import zipfile
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

EXAMPLES, BATCH = 24, 8
own = keras.saving.register_keras_serializable("zoo")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One row of the table.

    Args:
        build: function that returns a compiled model, its inputs and its labels.
        predicts: ``"classes"`` where the labels are class numbers and the outputs probabilities, ``"labels"`` where
            they are rows of 0 and 1, ``"numbers"`` where they are numbers, else ``"other"``.
        own: whether its file names classes of this module.
        hub: whether its file names classes of KerasHub.
        devices: number of logical CPUs to be made before TensorFlow starts; 1 for as it is.
        refused: cells of the table that are to be refused; any other refusal counts as a failure.
    """

    build: Callable
    predicts: str = "classes"
    own: bool = False
    hub: bool = False
    devices: int = 1
    refused: tuple = ()


MODELS = {}


def kind(**about):
    def register(build):
        MODELS[build.__name__] = Kind(build, **about)
        return build

    return register


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(EXAMPLES, *shape)).astype("float32")


def pixels(side=12, channels=3):
    return np.random.default_rng(0).uniform(0, 255, (EXAMPLES, side, side, channels)).astype("float32")


def tokens(length=6, words=20):
    x = np.random.default_rng(0).integers(1, words, (EXAMPLES, length))
    x[:, -2:] *= np.arange(EXAMPLES)[:, None] % 2  # every other text is shorter
    return x.astype("int32")


def classes(count=3):
    return (np.arange(EXAMPLES) % count).astype("int32")


def compiled(model, loss="sparse_categorical_crossentropy", metrics=("accuracy",), **settings):
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=list(metrics), **settings)
    return model


def chain(x, *steps):
    for step in steps:
        x = step(x)
    return x


def classifier(inputs, x, count=3):
    """Compile a model that ends in a softmax over ``x``."""
    return compiled(keras.Model(inputs, layers.Dense(count, "softmax", name="classes")(x)))


def small_net(side=12, name="net"):
    """A convolution net of two blocks, with BatchNorm: a backbone."""
    inputs = keras.Input((side, side, 3))
    x = chain(
        inputs,
        layers.Conv2D(4, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(6, 3, 2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
    )
    return keras.Model(inputs, x, name=name)


# ---- graphs


@kind()
def sequential():
    net = [layers.Dense(8, "relu"), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    return compiled(keras.Sequential([keras.Input((4,)), *net])), numbers(4), classes()


@kind()
def backbone_and_head():
    inputs = keras.Input((12, 12, 3))
    x = chain(inputs, small_net(), layers.GlobalAveragePooling2D(), layers.Dropout(0.2))
    return classifier(inputs, x), pixels() / 255, classes()


@kind()
def residual():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    for _ in range(2):
        x = layers.Add()([x, layers.Conv2D(4, 3, padding="same", activation="relu")(x)])
    return classifier(inputs, layers.GlobalAveragePooling2D()(x)), pixels() / 255, classes()


@kind()
def depthwise():
    inputs = keras.Input((12, 12, 3))
    block = [layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization(), layers.Conv2D(6, 1)]
    return classifier(inputs, chain(inputs, *block, layers.GlobalMaxPooling2D())), pixels() / 255, classes()


@kind()
def nested_three_deep():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu")], name="inner")
    middle = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), inner], name="middle")
    outer = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), middle], name="outer")
    inputs = keras.Input((4,))
    return classifier(inputs, outer(inputs)), numbers(4), classes()


@kind()
def same_names_inside():
    part = lambda: keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu", name="same")], name="part")  # noqa: E731
    inputs = keras.Input((8,))
    both = layers.Concatenate()([part()(inputs), keras.Model(p := keras.Input((8,)), part()(p), name="b")(inputs)])
    return classifier(inputs, both), numbers(8), classes()


@kind()
def shared_layer():
    inputs, shared = keras.Input((8,)), layers.Dense(8, "relu")
    return classifier(inputs, shared(layers.LayerNormalization()(shared(inputs)))), numbers(8), classes()


@kind()
def shared_backbone():
    first, second, net = keras.Input((12, 12, 3), name="a"), keras.Input((12, 12, 3), name="b"), small_net()
    pooled = [layers.GlobalAveragePooling2D()(net(x)) for x in (first, second)]
    x = pixels() / 255
    return classifier([first, second], layers.Concatenate()(pooled)), [x, x[::-1].copy()], classes()


@kind(predicts="other")
def siamese():
    first, second = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    net = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(4, use_bias=False)], name="net")
    distance = ops.sqrt(ops.sum(ops.square(net(first) - net(second)), axis=-1, keepdims=True) + 1e-6)
    model = keras.Model([first, second], layers.Dense(1, "sigmoid")(distance))
    y = (np.arange(EXAMPLES) % 2).astype("float32")
    return compiled(model, "binary_crossentropy"), [numbers(6), numbers(6, seed=1)], y


@kind()
def two_inputs_as_list():
    first, second = keras.Input((4,)), keras.Input((3,))
    x = layers.Concatenate()([layers.Dense(6, "relu")(first), layers.Dense(6, "relu")(second)])
    return classifier([first, second], x), [numbers(4), numbers(3)], classes()


@kind()
def two_inputs_as_dict():
    inputs = {"size": keras.Input((4,), name="size"), "color": keras.Input((3,), name="color")}
    x = layers.Concatenate()([layers.Dense(6, "relu")(t) for t in inputs.values()])
    return classifier(inputs, x), {"size": numbers(4), "color": numbers(3)}, classes()


@kind(predicts="other")
def two_outputs_as_list():
    inputs = keras.Input((4,))
    x = layers.Dense(8, "relu")(inputs)
    model = keras.Model(inputs, [layers.Dense(3, "softmax", name="kind")(x), layers.Dense(1, name="size")(x)])
    losses = ["sparse_categorical_crossentropy", "mse"]
    return compiled(model, losses, [["accuracy"], ["mae"]]), numbers(4), (classes(), numbers(1))


@kind(predicts="other")
def two_outputs_as_dict():
    inputs = keras.Input((4,))
    x = layers.Dense(8, "relu")(inputs)
    outputs = {"kind": layers.Dense(3, "softmax", name="kind")(x), "size": layers.Dense(1, name="size")(x)}
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), losses, metrics={"kind": ["accuracy"]})
    return model, numbers(4), {"kind": classes(), "size": numbers(1)}


@kind(predicts="other")
def u_net():
    inputs = keras.Input((12, 12, 3))
    high = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    low = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.MaxPooling2D()(high))
    both = layers.Concatenate()([high, layers.UpSampling2D()(low)])
    model = keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(both))
    return compiled(model), pixels() / 255, (pixels()[..., 0] > 128).astype("int32")


# ---- ends


@kind()
def softmax_as_layer():
    net = [layers.Dense(8, "relu"), layers.Dense(3), layers.Softmax()]
    return compiled(keras.Sequential([keras.Input((4,)), *net])), numbers(4), classes()


@kind()
def cast_behind_softmax():
    net = [layers.Dense(8, "relu"), layers.Dense(3, "softmax"), layers.Activation("linear", dtype="float32")]
    return compiled(keras.Sequential([keras.Input((4,)), *net])), numbers(4), classes()


@kind(predicts="other")
def one_logit():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(1)])
    loss, metric = keras.losses.BinaryCrossentropy(from_logits=True), keras.metrics.BinaryAccuracy(threshold=0)
    return compiled(model, loss, [metric]), numbers(4), (np.arange(EXAMPLES) % 2).astype("float32")


@kind(predicts="labels")
def many_labels():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(5, "sigmoid")])
    return compiled(model, "binary_crossentropy", ["auc"]), numbers(4), (numbers(5) > 0).astype("float32")


@kind(predicts="numbers")
def regression():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(2)])
    return compiled(model, "mse", ["mae"]), numbers(4), numbers(2)


# ---- preprocessing, augmentation, state outside the weights


@kind()
def preprocessing_inside():
    normalization = layers.Normalization()
    normalization.adapt(pixels() / 255)
    inputs = keras.Input((12, 12, 3))
    steps = [layers.Rescaling(1 / 255), normalization, layers.Conv2D(4, 3, activation="relu")]
    return classifier(inputs, chain(inputs, *steps, layers.GlobalAveragePooling2D())), pixels(), classes()


@kind()
def augmentation_inside():
    inputs = keras.Input((12, 12, 3))
    steps = [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), small_net()]
    return classifier(inputs, chain(inputs, *steps, layers.GlobalAveragePooling2D())), pixels() / 255, classes()


@kind()
def noise_in_the_middle():
    net = [layers.Dense(8, "relu"), layers.GaussianNoise(0.1), layers.Dropout(0.3), layers.Dense(8, "relu")]
    return compiled(keras.Sequential([keras.Input((4,)), *net, layers.Dense(3, "softmax")])), numbers(4), classes()


@kind()
def text_vectorization():
    texts = np.array([f"word{n % 7} and word{n % 3}" for n in range(EXAMPLES)], object)
    vectors = layers.TextVectorization(max_tokens=20, output_sequence_length=4)
    vectors.adapt(texts)
    inputs = keras.Input((), dtype="string")
    x = chain(inputs, vectors, layers.Embedding(20, 8), layers.GlobalAveragePooling1D(), layers.Dense(8, "relu"))
    return classifier(inputs, x), texts, classes()


@kind()
def string_lookup():
    inputs = keras.Input((1,), dtype="string")
    lookup = layers.StringLookup(vocabulary=["red", "green", "blue"])
    x = chain(inputs, lookup, layers.Embedding(4, 8), layers.Flatten(), layers.Dense(8, "relu"))
    return classifier(inputs, x), np.array(["red", "green", "blue"], object)[classes()][:, None], classes()


@kind()
def buckets_and_one_hot():
    inputs = keras.Input((1,))
    buckets = layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0], output_mode="one_hot")
    return classifier(inputs, layers.Dense(8, "relu")(buckets(inputs))), numbers(1), classes()


# ---- layers


@kind()
def normalizations():
    steps = [layers.Conv2D(4, 3), layers.GroupNormalization(2), layers.ReLU(), layers.UnitNormalization()]
    inputs = keras.Input((12, 12, 3))
    x = chain(inputs, *steps, layers.GlobalAveragePooling2D(), layers.LayerNormalization(), layers.Dense(6, "relu"))
    return classifier(inputs, x), pixels() / 255, classes()


@kind()
def spectral_normalization():
    inputs = keras.Input((4,))
    x = chain(inputs, layers.SpectralNormalization(layers.Dense(8, "relu")), layers.Dense(8, "relu"))
    return classifier(inputs, x), numbers(4), classes()


@kind()
def regularizers_and_constraints():
    dense = layers.Dense(8, "relu", kernel_regularizer="l2", activity_regularizer="l1")
    limited = layers.Dense(8, "relu", kernel_constraint=keras.constraints.MaxNorm(1.0))
    return (
        compiled(keras.Sequential([keras.Input((4,)), dense, limited, layers.Dense(3, "softmax")])),
        numbers(4),
        classes(),
    )


@kind()
def bidirectional():
    inputs = keras.Input((6,), dtype="int32")
    x = chain(inputs, layers.Embedding(20, 8), layers.Bidirectional(layers.LSTM(4)))
    return classifier(inputs, x), tokens(), classes()


@kind()
def masked_recurrent():
    x = numbers(6, 3)
    x[::2, 4:] = 0
    inputs = keras.Input((6, 3))
    return (
        classifier(inputs, chain(inputs, layers.Masking(), layers.GRU(6, return_sequences=True), layers.GRU(6))),
        x,
        classes(),
    )


@kind(refused=("inspect",))
def stateful_recurrent():
    inputs = keras.Input(batch_shape=(BATCH, 6, 3))
    return classifier(inputs, layers.GRU(6, stateful=True)(inputs)), numbers(6, 3), classes()


@kind()
def encoder_and_decoder():
    inputs = keras.Input((6, 3))
    x, *state = layers.LSTM(5, return_sequences=True, return_state=True)(inputs)
    return classifier(inputs, layers.LSTM(5)(x, initial_state=state)), numbers(6, 3), classes()


@kind()
def time_distributed():
    inputs = keras.Input((3, 12, 12, 3))
    each = keras.Sequential([small_net(), layers.GlobalAveragePooling2D()])
    x = chain(inputs, layers.TimeDistributed(each), layers.GlobalAveragePooling1D())
    return classifier(inputs, x), np.stack([pixels() / 255] * 3, axis=1), classes()


@kind()
def attention_with_masks():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return classifier(inputs, layers.GlobalAveragePooling1D()(x)), tokens(), classes()


@kind(own=True)
def vision_transformer():
    inputs = keras.Input((12, 12, 3))
    x = chain(inputs, layers.Conv2D(8, 4, 4), layers.Reshape((9, 8)), Positions())
    for _ in range(2):
        x = x + layers.MultiHeadAttention(2, 4)(*[layers.LayerNormalization()(x)] * 2)
        x = x + layers.Dense(8)(layers.Dense(16, "gelu")(layers.LayerNormalization()(x)))
    return classifier(inputs, layers.LayerNormalization()(x)[:, 0]), pixels() / 255, classes()


@kind(predicts="other")
def causal_language_model():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
    model = keras.Model(inputs, layers.Dense(20, "softmax")(x))
    return compiled(model), tokens(), np.roll(tokens(), -1, axis=1)


# ---- adapters, numbers of other kinds, devices


@kind()
def lora():
    model, x, y = sequential()
    for layer in model.layers[:2]:
        layer.enable_lora(2)
    return compiled(model), x, y


@kind()
def lora_in_attention():
    model, x, y = attention_with_masks()
    for layer in model.layers:
        if isinstance(layer, layers.MultiHeadAttention):
            layer.query_dense.enable_lora(2)
            layer.value_dense.enable_lora(2)
    return compiled(model), x, y


@kind()
def int8():
    model, x, y = sequential()
    model.quantize("int8")
    return compiled(model), x, y


def with_policy(name):
    keras.config.set_dtype_policy(name)
    try:
        inputs = keras.Input((12, 12, 3))
        x = chain(inputs, small_net(), layers.GlobalAveragePooling2D())
        model = keras.Model(inputs, layers.Dense(3, "softmax", dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    return compiled(model), pixels() / 255, classes()


@kind()
def mixed_float16():
    return with_policy("mixed_float16")


@kind()
def mixed_bfloat16():
    return with_policy("mixed_bfloat16")


@kind()
def pure_float16():
    return with_policy("float16")


@kind()
def pure_bfloat16():
    model, x, y = with_policy("bfloat16")
    model.compile(keras.optimizers.SGD(momentum=0.9), model.loss)  # Adam's second moment is rounded away
    return model, x, y


@kind(devices=2)
def mirrored_strategy():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model, x, y = sequential()
        model.compile(keras.optimizers.Adam(1e-3), model.loss, metrics=["accuracy"], jit_compile=False)
    return model, x, y


# ---- a user's own


@own
class Positions(layers.Layer):
    """Adds a vector to each position."""

    def build(self, shape):
        self.vectors = self.add_weight(shape=shape[1:], initializer="normal", name="vectors")

    def call(self, x):
        return x + self.vectors


@own
class Scale(layers.Layer):
    """Multiplies by a trained number; says in its config what it was made of."""

    def __init__(self, start=1.0, **given):
        super().__init__(**given)
        self.start = start

    def build(self, shape):
        self.factor = self.add_weight(initializer=keras.initializers.Constant(self.start), name="factor")

    def call(self, x, training=False):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "start": self.start}


class Forgetful(layers.Layer):
    """Takes an argument, and has neither a config nor a name that Keras knows."""

    def __init__(self, units, table):
        super().__init__()
        self.dense, self.table = layers.Dense(units), table

    def call(self, x):
        return self.dense(x) * self.table.mean()


@own
class Net(keras.Model):
    """A subclassed model."""

    def __init__(self, units=3, **given):
        super().__init__(**given)
        self.units = units
        self.hidden, self.norm, self.classes = layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dense(units)

    def call(self, x, training=False):
        return ops.softmax(self.classes(self.norm(self.hidden(x), training=training)))

    def get_config(self):
        return {"units": self.units, "name": self.name}


@own
class WithStep(keras.Model):
    """Has a training step of its own."""

    def train_step(self, data):
        import tensorflow as tf

        x, y, *_ = data
        with tf.GradientTape() as tape:
            p = self(x, training=True)
            loss = self.compute_loss(x, y, p, training=True)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        for metric in self.metrics:
            metric.update_state(*[loss] if metric.name == "loss" else (y, p))
        return {metric.name: metric.result() for metric in self.metrics}


@own
class Focal(keras.losses.Loss):
    def call(self, y, p):
        hit = ops.take_along_axis(p, ops.cast(ops.reshape(y, (-1, 1)), "int32"), axis=-1)[:, 0]
        return -ops.square(1 - hit) * ops.log(hit + 1e-7)


@own
def log_loss(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p)


@own
class Hits(keras.metrics.Mean):
    """A metric of the user's that says which way is better."""

    _direction = "up"

    def update_state(self, y, p, sample_weight=None):
        hit = ops.equal(ops.cast(ops.reshape(y, (-1,)), "int64"), ops.cast(ops.argmax(p, axis=-1), "int64"))
        return super().update_state(hit, sample_weight)


def with_layer(layer):
    inputs = keras.Input((4,))
    return (
        classifier(inputs, chain(inputs, layers.Dense(8, "relu"), layer, layers.Dense(8, "relu"))),
        numbers(4),
        classes(),
    )


@kind(own=True)
def custom_layer():
    return with_layer(Scale(2.0))


@kind(own=True, refused=("open",))
def custom_layer_without_config():
    return with_layer(Forgetful(8, np.ones(3, "float32")))


@kind(refused=("open",))
def lambda_layer():
    return with_layer(layers.Lambda(lambda x: x * 2 - 1))


@kind(own=True)
def custom_loss():
    model, x, y = sequential()
    return compiled(model, Focal()), x, y


@kind(own=True)
def loss_as_function():
    model, x, y = sequential()
    return compiled(model, log_loss), x, y


@kind(own=True)
def custom_metric():
    model, x, y = sequential()
    return compiled(model, metrics=[Hits(name="hits")]), x, y


@kind(own=True)
def custom_train_step():
    inputs = keras.Input((4,))
    outputs = chain(inputs, layers.Dense(8, "relu"), layers.Dense(3, "softmax"))
    return compiled(WithStep(inputs, outputs)), numbers(4), classes()


@kind(own=True, refused=("inspect",))
def subclassed():
    model = Net()
    model(numbers(4)[:1])
    return compiled(model), numbers(4), classes()


@kind()
def eager():
    model, x, y = sequential()
    return compiled(model, run_eagerly=True), x, y


@kind()
def partly_frozen_by_the_user():
    model, x, y = sequential()
    model.layers[0].trainable = False
    return compiled(model), x, y


# ---- files


def reopened(model, name):
    """Save a model without its optimizer, and open it as thaw does."""
    import tempfile

    from thaw.models import load_model_file

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}"
        model.save(path, include_optimizer=False)
        if name == "keras2.keras":
            _as_keras_2(path)
        return compiled(load_model_file(path))


def _as_keras_2(path):
    """Write the names of modules and the version that Keras 2.15 wrote."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    parts["config.json"] = parts["config.json"].replace(b"keras.src.models.functional", b"keras.src.engine.functional")
    parts["metadata.json"] = b'{"keras_version": "2.15.0", "date_saved": "2024-01-24@10:00:00"}'
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)


@kind()
def h5_file():
    model, x, y = backbone_and_head()
    return reopened(model, "model.h5"), x, y


@kind()
def keras_2_file():
    model, x, y = residual()
    return reopened(model, "keras2.keras"), x, y


@kind()
def h5_file_with_nested_normalization():
    normalization = layers.Normalization()
    normalization.adapt(pixels())
    base = keras.Sequential(
        [keras.Input((12, 12, 3)), normalization, layers.Conv2D(4, 3, activation="relu")], name="base"
    )
    inputs = keras.Input((12, 12, 3))
    model = classifier(inputs, layers.GlobalAveragePooling2D()(base(inputs)))
    again = reopened(model, "model.h5")
    if not np.allclose(model.predict(pixels(), verbose=0), again.predict(pixels(), verbose=0), atol=1e-5):
        raise AssertionError("the file was loaded wrongly, without a word")
    return again, pixels(), classes()


@kind(hub=True)
def keras_hub_image_backbone():
    import keras_hub

    net = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    inputs = keras.Input((16, 16, 3))
    return classifier(inputs, layers.GlobalAveragePooling2D()(net(inputs))), pixels(16) / 255, classes()


@kind(hub=True, refused=("inspect",))
def keras_hub_text_backbone():
    import keras_hub

    net = keras_hub.models.BertBackbone(20, 2, 2, 8, 16, max_sequence_length=6)
    inputs = dict(net.input)
    features = net(inputs)["pooled_output"]
    x = {"token_ids": tokens(), "segment_ids": np.zeros_like(tokens()), "padding_mask": (tokens() > 0).astype("int32")}
    return classifier(inputs, features), x, classes()


import zoo_targets  # noqa: E402, F401 (it registers more kinds, and imports the names above)
