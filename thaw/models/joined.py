"""Join backbones for different inputs, such as a picture, a text and numbers, under one head."""

from __future__ import annotations

from collections import Counter

from thaw._keras import functional_graph, graph_nodes
from thaw._validation import check_model
from thaw.models.flat import unpack_single
from thaw.models.heads import compile_classifier, is_predictor, last_units
from thaw.models.taps import clipped, pooling_layer, standardized
from thaw.tasks import Classification, Task


def join_backbones(backbones, task, *, pooling="avg", name="joined"):
    """Join backbones for different inputs under one linear head, and compile the model.

    The output of each backbone is pooled and standardized by the constants of a frozen ``BatchNormalization``, which
    begin at mean 0 and variance 1; what is standardized is concatenated and clipped at plus and minus 5. So features of
    very different size, such as prices and those of pictures, come to the head alike. It is the head that
    :func:`thaw.attach_head` builds with ``features="all"``, over several backbones in place of several layers:
    :func:`thaw.transfer.solve_head` finds its weights and the constants in one pass.

    Args:
        backbones: dict from the name of an input, such as "image" or "text", to a functional or sequential
            ``keras.Model`` without a head, whose output is a feature map ``(height, width, channels)``, a sequence
            ``(length, channels)`` or a vector. One with a dict of inputs, such as
            :func:`thaw.models.column_features.column_features`, keeps their names. The layers are shared, not copied.
        task: a task such as :class:`thaw.Classification`, as in ``splits.task``; or the number of classes, int, at
            least 2. Numbers to predict are refused.
        pooling: ``"avg"`` (default) or ``"max"``, over all positions.
        name: of the model. Default ``"joined"``.

    Returns:
        A plain, compiled ``keras.Model`` from a dict of inputs to ``(task.units,)`` predictions, whose head begins at
        zero. The backbones are nested in it.

    Raises:
        ValueError: an invalid argument, a backbone with a head or with another output, or two inputs of one name.

    Example:
        >>> import keras
        >>> from thaw.models.joined import join_backbones
        >>> picture = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> words = keras.Sequential([keras.Input((6,), dtype="int32"), keras.layers.Embedding(9, 5)])
        >>> model = join_backbones({"image": picture, "text": words}, 2)
        >>> sorted(model.input), model.output_shape, tuple(model.layers[-1].kernel.shape)
        (['image', 'text'], (None, 2), (9, 2))
    """
    import keras
    from keras import layers

    task = task if isinstance(task, Task) else Classification.of(task)
    if task.activation == "linear":
        raise ValueError("The task is to predict numbers; a joined head is for classes and labels.")
    if not isinstance(backbones, dict) or not backbones:
        raise ValueError(f"backbones={backbones!r}; expected a dict from the names of inputs to models.")
    if pooling not in ("avg", "max"):
        raise ValueError(f'pooling={pooling!r}; expected "avg" or "max".')
    parts = {key: _pooled(key, backbone, pooling) for key, backbone in backbones.items()}
    own = {key: _inputs(key, part) for key, part in parts.items()}
    counts = Counter(entry for entries in own.values() for entry in entries)
    if twice := [entry for entry, count in counts.items() if count > 1]:
        raise ValueError(f"Two backbones take an input {twice[0]!r}; build one of them with another name.")
    inputs = {
        entry: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=entry)
        for entries in own.values()
        for entry, tensor in entries.items()
    }
    vectors = []
    for key, part in parts.items():
        given = {entry: inputs[entry] for entry in own[key]}
        features = part(given if isinstance(part.input, dict) else given[key])
        vectors.append(standardized(features, f"head_{key}_norm"))
    x = clipped(vectors)  # as in a wide head
    predict = layers.Dense(
        task.units, activation=task.activation, kernel_initializer="zeros", dtype="float32", name="head_classes"
    )
    model = keras.Model(inputs, predict(x), name=name)
    compile_classifier(model, task)
    return model


def _pooled(key, backbone, pooling):
    """Return a model that shares the layers of a backbone and puts out a float32 vector."""
    import keras
    from keras import layers

    check_model(backbone, f"backbones[{key!r}]")
    if graph_nodes(backbone) is None:
        raise ValueError(
            f"{backbone.name} is no functional or sequential model with an Input, so there is no graph to put a head "
            "on; build one: keras.Model(inputs, backbone(inputs))."
        )
    outputs = keras.tree.flatten(backbone.outputs)
    if len(outputs) != 1 or len(outputs[0].shape) not in (2, 3, 4):
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise ValueError(f"{backbone.name} puts out {shapes}; expected one feature map, sequence or vector.")
    if backbone.weights and is_predictor(backbone):  # a single number is a feature where nothing has been trained
        raise ValueError(
            f"{backbone.name} already ends in {last_units(backbone)}; take its head off "
            "(thaw.models.heads.remove_head), or build it without one."
        )
    rank, options = len(outputs[0].shape), {"dtype": "float32", "name": f"head_{key}_pool"}
    layer = layers.Activation("linear", **options) if rank == 2 else pooling_layer(pooling, rank, **options)
    return keras.Model(unpack_single(functional_graph(backbone).input), layer(outputs[0]), name=f"{key}_features")


def _inputs(key, part):
    """Return the inputs of a model by their names; a single one has that of the backbone."""
    if isinstance(part.input, dict):
        return part.input
    if isinstance(part.input, (list, tuple)):
        raise ValueError(f"backbones[{key!r}] takes a list of {len(part.inputs)} inputs; expected one, or a dict.")
    return {key: part.input}
