"""read_csv, read_files: tables of images, good and bad."""

import datetime

import pytest

from thaw.data.files import read_csv, read_files


def read(folder, text, encoding="utf-8", **options):
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_csv(path, **options)


def test_all_columns(tmp_path):
    columns, notes = read(
        tmp_path,
        'Image, LABEL ,split,group,weight,camera\na/1.png,"cat, tame",Train,p1,2,x\n\n/abs/2.png,dog,valid,,0.5,y\n',
    )
    assert columns == {
        "image": [f"{tmp_path}/a/1.png", "/abs/2.png"],
        "label": ["cat, tame", "dog"],
        "split": ["train", "validation"],
        "group": ["p1", None],
        "weight": [2.0, 0.5],
    }
    assert notes == ("Columns of t.csv that are not used: camera.",)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    columns, _ = read(tmp_path, "image,label\r\n1.png,Käse\r\n", "utf-8-sig")
    assert columns == {"image": [f"{tmp_path}/1.png"], "label": ["Käse"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty; expected a table with the columns image and label"),
        ("image,label\n", "has a header but no rows; expected one row for each image"),
        ("image;label\n1;a\n", "separates its columns with semicolons; expected commas"),
        ("image\tlabel\n1\ta\n", "separates its columns with tabs; expected commas"),
        ("file,label\n1,a\n", r"has no column 'image' \(it has: file, label\); expected image and label"),
        ("image,class\n1,a\n", r"has no column 'label' \(it has: image, class\)"),
        ("image,label,label\n1,a,b\n", "has the column 'label' 2 times; expected it once"),
        ("image,label\n1,a\n2\n", "line 3: 1 cells, expected 2 as in the header"),
        ("image,label\n1,a,b\n", "line 2: 3 cells, expected 2"),
        ("image,label\n1,a\n2, \n", "line 3: label is empty; expected the name of a class"),
        ("image,label\n,a\n", "line 2: image is empty; expected the path of an image"),
        ("image,label\n1,a\n2,a\n./1,b\n", "line 4: ./1 is there already, in line 2; expected one row each"),
        (
            "image,label,split\n1,a,holdout\n",
            "line 2: split is 'holdout'; expected train, validation or test",
        ),
        ("image,label,split\n1,a,train\n2,a,\n", "line 3: split is ''; expected train, validation or test"),
        ("image,label,split\n1,a,test\n", "no row has the split train; expected some to learn from"),
        ("image,label,weight\n1,a,heavy\n", "line 2: weight is 'heavy'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,-1\n", "line 2: weight is '-1'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,nan\n", "line 2: weight is 'nan'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,inf\n", "line 2: weight is 'inf'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,1e39\n", "line 2: weight is '1e39'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,\n", "line 2: weight is ''; expected a number of 0 or more"),
        ("image,label\nä,a\n".encode("latin-1"), "t.csv is not UTF-8 text; save it as CSV in UTF-8"),
        ('image,label\n"1,a\n', "t.csv is not a CSV table"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_read_csv_takes_groups_and_times_from_named_columns(tmp_path):
    text = "image,label,Patient,taken,group\n1,a,p,2024-05-31,x\n2,b,,2024-06-01T10:30,y\n"
    columns, notes = read(tmp_path, text, group="patient", time="TAKEN")
    assert columns["group"] == ["p", None]
    assert columns["time"] == [datetime.datetime(2024, 5, 31), datetime.datetime(2024, 6, 1, 10, 30)]
    assert notes == ("Columns of t.csv that are not used: group.",)


def test_read_csv_takes_numbers_for_times(tmp_path):
    assert read(tmp_path, "image,label,t\n1,a,2\n2,b,-0.5\n", time="t")[0]["time"] == [2.0, -0.5]


def test_read_csv_uses_no_time_unless_it_is_named(tmp_path):
    columns, notes = read(tmp_path, "image,label,time\n1,a,2\n2,b,3\n")
    assert "time" not in columns
    assert notes == ("Columns of t.csv that are not used: time.",)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ("2024-05-31", "yesterday"),
            "line 3: t is 'yesterday'; expected an ISO date such as 2024-05-31 in every row",
        ),
        (("12", "2024-05-31"), "line 2: t is '12'; expected an ISO date"),
        (("1", "nan"), "line 2: t is '1'; expected an ISO date"),
        (("2024-05-31", ""), "line 3: t is ''; expected an ISO date"),
        (("2024-05-31", "2024-05-31T00:00:00+02:00"), "some dates of t have a time zone and some have none"),
    ],
)
def test_read_csv_refuses_a_column_without_times(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, f"image,label,t\n1,a,{cells[0]}\n2,b,{cells[1]}\n", time="t")


def test_read_csv_names_a_missing_column(tmp_path):
    with pytest.raises(ValueError, match=r"has no column 'patient' for group= \(it has: image, label\)"):
        read(tmp_path, "image,label\n1,a\n", group="patient")


@pytest.mark.parametrize("option", ["group", "time"])
def test_read_files_refuses_columns_of_a_folder(tmp_path, option):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=f"is a folder and has no column for {option}='date'; list the images in"):
        read_files(tmp_path, **{option: "date"})


def test_read_files_reads_both_into_the_same_columns(tmp_path):
    rows = []
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            (tmp_path / "photos" / split / name / "1.png").touch()
            rows.append(f"photos/{split}/{name}/1.png,{name},{split}")
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split", *rows]))
    assert read_files(tmp_path / "photos") == read_files(tmp_path / "t.csv")
