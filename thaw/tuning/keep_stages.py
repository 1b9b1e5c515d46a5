"""Weights before the tuning, but for some stages as they are after it."""

from thaw.stages import HEAD, stages_of


def keep_stages(model, before, after, stages=(HEAD,)):
    """Take the weights of some stages from ``after``, and all others from ``before``.

    A new head is random before the tuning. On the way back to what the backbone was, it is better kept as it was
    learned, and the interpolation left to the stages below.

    Args:
        model: a built ``keras.Model``.
        before: arrays in the order of ``model.weights``.
        after: the same, after the tuning.
        stages: names of the stages to take from ``after``.

    Returns:
        A list of arrays in the order of ``model.weights``.

    Raises:
        ValueError: lists of another length, or a stage that the model does not have.

    Example:
        >>> import keras
        >>> from thaw.tuning.keep_stages import keep_stages
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dense(1)])
        >>> keep_stages(model, ["a", "b", "c", "d"], ["A", "B", "C", "D"])
        ['a', 'b', 'C', 'D']
    """
    if not len(before) == len(after) == len(model.weights):
        raise ValueError(
            f"There are {len(before)} arrays before, {len(after)} after, and {model.name} has {len(model.weights)} "
            "weights; expected one array for each, as model.get_weights() gives them."
        )
    found = stages_of(model)
    names = [stage.name for stage in found]
    for name in stages:
        if name not in names:
            raise ValueError(f'The model has no stage "{name}"; it has {", ".join(names)}.')
    kept = {id(w) for stage in found if stage.name in stages for layer in stage.layers for w in layer.weights}
    return [new if id(w) in kept else old for w, old, new in zip(model.weights, before, after)]
