"""The candidates of a search: depths and learning rates."""

from __future__ import annotations

import dataclasses

from thaw.advice.trials import HEAD_SOLVER, Candidate, depths_of, neighbors

LEARNING_RATES = (5e-4, 2.5e-3, 1.25e-2, 1e-4)  # of the backbone, for Adam and the like; the usual one first
HEAD_LEARNING_RATES = (1e-2, 1e-1, 1e-3)  # the second and third only where a ridge readout is better than the first
SCRATCH_LEARNING_RATE = 1e-2
MAX_SINGLE_STAGES = 4  # stages that are tried alone, where the head is kept
MAX_RATES_OF_KEPT_HEAD = 3


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Depths and learning rates to search.

    Args:
        stages: the :class:`thaw.Stage` s of the model.
        learning_rates: of the backbone, the usual one first.
        head_learning_rates: of the head alone, the usual one first.
        scratch_learning_rate: of the whole network from random weights.
        fixed_rate: whether the user gave the one learning rate of the backbone.
        solves_head: whether the head alone is solved, and not trained at several rates. Default ``False``.
    """

    stages: tuple
    learning_rates: tuple[float, ...]
    head_learning_rates: tuple[float, ...]
    scratch_learning_rate: float
    fixed_rate: bool
    solves_head: bool = False

    @classmethod
    def of(cls, model, learning_rate=None, solves_head=False):
        """Make the space for a model.

        Args:
            model: a compiled ``keras.Model`` with a head.
            learning_rate: the only one to try for the backbone. Default ``None``.
            solves_head: whether the head alone is solved. Default ``False``.
        """
        from thaw.models.stages import stages_of
        from thaw.training.optimizers import lr_scale

        scale, fixed_rate = lr_scale(model.optimizer), learning_rate is not None
        return cls(
            stages=tuple(stages_of(model)),
            learning_rates=(learning_rate,) if fixed_rate else tuple(rate * scale for rate in LEARNING_RATES),
            head_learning_rates=tuple(rate * scale for rate in HEAD_LEARNING_RATES),
            scratch_learning_rate=learning_rate if fixed_rate else SCRATCH_LEARNING_RATE * scale,
            fixed_rate=fixed_rate,
            solves_head=solves_head,
        )

    @property
    def depths(self):
        """How many stages below the head may be trained, from few to ``"all"``."""
        return depths_of(len(self.stages) - 1)

    @property
    def usual_depth(self):
        """The depth that is tried first."""
        return next(depth for depth in (2, 1, "all") if depth in self.depths)

    @property
    def parameters(self):
        """Number of weights of the model."""
        return sum(stage.parameters for stage in self.stages)

    def head_candidates(self):
        """Return the candidates for the head alone, the usual one first; a solved one is the only one."""
        if self.solves_head:
            return [Candidate("head", self.head_learning_rates[0], solver=HEAD_SOLVER)]
        return [Candidate("head", rate) for rate in self.head_learning_rates]

    def scratch_candidate(self):
        """Return the candidate that trains from random weights."""
        return Candidate("scratch", self.scratch_learning_rate, full_length=True)

    def backbone_candidates(self):
        """Return the candidates for a new head: the usual depth at all rates, and all depths at the usual rate."""
        at_usual_depth = [Candidate(self.usual_depth, rate) for rate in self.learning_rates]
        others = [Candidate(depth, self.learning_rates[0]) for depth in self.depths if depth != self.usual_depth]
        return [*at_usual_depth, *others]

    def kept_head_candidates(self, gradient_norms):
        """Return the candidates for a kept head: the head, single stages, and all depths.

        Args:
            gradient_norms: dict from stage to its relative gradient norm; the stages with the largest are tried alone.
        """
        names = sorted((stage.name for stage in self.stages[:-1]), key=lambda name: -gradient_norms[name])
        trained = [*((name,) for name in names[:MAX_SINGLE_STAGES]), *self.depths]
        # A head that has learned another mapping needs large steps to relearn, and these trials are cheap.
        rates = self.learning_rates if self.fixed_rate else self.head_learning_rates
        heads = [Candidate("head", rate, full_length=True) for rate in sorted(rates, reverse=True)]
        rates = self.learning_rates[:MAX_RATES_OF_KEPT_HEAD]
        return [*heads, *(Candidate(train, rate) for rate in rates for train in trained)]

    def neighbors(self, ranked):
        """Yield candidates one step from the best trial; see :func:`thaw.advice.trials.neighbors`."""
        return neighbors(ranked, self.depths, sorted(self.learning_rates))
