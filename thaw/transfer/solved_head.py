"""Solve for the head of a model: fit its last linear layer to frozen features in one pass."""

from __future__ import annotations

import numpy as np

from thaw._keras import compile_settings
from thaw._validation import as_seed
from thaw.data.conversion import as_dataset
from thaw.data.dataset import leaves
from thaw.features.precompute import precompute
from thaw.features.split import submodel
from thaw.models.activations import output_activation
from thaw.models.flat import CannotSplit, flatten_model
from thaw.models.linear_heads import linear_head
from thaw.targets import label_rows
from thaw.tasks import class_numbers, loss_name
from thaw.transfer.linear_readout import fit_readout
from thaw.transfer.linear_solvers import LOSSES

CROSSENTROPIES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")
MEAN_SQUARED_ERROR = "mean_squared_error"
WITHOUT_SMOOTHING = (
    "the head is solved without label smoothing; the strength and the temperature that cross-validation chooses keep "
    "it from being too certain."
)


class CannotSolve(ValueError):
    """Raised where a head has to be trained by gradient descent; the message says why.

    Example:
        >>> from thaw.transfer.solved_head import CannotSolve
        >>> issubclass(CannotSolve, ValueError)
        True
    """


def solve_head(
    model,
    x,
    y=None,
    *,
    solver=None,
    sample_weight=None,
    class_weight=None,
    groups=None,
    views=None,
    batch_size=32,
    cache_dir=None,
    seed=0,
    progress=None,
):
    """Solve for the head of a model in place, in one pass over the data.

    The features in front of the last dense layer are computed once, cached as :func:`thaw.precompute` caches them, and
    standardized, in a narrow head by half of the median standard deviation at least, so that no weight becomes huge.
    The layer is fitted to them by a solver, its regularization chosen by cross-validation, and its probabilities are
    calibrated by a temperature (Guo et al. 2017) on the predictions out of fold. What a head of
    :func:`thaw.attach_head` with ``features="all"`` reads is described by Evci et al. (2022). Only the head is changed.

    Args:
        model: a compiled functional or sequential ``keras.Model``, flat or nested, that ends in a dense layer; its loss
            is a crossentropy, whose label smoothing is left out, or the mean squared error for ``"ridge"``. Several
            sigmoid units are one problem for each label. It is changed in place, and stays compiled.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`, which is augmented only with ``views``.
        y: targets; ``None`` where ``x`` brings them. Default ``None``.
        solver: ``"lbfgs"``, multinomial logistic regression; ``"svm"``, a linear support vector machine for each
            class; ``"ridge"``, ridge regression of numbers (Hoerl and Kennard 1970). Default ``None``: ridge regression
            for the mean squared error, else logistic regression.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        class_weight: dict from class number to weight in the loss. Default ``None``.
        groups: ``(n,)`` numbers or texts, such as patients or clusters of near-duplicates; a group stays in one fold.
            Default ``None``: those of the :class:`thaw.Dataset`, if it has any.
        views: number of augmented versions of each example to fit to; they stay in one fold. Default ``None``: the
            examples without augmentation.
        batch_size: examples in a batch. Default 32.
        cache_dir: the cache folder, as in :func:`thaw.precompute`.
        seed: seed of the folds and of random projections. Default 0.
        progress: called with ``(done, total)`` after each batch. Default ``None``.

    Returns:
        :class:`thaw.transfer.linear_readout.LinearReadout`: the strength, the temperature and the cross-validation.

    Raises:
        CannotSolve: the head is not linear in its features, the loss is another, or the data have no random access.
        ValueError: labels that do not suit the model, or features that are not finite.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import solve_head
        >>> x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(2.0),
        ...                           keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> readout = solve_head(model, x, y)
        >>> model.evaluate(x, y, verbose=0)[1] > 0.9
        True
    """
    seed = as_seed(seed)
    if solver not in (None, *LOSSES):
        raise ValueError(f"solver={solver!r}; expected one of {', '.join(LOSSES)}, or None.")
    try:
        flat = flatten_model(model)
    except CannotSplit as reason:
        raise CannotSolve(str(reason)) from None
    if not model.compiled:
        raise CannotSolve(f"{model.name} is not compiled; call model.compile(optimizer, loss) first.")
    dataset = solvable_data(x, y, sample_weight, groups)
    loss = compile_settings(model).get("loss")
    solver = solver or _usual_solver(flat, loss)
    head = solvable_head(flat, loss, solver, dataset.y)
    options = {"batch_size": batch_size, "cache_dir": cache_dir, "views": views, "progress": progress}
    dataset = dataset.weighted(class_weight)
    return solve_precomputed(flat, head, None, dataset, solver=solver, seed=seed, **options)


def solvable_data(x, y, sample_weight, groups):
    """Return the data as a dataset with random access, and with the groups, where some are given.

    Args:
        x: as in :func:`solve_head`.
        y: as in :func:`solve_head`.
        sample_weight: as in :func:`solve_head`.
        groups: as in :func:`solve_head`.

    Returns:
        :class:`thaw.Dataset`.

    Raises:
        CannotSolve: the data are a stream.
        ValueError: groups of another length, or with gaps.
    """
    dataset = as_dataset(x, y, sample_weight, labelled=True)
    if not dataset.random_access:
        raise CannotSolve(
            f"The data are a {type(x).__name__}, which is read in its own order only; expected arrays or a "
            "thaw.Dataset."
        )
    return dataset if groups is None else dataset.replace(groups=groups)


def solve_precomputed(flat, head, begin, dataset, *, solver, seed, **options):
    """Solve for a head from tensors of its graph that have been computed, such as those at a cut point.

    Args:
        flat: the functional model without nested models.
        head: from :func:`solvable_head`.
        begin: list of tensors of ``flat``; ``None`` for its inputs.
        dataset: :class:`thaw.Dataset` whose ``x`` are these tensors.
        solver: as in :func:`solve_head`.
        seed: as in :func:`solve_head`.
        **options: of :func:`thaw.precompute`.

    Returns:
        :class:`thaw.transfer.linear_readout.LinearReadout`.
    """
    given = {id(t): i for i, t in enumerate(flat.inputs if begin is None else begin)}
    if set(given) != {id(t) for t in head.inputs}:
        dataset = precompute(submodel(flat, begin, head.inputs), dataset, **options)
    elif len(given) > 1:  # in the order of the kernel, and not that of the graph
        x = leaves(dataset.x)
        dataset = dataset.replace(x=tuple(x[given[id(t)]] for t in head.inputs))
    return fit_head(head, dataset, solver=solver, seed=seed)


def solvable_head(flat, loss, solver, y, model=None):
    """Return the head of a model whose weights a solver can find.

    Args:
        flat: functional ``keras.Model`` without nested models, from :func:`thaw.features.split.flatten_model`.
        loss: the argument of ``compile``: a name, a function or a ``keras.losses.Loss``.
        solver: as in :func:`solve_head`.
        y: the targets.
        model: ``keras.Model`` whose trainable weights are to be those of the head; ``None``, the default, where they
            do not matter.

    Returns:
        :class:`thaw.models.linear_heads.LinearHead`.

    Raises:
        CannotSolve: something else is trainable, the head is not linear in its features, the loss is not that of its
            task, or the targets are not one class, or one row of labels or numbers, for each example.
    """
    import keras

    try:
        head = linear_head(flat)
    except ValueError as error:
        raise CannotSolve(str(error)) from None
    losses = keras.tree.flatten(loss)
    if len(losses) != 1 or losses[0] is None or not (isinstance(losses[0], str) or _is_of_keras(losses[0])):
        raise CannotSolve("The loss is not one of Keras; a solver needs a crossentropy or the mean squared error.")
    name, from_logits = loss_name(losses[0])
    config = losses[0].get_config() if isinstance(losses[0], keras.losses.Loss) else {}
    if config.get("ignore_class") is not None:
        raise CannotSolve(f"{name} ignores a class, which a solver does not.")
    if solver == "ridge":
        if name != MEAN_SQUARED_ERROR or head.activation != "linear":
            raise CannotSolve(f"Ridge regression needs a linear last layer and the mean squared error, and not {name}.")
    elif name not in CROSSENTROPIES or (head.activation == "linear") != from_logits:
        raise CannotSolve(f"The last layer is {head.activation} and the loss is {name}; a solver needs a crossentropy.")
    elif head.units is not None:
        raise CannotSolve("The last layer puts numbers into units, which a crossentropy does not take for logits.")
    elif (name == "binary_crossentropy") != (head.activation == "sigmoid" or (from_logits and head.dense.units == 1)):
        raise CannotSolve(f"The last layer is {head.activation} and the loss is {name}.")
    dense = head.dense
    if not dense.use_bias or getattr(dense, "lora_enabled", False) or getattr(dense, "quantization_mode", None):
        raise CannotSolve(f"{dense.name} has no bias, or is quantized or has LoRA; a solver sets kernel and bias.")
    if not (dense.kernel.trainable and dense.bias.trainable):
        raise CannotSolve(f"{dense.name} is frozen; a solver sets kernel and bias.")
    kept = [f"{part}_{kind}" for part in ("kernel", "bias") for kind in ("constraint", "regularizer")]
    if given := [name for name in (*kept, "activity_regularizer") if getattr(dense, name, None) is not None]:
        raise CannotSolve(f"{dense.name} has a {given[0]}, which a solver does not keep to.")
    try:
        solver_targets(head, y, solver)
    except (ValueError, TypeError) as error:
        raise CannotSolve(str(error)) from None
    own = {id(variable) for variable in dense.trainable_variables}
    if model is not None and (others := [v.path for v in model.trainable_variables if id(v) not in own]):
        raise CannotSolve(f"The head has other weights too, such as {others[0]}.")
    return head


def solver_targets(head, y, solver):
    """Return the targets as a solver takes them: numbers as the dense layer puts them out, before their units.

    Args:
        head: :class:`thaw.models.linear_heads.LinearHead`.
        y: the targets, as the model takes them.
        solver: ``"lbfgs"``, ``"svm"`` or ``"ridge"``.

    Returns:
        ``(targets, outputs)``: ``(n,)`` class numbers, or ``(n, outputs)`` labels or numbers; and how many outputs the
        solver has, two for the one logit of two classes.

    Raises:
        ValueError: targets that do not suit the head.
    """
    units = head.dense.units
    if solver != "ridge" and head.activation == "sigmoid" and units > 1:
        return label_rows(y, units), units
    if solver != "ridge":
        return class_numbers(y, 2 if units == 1 else units), max(2, units)
    targets = np.asarray(y, np.float64)
    if targets.size != len(targets) * units:
        raise ValueError(f"The targets have shape {targets.shape[1:]}, and the model has {units} outputs.")
    targets = targets.reshape(len(targets), units)
    return (targets if head.units is None else (targets - head.units.offset) / head.units.scale), units


def fit_head(head, features, *, solver="lbfgs", seed=0):
    """Fit a head to cached features and assign its weights.

    Args:
        head: from :func:`solvable_head`.
        features: :class:`thaw.Dataset` whose ``x`` are the tensors ``head.inputs``, with labels; with ``views``, every
            version counts as an example.
        solver: as in :func:`solve_head`.
        seed: as in :func:`solve_head`.

    Returns:
        :class:`thaw.transfer.linear_readout.LinearReadout`.
    """
    targets, outputs = solver_targets(head, features.y, solver)
    rows, targets, options = readout_problem(features, targets)
    clips = head.clip is not None
    readout = fit_readout(rows, targets, classes=outputs, solver=solver, clip=clips, seed=seed, **options)
    assign_readout(head, readout)
    return readout


def readout_problem(features, targets):
    """Put cached features, targets, weights and groups in the form of :func:`thaw.transfer.linear_readout.fit_readout`.

    Args:
        features: :class:`thaw.Dataset` of vectors, with ``views`` or without.
        targets: ``(n, ...)``.

    Returns:
        ``(rows, targets, options)``, each version of an example a row of its own, in the group of the example.
    """
    n, views = len(features), features.views or 1
    groups = np.arange(n) if features.groups is None and views > 1 else features.groups
    options = {
        "sample_weight": None if features.sample_weight is None else np.tile(features.sample_weight, views),
        "groups": None if groups is None else np.tile(groups, views),
    }
    return FeatureRows(features), np.concatenate([targets] * views), options


def assign_readout(head, readout):
    """Write a fitted readout into the layers of a head.

    Where the head standardizes its features, the constants go into its BatchNormalization layers; elsewhere they are
    folded into the dense layer.

    Args:
        head: :class:`thaw.models.linear_heads.LinearHead`.
        readout: :class:`thaw.transfer.linear_readout.LinearReadout` of its features.
    """
    if head.norms:
        kernel, bias = readout.kernel, readout.bias
        mean, variance = readout.standardization.mean, readout.standardization.variance
        begin = 0
        for norm in head.norms:
            end = begin + norm.moving_mean.shape[0]
            norm.moving_mean.assign(mean[begin:end])
            norm.moving_variance.assign(np.maximum(variance[begin:end] - norm.epsilon, 0.0))
            begin = end
    else:
        kernel, bias = readout.folded()
    if head.dense.units == 1 and kernel.shape[1] == 2:  # one logit, that of class 1 against class 0
        kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    head.dense.kernel.assign(kernel)
    head.dense.bias.assign(bias)


class FeatureRows:
    """Read the features of a dataset as one ``(rows, width)`` array, a block at a time.

    The tensors are put side by side, and the augmented versions one after another.

    Args:
        features: :class:`thaw.Dataset` of vectors, as :func:`thaw.precompute` returns it.

    Example:
        >>> import numpy as np
        >>> from thaw import Dataset
        >>> from thaw.transfer.solved_head import FeatureRows
        >>> rows = FeatureRows(Dataset(x=(np.eye(2), np.ones((2, 1))), y=np.array([0, 1])))
        >>> rows.shape, rows[1:2].tolist()
        ((2, 3), [[0.0, 1.0, 1.0]])
    """

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, features):
        self._views, self._n = features.views, len(features)
        self._tensors = leaves(features.x)
        self.shape = (self._n * (self._views or 1), sum(int(tensor.shape[-1]) for tensor in self._tensors))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        rows = np.arange(len(self))[index]
        if self._views:
            view, example = rows // self._n, rows % self._n
            parts = [tensor[view, example] for tensor in self._tensors]
        else:
            parts = [tensor[rows] for tensor in self._tensors]
        return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=-1)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)


def _usual_solver(flat, loss):
    import keras

    losses = keras.tree.flatten(loss)
    names = [loss_name(one)[0] for one in losses if isinstance(one, str) or _is_of_keras(one)]
    is_of_numbers = names == [MEAN_SQUARED_ERROR] and output_activation(flat) in ("logits", "rescaled")
    return "ridge" if is_of_numbers else "lbfgs"


def _is_of_keras(loss):
    kind = loss.__class__ if hasattr(loss, "get_config") else loss  # which the losses of thaw.tasks name as Keras' own
    return (getattr(kind, "__module__", None) or type(kind).__module__).startswith("keras.")
