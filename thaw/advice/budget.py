"""Price trials, and choose how many training examples a budget allows."""

from __future__ import annotations

import dataclasses
import math

from thaw.advice.cost import FROZEN_FACTOR, TrialCost
from thaw.advice.halving import plan_halving
from thaw.advice.trials import Candidate

MAX_PROBED_EXAMPLES = 500
MIN_TRAIN_EXAMPLES = 64  # of the training examples, the trials use at least so many
MIN_CANDIDATES = 6  # for so many candidates, training examples are given up
MAX_HALVED_COST = 0.8  # of the cost may be left with half of the examples, for these to be given up
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
        head: ``"new"`` or ``"kept"``.
        n_head_rates: number of learning rates of the head alone.
        depths: how many stages may be trained.
        n_validation: number of validation examples.

    Attributes:
        n_train: number of training examples that the trials use; see :meth:`choose_n_train`.
        spent: operations so far.
        tried: candidates that were tried; they have cached the features of their frozen stages.
    """

    total: float
    cost: TrialCost
    epochs: int
    head_epochs: int | None
    head: str
    n_head_rates: int
    depths: list
    n_validation: int
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
        """Pay for the features of all examples."""
        self.spent += self._features(self.n_train)

    def choose_n_train(self, n):
        """Choose how many of ``n`` training examples the trials use: as many as leave room for enough trials."""
        n_train = n
        while n_train // 2 >= MIN_TRAIN_EXAMPLES:
            left = self.total - self._features(n_train) - self._heads(n_train)
            candidates = [Candidate(train, 0.0) for train in self.depths for _ in range(3)]
            price = lambda candidate, epochs, tried, n=n_train: self.price(candidate, epochs, tried, n)  # noqa: E731
            plan = plan_halving(candidates, price, left, self.epochs, self._min_epochs(n_train))
            has_enough = len(plan.candidates) >= min(MIN_CANDIDATES, len(candidates))
            if left > self.total / 2 and has_enough and 2 * plan.max_resources >= self.epochs:
                break
            if self._one_of_each_depth(n_train // 2) > MAX_HALVED_COST * self._one_of_each_depth(n_train):
                break  # the examples are not what costs
            n_train //= 2
        self.n_train = n_train

    def _one_of_each_depth(self, n_train):
        trials = sum(self.price(Candidate(train, 0.0), self.epochs, n_train=n_train) for train in self.depths)
        return self._features(n_train) + self._heads(n_train) + trials

    def _features(self, n_train):
        """Cost of the features of all examples, and twice of some in a network with random weights."""
        rows = n_train + self.n_validation + 2 * min(n_train, MAX_PROBED_EXAMPLES)
        return FROZEN_FACTOR * self.cost.forward * rows + 3 * self.cost.per_trial

    def _heads(self, n_train):
        if self.head == "kept":
            return 0.0
        cached, epochs = [number > 0 for number in range(self.n_head_rates)], self.epochs_of_head(n_train)
        return sum(self.cost.of("head", n_train, self.n_validation, epochs, cached=c) for c in cached)

    def _steps(self, n_train):
        return math.ceil(n_train / self.cost.batch_size)

    def _min_epochs(self, n_train):
        return math.ceil(MIN_TRIAL_STEPS / self._steps(n_train))
