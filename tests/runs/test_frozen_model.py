"""The solved head on frozen features beside the model that is tuned."""

import numpy as np
import pytest
from PIL import Image

import thaw
from thaw import Classification, Dataset, Phase, Plan
from thaw.data.splits import Splits
from thaw.runs.frozen_model import FrozenModel


def fixed_model(logits):
    """A model of one-hot inputs whose logits are the rows of a table."""
    import keras

    model = keras.Sequential([keras.Input((len(logits),)), keras.layers.Dense(2, "softmax", use_bias=False)])
    model.layers[0].set_weights([np.asarray(logits, "float32")])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def softmax(logits):
    e = np.exp(np.asarray(logits, np.float64))
    return e / e.sum(axis=1, keepdims=True)


SURE, UNSURE, WRONG = [3.0, -3.0], [0.2, -0.2], [-0.4, 0.4]


@pytest.mark.parametrize(
    ("frozen", "tuned", "expected"),
    [
        ([SURE, WRONG] * 20, [WRONG, SURE] * 20, "blend"),  # each knows what the other does not
        ([SURE] * 40, [UNSURE] * 40, "frozen"),
        ([UNSURE] * 20 + [WRONG] * 20, [SURE] * 40, "tuned"),
    ],
)
def test_what_is_best_on_the_validation_examples_is_kept(frozen, tuned, expected):
    models = {"frozen": fixed_model(frozen), "tuned": fixed_model(tuned)}
    validation = Dataset(x=np.eye(40, dtype="float32"), y=np.zeros(40, int))
    beside = FrozenModel(models["frozen"], "all", softmax(frozen), ("a note",))
    splits = Splits(train=validation, validation=validation, test=None, task=Classification(["a", "b"]))
    model, notes = beside.blend_with(models["tuned"], splits, batch_size=8)
    assert notes[0] == "a note"
    if expected == "blend":
        p = 0.5 * softmax(frozen) + 0.5 * softmax(tuned)
        np.testing.assert_allclose(model.predict(np.eye(40), verbose=0), p, rtol=1e-5)
        assert "blend" in notes[-1]
    else:
        assert model is models[expected]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs whose classes differ in texture, and a network that shows it in the middle and not at its end."""
    import keras
    from keras import layers

    place, rng = tmp_path_factory.mktemp("frozen"), np.random.default_rng(0)
    for label, spread in (("plain", 35), ("rough", 45)):
        (place / "photos" / label).mkdir(parents=True)
        for i in range(60):
            pixels = np.clip(rng.normal(120, spread, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "photos" / label / f"{i}.png")
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(1 / 64, -2),
            layers.Conv2D(16, 3, 2, activation="relu"),
            layers.Conv2D(4, 3, 2, activation="relu", bias_initializer="ones"),
            layers.Conv2D(4, 3, activation="relu", bias_initializer="ones"),
        ],
        name="small",
    )
    for layer in net.layers[-2:]:
        layer.kernel.assign(layer.kernel * 1e-3)
    net.save(place / "small.keras")
    return place


PLAN = Plan(
    [
        Phase(name="head", epochs=2, train="head", solver="lbfgs"),
        Phase(name="tune", epochs=2, train=1, learning_rate=1e-3, views=2),
    ]
)


def tune(place, folder, callbacks=()):
    model = str(place / "small.keras")
    return thaw.tune(place / "photos", folder, model=model, plan=PLAN, callbacks=callbacks, verbose=0)


def test_a_wide_head_is_solved_beside_the_tuned_model_and_resumed(place, tmp_path):
    class Stop(thaw.TuneCallback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    run = tune(place, tmp_path / "run")
    notes = " ".join(run.metrics["notes"])
    assert 'features="' in notes
    assert "the solved head on frozen features" in notes
    with pytest.raises(KeyboardInterrupt):
        tune(place, tmp_path / "again", [Stop()])
    assert (tmp_path / "again" / "unfinished" / "frozen.npz").exists()
    again = tune(place, tmp_path / "again")
    assert again.manifest["weights_sha256"] == run.manifest["weights_sha256"]
    assert again.metrics == run.metrics
