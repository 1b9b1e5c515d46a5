"""Without validation data, memorising goes unnoticed; with them, the reported score holds, and training ends in time.

    python examples/pitfall_validation.py

A new head learns from the features that a frozen MobileNetV2 makes of 150 photographs of solar cells. Both functions
get the same photographs and report an accuracy; ``right`` holds out a third of them to choose the epoch and to measure.

            accuracy reported  tested  log loss reported  tested
    wrong               1.000   0.720              0.001   1.415
    right               0.740   0.710              0.497   0.682

"Tested" is on 300 photographs that decided nothing. The score that chose the epoch is a little optimistic, which is why
a test split exists; the one of memorised photographs is worthless.
"""

import functools

import keras
from pitfall_data import pretrained, solar_cells

import thaw

EPOCHS = 100


def wrong(model, x, y, epochs=EPOCHS):
    """Train on everything, choose the epoch and measure on the same photographs."""
    findings = thaw.preflight(model, x, y)
    stop = keras.callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True)
    model.fit(x, y, epochs=epochs, callbacks=[stop], verbose=0)
    return findings, *model.evaluate(x, y, verbose=0)


def right(model, x, y, epochs=EPOCHS):
    """Hold out a third, choose the epoch and measure on it."""
    train, validation = (x[50:], y[50:]), (x[:50], y[:50])
    findings = thaw.preflight(model, *train, validation_data=validation)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    model.fit(*train, validation_data=validation, epochs=epochs, callbacks=[stop], verbose=0)
    return findings, *model.evaluate(*validation, verbose=0)


@functools.cache
def features(*counts):
    """Compute what the frozen MobileNetV2 makes of the photographs: a list with ``(x, y)`` for each part."""
    backbone = pretrained()
    return [(backbone.predict(x, verbose=0), y) for x, y in solar_cells(*counts)]


def run(way, count=300, **options):
    """Train one way, and compare what it reports with the truth.

    Args:
        way: ``wrong`` or ``right``.
        count: number of photographs that decide nothing, to test on.
        **options: ``epochs`` for ``way``.

    Returns:
        What preflight found; log loss and accuracy as reported, and on the test photographs.
    """
    (x, y), (x_test, y_test) = features(150, count)
    thaw.seed_everything(0)
    pool, hidden = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(256, "relu")
    model = keras.Sequential([keras.Input(x.shape[1:]), pool, hidden, keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    findings, *reported = way(model, x, y, **options)
    return findings, reported, model.evaluate(x_test, y_test, verbose=0)


if __name__ == "__main__":
    print(f"{'':8}{'accuracy reported':>18}{'tested':>8}{'log loss reported':>19}{'tested':>8}")
    reasons = {wrong: "measured on what it has memorised", right: "measured on what it has not seen"}
    for way, reason in reasons.items():
        findings, (loss, accuracy), (true_loss, true_accuracy) = run(way)
        print(f"{way.__name__:8}{accuracy:18.3f}{true_accuracy:8.3f}{loss:19.3f}{true_loss:8.3f}   {reason}")
        for finding in findings:
            print(f"{'':8}preflight: {finding}")
