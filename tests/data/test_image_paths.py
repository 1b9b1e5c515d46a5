"""Paths in a table: found wherever the table was written, or the cause is named once."""

import os
import unicodedata

import pytest

from thaw.data.image_paths import find_images


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a table, which is not the working folder."""
    (tmp_path / "table").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "table"


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def find(place, *cells):
    """Paths from the folder of the table, and the notes."""
    paths, notes = find_images(place / "t.csv", cells)
    return [os.path.relpath(path, place) for path in paths], notes


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("a/1.png", "a/1.png"),
        ("./a//b/../1.png", "a/1.png"),
        ("a\\1.png", "a/1.png"),
        (".\\a\\1.png", "a/1.png"),
        ("..\\table\\a\\1.png", "a/1.png"),
        (" a/1.png ", "a/1.png"),
        ('"a/1.png"', "a/1.png"),
        ("\ufeffa/1.png", "a/1.png"),
        ("a/1%20b.png", "a/1 b.png"),
        ("a/%C3%A4.png", "a/ä.png"),
        ("a/100%.png", "a/100%.png"),
        ("a%201.png", "a%201.png"),
        ("A/1.PNG", "a/1.png"),
        ("a/1.png", "A/1.JPG.PNG/../../a/1.PNG"),
        ("a/" + unicodedata.normalize("NFD", "ä.png"), "a/ä.png"),
        (unicodedata.normalize("NFC", "ä/ö.png"), unicodedata.normalize("NFD", "ä/ö.png")),
        ("a/0017", "a/0017.jpg"),
        ("/home/bob/data/a/1.png", "a/1.png"),
        ("/home/bob/data/a/1.png", "data/a/1.png"),
        ("C:\\Users\\Bob\\a\\1.png", "a/1.png"),
        ("\\\\server\\share\\a\\1.png", "a/1.png"),
        ("file:///home/bob/a/1%20b.png", "a/1 b.png"),
        ("file://localhost/home/bob/a/1.png", "a/1.png"),
        ("file:///C:/Users/Bob/a/1.png", "a/1.png"),
        ("~/a/1.png", "a/1.png"),
        ("table/a/1.png", "a/1.png"),
        ("../../elsewhere/a/1.png", "a/1.png"),
    ],
)
def test_one_path(place, cell, file):
    make(place, os.path.normpath(file))
    paths, notes = find(place, cell)
    assert paths == [os.path.normpath(file)]
    as_written = os.path.normpath(cell) == os.path.normpath(file)
    assert len(notes) == (0 if as_written else 1)


def test_backslashes_in_a_name_come_first(place):
    make(place, "a\\1.png", "a/1.png")
    assert find(place, "a\\1.png") == (["a\\1.png"], [])


def test_a_percent_sign_in_a_name_comes_first(place):
    make(place, "a%201.png", "a 1.png")
    assert find(place, "a%201.png") == (["a%201.png"], [])


def test_the_working_folder_fills_no_gap(place):
    """An old copy lies there."""
    make(place.parent / "here", "a/1.png", "a/2.png", "a/3.png")
    make(place, "a/1.png")
    assert find(place, "a/1.png", "a/2.png", "a\\3.png") == (["a/1.png", "a/2.png", "a\\3.png"], [])
    (place / "a/1.png").rename(place / "a/1.PNG")
    paths, notes = find(place, "a/1.png", "a/2.png", "/home/bob/a/3.png")
    assert paths[:2] == ["a/1.PNG", "a/2.png"]
    assert not os.path.exists(place / paths[2])
    assert len(notes) == 1


def test_the_working_folder_fills_no_gap_without_first_folders(place):
    make(place.parent / "here", "a/1.png", "a/2.png")
    make(place, "a/1.png")
    paths, _ = find(place, "/home/bob/a/1.png", "/home/bob/a/2.png")
    assert [os.path.exists(place / path) for path in paths] == [True, False]


def test_paths_from_the_working_folder(place):
    make(place.parent / "here", "a/1.png", "a/2.png")
    real = place.parent / "real/4.png"
    make(real.parent, "4.png")
    paths, notes = find(place, "a/1.png", "A/2.png", "a/3.png", str(real))
    assert paths == ["../here/a/1.png", "../here/a/2.png", "../here/a/3.png", "../real/4.png"]
    assert notes == [
        "2 of 4 paths of t.csv do not exist as they are written, and were found elsewhere, such as 'a/1.png' at "
        f"{place.parent}/here/a/1.png."
    ]


def test_whole_paths_decide_before_shortened_ones(place):
    """The 1.png next to the table is something else: the paths are those from the working folder."""
    make(place, "1.png")
    make(place.parent / "here", "a/1.png", "a/2.png")
    assert find(place, "a/1.png", "a/2.png")[0] == ["../here/a/1.png", "../here/a/2.png"]


def test_the_longest_end_of_a_path_is_taken(place):
    make(place, "data/cat/1.png", "cat/1.png", "1.png")
    assert find(place, "/home/bob/data/cat/1.png")[0] == ["data/cat/1.png"]
    assert find(place, "/home/bob/old/cat/1.png")[0] == ["cat/1.png"]


def test_two_machines_in_one_table(place):
    make(place, "cat/1.png", "dog/2.png")
    assert find(place, "C:\\Users\\Bob\\cat\\1.png", "/home/alice/dog/2.png")[0] == ["cat/1.png", "dog/2.png"]
    assert find(place, "/home/bob/x/cat/1.png", "/home/alice/dog/2.png")[0] == ["cat/1.png", "dog/2.png"]


@pytest.mark.parametrize("root", ["", "/home/bob/", "C:\\bob\\"])
def test_another_image_of_the_same_name_is_not_taken(place, root):
    """dog/2.png is missing; the 2.png next to the table is something else."""
    make(place, "cat/1.png", "2.png")
    paths, notes = find(place, f"{root}cat/1.png", f"{root}dog/2.png")
    assert paths[0] == "cat/1.png"
    assert not os.path.exists(place / paths[1])
    assert len(notes) == bool(root)


def test_a_missing_image_takes_none_from_another(place):
    make(place, "1.png")
    paths, _ = find(place, "/home/bob/1.png", "/home/bob/cat/1.png")
    assert [os.path.exists(place / path) for path in paths] == [True, False]


def test_other_capitals_never_lead_to_the_file_of_another(place):
    make(place, "a.png", "b.png")
    paths, _ = find(place, "a.png", "A.png", "B.PNG", "B.png")
    assert [os.path.exists(place / path) for path in paths] == [True, False, False, False]


def test_two_paths_never_lead_to_one_file(place):
    make(place, "1.png", "2.png")
    paths, _ = find(place, "/a/cat/1.png", "/a/dog/1.png", "/a/cat/2.png")
    assert [os.path.exists(place / path) for path in paths] == [False, False, True]


def test_an_absolute_path_of_this_machine_is_not_replaced(place):
    """One that is missing, while others of its folder exist, is missing."""
    make(place, "1.png", "2.png")
    make(place.parent / "real", "1.png")
    paths, _ = find_images(place / "t.csv", [f"{place.parent}/real/1.png", f"{place.parent}/real/2.png"])
    assert paths == [f"{place.parent}/real/1.png", f"{place.parent}/real/2.png"]


@pytest.mark.parametrize("names", [("1.png", "1.PNG"), ("0017.jpg", "0017.png")])
def test_of_two_that_fit_none_is_taken(place, names):
    make(place, "ok.png", *names)
    cell = {"1.png": "1.Png", "0017.jpg": "0017"}[names[0]]
    assert find(place, "ok.png", cell)[0] == ["ok.png", cell]


def test_unicode_form_decides_between_two(place):
    make(place, unicodedata.normalize("NFD", "Ä.png"), unicodedata.normalize("NFD", "ä.png"))
    assert find(place, "Ä.png")[0] == [unicodedata.normalize("NFD", "Ä.png")]


def test_single_missing_files_are_left_to_the_caller(place):
    make(place, "a/1.png")
    assert find(place, "a/1.png", "a/2.png") == (["a/1.png", "a/2.png"], [])


def test_nothing_found_is_said_once(place):
    message = (
        "2 of 2 images of t.csv are not found, such as 'pics\\\\1.png'; paths are looked up from the folder of the "
        f"table, {place}, and from the working folder, {place.parent}/here"
    )
    with pytest.raises(ValueError) as error:
        find(place, "pics\\1.png", "pics\\2.png")
    assert str(error.value) == message


def test_nothing_found_next_to_the_table(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match=f"folder of the table, {place}$"):
        find(place, "1.png")


def test_nothing_found_but_one_folder_below(place):
    make(place, "train_images/1.png", "other/2.png")
    with pytest.raises(ValueError, match=rf"1 of 1 .*There is {place}/train_images/1.png: write its folder into the"):
        find(place, "1.png")
    with pytest.raises(ValueError, match=f"There is {place}/train_images/1.png: write"):
        find(place, "1")


def test_web_addresses(place):
    with pytest.raises(ValueError, match=r"1 of 1 .* 'https://x.org/1.png'; .*download the images"):
        find(place, "https://x.org/1.png")


@pytest.mark.parametrize("cell", ["", ".", "/", "..", "%00", "a" * 5000, "/" * 5000, "\udcff.png", "C:", "\\", "%"])
def test_odd_cells(place, cell):
    make(place, "1.png")
    assert find(place, "1.png", cell)[0][0] == "1.png"
