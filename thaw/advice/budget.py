"""Price trials, and choose how many training examples a budget allows."""

from __future__ import annotations

import dataclasses
import math

from thaw.advice.cost import FROZEN_FACTOR, TrialCost
from thaw.advice.halving import plan_halving
from thaw.advice.trials import Candidate

MAX_PROBED_EXAMPLES = 500
MIN_TRAIN_EXAMPLES = 500  # of the training examples, the trials use at least so many
MAX_HEAD_SHARE = 0.5  # of the budget, for a solved head
MIN_CANDIDATES = 6  # for so many candidates, training examples are given up
# For a share of the examples to be given up, at least so much of that share of the cost has to be saved.
MIN_SAVING = 0.4
MIN_TRIAL_STEPS = 30  # training steps of a trial at least
# From random weights more: on 300 digits 140 steps ended anywhere from 0.87 to 0.99, 200 steps from 0.96 to 0.98.
MIN_SCRATCH_STEPS = 200
HEAD_STEPS = 300  # training steps of the head alone,
MIN_HEAD_EPOCHS, MAX_HEAD_EPOCHS = 5, 40  # in so many epochs


@dataclasses.dataclass
class SearchBudget:
    """A budget in operations, and what was spent of it.

    Args:
        total: operations of the whole search.
        cost: :class:`thaw.advice.cost.TrialCost` of the model.
        epochs: epochs of the longest trials.
        head_epochs: epochs of the head alone; ``None`` for what it takes.
        heads: candidates for the head alone, which are tried first; none where it is kept.
        depths: how many stages may be trained.
        n_validation: number of validation examples.

    Attributes:
        n_head: number of training examples that a solved head is fitted to: all, unless half of the budget would not
            be enough for so many.
        n_train: number of training examples that the trials use; see :meth:`choose_n_train`.
        spent: operations so far.
        tried: candidates that were tried; they have cached the features of their frozen stages.
    """

    total: float
    cost: TrialCost
    epochs: int
    head_epochs: int | None
    heads: list
    depths: list
    n_validation: int
    n_head: int = 0
    n_train: int = 0
    spent: float = 0.0
    tried: list = dataclasses.field(default_factory=list)

    @property
    def left(self):
        """Operations that are left."""
        return self.total - self.spent

    @property
    def min_epochs(self):
        """Epochs of the shortest trials."""
        return self._min_epochs(self.n_train)

    def price(self, candidate, epochs, tried=(), n_train=None):
        """Return the operations of a trial.

        Args:
            candidate: :class:`thaw.advice.trials.Candidate`.
            epochs: number of epochs.
            tried: candidates that will have been tried before, besides those that were.
            n_train: number of training examples. Default ``None``: those that the trials use.
        """
        if candidate.solves:
            return self._solved_head(self.n_head)
        train = "all" if candidate.train == "scratch" else candidate.train
        cached = any(c.train == train for c in [*self.tried, *tried])
        n_train = n_train or self.n_train
        epochs = self.epochs_of(candidate, epochs, n_train)
        return self.cost.of(train, n_train, self.n_validation, epochs, cached=cached)

    def epochs_of(self, candidate, epochs, n_train=None):
        """Return the epochs of a trial: more from random weights, where a short training says little."""
        steps = MIN_SCRATCH_STEPS if candidate.train == "scratch" else 0
        return max(epochs, math.ceil(steps / self._steps(n_train or self.n_train)))

    def epochs_of_head(self, n_train=None):
        """Return the epochs of the head alone."""
        epochs = math.ceil(HEAD_STEPS / self._steps(n_train or self.n_train))
        return self.head_epochs or min(MAX_HEAD_EPOCHS, max(MIN_HEAD_EPOCHS, epochs))

    def spend_on_trial(self, candidate, epochs):
        """Pay for a trial."""
        self.spent += self.price(candidate, epochs)
        self.tried.append(candidate)

    def spend_on_features(self):
        """Pay for the features of the trials' examples, which are probed."""
        self.spent += self._features(self.n_train)

    def choose_n_train(self, n):
        """Choose how many of ``n`` training examples the trials use: as many as leave room for enough trials.

        They never use fewer than 500 of them; where the budget does not allow so many, there are fewer and shorter
        trials.
        """
        n_head = n_train = n
        while n_head > MIN_TRAIN_EXAMPLES and self._solved_head(n_head) > MAX_HEAD_SHARE * self.total:
            n_head = max(n_head // 2, MIN_TRAIN_EXAMPLES)
        self.n_head = n_head
        # What a solved head costs does not depend on the examples of the trials.
        of_head = sum(self._solved_head(n_head) for head in self.heads if head.solves)
        while n_train > MIN_TRAIN_EXAMPLES:
            left = self.total - self._features(n_train) - self._heads(n_train)
            candidates = [Candidate(train, 0.0) for train in self.depths for _ in range(3)]
            price = lambda candidate, epochs, tried, n=n_train: self.price(candidate, epochs, tried, n)  # noqa: E731
            plan = plan_halving(candidates, price, left, self.epochs, self._min_epochs(n_train))
            has_enough = len(plan.candidates) >= min(MIN_CANDIDATES, len(candidates))
            if left > (self.total - of_head) / 2 and has_enough and 2 * plan.max_resources >= self.epochs:
                break
            fewer = max(n_train // 2, MIN_TRAIN_EXAMPLES)
            costs = [self._one_of_each_depth(number) - of_head for number in (fewer, n_train)]
            saved = 1 - costs[0] / costs[1]
            if saved < MIN_SAVING * (1 - fewer / n_train):
                break  # the examples are not what costs
            n_train = fewer
        self.n_train, self.n_head = n_train, max(n_head, n_train)

    def _one_of_each_depth(self, n_train):
        trials = sum(self.price(Candidate(train, 0.0), self.epochs, n_train=n_train) for train in self.depths)
        return self._features(n_train) + self._heads(n_train) + trials

    def _features(self, n_train):
        """Cost of the features of the trials' examples, and twice of some in a network with random weights."""
        rows = n_train + self.n_validation + 2 * min(n_train, MAX_PROBED_EXAMPLES)
        return FROZEN_FACTOR * self.cost.forward * rows + 3 * self.cost.per_trial

    def _heads(self, n_train):
        epochs = self.epochs_of_head(n_train)
        return sum(self.price(head, epochs, self.heads[:i], n_train) for i, head in enumerate(self.heads))

    def _solved_head(self, n_head):
        return self.cost.of_solved_head(n_head, self.n_validation)

    def _steps(self, n_train):
        return math.ceil(n_train / self.cost.batch_size)

    def _min_epochs(self, n_train):
        return math.ceil(MIN_TRIAL_STEPS / self._steps(n_train))
