"""Solve for a head on several columns of a table, a picture, a text and numbers, and write the run folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from thaw._files import lock_run
from thaw.plan import Phase, Plan
from thaw.runs.config import write_config
from thaw.runs.folder import UNFINISHED, refuse_finished, write_run
from thaw.runs.results import measure, quarantine
from thaw.runs.row_inputs import input_files

PLAN = Plan([Phase(name="head", epochs=1, train="head", solver="lbfgs")])


def tune_joined(splits, folder, *, backbones, batch_size=32, seed=0, options=None, progress=None):
    """Solve for a head on each column alone and on all together, and write the run folder of the best.

    Each backbone runs once, and none of them is trained. What is chosen has the lowest log loss out of fold, so that
    all columns together are never taken where one of them alone is better.

    Args:
        splits: :class:`thaw.data.joined_columns.JoinedSplits`.
        folder: as for :func:`thaw.tune`.
        backbones: dict from "image" and "text" to ``keras.Model`` without a head.
        batch_size: rows in a batch. Defaults to 32.
        seed: seed of the folds. Defaults to 0.
        options: dict of the arguments of :func:`thaw.tune`. Defaults to none.
        progress: function of ``(done, total)``, called after each batch of features. Defaults to none.

    Returns:
        ``(model, metrics, comparison)``: the ``keras.Model``, not compiled; the dict of ``metrics.json``; and the
        :class:`thaw.transfer.joined_readout.ColumnComparison`.

    Raises:
        ValueError: as for :func:`thaw.tune`, or what :func:`thaw.transfer.joined_readout.compare_columns` refuses.
    """
    from thaw.data.joined_columns import select_inputs
    from thaw.transfer.joined_readout import compare_columns

    folder = Path(folder)
    refuse_finished(folder)
    with lock_run(folder):
        refuse_finished(folder)
        config = write_config(folder, options or {}, PLAN)
        comparison = compare_columns(splits, backbones, batch_size=batch_size, seed=seed, progress=progress)
        model = comparison.model
        read = {
            name: select_inputs(part, list(model.input))
            for name in ("validation", "test")
            if (part := getattr(splits, name)) is not None
        }
        metrics = measure(model, dataclasses.replace(splits, **read), batch_size=batch_size, seed=seed)
        scores = [dataclasses.asdict(score) for score in comparison.scores]
        metrics["columns"] = [score | {"chosen": score["name"] == comparison.chosen} for score in scores]
        metrics["notes"] = [*splits.notes, *comparison.notes, *metrics["notes"]]
        model.compiled = False
        shown = ("name", "width", "log_loss", "standard_error", "accuracy", "test_log_loss")
        table = {name: [score[name] for score in scores] for name in shown}
        table["test_accuracy"] = [score["test_accuracy"]["value"] for score in scores]
        write_run(
            folder,
            model,
            splits.labels,
            plan=PLAN.to_toml(),
            tables={"columns": table, "quarantine": quarantine(splits)},
            metrics=metrics,
            about={"seed": seed, "data_sha256": splits.digest},
            config=config,
            files=input_files(_as_read(splits, set(model.input))),
        )
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return model, metrics, comparison


def _as_read(splits, inputs):
    """Return the splits without the columns that the chosen model does not read: predictions need none of them."""
    return dataclasses.replace(
        splits,
        image=splits.image if "image" in inputs else None,
        text=splits.text if "text" in inputs else None,
        columns=tuple(column for column in splits.columns if set(column.inputs) & inputs),
    )
