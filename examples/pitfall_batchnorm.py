"""BatchNorm is disturbed although training=False was passed; it is frozen by layer.trainable = False.

    python examples/pitfall_batchnorm.py

Many guides call the backbone with ``training=False`` and later make it trainable. ``fit`` overrides the argument: the
moving statistics follow the new images, at any learning rate.

Here the source task is to read digits from the features in the middle of a MobileNetV2, the target task to find
defective solar cells. The learning rate is 1e-9, at which nothing is learned, and so nothing should be forgotten.

            statistics changed  digits before  after
    wrong                0.196          0.663  0.287
    right                0.000          0.663  0.663

300 digits; 160 photographs, ten epochs in batches of 8. MobileNetV2 moves its statistics slowly (momentum 0.999); at
Keras' default of 0.99 the same 200 steps would replace 87 % of them.
"""

import keras
import numpy as np
from pitfall_data import pretrained, solar_cells

import thaw
from thaw.training.freezing import snapshot_weights

SIZE = 64  # pixels


def wrong(model, backbone):
    """Make all layers trainable, in the belief that training=False takes care of BatchNorm."""
    backbone.trainable = True
    model.compile(keras.optimizers.SGD(1e-9), "sparse_categorical_crossentropy")


def right(model, backbone):
    """Make all layers trainable but BatchNorm: in plain Keras, layer.trainable = False for each of these layers."""
    thaw.freeze(model, "all", batchnorm="frozen")
    model.compile(keras.optimizers.SGD(1e-9), "sparse_categorical_crossentropy")


def digits(*counts, size=SIZE):
    """Load scikit-learn's digits, as large as the photographs: a list with ``(x, y)`` for each part."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = np.repeat(data.images[: sum(counts), ..., None] * (255 / 16), 3, axis=-1).astype("float32")
    x = keras.ops.convert_to_numpy(keras.ops.image.resize(x, (size, size)))
    ends = np.cumsum(counts)
    return [(x[end - n : end], data.target[end - n : end]) for n, end in zip(counts, ends)]


def run(way, count=160, epochs=10):
    """Train one way from the same start.

    Args:
        way: ``wrong`` or ``right``.
        count: int, number of photographs.
        epochs: int, epochs of the whole model.

    Returns:
        What preflight found, the change of the BatchNorm statistics, and the accuracy on the digits, before and after.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), validation = solar_cells(count, 40, size=SIZE)
    (x_source, y_source), (x_digits, y_digits) = digits(300, 300)
    thaw.seed_everything(0)
    whole = pretrained(SIZE)
    backbone = keras.Model(whole.inputs, whole.get_layer("block_5_add").output)  # a third of it shows the effect
    inputs = keras.Input(backbone.input_shape[1:])
    features = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))  # as the guides have it
    extractor = keras.Model(inputs, features)
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(features))

    readout = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))  # of the source task
    readout.fit(extractor.predict(x_source, verbose=0), y_source)
    before = readout.score(extractor.predict(x_digits, verbose=0), y_digits)

    way(model, backbone)
    findings = thaw.preflight(model, x, y, validation_data=validation, batch_size=8)
    stages = thaw.stages_of(model)
    start = snapshot_weights(stages)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0)
    statistics = max(change.statistics for change in thaw.weight_change(stages, start))
    return findings, statistics, before, readout.score(extractor.predict(x_digits, verbose=0), y_digits)


if __name__ == "__main__":
    print(f"{'':8}{'statistics changed':>19}{'digits before':>15}{'after':>7}")
    reasons = {wrong: "fit trains BatchNorm whatever training= says", right: "BatchNorm is frozen, layer by layer"}
    for way, reason in reasons.items():
        findings, statistics, before, after = run(way)
        print(f"{way.__name__:8}{statistics:19.3f}{before:15.3f}{after:7.3f}   {reason}")
        for finding in findings:
            print(f"{'':8}preflight: {finding}")
