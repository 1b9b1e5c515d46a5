"""Choose how many layers of a frozen backbone the head reads, by cross-validation in one forward pass."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping

from thaw._validation import as_seed
from thaw.features.extraction import FeatureExtraction, RowKeys
from thaw.features.store import FeatureCache
from thaw.models.flat import CannotSplit, open_model, operations_in, preserve_graph
from thaw.models.heads import attach_head
from thaw.models.linear_heads import linear_head
from thaw.models.taps import FEATURES
from thaw.tasks import Classification, Task, class_numbers
from thaw.transfer.linear_readout import CrossValidation, cross_validate, prefer_narrow
from thaw.transfer.solved_head import readout_problem, solvable_data


@dataclasses.dataclass(frozen=True, eq=False)
class HeadChoice:
    """The features that a head should read; ``str()`` is a table.

    Attributes:
        features: ``"last"``, ``"upper"`` or ``"all"``, as :func:`thaw.attach_head` takes it.
        validations: mapping from each of them to its :class:`~thaw.transfer.linear_readout.CrossValidation`; empty
            where a class has too few examples to cross-validate.
        widths: mapping from each of them to its number of features.
        notes: tuple of sentences.
    """

    features: str
    validations: Mapping[str, CrossValidation] = dataclasses.field(default_factory=dict)
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self):
        lines = [f"{'features':<8}  {'width':>6}  log loss"]
        for name, validation in self.validations.items():
            loss = f"{validation.log_loss:.3f} ± {validation.standard_error:.3f}" if validation.folds else "-"
            lines.append(f"{name:<8}  {self.widths[name]:>6}  {loss}{'  chosen' if name == self.features else ''}")
        return "\n".join([*lines, *self.notes])


def choose_head(
    backbone,
    task,
    x,
    y=None,
    *,
    solver="lbfgs",
    sample_weight=None,
    class_weight=None,
    groups=None,
    views=None,
    batch_size=32,
    cache_dir=None,
    seed=0,
    progress=None,
):
    """Choose the features of a solved head: the last layer, the upper half of the network, or all of it.

    One forward pass computes the features of all of them; a head is cross-validated on each, on the same folds. The
    narrowest head whose log loss is within one standard error of the best is chosen (Breiman et al. 1984). Intermediate
    layers often hold what fine-tuning would otherwise have to bring out (Evci et al. 2022). The features stay in the
    cache, where :func:`thaw.transfer.solve_head` and :func:`thaw.fine_tune` find them. The backbone is unchanged.

    Args:
        backbone: as for :func:`thaw.attach_head`.
        task: as for :func:`thaw.attach_head`.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`.
        y: ``(n,)`` labels, one class for each example; ``None`` where ``x`` brings them. Default ``None``.
        solver: ``"lbfgs"`` (default) or ``"svm"``, as in :func:`thaw.transfer.solve_head`.
        sample_weight: as in :func:`thaw.transfer.solve_head`.
        class_weight: as in :func:`thaw.transfer.solve_head`.
        groups: as in :func:`thaw.transfer.solve_head`.
        views: as in :func:`thaw.transfer.solve_head`.
        batch_size: as in :func:`thaw.transfer.solve_head`.
        cache_dir: as in :func:`thaw.transfer.solve_head`.
        seed: as in :func:`thaw.transfer.solve_head`.
        progress: called with ``(done, total)`` after each batch. Default ``None``.

    Returns:
        :class:`HeadChoice`. ``"last"`` where a class has fewer than two examples, or the backbone has no maps or
        sequences to read in between.

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
    if solver not in ("lbfgs", "svm"):
        raise ValueError(f'solver={solver!r}; expected "lbfgs" or "svm".')
    task = task if isinstance(task, Task) else Classification.of(task)
    dataset = solvable_data(x, y, sample_weight, groups).weighted(class_weight)
    labels = class_numbers(dataset.y, task.units)
    with preserve_graph(operations_in(backbone)):
        try:
            flat = open_model(backbone)
        except CannotSplit as reason:
            raise ValueError(str(reason)) from None
        heads, notes = _heads(flat, task)
        if len(heads) == 1:
            return HeadChoice("last", {}, _widths(heads), tuple(notes))
        cached = _cached_features(flat, heads, dataset, batch_size, cache_dir, views, progress)
    validations = {}
    for name, features in cached.items():
        rows, targets, options = readout_problem(features, labels, groups)
        clips = heads[name].clip is not None
        validations[name] = cross_validate(
            rows, targets, classes=task.units, solver=solver, clip=clips, seed=seed, **options
        )
    chosen = list(heads)[prefer_narrow(list(validations.values()))]
    notes += [note for note in validations[chosen].notes if note not in notes]
    losses = ", ".join(f"{n} {v.log_loss:.3f}" for n, v in validations.items() if v.folds)
    if losses:
        notes.append(f'The head reads features="{chosen}"; cross-validated log loss: {losses}.')
    return HeadChoice(chosen, validations, _widths(heads), tuple(notes))


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
