"""Decide the plan of a run: ask for advice once, and record it, so that the run resumes with the same plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from thaw._files import to_json, write_all, write_text
from thaw.plan import Plan

RECORD, PLAN = "advice.json", "plan.toml"


@dataclasses.dataclass(frozen=True)
class ResolvedPlan:
    """The plan of a run, and where it comes from.

    Attributes:
        plan: :class:`thaw.Plan`.
        scratch: whether the model is to start from random weights.
        notes: tuple of sentences for the run's notes.
        advice: dict of :meth:`thaw.advice.result.Advice.to_dict`, for the run folder; ``None`` without advice.
    """

    plan: Plan
    scratch: bool = False
    notes: tuple[str, ...] = ()
    advice: dict | None = None


def resolve_plan(plan, model, train, validation, folder, *, settings=None, callbacks=()):
    """Ask for advice where a run has no plan, and record it.

    Args:
        plan: a :class:`thaw.Plan`, which is returned; or ``"auto"``.
        model: compiled ``keras.Model`` before its first step; unchanged afterwards.
        train: :class:`thaw.Dataset`.
        validation: :class:`thaw.Dataset` or ``None``.
        folder: path of the folder with the checkpoint of the unfinished run, where the advice is recorded.
        settings: dict of keyword arguments of :func:`thaw.advise`. Defaults to none.
        callbacks: list of callbacks; the :class:`~thaw.training.callbacks.TuneCallback` among them are told of
            trials and advice. Defaults to none.

    Returns:
        A :class:`ResolvedPlan`. With too few examples for advice its plan is ``probe_then_tune``.

    Raises:
        ValueError: the folder holds an unfinished run of something else, or what :func:`thaw.advise` raises.

    Example:
        >>> from thaw import Plan
        >>> from thaw.runs.resolved_plan import resolve_plan
        >>> resolve_plan(Plan.named("probe"), None, None, None, "nowhere").plan.epochs
        10
    """
    from thaw.advice.advise import advise
    from thaw.training.callbacks import notify
    from thaw.training.checkpoint import CHECKPOINT, fingerprint_run, unfinished_run_error

    if isinstance(plan, Plan):
        return ResolvedPlan(plan)
    folder, settings = Path(folder), dict(settings or {})
    reason = too_few(train, validation)
    if not reason and len(set(train.y.tolist())) < 2:
        reason = "There is one class in train, too few for advice"
    if reason:
        note = f"{reason}: the plan is probe_then_tune."
        notify(callbacks, "on_no_advice", note)
        return ResolvedPlan(default_plan(model, settings), notes=(note,))
    batch_size, seed = settings.get("batch_size", 32), settings.get("seed", 0)
    fingerprint = fingerprint_run(model, Plan.named("probe"), (train, validation), batch_size, seed)
    asked = {"fingerprint": fingerprint, "settings": settings}
    record = folder / RECORD
    if record.exists():
        saved = json.loads(record.read_text(encoding="utf-8"))
        if saved.get("asked") != asked:
            raise unfinished_run_error(folder, "of another plan, model, data or seed")
        advice = saved["advice"]
        return ResolvedPlan(Plan.load(folder / PLAN), advice["scratch"], tuple(advice["reasons"]), advice)
    if (folder / CHECKPOINT).exists():
        raise unfinished_run_error(folder, "with a plan", "give the same command again, with that plan, to resume it")
    result = advise(model, train, validation_data=validation, callbacks=callbacks, **settings)
    advice = result.to_dict()
    writers = {
        folder / PLAN: write_text(result.plan.to_toml()),
        record: write_text(to_json({"asked": asked, "advice": advice})),  # last: with it the record is complete
    }
    write_all(writers)
    notify(callbacks, "on_advice", result)
    return ResolvedPlan(result.plan, advice["scratch"], tuple(advice["reasons"]), advice)


def too_few(train, validation):
    """Say that there are too few examples for advice, where there are.

    Args:
        train: :class:`thaw.Dataset`.
        validation: :class:`thaw.Dataset` or ``None``.

    Returns:
        The first half of a sentence; empty where there are enough.
    """
    from thaw.advice.advise import MIN_EXAMPLES_FOR_ADVICE

    n, m = (0 if part is None else len(part) for part in (train, validation))
    if min(n, m) >= MIN_EXAMPLES_FOR_ADVICE:
        return ""
    return (
        f"There are {n} training and {m} validation examples, too few for advice (at least "
        f"{MIN_EXAMPLES_FOR_ADVICE} of each)"
    )


def default_plan(model, settings):
    """Return the plan ``probe_then_tune`` for a model, where a run takes no advice.

    Args:
        model: compiled ``keras.Model``.
        settings: dict of keyword arguments of :func:`thaw.advise`.

    Returns:
        A :class:`thaw.Plan`.
    """
    from thaw.models.stages import stages_of
    from thaw.training.optimizers import lr_scale

    options = {name: settings.get(name) for name in ("epochs", "head_epochs", "learning_rate")}
    plan = Plan.named("probe_then_tune", **options)
    head, tune = scaled_plan(plan, lr_scale(model.optimizer), options["learning_rate"])
    train = min(tune.train, len(stages_of(model)) - 1)  # a small net may have one stage below its head
    return Plan([head, dataclasses.replace(tune, train=train, l2_sp=settings.get("l2_sp") or 0.0)])


def scaled_plan(plan, scale, learning_rate=None):
    """Multiply the learning rates of a predefined plan, which suit Adam, for another optimizer.

    Args:
        plan: :class:`thaw.Plan`.
        scale: factor, as :func:`thaw.training.optimizers.lr_scale` returns it.
        learning_rate: the rate that was asked for, if any: the phases that it is meant for keep theirs.

    Returns:
        A :class:`thaw.Plan`.
    """
    chosen = [learning_rate is not None and (phase.trains_backbone or len(plan) == 1) for phase in plan]
    return Plan(
        phase if keep else dataclasses.replace(phase, learning_rate=phase.learning_rate * scale)
        for phase, keep in zip(plan, chosen)
    )
