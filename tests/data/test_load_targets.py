"""Images with several labels, or with numbers, from a table."""

import numpy as np
import pytest
from PIL import Image

from thaw import load_images
from thaw.data.images import read_labelled
from thaw.targets import MultiLabel, Regression


@pytest.fixture
def table(tmp_path):
    """A function that writes a table of 40 images with these further columns, and returns its path."""

    def write(columns, name="table.csv", separator=","):
        rng = np.random.default_rng(0)
        lines = [separator.join(["image", *columns])]
        for i in range(40):
            pixels = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            lines.append(separator.join([f"{i}.png", *(str(column(i)) for column in columns.values())]))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


def loaded(path, **options):
    return load_images(path, image_size=8, cache_dir=path.parent / "cache", **options)


def all_of(splits, field="y"):
    parts = [getattr(splits, name) for name in ("train", "validation", "test")]
    order = np.argsort([int(f.split("/")[-1][:-4]) for n in ("train", "validation", "test") for f in splits.files[n]])
    return np.concatenate([getattr(part, field) for part in parts])[order]


def test_one_number(table):
    path = table({"price": lambda i: 1.5 * i, "place": lambda i: "x"})
    splits = loaded(path, task="regression", label="price")
    assert all_of(splits).tolist() == [[1.5 * i] for i in range(40)]
    y = splits.train.y
    assert splits.task == Regression(("price",), mean=y.mean(0), deviation=y.astype(float).std(0))
    assert splits.class_weight is None
    assert str(splits).startswith(f"{len(splits.train)} train, ")
    assert "examples with 1 number: price" in str(splits)
    assert "Columns of table.csv that are not used: place." in splits.notes


def test_several_numbers_with_decimal_commas(table):
    path = table({"x": lambda i: f"{i},5", "y": lambda i: -i}, separator=";")
    splits = loaded(path, task="regression", label=["x", "y"])
    assert all_of(splits).tolist() == [[i + 0.5, -i] for i in range(40)]
    assert splits.task.targets == ("x", "y")
    assert splits.task.levels is None


def test_few_values_are_ordered_classes(table):
    splits = loaded(table({"label": lambda i: i % 4 / 4}), task="regression")
    assert splits.task.levels == (0, 0.25, 0.5, 0.75)
    assert any("'label' takes 4 values" in note for note in splits.notes)


def test_labels_in_one_column(table):
    path = table({"label": lambda i: ["", "cat", "cat | hat", "hat|dog"][i % 4]})
    splits = loaded(path, task="multilabel")
    assert splits.task == MultiLabel(["cat", "dog", "hat"])
    assert all_of(splits).tolist() == 10 * [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1]]
    assert "Rows of table.csv without any label: 10; they count as examples of none." in splits.notes


def test_a_column_for_each_label(table):
    path = table({"wet": lambda i: i % 2, "cold": lambda i: ["no", "TRUE", "0.0"][i % 3]})
    splits = loaded(path, task="multilabel", label=("cold", "wet"))
    assert splits.task.labels == ("cold", "wet")
    assert all_of(splits).tolist() == [[i % 3 == 1, i % 2 == 1] for i in range(40)]


def test_another_column_holds_the_classes(table):
    splits = loaded(table({"kind": lambda i: "ab"[i % 2], "label": lambda i: "x"}), label="kind")
    assert splits.labels == ("a", "b")


def test_a_row_without_a_number_is_left_out_and_counted(table):
    path = table({"label": lambda i: "" if i == 3 else i})
    splits = loaded(path, task="regression")
    assert [(r.path.split("/")[-1], r.reason) for r in splits.rejected] == [("3.png", "has no number")]


def test_splits_and_groups_are_kept(table):
    path = table(
        {"label": lambda i: i, "split": lambda i: ("train", "val", "test")[i % 3], "group": lambda i: f"g{i % 3}"}
    )
    splits = loaded(path, task="regression")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (14, 13, 13)
    assert splits.train.groups is not None


def test_copies_with_other_labels_are_left_out_and_those_with_other_numbers_are_not(table, tmp_path):
    path = table({"label": lambda i: "ab|c"[i % 4 : i % 4 + 1].strip("|") or "c", "number": lambda i: i})
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    rejected = loaded(path, task="multilabel", max_bad=0.1).rejected
    assert {r.reason for r in rejected} == {"is the same image in different classes: 'a' and 'b'"}
    assert not loaded(path, task="regression", label="number").rejected


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": lambda i: "cat"}, {"task": "regression"}, r"line 2: label is 'cat'; expected a number"),
        ({"label": lambda i: ""}, {"task": "regression"}, "no row has a number under label"),
        ({"label": lambda i: 5}, {"task": "regression"}, "'label' is 5 in all examples"),
        ({"label": lambda i: '"1,500"'}, {"task": "regression"}, "write 1.5 or 1500"),
        ({"a": lambda i: i}, {"task": "regression", "label": "b"}, "has no column 'b' for label="),
        ({"a": lambda i: i}, {"task": "regression", "label": ["a", "b"]}, "has no column 'b' for label="),
        ({"label": lambda i: "cat"}, {"task": "multilabel"}, "has 1 labels .cat.; expected two or more"),
        (
            {"a": lambda i: 0, "b": lambda i: 2},
            {"task": "multilabel", "label": ["a", "b"]},
            "b is '2'; expected 0 or 1",
        ),
        ({"a": lambda i: 0, "b": lambda i: 2}, {"label": ["a", "b"]}, "an image has one class"),
        ({"label": lambda i: i}, {"task": "ranking"}, "expected one of classification, multilabel, regression"),
        ({"label": lambda i: i}, {"task": "regression", "balance": "balanced"}, "is for classes"),
        ({"label": lambda i: i}, {"task": "regression", "label": []}, "expected the name of a column"),
    ],
)
def test_what_cannot_be_read_is_refused(table, columns, options, message):
    with pytest.raises(ValueError, match=message):
        loaded(table(columns), **options)


def test_a_folder_has_no_numbers(tmp_path):
    with pytest.raises(ValueError, match="is a folder, and task='regression' needs a CSV file"):
        read_labelled(tmp_path, "regression")
    with pytest.raises(ValueError, match="is a folder, and label='kind' needs a CSV file"):
        read_labelled(tmp_path, "classification", label="kind")
