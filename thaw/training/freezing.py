"""Freeze stages, and verify which weights changed."""

import dataclasses
import math

import numpy as np

from thaw._keras import learnable_variables, set_layer_trainable, sublayers
from thaw.models.lora import adapter_variables
from thaw.models.stages import HEAD, calls_of, stages_of
from thaw.models.wide_heads import wide_heads
from thaw.plan import VARIABLES


def freeze(model, train="head", batchnorm="frozen", stages=None, variables="all"):
    """Freeze all stages of a model but the named ones, BatchNorm statistics included.

    BatchNorm is frozen layer by layer by ``layer.trainable``: in a functional model ``fit`` overrides
    ``training=False``, and the statistics change although nothing is learned. Layers that were frozen before become
    trainable where ``train`` names their stage. Single variables do not: the base weights of a layer with LoRA stay
    frozen, and so does what was frozen with ``variable.trainable = False`` inside a trainable layer.

    The model is marked as not compiled, because ``fit`` would silently go by the flags at the last ``compile``.

    Args:
        model: a built ``keras.Model``; its ``trainable`` flags are changed in place.
        train: ``"head"``; ``"all"``; an int ``n`` for the head and the ``n`` stages below it; or a tuple of stage
            names. Default ``"head"``.
        batchnorm: ``"frozen"`` freezes every BatchNorm layer; ``"trained"`` trains those of trainable stages, but for
            the constants by which a wide head standardizes its features. Default ``"frozen"``.
        stages: the result of :func:`thaw.stages_of` for this model, where it is known; ``None`` to compute it.
        variables: which weights of the trainable stages below the head to train: ``"all"``, ``"pointwise"``,
            ``"norms"``, ``"bias"`` or ``"adapters"``; see :class:`thaw.Phase`. Default ``"all"``.

    Returns:
        The stages with trainable weights, as a tuple of :class:`thaw.Stage`.

    Raises:
        ValueError: the model has no such stage, ``batchnorm`` or ``variables`` is invalid, no stage below the head has
            such variables, or its adapters cannot learn.

    Example:
        >>> from thaw import attach_head, backbone, freeze
        >>> model = attach_head(backbone(weights=None), 3)
        >>> [stage.name for stage in freeze(model, 1)]
        ['stage5', 'head']
        >>> model.compiled
        False
    """
    stages = stages_of(model) if stages is None else stages
    trainable = trainable_stages(stages, train)
    if batchnorm not in ("frozen", "trained"):
        raise ValueError(f'batchnorm={batchnorm!r}; expected "frozen" or "trained".')
    frozen = {
        id(inner)
        for stage in stages
        for layer in stage.layers
        for inner in (sublayers(layer) if stage not in trainable else ())
    }
    if variables not in VARIABLES:
        raise ValueError(f"variables={variables!r}; expected one of {', '.join(VARIABLES)}.")
    if variables == "adapters":
        _check_adapters(trainable, batchnorm)
    norms = batchnorm_layers(model) if batchnorm == "frozen" else head_norms(model)
    frozen |= {id(layer) for layer in norms}
    left_out = _left_out([stage for stage in trainable if stage.name != HEAD], variables)
    # The containers around the stages are set too: a layer inside one that is frozen would not train.
    for layer in sublayers(model):
        set_layer_trainable(layer, id(layer) not in frozen, left_out)
    model.compiled = False
    if variables == "all":
        return trainable
    return _with_trainable_weights(trainable, variables)


def trainable_stages(stages, train):
    """Return the stages that ``train`` names.

    Args:
        stages: a tuple of :class:`thaw.Stage`, input to output.
        train: as for :func:`freeze`.

    Returns:
        A tuple of :class:`thaw.Stage`, input to output.

    Raises:
        ValueError: there is no such stage, or ``train`` is invalid.
    """
    if train == "all":
        return tuple(stages)
    if train == "head":
        train = (HEAD,)
    elif isinstance(train, str):
        train = (train,)
    if isinstance(train, bool) or not (
        (isinstance(train, int) and train >= 0) or (isinstance(train, (tuple, list)) and train)
    ):
        raise ValueError(f'train={train!r}; expected "head", "all", a number from 0, or stage names.')
    if isinstance(train, int):
        if train > len(stages) - 1:
            raise ValueError(
                f"train={train} asks for {train} stages below the head, and the model has {len(stages) - 1}; "
                f'write "all", or a number up to {len(stages) - 1}.'
            )
        return tuple(stages[len(stages) - 1 - train :])
    names = [stage.name for stage in stages]
    for name in train:
        if name not in names:
            raise ValueError(f'The model has no stage "{name}"; it has {", ".join(names)}.')
    return tuple(stage for stage in stages if stage.name in train)


def _left_out(stages, variables):
    """Return the ids of the learnable variables of some stages that are not among those to train."""
    if variables == "all":
        return frozenset()
    return frozenset(
        id(variable)
        for stage in stages
        for layer in stage.layers
        for inner in sublayers(layer)
        for variable in learnable_variables(inner)
        if not _is_chosen(inner, variable, variables)
    )


def _is_chosen(layer, variable, variables):
    from keras import layers

    if variables == "adapters":
        return any(variable is adapter for adapter in adapter_variables(layer))
    if variables == "bias":
        return variable.name in ("bias", "beta")
    if variables == "norms":
        kinds = (layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization)
        return isinstance(layer, (*kinds, layers.RMSNormalization))
    window = tuple(getattr(layer, "kernel_size", ()))
    is_filter = len(variable.shape) == len(window) + 2 and tuple(variable.shape[: len(window)]) == window
    return not (is_filter and any(size > 1 for size in window))


def _check_adapters(stages, batchnorm):
    """Refuse to train adapters together with BatchNorm statistics, and adapters whose gradients are all zero."""
    if batchnorm != "frozen":
        raise ValueError(f'batchnorm={batchnorm!r}; expected "frozen" with variables="adapters", which trains no more.')
    for layer in [inner for stage in stages for outer in stage.layers for inner in sublayers(outer)]:
        matrices = adapter_variables(layer)
        if matrices and not any(np.any(matrix.numpy()) for matrix in matrices):
            raise ValueError(
                f"The adapters of {layer.name} are all zeros and cannot learn, as those that Keras makes where it "
                "opens a file of a model with LoRA; add new ones: merge_lora(model), then add_lora(model)."
            )


def _with_trainable_weights(stages, variables):
    """Return the head, and the stages below it that have trainable weights; raise where there are none."""
    trained = [s for s in stages if s.name == HEAD or any(layer.trainable_variables for layer in s.layers)]
    below = [stage.name for stage in stages if stage.name != HEAD]
    if below and not any(stage.name in below for stage in trained):
        expected = '"all", or stages that have such weights.'
        if variables == "norms":
            expected += ' BatchNorm counts with batchnorm = "trained".'
        if variables == "adapters":
            expected = "a model with adapters there, which add_lora(model) adds."
        raise ValueError(
            f'variables = "{variables}" leaves nothing to train in {", ".join(below)}; expected {expected}'
        )
    return tuple(trained)


def batchnorm_layers(layer):
    """Return all BatchNorm layers of a layer or model, also those inside other layers, as a tuple."""
    import keras

    return tuple(inner for inner in sublayers(layer) if isinstance(inner, keras.layers.BatchNormalization))


def head_norms(model):
    """Return the BatchNorm layers by which a wide head, or those in a blend, standardize their features, as a tuple.

    Their statistics are constants that the weights behind them were found with: see :func:`thaw.attach_head`.
    """
    calls = calls_of(model)
    return tuple(norm for head in wide_heads(calls or []) for norm in head.norms)


@dataclasses.dataclass(frozen=True)
class WeightChange:
    """Distance of one stage's weights from a snapshot.

    Args:
        stage: name of the stage.
        weights: L2 norm of the change of the learned weights, relative to the larger of their norms before and after:
            0 for no change, 1 for weights that were zero before.
        statistics: the same for the BatchNorm statistics, means and variances.

    Example:
        >>> import keras
        >>> from thaw import stages_of
        >>> from thaw.training.freezing import snapshot_weights, weight_change
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(2, use_bias=False)])
        >>> stages = stages_of(model)
        >>> before = snapshot_weights(stages)
        >>> _ = stages[-1].layers[0].kernel.assign(2 * stages[-1].layers[0].kernel)
        >>> *_, head = weight_change(stages, before)
        >>> head.stage, round(head.weights, 3), head.statistics
        ('head', 0.5, 0.0)
    """

    stage: str
    weights: float
    statistics: float


def snapshot_weights(stages):
    """Copy all weights of the stages, for :func:`weight_change` to compare with.

    Args:
        stages: a tuple of :class:`thaw.Stage`.

    Returns:
        A list for each stage of lists for each layer of arrays.

    Example:
        >>> import keras
        >>> from thaw import stages_of
        >>> from thaw.training import snapshot_weights
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(3)])
        >>> [[array.shape for layer in stage for array in layer] for stage in snapshot_weights(stages_of(model))]
        [[(1, 2), (2,)], [(2, 3), (3,)]]
    """
    return [[[w.numpy().copy() for w in layer.weights] for layer in stage.layers] for stage in stages]


def weight_change(stages, before):
    """Measure how far the weights of every stage are from a snapshot.

    Weights that are neither learned nor BatchNorm statistics, such as the vectors of ``SpectralNormalization``, change
    by design and are not counted.

    Args:
        stages: from :func:`thaw.stages_of`.
        before: from :func:`snapshot_weights` of the same stages.

    Returns:
        A tuple of :class:`WeightChange`, one for each stage.

    Example:
        >>> import keras
        >>> from thaw import weight_change, stages_of
        >>> from thaw.training.freezing import snapshot_weights
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dense(1)])
        >>> stages = stages_of(model)
        >>> before = snapshot_weights(stages)
        >>> _ = model.layers[1].kernel.assign(model.layers[1].kernel * 3)
        >>> [(change.stage, round(change.weights, 3)) for change in weight_change(stages, before)]
        [('stage1', 0.0), ('head', 0.667)]
    """
    result = []
    for stage, values in zip(stages, before):
        # Sums of squares: of the change, before and after.
        sums = {"weights": np.zeros(3), "statistics": np.zeros(3)}
        for layer, layer_values in zip(stage.layers, values):
            kinds = _kinds(layer)
            for variable, start in zip(layer.weights, layer_values):
                if id(variable) in kinds:
                    now, start = variable.numpy().astype("float64"), start.astype("float64")
                    sums[kinds[id(variable)]] += [((now - start) ** 2).sum(), (start**2).sum(), (now**2).sum()]
        result.append(WeightChange(stage.name, *(_ratio(*sums[kind]) for kind in ("weights", "statistics"))))
    return tuple(result)


def unexpected_changes(changes, trainable, batchnorm):
    """Report stages that changed although they were frozen, or did not although they were trainable.

    Args:
        changes: from :func:`weight_change`.
        trainable: names of the stages that were trainable.
        batchnorm: ``"frozen"`` or ``"trained"``, as in the phase.

    Returns:
        A list of sentences, empty where everything is as expected.

    Example:
        >>> from thaw.training.freezing import WeightChange, unexpected_changes
        >>> unexpected_changes([WeightChange("stage1", 0.25, 0.0)], ["head"], "frozen")
        ['stage1 was frozen and changed by 0.25.']
    """
    findings = []
    for change in changes:
        name = change.stage
        if name in trainable and change.weights == 0:
            findings.append(f"{name} was trainable and did not change: no gradient reached it, or its rate is 0.")
        if name not in trainable and change.weights > 0:
            findings.append(f"{name} was frozen and changed by {change.weights:.2g}.")
        if change.statistics > 0 and (batchnorm == "frozen" or name not in trainable):
            findings.append(f"{name}: BatchNorm statistics were frozen and changed by {change.statistics:.2g}.")
        if not math.isfinite(change.weights + change.statistics):
            findings.append(f"{name} holds numbers that are not finite.")
    return findings


def _kinds(layer):
    """Map the id of each variable to ``"weights"`` (learned, whether or not it is frozen now) or ``"statistics"``."""
    kinds = {id(w): "weights" for inner in sublayers(layer) for w in learnable_variables(inner)}
    for inner in batchnorm_layers(layer):
        kinds |= {id(inner.moving_mean): "statistics", id(inner.moving_variance): "statistics"}
    return kinds


def _ratio(change, before, after):
    """Divide two norms, given as sums of squares; a change that is not finite stays what it is."""
    return math.sqrt(change / max(before, after)) if 0 < change < math.inf else float(change)
