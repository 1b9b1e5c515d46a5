"""Short trainings of one model, each from the same start, and how they compare."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from thaw.plan import Phase, Plan
from thaw.share import share

_Z = 1.959964  # 97.5 % of a normal distribution lie below
RESAMPLES = 2000
STAGE_DECAY = 0.7


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What a trial is to try.

    Args:
        train: as in :class:`thaw.Phase`; ``"scratch"`` for the whole network from random weights, ``()`` for nothing.
        learning_rate: the peak.
        whole: try it once, for all epochs, because it begins slowly and a short trial would say nothing.
    """

    train: str | int | tuple[str, ...]
    learning_rate: float
    whole: bool = False

    @property
    def kind(self):
        """One stage alone, or all from some stage on, which learns faster."""
        return "alone" if isinstance(self.train, tuple) else "from a stage on"

    @property
    def name(self):
        """For people."""
        if not self.learning_rate:  # nothing is trained
            return self.train or "as it is"
        what = f"head + {self.train}" if isinstance(self.train, int) else self.train
        what = " + ".join(what) if isinstance(what, tuple) else what
        return f"{what} at {self.learning_rate:.2g}"

    def phase(self, epochs, *, name="tune", views=4, anchor=0.0):
        """The phase of a plan that does this."""
        if self.train == "scratch":
            return Phase(
                name=name,
                epochs=epochs,
                train="all",
                learning_rate=self.learning_rate,
                batchnorm="trained",
            )
        alone = self.train == "head" or isinstance(self.train, tuple)
        return Phase(
            name=name,
            epochs=epochs,
            train=self.train,
            learning_rate=self.learning_rate,
            stage_decay=1.0 if alone else STAGE_DECAY,
            views=0 if self.train == "all" else views,
            anchor=0.0 if self.train == "head" else anchor,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One trial, and how it did on the validation examples.

    Attributes:
        name: for people.
        train: what moved, as in :class:`thaw.Phase`, or ``"scratch"``; ``()`` is the model as it came.
        learning_rate: its peak.
        epochs: at most; the best of them was scored.
        score: accuracy, or minus the log loss; NaN where the training diverged.
        low, high: 95 % interval of the score.
        against: ``(difference, low, high)``, how much better it is than frozen features on the same examples, with
            its paired 95 % interval; ``None`` for these themselves.
        rung: of the successive halving, from 0; ``None`` for what is trained before it.
        moving: how many weights move.
        values: ``(n,)``, what each validation example adds to the score.
        certainty: minus the log loss, which tells equal scores apart.
    """

    name: str
    train: Any
    learning_rate: float
    epochs: int
    score: float
    low: float
    high: float
    against: tuple[float, float, float] | None
    rung: int | None
    moving: int
    values: np.ndarray = dataclasses.field(repr=False)
    certainty: float

    @classmethod
    def of(cls, candidate, epochs, rung, moving, values, certainty=None):
        """A trial from what each validation example adds to the score; ``None`` where it diverged."""
        if values is None:
            values, score, low, high = np.zeros(0), math.nan, math.nan, math.nan
        else:
            score, low, high = _interval(values)
        return cls(
            candidate.name,
            candidate.train,
            candidate.learning_rate,
            epochs,
            score,
            low,
            high,
            None,
            rung,
            moving,
            values,
            score if certainty is None else certainty,
        )

    @property
    def rank(self):
        """By what trials are ordered: the score, and of equal ones the certainty; one that diverged is the last."""
        return (-math.inf, -math.inf) if math.isnan(self.score) else (self.score, self.certainty)

    def compared(self, frozen, seed):
        """The same, with its difference from frozen features."""
        if self is frozen or not len(self.values):
            return self
        return dataclasses.replace(self, against=paired(self.values, frozen.values, seed))


def paired(values, others, seed=0):
    """Mean difference between the same examples, and its percentile bootstrap (Efron 1979).

    Args:
        values: ``(n,)`` of the one.
        others: ``(n,)`` of the other.
        seed: of the resampling.

    Returns:
        ``(difference, low, high)``.
    """
    d = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    rng, means = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 100):  # in pieces, for memory
        means.append(rng.multinomial(len(d), np.full(len(d), 1 / len(d)), 100) @ d / len(d))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(d.mean()), float(low), float(high)


def better(values, others, errors=1.0):
    """Is the mean difference larger than so many of its standard errors?"""
    d = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    # One more of 0 and 1 that is right has a difference that equals its standard error: rounding must not decide.
    return bool(d.mean() > (1 + 1e-9) * errors * d.std(ddof=1) / math.sqrt(len(d)))


def _interval(values):
    """A mean and its 95 % interval: of an accuracy that of Wilson (1927), else the normal one."""
    n, mean = len(values), float(np.mean(values))
    if not np.isin(values, (0, 1)).all():
        half = _Z * float(np.std(values, ddof=1)) / math.sqrt(n)
        return mean, mean - half, mean + half
    return share(np.sum(values), n)


class Trials:
    """Makes trials on one model, each from the same start. The model is to be put back by whoever has it made.

    Args:
        model: a built and compiled ``keras.Model``.
        train: :class:`thaw.Examples` that the trials see.
        validation: :class:`thaw.Examples` that they are scored on.
        batch_size: examples in a batch.
        seed: of the order, and of random weights.
        accuracy: score by the accuracy; else by minus the log loss.
        views: versions of each training example.
        anchor: pull what moves back to where it began, as in :class:`thaw.Phase`.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Examples
        >>> from thaw.advising.trials import Candidate, Trials
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> data = Examples(x=np.eye(2, dtype="float32"), y=np.array([0, 1]))
        >>> trials = Trials(model, data, data, batch_size=2, seed=0, accuracy=True, views=1)
        >>> trials.run(Candidate("all", 0.1), epochs=9, rung=0).score
        1.0
    """

    def __init__(self, model, train, validation, *, batch_size, seed, accuracy, views, anchor=0.0):
        from thaw.tuning.checkpoint import variables_of

        self.model, self.train, self.validation = model, train, validation
        self.batch_size, self.seed, self.accuracy, self.views = min(batch_size, len(train)), seed, accuracy, views
        self.anchor = anchor
        self.settings = dict(model._compile_config.config)
        self.labels = class_numbers(validation.y)
        self._variables = variables_of(model)
        self.start = self.state()

    def state(self):
        """The weights and random states, from which trials can begin."""
        return [v.numpy() for v in self._variables]

    def put(self, state):
        """Put a state into the model."""
        for variable, value in zip(self._variables, state):
            variable.assign(value)

    def run(self, candidate, epochs, rung):
        """One trial.

        Args:
            candidate: what to try.
            epochs: passes.
            rung: noted in the trial.

        Returns:
            :class:`Trial`. The model has the weights that it ended with.

        Raises:
            ValueError: a mistake in the model or the data, found before the first step.
        """
        import keras

        from thaw.tuning.fresh_optimizer import fresh_optimizer
        from thaw.tuning.tune import tune

        self.put(self.start)
        if candidate.train == "scratch":
            begin_anew(self.model, self.train, self.seed)
        phase = candidate.phase(epochs, views=self.views, anchor=self.anchor)
        fresh = fresh_optimizer(self.settings["optimizer"])
        keras.Model.compile(self.model, **self.settings | {"optimizer": fresh})  # a class may have another
        data = self.train, self.validation
        try:
            tune(self.model, Plan([phase]), data, batch_size=self.batch_size, seed=self.seed)
        except FloatingPointError:
            return Trial.of(candidate, phase.epochs, rung, self.moving(phase.train), None)
        if candidate.train == "scratch":  # a short training leaves BatchNorm's moving averages behind its weights
            from thaw.tuning.estimate_batchnorm import estimate_batchnorm

            estimate_batchnorm(self.model, self.train.take(_some(self.train, self.seed)))
        return Trial.of(candidate, phase.epochs, rung, self.moving(phase.train), *self.values(phase.train))

    def moving(self, train):
        """How many weights move."""
        from thaw.stages import stages_of
        from thaw.tuning.freeze import moving_stages

        return sum(stage.parameters for stage in moving_stages(stages_of(self.model), train)) if train != () else 0

    def values(self, train="all"):
        """What each validation example adds to the score of the model as it is now.

        Args:
            train: what moved; what stood still is read from the disk, where the trial has left it.

        Returns:
            ``(values, certainty)``: ``(n,)`` 1 where it is right and 0 where not, or minus the log loss; and minus the
            mean log loss.
        """
        from thaw.probabilities import probabilities
        from thaw.tuning.flatten import CannotSplit
        from thaw.tuning.freeze import freeze
        from thaw.tuning.precompute import precompute
        from thaw.tuning.split import split

        freeze(self.model, train)
        scored, examples = self.model, self.validation
        try:
            prefix, suffix = split(self.model)
            examples = precompute(prefix, self.validation, batch_size=self.batch_size)
            scored = suffix
        except (CannotSplit, OSError):
            pass  # the whole of it is run
        p = probabilities(scored, (x for x, *_ in examples.ordered(self.batch_size)))
        surprise = np.log(np.maximum(p[np.arange(len(p)), self.labels], 1e-7))
        values = (p.argmax(axis=1) == self.labels).astype(np.float64) if self.accuracy else surprise
        return values, float(surprise.mean())


def begin_anew(model, train, seed):
    """Give a model random weights, and BatchNorm the statistics that these make.

    Args:
        model: a built ``keras.Model``; changed in place.
        train: :class:`thaw.Examples`; some hundreds of them are looked at.
        seed: of the weights.

    Raises:
        ValueError: the model cannot be built anew from its settings.
    """
    from thaw.tuning.estimate_batchnorm import estimate_batchnorm
    from thaw.tuning.reinitialise import reinitialise

    reinitialise(model, seed)
    estimate_batchnorm(model, train.take(_some(train, seed)))


def class_numbers(y):
    """Labels as class numbers.

    Raises:
        ValueError: they are not one class for each example.
    """
    from thaw.measuring import class_numbers as numbers

    expected = 'advice is for one class for each example. For other tasks write a plan: Plan.named("probe_then_tune").'
    return numbers.class_numbers(y, expected).astype(np.int64)


def _some(examples, seed, most=256):
    """Places of a few hundred examples, drawn at random."""
    drawn = np.random.default_rng(seed).choice(len(examples), min(most, len(examples)), replace=False)
    return np.sort(drawn)
