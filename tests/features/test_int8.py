"""An int8 prefix is calibrated once and kept, judged by decisions, and never taken unasked."""

import importlib.util
import os
import re
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features.cache_folder import list_cache
from thaw.features.inference import inference_runner
from thaw.features.int8 import CannotQuantize, Int8Judgement, judge, judge_runner, quantize
from thaw.features.precompute import precompute
from thaw.features.store import FeatureCache
from thaw.finetune import fine_tune
from thaw.plan import Phase, Plan

RNG = np.random.default_rng(0)
is_installed = all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))
needs_nncf = pytest.mark.skipif(not is_installed, reason="NNCF is not installed")
USED = "int8 is used: of .* decisions of a linear readout on .* examples held out"


def net(seed=0):
    keras.utils.set_random_seed(seed)
    entry = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(entry)
    x = layers.DepthwiseConv2D(3, activation="relu")(x)
    return keras.Model(entry, layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1, activation="relu")(x)))


def pictures(n=440, seed=0, **more):
    """Two classes of noise, one of them brighter."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return Dataset(x=(rng.normal(size=(n, 12, 12, 3)) + 0.3 * y[:, None, None, None]).astype("float32"), y=y, **more)


def files(kind):
    return sorted(FeatureCache().folder.glob(f"*.{kind}"))


def runtimes():
    return sorted({row["about"]["runtime"] for row in list_cache() if row["rows"]})


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# Judging


def test_judge_counts_the_decisions_that_change():
    y = (np.arange(200) % 4 == 0).astype(int)
    x = (2.0 * y - 1)[:, None] * np.array([[1.0, 2.0]])
    assert judge(x, x, y) == Int8Judgement(200, 0, 200, 1.0)
    assert judge(-x, x, y) == Int8Judgement(200, 200, 200, -1.0)
    assert judge(0 * x, x, y).different == 50  # always the more frequent class
    assert judge(0 * x, x, np.eye(2)[y]) == judge(0 * x, x, y)
    assert judge(0 * x, x, y + 5).different == 50  # class numbers need not begin at 0


def test_judge_equals_scikit_learn():
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    from thaw.features.ridge import RIDGE_PENALTIES

    y = RNG.integers(0, 3, 120)
    x = RNG.normal(size=(120, 6)) + 1.5 * np.eye(3, 6)[y]
    other = x + RNG.normal(size=x.shape) * 0.4
    fold, order = np.empty(120, int), np.argsort(y, kind="stable")
    fold[order] = np.arange(120) % 5
    different = 0
    for number in range(5):
        fitted, held = fold != number, fold == number
        decided = []
        for features in (x, other):
            scaler = StandardScaler().fit(features[fitted])
            rows = scaler.transform(features[fitted])
            penalties = RIDGE_PENALTIES * np.linalg.eigvalsh(rows.T @ rows).mean()
            readout = RidgeCV(penalties).fit(rows, np.eye(3)[y[fitted]])
            decided.append(readout.predict(scaler.transform(other[held])).argmax(1))
        different += (decided[0] != decided[1]).sum()
    judgement = judge(x, other, y)
    assert 0 < different < 60
    assert judgement.different == different
    assert judgement.cosine == round(cosines(x, other).mean(), 4)


def test_judge_decides_whether_numbers_are_above_their_mean():
    x = RNG.normal(size=(150, 2))
    y = np.stack([3 * x[:, 0], x[:, 1]], axis=1)
    mean = y.mean(axis=0)
    judgement = judge(-x, x, y)
    assert (judgement.decisions, judgement.different) == (300, ((y > mean) != (-y > mean)).sum())
    assert judge(x, x, y).different == 0
    assert judge(x, x, y[:, 0]).decisions == 150


@pytest.mark.parametrize(("different", "accepted"), [(0, True), (10, True), (11, False)])
def test_a_tenth_of_the_decisions_may_differ(different, accepted):
    judgement = Int8Judgement(100, different, 100, 0.99)
    assert judgement.is_accepted is accepted
    assert f"{different} ({different}.0 %) differ" in str(judgement)


class Examples:
    """Stands for the rows of a dataset."""

    def __init__(self, x):
        self.x, self.read = x, 0

    def batches(self, batch_size, view, rows):
        self.read += len(rows)
        for start in range(0, len(rows), batch_size):
            yield self.x[rows[start : start + batch_size]]


class Runner:
    batch_size = 50

    def __init__(self, compute):
        self.compute = compute

    def __call__(self, x):
        return [self.compute(x)]


@pytest.mark.parametrize(("wrong", "read"), [(0.0, 256), (0.11, 1000), (0.5, 256)])
def test_more_examples_are_judged_where_few_cannot_tell(wrong, read, tmp_path):
    y = np.arange(1000) % 2
    other = np.arange(1000) % 100 < 100 * wrong  # a second kind, in a column that int8 turns around
    x = (2.0 * y - 1)[:, None] * np.stack([~other, other], axis=1)
    part, rows = Examples(x), np.random.default_rng(0).permutation(1000)
    exact = Runner(lambda x: x)
    options = {"outputs": 1, "part": part, "rows": rows, "y": y[rows], "file": tmp_path / "kept.judged"}
    judgement = judge_runner(Runner(lambda x: x * [1.0, -1.0]), lambda: exact, **options)
    assert part.read == judgement.examples == read
    assert judgement.different == other[rows[:read]].sum()
    assert judge_runner(None, None, **options) == judgement  # the file is read, and nothing computed


# The quantized network


@needs_nncf
def test_a_quantized_network_is_calibrated_once(tmp_path):
    model, x, notes = net(), pictures(64).x, []
    file = tmp_path / "net.quantized"
    first = quantize(model, lambda: [x[:32], x[32:50]], 32, file, notes)
    again = quantize(model, None, 32, file, notes)  # no examples are needed
    assert first.identity == again.identity
    ours, theirs = (inference_runner(model, 32, runtime="int8", quantized=q) for q in (first, again))
    exact = inference_runner(model, 32, runtime="tensorflow")
    assert (ours.name, ours.identity) == ("int8", f"int8 {first.identity}")
    for rows in (x[:32], x[32:43]):
        found = ours(rows)[0]
        np.testing.assert_array_equal(found, theirs(rows)[0])
        assert not np.array_equal(found, exact(rows)[0])
        assert cosines(found, exact(rows)[0]).min() > 0.99
    assert notes == []
    other = quantize(model, lambda: [3 * x[:32]], 32, tmp_path / "other.quantized", notes)
    assert other.identity != first.identity  # other ranges are another network


@needs_nncf
def test_what_int8_would_change_is_computed_in_tensorflow(tmp_path):
    model, x = net(), pictures(32).x.copy()
    quantized = quantize(model, lambda: [x], 32, tmp_path / "net.quantized", [])
    x[3] = np.inf
    run = inference_runner(model, 32, runtime="int8", quantized=quantized)
    np.testing.assert_array_equal(run(x)[0], inference_runner(model, 32, runtime="tensorflow")(x)[0])


@needs_nncf
def test_a_model_of_several_inputs_and_outputs(tmp_path):
    words, scale, unused = keras.Input((6,), dtype="int64"), keras.Input((8,)), keras.Input((2,))
    x = layers.Embedding(11, 8)(words)
    model = keras.Model([words, scale, unused], [layers.Dense(5)(x), layers.Dense(4)(scale), scale])
    given = [RNG.integers(0, 11, (16, 6)), RNG.normal(size=(16, 8)).astype("float32"), np.zeros((16, 2), "float32")]
    file = tmp_path / "net.quantized"
    quantize(model, lambda: [given], 16, file, [])
    run = inference_runner(model, 16, runtime="int8", quantized=quantize(model, None, 16, file, []))
    exact = inference_runner(model, 16, runtime="tensorflow")(given)
    for found, expected in zip(run(given), exact, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_array_equal(run(given)[2], given[1])
    given[0][0, 0] = 11  # outside of the table
    with pytest.raises(Exception, match="indices"):
        run(given)


@needs_nncf
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b.replace(b"Convolution", b"convolution")])
def test_a_damaged_network_is_calibrated_again(tmp_path, damage):
    model, x, notes = net(), pictures(32).x, []
    file = tmp_path / "net.quantized"
    first = quantize(model, lambda: [x], 32, file, notes)
    whole = file.read_bytes()
    assert damage(whole) != whole
    file.write_bytes(damage(whole))
    assert quantize(model, lambda: [x], 32, file, notes).identity == first.identity
    assert len(notes) == 1
    assert "was damaged and is calibrated again" in notes[0]
    assert quantize(model, None, 32, file, notes).identity == first.identity
    assert os.listdir(tmp_path) == ["net.quantized"]


@needs_nncf
def test_what_cannot_be_quantized_is_said(tmp_path):
    plain = keras.Sequential([keras.Input((5,)), layers.Rescaling(3.0)])
    with pytest.raises(CannotQuantize, match="no convolutions or matrix products"):
        quantize(plain, lambda: [np.ones((4, 5), "float32")], 4, tmp_path / "a.quantized", [])
    draws = keras.Sequential([keras.Input((5,)), layers.Dense(3), Draws()])
    with pytest.raises(CannotQuantize, match="draws random numbers"):
        quantize(draws, lambda: [np.ones((4, 5), "float32")], 4, tmp_path / "b.quantized", [])
    assert os.listdir(tmp_path) == []


class Draws(layers.Layer):
    def call(self, x):
        return x + keras.random.normal((3,), seed=1)


def test_without_nncf_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=re.escape('pip install "keras-thaw[int8]"')):
        precompute(net(), pictures(), runtime="int8")


RUN = """
import os, socket, sys
def refuse(*args, **kwargs):
    open("reached", "a").write(str(args))
    raise OSError("there is no network here")
socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = lambda self, *args: refuse(*args)
{first}
import logging, warnings
import keras, numpy as np
from thaw import precompute
logging.basicConfig()
before = logging.getLoggerClass(), [*logging.root.handlers], dict(os.environ)
keras.utils.set_random_seed(0)
y = np.arange(440) % 2
x = (np.random.default_rng(0).normal(size=(440, 12, 12, 3)) + 0.3 * y[:, None, None, None]).astype("float32")
net = [keras.layers.Conv2D(8, 3, 2, activation="relu"), keras.layers.Conv2D(16, 3), keras.layers.Flatten()]
warnings.simplefilter("ignore")
features = precompute(keras.Sequential([keras.Input(x.shape[1:]), *net]), x[:{rows}], y[:{rows}], runtime="int8")
assert before == (logging.getLoggerClass(), [*logging.root.handlers], dict(os.environ))
print("nncf" in sys.modules, np.asarray(features.x)[:400].tobytes().hex())
"""


@needs_nncf
def test_a_later_process_needs_no_nncf_and_has_the_same_bits(tmp_path, python):
    env = os.environ | {"HOME": str(tmp_path), "THAW_CACHE": str(tmp_path / "cache")}
    for name in ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI"):  # where no reports are sent
        env.pop(name, None)

    def run(rows, first=""):
        done = python("-c", RUN.format(rows=rows, first=first), folder=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    calibrated = run(400)
    assert calibrated.startswith("True ")  # and nothing else was printed
    assert not (tmp_path / "reached").exists()
    for table in (tmp_path / "cache" / "activations").glob("*/*/shard.json"):
        table.unlink()  # the features have to be computed again
    later = run(400, first="sys.modules['nncf'] = sys.modules['networkx'] = None")
    assert later.split()[1] == calibrated.split()[1]
    later = run(440, first="sys.modules['nncf'] = None")  # other data, which are judged anew
    assert later.split()[1] == calibrated.split()[1]
    assert len(list((tmp_path / "cache" / "activations").glob("*.quantized"))) == 1


# Where it is used


@needs_nncf
def test_precompute_in_int8_says_how_it_was_judged_and_caches_under_its_own_name():
    data = pictures()
    exact = np.asarray(precompute(net(), data, runtime="openvino").x)
    with pytest.warns(UserWarning, match=USED):
        found = np.asarray(precompute(net(), data, runtime="int8").x)
    assert runtimes() == ["int8", "openvino"]
    assert not np.array_equal(found, exact)
    assert cosines(found, exact).min() > 0.99
    (network,), (judged,) = files("quantized"), files("judged")
    before = network.stat().st_mtime_ns, judged.stat().st_mtime_ns
    with pytest.warns(UserWarning, match=USED):
        np.testing.assert_array_equal(precompute(net(), data, runtime="int8").x, found)
    assert before == (network.stat().st_mtime_ns, judged.stat().st_mtime_ns)
    np.testing.assert_array_equal(precompute(net(), data, runtime="openvino").x, exact)


@needs_nncf
def test_int8_is_refused_where_it_decides_otherwise_than_float32():
    """One column is so large that the others, which decide, are lost between two whole numbers."""
    keras.utils.set_random_seed(0)
    x = RNG.normal(size=(600, 8)).astype("float32")
    y = (x[:, 1] > 0).astype(int)
    x[:, 0] *= 3000
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, kernel_initializer="identity")])
    with pytest.warns(UserWarning, match="int8 is not used, but float32: of .* decisions .* differ"):
        found = precompute(model, x, y, runtime="int8")
    np.testing.assert_array_equal(found.x, precompute(model, x, y).x)
    assert "int8" not in runtimes()
    (judged,) = files("judged")
    before = judged.stat().st_mtime_ns
    with pytest.warns(UserWarning, match="int8 is not used"):
        precompute(model, x, y, runtime="int8")
    assert judged.stat().st_mtime_ns == before  # what was refused is not judged again


class Own(layers.Layer):
    def call(self, x):
        return 2 * x


def own(body):
    return keras.Model(body.input, Own()(body.output))


@pytest.mark.parametrize(
    ("model", "data", "reason"),
    [
        (net, lambda: pictures(180), "90 examples are left to judge it by"),
        (net, lambda: pictures().replace(y=None), "no single array of targets"),
        (lambda: own(net()), pictures, "code of your own"),
    ],
)
def test_what_cannot_be_judged_is_computed_in_float32(model, data, reason):
    model, data = model(), data()
    with pytest.warns(UserWarning, match=f"int8 is not used, but float32: .*{reason}"):
        found = precompute(model, data, runtime="int8")
    np.testing.assert_array_equal(found.x, precompute(model, data).x)
    assert files("quantized") == []


def test_int8_is_never_chosen():
    pytest.importorskip("openvino")
    model = keras.Sequential([keras.Input((1024,)), layers.Dense(4096), layers.Dense(2)])
    x = RNG.normal(size=(256, 1024)).astype("float32")
    precompute(model, x, batch_size=128)
    (chosen,) = files("runtime")
    chosen.write_text("int8")
    precompute(model, x, batch_size=128)
    assert not set(runtimes()) - {"tensorflow", "openvino"}


def test_an_unknown_runtime_is_refused():
    expected = "runtime='gpu'; expected one of auto, tensorflow, openvino, int8"
    with pytest.raises(ValueError, match=expected):
        precompute(net(), pictures(), runtime="gpu")
    with pytest.raises(ValueError, match=expected):
        fine_tune(headed(), "probe", pictures(8), runtime="gpu")
    with pytest.raises(ValueError, match="int8 with a quantized model"):
        inference_runner(net(), 4, runtime="int8")


def headed():
    body = net()
    model = keras.Model(body.input, layers.Dense(2, "softmax", name="classes")(body.output))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


PLAN = Plan(
    [
        Phase(name="head", epochs=2, train="head", learning_rate=1e-2, views=1),
        Phase(name="top", epochs=1, train=1, learning_rate=1e-3, views=1),
    ]
)


@needs_nncf
def test_fine_tune_in_int8_calibrates_once_for_all_phases(tmp_path):
    model, data, checks = headed(), pictures(), pictures(150, 1)
    options = {"validation_data": checks, "seed": 0, "verbose": 0, "runtime": "int8"}
    history = fine_tune(model, PLAN, data, **options)
    assert sum("OpenVINO with 8-bit integers" in note for note in history.notes) == 2
    (note,) = [note for note in history.notes if "int8 is used" in note]
    assert "on 150 examples held out" in note
    assert "The finished model computes in float32." in note
    assert len(files("quantized")) == len(files("judged")) == 1
    assert runtimes() == ["int8"]
    assert sum(row["rows"] for row in list_cache()) == 2 * 590  # two phases in one pass
    again = headed()
    fine_tune(again, PLAN, data, **options)
    for ours, theirs in zip(model.weights, again.weights):
        np.testing.assert_array_equal(ours, theirs)
    exact = headed()
    fine_tune(exact, PLAN, data, **options | {"runtime": "openvino"})
    assert not np.array_equal(exact.weights[-1], model.weights[-1])
    np.testing.assert_allclose(exact.weights[-1], model.weights[-1], atol=0.05)


@needs_nncf
def test_a_run_is_resumed_in_its_own_runtime(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:  # the first one is saved
                raise KeyboardInterrupt

    options = {"seed": 0, "verbose": 0, "backup_dir": tmp_path / "run", "validation_data": pictures(150, 1)}
    whole = headed()
    fine_tune(whole, PLAN, pictures(), **options | {"backup_dir": None, "runtime": "int8"})
    with pytest.raises(KeyboardInterrupt):
        fine_tune(headed(), PLAN, pictures(), callbacks=[Stop()], runtime="int8", **options)
    with pytest.raises(ValueError, match="another plan, model, data or seed"):
        fine_tune(headed(), PLAN, pictures(), **options)
    resumed = headed()
    fine_tune(resumed, PLAN, pictures(), runtime="int8", **options)
    for ours, theirs in zip(resumed.weights, whole.weights):
        np.testing.assert_array_equal(ours, theirs)
