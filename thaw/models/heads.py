"""Attach, recognize and remove the head of a model."""

import warnings

import numpy as np

from thaw._keras import compile_settings, functional_graph, graph_nodes
from thaw._validation import as_number, as_seed, check_model
from thaw.models.activations import output_activation, output_rescaling
from thaw.models.flat import open_model
from thaw.models.stages import calls_of
from thaw.models.taps import FEATURES, pooling_layer, wide_features
from thaw.models.weighted_means import averaged_tensors
from thaw.models.wide_heads import wide_head
from thaw.targets import MultiLabel, Regression
from thaw.tasks import Classification, Task, loss_name

# Losses of numbers: a linear layer under one of them predicts numbers, and no logits.
NUMBER_LOSSES = (
    *("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_logarithmic_error"),
    *("huber", "log_cosh"),
)
_HEAD_OPERATIONS = ("Mean", "Max", "Squeeze", "Reshape", "Softmax", "Sigmoid", "Cast")  # of keras.ops


def attach_head(backbone, task, *, features="last", dropout=None, pooling="avg", seed=0):
    """Put a head for a task on a backbone, and compile the model.

    The head is global pooling, dropout and one dense layer, whose weights start at zero (Kolesnikov et al. 2020): the
    first prediction is the same for every class, and the first gradients do not disturb the backbone. The dense layer
    is float32 also under mixed precision, since half precision would round small probabilities to zero.

    A *wide* head reads layers of many depths (Head2Toe, Evci et al. 2022): each is pooled, the vectors of a stage are
    concatenated, standardized by the constants of a frozen ``BatchNormalization``, which begin at mean 0 and variance
    1, and clipped at plus and minus 5. It has up to 20 times the features of a narrow one: solve it, or train it at a
    rate that is as many times lower. The stages of the model are the same as with a narrow head.

    Behind the dense layer of a standardized :class:`thaw.targets.Regression` a ``Rescaling`` puts its numbers back into
    the units of the targets: the first prediction is their mean.

    The model is compiled with AdamW (weight decay 1e-4, gradients clipped at a global norm of 1), the loss and the
    metrics of the task. Call ``compile`` again for others.

    Args:
        backbone: functional or sequential ``keras.Model`` without a head, whose output is a feature map ``(height,
            width, channels)``, a sequence ``(length, channels)`` or a vector. Its layers are shared, not copied.
        task: a task such as :class:`thaw.Classification`, as in ``splits.task``; or the number of classes, int, at
            least 2.
        features: ``"last"`` (default), the output of the backbone; ``"all"``, also the output of every activation and
            every residual sum, or in a transformer of every block; ``"upper"``, those of the last two stages only.
        dropout: fraction of the features dropped at each training step, 0 to below 1; default ``None``: 0.2 for
            ``"last"``, else 0.
        pooling: ``"avg"`` (default) or ``"max"``, over all positions.
        seed: int, seed of the dropout; default 0.

    Returns:
        A plain, compiled ``keras.Model`` from the backbone's input to ``(task.units,)`` predictions.

    Raises:
        ValueError: an invalid argument; a backbone that already has a head; or, for ``"upper"`` and ``"all"``, one of
            vectors alone, or with fewer weights than the head would have.

    Warns:
        UserWarning: the backbone ends in a linear dense layer behind its last feature map or sequence, which may be
            the logits of a head or features.

    Example:
        >>> from thaw import attach_head, backbone
        >>> model = attach_head(backbone(weights=None), 3)
        >>> model.output_shape, model.loss
        ((None, 3), 'sparse_categorical_crossentropy')
    """
    import keras
    from keras import layers

    check_model(backbone, "backbone")
    seed, task = as_seed(seed), task if isinstance(task, Task) else Classification.of(task)
    if features not in FEATURES:
        raise ValueError(f'features={features!r}; expected "last", "upper" or "all".')
    if dropout is None:
        dropout = 0.2 if features == "last" else 0
    if not isinstance(as_number(dropout), (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}; expected a fraction from 0 to below 1.")
    if pooling not in ("avg", "max"):
        raise ValueError(f'pooling={pooling!r}; expected "avg" or "max".')
    if graph_nodes(backbone) is None:
        raise ValueError(
            f"{backbone.name} is no functional or sequential model with an Input, so there is no graph to put a head "
            "on; build one: keras.Model(inputs, backbone(inputs))."
        )
    outputs = keras.tree.flatten(backbone.outputs)
    if len(outputs) != 1:
        raise ValueError(
            f"{backbone.name} has {len(outputs)} outputs; expected one. Make a keras.Model with the output you want."
        )
    advice = (
        "take its head off (thaw.models.heads.remove_head), or build it without one (backbone(..., head=False), or "
        "include_top=False in keras.applications)."
    )
    if is_predictor(backbone):
        raise ValueError(f"{backbone.name} already ends in {last_units(backbone)}; {advice}")
    if ends_in_logits(backbone) and _pools(backbone):
        warnings.warn(
            f"{backbone.name} ends in {last_units(backbone)}; if they are the logits of classes and no features, "
            f"{advice}",
            stacklevel=2,
        )
    rank = len(outputs[0].shape)
    if rank not in (2, 3, 4):
        raise ValueError(
            f"{backbone.name} has an output of shape {tuple(outputs[0].shape)}; expected a feature map, a sequence or "
            "a vector."
        )
    if features != "last":
        inputs, x = _open_wide(backbone, features, pooling, task.units)
    else:
        inputs = functional_graph(backbone).input
        x = outputs[0] if rank == 2 else pooling_layer(pooling, rank, name="head_pool")(outputs[0])
    if dropout:
        x = layers.Dropout(dropout, seed=seed, name="head_dropout")(x)
    predict = layers.Dense(
        task.units, activation=task.activation, kernel_initializer="zeros", dtype="float32", name="head_classes"
    )
    outputs = predict(x)
    if getattr(task, "deviation", None) is not None:
        units = layers.Rescaling(list(task.deviation), list(task.mean), dtype="float32", name="head_units")
        outputs = units(outputs)
    model = keras.Model(inputs, outputs, name=backbone.name)
    compile_classifier(model, task)
    return model


def compile_classifier(model, task):
    """Compile a model for a task, as :func:`thaw.attach_head` does.

    Args:
        model: ``keras.Model`` that puts out probabilities, or for a :class:`thaw.targets.Regression` numbers.
        task: :class:`thaw.Task`.
    """
    import keras

    model.compile(keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0), task.loss, metrics=task.metrics())


def _open_wide(backbone, features, pooling, units):
    """Open nested models, and return the inputs and the features of a wide head that is not larger than the rest."""
    flat = open_model(backbone)
    weights = flat.count_params()
    x = wide_features(flat, features, pooling, backbone.name)
    width = x.shape[-1]
    size = width * (units + 2) + units  # kernel, means and variances, bias
    if size > weights:
        raise ValueError(
            f'features="{features}" gives {width:,} numbers, and for {units:,} outputs a head of {size:,} weights, '
            f"more than the {weights:,} of {backbone.name}; at most {max(0, (weights - 2 * width) // (width + 1)):,} "
            'outputs fit, or write features="last".'
        )
    return flat.input, x


def has_head(model):
    """Say whether a model ends in probabilities: one output ``(units,)`` behind a softmax or a sigmoid.

    Args:
        model: ``keras.Model``.

    Returns:
        bool; ``False`` for a linear layer, which may put out logits or features: see :func:`is_predictor`.

    Example:
        >>> import keras
        >>> from thaw.models.heads import has_head
        >>> net = [keras.Input((4,)), keras.layers.Dense(2)]
        >>> has_head(keras.Sequential(net)), has_head(keras.Sequential([*net, keras.layers.Softmax()]))
        (False, True)
    """
    return _ends_in(model, "softmax", "sigmoid")


def ends_in_logits(model):
    """Say whether a model ends in a linear dense layer: one output ``(units,)``, of logits or of features.

    Args:
        model: ``keras.Model``.

    Returns:
        bool.

    Example:
        >>> import keras
        >>> from thaw.models.heads import ends_in_logits
        >>> net = [keras.Input((4,)), keras.layers.Dense(2)]
        >>> ends_in_logits(keras.Sequential(net)), ends_in_logits(keras.Sequential([*net, keras.layers.ReLU()]))
        (True, False)
    """
    return _ends_in(model, "logits")


def _ends_in(model, *activations):
    """Does the model have one output ``(units,)`` behind one of these activations?"""
    outputs = getattr(model, "outputs", None) or ()
    return len(outputs) == 1 and len(outputs[0].shape) == 2 and output_activation(model) in activations


def is_predictor(model):
    """Say whether a model certainly puts out predictions: probabilities, one number, or the logits of its own loss.

    A linear dense layer puts out logits where the model is compiled with a crossentropy, or where the head is wide.
    Elsewhere nobody knows: it may be a head, or the projection of features.

    Args:
        model: ``keras.Model`` with one output.

    Returns:
        bool.

    Example:
        >>> import keras
        >>> from thaw.models.heads import is_predictor
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> is_predictor(model)
        False
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> is_predictor(model)
        True
    """
    import keras

    units = model.outputs[0].shape
    losses = [getattr(loss, "name", loss) for loss in keras.tree.flatten(compile_settings(model).get("loss"))]
    classifies = any("crossentropy" in str(getattr(loss, "__name__", loss)) for loss in losses)
    if has_head(model) or (len(units) == 2 and units[-1] == 1):
        return True
    return ends_in_logits(model) and (classifies or wide_head(calls_of(model) or []) is not None)


def _pools(model):
    """Say whether the last layers are those of a head that begins at a feature map or a sequence."""
    made_by = {id(t): node for node in graph_nodes(model) for t in node.output_tensors}
    output = functional_graph(model).outputs[0]
    return any(len(tensor.shape) > 2 for tensor in _head_chain(output, made_by))


def last_units(model):
    """Describe the last layer of a model for a message.

    Args:
        model: ``keras.Model`` with one output.

    Returns:
        str.

    Example:
        >>> import keras
        >>> from thaw.models.heads import last_units
        >>> last_units(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        '2 linear units'
    """
    names = {"logits": "linear", "rescaled": "linear"}
    activation = output_activation(model)
    units = model.outputs[0].shape[-1]
    return f"{units} {names.get(activation, activation)} unit{'' if units == 1 else 's'}"


def task_of(model):
    """Read the task of a model from its last layer, and of a linear layer from its loss.

    Args:
        model: ``keras.Model``.

    Returns:
        :class:`thaw.Classification` with labels ``"0"``, ``"1"``, ... for a softmax, and with two for a single sigmoid
        unit, which is the probability of class 1; :class:`thaw.targets.MultiLabel` for several sigmoid units;
        :class:`thaw.targets.Regression` for numbers that are rescaled to their units, and for a linear layer that is
        compiled with a loss of numbers; ``None`` for anything else, logits included.

    Example:
        >>> import keras
        >>> from thaw.models.heads import task_of
        >>> task_of(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Softmax()])).labels
        ('0', '1', '2')
    """
    import keras

    activation = output_activation(model)
    if activation == "other" or len(model.outputs[0].shape) != 2:
        return None
    units = int(model.outputs[0].shape[-1])
    names = tuple(map(str, range(units)))
    if activation == "softmax":
        return Classification(names) if units > 1 else None
    if activation == "sigmoid":
        return Classification.of(2) if units == 1 else MultiLabel(names)
    if activation == "rescaled":
        layer = output_rescaling(model)
        scale, offset = (np.broadcast_to(np.asarray(a, np.float64), units) for a in (layer.scale, layer.offset))
        return Regression(names, offset, scale) if (scale > 0).all() else None
    losses = [loss for loss in keras.tree.flatten(compile_settings(model).get("loss")) if loss is not None]
    return Regression(names) if len(losses) == 1 and loss_name(losses[0])[0] in NUMBER_LOSSES else None


def remove_head(model):
    """Cut a model behind its last feature map.

    Walks back from the output over pooling, flattening, dense layers, activations, dropout and casts to the last tensor
    with height, width and channels. A model without such a tensor loses its last dense layer, with the dropout before
    it and the pooling of a masked sequence, which :func:`attach_head` brings again. A wide head goes as a whole, with
    all that it reads of the layers in between. Of a blend (:func:`thaw.models.blend_models`), what is left
    is the backbone of the last of its models.

    Args:
        model: functional or sequential ``keras.Model`` with one input and one output.

    Returns:
        A plain ``keras.Model`` on the same layers; ``model`` itself if its output already is a feature map.

    Raises:
        ValueError: several inputs or outputs, a model without a graph, or nothing left before the head.

    Example:
        >>> import keras
        >>> from keras import layers
        >>> net = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)]
        >>> remove_head(keras.Sequential(net)).output_shape
        (None, 6, 6, 4)
    """
    import keras

    nodes = graph_nodes(model)
    if nodes is None:
        raise ValueError(
            f"{model.name} is a subclassed model, whose layers have no known order; expected a functional or "
            "sequential model. Build one with keras.Model(inputs, outputs) and save it again."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; expected one of each. "
            "Make a keras.Model of the part you want and save that."
        )
    made_by = {id(t): node for node in nodes for t in node.output_tensors}
    output = model.outputs[0]
    averaged = averaged_tensors(made_by[id(output)], made_by)
    if averaged and has_head(model):
        return remove_head(keras.Model(model.inputs[0], averaged[-1], name=model.name))
    wide = wide_head(calls_of(model))
    tensors = {} if wide is None else {id(t): t for node in nodes for t in node.output_tensors}
    if wide is not None and wide.output in tensors:  # else it is that of a nested model
        return keras.Model(model.inputs[0], tensors[wide.output], name=model.name)
    chain = _head_chain(output, made_by)
    cut = _last_feature_map(chain, made_by)
    if cut is None:
        cuts = (_before_last_dense(made_by[id(t)], in_chain=t is not chain[-1]) for t in chain)
        cut = next((c for c in cuts if c is not None), output)
        cut = cut if cut is output else _before_pooling(cut, made_by)
    if cut is output:
        return model
    if id(cut) in made_by and made_by[id(cut)].is_input:
        raise ValueError(f"{model.name} is all head: nothing is left before its dense layers.")
    return keras.Model(model.inputs[0], cut, name=model.name)


def _before_pooling(tensor, made_by):
    """Go back from what a dense layer reads over dropout, and over the pooling of a masked sequence."""
    from keras import layers

    while (node := made_by.get(id(tensor))) is not None and isinstance(node.operation, layers.Dropout):
        tensor = node.input_tensors[0]
    pools = node is not None and isinstance(node.operation, (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D))
    return node.input_tensors[0] if pools and len(node.input_tensors) == 2 else tensor


def _before_last_dense(node, in_chain):
    """Return the tensor before the dense layer that a node calls, in a nested model too, or ``None``."""
    import keras

    layer, inputs = node.operation, node.input_tensors
    if isinstance(layer, keras.layers.Dense):
        return inputs[0]
    if not isinstance(layer, keras.Model):
        return None
    if output_activation(layer) == "other" and not (in_chain and _contains(layer, keras.layers.Dense)):
        return None
    try:
        bare = remove_head(layer)
    except ValueError:  # the nested model is the head and nothing else
        return inputs[0]
    return None if bare is layer else bare(inputs[0])


def _contains(operation, kinds, all_of=False):
    """Say whether a layer, or one of the operations in a nested model (or all of them), is of one of the kinds."""
    import keras

    if not isinstance(operation, keras.Model):
        return isinstance(operation, kinds) or type(operation).__name__ in (_HEAD_OPERATIONS if all_of else ())
    inside = [_contains(node.operation, kinds, all_of) for node in graph_nodes(operation) or () if not node.is_input]
    return bool(inside) and (all if all_of else any)(inside)


def _head_chain(tensor, made_by):
    """Tensors from the output back, while each is made from one other by an operation that a head may contain."""
    from keras import layers

    in_vectors = (
        layers.Dense,
        layers.Activation,
        layers.Identity,
        layers.Softmax,
        layers.ReLU,
        layers.Dropout,
        layers.BatchNormalization,
        layers.LayerNormalization,
        layers.Flatten,
        layers.Reshape,
        *_pooling_layers(),
    )
    in_maps = (*in_vectors, layers.Conv2D, layers.ZeroPadding2D)
    chain = [tensor]
    while True:
        node = made_by[id(chain[-1])]
        # A net that ends in 1 x 1 convolutions of the pooled features (MobileNet) has a head of rank 4 too.
        allowed = in_maps if len(chain[-1].shape) == 4 else in_vectors
        if node.is_input or len(node.input_tensors) != 1:
            return chain
        if len(chain) == 1 and type(node.operation) is layers.Rescaling:  # the units of numbers
            chain.append(node.input_tensors[0])
            continue
        if not _contains(node.operation, allowed, all_of=True):
            return chain
        chain.append(node.input_tensors[0])


def _last_feature_map(chain, made_by):
    """The last tensor with height and width; before a pooling that leaves 1 x 1. ``None`` if there is none."""
    maps = [t for t in chain if len(t.shape) == 4]
    for tensor in maps:
        if tuple(tensor.shape[1:3]) != (1, 1):
            break
        if isinstance(made_by[id(tensor)].operation, _pooling_layers()[:2]):
            return made_by[id(tensor)].input_tensors[0]
    return maps[0] if maps else None


def _pooling_layers():
    from keras import layers

    return (
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        layers.AveragePooling2D,
        layers.MaxPooling2D,
        layers.GlobalAveragePooling1D,
        layers.GlobalMaxPooling1D,
    )
