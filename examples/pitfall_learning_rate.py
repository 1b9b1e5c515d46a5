"""A high learning rate on all layers destroys pre-trained features; a head that is trained first protects them.

    python examples/pitfall_learning_rate.py

Both functions train the same MobileNetV2 on the same 160 photographs of solar cells, with BatchNorm frozen, so that
the rate is what matters.

            test accuracy  features before   after
    wrong           0.500            0.713   0.530
    right           0.763            0.713   0.740

300 test photographs, half of them defective. "Features" is the cross-validated accuracy of a linear readout of the
backbone's features (``thaw.probe``): at 1e-3 they are lost.
"""

from pitfall_data import pretrained, solar_cells

import thaw

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


def run(way, counts=(160, 80, 300), **options):
    """Train one way from the same start.

    Args:
        way: ``wrong`` or ``right``.
        counts: numbers of photographs to train on, to validate with and to test on.
        **options: ``epochs`` for ``way``, ``size`` for the photographs, in pixels.

    Returns:
        What preflight found, the test accuracy, and how well the labels can be read from the features, before and
        after.
    """
    size = {"size": options.pop("size")} if "size" in options else {}
    train, validation, (x, y) = solar_cells(*counts, **size)
    thaw.seed_everything(0)
    model = thaw.attach_head(pretrained(**size), 2)
    thaw.freeze(model, "all")  # but for BatchNorm
    before = thaw.probe(model, x, y).rows[-1].score.value
    findings = way(model, train, validation, **options)
    accuracy = float((model.predict(x, verbose=0).argmax(axis=1) == y).mean())
    return findings, accuracy, before, thaw.probe(model, x, y).rows[-1].score.value


if __name__ == "__main__":
    print(f"{'':8}{'test accuracy':>14}{'features before':>17}{'after':>8}")
    reasons = {wrong: "large steps from a new head overwrite every layer", right: "small steps from a trained head"}
    for way, reason in reasons.items():
        findings, accuracy, before, after = run(way)
        print(f"{way.__name__:8}{accuracy:14.3f}{before:17.3f}{after:8.3f}   {reason}")
        for finding in findings:
            print(f"{'':8}preflight: {finding}")
