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
from thaw.retention.budget import PATH_ALPHAS, PathAlphas
from thaw.retention.fisher_information import fisher
from thaw.retention.merging import interpolate_weights
from thaw.retention.monitor import ForgettingMonitor
from thaw.retention.source_tasks import SourceTask
from thaw.runs.tuning import advice_settings, tune_splits
from thaw.tasks import Classification
from thaw.training.callbacks import TuneCallback
from thaw.training.checkpoint import read_checkpoint

DIGITS = load_digits()
HEAD = Phase(name="head", epochs=2, train="head", learning_rate=5e-2)
ALL = Phase(name="all", epochs=3, learning_rate=0.1)
FEW = PathAlphas(line=(0.0, 0.1, 0.2, 0.3, 0.5, 1.0), curve=(), estimated=())  # each path costs seconds


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
    source = SourceTask.of(net, **old) if old else net
    found = tune_splits(given or pictures(), folder, backbone=source, plan=Plan(plan), callbacks=callbacks)
    return net, *found


def right(net, examples):
    return float((net.predict(examples.x, verbose=0).argmax(1) == examples.y).mean())


def known(**more):
    return {"examples": OLD, "labelled": True} | more


def bits(model):
    return [w.numpy().tobytes() for w in model.weights]


def test_advice_settings_try_no_random_weights_where_forgetting_has_a_budget():
    asked = {"minutes": 3, "epochs": None, "scratch": True}
    common = {"minutes": 3, "batch_size": 16, "seed": 7}
    assert advice_settings(asked, 0.1, batch_size=16, seed=7) == common | {"scratch": False}
    assert advice_settings(asked, 0.0, batch_size=16, seed=7) == common | {"scratch": False}
    assert advice_settings(asked, None, batch_size=16, seed=7) == common | {"scratch": True}
    assert advice_settings({}, None, batch_size=16, seed=7) == common | {"minutes": None, "scratch": True}


@pytest.fixture(scope="module")
def free(knowing, tmp_path_factory):
    """A run without a budget, which forgets a lot: its net, model, metrics, history, and the weights before."""
    folder = tmp_path_factory.mktemp("free") / "run"
    found = tuned(knowing, folder, [HEAD, ALL], **known())
    return folder, *found


@pytest.fixture(scope="module")
def held(knowing, tmp_path_factory):
    """The same run with a budget."""
    folder = tmp_path_factory.mktemp("held") / "run"
    found = tuned(knowing, folder, [HEAD, ALL], **known(max_forgetting=0.05))
    return folder, *found


def test_tune_splits_measures_the_source_score_before_after_and_in_every_epoch(knowing, free):
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


class Counted(Dataset):
    """Counts how often its inputs alone are read."""

    reads = 0

    def inputs(self, batch_size):
        Counted.reads += 1
        return super().inputs(batch_size)


def test_tune_splits_knows_that_a_head_alone_forgets_nothing(knowing, tmp_path):
    Counted.reads = 0
    counted = Counted(x=OLD.x, y=OLD.y)
    _, _, metrics, history = tuned(knowing, tmp_path / "run", [HEAD], **known(examples=counted, max_forgetting=0.0))
    assert history.history["retention"] == [1.0, 1.0]
    assert metrics["retention"]["forgotten"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert metrics["retention"]["inside"] is True
    assert Counted.reads == 1  # before the first step, and never again


def test_tune_splits_without_source_images_asks_the_source_head_about_the_target(knowing, free, tmp_path):
    net, model, metrics, history = tuned(knowing, tmp_path / "run", [HEAD, ALL])  # a model with its head is enough
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
    assert "60 validation examples of the target task" in measured["measured"]


def test_settle_finds_a_backbone_that_has_not_changed_the_same(knowing, tmp_path):
    measured = forgetting(knowing, tmp_path).settle()
    assert measured["after"]["value"] == 1.0
    for found in measured["similarity"].values():
        assert found["value"] == pytest.approx(1.0)


def test_tune_splits_says_that_nothing_is_measured_without_a_head(knowing, tmp_path):
    net = architecture()
    bare = SourceTask.of(net).backbone
    _, metrics, _ = tune_splits(pictures(), tmp_path / "run", backbone=bare, plan=Plan([HEAD]))
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


def test_weight_change_is_that_of_the_written_model(knowing, free, held):
    for folder, _, model, metrics, history in (free, held):
        begin = [*knowing[:-2], *(np.zeros_like(w) for w in model.get_weights()[-2:])]
        assert metrics["weight_change"] == distances(model, begin)
        assert all(stage["weights"] > 0 for stage in metrics["weight_change"])
        assert metrics["weight_change_by_phase"] == history.weight_change
        assert json.loads((folder / "metrics.json").read_text())["weight_change"] == metrics["weight_change"]
    # With a budget the backbone is a part of the way back; what the phases did stands beside it.
    _, _, _, metrics, history = held
    assert metrics["retention"]["chosen"] != "the best epoch"
    for written, trained in zip(metrics["weight_change"][:-1], history.weight_change["all"]):
        assert written["weights"] < trained["weights"]


# ----------------------------------------------------------------- the budget


def forgetting(knowing, folder, given=None, alphas=FEW, **old):
    from thaw.models.heads import attach_head

    net = architecture()
    net.set_weights(knowing)
    task = SourceTask.of(net, **old)
    return ForgettingMonitor(task, attach_head(task.backbone, 3), given or pictures(), folder, alphas=alphas)


def settled(knowing, free, folder, budget, given=None, alphas=FEW):
    """What is made of a run that has ended with the weights of the free one."""
    found = forgetting(knowing, folder, given, alphas, **known(max_forgetting=budget))
    found.model.set_weights(free[2].get_weights())
    return found, found.settle()


@pytest.fixture(scope="module")
def on_the_line(knowing, free, tmp_path_factory):
    return settled(knowing, free, tmp_path_factory.mktemp("line"), 0.05)


def test_settle_changes_nothing_where_the_budget_is_not_touched(knowing, free, tmp_path):
    run, found = settled(knowing, free, tmp_path, 0.9)
    assert bits(run.model) == bits(free[2])
    assert found["inside"] is True
    assert found["chosen"] == "the best epoch"


def test_settle_holds_a_budget_on_the_line(knowing, free, on_the_line):
    run, found = on_the_line
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


def test_settle_holds_a_budget_on_the_curve(knowing, free, tmp_path):
    """Each weight went back by its importance to the digits that the old head knows, and to the new ones."""
    alphas = PathAlphas(line=(0.0, 1.0), estimated=())
    train = TRAIN.take(np.arange(0, len(TRAIN), 3))  # the importance of each example is computed by itself
    run, found = settled(knowing, free, tmp_path, 0.05, pictures(train=train), alphas)
    rows = [(row["alpha"], row["path"]) for row in found["interpolation"]]
    assert rows == [(0.0, "line"), (1.0, "line"), *((alpha, "curve") for alpha in PATH_ALPHAS.curve)]
    assert found["inside"] is True
    assert found["forgotten"]["value"] <= 0.05
    assert found["after"]["value"] == right(run.source.model, OLD)
    assert "on the curve" in found["chosen"]
    end, place = free[2].get_weights(), bits(run.model)
    before = [*knowing[:-2], *end[-2:]]
    importance = []
    for weights, model, data in ((before, run.source.model, run.examples), (end, run.model, train)):
        run.model.set_weights(weights)
        importance.append(fisher(model, data, max_examples=100, weights_of=run.model))
    interpolate_weights(run.model, before, end, found["alpha"], importance=importance)
    assert bits(run.model) == place


@pytest.mark.parametrize(("score", "taken", "resumed"), [(0.99, True, False), (0.99, True, True), (0.6, False, False)])
def test_settle_takes_an_epoch_inside_where_it_is_better(knowing, free, tmp_path, score, taken, resumed):
    run = forgetting(knowing, tmp_path, **known(max_forgetting=0.05))
    follow = run.callbacks[-1]
    epochs = [(0.3, 0.96), (score, 0.96), (1.0, 0.94)]  # the last one is outside
    weights = []
    for epoch, (accuracy, kept) in enumerate(epochs):
        run.model.set_weights([w + 0.01 * epoch for w in run.model.get_weights()])
        weights.append(bits(run.model))
        follow.on_epoch_end(epoch, {"val_accuracy": accuracy, "retention": kept})
    if resumed:
        (tmp_path / "checkpoint.npz").touch()  # an epoch is complete
        run = forgetting(knowing, tmp_path, **known(max_forgetting=0.05))
    run.model.set_weights(free[2].get_weights())
    found = run.settle()
    assert found["inside"] is True
    assert (bits(run.model) == weights[1]) is taken
    assert found["chosen"].startswith("epoch 2, ") is taken
    assert (found["alpha"] is None) is taken


def test_settle_says_that_a_budget_cannot_be_held(knowing, free, tmp_path):
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
def test_settle_holds_no_budget_with_what_is_no_better_than_the_majority(knowing, free, tmp_path, moved, score, held):
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


def test_settle_takes_no_epoch_that_is_as_good_as_a_place_on_the_line(knowing, free, on_the_line, tmp_path):
    _, found = on_the_line
    best = next(row["target"]["value"] for row in found["interpolation"] if row["alpha"] == found["alpha"])
    run = forgetting(knowing, tmp_path, **known(max_forgetting=0.05))
    hair = float(np.nextafter(np.float32(best), np.float32(2)))
    run.callbacks[-1].on_epoch_end(0, {"val_accuracy": hair, "retention": 0.96})
    run.model.set_weights(free[2].get_weights())
    again = run.settle()
    assert again["alpha"] == found["alpha"]
    assert again["chosen"] == found["chosen"]


@pytest.mark.slow
def test_settle_leaves_what_forgets_least_where_a_budget_cannot_be_held(knowing, free, tmp_path):
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


def test_settle_estimates_statistics_and_tries_both_where_they_were_frozen(knowing, free, tmp_path):
    alphas = PathAlphas(line=(0.0, 0.5, 1.0), curve=(), estimated=(0.8,))
    run, found = settled(knowing, free, tmp_path / "a", 0.05, alphas=alphas)
    rows = [(row["alpha"], row["statistics"]) for row in found["interpolation"]]
    assert rows == [(0.0, "frozen"), (0.5, "frozen"), (1.0, "frozen"), (0.8, "estimated")]
    assert found["chosen"].endswith("BatchNorm statistics estimated again")  # here it is the better of the two
    assert found["after"]["value"] == right(run.source.model, OLD)
    assert found["forgotten"]["value"] <= 0.05
    # At the first BatchNorm they are those of all training images and all of the source task.
    norm = next(layer for layer in run.model.layers if isinstance(layer, layers.BatchNormalization))
    inputs = keras.Model(run.model.input, norm.input).predict(np.concatenate([TRAIN.x, OLD.x]), verbose=0)
    np.testing.assert_allclose(norm.moving_mean.numpy(), inputs.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), inputs.var(axis=(0, 1, 2)), rtol=1e-4)
    moved = forgetting(knowing, tmp_path / "b", alphas=alphas, **known(max_forgetting=0.0))
    norm = next(layer for layer in moved.model.layers if isinstance(layer, layers.BatchNormalization))
    moved.model.set_weights(free[2].get_weights())
    norm.moving_mean.assign(norm.moving_mean + 0.5)
    found = moved.settle()
    assert [(row["alpha"], row["statistics"]) for row in found["interpolation"]] == [
        (a, "estimated") for a in (0.0, 0.5, 1.0)
    ]


def test_forgetting_monitor_needs_validation_data(knowing, tmp_path):
    with pytest.raises(ValueError, match="There are no validation data"):
        forgetting(knowing, tmp_path, pictures(validation=None))


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


class Interrupting(Dataset):
    """Interrupts who reads the inputs alone. A training reads them with the labels, the search on the line alone."""

    def inputs(self, batch_size):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_tune_splits_ends_with_the_same_bits_wherever_it_is_interrupted(knowing, held, tmp_path):
    more = known(max_forgetting=0.05)
    _, _, model, metrics, history = held
    out = tmp_path / "run"
    for epoch in (0, 3):  # after the best epoch inside was written down, and before the run knows of it
        with pytest.raises(KeyboardInterrupt):
            tuned(knowing, out, [HEAD, ALL], callbacks=[Stop(epoch)], **more)
    given = pictures(validation=Interrupting(x=VALIDATION.x, y=VALIDATION.y))
    with pytest.raises(KeyboardInterrupt):  # on the line, while the first target score is computed
        tuned(knowing, out, [HEAD, ALL], given, **more)
    assert read_checkpoint(out / "unfinished" / "checkpoint.npz")[0]["epoch"] == 5  # after the last one
    inside = [e for e in history.epoch if history.history["retention"][e] >= 0.95]
    best = max(inside, key=lambda e: history.history["val_accuracy"][e])
    assert read_checkpoint(out / "unfinished" / "forgetting.npz")[0]["best"][2] == best
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


class StopAtFirst(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise KeyboardInterrupt


def test_tune_splits_does_not_resume_what_failed_before_its_first_step(knowing, tmp_path):
    nowhere = Phase(name="nowhere", epochs=1, train=("stage9",))
    with pytest.raises(ValueError, match='no stage "stage9"'):
        tuned(knowing, tmp_path / "run", [HEAD, nowhere], **known(max_forgetting=0.5))
    with pytest.raises(KeyboardInterrupt):  # with another budget it begins
        tuned(knowing, tmp_path / "run", [HEAD], callbacks=[StopAtFirst()], **known(max_forgetting=0.05))


def test_tune_splits_refuses_source_images_before_it_looks_for_advice(tmp_path):
    class Told(TuneCallback):
        def on_no_advice(self, reason):
            raise InterruptedError

    few = pictures(train=TRAIN.take(np.arange(9)))  # too few for advice, which is said at once
    for examples, error in ((few.train, ValueError), (OLD, InterruptedError)):
        source = SourceTask.of(architecture(), examples=examples, labelled=True)
        with pytest.raises(error) as raised:
            tune_splits(few, tmp_path, backbone=source, callbacks=[Told()])
        images = "All of the source task's images are training images of the target task"
        assert (images in str(raised.value)) is (error is ValueError)


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
