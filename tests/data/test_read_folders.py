"""Folders of pictures as people lay them out."""

import os
from pathlib import Path

import pytest

from thaw.data.files import read_folders


def layout(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if not name.endswith("/") else path.mkdir(exist_ok=True)
    return root


def listed(root, *names):
    columns, notes = read_folders(layout(root, *names))
    columns["image"] = [Path(path).relative_to(root).as_posix() for path in columns["image"]]
    return columns, notes


def test_classes_with_folders_inside(tmp_path):
    columns, notes = listed(tmp_path, "dog/2.png", "dog/1.png", "cat/old/deep/3.jpg", "cat/a")
    assert columns == {
        "image": ["cat/a", "cat/old/deep/3.jpg", "dog/1.png", "dog/2.png"],
        "label": ["cat", "cat", "dog", "dog"],
    }
    assert notes == ()


@pytest.mark.parametrize("val", ["val", "valid", "validation", "VAL"])
def test_split_folders(tmp_path, val):
    columns, _ = listed(tmp_path, "test/cat/1.png", f"{val}/cat/2.png", "train/cat/3.png", "train/dog/4.png")
    assert columns["image"] == ["train/cat/3.png", "train/dog/4.png", f"{val}/cat/2.png", "test/cat/1.png"]
    assert columns["label"] == ["cat", "dog", "cat", "cat"]
    assert columns["split"] == ["train", "train", "validation", "test"]


def test_train_alone_is_a_split(tmp_path):
    columns, _ = listed(tmp_path, "train/cat/3.png", "train/dog/4.png")
    assert columns["label"] == ["cat", "dog"]
    assert columns["split"] == ["train", "train"]


def test_a_class_may_be_called_train(tmp_path):
    columns, _ = listed(tmp_path, "train/1.png", "car/1.png", "bus/1.png")
    assert columns["label"] == ["bus", "car", "train"]
    assert "split" not in columns


def test_hidden_and_system_files_are_skipped(tmp_path):
    names = ("cat/1.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/._1.png", ".git/x.png", "__MACOSX/cat/1.png")
    assert listed(tmp_path, *names)[0]["image"] == ["cat/1.png"]


def test_pictures_outside_every_class_have_no_label_and_other_files_there_are_left_alone(tmp_path):
    columns, _ = listed(tmp_path, "cat/1.png", "loose.JPG", "readme.txt", "LICENSE")
    assert dict(zip(columns["image"], columns["label"], strict=True)) == {
        "cat/1.png": "cat",
        "loose.JPG": None,
    }
    columns, _ = listed(tmp_path / "b", "train/cat/1.png", "test/cat/2.png", "test/loose.png", "loose.png")
    assert [path for path, label in zip(columns["image"], columns["label"], strict=True) if label is None] == [
        "test/loose.png",
        "loose.png",
    ]


def test_links_in_a_circle_end(tmp_path):
    layout(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "dog" / "up").symlink_to(tmp_path / "dog")
    assert listed(tmp_path)[0]["image"] == ["cat/1.png", "dog/1.png"]


def test_names_that_are_no_text(tmp_path):
    layout(tmp_path, "cat/1.png", "dog/äöü 猫 \n.png")
    (tmp_path / "cat" / os.fsdecode(b"\xff\xfe.png")).touch()
    images = read_folders(tmp_path)[0]["image"]
    assert len(images) == 3
    assert all(os.path.exists(path) for path in images)


def test_files_of_other_kinds_are_left_alone_and_counted(tmp_path):
    columns, notes = listed(tmp_path, "cat/1.png", "cat/1.txt", "cat/2.heic", "dog/3", "dog/3.TXT", "dog/3.svg")
    assert columns["image"] == ["cat/1.png", "cat/2.heic", "dog/3"]
    assert notes == ("Files ignored, because their suffixes are not those of images: 3 (.txt, .svg).",)


def test_an_empty_class_is_said(tmp_path):
    columns, notes = listed(tmp_path, "cat/1.png", "dog/")
    assert columns["label"] == ["cat"]
    assert notes == (f"The folder {tmp_path}/dog holds no images and is left out.",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "is empty; expected one folder of images for each class, such as"),
        (("1.png", "2.png"), "holds files but no folders; expected one folder for each class"),
        (("cat/", "dog/"), "hold no images; expected files such as .jpg or .png in them"),
        (("cat/1.txt",), "hold no images; expected files"),
        (("train/1.png", "val/1.png"), "train holds no folders; expected one for each class in it"),
        (
            ("train/a/1", "val/a/1", "valid/a/1"),
            r"has both val and valid, which mean the same split \(validation\)",
        ),
        (
            ("train/a/1", "test/a/1", "extra/1"),
            r"has folders of splits \(test, train\) next to others \(extra\)",
        ),
        (("test/a/1", "a/1", "b/1"), r"has folders of splits \(test\) next to others \(a, b\)"),
        (("val/a/1", "test/a/1"), "has test but no train folder; expected one to learn from"),
    ],
)
def test_layouts_that_make_no_sense(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, *names)
