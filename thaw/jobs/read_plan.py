"""A plan by its name, or from a file."""

import dataclasses
from pathlib import Path

from thaw.plan import Plan


def read_plan(name, epochs=None, head_epochs=None, learning_rate=None, anchor=None):
    """Make the plan that somebody asked for.

    Args:
        name: of a plan, or a file that ends in .toml.
        epochs: of the plan with that name; a file says it itself.
        head_epochs: of the head alone, likewise.
        learning_rate: the peak, likewise.
        anchor: the pull back to the starting weights in the phases that move the backbone, likewise; see
            :class:`thaw.Phase`.

    Returns:
        A :class:`thaw.Plan`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such plan, a file that is none, or options beside a file.

    Example:
        >>> from thaw.jobs.read_plan import read_plan
        >>> read_plan("probe", epochs=3).epochs
        3
    """
    path = Path(name)
    if path.suffix.lower() != ".toml":
        plan = Plan.named(name, epochs=epochs, head_epochs=head_epochs, learning_rate=learning_rate)
        return plan if anchor is None else anchored_plan(plan, anchor)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a plan in TOML.")
    if (epochs, head_epochs, learning_rate, anchor) != (None, None, None, None):
        raise ValueError("Epochs, learning rates and anchors stand in the plan file; leave the options out.")
    try:
        return Plan.from_toml(path.read_text(encoding="utf-8-sig"))  # some editors put a mark in front
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def anchored_plan(plan, anchor):
    """The same plan, its phases that move the backbone pulled back to the starting weights.

    Args:
        plan: a :class:`thaw.Plan`.
        anchor: the strength; see :class:`thaw.Phase`.

    Returns:
        A :class:`thaw.Plan`.

    Raises:
        ValueError: a strength below 0, or a plan that moves nothing but the head.

    Example:
        >>> from thaw import Plan
        >>> from thaw.jobs.read_plan import anchored_plan
        >>> [phase.anchor for phase in anchored_plan(Plan.named("probe_then_tune"), 0.01)]
        [0.0, 0.01]
    """
    moving = [phase.train not in ("head", 0, ("head",)) for phase in plan]
    if not any(moving):
        raise ValueError(
            "The plan moves the head alone, which has no starting weights to go back to; leave out anchor."
        )
    return Plan([dataclasses.replace(phase, anchor=anchor) if moves else phase for phase, moves in zip(plan, moving)])
