"""Contrastive tuning: train a backbone on pairs of examples before a head is solved, where labels are few."""

from __future__ import annotations

import functools
import math

import numpy as np

from thaw._keras import set_layer_trainable, sublayers
from thaw._validation import as_int, as_number, as_seed, check_model
from thaw.data.conversion import as_dataset
from thaw.features.precompute import precompute
from thaw.features.split import split_model, submodel
from thaw.models.flat import CannotSplit, flatten_model
from thaw.models.linear_heads import linear_head
from thaw.models.stages import stages_of
from thaw.models.state import preserve_flags
from thaw.tasks import class_numbers

WARMUP = 0.1  # fraction of the steps
WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-4, 1.0  # as attach_head compiles


def contrastive_tuning(
    model,
    x,
    y=None,
    *,
    stages=2,
    epochs=20,
    learning_rate=1e-4,
    batch_size=32,
    temperature=0.1,
    seed=0,
    cache_dir=None,
):
    """Train the top stages of a backbone so that examples of a class have similar features, and other classes others.

    For a few dozen labels: a head would learn from so many examples, this from all their pairs. Solve for the head
    afterwards: :func:`thaw.transfer.solve_head`. What lies below the trained stages is computed once and cached; where
    the graph cannot be split, all of it is computed in every epoch. BatchNorm is frozen. The rate rises in the first
    tenth of the steps, then falls along a cosine; the optimizer is AdamW, gradients are clipped at a norm of 1.

    Examples are not augmented. The same seed gives the same bits, on one machine and after
    :func:`thaw.seed_everything`.

    Args:
        model: functional or sequential ``keras.Model`` that ends in a dense layer behind one vector of features, as
            from :func:`thaw.attach_head` with ``features="last"``. The weights of its top stages are changed in place;
            the dense layer, the flags and the compilation stay.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`, such as ``splits.train``.
        y: ``(n,)`` class numbers, or one-hot rows; ``None`` where ``x`` brings them. Default ``None``.
        stages: int, number of the stages below the head to train, 1 to all. Default 2.
        epochs: int, passes over the examples. Default 20.
        learning_rate: float, the highest rate. Default 1e-4.
        batch_size: int, examples in a batch, each of which is compared with all others. Default 32.
        temperature: float above 0 that similarities are divided by; a lower one looks at the nearest examples more.
            Default 0.1.
        seed: int, seeds the order of the examples. Default 0.
        cache_dir: the cache folder, as in :func:`thaw.precompute`.

    Returns:
        ``keras.callbacks.History`` with the loss of each epoch.

    Raises:
        ValueError: an invalid argument; labels that are not one class for each example, or without two examples of one
            class and one of another; data without random access; a model that does not end in a dense layer behind one
            vector, or whose graph cannot be read.
        FloatingPointError: the loss became NaN or infinite; the weights are restored, as after any other error.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import solve_head
        >>> from thaw.transfer.contrastive import contrastive_tuning
        >>> x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
        >>> y = (x[:, 0] * x[:, 1] > 0).astype("int32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(8),
        ...                           keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> history = contrastive_tuning(model, x, y, epochs=10, learning_rate=1e-2)
        >>> history.history["loss"][-1] < history.history["loss"][0]
        True
        >>> readout = solve_head(model, x, y)

    Source:
        Tunstall et al. 2022 (SetFit: contrastive tuning, then a linear head); Khosla et al. 2020 (the loss).
    """
    import keras

    check_model(model)
    epochs, seed = as_int("epochs", epochs, 1), as_seed(seed)
    batch_size = as_int("batch_size", batch_size, 2)
    for name, value in (("learning_rate", learning_rate), ("temperature", temperature)):
        number = as_number(value)
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < math.inf:
            raise ValueError(f"{name}={value!r}; expected a number above 0.")
    below = stages_of(model)[:-1]
    stages = as_int("stages", stages, 1, len(below))
    dataset = _labelled(x, y)
    features = _features_of(model)
    frozen = {id(inner) for stage in below[:-stages] for layer in stage.layers for inner in sublayers(layer)}
    with preserve_flags(model):
        for layer in sublayers(model):
            set_layer_trainable(
                layer, id(layer) not in frozen and not isinstance(layer, keras.layers.BatchNormalization)
            )
        loss = functools.partial(supervised_contrastive_loss, temperature=temperature)
        return _train(features, dataset, loss, epochs, learning_rate, batch_size, seed, cache_dir)


def supervised_contrastive_loss(labels, features, temperature=0.1):
    """Compute how much likelier than others the examples of the same class are to be picked by their similarity.

    For each example, the others in the batch are picked by a softmax of their cosine similarities; the loss is the
    negative log-likelihood of those of its class, on average. An example that is alone in its class has a loss of 0.

    Args:
        labels: ``(n,)`` or ``(n, 1)`` class numbers.
        features: ``(n, width)`` vectors of any length.
        temperature: float above 0 that similarities are divided by. Default 0.1.

    Returns:
        ``(n,)`` float32 losses.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.contrastive import supervised_contrastive_loss
        >>> apart = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]], "float32")
        >>> loss = supervised_contrastive_loss([0, 0, 1, 1], apart, temperature=1.0)  # log(1 + 2 / e)
        >>> [round(float(value), 4) for value in loss]
        [0.5514, 0.5514, 0.5514, 0.5514]

    Source:
        Khosla et al. 2020, equation 2.
    """
    from keras import ops

    vectors = ops.normalize(ops.cast(features, "float32"), axis=-1)
    similarities = ops.matmul(vectors, ops.transpose(vectors)) / temperature
    labels = ops.reshape(ops.convert_to_tensor(labels), (-1,))
    place = ops.cumsum(ops.ones_like(labels))
    is_other = ops.not_equal(place[:, None], place[None, :])
    log_picked = similarities - ops.logsumexp(ops.where(is_other, similarities, -1e9), axis=1, keepdims=True)
    same = ops.cast(ops.logical_and(is_other, ops.equal(labels[:, None], labels[None, :])), "float32")
    return -ops.sum(same * log_picked, axis=1) / ops.maximum(ops.sum(same, axis=1), 1.0)


def _labelled(x, y):
    """Return the examples with class numbers, of which pairs can be made."""
    dataset = as_dataset(x, y, labelled=True)
    if not dataset.random_access:
        raise ValueError(
            f"The data are a {type(x).__name__}, which is read in its own order only; expected arrays or a "
            "thaw.Dataset."
        )
    labels = class_numbers(dataset.y)
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            f"There are {len(labels)} examples of {len(counts)} classes, at most {counts.max()} of a class; expected "
            "two of one class at least, and one of another, to make pairs of."
        )
    return dataset.replace(y=labels, augment=None)


def _features_of(model):
    """Return the part of a model up to the vector that its last dense layer reads."""
    flat = flatten_model(model)
    head = linear_head(flat)
    if len(head.inputs) > 1:
        raise ValueError(
            f"The head of {model.name} reads vectors of {len(head.inputs)} stages; expected one vector: "
            'attach_head(backbone, task, features="last").'
        )
    return submodel(flat, None, head.inputs)


def _train(model, dataset, loss, epochs, learning_rate, batch_size, seed, cache_dir):
    """Train what is trainable of a model, its frozen part computed once, and return the history."""
    import keras

    try:
        prefix, suffix = split_model(model)
        # A runtime that is chosen by measuring would give other bits from time to time.
        dataset = precompute(prefix, dataset, batch_size=batch_size, cache_dir=cache_dir, runtime="tensorflow")
    except CannotSplit:
        suffix = model
    steps = dataset.steps(batch_size)
    warmup = max(1, round(WARMUP * epochs * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        learning_rate / warmup, max(1, epochs * steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, global_clipnorm=MAX_GRADIENT_NORM)
    suffix.compile(optimizer, loss=loss, jit_compile=False)
    start = [variable.numpy() for variable in suffix.variables]
    try:
        history = suffix.fit(
            dataset.epochs(batch_size, seed), steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=0
        )
        if not np.isfinite(history.history["loss"]).all():
            raise FloatingPointError(
                f"The contrastive loss became NaN or infinite; the weights are restored. Try a rate below "
                f"{learning_rate:g}."
            )
    except BaseException:
        for variable, value in zip(suffix.variables, start):
            variable.assign(value)
        raise
    return history
