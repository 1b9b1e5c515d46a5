"""What is kept of an old task: by hand, in every epoch, and without touching anything."""

import numpy as np
import pytest

from thaw.data.dataset import Dataset
from thaw.retention.monitor import kept_and_lost_intervals, retention_callback

keras = pytest.importorskip("keras")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")


def output(model, x=X):
    """What the model puts out, without a trace of ``predict``, which takes longer."""
    return np.asarray(model(x, training=False))


def pair(seed=0):
    """An old model and a new one on one backbone, and labels that the old one has mostly right."""
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((4,))
    features = keras.layers.Dense(8, "tanh")(pixels)
    features = keras.layers.Dropout(0.5, seed=1)(keras.layers.BatchNormalization()(features))
    old = keras.Model(pixels, keras.layers.Dense(3, "softmax", name="old")(features), name="old_model")
    new = keras.Model(pixels, keras.layers.Dense(2, "softmax", name="new")(features))
    y = output(old).argmax(axis=1)
    y[::10] = (y[::10] + 1) % 3
    return old, new, y


def state(*models):
    return [v.numpy().tobytes() for model in models for v in model.variables]


def test_by_hand():
    identity = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False), keras.layers.Softmax()])
    kernel = identity.layers[0].kernel
    kernel.assign(np.eye(2))
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [2, 1], [2, 1], [2, 1], [2, 1]], "float32")
    watch = retention_callback(identity, x, np.array([0, 0, 1, 0, 0, 0, 0, 1]))  # 6 of 8 right
    assert watch.retention() == 1.0
    kernel.assign([[0, 1], [0, 0]])  # now always class 1, or a tie, which goes to class 0
    # (1,0), (2,1) -> 1; (0,1) -> tie -> 0: right are the fourth and the last, both wrong before.
    assert watch.retention() == pytest.approx(2 / 6)
    found = watch.measure()
    assert found["before"]["value"] == 0.75
    assert found["after"]["value"] == 0.25
    assert found["kept"]["value"] == pytest.approx(1 / 3)
    assert found["lost"]["value"] == pytest.approx(0.5)
    assert found["lost"]["low"] < 0.5 < found["lost"]["high"]
    assert found["examples"] == 8


def test_retention_callback_measures_in_every_epoch_and_the_training_goes_the_same_way():
    def trained(new, *callbacks):
        keras.utils.set_random_seed(3)
        new.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
        return new.fit(X, (X[:, 0] > 0).astype(int), epochs=3, verbose=0, callbacks=list(callbacks)).history

    _, unwatched, _ = pair()
    trained(unwatched)
    old, new, y = pair()
    seen, watch = [], retention_callback(old, Dataset(x=X, y=y), batch_size=16)
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(watch.retention()))
    history = trained(new, watch, look)
    assert [w.tobytes() for w in new.get_weights()] == [w.tobytes() for w in unwatched.get_weights()]
    assert history["retention"] == seen
    assert seen[-1] < 1
    assert seen[-1] == pytest.approx((output(old).argmax(1) == y).sum() / 36)  # 4 of 40 were wrong
    # Other callbacks act on it.
    stop = keras.callbacks.EarlyStopping("retention", mode="max", patience=0, baseline=2.0)
    assert len(new.fit(X, np.zeros(40), epochs=9, verbose=0, callbacks=[watch, stop]).epoch) < 9


def test_nothing_is_touched():
    old, new, y = pair()
    new.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    old.layers[1].trainable = False
    new.fit(X, np.zeros(40), verbose=0)
    before, flags = state(old, new) + state(new.optimizer), [layer.trainable for layer in old.layers]
    compiled = old.compiled, new.compiled
    watch = retention_callback(old, X, y)
    watch.measure()
    retention_callback(old, X, score="agreement").measure()
    assert before == state(old, new) + state(new.optimizer)
    assert flags == [layer.trainable for layer in old.layers]
    assert compiled == (old.compiled, new.compiled)
    # Also where it goes wrong half-way.
    with pytest.raises(ValueError, match="expected one class number"):
        retention_callback(old, X, y + 0.5)
    assert before == state(old, new) + state(new.optimizer)


def test_the_moving_average_is_what_is_measured():
    old, new, y = pair()
    watch = retention_callback(old, X, y)
    optimizer = keras.optimizers.SGD(2.0, use_ema=True, ema_momentum=0.999)
    new.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    raw = []
    after = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: raw.append(new.get_weights()))
    history = new.fit(X, (X[:, 0] > 0).astype(int), epochs=2, verbose=0, callbacks=[watch, after])
    # Keras puts the average into the model at the end of the training: it is what was measured last, and other
    # than the raw weights, which stood untouched in the model after the measurement.
    assert history.history["retention"][-1] == watch.retention()
    assert any(not np.array_equal(a, b) for a, b in zip(raw[-1], new.get_weights()))
    new.set_weights(raw[-1])
    assert watch.retention() != history.history["retention"][-1]


def test_without_labels_of_the_old_task():
    old, new, _ = pair()
    watch = retention_callback(old, X, np.full(40, 99), score="agreement")  # labels mean something else to it
    assert watch.retention() == 1.0
    first = output(old)
    assert watch.measure()["divergence"]["value"] == 0.0
    new.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", run_eagerly=True)
    new.fit(X, (X[:, 0] > 0).astype(int), epochs=3, verbose=0)
    found, now = watch.measure(), output(old)
    same = (first.argmax(1) == now.argmax(1)).mean()
    assert found["kept"]["value"] == found["after"]["value"] == pytest.approx(same)
    assert found["kept"]["low"] < same < found["kept"]["high"]
    assert found["lost"]["value"] == pytest.approx(1 - same)
    assert found["before"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert same < 1
    expected = (first * np.log(first / now)).sum(axis=1).mean()
    assert found["divergence"]["value"] == pytest.approx(expected, rel=1e-3)


def test_intervals_know_what_they_do_not_know():
    old, _, y = pair()
    watch = retention_callback(old, X, y)
    found = watch.measure()
    assert found["kept"] == {"value": 1.0, "low": 1.0, "high": 1.0}  # to the bit
    old.layers[-1].bias.assign_add(np.full(3, 1e-3))  # nothing changes but the last digits
    found = watch.measure()
    assert found["lost"]["value"] == 0.0
    most = 1 - 0.025 ** (1 / 40)
    assert (found["lost"]["low"], found["lost"]["high"]) == pytest.approx((-most, most))
    assert found["kept"]["low"] == pytest.approx(1 - most / 0.9)


def test_kept_and_lost_intervals_hold_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(5), 0
    for trial in range(400):
        cell = rng.choice(4, 300, p=[0.08, 0.04, 0.12, 0.76])  # wrong-wrong, gained, lost, kept
        (low, high), _ = kept_and_lost_intervals(cell >= 2, cell % 2 == 1, False, trial)
        hits += low <= 0.80 / 0.88 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_shuffled_data_set_is_found_out():
    import tensorflow as tf

    old, _, y = pair()
    shuffled = tf.data.Dataset.from_tensor_slices((X, y)).shuffle(40, seed=1).batch(8)
    for score in ("accuracy", "agreement"):
        with pytest.raises(ValueError, match="another order"):
            retention_callback(old, shuffled, score=score).retention()
    plain = tf.data.Dataset.from_tensor_slices((X, y)).batch(8)
    assert (
        retention_callback(old, plain).retention()
        == retention_callback(old, plain, score="agreement").retention()
        == 1.0
    )


def test_a_model_that_shares_nothing_is_refused():
    old, new, y = pair()
    copy = keras.models.clone_model(old)
    copy.set_weights(old.get_weights())
    new.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="shares no variable"):
        new.fit(X, np.zeros(40), verbose=0, callbacks=[retention_callback(copy, X, y)])


def test_what_cannot_be_measured():
    old, _, _ = pair()
    wrong = (output(old).argmax(axis=1) + 1) % 3
    with pytest.raises(ValueError, match="none of the 40 source examples correctly"):
        retention_callback(old, X, wrong)
    with pytest.raises(ValueError, match='expected "accuracy" or "agreement"'):
        retention_callback(old, X, wrong, score="f1")


@pytest.mark.parametrize("score", ["accuracy", "agreement"])
def test_answers_that_come_from_elsewhere(score):
    """From a faster way than to run all of the old model: the same figures, and it is not run."""
    from thaw.features.predictions import batch_probabilities

    old, _, y = pair()
    data = Dataset(x=X, y=y)
    p = [batch_probabilities(old, [X])]
    watch = retention_callback(old, data, score=score, predictions=lambda: p[-1])
    plain = retention_callback(old, data, score=score)
    old.layers[1].kernel.assign(old.layers[1].kernel[:, ::-1])
    assert watch.retention() == 1.0  # the answers are as before
    p.append(batch_probabilities(old, [X]))
    assert watch.retention() == plain.retention() < 1
    measured = plain.measure()
    assert watch.measure().keys() == measured.keys()
    for name, found in watch.measure().items():  # computed in batches of another size: the last bits may differ
        assert found == (pytest.approx(measured[name], abs=1e-6) if isinstance(found, dict) else measured[name])


@pytest.mark.parametrize("score", ["accuracy", "agreement"])
def test_retention_callback_of_a_model_with_several_inputs(score):
    keras.utils.set_random_seed(0)
    entries = {"a": keras.Input((4,), name="a"), "b": keras.Input((2,), name="b")}
    x = keras.layers.Concatenate()(list(entries.values()))
    model = keras.Model(entries, keras.layers.Dense(2, "softmax")(x))
    data = {"a": X, "b": X[:, :2]}
    y = output(model, data).argmax(axis=1)
    watch = retention_callback(model, data, y, score=score)
    assert watch.retention() == 1.0
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)
    assert watch.retention() < 1


def test_retention_callback_refuses_a_stream_without_an_end():
    import tensorflow as tf

    old, _, y = pair()
    endless = tf.data.Dataset.from_tensor_slices((X, y)).batch(8).repeat()
    with pytest.raises(ValueError, match="never ends"):
        retention_callback(old, endless)
