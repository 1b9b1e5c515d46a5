"""Advice moves what is worth moving, says when nothing is, keeps to its budget, and leaves no trace."""

import dataclasses
import json
import random

import keras
import numpy as np
import pytest
from keras import layers

import thaw.advice.budget as search_budget
import thaw.advice.cost as trial_cost
import thaw.advice.search as search
import thaw.advice.space as search_space
from thaw import Dataset, Phase, Plan, advise, attach_head
from thaw.advice.budget import SearchBudget
from thaw.advice.choice import simplest
from thaw.advice.halving import successive_halving
from thaw.advice.result import Evidence
from thaw.advice.search import PlanSearch, stratified_sample
from thaw.advice.trials import Candidate, Trial, Trials, is_better, paired_difference
from thaw.training.callbacks import TuneCallback

RNG = np.random.default_rng(0)
MEASURED = {}


def net(stages=3, optimizer="adam", metrics=("accuracy",), width=12):
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((6,))
    for _ in range(stages):
        x = layers.Dense(width, "relu")(x)
    model = attach_head(keras.Model(entry, x), 2)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=list(metrics))
    return model


def data(n=120, m=80, seed=0):
    """Which of two numbers is larger?"""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + m, 6)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    return Dataset(x=x[:n], y=y[:n]), Dataset(x=x[n:], y=y[n:])


def run_advise(model, parts, **settings):
    train, validation = parts
    return advise(model, train, validation_data=validation, **settings)


class Events(TuneCallback):
    def __init__(self):
        super().__init__()
        self.trials, self.ended = [], []

    def on_trial(self, number, total, name):
        self.trials.append((number, total, name))

    def on_trial_end(self, trial):
        self.ended.append(trial)


@pytest.fixture
def fake(monkeypatch):
    """Trials that train nothing: what they score is looked up by what moves, and at what rate.

    What is measured before them is measured once for all tests, unless a test asks for its own.
    """
    measure = PlanSearch._measure

    def prepare(scores, default=0.7, measured=True):
        ran = []

        def once(self):
            case = self.settings.head, len(self.validation)
            if case not in MEASURED:
                measure(self)
                names = ("probe", "learning_curve", "random_probe", "gain_over_random", "gradient_norms")
                MEASURED[case] = {name: getattr(self.evidence, name) for name in names}
            vars(self.evidence).update(MEASURED[case])

        monkeypatch.setattr(PlanSearch, "_measure", once if measured else measure)

        def run(self, candidate, epochs, rung):
            score = scores.get((candidate.train, candidate.learning_rate), scores.get(candidate.train, default))
            ran.append((candidate.train, candidate.learning_rate, epochs, rung))
            if score is None:
                return Trial.of(candidate, epochs, rung, self.trainable_weights("all"), None)
            moves = "all" if candidate.train == "scratch" else candidate.train
            values = np.arange(len(self.labels)) < round(score * len(self.labels))
            return Trial.of(candidate, epochs, rung, self.trainable_weights(moves), values.astype(float))

        monkeypatch.setattr(Trials, "run", run)
        return ran

    return prepare


def trace(model):
    return (
        [v.numpy().tolist() for v in [*model.variables, *model.optimizer.variables]],
        [(layer.trainable, [v.trainable for v in layer.weights]) for layer in model._flatten_layers()],
        model.compiled,
        id(model.optimizer),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
    )


# ----------------------------------------------------------------- what is chosen


def test_what_is_best_is_moved(fake):
    fake({"head": 0.6, 2: 0.7, (2, 2.5e-3): 0.95, "all": 0.8})
    advice = run_advise(net(), data(), minutes=20)
    assert advice.chosen.name == "head + 2 at 0.0025"
    assert not advice.scratch
    head, tune = advice.plan
    assert (head.train, tune.train, tune.learning_rate, tune.epochs, tune.views) == ("head", 2, 2.5e-3, 10, 4)
    assert advice.reasons[0].startswith("Train stage2, stage3 and the head at 0.0025: 0.950 [")
    difference, low, high = advice.chosen.gain
    assert 0 < low < difference < high
    assert any("optimistic" in reason for reason in advice.reasons)
    assert Plan.from_toml(advice.plan.to_toml()) == advice.plan


def test_frozen_features_are_enough(fake):
    fake({"head": 0.9}, default=0.9)
    advice = run_advise(net(), data(), minutes=20)
    assert advice.chosen.train == "head"
    assert [phase.train for phase in advice.plan] == ["head"]
    assert advice.reasons[0].startswith("Frozen features are enough: 0.900 [")


def test_frozen_features_where_the_difference_is_noise(fake):
    fake({"head": 0.8875, 1: 0.8, (2, 5e-4): 0.9})  # one of 80 examples
    assert run_advise(net(), data(), minutes=20).chosen.train == "head"
    fake({"head": 0.8, 1: 0.8875, (2, 5e-4): 0.9})  # eight; and of what moves the best
    assert run_advise(net(), data(), minutes=20).chosen.train == 2


def test_what_moves_less_where_the_head_is_kept_and_the_difference_is_noise(fake):
    fake({("stage1",): 0.8875, (2, 5e-4): 0.9}, default=0.6)
    assert run_advise(net(), data(), minutes=20, head="kept").chosen.train == ("stage1",)
    fake({("stage1",): 0.8625, (2, 5e-4): 0.9}, default=0.6)  # three: 1.8 standard errors
    assert run_advise(net(), data(), minutes=20, head="kept").chosen.train == ("stage1",)
    fake({("stage1",): 0.8, (2, 5e-4): 0.9}, default=0.6)
    assert run_advise(net(), data(), minutes=20, head="kept").chosen.train == 2


@pytest.mark.parametrize(
    ("helps", "scratch", "tuned", "chosen"),
    [
        (True, 0.8875, 0.9, False),  # one of 80 examples
        (True, 0.9, 0.8875, True),
        (False, 0.8875, 0.9, True),
        (False, 0.8, 0.9, False),
    ],
)
def test_scratch_where_the_features_are_no_better_than_random_ones_wins_a_tie(
    fake, monkeypatch, helps, scratch, tuned, chosen
):
    monkeypatch.setattr(Evidence, "pretraining_helps", helps)
    monkeypatch.setattr(search, "MIN_WEIGHTS_PER_EXAMPLE", 1000)
    fake({"head": 0.5, "scratch": scratch, (2, 5e-4): tuned}, default=0.6)
    advice = run_advise(net(), data(), minutes=20)
    assert advice.scratch == chosen
    assert not (chosen and any("Pre-training helps" in reason for reason in advice.reasons))


def test_of_equal_scores_the_surer_one():
    values = np.arange(100) < 80
    low = Trial.of(Candidate(2, 5e-4), 9, 2, 500, values.astype(float), certainty=-0.7)
    high = Trial.of(Candidate(2, 2.5e-3), 9, 2, 500, values.astype(float), certainty=-0.5)
    order = lambda trial: 1  # noqa: E731
    assert simplest([low, high], order, 1) is simplest([high, low], order, 1) is high
    assert high.rank > low.rank > Trial.of(Candidate(2, 1e-2), 9, 2, 500, None).rank


def test_scratch_where_the_features_tell_nothing(fake):
    model = net()
    model.layers[1].set_weights([np.zeros((6, 12)), np.zeros(12)])  # and what comes behind sees nothing
    fake({"head": 0.5, "scratch": 0.95}, default=0.5, measured=False)
    advice = run_advise(model, data(300), minutes=20)
    assert advice.scratch
    (phase,) = advice.plan
    assert (phase.train, phase.batchnorm, phase.epochs) == ("all", "trained", 20)
    assert advice.reasons[0].startswith("Start from random weights: 0.950")
    assert any("not better than random ones" in reason for reason in advice.reasons)
    assert [t.rung for t in advice.trials if t.train == "scratch"][-1] == 2  # it begins slowly, and is kept to the end


def test_more_examples_rather_than_more_tuning(fake):
    fake({}, default=0.9, measured=False)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 120)).astype("float32")
    y = (x @ rng.normal(size=120) > 0).astype("int32")
    keras.utils.set_random_seed(0)
    entry = keras.Input((120,))
    model = attach_head(keras.Model(entry, layers.Dense(120, kernel_initializer="identity")(entry)), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    advice = advise(model, x[:200], y[:200], validation_data=(x[200:], y[200:]), minutes=20)
    assert advice.learning_curve.gain.low > 0
    assert any(reason.startswith("More examples would help more than more fine-tuning") for reason in advice.reasons)


def test_where_the_head_is_kept(fake):
    ran = fake({("stage1",): 0.95}, default=0.8)
    advice = run_advise(net(), data(), minutes=20, head="kept")
    assert advice.chosen.train == ("stage1",)
    assert {t for t, *_ in ran} >= {("stage1",), ("stage2",), ("stage3",), "head", "all", 1, 2}
    (phase,) = advice.plan
    assert (phase.train, phase.layer_decay) == (("stage1",), 1.0)
    assert advice.reasons[0].startswith("Train stage1 at ")
    assert set(advice.gradient_norms) == {"stage1", "stage2", "stage3", "head"}
    assert advice.trials[0].name == "unchanged"
    assert "gain over the unchanged model" in str(advice)


def test_a_kept_head_is_tried_with_large_steps_and_to_the_end(fake):
    """Where labels change their meaning the head comes round slowly, and looks bad at first."""
    ran = fake({"head": 0.6}, default=0.8)
    run_advise(net(), data(), minutes=20, head="kept")
    assert {(rate, rung) for train, rate, _, rung in ran if train == "head"} >= {(1e-1, 2), (1e-2, 2), (1e-3, 2)}


def test_leave_it_where_nothing_helps(fake):
    fake({}, default=0.3)  # the untrained model says always the same, which is better
    advice = run_advise(net(), data(), minutes=20, head="kept")
    assert advice.chosen.train == ()
    assert advice.reasons[0].startswith("Leave the model unchanged")
    assert len(advice.plan) == 1


def test_a_rate_at_the_edge_is_not_the_end(fake):
    ran = fake({(2, 2.5e-3): 0.9, (2, 1.25e-2): 0.97})
    assert run_advise(net(), data(), minutes=20).chosen.learning_rate == pytest.approx(1.25e-2)
    ran.clear()
    run_advise(net(), data(), minutes=20, learning_rate=3e-3)
    assert {rate for train, rate, *_ in ran if train not in ("head", "scratch")} == {3e-3}


def test_diverged_trials_are_told_and_not_chosen(fake):
    fake({"head": 0.8, "all": None, 2: None, 1: None, "scratch": None})
    advice = run_advise(net(), data(), minutes=20)
    assert advice.chosen.train == "head"
    assert "diverged" in str(advice)
    json.dumps(advice.to_dict(), allow_nan=False)
    fake({}, default=None)
    with pytest.raises(FloatingPointError, match="diverged at every learning rate"):
        run_advise(net(), data(), minutes=20)


@pytest.mark.parametrize(("reached", "tried"), [(1.0, [1e-2]), (0.4, [1e-2, 1e-1, 1e-3])])
def test_other_rates_for_the_head_where_the_features_hold_more(fake, reached, tried):
    """The ridge readout tells two numbers apart with 0.7 to 0.99 here."""
    ran = fake({"head": reached})
    advice = run_advise(net(), data(), minutes=20)
    assert [rate for train, rate, _, rung in ran if train == "head" and rung is None] == tried
    assert reached == 1.0 or advice.learning_curve.correct.mean() > reached


def test_steps_of_another_optimizer(fake):
    ran = fake({})
    run_advise(net(optimizer="sgd"), data(), minutes=20)
    assert {rate for train, rate, *_ in ran if train == 2} >= {5e-4 * 20, 2.5e-3 * 20}


@pytest.mark.parametrize(("optimizer", "size"), [("sgd", 20), ("lion", 0.2), ("adam", 1)])
def test_steps_of_another_optimizer_where_the_head_is_kept(fake, optimizer, size):
    ran = fake({}, measured=False)
    run_advise(net(optimizer=optimizer), data(), minutes=20, head="kept")
    assert {rate for train, rate, *_ in ran if train == 2} >= {5e-4 * size, 2.5e-3 * size}


def test_no_room_for_trials_in_a_model_of_one_stage(fake):
    fake({})
    model = net(stages=1, optimizer="sgd")
    advice = run_advise(model, data(), minutes=0.01)
    assert advice.reasons[0].startswith("The budget allowed no trials, so the plan is the default")
    assert advice.plan[1].train == "all"
    assert advice.plan[1].learning_rate == 5e-4 * 20
    advice = run_advise(net(), data(), minutes=0.001, head="kept")
    assert "so the plan is the smallest change" in advice.reasons[0]


def test_where_all_that_moves_diverged(fake):
    fake({1: None, 2: None, "all": None, "scratch": None})
    advice = run_advise(net(), data(), minutes=20)
    assert advice.reasons[0].startswith("Frozen features are enough: ")
    assert "all trials that train more diverged, down to 0.0001" in advice.reasons[0]


def test_a_readout_that_is_better_is_said(fake):
    """The best of the trials is far below what a ridge readout of the same features gets."""
    fake({"head": 0.3, 2: 0.45}, default=0.3)
    advice = run_advise(net(), data(), minutes=20)
    assert advice.chosen.gain.high < 0
    assert "over frozen features with a ridge readout; the readout is better" in advice.reasons[0]
    assert "chance" not in advice.reasons[0]


def test_a_given_rate_is_the_only_one(fake):
    ran = fake({}, measured=False)
    model = net(width=2)
    run_advise(model, data(2000, 80), minutes=20, learning_rate=1e-5)
    moved = {rate for train, rate, _, rung in ran if train != "head"}
    assert moved == {1e-5}


def test_no_random_weights_where_they_are_not_wanted(fake, monkeypatch):
    monkeypatch.setattr(Evidence, "pretraining_helps", False)
    ran = fake({})
    assert any(t.train == "scratch" for t in run_advise(net(), data(), minutes=20).trials)
    ran.clear()
    advice = run_advise(net(), data(), minutes=20, scratch=False)
    assert not any(train == "scratch" for train, *_ in ran)
    assert not any("trial from random weights" in reason for reason in advice.reasons)


def test_of_heads_that_are_as_good_the_plan_has_the_one_that_everything_began_from(fake, monkeypatch):
    """The other is surer of its answers, and that decides in all places."""
    ran = fake({"head": 0.4, "scratch": 0.4})
    of = Trial.of

    def surer(candidate, *arguments, **more):
        trial = of(candidate, *arguments, **more)
        return dataclasses.replace(trial, certainty=candidate.learning_rate) if candidate.train == "head" else trial

    monkeypatch.setattr(Trial, "of", surer)
    began = []
    monkeypatch.setattr(Trials, "state", lambda self: began.append(len(ran)) or [v.numpy() for v in self._variables])
    advice = run_advise(net(), data(), minutes=20)
    assert [rate for train, rate, _, rung in ran if rung is None] == [1e-2, 1e-1]
    assert began[-1] == 2  # after the second
    assert advice.plan[0].learning_rate == 1e-1
    assert advice.trials[0] is not advice.chosen


def test_a_trial_from_scratch_that_did_not_fit_is_missed(fake, monkeypatch):
    fake({})
    price = SearchBudget.price

    def expensive(self, candidate, *arguments, **options):
        return price(self, candidate, *arguments, **options) * (1e6 if candidate.train == "scratch" else 1)

    monkeypatch.setattr(SearchBudget, "price", expensive)
    advice = run_advise(net(), data(), minutes=20)
    assert any("not allow a trial from random weights" in reason for reason in advice.reasons)


def test_the_best_that_could_not_be_tried_for_longer_is_chosen_and_it_is_said(fake, monkeypatch):
    fake({"head": 0.6, (2, 5e-4): 0.7, (2, 2.5e-3): 0.97})
    monkeypatch.setattr(trial_cost, "OPERATIONS_PER_TRIAL", 0)  # short trials are cheaper than long ones
    monkeypatch.setattr(trial_cost, "OPERATIONS_PER_LAYER", 0)
    best = Candidate(2, 2.5e-3)
    price = SearchBudget.price

    def expensive(self, candidate, *arguments, **options):
        is_longer = candidate == best and best in self.tried
        return 1.01 * self.total if is_longer else price(self, candidate, *arguments, **options)

    monkeypatch.setattr(SearchBudget, "price", expensive)
    monkeypatch.setattr(search, "successive_halving", lambda *a, **k: successive_halving(*a, **k | {"propose": None}))
    advice = run_advise(net(), data(), minutes=20, epochs=30)
    assert advice.chosen.learning_rate == 2.5e-3
    assert any("The budget did not allow a longer trial of head + 2 at 0.0025" in reason for reason in advice.reasons)


# ----------------------------------------------------------------- the budget


@pytest.mark.parametrize("minutes", [1.0, 1.5, 3.0, 10.0])
def test_the_budget_is_kept(fake, minutes):
    ran = fake({})
    advice = run_advise(net(), data(1000, 200), minutes=minutes)
    assert 0 < advice.budget_used <= 1
    assert len(advice.trials) >= len(ran)
    few = len(ran)
    ran.clear()
    run_advise(net(), data(1000, 200), minutes=3 * minutes)
    assert len(ran) >= few


def test_little_budget_fewer_examples_and_it_is_said(fake, monkeypatch):
    fake({})
    monkeypatch.setattr(trial_cost, "OPERATIONS_PER_BATCH", 5e10)
    advice = run_advise(net(), data(4000, 200), minutes=20)
    assert any("of the 4,000 training examples" in reason for reason in advice.reasons)
    assert 0.3 < advice.budget_used <= 1
    advice = run_advise(net(), data(), minutes=0.01)
    assert advice.reasons[0].startswith("The budget allowed no trials")
    assert [phase.train for phase in advice.plan] == ["head", 2]


def test_few_of_the_examples_do_not_prove_that_frozen_features_are_enough(fake, monkeypatch):
    fake({"head": 0.9, 1: 0.88, (1, 5e-4): 0.89}, default=0.7)
    monkeypatch.setattr(trial_cost, "OPERATIONS_PER_BATCH", 5e10)
    advice = run_advise(net(), data(4000, 200), minutes=20)
    assert advice.chosen.train == "head"
    assert advice.reasons[0].startswith("Frozen features did as well on the examples that the trials used: 0.900 [")
    assert "the plan trains head + 1 at 0.0005 after the head" in advice.reasons[0]
    head, tune = advice.plan
    assert (head.train, tune.train, tune.learning_rate) == ("head", 1, 5e-4)


def test_few_of_the_examples_do_not_lower_the_usual_rate(fake, monkeypatch):
    fake({"head": 0.9, (2, 5e-4): 0.87, (2, 1e-4): 0.875, (1, 5e-4): 0.85}, default=0.7)  # one of 200 examples
    monkeypatch.setattr(trial_cost, "OPERATIONS_PER_BATCH", 5e10)
    assert run_advise(net(), data(4000, 200), minutes=20).plan[1].learning_rate == 5e-4
    fake({"head": 0.9, (2, 5e-4): 0.7, (2, 1e-4): 0.875, (1, 5e-4): 0.7}, default=0.6)
    assert run_advise(net(), data(4000, 200), minutes=20).plan[1].learning_rate == 1e-4


def test_the_clock_ends_what_takes_far_too_long(fake, monkeypatch):
    ran = fake({})
    now = iter(range(0, 100_000, 200))
    monkeypatch.setattr(search.time, "monotonic", lambda: next(now))
    advice = run_advise(net(), data(), minutes=3)
    assert any("the clock ended the trials" in reason for reason in advice.reasons)
    assert 3 < len(ran) < 10


def test_who_wants_to_know_is_told(fake):
    fake({})
    told = Events()
    advice = run_advise(net(), data(), minutes=20, callbacks=(told,))
    assert [number for number, *_ in told.trials] == list(range(1, len(told.trials) + 1))
    assert all(number <= total for number, total, _ in told.trials)
    assert [t.name for t in told.ended] == [name for *_, name in told.trials]
    assert len(told.ended) == len([t for t in advice.trials if t.name != "ridge readout"])


# ----------------------------------------------------------------- for real


@pytest.fixture
def short(monkeypatch):
    """One rate and few epochs."""
    monkeypatch.setattr(search_space, "LEARNING_RATES", (1e-2,))
    monkeypatch.setattr(search_space, "HEAD_LEARNING_RATES", (1e-2,))
    monkeypatch.setattr(search_budget, "HEAD_STEPS", 1)
    monkeypatch.setattr(search, "MIN_WEIGHTS_PER_EXAMPLE", 0)


@pytest.mark.slow
def test_for_real_twice_the_same_and_no_trace(short):
    """A real run: same scores to the bit, and the model, its optimizer and all random states as they were."""
    model = net(stages=2)
    train, validation = data(90, 60)
    model.fit(train.x[:32], train.y[:32], verbose=0)
    before = trace(model)
    found = [advise(model, train, validation_data=validation, minutes=1.2, epochs=2, batch_size=32) for _ in range(2)]
    assert trace(model) == before
    scores = [[(t.name, tuple(t.score), t.epochs, t.values.tolist()) for t in advice.trials] for advice in found]
    assert scores[0] == scores[1]
    assert found[0].plan == found[1].plan
    assert found[0].reasons == found[1].reasons
    assert str(found[0]) == str(found[1])
    assert {t.train for t in found[0].trials} >= {"head", 1, "all"}
    assert all(len(line) <= 80 for line in str(found[0]).splitlines())
    again = json.loads(json.dumps(found[0].to_dict(), allow_nan=False))
    assert again["trials"][0]["score"] == found[0].trials[0].score.to_dict()
    assert sum(trial["chosen"] for trial in again["trials"]) == 1


def test_for_real_with_a_head_that_is_kept(short):
    """Counting the costs leaves Keras thinking that the model was never compiled; what is measured needs its loss."""
    model = net(stages=2)
    train, validation = data(90, 60)
    model.fit(train.x, train.y, epochs=5, verbose=0)
    before = trace(model)
    shifted = [Dataset(x=part.x, y=1 - part.y) for part in (train, validation)]
    advice = run_advise(model, shifted, minutes=1.2, epochs=2, head="kept")
    assert trace(model) == before
    assert set(advice.gradient_norms) == {"stage1", "stage2", "head"}
    assert {t.train for t in advice.trials} >= {(), "head", ("stage1",)}
    as_it_is = advice.trials[0]
    assert as_it_is.score.value == 1 - model.evaluate(validation.x, validation.y, verbose=0)[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_trace_after_an_error(short, monkeypatch, error):
    model = net(stages=2)
    before = trace(model)
    run, calls = Trials.run, []

    def stumbles(self, *arguments):
        calls.append(arguments)
        trial = run(self, *arguments)
        if len(calls) == 2:
            raise error("stop")
        return trial

    monkeypatch.setattr(Trials, "run", stumbles)
    with pytest.raises(error, match="stop"):
        run_advise(model, data(60, 40), minutes=2, epochs=1, batch_size=16)
    assert trace(model) == before


def test_the_values_of_a_trial_are_what_the_model_says():
    """What stood still is read from the disk: the same answers as of the whole model."""
    model = net()
    train, validation = data()
    for accuracy in (True, False):
        trials = Trials(model, train, validation, batch_size=16, seed=0, accuracy=accuracy, views=1)
        trial = trials.run(Candidate(1, 0.03), 3, 0)
        p = model.predict(validation.x, verbose=0)
        right = (p.argmax(axis=1) == validation.y).astype(float)
        expected = right if accuracy else np.log(p[np.arange(80), validation.y])
        np.testing.assert_allclose(trial.values, expected, atol=1e-5)
        assert trial.score.value == pytest.approx(expected.mean(), abs=1e-5)
        assert trial.trainable_weights == sum(
            int(np.prod(w.shape)) for w in [*model.layers[-1].weights, *model.layers[3].weights]
        )


def test_without_an_accuracy_it_is_the_log_loss(fake):
    fake({})
    advice = run_advise(net(metrics=["mae"]), data(), minutes=20)
    assert any("scored by the log loss, because the first metric, mae," in reason for reason in advice.reasons)


# ----------------------------------------------------------------- small pieces, and bad input


def test_paired_by_hand():
    difference, low, high = paired_difference([1, 1, 0, 1], [0, 1, 0, 1])
    assert difference == 0.25
    assert (low, high) == (0.0, 0.75)
    a, b = RNG.random(500) < 0.8, RNG.random(500) < 0.7
    difference, low, high = paired_difference(a, b)
    half = 1.96 * (a.astype(float) - b).std(ddof=1) / np.sqrt(500)
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.006)
    assert is_better([1, 1, 1, 1, 0], [0, 0, 0, 1, 0])
    assert not is_better([1, 0, 0, 0, 0], [0, 0, 0, 0, 0])
    assert not is_better([1, 0], [1, 0])
    assert is_better([1] * 4 + [0] * 96, [0] * 100, standard_errors=2)  # 0.04 and 2 * 0.0197
    assert not is_better([1] * 3 + [0] * 97, [0] * 100, standard_errors=2)  # 0.03 and 2 * 0.0171


def test_a_part_of_the_examples_has_all_classes_in_their_share():
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
def test_bad_input(name):
    run, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        run()


def test_no_validation():
    with pytest.raises(ValueError, match="needs data to score trials on"):
        advise(net(stages=1), data()[0], validation_data=None)


def test_phases_of_candidates():
    assert Candidate("all", 1e-4).phase(5).views == 0
    assert Candidate(2, 1e-4).phase(5, l2_sp=0.1) == Phase(
        name="tune", epochs=5, train=2, learning_rate=1e-4, layer_decay=0.7, views=4, l2_sp=0.1
    )
    assert Candidate("head", 1e-3).phase(5, l2_sp=0.1).l2_sp == 0
    assert [Candidate(*c).name for c in (((), 0.0), (("stage1",), 0.01), (1, 5e-4), ("all", 1e-4))] == [
        "unchanged",
        "stage1 at 0.01",
        "head + 1 at 0.0005",
        "all at 0.0001",
    ]
