"""The cache of one run of a comparison, and what is left of it."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from thaw.features.cache_folder import clear_cache, isolated_cache, isolated_caches, list_cache, remove_abandoned_caches
from thaw.features.store import FeatureCache

HOLDS = """
import os, sys
from thaw.features.cache_folder import isolated_cache
with isolated_cache() as folder:
    open(folder + "/rows.npy", "wb").write(bytes(100))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def other(root):
    """Another process that has a cache, and its path."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_empty_and_gone_at_the_end(root):
    def fails():
        with isolated_cache() as folder:
            assert os.environ["THAW_CACHE"] == str(root)
            assert [(str(path), in_use) for path, _, in_use in isolated_caches(root)] == [(folder, True)]
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fails()
    assert os.environ["THAW_CACHE"] == str(root)
    assert list(root.iterdir()) == []


def test_what_is_in_use_stays_until_its_process_is_killed(root, other):
    process, folder = other
    for _ in range(2):  # also after a look
        (row,) = list_cache()
        assert (row["what"], row["description"], row["about"]) == (
            "comparison",
            "in use by a comparison",
            {"in_use": True},
        )
        assert (row["path"], row["bytes"]) == (folder, 100)
    assert clear_cache() == 0
    assert remove_abandoned_caches(root) == 0
    with isolated_cache():
        pass
    assert os.path.exists(folder + "/rows.npy")
    process.kill()
    process.wait()
    (row,) = list_cache()
    assert (row["description"], row["about"]) == ("left by a comparison", {"in_use": False})
    with isolated_cache() as mine:  # the next run removes it
        assert [str(path) for path in root.iterdir()] == [mine]


def test_one_that_was_just_made_is_left_alone(root):
    """Between the making of its folder and of its lock another comparison may begin."""
    folder = root / "compare-new"
    folder.mkdir(parents=True)
    with isolated_cache():
        assert folder.exists()
    os.utime(folder, (0, 0))
    with isolated_cache():
        assert not folder.exists()


def test_what_was_left_is_cleared(root, other):
    process, folder = other
    process.kill()
    process.wait()
    assert clear_cache() == 100
    assert not os.path.exists(folder)


def test_isolated_cache_is_one_for_each_thread(root):
    """Two threads at once have caches of their own, and neither changes where the rest of the process caches."""
    together, folders = threading.Barrier(2), []

    def work():
        with isolated_cache() as folder:
            together.wait(10)
            table = FeatureCache(folder).table("ab", {}, [((), "float32")])
            with table.writer(1) as writer:
                writer.add(np.array([[1, 0]]), [np.zeros(1, "float32")])
            folders.append((folder, [path.name for path in FeatureCache().folder.glob("*")]))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one, in_usual), (two, _) = folders
    assert one != two
    assert in_usual == []
    assert list(root.iterdir()) == []


def test_full_disk(root, monkeypatch):
    """The number of the error says it, as for every other full disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    refused = pytest.raises(OSError, match=f"the disk is full at {root}: free some space, or set THAW_CACHE")
    with refused as error, isolated_cache():
        pass
    assert error.value.errno == errno.ENOSPC
