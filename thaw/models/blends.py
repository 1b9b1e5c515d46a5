"""Blend models: the weighted mean of their probabilities in one graph, which computes what they share once."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from typing import Any

import numpy as np

from thaw._keras import (
    compile_settings,
    graph_nodes,
    mask_of,
    operation_of,
    set_trainable_flag,
    sublayers,
    trainable_flag,
)
from thaw._validation import as_number, check_model
from thaw.models.flat import flatten_model, unpack_single
from thaw.models.heads import compile_classifier, last_units, output_activation, task_of
from thaw.models.loading import unsaveable_reason
from thaw.models.preprocessing import finalize_normalizations
from thaw.models.state import preserve_rng
from thaw.tasks import loss_name


def blend_models(models, shares=None, name=None):
    """Blend models: the weighted mean of their probabilities, in one graph that computes what they share once.

    The mean of the probabilities of several models is often better than each of them, in its log loss above all
    (Lakshminarayanan et al. 2017), the more so, the less their errors have in common. A layer is shared where it is
    called on the same tensors and is the same layer, or one of the same class and configuration with bit-identical
    weights: models that were tuned from the same backbone share what was frozen. Of a solved head on frozen features
    and a model whose top stage was tuned, the blend costs the top stage twice and all below once.

    The blend is a copy: it shares no variable with the models, which may be trained further without changing it. Copy
    a model (:func:`thaw.models.copy_model`) before the layers that it shares with another are trained: a head that was
    solved on a backbone changes when the backbone is tuned.

    Args:
        models: list of two or more functional or sequential ``keras.Model``, flat or nested, with the same input and
            the same number of outputs, that end in a softmax, in sigmoid units, or in the logits of either, which go
            through a softmax, for a single unit or a model compiled with a binary crossentropy through a sigmoid.
        shares: list of numbers above 0, one for each model, which are divided by their sum. Default ``None``: equal.
            :func:`thaw.transfer.choose_blend` chooses them.
        name: name of the blend. Default ``None``: that of the last model.

    Returns:
        A plain ``keras.Model`` that puts out probabilities ``(units,)`` in float32, made of standard layers and those
        of the models; compiled as :func:`thaw.attach_head` compiles it, unless it has several sigmoid units. Its layers
        are frozen where they are frozen in the models. ``remove_head`` of it is the backbone of the last model.

    Raises:
        ValueError: fewer than two models, models of different inputs or outputs, one that does not put out
            probabilities or logits, one without a graph or that cannot be saved, or invalid shares.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.models import blend_models
        >>> entry = keras.Input((4,))
        >>> frozen = keras.layers.Dense(3)(entry)
        >>> models = [keras.Model(entry, keras.layers.Dense(2, "softmax")(frozen)) for _ in range(2)]
        >>> blend = blend_models(models, shares=[0.25, 0.75])
        >>> len(blend.weights)
        6
        >>> x = np.ones((1, 4))
        >>> np.allclose(blend(x), 0.25 * models[0](x) + 0.75 * models[1](x))
        True
    """
    from keras import layers

    models = list(models)
    for model in models:
        check_model(model)
    if len(models) < 2:
        raise ValueError(f"There are {len(models)} models; expected at least two to blend.")
    shares = _checked_shares(models, shares)
    graphs = [flatten_model(model, training=False) for model in models]
    kinds = _checked_outputs(models)
    _check_inputs(models, graphs)
    for model in models:
        if reason := unsaveable_reason(model):
            raise ValueError(" ".join(reason))
    with preserve_rng():  # new layers draw weights, which are then replaced
        merged = _MergedGraph()
        entries = merged.inputs_like(graphs[0])
        parts = []
        for graph, model, kind in zip(graphs, models, kinds):
            [p] = merged.add(graph, entries)
            if output_activation(model) == "logits":
                p = layers.Activation(kind, dtype="float32", name=merged.unique_name("blend_" + kind))(p)
            parts.append(p)
        scaled = [
            layers.Rescaling(share, dtype="float32", name=merged.unique_name("blend_share"))(p)
            for share, p in zip(shares, parts)
        ]
        mean = layers.Add(dtype="float32", name=merged.unique_name("blend_mean"))(scaled)
        blend = merged.model(graphs[0], entries, mean, name or models[-1].name)
    task = task_of(blend)
    if task is not None:
        compile_classifier(blend, task)
    return blend


def copy_model(model):
    """Copy a model: the same computation on layers of its own, such as a solved head before its backbone is tuned.

    Args:
        model: functional or sequential ``keras.Model``, flat or nested.

    Returns:
        A ``keras.Model`` with nested models opened, with the same name, weights and ``trainable`` flags; not compiled.

    Raises:
        ValueError: a model without a graph, or a layer that cannot be built again from its configuration.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.models import copy_model
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> copy = copy_model(model)
        >>> model.layers[0].kernel.assign([[5.0], [5.0]])                   # doctest: +ELLIPSIS
        <...>
        >>> copy(np.ones((1, 2))).numpy().tolist()
        [[2.0]]
    """
    import keras

    check_model(model)
    graph = flatten_model(model, training=False)
    with preserve_rng():
        merged = _MergedGraph()
        entries = merged.inputs_like(graph)
        outputs = keras.tree.pack_sequence_as(graph.output, merged.add(graph, entries))
        return merged.model(graph, entries, unpack_single(outputs), model.name)


def _checked_shares(models, shares):
    """Return shares that sum to 1."""
    shares = [1.0] * len(models) if shares is None else list(shares)
    if len(shares) != len(models):
        raise ValueError(f"There are {len(shares)} shares for {len(models)} models; expected one for each.")
    numbers = [as_number(share) for share in shares]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) and n > 0 for n in numbers):
        raise ValueError(f"shares={shares!r}; expected finite numbers above 0; leave out a model without a share.")
    total = math.fsum(numbers)
    return [n / total for n in numbers]


def _checked_outputs(models):
    """Return ``"softmax"`` or ``"sigmoid"`` for each model: what its probabilities are made by."""
    kinds = []
    for model in models:
        if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
            shapes = ", ".join(str(tuple(t.shape[1:])) for t in model.outputs)
            raise ValueError(
                f"{model.name} has outputs of shape {shapes}; expected one, of a probability for each class."
            )
        kind = _probabilities_of(model)
        if kind is None:
            raise ValueError(
                f"{model.name} does not end in probabilities or their logits, whose mean could be taken; expected a "
                "softmax, sigmoid units, or a linear dense layer that is trained with a crossentropy."
            )
        kinds.append(kind)
    described = [(kind, model.outputs[0].shape[-1]) for kind, model in zip(kinds, models)]
    for model, other in zip(models[1:], described[1:]):
        if other != described[0]:
            raise ValueError(
                f"{models[0].name} ends in {last_units(models[0])} and {model.name} in {last_units(model)}; expected "
                "models of the same classes."
            )
    return kinds


def _probabilities_of(model):
    import keras

    activation = output_activation(model)
    if activation != "logits":
        return activation if activation in ("softmax", "sigmoid") else None
    losses = [
        loss_name(loss)[0] for loss in keras.tree.flatten(compile_settings(model).get("loss")) if loss is not None
    ]
    if any("crossentropy" not in loss for loss in losses):
        return None
    is_single = model.outputs[0].shape[-1] == 1
    return "sigmoid" if is_single or any("binary" in loss for loss in losses) else "softmax"


def _check_inputs(models, graphs):
    import keras

    def described(graph):
        return keras.tree.map_structure(lambda t: f"{t.dtype} {tuple(t.shape)}", unpack_single(graph.input))

    first = described(graphs[0])
    for model, graph in zip(models[1:], graphs[1:]):
        if described(graph) != first:
            raise ValueError(
                f"{models[0].name} takes {first} and {model.name} {described(graph)}; expected models of the same "
                "input. Build them with the same input_shape."
            )


class _MergedGraph:
    """A graph to which the graphs of models are added, on copies of their layers."""

    def __init__(self):
        self._calls = {}  # from the ids of the tensors that are read to the calls that read them
        self._names = set()

    def unique_name(self, name):
        """Return a name that no layer has, and note it."""
        count, unique = 1, name
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def inputs_like(self, graph):
        """Return new inputs with the names, shapes and types of those of a graph."""
        entries = []
        for tensor in graph.inputs:
            layer = operation_of(tensor)
            entries.append(type(layer).from_config(layer.get_config()).output)
            self.unique_name(layer.name)
        return entries

    def model(self, graph, entries, outputs, name):
        """Return the model from these inputs, in the structure of those of a graph, to these outputs."""
        import keras

        inputs = keras.tree.pack_sequence_as(graph.input, entries)
        model = keras.Model(unpack_single(inputs), outputs, name=name)
        finalize_normalizations(model)
        return model

    def add(self, graph, entries):
        """Add a graph without nested models on these inputs, and return its outputs.

        What is here already is shared. A layer that is called again has one copy for all its calls.
        """
        tensors, own, shared = dict(zip(map(id, graph.inputs), entries)), {}, {}
        for node in graph_nodes(graph):
            if node.is_input:
                continue
            call = self._find(node, tensors, own)
            if call is None:
                # Attention deletes the mask of what it reads: another layer behind it would see none. What is shared
                # is called again for what is not, where it carries a mask.
                for tensor in node.input_tensors:
                    maker = shared.pop(id(tensors[id(tensor)]), None)
                    if maker is not None and mask_of(tensors[id(tensor)]) is not None:
                        again = maker.repeat()
                        tensors = {key: again.get(id(t), t) for key, t in tensors.items()}
                call = self._make(node, tensors, own)
            else:
                shared |= {id(output): call for output in call.outputs}
            own[id(node.operation)] = call.copy
            tensors.update(zip(map(id, node.outputs), call.outputs))
        return [tensors[id(tensor)] for tensor in graph.outputs]

    def _find(self, node, tensors, own):
        """Return the call that computes the same, if it is here already; else ``None``."""
        given, layer = node.arguments.fill_in(tensors), node.operation
        for call in self._calls.get(_ids_read(node, tensors), ()):
            same_layer = own[id(layer)] is call.copy if id(layer) in own else _same_layer(call.layer, layer)
            if same_layer and _same_arguments(call.given, given):
                return call
        return None

    def _make(self, node, tensors, own):
        """Call the copy of a layer, which is made at its first call."""
        import keras

        given, layer = node.arguments.fill_in(tensors), node.operation
        is_new = id(layer) not in own
        copy = _new_layer(layer, self.unique_name(layer.name)) if is_new else own[id(layer)]
        args, options = given
        call = _Call(layer, copy, given, keras.tree.flatten(copy(*args, **options)))
        if is_new and isinstance(layer, keras.Layer):
            _copy_state(layer, copy)
        self._calls.setdefault(_ids_read(node, tensors), []).append(call)
        return call


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call of the copy of a layer, with its arguments and its outputs."""

    layer: Any
    copy: Any
    given: tuple
    outputs: list

    def repeat(self):
        """Call it again; return a dict from the ids of the outputs to the new ones."""
        import keras

        args, options = self.given
        return dict(zip(map(id, self.outputs), keras.tree.flatten(self.copy(*args, **options))))


def _ids_read(node, tensors):
    return tuple(id(tensors[id(tensor)]) for tensor in node.input_tensors)


def _same_layer(layer, other):
    """Say whether two layers or operations compute the same: the same class, configuration and weights, bit by bit."""
    if layer is other:
        return True
    if type(layer) is not type(other) or hasattr(layer, "save_assets"):  # a table is in neither
        return False
    weights, others = getattr(layer, "weights", []), getattr(other, "weights", [])
    if [(w.shape, w.dtype) for w in weights] != [(w.shape, w.dtype) for w in others]:
        return False
    if _configuration(layer) != _configuration(other):
        return False
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(weights, others))


def _configuration(layer):
    """Return what a layer is made of, without names and without what is frozen."""
    import keras

    def without_names(value):
        if isinstance(value, dict):
            # A layer inside another one has both; a dtype policy has a name that counts.
            left_out = {"name", "trainable"} if {"name", "trainable"} <= set(value) else set()
            return {key: without_names(item) for key, item in value.items() if key not in left_out}
        return [without_names(item) for item in value] if isinstance(value, (list, tuple)) else value

    return without_names({"trainable": None} | keras.saving.serialize_keras_object(layer)["config"])


def _same_arguments(given, others):
    """Say whether two calls have the same arguments: the same tensors, and equal values."""
    import keras

    def same(a, b):
        if isinstance(a, keras.KerasTensor) or isinstance(b, keras.KerasTensor):
            return a is b
        return type(a) is type(b) and np.array_equal(a, b)

    try:
        keras.tree.assert_same_structure(given, others)
    except (ValueError, TypeError):  # another structure
        return False
    return all(map(same, keras.tree.flatten(given), keras.tree.flatten(others)))


def _new_layer(layer, name):
    """Build a layer or operation again, with another name; its weights are made at the first call."""
    config = layer.get_config()
    return type(layer).from_config(config | {"name": name} if "name" in config else config)


def _copy_state(layer, copy):
    """Give the copy of a layer its weights, its table and its ``trainable`` flags."""
    weights, new = layer.weights, copy.weights
    if [w.shape for w in weights] != [w.shape for w in new]:
        raise ValueError(
            f"{layer.name} cannot be copied: built from its configuration, it has {len(new)} weights of other shapes "
            f"than its {len(weights)}; let get_config of {type(layer).__name__} return all its arguments."
        )
    for old, now in zip(weights, new):
        now.assign(old)
        now.trainable = old.trainable
    for old, now in zip(sublayers(layer), sublayers(copy)):
        set_trainable_flag(now, trainable_flag(old))
        if getattr(old, "lora_enabled", False):  # Keras builds Dense and Embedding again with an alpha of the rank
            now.lora_alpha = old.lora_alpha
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)
