"""The solved head on the frozen backbone of a run: how much it reads, and its part in a blend with the tuned model."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from thaw._files import to_json, write_atomically, write_text
from thaw.plan import Plan

CHOICE, SOLVED = "head.json", "frozen.npz"


def choose_features(features, plan, backbone, splits, work, callbacks, *, asked, batch_size, seed):
    """Return the features that a solved head reads: those asked for, or those that cross-validation chooses.

    A choice is recorded, so that a run resumes with it.

    Args:
        features: as for :func:`thaw.tune`.
        plan: a :class:`thaw.Plan`, or ``"auto"``. For a plan that begins without a solver nothing is chosen: the head
            reads the last layer.
        backbone: ``keras.Model`` without a head.
        splits: :class:`~thaw.data.splits.Splits`.
        work: path of the folder of the unfinished run.
        callbacks: those that are told of the features that are computed, and of the folds.
        asked: dict for JSON, what the record belongs to.
        batch_size: examples in a batch.
        seed: seed of the folds.

    Returns:
        :class:`thaw.transfer.head_choice.HeadChoice`.
    """
    from thaw.training.callbacks import notify
    from thaw.transfer.head_choice import HeadChoice, choose_head

    if features != "auto":
        return HeadChoice(features)
    if isinstance(plan, Plan) and not plan[0].solves:
        return HeadChoice("last")
    record = work / CHOICE
    if record.exists():
        saved = json.loads(record.read_text(encoding="utf-8"))
        if saved["asked"] == asked:
            return HeadChoice(saved["features"], notes=tuple(saved["notes"]))
    solver, views = (plan[0].solver, plan[0].versions or None) if isinstance(plan, Plan) else (None, None)
    train = splits.train.weighted(splits.class_weight)
    train = train if views else train.replace(augment=None)
    progress = {
        "progress": functools.partial(notify, callbacks, "on_precompute"),
        "fold_progress": functools.partial(notify, callbacks, "on_cross_validate"),
    }
    options = {"views": views, "batch_size": batch_size, "seed": seed, **progress}
    choice = choose_head(backbone, splits.task, train, solver=solver, **options)
    work.mkdir(parents=True, exist_ok=True)
    content = to_json({"asked": asked, "features": choice.features, "notes": choice.notes})
    write_atomically(record, write_text(content))
    return choice


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenModel:
    """A solved head on a copy of the pre-trained backbone, which stays frozen.

    Attributes:
        model: ``keras.Model``, compiled.
        features: what its head reads, ``"last"``, ``"upper"`` or ``"all"``.
        probabilities: ``(n, classes)``, of the validation examples.
        notes: tuple of sentences.
    """

    model: Any
    features: str
    probabilities: Any
    notes: tuple[str, ...]

    def blend_with(self, tuned, splits, *, batch_size, is_tuned=True):
        """Blend it with a tuned model where that helps on the validation images.

        The models that are used are adjusted for the frequencies of the classes, if the splits say so.

        Args:
            tuned: ``keras.Model`` of the same input and classes.
            splits: :class:`~thaw.data.splits.Splits`.
            batch_size: examples in a batch.
            is_tuned: whether its backbone was trained at all, for the notes. Default ``True``.

        Returns:
            ``(model, notes)``: the blend, this model or the other one, and sentences.
        """
        from thaw.features.predictions import predict_proba_with_labels
        from thaw.models.blends import blend_models
        from thaw.transfer.blending import choose_blend

        # Always TensorFlow, so that a resumed run has the same bits.
        y, p = predict_proba_with_labels(tuned, splits.validation, batch_size=batch_size, runtime="tensorflow")
        names = [f'the solved head on frozen features ("{self.features}")']
        names.append("the tuned model" if is_tuned else "the head on the last layer")
        weight = splits.validation.sample_weight
        choice = choose_blend([self.probabilities, p], y, sample_weight=weight, names=names)
        kept = [model for model, share in zip((self.model, tuned), choice.shares) if share]
        for model in kept:
            adjust_for_classes(model, splits)
        notes = [*self.notes, *choice.notes]
        return (blend_models(kept, choice.shares, name=tuned.name) if choice.helps else kept[0]), notes


def adjust_for_classes(model, splits):
    """Adjust a trained model for the frequencies of the classes, if the splits say so.

    Args:
        model: ``keras.Model`` with a linear head; changed in place.
        splits: :class:`~thaw.data.splits.Splits`.
    """
    from thaw.transfer.calibration import adjust_logits

    if splits.class_counts is not None:
        adjust_logits(model, splits.class_counts)


def solve_frozen(backbone, splits, features, work, callbacks, *, asked, batch_size, seed):
    """Solve for a head on a copy of a backbone, before that is tuned; what was solved is recorded for a resumed run.

    Args:
        backbone: ``keras.Model`` without a head, with its pre-trained weights; unchanged.
        splits: :class:`~thaw.data.splits.Splits`.
        features: ``"last"``, ``"upper"`` or ``"all"``.
        work: path of the folder of the unfinished run.
        callbacks: those that are told of the features that are computed.
        asked: dict for JSON, what the record belongs to.
        batch_size: examples in a batch.
        seed: seed of the folds.

    Returns:
        :class:`FrozenModel`.
    """
    import numpy as np

    from thaw.features.predictions import predict_proba_with_labels
    from thaw.models.blends import copy_model
    from thaw.models.heads import attach_head
    from thaw.models.stages import stages_of
    from thaw.training.callbacks import notify
    from thaw.transfer.solved_head import solve_head

    model = attach_head(copy_model(backbone), splits.task, features=features, seed=seed)
    head = [weight for layer in stages_of(model)[-1].layers for weight in layer.weights]
    record, asked = work / SOLVED, to_json(asked | {"features": features})
    if record.exists():
        with np.load(record, allow_pickle=False) as saved:
            if str(saved["asked"]) == asked:
                for i, weight in enumerate(head):
                    weight.assign(saved[str(i)])
                return FrozenModel(model, features, saved["probabilities"], tuple(saved["notes"].tolist()))
    train = splits.train.weighted(splits.class_weight).replace(augment=None)
    progress = functools.partial(notify, callbacks, "on_precompute")
    readout = solve_head(model, train, batch_size=batch_size, seed=seed, progress=progress)
    _, p = predict_proba_with_labels(model, splits.validation, batch_size=batch_size, runtime="tensorflow")
    notes = tuple(f"The solved head on frozen features: {note}" for note in readout.notes)
    arrays = {str(i): weight.numpy() for i, weight in enumerate(head)}

    def write(file):
        with open(file, "wb") as out:
            np.savez(out, asked=asked, probabilities=p, notes=np.array(notes, dtype=str), **arrays)

    write_atomically(record, write)
    return FrozenModel(model, features, p, notes)
