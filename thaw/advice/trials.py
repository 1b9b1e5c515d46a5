"""Train short trials of candidates and compare their scores."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from thaw._keras import compile_settings
from thaw.metrics.intervals import Estimate, binomial_interval, bootstrap
from thaw.plan import Phase, Plan
from thaw.tasks import class_numbers
from thaw.transfer.learning_curves import NORMAL_QUANTILE

LAYER_DECAY = 0.7
HEAD_SOLVER = "lbfgs"
MIN_PROBABILITY = 1e-7  # below it, the log loss is clipped
MAX_BATCHNORM_EXAMPLES = 256  # on which BatchNorm statistics are estimated
ONE_CLASS_EACH = (
    'advice is for one class for each example. For other tasks write a plan: Plan.named("probe_then_tune").'
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Stages to train, and a learning rate: the candidate of a trial.

    Args:
        train: as in :class:`thaw.Phase`; ``"scratch"`` for the whole network from random weights, ``()`` for nothing.
        learning_rate: peak learning rate.
        full_length: try it once, for all epochs, because it learns slowly at first and a short trial would say nothing.
        solver: as in :class:`thaw.Phase`. Default ``"gradient"``.
    """

    train: str | int | tuple[str, ...]
    learning_rate: float
    full_length: bool = False
    solver: str = "gradient"

    @property
    def solves(self):
        """Whether it solves for the head, as :class:`thaw.Phase` does."""
        return self.solver != "gradient"

    @property
    def kind(self):
        """``"single stages"``, or ``"head and below"``, which learns faster."""
        return "single stages" if isinstance(self.train, tuple) else "head and below"

    @property
    def name(self):
        """Human-readable name, such as ``"head + 2 at 0.0005"``."""
        if self.solves:
            return "solved head"
        if not self.learning_rate:  # nothing is trained
            return self.train or "unchanged"
        what = f"head + {self.train}" if isinstance(self.train, int) else self.train
        what = " + ".join(what) if isinstance(what, tuple) else what
        return f"{what} at {self.learning_rate:.2g}"

    def phase(self, epochs, *, name="tune", views=4, l2_sp=0.0):
        """Return the :class:`thaw.Phase` that trains this candidate.

        Args:
            epochs: number of epochs.
            name: name of the phase. Default ``"tune"``.
            views: as in :class:`thaw.Phase`. Default 4.
            l2_sp: as in :class:`thaw.Phase`; not for the head. Default 0.
        """
        settings = {"name": name, "epochs": epochs, "learning_rate": self.learning_rate}
        if self.solves:  # in one pass over the examples as they are
            return Phase(**settings, train=self.train, solver=self.solver)
        if self.train == "scratch":
            return Phase(**settings, train="all", batchnorm="trained")
        has_one_depth = self.train == "head" or isinstance(self.train, tuple)
        return Phase(
            **settings,
            train=self.train,
            layer_decay=1.0 if has_one_depth else LAYER_DECAY,
            views=0 if self.train == "all" else views,
            l2_sp=0.0 if self.train == "head" else l2_sp,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """The result of one trial on the validation examples.

    Attributes:
        name: human-readable name of its candidate.
        train: what was trained, as in :class:`thaw.Phase`, or ``"scratch"``; ``()`` for the model as it came.
        learning_rate: peak learning rate.
        solver: as in :class:`thaw.Phase`; where the head was solved, no learning rate was used.
        epochs: number of epochs; the best of them was scored.
        score: :class:`~thaw.metrics.intervals.Estimate` of the accuracy, or of minus the log loss; its value is NaN
            where the training diverged.
        gain: :class:`~thaw.metrics.intervals.Estimate` of how much better it is than frozen features on the same
            examples; ``None`` for these themselves, and where the training diverged.
        rung: rung of the successive halving, from 0; ``None`` for what is trained before it.
        trainable_weights: number of weights that were trained.
        values: ``(n,)``, what each validation example adds to the score.
        certainty: minus the log loss, which decides between equal scores.
    """

    name: str
    train: Any
    learning_rate: float
    solver: str
    epochs: int
    score: Estimate
    gain: Estimate | None
    rung: int | None
    trainable_weights: int
    values: np.ndarray = dataclasses.field(repr=False)
    certainty: float

    @classmethod
    def of(cls, candidate, epochs, rung, trainable_weights, values, certainty=None):
        """Make a trial from what each validation example adds to the score; ``None`` where the training diverged."""
        score = Estimate(math.nan) if values is None else estimate_score(values)
        return cls(
            name=candidate.name,
            train=candidate.train,
            learning_rate=candidate.learning_rate,
            solver=candidate.solver,
            epochs=1 if candidate.solves else epochs,
            score=score,
            gain=None,
            rung=rung,
            trainable_weights=trainable_weights,
            values=np.zeros(0) if values is None else values,
            certainty=score.value if certainty is None else certainty,
        )

    @property
    def diverged(self):
        """Whether the training diverged."""
        return math.isnan(self.score.value)

    @property
    def rank(self):
        """Key by which trials are ordered: the score, of equal ones the certainty; one that diverged comes last."""
        return (-math.inf, -math.inf) if self.diverged else (self.score.value, self.certainty)

    def with_gain(self, frozen, seed):
        """Return a copy with its gain over the trial of frozen features."""
        if self is frozen or self.diverged:
            return self
        return dataclasses.replace(self, gain=paired_difference(self.values, frozen.values, seed))


def estimate_score(values):
    """Estimate a mean: an accuracy with the interval of Wilson (1927), other scores with the normal one."""
    if np.isin(values, (0, 1)).all():
        return binomial_interval(np.sum(values), len(values))
    mean, half = float(np.mean(values)), NORMAL_QUANTILE * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def paired_difference(values, others, seed=0):
    """Estimate the mean difference on the same examples, with the bootstrap over examples.

    Args:
        values: ``(n,)``.
        others: ``(n,)``, subtracted from ``values``.
        seed: seed of the bootstrap. Default 0.

    Returns:
        :class:`~thaw.metrics.intervals.Estimate`.
    """
    differences = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    return bootstrap(lambda d: d.mean(axis=1), differences, seed=seed)


def avoided_errors(errors, random_errors, seed=0):
    """Estimate the share of the errors with random features that are avoided, with the bootstrap over examples.

    Args:
        errors: ``(n,)``, 1 where a readout of pre-trained features is wrong, else 0.
        random_errors: ``(n,)``, the same for features of random weights.
        seed: seed of the bootstrap. Default 0.

    Returns:
        :class:`~thaw.metrics.intervals.Estimate`; without a value where random features make no error.

    Example:
        >>> from thaw.advice.trials import avoided_errors
        >>> avoided_errors([1, 0, 0, 0], [1, 1, 1, 1]).value
        0.75
    """

    def share(errors, random_errors):
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - errors.sum(axis=1) / random_errors.sum(axis=1)

    return bootstrap(share, np.asarray(errors, np.float64), np.asarray(random_errors, np.float64), seed=seed)


def is_better(values, others, standard_errors=1.0):
    """Return whether the mean difference is larger than so many of its standard errors."""
    d = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    # A single 1 among zeros has a mean that equals its standard error: rounding must not decide.
    return bool(d.mean() > (1 + 1e-9) * standard_errors * d.std(ddof=1) / math.sqrt(len(d)))


class Trials:
    """Run trials on one model, each from the same weights. The caller restores the model.

    Args:
        model: a built and compiled ``keras.Model``.
        train: :class:`thaw.Dataset` to train on.
        validation: :class:`thaw.Dataset` to score on.
        batch_size: examples in a batch.
        seed: seed of the order of the examples, and of random weights.
        accuracy: whether the score is the accuracy; else it is minus the log loss.
        views: number of augmented versions of each training example.
        l2_sp: strength of L2-SP, as in :class:`thaw.Phase`. Default 0.
        head_examples: :class:`thaw.Dataset` that a solved head is fitted to, where ``train`` is a part of the examples.
            Default ``None``: ``train``.

    Attributes:
        start: weights and random states from which every trial begins.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Dataset
        >>> from thaw.advice.trials import Candidate, Trials
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> data = Dataset(x=np.eye(2, dtype="float32"), y=np.array([0, 1]))
        >>> trials = Trials(model, data, data, batch_size=2, seed=0, accuracy=True, views=1)
        >>> trials.run(Candidate("all", 0.1), epochs=9, rung=0).score.value
        1.0
    """

    def __init__(self, model, train, validation, *, batch_size, seed, accuracy, views, l2_sp=0.0, head_examples=None):
        from thaw.training.checkpoint import variables_of

        self.model, self.train, self.validation = model, train, validation
        self.batch_size, self.seed, self.accuracy, self.views = min(batch_size, len(train)), seed, accuracy, views
        self.l2_sp, self.head_examples = l2_sp, train if head_examples is None else head_examples
        self.settings = compile_settings(model)
        self.labels = class_numbers(validation.y, expected=ONE_CLASS_EACH)
        self._variables = variables_of(model)
        self.start = self.state()

    def state(self):
        """Return the weights and random states of the model."""
        return [v.numpy() for v in self._variables]

    def assign(self, state):
        """Set the weights and random states of the model."""
        for variable, value in zip(self._variables, state):
            variable.assign(value)

    def run(self, candidate, epochs, rung):
        """Train and score a candidate. The model is left with the weights of its best epoch.

        Args:
            candidate: :class:`Candidate`.
            epochs: number of epochs.
            rung: noted in the trial.

        Returns:
            :class:`Trial`.

        Raises:
            ValueError: a mistake in the model or the data, found before the first step.
        """
        import keras

        from thaw.finetune import fine_tune
        from thaw.retention.batchnorm import estimate_batchnorm
        from thaw.training.optimizers import clone_optimizer

        self.assign(self.start)
        if candidate.train == "scratch":
            randomize_weights(self.model, self.train, self.seed)
        phase = candidate.phase(epochs, views=self.views, l2_sp=self.l2_sp)
        optimizer = clone_optimizer(self.settings["optimizer"])
        keras.Model.compile(self.model, **self.settings | {"optimizer": optimizer})  # a subclass may have another
        trainable_weights = self.trainable_weights(phase.train)
        try:
            options = {"batch_size": self.batch_size, "seed": self.seed, "verbose": 0}
            train = self.head_examples if candidate.solves else self.train
            fine_tune(self.model, Plan([phase]), train, validation_data=self.validation, **options)
        except FloatingPointError:
            return Trial.of(candidate, phase.epochs, rung, trainable_weights, None)
        if candidate.train == "scratch":  # after a short training BatchNorm's moving averages lag behind the weights
            estimate_batchnorm(self.model, _batchnorm_examples(self.train, self.seed))
        return Trial.of(candidate, phase.epochs, rung, trainable_weights, *self.values(phase.train))

    def trainable_weights(self, train):
        """Return the number of weights in the stages that ``train`` names."""
        from thaw.models.stages import stages_of
        from thaw.training.freezing import trainable_stages

        return sum(stage.parameters for stage in trainable_stages(stages_of(self.model), train)) if train != () else 0

    def values(self, train="all"):
        """Score the model with the weights that it has.

        Args:
            train: what was trained; the cached features of the rest are read. Default ``"all"``.

        Returns:
            ``(values, certainty)``: ``(n,)`` what each validation example adds to the score, 1 where it is predicted
            correctly and 0 elsewhere, or minus its log loss; and minus the mean log loss.
        """
        from thaw.features.extraction import RowKeys
        from thaw.features.fingerprint import fingerprint_model
        from thaw.features.precompute import precompute
        from thaw.features.predictions import batch_probabilities
        from thaw.features.split import CannotSplit, split_model
        from thaw.training.freezing import freeze

        freeze(self.model, train)
        scored, examples = self.model, self.validation
        try:
            prefix, suffix = split_model(self.model)
            # Features that no trial could find again would stay on the disk.
            if fingerprint_model(prefix) is not None and RowKeys.of(self.validation, None, "").is_reusable:
                examples = precompute(prefix, self.validation, batch_size=self.batch_size)
                scored = suffix
        except (CannotSplit, OSError):
            pass  # the whole model is run
        p = batch_probabilities(scored, (x for x, *_ in examples.ordered(self.batch_size)))
        log_likelihood = np.log(np.maximum(p[np.arange(len(p)), self.labels], MIN_PROBABILITY))
        correct = (p.argmax(axis=1) == self.labels).astype(np.float64)
        return correct if self.accuracy else log_likelihood, float(log_likelihood.mean())


def can_solve_head(model, y):
    """Return whether a solver finds all weights of a head, so that none is left to gradient descent.

    Args:
        model: a compiled ``keras.Model``; its ``trainable`` flags are changed.
        y: ``(n,)`` labels.
    """
    from thaw.models.flat import CannotSplit, flatten_model
    from thaw.training.freezing import freeze
    from thaw.transfer.solved_head import CannotSolve, solvable_head

    freeze(model, "head")
    try:
        solvable_head(flatten_model(model), compile_settings(model)["loss"], HEAD_SOLVER, y, model)
    except (CannotSplit, CannotSolve):
        return False
    return True


def randomize_weights(model, train, seed):
    """Give a model random weights, and the BatchNorm statistics that belong to them.

    Args:
        model: a built ``keras.Model``; changed in place.
        train: :class:`thaw.Dataset`; 256 examples at most are run.
        seed: seed of the weights.

    Raises:
        ValueError: the model cannot be rebuilt from its configuration.
    """
    from thaw.models.state import reinitialize_weights
    from thaw.retention.batchnorm import estimate_batchnorm

    reinitialize_weights(model, seed)
    estimate_batchnorm(model, _batchnorm_examples(train, seed))


def _batchnorm_examples(dataset, seed):
    n = min(MAX_BATCHNORM_EXAMPLES, len(dataset))
    return dataset.take(np.sort(np.random.default_rng(seed).choice(len(dataset), n, replace=False)))


def depths_of(n_stages):
    """Return how many stages below the head may be trained, from few to all.

    Args:
        n_stages: number of stages below the head.

    Returns:
        A list of numbers with ``"all"`` at the end; where there are many stages, powers of two.

    Example:
        >>> from thaw.advice.trials import depths_of
        >>> depths_of(4), depths_of(9)
        ([1, 2, 3, 'all'], [1, 2, 4, 8, 'all'])
    """
    return [*(n for n in range(1, n_stages) if n_stages <= 5 or n & (n - 1) == 0), "all"]


def neighbors(ranked, depths, learning_rates):
    """Yield candidates one step from the best trial that trains the backbone.

    First those at a learning rate that is new to all trials, then those of another depth, then those at another
    learning rate: far from the right rate depths cannot be compared, and it is nearly the same for all of them.

    Args:
        ranked: the :class:`Trial` s that were made, the best first.
        depths: numbers of stages to train, in order.
        learning_rates: learning rates, in order.

    Yields:
        :class:`Candidate` s, the most promising first; some may have been tried. Where even the best trial diverged,
        the lower rate.

    Example:
        >>> from thaw.advice.trials import Candidate, Trial, neighbors
        >>> scores = {0.01: [1, 1], 0.001: [1, 0]}
        >>> ranked = [Trial.of(Candidate(2, rate), 9, 0, 5, values) for rate, values in scores.items()]
        >>> [candidate.name for candidate in neighbors(ranked, [1, 2, "all"], [0.001, 0.01, 0.1])]
        ['head + 2 at 0.1', 'all at 0.01', 'head + 1 at 0.01', 'head + 2 at 0.1', 'head + 2 at 0.001']
    """
    of_backbone = [trial for trial in ranked if trial.train not in ("head", "scratch")]
    if not of_backbone:
        return
    best, tried_rates = of_backbone[0], {trial.learning_rate for trial in of_backbone}
    other_rates = _adjacent(learning_rates, best.learning_rate)
    if best.diverged:
        yield from (Candidate(best.train, rate) for rate in other_rates if rate < min(tried_rates))
        return
    yield from (Candidate(best.train, rate) for rate in other_rates if rate not in tried_rates)
    yield from (Candidate(depth, best.learning_rate) for depth in _adjacent(depths, best.train))
    yield from (Candidate(best.train, rate) for rate in other_rates)


def _adjacent(values, value):
    """Return the next higher and the next lower of some ordered values, where there are such."""
    index = values.index(value)
    return [values[i] for i in (index + 1, index - 1) if 0 <= i < len(values)]
