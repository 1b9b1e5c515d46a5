"""A run folder is complete and intact, or the error names what is not."""

import contextlib
import getpass
import hashlib
import json
import os
import platform
import resource

import numpy as np
import pytest

from thaw.runs.folder import Run, open_run, verify_run, write_run

TABLES = {
    "history": {"epoch": [1, 2], "loss": [0.5, 0.25]},
    "quarantine": {"path": ['a,"b".png'], "reason": ["truncated"]},
}


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(80), keras.layers.Dense(2, "softmax")])


@pytest.fixture
def run(tmp_path, model):
    folder = tmp_path / "runs" / "one"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events").write_bytes(b"log")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "checkpoint.npz").write_bytes(b"gone soon")
    (folder / ".lock").touch()
    write(folder, model)
    return folder


def write(folder, model, **changed):
    given = {"plan": "# plan\n", "tables": TABLES, "metrics": {"accuracy": np.float32(0.5), "auc": np.nan}}
    return write_run(folder, model, ["cat", "døg"], **given | {"about": {"seed": 3}} | changed)


def test_every_file_is_there_with_its_sha256(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest == verify_run(run)
    names = ["history.csv", "labels.json", "metrics.json", "model.keras", "plan.toml", "quarantine.csv"]
    assert list(manifest["files"]) == [*names, "tensorboard/events"]
    for name, entry in manifest["files"].items():
        content = (run / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["seed"] == 3
    assert set(manifest["versions"]) == {"python", "thaw", "keras", "numpy", "tensorflow"}
    assert (run / "history.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"
    assert (run / "quarantine.csv").read_text() == 'path,reason\n"a,""b"".png",truncated\n'
    assert json.loads((run / "metrics.json").read_text()) == {"accuracy": 0.5, "auc": None}
    assert (run / "plan.toml").read_text() == "# plan\n"


def test_the_manifest_says_nothing_of_the_machine(run):
    text = (run / "manifest.json").read_text()
    for word in (str(run.parent), platform.node(), os.path.expanduser("~"), f'"{getpass.getuser()}"'):
        assert word not in text


@pytest.mark.parametrize("about", [{"data": "/home/me/photos"}, {"data": [{"from": "/x"}]}, {"/x": 1}])
def test_an_absolute_path_is_refused(tmp_path, model, about):
    with pytest.raises(ValueError, match="a path on this machine; leave it out of about"):
        write(tmp_path, model, about=about)
    assert list(tmp_path.iterdir()) == []


def test_it_opens_again(run, model):
    opened = open_run(run)
    again, manifest = opened.model, opened.manifest
    x = np.random.default_rng(0).normal(size=(5, 4))
    assert (again.predict(x, verbose=0) == model.predict(x, verbose=0)).all()
    assert opened.labels == ("cat", "døg")
    assert not again.compiled
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(f"float32 {value.shape} ".encode() + value.tobytes())
    assert manifest["weights_sha256"] == digest.hexdigest()


def test_the_model_opens_and_predicts_the_same_with_nothing_but_keras(run, model, python):
    x = np.linspace(-1, 1, 8).reshape(2, 4)
    code = (
        "import sys, keras, numpy as np\n"
        f"model = keras.models.load_model({str(run / 'model.keras')!r})\n"
        "assert 'thaw' not in sys.modules\n"
        "print(model.predict(np.linspace(-1, 1, 8).reshape(2, 4), verbose=0).tolist())"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == model.predict(x, verbose=0).tolist()


def test_a_flipped_bit_is_found_in_every_file(run):
    for name in [*verify_run(run)["files"], "manifest.json"]:
        path = run / name
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                verify_run(run)
        path.write_bytes(whole)
    verify_run(run)


def test_a_damaged_model_is_not_opened(run):
    (run / "model.keras").write_bytes((run / "model.keras").read_bytes()[:-1])
    (run / "labels.json").unlink()
    with pytest.raises(ValueError, match=r"model\.keras is damaged, labels\.json is missing; take the run"):
        open_run(run)


def test_what_is_added_later_or_goes_with_the_run_does_no_harm(run):
    (run / "note.txt").write_text("mine")
    (run / "unfinished" / "checkpoint.npz").unlink()
    (run / ".lock").unlink()
    verify_run(run)


@pytest.mark.parametrize(("folder", "message"), [("nowhere", "There is no folder"), (".", "has no manifest.json")])
def test_no_finished_run(tmp_path, folder, message):
    with pytest.raises(FileNotFoundError, match=message):
        open_run(tmp_path / folder)


def test_a_newer_format_is_named(run):
    from thaw.runs.folder import _manifest_sha256

    manifest = json.loads((run / "manifest.json").read_text()) | {"format": 2}
    manifest["sha256"] = _manifest_sha256(manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was written by a newer thaw \(.*\); upgrade this one"):
        verify_run(run)


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_earlier_run_whole(run):
    import keras

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    larger = keras.Sequential([keras.Input((200,)), keras.layers.Dense(200), keras.layers.Softmax()])
    with files_of_at_most(60_000), pytest.raises(OSError, match=r"There is no room on the disk for .*model\.keras"):
        write(run, larger)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    verify_run(run)


def test_writing_again_replaces_the_run(run, model):
    first = verify_run(run)
    write(run, model, metrics={"accuracy": 1.0})
    second = verify_run(run)
    assert second["weights_sha256"] == first["weights_sha256"]
    assert second["files"]["metrics.json"] != first["files"]["metrics.json"]
    assert set(second["files"]) == set(first["files"])


def test_columns_of_different_lengths_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"columns of history have different lengths: \{'a': 1, 'b': 0\}"):
        write(tmp_path, model, tables={"history": {"a": [1], "b": []}})


def with_lambda():
    import keras

    return keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])


def test_a_model_with_code_in_it_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="has a Lambda layer, whose code would be in its file"):
        write(tmp_path / "run", with_lambda())
    assert not (tmp_path / "run").exists()


def test_a_model_with_code_in_it_is_not_run(tmp_path, model):
    write(tmp_path, model)
    with_lambda().save(tmp_path / "model.keras")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    with pytest.raises(ValueError, match="has a Lambda layer, which would run code from the file; it is not loaded"):
        Run(tmp_path, manifest).model  # noqa: B018


def test_classes_of_their_own(tmp_path, python):
    """A run with a registered class opens where the class was imported, and is refused in a sentence elsewhere."""
    (tmp_path / "shapes.py").write_text(
        "import keras\n\n\n"
        '@keras.saving.register_keras_serializable("shapes")\n'
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    code = (
        "import keras, numpy as np, shapes\n"
        "from thaw.runs import write_run\n"
        "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), shapes.Twice()])\n"
        "write_run('run', model, ['cat', 'dog'], plan='', tables={}, metrics={})\n"
        "np.save('expected.npy', model(np.ones((1, 2))))"
    )
    written = python("-c", code, folder=tmp_path)
    assert written.returncode == 0, written.stderr
    with pytest.raises(
        ValueError, match=r"uses the class 'Twice', which Keras does not know\); register that class with"
    ):
        open_run(tmp_path / "run").model  # noqa: B018
    code = (
        "import numpy as np, shapes, thaw\n"
        "found = thaw.open_run('run').model(np.ones((1, 2)))\n"
        "print(np.abs(np.load('expected.npy') - found).max())"
    )
    opened = python("-c", code, folder=tmp_path)
    assert float(opened.stdout) < 1e-6, opened.stderr
