"""Both runtimes say the same; which is taken, why, and that nothing calls home."""

import importlib.util
import logging
import math
import os

import numpy as np
import pytest

from thaw.features.inference import InferenceRunner, conversion_pays, inference_runner, shortest_seconds

RNG = np.random.default_rng(0)
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def dense(size=3, units=2):
    import keras

    return keras.Sequential([keras.Input((size,)), keras.layers.Dense(units, "relu")])


def convolutions():
    """Preprocessing, strides, BatchNorm and a skip; two outputs, of which one is an input."""
    import keras

    layers = keras.layers
    pixels = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])(layers.Rescaling(1 / 127.5, -1)(pixels))
    x = layers.BatchNormalization(moving_mean_initializer="ones")(layers.Conv2D(4, 3, 2, "same")(x))
    inner = keras.Sequential([keras.Input((4, 4, 4)), layers.DepthwiseConv2D(3, padding="same"), layers.ReLU(6)])
    return keras.Model(pixels, [x + inner(x), pixels]), RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)


def attention():
    """Named inputs of three types and a mask; named outputs, of which one is whole numbers and one twice there."""
    import keras

    layers = keras.layers
    words, mask = keras.Input((6,), dtype="int64", name="words"), keras.Input((6,), dtype="bool", name="mask")
    scale, unused = keras.Input((1, 1), name="a_scale"), keras.Input((2,), name="unused")
    x = layers.Embedding(11, 8)(words) * scale
    x = x + layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask[:, None])
    x = layers.Dropout(0.5)(layers.LayerNormalization()(x))
    outputs = {"z": x, "signs": keras.ops.cast(x[..., 0] > 0, "int32"), "again": x, "mask": mask}
    model = keras.Model({"words": words, "mask": mask, "a_scale": scale, "unused": unused}, outputs)
    given = {"words": RNG.integers(0, 11, (4, 6)), "mask": RNG.random((4, 6)) < 0.5}
    return model, given | {"a_scale": np.full((4, 1, 1), 2.0), "unused": np.zeros((4, 2), np.float32)}


def without_weights():
    import keras

    return keras.Sequential([keras.Input((5,)), keras.layers.Rescaling(3.0, 1.0)]), RNG.normal(size=(4, 5))


def two_inputs():
    import keras

    first, second = keras.Input((2,)), keras.Input((2,))
    x = keras.layers.Subtract()([first, second])
    return keras.Model((first, second), x), (np.ones((4, 2), np.float32), np.arange(8, dtype=np.float32).reshape(4, 2))


def unwilling(kind):
    """A model of which OpenVINO must keep away, for each reason."""
    import keras
    import tensorflow as tf

    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.uniform(tf.shape(x), 1, 2)

    class Counts(keras.layers.Layer):
        def build(self, _):
            self.calls = self.add_weight(name="calls", trainable=False, dtype="int32", initializer="zeros")

        def call(self, x):
            self.calls.assign_add(1)
            return x

    class Bits(keras.layers.Layer):
        def call(self, x):
            return tf.bitcast(x, tf.int32)

    class Finds(keras.layers.Layer):
        def call(self, x):
            return tf.gather_nd(x, tf.cast(x[:, :1, None], tf.int32), batch_dims=1)

    layers = {
        "noise": Noise,
        "counts": Counts,
        "bits": Bits,
        "finds": Finds,
        "half": lambda: keras.layers.Dense(2, dtype="mixed_bfloat16"),
        "double": lambda: keras.layers.Dense(2, dtype="float64"),
    }
    return keras.Sequential([keras.Input((3,)), layers[kind]()])


def test_a_row_has_the_same_bits_in_a_short_batch():
    model, x = convolutions()
    run = inference_runner(model, 4, runtime="tensorflow")
    full, short = run(x), run(x[1:3])
    assert run.name == "tensorflow"
    assert run.note == ""
    for all_rows, two in zip(full, short, strict=True):
        assert np.array_equal(all_rows[1:3], two)
    assert np.array_equal(full[1], x)
    assert full[0] == pytest.approx(model.predict(x, verbose=0)[0], abs=1e-5)


def test_batches_of_any_size_are_traced_once():
    import keras
    import tensorflow as tf

    traces = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x * 2

    model = keras.Sequential([keras.Input((2,)), Counting()])
    traces.clear()
    run = inference_runner(model, 3, runtime="tensorflow")
    for x in (np.ones((1, 2)), tf.ones((3, 2), tf.float64), np.ones((2, 2))):
        assert np.array_equal(run(x)[0], np.full(x.shape, 2.0))
    assert traces == [(3, 2)]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((5, 3)), "A batch has 5 rows; expected 1 to 4"),
        (np.ones((0, 3)), "A batch has 0 rows; expected 1 to 4"),
        (np.ones((4, 2)), r"has inputs float32 \(4, 2\); the first one had float32 \(4, 3\)"),
        ((np.ones((4, 3)), np.ones((3, 3))), "The inputs are 2 arrays; .* takes 1"),
        (np.float32(1), "expected as many rows in each"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(x, message):
    run = inference_runner(dense(), 4, runtime="tensorflow")
    run(np.ones((2, 3)))
    with pytest.raises(ValueError, match=message):
        run(x)


def test_inputs_of_different_length_are_named():
    import keras
    from keras import layers

    two = [keras.Input((3,)), keras.Input((3,))]
    run = inference_runner(keras.Model(two, layers.Add()(two)), 4, runtime="tensorflow")
    with pytest.raises(ValueError, match="expected as many rows in each"):
        run([np.ones((4, 3)), np.ones((3, 3))])


def test_a_batch_of_another_type_is_cast_to_the_type_of_the_input():
    run = inference_runner(dense(), 4, runtime="tensorflow")
    x = np.random.default_rng(0).normal(size=(4, 3)) * 9
    run(x.astype(int))
    np.testing.assert_array_equal(run(x)[0], run(x.astype("float32"))[0])


def test_wrong_arguments(monkeypatch):
    with pytest.raises(ValueError, match="runtime='gpu'; expected auto, tensorflow or openvino"):
        inference_runner(dense(), 4, runtime="gpu")
    with pytest.raises(ValueError, match="batch_size=0; expected a whole number from 1"):
        inference_runner(dense(), 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras-thaw\[cpu\]"'):
        inference_runner(dense(), 4, runtime="openvino")
    run = inference_runner(dense(), 4)
    assert run(np.ones((4, 3)))[0].shape == (4, 2)
    assert (run.name, run.note) == ("tensorflow", "")


@needs_openvino
@pytest.mark.parametrize("made", [convolutions, attention, without_weights, two_inputs])
def test_both_runtimes_say_the_same(made):
    import keras

    model, x = made()
    ours, theirs = inference_runner(model, 4, runtime="tensorflow"), inference_runner(model, 4, runtime="openvino")
    for rows in (4, 3):
        batch = keras.tree.map_structure(lambda a: a[:rows], x)  # noqa: B023
        for a, b in zip(ours(batch), theirs(batch), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert b.astype(float) == pytest.approx(a.astype(float), rel=1e-4, abs=1e-5)
    assert (ours.name, theirs.name) == ("tensorflow", "openvino")


@needs_openvino
def test_what_was_given_out_stays_as_it_is():
    run = inference_runner(dense(), 2, runtime="openvino")
    first = run(np.ones((2, 3)))[0]
    before = first.copy()
    run(np.full((2, 3), 9.0))
    assert np.array_equal(first, before)


@needs_openvino
def test_openvino_does_not_compute_in_half_precision():
    model, x = dense(500, 300), RNG.normal(size=(8, 500)).astype(np.float32)
    found = inference_runner(model, 8, runtime="openvino")(x)[0]
    kernel = model.layers[0].kernel.numpy().astype(np.float64)
    expected = np.maximum(x.astype(np.float64) @ kernel, 0)
    assert np.abs(found - expected).max() / expected.max() < 1e-5  # with bfloat16 it is 1e-3


@needs_openvino
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("noise", "the model draws random numbers"),
        ("counts", "changes its own variables"),
        ("bits", "No conversion rule found for operations: Bitcast"),
        ("finds", "cannot be checked that tables"),
        ("half", "half precision"),
        ("double", "double precision"),
    ],
)
def test_inference_runner_keeps_a_model_that_openvino_cannot_do_in_tensorflow(kind, why):
    model, x = unwilling(kind), np.ones((2, 3), np.float32)
    run = inference_runner(model, 2)
    expected = model(x, training=False).numpy()
    calls = [v.numpy() for v in model.non_trainable_variables]
    found = run(x)[0]
    assert found.dtype == expected.dtype
    if kind != "noise":
        assert np.array_equal(found, expected)
    assert run.name == "tensorflow"
    assert run.note.startswith("TensorFlow is used: ")
    assert why in run.note
    assert run.note.endswith(".")
    if kind == "counts":  # called once for one batch
        assert model.non_trainable_variables[0].numpy() == calls[0] + 1
    with pytest.raises(ValueError, match="OpenVINO cannot be used"):
        inference_runner(model, 2, runtime="openvino")(x)


@needs_openvino
@pytest.mark.parametrize(("min_speedup", "name"), [(0, "openvino"), (np.inf, "tensorflow")])
def test_inference_runner_takes_what_is_faster(min_speedup, name):
    """OpenVINO may take as long as it likes; or it would have to be infinitely fast."""
    run = InferenceRunner(dense(), 4, "auto", min_speedup=min_speedup)
    assert run(np.ones((4, 3), np.float32))[0].shape == (4, 2)
    assert run.name == name
    assert ("ms for a batch and TensorFlow" in run.note) == (name == "tensorflow")


@pytest.mark.parametrize(
    ("examples", "operations", "pays"),
    [(256, 1e9, True), (255, math.inf, False), (1000, 1e8, True), (1000, 0.99e8, False), (256, math.inf, True)],
)
def test_conversion_pays_with_enough_examples_and_operations(examples, operations, pays):
    assert conversion_pays(examples, operations) == pays


def test_inference_runner_looks_for_openvino_only_where_it_may_pay(monkeypatch):
    import tensorflow as tf

    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", asked.append)  # which also says that nothing is installed
    for examples, expected in ((300, 0), (10**12, 1), (None, 2)):  # some milliseconds of work; a minute; unknown
        run = inference_runner(dense(), 4, examples=examples)
        assert run(np.ones((4, 3)))[0].shape == (4, 2)
        assert (run.name, run.note) == ("tensorflow", "")
        assert asked == ["openvino"] * expected
    # Where it is installed and there is a GPU, it is not even tried: there would be a note.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind] if kind == "GPU" else [])
    run = inference_runner(unwilling("double"), 4)
    run(np.ones((4, 3)))
    assert (run.name, run.note) == ("tensorflow", "")


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [([2], [3], (2, 3)), ([9, 8, 2], [3, 3, 3], (2, 3)), ([9, 9, 8], [3, 9, 3], (8, 3)), ([4], [3], (4, 3))],
)
def test_shortest_seconds_measures_again_where_openvino_seems_slow(own, other, expected):
    """OpenVINO's seconds, TensorFlow's, and what counts of them; 1.5 times as slow is not clearly slower."""
    own, other = iter(own), iter(other)
    assert shortest_seconds(own.__next__, other.__next__) == expected
    assert (list(own), list(other)) == ([], [])


@needs_openvino
def test_whole_numbers_of_64_bits():
    import keras

    inputs = keras.Input((1,), dtype="int64")
    model = keras.Model(inputs, keras.ops.add(inputs, keras.ops.cast(inputs, "int64")))
    run = inference_runner(model, 2, runtime="openvino")
    for value in (3, 2**40, -(2**40), -3):
        assert run(np.array([[value]]))[0].tolist() == [[2 * value]]


@needs_openvino
def test_what_is_not_a_number_stays_so():
    model = dense()
    model.set_weights([np.array([[1, -1]] * 3), np.zeros(2)])
    ours, theirs = (inference_runner(model, 2, runtime=runtime) for runtime in ("tensorflow", "openvino"))
    theirs(np.ones((2, 3)))
    for value in (np.nan, np.inf, -np.inf):
        x = np.array([[1, 2, value], [1, 2, 3]])
        assert np.array_equal(theirs(x)[0], ours(x)[0], equal_nan=True)


@needs_openvino
def test_a_place_outside_of_a_table_is_an_error_in_both():
    import keras
    import tensorflow as tf

    inputs = keras.Input((2,), dtype="int32")
    tables = [keras.layers.Embedding(rows, 1, embeddings_initializer="ones") for rows in (100, 3)]
    model = keras.Model(inputs, keras.layers.Concatenate()([table(inputs) for table in tables]))
    for runtime in ("tensorflow", "openvino"):
        run = inference_runner(model, 1, runtime=runtime)
        assert run(np.array([[0, 2]], np.int32))[0].tolist() == [[[1, 1], [1, 1]]]
        for place in (3, -4):  # inside of the larger table
            with pytest.raises(tf.errors.InvalidArgumentError, match=r"not in \[0, 3\)"):
                run(np.array([[0, place]], np.int32))
        assert run.name == runtime


@needs_openvino
def test_conversion_is_quiet(capfd):
    inference_runner(dense(), 2, runtime="tensorflow")(np.ones((2, 3)))
    log = logging.getLogger()
    before = log.level, [*log.filters], [*log.handlers]
    capfd.readouterr()
    inference_runner(dense(), 2, runtime="openvino")(np.ones((2, 3)))
    assert (log.level, [*log.filters], [*log.handlers]) == before
    assert capfd.readouterr() == ("", "")


CONVERT = """
import os, socket
def refuse(*args, **kwargs):
    open("reached", "a").write(str(args))
    raise OSError("there is no network here")
socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = lambda self, *args: refuse(*args)
{first}
import keras, logging, numpy as np
from thaw.features.inference import inference_runner
logging.basicConfig()
handlers = [*logging.root.handlers]
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Conv2D(8, 3), keras.layers.Flatten()]
model = keras.Sequential([keras.Input(x.shape[1:]), *layers, keras.layers.Dense(9)])
run = inference_runner(model, 4, runtime="openvino")
print(run.name, run(x)[0].tobytes().hex())
assert handlers and logging.root.handlers == handlers
"""
# What a plain import sends at once; without it the test would show nothing.
IMPORT_FIRST = """
import time
import openvino
for _ in range(100):
    if os.path.exists("reached"):
        break
    time.sleep(0.1)
else:
    raise AssertionError("the import of OpenVINO sends no report")
os.remove("reached")
"""


def converted_elsewhere(python, folder, first=""):
    """Run a conversion in another process, with a home of its own and no network."""
    folder.mkdir()
    env = os.environ | {"HOME": str(folder)}
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where OpenVINO sends no reports
        env.pop(name, None)
    done = python("-c", CONVERT.format(first=first), folder=folder, env=env)
    assert done.returncode == 0, done.stderr
    files = [path.name for path in (folder / "intel").rglob("*")]
    return done.stdout, (folder / "reached").exists(), files


@needs_openvino
def test_no_usage_report_is_sent_and_two_processes_give_the_same_bits(tmp_path, python):
    pytest.importorskip("openvino_telemetry")
    output, reached, files = converted_elsewhere(python, tmp_path / "alone")
    assert output.startswith("openvino ")
    assert (reached, files) == (False, [])
    # Where somebody imports it with its reports on, it sends one at once; the conversion adds none.
    again, reached, _ = converted_elsewhere(python, tmp_path / "after", IMPORT_FIRST)
    assert again == output
    assert not reached
