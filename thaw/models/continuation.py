"""Go on with a model trained earlier, for other classes or a table with more columns, and keep what was learned."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections import Counter
from typing import Any

import numpy as np

from thaw._keras import compile_settings, functional_graph, graph_nodes
from thaw._validation import as_seed, check_model
from thaw.data.class_names import class_name, similar_names
from thaw.data.column_kinds import MISSING, Column
from thaw.data.splits import SPLITS
from thaw.models.ensemble_heads import attach_ensemble_heads, has_ensemble_heads
from thaw.models.flat import open_model, unpack_single
from thaw.models.heads import compile_classifier, task_of
from thaw.models.linear_heads import linear_head
from thaw.models.table_backbone import MIN_ROWS_OF_CATEGORY, table_backbone
from thaw.models.weighted_means import averaged_tensors
from thaw.tasks import Task, loss_name

_KINDS = {"softmax": "one class of several", "sigmoid": "several labels at once", "linear": "numbers"}


def continue_head(model, old_labels, new_task):
    """Put a head for other classes on a trained model, which keeps what it has learned of those with the same name.

    The kernel columns and the bias of a class, a label or a number that the source task has too are taken from the
    trained head; those of the others are zero. So before training the logits of the classes that stay are those of the
    source model, and their probabilities have the same ratios; a class that is new begins at the logit 0, a label at
    the probability 0.5, and a number at the mean of its training targets. Classes that the target task does not have
    are left out. Numbers that are standardized otherwise are predicted in the same units.

    All below the last dense layer, hidden dense layers, dropout and the features of a wide head included, belongs to
    both models: it is shared, not copied. Give ``copy_model(model)`` to keep the source model from being trained along.

    Args:
        model: functional or sequential ``keras.Model`` that ends in a dense layer, as that of :func:`thaw.attach_head`,
            or in the heads of an ensemble, as that of :func:`thaw.table_model`.
        old_labels: names of the source task's classes, labels or numbers in the order of the model's outputs, two for a
            single sigmoid unit; or the source task itself.
        new_task: the target task, with names: :class:`thaw.Classification`, :class:`thaw.MultiLabel` or
            :class:`thaw.Regression`, as in ``splits.task``.

    Returns:
        A plain ``keras.Model`` with ``new_task.units`` outputs, compiled as by :func:`thaw.attach_head`.

    Raises:
        ValueError: a model without a linear head, or one for another kind of task; other numbers of labels than of
            outputs; or no name in common.

    Warns:
        UserWarning: a name that is new differs only in form from one of the source task, as Cat and cat do.

    Example:
        >>> import keras
        >>> from thaw import Classification
        >>> from thaw.models.continuation import continue_head
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
        >>> more = continue_head(model, ["ant", "bee"], Classification(["ant", "bee", "wasp"]))
        >>> more.output_shape, more.layers[-1].kernel.numpy()[:, 2].tolist()
        ((None, 3), [0.0, 0.0, 0.0, 0.0])
    """
    import keras
    from keras import layers

    check_model(model)
    names = _checked_names(old_labels, new_task)
    if graph_nodes(model) is not None and has_ensemble_heads(model):
        head = _ensemble_head(model)
        kernel, bias = _continued(model, head, names, new_task)
        features = _called_again(model, {id(t): t for t in model.inputs}, head.features, _renamed(model))
        backbone = keras.Model(functional_graph(model).input, features, name=model.name)
        return _with_members(backbone, new_task, kernel, bias)
    flat = open_model(model)
    linear = linear_head(flat)
    features = next(node for node in graph_nodes(flat) if node.operation is linear.dense).input_tensors[0]
    head = _Head(linear.dense, features, _activation_of(model), linear.units)
    kernel, bias = _continued(model, head, names, new_task)
    dense = layers.Dense(new_task.units, activation=new_task.activation, dtype="float32", name=linear.dense.name)
    outputs = dense(features)
    if getattr(new_task, "deviation", None) is not None:
        units = layers.Rescaling(list(new_task.deviation), list(new_task.mean), dtype="float32", name="head_units")
        outputs = units(outputs)
    continued = keras.Model(unpack_single(flat.input), outputs, name=model.name)
    dense.set_weights([kernel, bias])
    compile_classifier(continued, new_task)
    return continued


@dataclasses.dataclass(frozen=True, eq=False)
class _Head:
    """The last layer with weights: what it reads, what it predicts, and the layer with the units of its numbers."""

    layer: Any
    features: Any
    activation: str | None
    units: Any = None


def _checked_names(labels, task):
    """Return the names of the source task."""
    if not isinstance(task, Task):
        raise ValueError(f"new_task={task!r}; expected a task with the names of its classes, such as splits.task.")
    if isinstance(labels, str):
        raise ValueError(f"old_labels={labels!r}; expected a list of names, one for each output of the model.")
    names = list(map(str, _names_of(labels) if isinstance(labels, Task) else labels))
    if twice := [name for name, count in Counter(map(class_name, names)).items() if count > 1]:
        raise ValueError(f"old_labels names {twice[0]!r} more than once; expected different names.")
    return names


def _names_of(task):
    return getattr(task, "labels", None) or task.targets


def _activation_of(model):
    """Return the activation of the task that a model was trained for; ``None`` where a linear layer leaves it open."""
    import keras

    if (task := task_of(model)) is not None:
        return task.activation
    losses = keras.tree.flatten(compile_settings(model).get("loss"))
    losses = [loss_name(loss)[0] for loss in losses if loss is not None]
    if any("binary" in loss for loss in losses) and model.outputs[0].shape[-1] > 1:
        return "sigmoid"
    return "softmax" if any("crossentropy" in loss for loss in losses) else None


def _continued(model, head, names, task):
    """Return the kernel and the bias of the head for another task."""
    if head.activation not in (None, task.activation):
        raise ValueError(
            f"{model.name} was trained to predict {_KINDS[head.activation]}, and new_task is about "
            f"{_KINDS[task.activation]}; expected the same kind. For another write attach_head(remove_head(model), "
            "new_task)."
        )
    if getattr(head.layer, "quantization_mode", None):
        raise ValueError(f"The head of {model.name} is quantized; expected the model from before quantize().")
    kernel = _numbers_of(head.layer.kernel)
    bias = np.zeros(kernel[..., 0, :].shape) if head.layer.bias is None else _numbers_of(head.layer.bias)
    if task.activation == "softmax" and kernel.shape[-1] == 1:  # the probability of class 1
        kernel, bias = (np.concatenate([np.zeros_like(part), part], axis=-1) for part in (kernel, bias))
    units = kernel.shape[-1]
    if len(names) != units:
        raise ValueError(f"old_labels are {len(names)} names and {model.name} has {units} outputs; expected as many.")
    found = _positions(names, _names_of(task))
    scale, offset = (1.0, 0.0) if head.units is None else (head.units.scale, head.units.offset)
    scale, offset = (np.broadcast_to(np.asarray(part, np.float64), units) for part in (scale, offset))
    deviation = np.ones(task.units) if getattr(task, "deviation", None) is None else np.asarray(task.deviation)
    mean = np.zeros(task.units) if getattr(task, "mean", None) is None else np.asarray(task.mean)
    kernels, biases = np.zeros((*kernel.shape[:-1], task.units)), np.zeros((*bias.shape[:-1], task.units))
    for new, old in found.items():
        kernels[..., new] = kernel[..., old] * (scale[old] / deviation[new])
        biases[..., new] = (bias[..., old] * scale[old] + offset[old] - mean[new]) / deviation[new]
    return kernels.astype(np.float32), biases.astype(np.float32)


def _numbers_of(variable):
    import keras

    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")), np.float64)


def _positions(names, wanted):
    """Return which of the wanted names are there, as a dict from a position in them to one in the names."""
    position = {class_name(name): i for i, name in enumerate(names)}
    found = {i: position[class_name(name)] for i, name in enumerate(wanted) if class_name(name) in position}
    if not found:
        shown = " and ".join(f"{', '.join(part[:4])}{', ...' if len(part) > 4 else ''}" for part in (wanted, names))
        raise ValueError(
            f"new_task and old_labels have no name in common ({shown}), so that nothing would be kept; write "
            "attach_head(remove_head(model), new_task)."
        )
    added = {name for i, name in enumerate(wanted) if i not in found}
    for group in similar_names({*names, *wanted}):
        if (new := sorted(added & set(group))) and (known := sorted(set(group) & set(names))):
            text = f"{new[0]!r} begins at zero, and differs in form only from {known[0]!r}"
            warnings.warn(f"{text}; if they are one, use one name.", stacklevel=4)
    return found


# ---- tables


def last_of_blend(model):
    """Return the last model of a blend, the tuned one in those of ``tune``; any other model as it is.

    Args:
        model: ``keras.Model``.

    Example:
        >>> import keras
        >>> from thaw.models.continuation import last_of_blend
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
        >>> last_of_blend(model) is model
        True
    """
    import keras

    flat = open_model(model)
    made_by = {id(tensor): node for node in graph_nodes(flat) or () for tensor in node.output_tensors}
    node = made_by.get(id(flat.outputs[0]))
    averaged = () if node is None else averaged_tensors(node, made_by)
    return keras.Model(unpack_single(flat.input), averaged[-1], name=model.name) if averaged else model


def continue_table(model, old_columns, new_splits, *, old_labels=None, seed=0):
    """Continue a trained model for tables with a table that has more columns, more categories or other classes.

    The continued model predicts what the source model does until it is trained: columns that are new, and signs that a
    value is missing in columns that had no gaps, are read with weights of zero; a category that is new begins with the
    vector that those never seen share, under which the source model has read it; classes are as in
    :func:`continue_head`. The intervals of numbers, and what stands for a missing value, stay those of the source
    model's training rows. (A column whose values are now of another size should get another name, and begins at zero.)

    Hidden layers but for the first one belong to both models: they are shared, not copied. Give ``copy_model(model)``
    to keep the source model from being trained along.

    Args:
        model: ``keras.Model`` of :func:`thaw.table_model`, trained, or one that was continued already.
        old_columns: its columns, ``splits.columns`` of the table that it was trained on.
        new_splits: what :func:`thaw.load_table` returns for the new table, with all columns of the source model.
        old_labels: names of the source model's classes or numbers in the order of its outputs, or its task. Default
            ``None``: those of ``new_splits``.
        seed: int, seed of what is added. Default 0.

    Returns:
        ``(model, splits)``: the compiled ``keras.Model``, and the new splits as it reads them: where a value is
        missing, ``splits.columns`` and the datasets hold what the source model was given.

    Raises:
        ValueError: another model; a column of the source model that is not there, or holds another kind of values; or
            labels as in :func:`continue_head`.

    Example:
        >>> from thaw import load_table, table_model
        >>> from thaw.models.continuation import continue_table
        >>> table = {"a": [i % 7 for i in range(60)], "label": [["no", "yes"][i % 7 > 3] for i in range(60)]}
        >>> splits = load_table(table)
        >>> model = table_model(splits, width=8)
        >>> more = load_table(table | {"town": [["Ulm", "Bonn", "Kiel"][i % 3] for i in range(60)]})
        >>> continued, more = continue_table(model, splits.columns, more)
        >>> sorted(continued.input), more.labels
        (['a', 'town'], ('no', 'yes'))
    """
    import keras

    check_model(model)
    seed = as_seed(seed)
    _check_table_model(model, old_columns)
    names = _checked_names(new_splits.task if old_labels is None else old_labels, new_splits.task)
    columns, added = _merged(old_columns, new_splits.columns)
    splits = _with_columns(new_splits, columns)
    head = _ensemble_head(model)
    kernel, bias = _continued(model, head, names, splits.task)
    inputs = {}
    for column in columns:
        for name in column.inputs:
            dtype = "string" if column.kind == "category" else "float32"
            inputs[name] = keras.Input((1,), dtype=dtype, name=name)
    replaced = _renamed(model) | _grown_categories(model, old_columns, splits.train.x)
    if added:
        replaced |= _widened(model, *_added_features(model, added, inputs, splits.train.x, seed))
    tensors = {id(model.input[name]): inputs[name] for name in model.input}
    hidden = _called_again(model, tensors, head.features, replaced)
    backbone = keras.Model(dict(sorted(inputs.items())), hidden, name=model.name)
    return _with_members(backbone, splits.task, kernel, bias, seed), splits


def _check_table_model(model, columns):
    names = {operation.name for operation in _operations(model)} if graph_nodes(model) is not None else set()
    if not {"table_members", "table_hidden1", "head_members"} <= names or not isinstance(model.input, dict):
        raise ValueError(f"{model.name} is no model for tables; expected one of thaw.table_model.")
    expected, taken = (", ".join(sorted(part)) for part in ({n for c in columns for n in c.inputs}, model.input))
    if expected != taken:
        raise ValueError(
            f"old_columns are the inputs {expected}, and {model.name} takes {taken}; expected splits.columns of the "
            "table that it was trained on."
        )


def _operations(model):
    return [node.operation for node in graph_nodes(model) if not node.is_input]


def _merged(old, new):
    """Return the columns of the continued model, in the order of the new table, and those whose inputs are added."""
    by_name, columns, added = {column.name: column for column in old}, [], []
    if gone := [name for name in by_name if name not in {column.name for column in new}]:
        raise ValueError(
            f"The new table has no column {gone[0]!r} to predict from, which the model reads; add it, or name it in "
            "load_table(..., columns=...) where it was left out."
        )
    for column in new:
        known = by_name.get(column.name)
        if known is None:
            columns.append(column)
            added.append(column)
            continue
        if column.kind != known.kind:
            raise ValueError(
                f"The column {column.name!r} is a {column.kind} and the model reads a {known.kind}; write "
                f"load_table(..., columns={{{column.name!r}: {known.kind!r}}}), or give the column another name."
            )
        merged = dataclasses.replace(column, fill=known.fill, missing=column.missing or known.missing)
        columns.append(merged)
        if len(merged.inputs) > len(known.inputs):
            added.append(Column(column.name + MISSING, "boolean"))  # the sign alone
    return tuple(columns), added


def _with_columns(splits, columns):
    """Return splits whose gaps are filled, and named, as the columns say."""
    parts = {}
    for split in SPLITS:
        if (data := getattr(splits, split)) is None:
            continue
        x = dict(data.x)
        for column in columns:
            name, *sign = column.inputs
            if sign:
                gaps = x.get(sign[0], np.zeros_like(x[name]))  # none in training, where there is no sign
                x[name], x[sign[0]] = np.where(gaps == 1, np.float32(column.fill), x[name]), gaps
        parts[split] = data.replace(x=dict(sorted(x.items())))
    return dataclasses.replace(splits, **parts, columns=columns)


def _ensemble_head(model):
    """Read the heads of an ensemble."""
    from keras import layers

    nodes = graph_nodes(model)
    node = _node_named(nodes, "head_members")
    units = [node.operation for node in nodes if type(node.operation) is layers.Rescaling]
    units = [layer for layer in units if layer.name == "head_units"]
    is_softmax = any(type(node.operation) is layers.Softmax for node in nodes)
    return _Head(
        node.operation, node.input_tensors[0], "softmax" if is_softmax else "linear", units[0] if units else None
    )


def _node_named(nodes, name):
    return next(node for node in nodes if not node.is_input and node.operation.name == name)


def _with_members(backbone, task, kernel, bias, seed=0):
    """Put the heads of an ensemble on a backbone, with the weights given."""
    model = attach_ensemble_heads(backbone, task, seed=seed)
    model.get_layer("head_members").set_weights([kernel, bias])
    return model


def _renamed(model):
    """Return the operations that are no layers with names that nothing else has, by the ids of the ones in the model.

    In a model from a file they have the names that Keras gives to the next ones.
    """
    import keras

    others = [operation for operation in _operations(model) if not isinstance(operation, keras.Layer)]
    without_name = [{k: v for k, v in operation.get_config().items() if k != "name"} for operation in others]
    return {id(one): type(one).from_config(config) for one, config in zip(others, without_name)}


def _called_again(model, tensors, target, replaced=None):
    """Call the operations of a graph again, up to one of its tensors, and return what stands for it.

    Args:
        model: functional ``keras.Model``.
        tensors: what stands for the inputs of the model, by their ids.
        target: a tensor of the graph.
        replaced: what is called instead of an operation, by the id of the operation. Default ``None``.
    """
    import keras

    tensors = dict(tensors)
    for node in graph_nodes(model):
        if id(target) in tensors:
            break
        if not node.is_input:
            args, options = node.arguments.fill_in(tensors)
            outputs = (replaced or {}).get(id(node.operation), node.operation)(*args, **options)
            tensors.update(zip(map(id, node.outputs), keras.tree.flatten(outputs)))
    return tensors[id(target)]


def _grown_categories(model, columns, x):
    """Return layers that know the categories of more rows, by the ids of those whose place they take."""
    from keras import layers

    nodes, replaced = graph_nodes(model), {}

    def reader(tensor):
        return next(node for node in nodes if id(tensor) in map(id, node.input_tensors))

    for column in columns:
        if column.kind != "category":
            continue
        name = column.inputs[0]
        lookup = reader(model.input[name])
        vectors = reader(lookup.outputs[0]).operation
        known = lookup.operation.get_vocabulary(include_special_tokens=False)
        counts = Counter(np.asarray(x[name]).ravel().tolist())
        new = sorted(c for c, count in counts.items() if count >= MIN_ROWS_OF_CATEGORY and c not in known)
        if not new:
            continue
        rows = _numbers_of(vectors.embeddings)[: len(known) + 1]
        rows = np.concatenate([rows, np.repeat(rows[:1], len(new), axis=0)])  # the first is that of the never seen
        embedding = layers.Embedding(*rows.shape, name=vectors.name)
        embedding.build()
        embedding.set_weights([rows])
        table = layers.StringLookup(vocabulary=[*known, *new], name=lookup.operation.name)
        replaced |= {id(lookup.operation): table, id(vectors): embedding}
    return replaced


def _added_features(model, added, inputs, x, seed):
    """Build the features of added columns, what the members scale them by, and a number that no name has yet."""
    members = _node_named(graph_nodes(model), "table_members").operation.kernel.shape[0]
    fresh = table_backbone(added, x, members=members, width=1, depth=1, seed=seed)
    scale = _node_named(graph_nodes(fresh), "table_members")
    taken = {operation.name for operation in _operations(model)}
    number = next(n for n in itertools.count(1) if f"table_columns_added{n}" not in taken)
    for operation in _operations(fresh):  # no two of one name fit in a graph
        operation.name = f"{operation.name}_added{number}"
    features = _called_again(
        fresh, {id(fresh.input[name]): inputs[name] for name in fresh.input}, scale.input_tensors[0]
    )
    return features, _numbers_of(scale.operation.kernel), number


def _widened(model, features, scales, number):
    """Return a layer that also scales added features, and one that reads them with weights of zero."""
    from keras import layers

    members, dense = (_node_named(graph_nodes(model), name).operation for name in ("table_members", "table_hidden1"))

    def scale(h):
        kernel = np.concatenate([_numbers_of(members.kernel), scales], axis=1)
        layer = layers.EinsumDense("bd,kd->bkd", kernel.shape, name=members.name)
        outputs = layer(layers.Concatenate(name=f"table_columns_added{number}")([h, features]))
        layer.set_weights([kernel])
        return outputs

    def read(h):
        kernel = _numbers_of(dense.kernel)
        layer = layers.Dense(dense.units, activation=dense.activation, name=dense.name)
        outputs = layer(h)
        layer.set_weights([np.pad(kernel, ((0, features.shape[-1]), (0, 0))), _numbers_of(dense.bias)])
        return outputs

    return {id(members): scale, id(dense): read}
