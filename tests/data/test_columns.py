"""load_table: kinds of columns, gaps, findings, splits."""

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from thaw.data.column_kinds import Column, as_date, category_text, describe_column, encode_columns, find_kind
from thaw.data.columns import load_table
from thaw.data.table_rows import read_rows

ROWS = 120


def table(**columns):
    """A table of two classes with a number that is no identifier, and more columns."""
    rng = np.random.default_rng(0)
    number = rng.normal(size=ROWS).round(2).tolist()
    label = ["yes" if value + rng.normal() > 0 else "no" for value in number]
    return {"number": number, **columns, "label": label}


def kinds(splits):
    return {column.name: column.kind for column in splits.columns}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2.5", None, "-3e2"], "number"),
        ([1, 2.0, 3], "number"),
        (["1,5", "2,25"], "number"),
        (["red", "green", None], "category"),
        (["1", "2", "red"], "category"),
        (["yes", "No", "yes"], "boolean"),
        ([True, False, None], "boolean"),
        (["2024-01-31", "2024-02-01T10:30:00"], "date"),
        ([datetime.datetime(2024, 1, 31), None], "date"),
        (["the film was rather long", "a book that I liked a lot"], "ignored"),
        ([None, None], "ignored"),
        ([[1, 2], [3]], "ignored"),
    ],
)
def test_the_kind_of_a_column_is_found(values, kind):
    assert find_kind("c", values)[0] == kind


def test_mixed_types_are_said():
    many = [str(i) for i in range(50)]
    kind, note = find_kind("age", [*many, "unknown"])
    assert kind == "number"
    assert "50 numbers and 1 other" in note
    assert "'unknown'" in note
    assert "missing" in note
    kind, note = find_kind("grade", ["1", "2", "A", "1"])
    assert kind == "category"
    assert "each is a category" in note


def test_decimal_commas_are_read_and_thousands_refused():
    assert describe_column("p", "number", ["1,5", "2,5", None]) == Column("p", "number", 2.0, True, True)
    assert encode_columns({"p": ["0,25", "3"]}, (Column("p", "number", decimal_comma=True),))["p"].ravel().tolist() == [
        0.25,
        3.0,
    ]
    # 1,500 is one and a half beside 2,25, and nobody knows alone.
    assert find_kind("p", ["1,500", "2,25"])[0] == "number"
    with pytest.raises(ValueError, match=r"'1,500', which may be 1.500 or 1500"):
        find_kind("p", ["1,500", "2,250"])


def test_gaps_are_the_median_of_the_training_rows_and_a_sign():
    column = describe_column("age", "number", [10, None, 30, 50])
    x = encode_columns({"age": [None, "7"]}, (column,))
    assert x["age"].ravel().tolist() == [30, 7]
    assert x["age (missing)"].ravel().tolist() == [1, 0]
    assert x["age"].dtype == np.float32
    assert x["age"].shape == (2, 1)
    # Without gaps in training there is no sign, and a later gap is filled.
    column = describe_column("age", "number", [10, 20, 30])
    assert encode_columns({"age": [None]}, (column,)).keys() == {"age"}


def test_dates_are_days_in_universal_time():
    days = encode_columns({"d": ["1970-01-02", "1970-01-03T12:00:00", None]}, (Column("d", "date", 5.0),))["d"]
    assert days.ravel().tolist() == [1.0, 2.5, 5.0]
    assert as_date("2024-05-31T01:00:00+02:00") == datetime.datetime(2024, 5, 30, 23)


def test_whole_numbers_are_the_same_category_with_and_without_a_point():
    assert [category_text(v) for v in (3, 3.0, "3", True, None)] == ["3", "3", "3", "True", ""]


def test_values_of_another_kind_than_in_training_are_refused():
    with pytest.raises(ValueError, match="'age' holds 'old'; expected a number"):
        encode_columns({"age": ["old", "new"]}, (Column("age", "number"),))
    with pytest.raises(ValueError, match="no column 'age'"):
        encode_columns({"size": [1]}, (Column("age", "number"),))


def test_every_source_gives_the_same(tmp_path):
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {
        "n": [1.5, None, 3.0],
        "town": ["Ulm", "Bonn", None],
        "day": [datetime.datetime(2024, 1, d) for d in (1, 2, 3)],
    }
    frame = pd.DataFrame(rows)
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    sources = [rows, frame, polars.DataFrame(rows), pyarrow.table(rows), tmp_path / "t.parquet"]
    assert all(read_rows(source)[0] == rows for source in sources)
    columns = (Column("n", "number", 2.25, True), Column("town", "category"), Column("day", "date"))
    expected = encode_columns(rows, columns)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    lines = [{**row, "day": row["day"].isoformat()} for row in frame.to_dict("records")]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in lines))
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        x = encode_columns(read_rows(tmp_path / name)[0], columns)
        assert x.keys() == expected.keys()
        assert all(np.array_equal(x[key], expected[key]) for key in x), name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,a\n1,2\n", "the column 'a' 2 times"),
        ("t.csv", "a,b\n1,2,3\n", "line 2: 3 cells, expected 2"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.csv", "", "is empty"),
        ("t.jsonl", '{"a": 1}\n[2]\n', "line 2: a list"),
        ("t.jsonl", "{'a': 1}\n", "line 1: no JSON"),
        ("t.docx", "a", "ends in .docx"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_rows(tmp_path / "other.csv")


def test_semicolons_and_quotes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a;b\n"1;2";x, y\n3;z\n')
    assert read_rows(path)[0] == {"a": ["1;2", "3"], "b": ["x, y", "z"]}


def test_columns_that_tell_nothing_or_all_are_found():
    base = table()
    splits = load_table(
        table(
            customer=list(range(1000, 1000 + ROWS)),
            code=[f"c{i}" for i in range(ROWS)],
            country=["DE"] * ROWS,
            left=[{"yes": "J", "no": "N"}[label] for label in base["label"]],
            comment=[f"this is the comment number {i} of all" for i in range(ROWS)],
            town=["Ulm", "Bonn", "Kiel"] * (ROWS // 3),
        )
    )
    assert kinds(splits) == {"number": "number", "town": "category"}
    for name, words in {
        "customer": "another whole number in each row",
        "code": "another text in each row",
        "country": "is DE in all rows",
        "left": "says the label of every row",
        "comment": "holds texts of 8 words",
    }.items():
        assert any(repr(name) in note and words in note for note in splits.notes), name
    # What is named is used.
    said = load_table(table(customer=list(range(ROWS))), columns={"customer": "number", "number": "ignored"})
    assert kinds(said) == {"customer": "number"}


def test_a_number_that_is_the_label_in_another_unit_is_found():
    rng = np.random.default_rng(1)
    price, size = rng.normal(size=ROWS).round(3), rng.normal(size=ROWS).round(3)
    splits = load_table({"size": size, "cents": price * 100, "price": price}, label="price")
    assert kinds(splits) == {"size": "number"}
    assert any("'cents' says the label" in note for note in splits.notes)


def test_numbers_are_regression_and_few_are_classes():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=ROWS).round(2).tolist(), rng.normal(5, 2, ROWS).tolist()
    splits = load_table({"x": x, "price": y}, label="price")
    assert type(splits.task).__name__ == "Regression"
    assert splits.train.y.shape == (len(splits.train), 1)
    # Standardized by the training rows alone.
    assert splits.task.mean[0] == pytest.approx(splits.train.y.mean(), rel=1e-6)
    assert splits.task.deviation[0] == pytest.approx(splits.train.y.std(), rel=1e-5)
    stars = rng.integers(1, 6, ROWS).tolist()
    assert load_table({"x": x, "stars": stars}, label="stars").labels == tuple("12345")
    assert load_table({"x": x, "stars": stars}, label="stars", task="regression").labels == ("stars",)


def test_the_median_is_that_of_the_training_rows():
    values = np.arange(ROWS, dtype=float)
    values[::7] = np.nan
    given = ["train"] * 80 + ["validation"] * 20 + ["test"] * 20
    splits = load_table(table(age=np.random.default_rng(0).permutation(values).tolist(), split=given), label="label")
    column = next(column for column in splits.columns if column.name == "age")
    known = splits.train.x["age"][splits.train.x["age (missing)"] == 0]
    assert column.missing
    assert column.fill == pytest.approx(np.median(known))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [80, 20, 20]


def test_equal_rows_share_a_split_and_are_noted_across_given_ones():
    base = table(town=["Ulm", "Bonn"] * (ROWS // 2))
    twice = {name: values + values for name, values in base.items()}
    splits = load_table(twice)
    parts = [set(part.keys.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    assert any("repeat an earlier one" in note for note in splits.notes)
    given = ["train"] * ROWS + ["validation", "test"] * (ROWS // 2)
    assert any("in several splits, as given" in note for note in load_table({**twice, "split": given}).notes)


def test_equal_rows_with_different_labels_are_said():
    base = table()
    base["number"][1] = base["number"][0]
    base["label"][:2] = ["yes", "no"]
    assert any("no model can tell them apart" in note for note in load_table(base).notes)


def test_a_group_stays_together_and_time_goes_forward():
    groups = [f"g{i // 6}" for i in range(ROWS)]
    splits = load_table(table(patient=groups), group="patient")
    assert "patient" not in kinds(splits)
    sets = [set(part.groups.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not (sets[0] & sets[1])
    assert not (sets[0] & sets[2])
    days = [f"2024-01-{1 + i % 28:02d}" for i in range(ROWS)]
    by_time = load_table(table(day=days, again=days), time="day", columns=["again"])
    assert by_time.train.x["again"].max() < by_time.validation.x["again"].min()
    assert by_time.validation.x["again"].max() < by_time.test.x["again"].min()


def test_rows_without_a_label_are_left_out():
    base = table()
    base["label"][3] = None
    splits = load_table(base)
    assert [str(row) for row in splits.rejected] == ["row 4 has no label"]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == ROWS - 1


def test_many_categories_are_said():
    town = [f"town {i % 110}" for i in range(4 * ROWS)]
    base = {name: values * 4 for name, values in table().items()}
    notes = load_table({**base, "town": town}).notes
    assert any("'town' has" in note and "in one training row only" in note for note in notes)


def test_the_same_seed_is_the_same_split():
    first, again, other = (load_table(table(), seed=seed) for seed in (3, 3, 4))
    assert first.digest == again.digest != other.digest
    assert np.array_equal(first.train.x["number"], again.train.x["number"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "labels"}, "no column 'labels' .*; name the one that holds the label, label=COLUMN"),
        ({"split": "fold"}, "no column 'fold' .*; name the one that holds the split, split=COLUMN"),
        ({"task": "ranking"}, "task='ranking'"),
        ({"task": "regression"}, "expected a number in every row"),
        ({"columns": {"number": "float"}}, "the kind 'float'"),
        ({"columns": ["size"]}, "names 'size'; expected some of: number"),
        ({"columns": {"number": "ignored"}}, "no column to predict from"),
        ({"seed": -1}, "seed=-1"),
        ({"splits": (0.5, 0.5)}, "splits is"),
        ({"time": "number2"}, "the time, time=COLUMN"),
    ],
)
def test_wrong_arguments_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        load_table(table(), **changes)


def test_an_identifier_as_label_is_refused():
    with pytest.raises(ValueError, match="has 120 classes in 120 rows"):
        load_table({**table(), "label": [f"name{i}" for i in range(ROWS)]})


def test_two_columns_that_would_be_one_input_are_refused():
    values = table()["number"]
    with pytest.raises(ValueError, match="Two columns would be the input 'km_h'"):
        load_table({**table(), "km/h": values[::-1], "km_h": values[5:] + values[:5]})
