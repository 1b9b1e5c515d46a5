"""advise: which stages to fine-tune, at what learning rate, and whether it is worth it."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from thaw._validation import as_int, as_number, as_seed, check_model
from thaw.advice.budget import MAX_PROBED_EXAMPLES, SearchBudget
from thaw.advice.cost import TrialCost, default_minutes, operations_in
from thaw.advice.result import Evidence
from thaw.advice.search import PlanSearch
from thaw.advice.space import SearchSpace
from thaw.advice.trials import (
    ONE_CLASS_EACH,
    Trials,
    avoided_errors,
    can_solve_head,
    paired_difference,
    randomize_weights,
)
from thaw.plan import Phase
from thaw.tasks import class_numbers, first_metric

EPOCHS = 10
MAX_SCORED_EXAMPLES = 1000  # validation examples that trials are scored on
TRIAL_VIEWS, PLAN_VIEWS = 2, 4  # augmented versions of an example in a trial, and in the plan
MIN_EXAMPLES_FOR_ADVICE = 20  # to train on and to score on; with fewer nothing differs beyond chance


def advise(
    model,
    x,
    y=None,
    *,
    validation_data,
    sample_weight=None,
    class_weight=None,
    head="new",
    minutes=None,
    epochs=EPOCHS,
    head_epochs=None,
    learning_rate=None,
    l2_sp=0.0,
    scratch=True,
    batch_size=32,
    seed=0,
    callbacks=(),
):
    """Search for the stages to fine-tune, the learning rate, and whether fine-tuning is worth it.

    Three things are measured. A probe of every stage with frozen features, also of the same network with random
    weights, which says how similar the task is to the one the model was trained on. A learning curve, with a quarter, a
    half and all of the data. And short trials: the head alone, solved in one pass where it can be
    (:func:`thaw.transfer.solve_head`), from there two stages and then, from the best, one step at a time to other rates
    and depths, by successive halving (Jamieson and Talwalkar 2016) and :func:`thaw.fine_tune`, so that frozen stages
    are computed once for all trials. With a given ``learning_rate``, all depths are tried at that rate. A trial from
    random weights is made where it is cheap, where pre-training does not show, or where there are many examples for the
    size of the network.

    The head is solved from all training examples, or as many as half of the budget pays for. The other trials may use a
    part of them, stratified by class, where the budget needs it, but no fewer than 500; with less, there are fewer and
    shorter trials. They are scored on at most 1,000 validation examples. The trial with the best score is chosen,
    unless a simpler one is about as good:

    - with a new head, frozen features within one standard error of the best;
    - where the pre-trained features are no better than random ones, random weights within one standard error;
    - with ``head="kept"``, the trial with the fewest trained weights within two standard errors.

    Where frozen features are chosen on a part of the examples, the plan trains the backbone after the head all the
    same, because with all examples it may help; the best epoch of all is restored.

    The score is the accuracy where the first metric of the model is one, else minus the log loss. The budget is
    counted in operations beforehand, so that the same call gives the same advice on a busy machine. Call
    :func:`thaw.seed_everything` before for bit-identical trials. The features of frozen stages are cached on disk,
    where the fine-tuning that follows finds them.

    Args:
        model: a built and compiled functional or sequential ``keras.Model`` with a head. It is bit-identical
            afterwards, also after an error.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`; see :func:`thaw.as_dataset`.
        y: ``(n,)`` labels, one class for each example; ``None`` where ``x`` brings them. Default ``None``.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)`` or a :class:`thaw.Dataset` to score the trials on.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        class_weight: dict from class number to weight in the loss. Default ``None``.
        head: ``"new"``: the head is untrained, and is trained first. ``"kept"``: the model is trained for this task
            already, and the data have shifted; single stages are then tried alone too (Lee et al. 2022). Default
            ``"new"``.
        minutes: budget of the search on two cores. Default ``None``: what ``probe_then_tune`` itself would take, from 1
            to 5. On a slow or busy machine the search takes longer: after three times as many minutes and one, no
            further trial of the backbone begins.
        epochs: epochs of the phase that trains the backbone. Default 10.
        head_epochs: epochs of the head alone where it cannot be solved. Default ``None``: 300 steps.
        learning_rate: the only peak learning rate to try for the backbone. Default ``None``: several.
        l2_sp: strength of L2-SP, as in :class:`thaw.Phase`. Default 0.
        scratch: whether to try random weights where that is cheap enough. Default ``True``.
        batch_size: examples in a batch. Default 32.
        seed: seed of the order of the examples, of the sampling and of the bootstrap. Default 0.
        callbacks: :class:`thaw.TuneCallback` s, for ``on_trial`` and ``on_trial_end``. Default ``()``.

    Returns:
        :class:`thaw.advice.result.Advice`: a plan, and the evidence for it.

    Raises:
        ValueError: fewer than 20 examples to train or to score on, labels that are not one class for each, a model
            without a head, or a mistake that :func:`thaw.fine_tune` finds before its first step.
        FloatingPointError: the head alone diverged at every learning rate.

    Example:
        >>> from thaw import advise, fine_tune
        >>> from thaw.training import reinitialize_weights
        >>> advice = advise(model, x, y, validation_data=(xv, yv), minutes=3)               # doctest: +SKIP
        >>> print(advice)                                                                   # doctest: +SKIP
        >>> if advice.scratch:                                                              # doctest: +SKIP
        ...     model = reinitialize_weights(model)
        >>> history = fine_tune(model, advice.plan, x, y, validation_data=(xv, yv))         # doctest: +SKIP
    """
    from thaw.data.conversion import as_dataset, as_validation
    from thaw.models.state import preserve_model
    from thaw.training.callbacks import callback_list

    check_model(model)
    settings = AdviceSettings(
        head=head,
        minutes=minutes,
        epochs=epochs,
        head_epochs=head_epochs,
        learning_rate=learning_rate,
        l2_sp=l2_sp,
        scratch=scratch,
        batch_size=batch_size,
        seed=seed,
        callbacks=tuple(callback_list(callbacks)),
    )
    _check_model(model)
    train = as_dataset(x, y, sample_weight, name="training data", labelled=True)
    validation = as_validation(validation_data)
    if validation is None:
        raise ValueError("Advice needs data to score trials on; give validation_data=(x, y).")
    train, validation = (_with_keys(_checked(part)) for part in (train, validation))
    train = train.weighted(class_weight)
    _raise_on_mistakes(model, train, validation)
    with preserve_model(model):
        return _prepare_search(settings, model, train, validation).advice()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdviceSettings:
    """The settings of :func:`advise`, checked.

    Args:
        head, minutes, epochs, head_epochs, learning_rate, l2_sp, scratch, batch_size, seed, callbacks: as in
            :func:`advise`.

    Raises:
        ValueError: an invalid value.
    """

    head: str
    minutes: float | None
    epochs: int
    head_epochs: int | None
    learning_rate: float | None
    l2_sp: float
    scratch: bool
    batch_size: int
    seed: int
    callbacks: tuple

    def __post_init__(self):
        if self.head not in ("new", "kept"):
            raise ValueError(f'head={self.head!r}; expected "new" or "kept".')
        for name in ("minutes", "epochs", "batch_size", "seed", "learning_rate", "head_epochs", "l2_sp"):
            object.__setattr__(self, name, as_number(getattr(self, name)))
        as_int("batch_size", self.batch_size, 1)
        as_seed(self.seed)
        if self.minutes is not None and not (isinstance(self.minutes, (int, float)) and 0 < self.minutes < math.inf):
            raise ValueError(f"minutes={self.minutes!r}; expected a number above 0.")
        # Phase checks its own values.
        rate = 1e-3 if self.learning_rate is None else self.learning_rate
        Phase(name="tune", epochs=self.epochs, learning_rate=rate, l2_sp=self.l2_sp)
        Phase(name="head", epochs=1 if self.head_epochs is None else self.head_epochs)


def _check_model(model):
    from thaw.models.stages import HEAD, calls_of, stages_of

    if not model.built or not model.compiled:
        raise ValueError(f"{model.name} is not compiled; call model.compile(optimizer, loss, metrics) first.")
    if calls_of(model) is None:
        raise ValueError(f"{model.name} is a subclassed model, whose graph cannot be read; write a plan for it.")
    stages = stages_of(model)
    if len(stages) < 2 or stages[-1].name != HEAD:
        raise ValueError(f"{model.name} has no head on top of other stages; add one: attach_head(model, classes).")
    if len(model.outputs) > 1:
        raise ValueError(f"{model.name} has {len(model.outputs)} outputs; advice is for one. Write a plan for it.")


def _checked(dataset):
    if not dataset.random_access:
        raise ValueError(
            "Advice needs data with random access, because trials use parts of them; expected arrays or a "
            "thaw.Dataset, not a stream such as a tf.data.Dataset."
        )
    class_numbers(dataset.y, expected=ONE_CLASS_EACH)
    if len(dataset) < MIN_EXAMPLES_FOR_ADVICE:
        raise ValueError(
            f"There are {len(dataset)} examples; expected at least {MIN_EXAMPLES_FOR_ADVICE} to train on and to score "
            "on, because with fewer nothing differs beyond chance. Name a plan, such as probe_then_tune."
        )
    return dataset


def _with_keys(dataset):
    """Compute the keys of the examples once, and not again for every part of them."""
    return dataset if dataset.is_files or dataset.keys is not None else dataset.replace(keys=dataset.content_keys)


def _raise_on_mistakes(model, train, validation):
    from thaw.checks import check_data, raise_on_errors
    from thaw.training.optimizers import clone_optimizer

    raise_on_errors(check_data(model, train, validation))
    clone_optimizer(model.optimizer)  # one that cannot be cloned is refused now


def _prepare_search(settings, model, train, validation):
    """Measure what does not need trials, and return the search. The caller restores the model."""
    from thaw.training.freezing import trainable_stages

    began = time.monotonic()
    solves_head = settings.head == "new" and can_solve_head(model, train.y)
    space = SearchSpace.of(model, settings.learning_rate, solves_head)
    metric, accuracy = first_metric(model)
    views = TRIAL_VIEWS if train.augment is not None and not train.views else train.views or 1
    minutes = _minutes(settings, model, len(train), len(validation), views)
    validation = validation.take(stratified_sample(validation.y, MAX_SCORED_EXAMPLES, settings.seed))
    budget = SearchBudget(
        total=operations_in(minutes),
        cost=TrialCost(model, views, settings.batch_size),
        epochs=settings.epochs,
        head_epochs=settings.head_epochs,
        heads=space.head_candidates() if settings.head == "new" else [],
        depths=space.depths,
        n_validation=len(validation),
    )
    budget.choose_n_train(len(train))
    trials = Trials(
        model,
        train.take(stratified_sample(train.y, budget.n_train, settings.seed)),
        validation,
        head_examples=train.take(stratified_sample(train.y, budget.n_head, settings.seed)),
        batch_size=settings.batch_size,
        seed=settings.seed,
        accuracy=accuracy,
        views=views,
        l2_sp=settings.l2_sp,
    )
    evidence = Evidence(
        head=settings.head,
        accuracy=accuracy,
        metric=metric,
        n_train=len(train),
        n_train_used=budget.n_train,
        n_head_used=budget.n_head if space.solves_head else budget.n_train,
        n_validation=len(validation),
        stages_of=lambda trained: [stage.name for stage in trainable_stages(space.stages, trained)],
    )
    measure(evidence, trials)
    budget.spend_on_features()
    return PlanSearch(settings, space, budget, trials, evidence, minutes=minutes, began=began)


def _minutes(settings, model, n_train, n_validation, views):
    if settings.minutes is not None:
        return settings.minutes
    cost = TrialCost(model, PLAN_VIEWS if views > 1 else 1, settings.batch_size)
    return default_minutes(cost, settings.epochs, settings.head_epochs, n_train, n_validation)


def measure(evidence, trials):
    """Probe the frozen features, those of a random network, and with fewer examples; with a kept head the gradients.

    Args:
        evidence: :class:`thaw.advice.result.Evidence`, to which the results are added.
        trials: :class:`thaw.advice.trials.Trials`, for its model and data; the weights are restored.
    """
    import keras

    from thaw.features.stage_features import relative_gradient_norm, stage_features
    from thaw.transfer.learning_curves import learning_curve
    from thaw.transfer.probing import probe_features

    model, seed, options = trials.model, trials.seed, {"batch_size": trials.batch_size}
    train, validation = (part.replace(augment=None) for part in (trials.train, trials.validation))
    features, y = stage_features(model, train, **options)
    test_features, test_y = stage_features(model, validation, **options)
    y, test_y = (class_numbers(labels, expected=ONE_CLASS_EACH) for labels in (y, test_y))
    last = list(features)[-1]
    evidence.learning_curve = learning_curve(features[last], y, test_features[last], test_y, seed=seed)
    sample = stratified_sample(y, MAX_PROBED_EXAMPLES, seed)
    sampled = {stage: rows[sample] for stage, rows in features.items()}
    evidence.probe = probe_features(sampled, y[sample], seed=seed)
    if evidence.head == "kept":
        # Counting the costs has marked the model as not compiled.
        keras.Model.compile(model, loss=trials.settings["loss"])
        evidence.gradient_norms = relative_gradient_norm(model, train, **options, seed=seed)
        return
    try:
        randomize_weights(model, train, seed)
        random_features, _ = stage_features(model, train.take(sample), **options)
        evidence.random_probe = probe_features(random_features, y[sample], seed=seed)
    except ValueError as error:  # the model cannot be rebuilt, or its outputs are not finite
        evidence.notes.append(f"It was not compared with random weights: {error}")
        return
    finally:
        trials.assign(trials.start)
    errors, random_errors = evidence.probe.best.errors, evidence.random_probe.best.errors
    evidence.gain_over_random = paired_difference(random_errors, errors, seed)
    evidence.similarity = avoided_errors(errors, random_errors, seed)


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
