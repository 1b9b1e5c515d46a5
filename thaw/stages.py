"""Stage and stages_of: where things are in a model, by depth, found from its graph."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

HEAD = "head"


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A slice of a model by depth.

    Args:
        name: ``stage1``, ``stage2`` … from input to output; the last is ``head``.
        layers: the layers themselves, in the order of the computation. Names and paths of layers change when a
            model is loaded or cloned; the objects do not.
        shape: shape of what leaves the stage, without the batch.
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
        """How many numbers the stage's weights hold."""
        return sum(math.prod(w.shape) for layer in self.layers for w in layer.weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One use of one layer in the graph, with nested models opened."""

    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    given: tuple[tuple[int | None, ...], ...] = ()  # the shapes of the inputs


def stages_of(model):
    """Divide a model into stages by depth, input to output; the last is ``head``.

    Found from the graph, never from names: in a convolution net a new stage begins where the spatial grid
    halves, in a transformer each repeated block is one, elsewhere each layer with weights. The boundary is laid
    where the fewest bytes cross. The head is what follows the last feature map (or the last block, or the last
    hidden layer); a backbone that ends in a feature map has none.

    Args:
        model: a built ``keras.Model``, flat or nested.

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

    if not model.built:
        raise ValueError(f"{model.name} is not built yet; call it on an input, or begin it with keras.Input.")
    if not model.weights:
        raise ValueError(f"{model.name} has no weights; there is nothing to tune.")
    calls = calls_of(model)
    if calls is None:  # a subclassed model: no graph to read, only the layers it declares
        leaves = [layer for layer in model.layers if layer.weights] or [model]
        return _named([[layer] for layer in leaves], [()] * len(leaves), [0] * len(leaves), has_head=True)
    sizes = crossing_bytes(model, calls)
    starts, head = _starts(calls, sizes)
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
        last = next((c.shapes[0] for c in reversed(calls[begin:end]) if c.shapes), ())
        # A slice with no weights of its own (a pooling, the scaling of pixels) is no stage: it joins the one
        # before it, and the first joins the next.
        if groups and not (any(map(weights_of, layers)) and any(map(weights_of, groups[-1]))):
            groups[-1] += layers
            shapes[-1] = last[1:]
        else:
            groups.append(layers)
            shapes.append(last[1:])
            crossing.append(sizes[begin])
    return _named(groups, shapes, crossing, has_head=head is not None)


def calls_of(model):
    """The layer calls of a model in topological order with nested models opened, or ``None`` without a graph."""
    nodes = nodes_of(model)
    if nodes is None:
        return None
    calls = []
    # Where the model takes pictures of any size, depth is measured at 256 x 256.
    shapes = [
        (t.shape[0], *(256 if n is None else n for n in t.shape[1:])) if len(t.shape) == 4 else tuple(t.shape)
        for t in _flat(model.inputs)
    ]
    _open(model, shapes, {}, calls)
    return calls


def crossing_bytes(model, calls):
    """Bytes per example that cross each position: ``[i]`` is what flows from the calls before ``i`` to the rest."""
    last_use, size, made = {}, {}, {}
    for tensor in _flat(model.inputs):
        made[id(tensor)] = 0
        size[id(tensor)] = _bytes(tensor.shape)
    for i, call in enumerate(calls):
        for key, shape in zip(call.outputs, call.shapes):
            made.setdefault(key, i + 1)
            size[key] = _bytes(shape)
        for key in call.inputs:
            last_use[key] = i
    crossing = [0] * (len(calls) + 1)
    for key, begin in made.items():
        for i in range(begin, last_use.get(key, -1) + 1):
            crossing[i] += size[key]
    return crossing


def operations_of(call):
    """About how many floating-point operations a call takes for one example, from shapes alone.

    A multiplication and an addition for each weight at each position; one operation for each number put out where
    there are no weights. Looking up an embedding multiplies nothing.
    """
    from keras import layers

    size = sum(math.prod(n or 1 for n in shape[1:]) for shape in call.shapes)
    if not weights_of(call.layer):
        return size
    inside = sublayers(call.layer)
    looked_up = {id(w) for inner in inside if "Embedding" in type(inner).__name__ for w in inner.weights}
    weights = sum(math.prod(w.shape) for w in call.layer.weights if id(w) not in looked_up)
    # A transposed convolution applies its weights where it reads, a recurrent layer at each step it reads.
    reads = any(isinstance(inner, layers.RNN) or "Transpose" in type(inner).__name__ for inner in inside)
    shape = (call.given if reads else call.shapes)[0]
    axis = 1 if len(shape) > 3 and getattr(call.layer, "data_format", None) == "channels_first" else len(shape) - 1
    positions = math.prod(n or 1 for i, n in enumerate(shape) if i not in (0, axis))
    return max(2 * weights * positions, size)


def sublayers(layer):
    """The layer and all layers inside it, the ones without weights too."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def _starts(calls, sizes):
    """Positions where stages begin, and the position of the head, or ``None`` where there is none."""
    spatial = [i for i, call in enumerate(calls) if _grid(call) is not None and _grid(call) > 1]
    blocks = _repeated_blocks(calls)
    if spatial and not blocks:
        head = spatial[-1] + 1 if spatial[-1] + 1 < len(calls) else None
        return _grid_starts(calls[:head], sizes) + ([] if head is None else [head]), head
    if blocks:
        last = max(blocks)
        tail = [i for i in range(last + 1, len(calls)) if weights_of(calls[i].layer)]
        # The last block ends where the next layer outside it begins; with primitives that is the final pooling.
        head = _after_last_block(calls, blocks, tail)
        return blocks + ([] if head is None else [head]), head
    weighted = [i for i, c in enumerate(calls) if weights_of(c.layer)]
    hidden = [i for i in weighted if not type(calls[i].layer).__name__.endswith("Normalization")] or weighted
    return hidden[1:], hidden[-1]


def _grid_starts(calls, sizes):
    """Where the spatial grid halves, moved back to where the fewest bytes cross."""
    # The grid at a depth is the largest from there on: a squeeze to one position inside a block is no depth.
    ahead, largest = [0] * len(calls), 0
    for i in reversed(range(len(calls))):
        largest = ahead[i] = max(largest, _grid(calls[i]) or 0)
    starts, grid, begin = [], ahead[0], 0
    for i, now in enumerate(ahead):
        if now <= 0.4 * grid:  # half in both directions, give or take the border
            # Not so far back that nothing with weights is left in front: a picture of one channel is always narrow.
            weighted = next((n for n in range(begin, i) if weights_of(calls[n].layer)), i)
            cut = _narrowest(calls, sizes, weighted + 1, i)
            if cut is not None:
                starts.append(cut)
                begin = cut
            grid = now
    return starts


def _narrowest(calls, sizes, low, high):
    """From ``high`` back to a place that one tensor crosses, and on while no more bytes cross."""
    if low > high:
        return None
    # After a pooling only a quarter is left to cross: the pooling then ends the stage before it.
    after = None if weights_of(calls[high].layer) or _tensors_crossing(calls, high + 1) != 1 else high + 1
    position = high
    while position > low and _tensors_crossing(calls, position) > 1:
        position -= 1
    if _tensors_crossing(calls, position) > 1:  # two rows of cells feed each other everywhere: no narrow place
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


def _repeated_blocks(calls):
    """Starts of repeated transformer blocks: layers made of others, or runs that each hold one attention."""
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
    # With the norm in front, a block begins at the norm that feeds the attention; else at the attention itself.
    return [i - 1 if _pre_norm(calls, i) else i for i in attention]


def _pre_norm(calls, attention):
    """Whether a norm stands in front that feeds this attention alone.

    In a post-norm net it feeds the shortcut as well, and belongs to the block above.
    """
    before = calls[attention - 1] if attention else None
    if before is None or not type(before.layer).__name__.endswith("Normalization"):
        return False
    return [c for c in calls if before.outputs[0] in c.inputs] == [calls[attention]]


def _after_last_block(calls, blocks, tail):
    composite = len(sublayers(calls[blocks[-1]].layer)) > 3 and len({type(calls[b].layer) for b in blocks}) == 1
    attention = "attention" in type(calls[blocks[-1]].layer).__name__.lower()
    if composite and not attention:
        return blocks[-1] + 1 if tail else None
    # Primitives: the head begins where the sequence is pooled or cut to one vector.
    rank = len(calls[blocks[-1]].shapes[0])
    for i in range(blocks[-1] + 1, len(calls)):
        # A mask is flatter than the sequence from its beginning on; it is not what the sequence was pooled to.
        if len(calls[i].shapes[0]) < rank and any(len(shape) >= rank for shape in calls[i].given):
            return i
    return tail[-1] if tail else None


def _named(groups, shapes, crossing, *, has_head):
    names = [f"stage{i + 1}" for i in range(len(groups))]
    if has_head:
        names[-1] = HEAD
    return tuple(Stage(n, tuple(g), tuple(s), c) for n, g, s, c in zip(names, groups, shapes, crossing))


def _grid(call):
    """Number of spatial positions of what a call puts out, or ``None`` where it is not a picture."""
    shape = call.shapes[0] if call.shapes else ()
    if len(shape) != 4:
        return None
    import keras

    place = shape[1:3] if keras.config.image_data_format() == "channels_last" else shape[2:4]
    return None if None in place else math.prod(place)


def _bytes(shape):
    return 4 * math.prod(n or 1 for n in shape[1:])


def _flat(tensors):
    import keras

    return keras.tree.flatten(tensors)


def weights_of(operation):
    """What can be tuned: nothing in an operation such as ``x + y``, nor in the scaling of inputs."""
    import keras

    return () if isinstance(operation, keras.layers.Normalization) else getattr(operation, "weights", ())


def graph_of(model):
    """The functional model that holds the graph: of a sequential one the model inside, else the model itself."""
    return getattr(model, "_functional", None) or model


def is_graph(operation):
    """Is it a model inside a model, with a graph of its own?"""
    import keras

    return isinstance(operation, keras.Model) and nodes_of(operation) is not None


def is_of_keras(model, name):
    """Is a method of the model Keras' own, and none of a class of the user's?"""
    owner = next(cls for cls in type(model).__mro__ if name in vars(cls))
    return owner.__module__.split(".")[0] in ("keras", "keras_hub")


def nodes_of(model):
    """The nodes of a functional or sequential model, inputs first."""
    by_depth = getattr(graph_of(model), "_nodes_by_depth", None)
    return None if by_depth is None else [n for depth in sorted(by_depth, reverse=True) for n in by_depth[depth]]


def _open(model, shapes, names, calls):
    """Append the calls of ``model``; ``names`` maps its own tensors to those of the model around it."""
    known = _shapes(graph_of(model), shapes)
    for node in nodes_of(model):
        if node.is_input:
            continue
        layer = node.operation
        inputs = tuple(names.get(id(t), id(t)) for t in node.input_tensors)
        if is_graph(layer):
            inner = graph_of(layer)
            inside = dict(zip(map(id, _flat(inner.inputs)), inputs))
            _open(layer, [known[id(t)] for t in node.input_tensors], inside, calls)
            for own, outer in zip(_flat(inner.outputs), node.output_tensors):
                names[id(outer)] = inside.get(id(own), id(own))
        else:
            outputs = tuple(id(t) for t in node.output_tensors)
            given = tuple(known[id(t)] for t in node.input_tensors)
            calls.append(Call(layer, inputs, outputs, tuple(known[i] for i in outputs), given))


def _shapes(graph, shapes):
    """Shape of every tensor of ``graph`` when it is given inputs of ``shapes``."""
    import keras

    nodes = nodes_of(graph)
    tensors = [t for node in nodes for t in node.output_tensors]
    if shapes == [tuple(t.shape) for t in _flat(graph.inputs)]:
        return {id(t): tuple(t.shape) for t in tensors}
    # A net made for pictures of any size, used at one size: ask Keras, which computes shapes and nothing else.
    given = [keras.KerasTensor(shape, t.dtype) for shape, t in zip(shapes, _flat(graph.inputs))]
    found = keras.Function(graph.inputs, tensors).compute_output_spec(keras.tree.pack_sequence_as(graph.inputs, given))
    return {id(t): tuple(f.shape) for t, f in zip(tensors, found)}
