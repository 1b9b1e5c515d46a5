"""A search advises what is worth training, says when nothing is, and keeps to its budget; no trial here trains."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Plan, attach_head
from thaw.advice.advise import EPOCHS, AdviceSettings
from thaw.advice.budget import SearchBudget
from thaw.advice.choice import simplest
from thaw.advice.cost import TrialCost, operations_in
from thaw.advice.result import Evidence
from thaw.advice.search import PlanSearch
from thaw.advice.space import SearchSpace
from thaw.advice.trials import Candidate, Trial
from thaw.metrics.intervals import Estimate
from thaw.training.callbacks import TuneCallback
from thaw.training.freezing import trainable_stages
from thaw.transfer.learning_curves import CurvePoint, LearningCurve, learning_curve
from thaw.transfer.probing import probe_features

HELPS, DOES_NOT_HELP = Estimate(0.2, 0.1, 0.3), Estimate(0.0, -0.1, 0.1)
BUSY = {"per_batch": 5e10}  # operations: of many examples only few can be used
NO_FIXED_COSTS = {"per_trial": 0.0, "per_layer": 0.0}  # short trials are cheaper than long ones


@functools.cache
def net(stages=3, optimizer="adam", width=12):
    x = entry = keras.Input((6,))
    for _ in range(stages):
        x = layers.Dense(width, "relu")(x)
    model = attach_head(keras.Model(entry, x), 2)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@functools.cache
def cost_of(model, **overheads):
    return TrialCost(model, views=1, **overheads)


@functools.cache
def probe_of(stages):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    return probe_features({stage: rng.normal(size=(60, 3)) + y[:, None] for stage in stages}, y)


def flat_curve(readout, n, m):
    """The same accuracy with all examples as with a quarter of them."""
    points = [CurvePoint(n // part, Estimate(readout, readout - 0.1, readout + 0.1), 1) for part in (4, 2, 1)]
    return LearningCurve(tuple(points), Estimate(0.0, -0.1, 0.1), 0.0, first_correct(readout, m))


def first_correct(score, m):
    return (np.arange(m) < round(score * m)).astype(float)


class FakeTrials:
    """Trials that train nothing: what they score is looked up by what they train, and at what rate."""

    def __init__(self, scores, default, space, m, certainty=lambda candidate: None):
        self.scores, self.default, self.space, self.m, self.certainty = scores, default, space, m, certainty
        self.start, self.ran, self.saved = None, [], []

    def run(self, candidate, epochs, rung):
        by_rate = candidate.train, candidate.learning_rate
        score = self.scores.get(by_rate, self.scores.get(candidate.train, self.default))
        self.ran.append((*by_rate, epochs, rung))
        trained = "all" if candidate.train == "scratch" else candidate.train
        weights = sum(stage.parameters for stage in trainable_stages(self.space.stages, trained))
        values = None if score is None else first_correct(score, self.m)
        return Trial.of(candidate, epochs, rung, weights, values, self.certainty(candidate))

    def state(self):
        self.saved.append(len(self.ran))
        return len(self.ran)

    def values(self, train):
        return first_correct(self.scores.get((), 0.45), self.m), -0.7


def search(
    scores=None,
    *,
    default=0.7,
    minutes=20,
    n=120,
    m=80,
    head="new",
    random=DOES_NOT_HELP,
    curve=None,
    learning_rate=None,
    epochs=EPOCHS,
    scratch=True,
    metric="accuracy",
    model=None,
    space=None,
    overheads=None,
    budget=SearchBudget,
    certainty=lambda candidate: None,
    callbacks=(),
    clock=lambda: 0.0,
    solves_head=False,
    similarity=None,
):
    """Return the advice, and the trials that were made."""
    model = net() if model is None else model
    space = space or SearchSpace.of(model, learning_rate, solves_head)
    settings = AdviceSettings(
        head=head,
        minutes=minutes,
        epochs=epochs,
        head_epochs=None,
        learning_rate=learning_rate,
        l2_sp=0.0,
        scratch=scratch,
        batch_size=32,
        seed=0,
        callbacks=callbacks,
    )
    budget = budget(
        total=operations_in(minutes),
        cost=cost_of(model, **overheads or {}),
        epochs=epochs,
        head_epochs=None,
        heads=space.head_candidates() if head == "new" else [],
        depths=space.depths,
        n_validation=m,
    )
    budget.choose_n_train(n)
    budget.spend_on_features()
    names = [stage.name for stage in space.stages]
    evidence = Evidence(
        head=head,
        accuracy=metric == "accuracy",
        metric=metric,
        n_train=n,
        n_train_used=budget.n_train,
        n_head_used=budget.n_head if space.solves_head else budget.n_train,
        n_validation=m,
        stages_of=lambda trained: [stage.name for stage in trainable_stages(space.stages, trained)],
        probe=probe_of(tuple(names[:-1])),
        learning_curve=curve or flat_curve(0.7, n, m),
    )
    if head == "new":
        evidence.random_probe, evidence.gain_over_random, evidence.similarity = evidence.probe, random, similarity
    else:
        evidence.gradient_norms = dict.fromkeys(names, 1.0)
    trials = FakeTrials(scores or {}, default, space, m, certainty)
    search = PlanSearch(settings, space, budget, trials, evidence, minutes=minutes, began=0.0, clock=clock)
    return search.advice(), trials


def advice_of(*arguments, **options):
    return search(*arguments, **options)[0]


# ----------------------------------------------------------------- what is chosen


def test_search_chooses_the_best_trial():
    advice = advice_of({"head": 0.6, 2: 0.7, (2, 2.5e-3): 0.95, "all": 0.8})
    assert advice.chosen.name == "head + 2 at 0.0025"
    assert not advice.scratch
    head, tune = advice.plan
    assert (head.train, tune.train, tune.learning_rate, tune.epochs, tune.views) == ("head", 2, 2.5e-3, 10, 4)
    assert advice.reasons[0].startswith("Train stage2, stage3 and the head at 0.0025: 0.950 [")
    difference, low, high = advice.chosen.gain
    assert 0 < low < difference < high
    assert any("optimistic" in reason for reason in advice.reasons)
    assert Plan.from_toml(advice.plan.to_toml()) == advice.plan


def test_search_says_that_frozen_features_are_enough():
    advice = advice_of({"head": 0.9}, default=0.9)
    assert advice.chosen.train == "head"
    assert [phase.train for phase in advice.plan] == ["head"]
    assert advice.reasons[0].startswith("Frozen features are enough: 0.900 [")


def test_search_prefers_frozen_features_where_the_difference_is_noise():
    scores = {"head": 0.8875, 1: 0.8, (2, 5e-4): 0.9}  # one of 80 examples
    assert advice_of(scores).chosen.train == "head"
    scores = {"head": 0.8, 1: 0.8875, (2, 5e-4): 0.9}  # eight; and of what trains more the best
    assert advice_of(scores).chosen.train == 2


@pytest.mark.parametrize(
    ("alone", "chosen"),
    [(0.8875, ("stage1",)), (0.8625, ("stage1",)), (0.8, 2)],  # one of 80 examples, three (1.8 standard errors), eight
)
def test_search_with_a_kept_head_prefers_fewer_weights_where_the_difference_is_noise(alone, chosen):
    scores = {("stage1",): alone, (2, 5e-4): 0.9}
    assert advice_of(scores, default=0.6, head="kept").chosen.train == chosen


@pytest.mark.parametrize(
    ("random", "scratch", "tuned", "chosen"),
    [
        (HELPS, 0.8875, 0.9, False),  # one of 80 examples
        (HELPS, 0.9, 0.8875, True),
        (DOES_NOT_HELP, 0.8875, 0.9, True),
        (DOES_NOT_HELP, 0.8, 0.9, False),
    ],
)
def test_search_prefers_random_weights_in_a_tie_where_pretraining_does_not_help(random, scratch, tuned, chosen):
    scores = {"head": 0.5, "scratch": scratch, (2, 5e-4): tuned}
    advice = advice_of(scores, default=0.6, random=random)
    assert advice.scratch == chosen
    assert not (chosen and any("Pre-training helps" in reason for reason in advice.reasons))


def test_simplest_takes_the_surer_one_of_equal_scores():
    values = np.arange(100) < 80
    low = Trial.of(Candidate(2, 5e-4), 9, 2, 500, values.astype(float), certainty=-0.7)
    high = Trial.of(Candidate(2, 2.5e-3), 9, 2, 500, values.astype(float), certainty=-0.5)
    order = lambda trial: 1  # noqa: E731
    assert simplest([low, high], order, 1) is simplest([high, low], order, 1) is high
    assert high.rank > low.rank > Trial.of(Candidate(2, 1e-2), 9, 2, 500, None).rank


def test_search_advises_random_weights_where_the_features_tell_nothing():
    advice = advice_of({"head": 0.5, "scratch": 0.95}, default=0.5, n=300, curve=flat_curve(0.5, 300, 80))
    assert advice.scratch
    (phase,) = advice.plan
    assert (phase.train, phase.batchnorm, phase.epochs) == ("all", "trained", 20)
    assert advice.reasons[0].startswith("Start from random weights: 0.950")
    assert any("not better than random ones" in reason for reason in advice.reasons)
    assert [t.rung for t in advice.trials if t.train == "scratch"][-1] == 2  # it begins slowly, and is kept to the end


def test_search_advises_more_examples_where_the_learning_curve_rises():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 120)).astype("float32")
    y = (x @ rng.normal(size=120) > 0).astype("int32")
    curve = learning_curve(x[:200], y[:200], x[200:], y[200:])
    assert curve.gain.low > 0
    advice = advice_of(default=0.9, n=200, m=300, curve=curve)
    assert any(reason.startswith("More examples would help more than more fine-tuning") for reason in advice.reasons)
    flat = advice_of(default=0.9, n=200, m=300)
    assert not any("More examples" in reason for reason in flat.reasons)


def test_search_with_a_kept_head_tries_single_stages():
    advice, trials = search({("stage1",): 0.95}, default=0.8, head="kept")
    assert advice.chosen.train == ("stage1",)
    assert {t for t, *_ in trials.ran} >= {("stage1",), ("stage2",), ("stage3",), "head", "all", 1, 2}
    (phase,) = advice.plan
    assert (phase.train, phase.layer_decay) == (("stage1",), 1.0)
    assert advice.reasons[0].startswith("Train stage1 at ")
    assert advice.trials[0].name == "unchanged"
    assert "gain over the unchanged model" in str(advice)


def test_search_tries_a_kept_head_with_large_steps_and_to_the_end():
    """Where labels change their meaning the head relearns slowly, and looks bad at first."""
    _, trials = search({"head": 0.6}, default=0.8, head="kept", epochs=30, overheads=NO_FIXED_COSTS)
    assert {rung for *_, rung in trials.ran} == {0, 1, 2}
    tried = {(rate, rung) for train, rate, _, rung in trials.ran if train == "head"}
    assert tried >= {(1e-1, 2), (1e-2, 2), (1e-3, 2)}


def test_search_leaves_a_model_unchanged_where_nothing_helps():
    advice = advice_of({(): 0.45}, default=0.3, head="kept")
    assert advice.chosen.train == ()
    assert advice.reasons[0].startswith("Leave the model unchanged")
    assert len(advice.plan) == 1


def test_search_goes_on_from_a_rate_at_the_edge():
    advice, trials = search({(2, 2.5e-3): 0.9, (2, 1.25e-2): 0.97})
    assert advice.chosen.learning_rate == pytest.approx(1.25e-2)
    tried = [(train, rate) for train, rate, _, rung in trials.ran if rung is not None and train != "scratch"]
    assert tried[:3] == [(2, 5e-4), (2, 2.5e-3), (2, 1.25e-2)]
    assert set(tried[3:]) == {("all", 1.25e-2), (1, 1.25e-2)}  # one step from the best, and no others


def test_search_names_diverged_trials_and_does_not_choose_them():
    advice = advice_of({"head": 0.8, "all": None, 2: None, 1: None, "scratch": None})
    assert advice.chosen.train == "head"
    assert "diverged" in str(advice)
    json.dumps(advice.to_dict(), allow_nan=False)
    assert advice.reasons[0].startswith("Frozen features are enough: ")
    assert "all trials that train more diverged, down to 0.0001" in advice.reasons[0]
    with pytest.raises(FloatingPointError, match="diverged at every learning rate"):
        search(default=None)


@pytest.mark.parametrize(("reached", "tried"), [(1.0, [1e-2]), (0.4, [1e-2, 1e-1, 1e-3])])
def test_search_tries_other_rates_of_the_head_where_the_features_hold_more(reached, tried):
    _, trials = search({"head": reached})  # the ridge readout has 0.7
    assert [rate for train, rate, _, rung in trials.ran if train == "head" and rung is None] == tried


@pytest.mark.parametrize(("optimizer", "size"), [("sgd", 20), ("lion", 0.2), ("adam", 1)])
def test_search_tries_the_rates_of_the_optimizer(optimizer, size):
    for head in ("new", "kept"):
        _, trials = search(head=head, model=net(optimizer=optimizer))
        assert {rate for train, rate, *_ in trials.ran if train == 2} >= {5e-4 * size, 2.5e-3 * size}


def test_search_says_that_there_was_no_room_for_trials():
    advice = advice_of(model=net(stages=1, optimizer="sgd"), minutes=0.01)
    assert advice.reasons[0].startswith("The budget allowed no trials, so the plan is the default")
    assert advice.plan[1].train == "all"
    assert advice.plan[1].learning_rate == 5e-4 * 20
    advice = advice_of(minutes=0.001, head="kept")
    assert "so the plan is the smallest change" in advice.reasons[0]


def test_search_says_that_a_readout_is_better():
    """The best of the trials is far below what a ridge readout of the same features gets."""
    advice = advice_of({"head": 0.3, 2: 0.45}, default=0.3)
    assert advice.chosen.gain.high < 0
    assert "over frozen features with a ridge readout; the readout is better" in advice.reasons[0]
    assert "chance" not in advice.reasons[0]


def test_search_tries_no_other_rate_than_a_given_one():
    _, trials = search(n=2000, model=net(width=2), learning_rate=1e-5)
    assert {train for train, *_ in trials.ran} >= {1, 2, "all", "scratch"}
    assert {rate for train, rate, *_ in trials.ran if train != "head"} == {1e-5}


def test_search_tries_no_random_weights_where_they_are_not_wanted():
    assert any(t.train == "scratch" for t in advice_of().trials)
    advice, trials = search(scratch=False)
    assert not any(train == "scratch" for train, *_ in trials.ran)
    assert not any("trial from random weights" in reason for reason in advice.reasons)


def test_search_plans_the_head_that_everything_began_from():
    """Of heads that are as good the other is surer of its answers, and that decides in all places."""
    sure = lambda candidate: candidate.learning_rate if candidate.train == "head" else None  # noqa: E731
    advice, trials = search({"head": 0.4, "scratch": 0.4}, certainty=sure)
    assert [rate for train, rate, _, rung in trials.ran if rung is None] == [1e-2, 1e-1]
    assert trials.start == trials.saved[-1] == 2  # after the second
    assert advice.plan[0].learning_rate == 1e-1
    assert advice.trials[0] is not advice.chosen


def test_search_solves_for_the_head_once_and_plans_that():
    advice, trials = search({"head": 0.6, (2, 2.5e-3): 0.95}, solves_head=True)  # the ridge readout has 0.7
    assert [train for train, *_, rung in trials.ran if rung is None] == ["head"]
    assert trials.start == trials.saved[-1] == 1
    assert (advice.trials[0].name, advice.trials[0].epochs) == ("solved head", 1)
    head, tune = advice.plan
    assert (head.solver, head.train, head.views) == ("lbfgs", "head", 0)
    assert (tune.solver, tune.train, tune.learning_rate) == ("gradient", 2, 2.5e-3)
    assert advice.to_dict()["trials"][0]["solver"] == "lbfgs"
    assert "+0.250 [" in advice.reasons[0]  # over the better readout
    with pytest.raises(FloatingPointError, match="solved head has a loss that is not finite"):
        search(default=None, solves_head=True)


def test_search_says_how_similar_the_tasks_are_first():
    def first(similarity, random):
        advice = advice_of(similarity=similarity, random=random)
        assert advice.similarity is similarity
        assert advice.to_dict()["similarity"] == similarity.to_dict()
        return advice.reasons[0]

    what = "the source task, on which the network was trained: a readout of its features makes "
    close = f"This task is close to {what}83 % (75 to 89) fewer errors than one of random features."
    assert first(Estimate(0.83, 0.751, 0.894), HELPS) == close
    related = f"This task is related to {what}20 % (8 to 31) fewer errors than one of random features."
    assert first(Estimate(0.2, 0.08, 0.31), HELPS) == related
    unlike = f"This task is unlike {what}4 % (-12 to 19) fewer errors than one of random features"
    assert first(Estimate(0.04, -0.12, 0.19), DOES_NOT_HELP) == f"{unlike}, which may be chance."
    worse = f"This task is unlike {what}30 % (10 to 52) more errors than one of random features."
    assert first(Estimate(-0.3, -0.52, -0.1), Estimate(-0.1, -0.2, -0.05)) == worse
    unknown = "How similar this task is to the source task, on which the network was trained, is not known"
    few_errors = f"{unknown} from so few errors: a readout of its features makes 50 % (-100 to 100) fewer errors than "
    assert first(Estimate(0.5, -1.0, 1.0), DOES_NOT_HELP) == f"{few_errors}one of random features, which may be chance."
    assert first(Estimate(None), DOES_NOT_HELP) == f"{unknown}: a readout of random features makes no errors."


def test_search_scores_by_the_log_loss_where_the_first_metric_is_no_accuracy():
    said = "scored by the log loss, because the first metric, mae,"
    assert any(said in reason for reason in advice_of(metric="mae").reasons)
    assert not any("scored by" in reason for reason in [*advice_of().reasons, *advice_of(metric=None).reasons])


# ----------------------------------------------------------------- the budget


@pytest.mark.parametrize(
    ("random", "n", "share", "tried"),
    [
        (HELPS, 40, 0.39, True),
        (HELPS, 40, 0.45, False),  # with few examples for its weights the network hardly learns from random ones
        (HELPS, 120, 0.45, True),
        (DOES_NOT_HELP, 40, 0.45, True),
        (DOES_NOT_HELP, 120, 0.55, False),
    ],
)
def test_search_tries_random_weights_for_a_share_of_the_budget(random, n, share, tried):
    class Priced(SearchBudget):
        def price(self, candidate, *arguments, **options):
            return share * self.left if candidate.train == "scratch" else 1.0

    _, trials = search(n=n, random=random, budget=Priced)
    assert any(train == "scratch" for train, *_ in trials.ran) == tried


def test_search_says_that_random_weights_did_not_fit():
    class Expensive(SearchBudget):
        def price(self, candidate, *arguments, **options):
            return super().price(candidate, *arguments, **options) * (1e6 if candidate.train == "scratch" else 1)

    advice, trials = search(budget=Expensive)
    assert not any(train == "scratch" for train, *_ in trials.ran)
    assert any("not allow a trial from random weights" in reason for reason in advice.reasons)


def test_search_chooses_the_best_that_could_not_be_tried_for_longer_and_says_so():
    best = Candidate(2, 2.5e-3)

    class Expensive(SearchBudget):
        def price(self, candidate, *arguments, **options):
            is_longer = candidate == best and best in self.tried
            return 1.01 * self.total if is_longer else super().price(candidate, *arguments, **options)

    space = SearchSpace(
        stages=SearchSpace.of(net()).stages,
        learning_rates=(5e-4, 2.5e-3, 1e-4),
        head_learning_rates=(1e-2,),
        scratch_learning_rate=1e-2,
        fixed_rate=True,  # what there is is tried, and nothing else
    )
    advice = advice_of(
        {"head": 0.6, (2, 5e-4): 0.7, (2, 2.5e-3): 0.97},
        epochs=30,
        space=space,
        overheads=NO_FIXED_COSTS,
        budget=Expensive,
    )
    assert advice.chosen.learning_rate == 2.5e-3
    assert any("The budget did not allow a longer trial of head + 2 at 0.0025" in reason for reason in advice.reasons)


@pytest.mark.parametrize("minutes", [1.0, 1.5, 3.0, 10.0])
def test_search_keeps_to_the_budget(minutes):
    advice, trials = search(n=1000, m=200, minutes=minutes)
    assert 0 < advice.budget_used <= 1
    assert len(advice.trials) >= len(trials.ran)
    _, more = search(n=1000, m=200, minutes=3 * minutes)
    assert len(more.ran) >= len(trials.ran)


def test_search_uses_fewer_examples_on_a_small_budget_and_says_so():
    advice = advice_of(n=4000, m=200, overheads=BUSY)
    assert "The trials used 1,000 of the 4,000 training examples (25 %), stratified by class." in advice.reasons
    assert 0.3 < advice.budget_used <= 1
    advice = advice_of(minutes=0.01, overheads=BUSY)
    assert advice.reasons[0].startswith("The budget allowed no trials")
    assert [phase.train for phase in advice.plan] == ["head", 2]


def test_search_on_few_of_the_examples_does_not_prove_that_frozen_features_are_enough():
    scores = {"head": 0.9, 1: 0.88, (1, 5e-4): 0.89}
    advice = advice_of(scores, n=4000, m=200, overheads=BUSY)
    assert advice.chosen.train == "head"
    assert advice.reasons[0].startswith("Frozen features did as well on the examples that the trials used: 0.900 [")
    assert "the plan trains head + 1 at 0.0005 after the head" in advice.reasons[0]
    head, tune = advice.plan
    assert (head.train, tune.train, tune.learning_rate) == ("head", 1, 5e-4)


def test_search_on_few_of_the_examples_does_not_lower_the_usual_rate():
    few = {"n": 4000, "m": 200, "overheads": BUSY}
    scores = {"head": 0.9, (2, 5e-4): 0.87, (2, 1e-4): 0.875, (1, 5e-4): 0.85}  # one of 200 examples
    assert advice_of(scores, **few).plan[1].learning_rate == 5e-4
    scores = {"head": 0.9, (2, 5e-4): 0.7, (2, 1e-4): 0.875, (1, 5e-4): 0.7}
    assert advice_of(scores, default=0.6, **few).plan[1].learning_rate == 1e-4


def test_search_ends_by_the_clock_what_takes_far_too_long():
    seconds = iter(range(0, 100_000, 200))
    advice, trials = search(minutes=3, clock=lambda: next(seconds))
    assert any("the clock ended the trials" in reason for reason in advice.reasons)
    assert 3 < len(trials.ran) < 10
    assert len([rung for *_, rung in trials.ran if rung is not None]) == 4  # at 0, 200, 400 and 600 seconds


def test_search_tells_callbacks_of_each_trial():
    class Events(TuneCallback):
        def __init__(self):
            super().__init__()
            self.trials, self.ended = [], []

        def on_trial(self, number, total, name):
            self.trials.append((number, total, name))

        def on_trial_end(self, trial):
            self.ended.append(trial)

    told = Events()
    advice = advice_of(callbacks=(told,))
    assert [number for number, *_ in told.trials] == list(range(1, len(told.trials) + 1))
    assert all(number <= total for number, total, _ in told.trials)
    assert [t.name for t in told.ended] == [name for *_, name in told.trials]
    assert len(told.ended) == len([t for t in advice.trials if t.name != "ridge readout"])


def test_search_with_a_solved_head_says_which_examples_were_compared():
    advice = advice_of({"head": 0.9}, default=0.9, n=4000, m=200, minutes=5, overheads=BUSY, solves_head=True)
    did = "Frozen features of 4,000 examples did as well as the trials that train more on 500 of them: 0.900 ["
    assert advice.reasons[0].startswith(did)
    assert [phase.train for phase in advice.plan] == ["head", 2]
    used = "The trials of the backbone used 500 of the 4,000 training examples (12 %), stratified by class; "
    used += "the head on frozen features, from which those with pre-trained weights began, was fitted to all of them."
    assert used in advice.reasons
    all_used = advice_of({"head": 0.9}, default=0.9, solves_head=True)
    assert all_used.reasons[0].startswith("Frozen features are enough: 0.900 [")
    assert not any("The trials" in reason for reason in all_used.reasons)


@pytest.mark.parametrize("minutes", [1e-3, 0.5, 5, 500])
@pytest.mark.parametrize("solves_head", [True, False])
def test_budget_never_takes_fewer_than_500_examples(minutes, solves_head):
    heads = SearchSpace.of(net(), solves_head=solves_head).head_candidates()
    cost = cost_of(net(), per_batch=5e10)
    for n in (40, 499, 3000):
        total = operations_in(minutes)
        budget = SearchBudget(total, cost, EPOCHS, None, heads=heads, depths=[1, 2, "all"], n_validation=200)
        budget.choose_n_train(n)
        assert min(n, 500) <= budget.n_train <= budget.n_head <= n
        assert budget.n_train == n or minutes < 500
        assert budget.n_train == min(n, 500) or minutes > 0.5 or not solves_head  # with fewer it has more epochs


def test_budget_solves_for_the_head_from_what_half_of_it_pays():
    heads, cost = SearchSpace.of(net(), solves_head=True).head_candidates(), cost_of(net(), per_batch=5e10)
    pass_of_all = cost.of_solved_head(40_000, 200)
    for share, expected in ((0.4, 40_000), (0.6, 20_000), (1e3, 500)):
        budget = SearchBudget(pass_of_all / share, cost, EPOCHS, None, heads=heads, depths=[1, "all"], n_validation=200)
        budget.choose_n_train(40_000)
        assert budget.n_head == expected
        assert budget.price(heads[0], 40) == cost.of_solved_head(expected, 200)


def test_search_says_which_trials_the_budget_left_out():
    class Small(SearchBudget):
        def price(self, candidate, *arguments, **options):
            return 1.0 if candidate.train == "head" else self.total / 5

    advice, trials = search({(2, 2.5e-3): 0.9}, budget=Small)
    tried = [candidate for candidate in trials.ran if candidate[0] not in ("head", "scratch")]
    assert 1 <= len(tried) < 5
    said = [reason for reason in advice.reasons if reason.startswith("The budget left out a trial of ")]
    assert len(said) == 1
    assert not any(f"trial of {trial.name}" in said[0] for trial in advice.trials)
    assert not any("left out" in reason for reason in advice_of(minutes=500).reasons)
