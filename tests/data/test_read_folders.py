"""Folders of pictures as people lay them out."""

import os
import unicodedata
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


HIDDEN = (
    *("cat/.DS_Store", "cat/._1.png", "cat/Thumbs.db", "cat/ehthumbs.db", "cat/DESKTOP.INI", "cat/Icon\r", "Icon\r"),
    *("cat/1.png:Zone.Identifier", "cat/1.pngZone.Identifier", "cat/~$1.png", "cat/.1.png.icloud", "cat/.x/1.png"),
    *("cat/.ipynb_checkpoints/1-checkpoint.png", ".git/x.png", ".dvc/1.png", ".stfolder/1.png", ".@__thumb/1.png"),
    *("cat/.tmp.drivedownload/1.png", ".Trash-1000/1.png", ".thumbnails/1.png", ".AppleDouble/1.png"),
)
SYSTEM_FOLDERS = (
    *("@eaDir", "@EADIR", "@Recycle", "#recycle", "#snapshot", "lost+found", "$RECYCLE.BIN", "__MACOSX", "__pycache__"),
    *("System Volume Information", "FOUND.000", "LOST.DIR", "Catalog Previews.lrdata", "Mine.photoslibrary"),
)


def test_hidden_files_are_ignored(tmp_path):
    assert listed(tmp_path, "cat/1.png", *HIDDEN) == ({"image": ["cat/1.png"], "label": ["cat"]}, ())


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_of_systems_are_ignored_at_every_depth_and_counted(tmp_path, name):
    places = ("", "cat/", "cat/old/")
    columns, notes = listed(tmp_path, "cat/1.png", *(f"{place}{name}/1.jpg/{i}.jpg" for place in places for i in "ab"))
    assert columns["image"] == ["cat/1.png"]
    assert notes == (f"Files ignored, because they lie in folders of systems and programs: 6 ({name}).",)
    columns, notes = listed(tmp_path / "b", "train/cat/1.png", f"train/{name}/1.png", f"{name}/1.png")
    assert columns["image"] == ["train/cat/1.png"]
    assert len(notes) == 1
    assert ": 2 (" in notes[0]


def test_names_that_only_resemble_those_of_systems(tmp_path):
    names = [
        f"{name}/1.png" for name in ("eaDir", "recycle", "#1", "$1", "@home", "con", "aux", "nul", "😀", "lost", "a.b")
    ]
    columns, notes = listed(tmp_path, *names)
    assert columns["label"] == sorted(name.split("/")[0] for name in names)
    assert notes == ()


def test_camera_raw_and_sidecar_files(tmp_path):
    names = [f"cat/1{suffix}" for suffix in (".JPG", ".CR2", ".XMP", ".THM", ".aae")]
    columns, notes = listed(tmp_path, *names, "cat/2.dng", "cat/3.dng")
    assert columns["image"] == ["cat/1.JPG"]
    assert notes == (
        "Camera raw files ignored: 3 (.dng, .cr2). Export them as JPEG or PNG to use them.",
        "Files ignored, because their suffixes are not those of images: 3 (.thm, .xmp, .aae).",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (unicodedata.normalize("NFC", "Äpfel"), unicodedata.normalize("NFD", "Äpfel")),
        ("Äpfel", "Äpfel "),
        ("Äpfel", "\u200bÄpfel"),
    ],
)
def test_names_that_look_the_same_are_one_class(tmp_path, one, other):
    columns, notes = listed(tmp_path, f"{one}/1.png", f"{other}/2.png", "Birne/3.png")
    assert sorted(columns["label"]) == ["Birne", "Äpfel", "Äpfel"]
    one, other = sorted((one, other))
    assert notes == (f"The names {one!a} and {other!a} look the same and are one class.",)
    columns, notes = listed(tmp_path / "b", f"train/{one}/1.png", f"val/{other}/2.png")
    assert columns["label"] == ["Äpfel", "Äpfel"]
    assert len(notes) == 1


def test_split_folders_with_spaces_and_invisible_letters(tmp_path):
    columns, _ = listed(tmp_path, "Train /cat/1.png", "\ufeffVAL/cat/2.png")
    assert columns["split"] == ["train", "validation"]


def test_a_class_without_a_visible_name(tmp_path):
    with pytest.raises(ValueError, match=r"the name of the folder '.*/\\u200b' has no visible letter; rename it"):
        listed(tmp_path, "cat/1.png", "\u200b/1.png")


@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "val"), ("train", "val", "test")])
def test_splits_inside_the_classes_are_refused(tmp_path, splits):
    names = [f"{name}/{split}/1.png" for name in ("cat", "dog") for split in splits]
    with pytest.raises(ValueError, match=r"every class has its own folders of splits, such as .*cat"):
        listed(tmp_path, *names)
    assert len(listed(tmp_path, "bird/1.png")[0]["image"]) == len(names) + 1


@pytest.mark.parametrize("names", [("train", "dev"), ("seg_train", "seg_test"), ("TRAIN-1", "rest"), ("my test", "a")])
def test_splits_under_other_names_are_refused(tmp_path, names):
    with pytest.raises(
        ValueError, match="have the same folder 'cat' in them; if they are splits, call them train, val"
    ):
        listed(tmp_path, *(f"{name}/{c}/1.png" for name in names for c in ("cat", "dog")))


def test_classes_with_the_same_folders_inside(tmp_path):
    columns, _ = listed(tmp_path, *(f"{name}/{day}/1.png" for name in ("trainer", "contest") for day in ("mon", "tue")))
    assert columns["label"] == ["contest", "contest", "trainer", "trainer"]


def test_names_of_255_bytes_and_with_a_line_break(tmp_path):
    names = [f"{'k' * 255}/{'ä' * 125}.png", "cat/1\n2.png", "two\nlines/1.png"]
    columns, _ = listed(tmp_path, *names)
    assert sorted(columns["image"]) == sorted(names)
    assert sorted(columns["label"]) == ["cat", "k" * 255, "two\nlines"]


def test_folders_deeper_than_pythons_recursion(tmp_path):
    folders = [str(tmp_path / "cat")]
    folders += [f"{folders[0]}/{'d/' * depth}" for depth in range(1, 1200)]
    for folder in folders:
        os.mkdir(folder)
    image = Path(f"{folders[-1]}1.png")
    image.touch()
    try:
        assert read_folders(tmp_path)[0]["image"] == [str(image)]
    finally:  # which is too deep for pytest
        image.unlink()
        for folder in reversed(folders):
            os.rmdir(folder)


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


def test_links_to_themselves(tmp_path):
    layout(tmp_path, "cat/1.png", "dog/in/1.png")
    links = [tmp_path / name for name in ("loop", "cat/loop.png", "dog/in/a", "dog/in/b")]
    for link, target in zip(links, ["loop", "loop.png", "b", "a"], strict=True):
        link.symlink_to(target)
    columns, notes = listed(tmp_path)
    assert columns["image"] == ["cat/1.png", "dog/in/1.png"]
    text = "Files or links ignored, because they cannot be read: 4, such as"
    assert notes == (f"{text} {links[0]} (Too many levels of symbolic links).",)


def test_links_to_themselves_beside_splits(tmp_path):
    layout(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png")
    (tmp_path / "train" / "loop").symlink_to("loop")
    columns, notes = listed(tmp_path)
    assert len(columns["image"]) == 3
    assert [note.split(", such")[0] for note in notes] == ["Files or links ignored, because they cannot be read: 1"]


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
