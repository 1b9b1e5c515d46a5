"""A table with more columns, categories or classes: before it is trained on, the model predicts what it did."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Phase, Plan, fine_tune, load_table, table_model
from thaw.data.column_kinds import encode_columns
from thaw.data.columns import TableSplits
from thaw.models import copy_model, load_model_file
from thaw.models.continuation import continue_head, continue_table

ROWS = 90
PLAN = Plan([Phase(name="all", epochs=2, learning_rate=1e-2)])


def table(rows=ROWS, seed=0, towns=("Ulm", "Bonn"), numeric=False, gaps=True):
    """A number with gaps, a category with a rare one, a date and a boolean."""
    rng = np.random.default_rng(seed)
    size = rng.normal(50, 20, rows).round(1)
    score = (size - 50) / 20 + rng.normal(0, 0.3, rows)
    return {
        "size": [None if gaps and i % 7 == 3 else float(value) for i, value in enumerate(size)],
        "town": ["Kiel" if i == 5 else str(name) for i, name in enumerate(rng.choice(towns, rows))],
        "day": [f"20{20 + i % 4}-{1 + i % 12:02}-{1 + i * 5 % 28:02}" for i in range(rows)],
        "paid": [bool(value) for value in rng.random(rows) < 0.5],
        "label": (100 + 30 * score).tolist() if numeric else np.where(score > 0, "high", "low").tolist(),
    }


def with_more(columns, seed=1):
    """The same table with a number that has gaps, a category, and a date."""
    rng, rows = np.random.default_rng(seed), len(columns["label"])
    return columns | {
        "weight": [None if i % 5 == 0 else float(w) for i, w in enumerate(rng.normal(3, 1, rows))],
        "colour": [str(c) for c in rng.choice(["red", "blue"], rows)],
        "sold": [f"2024-{1 + i % 12:02}-{1 + i * 3 % 28:02}" for i in range(rows)],
    }


def built(columns, **options):
    """Splits of a table, and a model for it whose weights are drawn, as if it were trained."""
    splits = load_table(columns, balance="none", **options)
    model = table_model(splits, members=3, width=8)
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if "int" not in str(weight.dtype):
            weight.assign(rng.normal(0.1, 0.5, weight.shape))
    return splits, model


def predicted(model, columns, splits):
    """Predictions for all rows of a table, as the splits encode them."""
    return np.asarray(model(tensors(encode_columns(columns, splits.columns))))


def tensors(x):
    return {name: keras.ops.convert_to_tensor(values.tolist()) for name, values in x.items()}


@pytest.fixture(scope="module")
def source():
    columns = table()
    splits = load_table(columns, balance="none")
    model = table_model(splits, members=3, width=8)
    fine_tune(model, PLAN, splits.train.x, splits.train.y, verbose=0)
    return columns, splits, model


def test_a_table_with_more_columns_and_categories_is_predicted_the_same(source):
    columns, splits, model = source
    before = predicted(model, parsed(columns), splits)
    more = with_more(table(150, seed=2, towns=("Ulm", "Kiel", "Mainz")))
    continued, new = continue_table(model, splits.columns, load_table(more, balance="none"))
    again = parsed(with_more(columns))
    assert np.abs(predicted(continued, again, new) - before).max() < 1e-6
    # Whatever is in the new columns, and with a value of them missing.
    other = again | {"weight": [99.0] * ROWS, "colour": [None] * ROWS, "sold": again["sold"][::-1]}
    assert np.abs(predicted(continued, other, new) - before).max() < 1e-6
    # Kiel was rare and Mainz never seen: both begin with the vector under which they were read.
    everywhere = parsed(columns) | {"town": ["Kiel", "Mainz", "Paris"] * 30}
    rest = {name: again[name] for name in ("weight", "colour", "sold")}
    assert np.abs(predicted(continued, everywhere | rest, new) - predicted(model, everywhere, splits)).max() < 1e-6
    lookup = next(layer for layer in continued.layers if layer.name == "table_category2_number")
    assert lookup.get_vocabulary() == ["[UNK]", "Bonn", "Ulm", "Kiel", "Mainz"]


def parsed(columns):
    """Dates as the reader of tables gives them."""
    from thaw.data.table_rows import read_rows

    return read_rows(columns)[0]


def test_what_is_added_learns(source):
    columns, splits, model = source
    rng = np.random.default_rng(3)
    town = rng.choice(["Ulm", "Mainz"], ROWS).tolist()
    colour = rng.choice(["red", "blue"], ROWS).tolist()
    more = columns | {"town": town, "colour": colour, "label": ["high" if c == "red" else "low" for c in colour]}
    # A column that says the label is left out, unless it is named.
    new_splits = load_table(more, balance="none", columns=["size", "town", "day", "paid", "colour"])
    kept = model.get_weights()
    continued, new = continue_table(copy_model(model), splits.columns, new_splits)
    kernel = continued.get_layer("table_hidden1").get_weights()[0]
    added = len(kernel) - len(model.get_layer("table_hidden1").get_weights()[0])
    assert added > 0
    assert not kernel[-added:].any()
    vectors = continued.get_layer("table_category2_vector").get_weights()[0]
    plan = Plan([Phase(name="all", epochs=25, learning_rate=2e-2)])
    fine_tune(continued, plan, new.train.x, new.train.y, verbose=0)
    assert continued.get_layer("table_hidden1").get_weights()[0][-added:].any()
    assert not np.array_equal(continued.get_layer("table_category2_vector").get_weights()[0][-1], vectors[-1])
    p = np.asarray(continued(tensors(new.test.x)))
    assert (p.argmax(axis=1) == new.test.y).mean() > 0.9
    assert all(np.array_equal(a, b) for a, b in zip(kept, model.get_weights()))  # a copy was continued


def test_gaps_are_filled_as_for_the_source_model(source):
    _, splits, model = source
    shifted = table(ROWS, seed=4) | {"paid": [None, True, False] * 30}  # gaps where there were none
    shifted["size"] = [None if i % 3 == 0 else 500.0 + i for i in range(ROWS)]
    loaded = load_table(shifted, balance="none")
    _, new = continue_table(model, splits.columns, loaded)
    of_source = {column.name: column for column in splits.columns}
    assert {column.name: column.fill for column in new.columns} == {n: c.fill for n, c in of_source.items()}
    assert loaded.columns[0].fill > 500 > of_source["size"].fill
    for part in (new.train, new.validation, new.test):
        gaps = part.x["size (missing)"] == 1
        assert np.all(part.x["size"][gaps] == np.float32(of_source["size"].fill))
        assert np.all(part.x["size"][~gaps] >= 500)


@pytest.mark.parametrize("gaps_at_first", [False, True])
def test_the_sign_of_a_gap_is_added_or_stays(gaps_at_first):
    splits, model = built(table(gaps=gaps_at_first))
    rows = parsed(table(gaps=True))
    before = predicted(model, rows, splits)
    continued, new = continue_table(model, splits.columns, load_table(table(gaps=not gaps_at_first), balance="none"))
    assert "size (missing)" in continued.input
    assert set(new.train.x) == set(continued.input)
    assert np.abs(predicted(continued, rows, new) - before).max() < 1e-6


def test_a_file_is_continued_and_continued_again(source, tmp_path):
    columns, splits, model = source
    before = predicted(model, parsed(columns), splits)
    model.save(tmp_path / "source.keras")
    keras.backend.clear_session()  # operations are numbered from 1 again, as in another process
    opened = load_model_file(tmp_path / "source.keras")
    first = columns | {"a": [float(i % 11) for i in range(ROWS)]}
    once, once_splits = continue_table(opened, splits.columns, load_table(first, balance="none"))
    once.save(tmp_path / "once.keras")
    second = first | {"b": [float(i % 13) for i in range(ROWS)], "c": ["x", "y", "z"] * 30}
    last = load_table(second, balance="none")
    twice, twice_splits = continue_table(load_model_file(tmp_path / "once.keras"), once_splits.columns, last)
    assert np.abs(predicted(twice, parsed(second), twice_splits) - before).max() < 1e-6
    twice.save(tmp_path / "twice.keras")
    alone = keras.saving.load_model(tmp_path / "twice.keras", safe_mode=True, compile=False)
    assert np.array_equal(
        predicted(alone, parsed(second), twice_splits), predicted(twice, parsed(second), twice_splits)
    )


def test_numbers_are_predicted_in_their_units():
    columns = table(numeric=True)
    splits, model = built(columns, task="regression")
    before = predicted(model, parsed(columns), splits)
    other = with_more(columns) | {"label": [1000 + value for value in columns["label"]]}
    continued, new = continue_table(model, splits.columns, load_table(other, task="regression"))
    assert new.task.mean[0] > 1000
    assert np.allclose(predicted(continued, parsed(other), new), before, rtol=1e-5)


def test_classes_that_are_added_begin_at_zero(source):
    columns, splits, model = source
    before = predicted(model, parsed(columns), splits)
    three = columns | {"label": ["middle" if i % 4 == 0 else name for i, name in enumerate(columns["label"])]}
    loaded = load_table(three, balance="none")
    continued, new = continue_table(model, splits.columns, loaded, old_labels=splits.labels)
    p = predicted(continued, parsed(columns), new)
    assert new.labels == ("high", "low", "middle")
    assert np.allclose(p[:, 0] / p[:, 1], before[:, 0] / before[:, 1], rtol=1e-4)
    head = continue_head(model, splits.task, new.task)
    assert np.abs(predicted(head, parsed(columns), splits) - p).max() < 1e-6
    with pytest.raises(ValueError, match="old_labels are 3 names and table_backbone has 2 outputs; expected as many"):
        continue_table(model, splits.columns, loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"size": None},
            "has no column 'size' to predict from, which the model reads; add it, or name it",
        ),
        (
            {"size": ["big", "small", "tiny"] * 30},
            r"'size' is a category and the model reads a number; write load_table\(\.\.\., columns={'size': '",
        ),
    ],
)
def test_a_column_that_is_gone_or_holds_something_else_is_refused(source, change, message):
    columns, splits, model = source
    columns = {name: values for name, values in (columns | change).items() if values is not None}
    with pytest.raises(ValueError, match=message):
        continue_table(model, splits.columns, load_table(columns, balance="none"))


def test_models_and_columns_that_do_not_belong_together_are_refused(source):
    _, splits, model = source
    with pytest.raises(ValueError, match=r"^old_columns are the inputs size, .*, and table_backbone takes day, "):
        continue_table(model, splits.columns[:1], splits)
    other = keras.Sequential([keras.Input((4,)), layers.Dense(2)], name="net")
    with pytest.raises(ValueError, match=r"^net is no model for tables; expected one of thaw\.table_model\.$"):
        continue_table(other, splits.columns, splits)


def test_splits_without_a_test_set(source):
    _, splits, model = source
    loaded = dataclasses.replace(splits, test=None)
    _, new = continue_table(model, splits.columns, loaded)
    assert isinstance(new, TableSplits)
    assert new.test is None
