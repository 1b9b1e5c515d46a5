"""solve_head and choose_head of several labels and of numbers: the weights that scikit-learn finds."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from thaw import attach_head
from thaw.models.linear_heads import linear_head
from thaw.targets import MultiLabel, Regression
from thaw.transfer import CannotSolve, choose_head, scale_logits, solve_head
from thaw.transfer.calibration import CannotCalibrate
from thaw.transfer.linear_readout import cross_validate, fit_readout

LABELS = ("a", "b", "c")


def vectors(width=6):
    return keras.Sequential([keras.Input((width,)), layers.Rescaling(2.0, name="features")], name="net")


def images():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x), name="net")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)).astype("float32")
    scores = x @ rng.normal(size=(6, 3)) + rng.normal(size=(120, 3))
    return x, scores


def standardized(x):
    return (x - x.mean(0)) / x.std(0)


def test_several_labels_are_one_logistic_regression_each(rows, tmp_path):
    x, scores = rows
    y = (scores > (0, 1.5, -1)).astype("float32")
    model = attach_head(vectors(), MultiLabel(LABELS))
    readout = solve_head(model, x, y, cache_dir=tmp_path)
    p, z = model.predict(x, verbose=0), standardized(x)
    for c in range(3):
        oracle = LogisticRegression(C=readout.strength / 6, tol=1e-8, max_iter=10_000).fit(z, y[:, c])
        expected = 1 / (1 + np.exp(-oracle.decision_function(z) / readout.temperature))
        np.testing.assert_allclose(p[:, c], expected, atol=2e-3)
    assert readout.cross_validation.folds == 5
    assert model.compiled


def test_the_strength_is_that_of_the_best_mean_log_loss_out_of_fold(rows):
    x, scores = rows
    y = (scores > 0).astype(int)
    result = cross_validate(x, y, classes=3, clip=False)
    p = 1 / (1 + np.exp(-result.logits / result.temperature))
    expected = np.mean([log_loss(y[:, c], p[:, c]) for c in range(3)])
    assert result.log_loss == pytest.approx(expected, rel=1e-6)
    assert result.log_losses[result.strength] == min(result.log_losses.values())
    np.testing.assert_allclose(result.losses.mean(), result.log_loss)


def test_a_label_that_nobody_has_gets_half_an_example(rows):
    x, scores = rows
    y = (scores > 0).astype(int)
    y[:, 1] = 0
    readout = fit_readout(x, y, classes=3, strength=1.0)
    assert not readout.kernel[:, 1].any()
    assert readout.bias[1] == pytest.approx(np.log(0.5 / 120.5))
    assert "1 of 3 labels are the same for all examples." in cross_validate(x, y, classes=3).notes
    assert not fit_readout(x, np.zeros_like(y), classes=3, strength=1.0).kernel.any()


def test_many_rows_are_solved_in_a_projection_and_refined(rows):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 40)).astype("float32")
    y = (x @ rng.normal(size=(40, 2)) + 2 * rng.normal(size=(300, 2)) > 0).astype(int)
    exact = fit_readout(x, y, classes=2, strength=1.0, clip=False)
    refined = fit_readout(x, y, classes=2, strength=1.0, clip=False, max_exact_rows=20)
    np.testing.assert_allclose(refined.logits(x), exact.logits(x), atol=0.05)


def test_support_vector_machines_of_labels(rows, tmp_path):
    x, scores = rows
    y = (scores > 0).astype("float32")
    model = attach_head(vectors(), MultiLabel(LABELS))
    solve_head(model, x, y, solver="svm", cache_dir=tmp_path)
    assert ((model.predict(x, verbose=0) > 0.5) == y).mean() > 0.8


@pytest.mark.parametrize("targets", [1, 3])
def test_numbers_are_ridge_regression_in_their_units(targets, rows, tmp_path):
    x, scores = rows
    y = (scores * (1, 1000, 0.01) + (5, -7000, 0))[:, :targets]
    task = Regression([str(i) for i in range(targets)]).standardized_by(y)
    model = attach_head(vectors(), task)
    np.testing.assert_allclose(model.predict(x[:1], verbose=0)[0], y.mean(0), rtol=1e-4)  # before it has learned
    readout = solve_head(model, x, y.astype("float32"), solver="ridge", cache_dir=tmp_path)
    z, t = standardized(x), (y - y.mean(0)) / y.std(0)
    oracle = Ridge(alpha=6 / readout.strength).fit(z, t)
    expected = oracle.predict(z).reshape(t.shape) * y.std(0) + y.mean(0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-3, atol=1e-3 * y.std(0).max())
    assert readout.cross_validation.log_loss < 1  # of standardized numbers, out of fold: that of the mean is 1


def test_the_unit_of_the_targets_changes_nothing(rows, tmp_path):
    x, scores = rows
    found = []
    for unit in (1, 1e5):
        y = scores[:, :1] * unit
        model = attach_head(vectors(), Regression().standardized_by(y))
        found.append(solve_head(model, x, y, solver="ridge", cache_dir=tmp_path).strength)
        np.testing.assert_allclose(model.predict(x, verbose=0).std() / unit, y.std() / unit, rtol=0.5)
    assert found[0] == found[1]


def test_a_crossentropy_is_not_solved_for_numbers_nor_ridge_for_labels(rows, tmp_path):
    x, scores = rows
    y = (scores > 0).astype("float32")
    with pytest.raises(CannotSolve, match="needs a crossentropy"):
        solve_head(attach_head(vectors(), Regression(LABELS)), x, y, solver="lbfgs", cache_dir=tmp_path)
    with pytest.raises(CannotSolve, match="linear last layer"):
        solve_head(attach_head(vectors(), MultiLabel(LABELS)), x, y, solver="ridge", cache_dir=tmp_path)
    with pytest.raises(CannotSolve, match="expected 0 and 1"):
        solve_head(attach_head(vectors(), MultiLabel(LABELS)), x, y / 2, cache_dir=tmp_path)


def test_numbers_have_no_temperature(rows):
    model = attach_head(vectors(), Regression().standardized_by([1.0, 2.0]))
    assert linear_head(model).units is model.layers[-1]
    with pytest.raises(CannotCalibrate, match="units of their own"):
        scale_logits(model, 2.0)


def test_choose_head_of_labels_and_of_numbers(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (80, 2)).astype("float32")
    x = rng.normal(size=(80, 8, 8, 3)).astype("float32") + y[:, 0, None, None, None]
    choice = choose_head(images(), MultiLabel(["a", "b"]), x, y, cache_dir=tmp_path)
    model = attach_head(images(), MultiLabel(["a", "b"]), features="last")
    narrow = solve_head(model, x, y, cache_dir=tmp_path).cross_validation
    assert choice.validations["last"].log_loss == pytest.approx(narrow.log_loss, abs=1e-4)
    task = Regression().standardized_by(y[:, 0])
    with pytest.raises(ValueError, match='expected "ridge"'):
        choose_head(images(), task, x, y[:, 0], solver="lbfgs", cache_dir=tmp_path)
    wide = attach_head(images(), MultiLabel(["a", "b"]), features="all")
    assert sum(part.shape[-1] for part in linear_head(wide).inputs) == choice.widths["all"]
    solved = solve_head(wide, x, y, cache_dir=tmp_path).cross_validation
    assert choice.validations["all"].log_loss == pytest.approx(solved.log_loss, abs=1e-4)
