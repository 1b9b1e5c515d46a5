"""A run that is killed goes on to the same bits."""

import errno
import json
import os

import numpy as np
import pytest

# Everything that has a state: shuffling, augmentation, dropout, moments and a moving average, counters of callbacks.
RUN = """
import hashlib, json, os, signal, sys
import numpy as np
from sklearn.datasets import load_digits
import keras
import tensorflow as tf
from keras import layers
from thaw import Dataset, Phase, Plan, TuneCallback, attach_head, fine_tune

folder, moments = sys.argv[1] or None, sys.argv[2:]
for moment in moments:  # TensorFlow is imported and has done nothing yet: a child is as good as a new process
    child = os.fork()
    if child == 0:
        break
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (moment, status)
else:
    moment = ""
kind, _, where = moment.partition(":")
keras.utils.set_random_seed(3)
tf.config.experimental.enable_op_determinism()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Kill(TuneCallback):
    phases = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if kind == "batch" and where == f"{self.epoch}.{batch}":
            die()

    def on_phase_end(self, phase, changes, notes):
        if kind == "after" and where == phase.name:
            die()

    def on_precompute(self, done, total):
        if kind == "precompute" and done == int(where):
            die()

writes = 0
savez = np.savez

def half(out, **arrays):
    global writes
    writes += 1
    if kind == "write" and writes == int(where):
        import io
        whole = io.BytesIO()
        savez(whole, **arrays)
        out.write_bytes(whole.getvalue()[: whole.tell() // 2])
        die()
    savez(out, **arrays)

np.savez = half

digits = load_digits()
x, y = digits.images[..., None].astype("float32"), digits.target.astype("int32")
entry = keras.Input((8, 8, 1))
z = layers.Rescaling(1 / 16)(entry)
for filters in (6, 8):
    z = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(z)
    z = layers.Dropout(0.1)(layers.ReLU()(layers.BatchNormalization()(z)))
model = attach_head(keras.Model(entry, z), 10)
model.compile(
    keras.optimizers.AdamW(1e-3, weight_decay=1e-2, global_clipnorm=1.0, use_ema=True, ema_momentum=0.9),
    "sparse_categorical_crossentropy", metrics=["accuracy"],
)
plan = Plan([
    Phase(name="head", epochs=2, train="head", learning_rate=1e-2, views=2, soup=2),
    Phase(name="top", epochs=3, train=1, learning_rate=3e-2, layer_decay=0.7, views=2, patience=2, soup=3),
    Phase(name="all", epochs=6, learning_rate=0.5, layer_decay=0.9, batchnorm="trained", patience=2,
          schedule="constant"),
])
augment = lambda x, seed: x + tf.random.stateless_normal((8, 8, 1), seed)
history = fine_tune(
    model, plan, Dataset(x=x[:200], y=y[:200], augment=augment), validation_data=(x[200:300], y[200:300]),
    backup_dir=folder, callbacks=[Kill(), keras.callbacks.EarlyStopping("val_loss", patience=3)], verbose=0,
)
sha = hashlib.sha256(b"".join(w.numpy().tobytes() for w in model.weights)).hexdigest()
rows = {k: v for k, v in history.history.items() if k != "seconds"}
print(json.dumps([sha, rows, history.weight_change, history.notes]))
"""


@pytest.fixture
def start(python):
    """Run in a process that is killed at each of some moments in turn, and then once to the end."""

    def run(folder, *moments):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        if folder:  # the run that is not cut off has another
            environment["THAW_CACHE"] = f"{folder}-cache"
        return python("-c", RUN, folder, *moments, env=environment)

    return run


def result(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_killed_at_six_moments_it_ends_with_the_same_bits(tmp_path, start):
    whole = result(start(""))
    assert set(whole[1]["phase"]) == {"head", "top", "all"}
    epochs = len(whole[1]["phase"])
    assert 7 <= epochs < 11  # the last phase was stopped early, and in the middle of its patience it is killed
    moments = ["precompute:9", "batch:0.3", "write:2", "after:head", "batch:3.2", f"batch:{epochs - 1}.1"]
    sha, rows, moved, notes = result(start(tmp_path, *moments))
    assert rows == whole[1]
    assert sha == whole[0]
    assert moved == whole[2]
    assert notes == whole[3]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.npz"]


# ----------------------------------------------------------------- the file itself


def state():
    return {"epoch": 3, "text": "ä"}, {"model": [np.arange(3.0), np.float32(2)], "optimizer": [np.int64(7)], "best": []}


def test_what_is_written_is_read(tmp_path):
    from thaw.training.checkpoint import read_checkpoint, write_checkpoint

    meta, arrays = state()
    arrays["many"] = [np.full(2, i) for i in range(12)]  # in the order given, not that of the alphabet
    write_checkpoint(tmp_path / "c.npz", meta, arrays)
    again, read = read_checkpoint(tmp_path / "c.npz")
    assert again == meta
    assert [a.tolist() for a in read["model"]] == [[0, 1, 2], 2.0]
    assert read["model"][1].dtype == np.float32
    assert [int(a[0]) for a in read["many"]] == list(range(12))
    assert "best" not in read
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.parametrize("where", ["numpy.savez", "os.replace", "os.fsync"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, where):
    from thaw.training.checkpoint import read_checkpoint, write_checkpoint

    write_checkpoint(tmp_path / "c.npz", *state())

    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        with pytest.raises(OSError, match=r"no room on the disk for .*c\.npz ") as error:
            write_checkpoint(tmp_path / "c.npz", {"epoch": 4}, state()[1])
    assert error.value.errno == errno.ENOSPC
    assert "unharmed. Free some space and give the same command again" in str(error.value)
    assert read_checkpoint(tmp_path / "c.npz")[0]["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_a_real_limit_on_the_size_of_files(tmp_path, python):
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from thaw.training.checkpoint import read_checkpoint, write_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write_checkpoint('c.npz', {'epoch': 1}, {'model': [np.zeros(10)]})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_checkpoint('c.npz', {'epoch': 2}, {'model': [np.zeros(100_000)]})\n"
        "except OSError as error:\n"
        "    print('unharmed' in str(error), read_checkpoint('c.npz')[0]['epoch'])\n"
    )
    done = python("-c", code, folder=tmp_path)
    assert done.stdout.split() == ["True", "1"], done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_read_checkpoint_refuses_a_file_of_version_0_1(tmp_path):
    from thaw.training.checkpoint import read_checkpoint

    np.savez(tmp_path / "c.npz", meta=np.frombuffer(b'{"identity": "0", "epoch": 1}', np.uint8))
    with pytest.raises(ValueError, match=r"another version of thaw, .*; finish the run with that version, or delete"):
        read_checkpoint(tmp_path / "c.npz")


@pytest.mark.parametrize("damage", ["half", "nothing", "flip", "text"])
def test_a_damaged_file_is_said_to_be(tmp_path, damage):
    from thaw.training.checkpoint import read_checkpoint, write_checkpoint

    file = tmp_path / "c.npz"
    write_checkpoint(file, *state())
    data = bytearray(file.read_bytes())
    if damage == "flip":
        at = data.index(np.arange(3.0).tobytes())
        data[at] ^= 1
    file.write_bytes({"half": data[: len(data) // 2], "nothing": b"", "flip": data, "text": b"hello"}[damage])
    with pytest.raises(ValueError, match=r"c\.npz is damaged; delete it to start the run from its beginning"):
        read_checkpoint(file)


def test_arrays_of_another_model():
    import keras

    from thaw.training.checkpoint import assign

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="The checkpoint holds 1 arrays where the run has 2"):
        assign(model.weights, [np.zeros((1, 1))])
