"""Everything that a result depends on changes the identity, and nothing else does."""

import os
import runpy
import subprocess
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw.data.dataset import Dataset
from thaw.plan import Plan
from thaw.training.checkpoint import _bytes, fingerprint_run


def identity(
    model_seed=0,
    optimizer=None,
    loss="mse",
    plan="probe",
    n=4,
    label=0,
    weight=None,
    groups=None,
    batch_size=8,
    seed=0,
    dtype=None,
):
    keras.utils.set_random_seed(model_seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype=dtype)])
    model.compile(optimizer or keras.optimizers.Adam(), loss)
    y = np.zeros(n)
    y[0] = label
    examples = Dataset(x=np.arange(2.0 * n).reshape(n, 2), y=y, sample_weight=weight, groups=groups)
    return fingerprint_run(model, Plan.named(plan), (examples, None), batch_size, seed)


def test_the_same_again():
    assert identity() == identity()
    assert len(identity()) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"model_seed": 1},
        {"optimizer": keras.optimizers.Adam(beta_1=0.8)},
        {"optimizer": keras.optimizers.SGD()},
        {"loss": "mae"},
        {"loss": keras.losses.Huber(delta=2.0)},
        {"plan": "full"},
        {"n": 5},
        {"label": 1},
        {"weight": np.ones(4)},
        {"groups": np.array([0, 0, 1, 1])},
        {"batch_size": 4},
        {"seed": 1},
        {"dtype": "mixed_bfloat16"},
    ],
)
def test_what_matters(changed):
    assert identity(**changed) != identity()


def test_the_metric_that_decides_matters():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    found = {
        fingerprint_run(model, Plan.named("probe"), (), 8, 0, (monitor, mode))
        for monitor, mode in (("val_loss", "min"), ("val_loss", "max"), ("val_accuracy", "max"))
    }
    assert len(found) == 3


def test_settings_inside_a_loss_scale_optimizer_matter():
    def scaled(rate):
        return identity(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(beta_1=rate)))

    assert scaled(0.9) == scaled(0.9)
    assert scaled(0.9) != scaled(0.5)


OF_FUNCTIONS = """
import functools, keras, numpy as np
from thaw.plan import Plan
from thaw.training.checkpoint import fingerprint_run

def bend(y, p, by=1):
    return keras.ops.mean((y - p) ** 2) * by

class Own(keras.losses.Loss):
    def __init__(self, function, **more):
        super().__init__(**more)
        self.function = function
    def call(self, y, p):
        return self.function(y, p)
    def get_config(self):
        return super().get_config() | {"function": self.function, "all": [self.function, object()]}

class Serialized(Own):
    def get_config(self):
        return super().get_config() | {"function": keras.saving.serialize_keras_object(self.function), "all": 0}

for loss, metrics in (
    ("mse", [bend]),
    ("mse", [lambda y, p: bend(y, p)]),
    ("mse", [keras.metrics.MeanMetricWrapper(bend, name="mean")]),
    (bend, ["mae"]),
    (lambda y, p: bend(y, p), ["mae"]),
    (Own(bend), []),
    (Own(functools.partial(bend, by=2)), []),
    (Own(functools.partial(bend, by=3)), []),
    (Serialized(lambda y, p: bend(y, p)), []),
):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", loss, metrics=metrics)
    print(fingerprint_run(model, Plan.named("probe"), (), 8, 0))
"""


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_fingerprint_run_of_functions_is_the_same_in_every_process(tmp_path, capsys):
    for name in ("here", "there"):
        (tmp_path / f"{name}.py").write_text(OF_FUNCTIONS)
    runpy.run_path(str(tmp_path / "here.py"), run_name="__main__")
    here = capsys.readouterr().out.split()
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another order of hashes, and other addresses
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(tmp_path / "there.py")], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == here
    assert len(set(here)) == len(here) == 9


def of_labels(y):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for weight in model.weights:
        weight.assign(keras.ops.zeros_like(weight))
    return fingerprint_run(model, Plan.named("probe"), (Dataset(x=np.zeros((len(y), 2)), y=y),), 8, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["a', 'b", "c"], ["a", "b', 'c"]),
        (["ä", "b"], ["a", "b"]),
        ([b"a", b""], [b"", b"a"]),
    ],
)
def test_labels_that_are_texts(one, other):
    one, other = (np.array(values, object) for values in (one, other))
    assert of_labels(one) == of_labels(one.copy())
    assert of_labels(one) != of_labels(other)


def test_arrays_inside_an_array():
    """NumPy prints what is long with dots in the middle."""

    def ragged(middle):
        values = np.empty(2, object)
        values[:] = [np.zeros(3), np.zeros(2000)]
        values[1][1000] = middle
        return values

    assert _bytes(ragged(0)) == _bytes(ragged(0))
    assert _bytes(ragged(0)) != _bytes(ragged(1))
