"""The plan of a run that has none: advised once, and then recorded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from thaw.plan import Plan

RECORD, PLAN = "advice.json", "plan.toml"


@dataclasses.dataclass(frozen=True)
class AdvisedPlan:
    """What a run is to do, and what it says about it.

    Attributes:
        plan: the :class:`thaw.Plan`.
        scratch: the model is to begin from random weights.
        notes: sentences for the run's notes.
        advice: what :meth:`thaw.advising.advice.Advice.to_dict` gave, for the run folder; ``None`` where nothing was
            advised.
    """

    plan: Plan
    scratch: bool = False
    notes: tuple[str, ...] = ()
    advice: dict | None = None


def advised_plan(plan, model, data, folder):
    """Ask for advice where a run has no plan, and write down what it is, so that the run can go on by it.

    Args:
        plan: a :class:`thaw.Plan`, which is taken as it is; or a :class:`thaw.advising.advise.Advisor`.
        model: the built and compiled model, before its first step; the same afterwards.
        data: ``(train, validation)``, both :class:`thaw.Examples`; ``validation`` may be ``None``.
        folder: where an unfinished run keeps what it needs to go on.

    Returns:
        :class:`AdvisedPlan`.

    Raises:
        ValueError: the folder holds an unfinished run of something else, or what :func:`thaw.advise` raises.

    Example:
        >>> from thaw import Plan
        >>> from thaw.jobs.advised_plan import advised_plan
        >>> advised_plan(Plan.named("probe"), None, None, "nowhere").plan.epochs
        10
    """
    from thaw.shipping.write_atomically import write_all
    from thaw.tuning.run_identity import run_identity

    if isinstance(plan, Plan):
        return AdvisedPlan(plan)
    advisor, train, folder = plan, data[0], Path(folder)
    few = too_few(data)
    if few or len(np.unique(train.y)) < 2:
        note = f"{few or 'There is one class in train, too few for advice'}: the plan is probe_then_tune."
        advisor.tell("on_no_advice", note)
        return AdvisedPlan(_usual(advisor, model), notes=(note,))
    settings = {f.name: getattr(advisor, f.name) for f in dataclasses.fields(advisor) if f.name != "callbacks"}
    identity = run_identity(model, Plan.named("probe"), data, advisor.batch_size, advisor.seed)
    asked = {"identity": identity, "settings": settings}
    record = folder / RECORD
    if record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["asked"] != asked:
            raise ValueError(
                f"{folder} holds an unfinished run of another plan, model, data or seed; give the same command again "
                "to go on with it, name another folder, or delete this one."
            )
        chosen = Plan.from_toml((folder / PLAN).read_text(encoding="utf-8"))
        return AdvisedPlan(chosen, kept["advice"]["scratch"], tuple(kept["advice"]["reasons"]), kept["advice"])
    if (folder / "checkpoint.npz").exists():
        raise ValueError(
            f"{folder} holds an unfinished run whose plan was not looked for; give the same command again, with its "
            "plan, to go on with it, name another folder, or delete this one."
        )
    advice = advisor(model, data)
    found = advice.to_dict()
    text = json.dumps({"asked": asked, "advice": found}, indent=2, ensure_ascii=False, allow_nan=False)
    write_all(
        {
            folder / PLAN: lambda path: path.write_text(advice.plan.to_toml(), encoding="utf-8"),
            record: lambda path: path.write_text(text, encoding="utf-8"),  # last: with it the advice is there
        }
    )
    advisor.tell("on_advice", advice)
    return AdvisedPlan(advice.plan, found["scratch"], tuple(found["reasons"]), found)


def too_few(data):
    """Say that there are too few pictures for advice, where there are.

    Args:
        data: ``(train, validation)``, both :class:`thaw.Examples`; ``validation`` may be ``None``.

    Returns:
        The beginning of a sentence; empty where there are enough.
    """
    from thaw.advising.advise import FEWEST

    n, m = (0 if part is None else len(part) for part in data)
    if min(n, m) >= FEWEST:
        return ""
    return f"There are {n} training and {m} validation pictures, too few for advice (at least {FEWEST} of each)"


def _usual(advisor, model):
    from thaw.stages import stages_of

    head, tune = Plan.named(
        "probe_then_tune",
        epochs=advisor.epochs,
        head_epochs=advisor.head_epochs,
        learning_rate=advisor.learning_rate,
    )
    train = min(tune.train, len(stages_of(model)) - 1)  # a small net may have one stage below its head
    return Plan([head, dataclasses.replace(tune, train=train, anchor=advisor.anchor)])
