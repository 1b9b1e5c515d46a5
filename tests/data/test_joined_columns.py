"""load_columns: pictures, texts and numbers in one row; what is left out, what shares a split, what is found again."""

import numpy as np
import pytest
from PIL import Image

from thaw import Dataset
from thaw.data.image_decoding import decode
from thaw.data.joined_columns import encode_rows, load_columns, select_inputs
from thaw.data.text import encode_texts, load_tokenizer

ROWS = 60
SIZE = 8


@pytest.fixture
def table(tmp_path):
    """Rows of a shop: a photograph, a title, a price with gaps, a town, and whether it was sold."""
    rng = np.random.default_rng(0)
    for i in range(ROWS):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return {
        "photo": [str(tmp_path / f"{i}.png") for i in range(ROWS)],
        "title": [f"chair number {i}" for i in range(ROWS)],
        "price": [None if i % 7 == 3 else float(i) for i in range(ROWS)],
        "town": [("Ulm", "Bonn", "Jena")[i % 3] for i in range(ROWS)],
        "sold": [("no", "yes")[i % 2] for i in range(ROWS)],
    }


def load(table, **options):
    named = {"image": "photo", "text": "title", "numbers": "price,town", "label": "sold", "image_size": SIZE}
    return load_columns(table, **named | options)


def rows_of(splits):
    """The number of each row, in the order of the three datasets."""
    return [[int(name.split()[-1]) - 1 for name in splits.files[part]] for part in ("train", "validation", "test")]


def test_a_row_is_what_the_columns_hold(table):
    splits = load(table)
    assert splits.inputs == {
        "image": ("image",),
        "text": ("text",),
        "numbers": ("price", "price (missing)", "town"),
    }
    train, _, _ = rows_of(splits)
    known = [table["price"][i] for i in train if table["price"][i] is not None]
    assert len(known) < len(train)
    pieces = encode_texts(load_tokenizer(), table["title"], 32)
    for part, rows in zip((splits.train, splits.validation, splits.test), rows_of(splits), strict=True):
        batches = list(part.ordered(16))
        x = {name: np.concatenate([batch[0][name] for batch in batches]) for name in batches[0][0]}
        assert sorted(x) == ["image", "price", "price (missing)", "text", "town"]
        assert x["image"].dtype == np.float32
        assert np.array_equal(x["image"], [decode(table["photo"][i], SIZE) for i in rows])
        assert x["text"].dtype == np.int32
        assert np.array_equal(x["text"], pieces[rows])
        prices = [np.median(known) if table["price"][i] is None else table["price"][i] for i in rows]
        assert np.array_equal(x["price"][:, 0], np.float32(prices))
        assert np.array_equal(x["price (missing)"][:, 0], [float(table["price"][i] is None) for i in rows])
        assert [town.decode() for town in x["town"][:, 0]] == [table["town"][i] for i in rows]
        assert splits.task.decode(np.eye(2)[np.concatenate([batch[1] for batch in batches])]) == [
            table["sold"][i] for i in rows
        ]


def test_a_file_is_read_as_a_frame_is(table, tmp_path):
    lines = ["photo,title,price,town,sold"]
    for photo, *texts, price, town, sold in zip(*table.values(), strict=True):
        number = "" if price is None else f"{price:g}"
        lines.append(",".join([photo.rsplit("/", 1)[1], *texts, number, town, sold]))  # from the folder of the table
    (tmp_path / "shop.csv").write_text("\n".join(lines))
    of_file, of_dict = load(tmp_path / "shop.csv"), load(table)
    assert rows_of(of_file) == rows_of(of_dict)
    assert of_file.digest == of_dict.digest
    assert np.array_equal(of_file.train.x["price"], of_dict.train.x["price"])
    assert np.array_equal(of_file.train.content_keys, of_dict.train.content_keys)


@pytest.mark.parametrize("left_out", ["image", "text", "numbers"])
def test_two_kinds_of_columns_are_enough(table, left_out):
    splits = load(table, **{left_out: None})
    assert left_out not in splits.inputs
    assert {name for names in splits.inputs.values() for name in names} == set(splits.train.x)
    assert (splits.train.load is None) == (left_out == "image")


def test_rows_without_an_image_are_left_out_and_those_without_a_text_stay(table, tmp_path):
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:40])
    table["photo"][9] = None
    table["title"][11] = None
    splits = load(table, max_bad=0.1)
    assert [rejected.path for rejected in splits.rejected] == ["the table, row 5", "the table, row 10"]
    assert "4.png, which" in splits.rejected[0].reason
    assert splits.rejected[1].reason == "has no image"
    used = [row for rows in rows_of(splits) for row in rows]
    assert sorted(used) == [i for i in range(ROWS) if i not in (4, 9)]
    assert any("Rows without a text: 1, such as the table, row 12" in note for note in splits.notes)
    with pytest.raises(ValueError, match="2 of 60 rows are bad"):
        load(table, max_bad=0.01)


def share_a_split(splits, first, second):
    return any({first, second} <= set(rows) for rows in rows_of(splits))


def test_what_is_the_same_shares_a_split(table):
    train, validation, _ = rows_of(load(table))
    i, j = train[0], validation[0]
    for column, value in (("photo", table["photo"][i]), ("title", "one and the same chair")):
        changed = {name: list(values) for name, values in table.items()}
        changed[column][i] = changed[column][j] = value
        assert share_a_split(load(changed), i, j)
    table["shop"] = ["one" if row in (i, j) else f"shop {row}" for row in range(ROWS)]
    splits = load(table, group="shop")
    assert share_a_split(splits, i, j)
    # So that folds keep the rows of a group together.
    parts = zip((splits.train, splits.validation, splits.test), rows_of(splits), strict=True)
    [numbers] = [[part.groups[rows.index(row)] for row in (i, j)] for part, rows in parts if i in rows]
    assert numbers[0] == numbers[1]


def test_a_short_text_is_that_of_many_things(table):
    table["title"] = ["chair"] * ROWS
    train, validation, _ = rows_of(load(table, image=None))
    assert train
    assert validation


def test_one_picture_may_be_of_two_classes_beside_other_texts(table):
    table["photo"][1] = table["photo"][0]  # their labels differ
    splits = load(table)
    assert not splits.rejected
    assert share_a_split(splits, 0, 1)


def test_given_splits_are_used(table):
    table["split"] = [("train", "train", "train", "val", "test")[i % 5] for i in range(ROWS)]
    train, validation, test = rows_of(load(table))
    assert validation == list(range(3, ROWS, 5))
    assert test == list(range(4, ROWS, 5))
    assert len(train) == 36


def test_the_kinds_of_numbers_can_be_said(table):
    table["sizes"] = [("1", "2", "3")[i % 3] for i in range(ROWS)]
    found = load(table, numbers=["sizes"], image=None).columns
    said = load(table, numbers={"sizes": "category"}, image=None).columns
    assert [found[0].kind, said[0].kind] == ["number", "category"]


def test_keys_name_the_content_of_a_row(table):
    first, again = load(table), load({name: values[::-1] for name, values in table.items()})

    def keys_of(splits, names=None):
        parts = [splits.train, splits.validation, splits.test]
        parts = parts if names is None else [select_inputs(part, names) for part in parts]
        return np.sort(np.concatenate([part.content_keys for part in parts]))

    assert np.array_equal(keys_of(first), keys_of(again))
    changed = table | {"title": [*table["title"][:-1], "another title"]}
    assert (keys_of(first) != keys_of(load(changed))).any()
    assert np.array_equal(keys_of(first, ["image"]), keys_of(load(changed), ["image"]))
    assert len(set(keys_of(first).tolist())) == ROWS
    other_size = load(table, image_size=SIZE + 1)
    assert not np.isin(keys_of(first, ["image"]), keys_of(other_size, ["image"])).any()


def test_selected_inputs_are_loaded_alone(table):
    train = load(table).train
    [(x, _)] = select_inputs(train, ["image", "price"]).ordered(ROWS)
    assert list(x) == ["image", "price"]
    assert x["image"].shape == (len(train), SIZE, SIZE, 3)
    assert select_inputs(train, ["text"]).load is None
    with pytest.raises(ValueError, match=r"no input 'weight' \(there are: image, text, price"):
        select_inputs(train, ["weight"])
    with pytest.raises(ValueError, match="expected a dict of inputs"):
        select_inputs(Dataset(x=np.zeros((2, 2))), ["image"])
    own = Dataset(x={"a": np.zeros((2, 1)), "b": np.zeros((2, 1))}, load=lambda x: x)
    with pytest.raises(ValueError, match="a function of all of them"):
        select_inputs(own, ["a"])


def made_of(splits):
    names = ("image", "text", "columns", "image_size", "tokenizer")
    return {name: getattr(splits, name) for name in names} | {"length": splits.train.x["text"].shape[1]}


def test_other_rows_are_encoded_as_those_of_training(table, tmp_path):
    splits = load(table)
    train, _, _ = rows_of(splits)
    x, bad = encode_rows({name: table[name] for name in ("town", "title", "photo", "price")}, **made_of(splits))
    assert not bad
    [(expected, _)] = splits.train.ordered(ROWS)
    assert sorted(x) == sorted(expected)
    for name, values in expected.items():
        rows = x[name][train].tolist()
        assert (
            rows == [[town.decode()] for [town] in values.numpy()]
            if name == "town"
            else rows == values.numpy().tolist()
        )
    (tmp_path / "3.png").write_bytes(b"no image")
    table["photo"][5], table["photo"][6] = None, str(tmp_path / "nowhere.png")
    x, bad = encode_rows(table, **made_of(splits))
    assert sorted(bad) == [3, 5, 6]
    assert bad[5] == "has no image"
    assert "nowhere.png, which cannot be read: No such file" in bad[6]
    assert not x["image"][[3, 5, 6]].any()
    with pytest.raises(ValueError, match=r"no column 'title' for text= \(it has: photo"):
        encode_rows({name: table[name] for name in ("photo", "price", "town")}, **made_of(splits))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image": None, "text": None, "numbers": None}, "No column is named to predict from"),
        ({"image": "picture"}, r"no column 'picture' for image= \(it has: photo, title"),
        ({"numbers": "price, weight"}, "no column 'weight' for numbers="),
        ({"numbers": {"price": "euro"}}, "kind 'euro'; expected one of number, category"),
        ({"numbers": [3]}, "expected names of columns"),
        ({"numbers": "price,sold"}, "'sold' is named for two things"),
        ({"label": "title", "text": None}, "has 60 classes in 60 rows"),
        ({"split": "town", "numbers": "price"}, "'town' holds 'Ulm'; expected train, validation or test"),
        ({"image": "title", "text": None}, "60 of 60 images of the table are not found"),
        ({"image_size": 4}, "from 8 to 4096"),
        ({"max_length": 100}, "expected one of 32, 64, 128, 256 pieces"),
        ({"balance": "even"}, "balance='even'"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(table, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(table, **options)


def test_columns_that_cannot_be_used_are_refused(table):
    table |= {"essay": [f"these are five words and {i}" for i in range(ROWS)], "text": table["price"]}
    with pytest.raises(ValueError, match=r"'essay' holds texts .* Leave it out of numbers="):
        load(table, numbers="essay")
    with pytest.raises(ValueError, match="Two inputs of the model would be 'text'"):
        load(table, numbers="text")
    with pytest.raises(ValueError, match="label 'sold' is empty"):
        load(table | {"sold": [None] * ROWS})
    with pytest.raises(ValueError, match="column of texts is empty"):
        load(table | {"title": [None] * ROWS})
    with pytest.raises(ValueError, match="'photo' is empty in all rows"):
        load(table | {"photo": [None] * ROWS})
