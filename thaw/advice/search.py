"""Search for the plan that suits a model and its data."""

from __future__ import annotations

import time

from thaw.advice.choice import choose, plan_of
from thaw.advice.halving import candidates_of_rungs, successive_halving
from thaw.advice.result import Advice, explain
from thaw.advice.trials import Candidate, Trial

MAX_OVERTIME = 3.0  # times the minutes, before the clock stops the trials
MIN_WEIGHTS_PER_EXAMPLE = 10  # below it, a network may well learn from random weights
# Of what is left of the budget, a trial from random weights may cost so much: where pre-training helps, and where not.
MAX_SCRATCH_COST_IF_HELPFUL, MAX_SCRATCH_COST = 2 / 5, 1 / 2


class PlanSearch:
    """Propose trials, rank them, and choose a plan within a budget. It trains nothing itself: the trials do.

    Args:
        settings: :class:`thaw.advice.advise.AdviceSettings`.
        space: :class:`thaw.advice.space.SearchSpace`.
        budget: :class:`thaw.advice.budget.SearchBudget`; what was measured is paid.
        trials: :class:`thaw.advice.trials.Trials`.
        evidence: :class:`thaw.advice.result.Evidence`, with what was measured.
        minutes: what the budget stands for; after three times as many, and one more, the clock stops the trials.
        began: time on the clock at which the search began, in seconds.
        clock: function that returns the time in seconds. Default ``time.monotonic``.
    """

    def __init__(self, settings, space, budget, trials, evidence, *, minutes, began, clock=time.monotonic):
        self.settings, self.space, self.budget = settings, space, budget
        self.trials, self.evidence = trials, evidence
        self.deadline, self.clock = began + 60 * (MAX_OVERTIME * minutes + 1), clock
        self.number = self.total = 0  # of trials, for the progress bar
        self.is_late = False

    def advice(self):
        """Run the trials, and choose.

        Returns:
            :class:`thaw.advice.result.Advice`.
        """
        evidence, settings, seed = self.evidence, self.settings, self.settings.seed
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
        evidence.chosen, evidence.later = choose(evidence, finalists, self.space)
        return Advice(
            plan=plan_of(
                evidence,
                finalists,
                self.space,
                epochs=settings.epochs,
                head_epochs=self.budget.epochs_of_head(),
                l2_sp=settings.l2_sp,
            ),
            scratch=evidence.chosen.train == "scratch",
            trials=tuple(evidence.trials),
            chosen=evidence.chosen,
            probe=evidence.probe,
            random_probe=evidence.random_probe,
            similarity=evidence.similarity,
            learning_curve=evidence.learning_curve,
            gradient_norms=evidence.gradient_norms,
            reasons=explain(evidence),
            budget_used=self.budget.spent / self.budget.total,
        )

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
            self.is_late = self.clock() > self.deadline
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
        """Solve for the head, or train it, at other rates too where the features hold more.

        All other trials start from the best.
        """
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
        if best is None and candidates[0].solves:
            raise FloatingPointError("The solved head has a loss that is not finite; look at the inputs.")
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
        left_out = [candidate.name for candidate in result.left_out if candidate.train != "scratch"]
        if result.trials and left_out and not self.is_late:
            more = "" if len(left_out) == 1 else f" and {len(left_out) - 1} more"
            notes.append(f"The budget left out a trial of {left_out[0]}{more}; give more minutes.")
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
