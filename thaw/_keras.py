"""Every private Keras attribute that thaw relies on; ``tests/test_keras_private.py`` tests what is assumed of each.

Nothing else in thaw may read an attribute of Keras that starts with an underscore, so that a new Keras release
breaks one file and one test.
"""

from __future__ import annotations

# Layers and their variables


def sublayers(layer, include_self=True):
    """Return the layer and every layer inside it, those without weights too."""
    return list(layer._flatten_layers(include_self=include_self, recursive=True))


def learnable_variables(layer):
    """Return the variables that one layer (not the layers inside it) trains when it is trainable, frozen now or not."""
    return list(getattr(layer, "_trainable_variables", ()))


def trainable_flag(layer):
    """Return a layer's own ``trainable`` flag, whatever the layers around it say."""
    return layer._trainable


def set_trainable_flag(layer, flag):
    """Set a layer's own flag and no other: the public setter also sets every variable and every layer inside."""
    layer._trainable = flag


def set_layer_trainable(layer, flag, left_out=frozenset()):
    """Set ``trainable`` of one layer and of its own variables but those in ``left_out``, a set of their ids.

    The layers inside it are not set.

    Keras' own setter sets every variable, and thaws with it the base weights of a layer with LoRA and what a user
    froze by ``variable.trainable = False``. These stay frozen here, also where the layer itself is frozen meanwhile.
    """
    base = lora_base_variables(layer)
    for variable in learnable_variables(layer):
        was_left_out = getattr(variable, "_thaw_left_out", False) and not variable.trainable
        # In a frozen layer all of them are frozen, which says nothing about one of them.
        if layer._trainable and not was_left_out:
            variable._thaw_frozen_alone = not variable.trainable
        alone = getattr(variable, "_thaw_frozen_alone", False) or any(variable is other for other in base)
        variable._thaw_left_out = flag and id(variable) in left_out
        variable.trainable = flag and not alone and not variable._thaw_left_out
    layer._trainable = flag


def lora_base_variables(layer):
    """Return the variables of a layer that LoRA adapts, and that ``enable_lora`` therefore froze."""
    if not getattr(layer, "lora_enabled", False):
        return []
    return [v for name in ("_kernel", "_embeddings") if (v := getattr(layer, name, None)) is not None]


# Graphs


def functional_graph(model):
    """Return the functional model that holds the graph: for a sequential model the one inside it, else the model."""
    return getattr(model, "_functional", None) or model


def graph_nodes(model):
    """Return the nodes of a functional or sequential model, inputs first; ``None`` where there is no graph."""
    by_depth = getattr(functional_graph(model), "_nodes_by_depth", None)
    return None if by_depth is None else [n for depth in sorted(by_depth, reverse=True) for n in by_depth[depth]]


def run_graph(model, inputs, replace):
    """Compute a functional or sequential model with ``replace(operation)`` called in place of each operation."""
    graph = functional_graph(model)
    outputs = graph._run_through_graph(graph._standardize_inputs(inputs), operation_fn=replace)
    return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs


def operation_of(tensor):
    """Return the layer or operation that makes a symbolic tensor."""
    return tensor._keras_history.operation


def node_counts(operation):
    """Return how many nodes Keras has noted on an operation: ``(inbound, outbound)``."""
    return len(operation._inbound_nodes), len(operation._outbound_nodes)


def truncate_nodes(operation, counts):
    """Forget the nodes of an operation that were noted after :func:`node_counts`."""
    inbound, outbound = counts
    del operation._inbound_nodes[inbound:]
    del operation._outbound_nodes[outbound:]


def mask_of(tensor):
    """Return the mask that a tensor carries, or ``None``."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor, mask):
    """Let a tensor carry a mask."""
    tensor._keras_mask = mask


# Compilation


def compile_settings(model):
    """Return what the user gave to ``compile``, as it was given; ``{}`` for a model that was never compiled."""
    config = getattr(model, "_compile_config", None)
    return {} if config is None else dict(config.config)


def forget_compiled_metrics(model):
    """Drop the metrics of an earlier ``compile``, which ``compile(metrics=None)`` leaves behind."""
    model._compile_metrics = None


def loss_variables(model):
    """Return the variables of the mean loss that ``fit`` reports."""
    return model._loss_tracker.variables


def build_training(model, element_spec):
    """Build the metrics and the optimizer for a batch of this spec: made in the first step, they trace it twice."""
    model._symbolic_build(data_batch=element_spec)


def changed_since_compile(model):
    """Say whether a layer's ``trainable`` flag differs from what it was at ``compile``, which ``fit`` goes by."""
    then = getattr(model, "_compiled_trainable_state", {})
    return model.compiled and any(layer.trainable != was for layer, was in then.items())


# Metrics


def metric_direction(metric):
    """Return ``"max"`` or ``"min"``, whichever direction a metric declares to be better; ``None`` where it does not."""
    return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", None))


def metric_function(metric):
    """Return ``(function, options)`` of a metric that is a mean over examples, else ``(metric, {})``."""
    return getattr(metric, "_fn", metric), getattr(metric, "_fn_kwargs", {})


def metric_variables(metric):
    """Return the list of a metric's own variables, which some metrics fill at the first batch."""
    return metric._variables


def forget_metric_variables(metric, count):
    """Forget the variables of a metric beyond the first ``count``."""
    for ids in metric._tracker.stored_ids.values():
        ids.difference_update(map(id, metric._variables[count:]))
    del metric._variables[count:]


# Saving


def serialized_as(cls):
    """Return a ``__class__`` for the body of a subclass of ``cls``, whose objects are then saved as objects of ``cls``.

    Keras' serializer names the class that an object says it is of, by its ``__class__``.
    """
    return property(lambda self: cls)


# Optimizers


def inner_optimizer(optimizer):
    """Return the optimizer inside a ``LossScaleOptimizer``, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def variable_key(optimizer, variable):
    """Return the key by which an optimizer knows a variable."""
    return inner_optimizer(optimizer)._var_key(variable)


def copy_weight_decay_exclusions(source, target):
    """Exclude from an optimizer's weight decay what another one excludes: it is set by a call, and in no config."""
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))


def is_patched(optimizer):
    """Say whether an optimizer's step was changed on the instance, which a copy from its config would not have."""
    return bool({"update_step", "_apply_weight_decay"} & set(getattr(inner_optimizer(optimizer), "__dict__", ())))


def patch_update_step(optimizer, wrap):
    """Replace ``update_step`` on the instance by ``wrap(update_step)``; the class stays, so that a saved file opens."""
    inner = inner_optimizer(optimizer)
    inner.update_step = wrap(inner.update_step)


def scale_weight_decay(optimizer, factor_of):
    """Apply decoupled weight decay at ``factor_of(variable)`` times the learning rate, on the instance.

    Keras reads the rate inside, for each variable. Variables are therefore grouped by factor, and the rate is computed
    once: a schedule for every variable makes the step longer, and its tracing a lot.
    """
    inner = inner_optimizer(optimizer)
    apply_decay, current_rate = inner._apply_weight_decay, inner._get_current_learning_rate

    def scaled_weight_decay(variables):
        groups, rate = {}, current_rate()
        for variable in variables:
            groups.setdefault(factor_of(variable), []).append(variable)
        try:
            for factor, group in groups.items():
                scaled = rate * factor
                inner._get_current_learning_rate = lambda scaled=scaled: scaled
                apply_decay(group)
        finally:
            inner._get_current_learning_rate = current_rate

    inner._apply_weight_decay = scaled_weight_decay


def learning_rate_of_last_step(optimizer):
    """Return the rate of the step that is over; ``optimizer.learning_rate`` of a schedule is that of the next one."""
    inner = inner_optimizer(optimizer)
    rate = inner._learning_rate
    # Under a strategy of tf.distribute int() cannot convert the counter, which is several variables in one.
    return rate(max(0, int(inner.iterations.numpy()) - 1)) if callable(rate) else inner.learning_rate


def moving_averages(optimizer):
    """Return ``(variable, average)`` for each variable of a built optimizer with ``use_ema=True``, else ``[]``."""
    inner = inner_optimizer(optimizer)
    if not (getattr(inner, "use_ema", False) and inner.built):
        return []
    return list(zip(inner._trainable_variables, inner._model_variables_moving_average))
