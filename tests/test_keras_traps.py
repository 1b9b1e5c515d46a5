"""What Keras does that one does not expect: our code is safe from it, and we hear of it the day Keras changes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw import Dataset, Phase, Plan, attach_head, fine_tune, freeze, layerwise_lr_decay, stages_of

ROOT = Path(__file__).parents[1]
SPARSE = "sparse_categorical_crossentropy"


def backbone():
    entry = keras.Input((4,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(6, activation="tanh", name="dense")(entry))
    return keras.Model(entry, x, name="backbone")


def net(kind="flat"):
    keras.utils.set_random_seed(0)
    inner = backbone()
    if kind == "flat":
        return attach_head(inner, 2, dropout=0)
    entry = keras.Input((4,))
    return keras.Model(entry, layers.Dense(2, activation="softmax")(inner(entry, training=False)))


def norm_of(model):
    return next(n for n in model._flatten_layers() if isinstance(n, layers.BatchNormalization))


def data(n=32):
    x = np.random.default_rng(0).normal(2, 1, (n, 4)).astype("float32")
    return x, (x[:, 0] > 2).astype("int32")


def fit(model, optimizer="adam", **options):
    model.compile(optimizer, SPARSE)
    return model.fit(*data(), verbose=0, **options)


def phase(name="head", epochs=1, train="head", **more):
    return Phase(name=name, epochs=epochs, train=train, **({"learning_rate": 1e-2} | more))


# 1. training=False in the call does not hold BatchNorm still.


def test_1_keras_moves_batchnorm_that_was_called_with_training_false():
    model = net("nested")
    fit(model)
    assert np.abs(norm_of(model).moving_mean.numpy()).max() > 0


@pytest.mark.parametrize("kind", ["flat", "nested"])
def test_1_freeze_holds_it(kind):
    model = net(kind)
    freeze(model, "all")
    fit(model)
    assert not norm_of(model).moving_mean.numpy().any()


def test_1_setting_true_once_more_does_nothing_and_once_false_thaws_all():
    """The guide's `trainable = True` thaws what was held, but only if it was not True already."""
    model = net("nested")
    norm_of(model).trainable = False
    model.trainable = True
    assert not norm_of(model).trainable
    model.trainable = False
    model.trainable = True
    assert norm_of(model).trainable
    freeze(model, "all")
    assert not norm_of(model).trainable


# 2. A change of trainable after compile is ignored by fit, silently.


def test_2_keras_goes_on_as_it_was_compiled():
    model = net()
    fit(model)
    kernel = model.get_layer("dense").kernel.numpy()
    model.get_layer("dense").trainable = False
    model.fit(*data(), verbose=0)
    assert not np.array_equal(model.get_layer("dense").kernel.numpy(), kernel)


def test_2_freeze_makes_a_stale_fit_fail():
    model = net()
    fit(model)
    freeze(model, "head")
    with pytest.raises(ValueError, match="compile"):
        model.fit(*data(), verbose=0)


# 3. An optimizer belongs to one set of variables.


def test_3_keras_refuses_an_optimizer_of_other_variables():
    model = net()
    freeze(model, "head")
    fit(model, optimizer := keras.optimizers.Adam())
    freeze(model, "all")
    with pytest.raises((ValueError, KeyError), match=r"(?i)variable"):
        fit(model, optimizer)


def test_3_tune_has_an_optimizer_for_each_phase():
    model = net()
    model.compile(keras.optimizers.Adam(), SPARSE, metrics=["accuracy"])
    history = fine_tune(model, Plan([phase(), phase("all", 1, "all")]), *data(), validation_data=data())
    assert history.weight_change["all"][0]["weights"] > 0


# 4. Scaled gradients do nothing under Adam.


def test_4_scaling_the_gradient_does_nothing_and_per_stage_does():
    def step(scale, decay):
        model = net()
        optimizer = layerwise_lr_decay(keras.optimizers.Adam(1e-2, epsilon=1e-12), stages_of(model), decay)
        kernel = model.get_layer("dense").kernel
        start = kernel.numpy()
        optimizer.build(model.trainable_variables)
        optimizer.apply([np.full(v.shape, scale, "float32") for v in model.trainable_variables])
        return kernel.numpy() - start

    np.testing.assert_allclose(step(0.01, 1), step(1.0, 1), rtol=1e-3)
    np.testing.assert_allclose(step(1.0, 0.5), step(1.0, 1) / 2, rtol=1e-3)


# 5 and 6. The saved file remembers the optimizer's class, even without its state.


def test_6_keras_remembers_the_class(tmp_path):
    class Mine(keras.optimizers.SGD):
        pass

    model = net()
    fit(model, Mine())
    model.save(tmp_path / "m.keras", include_optimizer=False)
    with pytest.raises((TypeError, ValueError), match="Mine"):
        keras.saving.load_model(tmp_path / "m.keras")


def test_5_and_6_the_optimizer_stays_one_of_keras_with_one_rate_and_one_clip_norm(tmp_path):
    model = net()
    optimizer = layerwise_lr_decay(keras.optimizers.Adam(0.1, global_clipnorm=1.0), stages_of(model), 0.5)
    assert type(optimizer) is keras.optimizers.Adam
    assert (float(optimizer.learning_rate), optimizer.global_clipnorm) == (pytest.approx(0.1), 1.0)
    fit(model, optimizer)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert type(again.optimizer) is keras.optimizers.Adam


# 7. Paths change on load and clone.


def test_7_stages_go_by_the_layers_themselves(tmp_path):
    model = net("nested")
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(stages_of(model), stages_of(again)):
        assert (a.name, a.parameters, a.shape) == (b.name, b.parameters, b.shape)
    freeze(again, "head")
    assert len(again.trainable_variables) == 2


# 8. EarlyStopping forgets the best of an earlier fit (test_best_weights shows Keras' own).


def test_8_a_bad_second_phase_does_not_win():
    model = net()
    model.compile("sgd", SPARSE, metrics=["accuracy"])
    ruin = phase("ruin", 1, "all", learning_rate=1e3, schedule="constant", warmup=0)
    history = fine_tune(model, Plan([phase(epochs=3, learning_rate=0.5), ruin]), *data(), validation_data=data())
    model.compile(loss=SPARSE, metrics=["accuracy"])
    x, y = data()
    assert model.evaluate(x, y, verbose=0)[1] == pytest.approx(max(history.history["val_accuracy"]))


# 9 and 18. BackupAndRestore across phases, and after kill -9: see test_resume.


def test_9_a_later_phase_goes_on_with_what_it_moves(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(folder, *callbacks):
        model = net()
        model.compile(keras.optimizers.Adam(), SPARSE, metrics=["accuracy"])
        plan = Plan([phase(), phase("all", 2, "all")])
        history = fine_tune(model, plan, *data(), validation_data=data(), backup_dir=folder, callbacks=callbacks)
        return model, history

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Kill())
    model, history = run(tmp_path)
    whole, expected = run(None)
    assert history.weight_change == expected.weight_change
    assert history.weight_change["all"][0]["weights"] > 0
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, whole.weights))


# 10. Mixed precision makes the head's output float16.


def test_10_the_head_is_float32():
    keras.config.set_dtype_policy("mixed_float16")
    inner = backbone()
    plain = keras.Model(inner.inputs, layers.Dense(2, activation="softmax")(inner.output))
    assert plain.output.dtype == "float16"
    assert attach_head(inner, 2).output.dtype == "float32"


# 12. Importing Keras takes seconds.


@pytest.mark.parametrize("what", ["import thaw", "import thaw.cli.main", "help"])
def test_12_keras_is_imported_late(what):
    code = {
        "help": "import sys\nsys.argv = ['thaw', '--help']\nfrom thaw.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    }.get(what, what)
    code += "\nimport sys\nprint('LATE', sorted({'keras', 'tensorflow', 'sklearn'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1] == "LATE []", done.stderr


# 17. A seeded fit on arrays has the same order in every epoch.


def orders(fit_data, **options):
    """The first inputs of each of two epochs, as the model sees them."""
    seen = []

    class Note(layers.Layer):
        def call(self, x):
            tf.py_function(lambda rows: seen.append(rows.numpy()[:, 0].tolist()), [x], [])
            return x

    model = keras.Sequential([keras.Input((1,)), Note(), layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    keras.utils.set_random_seed(1)
    model.fit(*fit_data, epochs=2, verbose=0, **options)
    rows = [row for batch in seen for row in batch]
    return rows[-32:-16], rows[-16:]


def test_17_the_order_changes_with_the_epoch():
    x = np.arange(16, dtype="float32")[:, None]
    first, second = orders((Dataset(x=x, y=x[:, 0]).epochs(4, seed=1),), steps_per_epoch=4, shuffle=False)
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


# 19. Keras' saves are not atomic.


def test_19_a_full_disk_leaves_the_old_file(tmp_path, python):
    code = (
        "import resource, signal, keras\n"
        "from thaw._files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])\n"
        "large = keras.Sequential([keras.Input((500,)), keras.layers.Dense(500)])\n"
        "write_atomically('m.keras', small.save)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n    write_atomically('m.keras', large.save)\n"
        "except OSError as error:\n    print('refused')\n"
        "print(keras.saving.load_model('m.keras').output_shape)\n"
    )
    done = python("-c", code, folder=tmp_path)
    assert done.stdout.splitlines() == ["refused", "(None, 2)"], done.stderr
    assert hasattr(signal, "SIGXFSZ")


# 20. A flipped bit in a file of weights loads silently.


def test_20_keras_loads_a_flipped_bit(tmp_path):
    model = net()
    model.save_weights(tmp_path / "m.weights.h5")
    raw = bytearray((tmp_path / "m.weights.h5").read_bytes())
    raw[raw.index(model.get_layer("dense").kernel.numpy().tobytes())] ^= 1
    (tmp_path / "m.weights.h5").write_bytes(raw)
    kernel = model.get_layer("dense").kernel.numpy()
    model.load_weights(tmp_path / "m.weights.h5")
    assert not np.array_equal(kernel, model.get_layer("dense").kernel.numpy())


def test_20_a_run_folder_does_not(tmp_path):
    from thaw.runs.folder import verify_run, write_run

    tables = {"history": {"epoch": [1]}}
    write_run(tmp_path / "run", net(), ["a", "b"], plan="", tables=tables, metrics={})
    verify_run(tmp_path / "run")
    file = tmp_path / "run" / "model.keras"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"model\.keras"):
        verify_run(tmp_path / "run")


# 23. One corrupt picture kills the epoch without a name.


def test_23_a_corrupt_picture_is_set_aside_by_name(tmp_path):
    from PIL import Image

    from thaw.data.images import load_images

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST)
            picture.save(tmp_path / "photos" / name / f"{i}.{'webp' if i == 3 else 'png'}")
    bad = tmp_path / "photos" / "cat" / "5.png"
    bad.write_bytes(bad.read_bytes()[:60])
    got = load_images(tmp_path / "photos", image_size=16, cache_dir=tmp_path / "cache")
    assert [Path(bad.path).name for bad in got.rejected] == ["5.png"]
    used = [Path(file).name for files in got.files.values() for file in files]
    assert len(used) == 19
    assert "3.webp" in used  # which Keras leaves out, silently
