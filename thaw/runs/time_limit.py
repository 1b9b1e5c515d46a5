"""Shorten a plan so that a run ends in time."""

from __future__ import annotations

import dataclasses
import json
import math

from thaw._files import to_json, write_atomically, write_text
from thaw.plan import Plan

RECORD = "time.json"
MIN_ADVICE_MINUTES = 0.5  # a search for a plan that may take less says nothing
ADVICE_SHARE = 0.25  # of the time of the run
MARGIN = 0.9  # of the time may be planned: a busy machine is slower than a forecast of a few batches


def advice_minutes(minutes):
    """Return the minutes that a search for a plan may take in a run of so many; ``None`` for no search.

    Args:
        minutes: float.

    Example:
        >>> from thaw.runs.time_limit import advice_minutes
        >>> advice_minutes(10), advice_minutes(1)
        (2.5, None)
    """
    share = ADVICE_SHARE * minutes
    return share if share >= MIN_ADVICE_MINUTES else None


def plan_in_time(plan, model, data, seconds, *, work, asked, batch_size):
    """Shorten a plan so that it ends in time, by the forecast of a few batches.

    The plan is recorded, so that a run that is resumed keeps it.

    Args:
        plan: a :class:`thaw.Plan`.
        model: compiled ``keras.Model``; unchanged.
        data: pair of training and validation :class:`thaw.Dataset`.
        seconds: float, the time that is left.
        work: path of the folder of the unfinished run.
        asked: dict for JSON, what the record belongs to.
        batch_size: examples in a batch.

    Returns:
        ``(plan, notes)``: the plan, and sentences that say what was left out.
    """
    from thaw.models.state import preserve_rng
    from thaw.training.forecasting import epoch_overheads, forecast

    record = work / RECORD
    if record.exists():
        saved = json.loads(record.read_text(encoding="utf-8"))
        if saved["asked"] == asked:
            return Plan.from_toml(saved["plan"]), tuple(saved["notes"])
    forecasts = forecast(model, plan, tuple(map(len, data)), batch_size=batch_size)
    with preserve_rng():
        overheads = epoch_overheads(plan, data, batch_size)
    before = [f.seconds_before for f in forecasts]
    counts = [1 if phase.solves else phase.epochs for phase in plan]
    each = [(f.seconds - f.seconds_before) / n + more for f, n, more in zip(forecasts, counts, overheads)]
    epochs = epochs_in_time(counts, before, each, MARGIN * seconds)
    epochs[0] = max(1, epochs[0])
    shorter = Plan(
        phase if phase.solves else dataclasses.replace(phase, epochs=n) for phase, n in zip(plan, epochs) if n
    )
    notes = _notes(plan, epochs, seconds, sum(b + n * s for b, n, s in zip(before, epochs, each) if n))
    text = to_json({"asked": asked, "plan": shorter.to_toml(), "notes": notes})
    write_atomically(record, write_text(text))
    return shorter, notes


def epochs_in_time(epochs, before, each, seconds):
    """Return how many epochs of each phase fit into the time.

    All phases are shortened by the same factor, to one epoch at least. Where that does not fit, the last phases are
    left out.

    Args:
        epochs: list of ints, the epochs of each phase.
        before: list of the seconds before the first epoch of each.
        each: list of the seconds of each epoch.
        seconds: the time.

    Returns:
        A list of ints; 0 for a phase that is left out.

    Example:
        >>> from thaw.runs.time_limit import epochs_in_time
        >>> epochs_in_time([1, 12], [10, 5], [1, 10], seconds=100)
        [1, 8]
        >>> epochs_in_time([1, 12], [10, 5], [1, 10], seconds=20)
        [1, 0]
    """
    for phases in range(len(epochs), 0, -1):
        for longest in range(max(epochs[:phases]), 0, -1):
            factor = longest / max(epochs[:phases])
            fewer = [max(1, math.floor(factor * n + 1e-9)) for n in epochs[:phases]]
            if sum(b + n * s for b, n, s in zip(before, fewer, each)) <= seconds:
                return fewer + [0] * (len(epochs) - phases)
    return [0] * len(epochs)


def _notes(plan, epochs, seconds, planned):
    left_out = [phase.name for phase, n in zip(plan, epochs) if not n]
    shorter = [
        f"{n} of {phase.epochs} epochs of {phase.name}"
        for phase, n in zip(plan, epochs)
        if not phase.solves and 0 < n < phase.epochs
    ]
    said = [f"it trains {', '.join(shorter)}"] if shorter else []
    said += [f"it leaves out {', '.join(left_out)}"] if left_out else []
    notes = [f"The plan is shortened to end in time: {'; '.join(said)}."] if said else []
    if planned > seconds:
        notes.append(f"The shortest plan takes about {planned:.0f} s, and {max(0.0, seconds):.0f} s are left.")
    return tuple(notes)
