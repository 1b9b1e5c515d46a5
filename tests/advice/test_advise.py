"""Advice for real: it repeats itself, measures what it says, leaves no trace, and refuses what is invalid."""

import json
import random
import time

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Dataset, advise, attach_head
from thaw.advice.advise import AdviceSettings, _prepare_search, measure, stratified_sample
from thaw.advice.result import Evidence
from thaw.advice.trials import Trials
from thaw.training.callbacks import TuneCallback


def net(stages=1):
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((6,))
    for _ in range(stages):
        x = layers.Dense(12, "relu")(x)
    model = attach_head(keras.Model(entry, x), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(n=90, m=60, apart=2):
    """Which of two numbers is larger? They lie apart, so that the head alone learns it."""
    x = np.random.default_rng(0).normal(size=(n + m, 6)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    x[:, 0] += np.where(y, apart, -apart)
    return Dataset(x=x[:n], y=y[:n]), Dataset(x=x[n:], y=y[n:])


class Ended(TuneCallback):
    """The trials that have ended; the last one of so many is interrupted."""

    def __init__(self, interrupt_at=None):
        super().__init__()
        self.interrupt_at, self.trials = interrupt_at, []

    def on_trial_end(self, trial):
        self.trials.append(trial)
        if len(self.trials) == self.interrupt_at:
            raise KeyboardInterrupt


def results(trials):
    return [(t.name, tuple(t.score), t.certainty, t.epochs, t.values.tolist()) for t in trials]


def trace(model):
    return (
        [v.numpy().tolist() for v in [*model.variables, *model.optimizer.variables]],
        [(layer.trainable, [v.trainable for v in layer.weights]) for layer in model._flatten_layers()],
        model.compiled,
        id(model.optimizer),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
    )


@pytest.mark.slow
def test_advise_repeats_itself_and_leaves_no_trace():
    """The same scores bit for bit, and the model, its optimizer and all random states as they were."""
    model = net()
    train, validation = data()
    model.fit(train.x[:32], train.y[:32], verbose=0)
    before = trace(model)
    settings = {"minutes": 1.2, "epochs": 2, "head_epochs": 4, "learning_rate": 1e-2, "batch_size": 4}
    found = [advise(model, train, validation_data=validation, **settings) for _ in range(2)]
    assert trace(model) == before
    assert results(found[0].trials) == results(found[1].trials)
    assert found[0].plan == found[1].plan
    assert found[0].reasons == found[1].reasons
    assert str(found[0]) == str(found[1])
    assert {t.train for t in found[0].trials} >= {"head", "all", "scratch"}
    assert all(len(line) <= 80 for line in str(found[0]).splitlines())
    again = json.loads(json.dumps(found[0].to_dict(), allow_nan=False))
    assert again["trials"][0]["score"] == found[0].trials[0].score.to_dict()
    assert sum(trial["chosen"] for trial in again["trials"]) == 1


def test_advise_with_a_kept_head_leaves_no_trace_also_after_an_interruption():
    """Counting the costs leaves Keras thinking that the model was never compiled; what is measured needs its loss."""
    model = net()
    train, validation = data(130)  # so many that halving them is considered, and the costs are counted
    model.fit(train.x, train.y, epochs=5, verbose=0)
    before = trace(model)
    train, shifted = (Dataset(x=part.x, y=1 - part.y) for part in (train, validation))
    settings = {"minutes": 1.2, "epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "validation_data": shifted}
    interrupted, complete = Ended(interrupt_at=2), Ended()
    with pytest.raises(KeyboardInterrupt):
        advise(model, train, head="kept", callbacks=[interrupted], **settings)
    assert trace(model) == before
    advice = advise(model, train, head="kept", callbacks=[complete], **settings)
    assert trace(model) == before
    assert results(interrupted.trials) == results(complete.trials[:2])
    assert set(advice.gradient_norms) == {"stage1", "head"}
    assert {t.train for t in advice.trials} >= {(), "head", ("stage1",)}
    correct = model.predict(validation.x, verbose=0).argmax(axis=1) == validation.y
    assert advice.trials[0].values.tolist() == (1.0 - correct).tolist()


def test_prepare_search_passes_on_what_was_asked_and_takes_as_many_examples_as_the_budget_allows():
    model, (train, validation) = net(), data(9000, 1500)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["mae"])
    asked = {"head": "new", "minutes": 0.2, "epochs": 40, "head_epochs": None, "learning_rate": 0.03, "l2_sp": 0.1}
    rest = {"scratch": True, "batch_size": 16, "seed": 4, "callbacks": ()}
    search = _prepare_search(AdviceSettings(**asked, **rest), model, train, validation)
    trials, evidence = search.trials, search.evidence
    assert (trials.accuracy, evidence.accuracy, evidence.metric) == (False, False, "mae")
    assert 0 < len(trials.train) == evidence.n_train_used == search.budget.n_train < evidence.n_train == 9000
    assert len(trials.head_examples) == evidence.n_head_used == 9000  # the head is solved from all
    assert [candidate.name for candidate in search.space.head_candidates()] == ["solved head"]
    assert len(trials.validation) == evidence.n_validation == 1000
    assert (trials.batch_size, trials.seed, trials.l2_sp) == (16, 4, 0.1)
    assert search.space.learning_rates == (0.03,)
    assert search.budget.epochs == 40
    assert search.deadline - time.monotonic() < 60 * (3 * 0.2 + 1)
    assert evidence.probe is not None
    assert 0 < search.budget.spent < search.budget.total


@pytest.mark.parametrize("helps", [True, False])
def test_measure_compares_with_random_weights(helps):
    model = net(stages=2)
    signs = np.concatenate([np.eye(6), -np.eye(6)], axis=1)  # what is below 0 passes a ReLU with its sign changed
    for layer, kernel in zip(model.layers[1:3], (signs, np.eye(12))):
        layer.set_weights([kernel * helps, np.zeros(12)])
    train, validation = data(120, 80, apart=0)
    trials = Trials(model, train, validation, batch_size=32, seed=0, accuracy=True, views=1)
    evidence = Evidence(
        head="new",
        accuracy=True,
        metric="accuracy",
        n_train=120,
        n_train_used=120,
        n_head_used=120,
        n_validation=80,
        stages_of=None,
    )
    measure(evidence, trials)
    assert evidence.pretraining_helps == helps
    errors, random_errors = (probe.best.errors.sum() for probe in (evidence.probe, evidence.random_probe))
    assert evidence.similarity.value == 1 - errors / random_errors
    assert (evidence.similarity.low > 0) == helps
    assert (evidence.learning_curve.correct.mean() > 0.8) == helps
    assert [row.stage for row in evidence.random_probe.rows] == ["stage1", "stage2"]
    assert not evidence.notes
    np.testing.assert_array_equal(model.layers[1].get_weights()[0], signs * helps)


def test_stratified_sample_keeps_the_proportions_of_the_classes():
    y = np.array([0] * 800 + [1] * 150 + [2] * 50)
    some = stratified_sample(y, 100, 3)
    assert np.bincount(y[some]).tolist() == [80, 15, 5]
    assert len(set(some.tolist())) == 100
    assert stratified_sample(y, 2000, 3).tolist() == list(range(1000))


def bad(model=None, train=None, validation=None, **settings):
    given = data(60, 40)
    x, y = (given[0], None) if train is None else train
    validation = given[1] if validation is None else validation
    return lambda: advise(net(stages=1) if model is None else model(), x, y, validation_data=validation, **settings)


def uncompiled():
    model = net(stages=1)
    model.compiled = False
    return model


def headless():
    entry = keras.Input((8, 8, 1))
    model = keras.Model(entry, layers.Conv2D(2, 3, 2)(layers.Conv2D(2, 3)(entry)))
    model.compile("adam", "mse")
    return model


BAD = {
    "few": (bad(validation=(np.zeros((5, 6)), np.zeros(5))), "There are 5 examples; expected at least 20"),
    "numbers": (bad(train=(np.zeros((60, 6)), np.linspace(0, 1, 60))), "one class for each example"),
    "not data": (bad(train=("photos", None)), "photos|str"),
    "head": (bad(head="old"), 'expected "new" or "kept"'),
    "minutes": (bad(minutes=0), "expected a number above 0"),
    "epochs": (bad(epochs=0), "expected a whole number from 1"),
    "not compiled": (bad(model=uncompiled), "is not compiled"),
    "no head": (bad(model=headless), "no head on top"),
    "one class": (bad(train=(np.ones((60, 6), "float32"), np.zeros(60, int))), "at least two classes"),
}


@pytest.mark.parametrize("name", BAD)
def test_advise_names_what_is_invalid(name):
    run, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        run()


def test_advise_needs_validation_data():
    with pytest.raises(ValueError, match="needs data to score trials on"):
        advise(net(stages=1), data()[0], validation_data=None)
