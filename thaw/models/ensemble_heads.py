"""Heads for the members of an ensemble in one model, each trained on its own predictions."""

from __future__ import annotations

from thaw._validation import as_seed, check_model
from thaw.models.heads import compile_classifier


def attach_ensemble_heads(backbone, task, *, seed=0):
    """Put a head for each member of an ensemble on a backbone, and compile the model.

    The model predicts the mean of its members: of their numbers, or, for classes, the geometric mean of their
    probabilities. Each member is trained on its own predictions, as Gorishniy et al. (2025) found to be needed: the
    mean loss of the members is the loss of their mean and the disagreement of the members, which does not depend on the
    target. The disagreement is an ``ActivityRegularization`` of Keras, so that the file opens with Keras alone. (Sample
    weights weight the loss of the mean, and not the disagreement.)

    The dense layers are drawn at random, since members that all begin at zero would learn the same.

    Args:
        backbone: ``keras.Model`` with one output ``(members, features)``.
        task: :class:`thaw.Classification`, or a regression with ``mean`` and ``deviation``, as in ``splits.task``.
        seed: int, seed of the weights. Default 0.

    Returns:
        A plain, compiled ``keras.Model`` from the backbone's input to ``(task.units,)`` predictions.

    Raises:
        ValueError: a backbone with another output, or a task whose outputs are neither a softmax nor linear.

    Example:
        >>> import keras
        >>> from thaw import Classification
        >>> from thaw.models.ensemble_heads import attach_ensemble_heads
        >>> inputs = keras.Input((4,))
        >>> members = keras.layers.EinsumDense("bd,kdh->bkh", (3, 8), activation="relu")(inputs)
        >>> model = attach_ensemble_heads(keras.Model(inputs, members), Classification.of(2))
        >>> model.output_shape, model.loss
        ((None, 2), 'sparse_categorical_crossentropy')
    """
    import keras
    from keras import layers, ops

    check_model(backbone, "backbone")
    seed = as_seed(seed)
    if task.activation not in ("softmax", "linear"):
        raise ValueError(f"The task ends in {task.activation!r}; expected one class for each example, or numbers.")
    outputs = keras.tree.flatten(backbone.outputs)
    if len(outputs) != 1 or len(outputs[0].shape) != 3 or None in outputs[0].shape[1:]:
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise ValueError(f"{backbone.name} puts out {shapes}; expected one output (members, features).")
    members, features = outputs[0].shape[1:]
    limit = features**-0.5
    heads = layers.EinsumDense(
        "bkd,kdc->bkc",
        (members, task.units),
        bias_axes="kc",
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit, seed=seed),
        dtype="float32",
        name="head_members",
    )(outputs[0])
    if task.activation == "softmax":
        # -log of what the geometric mean of the members' probabilities sums to: 0 where they agree.
        mean = layers.GlobalAveragePooling1D(dtype="float32", name="head_mean")(ops.log_softmax(heads, axis=-1))
        disagreement = layers.ActivityRegularization(l1=1.0, dtype="float32", name="head_disagreement")
        rest = disagreement(-ops.logsumexp(mean, axis=-1, keepdims=True))
        y = layers.Softmax(dtype="float32", name="head_classes")(layers.Add(dtype="float32")([mean, rest]))
    else:
        mean = ops.mean(heads, axis=1, keepdims=True)
        disagreement = layers.ActivityRegularization(
            l2=1 / (members * task.units), dtype="float32", name="head_disagreement"
        )
        y = layers.GlobalAveragePooling1D(dtype="float32", name="head_mean")(disagreement(heads - mean) + mean)
        if task.deviation is not None:
            scale, offset = list(task.deviation), list(task.mean)
            y = layers.Rescaling(scale, offset, dtype="float32", name="head_units")(y)
    model = keras.Model(backbone.input, y, name=backbone.name)
    compile_classifier(model, task)
    return model


def has_ensemble_heads(model):
    """Say whether a model ends in the heads of an ensemble, as those for tables do.

    Args:
        model: ``keras.Model``.

    Example:
        >>> import keras
        >>> from thaw.models.ensemble_heads import has_ensemble_heads
        >>> has_ensemble_heads(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        False
    """
    return any(layer.name == "head_disagreement" for layer in model.layers)
