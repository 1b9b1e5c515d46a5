"""What tune is given, refused where it cannot be meant."""

from pathlib import Path

from thaw.examples import Examples
from thaw.number import whole_number
from thaw.plan import Plan


def checked_arguments(plan, data, batch_size, seed, folder):
    """The arguments of :func:`thaw.tune`, before the model is looked at.

    Args:
        plan: as in :func:`thaw.tune`.
        data: likewise.
        batch_size: likewise.
        seed: likewise.
        folder: likewise.

    Returns:
        ``(train, validation, batch_size, seed)``: :class:`thaw.Examples` or data sets, the validation perhaps ``None``;
        no batch is larger than the examples.

    Raises:
        ValueError: what was given, and what was expected.

    Example:
        >>> import numpy as np
        >>> from thaw import Plan
        >>> from thaw.tuning.arguments import checked_arguments
        >>> rows = np.zeros((8, 2)), np.zeros(8)
        >>> checked_arguments(Plan.named("probe"), (rows, None), 32, 0, None)[2]
        8
    """
    if not isinstance(plan, Plan):
        raise ValueError(
            f'The plan is a {type(plan).__name__}; expected a thaw.Plan, such as Plan.named("probe_then_tune"), '
            "Plan([Phase(...)]) or advise(...).plan."
        )
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{folder} is a file; expected a folder to keep the run in.")
    batch_size, seed = whole_number("batch_size", batch_size, 1), whole_number("seed", seed)
    expected = (
        "expected (train, validation), each thaw.Examples, arrays (x, y) or a batched tf.data.Dataset; the validation "
        "may be None."
    )
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        many = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise ValueError(f"The data are a {type(data).__name__}{many}; {expected}")
    train, validation = parts = [Examples.of(part) for part in data]
    for name, part in zip(("training", "validation"), parts):
        known = isinstance(part, Examples) or hasattr(part, "element_spec")
        if not known and (part is not None or name == "training"):
            raise ValueError(f"The {name} data are a {type(part).__name__}; {expected}")
    if isinstance(train, Examples):
        batch_size = min(batch_size, len(train))
    return train, validation, batch_size, seed


def refuse_changed(optimizer):
    """Each phase has a fresh optimizer of the same settings; what was put on the instance would be lost silently.

    Args:
        optimizer: the optimizer that a model was compiled with, or its name.

    Raises:
        ValueError: it was changed on the instance.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if {"update_step", "_apply_weight_decay"} & set(getattr(inner, "__dict__", ())):
        raise ValueError(
            f"The {type(inner).__name__} optimizer was changed on the instance, as anchored and per_stage do, and "
            "tune makes a fresh one for each phase, which would not have that: compile with a plain optimizer and "
            "write Phase(anchor=...) or Phase(stage_decay=...), or train with model.fit."
        )
