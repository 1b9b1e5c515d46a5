"""Folders of every shape: the generator knows which files it made, of which class and in which split."""

import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from thaw.data.files import read_folders
from thaw.data.images import load_images

# Letters of all scripts, marks, digits, signs and emoji; no control, format, private or space character, which have
# their own tests, and nothing that a file name cannot have.
LETTERS = st.characters(
    exclude_categories=("Cs", "Cc", "Cf", "Co", "Cn", "Zs", "Zl", "Zp"), exclude_characters="/.\\:~@#$"
)
SPLITS = {
    "train": ("train", "Training", "TRAIN"),
    "validation": ("val", "valid", "Validation"),
    "test": ("test", "Test"),
}
SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".webp", ".gif", ".bmp", ".tif", ".TIFF", ".heic", "")
# Files that nobody made, files of other kinds, and folders of systems with the number of files in them.
HIDDEN = (
    ".DS_Store",
    "._1.jpg",
    ".hidden.png",
    "Thumbs.db",
    "desktop.ini",
    "Icon\r",
    "1.jpg:Zone.Identifier",
    "~$1.png",
)
HIDDEN += (".ipynb_checkpoints/1.png", ".git/objects/1.png", ".stfolder/1.jpg", ".@__thumb/1.jpg")
OTHERS = ("notes.txt", "1.xmp", "1.THM", "1.aae", "labels.json", "1.jpg.part", "1.jpg~", "clip.mp4")
RAW = ("1.CR2", "2.nef", "3.dng")
SYSTEM = ("@eaDir", "@eadir", "#recycle", "lost+found", "$RECYCLE.BIN", "__MACOSX", "System Volume Information")


@st.composite
def names(draw):
    """The name of a class, of a folder or of a file without its suffix."""
    text = draw(st.one_of(st.text(LETTERS, min_size=1, max_size=8), st.sampled_from(["cat", "Cat", "0", "0-0", "con"])))
    text = unicodedata.normalize("NFC", text)
    taken = {"icon", "_gsdata_", "__pycache__", "thevolumesettingsfolder"} | {name.lower() for name in SYSTEM}
    splits = ("train", "test", "val", "dev")  # in part too: those that resemble splits have tests of their own
    assume(text.lower() not in taken and not any(word in text.lower() for word in splits) and len(text.encode()) < 60)
    return text


@st.composite
def folders(draw, least=1):
    """``(files to make, expected rows, Counter of what is left out)``, with so many classes and images in each."""
    classes = draw(st.lists(names(), min_size=least, max_size=4, unique=True))
    given_splits = draw(st.sampled_from([(), (), ("train",), ("train", "test"), ("train", "validation", "test")]))
    made: set[str] = set()
    rows: list[tuple] = []
    left_out: Counter[str] = Counter()

    def put(*parts):
        path = "/".join(parts)
        if any(path == other or path.startswith(other + "/") or other.startswith(path + "/") for other in made):
            return False
        made.add(path)
        return True

    def junk(*parts):
        for name in draw(st.lists(st.sampled_from(HIDDEN), max_size=2)):
            put(*parts, name)
        for name in draw(st.lists(st.sampled_from(SYSTEM), max_size=1)):
            inside = draw(st.sampled_from(["1.jpg", "1.jpg/THUMB_M.jpg", "deep/er/2.png"]))
            left_out["system"] += put(*parts, name, inside)

    top = {split: draw(st.sampled_from(SPLITS[split])) for split in given_splits} or {None: None}
    for split, folder in top.items():
        above = [folder] if folder else []
        junk(*above)
        for name in classes:
            spellings = draw(st.lists(spelled(name), min_size=1, max_size=2, unique=True))
            for spelling in spellings:
                junk(*above, spelling)
                for _ in range(draw(st.integers(least, 3))):
                    below = draw(st.lists(names(), max_size=2))
                    file = draw(names()) + draw(st.sampled_from(SUFFIXES))
                    if put(*above, spelling, *below, file):
                        rows.append(("/".join([*above, spelling, *below, file]), name, split))
                for kind, pool in (("others", OTHERS), ("raw", RAW)):
                    for other in draw(st.lists(st.sampled_from(pool), max_size=1)):
                        left_out[kind] += put(*above, spelling, other)
        if draw(st.booleans()):
            put(*above, "readme.txt")  # outside every class: nobody's
            if put(*above, "loose.jpg"):
                rows.append(("/".join([*above, "loose.jpg"]), None, split))
    return sorted(made), rows, left_out


@st.composite
def spelled(draw, name):
    """A name as another system, or a careless hand, writes it."""
    text = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), name)
    text = draw(st.sampled_from(["", "", "", "\ufeff", " "])) + text
    return text + draw(st.sampled_from(["", "", "", " ", "\u00a0", "\u200b"]))


def make(root, paths):
    for path in paths:
        place = Path(root, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def number_in(notes, begin):
    """The number in the one note that begins so, or 0."""
    found = [note for note in notes if note.startswith(begin)]
    assert len(found) <= 1
    return int(found[0].split(": ")[1].split(" ")[0]) if found else 0


@given(folders())
def test_read_folders(case):
    made, rows, left_out = case
    with tempfile.TemporaryDirectory() as root:
        make(root, made)
        columns, notes = read_folders(root)
        splits = columns.get("split", [None] * len(columns["image"]))
        found = [
            (os.path.relpath(path, root), *rest) for path, *rest in zip(columns["image"], columns["label"], splits)
        ]
    assert Counter(found) == Counter(rows)
    assert number_in(notes, "Files ignored, because they lie in folders of systems") == left_out["system"]
    assert number_in(notes, "Files ignored, because their suffixes") == left_out["others"]
    assert number_in(notes, "Camera raw files ignored") == left_out["raw"]
    written = {path.split("/")[1 if any(split for _, _, split in rows) else 0] for path, name, _ in rows if name}
    several = len(written) > len({name for _, name, _ in rows if name})
    assert any("look the same" in note for note in notes) == several


@given(st.lists(names(), min_size=1, max_size=3, unique=True), st.sampled_from(["self", "up", "twice"]))
def test_links(classes, kind):
    """A link in a class leads back up, or to another folder: every image is listed once."""
    with tempfile.TemporaryDirectory() as root:
        make(root, [f"{name}/in/1.png" for name in classes])
        for name in classes:
            target = {"self": Path(root, name), "up": Path(root, name, "in"), "twice": Path(root, name, "in")}[kind]
            Path(root, name, *(["in"] if kind == "up" else []), "zz-link").symlink_to(target)
        columns, _ = read_folders(root)
        assert sorted(columns["label"]) == sorted(classes)
        assert {os.path.realpath(path) for path in columns["image"]} == {
            os.path.realpath(f"{root}/{name}/in/1.png") for name in classes
        }


@settings(max_examples=settings.default.max_examples // 10)
@given(folders(least=2), st.integers(0, 2**32 - 1))
def test_load_images(case, seed):
    """The images of each class and split, as datasets; the rest is rejected with a reason."""
    made, rows, _ = case
    rows = [row for row in rows if not row[0].endswith(".heic")]  # which Pillow alone does not read
    labelled = [row for row in rows if row[1] is not None]
    in_train = Counter(name for _, name, split in labelled if split in (None, "train"))
    enough = all(count > 1 for count in in_train.values()) and set(in_train) == {name for _, name, _ in labelled}
    assume(len(in_train) > 1 and enough)
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as root:
        photos = os.path.join(root, "photos")
        make(photos, made)
        for path, _, _ in rows:
            pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(os.path.join(photos, path), format="png")
        for path in Path(photos).rglob("*.heic"):
            path.unlink()
        got = load_images(photos, image_size=8, cache_dir=os.path.join(root, "cache"), max_bad=1.0)
        found = {
            (os.path.relpath(path, photos), got.labels[y], split)
            for split, files in got.files.items()
            for path, y in zip(files, getattr(got, split).y if files else ())
        }
    assert {row[:2] for row in found} == {row[:2] for row in labelled}
    assert [bad.reason for bad in got.rejected] == ["lies outside every class folder"] * (len(rows) - len(labelled))
    for path, name, split in labelled:
        if split in ("validation", "test"):
            assert (path, name, split) in found
