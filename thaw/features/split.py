"""Split a model into its frozen prefix and its trainable suffix."""

from __future__ import annotations

import math
import re

from thaw._keras import graph_nodes, mask_of, operation_of, sublayers
from thaw.models.flat import CannotSplit, flatten_model, operations_in, preserve_graph, unpack_single
from thaw.models.stages import calls_of, operations_of, weights_of
from thaw.models.wide_heads import wide_head

# Cached features are read again in every epoch, everything else is computed again. Reading a byte at 200 MB/s takes as
# long as 100 floating-point operations at 20 GFLOP/s.
OPERATIONS_PER_BYTE = 100
MAX_FREE_BYTES = 4096  # of one example, a page: caching less costs nothing that could be measured


def split_model(model):
    """Split a model before the first trainable layer, where caching the features costs least.

    Both parts share their variables with the model: training the suffix trains the model. Several tensors may cross the
    cut (a skip connection, a mask, an input itself). The parts are for computing and training; save the model itself.
    Dropout in the prefix is off, because the prefix runs in inference; dropout directly below the first trainable
    weights belongs to the suffix, and so do the standardization constants of a wide head.

    Args:
        model: a functional or sequential ``keras.Model``, flat or nested, whose ``trainable`` flags are set.

    Returns:
        ``(prefix, suffix)``, two ``keras.Model``. Where one tensor crosses, they give and take a tensor; where several
        do, a list.

    Raises:
        CannotSplit: there is no frozen prefix that is worth caching, or the graph cannot be read or cut.

    Example:
        >>> from thaw import attach_head, backbone, freeze, split_model
        >>> model = attach_head(backbone(weights=None), 3)
        >>> trainable = freeze(model, "head")
        >>> prefix, suffix = split_model(model)
        >>> prefix.output_shape, suffix.output_shape
        ((None, 1280), (None, 3))
    """
    flat = flatten_model(model)
    if {id(v) for v in flat.trainable_variables} != {id(v) for v in model.trainable_variables}:
        raise CannotSplit(
            f"{model.name} is frozen as a whole, with trainable layers inside; set `model.trainable = True` "
            "and then `trainable` of each layer."
        )
    cut = find_cut_point(flat)
    return submodel(flat, None, cut), submodel(flat, cut, None)


def find_cut_point(flat):
    """Find the tensors that cross the best cut between the frozen and the trainable layers.

    Args:
        flat: from :func:`flatten_model`; its ``trainable`` flags are read.

    Returns:
        A tuple of symbolic tensors of ``flat`` in the order of the graph.

    Raises:
        CannotSplit: there is no cut point.
    """
    if any(map(_has_mask, flat.outputs)):
        raise CannotSplit(f"The output of {flat.name} carries a mask, which the loss reads and a part would not have.")
    calls = calls_of(flat)
    changing = _changing_calls(flat, calls)
    if not any(changing):
        raise CannotSplit(f"No weights of {flat.name} are trainable.")
    # Frozen branches parallel to the trainable layers come first.
    early = [call for call, changes in zip(calls, changing) if not changes]
    late = [call for call, changes in zip(calls, changing) if changes]
    if not any(weights_of(call.layer) for call in early):
        raise CannotSplit(f"There is no frozen layer with weights before the trainable layers of {flat.name}.")
    tensors = {id(t): t for node in graph_nodes(flat) for t in node.outputs}
    shapes = {
        key: shape for call in calls for key, shape in zip(call.inputs + call.outputs, call.input_shapes + call.shapes)
    }
    outputs = {key for call in late for key in call.outputs}
    inputs = {key for call in late for key in call.inputs} | {id(t) for t in flat.outputs}
    crossing = inputs - outputs
    loses_masks = any(_may_read_masks(call, tensors) for call in late)
    recomputed, candidates = 0, []
    for position in range(len(early), 0, -1):
        # Going back, one more layer is computed in every epoch; before all weights there is nothing to cache.
        if not any(weights_of(call.layer) for call in early[:position]):
            break
        size = sum(_tensor_bytes(tensors[key].dtype, shapes.get(key, ())) for key in crossing)
        if not (loses_masks and any(_has_mask(tensors[key]) for key in crossing)):
            candidates.append((recomputed + OPERATIONS_PER_BYTE * size, len(early) - position, size, crossing))
        call = early[position - 1]
        recomputed += operations_of(call)
        loses_masks = loses_masks or _may_read_masks(call, tensors)
        crossing = (crossing - set(call.outputs)) | set(call.inputs)
    for cost, _, size, keys in sorted(candidates, key=lambda candidate: candidate[:2]):  # by cost, then the latest
        if size > MAX_FREE_BYTES and cost >= sum(map(operations_of, early)):
            raise CannotSplit(
                f"Caching {size:,} bytes for each example costs more than computing the frozen layers of {flat.name} "
                "again."
            )
        cut = tuple(tensor for key, tensor in tensors.items() if key in keys)
        if _has_row_per_example(flat, cut):
            return cut
    raise CannotSplit(
        f"In front of the trainable layers of {flat.name} rows or a mask would get lost; nothing can be cached."
    )


def submodel(flat, begin=None, end=None, replace=None):
    """Build a model over a part of a graph; it shares the layers and leaves no nodes on them.

    Args:
        flat: from :func:`flatten_model`.
        begin: input tensors in ``flat``; ``None`` for its inputs.
        end: output tensors in ``flat``; ``None`` for its output.
        replace: function from a layer to the one that computes in its place; ``None`` for the layers themselves.

    Returns:
        A ``keras.Model``. A single tensor is given and returned as it is, several as a list; the inputs and the output
        of ``flat`` keep their structure.

    Raises:
        ValueError: ``end`` cannot be computed from ``begin``.
    """
    import keras

    entries = list(flat.inputs if begin is None else begin)
    structure = unpack_single(flat.output) if end is None else unpack_single(list(end))
    nodes = _nodes_between(flat, entries, keras.tree.flatten(structure))
    if nodes is None:
        raise ValueError(f"The tensors to end at cannot be computed from those to begin from in {flat.name}.")
    with preserve_graph([*operations_in(flat), *(operation_of(t) for t in flat.inputs)]):
        if begin is None:
            tensors, inputs = {id(t): t for t in entries}, unpack_single(flat.input)
        else:
            inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in entries]
            tensors = dict(zip(map(id, entries), inputs))
            inputs = unpack_single(inputs)
        for node in nodes:
            # The node is copied, the layer not called again: shapes and masks stay what they are.
            args, options = node.arguments.fill_in(tensors)
            outputs = [keras.KerasTensor(t.shape, t.dtype, name=t.name) for t in node.outputs]
            operation = node.operation if replace is None else replace(node.operation)
            type(node)(operation, call_args=args, call_kwargs=options, outputs=outputs)
            for old, new in zip(node.outputs, outputs):
                tensors.setdefault(id(old), new)
        outputs = keras.tree.map_structure(lambda t: tensors[id(t)], structure)
        part = keras.Model(inputs, outputs)
    if end is None:
        part.output_names = list(flat.output_names)  # losses may be given by these names
    return part


def covers(flat, early, late):
    """Return whether the tensors ``late`` of ``flat`` can be computed from the tensors ``early`` alone."""
    return _nodes_between(flat, early, late) is not None


def is_random(layer):
    """Return whether the layer differs from one training step to the next: dropout, noise, augmentation."""
    return any(_draws_numbers(inner) for inner in _layers_of(layer))


def augments(layer):
    """Return whether the layer augments images at random in training, as ``RandomFlip`` does."""
    kinds = [type(inner).__name__ for inner in _layers_of(layer)]
    return any(kind.startswith("Random") or kind in ("AugMix", "CutMix", "MixUp", "RandAugment") for kind in kinds)


def _nodes_between(flat, early, late):
    """Return the nodes between two sets of tensors in the order of the graph; ``None`` where some are out of reach."""
    nodes = graph_nodes(flat)
    made_by = {id(t): node for node in nodes for t in node.outputs}
    seen, needed, open_ends = {id(t) for t in early}, set(), list(late)
    while open_ends:
        tensor = open_ends.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = made_by.get(id(tensor))
        if node is None or node.is_input:
            return None
        needed.add(id(node))
        open_ends += node.input_tensors
    return [node for node in nodes if id(node) in needed]


def _layers_of(operation):
    """Return a layer and those inside it; an operation such as ``x + y`` alone."""
    import keras

    return sublayers(operation) if isinstance(operation, keras.Layer) else [operation]


def _draws_numbers(layer):
    if "random" in type(layer).__name__.lower():
        return True
    if getattr(layer, "seed_generator", None) is None:
        return False
    # Recurrent cells have a generator even where they drop nothing.
    rates = [getattr(layer, name) for name in ("dropout", "recurrent_dropout", "rate") if hasattr(layer, name)]
    return not rates or any(not isinstance(rate, (int, float)) or rate > 0 for rate in rates)


def _changing_calls(flat, calls):
    """Return for each call whether training changes its output."""
    variables = {id(v) for v in flat.trainable_variables}
    changing = [
        any(id(w) in variables for w in weights_of(call.layer)) or _has_training_effect(call.layer) for call in calls
    ]
    wide = wide_head(calls)
    if wide is not None and any(changing):
        # Its constants are set after the features are computed, frozen or not: raw vectors cross, whatever they are.
        changing = [changes or call.layer in wide.norms for call, changes in zip(calls, changing)]
    _propagate(calls, changing)
    # Dropout between the last frozen and the first trainable weights belongs to the latter: it must stay on.
    near = set()
    for i in reversed(range(len(calls))):
        feeds = not near.isdisjoint(calls[i].outputs) and not weights_of(calls[i].layer)
        if feeds and not changing[i] and is_random(calls[i].layer):
            changing[i] = True
        if changing[i] or feeds:
            near.update(calls[i].inputs)
    _propagate(calls, changing)
    return changing


def _propagate(calls, changing):
    """Mark every call whose input changes."""
    changed = set()
    for i, call in enumerate(calls):
        changing[i] = changing[i] or not changed.isdisjoint(call.inputs)
        if changing[i]:
            changed.update(call.outputs)


def _has_training_effect(layer):
    """Return whether a training step uses more than trainable variables: statistics, a loss or a state of its own.

    A frozen ``SpectralNormalization`` has none, computed in inference: only in training does it scale its kernel again.
    A recurrent layer that carries its state from batch to batch has no features that belong to one example.
    """
    import keras

    with_statistics = (keras.layers.BatchNormalization, keras.layers.SpectralNormalization)
    return isinstance(layer, keras.Layer) and any(
        getattr(inner, "activity_regularizer", None) is not None
        or (isinstance(inner, with_statistics) and inner.trainable)
        or getattr(inner, "stateful", False)
        for inner in sublayers(layer)
    )


def _may_read_masks(call, tensors):
    """Return whether a layer that is not of Keras is given a mask, which a cached tensor does not carry."""
    if type(call.layer).__module__.split(".")[0] == "keras":
        return False
    return any(_has_mask(tensors[key]) for key in call.inputs)


def _has_mask(tensor):
    return mask_of(tensor) is not None


def _tensor_bytes(dtype, shape):
    """Return the bytes of one example."""
    bits = re.search(r"\d+", dtype)  # the first number: float8_e4m3fn has 8 bits
    bits = int(bits[0]) if bits else 8  # a bool takes a byte
    return math.prod(n or 1 for n in shape[1:]) * bits // 8


def _has_row_per_example(flat, cut):
    """Return whether every tensor has one row for each example."""
    import keras

    batch = flat.inputs[0].shape[0]
    if any(t.sparse or t.ragged or t.dtype == "string" or not t.shape or t.shape[0] != batch for t in cut):
        return False
    # A reshape may have folded another axis into the first: ask Keras for the shapes of seven examples.
    if batch is not None or not any(map(_may_fold, _nodes_between(flat, flat.inputs, cut))):
        return True
    prefix = submodel(flat, None, cut)
    given = [keras.KerasTensor((7, *t.shape[1:]), t.dtype) for t in prefix.inputs]
    specs = prefix.compute_output_spec(keras.tree.pack_sequence_as(prefix.input, given))
    return all(t.shape and t.shape[0] == 7 for t in keras.tree.flatten(specs))


def _may_fold(node):
    """Return whether code that is no layer of Keras puts out another shape than its inputs have."""
    import keras

    if isinstance(node.operation, keras.Layer) and not isinstance(node.operation, keras.layers.Lambda):
        return False
    shapes = [tuple(t.shape) for t in node.input_tensors]
    return any(tuple(t.shape) not in shapes for t in node.outputs)
