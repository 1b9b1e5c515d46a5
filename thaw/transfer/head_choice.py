"""Choose how many layers of a frozen backbone the head reads, by cross-validation in one forward pass."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping

import numpy as np

from thaw._validation import as_seed
from thaw.features.extraction import FeatureExtraction, RowKeys
from thaw.features.store import FeatureCache
from thaw.models.flat import CannotSplit, open_model, operations_in, preserve_graph
from thaw.models.heads import attach_head
from thaw.models.linear_heads import linear_head
from thaw.models.taps import FEATURES
from thaw.tasks import Classification, Task
from thaw.transfer.linear_readout import (
    DEFAULT_STRENGTH,
    ONE_GROUP,
    CrossValidation,
    cross_validate,
    groups_of_smallest_class,
    prefer_narrow,
    standard_error_of_difference,
)
from thaw.transfer.solved_head import readout_problem, solvable_data, solver_targets


@dataclasses.dataclass(frozen=True, eq=False)
class HeadChoice:
    """The features that a head should read; ``str()`` is a table.

    The log losses, or of numbers the squared errors, compare heads on the same folds, which also chose their strengths:
    they are no measure of the model, which other data have to give. The table has the differences from the best and
    their standard errors, by which the head is chosen.

    Attributes:
        features: ``"last"``, ``"upper"`` or ``"all"``, as :func:`thaw.attach_head` takes it.
        validations: mapping from each of them to its :class:`~thaw.transfer.linear_readout.CrossValidation`; empty
            where a class has too few examples to cross-validate.
        widths: mapping from each of them to its number of features.
        notes: tuple of sentences.
        measure: ``"log loss"``, or ``"squared error"`` of numbers as the last dense layer puts them out: of
            standardized ones that of the mean is 1.
    """

    features: str
    validations: Mapping[str, CrossValidation] = dataclasses.field(default_factory=dict)
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    measure: str = "log loss"

    def __str__(self):
        size = len(self.measure)
        lines = [f"features   width  {self.measure}  difference  standard error"]
        best = min(self.validations.values(), key=lambda validation: validation.log_loss, default=None)
        for name, validation in self.validations.items():
            line = f"{name:<8}  {self.widths[name]:>6}  {validation.log_loss:>{size}.3f}"
            if validation is not best:
                error = standard_error_of_difference(validation, best)
                line += f"  {validation.log_loss - best.log_loss:>10.3f}  {error:>14.3f}"
            lines.append(line + ("  chosen" if name == self.features else ""))
        return "\n".join([*lines, *self.notes])


def choose_head(
    backbone,
    task,
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
    fold_progress=None,
):
    """Choose the features of a solved head: the last layer, the upper half of the network, or all of it.

    One forward pass computes the features of all of them; a head is cross-validated on each, on the same folds. The
    narrowest head whose log loss, or of numbers whose squared error, is within one standard error of the best is chosen
    (Breiman et al. 1984). Intermediate layers often hold what fine-tuning would otherwise have to bring out (Evci et
    al. 2022). The features stay in the cache, where :func:`thaw.transfer.solve_head` and :func:`thaw.fine_tune` find
    them. The backbone is unchanged.

    Args:
        backbone: as for :func:`thaw.attach_head`.
        task: as for :func:`thaw.attach_head`.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`.
        y: targets as the task encodes them, such as ``(n,)`` class numbers; ``None`` where ``x`` brings them. Default
            ``None``.
        solver: as in :func:`thaw.transfer.solve_head`. Default ``None``: ``"ridge"`` for numbers, else ``"lbfgs"``.
        sample_weight: as in :func:`thaw.transfer.solve_head`.
        class_weight: as in :func:`thaw.transfer.solve_head`.
        groups: as in :func:`thaw.transfer.solve_head`.
        views: as in :func:`thaw.transfer.solve_head`.
        batch_size: as in :func:`thaw.transfer.solve_head`.
        cache_dir: as in :func:`thaw.transfer.solve_head`.
        seed: as in :func:`thaw.transfer.solve_head`.
        progress: called with ``(done, total)`` after each batch. Default ``None``.
        fold_progress: called with ``(done, total)`` after each fold of the heads together. Default ``None``.

    Returns:
        :class:`HeadChoice`. ``"last"`` where a class has fewer than two examples or groups of them, or the backbone has
        no maps or sequences to read in between.

    Raises:
        ValueError: as :func:`thaw.attach_head`; data without random access, or labels that are not one class for each
            example.

    Example:
        >>> from thaw import attach_head, backbone
        >>> from thaw.transfer import choose_head, solve_head
        >>> net = backbone("efficientnet_lite0")                            # doctest: +SKIP
        >>> choice = choose_head(net, splits.task, splits.train)            # doctest: +SKIP
        >>> model = attach_head(net, splits.task, features=choice.features) # doctest: +SKIP
        >>> readout = solve_head(model, splits.train)                       # doctest: +SKIP
    """
    seed = as_seed(seed)
    task = task if isinstance(task, Task) else Classification.of(task)
    known = ("ridge",) if task.activation == "linear" else ("lbfgs", "svm")
    measure = "squared error" if task.activation == "linear" else "log loss"
    solver = known[0] if solver is None else solver
    if solver not in known:
        raise ValueError(f"solver={solver!r}; expected {' or '.join(map(repr, known))}.".replace("'", '"'))
    dataset = solvable_data(x, y, sample_weight, groups).weighted(class_weight)
    with preserve_graph(operations_in(backbone)):
        try:
            flat = open_model(backbone)
        except CannotSplit as reason:
            raise ValueError(str(reason)) from None
        heads, notes = _heads(flat, task)
        labels, outputs = solver_targets(heads["last"], dataset.y, solver)
        groups = np.arange(len(labels)) if dataset.groups is None else np.unique(dataset.groups, return_inverse=True)[1]
        classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
        if len(heads) > 1 and groups_of_smallest_class(classes, groups) < 2:
            strength = f"its strength is {DEFAULT_STRENGTH:g}"
            notes.append(f'The head reads features="last" and {strength}, without cross-validation: {ONE_GROUP}.')
            heads = {"last": heads["last"]}
        if len(heads) == 1:
            return HeadChoice("last", {}, _widths(heads), tuple(notes), measure)
        cached = _cached_features(flat, heads, dataset, batch_size, cache_dir, views, progress)
    validations = {}
    for number, (name, features) in enumerate(cached.items()):
        rows, targets, options = readout_problem(features, labels)
        options |= {"solver": solver, "clip": heads[name].clip is not None, "seed": seed}
        if fold_progress is not None:
            options["progress"] = lambda done, n, number=number: fold_progress(number * n + done, len(cached) * n)
        validations[name] = cross_validate(rows, targets, classes=outputs, **options)
    chosen = list(heads)[prefer_narrow(list(validations.values()))]
    notes += [note for note in validations[chosen].notes if note not in notes]
    losses = ", ".join(f"{name} {validation.log_loss:.3f}" for name, validation in validations.items())
    notes.append(f'A solved head does best with features="{chosen}"; cross-validated {measure}: {losses}.')
    return HeadChoice(chosen, validations, _widths(heads), tuple(notes), measure)


def _widths(heads):
    return {name: sum(int(tensor.shape[-1]) for tensor in head.inputs) for name, head in heads.items()}


def _heads(flat, task):
    """Attach a head of each width; those that the backbone cannot have are left out, with a note."""
    heads, notes = {}, []
    for features in FEATURES:
        try:
            heads[features] = linear_head(attach_head(flat, task, features=features))
        except ValueError as error:
            if features == "last":
                raise
            notes.append(str(error))
    return heads, notes


def _cached_features(flat, heads, dataset, batch_size, cache_dir, views, progress):
    """Compute the features of all heads in one pass, each in a table of its own."""
    import keras

    run_id = secrets.token_hex(16)
    rows = RowKeys.of(dataset, views, run_id)
    extraction = FeatureExtraction(FeatureCache(cache_dir), [rows], batch_size, "float32", run_id)
    prefixes = {name: keras.Model(flat.input, list(head.inputs)) for name, head in heads.items()}
    cuts = [extraction.cut_point(prefix, heads[name].inputs) for name, prefix in prefixes.items()]
    # Heads of different widths have layers of the same name.
    with preserve_graph([operation for prefix in prefixes.values() for operation in operations_in(prefix)]):
        joint = keras.Model(flat.input, [tensor for head in heads.values() for tensor in head.inputs])
    runner = extraction.choose_runtime(joint, cuts)
    tables = [extraction.table(cut, runner.name) for cut in cuts]
    extraction.fill(runner, tables, progress=progress)
    return dict(zip(heads, map(rows.cached, tables)))
