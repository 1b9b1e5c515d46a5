"""tune with folds: predictions out of fold, and the mean of the models."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

import thaw
from thaw import Classification, Dataset
from thaw.data.splits import Splits
from thaw.runs.folds import fold_splits


def splits_of(y, groups=None, train=None):
    y, train = np.asarray(y), len(y) // 2 if train is None else train
    parts = {"train": slice(None, train), "validation": slice(train, None)}
    datasets = {
        name: Dataset(
            x=np.arange(len(y))[rows, None].astype("float32"),
            y=y[rows],
            groups=None if groups is None else np.asarray(groups)[rows],
        )
        for name, rows in parts.items()
    }
    files = {name: tuple(f"{i}.png" for i in np.arange(len(y))[rows]) for name, rows in parts.items()}
    labels = [f"class {c}" for c in range(y.max() + 1)]
    return Splits(**datasets, test=None, task=Classification(labels), files=files, digest="abc")


def test_each_example_is_held_out_once_and_classes_are_divided_evenly():
    parts, fold = fold_splits(splits_of([0, 1] * 9), 3)
    held_out = np.concatenate([part.validation.x[:, 0] for part in parts])
    assert sorted(held_out) == list(range(18))
    for number, part in enumerate(parts):
        assert np.bincount(part.validation.y).tolist() == [3, 3]
        assert sorted([*part.train.x[:, 0], *part.validation.x[:, 0]]) == list(range(18))
        assert part.files["validation"] == tuple(f"{i}.png" for i in np.flatnonzero(fold == number))
        assert part.test is None
    assert len({part.digest for part in parts}) == 3


def test_a_group_stays_in_one_fold():
    groups = np.repeat(np.arange(12), 3)
    _, fold = fold_splits(splits_of(np.repeat([0, 1] * 6, 3), groups), 3)
    assert all(len(set(fold[groups == group])) == 1 for group in range(12))
    assert set(fold) == {0, 1, 2}


def test_a_class_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="The class 'class 1' has 2 examples for 3 folds"):
        fold_splits(splits_of([0, 0, 0, 0, 1, 1]), 3)
    with pytest.raises(ValueError, match="'class 1' has 1 examples that are no near-duplicates"):
        fold_splits(splits_of([0, 0, 0, 1, 1, 1], groups=[0, 1, 2, 3, 3, 3]), 2)
    with pytest.raises(ValueError, match="folds"):
        fold_splits(splits_of([0, 1] * 4), 1)


def test_augmentation_is_that_of_the_training():
    splits = splits_of([0, 1] * 4)
    flip = lambda image, seed: image  # noqa: E731
    augmented = dataclasses.replace(splits, train=splits.train.replace(augment=flip))
    parts, _ = fold_splits(augmented, 2)
    assert parts[0].train.augment is flip
    assert parts[0].validation.augment is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import keras
    from keras import layers

    place, rng = tmp_path_factory.mktemp("folds"), np.random.default_rng(0)
    for split, n in (("train", 20), ("validation", 10), ("test", 10)):
        for label, level in (("dark", 100), ("light", 150)):
            (place / "photos" / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(level, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / "photos" / split / label / f"{i}.png")
    keras.utils.set_random_seed(1)
    net = [keras.Input((16, 16, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, 2, activation="relu")]
    keras.Sequential(net, name="small").save(place / "small.keras")
    keras.Sequential([*net, layers.Conv2D(4, 3, 2, activation="relu")], name="two").save(place / "two.keras")
    return place


def tune(place, folder, **options):
    return thaw.tune(place / "photos", folder, model=str(place / "small.keras"), plan="probe", verbose=0, **options)


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    return tune(place, tmp_path_factory.mktemp("run") / "run", folds=3)


def test_the_model_is_the_mean_of_those_of_the_folds(run):
    x = np.random.default_rng(1).uniform(0, 255, (5, 16, 16, 3)).astype("float32")
    models = [thaw.open_run(run.folder / "folds" / str(i)).model for i in (1, 2, 3)]
    mean = np.mean([model.predict(x, verbose=0) for model in models], axis=0)
    np.testing.assert_allclose(thaw.open_run(run.folder).model.predict(x, verbose=0), mean, rtol=1e-5)


def test_predictions_out_of_fold_are_of_models_that_have_not_seen_the_image(run, place):
    with open(run.folder / "out_of_fold.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    row = rows[7]
    model = thaw.open_run(run.folder / "folds" / row["fold"])
    probability = float(row["probability of dark"])
    (predicted,) = model.predict([row["path"]], top=2)
    found = next(each["probability"] for each in predicted["top"] if each["label"] == "dark")
    assert found == pytest.approx(probability, abs=1e-5)
    correct = np.mean([row["label"] == row["predicted"] for row in rows])
    assert run.metrics["out_of_fold"]["accuracy"]["value"] == pytest.approx(correct)
    assert run.metrics["split"] == "test"


def test_an_interrupted_run_keeps_the_folds_that_are_finished(run, place, tmp_path):
    class Stop(thaw.TuneCallback):
        def on_fold_begin(self, number, total):
            assert total == 3
            if number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(place, tmp_path / "run", folds=3, callbacks=[Stop()])
    first = tmp_path / "run" / "folds" / "1" / "model.keras"
    written = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="folds = 3"):
        tune(place, tmp_path / "run", folds=4)
    again = tune(place, tmp_path / "run", folds=3)
    assert first.stat().st_mtime_ns == written
    for a, b in zip(again.model.get_weights(), run.model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_folds_that_were_begun_with_another_plan_are_refused(place, tmp_path):
    class Stop(thaw.TuneCallback):
        def on_fold_begin(self, number, total):
            if number == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(place, tmp_path / "run", folds=2, callbacks=[Stop()])
    model = str(place / "small.keras")
    with pytest.raises(ValueError, match="of another plan, model, data or seed"):
        thaw.tune(place / "photos", tmp_path / "run", model=model, plan="full", folds=2, verbose=0)


def test_every_fold_trains_at_the_rate_of_the_first(place, tmp_path):
    options = {"plan": "probe_then_tune", "epochs": 1, "optimizer": "sgd", "features": "last", "verbose": 0}
    thaw.tune(place / "photos", tmp_path / "run", model=str(place / "two.keras"), folds=2, **options)
    plans = [thaw.open_run(tmp_path / "run" / "folds" / number).plan for number in "12"]
    assert plans[0] == plans[1]
    assert plans[0][1].learning_rate == pytest.approx(20 * 5e-4)


def test_folds_and_a_budget_for_forgetting_exclude_each_other(place, tmp_path):
    with pytest.raises(ValueError, match="leave out folds"):
        tune(place, tmp_path / "run", folds=3, max_forgetting=0.1)
    with pytest.raises(ValueError, match="folds"):
        tune(place, tmp_path / "run", folds=1)
