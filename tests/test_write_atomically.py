"""An old good file is lost to nothing but a whole new one."""

import contextlib
import errno
import os
import resource
import stat

import pytest

from thaw._files import explain_disk_error, write_all, write_atomically


@contextlib.contextmanager
def files_of_at_most(size):
    """No file may grow above ``size`` bytes: the nearest thing to a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "deeper" / "a.keras"
    endings = []

    def writer(beside):
        endings.append(beside.suffix)
        beside.write_text("new")

    assert write_atomically(path, writer) == path
    write_atomically(path, writer)
    assert everything(path.parent) == {"a.keras": b"new"}
    assert endings == [".keras", ".keras"]


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def fsync(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("rename"), replace(*a)))
    write_atomically(tmp_path / "a", lambda beside: beside.write_text("x"))
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def writer(beside):
        beside.write_text("half of the n")
        raise OSError(number, "full")

    with pytest.raises(OSError, match=r"There is no room on the disk for .*a\.txt \(\d+ MB free.*unharmed") as e:
        write_atomically(path, writer)
    assert e.value.errno == number
    assert everything(tmp_path) == {"a.txt": b"old"}


def test_a_real_limit_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with files_of_at_most(10_000), pytest.raises(OSError, match="There is no room on the disk"):
        write_atomically(path, lambda beside: beside.write_bytes(bytes(20_000)))
    assert everything(tmp_path) == {"a.bin": b"old"}


def test_a_full_disk_that_keras_stumbles_over_is_still_called_so(tmp_path):
    import keras

    path = tmp_path / "model.keras"
    path.write_bytes(b"old")
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
    with files_of_at_most(10_000), pytest.raises(OSError, match="There is no room on the disk"):
        write_atomically(path, model.save)
    assert everything(tmp_path) == {"model.keras": b"old"}


def test_of_several_files_all_stay_when_the_last_one_fails(tmp_path):
    (tmp_path / "a").write_text("old a")

    def fails(beside):
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="There is no room"):
        write_all({tmp_path / "a": lambda beside: beside.write_text("new a"), tmp_path / "b": fails})
    assert everything(tmp_path) == {"a": b"old a"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match=r"file/a cannot be written \(File exists\)"):
        write_atomically(tmp_path / "file" / "a", lambda beside: None)


def test_an_error_that_is_explained_twice():
    """A cache that write_atomically fills: the reason is named once."""
    system = PermissionError(errno.EACCES, "Permission denied")
    of_file = explain_disk_error(system, "/c/1.u8")
    of_cache = explain_disk_error(of_file, "/c", "the cache cannot be used")
    assert type(of_file) is type(of_cache) is PermissionError
    assert of_file.strerror.startswith("/c/1.u8 cannot be written (Permission denied); the file that was there before")
    assert of_cache.strerror == "the cache cannot be used at /c (Permission denied): set THAW_CACHE to another folder"
    without_number = explain_disk_error(OSError("no home"), "/c", "the cache cannot be used")
    assert str(without_number) == "the cache cannot be used at /c (no home): set THAW_CACHE to another folder"


def test_a_mistake_of_the_writer_is_not_taken_for_the_disk(tmp_path):
    def writer(beside):
        beside.write_text("half")
        raise ValueError("my own mistake")

    with pytest.raises(ValueError, match=r"^my own mistake$"):
        write_atomically(tmp_path / "a", writer)
    assert everything(tmp_path) == {}


def test_a_killed_run_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        write_atomically(path, lambda beside: (beside.write_text("half"), os._exit(9)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_text() == "old"
