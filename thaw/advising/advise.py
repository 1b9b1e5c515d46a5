"""What to tune, and whether: measured, tried for a short while, and said with its evidence."""

from __future__ import annotations

import dataclasses
import math

from thaw.advising.advising import Advising
from thaw.advising.trials import class_numbers
from thaw.number import plain_number, whole_number
from thaw.plan import Phase

EPOCHS = 10
FEWEST = 20  # examples, to train on and to score on; with fewer nothing can be told from chance


def advise(model, data, *, minutes=5.0, epochs=EPOCHS, head="new", batch_size=32, seed=0):
    """Find out what of a model to tune on these data, at what rate, and whether it is worth it.

    Three things are measured. How far frozen features get at each stage, against the same network with random
    weights. How much a quarter, a half and all of the data give (a learning curve). And what short trainings bring:
    the head once, and from there two stages at two rates and then, from the best, one step at a time to other rates
    and numbers of stages, by successive halving (Jamieson and Talwalkar 2016) and :func:`thaw.tune`, so that what
    stands still is computed once for all of them. From random weights a trial is made where it is cheap, where
    pre-training does not show, or where there are many examples for the size of the network. Chosen is the trial with
    the best score on the validation data; but frozen features where the difference is within its standard error, and
    with ``head="kept"`` what moves fewer weights.

    The score is the accuracy where the first metric of the model is one, else minus the log loss. The budget is
    counted in operations beforehand, so that the same call gives the same advice on a busy machine. Call
    :func:`thaw.reproducible` before for equal bits. What stands still is kept on disk, where the tuning that follows
    finds it.

    Args:
        model: a built and compiled functional or sequential ``keras.Model`` with a head; the same afterwards, to
            the bit, also after an error.
        data: ``(train, validation)``, each :class:`thaw.Examples` or arrays ``(x, y)``, with one class for each.
        minutes: of work for the trials, on two cores.
        epochs: of the phase that moves the backbone, in the plan that is advised.
        head: ``"new"``: the head is fresh, and is trained first. ``"kept"``: the model does this task already, and
            the data have shifted; then single stages are tried alone too (Lee et al. 2022).
        batch_size: examples in a batch.
        seed: of the order, the drawing and the resampling.

    Returns:
        :class:`thaw.advising.advice.Advice`: a plan, and the evidence for it.

    Raises:
        ValueError: fewer than 20 examples to train or to score on, labels that are not one class for each, a model
            without a head, or a mistake that ``tune`` finds before its first step.

    Example:
        >>> from thaw import advise, tune
        >>> advice = advise(model, (train, validation), minutes=3)          # doctest: +SKIP
        >>> print(advice)                                                   # doctest: +SKIP
        >>> history = tune(model, advice.plan, (train, validation))         # doctest: +SKIP
    """
    return Advisor(minutes=minutes, epochs=epochs, head=head, batch_size=batch_size, seed=seed)(model, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advisor:
    """:func:`advise` with all its settings: a value that is called with a model and data.

    Args:
        minutes: as in :func:`advise`; ``None`` for what the usual plan itself would take, from one to five.
        epochs: likewise.
        head: likewise.
        batch_size: likewise.
        seed: likewise.
        learning_rate: try no other peak than this; ``None`` to look for one.
        head_epochs: of the head alone; ``None`` for as many as it takes.
        anchor: pull what moves back to the starting weights, as in :class:`thaw.Phase`.
        scratch: try random weights too, where that is cheap enough.
        callbacks: objects; where one has ``on_trial(number, total, name)`` or ``on_trial_end(trial)``, it is called.

    Raises:
        ValueError: a value that cannot be meant.

    Example:
        >>> from thaw import Advisor
        >>> Advisor(minutes=3, learning_rate=1e-4).epochs
        10
    """

    minutes: float | None = 5.0
    epochs: int = EPOCHS
    head: str = "new"
    batch_size: int = 32
    seed: int = 0
    learning_rate: float | None = None
    head_epochs: int | None = None
    anchor: float = 0.0
    scratch: bool = True
    callbacks: tuple = ()

    def __post_init__(self):
        if self.head not in ("new", "kept"):
            raise ValueError(f'head={self.head!r}; expected "new" or "kept".')
        for name in ("minutes", "epochs", "batch_size", "seed", "learning_rate", "head_epochs", "anchor"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        whole_number("batch_size", self.batch_size, 1)
        whole_number("seed", self.seed)
        if self.minutes is not None and not (isinstance(self.minutes, (int, float)) and 0 < self.minutes < math.inf):
            raise ValueError(f"minutes={self.minutes!r}; expected a number above 0.")
        # What a phase may be is known there; so are the words for what it may not.
        rate = 1e-3 if self.learning_rate is None else self.learning_rate
        Phase(name="tune", epochs=self.epochs, learning_rate=rate, anchor=self.anchor)
        Phase(name="head", epochs=1 if self.head_epochs is None else self.head_epochs)

    def __call__(self, model, data):
        from thaw.tuning.untouched import untouched

        train, validation = examples_of(model, data)
        with untouched(model):
            return Advising(self, model, train, validation).advice()

    def tell(self, event, *arguments):
        """Tell whoever wants to know."""
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(*arguments)


def examples_of(model, data):
    """The training and the validation examples, if advice can be given on them.

    Args:
        model: as in :func:`advise`.
        data: likewise.

    Returns:
        ``(train, validation)``, both :class:`thaw.Examples`.

    Raises:
        ValueError: as in :func:`advise`.
    """
    from thaw.examples import Examples
    from thaw.stages import HEAD, calls_of, stages_of
    from thaw.tuning.fresh_optimizer import fresh_optimizer
    from thaw.tuning.mistakes import mistakes, refuse

    if not model.built or not model.compiled:
        raise ValueError(f"{model.name} is not compiled; call model.compile(optimizer, loss, metrics) first.")
    if calls_of(model) is None:
        raise ValueError(f"{model.name} is a subclassed model, whose graph cannot be read; write a plan for it.")
    stages = stages_of(model)
    if len(stages) < 2 or stages[-1].name != HEAD:
        raise ValueError(f"{model.name} has no head on top of other stages: attach_head(model, classes) puts one on.")
    if len(model.outputs) > 1:
        raise ValueError(f"{model.name} has {len(model.outputs)} outputs; advice is for one. Write a plan for it.")
    if not isinstance(data, (tuple, list)) or len(data) != 2 or data[1] is None:
        raise ValueError("Advice needs data to score trials on; expected (train, validation).")
    parts = []
    for part in data:
        part = Examples.of(part)
        if not isinstance(part, Examples):
            raise ValueError(f"The data are a {type(part).__name__}; expected thaw.Examples or arrays (x, y).")
        class_numbers(part.y)
        if len(part) < FEWEST:
            raise ValueError(
                f"There are {len(part)} examples; expected at least {FEWEST} to train on and to score on, because "
                "fewer tell nothing from chance. Name a plan, such as probe_then_tune."
            )
        if not part.is_files and part.keys is None:  # made once, and not for every part of them again
            part = dataclasses.replace(part, keys=part.content_keys)
        parts.append(part)
    refuse(mistakes(model, *parts))
    fresh_optimizer(model.optimizer)  # what cannot be made anew is refused now
    return tuple(parts)
