"""Open nested models: the same computation as one flat graph over the same layers."""

from __future__ import annotations

import contextlib

from thaw._keras import functional_graph, graph_nodes, node_counts, set_mask, truncate_nodes
from thaw.models.stages import is_graph, is_of_keras


class CannotSplit(ValueError):
    """Raised where a model has no frozen prefix that could be cached; the message says why.

    Example:
        >>> from thaw.features import CannotSplit
        >>> issubclass(CannotSplit, ValueError)
        True
    """


def flatten_model(model, training=True):
    """Build the same computation with nested models opened: a functional ``keras.Model`` over the same layers.

    Args:
        model: a functional or sequential ``keras.Model``.
        training: whether parts of it are to be trained. Default ``True``: a model with a ``train_step``, ``test_step``
            or ``compute_loss`` of its own is refused.

    Returns:
        The model itself when it is flat and functional already.

    Raises:
        CannotSplit: there is no graph, or it does not describe the whole computation.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise CannotSplit(f"{type(model).__name__} is not a keras.Model.")
    _check_graph(model)
    for step in ("train_step", "test_step", "compute_loss") if training else ():
        if not is_of_keras(model, step):
            raise CannotSplit(f"{model.name} has a {step} of its own, which a part of the model would not have.")
    graph = functional_graph(model)
    if not any(is_graph(node.operation) for node in graph_nodes(graph)):
        return graph
    with preserve_graph(operations_in(graph)):
        return _opened(graph, model.name)


def open_model(model):
    """Build the same computation with nested models opened, as a model that can be saved.

    Unlike :func:`flatten_model` it leaves nodes on the layers of nested models, which a file is made of.

    Args:
        model: a functional or sequential ``keras.Model``.

    Returns:
        A functional ``keras.Model`` over the same layers; the model itself when it is flat and functional already.

    Raises:
        CannotSplit: as in :func:`flatten_model`.
        ValueError: two layers have the same name, which one graph may not.
    """
    import keras

    _check_graph(model)
    graph = functional_graph(model)
    if not any(is_graph(node.operation) for node in graph_nodes(graph)):
        return graph
    names = {}
    for operation in operations_in(graph):
        if is_graph(operation) or isinstance(operation, keras.layers.InputLayer):
            continue
        if names.setdefault(operation.name, operation) is not operation:
            raise ValueError(
                f"{model.name} has nested models with two layers named {operation.name}; expected different names. "
                "Build one of them again with another name."
            )
    return _opened(graph, model.name)


def _opened(graph, name):
    import keras

    tensors = {id(t): t for t in graph.inputs}
    _replay(graph, tensors)
    outputs = keras.tree.map_structure(lambda t: tensors[id(t)], graph.output)
    flat = keras.Model(unpack_single(graph.input), unpack_single(outputs), name=name)
    flat.output_names = list(graph.output_names)
    return flat


def unpack_single(tensors):
    """Return one tensor instead of a list of one: Keras warns about the other."""
    return tensors[0] if isinstance(tensors, (list, tuple)) and len(tensors) == 1 else tensors


def operations_in(model):
    """Yield every layer and operation of a graph, and those of nested models."""
    for node in graph_nodes(model):
        yield node.operation
        if is_graph(node.operation):
            yield from operations_in(node.operation)


@contextlib.contextmanager
def preserve_graph(operations):
    """Remove the nodes that Keras adds to layers while a graph is built.

    With one node too many, ``layer.output`` fails. In a loaded model two layers may have the same name, which one graph
    may not: they have other names while it is built.

    Args:
        operations: layers and operations of the graphs.
    """
    operations = list({id(op): op for op in operations}.values())
    states = [(op, op.name, node_counts(op)) for op in operations]
    names = set()
    try:
        for i, op in enumerate(operations):
            if op.name in names:
                op.name = f"{op.name}_again_{i}"
            names.add(op.name)
        yield
    finally:
        for op, name, counts in states:
            op.name = name
            truncate_nodes(op, counts)


def _check_graph(model):
    """Refuse a model whose graph, or that of a nested model, does not describe the whole computation."""
    if graph_nodes(model) is None:
        kind = "has no graph yet" if type(model).__module__.startswith("keras.") else "is a subclassed model"
        raise CannotSplit(f"{model.name} {kind}, whose graph cannot be read; it can only be computed whole.")
    if not is_of_keras(model, "call"):
        raise CannotSplit(f"{model.name} has a call of its own, so that its graph does not describe the computation.")
    for node in graph_nodes(model):
        if is_graph(node.operation):
            _check_graph(node.operation)
            options = node.arguments.kwargs
            if options.get("training") or set(options) - {"training", "mask"}:
                raise CannotSplit(f"{node.operation.name} is called inside {model.name} with options of its own.")


def _replay(graph, tensors):
    """Call the layers of a graph again, those of nested models one by one; masks then become part of the graph."""
    import keras

    for node in graph_nodes(graph):
        if node.is_input:
            continue
        args, options = node.arguments.fill_in(tensors)
        if is_graph(node.operation):
            inner = functional_graph(node.operation)
            given = _inputs_for(inner, args[0] if args else options.get("inputs"))
            for tensor, mask in zip(given, keras.tree.flatten(options.get("mask"))):
                if mask is not None:
                    set_mask(tensor, mask)
            inner_tensors = dict(zip(map(id, inner.inputs), given))
            _replay(inner, inner_tensors)
            outputs = [inner_tensors[id(t)] for t in inner.outputs]
        else:
            outputs = keras.tree.flatten(node.operation(*args, **options))
        tensors.update(zip(map(id, node.outputs), outputs))


def _inputs_for(inner, given):
    """Return the inputs of a nested model as it converts them: taken by name, and cast to its dtypes."""
    import keras

    if isinstance(given, dict) and not isinstance(inner.input, dict):
        given = [given[t.name] for t in inner.inputs]
    given = keras.tree.flatten(given)
    if [len(t.shape) for t in given] != [len(t.shape) for t in inner.inputs]:
        raise CannotSplit(f"{inner.name} is called with other inputs than it was made for.")
    return [t if t.dtype == own.dtype else keras.ops.cast(t, own.dtype) for t, own in zip(given, inner.inputs)]
