"""Set up every test and every example of a docstring: a quiet TensorFlow, repeatable property tests, and no settings or
files left behind."""

import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
# --hypothesis-profile=many --hypothesis-seed=1: other examples for each seed
settings.register_profile("many", settings.get_profile("thaw"), max_examples=500, derandomize=False)
settings.load_profile("thaw")


# Importing TensorFlow and Keras takes longer than most of what a process does in a test. This one has imported them and
# done nothing else, so that a fork of it is as good as a new process.
_FORKS = """
import json, os, sys
import tensorflow, keras
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
for number, name in enumerate((os.devnull, job["out"], job["err"])):
    opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(opened, number)
    os.close(opened)
os.chdir(job["folder"])
os.environ.clear()
os.environ.update(job["environment"])
kind, code, *sys.argv[1:] = job["words"]
if kind == "-m":
    import runpy
    sys.argv[0] = code
    runpy.run_module(code, run_name="__main__", alter_sys=True)
else:
    sys.argv[0], sys.path[0] = "-c", ""
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Run Python in another process, as ``python WORDS`` would; one at a time.

    ``python("-m", "thaw", "stages")`` or ``python("-c", CODE, *arguments)`` returns a ``subprocess.CompletedProcess``
    with text. With ``kill_at``, a regular expression, it is killed (``kill -9``) as soon as its stderr has a match.
    """
    forks = subprocess.Popen([sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = tmp_path_factory.mktemp("processes")

    def run(*words, folder=folder, env=None, kill_at=None):
        words = [str(word) for word in words]
        written = tmp_path_factory.mktemp("process")
        out, err = written / "out", written / "err"
        job = {"words": words, "folder": str(folder), "environment": env or dict(os.environ)}
        print(json.dumps(job | {"out": str(out), "err": str(err)}), file=forks.stdin, flush=True)
        child = int(forks.stdout.readline())
        if kill_at is not None:
            while not (err.exists() and re.search(kill_at, err.read_text(), re.M)) and Path(f"/proc/{child}").exists():
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(child, signal.SIGKILL)
        code = int(forks.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    yield run
    forks.stdin.close()
    forks.wait()
    forks.stdout.close()


@pytest.fixture
def with_keras_alone(python):
    """Run Python code in a folder, in a process that must not import thaw; return the words it prints."""

    def run(folder, code):
        check = "\nimport sys\nassert not any(name.partition('.')[0] == 'thaw' for name in sys.modules)"
        done = python("-c", code + check, folder=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.fixture(scope="module", autouse=True)
def _look_at_no_garbage_twice():
    """Leave what stays in memory, graphs of TensorFlow above all, out of the next collections: they took a tenth."""
    yield
    gc.collect()
    gc.freeze()


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
