"""Find where the frozen prefix of each phase of a plan ends."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from thaw._keras import sublayers
from thaw.features.precompute import NoCutPoint
from thaw.features.split import find_cut_point
from thaw.models.flat import CannotSplit, flatten_model
from thaw.models.linear_heads import linear_head
from thaw.training.freezing import freeze, trainable_stages


@dataclasses.dataclass(frozen=True)
class CutPoints:
    """Cut points of the flat model: the tensors that cross, or a :class:`NoCutPoint` with the reason."""

    flat: Any
    by_phase: list
    by_stage: list  # from the head down, wherever there is a cut
    run_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    private: set = dataclasses.field(default_factory=set)  # folders of features that only this run can use


def find_cut_points(model, stages, plan):
    """Find the cut point of every phase of a plan, and those of every number of trained stages.

    Args:
        model: a built ``keras.Model``; its ``trainable`` flags are changed.
        stages: its stages, from :func:`thaw.stages_of`.
        plan: :class:`thaw.Plan`.

    Returns:
        :class:`CutPoints`.
    """
    try:
        flat = flatten_model(model)
    except CannotSplit as reason:
        return CutPoints(None, [NoCutPoint(str(reason))] * len(plan), [])

    try:
        features = linear_head(flat).inputs
    except ValueError:
        features = ()

    def cut(train, *options):
        freeze(model, train, *options)
        try:
            tensors = find_cut_point(flat)
        except CannotSplit as reason:
            return NoCutPoint(str(reason))
        # In the order of the head, in which choose_head and solve_head have cached them.
        return features if {id(t) for t in tensors} == {id(t) for t in features} else tensors

    by_phase = [cut(phase.train, phase.batchnorm, stages, phase.variables) for phase in plan]
    by_stage = [cut(n, "frozen", stages) for n in range(len(stages) - 1)]
    return CutPoints(flat, by_phase, [cut for cut in by_stage if not isinstance(cut, NoCutPoint)])


def refuse_updates(stages, plan, cuts, train):
    """Refuse to freeze a ``SpectralNormalization`` that a training step computes, where it scales its kernel.

    Args:
        stages: of the model.
        plan: :class:`thaw.Plan`.
        cuts: :class:`CutPoints`.
        train: the training data.

    Raises:
        ValueError: a phase freezes one that is not computed before the training.
    """
    import keras

    for phase, cut in zip(plan, cuts.by_phase):
        computed_once = (
            train.random_access
            and not isinstance(cut, NoCutPoint)
            and (phase.views or phase.solves or not train.augment)
        )
        trained = trainable_stages(stages, phase.train)
        frozen = [layer for stage in stages if stage not in trained for layer in stage.layers]
        inner = [part for layer in frozen for part in sublayers(layer)]
        norms = [part for part in inner if isinstance(part, keras.layers.SpectralNormalization)]
        if norms and not computed_once:
            raise ValueError(
                f'Phase "{phase.name}" freezes {norms[0].name}, a SpectralNormalization, which changes its weights in '
                "every training step that computes it, frozen or not; train its stage too, or give arrays (with "
                "Phase(views=...) where they are augmented), so that its stage is computed before the training."
            )
