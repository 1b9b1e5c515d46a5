"""ForgettingMonitor measures what a run forgets, and a budget is held or reported not to be."""

import csv
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.data.splits import Splits
from thaw.models.stages import stages_of
from thaw.models.state import seed_everything
from thaw.plan import Phase, Plan
from thaw.retention import budget as budget_module
from thaw.retention.fisher_information import fisher
from thaw.retention.merging import interpolate_weights
from thaw.retention.monitor import ForgettingMonitor
from thaw.retention.source_tasks import SourceTask
from thaw.runs.train_images import tune_images
from thaw.tasks import Classification

DIGITS = load_digits()
HEAD = Phase(name="head", epochs=2, train="head", learning_rate=5e-2)
ALL = Phase(name="all", epochs=3, learning_rate=0.1)


@pytest.fixture(autouse=True)
def few_alphas(monkeypatch):
    monkeypatch.setattr(budget_module, "ESTIMATED_ALPHAS", (0.8,))


def digits(classes, begin, end):
    """Some of the digits of some classes, as small pictures in colour."""
    rows = np.concatenate([np.flatnonzero(DIGITS.target == c)[begin:end] for c in classes])
    x = np.repeat(DIGITS.images[rows][..., None] * 15, 3, axis=-1).astype("float32")
    return Dataset(x=x, y=np.searchsorted(classes, DIGITS.target[rows]))


OLD = digits((0, 1, 2), 100, 133)  # 99 of them, all of which are watched
TRAIN, VALIDATION, TEST = (digits((3, 4, 5), *part) for part in ((0, 40), (40, 60), (60, 80)))


def pictures(**parts):
    found = {"train": TRAIN, "validation": VALIDATION, "test": TEST} | parts
    return Splits(**found, task=Classification(["3", "4", "5"]))


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """Weights of a net that knows the digits 0 to 2."""
    net = architecture()
    net.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    old = digits((0, 1, 2), 0, 60)
    net.fit(old.x, old.y, epochs=12, verbose=0)
    return net.get_weights()


def architecture():
    seed_everything(2)
    x = entry = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(x)
    for filters in (6, 10):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(entry, layers.Dense(3, "softmax")(x), name="small")


def tuned(knowing, folder, plan, given=None, callbacks=(), **old):
    net = architecture()
    net.set_weights(knowing)
    task = SourceTask.of(net, **old)
    found = tune_images(given or pictures(), folder, backbone=task, plan=Plan(plan), callbacks=callbacks)
    return net, *found


def right(net, examples):
    return float((net.predict(examples.x, verbose=0).argmax(1) == examples.y).mean())


def known(**more):
    return {"examples": OLD, "labelled": True} | more


def bits(model):
    return [w.numpy().tobytes() for w in model.weights]


@pytest.mark.parametrize("budget", [None, 0.1])
def test_no_random_weights_where_forgetting_has_a_budget(knowing, tmp_path, monkeypatch, budget):
    asked = []

    def ask(*data, scratch, **settings):
        asked.append(scratch)
        raise InterruptedError

    monkeypatch.setattr("thaw.advice.advise.advise", ask)
    net = architecture()
    net.set_weights(knowing)
    source = SourceTask.of(net, **known(max_forgetting=budget))
    with pytest.raises(InterruptedError):
        tune_images(pictures(), tmp_path / "run", backbone=source)
    assert asked == [budget is None]


@pytest.fixture(scope="module")
def free(knowing, tmp_path_factory):
    """A run without a budget, which forgets a lot: its net, model, metrics, history, and the weights before."""
    folder = tmp_path_factory.mktemp("free") / "run"
    found = tuned(knowing, folder, [HEAD, ALL], **known())
    return folder, *found


def test_the_old_score_before_after_and_in_every_epoch(knowing, free):
    folder, net, _, metrics, history = free
    measured = metrics["retention"]
    fresh = architecture()
    fresh.set_weights(knowing)
    assert measured["score"] == "accuracy"
    assert measured["examples"] == 99
    assert measured["before"]["value"] == right(fresh, OLD)
    assert measured["after"]["value"] == right(net, OLD)  # the old head, on the backbone that was tuned
    assert measured["forgotten"]["value"] == pytest.approx(1 - right(net, OLD) / right(fresh, OLD))
    assert measured["forgotten"]["low"] < measured["forgotten"]["value"] < measured["forgotten"]["high"]
    assert measured["forgotten"]["value"] > 0.1
    kept = history.history["retention"]
    assert kept[:2] == [1.0, 1.0]  # the head alone cannot make it forget
    best = int(np.argmax(history.history["val_accuracy"]))
    assert min(kept) < 0.9
    assert kept[best] == pytest.approx(1 - measured["forgotten"]["value"])
    rows = list(csv.DictReader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["retention"]) for row in rows] == kept
    assert json.loads((folder / "metrics.json").read_text())["retention"] == measured


def test_a_head_alone_is_known_to_forget_nothing(knowing, tmp_path, monkeypatch):
    from thaw.features import cached_predictor

    computed, compute = [], cached_predictor.as_probabilities
    monkeypatch.setattr(cached_predictor, "as_probabilities", lambda *given: computed.append(1) or compute(*given))
    _, _, metrics, history = tuned(knowing, tmp_path / "run", [HEAD], **known(max_forgetting=0.0))
    assert history.history["retention"] == [1.0, 1.0]
    assert metrics["retention"]["forgotten"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert metrics["retention"]["inside"] is True
    assert len(computed) == 1  # before the first step, and never again


def test_without_old_pictures_the_old_head_is_asked_about_the_new_ones(knowing, free, tmp_path):
    net, model, metrics, history = tuned(knowing, tmp_path / "run", [HEAD, ALL])
    assert bits(model) == bits(free[2])  # watching has changed nothing
    assert "retention" not in history.history
    measured = metrics["retention"]
    fresh = architecture()
    fresh.set_weights(knowing)
    said = [n.predict(VALIDATION.x, verbose=0).argmax(1) for n in (fresh, net)]
    assert measured["score"] == "agreement"
    assert measured["after"]["value"] == float((said[0] == said[1]).mean())
    assert measured["before"]["value"] == 1.0
    assert measured["forgotten"]["value"] == pytest.approx(1 - measured["after"]["value"])
    assert set(measured["similarity"]) == {"stage1", "stage2"}
    for found in measured["similarity"].values():
        assert 0 < found["value"] < 1
    assert "60 validation images of the target task" in measured["measured"]


def test_a_model_with_its_head_is_enough(knowing, tmp_path):
    net = architecture()
    net.set_weights(knowing)
    _, metrics, _ = tune_images(pictures(), tmp_path / "run", backbone=net, plan=Plan([HEAD]))
    assert metrics["retention"]["after"]["value"] == 1.0
    for found in metrics["retention"]["similarity"].values():
        assert found["value"] == pytest.approx(1.0)


def test_without_a_head_it_is_said(knowing, tmp_path):
    net = architecture()
    bare = SourceTask.of(net).backbone
    _, metrics, _ = tune_images(pictures(), tmp_path / "run", backbone=bare, plan=Plan([HEAD]))
    assert "retention" not in metrics
    assert "What is forgotten was not measured: small came without its original head." in metrics["notes"]


# ----------------------------------------------------------------- how far the written model is from the start


def distances(model, begin):
    """How far the trained weights and the statistics of each stage are from where they were, counted otherwise."""
    now = {id(w): i for i, w in enumerate(model.weights)}
    end, rows = model.get_weights(), []
    for stage in stages_of(model):
        places = [(now[id(w)], "moving_" not in w.path) for layer in stage.layers for w in layer.weights]
        row = {"stage": stage.name}
        for name, kind in (("weights", True), ("statistics", False)):
            a, b = (np.concatenate([w[i].ravel() for i, k in places if k is kind] or [[0]]) for w in (begin, end))
            size = max(np.linalg.norm(a.astype(float)), np.linalg.norm(b.astype(float)), 1e-30)
            row[name] = pytest.approx(np.linalg.norm(b.astype(float) - a) / size)
        rows.append(row)
    return rows


def test_moved_is_what_the_written_model_moved(knowing, free, tmp_path, monkeypatch):
    _, _, model, metrics, history = free
    head = [np.zeros_like(w) for w in model.get_weights()[-2:]]
    begin = [*knowing[:-2], *head]
    assert metrics["weight_change"] == distances(model, begin)
    assert all(stage["weights"] > 0 for stage in metrics["weight_change"])
    # The backbone as it was is all that is inside no budget at all; what the phases did stands beside it.
    monkeypatch.setattr(budget_module, "LINE_ALPHAS", (0.0,))
    monkeypatch.setattr(budget_module, "CURVE_ALPHAS", ())
    out = tmp_path / "run"
    _, model, metrics, history = tuned(knowing, out, [HEAD, ALL], **known(max_forgetting=0.0))
    assert metrics["retention"]["chosen"] != "the best epoch"
    assert bits(model)[:-2] == [w.tobytes() for w in knowing[:-2]]
    assert metrics["weight_change"] == distances(model, begin)
    assert [(s["weights"], s["statistics"]) for s in metrics["weight_change"][:-1]] == [(0.0, 0.0)] * 2
    assert metrics["weight_change_by_phase"] == history.weight_change
    assert all(stage["weights"] > 0 for stage in history.weight_change["all"])
    assert json.loads((out / "metrics.json").read_text())["weight_change"] == metrics["weight_change"]


# ----------------------------------------------------------------- the budget


def forgetting(knowing, folder, given=None, **old):
    from thaw.models.heads import attach_head

    net = architecture()
    net.set_weights(knowing)
    task = SourceTask.of(net, **old)
    return ForgettingMonitor(task, attach_head(task.backbone, 3), given or pictures(), folder)


def settled(knowing, free, folder, budget, given=None):
    """What is made of a run that has ended with the weights of the free one."""
    found = forgetting(knowing, folder, given, **known(max_forgetting=budget))
    found.model.set_weights(free[2].get_weights())
    return found, found.settle()


def test_a_budget_that_is_not_touched_changes_nothing(knowing, free, tmp_path):
    run, found = settled(knowing, free, tmp_path, 0.9)
    assert bits(run.model) == bits(free[2])
    assert found["inside"] is True
    assert found["chosen"] == "the best epoch"


def test_a_budget_is_held_on_the_line(knowing, free, tmp_path, monkeypatch):
    monkeypatch.setattr(budget_module, "ESTIMATED_ALPHAS", (0.0,))  # below, with the others
    monkeypatch.setattr(budget_module, "CURVE_ALPHAS", ())
    run, found = settled(knowing, free, tmp_path, 0.05)
    assert found["inside"] is True
    assert found["forgotten"]["value"] <= 0.05
    assert found["after"]["value"] == right(run.source.model, OLD)
    assert 0 < found["alpha"] < 1
    assert found["chosen"].endswith("to the tuned one")  # with the statistics as they are
    # Just that place between the backbone before and the tuned one; the head as it was tuned.
    backbone = len(run.source.backbone.weights)
    end = free[2].get_weights()
    for i, weight in enumerate(run.model.get_weights()):
        place = end[i] if i >= backbone else (1 - found["alpha"]) * knowing[i] + found["alpha"] * end[i]
        np.testing.assert_allclose(weight, place, rtol=1e-5, atol=1e-7)
    chosen = next(row for row in found["interpolation"] if row["alpha"] == found["alpha"])
    assert chosen["target"]["value"] == right(run.model, VALIDATION)
    better = [row for row in found["interpolation"] if row["target"]["value"] > chosen["target"]["value"]]
    assert better
    assert all(row["forgotten"] > 0.05 for row in better)
    # The flags are restored, and a stale fit is refused.
    assert all(layer.trainable for layer in run.model.layers)
    assert not run.model.compiled


def test_a_budget_is_held_on_the_curve(knowing, free, tmp_path, monkeypatch):
    """Each weight went back by its importance to the digits that the old head knows, and to the new ones."""
    monkeypatch.setattr(budget_module, "LINE_ALPHAS", (0.0, 1.0))
    monkeypatch.setattr(budget_module, "ESTIMATED_ALPHAS", (0.0,))
    run, found = settled(knowing, free, tmp_path, 0.05)
    rows = [(row["alpha"], row["path"]) for row in found["interpolation"]]
    assert rows == [
        (0.0, "line"),
        (1.0, "line"),
        *((alpha, "curve") for alpha in budget_module.CURVE_ALPHAS),
        (0.0, "line"),
    ]
    assert found["inside"] is True
    assert found["forgotten"]["value"] <= 0.05
    assert found["after"]["value"] == right(run.source.model, OLD)
    assert "on the curve" in found["chosen"]
    end, place = free[2].get_weights(), bits(run.model)
    before = [*knowing[:-2], *end[-2:]]
    importance = []
    for weights, model, data in ((before, run.source.model, run.examples), (end, run.model, TRAIN)):
        run.model.set_weights(weights)
        importance.append(fisher(model, data, max_examples=100, weights_of=run.model))
    interpolate_weights(run.model, before, end, found["alpha"], importance=importance)
    assert bits(run.model) == place


@pytest.mark.parametrize(("score", "taken"), [(0.99, True), (0.6, False)])
def test_an_epoch_inside_is_taken_where_it_is_better(knowing, free, tmp_path, score, taken):
    run = forgetting(knowing, tmp_path, **known(max_forgetting=0.05))
    follow = run.callbacks[-1]
    epochs = [(0.3, 0.96), (score, 0.96), (1.0, 0.94)]  # the last one is outside
    weights = []
    for epoch, (accuracy, kept) in enumerate(epochs):
        run.model.set_weights([w + 0.01 * epoch for w in run.model.get_weights()])
        weights.append(bits(run.model))
        follow.on_epoch_end(epoch, {"val_accuracy": accuracy, "retention": kept})
    run.model.set_weights(free[2].get_weights())
    found = run.settle()
    assert found["inside"] is True
    assert (bits(run.model) == weights[1]) is taken
    assert found["chosen"].startswith("epoch 2, ") is taken
    assert (found["alpha"] is None) is taken


def test_a_budget_that_cannot_be_held_is_said(knowing, free, tmp_path):
    """All validation pictures are of one class: nothing is better than always naming it."""
    one = VALIDATION.take(np.flatnonzero(VALIDATION.y == 0))
    run, found = settled(knowing, free, tmp_path, 0.0, pictures(validation=one))
    assert found["inside"] is False
    assert found["forgotten"]["value"] > 0.1
    assert bits(run.model) == bits(free[2])
    assert any("could not be held" in note for note in run.notes)


MAJORITY = VALIDATION.take(np.concatenate([np.flatnonzero(VALIDATION.y == c)[:n] for c, n in ((0, 17), (1, 3))]))


def always_the_first(weights):
    """The same backbone, under a head that names the first class whatever it sees."""
    return [*weights[:-2], np.zeros_like(weights[-2]), np.array([5, 0, 0], "float32")]


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(("score", "held"), [(17, False), (18, True)])
def test_what_is_no_better_than_the_majority_does_not_hold_a_budget(knowing, free, tmp_path, moved, score, held):
    """In float32, in which Keras says it, 17 of 20 are more than 0.85."""
    said = float(np.float32(score / 20))
    assert said > 0.85
    run = forgetting(knowing, tmp_path, pictures(validation=MAJORITY), **known(max_forgetting=0.05))
    run.callbacks[-1].on_epoch_end(0, {"val_accuracy": said, "retention": 0.96})
    run.model.set_weights(always_the_first(free[2].get_weights() if moved else run.model.get_weights()))
    found = run.settle()
    assert found["inside"] is held
    assert any("more than the 5.0%" in note for note in run.notes) is moved
    assert any("held" in note for note in run.notes) is not held


def test_an_epoch_as_good_as_a_place_on_the_line_is_not_taken_for_better(knowing, free, tmp_path):
    _, found = settled(knowing, free, tmp_path / "a", 0.05)
    statistics = "estimated" if "estimated" in found["chosen"] else "frozen"  # a place may have been tried with both
    path = "curve" if "curve" in found["chosen"] else "line"
    places = {(row["alpha"], row["path"], row["statistics"]): row["target"]["value"] for row in found["interpolation"]}
    best = places[found["alpha"], path, statistics]
    run = forgetting(knowing, tmp_path / "b", **known(max_forgetting=0.05))
    hair = float(np.nextafter(np.float32(best), np.float32(2)))
    run.callbacks[-1].on_epoch_end(0, {"val_accuracy": hair, "retention": 0.96})
    run.model.set_weights(free[2].get_weights())
    again = run.settle()
    assert again["alpha"] == found["alpha"]
    assert again["chosen"] == found["chosen"]


@pytest.mark.slow
def test_what_forgets_least_is_left_where_it_cannot_be_held(knowing, free, tmp_path):
    """The pictures that everything inside the budget has wrong."""
    run, found = settled(knowing, free, tmp_path / "a", 0.0)
    wrong = run.model.predict(VALIDATION.x, verbose=0).argmax(1) != VALIDATION.y
    hard = pictures(validation=VALIDATION.take(np.flatnonzero(wrong)))
    run, found = settled(knowing, free, tmp_path / "b", 0.0, hard)
    assert found["inside"] is False
    floor = np.bincount(hard.validation.y).max() / wrong.sum()
    learned = [row for row in found["interpolation"] if row["target"]["value"] > floor]
    assert 0 < len(learned) < len(found["interpolation"])
    assert found["alpha"] == min(learned, key=lambda row: row["forgotten"])["alpha"]
    assert found["forgotten"]["value"] == pytest.approx(min(row["forgotten"] for row in learned))
    assert found["after"]["value"] == right(run.source.model, OLD)


def test_statistics_are_measured_anew_and_where_they_were_held_both_are_tried(knowing, free, tmp_path, monkeypatch):
    from thaw.retention import merging

    monkeypatch.setattr(budget_module, "LINE_ALPHAS", (0.0, 0.5, 1.0))
    monkeypatch.setattr(budget_module, "CURVE_ALPHAS", ())
    seen = []
    estimate = merging.estimate_batchnorm

    def noted(model, data, layers, **more):
        seen.append(sum(len(x) for x in data))
        return estimate(model, data, layers, **more)

    monkeypatch.setattr(merging, "estimate_batchnorm", noted)
    run, found = settled(knowing, free, tmp_path / "a", 0.05)
    rows = [(row["alpha"], row["statistics"]) for row in found["interpolation"]]
    assert rows == [(0.0, "frozen"), (0.5, "frozen"), (1.0, "frozen"), (0.8, "estimated")]
    assert found["chosen"].endswith("BatchNorm statistics estimated again")  # here it is the better of the two
    assert found["after"]["value"] == right(run.source.model, OLD)
    assert found["forgotten"]["value"] <= 0.05
    assert set(seen) == {len(TRAIN) + len(OLD)}
    moved = forgetting(knowing, tmp_path / "b", **known(max_forgetting=0.0))
    norm = next(layer for layer in moved.model.layers if isinstance(layer, layers.BatchNormalization))
    moved.model.set_weights(free[2].get_weights())
    norm.moving_mean.assign(norm.moving_mean + 0.5)
    found = moved.settle()
    assert [(row["alpha"], row["statistics"]) for row in found["interpolation"]] == [
        (a, "estimated") for a in (0.0, 0.5, 1.0)
    ]


def test_a_budget_needs_something_to_measure_by(knowing):
    net = architecture()
    bare = SourceTask.of(net).backbone
    with pytest.raises(ValueError, match="small has no head of its own, so that what it forgets cannot be measured"):
        SourceTask(backbone=bare, max_forgetting=0.1)
    with pytest.raises(ValueError, match=r"max_forgetting=1\.5; expected a fraction from 0 to 1"):
        SourceTask.of(net, max_forgetting=1.5)


# ----------------------------------------------------------------- interrupted


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.stop = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.stop:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_cut_off_anywhere_it_ends_with_the_same_bits(knowing, tmp_path, monkeypatch):
    more = known(max_forgetting=0.05)
    _, model, metrics, history = tuned(knowing, tmp_path / "whole", [HEAD, ALL], **more)
    out = tmp_path / "run"
    for epoch in (0, 3):  # after the best epoch inside was written down, and before the run knows of it
        with pytest.raises(KeyboardInterrupt):
            tuned(knowing, out, [HEAD, ALL], callbacks=[Stop(epoch)], **more)
    scores, real = iter([1, 1, 1]), budget_module.score_of

    def interrupted(*arguments):
        if next(scores, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(budget_module, "score_of", interrupted)
        with pytest.raises(KeyboardInterrupt):  # in the middle of the line
            tuned(knowing, out, [HEAD, ALL], **more)
    assert next(scores, None) is None
    _, again, same, later = tuned(knowing, out, [HEAD, ALL], **more)
    assert bits(again) == bits(model)
    assert same["retention"] == metrics["retention"]
    assert later.history["retention"] == history.history["retention"]
    assert not (out / "unfinished").exists()


def test_another_budget_is_another_run(knowing, tmp_path):
    forgetting(knowing, tmp_path, **known(max_forgetting=0.05))
    (tmp_path / "checkpoint.npz").touch()
    forgetting(knowing, tmp_path, **known(max_forgetting=0.05))
    for other in (known(max_forgetting=0.1), known(), known(examples=OLD.take(np.arange(50))), {}):
        with pytest.raises(ValueError, match="with other images of the source task or another budget"):
            forgetting(knowing, tmp_path, **other)


def test_what_failed_before_its_first_step_is_no_unfinished_run(knowing, tmp_path):
    nowhere = Phase(name="nowhere", epochs=1, train=("stage9",))
    with pytest.raises(ValueError, match='no stage "stage9"'):
        tuned(knowing, tmp_path / "run", [HEAD, nowhere], **known(max_forgetting=0.5))
    _, _, metrics, _ = tuned(knowing, tmp_path / "run", [HEAD], **known(max_forgetting=0.05))
    assert metrics["retention"]["max_forgetting"] == 0.05


def test_source_images_are_refused_before_advice_is_looked_for(tmp_path, monkeypatch):
    def never(*data, **settings):
        raise AssertionError

    monkeypatch.setattr("thaw.advice.advise.advise", never)
    source = SourceTask.of(architecture(), examples=TRAIN, labelled=True)
    with pytest.raises(ValueError, match="All of the source task's images are training images of the target task"):
        tune_images(pictures(), tmp_path, backbone=source)


# ----------------------------------------------------------------- which pictures


def test_no_more_than_a_tenth_of_an_epoch(knowing, tmp_path):
    many = digits((0, 1, 2), 0, 170)
    found = forgetting(knowing, tmp_path, pictures(train=digits((3, 4, 5), 0, 150)), **known(examples=many))
    assert len(found.examples) == int(0.1 * (3 * 450 + 60))
    turned = many.take(np.arange(len(many))[::-1])
    again = forgetting(knowing, tmp_path / "b", pictures(train=digits((3, 4, 5), 0, 150)), **known(examples=turned))
    np.testing.assert_array_equal(found.examples.x, again.examples.x)


def test_training_pictures_are_no_old_ones(knowing, tmp_path):
    both = Dataset(x=np.concatenate([OLD.x, TRAIN.x[:5]]), y=np.concatenate([OLD.y, TRAIN.y[:5]]))
    found = forgetting(knowing, tmp_path, **known(examples=both))
    assert len(found.examples) == len(OLD)
    assert "5 images of the source task are training images of the target task too, and are left out." in found.notes


def test_labels_that_are_not_those_of_the_head(knowing, tmp_path):
    turned = Dataset(x=OLD.x, y=np.where(np.arange(99) % 3, (OLD.y + 1) % 3, OLD.y))  # a third of them are right
    found = forgetting(knowing, tmp_path, **known(examples=turned))
    assert any("Are the labels those of its classes?" in note for note in found.notes)
    with pytest.raises(ValueError, match="Are the labels those that its head was trained on"):
        forgetting(knowing, tmp_path / "b", **known(examples=Dataset(x=OLD.x[:1], y=(OLD.y[:1] + 1) % 3)))


def test_a_measurement_leaves_the_model_as_it_was(knowing, tmp_path):
    found = forgetting(knowing, tmp_path, **known())
    before = bits(found.model), bits(found.source.model), [w.trainable for w in found.model.weights]
    found.measure()
    assert found.settle()["forgotten"]["value"] == 0.0
    assert (bits(found.model), bits(found.source.model), [w.trainable for w in found.model.weights]) == before
