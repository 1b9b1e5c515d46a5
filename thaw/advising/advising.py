"""Measure, try, choose: what :func:`thaw.advise` does, step by step."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import numpy as np

from thaw.advising.advice import Advice
from thaw.advising.beside import beside, depths_of
from thaw.advising.reasons import reasons
from thaw.advising.step_size import step_size
from thaw.advising.successive_halving import affordable, planned_trials, successive_halving
from thaw.advising.trial_cost import PER_TRIAL, STANDING, VIEWS, TrialCost, budget_of, usual_minutes
from thaw.advising.trials import Candidate, Trial, Trials, begin_anew, better, class_numbers, paired
from thaw.plan import Plan
from thaw.tuning.first_metric import first_metric

MOST_SCORED, MOST_PROBED = 1000, 500
FEWEST_USED, ENOUGH = 64, 6  # examples that trials see at least; candidates that are worth fewer examples
WORTH = 0.8  # of the cost must be left, or less, for half the examples to be worth it
RATES = (5e-4, 2.5e-3, 1.25e-2, 1e-4)  # for Adam and the like; the usual one first
HEAD_RATES = (1e-2, 1e-1, 1e-3)  # the others only where a ridge readout gets further than the first
SCRATCH_RATE = 1e-2
SCRATCH_LONGER = 2  # times as many epochs in the plan: where nothing has been learned yet there is more to learn
# Of a trial from random weights at least: on 300 digits 140 ended anywhere from 0.87 to 0.99, 200 from 0.96 to 0.98.
SCRATCH_STEPS = 200
FEWEST_STEPS = 30  # of a trial, where its epochs come to fewer
HEAD_STEPS = 300  # and 40 epochs at most
RIDGE = "ridge readout"
SINGLES = 4  # stages that are tried alone, where the head is kept
PLENTY = 10  # weights for an example, below which a network may well learn from scratch
CHEAP, DEAR = 2 / 5, 1 / 2  # of what is left, for a trial from scratch at most: where pre-training helps, where not
# Standard errors within which the simpler wins. With a kept head many places are tried, and their best flatters more.
DOUBT = {"new": 1.0, "kept": 2.0}
PATIENCE = 3.0  # times the minutes, before the clock stops the trials


@dataclasses.dataclass(kw_only=True)
class Found:
    """What was found so far, for the sentences that are said about it."""

    head: str
    accuracy: bool
    counts: dict
    stages_moved: Any
    notes: list
    probe: Any = None
    untrained: Any = None
    over_random: tuple | None = None  # how much better the pre-trained features are than random ones
    curve: Any = None
    ratios: dict = dataclasses.field(default_factory=dict)
    frozen: Trial | None = None
    chosen: Trial | None = None
    later: Trial | None = None  # what the plan moves behind the head although frozen features did as well
    trials: list = dataclasses.field(default_factory=list)

    @property
    def helps(self):
        """Are the pre-trained features better than random ones, beyond chance?"""
        return self.over_random is None or self.over_random[1] > 0


class Advising:
    """One call of :func:`thaw.advise`. The model is to be put back by whoever calls.

    Args:
        advisor: the :class:`thaw.advising.advise.Advisor`, with all settings.
        model: the model.
        train: :class:`thaw.Examples`.
        validation: likewise.
    """

    def __init__(self, advisor, model, train, validation):
        from thaw.stages import stages_of
        from thaw.tuning.freeze import moving_stages

        self.advisor, self.model, self.seed, self.head = advisor, model, advisor.seed, advisor.head
        self.stages, self.doubt = stages_of(model), DOUBT[advisor.head]
        unit, fixed = step_size(model.optimizer), advisor.learning_rate
        self.unit, self.fixed = unit, fixed is not None
        self.rates = [fixed] if self.fixed else [rate * unit for rate in RATES]
        self.depths = depths_of(len(self.stages) - 1)
        self.usual = next(depth for depth in (2, 1, "all") if depth in self.depths)
        metric, accuracy = first_metric(model)
        views = VIEWS if train.augment is not None and not train.views else train.views or 1
        self.cost = TrialCost(model, views, advisor.batch_size)
        minutes = advisor.minutes
        if minutes is None:
            usual = TrialCost(model, 4 if views > 1 else 1, advisor.batch_size)
            minutes = usual_minutes(usual, advisor, len(train), len(validation))
        self.budget, self.spent, self.late, self.made = budget_of(minutes), 0.0, False, []
        self.deadline = time.monotonic() + 60 * (PATIENCE * minutes + 1)
        self.validation = validation.take(_part(validation.y, MOST_SCORED, self.seed))
        self.used = self._examples_used(len(train))
        self.train = train.take(_part(train.y, self.used, self.seed))
        self.trials = Trials(
            model,
            self.train,
            self.validation,
            batch_size=advisor.batch_size,
            seed=self.seed,
            accuracy=accuracy,
            views=views,
            anchor=advisor.anchor,
        )
        self.number = self.total = 0
        self.found = Found(
            head=self.head,
            accuracy=accuracy,
            counts={"train": len(train), "used": self.used, "validation": len(self.validation)},
            stages_moved=lambda t: [stage.name for stage in moving_stages(self.stages, t)],
            notes=[],
        )
        if metric is not None and not accuracy:
            self.found.notes.append(f"The trials were scored by the log loss, because {metric} is not the accuracy.")

    def advice(self):
        """Measure, try, choose."""
        found = self.found
        self._measure()
        self.spent += self._measuring(self.used)
        heads = [Candidate("head", rate * self.unit) for rate in HEAD_RATES] if self.head == "new" else []
        self.total = len(heads) + len(self.depths)
        kept = self._train_head(heads) if heads else self._as_it_is()
        candidates = self._candidates()
        self.total = self.number + sum(planned_trials(len(candidates)))
        made, epochs, last = self._try(candidates)
        if self.late:
            found.notes.append("The machine was so busy that the clock ended the trials before the budget did.")
        if made and epochs < self.advisor.epochs:
            found.notes.append(
                f"The budget was for trials of {epochs} epochs at most, instead of {self.advisor.epochs}."
            )
        short = [t.name for t in last if t.rung < max(one.rung for one in made)]
        if short:
            found.notes.append(f"There was no room to try {' and '.join(short)} for longer.")
        wanted = self.advisor.scratch and heads and found.untrained is not None and not found.helps
        if wanted and not self.late and all(t.train != "scratch" for t in made):
            found.notes.append("There was no room for a trial from random weights; give it more minutes.")
        found.trials += made
        still = [t for t in found.trials if t.train in ("head", ()) and not math.isnan(t.score)]
        found.frozen = max(still, key=lambda t: t.rank) if heads else kept
        final = [found.frozen, *(t for t in last if t is not found.frozen and not math.isnan(t.score))]
        if heads and found.accuracy and found.curve.right.mean() > found.frozen.score:
            # No plan does that; but what moves is not to be praised for what frozen features could do.
            found.frozen = Trial.of(Candidate(RIDGE, 0.0), 0, None, 0, found.curve.right)
            found.trials.append(found.frozen)
        places = [next(i for i, t in enumerate(found.trials) if t is one) for one in final]
        found.trials = [trial.compared(found.frozen, self.seed) for trial in found.trials]
        final = [found.trials[i] for i in places]
        found.chosen = _simplest(final, self._order, self.doubt)
        if found.chosen.train == "head" and heads and self.used < found.counts["train"]:
            found.later = self._later([t for t in final if t.train not in ("head", "scratch")])
        return Advice(
            plan=self._plan(final),
            scratch=found.chosen.train == "scratch",
            trials=tuple(found.trials),
            chosen=found.chosen,
            probe=found.probe,
            untrained=found.untrained,
            curve=found.curve,
            ratios=found.ratios,
            reasons=reasons(found),
            work=self.spent / self.budget,
        )

    # ------------------------------------------------------------- what it costs

    def _examples_used(self, n):
        """As many of the training examples as leave room for trials worth the name."""
        used = n
        while used // 2 >= FEWEST_USED:
            left = self.budget - self._measuring(used) - self._heads(used)
            rough = [Candidate(t, 0.0) for t in self.depths for _ in range(3)]
            price, epochs = functools.partial(self._price, used=used), self.advisor.epochs
            within, reached, _ = affordable(rough, price, left, epochs, self._least(used))
            if left > self.budget / 2 and len(within) >= min(ENOUGH, len(rough)) and 2 * reached >= epochs:
                break
            if self._rough_cost(used // 2) > WORTH * self._rough_cost(used):
                break  # what costs is not the examples
            used //= 2
        return used

    def _rough_cost(self, used):
        trials = sum(self._price(Candidate(t, 0.0), self.advisor.epochs, used=used) for t in self.depths)
        return self._measuring(used) + self._heads(used) + trials

    def _measuring(self, used):
        """Features of all, and twice those of some in a random network."""
        rows = used + len(self.validation) + 2 * min(used, MOST_PROBED)
        return STANDING * self.cost.forward * rows + 3 * PER_TRIAL

    def _heads(self, used):
        if self.head == "kept":
            return 0.0
        kept = [number > 0 for number in range(len(HEAD_RATES))]
        return sum(self.cost.of("head", used, len(self.validation), self._head_epochs(used), kept=k) for k in kept)

    def _head_epochs(self, used):
        steps = math.ceil(used / self.advisor.batch_size)
        return self.advisor.head_epochs or min(40, max(5, math.ceil(HEAD_STEPS / steps)))

    def _least(self, used):
        """Epochs of the shortest trials."""
        return math.ceil(FEWEST_STEPS / math.ceil(used / self.advisor.batch_size))

    def _price(self, candidate, epochs, before=(), used=None):
        train = "all" if candidate.train == "scratch" else candidate.train
        kept = any(c.train == train for c in [*self.made, *before])
        used = used or self.used
        return self.cost.of(train, used, len(self.validation), self._passes(candidate, epochs, used), kept=kept)

    def _passes(self, candidate, epochs, used):
        """Epochs of a trial; more of them from random weights, where a short training says little."""
        least = SCRATCH_STEPS if candidate.train == "scratch" else 0
        return max(epochs, math.ceil(least / math.ceil(used / self.advisor.batch_size)))

    # ------------------------------------------------------------- what is measured

    def _measure(self):
        """Frozen features: how far each stage gets, against random weights, and with fewer examples."""
        import keras

        from thaw.measuring.gradient_ratio import gradient_ratio
        from thaw.measuring.learning_curve import learning_curve
        from thaw.measuring.probe import probe_features
        from thaw.measuring.stage_features import stage_features

        found, options = self.found, {"batch_size": self.trials.batch_size}
        train, validation = (dataclasses.replace(part, augment=None) for part in (self.train, self.validation))
        features, y = stage_features(self.model, train, **options)
        others, other_y = stage_features(self.model, validation, **options)
        y, other_y = class_numbers(y), class_numbers(other_y)
        last = list(features)[-1]
        found.curve = learning_curve(features[last], y, others[last], other_y, seed=self.seed)
        some = _part(y, MOST_PROBED, self.seed)
        found.probe = probe_features({stage: rows[some] for stage, rows in features.items()}, y[some], seed=self.seed)
        if self.head == "kept":
            # Counting costs has marked it as not compiled.
            keras.Model.compile(self.model, loss=self.trials.settings["loss"])
            found.ratios = gradient_ratio(self.model, train, batch_size=self.trials.batch_size, seed=self.seed)
            return
        try:
            begin_anew(self.model, train, self.seed)
            random, _ = stage_features(self.model, train.take(some), **options)
            found.untrained = probe_features(random, y[some], seed=self.seed)
        except ValueError as error:  # it cannot be built anew, or puts out no numbers
            found.notes.append(f"It was not compared with random weights: {error}")
            return
        finally:
            self.trials.put(self.trials.start)
        found.over_random = paired(found.untrained.best.errors, found.probe.best.errors, self.seed)

    # ------------------------------------------------------------- what is tried

    def _candidates(self):
        """What is tried; with a new head what is tried first, and what room is made for."""
        if self.head == "kept":
            alone = [stage.name for stage in self.stages[:-1]]
            alone = sorted(alone, key=lambda name: -self.found.ratios[name])[:SINGLES]
            places = [*((name,) for name in alone), *self.depths]
            # A head that has learned something else takes large steps to come round, and they cost little.
            heads = self.rates if self.fixed else [rate * self.unit for rate in HEAD_RATES]
            heads = [Candidate("head", rate, whole=True) for rate in sorted(heads, reverse=True)]
            return [*heads, *(Candidate(t, rate) for rate in self.rates[:3] for t in places)]
        at_usual_depth = [Candidate(self.usual, rate) for rate in self.rates]
        others = [Candidate(depth, self.rates[0]) for depth in self.depths if depth != self.usual]
        return [*at_usual_depth, *others, *self._scratch()]

    def _scratch(self):
        """A trial from random weights, where it may be worth what it costs."""
        rate = self.rates[0] if self.fixed else SCRATCH_RATE * self.unit
        candidate = Candidate("scratch", rate, whole=True)
        weights = sum(stage.parameters for stage in self.stages)
        share = CHEAP if self.found.helps and PLENTY * self.used < weights else DEAR
        dear = self._price(candidate, self.advisor.epochs) > share * (self.budget - self.spent)
        return [candidate] if self.advisor.scratch and self.found.untrained is not None and not dear else []

    def _try(self, candidates):
        """Successive halving with what is left of the budget."""

        def run(candidate, epochs, rung):
            self.late = time.monotonic() > self.deadline
            return None if self.late else self._run(candidate, epochs, rung)

        left, epochs = self.budget - self.spent, self.advisor.epochs
        follow = functools.partial(beside, depths=self.depths, rates=sorted(self.rates))
        follow = None if self.fixed or self.head == "kept" else follow
        options = {"budget": left, "epochs": epochs, "least": self._least(self.used), "follow": follow}
        return successive_halving(candidates, run, self._price, **options)

    def _run(self, candidate, epochs, rung):
        self.number += 1
        self.total = max(self.total, self.number)
        self.advisor.tell("on_trial", self.number, self.total, candidate.name)
        self.spent += self._price(candidate, epochs)
        self.made.append(candidate)
        trial = self.trials.run(candidate, self._passes(candidate, epochs, self.used), rung)
        self.advisor.tell("on_trial_end", trial)
        return trial

    def _train_head(self, heads):
        """Train the head, at other rates too where the features hold more, and begin everything else from the best."""
        best = None
        for candidate in heads:
            if best is not None and self.found.accuracy and best[0].score >= self.found.curve.right.mean():
                break
            if best is not None and best[0].learning_rate > heads[0].learning_rate > candidate.learning_rate:
                break  # upwards it was better
            trial = self._run(candidate, self._head_epochs(self.used), None)
            self.found.trials.append(trial)
            if not math.isnan(trial.score) and (best is None or trial.rank > best[0].rank):
                best = trial, self.trials.state()
        if best is None:
            raise FloatingPointError(
                "The head alone diverged at every rate, down to "
                f"{min(head.learning_rate for head in heads):g}; look at the inputs."
            )
        self.trials.start = best[1]
        return best[0]

    def _as_it_is(self):
        trial = Trial.of(Candidate((), 0.0), 0, None, 0, *self.trials.values("head"))
        self.found.trials.append(trial)
        return trial

    # ------------------------------------------------------------- what is chosen

    def _order(self, trial):
        """Of trials that are about as good the first is taken."""
        if self.head == "kept":
            return trial.moving  # what moves less forgets less
        if trial.train == "head":
            return 0
        # A trial from scratch has not learned all that the plan's will: where the features are no better than random
        # ones, being about as good is enough.
        return 1 if self.found.helps or trial.train == "scratch" else 2

    def _later(self, moving):
        """What the plan moves behind the head all the same, where the trials saw but some of the examples.

        Few examples favour what moves little, and low rates. The best of all epochs is kept, so to move more costs time
        only. The usual stages at the usual rate, unless something is better beyond its standard error.
        """
        best = max(moving, key=lambda t: t.rank, default=None)
        usual = [t for t in moving if (t.train, t.learning_rate) == (self.usual, self.rates[0])]
        return next((t for t in usual if not better(best.values, t.values)), best)

    def _plan(self, final):
        found, chosen, epochs, anchor = self.found, self.found.chosen, self.advisor.epochs, self.advisor.anchor
        if found.head == "kept":
            moving = [t for t in final if t.train != ()] if chosen.train == () else [chosen]
            least = _simplest(moving, self._order, self.doubt) if moving else Candidate("head", self.rates[0])
            return Plan([_phase(least, epochs, anchor=anchor)])
        if chosen.train == "scratch":
            return Plan([_phase(chosen, max(SCRATCH_LONGER * epochs, chosen.epochs), name="scratch")])
        heads = [t for t in found.trials if t.rung is None and t.train == "head"]
        trained = max(heads, key=lambda t: t.rank)
        head = _phase(trained, trained.epochs, name="head")
        if all(t.rung is None for t in found.trials):  # nothing was tried
            return Plan([head, _phase(Candidate(self.usual, self.rates[0]), epochs, anchor=anchor)])
        moving = found.later or (None if chosen.train == "head" else chosen)
        return Plan([head] if moving is None else [head, _phase(moving, epochs, anchor=anchor)])


def _phase(tried, epochs, **more):
    """The phase that does what a trial or a candidate did."""
    return Candidate(tried.train, tried.learning_rate).phase(epochs, **more)


def _part(y, most, seed):
    """Places of at most so many examples, drawn at random, each class in its share."""
    y = class_numbers(y)
    if len(y) <= most:
        return np.arange(len(y))
    shuffled = np.random.default_rng(seed).permutation(len(y))
    place = np.empty(len(y))
    for c in np.unique(y):
        rows = shuffled[y[shuffled] == c]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(np.argsort(place, kind="stable")[:most])


def _simplest(trials, order, errors):
    """The best trial, or the best of those that come first in the order, if it is within so many standard errors."""
    best, leaders = max(trials, key=lambda t: t.rank), {}
    for trial in sorted(trials, key=lambda t: t.rank):
        leaders[order(trial)] = trial
    return next(t for _, t in sorted(leaders.items()) if t is best or not better(best.values, t.values, errors))
