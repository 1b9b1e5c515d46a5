"""Phases of adapters in fine_tune: what changes, what does not, and the same bits after a kill."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw import (
    Dataset,
    Phase,
    Plan,
    TuneCallback,
    add_lora,
    fine_tune,
    freeze,
    load_adapters,
    merge_lora,
    save_adapters,
    split_model,
)

RNG = np.random.default_rng(0)
Y = np.arange(48) % 3
X = RNG.normal(size=(48, 16, 16, 2)).astype("float32")
X[Y == 1, 4:10] += 1
X[Y == 2, :, 8:] -= 1


def net():
    """Three stages, BatchNorm and depthwise filters among them, and a head."""
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((16, 16, 2))
    for i in range(3):
        x = layers.DepthwiseConv2D(3, 2, padding="same", name=f"depthwise{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm{i}")(layers.Conv2D(16, 1, name=f"point{i}")(x)))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(entry, layers.Dense(3, "softmax", name="out")(x))


def adapted(rank=2):
    model = net()
    add_lora(model, rank=rank, alpha=4)
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def phase(**options):
    return Phase(**{"name": "top", "epochs": 2, "learning_rate": 1e-2, "train": 1, "variables": "adapters"} | options)


def train(model, *phases, **options):
    data = {"validation_data": (X, Y), "batch_size": 16, "verbose": 0}
    return fine_tune(model, Plan(phases), X, Y, **data | options)


def values(model):
    return {v.path: v.numpy() for v in model.weights}


def changed(model, before):
    return {path for path, value in values(model).items() if not np.array_equal(value, before[path])}


HEAD = {"out/kernel", "out/bias"}


def adapters(*numbers):
    return {f"point{i}/lora_kernel_{part}" for i in numbers for part in "ab"}


class Precomputed(TuneCallback):
    batches = 0

    def on_precompute(self, done, total):
        self.batches = done


def test_the_adapters_and_the_head_train_and_nothing_else():
    model, seen = adapted(), Precomputed()
    before = values(model)
    history = train(model, phase(), callbacks=[seen])
    assert changed(model, before) == adapters(2) | HEAD
    assert not any("did not change" in note or "was frozen" in note for note in history.notes)
    assert seen.batches == 2 * len(X) / 16  # of training and validation, once
    rates = {change["stage"]: change["weights"] for change in history.weight_change["top"]}
    assert [stage for stage, weights in rates.items() if weights] == ["stage3", "head"]
    plain = net()
    assert all(np.array_equal(values(model)[v.path], v.numpy()) for v in plain.weights if v.path not in HEAD)


def test_the_prefix_ends_below_the_first_adapter_that_trains():
    model = adapted()
    freeze(model, 1, variables="adapters")
    prefix, suffix = split_model(model)
    assert {"depthwise2", "point1"} <= {layer.name for layer in prefix.layers}
    assert {"point2", "out"} <= {layer.name for layer in suffix.layers}
    assert {v.path for v in suffix.trainable_variables} == adapters(2) | HEAD


def test_cached_and_live_phases_learn_the_same_bits():
    """Augmented anew in every epoch, the examples cannot be cached: all of the model is computed each time."""

    def trained(**options):
        model, seen = adapted(), Precomputed()
        plan = Plan([phase(epochs=3)])
        data = Dataset(x=X, y=Y, **options)
        fine_tune(model, plan, data, validation_data=(X, Y), batch_size=16, verbose=0, callbacks=[seen])
        return values(model), seen.batches

    (cached, some), (live, none) = trained(), trained(augment=lambda x, seed: x)
    assert some
    assert not none
    assert cached["point2/lora_kernel_b"].any()
    assert all(np.array_equal(value, live[path]) for path, value in cached.items())


def test_later_phases_neither_thaw_the_kernels_nor_lose_the_adapters():
    class Seen(TuneCallback):
        """What an epoch of each phase has changed, better than before or not."""

        def on_phase_begin(self, phase, trainable):
            self.phase, self.before = phase.name, values(model)

        def on_epoch_end(self, epoch, logs=None):
            seen[self.phase] = changed(model, self.before)

    model, seen = adapted(), {}
    start = values(model)
    train(
        model,
        phase(name="head", epochs=1, train="head", variables="all", solver="lbfgs"),
        phase(name="adapters", epochs=1, train="all"),
        phase(name="all", epochs=1, train="all", variables="all", batchnorm="trained"),
        phase(name="again", epochs=1),
        callbacks=[Seen()],
    )
    kernels = {f"point{i}/kernel" for i in range(3)}
    assert seen == {
        "head": HEAD,
        "adapters": adapters(0, 1, 2) | HEAD,
        "all": set(start) - kernels,
        "again": adapters(2) | HEAD,
    }
    assert not kernels & changed(model, start)
    assert not kernels & {v.path for v in model.trainable_variables}
    for _ in range(2):
        freeze(model, "head")
        freeze(model, "all")
        assert adapters(0, 1, 2) <= {v.path for v in model.trainable_variables}
        assert not kernels & {v.path for v in model.trainable_variables}


def test_tuned_saved_and_loaded_onto_a_fresh_backbone(tmp_path):
    model = adapted()
    train(model, phase(train="all", soup=2))
    expected = np.asarray(model(X))
    path = save_adapters(model, tmp_path / "adapters.npz")
    fresh = load_adapters(net(), path)
    np.testing.assert_array_equal(fresh(X), expected)
    fresh.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = values(fresh)
    train(fresh, phase(epochs=1))  # and goes on
    assert changed(fresh, before) == adapters(2) | HEAD
    np.testing.assert_allclose(merge_lora(model)(X), expected, atol=1e-5)
    # What else was trained below the head is in no file of adapters.
    train(fresh, phase(epochs=1, train="all", variables="all"))
    path = save_adapters(fresh, path)
    with pytest.raises(ValueError, match=r"another backbone: depthwise0 and \d+ more of .* had other weights there"):
        load_adapters(net(), path)


def test_what_is_said_before_the_first_epoch():
    class Begun(keras.callbacks.Callback):
        epochs = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs += 1

    def refused(model, *phases):
        seen, before = Begun(), values(model)
        with pytest.raises(ValueError) as error:
            train(model, *phases, callbacks=[seen])
        assert seen.epochs == 0
        assert not changed(model, before)
        return str(error.value)

    model = net()
    model.compile("adam", "sparse_categorical_crossentropy")
    head = phase(name="head", epochs=1, train="head", variables="all")
    assert refused(model, head, phase()) == (
        'variables = "adapters" leaves nothing to train in stage3; expected a model with adapters there, which '
        "add_lora(model) adds."
    )
    assert [layer.trainable for layer in model.layers] == [True] * len(model.layers)
    add_lora(model, stages="stage2", rank=2)
    assert "nothing to train in stage3;" in refused(model, phase())
    dead = adapted()
    for name in ("a", "b"):
        variable = getattr(dead.get_layer("point2"), f"lora_kernel_{name}")
        variable.assign(np.zeros(variable.shape))
    assert "The adapters of point2 are all zeros and cannot learn" in refused(dead, phase())
    with pytest.raises(ValueError, match='"top" has batchnorm = \'trained\'; expected "frozen", because adapters'):
        phase(batchnorm="trained")
    with pytest.raises(ValueError, match='batchnorm=\'trained\'; expected "frozen" with variables="adapters"'):
        freeze(dead, 1, "trained", variables="adapters")


def test_a_plan_says_so():
    plan = Plan([phase()])
    assert Plan.from_toml(plan.to_toml()) == plan
    assert "head + 1 (adapters)" in str(plan)


RUN = """
import hashlib, json, os, signal, sys
import tensorflow as tf
sys.path[:0] = [sys.argv[1]]
from tests import test_fine_tune_lora as own
keras = own.keras
tf.config.experimental.enable_op_determinism()
folder, moment = sys.argv[2] or None, sys.argv[3]

class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if moment == f"{self.epoch}.{batch}":
            os.kill(os.getpid(), signal.SIGKILL)

model = own.adapted()
plan = [own.phase(epochs=2), own.phase(name="more", epochs=2, train=2, soup=2), own.phase(name="all", epochs=1,
        train="all", variables="all")]
history = own.train(model, *plan, backup_dir=folder, callbacks=[Kill()])
digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in model.weights)).hexdigest()
print(json.dumps([digest, history.history["val_loss"], history.notes]))
"""


@pytest.mark.slow
def test_killed_in_the_second_phase_it_ends_with_the_same_bits(tmp_path, python):
    root = Path(__file__).parent.parent

    def start(folder, moment):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "THAW_CACHE": str(tmp_path / f"cache{bool(folder)}")}
        return python("-c", RUN, root, folder, moment, env=environment)

    def result(done):
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    whole = result(start("", ""))
    assert len(whole[1]) == 5
    assert start(tmp_path / "run", "3.1").returncode == -9
    assert result(start(tmp_path / "run", "")) == whole
