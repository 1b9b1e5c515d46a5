"""Count the operations that trials cost."""

from __future__ import annotations

import dataclasses
import functools
import math

# Floating-point operations per second of two CPU cores, and of a GPU: they make a budget in minutes a count.
OPERATIONS_PER_SECOND_CPU, OPERATIONS_PER_SECOND_GPU = 1e11, 5e12
# Relative to a forward pass in training: the frozen prefix runs in a faster runtime, and a training step has a backward
# pass that costs twice as much.
FROZEN_FACTOR, TRAINING_FACTOR = 0.5, 3
# Overheads, in operations: of tracing and compiling for a trial and for each layer that it trains, of an epoch, and of
# a batch.
OPERATIONS_PER_TRIAL, OPERATIONS_PER_LAYER = 2e11, 5e9
OPERATIONS_PER_EPOCH, OPERATIONS_PER_BATCH = 5e9, 2.5e8
OPERATIONS_PER_SOLVED_NUMBER = 2e5  # of the features of a solved head, with cross-validation: 4 us of one core
MIN_DEFAULT_MINUTES, MAX_DEFAULT_MINUTES = 1.0, 5.0


@dataclasses.dataclass
class TrialCost:
    """Count the operations of trials of one model.

    Args:
        model: a built ``keras.Model`` with a graph. Its ``trainable`` flags are changed, and it is marked as not
            compiled.
        views: number of versions of each training example that are cached where stages are frozen.
        batch_size: examples in a batch. Default 32.
        per_trial, per_layer, per_epoch, per_batch: overheads in operations.

    Example:
        >>> import keras
        >>> from thaw.advice.cost import TrialCost
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> cost = TrialCost(net, views=1)
        >>> cost.parts("all"), cost.forward
        ((0.0, 116.0, 2), 116.0)
        >>> cost.of("all", 200, 10, epochs=2) - cost.of("all", 100, 10, epochs=2) >= 3 * 116 * 100 * 2
        True
    """

    model: object
    views: int
    batch_size: int = 32
    per_trial: float = OPERATIONS_PER_TRIAL
    per_layer: float = OPERATIONS_PER_LAYER
    per_epoch: float = OPERATIONS_PER_EPOCH
    per_batch: float = OPERATIONS_PER_BATCH

    def __post_init__(self):
        self.parts = functools.cache(self._parts)

    @functools.cached_property
    def forward(self):
        """Operations of a forward pass of the whole model for one example."""
        from thaw.features.inference import model_operations

        return float(model_operations(self.model))

    def of(self, train, n_train, n_validation, epochs, cached=False, views=None):
        """Return the operations of a trial.

        Args:
            train: what is trained, as in :class:`thaw.Phase`.
            n_train: number of training examples.
            n_validation: number of examples that are scored after each epoch, and once more at the end.
            epochs: number of epochs.
            cached: whether the features of the frozen prefix are cached already. Default ``False``.
            views: number of versions of each training example. Default ``None``: as many as for other trials.
        """
        frozen, trained, layers = self.parts(train)
        once = 0.0 if cached else FROZEN_FACTOR * frozen * (n_train * (views or self.views) + n_validation)
        steps = trained * (TRAINING_FACTOR * n_train * epochs + n_validation * (epochs + 1))
        batches = math.ceil((n_train + n_validation) / self.batch_size)
        of_epochs = epochs * (self.per_epoch + self.per_batch * batches)
        return self.per_trial + self.per_layer * layers + of_epochs + once + steps

    def of_solved_head(self, n_train, n_validation):
        """Return the operations of a solved head: one pass over the examples as they are, and the solver.

        Args:
            n_train: number of training examples.
            n_validation: number of examples that it is scored on.
        """
        return self.of("head", n_train, n_validation, 1, views=1) + self._solver(n_train)

    def _solver(self, n):
        from thaw.models.stages import stages_of
        from thaw.transfer.linear_solvers import MAX_EXACT_ROWS

        width = stages_of(self.model)[-1].parameters / self.model.outputs[0].shape[-1]  # about that of the features
        numbers = n * min(n, width, MAX_EXACT_ROWS)  # of wide features their inner products or projections are solved
        return OPERATIONS_PER_SOLVED_NUMBER * numbers * operations_in(1.0) / (60 * OPERATIONS_PER_SECOND_CPU)

    def _parts(self, train):
        """Return the operations of the frozen prefix and the trained suffix for one example, and its trained layers."""
        from thaw.features.inference import model_operations
        from thaw.features.split import CannotSplit, split_model
        from thaw.models.stages import calls_of, weights_of
        from thaw.training.freezing import freeze

        freeze(self.model, train)
        try:
            prefix, suffix = split_model(self.model)
        except CannotSplit:
            prefix, suffix = None, self.model
        layers = sum(1 for call in calls_of(suffix) if weights_of(call.layer))
        return 0.0 if prefix is None else float(model_operations(prefix)), float(model_operations(suffix)), layers


def operations_in(minutes):
    """Return the operations that stand for so many minutes on this kind of machine."""
    import tensorflow as tf

    is_gpu = bool(tf.config.get_visible_devices("GPU"))
    return 60 * minutes * (OPERATIONS_PER_SECOND_GPU if is_gpu else OPERATIONS_PER_SECOND_CPU)


def default_minutes(cost, epochs, head_epochs, n_train, n_validation):
    """Return the minutes that the plan ``probe_then_tune`` itself would take, from one to five.

    Args:
        cost: :class:`TrialCost` for as many views as that plan has.
        epochs: epochs of the phase that trains the backbone.
        head_epochs: epochs of the head alone; ``None`` for those of the plan.
        n_train: number of training examples.
        n_validation: number of validation examples.
    """
    from thaw.models.stages import stages_of
    from thaw.plan import Plan

    plan = Plan.named("probe_then_tune", epochs=epochs, head_epochs=head_epochs)
    n_stages = len(stages_of(cost.model)) - 1
    trained = [min(phase.train, n_stages) if isinstance(phase.train, int) else phase.train for phase in plan]
    work = sum(
        cost.of_solved_head(n_train, n_validation)
        if phase.solves
        else cost.of(train, n_train, n_validation, phase.epochs)
        for train, phase in zip(trained, plan)
    )
    return min(MAX_DEFAULT_MINUTES, max(MIN_DEFAULT_MINUTES, work / operations_in(1.0)))
