"""Tables as people write them: pandas reads the same table, and the generator knows where the images are."""

import contextlib
import csv
import io
import os
import tempfile
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thaw.data.tables import read_csv

# With the letters that a CSV file has to quote, and those that Windows-1252 has or has not.
LABELS = st.text(st.sampled_from("aZ0 .,;|\t'\"\n#äß€éж猫-_"), max_size=6).map(str.strip)
SPLITS = {"train": "train", "Training": "train", "VAL": "validation", "valid": "validation", "test": "test"}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")
OTHER_NAMES = {
    "image": ["IMAGE", " Image", "file", "File Name", "image_path"],
    "label": ["Label ", "class", "Category"],
}


@st.composite
def tables(draw):
    """``(bytes, the table alone as text, its separator, our column names to those in the file)``."""
    count = draw(st.integers(1, 6))
    rows = {"image": [f"{i}.png" for i in range(count)]}
    rows["label"] = draw(st.lists(LABELS, min_size=count, max_size=count))
    assume(any(rows["label"]))
    if draw(st.booleans()):
        rows["split"] = [
            "train",
            *draw(st.lists(st.sampled_from(sorted(SPLITS)), min_size=count - 1, max_size=count - 1)),
        ]
    if draw(st.booleans()):
        rows["group"] = draw(st.lists(st.sampled_from(["", "p1", "p 2"]), min_size=count, max_size=count))
    if draw(st.booleans()):
        numbers = st.decimals(0, 100, places=2).map(str)
        rows["weight"] = draw(st.lists(numbers, min_size=count, max_size=count))
    if draw(st.booleans()):
        rows["remark"] = draw(st.lists(LABELS, min_size=count, max_size=count))
    names = {name: draw(st.sampled_from([name, *OTHER_NAMES.get(name, [])])) for name in rows}
    separator = draw(st.sampled_from(",;\t|"))
    order = draw(st.permutations(list(rows)))
    cells = [[names[name] for name in order], *zip(*(rows[name] for name in order))]
    if separator == ";" and "weight" in rows:
        at = order.index("weight")
        cells[1:] = [[*row[:at], row[at].replace(".", ","), *row[at + 1 :]] for row in cells[1:]]
    if draw(st.booleans()):
        cells = [[("" if i == 0 else str(i - 1)), *row] for i, row in enumerate(cells)]  # as pandas writes the index
    shape = draw(st.sampled_from(["even", "short", "trailing"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [""] * draw(st.integers(0, 1))
    for i, row in enumerate(cells):
        row = list(row)
        while i and shape == "short" and len(row) > 2 and not row[-1]:
            row.pop()
        text = io.StringIO()
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        csv.writer(text, delimiter=separator, quoting=quoting, lineterminator="\r\n").writerow(row)
        lines.append(text.getvalue().removesuffix("\r\n") + (separator if shape == "trailing" else ""))
        lines += draw(st.sampled_from([[], [], [""], ["", ""]])) if i else []
    text = end.join(lines) + end * draw(st.integers(0, 2))
    above = draw(st.sampled_from(["", "", f"sep={separator}", '# exported\n#, by "hand']))
    encoding = draw(st.sampled_from(ENCODINGS))
    try:
        data = ((above + "\n" if above else "") + text).encode(encoding)
    except UnicodeEncodeError:
        assume(False)
    if encoding == "cp1252":  # which is assumed where the bytes are not UTF-8, as those of ß€ are
        assume("ß€" not in text)
        with contextlib.suppress(UnicodeDecodeError):
            assume(data.decode() == data.decode(encoding))
    if encoding == "utf-16-le":  # which has no mark; ASCII gives it away
        assume(data.count(0) > len(data) / 4)
    # Not as bytes: pandas loses a first cell that is empty behind an empty line that ends in a carriage return.
    return data, text.replace(end, "\n"), separator, names


@given(tables())
def test_read_csv_as_pandas_does(case):
    data, text, separator, names = case
    table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    table = table.fillna("").rename(columns=lambda name: name.strip())
    table = table[(table != "").any(axis=1)]
    column = {name: table[given.strip()].str.strip().tolist() for name, given in names.items()}
    with tempfile.TemporaryDirectory() as root:
        for name in column["image"]:
            Path(root, name).touch()
        Path(root, "t.csv").write_bytes(data)
        columns, notes = read_csv(Path(root, "t.csv"))
    expected = {
        "image": [os.path.join(root, cell) for cell in column["image"]],
        "label": [cell or None for cell in column["label"]],
    }
    if "split" in names:
        expected["split"] = [SPLITS[cell] for cell in column["split"]]
    if "group" in names:
        expected["group"] = [cell or None for cell in column["group"]]
    if "weight" in names:
        expected["weight"] = [float(cell.replace(",", ".")) for cell in column["weight"]]
    assert columns == expected
    assert any("not used: " in note and "remark" in note for note in notes) == ("remark" in names)


NAMES = st.text(st.sampled_from("abÄé猫 0%."), min_size=1, max_size=5).map(lambda t: unicodedata.normalize("NFC", t))
NAMES = NAMES.filter(lambda name: name.strip(". ") and name == name.strip())
# How a path is written: function of the path from the folder of the images.
STYLES = {
    "as it is": lambda path: path,
    "with a dot": lambda path: f"./{path}",
    "up and down": lambda path: f"../data/{path}",
    "backslashes": lambda path: path.replace("/", "\\"),
    "of Linux": lambda path: f"/home/bob/pictures/{path}",
    "of a Mac": lambda path: f"/Users/bob/{unicodedata.normalize('NFD', path)}",
    "of Windows": lambda path: "C:\\Users\\Bob\\My pictures\\" + path.replace("/", "\\"),
    "of a share": lambda path: "\\\\nas\\home\\" + path.replace("/", "\\"),
    "with the folder's name": lambda path: f"data/{path}",
    "other form": lambda path: unicodedata.normalize("NFD", path),
    "other capitals": lambda path: os.path.splitext(path)[0] + os.path.splitext(path)[1].swapcase(),
    "address": lambda path: "file:///home/bob/" + path.replace("%", "%25").replace(" ", "%20"),
    "with spaces": lambda path: f" {path} ",
}


@st.composite
def images(draw):
    """Paths of images in the folder data, no two alike but for case or form, and which of them are missing."""
    parts = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
    paths = draw(st.lists(parts, min_size=1, max_size=6, unique_by=str.casefold))
    paths = [path + draw(st.sampled_from([".png", ".JPG"])) for path in paths]
    for path in paths:  # a file is no folder
        assume(not any(other.casefold().startswith(path.casefold() + "/") for other in paths))
    missing = draw(st.one_of(st.just(set()), st.sets(st.sampled_from(paths), max_size=2)))
    return paths, missing


@given(images(), st.sampled_from(sorted(STYLES)), st.sampled_from(["table", "here", "absolute"]), st.booleans())
def test_paths(case, style, place, copied):
    """Each path leads to its own image or, if that is missing, to none: not to an old copy in the working folder."""
    paths, missing = case
    cells = [STYLES[style](path) for path in paths]
    with tempfile.TemporaryDirectory() as root:
        data, table = Path(root, "data"), Path(root, "tables" if place == "here" else "data", "t.csv")
        table.parent.mkdir()
        data.mkdir(exist_ok=True)
        if place == "absolute":
            cells = [str(data / path) for path in paths]
        for path in set(paths) - missing:
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (data / path).touch()
        here = data if place == "here" else Path(root, "old")
        if place != "here":
            here.mkdir()
        if copied and place != "here" and len(missing) < len(paths):  # where none is there, the old ones may be meant
            for path in paths:
                (here / path).parent.mkdir(parents=True, exist_ok=True)
                (here / path).touch()
        with open(table, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "label"), *((cell, "cat") for cell in cells)])
        with contextlib.chdir(here):
            if len(missing) == len(paths):
                with pytest.raises(
                    ValueError, match=f"^{len(paths)} of {len(paths)} images of t.csv are not found, such as"
                ):
                    read_csv(table)
                return
            columns, notes = read_csv(table)
        for path, found in zip(paths, columns["image"], strict=True):
            if path in missing:
                assert not os.path.exists(found)
            else:
                assert os.path.samefile(found, data / path)
        elsewhere = [
            cell for path, cell in zip(paths, cells) if path not in missing and not (table.parent / cell).exists()
        ]
        told = [note for note in notes if "do not exist as they are written" in note]
        assert [note.split()[0] for note in told] == ([str(len(elsewhere))] if elsewhere else [])
