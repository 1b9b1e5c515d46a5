"""Bad files, and pictures that contradict each other."""

import builtins
import hashlib
import os

import numpy as np
import pytest

from thaw.data.image_checks import check_images


def read(data, key):
    """A picture is its first byte; the rest is metadata."""
    assert key == hashlib.sha256(data).hexdigest()
    if not data:
        raise ValueError("is empty (0 bytes)")
    return len(data), np.random.default_rng(data[0]).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def check(folder, rows, splits=None, **options):
    files = []
    for i, (data, _) in enumerate(rows):
        files.append(str(folder / str(i)))
        if data is not None:
            (folder / str(i)).write_bytes(data)
    return check_images(files, [label for _, label in rows], splits, read=read, **options)


def test_good_and_bad_files(tmp_path):
    checked = check(tmp_path, [(b"a1", "cat"), (b"", "cat"), (None, "dog"), (b"b", "dog")])
    assert checked.bad == {1: "is empty (0 bytes)", 2: "does not exist"}
    assert checked.keys[0] == hashlib.sha256(b"a1").hexdigest()
    assert checked.keys[2] == ""
    assert checked.read == [2, None, None, 1]
    assert checked.hashes[0] != checked.hashes[3]
    assert checked.thumbnails.shape == (4, 16, 16, 3)
    assert checked.notes == ()


def test_a_folder_a_pipe_and_a_broken_link_are_named_and_do_not_hang(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    files = [str(tmp_path / name) for name in ("folder", "pipe", "link")]
    bad = check_images(files, ["x"] * 3, read=read).bad
    assert bad == {0: "is not a regular file", 1: "is not a regular file", 2: "does not exist"}


def test_check_images_names_a_file_without_permission(tmp_path, monkeypatch):
    opened = builtins.open

    def refuse(path, *arguments, **options):  # root may open everything
        if path == str(tmp_path / "0"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    assert check(tmp_path, [(b"a", "cat"), (b"b", "cat")]).bad == {0: "cannot be read: permission denied"}


def test_check_images_does_not_read_a_file_too_large(tmp_path):
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**29 + 1)  # takes no room on the disk
    checked = check_images([str(tmp_path / "large")], ["cat"], read=read)
    assert checked.bad == {0: "is 512 MB large, over the limit of 512 MB"}
    assert checked.keys == [""]


def test_one_picture_in_two_classes_is_bad_in_all_copies(tmp_path):
    # The third has other bytes and the same pixels.
    checked = check(tmp_path, [(b"a", "cat"), (b"a", "dog"), (b"a with a comment", "cat"), (b"b", "cat")])
    reason = "is the same image in different classes: 'cat' and 'dog'"
    assert checked.bad == {0: reason, 1: reason, 2: reason}


def test_one_picture_in_two_splits_is_kept_in_test_then_validation(tmp_path):
    rows = [(b"a", "cat"), (b"a", "cat"), (b"a", "cat"), (b"b", "cat"), (b"b2", "cat"), (b"c", "cat")]
    checked = check(tmp_path, rows, ["train", "validation", "test", "train", "validation", "train"])
    assert checked.bad == {
        0: "is in train the same image as in test, which is used",
        1: "is in validation the same image as in test, which is used",
        3: "is in train the same image as in validation, which is used",
    }


def test_copies_in_one_class_are_counted(tmp_path):
    one = check(tmp_path, [(b"a", "cat"), (b"a", "cat"), (b"b", "dog")])
    assert one.bad == {}
    assert one.notes[0].startswith("1 image is a copy of another in the same class")
    two = check(tmp_path, [(b"a", "cat"), (b"a", "cat"), (b"a", "cat")])
    assert two.notes[0].startswith("2 images are copies of another")


def test_progress_counts_every_file(tmp_path):
    seen = []
    check(tmp_path, [(b"a", "x"), (b"", "x"), (b"c", "x")], progress=lambda *said: seen.append(said))
    assert seen == [(i, 3, "checking images") for i in (1, 2, 3)]


def test_a_full_disk_is_no_bad_picture(tmp_path):
    def full(data, key):
        raise OSError(28, "the disk is full")

    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(OSError, match="the disk is full"):
        check_images([str(tmp_path / "a")], ["x"], read=full)


def test_columns_of_different_length():
    with pytest.raises(ValueError, match="There are 1 files and 2 labels; expected one for each"):
        check_images(["a"], ["x", "y"], read=read)
