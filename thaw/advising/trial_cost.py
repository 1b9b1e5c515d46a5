"""What a trial costs, counted beforehand, so that what is tried does not depend on how busy the machine is."""

from __future__ import annotations

import dataclasses
import functools
import math

# Floating-point operations in a second of two cores, and of a GPU: what a minute of work is taken to be.
SPEED_CPU, SPEED_GPU = 1e11, 5e12
# What stands still runs in the faster runtime, and nothing is kept for a way back.
STANDING = 0.5
# A step forward, and the way back, which is twice as long.
TRAINING = 3
# For tracing and compiling: of a trial, and of each layer that moves in it.
PER_TRIAL, PER_LAYER = 2e11, 5e9
# For what goes on around the computing: in each epoch, and in each batch.
PER_EPOCH, PER_BATCH = 5e9, 2.5e8
VIEWS = 2  # versions of an example that a trial sees, where they are augmented


@dataclasses.dataclass
class TrialCost:
    """Counts of operations for one model.

    Args:
        model: a built ``keras.Model`` with a graph, whose ``trainable`` flags may be changed.
        views: versions of each training example that are kept where something stands still.
        batch_size: examples in a batch.

    Example:
        >>> import keras
        >>> from thaw.advising.trial_cost import TrialCost
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> cost = TrialCost(net, views=1)
        >>> cost.moving("all"), cost.forward
        ((0.0, 116.0, 2), 116.0)
        >>> cost.of("all", 200, 10, epochs=2) - cost.of("all", 100, 10, epochs=2) >= 3 * 116 * 100 * 2
        True
    """

    model: object
    views: int
    batch_size: int = 32

    def __post_init__(self):
        self.moving = functools.cache(self._moving)

    @functools.cached_property
    def forward(self):
        """Operations to run the whole model once on one example."""
        from thaw.forward import work_of

        return float(work_of(self.model))

    def of(self, train, examples, validation, epochs, kept=False):
        """Operations of a trial.

        Args:
            train: what moves, as in :class:`thaw.Phase`.
            examples: how many are trained on.
            validation: how many are scored after each epoch, and once more at the end.
            epochs: passes.
            kept: what stands still has been computed before, and is on disk.
        """
        standing, moving, layers = self.moving(train)
        once = 0.0 if kept else STANDING * standing * (examples * self.views + validation)
        steps = moving * (TRAINING * examples * epochs + validation * (epochs + 1))
        around = PER_EPOCH + PER_BATCH * math.ceil((examples + validation) / self.batch_size)
        return PER_TRIAL + PER_LAYER * layers + epochs * around + once + steps

    def _moving(self, train):
        """Operations of what stands still and of what moves, for one example, and how many layers move."""
        from thaw.forward import work_of
        from thaw.stages import calls_of, weights_of
        from thaw.tuning.flatten import CannotSplit
        from thaw.tuning.freeze import freeze
        from thaw.tuning.split import split

        freeze(self.model, train)
        try:
            prefix, suffix = split(self.model)
        except CannotSplit:
            prefix, suffix = None, self.model
        layers = sum(1 for call in calls_of(suffix) if weights_of(call.layer))
        return 0.0 if prefix is None else float(work_of(prefix)), float(work_of(suffix)), layers


def budget_of(minutes):
    """Operations that so many minutes are taken to be, on this kind of machine."""
    import tensorflow as tf

    return 60 * minutes * (SPEED_GPU if tf.config.get_visible_devices("GPU") else SPEED_CPU)


def usual_minutes(cost, advisor, train, validation):
    """Minutes that the usual plan itself would take, from one to five.

    Args:
        cost: a :class:`TrialCost` for as many views as that plan has.
        advisor: an :class:`thaw.Advisor`.
        train: how many examples are trained on.
        validation: how many are scored on.

    Returns:
        Minutes.
    """
    from thaw.plan import Plan
    from thaw.stages import stages_of

    usual = Plan.named("probe_then_tune", epochs=advisor.epochs, head_epochs=advisor.head_epochs)
    below = len(stages_of(cost.model)) - 1
    moves = [min(p.train, below) if isinstance(p.train, int) else p.train for p in usual]
    work = sum(cost.of(what, train, validation, phase.epochs) for what, phase in zip(moves, usual))
    return min(5.0, max(1.0, work / budget_of(1.0)))
