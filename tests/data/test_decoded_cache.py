"""cache_decoded, load_decoded: the cache of decoded images."""

import errno
import hashlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from thaw.data.image_decoding import cache_decoded, load_decoded

DATA = b"the picture"
KEY = hashlib.sha256(DATA).hexdigest()


def counting(calls):
    def decode(data, size):
        calls.append(data)
        return np.arange(size * size * 3, dtype=np.uint8).reshape(size, size, 3)

    return decode


def test_decoding_is_paid_once(tmp_path):
    calls = []
    path, first = cache_decoded(DATA, KEY, 4, decode=counting(calls), cache_dir=tmp_path)
    again, second = cache_decoded(DATA, KEY, 4, decode=counting(calls), cache_dir=tmp_path)
    assert path == again == str(tmp_path / "decoded" / KEY[:2] / f"{KEY}-4-3.u8")
    assert len(calls) == 1
    assert (first == second).all()
    assert first.shape == (4, 4, 3)
    cache_decoded(DATA, KEY, 5, decode=counting(calls), cache_dir=tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize("length", [0, 48, 51, 53])
def test_an_entry_of_the_wrong_length_is_made_again(tmp_path, length):
    calls = []
    path, first = cache_decoded(DATA, KEY, 4, decode=counting(calls), cache_dir=tmp_path)
    with open(path, "wb") as file:
        file.write(b"x" * length)
    _, second = cache_decoded(DATA, KEY, 4, decode=counting(calls), cache_dir=tmp_path)
    assert len(calls) == 2
    assert (first == second).all()
    assert os.path.getsize(path) == 52


@pytest.mark.parametrize("place", [0, 47, 48, 51])
def test_an_entry_with_a_flipped_bit_is_made_again(tmp_path, place):
    calls = []
    path, first = cache_decoded(DATA, KEY, 4, decode=counting(calls), cache_dir=tmp_path)
    with open(path, "r+b") as file:
        byte = file.read()[place]
        file.seek(place)
        file.write(bytes([byte ^ 4]))
    _, second = cache_decoded(DATA, KEY, 4, decode=counting(calls), cache_dir=tmp_path)
    assert len(calls) == 2
    assert (first == second).all()


def test_tensorflow_reads_the_pixels(tmp_path):
    path, pixels = cache_decoded(DATA, KEY, 4, decode=counting([]), cache_dir=tmp_path)
    assert np.array_equal(load_decoded(4)(path), pixels.astype("float32"))


def test_many_at_once_leave_one_whole_entry_and_no_other_file(tmp_path):
    results = []
    work = lambda: results.append(cache_decoded(DATA, KEY, 8, decode=counting([]), cache_dir=tmp_path)[1].sum())  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == [f"{KEY}-8-3.u8"]


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("THAW_CACHE", raising=False)
    assert cache_decoded(DATA, KEY, 2, decode=counting([]))[0].startswith(f"{tmp_path}/home/.cache/thaw/decoded/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_decoded(DATA, KEY, 2, decode=counting([]))[0].startswith(f"{tmp_path}/xdg/thaw/decoded/")
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "own"))
    assert cache_decoded(DATA, KEY, 2, decode=counting([]))[0].startswith(f"{tmp_path}/own/decoded/")


def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"the disk is full at .*: free some space, or set THAW_CACHE"):
        cache_decoded(DATA, KEY, 2, decode=counting([]), cache_dir=tmp_path)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"the cache of decoded images cannot be written at .*file"):
        cache_decoded(DATA, KEY, 2, decode=counting([]), cache_dir=tmp_path / "file")


def test_a_bad_picture_leaves_no_entry(tmp_path):
    def decode(data, size):
        raise ValueError("is damaged")

    with pytest.raises(ValueError, match="is damaged"):
        cache_decoded(DATA, KEY, 2, decode=decode, cache_dir=tmp_path)
    assert list(tmp_path.rglob("*.u8")) == []


def test_cache_decoded_and_decode_need_neither_keras_nor_tensorflow(tmp_path):
    code = """
import io, sys
from PIL import Image
from thaw.data.image_decoding import cache_decoded
file = io.BytesIO()
Image.new("RGB", (9, 9), (5, 50, 100)).save(file, "PNG")
path, pixels = cache_decoded(file.getvalue(), "ab" * 32, 8, cache_dir=sys.argv[1])
print(pixels[0, 0].tolist(), [name for name in ("keras", "tensorflow", "scipy", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout == "[5, 50, 100] []\n", done.stderr
