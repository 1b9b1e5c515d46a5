"""Random models, data and plans: fine_tune ends with the weights that plain Keras ends with."""

import keras
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from keras import layers

from thaw import Phase, Plan, fine_tune, stages_of

EXAMPLES = 12
MODELS = 10 if settings.default.max_examples <= 50 else 500  # each takes two seconds
LOSSES = {
    "sparse_categorical_crossentropy": ("softmax", 3),
    "categorical_crossentropy": ("softmax", 3),
    "binary_crossentropy": ("sigmoid", 2),
    "mse": ("linear", 2),
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(),
    "momentum": lambda: keras.optimizers.SGD(momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(epsilon=1e-3),  # a smaller one turns rounding into steps of full length
    "adamw": lambda: keras.optimizers.AdamW(weight_decay=0.1, epsilon=1e-3),
    "clipped": lambda: keras.optimizers.SGD(momentum=0.5, global_clipnorm=0.5),
    "rmsprop": lambda: keras.optimizers.RMSprop(epsilon=1e-2),
}
BLOCKS = {
    "vector": ("dense", "dense", "layer_norm", "batch_norm", "residual", "nested", "shared", "wide"),
    "image": ("conv", "conv", "group_norm", "batch_norm", "residual", "nested", "pool"),
    "sequence": ("gru", "dense", "layer_norm", "attention", "residual", "bidirectional"),
}


@st.composite
def specs(draw):
    """What a model, its data and its plan are made of."""
    kind = draw(st.sampled_from(sorted(BLOCKS)))
    loss = draw(st.sampled_from(sorted(LOSSES)))
    phase = st.fixed_dictionaries(
        {
            "train": st.one_of(st.just("head"), st.just("all"), st.integers(0, 3)),
            "epochs": st.integers(1, 3),
            "learning_rate": st.sampled_from([1e-1, 1e-2, 1e-3]),
            "batchnorm": st.sampled_from(["frozen", "trained"]),
        }
    )
    return {
        "kind": kind,
        "inputs": draw(st.integers(1, 2)),
        "nested": draw(st.booleans()),
        "width": draw(st.integers(2, 5)),
        "blocks": draw(st.lists(st.sampled_from(BLOCKS[kind]), min_size=1, max_size=4)),
        "loss": loss,
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
        "weights": draw(st.sampled_from([None, "sample", "class"])) if loss.startswith("sparse") else None,
        "l2": draw(st.booleans()),
        "phases": draw(st.lists(phase, min_size=1, max_size=2)),
        "seed": draw(st.integers(0, 1000)),
        "graph": draw(st.integers(0, 9)) == 0,  # a traced step costs 20 times as much as all the rest
    }


def image_block(name, x, width):
    """Grow an image or a sequence; the same names as for vectors mean the same."""
    conv = layers.Conv2D(width, 3, padding="same", activation="tanh")
    return {
        "conv": conv,
        "group_norm": layers.GroupNormalization(1),
        "batch_norm": layers.BatchNormalization(),
        "residual": lambda x: layers.Add()([layers.Conv2D(x.shape[-1], 1)(x), x]),
        "nested": keras.Sequential([layers.Conv2D(width, 1), layers.BatchNormalization(), layers.ReLU()]),
        "pool": layers.MaxPooling2D(2, padding="same"),
    }[name](x)


def sequence_block(name, x, width):
    return {
        "gru": layers.GRU(width, return_sequences=True),
        "bidirectional": layers.Bidirectional(layers.LSTM(width, return_sequences=True)),
        "dense": layers.Dense(width, "tanh"),
        "layer_norm": layers.LayerNormalization(),
        "attention": lambda x: layers.MultiHeadAttention(1, width)(x, x),
        "residual": lambda x: layers.Add()([layers.Dense(x.shape[-1])(x), x]),
    }[name](x)


def vector_block(name, x, width):
    def shared(x):
        layer = layers.Dense(x.shape[-1], "tanh")
        return layer(layer(x))

    return {
        "dense": layers.Dense(width, "tanh"),
        "layer_norm": layers.LayerNormalization(),
        "batch_norm": layers.BatchNormalization(),
        "residual": lambda x: layers.Add()([layers.Dense(x.shape[-1])(x), x]),
        "nested": keras.Sequential([layers.Dense(width, "tanh"), layers.Dense(width)]),
        "shared": shared,
        "wide": lambda x: layers.Concatenate()([x, layers.Dense(width, "relu")(x)]),
    }[name](x)


def build(spec):
    """Build and compile the model of a spec; the same one each time."""
    keras.utils.set_random_seed(spec["seed"])
    shape = {"vector": (4,), "image": (6, 6, 2), "sequence": (5, 3)}[spec["kind"]]
    block = {"vector": vector_block, "image": image_block, "sequence": sequence_block}[spec["kind"]]
    inputs = [keras.Input(shape, name=f"input_{i}") for i in range(spec["inputs"])]
    x = inputs[0] if len(inputs) == 1 else layers.Concatenate()(inputs)
    begin = x
    for name in spec["blocks"]:
        x = block(name, x, spec["width"])
    if spec["nested"] and len(inputs) == 1:
        x = keras.Model(begin, x, name="backbone")(begin)
    if spec["kind"] == "image":
        x = layers.GlobalAveragePooling2D()(x)
    elif spec["kind"] == "sequence":
        x = layers.GlobalMaxPooling1D()(x)
    activation, units = LOSSES[spec["loss"]]
    regularizer = keras.regularizers.L2(0.01) if spec["l2"] else None
    x = layers.Dense(units, activation, kernel_regularizer=regularizer)(x)
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], x)
    model.compile(OPTIMIZERS[spec["optimizer"]](), spec["loss"], run_eagerly=not spec["graph"])
    return model


def data(spec, model):
    rng = np.random.default_rng(spec["seed"])
    x = [rng.normal(size=(EXAMPLES, *t.shape[1:])).astype("float32") for t in model.inputs]
    classes = np.arange(EXAMPLES) % 3
    y = {
        "sparse_categorical_crossentropy": classes,
        "categorical_crossentropy": np.eye(3, dtype="float32")[classes],
        "binary_crossentropy": rng.integers(0, 2, (EXAMPLES, 2)).astype("float32"),
        "mse": rng.normal(size=(EXAMPLES, 2)).astype("float32"),
    }[spec["loss"]]
    weights = {
        "sample": {"sample_weight": np.linspace(0.5, 2, EXAMPLES).astype("float32")},
        "class": {"class_weight": {0: 0.5, 1: 1.0, 2: 3.0}},
        None: {},
    }[spec["weights"]]
    return x if len(x) > 1 else x[0], y, weights


def by_keras(spec, model, x, y, weights):
    """Do by hand what the plan says: freeze layer by layer, compile, fit; the best epoch of all is restored."""
    stages = stages_of(model)
    best = [np.inf, model.get_weights()]

    class Best(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if logs["val_loss"] < best[0]:
                best[:] = logs["val_loss"], self.model.get_weights()

    for phase in spec["phases"]:
        depth = {"head": 0, "all": len(stages) - 1}.get(phase["train"], clipped(phase["train"], model))
        trained = {id(layer) for stage in stages[-1 - depth :] for layer in stage.layers}
        every = [inner for stage in stages for placed in stage.layers for inner in sub_layers(placed)]
        for layer in every:
            frozen_norm = isinstance(layer, layers.BatchNormalization) and phase["batchnorm"] == "frozen"
            layer.trainable = not frozen_norm and any(id(o) in trained for o in [layer, *outer(layer, stages)])
        optimizer = OPTIMIZERS[spec["optimizer"]]()
        optimizer.learning_rate = phase["learning_rate"]
        model.compile(optimizer, spec["loss"], run_eagerly=not spec["graph"])
        options = {"batch_size": EXAMPLES, "epochs": phase["epochs"], "shuffle": False, "verbose": 0}
        model.fit(x, y, validation_data=(x, y), callbacks=[Best()], **options, **weights)
        model.set_weights(best[1])
    return model


def sub_layers(layer):
    inside = getattr(layer, "layers", None) or [
        getattr(layer, name) for name in ("layer", "forward_layer", "backward_layer") if hasattr(layer, name)
    ]
    return [layer] if not inside else [layer, *(one for part in inside for one in sub_layers(part))]


def outer(layer, stages):
    return [o for stage in stages for o in stage.layers if o is not layer and layer in sub_layers(o)]


@settings(max_examples=MODELS)
@given(specs())
def test_as_plain_keras(spec):
    ours, theirs = build(spec), build(spec)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(a, b)
    x, y, weights = data(spec, ours)
    phases = [
        Phase(name=f"phase {i}", schedule="constant", warmup=0, **{**phase, "train": clipped(phase["train"], ours)})
        for i, phase in enumerate(spec["phases"])
    ]
    before = ours.get_weights()
    history = fine_tune(
        ours, Plan(phases), x, y, validation_data=(x, y), batch_size=EXAMPLES, monitor="val_loss", verbose=0, **weights
    )
    by_keras(spec, theirs, x, y, weights)
    note(str(history.notes))
    for w, own, expected, old in zip(ours.weights, ours.get_weights(), theirs.get_weights(), before, strict=True):
        assert own == pytest.approx(expected, rel=2e-3, abs=2e-4), w.path
        if np.array_equal(expected, old):
            assert np.array_equal(own, old), f"{w.path} is frozen"


def clipped(train, model):
    """A plan may not ask for more stages than there are."""
    return train if isinstance(train, str) else min(train, len(stages_of(model)) - 1)
