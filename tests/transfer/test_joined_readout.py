"""compare_columns: what scikit-learn finds on the same features, and never a model that is worse than one column."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.linear_model import LogisticRegression

from thaw import Classification, Dataset, Splits
from thaw.data.joined_columns import load_columns, select_inputs
from thaw.transfer.joined_readout import ONE_HEAD, SUM_OF_HEADS, compare_columns, sum_weights
from thaw.transfer.linear_readout import STRENGTHS
from thaw.transfer.readouts import stratified_folds

ROWS = {"train": 240, "validation": 40, "test": 120}


def splits(left=2.0, right=2.0):
    """Two columns of vectors; each says so much about the class."""
    rng = np.random.default_rng(0)
    direction = {name: rng.normal(size=6) / np.sqrt(6) for name in ("left", "right")}
    parts = {}
    for part, n in ROWS.items():
        y = rng.integers(0, 3, n)
        x = {
            name: (rng.normal(size=(n, 6)) + power * (y - 1)[:, None] * direction[name]).astype("float32")
            for name, power in (("left", left), ("right", right))
        }
        parts[part] = Dataset(x=x, y=y)
    return Splits(**parts, task=Classification(["a", "b", "c"]))


def backbones():
    keras.utils.set_random_seed(0)
    return {name: keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh")]) for name in ("left", "right")}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    nets, data = backbones(), splits()
    before = [weight.numpy() for net in nets.values() for weight in net.weights]
    comparison = compare_columns(data, nets, cache_dir=tmp_path_factory.mktemp("cache"))
    after = [weight.numpy() for net in nets.values() for weight in net.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    return comparison, data, nets


def scores_of(comparison):
    return {score.name: score for score in comparison.scores}


def standardized(train, *others):
    mean, deviation = train.mean(0), train.std(0)
    return [np.clip((x - mean) / deviation, -5, 5) for x in (train, *others)]


def by_hand(x, y, strength):
    """Log probabilities of each row out of fold, by scikit-learn."""
    fold, p = stratified_folds(y, 5, 0), np.empty((len(y), 3))
    for number in range(5):
        train, held_out = standardized(x[fold != number], x[fold == number])
        fitted = LogisticRegression(C=strength / x.shape[1], tol=1e-8, max_iter=10_000).fit(train, y[fold != number])
        p[fold == number] = fitted.decision_function(held_out)
    return p


def log_loss(logits, y):
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("name", ["left", "right", ONE_HEAD])
def test_each_head_is_that_of_scikit_learn(name, compared):
    comparison, data, nets = compared
    y = data.train.y
    columns = list(nets) if name == ONE_HEAD else [name]
    x = np.concatenate([np.asarray(nets[column](data.train.x[column])) for column in columns], axis=1)
    losses = {strength: log_loss(by_hand(x, y, strength), y) for strength in STRENGTHS[3:10]}
    logits = by_hand(x, y, min(losses, key=losses.get))
    # The temperature is the only other number that is chosen.
    best = min(log_loss(logits / t, y) for t in np.linspace(0.5, 2, 301))
    score = scores_of(comparison)[name]
    assert score.log_loss == pytest.approx(best, abs=2e-3)
    assert score.accuracy == pytest.approx((logits.argmax(1) == y).mean(), abs=0.01)
    assert score.width == x.shape[1]


def test_the_model_is_what_was_measured(compared):
    comparison, data, _ = compared
    score = scores_of(comparison)[comparison.chosen]
    assert comparison.chosen == min(comparison.scores, key=lambda s: s.log_loss).name
    assert comparison.chosen == SUM_OF_HEADS  # both columns tell, each by itself
    p = np.asarray(comparison.model(data.test.x))
    y = data.test.y
    assert (p.argmax(1) == y).mean() == pytest.approx(score.test_accuracy.value)
    assert -np.log(p[np.arange(len(y)), y]).mean() == pytest.approx(score.test_log_loss, abs=1e-5)
    assert comparison.baseline == pytest.approx(np.bincount(y).max() / len(y))
    assert "lower than that of" in comparison.notes[0]


def test_it_prints_a_table(compared):
    comparison, _, _ = compared
    lines = str(comparison).splitlines()
    assert lines[0].split("  ")[-1] == "test accuracy"
    for line, score in zip(lines[1:], comparison.scores):
        assert line.startswith(score.name)
        assert f"{score.log_loss:.3f}" in line
        assert line.endswith("chosen") == (score.name == comparison.chosen)
    assert [score.name for score in comparison.scores] == ["left", "right", ONE_HEAD, SUM_OF_HEADS]


def test_one_head_sees_what_only_both_columns_tell(tmp_path):
    """The right column is the disturbance in the left one, and tells nothing alone."""
    rng, data, parts = np.random.default_rng(1), splits(), {}
    direction = rng.normal(size=6)
    for part, n in ROWS.items():
        y = getattr(data, part).y
        disturbance, noise = 3 * rng.normal(size=(n, 1)) * direction, 0.3 * rng.normal(size=(2, n, 6))
        x = {"left": (y - 1)[:, None] * direction + disturbance + noise[0], "right": disturbance + noise[1]}
        parts[part] = Dataset(x={name: values.astype("float32") for name, values in x.items()}, y=y)
    data = dataclasses.replace(data, **parts)
    nets = {name: keras.Sequential([keras.Input((6,)), layers.Rescaling(1.0)]) for name in ("left", "right")}
    comparison = compare_columns(data, nets, cache_dir=tmp_path)
    scores = scores_of(comparison)
    assert comparison.chosen == ONE_HEAD
    assert scores[ONE_HEAD].log_loss < 0.9 * scores[SUM_OF_HEADS].log_loss
    p, y = np.asarray(comparison.model(data.test.x)), data.test.y
    assert -np.log(p[np.arange(len(y)), y]).mean() == pytest.approx(scores[ONE_HEAD].test_log_loss, abs=1e-5)


def test_a_column_that_tells_nothing_does_no_harm(tmp_path):
    data = splits(right=0.0)
    comparison = compare_columns(data, backbones(), cache_dir=tmp_path)
    scores = scores_of(comparison)
    assert scores[ONE_HEAD].log_loss > scores["left"].log_loss
    assert scores[comparison.chosen].log_loss == min(score.log_loss for score in comparison.scores)
    assert comparison.chosen == "left"
    assert list(comparison.model.input) == ["left"]
    assert comparison.notes[0].startswith("The model reads left alone: with all columns together")
    p = np.asarray(comparison.model(select_inputs(data.test, ["left"]).x))
    assert (p.argmax(1) == data.test.y).mean() == pytest.approx(scores["left"].test_accuracy.value)


def test_weights_of_a_sum_are_those_of_logistic_regression():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    differences = np.stack([power * (y - 0.5) + rng.normal(size=500) for power in (1.0, 0.4)], axis=1)
    logits = np.stack([np.stack([-d / 2, d / 2], axis=1) for d in differences.T])
    sample_weight = rng.random(500)
    weights, bias = sum_weights(logits, y, sample_weight)
    oracle = LogisticRegression(C=1e6, tol=1e-8).fit(differences, y, sample_weight)
    assert weights == pytest.approx(oracle.coef_[0], rel=0.01)
    assert bias[1] - bias[0] == pytest.approx(oracle.intercept_[0], abs=0.01)
    # What points the wrong way is left out, not turned around.
    logits[1] *= -1
    weights, _ = sum_weights(logits, y)
    assert weights[1] == 0
    assert np.isfinite(sum_weights(1e3 * (logits[:1] > 0), (logits[0, :, 1] > 0).astype(int))[0]).all()


def test_pictures_texts_and_numbers(tmp_path):
    """Rows as they are in a shop, with the published backbone for texts; other titles compute no picture again."""
    pytest.importorskip("tokenizers")
    from PIL import Image

    from thaw.models.minilm import minilm

    rng, n = np.random.default_rng(0), 90
    sold = rng.integers(0, 2, n)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255 - 60 * sold[i], (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    what = ["a lovely chair in good condition", "a broken table, sold for parts"]
    table = {
        "photo": [str(tmp_path / f"{i}.png") for i in range(n)],
        "title": [f"{what[sold[i] if i % 4 else 1 - sold[i]]}, number {i}" for i in range(n)],
        "price": (10 + 3 * sold + rng.normal(size=n) * 3).round(1).tolist(),
        "label": [("kept", "sold")[k] for k in sold],
        "split": [("train", "train", "train", "val", "test")[i % 5] for i in range(n)],
    }
    picture = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3)])
    nets, batches = {"image": picture, "text": minilm(length=32)}, []

    def compared():
        named = {"image": "photo", "text": "title", "numbers": "price"}
        data = load_columns(table, **named, image_size=8, cache_dir=tmp_path)
        batches.clear()
        return compare_columns(data, nets, cache_dir=tmp_path, progress=lambda done, total: batches.append(total))

    comparison = compared()
    assert batches == [2, 2, 1] * 3  # of 54 and 18 rows, for each of three columns
    scores = scores_of(comparison)
    assert list(scores) == ["image", "text", "numbers", ONE_HEAD, SUM_OF_HEADS]
    assert scores["text"].width == 384
    assert min(score.log_loss for score in scores.values()) < 0.8 * np.log(2)
    table["title"] = [f"{title} again" for title in table["title"]]
    assert scores_of(compared())["image"] == scores["image"]
    assert batches == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda data, nets: (data, {"left": nets["left"]}), {}, "There are 1 columns with a backbone"),
        (lambda data, nets: (data, nets | {"middle": nets["left"]}), {}, "no input 'middle'"),
        (lambda data, nets: (data, nets), {"solver": "ridge"}, 'expected "lbfgs" or "svm"'),
        (lambda data, nets: (dataclasses.replace(data, class_counts=(1, 2, 3)), nets), {}, "another balance"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(change, options, sentence):
    data, nets = change(splits(), backbones())
    with pytest.raises(ValueError, match=sentence):
        compare_columns(data, nets, **options)
