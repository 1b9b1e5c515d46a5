"""read_csv, read_files: tables of images, good and bad."""

import datetime

import pytest

from thaw.data.files import read_files
from thaw.data.tables import read_csv


def read(folder, text, encoding="utf-8", images="12", name="t.csv", **options):
    """Read a table next to images, which are called 1 and 2 or as the caller says."""
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_csv(path, **options)


def test_all_columns(tmp_path):
    columns, notes = read(
        tmp_path,
        'Image, LABEL ,split,group,weight,camera\na/1.png,"cat, tame",Train,p1,2,x\n\n/abs/2.png,dog,valid,,0.5,y\n',
        images=["a/1.png"],
    )
    assert columns == {
        "image": [f"{tmp_path}/a/1.png", "/abs/2.png"],
        "label": ["cat, tame", "dog"],
        "split": ["train", "validation"],
        "group": ["p1", None],
        "weight": [2.0, 0.5],
    }
    assert notes == ("Columns of t.csv that are not used: camera.",)


TWO = {"label": ["Käse", "dog"]}  # what each of these tables says of the images 1 and 2


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,label\r\n1,Käse\r\n2,dog\r\n", "utf-8-sig"),
        ("image,label\r1,Käse\r2,dog", "utf-8"),
        ("image,label\r\r\n1,Käse\r\r\n2,dog\r\r\n", "utf-8"),
        ("\ufeffimage,label\n1,Käse\n2,dog\n", "utf-8-sig"),  # two marks
        ("image,label\n1,Käse\n2,dog\n", "utf-16"),
        ("\ufeffimage\tlabel\r\n1\tKäse\r\n2\tdog\r\n", "utf-16-be"),  # Excel's "Unicode text"
        ("image,label\n1,Käse\n2,dog\n", "utf-16-le"),
        ("image,label\n1,Käse\n2,dog\n", "utf-32"),
        ("image;label\n1;Käse\n2;dog\n", "utf-8"),
        ("image|label\n1|Käse\n2|dog\n", "utf-8"),
        ("sep=;\nimage;label\n1;Käse\n2;dog\n", "utf-8"),
        ("sep=:\nimage:label\n1:Käse\n2:dog\n", "utf-8"),
        ('"sep=\t"\nimage\tlabel\n1\tKäse\n2\tdog\n', "utf-8"),
        ('\n;;\n# made by hand, "really\n\n# twice\nimage;label\n1;Käse\n\n;\n2;dog\n;;\n', "utf-8"),
        ("#image,label\n1,Käse\n2,dog\n", "utf-8"),
        ("'image','label'\n'1','Käse'\n'2','dog'\n", "utf-8"),
        ('"image,label"\n"1,Käse"\n"2,""dog"""\n', "utf-8"),  # each line in quotes
        ('image, "label"\n1, "Käse"\n2,\tdog \n', "utf-8"),
        ("image,label,,\n1,Käse,,\n2,dog,\n", "utf-8"),
        ("image,label\n1,Käse,\n2,dog,,,\n", "utf-8"),
        ("image,label\n1,Käse\n2,dog\n\x1a", "utf-8"),
        ("image,label\n1,Ka\u0308se\n2,d\u200bog\u00a0\n", "utf-8"),
    ],
)
def test_one_table_in_many_formats(tmp_path, text, encoding):
    columns, notes = read(tmp_path, text, encoding)
    assert columns == TWO | {"image": [f"{tmp_path}/1", f"{tmp_path}/2"]}
    assert notes == ()


@pytest.mark.parametrize("name", ["t.tsv", "t.txt", "T.CSV", "t.tab"])
def test_suffixes_of_tables(tmp_path, name):
    assert read(tmp_path, "image\tlabel\n1\tKäse\n2\tdog\n", name=name)[0]["label"] == TWO["label"]


def test_windows_encoding_is_noted(tmp_path):
    columns, notes = read(tmp_path, "image,label\n1,Käse\n2,dog\n", "cp1252")
    assert columns["label"] == TWO["label"]
    assert notes[0].startswith("t.csv is not UTF-8, and is read as Windows-1252 (Western European); if its names look")


def test_line_breaks_and_separators_in_quotes(tmp_path):
    text = 'image;label;remark\n1;"a;b";"one\ntwo, ""three"""\n2;"c\r\nd";\n3;;\n'
    columns, _ = read(tmp_path, text)
    assert columns["label"] == ["a;b", "c\r\nd", None]


@pytest.mark.parametrize("text", [",image,label\n0,1,a\n1,2,b\n", "image,label\n0,1,a\n1,2,b\n"])
def test_index_columns_of_pandas_and_r(tmp_path, text):
    columns, notes = read(tmp_path, text)
    assert columns == {"image": [f"{tmp_path}/1", f"{tmp_path}/2"], "label": ["a", "b"]}
    assert len(notes) == 1
    assert "no name" in notes[0]


def test_columns_under_other_names(tmp_path):
    columns, notes = read(tmp_path, "File Name,Class,set,id\n1,a,train,7\n2,b,val,8\n")
    assert columns["label"] == ["a", "b"]
    assert columns["split"] == ["train", "validation"]
    assert notes == (
        "Columns of t.csv taken under another name: 'File Name' for image, 'Class' for label, 'set' for split.",
        "Columns of t.csv that are not used: id.",
    )


def test_a_set_of_something_else_is_no_split(tmp_path):
    columns, notes = read(tmp_path, "image,label,set,class\n1,a,spoons,x\n2,b,forks,y\n")
    assert columns["label"] == ["a", "b"]
    assert "split" not in columns
    assert notes == ("Columns of t.csv that are not used: set, class.",)


def test_decimal_commas(tmp_path):
    columns, _ = read(tmp_path, "image;label;weight;t\n1;a;0,5;1,25\n2;b;3;-2\n", time="t")
    assert columns["weight"] == [0.5, 3.0]
    assert columns["time"] == [1.25, -2.0]


def test_rows_that_are_there_twice_count_once(tmp_path):
    columns, notes = read(tmp_path, "image,label,weight\n1,a,2\n2,b,1\n./1,a,2.0\n")
    assert columns["label"] == ["a", "b"]
    assert notes == ("Rows of t.csv that repeat an earlier one are used once: 1, the first in line 4.",)


def test_two_tables_one_after_the_other(tmp_path):
    columns, notes = read(tmp_path, "image,label\n1,a\n\ufeffimage, label\n2,b\n")
    assert columns["label"] == ["a", "b"]
    assert notes == ("Lines of t.csv that repeat the column names are ignored: 1.",)


def test_labels_that_look_the_same_are_one_class(tmp_path):
    columns, notes = read(tmp_path, "image,label\n1,Käse\n2,Ka\u0308se \n")
    assert columns["label"] == ["Käse", "Käse"]
    assert notes == (r"The names 'Ka\u0308se ' and 'K\xe4se' look the same and are one class.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty; expected a table with the columns image and label"),
        ("\n;;;\n# nothing\n", "t.csv is empty; expected a table with the columns image and label"),
        ("image,label\n", "has a header but no rows; expected one row for each image"),
        ("image,name\n1,a\n", r"has no column 'label' \(it has: image, name\); expected image and label"),
        ("picture;kind\n1;a\n", r"has no column 'label' \(it has: picture, kind\)"),
        ("1.png,cat\n2.png,dog\n", r"no column 'image' \(it has: 1.png, cat\).* the first line is a row of the table"),
        (
            "image label\n1 a\n",
            r"\(it has: image label\); expected image and label, separated by commas, semicolons, tabs",
        ),
        ("image,label,label\n1,a,b\n", "has the column 'label' 2 times; expected it once"),
        ("file,path,label\n1,1,b\n", "several columns that may hold the image: file, path; give one of them the"),
        (
            "image,label\na.b,c\na,b,c\n",
            "line 3: 3 cells, expected 2 as in the header; put a cell that holds ',' in quotes",
        ),
        ("sep=;\n\nimage;label\n1;a\n2;b;c\n", "line 5: 3 cells, expected 2"),
        ("image,label\n1\n2, \n", "line 2: label is empty, as in all rows; expected names of classes"),
        ("image,label\n,a\n1,b\n ,c\n", r"line 2: image is empty; .* the path of an image; 2 rows have none"),
        ("image,label\n1,a\n2,a\n./1,b\n", "line 4: ./1 is there already, in line 2, with another label; expected one"),
        (
            "image,label,split\n1,a,holdout\n",
            "line 2: split is 'holdout'; expected train, validation or test",
        ),
        ("image,label,split\n1,a,train\n2,a\n", "line 3: split is ''; expected train, validation or test"),
        ("image,label,weight\n1,a,heavy\n", "line 2: weight is 'heavy'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,-1\n", "line 2: weight is '-1'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,nan\n", "line 2: weight is 'nan'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,inf\n", "line 2: weight is 'inf'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,1e39\n", "line 2: weight is '1e39'; expected a number of 0 or more"),
        ("image,label,weight\n1,a,\n", "line 2: weight is ''; expected a number of 0 or more"),
        ('image,label,weight\n1,a,"1,500"\n', "line 2: weight is '1,500'; write 1.5 or 1500$"),
        ('image,label,weight\n1,a,"12,500"\n', "line 2: weight is '12,500'; write 12.5 or 12500$"),
        (b"image,label\n1,a\n\x81,a\n", "t.csv, line 3: it is not UTF-8 text; save it as CSV in UTF-8"),
        ("image,label\n1,a\n".encode("utf-16")[:-1], "not all of it is UTF-16; save it as CSV in UTF-8"),
        (
            "image,label\n1,Käse\n2,Grün".encode() + b"\xe4\n",
            "line 3: not all of it is UTF-8; save it as CSV in UTF-8",
        ),
        ("image,label\n1,a\n2,\0b\n", "line 3: there is a NUL character; the file is damaged, or is no text"),
        (b"PK\x03\x04 zipped", "t.csv is an Excel or another zipped file; save it as a CSV file of text"),
        ('image,label\n1,a\n"2,b\n3,c\n', "is not a CSV table: .* in the row that begins in line 3; write a quote"),
        ('image,label\n1,"a"b\n', "t.csv is not a CSV table: .* in the row that begins in line 2"),
        ('image,label\n1,"a" b\n', "inside quotes twice, close each one, and put nothing but a separator behind"),
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
