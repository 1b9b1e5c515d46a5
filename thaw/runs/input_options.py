"""Refuse options that have no use for what the data hold, before anything is read."""

from __future__ import annotations

INPUTS = ("image", "text", "table", "array", "joined")
SAID = {
    "image": "images",
    "text": "texts",
    "table": "a table",
    "array": "arrays",
    "joined": "several columns of a table",
}
# Options that say something about one kind of input, with the value that says nothing.
OWN_OPTIONS = {
    "image": {
        "image_size": None,
        "preprocessing": "auto",
        "flips": "horizontal",
        "rotation": 0.0,
        "zoom": 0.0,
        "retain": None,
    },
    "text": {"text": None, "max_length": 128},
    "table": {"columns": None},
    "array": {},
    "joined": {"image": None, "numbers": None},
}
# Options of one kind that have a use for several columns together too.
_ALSO_JOINED = ("image_size", "text", "max_length")
# Options that each loader takes as they are.
LOADER_OPTIONS = {
    "image": ("seed", "balance", "group", "time", "task", "max_bad"),
    "text": ("seed", "balance", "group", "task", "max_bad", "text", "max_length", "tokenizer"),
    "table": ("seed", "balance", "group", "time", "task"),
    "array": ("seed", "balance", "task"),
    "joined": ("seed", "balance", "group", "max_bad", "image", "text", "numbers", "image_size", "max_length"),
}
# Several columns are joined under a solved head: no backbone is trained, and what is predicted are classes.
NOT_FOR_JOINED = {
    **dict.fromkeys(("folds", "max_forgetting", "soup", "head_epochs", "epochs", "learning_rate", "l2_sp"), None),
    **dict.fromkeys(("minutes", "task", "patience", "monitor", "mode", "from_run"), None),
    **dict.fromkeys(("features", "model", "plan"), "auto"),
    "optimizer": "adamw",
    "clip_norm": 1.0,
    "label_smoothing": 0.0,
    "weights": "imagenet",
}
NOT_FOR_ARRAYS = {"label": None, "max_bad": 0.05}
# Options that an earlier run says, or has no use for, with the value that says nothing.
_UNSAID = {
    **dict.fromkeys(("model", "preprocessing", "features"), "auto"),
    **dict.fromkeys(("image_size", "columns", "folds", "minutes"), None),
    "weights": "imagenet",
    "max_length": 128,
}
# A model for a table starts from random weights.
NOT_FOR_TABLES = {
    "features": "auto",
    "max_bad": 0.05,
    "folds": None,
    "max_forgetting": None,
    "soup": None,
    "head_epochs": None,
    "l2_sp": None,
    "minutes": None,
    "label_smoothing": 0.0,
    "weights": "imagenet",
}


def check_input_options(kind, options):
    """Refuse options that are about another kind of input than the data hold.

    Args:
        kind: what :func:`thaw.runs.open_data.find_input` returns.
        options: dict of the arguments of :func:`thaw.tune`.

    Raises:
        ValueError: such an option is given, or one that a table has no use for.

    Example:
        >>> from thaw.runs.input_options import check_input_options
        >>> check_input_options("text", {"flips": "both"})
        Traceback (most recent call last):
        ValueError: flips='both' is for images, and the data are texts; leave it out.
    """
    for other in INPUTS:
        for name, default in OWN_OPTIONS[other].items() if other != kind else ():
            if kind == "joined" and name in _ALSO_JOINED:
                continue
            if options.get(name, default) != default:
                raise ValueError(
                    f"{name}={options[name]!r} is for {SAID[other]}, and the data are {SAID[kind]}; leave it out."
                )
    for name in ("group", "time"):
        if options.get(name) is not None and name not in LOADER_OPTIONS[kind]:
            raise ValueError(f"{name} names a column of a table, and the data are {SAID[kind]}; leave it out.")
    if options.get("from_run") is not None:
        for name in _UNSAID:
            if options.get(name, _UNSAID[name]) != _UNSAID[name]:
                raise ValueError(f"{name} was given, and the earlier run says it, or has no use for it; leave it out.")
    elif kind == "array" and options.get("model", "auto") == "auto":
        raise ValueError("Arrays have no model of their own; name one that takes them: --model FILE, model= in Python.")
    if kind == "joined":
        for name, default in NOT_FOR_JOINED.items():
            if options.get(name, default) != default:
                raise ValueError(
                    f"{name} is for one kind of input; several columns are joined under a solved head, leave it out."
                )
    if kind == "array":
        for name, default in NOT_FOR_ARRAYS.items():
            if options.get(name, default) != default:
                raise ValueError(f"{name} is for files and tables, and the data are arrays; leave it out.")
    if kind != "table":
        return
    if options.get("task") == "multilabel":
        raise ValueError("The rows of a table have one class or one number each; leave task='multilabel' out.")
    for name, default in NOT_FOR_TABLES.items():
        if options.get(name, default) != default:
            raise ValueError(
                f"{name} is for pre-trained models, and that of a table starts from random weights; leave it out."
            )
    if options.get("model", "auto") != "auto":
        raise ValueError(f"model={options['model']!r}; a table has a model of its own, leave it out.")
    if isinstance(plan := options.get("plan"), str) and plan in ("probe", "probe_then_tune", "gradual", "full"):
        raise ValueError(
            f"plan={plan!r} is for pre-trained models, and that of a table starts from random weights; expected auto "
            "or a .toml file."
        )
