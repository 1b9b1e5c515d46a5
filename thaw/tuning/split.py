"""Cut a model into what stands still in front and what moves."""

from thaw.stages import calls_of, crossing_bytes, nodes_of


def split(model):
    """Cut the graph where the fewest bytes cross, in front of the first layer that moves.

    Both parts share their variables with the model: training the suffix trains the model.

    Args:
        model: a flat functional ``keras.Model`` whose ``trainable`` flags say what moves.

    Returns:
        ``(prefix, suffix)``, two ``keras.Model``; or ``None`` when nothing stands still in front, or when
        the model is nested, sequential or subclassed, so that it has to be trained whole.

    Example:
        >>> from thaw import attach_head, backbone, freeze, split
        >>> model = attach_head(backbone(weights=None), 3)
        >>> moving = freeze(model, "head")
        >>> prefix, suffix = split(model)
        >>> prefix.output_shape, suffix.output_shape
        ((None, 1280), (None, 3))
    """
    import keras

    if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        return None
    if any(isinstance(layer, keras.Model) for layer in model.layers):
        return None
    calls = calls_of(model)
    if calls is None or len(model.inputs) != 1:
        return None
    first = _first_moving(calls)
    sizes = crossing_bytes(model, calls)
    tensors = {id(t): t for node in nodes_of(model) for t in node.output_tensors}
    crossing = _narrow_place(calls, tensors, first, sizes, model.inputs)
    if crossing is None:
        return None
    operations = list(model.operations)
    nodes = [(op, len(op._inbound_nodes), len(op._outbound_nodes)) for op in operations]
    try:
        return keras.Model(model.input, crossing), keras.Model(crossing, model.output)
    finally:
        # Keras notes every graph a layer takes part in on the layer; a note too many and `layer.output` fails.
        for op, inbound, outbound in nodes:
            del op._inbound_nodes[inbound:]
            del op._outbound_nodes[outbound:]


def _narrow_place(calls, tensors, first, sizes, inputs):
    """The one tensor that crosses where the graph is cut, or ``None`` where there is no such place.

    From the first layer that moves back to a place that one tensor crosses, and on while no more bytes cross:
    every layer further back would be computed again in every epoch.
    """
    best = None
    for place in range(first, 0, -1):
        crossing = _crossing(calls, tensors, place)
        if best is not None and sizes[place] > sizes[best[0]]:
            break
        single = len(crossing) == 1 and not any(crossing[0] is tensor for tensor in inputs)
        if single and (best is None or sizes[place] < sizes[best[0]]):
            best = place, crossing[0]
    return best and best[1]


def _crossing(calls, tensors, position):
    """The tensors that flow from the calls before a position to the rest."""
    late = {key for call in calls[position:] for key in call.inputs}
    early = {key for call in calls[:position] for key in (*call.inputs, *call.outputs)}
    return [tensors[key] for key in early & late]


def _first_moving(calls):
    """Position of the first call that training changes: weights that move, or dropout above such weights."""
    moving = [i for i, c in enumerate(calls) if getattr(c.layer, "trainable_variables", ())]
    if not moving:
        return 0
    # Dropout between the last weights that stand still and the first that move belongs to these: it must go on.
    first = place = moving[0]
    while place > 0 and not getattr(calls[place - 1].layer, "weights", ()):
        place -= 1
        if is_random(calls[place].layer):
            first = place
    return first


def is_random(layer):
    """Does the layer do something else in every training step: dropout, noise, augmentation?"""
    return getattr(layer, "seed_generator", None) is not None or "random" in type(layer).__name__.lower()
