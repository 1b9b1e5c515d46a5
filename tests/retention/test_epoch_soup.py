"""The best epochs of a training are averaged where the validation data say that it helps."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw import Phase, Plan, TuneCallback, fine_tune
from thaw.retention import GreedySoup
from thaw.retention.epoch_soup import average_best_epochs
from thaw.training.callbacks import BestWeights

ONE = np.ones((4, 1), "float32")


def line(*layers):
    """A model of one weight, whose loss on ones is the squared distance of the weight from 1."""
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), *layers, dense])
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    return model, dense


def seen(model, dense, weights, monitor="val_loss", count=3, logs=None):
    """The best weights after one epoch at each weight, and those at the start."""
    start = [w.numpy() for w in model.weights]
    best = BestWeights(model, monitor, "min")
    best.begin(count)
    for epoch, weight in enumerate(weights):
        dense.kernel.assign([[weight]])
        best.on_epoch_end(epoch, logs[epoch] if logs else {"val_loss": (weight - 1) ** 2, "val_mae": abs(weight - 1)})
    return best, start


def batches():
    import tensorflow as tf

    return tf.data.Dataset.from_tensors((ONE, ONE))


@pytest.mark.parametrize(
    ("weights", "count", "result", "epoch"),
    [
        ((1.6, 0.6), 2, 1.1, 1),  # 0.6 and 1.6
        ((1.6, 1.7, 1.8), 3, 1.6, 0),  # all on one side: the best one alone
        ((0.4, 1.1, 0.2), 3, 1.1, 1),  # each average is worse than 1.1
        ((0.5, 1.4, 0.5), 3, 0.95, 1),  # with the third it would be 0.8
        ((0.7, 1.6, 1.5), 3, 1.1, 2),  # 0.7 and 1.5; with 1.6 it would be 1.27
    ],
)
def test_by_hand(weights, count, result, epoch):
    model, dense = line()
    best, start = seen(model, dense, weights, count=count)
    notes = average_best_epochs(best, model, batches(), start)
    best.restore()
    assert float(dense.kernel[0, 0]) == pytest.approx(result, abs=1e-6)
    assert best.epoch == epoch
    assert bool(notes) == (result not in weights)
    assert best.value == pytest.approx((result - 1) ** 2, abs=1e-6)


def test_the_sentence():
    model, dense = line()
    best, start = seen(model, dense, (1.6, 0.6, 3.0), monitor="val_mae")
    assert average_best_epochs(best, model, batches(), start) == [
        "The weights of epochs 2 and 1 were averaged: val_mae 0.1000 instead of 0.4000."
    ]


def test_a_tie_is_broken_by_the_loss():
    model, dense = line()
    model.compile("sgd", "mse", metrics=[keras.metrics.BinaryAccuracy(threshold=0)])
    logs = [{"val_binary_accuracy": 1.0, "val_loss": loss} for loss in (0.36, 0.16)]
    best, start = seen(model, dense, (1.6, 0.6), "val_binary_accuracy", logs=logs)
    (note,) = average_best_epochs(best, model, batches(), start)
    assert note.endswith("val_binary_accuracy 1.0000 as before, val_loss 0.0100 instead of 0.1600.")


def test_what_only_a_callback_measures_is_not_averaged_by():
    model, dense = line()
    best, start = seen(model, dense, (1.6, 0.6), "of_mine", logs=[{"of_mine": 0.6}, {"of_mine": 0.4}])
    assert average_best_epochs(best, model, batches(), start) == [
        "The best epochs were not averaged: only callbacks measure of_mine."
    ]
    best.restore()
    assert float(dense.kernel[0, 0]) == pytest.approx(0.6)


def test_moving_statistics_are_not_averaged():
    x = np.array([[1.0], [3.0]], "float32")
    for trains, words in ((True, "moving_mean changed, which no gradient trains"), (False, None)):
        norm = keras.layers.BatchNormalization(trainable=trains)
        model, _ = line(norm)
        callback = GreedySoup((x, x))
        model.fit(x, x, epochs=3, validation_data=(x, x), callbacks=[callback], verbose=0)
        assert (words in callback.notes[0]) if words else not callback.notes


def test_with_plain_fit():
    model, dense = line()
    model.compile(keras.optimizers.SGD(0.85), "mse")  # the distance from 1 is -0.7 times the one before
    history = model.fit(ONE, ONE, epochs=4, validation_data=(ONE, ONE), callbacks=[GreedySoup((ONE, ONE))], verbose=0)
    assert float(dense.kernel[0, 0]) == pytest.approx(1 + (0.7**3 - 0.7**4) / 2, abs=1e-6)
    assert model.evaluate(ONE, ONE, verbose=0, return_dict=True)["loss"] < min(history.history["val_loss"])


def test_without_validation_data():
    with pytest.raises(ValueError, match="A soup needs validation data to choose by"):
        GreedySoup(None)


# ----------------------------------------------------------------- in fine_tune


class Stop(TuneCallback):
    """Interrupt the run once, in an epoch or after a phase."""

    def __init__(self, epoch=None, phase=None):
        super().__init__()
        self.epoch, self.phase = epoch, phase

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt

    def on_phase_end(self, phase, changes, notes):
        if phase.name == self.phase:
            raise KeyboardInterrupt


PLAN = Plan(
    [
        Phase(name="head", epochs=3, train="head", learning_rate=0.1, schedule="constant", warmup=0, soup=3),
        Phase(name="all", epochs=5, learning_rate=0.1, schedule="constant", warmup=0, soup=3),
    ]
)


def run(folder, *stops, plan=PLAN):
    """Fine-tune a small net at a rate at which it jumps about; the weights and the history."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 6)).astype("float32")
    y = (x[:, 0] * x[:, 1] + x[:, 2] > 0).astype("int32")
    for stop in (*stops, None):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(12, "relu"), keras.layers.BatchNormalization(), keras.layers.Dense(2, "softmax")]
        model = keras.Sequential([keras.Input((6,)), *layers])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        callbacks = [] if stop is None else [stop]
        options = {"callbacks": callbacks, "verbose": 0, "backup_dir": folder, "batch_size": 20}
        if stop is None:
            history = fine_tune(model, plan, x[:100], y[:100], validation_data=(x[100:], y[100:]), **options)
        else:
            with pytest.raises(KeyboardInterrupt):
                fine_tune(model, plan, x[:100], y[:100], validation_data=(x[100:], y[100:]), **options)
    return model, history, model.evaluate(x[100:], y[100:], verbose=0)


def averaged(history):
    return [note for note in history.notes if "averaged" in note]


@pytest.fixture(scope="module")
def whole():
    return run(None)


def test_fine_tune_averages_and_says_so(whole):
    _, history, (_, accuracy) = whole
    assert [note[:28] for note in averaged(history)] == ['Phase "head": The weights of', 'Phase "all": The weights of ']
    assert accuracy > max(history.history["val_accuracy"])
    assert f"val_accuracy {accuracy:.4f} instead of" in averaged(history)[-1]
    _, plain, (_, own) = run(None, plan=PLAN.with_soup(0))
    assert averaged(plain) == []
    assert own == pytest.approx(max(plain.history["val_accuracy"]))


def test_the_same_bits_after_interruptions(tmp_path, whole):
    """In a phase, and between its last epoch and the average, whose checkpoint holds the epochs to average."""
    model, history, _ = whole
    again, resumed, _ = run(tmp_path, Stop(epoch=2), Stop(phase="head"), Stop(epoch=6), Stop(phase="all"))
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights()))
    assert averaged(resumed) == averaged(history)
    assert resumed.weight_change == history.weight_change
