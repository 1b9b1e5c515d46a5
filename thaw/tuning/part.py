"""A model over a part of a graph, which shares the layers and leaves no notes on them."""

import contextlib

from thaw.stages import is_graph, nodes_of


def part(flat, begin=None, end=None):
    """A model over a part of the graph. It shares the layers and leaves no notes on them.

    Args:
        flat: from :func:`flatten`.
        begin: tensors of ``flat`` that go in; ``None`` for its inputs.
        end: tensors of ``flat`` that come out; ``None`` for its output.

    Returns:
        A ``keras.Model``. A single tensor goes in and comes out as it is, several as a list; the inputs and the
        output of ``flat`` keep their structure.

    Raises:
        ValueError: ``end`` cannot be computed from ``begin``.
    """
    import keras

    entries = list(flat.inputs if begin is None else begin)
    structure = single(flat.output) if end is None else single(list(end))
    nodes = needed(flat, entries, keras.tree.flatten(structure))
    if nodes is None:
        raise ValueError(f"The tensors to end at cannot be computed from those to begin from in {flat.name}.")
    with as_it_was([*operations_in(flat), *(t._keras_history.operation for t in flat.inputs)]):
        if begin is None:
            tensors, inputs = {id(t): t for t in entries}, single(flat.input)
        else:
            inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in entries]
            tensors = dict(zip(map(id, entries), inputs))
            inputs = single(inputs)
        for node in nodes:
            # A call noted once more, not made once more: shapes and masks are what they were.
            args, options = node.arguments.fill_in(tensors)
            outputs = [keras.KerasTensor(t.shape, t.dtype, name=t.name) for t in node.outputs]
            type(node)(node.operation, call_args=args, call_kwargs=options, outputs=outputs)
            for old, new in zip(node.outputs, outputs):
                tensors.setdefault(id(old), new)
        outputs = keras.tree.map_structure(lambda t: tensors[id(t)], structure)
        made = keras.Model(inputs, outputs)
    if end is None:
        made.output_names = list(flat.output_names)  # losses may be given by these names
    return made


def covers(flat, early, late):
    """Can the tensors ``late`` of ``flat`` be computed from the tensors ``early`` alone?"""
    return needed(flat, early, late) is not None


def single(tensors):
    """One tensor instead of a list of one: Keras warns when it is given the other."""
    return tensors[0] if isinstance(tensors, (list, tuple)) and len(tensors) == 1 else tensors


def operations_in(model):
    """Every layer and operation of a graph, and those of the models inside."""
    for node in nodes_of(model):
        yield node.operation
        if is_graph(node.operation):
            yield from operations_in(node.operation)


@contextlib.contextmanager
def as_it_was(operations):
    """Take away what Keras notes on layers while a graph is built.

    A note too many and ``layer.output`` fails. In a loaded model two layers may have one name, which one graph
    may not: they have others while it is built.
    """
    operations = list({id(op): op for op in operations}.values())
    notes = [(op, op.name, len(op._inbound_nodes), len(op._outbound_nodes)) for op in operations]
    names = set()
    try:
        for i, op in enumerate(operations):
            if op.name in names:
                op.name = f"{op.name}_again_{i}"
            names.add(op.name)
        yield
    finally:
        for op, name, inbound, outbound in notes:
            op.name = name
            del op._inbound_nodes[inbound:]
            del op._outbound_nodes[outbound:]


def needed(flat, early, late):
    """The nodes between two sets of tensors in the order of the graph, or ``None`` where some cannot be reached."""
    nodes = nodes_of(flat)
    maker = {id(t): node for node in nodes for t in node.outputs}
    seen, found, open_ends = {id(t) for t in early}, set(), list(late)
    while open_ends:
        tensor = open_ends.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = maker.get(id(tensor))
        if node is None or node.is_input:
            return None
        found.add(id(node))
        open_ends += node.input_tensors
    return [node for node in nodes if id(node) in found]
