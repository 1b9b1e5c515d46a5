"""Cut a model into what stands still in front and what moves."""

import math

from thaw.stages import calls_of, nodes_of, operations_of, sublayers, weights_of
from thaw.tuning.flatten import CannotSplit, flatten
from thaw.tuning.part import needed, part

# What is kept is read again in every epoch, what is not is computed again. Reading a byte at 200 MB/s takes as long
# as 100 floating-point operations at 20 GFLOP/s.
OPERATIONS_PER_BYTE = 100
# Below a page, keeping costs nothing that could be measured.
PAGE = 4096


def split(model):
    """Cut the graph in front of the first layer that moves, where keeping what crosses costs least.

    Both parts share their variables with the model: training the suffix trains the model. What crosses may be
    several tensors (a skip connection, a mask, an input itself). The parts are for computing and for training;
    save the model itself. Dropout in what stands still is off, because the prefix is run once; dropout directly
    below the first weights that move stays with these.

    Args:
        model: a functional or sequential ``keras.Model``, flat or nested, whose ``trainable`` flags say what
            moves.

    Returns:
        ``(prefix, suffix)``, two ``keras.Model``. Where one tensor crosses, they give and take a tensor;
        where several do, a list.

    Raises:
        CannotSplit: nothing that is worth keeping stands still in front, or the graph cannot be read or cut.

    Example:
        >>> from thaw import attach_head, backbone, freeze, split
        >>> model = attach_head(backbone(weights=None), 3)
        >>> moving = freeze(model, "head")
        >>> prefix, suffix = split(model)
        >>> prefix.output_shape, suffix.output_shape
        ((None, 1280), (None, 3))
    """
    flat = flatten(model)
    if {id(v) for v in flat.trainable_variables} != {id(v) for v in model.trainable_variables}:
        raise CannotSplit(
            f"{model.name} stands still as a whole, with layers inside that move; set `model.trainable = True` "
            "and then `trainable` of each layer to what is meant."
        )
    crossing = find_cut(flat)
    return part(flat, None, crossing), part(flat, crossing, None)


def find_cut(flat):
    """The tensors that cross where the graph is best cut, by what the ``trainable`` flags say now.

    Args:
        flat: from :func:`flatten`.

    Returns:
        A tuple of symbolic tensors of ``flat`` in the order of the graph.

    Raises:
        CannotSplit: there is no such place.
    """
    if any(map(_has_mask, flat.outputs)):
        raise CannotSplit(f"The output of {flat.name} carries a mask, which the loss reads and a part would not have.")
    calls = calls_of(flat)
    moving = _moving(flat, calls)
    if not any(moving):
        raise CannotSplit(f"No weights of {flat.name} move.")
    # Side by side with what moves there may be more that stands still: it comes first.
    early = [call for call, moves in zip(calls, moving) if not moves]
    late = [call for call, moves in zip(calls, moving) if moves]
    if not any(weights_of(call.layer) for call in early):
        raise CannotSplit(f"No layer with weights stands still in front of what moves in {flat.name}.")
    tensors = {id(t): t for node in nodes_of(flat) for t in node.outputs}
    shapes = {key: shape for call in calls for key, shape in zip(call.inputs + call.outputs, call.given + call.shapes)}
    made = {key for call in late for key in call.outputs}
    needed = {key for call in late for key in call.inputs} | {id(t) for t in flat.outputs}
    crossing = needed - made
    blind = any(_reads_masks(call, tensors) for call in late)
    again, places = 0, []
    for place in range(len(early), 0, -1):
        # Going back, each layer is one more to compute again; in front of all weights there is nothing to keep.
        if not any(weights_of(call.layer) for call in early[:place]):
            break
        size = sum(_bytes(tensors[key].dtype, shapes.get(key, ())) for key in crossing)
        if not (blind and any(_has_mask(tensors[key]) for key in crossing)):
            places.append((again + OPERATIONS_PER_BYTE * size, len(early) - place, size, crossing))
        call = early[place - 1]
        again += operations_of(call)
        blind = blind or _reads_masks(call, tensors)
        crossing = (crossing - set(call.outputs)) | set(call.inputs)
    for cost, _, size, keys in sorted(places, key=lambda found: found[:2]):  # by cost, then as late as can be
        if size > PAGE and cost >= sum(map(operations_of, early)):
            raise CannotSplit(
                f"Keeping {size:,} bytes for each example costs more than to compute again what stands still in "
                f"{flat.name}."
            )
        found = [tensor for key, tensor in tensors.items() if key in keys]
        if _can_be_kept(flat, found):
            return tuple(found)
    raise CannotSplit(f"In front of what moves in {flat.name} rows or a mask would get lost; nothing can be kept.")


def is_random(layer):
    """Does the layer do something else in every training step: dropout, noise, augmentation?"""
    return any(_draws(inner) for inner in _inside(layer))


def augments(layer):
    """Does the layer change pictures at random while it trains, as ``RandomFlip`` does?"""
    kinds = [type(inner).__name__ for inner in _inside(layer)]
    return any(kind.startswith("Random") or kind in ("AugMix", "CutMix", "MixUp", "RandAugment") for kind in kinds)


def _inside(operation):
    """A layer and those inside it; an operation such as ``x + y`` has none."""
    return sublayers(operation) if hasattr(operation, "_flatten_layers") else [operation]


def _draws(layer):
    if "random" in type(layer).__name__.lower():
        return True
    if getattr(layer, "seed_generator", None) is None:
        return False
    # Recurrent cells have a generator also where they drop nothing.
    rates = [getattr(layer, name) for name in ("dropout", "recurrent_dropout", "rate") if hasattr(layer, name)]
    return not rates or any(not isinstance(rate, (int, float)) or rate > 0 for rate in rates)


def _moving(flat, calls):
    """For each call: does training change what it puts out?"""
    variables = {id(v) for v in flat.trainable_variables}
    moving = [any(id(w) in variables for w in weights_of(call.layer)) or _counts(call.layer) for call in calls]
    _pass_on(calls, moving)
    # Dropout between the last weights that stand still and the first that move belongs to these: it must go on.
    near = set()
    for i in reversed(range(len(calls))):
        feeds = not near.isdisjoint(calls[i].outputs) and not weights_of(calls[i].layer)
        if feeds and not moving[i] and is_random(calls[i].layer):
            moving[i] = True
        if moving[i] or feeds:
            near.update(calls[i].inputs)
    _pass_on(calls, moving)
    return moving


def _pass_on(calls, moving):
    """What is computed from something that moves, moves."""
    changed = set()
    for i, call in enumerate(calls):
        moving[i] = moving[i] or not changed.isdisjoint(call.inputs)
        if moving[i]:
            changed.update(call.outputs)


def _counts(layer):
    """Does a step of training change more than trainable variables: statistics of a BatchNorm, a loss of its own?"""
    import keras

    return isinstance(layer, keras.Layer) and any(
        getattr(inner, "activity_regularizer", None) is not None
        or (isinstance(inner, keras.layers.BatchNormalization) and inner.trainable)
        or isinstance(inner, keras.layers.SpectralNormalization)  # its vectors move in training, frozen or not
        for inner in sublayers(layer)
    )


def _reads_masks(call, tensors):
    """May a layer that is not of Keras read the mask a tensor carries? A tensor that was kept carries none."""
    if type(call.layer).__module__.split(".")[0] == "keras":
        return False
    return any(_has_mask(tensors[key]) for key in call.inputs)


def _has_mask(tensor):
    return getattr(tensor, "_keras_mask", None) is not None


def _bytes(dtype, shape):
    bits = int("".join(filter(str.isdigit, dtype)) or 8)  # a bool takes a byte
    return math.prod(n or 1 for n in shape[1:]) * bits // 8


def _can_be_kept(flat, found):
    """Has every tensor one row for each example?"""
    import keras

    batch = flat.inputs[0].shape[0]
    if any(t.sparse or t.ragged or t.dtype == "string" or not t.shape or t.shape[0] != batch for t in found):
        return False
    # A reshape may have folded another axis into the first: ask Keras for the shapes of seven examples.
    if batch is not None or not any(map(_may_fold, needed(flat, flat.inputs, found))):
        return True
    prefix = part(flat, None, found)
    given = [keras.KerasTensor((7, *t.shape[1:]), t.dtype) for t in prefix.inputs]
    made = prefix.compute_output_spec(keras.tree.pack_sequence_as(prefix.input, given))
    return all(t.shape and t.shape[0] == 7 for t in keras.tree.flatten(made))


def _may_fold(node):
    """An operation that is no layer, or code of the user's, with another shape than what goes in."""
    import keras

    if isinstance(node.operation, keras.Layer) and not isinstance(node.operation, keras.layers.Lambda):
        return False
    shapes = [tuple(t.shape) for t in node.input_tensors]
    return any(tuple(t.shape) not in shapes for t in node.outputs)
