"""scikit-learn estimators: real tables against linear models, the conventions of scikit-learn, files, bad input."""

import json
import pickle

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from thaw import open_run
from thaw.data.sklearn_inputs import FitTargets, choose_validation
from thaw.estimators import ThawClassifier, ThawRegressor

# A small ensemble that learns fast, so that a fit takes no longer than what it has to build.
SMALL = {"members": 4, "width": 32, "depth": 1, "learning_rate": 0.02, "epochs": 12, "random_state": 0}
TINY = SMALL | {"members": 2, "width": 16, "epochs": 3}


@pytest.fixture(scope="module")
def wine():
    """``(fitted, train rows, test rows, train labels, test labels)`` of a frame with names."""
    data = load_wine(as_frame=True)
    names = np.array(["barbera", "grignolino", "barolo"])[data.target]
    parts = train_test_split(data.data, names, test_size=0.3, random_state=0, stratify=names)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    fitted = ThawClassifier(**SMALL | {"epochs": 40, "members": 8}).fit(parts[0], parts[2])
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    return fitted, *parts


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.3, random_state=0)
    return ThawRegressor(**SMALL | {"learning_rate": 0.01}).fit(parts[0], parts[2]), *parts


@pytest.fixture(scope="module")
def net():
    """A small backbone of random weights for images of 16 x 16 pixels."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((16, 16, 3))
    y = keras.layers.Conv2D(8, 3, 2, activation="relu")(keras.layers.Rescaling(1 / 255)(entry))
    return keras.Model(entry, keras.layers.Conv2D(8, 3, 2, activation="relu")(y), name="net")


def images(n=40):
    """Images that are brighter, the higher their number; each has noise of its own."""
    rng = np.random.default_rng(0)
    level = rng.uniform(40, 200, n)
    return np.clip(level[:, None, None, None] + rng.normal(0, 20, (n, 16, 16, 3)), 0, 255).astype(np.uint8), level


# Against linear models, on tables that are not made up


def test_wine_is_classified_as_by_logistic_regression(wine):
    fitted, x, x_test, y, y_test = wine
    reference = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y).score(x_test, y_test)
    assert fitted.score(x_test, y_test) >= reference - 0.06  # three of 54 rows
    assert fitted.classes_.tolist() == ["barbera", "barolo", "grignolino"]
    p = fitted.predict_proba(x_test)
    assert np.allclose(p.sum(axis=1), 1)
    assert fitted.classes_[p.argmax(axis=1)].tolist() == fitted.predict(x_test).tolist()


def test_diabetes_is_predicted_as_by_ridge_regression(diabetes):
    fitted, x, x_test, y, y_test = diabetes
    reference = make_pipeline(StandardScaler(), RidgeCV()).fit(x, y).score(x_test, y_test)
    assert fitted.score(x_test, y_test) >= reference - 0.08
    assert fitted.task_.mean[0] == pytest.approx(y.mean(), rel=0.05)  # of most of these rows


def test_what_is_fitted_is_there(wine):
    fitted, x = wine[:2]
    assert isinstance(fitted.model_, keras.Model)
    assert fitted.n_features_in_ == 13
    assert fitted.feature_names_in_.tolist() == x.columns.tolist()
    assert len(fitted.history_["val_loss"]) == fitted.history_["epoch"][-1] <= fitted.plan_.epochs == 40
    assert any("124 rows of 3 classes" in note for note in fitted.notes_)


# The conventions of scikit-learn


def test_a_clone_has_the_parameters_and_is_not_fitted(wine, net):
    copy = clone(wine[0])
    assert copy.get_params() == wine[0].get_params()
    with pytest.raises(NotFittedError):
        copy.predict(wine[2])
    copy = clone(ThawRegressor(backbone=net, plan="probe"))
    assert copy.backbone is not net
    assert all(np.array_equal(a, b) for a, b in zip(copy.backbone.get_weights(), net.get_weights()))


def test_in_a_pipeline_and_a_cross_validation():
    x, y = load_iris(return_X_y=True)
    scores = cross_val_score(make_pipeline(StandardScaler(), ThawClassifier(**SMALL)), x, y, cv=2)
    assert scores.shape == (2,)
    assert scores.min() > 0.85


# Checks that do not fit, and one that does; benchmarks/estimator_checks.py has all of them.
QUICK = {
    "check_fit_idempotent",
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_estimators_unfitted",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_all_zero_sample_weights_error",
    "check_complex_data",
    "check_estimators_empty_data_messages",
    "check_estimator_sparse_tag",
    "check_classifiers_one_label",
    "check_classifiers_one_label_sample_weights",
    "check_classifiers_regression_target",
    "check_supervised_y_no_nan",
    "check_parameters_default_constructible",
    "check_fit2d_1sample",
    "check_get_params_invariance",
    "check_set_params",
    "check_fit1d",
    "check_requires_y_none",
}


def conventions():
    for estimator in (ThawClassifier(**SMALL), ThawRegressor(**SMALL)):
        for given, check in estimator_checks_generator(estimator):
            if (name := check.func.__name__) in QUICK:
                yield pytest.param(given, check, id=f"{type(given).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(conventions()))
def test_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [ThawClassifier, ThawRegressor])
def test_an_unfitted_estimator_can_be_pickled_and_a_fitted_one_cannot(kind, wine, diabetes):
    given = kind(**TINY)
    assert pickle.loads(pickle.dumps(given)).get_params() == given.get_params()
    fitted = wine[0] if kind is ThawClassifier else diabetes[0]
    with pytest.raises(TypeError, match=rf"write it with save\(folder\), and read it with {kind.__name__}\.load"):
        pickle.dumps(fitted)


# Files


def test_a_classifier_that_was_saved_predicts_the_same(wine, tmp_path):
    fitted, _, x_test = wine[:3]
    fitted.save(tmp_path / "run")
    loaded = ThawClassifier.load(tmp_path / "run")
    assert np.array_equal(loaded.predict_proba(x_test), fitted.predict_proba(x_test))
    assert loaded.predict(x_test).tolist() == fitted.predict(x_test).tolist()
    assert loaded.get_params() == fitted.get_params()
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert loaded.feature_names_in_.tolist() == fitted.feature_names_in_.tolist()
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(x_test[x_test.columns[::-1]])
    run = open_run(tmp_path / "run")
    assert run.labels == ("barbera", "barolo", "grignolino")
    assert run.notes == fitted.notes_
    assert run.history["val_loss"] == pytest.approx(fitted.history_["val_loss"])
    loaded.save(tmp_path / "again")
    again = ThawClassifier.load(tmp_path / "again")
    assert np.array_equal(again.predict_proba(x_test), fitted.predict_proba(x_test))


def test_a_regressor_that_was_saved_predicts_the_same(diabetes, tmp_path):
    fitted, _, x_test = diabetes[:3]
    fitted.save(tmp_path / "run")
    loaded = ThawRegressor.load(tmp_path / "run")
    assert np.array_equal(loaded.predict(x_test), fitted.predict(x_test))
    assert loaded.task_ == fitted.task_
    assert not hasattr(loaded, "feature_names_in_")
    with pytest.raises(ValueError, match="was written by ThawRegressor: load it there"):
        ThawClassifier.load(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a finished run"):
        fitted.save(tmp_path / "run")


def test_a_damaged_file_is_named(diabetes, tmp_path):
    diabetes[0].save(tmp_path / "run")
    path = tmp_path / "run" / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.0]}))
    with pytest.raises(ValueError, match=r"task\.json is damaged"):
        ThawRegressor.load(tmp_path / "run")


# A frame of several kinds, texts, images


def test_a_frame_with_categories_dates_and_gaps(tmp_path):
    rng = np.random.default_rng(0)
    n = 200
    town, size = rng.choice(["Ulm", "Bonn", "Kiel"], n).astype(object), rng.normal(50, 20, n)
    y = np.where((size > 50) ^ (town == "Ulm"), 7, -3)
    town[:5], size[5:15] = None, np.nan
    x = pd.DataFrame({"size": size, "town": town, "since": pd.date_range("2020-01-01", periods=n)})
    fitted = ThawClassifier(**SMALL | {"epochs": 30}).fit(x, y)
    assert fitted.classes_.tolist() == [-3, 7]
    assert fitted.score(x.iloc[15:], y[15:]) > 0.9
    unknown = x.iloc[:8].assign(town="Celle")
    fitted.save(tmp_path / "run")
    loaded = ThawClassifier.load(tmp_path / "run")
    assert np.array_equal(loaded.predict_proba(unknown), fitted.predict_proba(unknown))
    assert loaded.predict(x).dtype == y.dtype


def test_texts(tmp_path):
    said = {1: "the striker scored a goal in the match", 0: "the bank raised its interest rate"}
    texts = [f"{text}, number {i}" for i in range(8) for text in said.values()]
    fitted = ThawClassifier(random_state=0).fit(texts, [1, 0] * 8)
    assert [phase.name for phase in fitted.plan_] == ["head"]
    new = ["a late penalty won the cup for the team", "inflation worries the central bank", "a draw in the final game"]
    assert fitted.predict(new).tolist() == [1, 0, 1]
    fitted.save(tmp_path / "run")
    loaded = ThawClassifier.load(tmp_path / "run")
    assert np.array_equal(loaded.predict_proba(pd.Series(new)), fitted.predict_proba(np.array(new)))
    with pytest.raises(ValueError, match="X is a table, and ThawClassifier was fitted to texts"):
        loaded.predict([[1.0, 2.0]])


def test_images_on_a_model_of_the_users_own(net, tmp_path):
    x, level = images()
    before, flags = net.get_weights(), [layer.trainable for layer in net.layers]
    fitted = ThawClassifier(backbone=net, random_state=0).fit(x, np.where(level > 120, "day", "night"))
    assert fitted.score(x, np.where(level > 120, "day", "night")) > 0.9
    numbers = ThawRegressor(backbone=net, random_state=0).fit(x, level)
    assert numbers.score(x, level) > 0.95
    assert numbers.plan_[0].solver == "ridge"
    assert all(np.array_equal(a, b) for a, b in zip(net.get_weights(), before))
    assert [layer.trainable for layer in net.layers] == flags
    numbers.save(tmp_path / "run")
    loaded = ThawRegressor.load(tmp_path / "run")
    assert np.array_equal(loaded.predict(x), numbers.predict(x))
    assert loaded.backbone.output_shape == net.output_shape
    with pytest.raises(ValueError, match=r"shape \(8, 8, 3\); expected \(16, 16, 3\)"):
        loaded.predict(x[:, :8, :8])


def test_stages_of_a_backbone_are_tuned(net):
    x, level = images()
    options = {"epochs": 2, "learning_rate": 1e-3, "validation_fraction": 0.25, "random_state": 0}
    fitted = ThawRegressor(backbone=net, tune_stages=1, **options).fit(x, level)
    assert [phase.train for phase in fitted.plan_] == ["head", 1]
    assert fitted.history_["phase"] == ["head", "tune", "tune"]
    assert "val_root_mean_squared_error" in fitted.history_


# Weights and validation rows


def test_rows_of_weight_0_are_left_out():
    x, y = load_iris(return_X_y=True)
    x, y = x[::3], y[::3]
    alone = ThawClassifier(**TINY).fit(x, y)
    weight = np.r_[np.full(50, 2.0), np.zeros(50)]
    with_others = ThawClassifier(**TINY).fit(np.r_[x, x[::-1] + 1], np.r_[y, y], sample_weight=weight)
    assert np.array_equal(alone.predict_proba(x), with_others.predict_proba(x))


def test_weights_are_frequencies():
    x, y = np.random.default_rng(0).normal(size=(400, 2)), np.arange(400) % 2  # nothing to tell them apart
    fitted = ThawClassifier(**TINY | {"epochs": 10}).fit(x, y, sample_weight=np.where(y, 9, 1))
    assert fitted.predict_proba(x)[:, 1].mean() == pytest.approx(0.9, abs=0.04)


def test_equal_rows_share_a_part_and_a_single_row_is_learned_from():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 2))[rng.integers(0, 120, 300)]  # drawn with replacement, as by bagging
    rows[0] = 9, 9
    numbers = np.r_[2, rng.integers(0, 2, 299)]
    chosen = choose_validation(dict(enumerate(rows.T.tolist())), FitTargets(numbers, np.arange(3)), 0.3, 0)
    assert not chosen[0]
    assert 0.15 < chosen.mean() < 0.45
    assert not set(map(tuple, rows[chosen])) & set(map(tuple, rows[~chosen]))


# Bad input


X, Y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2


@pytest.mark.parametrize(
    ("parameters", "x", "y", "said"),
    [
        ({}, X, np.zeros(20, int), "y has 1 class, 0; expected 2 or more"),
        ({}, X, np.array(["a", 1] * 10, object), r"several types \(int, str\); expected texts, or whole numbers"),
        ({}, X, X[:, 0], "Unknown label type: continuous"),
        ({}, X, Y[:5], "inconsistent numbers of samples"),
        ({}, np.where(X > 0, np.inf, X), Y, "infinity"),
        ({}, np.array([["Ulm", "3"]] * 20), Y, "holds 'Ulm'; give a table with categories as a pandas frame"),
        ({}, ["a text", 3.0] * 10, Y, "Row 1 of X is a float; expected a text in each row"),
        ({}, [[1.0], [1.0, 2.0]] * 10, Y, "rows of different lengths; expected one length"),
        ({}, np.zeros((20, 16, 16, 1)), Y, r"shape \(20, 16, 16, 1\); expected pixels"),
        ({"backbone": "minilm"}, X, Y, "backbone is for texts and images, and X is a table"),
        ({"tune_stages": 2}, X, Y, "tune_stages is for texts and images, and X is a table"),
        ({"tune_stages": 2, "plan": "full"}, ["a", "b"] * 10, Y, "a plan says what is trained, give one"),
        ({"tune_stages": -1}, ["a", "b"] * 10, Y, "tune_stages=-1; expected a whole number from 0"),
        ({"backbone": "mobilenet_v2"}, ["a", "b"] * 10, Y, 'does not read texts; expected "minilm"'),
        ({"validation_fraction": 1}, X, Y, "validation_fraction=1; expected a fraction above 0 and below 1"),
        ({"members": 0}, X, Y, "members=0; expected a whole number from 1"),
        ({"epochs": 0}, X, Y, "epochs = 0; expected a whole number from 1"),
    ],
)
def test_bad_input_is_named(parameters, x, y, said):
    with pytest.raises(ValueError, match=said):
        ThawClassifier(**TINY | parameters).fit(x, y)


def test_bad_targets_and_weights_are_named():
    with pytest.raises(ValueError, match=r"y holds 'low'; expected numbers\. For classes take ThawClassifier"):
        ThawRegressor().fit(X, ["low", "high"] * 10)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        ThawRegressor().fit(X, np.full(20, np.nan))
    for weight in (np.ones(3), -np.ones(20), np.zeros(20)):
        with pytest.raises(ValueError, match="expected 20 finite weights of 0 or more that are not all zero"):
            ThawRegressor().fit(X, X[:, 0], sample_weight=weight)


def test_one_whose_fit_fails_is_not_fitted(net):
    x, level = images(20)
    fitted = ThawRegressor(backbone=net).fit(x, level)
    with pytest.raises(ValueError, match="is 1 in all examples, with nothing to learn"):
        fitted.fit(x, np.ones(20))
    with pytest.raises(NotFittedError):
        fitted.predict(x)


def test_a_run_of_another_kind_is_not_loaded(net, tmp_path):
    from thaw.runs import write_run

    write_run(tmp_path, net, ["a"], plan="", tables={}, metrics={})
    with pytest.raises(ValueError, match=r"was written by no estimator: open it with thaw\.open_run"):
        ThawClassifier.load(tmp_path)
