"""Wide solved heads of numbers and of several labels: scikit-learn's weights, one graph, the choice of the width."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from thaw import Phase, Plan, attach_head, fine_tune
from thaw.features.split import submodel
from thaw.models.linear_heads import linear_head
from thaw.targets import MultiLabel, Regression
from thaw.transfer import choose_head, solve_head
from thaw.transfer.linear_readout import STRENGTHS
from thaw.transfer.readouts import stratified_folds


def backbone():
    """Three stages; the last puts out signs alone, so that the size of what it sees is lost."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    last = layers.Conv2D(8, 3, padding="same", activation="tanh")
    x = last(x)
    last.kernel.assign(1e3 * last.kernel)
    return keras.Model(inputs, x, name="net")


@pytest.fixture(scope="module")
def pictures():
    """Pictures, and the mean brightness of their first channel and the contrast of the second, with noise."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0.2, 2, (150, 2))
    x = rng.normal(size=(150, 8, 8, 3))
    x[..., 0] = 0.3 * x[..., 0] + size[:, 0, None, None]
    x[..., 1] *= size[:, 1, None, None]
    return x.astype("float32"), size + 0.1 * rng.normal(size=(150, 2))


def wide_features(model, x):
    head = linear_head(model)
    return np.concatenate(list(map(np.asarray, submodel(model, None, head.inputs)(x))), axis=1).astype(np.float64)


def clipped(z):
    return np.clip(z, -5, 5)


def scikit_learn(estimator):
    return make_pipeline(StandardScaler(), FunctionTransformer(clipped), estimator)


@pytest.mark.parametrize(("targets", "grouped"), [(1, False), (2, False), (1, True)])
def test_a_wide_head_of_numbers_is_the_ridge_regression_of_scikit_learn(targets, grouped, pictures, tmp_path):
    x, y = pictures
    y = y[:, :targets] * (1000, 0.01)[:targets] + 5
    groups = np.arange(150) // 5 if grouped else None
    task = Regression([str(i) for i in range(targets)]).standardized_by(y)
    model = attach_head(backbone(), task, features="all")
    readout = solve_head(model, x, y, groups=groups, seed=3, cache_dir=tmp_path)
    features, standardized = wide_features(model, x), (y - y.mean(0)) / y.std(0)
    width = features.shape[1]
    assert width == 12 + 16 + 8

    reached = list(readout.cross_validation.log_losses)
    assert reached == list(STRENGTHS[: len(reached)])
    folds = PredefinedSplit(stratified_folds(np.zeros(150, int), 5, 3, groups))
    grid = {"ridge__alpha": [width / strength for strength in reached]}
    search = GridSearchCV(scikit_learn(Ridge()), grid, cv=folds, scoring="neg_mean_squared_error")
    search.fit(features, standardized)
    np.testing.assert_allclose(
        list(readout.cross_validation.log_losses.values()), -search.cv_results_["mean_test_score"], rtol=1e-4
    )
    assert width / readout.strength == pytest.approx(search.best_params_["ridge__alpha"])
    # The oracle was fitted again to all rows, and the model is one graph from pictures to the unit of each target.
    expected = search.predict(features).reshape(standardized.shape)
    np.testing.assert_allclose((model.predict(x, verbose=0) - y.mean(0)) / y.std(0), expected, atol=1e-4)
    np.testing.assert_allclose(readout.logits(features), expected, atol=1e-4)


def test_a_wide_head_of_labels_is_a_logistic_regression_for_each(pictures, tmp_path):
    x, y = pictures
    y = (y > (1, 1.5)).astype("float32")
    model = attach_head(backbone(), MultiLabel(["bright", "rough"]), features="all")
    readout = solve_head(model, x, y, cache_dir=tmp_path)
    features, p = wide_features(model, x), model.predict(x, verbose=0)
    for c in range(2):
        oracle = scikit_learn(LogisticRegression(C=readout.strength / features.shape[1], tol=1e-8, max_iter=10_000))
        scores = oracle.fit(features, y[:, c]).decision_function(features)
        np.testing.assert_allclose(p[:, c], 1 / (1 + np.exp(-scores / readout.temperature)), atol=2e-3)


def test_numbers_read_more_layers_where_the_last_has_lost_them(pictures, tmp_path):
    x, y = pictures
    net, y = backbone(), y[:, 0]
    task = Regression().standardized_by(y)
    choice = choose_head(net, task, x, y, cache_dir=tmp_path)
    errors = {name: found.losses for name, found in choice.validations.items()}
    assert choice.features != "last"
    assert errors["last"].mean() > 2 * errors["all"].mean()
    # The narrowest whose squared error is within one standard error of the paired differences from the best.
    best = min(errors.values(), key=np.mean)
    spread = [(e - best).std(ddof=1) / 150**0.5 for e in errors.values()]
    near = [name for (name, e), s in zip(errors.items(), spread) if e.mean() - best.mean() <= s]
    assert choice.features == near[0]
    found = choice.validations[choice.features]
    np.testing.assert_allclose(found.losses, (found.logits[:, 0] - (y - y.mean()) / y.std()) ** 2, atol=1e-5)
    assert str(choice).splitlines()[0].split("  ")[-3:] == ["squared error", "difference", "standard error"]
    assert f"cross-validated squared error: last {errors['last'].mean():.3f}" in choice.notes[-1]
    # The solution finds the features and the folds again.
    model = attach_head(net, task, features=choice.features)
    batches = []
    readout = solve_head(model, x, y, cache_dir=tmp_path, progress=lambda done, total: batches.append(done))
    assert readout.cross_validation is found
    assert not batches


def test_numbers_that_are_noise_read_the_last_layer(pictures, tmp_path):
    x, y = pictures
    y = np.random.default_rng(1).permutation(y[:, 0])
    choice = choose_head(backbone(), Regression().standardized_by(y), x, y, cache_dir=tmp_path)
    assert choice.features == "last"
    assert choice.validations["last"].log_loss == pytest.approx(1, abs=0.1)  # that of the mean


def test_copies_of_a_picture_stay_in_one_fold(pictures, tmp_path):
    """Numbers by chance, and each picture eight times: only folds of groups can tell that there is nothing to learn."""
    x, _ = pictures
    x, y = np.tile(x[:20], (8, 1, 1, 1)), np.tile(np.random.default_rng(2).normal(size=20), 8)
    task, groups = Regression().standardized_by(y), np.tile(np.arange(20), 8)
    grouped = choose_head(backbone(), task, x, y, groups=groups, cache_dir=tmp_path).validations["all"]
    single = choose_head(backbone(), task, x, y, cache_dir=tmp_path).validations["all"]
    assert grouped.log_loss > 0.9 > 0.7 > single.log_loss


def test_a_phase_solves_a_wide_head_of_numbers_and_the_file_opens(pictures, tmp_path):
    x, y = pictures
    y = 1000 * y[:, :1]
    task = Regression().standardized_by(y)
    model, again = (attach_head(backbone(), task, features="all") for _ in range(2))
    readout = solve_head(model, x, y, cache_dir=tmp_path)
    plan = Plan([Phase(name="head", epochs=1, train="head", solver="ridge")])
    history = fine_tune(again, plan, x, y, validation_data=(x, y), cache_dir=tmp_path, verbose=0)
    assert not [note for note in history.notes if "gradient descent" in note]
    expected = readout.logits(wide_features(model, x)) * y.std() + y.mean()
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, rtol=1e-4)
    rmse = history.history["val_root_mean_squared_error"][-1]
    assert rmse == pytest.approx(((expected - y) ** 2).mean() ** 0.5, rel=1e-4)
    again.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-4)


def test_the_usual_solver_is_that_of_the_loss(pictures, tmp_path):
    x, y = pictures
    numbers = attach_head(backbone(), Regression())
    assert solve_head(numbers, x, y[:, 0], cache_dir=tmp_path).temperature == 1
    usual = numbers.predict(x, verbose=0)
    solve_head(numbers, x, y[:, 0], solver="ridge", cache_dir=tmp_path)
    np.testing.assert_array_equal(numbers.predict(x, verbose=0), usual)
    with pytest.raises(ValueError, match='expected "ridge"'):
        choose_head(backbone(), Regression(), x, y[:, 0], solver="svm", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="or None"):
        solve_head(numbers, x, y[:, 0], solver="lasso", cache_dir=tmp_path)
