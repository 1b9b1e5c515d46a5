"""What every test and every example in a docstring needs: a quiet TensorFlow, repeatable property tests, and no
settings or files left behind."""

import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import pytest
from hypothesis import settings

# For what is made once for a whole file of tests; each test has a cache of its own.
_CACHE = tempfile.TemporaryDirectory(prefix="thaw-tests-")
os.environ["THAW_CACHE"] = _CACHE.name

settings.register_profile("thaw", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("thaw")


@pytest.fixture
def without_us():
    """Runs Python code in a folder, in an interpreter that does not know where thaw lies; gives the words it prints."""

    def run(folder, code):
        environment = {**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.fixture(autouse=True)
def _leave_nothing_behind(request, tmp_path_factory, monkeypatch):
    """Caches and the files of examples go to folders of the test session; the dtype policy is put back."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
    monkeypatch.setenv("THAW_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    keras = sys.modules.get("keras")
    if keras is not None and keras.config.dtype_policy().name != "float32":
        keras.config.set_dtype_policy("float32")
