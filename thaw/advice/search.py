"""Search for the plan that suits a model and its data."""

from __future__ import annotations

import time

import numpy as np

from thaw.advice.budget import MAX_PROBED_EXAMPLES, SearchBudget
from thaw.advice.choice import choose, plan_of
from thaw.advice.cost import TrialCost, default_minutes, operations_in
from thaw.advice.halving import candidates_of_rungs, successive_halving
from thaw.advice.result import Advice, Evidence, explain
from thaw.advice.space import SearchSpace
from thaw.advice.trials import ONE_CLASS_EACH, Candidate, Trial, Trials, paired_difference, train_from_scratch
from thaw.tasks import class_numbers, first_metric

MAX_SCORED_EXAMPLES = 1000  # validation examples that trials are scored on
TRIAL_VIEWS, PLAN_VIEWS = 2, 4  # augmented versions of an example in a trial, and in the plan
MAX_OVERTIME = 3.0  # times the minutes, before the clock stops the trials
MIN_WEIGHTS_PER_EXAMPLE = 10  # below it, a network may well learn from random weights
# Of what is left of the budget, a trial from random weights may cost so much: where pre-training helps, and where not.
MAX_SCRATCH_COST_IF_HELPFUL, MAX_SCRATCH_COST = 2 / 5, 1 / 2


class PlanSearch:
    """Run one call of :func:`thaw.advise`. The caller restores the model.

    Args:
        settings: :class:`thaw.advice.advise.AdviceSettings`.
        model: the ``keras.Model``.
        train: training :class:`thaw.Dataset`.
        validation: validation :class:`thaw.Dataset`.
    """

    def __init__(self, settings, model, train, validation):
        from thaw.training.freezing import trainable_stages

        self.settings, self.model = settings, model
        self.space = SearchSpace.of(model, settings.learning_rate)
        metric, accuracy = first_metric(model)
        views = TRIAL_VIEWS if train.augment is not None and not train.views else train.views or 1
        minutes = self._minutes(len(train), len(validation), views)
        self.deadline = time.monotonic() + 60 * (MAX_OVERTIME * minutes + 1)
        self.validation = validation.take(stratified_sample(validation.y, MAX_SCORED_EXAMPLES, settings.seed))
        self.budget = SearchBudget(
            total=operations_in(minutes),
            cost=TrialCost(model, views, settings.batch_size),
            epochs=settings.epochs,
            head_epochs=settings.head_epochs,
            head=settings.head,
            n_head_rates=len(self.space.head_learning_rates),
            depths=self.space.depths,
            n_validation=len(self.validation),
        )
        self.budget.choose_n_train(len(train))
        self.train = train.take(stratified_sample(train.y, self.budget.n_train, settings.seed))
        self.trials = Trials(
            model,
            self.train,
            self.validation,
            batch_size=settings.batch_size,
            seed=settings.seed,
            accuracy=accuracy,
            views=views,
            l2_sp=settings.l2_sp,
        )
        self.evidence = Evidence(
            head=settings.head,
            accuracy=accuracy,
            n_train=len(train),
            n_train_used=self.budget.n_train,
            n_validation=len(self.validation),
            stages_of=lambda trained: [stage.name for stage in trainable_stages(self.space.stages, trained)],
        )
        if metric is not None and not accuracy:
            note = f"The trials were scored by the log loss, because the first metric, {metric}, is not the accuracy."
            self.evidence.notes.append(note)
        self.number = self.total = 0  # of trials, for the progress bar
        self.is_late = False

    def advice(self):
        """Measure, run the trials, and choose.

        Returns:
            :class:`thaw.advice.result.Advice`.
        """
        evidence, settings, seed = self.evidence, self.settings, self.settings.seed
        self._measure()
        self.budget.spend_on_features()
        if settings.head == "new":
            heads = self.space.head_candidates()
            self.total = len(heads) + len(self.space.depths)
            self._train_head(heads)
            candidates = [*self.space.backbone_candidates(), *self._scratch_candidates()]
        else:
            self._score_unchanged()
            candidates = self.space.kept_head_candidates(evidence.gradient_norms)
        self.total = self.number + sum(candidates_of_rungs(len(candidates)))
        result = self._halve(candidates)
        self._note_limits(result)
        evidence.trials += result.trials
        if settings.head == "new":
            frozen = max((t for t in evidence.trials if t.train == "head" and not t.diverged), key=lambda t: t.rank)
        else:
            frozen = evidence.trials[0]  # the model unchanged
        finalists = [frozen, *(t for t in result.finalists if t is not frozen and not t.diverged)]
        correct = evidence.learning_curve.correct
        if settings.head == "new" and evidence.accuracy and correct.mean() > frozen.score.value:
            # No plan trains a ridge readout; but a gain over worse frozen features than these would be none.
            frozen = Trial.of(Candidate("ridge readout", 0.0), 0, None, 0, correct)
            evidence.trials.append(frozen)
        with_gain = {trial: trial.with_gain(frozen, seed) for trial in evidence.trials}
        evidence.frozen, evidence.trials = frozen, list(with_gain.values())
        finalists = [with_gain[trial] for trial in finalists]
        choose(evidence, finalists, self.space)
        return Advice(
            plan=plan_of(evidence, finalists, self.space, epochs=settings.epochs, l2_sp=settings.l2_sp),
            scratch=evidence.chosen.train == "scratch",
            trials=tuple(evidence.trials),
            chosen=evidence.chosen,
            probe=evidence.probe,
            random_probe=evidence.random_probe,
            learning_curve=evidence.learning_curve,
            gradient_norms=evidence.gradient_norms,
            reasons=explain(evidence),
            budget_used=self.budget.spent / self.budget.total,
        )

    def _minutes(self, n_train, n_validation, views):
        if self.settings.minutes is not None:
            return self.settings.minutes
        cost = TrialCost(self.model, PLAN_VIEWS if views > 1 else 1, self.settings.batch_size)
        return default_minutes(cost, self.settings.epochs, self.settings.head_epochs, n_train, n_validation)

    def _measure(self):
        """Probe the frozen features, those of a random network, and with fewer examples."""
        import keras

        from thaw.features.stage_features import relative_gradient_norm, stage_features
        from thaw.transfer.learning_curves import learning_curve
        from thaw.transfer.probing import probe_features

        evidence, seed, options = self.evidence, self.settings.seed, {"batch_size": self.trials.batch_size}
        train, validation = (part.replace(augment=None) for part in (self.train, self.validation))
        features, y = stage_features(self.model, train, **options)
        test_features, test_y = stage_features(self.model, validation, **options)
        y, test_y = (class_numbers(labels, expected=ONE_CLASS_EACH) for labels in (y, test_y))
        last = list(features)[-1]
        evidence.learning_curve = learning_curve(features[last], y, test_features[last], test_y, seed=seed)
        sample = stratified_sample(y, MAX_PROBED_EXAMPLES, seed)
        sampled = {stage: rows[sample] for stage, rows in features.items()}
        evidence.probe = probe_features(sampled, y[sample], seed=seed)
        if self.settings.head == "kept":
            # Counting the costs has marked the model as not compiled.
            keras.Model.compile(self.model, loss=self.trials.settings["loss"])
            evidence.gradient_norms = relative_gradient_norm(self.model, train, **options, seed=seed)
            return
        try:
            train_from_scratch(self.model, train, seed)
            random_features, _ = stage_features(self.model, train.take(sample), **options)
            evidence.random_probe = probe_features(random_features, y[sample], seed=seed)
        except ValueError as error:  # the model cannot be rebuilt, or its outputs are not finite
            evidence.notes.append(f"It was not compared with random weights: {error}")
            return
        finally:
            self.trials.assign(self.trials.start)
        errors, random_errors = evidence.probe.best.errors, evidence.random_probe.best.errors
        evidence.gain_over_random = paired_difference(random_errors, errors, seed)

    def _scratch_candidates(self):
        """Return a trial from random weights where it may be worth its cost."""
        if not self.settings.scratch or self.evidence.random_probe is None:
            return []
        candidate = self.space.scratch_candidate()
        has_few_examples = MIN_WEIGHTS_PER_EXAMPLE * self.budget.n_train < self.space.parameters
        is_unlikely = self.evidence.pretraining_helps and has_few_examples
        limit = MAX_SCRATCH_COST_IF_HELPFUL if is_unlikely else MAX_SCRATCH_COST
        is_expensive = self.budget.price(candidate, self.settings.epochs) > limit * self.budget.left
        return [] if is_expensive else [candidate]

    def _halve(self, candidates):
        """Search with what is left of the budget."""

        def run(candidate, epochs, rung):
            self.is_late = time.monotonic() > self.deadline
            return None if self.is_late else self._run(candidate, epochs, rung)

        climbs = self.settings.head == "new" and not self.space.fixed_rate
        return successive_halving(
            candidates,
            run,
            self.budget.price,
            budget=self.budget.left,
            max_resources=self.settings.epochs,
            min_resources=self.budget.min_epochs,
            propose=self.space.neighbors if climbs else None,
        )

    def _run(self, candidate, epochs, rung):
        from thaw.training.callbacks import notify

        self.number += 1
        self.total = max(self.total, self.number)
        notify(self.settings.callbacks, "on_trial", self.number, self.total, candidate.name)
        self.budget.spend_on_trial(candidate, epochs)
        trial = self.trials.run(candidate, self.budget.epochs_of(candidate, epochs), rung)
        notify(self.settings.callbacks, "on_trial_end", trial)
        return trial

    def _train_head(self, candidates):
        """Train the head, at other rates too where the features hold more; all other trials start from the best."""
        best = best_state = None
        for candidate in candidates:
            if best is not None:
                is_good = self.evidence.accuracy and best.score.value >= self.evidence.learning_curve.correct.mean()
                is_downwards = best.learning_rate > candidates[0].learning_rate > candidate.learning_rate
                if is_good or is_downwards:  # a higher rate was better, so that a lower one is not tried
                    break
            trial = self._run(candidate, self.budget.epochs_of_head(), None)
            self.evidence.trials.append(trial)
            if not trial.diverged and (best is None or trial.rank > best.rank):
                best, best_state = trial, self.trials.state()
        if best is None:
            lowest = min(candidate.learning_rate for candidate in candidates)
            raise FloatingPointError(
                f"The head alone diverged at every learning rate, down to {lowest:g}; look at the inputs."
            )
        self.trials.start = best_state

    def _score_unchanged(self):
        values, certainty = self.trials.values("head")
        self.evidence.trials.append(Trial.of(Candidate((), 0.0), 0, None, 0, values, certainty))

    def _note_limits(self, result):
        """Note what time and budget left out."""
        notes, settings = self.evidence.notes, self.settings
        if self.is_late:
            notes.append("The machine was so busy that the clock ended the trials before the budget did.")
        if result.trials and result.max_resources < settings.epochs:
            notes.append(
                f"The budget allowed trials of {result.max_resources} epochs at most, instead of {settings.epochs}."
            )
        last = max((trial.rung for trial in result.trials), default=0)
        short = [trial.name for trial in result.finalists if trial.rung < last]
        if short:
            notes.append(f"The budget did not allow a longer trial of {' and '.join(short)}.")
        wants_scratch = settings.scratch and settings.head == "new" and self.evidence.random_probe is not None
        tried_scratch = any(trial.train == "scratch" for trial in result.trials)
        if wants_scratch and not tried_scratch and not self.evidence.pretraining_helps and not self.is_late:
            notes.append("The budget did not allow a trial from random weights; give more minutes.")


def stratified_sample(y, max_examples, seed):
    """Return the indices of at most ``max_examples`` examples, drawn at random and stratified by class.

    Args:
        y: labels, one class for each example.
        max_examples: number of examples at most.
        seed: seed of the drawing.
    """
    y = class_numbers(y, expected=ONE_CLASS_EACH)
    if len(y) <= max_examples:
        return np.arange(len(y))
    shuffled = np.random.default_rng(seed).permutation(len(y))
    position = np.empty(len(y))
    for c in np.unique(y):
        rows = shuffled[y[shuffled] == c]
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(np.argsort(position, kind="stable")[:max_examples])
