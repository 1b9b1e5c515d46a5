"""Set up every test and every example of a docstring: a quiet TensorFlow, repeatable property tests, and no settings or
files left behind."""

import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import pytest
from hypothesis import settings

# For what is made once for a whole file of tests; each test has a cache of its own. Every worker of pytest-xdist reads
# this file, so no two share a folder.
_CACHE = tempfile.TemporaryDirectory(prefix="thaw-tests-")
os.environ["THAW_CACHE"] = _CACHE.name


def pytest_unconfigure():
    _CACHE.cleanup()  # here, for a worker does not run what Python runs at exit


settings.register_profile("thaw", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("thaw")


@pytest.fixture
def without_us():
    """Run Python code in a folder, in an interpreter that cannot find thaw; return the words it prints."""

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
    """Send caches and the files of examples to folders of the test session, and restore the dtype policy."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
    monkeypatch.setenv("THAW_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    keras = sys.modules.get("keras")
    if keras is not None and keras.config.dtype_policy().name != "float32":
        keras.config.set_dtype_policy("float32")
