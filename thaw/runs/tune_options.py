"""Check the options of ``tune`` before Keras is imported and images are read."""

from __future__ import annotations

import os
from pathlib import Path

from thaw._validation import as_int
from thaw.models.loading import is_model_file, model_format
from thaw.models.precision import check_precision
from thaw.models.taps import FEATURES
from thaw.plan import as_plan, read_plan
from thaw.runs.folder import refuse_finished
from thaw.runs.tuning import check_optimizer

# Options about how data are read, with the value that says nothing.
_OF_SPLITS = {"group": None, "time": None, "max_bad": 0.05, "max_length": 128}


def check_options(data, folder, options):
    """Find mistakes in the options of :func:`tune` before Keras is imported and images are read.

    Args:
        data: as for :func:`tune`.
        folder: as for :func:`tune`.
        options: dict of the other arguments of :func:`tune`.

    Returns:
        The :class:`thaw.Plan`, or ``"auto"``.

    Raises:
        FileNotFoundError: data or a plan file that does not exist.
        ValueError: an invalid value, options that exclude each other, or a folder that holds another run.
    """
    plan = _chosen_plan(options)
    if options["features"] not in ("auto", *FEATURES):
        raise ValueError(f"features={options['features']!r}; expected one of auto, {', '.join(FEATURES)}.")
    check_optimizer(options["optimizer"], options["clip_norm"])
    check_precision(options["precision"])
    minutes = options["minutes"]
    is_number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if minutes is not None and not (is_number and 0 < minutes < float("inf")):
        raise ValueError(f"minutes={minutes!r}; expected a number above 0.")
    model = options["model"]
    budgets = options["max_forgetting"], getattr(model, "max_forgetting", None)
    if options["folds"] is not None:
        as_int("folds", options["folds"], 2)
        if budgets != (None, None) or options["retain"] is not None or getattr(model, "examples", None) is not None:
            raise ValueError("Forgetting is measured of one model; leave out folds, or retain and max_forgetting.")
    metric = options["monitor"]
    if metric not in (None, "accuracy", "val_accuracy") and budgets != (None, None):
        raise ValueError(
            f"A budget for forgetting chooses by accuracy, and the metric is {metric!r}; leave out "
            "monitor (--metric) or max_forgetting (--max-forgetting)."
        )
    if isinstance(model, (str, os.PathLike)) and is_model_file(model):
        model_format(Path(model))  # raises for what is no model file
    refuse_finished(folder)
    is_open = False
    if not isinstance(data, (str, os.PathLike)):  # a path needs nothing more imported
        from thaw.data.splits import Splits

        is_open = isinstance(data, Splits)
    if is_open and (options.get("task"), options.get("label")) != (None, None):
        raise ValueError("The Splits say what is predicted; leave task and label out, or give the data's path.")
    given = [n for n, default in _OF_SPLITS.items() if options.get(n, default) != default] if is_open else []
    if given:
        raise ValueError(f"The Splits are read already; leave {given[0]} out, or give the data's path.")
    if options["balance"] != "auto" and is_open:
        raise ValueError("The Splits say what is done about their classes; leave balance out, or give the data's path.")
    if options["soup"] is not None:
        as_int("soup", options["soup"], 0)
    smoothing = options["label_smoothing"]
    if not isinstance(smoothing, (int, float)) or isinstance(smoothing, bool) or not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing={smoothing!r}; expected a share from 0 to below 1, such as 0.1.")
    require_data(data)
    return plan


def _chosen_plan(options):
    plan = options["plan"]
    settings = {name: options[name] for name in ("epochs", "head_epochs", "learning_rate", "l2_sp", "patience")}
    if isinstance(plan, str) and plan == "auto":
        read_plan("probe_then_tune", **settings)  # raises for an invalid number
        return plan
    if isinstance(plan, (str, os.PathLike)):
        return read_plan(plan, **settings)
    plan = as_plan(plan)
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} is set in the plan; leave it out.")
    return plan


def require_data(data):
    """Refuse the path of data that do not exist."""
    if isinstance(data, (str, os.PathLike)) and not Path(data).exists():
        raise FileNotFoundError(f"{data} does not exist; expected a folder of images or texts, or a table.")
