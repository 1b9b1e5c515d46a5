"""Divide a model into stages by depth, from its graph."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from thaw._keras import functional_graph, graph_nodes, sublayers
from thaw._validation import check_model
from thaw.models.wide_heads import backbone_path, wide_heads

HEAD = "head"


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A slice of a model by depth.

    Args:
        name: ``stage1``, ``stage2``, ... from input to output; the last is ``head``.
        layers: the layers, as objects, in the order of the computation. Their names and paths may change when a model
            is loaded or cloned.
        shape: shape of the stage's output, without the batch.
        crossing: bytes of float32 activations that enter the stage for one example.

    Example:
        >>> import keras
        >>> from thaw import stages_of
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> [(stage.name, stage.parameters) for stage in stages_of(model)]
        [('stage1', 40), ('head', 18)]
    """

    name: str
    layers: tuple[Any, ...]
    shape: tuple[int | None, ...]
    crossing: int

    @property
    def parameters(self):
        """Number of parameters in the weights of the stage."""
        return sum(math.prod(w.shape) for layer in self.layers for w in layer.weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer in the graph, with nested models opened: ids and shapes of its inputs and outputs.

    ``data_format`` is that of the whole graph.
    """

    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    input_shapes: tuple[tuple[int | None, ...], ...] = ()
    data_format: str = "channels_last"


def stages_of(model):
    """Divide a model into stages by depth, from input to output; the last is ``head``.

    The stages are read from the graph, never from names: in a convolutional network a stage begins where the spatial
    grid halves, in a transformer each repeated block is a stage, elsewhere each layer with weights. The boundary is
    where the fewest bytes cross. The head is everything behind the last feature map (or the last block, or the last
    hidden layer); a backbone that ends in a feature map has none. In a decoder (U-Net) each upsampling begins a stage,
    and the last layer with weights is the head. A wide head, which reads layers of all depths, is the head as a whole:
    the stages below it are those of the backbone, and what crosses is what crosses in the backbone.

    Args:
        model: built ``keras.Model``, flat or nested.

    Returns:
        A tuple of :class:`Stage`. Every layer of the model is in exactly one.

    Raises:
        ValueError: the model is not built, or has no weights.

    Example:
        >>> from thaw import backbone, stages_of
        >>> [stage.shape[0] for stage in stages_of(backbone(weights=None))]
        [112, 56, 28, 14, 7]
    """
    import keras

    check_model(model)
    if not model.built:
        raise ValueError(f"{model.name} is not built yet; call it on an input, or begin it with keras.Input.")
    if not model.weights:
        raise ValueError(f"{model.name} has no weights; there is nothing to tune.")
    calls = calls_of(model)
    if calls is None:  # a subclassed model has no graph, only the layers that it declares
        leaves = [layer for layer in model.layers if layer.weights] or [model]
        return _named([[layer] for layer in leaves], [()] * len(leaves), [0] * len(leaves), has_head=True)
    in_head = frozenset().union(*(wide.calls for wide in wide_heads(calls)))
    calls = backbone_path(calls)
    sizes = crossing_bytes(model, calls)
    starts, head = _starts(calls, sizes)
    if in_head and (head is None or head > len(calls) - len(in_head)):
        head = len(calls) - len(in_head)
        starts = [*(start for start in starts if start < head), head]
    bounds = sorted({0, *starts})
    groups, shapes, crossing = [], [], []
    placed = set()
    for begin, end in zip(bounds, [*bounds[1:], len(calls)]):
        layers = []
        for call in calls[begin:end]:
            if (
                isinstance(call.layer, keras.Layer) and id(call.layer) not in placed
            ):  # a shared layer belongs where it is first used
                placed.add(id(call.layer))
                layers.append(call.layer)
        last = next((c.shapes[0] for c in reversed(calls[begin:end]) if c.shapes and not _makes_mask(c)), ())
        # A slice without weights (a pooling, the scaling of pixels) is no stage: it joins the stage before it, and the
        # first slice joins the next.
        if groups and not (any(map(weights_of, layers)) and any(map(weights_of, groups[-1]))):
            groups[-1] += layers
            shapes[-1] = last[1:]
        else:
            groups.append(layers)
            shapes.append(last[1:])
            crossing.append(sizes[begin])
    return _named(groups, shapes, crossing, has_head=head is not None)


def calls_of(model):
    """Return the layer calls of a model in topological order, nested models opened; ``None`` if it has no graph.

    Args:
        model: ``keras.Model``.

    Returns:
        A list of :class:`Call`, or ``None``.
    """
    nodes = graph_nodes(model)
    if nodes is None:
        return None
    calls = []
    # A model for images of any size is measured at 256 x 256.
    shapes = [
        (t.shape[0], *(256 if n is None else n for n in t.shape[1:])) if len(t.shape) == 4 else tuple(t.shape)
        for t in _flat(model.inputs)
    ]
    _open(model, shapes, {}, calls)
    data_format = data_format_of(call.layer for call in calls)
    return [dataclasses.replace(call, data_format=data_format) for call in calls]


def data_format_of(layers):
    """Return ``"channels_last"`` or ``"channels_first"`` as the first layer that has a data format says.

    Args:
        layers: layers of one model, without nested models. Where none has a data format, ``keras.json`` decides.

    Returns:
        str.
    """
    import keras

    formats = (getattr(layer, "data_format", None) for layer in layers)
    return next(filter(None, formats), keras.config.image_data_format())


def crossing_bytes(model, calls):
    """Return the bytes per example that cross each position of the graph.

    Args:
        model: ``keras.Model``.
        calls: its calls, from :func:`calls_of`.

    Returns:
        A list with ``len(calls) + 1`` numbers; number ``i`` is the size, as float32, of the tensors that flow from the
        calls before ``i`` to the others.
    """
    last_use, size, first = {}, {}, {}
    for tensor in _flat(model.inputs):
        first[id(tensor)] = 0
        size[id(tensor)] = _bytes(tensor.shape)
    for i, call in enumerate(calls):
        for key, shape in zip(call.outputs, call.shapes):
            first.setdefault(key, i + 1)
            size[key] = _bytes(shape)
        for key in call.inputs:
            last_use[key] = i
    crossing = [0] * (len(calls) + 1)
    for key, begin in first.items():
        for i in range(begin, last_use.get(key, -1) + 1):
            crossing[i] += size[key]
    return crossing


def operations_of(call):
    """Estimate the floating-point operations of a call for one example, from shapes alone.

    A multiplication and an addition for each weight at each position; one operation for each number of the output if
    there are no weights. The lookup of an embedding costs nothing.

    Args:
        call: :class:`Call`.

    Returns:
        int.
    """
    from keras import layers

    size = sum(math.prod(n or 1 for n in shape[1:]) for shape in call.shapes)
    if not weights_of(call.layer):
        return size
    inside = sublayers(call.layer)
    lookup_tables = {id(w) for inner in inside if "Embedding" in type(inner).__name__ for w in inner.weights}
    weights = sum(math.prod(w.shape) for w in call.layer.weights if id(w) not in lookup_tables)
    # A transposed convolution applies its weights at the positions of its input, a recurrent layer at its steps.
    by_input = any(isinstance(inner, layers.RNN) or "Transpose" in type(inner).__name__ for inner in inside)
    shape = (call.input_shapes if by_input else call.shapes)[0]
    axis = 1 if len(shape) > 3 and getattr(call.layer, "data_format", None) == "channels_first" else len(shape) - 1
    positions = math.prod(n or 1 for i, n in enumerate(shape) if i not in (0, axis))
    return max(2 * weights * positions, size)


def _starts(calls, sizes):
    """Return the positions where stages begin, and that of the head, or ``None`` if there is none."""
    spatial = [i for i, call in enumerate(calls) if _grid(call) is not None and _grid(call) > 1]
    blocks = repeated_blocks(calls)
    upsampling = [i for i, call in enumerate(calls) if _enlarges(call)]
    if upsampling and not blocks and spatial[-1] == len(calls) - 1:  # a decoder, whose last layer predicts a map
        head = [i for i, c in enumerate(calls) if weights_of(c.layer) and not _is_norm(c)][-1]
        encoder = _grid_starts(calls[: upsampling[0]], sizes)
        return [*encoder, *(i for i in upsampling if i < head), head], head
    if spatial and not blocks:
        head = spatial[-1] + 1 if spatial[-1] + 1 < len(calls) else None
        return _grid_starts(calls[:head], sizes) + ([] if head is None else [head]), head
    if blocks:
        last = max(blocks)
        tail = [i for i in range(last + 1, len(calls)) if weights_of(calls[i].layer)]
        # The last block ends where the next layer outside it begins; for blocks of single layers, at the final pooling.
        head = after_last_block(calls, blocks, tail)
        return blocks + ([] if head is None else [head]), head
    weighted = [i for i, c in enumerate(calls) if weights_of(c.layer)]
    hidden = [i for i in weighted if not _is_norm(calls[i])] or weighted
    return hidden[1:], hidden[-1]


def _makes_mask(call):
    """Say whether a call computes which steps of a sequence count, as masking layers let Keras do beside them."""
    return type(call.layer).__name__ in ("NotEqual", "LogicalOr", "LogicalAnd", "Any")


def _is_norm(call):
    from keras import layers

    # SpectralNormalization, a wrapper, holds the weights of the layer inside.
    return type(call.layer).__name__.endswith("Normalization") and not isinstance(call.layer, layers.Wrapper)


def _enlarges(call):
    """Say whether a call makes a map larger, as in a decoder; padding, and spreading one position, do not count."""
    from keras import layers

    grids = [n for shape in call.input_shapes if (n := _grid_of(shape, call.data_format)) is not None and n > 1]
    now = _grid(call)
    larger = bool(grids) and now is not None and now >= 2 * max(grids)
    return larger and not isinstance(call.layer, layers.ZeroPadding2D)


def _grid_starts(calls, sizes):
    """Return the positions where the spatial grid halves, moved back to where the fewest bytes cross."""
    # The grid at a depth is the largest from there on: a squeeze to one position inside a block does not count.
    ahead, largest = [0] * len(calls), 0
    for i in reversed(range(len(calls))):
        largest = ahead[i] = max(largest, _grid(calls[i]) or 0)
    starts, grid, begin = [], ahead[0], 0
    for i, now in enumerate(ahead):
        if now <= 0.4 * grid:  # half in both directions, up to padding
            # Leaves weights before it: an image of one channel always has the fewest bytes.
            weighted = next((n for n in range(begin, i) if weights_of(calls[n].layer)), i)
            cut = _narrowest(calls, sizes, weighted + 1, i)
            if cut is not None:
                starts.append(cut)
                begin = cut
            grid = now
    return starts


def _narrowest(calls, sizes, low, high):
    """Go back from ``high`` to a position that one tensor crosses, and on while no more bytes cross."""
    if low > high:
        return None
    # Behind a pooling only a quarter of the bytes cross: then the pooling ends the stage before it.
    after = None if weights_of(calls[high].layer) or _tensors_crossing(calls, high + 1) != 1 else high + 1
    position = high
    while position > low and _tensors_crossing(calls, position) > 1:
        position -= 1
    if _tensors_crossing(calls, position) > 1:  # as in NASNet, where each cell reads two others
        return min(range(low, high + 1), key=lambda i: (sizes[i], -i))
    best = position
    while position > low:
        position -= 1
        if sizes[position] > sizes[best]:
            break
        if sizes[position] < sizes[best]:
            best = position
    return after if after is not None and sizes[after] <= sizes[best] else best


def _tensors_crossing(calls, position):
    made = {key for call in calls[:position] for key in call.outputs}
    return len({key for call in calls[position:] for key in call.inputs if key in made})


def repeated_blocks(calls):
    """Return the positions where repeated transformer blocks begin: composite layers, or runs with one attention.

    Args:
        calls: from :func:`calls_of`.

    Returns:
        A list of int, empty where there are no such blocks.
    """
    from keras import layers

    kinds = {}
    for i, call in enumerate(calls):
        if weights_of(call.layer) and not isinstance(call.layer, layers.RNN) and len(sublayers(call.layer)) > 3:
            kinds.setdefault(type(call.layer), []).append(i)
    whole = max(kinds.values(), key=len, default=[])
    if len(whole) >= 2 and "attention" not in type(calls[whole[0]].layer).__name__.lower():
        return whole
    attention = [i for i, c in enumerate(calls) if "attention" in type(c.layer).__name__.lower()]
    if len(attention) < 2:
        return []
    # A pre-norm block begins at the norm that feeds the attention, another one at the attention.
    return [i - 1 if _pre_norm(calls, i) else i for i in attention]


def _pre_norm(calls, attention):
    """Say whether a norm before an attention feeds it alone.

    In a post-norm network it feeds the shortcut too, and belongs to the block before.
    """
    before = calls[attention - 1] if attention else None
    if before is None or not type(before.layer).__name__.endswith("Normalization"):
        return False
    return [c for c in calls if before.outputs[0] in c.inputs] == [calls[attention]]


def after_last_block(calls, blocks, tail):
    """Return the position where the last repeated block ends and the head begins; ``None`` where nothing follows.

    Args:
        calls: from :func:`calls_of`.
        blocks: from :func:`repeated_blocks`, not empty.
        tail: positions of the calls with weights behind the beginning of the last block.

    Returns:
        int or ``None``.
    """
    composite = len(sublayers(calls[blocks[-1]].layer)) > 3 and len({type(calls[b].layer) for b in blocks}) == 1
    attention = "attention" in type(calls[blocks[-1]].layer).__name__.lower()
    if composite and not attention:
        return blocks[-1] + 1 if tail else None
    # Blocks of single layers: the head begins where the sequence is pooled, or one token of it is taken.
    rank = len(calls[blocks[-1]].shapes[0])
    for i in range(blocks[-1] + 1, len(calls)):
        # A mask has a lower rank than the sequence from the beginning; it is not the pooled sequence.
        if len(calls[i].shapes[0]) < rank and any(len(shape) >= rank for shape in calls[i].input_shapes):
            return i
    return tail[-1] if tail else None


def _named(groups, shapes, crossing, *, has_head):
    names = [f"stage{i + 1}" for i in range(len(groups))]
    if has_head:
        names[-1] = HEAD
    return tuple(Stage(n, tuple(g), tuple(s), c) for n, g, s, c in zip(names, groups, shapes, crossing))


def _grid(call):
    """Return the number of spatial positions of a call's output, or ``None`` if it has no height and width."""
    return _grid_of(call.shapes[0] if call.shapes else (), call.data_format)


def _grid_of(shape, data_format):
    if len(shape) != 4:
        return None
    size = shape[1:3] if data_format == "channels_last" else shape[2:4]
    return None if None in size else math.prod(size)


def _bytes(shape):
    return 4 * math.prod(n or 1 for n in shape[1:])


def _flat(tensors):
    import keras

    return keras.tree.flatten(tensors)


def weights_of(operation):
    """Return the weights that can be tuned: none of an operation such as ``x + y``, nor of ``Normalization``."""
    import keras

    return () if isinstance(operation, keras.layers.Normalization) else getattr(operation, "weights", ())


def is_graph(operation):
    """Say whether a layer or operation is a nested model with a graph."""
    import keras

    return isinstance(operation, keras.Model) and graph_nodes(operation) is not None


def is_of_keras(model, name):
    """Say whether a method of a model is Keras' own and not overridden by a class of the user's."""
    owner = next(cls for cls in type(model).__mro__ if name in vars(cls))
    return owner.__module__.split(".")[0] in ("keras", "keras_hub")


def _open(model, shapes, names, calls):
    """Append the calls of a model; ``names`` maps its tensors to those of the outer model."""
    known = _shapes(functional_graph(model), shapes)
    for node in graph_nodes(model):
        if node.is_input:
            continue
        layer = node.operation
        inputs = tuple(names.get(id(t), id(t)) for t in node.input_tensors)
        if is_graph(layer):
            inner = functional_graph(layer)
            inside = dict(zip(map(id, _flat(inner.inputs)), inputs))
            _open(layer, [known[id(t)] for t in node.input_tensors], inside, calls)
            for own, outer in zip(_flat(inner.outputs), node.output_tensors):
                names[id(outer)] = inside.get(id(own), id(own))
        else:
            outputs = tuple(id(t) for t in node.output_tensors)
            input_shapes = tuple(known[id(t)] for t in node.input_tensors)
            calls.append(Call(layer, inputs, outputs, tuple(known[i] for i in outputs), input_shapes))


def _shapes(graph, shapes):
    """Return the shape of every tensor of a graph for inputs of these shapes."""
    import keras

    nodes = graph_nodes(graph)
    tensors = [t for node in nodes for t in node.output_tensors]
    if shapes == [tuple(t.shape) for t in _flat(graph.inputs)]:
        return {id(t): tuple(t.shape) for t in tensors}
    # A model for images of any size, used at one size: Keras computes the shapes, and nothing else.
    inputs = [keras.KerasTensor(shape, t.dtype) for shape, t in zip(shapes, _flat(graph.inputs))]
    specs = keras.Function(graph.inputs, tensors).compute_output_spec(keras.tree.pack_sequence_as(graph.inputs, inputs))
    return {id(t): tuple(spec.shape) for t, spec in zip(tensors, specs)}
