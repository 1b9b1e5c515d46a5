"""A high learning rate on all layers destroys pre-trained features; a head that is trained first protects them.

    python examples/pitfall_learning_rate.py

Both functions train the same MobileNetV2 on the same 160 photographs of solar cells, with BatchNorm frozen, so that
the rate is what matters.

            test accuracy  features before   after
    wrong           0.500            0.713   0.507
    right           0.763            0.713   0.747

300 test photographs, half of them defective. "Features" is the cross-validated accuracy of a linear readout of the
backbone's features (``thaw.transfer.probe_features``): at 1e-3 they are lost.
"""

import keras
from pitfall_data import SIZE, pretrained, solar_cells

import thaw
from thaw.transfer import probe_features

EPOCHS = 5


def wrong(model, train, validation, epochs=EPOCHS):
    """Train all layers at the default rate of Adam, 1e-3."""
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    findings = thaw.preflight(model, *train, validation_data=validation, batch_size=16)
    model.fit(*train, validation_data=validation, batch_size=16, epochs=epochs, verbose=0)
    return findings


def right(model, train, validation, epochs=EPOCHS):
    """Train the head first, then all layers at 1e-4 and less."""
    head = thaw.Phase(name="head", epochs=2 * epochs, train="head", learning_rate=1e-2)
    tune = thaw.Phase(name="tune", epochs=epochs, train="all", learning_rate=1e-4, layer_decay=0.7)
    plan = thaw.Plan([head, tune])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    findings = thaw.preflight(model, *train, plan=plan, validation_data=validation, batch_size=16)
    thaw.fine_tune(model, plan, *train, validation_data=validation, batch_size=16, verbose=0)
    return findings


def measure(model, x, y):
    """Measure the accuracy, and how well the labels can be read from the features below the head."""
    both = keras.Model(model.inputs, [model.output, model.get_layer("head_pool").output])
    predicted, features = both.predict(x, verbose=0)
    readout = probe_features({"features": features}, y).best
    return float((predicted.argmax(axis=1) == y).mean()), readout.score.value


def run(*ways, counts=(160, 80, 300), size=SIZE, **options):
    """Train in several ways from the same start.

    Args:
        *ways: ``wrong`` and ``right``.
        counts: numbers of photographs to train on, to validate with and to test on.
        size: int, side of the photographs in pixels.
        **options: ``epochs`` for each way.

    Yields:
        What preflight found, the test accuracy, and how well the labels can be read from the features, before and
        after.
    """
    train, validation, (x, y) = solar_cells(*counts, size=size)
    _, before = measure(thaw.attach_head(pretrained(size), 2), x, y)
    for way in ways:
        thaw.seed_everything(0)
        model = thaw.attach_head(pretrained(size), 2)
        thaw.freeze(model, "all")  # but for BatchNorm
        findings = way(model, train, validation, **options)
        accuracy, after = measure(model, x, y)
        yield findings, accuracy, before, after


if __name__ == "__main__":
    print(f"{'':8}{'test accuracy':>14}{'features before':>17}{'after':>8}")
    reasons = {wrong: "large steps from a new head overwrite every layer", right: "small steps from a trained head"}
    for (way, reason), (findings, accuracy, before, after) in zip(reasons.items(), run(*reasons)):
        print(f"{way.__name__:8}{accuracy:14.3f}{before:17.3f}{after:8.3f}   {reason}")
        for finding in findings:
            print(f"{'':8}preflight: {finding}")
