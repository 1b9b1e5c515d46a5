"""Tables of pictures, good and bad."""

import pytest

from thaw.data.csv_columns import csv_columns


def read(folder, text, encoding="utf-8"):
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return csv_columns(path)


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
        ("image,label\n", "has a header but no rows; expected one row for each picture"),
        ("image;label\n1;a\n", "separates its columns with semicolons; expected commas"),
        ("image\tlabel\n1\ta\n", "separates its columns with tabs; expected commas"),
        ("file,label\n1,a\n", r"has no column 'image' \(it has: file, label\); expected image and label"),
        ("image,class\n1,a\n", r"has no column 'label' \(it has: image, class\)"),
        ("image,label,label\n1,a,b\n", "has the column 'label' 2 times; expected it once"),
        ("image,label\n1,a\n2\n", "line 3: 1 cells, expected 2 as in the header"),
        ("image,label\n1,a,b\n", "line 2: 3 cells, expected 2"),
        ("image,label\n1,a\n2, \n", "line 3: label is empty; expected the name of a class"),
        ("image,label\n,a\n", "line 2: image is empty; expected the path of a picture"),
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
