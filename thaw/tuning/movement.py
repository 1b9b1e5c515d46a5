"""How far every stage moved."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moved:
    """One stage's distance from where it was.

    Args:
        stage: its name.
        weights: length of the change of the trained weights, relative to their length before or after, whichever
            is larger: 1 for weights that started at zero.
        statistics: the same for what training does not learn: BatchNorm's mean and variance.
    """

    stage: str
    weights: float
    statistics: float


def snapshot(stages):
    """Copies of all weights of the stages, for :func:`movement` to compare with."""
    return [[[w.numpy().copy() for w in layer.weights] for layer in stage.layers] for stage in stages]


def movement(stages, before):
    """Measure how far every stage moved since ``before``.

    Args:
        stages: from :func:`thaw.stages_of`.
        before: from :func:`snapshot` of the same stages.

    Returns:
        A tuple of :class:`Moved`, one for each stage.

    Example:
        >>> import keras
        >>> from thaw import movement, stages_of
        >>> from thaw.tuning.movement import snapshot
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dense(1)])
        >>> stages = stages_of(model)
        >>> before = snapshot(stages)
        >>> _ = model.layers[1].kernel.assign(model.layers[1].kernel * 3)
        >>> [(moved.stage, round(moved.weights, 3)) for moved in movement(stages, before)]
        [('stage1', 0.0), ('head', 0.667)]
    """
    result = []
    for stage, old_layers in zip(stages, before):
        sums = {"weights": np.zeros(3), "statistics": np.zeros(3)}
        for layer, old in zip(stage.layers, old_layers):
            learned = {id(w) for w in _learnable(layer)}
            for variable, start in zip(layer.weights, old):
                kind = sums["weights" if id(variable) in learned else "statistics"]
                now, start = variable.numpy().astype("float64"), start.astype("float64")
                kind += [((now - start) ** 2).sum(), (start**2).sum(), (now**2).sum()]
        result.append(Moved(stage.name, *(_relative(*sums[kind]) for kind in ("weights", "statistics"))))
    return tuple(result)


def alarms(moved, moving, batchnorm):
    """What should have moved and did not, or moved and should not have, as sentences.

    Args:
        moved: from :func:`movement`.
        moving: names of the stages that were to move.
        batchnorm: ``"frozen"`` or ``"trained"``, as in the phase.
    """
    found = []
    for stage in moved:
        if stage.stage in moving and stage.weights == 0:
            found.append(f"{stage.stage} should have moved and did not: no gradient reached it, or the rate is 0.")
        if stage.stage not in moving and stage.weights > 0:
            found.append(f"{stage.stage} was to stand still and moved by {stage.weights:.2g}.")
        if stage.statistics > 0 and (batchnorm == "frozen" or stage.stage not in moving):
            found.append(f"{stage.stage}: BatchNorm's statistics were held and moved by {stage.statistics:.2g}.")
        if not math.isfinite(stage.weights + stage.statistics):
            found.append(f"{stage.stage} holds numbers that are not finite.")
    return found


def _learnable(layer):
    """Weights that a gradient may move when the layer is trainable, whether or not it is now."""
    from thaw.stages import sublayers

    return [w for inner in sublayers(layer) for w in getattr(inner, "_trainable_variables", ())]


def _relative(change, before, after):
    """Ratio of two lengths, from their squares."""
    return math.sqrt(change / max(before, after)) if 0 < change < math.inf else float(change)
