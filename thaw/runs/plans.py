"""The plans of runs that are not about a new head on a pre-trained model: numbers, tables, and models that go on."""

from __future__ import annotations

import dataclasses

from thaw.plan import Phase, Plan

TABLE_EPOCHS, TABLE_RATE, TABLE_PATIENCE, TABLE_BATCH = 100, 2e-3, 20, 64


def plan_for_numbers(plan):
    """Return a plan whose solved heads are ridge regressions: what the solvers of classes are for numbers.

    Args:
        plan: a :class:`thaw.Plan`, or ``"auto"``.

    Example:
        >>> from thaw import Plan
        >>> from thaw.runs.plans import plan_for_numbers
        >>> plan_for_numbers(Plan.named("probe"))[0].solver
        'ridge'
    """
    if not isinstance(plan, Plan):
        return plan
    return Plan(dataclasses.replace(phase, solver="ridge") if phase.solves else phase for phase in plan)


def table_plan(*, epochs=None, learning_rate=None, patience=None):
    """Return the plan by which a model for a table is trained from random weights.

    Args:
        epochs: epochs at most. Default ``None``: 100.
        learning_rate: peak rate. Default ``None``: 0.002.
        patience: epochs without a better validation score. Default ``None``: 20.

    Example:
        >>> from thaw.runs.plans import table_plan
        >>> table_plan(epochs=5).epochs
        5
    """
    given = {"epochs": epochs, "learning_rate": learning_rate, "patience": patience}
    usual = {"epochs": TABLE_EPOCHS, "learning_rate": TABLE_RATE, "patience": TABLE_PATIENCE}
    return Plan([Phase(name="all", **usual | {name: value for name, value in given.items() if value is not None})])


def continued_plan(plan, kind, *, epochs=None, learning_rate=None, patience=None):
    """Return a plan for a model that goes on: without solvers, which would begin with another head.

    Args:
        plan: a :class:`thaw.Plan`, or ``"auto"``: for a table one phase at a quarter of the rate of
            :func:`table_plan`; of other data it stays ``"auto"``, which is ``probe_then_tune`` for the model.
        kind: as :func:`thaw.runs.open_data.find_input` returns it.
        epochs: as for :func:`thaw.tune`.
        learning_rate: as for :func:`thaw.tune`.
        patience: as for :func:`thaw.tune`.

    Example:
        >>> from thaw import Plan
        >>> from thaw.runs.plans import continued_plan
        >>> [phase.solves for phase in continued_plan(Plan.named("probe_then_tune"), "image")]
        [False, False]
    """
    if isinstance(plan, Plan):
        return Plan(dataclasses.replace(phase, solver="gradient") for phase in plan)
    if kind == "table":
        return table_plan(epochs=epochs, learning_rate=learning_rate or TABLE_RATE / 4, patience=patience)
    return plan


def may_blend(plan):
    """Say whether a plan may solve for the head first, and then train more."""
    return not isinstance(plan, Plan) or (plan[0].solves and len(plan) > 1)


def is_solved_alone(plan):
    """Say whether a plan solves for the head and trains nothing."""
    return isinstance(plan, Plan) and len(plan) == 1 and plan[0].solves
