"""A model with the models inside it opened, so that it can be cut anywhere."""

from thaw.stages import graph_of, is_graph, is_of_keras, nodes_of
from thaw.tuning.part import as_it_was, operations_in, single


class CannotSplit(ValueError):
    """A model has no part that stands still in front and can be kept; the message says why.

    Example:
        >>> from thaw import CannotSplit
        >>> issubclass(CannotSplit, ValueError)
        True
    """


def flatten(model):
    """The same computation with nested models opened: a functional ``keras.Model`` over the same layers.

    Args:
        model: a functional or sequential ``keras.Model``.

    Returns:
        The model itself when it is flat and functional already.

    Raises:
        CannotSplit: there is no graph, or it does not say all that is computed.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise CannotSplit(f"{type(model).__name__} is not a keras.Model.")
    _check(model)
    for step in ("train_step", "test_step", "compute_loss"):
        if not is_of_keras(model, step):
            raise CannotSplit(f"{model.name} has a {step} of its own, which a part of the model would not have.")
    graph = graph_of(model)
    if not any(is_graph(node.operation) for node in nodes_of(graph)):
        return graph
    tensors = {id(t): t for t in graph.inputs}
    with as_it_was(operations_in(graph)):
        _replay(graph, tensors)
        outputs = keras.tree.map_structure(lambda t: tensors[id(t)], graph.output)
        flat = keras.Model(single(graph.input), single(outputs), name=model.name)
    flat.output_names = list(graph.output_names)
    return flat


def _check(model):
    """Is the graph of a model, and of every model inside, all that is computed?"""
    if nodes_of(model) is None:
        kind = "has no graph yet" if type(model).__module__.startswith("keras.") else "is a subclassed model"
        raise CannotSplit(f"{model.name} {kind}, whose graph cannot be read; it can only be computed whole.")
    if not is_of_keras(model, "call"):
        raise CannotSplit(f"{model.name} has a call of its own, so that its graph does not say what is computed.")
    for node in nodes_of(model):
        if is_graph(node.operation):
            _check(node.operation)
            options = node.arguments.kwargs
            if options.get("training") or set(options) - {"training", "mask"}:
                raise CannotSplit(f"{node.operation.name} is called inside {model.name} with options of its own.")


def _replay(graph, tensors):
    """Call the layers of a graph again, those of nested models one by one; masks then stand in the graph."""
    import keras

    for node in nodes_of(graph):
        if node.is_input:
            continue
        args, options = node.arguments.fill_in(tensors)
        if is_graph(node.operation):
            inner = graph_of(node.operation)
            given = _inputs_for(inner, args[0] if args else options.get("inputs"))
            for tensor, mask in zip(given, keras.tree.flatten(options.get("mask"))):
                if mask is not None:
                    tensor._keras_mask = mask
            inside = dict(zip(map(id, inner.inputs), given))
            _replay(inner, inside)
            outputs = [inside[id(t)] for t in inner.outputs]
        else:
            outputs = keras.tree.flatten(node.operation(*args, **options))
        tensors.update(zip(map(id, node.outputs), outputs))


def _inputs_for(inner, given):
    """What a nested model makes of what it is given: taken by name, and in the type it asks for."""
    import keras

    if isinstance(given, dict) and not isinstance(inner.input, dict):
        given = [given[t.name] for t in inner.inputs]
    given = keras.tree.flatten(given)
    if [len(t.shape) for t in given] != [len(t.shape) for t in inner.inputs]:
        raise CannotSplit(f"{inner.name} is called with other inputs than it was made for.")
    return [t if t.dtype == own.dtype else keras.ops.cast(t, own.dtype) for t, own in zip(given, inner.inputs)]
