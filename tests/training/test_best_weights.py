"""One best over all fits."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw.training.callbacks import BestWeights


def net(value=0.0):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[value]])
    return model


def weight(model):
    return float(model.layers[0].kernel[0, 0])


def feed(best, model, *values):
    for epoch, (value, logs) in enumerate(values):
        model.layers[0].kernel.assign([[value]])
        best.on_epoch_end(epoch, logs)


def test_the_best_of_two_fits():
    """A bad second phase does not win over a good first one, as it does with EarlyStopping."""
    model = net()
    best = BestWeights(model, "val_loss", "min")
    plain = keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True, patience=9)
    x, y = np.ones((8, 1), "float32"), np.ones((8, 1), "float32")
    for start, rate in ((0.0, 0.1), (50.0, 1e-6)):
        model.layers[0].kernel.assign([[start]])
        model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
        model.fit(x, y, epochs=3, validation_data=(x, y), callbacks=[best, plain], verbose=0)
    assert weight(model) == pytest.approx(50, rel=1e-3)  # what Keras restored: the best of the second fit
    best.restore()
    assert weight(model) == pytest.approx(1 - 0.8**3, rel=1e-5)
    assert best.epoch == 2


@pytest.mark.parametrize(
    ("monitor", "mode", "values", "kept"),
    [
        ("val_accuracy", "max", (0.5, 0.9, 0.7), 1),
        ("val_loss", "min", (0.5, 0.9, 0.3), 2),
        ("val_edit_distance", "min", (0.5, 0.2, 0.3), 1),
        ("val_gloss_accuracy", "max", (0.5, 0.2, 0.7), 2),
        ("val_accuracy", "max", (float("nan"), 0.2, 0.1), 1),  # a first epoch without a value is not the best for ever
        ("val_loss", "min", (float("nan"), float("inf"), 3.0), 2),
        ("val_accuracy", "max", (0.2, float("nan"), 0.1), 0),
    ],
)
def test_which_is_best(monitor, mode, values, kept):
    model = net()
    best = BestWeights(model, monitor, mode)
    feed(best, model, *((i, {monitor: v}) for i, v in enumerate(values)))
    assert best.epoch == kept
    best.restore()
    assert weight(model) == kept


def test_a_tie_goes_to_the_lower_loss_and_then_to_the_earlier():
    model = net()
    best = BestWeights(model, "val_accuracy", "max")
    losses = (0.5, 0.3, 0.4, 0.3)
    feed(best, model, *((i, {"val_accuracy": 1.0, "val_loss": v}) for i, v in enumerate(losses)))
    assert best.epoch == 1


def test_the_moving_average_is_what_is_kept():
    model = net(1.0)
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    for step in (-2.0, -4.0):  # the weight is 3 and then 7, its average 3 and then (3 + 7) / 2
        optimizer.apply([np.array([[step]], "float32")])
    best = BestWeights(model, "val_loss", "min")
    best.set_model(model)
    best.on_epoch_end(0, {"val_loss": 1.0})
    assert weight(model) == 7
    best.restore()
    assert weight(model) == 5


def test_the_copy_does_not_follow_the_model():
    model = net(1.0)
    best = BestWeights(model, "loss", "min")
    best.on_epoch_end(0, {"loss": 1.0})
    model.layers[0].kernel.assign([[9.0]])
    assert best.weights[0].item() == 1.0


def test_nothing_seen_nothing_restored():
    model = net(4.0)
    BestWeights(model, "loss", "min").restore()
    assert weight(model) == 4.0


def test_no_such_value():
    with pytest.raises(ValueError, match="There is no val_auc to choose by; the logs have loss, val_loss"):
        BestWeights(net(), "val_auc", "max").on_epoch_end(0, {"val_loss": 1, "loss": 1})


def test_a_metric_of_several_numbers_is_none_to_choose_by():
    best = BestWeights(net(), "val_f1_score", "max")
    with pytest.raises(ValueError, match=r'val_f1_score is 3 numbers; expected one .*average="macro"'):
        best.on_epoch_end(0, {"val_f1_score": np.zeros(3)})


# ----------------------------------------------------------------- runners-up


def kept(best):
    return [(other.epoch, other.weights[0].item()) for other in best.runners_up]


def test_the_next_best_are_kept_in_order():
    model = net()
    best = BestWeights(model, "val_accuracy", "max")
    best.begin(3)
    values = (0.5, 0.9, 0.7, 0.6, 0.8, 0.1, 0.95)
    orders = []
    for epoch, value in enumerate(values):
        model.layers[0].kernel.assign([[epoch]])
        best.on_epoch_end(epoch, {"val_accuracy": value})
        orders.append([best.epoch, *(epoch for epoch, _ in kept(best))])
    assert orders == [[0], [1, 0], [1, 2, 0], [1, 2, 3], [1, 4, 2], [1, 4, 2], [6, 1, 4]]
    assert kept(best) == [(1, 1.0), (4, 4.0)]


def test_equal_epochs_are_kept_in_their_order():
    model = net()
    best = BestWeights(model, "val_accuracy", "max")
    best.begin(3)
    feed(best, model, *((i, {"val_accuracy": 1.0, "val_loss": v}) for i, v in enumerate((0.5, 0.3, 0.5, 0.5))))
    assert [best.epoch, *(epoch for epoch, _ in kept(best))] == [1, 0, 2]


def test_a_phase_begins_with_the_best_one_before_it():
    model = net()
    best = BestWeights(model, "val_loss", "min")
    best.begin(3)
    feed(best, model, (0, {"val_loss": 0.5}), (1, {"val_loss": 0.3}))
    best.begin(2)
    assert (best.epoch, kept(best)) == (1, [])
    model.layers[0].kernel.assign([[7.0]])
    best.on_epoch_end(2, {"val_loss": 0.1})
    assert (best.epoch, kept(best)) == (2, [(1, 1.0)])


def test_runners_up_hold_what_is_trained_alone():
    model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    model.layers[0].trainable = False
    best = BestWeights(model, "val_loss", "min")
    best.begin(2)
    best.on_epoch_end(0, {"val_loss": 0.5})
    first = [value.copy() for value in best.weights]
    model.layers[1].bias.assign([3.0])
    best.on_epoch_end(1, {"val_loss": 0.6})
    assert [value.shape for value in best.runners_up[0].weights] == [(1, 1), (1,)]
    again = BestWeights(model, "val_loss", "min")
    again.load(*best.state())
    own, other = again.versions()
    assert all(np.array_equal(a, b) for a, b in zip(own, first))
    assert [np.array_equal(a, b) for a, b in zip(other, first)] == [True] * 5 + [False]
    assert other[-1].item() == 3.0
