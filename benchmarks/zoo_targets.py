"""Models of texts, of tables, of several labels, of numbers and of pictures beside numbers: more rows of zoo.MODELS.

zoo.py imports this file at its end, so that a file that names a class of either opens where zoo is imported.
"""

import keras
import numpy as np
from keras import layers, ops
from zoo import EXAMPLES, chain, classes, classifier, compiled, kind, numbers, pixels, small_net, tokens

LABELS = ("red", "round", "small", "old")


def flags():
    """Several labels for each example: rows of 0 and 1."""
    return (numbers(len(LABELS), seed=2) > 0).astype("float32")


def prices(count=1):
    """Numbers far from zero, as people have them."""
    return (120 + 35 * numbers(count, seed=3)).astype("float32")


# ---- texts, as numbers of pieces


@kind()
def minilm_with_random_weights():
    import thaw

    model = thaw.attach_head(thaw.backbone("minilm", weights=None, input_shape=(6,)), 3)
    return model, tokens(), classes()


@kind()
def lstm_of_pieces():
    inputs = keras.Input((6,), dtype="int32")
    pieces = layers.Embedding(20, 8, mask_zero=True)(inputs)
    x = chain(pieces, layers.SpatialDropout1D(0.1), layers.LSTM(6, return_sequences=True), layers.LSTM(6))
    return classifier(inputs, layers.Dropout(0.2)(x)), tokens(), classes()


# ---- tables


@kind()
def table_model_of_thaw():
    """A number with gaps, a category, a date and a boolean, read from a table whose first rows are for training."""
    import thaw

    n = EXAMPLES + 6
    row = np.arange(n)
    table = {
        "age": [None if i % 5 == 0 else float(20 + 7 * i % 41) for i in row],
        "town": [("Ulm", "Bonn", "Kiel", None)[i % 4] for i in row],
        "day": [f"2024-{1 + i % 12:02}-{1 + 3 * i % 28:02}" for i in row],
        "member": [bool(i % 2) for i in row],
        "split": ["train" if i < EXAMPLES else "validation" for i in row],
        "label": [("a", "b", "c")[i % 3] for i in row],
    }
    splits = thaw.load_table(table, balance="none")
    return thaw.table_model(splits, members=4, width=8), splits.train.x, splits.train.y


@kind()
def table_with_inputs_by_name():
    age, income = keras.Input((1,), name="age"), keras.Input((1,), name="income")
    town = keras.Input((1,), dtype="string", name="town")
    known = layers.StringLookup(vocabulary=["Bonn", "Ulm"], output_mode="one_hot")
    normalization = layers.Normalization()
    normalization.adapt(prices())
    x = layers.Concatenate()([age, normalization(income), known(town)])
    model = classifier([age, income, town], chain(x, layers.Dense(8, "relu"), layers.Dense(8, "relu")))
    towns = np.array(["Ulm", "Bonn", "Kiel"], object)[classes()][:, None]
    return model, {"town": towns, "age": numbers(1), "income": prices()}, classes()


# ---- several labels


@kind(predicts="labels")
def head_for_several_labels():
    import thaw

    return thaw.attach_head(small_net(), thaw.MultiLabel(LABELS)), pixels() / 255, flags()


@kind(predicts="labels")
def logits_of_several_labels():
    net = [layers.Dense(8, "relu"), layers.LayerNormalization(), layers.Dense(len(LABELS))]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    area = keras.metrics.AUC(multi_label=True, num_labels=len(LABELS), from_logits=True, name="auc")
    return compiled(keras.Sequential([keras.Input((4,)), *net]), loss, [area]), numbers(4), flags()


# ---- numbers


@kind(predicts="numbers")
def head_for_a_number():
    import thaw

    task = thaw.Regression(["price"]).standardized_by(prices())
    return thaw.attach_head(small_net(), task), pixels() / 255, prices()


@kind(predicts="numbers")
def number_with_a_loss_that_is_robust():
    """Targets of shape (n,), and an output of shape (n, 1)."""
    inputs = keras.Input((6, 3))
    x = chain(inputs, layers.Conv1D(6, 3, activation="relu"), layers.GlobalAveragePooling1D(), layers.Dense(6, "relu"))
    model = keras.Model(inputs, layers.Dense(1)(x))
    return compiled(model, keras.losses.Huber(10.0), ["mae", keras.metrics.R2Score()]), numbers(6, 3), prices()[:, 0]


# ---- pictures and numbers in one row


def beside_numbers(as_dict):
    picture, size = keras.Input((12, 12, 3), name="picture"), keras.Input((3,), name="size")
    pooled = layers.GlobalAveragePooling2D()(small_net()(picture))
    x = layers.Concatenate()([pooled, layers.Dense(4, "relu")(size)])
    inputs = {"picture": picture, "size": size} if as_dict else (picture, size)
    return classifier(inputs, layers.Dense(6, "relu")(x))


@kind()
def picture_and_numbers_as_dict():
    return beside_numbers(as_dict=True), {"size": numbers(3), "picture": pixels() / 255}, classes()


@kind()
def picture_and_numbers_as_tuple():
    return beside_numbers(as_dict=False), (pixels() / 255, numbers(3)), classes()


@kind(predicts="numbers")
def picture_scaled_by_a_number():
    """The number enters behind the backbone and multiplies its features, as a known distance would."""
    picture, distance = keras.Input((12, 12, 3), name="picture"), keras.Input((1,), name="distance")
    features = layers.GlobalAveragePooling2D()(small_net()(picture))
    model = keras.Model([picture, distance], layers.Dense(2)(features * ops.exp(distance)))
    return compiled(model, "mse", ["mae"]), (pixels() / 255, numbers(1)), numbers(2)
