"""Models for tables: encodings against hand-computed values, each member trained alone, files, trees."""

import datetime
import subprocess
import sys

import keras
import numpy as np
import pytest

from thaw import Classification, Phase, Plan, fine_tune, seed_everything
from thaw.data.column_kinds import Column
from thaw.data.columns import load_table
from thaw.models.activations import output_activation
from thaw.models.ensemble_heads import attach_ensemble_heads
from thaw.models.table_backbone import civil_parts, quantile_edges, table_backbone, table_model
from thaw.targets import Regression
from thaw.transfer.boosted_trees import compare_with_trees, gradient_boosting

ROWS = 300


def mixed_table(numeric=False):
    """Numbers with gaps, a category with gaps, dates and booleans; each tells something of the label."""
    rng = np.random.default_rng(0)
    size = rng.normal(50, 20, ROWS).round(1)
    town = rng.choice(["Ulm", "Bonn", "Kiel"], ROWS)
    day = [datetime.datetime(2023, 1, 1) + datetime.timedelta(days=int(d)) for d in rng.integers(0, 700, ROWS)]
    paid = rng.random(ROWS) < 0.5
    score = (size - 50) / 20 + (town == "Ulm") + paid + np.array([d.month > 6 for d in day]) + rng.normal(0, 0.3, ROWS)
    gaps = rng.random((2, ROWS)) < 0.1
    return {
        "size": [None if gap else value for gap, value in zip(gaps[0], size.tolist())],
        "town/city": [None if gap else value for gap, value in zip(gaps[1], town.tolist())],
        "day": day,
        "paid": paid.tolist(),
        "label": (100 + 10 * score).tolist() if numeric else np.where(score > 1.5, "high", "low").tolist(),
    }


def tensors(x):
    return {name: keras.ops.convert_to_tensor(values.tolist()) for name, values in x.items()}


def features_of(backbone, x):
    layer = backbone.get_layer("table_members")
    return keras.Model(backbone.input, layer.input)(tensors(x)).numpy()


def test_a_number_is_encoded_between_quantiles():
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0], np.float32)
    assert quantile_edges(values, 2).tolist() == [0, 2, 8]
    backbone = table_backbone([Column("a", "number")], {"a": values[:, None]}, bins=2, members=2, width=3)
    given = np.array([[-5.0], [1.0], [2.0], [5.0], [99.0]], np.float32)
    assert features_of(backbone, {"a": given}).tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1]]


def test_several_numbers_a_gap_and_a_boolean_have_features_of_their_own():
    columns = [Column("a", "number", 2.0, True), Column("b", "number"), Column("c", "boolean")]
    x = {"a": [[1], [2], [3]], "a (missing)": [[0], [1], [0]], "b": [[10], [10], [30]], "c": [[1], [0], [1]]}
    x = {name: np.array(values, np.float32) for name, values in x.items()}
    features = features_of(table_backbone(columns, x, members=1, width=2), x)
    # a between 1 and 2, and 2 and 3; b between 10 and 30; then the sign that a is missing, and c.
    assert features.tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 1, 0], [1, 1, 1, 0, 1]]


def test_parts_of_a_date_are_those_of_python():
    days = np.concatenate([np.arange(-800, 60_000, 17), [-719_162, 0, 11_016, 19_782]])
    dates = [datetime.date(1970, 1, 1) + datetime.timedelta(days=int(day)) for day in days]
    expected = [[d.year for d in dates], [d.month for d in dates], [d.weekday() for d in dates]]
    assert np.array_equal(civil_parts(days.astype(np.int32)), expected)


def test_a_date_is_a_month_and_a_weekday_inside_the_model():
    days = np.array([[19874.0], [19723.0]], np.float32)  # Friday, 31 May 2024; Monday, 1 January 2024
    features = features_of(table_backbone([Column("d", "date")], {"d": days}, members=1), {"d": days})
    # The days and the year (2024 both times) are numbers; then 12 months and 7 days of the week.
    assert features.shape == (2, 1 + 1 + 12 + 7)
    assert features[:, 2:].argmax(axis=1).tolist() == [4, 0]
    assert features[:, 14:].argmax(axis=1).tolist() == [4, 0]


def test_categories_that_are_rare_or_never_seen_share_a_vector():
    town = np.array([["Ulm"], ["Ulm"], [""], [""], ["Bonn"]])
    backbone = table_backbone([Column("t", "category")], {"t": town}, members=1)
    ulm, gap, rare, unseen = features_of(backbone, {"t": np.array([["Ulm"], [""], ["Bonn"], ["Kiel"]])})
    assert np.array_equal(rare, unseen)
    assert not np.array_equal(ulm, gap)
    assert not np.array_equal(ulm, unseen)


@pytest.mark.parametrize("numeric", [False, True])
def test_each_member_is_trained_on_its_own_predictions(numeric):
    rng = np.random.default_rng(0)
    task = Regression(["y"], mean=[3.0], deviation=[2.0]) if numeric else Classification.of(3)
    inputs = keras.Input((5,))
    members = keras.layers.EinsumDense("bd,kdh->bkh", (4, 6), activation="relu")(inputs)
    model = attach_ensemble_heads(keras.Model(inputs, members), task)
    x = rng.normal(size=(16, 5)).astype("float32")
    y = task.encode(rng.normal(3, 2, 16)) if numeric else rng.integers(0, 3, 16)
    z = keras.Model(model.input, model.get_layer("head_members").output)(x).numpy().astype(np.float64)
    if numeric:
        alone = np.mean((z - (y[:, None] - 3) / 2) ** 2)
        mean = 3 + 2 * z.mean(axis=1)
    else:
        log_p = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
        alone = -np.mean([log_p[i, :, c].mean() for i, c in enumerate(y)])
        mean = np.exp(log_p.mean(axis=1))
        mean /= mean.sum(axis=1, keepdims=True)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(alone, rel=1e-5)
    assert np.allclose(model(x), mean, atol=1e-5)
    assert output_activation(model) == ("other" if numeric else "softmax")


OPEN = """
import sys, numpy as np, keras
assert "thaw" not in sys.modules
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
saved = np.load(sys.argv[2])
x = {name: keras.ops.convert_to_tensor(saved[name].tolist()) for name in saved.files if name != "predictions"}
assert np.array_equal(model(x).numpy(), saved["predictions"])
"""


@pytest.fixture(scope="module")
def trained():
    splits = load_table(mixed_table(), balance="none")

    def train():
        seed_everything(1)
        model = table_model(splits, members=4, width=16, seed=1)
        plan = Plan([Phase(name="all", epochs=12, learning_rate=1e-2, patience=5)])
        return model, fine_tune(model, plan, splits.train, validation_data=splits.validation, verbose=0)

    return splits, train


def test_a_table_is_learned_from_scratch_saved_and_opened_with_keras_alone(trained, tmp_path):
    splits, train = trained
    assert {column.kind for column in splits.columns} == {"number", "category", "date", "boolean"}
    model, history = train()
    assert max(history.history["val_accuracy"]) > splits.task.baseline(splits.validation.y) + 0.1
    again, _ = train()
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights()))

    model.save(tmp_path / "model.keras")
    x = splits.test.x
    np.savez(tmp_path / "rows.npz", predictions=model(tensors(x)).numpy(), **x)
    arguments = [sys.executable, "-c", OPEN, tmp_path / "model.keras", tmp_path / "rows.npz"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]

    # The trees on the same rows: the difference by hand, and the same twice.
    trees = gradient_boosting(splits, max_trees=40)
    p = trees.predict(x)
    assert np.array_equal(p, gradient_boosting(splits, max_trees=40).predict(x))
    assert np.allclose(p.sum(axis=1), 1)
    y = splits.test.y
    expected = (model(tensors(x)).numpy().argmax(1) == y).mean() - (p.argmax(1) == y).mean()
    difference, sentence = compare_with_trees(model, splits, trees)
    assert difference.value == pytest.approx(expected)
    assert difference.low <= difference.value <= difference.high
    assert sentence.startswith(f"On the {len(y)} test rows the accuracy of the model is ")


def test_numbers_begin_in_their_units_and_are_compared_with_trees():
    splits = load_table(mixed_table(numeric=True))
    model = table_model(splits, members=2, width=8, dropout=0)
    assert model.get_layer("head_units").offset == pytest.approx(list(splits.task.mean))
    y = splits.test.y[:, 0]
    p = model(tensors(splits.test.x)).numpy()[:, 0]
    trees = gradient_boosting(splits, max_trees=60)
    by_trees = trees.predict(splits.test.x)[:, 0]
    difference, sentence = compare_with_trees(model, splits, trees)
    rmse = [np.sqrt(np.mean((a - y) ** 2)) for a in (p, by_trees)]
    assert difference.value == pytest.approx(rmse[0] - rmse[1], rel=1e-4)
    assert rmse[1] < splits.task.baseline(splits.test.y)
    assert "gradient boosting is better by" in sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": []}, "There are no columns"),
        ({"columns": [Column("b", "number")]}, "no input 'b'"),
        ({"members": 0}, "members=0"),
        ({"dropout": 1}, "dropout=1"),
        ({"bins": 1.5}, "bins=1.5"),
    ],
)
def test_wrong_arguments_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        table_backbone(**{"columns": [Column("a", "number")], "x": {"a": np.zeros((2, 1))}, **changes})


def test_a_backbone_without_members_is_refused():
    vectors = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="expected one output \\(members, features\\)"):
        attach_ensemble_heads(vectors, Classification.of(2))
