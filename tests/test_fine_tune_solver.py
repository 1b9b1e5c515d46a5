"""A phase with a solver: the head is solved in one epoch, which measures and changes nothing else."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Dataset, Phase, Plan, TuneCallback, attach_head, fine_tune, seed_everything
from thaw.tasks import smoothed_crossentropy
from thaw.transfer import solve_head

HEAD = Phase(name="head", epochs=3, train="head", learning_rate=1e-2, solver="lbfgs")
TUNE = Phase(name="tune", epochs=2, train=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 8, 8, 3)) + 0.6 * y[:, None, None, None] * (np.arange(8) % 2)[:, None]
    return x.astype("float32"), y


def build(features="last", optimizer=None, loss="sparse_categorical_crossentropy"):
    seed_everything(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    model = attach_head(keras.Model(inputs, x, name="net"), 3, features=features)
    model.compile(optimizer or keras.optimizers.AdamW(1e-3, weight_decay=0.1), loss, metrics=["accuracy"])
    return model


def weights(model):
    return [w.numpy() for w in model.weights]


def assert_same(a, b):
    for first, second in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("features", ["last", "all"])
@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
        lambda: keras.optimizers.Adam(0.1, use_ema=True),
        lambda: keras.optimizers.Ftrl(0.1),  # which divides by its rate
    ],
    ids=["adamw", "sgd", "ema", "ftrl"],
)
def test_is_solve_head(features, optimizer, pictures, tmp_path):
    x, y = pictures
    model = build(features, optimizer and optimizer())
    history = fine_tune(model, [HEAD], x, y, validation_data=(x, y), cache_dir=tmp_path, verbose=0)
    solved = build(features)
    readout = solve_head(solved, x, y, cache_dir=tmp_path)
    if model.optimizer.use_ema:  # the average of equal numbers is rounded
        for a, b in zip(weights(model), weights(solved), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    else:
        assert_same(model, solved)
    assert history.history["phase"] == ["head"]
    assert len(history.history["loss"]) == 1
    assert history.history["val_loss"][0] == pytest.approx(solved.evaluate(x, y, verbose=0)[0], abs=1e-5)
    assert readout.strength in readout.cross_validation.log_losses
    assert not any("BatchNorm statistics" in note for note in history.notes)


def test_a_callback_that_sets_the_rate_changes_nothing_in_a_solved_epoch(pictures, tmp_path):
    x, y = pictures
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5)
    model, solved = build(), build()
    constant = [dataclasses.replace(HEAD, schedule="constant", warmup=0)]
    fine_tune(model, constant, x, y, validation_data=(x, y), callbacks=[schedule], cache_dir=tmp_path, verbose=0)
    solve_head(solved, x, y, cache_dir=tmp_path)
    assert_same(model, solved)
    # Where the head cannot be solved, the schedule would set the rate too.
    with pytest.raises(ValueError, match="LearningRateScheduler sets the learning rate, and so does the schedule"):
        fine_tune(build(), [HEAD], x, y, validation_data=(x, y), callbacks=[schedule], verbose=0)


@pytest.mark.parametrize("features", ["last", "all"])
def test_the_next_phase_goes_on_from_it(features, pictures, tmp_path):
    x, y = pictures
    model = build(features)
    history = fine_tune(model, [HEAD, TUNE], x, y, validation_data=(x, y), cache_dir=tmp_path, verbose=0)
    assert history.history["phase"] == ["head", "tune", "tune"]
    assert history.history["loss"][1] < history.history["loss"][0] * 1.5


def test_the_first_step_behind_a_solved_wide_head_is_small(pictures, tmp_path):
    """Adam moves each of the weights by its rate: the more features, the further the logits."""
    x, y = pictures
    model = build("all", keras.optimizers.Adam())
    solve_head(model, x, y, cache_dir=tmp_path)
    logits = keras.Model(model.input, model.layers[-1].input)
    kernel, bias = (w.numpy() for w in model.layers[-1].weights)
    features = logits.predict(x, verbose=0)
    phase = Phase(name="head", epochs=1, train="head", learning_rate=0.5, schedule="constant", warmup=0.0)
    fine_tune(model, [phase], x, y, batch_size=60, cache_dir=tmp_path, verbose=0)  # one step
    after, bias_after = (w.numpy() for w in model.layers[-1].weights)
    moved = features @ (after - kernel) + bias_after - bias
    assert 1e-4 < np.abs(moved).max() <= 0.1
    assert 0.5 * np.abs(features).sum(1).max() > 1  # without the factor it would be far


def test_it_finds_the_features_of_solve_head(pictures, tmp_path):
    """Those of several stages have an order, which is part of their name in the cache."""
    x, y = pictures
    solve_head(build("all"), x, y, cache_dir=tmp_path)
    batches = []

    class Count(TuneCallback):
        def on_precompute(self, done, total):
            batches.append(total)

    fine_tune(build("all"), [HEAD], x, y, callbacks=[Count()], cache_dir=tmp_path, verbose=0)
    assert not batches


def test_a_loss_that_no_solver_knows_is_trained_by_gradient_descent(pictures, tmp_path):
    x, y = pictures
    model = build(loss="categorical_focal_crossentropy")
    history = fine_tune(model, [HEAD], x, np.eye(3)[y], validation_data=(x, np.eye(3)[y]), verbose=0)
    assert history.history["phase"] == ["head"] * 3
    assert any("the loss is categorical_focal_crossentropy; a solver" in note for note in history.notes)


def test_a_head_is_solved_without_label_smoothing(pictures):
    """Regularization and temperature are chosen on rows out of fold; smoothing is for what gradient descent trains."""
    x, y = pictures
    plain, smooth = build(), build(loss=smoothed_crossentropy(0.2))
    notes = [fine_tune(model, [HEAD], x, y, validation_data=(x, y), verbose=0).notes for model in (plain, smooth)]
    assert_same(plain, smooth)
    assert [sum("solved without label smoothing" in note for note in own) for own in notes] == [0, 1]


def test_soft_labels_are_trained_by_gradient_descent(pictures):
    x, y = pictures
    model, soft = build(loss="categorical_crossentropy"), np.eye(3)[y] * 0.8 + 0.2 / 3
    history = fine_tune(model, [HEAD], x, soft, validation_data=(x, soft), verbose=0)
    assert len(history.epoch) == 3
    assert any("gradient descent: The labels are rows of 3 numbers that are not one-hot" in n for n in history.notes)


def test_hidden_layers_of_a_head_are_trained_with_it(pictures):
    """The solver would set the last layer alone, and leave the others at random."""
    x, y = pictures
    seed_everything(0)
    inputs = keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu")(inputs))
    hidden = layers.Dense(4, "relu", name="hidden")
    model = keras.Model(inputs, layers.Dense(3, "softmax")(hidden(pooled)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = hidden.kernel.numpy()
    history = fine_tune(model, [HEAD], x, y, validation_data=(x, y), verbose=0)
    assert np.abs(hidden.kernel.numpy() - before).max() > 0
    assert any("gradient descent: The head has other weights too" in note for note in history.notes)


def test_without_a_solver_the_examples_are_as_they_are_all_the_same(pictures, tmp_path):
    x, y = pictures

    def shift(x, seed):
        return x + 100.0

    plain, augmented = (build(loss="categorical_focal_crossentropy") for _ in range(2))
    fine_tune(plain, [HEAD], x, np.eye(3)[y], validation_data=(x, np.eye(3)[y]), verbose=0)
    data = Dataset(x=x, y=np.eye(3)[y], augment=shift)
    fine_tune(augmented, [HEAD], data, validation_data=(x, np.eye(3)[y]), verbose=0)
    assert_same(plain, augmented)


def test_a_stream_is_trained_by_gradient_descent(pictures):
    import tensorflow as tf

    x, y = pictures
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    history = fine_tune(build(), [HEAD], stream, validation_data=(x, y), verbose=0)
    assert history.history["phase"] == ["head"] * 3
    assert any("gradient descent: The training data are a stream" in note for note in history.notes)


def test_without_views_it_sees_the_examples_as_they_are(pictures, tmp_path):
    x, y = pictures

    def shift(x, seed):
        return x + 100.0

    shift.identity = "shift"
    model, solved = build("all"), build("all")
    data = Dataset(x=x, y=y, augment=shift)
    fine_tune(model, [HEAD], data, validation_data=(x, y), cache_dir=tmp_path, verbose=0)
    solve_head(solved, x, y, cache_dir=tmp_path)
    assert_same(model, solved)


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Interrupt a run after an epoch has been saved."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Stop


@pytest.mark.parametrize("epoch", [1, 4])
def test_resumes_bit_identically(epoch, pictures, tmp_path):
    x, y = pictures
    plan = [HEAD, TUNE, Phase(name="more", epochs=2, train=2, learning_rate=1e-3)]
    options = {"validation_data": (x, y), "cache_dir": tmp_path / "cache", "verbose": 0}
    whole = build("all")
    expected = fine_tune(whole, plan, x, y, **options)
    with pytest.raises(Stop):
        fine_tune(build("all"), plan, x, y, backup_dir=tmp_path / "run", callbacks=[StopAt(epoch)], **options)
    resumed = build("all")
    history = fine_tune(resumed, plan, x, y, backup_dir=tmp_path / "run", **options)
    assert_same(whole, resumed)
    assert history.history["val_loss"] == expected.history["val_loss"]


@pytest.mark.parametrize("features", ["last", "all"])
def test_cached_and_computed_in_every_epoch_are_the_same(features, pictures, tmp_path):
    """The same plan on a cache that has no room: the head is solved all the same, the rest is computed whole."""
    x, y = pictures
    plan = [HEAD, TUNE]
    cached, whole = build(features), build(features)
    fine_tune(cached, plan, x, y, validation_data=(x, y), cache_dir=tmp_path, verbose=0)

    def augment(x, seed):
        return x

    fine_tune(whole, plan, Dataset(x=x, y=y, augment=augment), validation_data=(x, y), cache_dir=tmp_path, verbose=0)
    for a, b in zip(weights(cached), weights(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_solver_is_for_the_head_alone():
    with pytest.raises(ValueError, match='expected "frozen", because a solver trains nothing else'):
        dataclasses.replace(HEAD, batchnorm="trained")
    with pytest.raises(ValueError, match='has solver = "lbfgs" and train ='):
        Phase(name="all", epochs=1, solver="lbfgs")
    with pytest.raises(ValueError, match="expected one of gradient, lbfgs, svm, ridge"):
        Phase(name="head", epochs=1, train="head", solver="newton")
    plan = Plan([HEAD])
    assert Plan.from_toml(plan.to_toml()) == plan


def test_the_groups_of_the_dataset_stay_in_one_fold(pictures, tmp_path):
    x, y = pictures
    groups = np.arange(60) // 4
    models = [build("all") for _ in range(3)]
    data = Dataset(x=x, y=y, groups=groups)
    fine_tune(models[0], [HEAD], data, validation_data=(x, y), cache_dir=tmp_path, verbose=0)
    readout = solve_head(models[1], x, y, groups=groups, cache_dir=tmp_path)
    solve_head(models[2], x, y, cache_dir=tmp_path)
    assert_same(models[0], models[1])
    assert readout.cross_validation.groups.tolist() == groups.tolist()
    assert any(not np.array_equal(a, b) for a, b in zip(weights(models[0]), weights(models[2]), strict=True))
