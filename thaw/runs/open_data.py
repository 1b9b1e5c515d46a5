"""Open what a user names: the data, whatever they hold, and the backbone for them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from thaw.runs.input_options import LOADER_OPTIONS, SAID, check_input_options
from thaw.runs.row_inputs import TOKENIZER, kind_of_splits

MAX_REJECTED_SHOWN = 10


def find_input(data, *, text=None, columns=None, image=None, numbers=None):
    """Find out what data hold: images, texts, or the rows of a table.

    Args:
        data: a path, a frame, or :class:`~thaw.data.splits.Splits`.
        text: name of the column of texts, where it was asked for.
        columns: names of the columns of a table, where they were asked for.
        image: name of the column of images, where it was asked for beside others.
        numbers: names of the columns of numbers, where they were asked for beside others.

    Returns:
        ``"image"``, ``"text"``, ``"table"``, ``"array"`` or ``"joined"``, several of them in each row.

    Raises:
        ValueError: names that exclude each other are given, or some with Splits.

    Example:
        >>> from thaw.runs.open_data import find_input
        >>> find_input({"age": [30, 40], "label": ["no", "yes"]}), find_input("reviews.csv", text="body")
        ('table', 'text')
    """
    from thaw.data.arrays import ARRAY_SUFFIXES
    from thaw.data.frames import table_columns
    from thaw.data.splits import Splits
    from thaw.data.tables import positions_of
    from thaw.data.text_files import text_column

    several = sum(name is not None for name in (image, text, numbers))
    if (image, numbers) != (None, None):
        if several < 2 or columns is not None:
            raise ValueError(
                "image, text and numbers name columns that are used together; give two of them or more, and no columns."
            )
        if isinstance(data, Splits):
            raise ValueError("The Splits say what they hold; leave image, text and numbers out.")
        return "joined"
    if text is not None and columns is not None:
        raise ValueError("text and columns were given; a model reads texts or the columns of a table, not both.")
    if isinstance(data, Splits):
        if (text, columns) != (None, None):
            raise ValueError("The Splits say what they hold; leave text and columns out, or give the data's path.")
        return kind_of_splits(data)
    is_path = isinstance(data, (str, os.PathLike))
    if isinstance(data, tuple) or (is_path and Path(data).suffix.lower() in ARRAY_SUFFIXES):
        return "array"
    if text is not None or columns is not None:
        return "table" if text is None else "text"
    if not is_path:
        names = list(map(str, data)) if isinstance(data, dict) else list(map(str, table_columns(data) or ()))
        if positions_of("image", names) and text is None:
            raise ValueError("The table has a column of images; write it to a CSV file, and give its path.")
        return "text" if text_column(names) else "table"
    return _in_folder(Path(data)) if Path(data).is_dir() else _in_file(Path(data))


def _in_folder(root):
    from thaw.data.files import FoundFiles, walk_folder
    from thaw.data.image_paths import IMAGE_SUFFIXES, suffix_of

    texts = 0
    for file in walk_folder(root, FoundFiles()):
        if suffix_of(file) in IMAGE_SUFFIXES:
            return "image"
        texts += suffix_of(file) == ".txt" and Path(file).parent != root
    return "text" if texts else "image"


def _in_file(path):
    """A table with a column of images is one of images, whatever else it has, and so is one that names image files."""
    from thaw.data.image_paths import IMAGE_SUFFIXES, suffix_of
    from thaw.data.table_rows import CSV_SUFFIXES, JSON_SUFFIXES, PARQUET_SUFFIXES, first_rows
    from thaw.data.tables import positions_of
    from thaw.data.text_files import text_column

    if not path.is_file() or path.suffix.lower() not in (*CSV_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES):
        return "image"  # which says what is expected
    rows = first_rows(path)
    names = rows[0] if rows else []
    is_csv = path.suffix.lower() in CSV_SUFFIXES
    if positions_of("image", names) or any(suffix_of(cell) in IMAGE_SUFFIXES for row in rows for cell in row):
        if not is_csv:
            raise ValueError(f"{path} lists images; write it as a CSV file with the columns image and label.")
        return "image"
    if len(names) < 2 and is_csv:
        return "image"
    return "text" if text_column(names) else "table"


def said_by_run(run, data, options):
    """Return what an earlier run says of the same kind of data, where it is not said again: label, text and task.

    Args:
        run: :class:`~thaw.runs.folder.Run`.
        data: as for :func:`thaw.tune`.
        options: dict of the arguments of :func:`thaw.tune`.

    Returns:
        A dict.
    """
    config = run.config
    is_folder = isinstance(data, (str, os.PathLike)) and Path(data).is_dir()
    asked = (options.get("columns"), options.get("image"), options.get("numbers")) != (None, None, None)
    names = [] if is_folder else ["label", "task", *([] if asked else ["text"])]
    return {name: config[name] for name in names if options.get(name) is None and name in config}


def default_model(model, kind):
    """Return the model that was asked for; of ``"auto"`` the one for images or texts."""
    is_auto = isinstance(model, str) and model == "auto"
    return {"image": "efficientnet_lite0", "text": "minilm"}.get(kind, model) if is_auto else model


def open_data(data, kind, options, progress=None):
    """Read data, and open the backbone for them.

    Args:
        data: as for :func:`thaw.tune`.
        kind: what :func:`find_input` returns.
        options: dict of the arguments of :func:`thaw.tune`.
        progress: function of (files done, files in all, text). Defaults to none.

    Returns:
        ``(source, splits)``: a :class:`~thaw.retention.source_tasks.SourceTask` and
        :class:`~thaw.data.splits.Splits`. Of several columns the first is a dict of a backbone for each.
    """
    from thaw.models.backbone import EMBEDDED, EMBEDDED_TEXT, backbone, input_size
    from thaw.retention.source_tasks import SourceTask

    model = options["model"]
    if kind == "image":
        source = open_source(options, progress)
        size = input_size(source.backbone, model if isinstance(model, str) else None)
        return source, read_data(data, kind, options, size, progress)
    if kind == "text":
        return _open_texts(data, options, progress)
    if kind == "joined":
        splits = read_data(data, kind, options, None, progress)
        size = splits.image_size
        shapes = {"image": (size, size, 3), "text": splits.train.x["text"].shape[1:] if splits.text else None}
        return {
            name: backbone({"image": EMBEDDED, "text": EMBEDDED_TEXT}[name], input_shape=shapes[name])
            for name in splits.inputs
            if name in shapes
        }, splits
    if kind == "array":
        source, splits = open_source(options, progress), read_data(data, kind, options)
        check_input_shape(source.backbone, splits.train.x)
        return source, splits
    from thaw.models.table_backbone import table_backbone

    splits = read_data(data, kind, options)
    return SourceTask(backbone=table_backbone(splits.columns, splits.train.x, seed=options["seed"])), splits


def _open_texts(data, options, progress):
    """A model file has a length of its own, to which texts are padded. Others are built for the length of the texts."""
    from thaw.models.backbone import EMBEDDED_TEXT, backbone
    from thaw.models.loading import is_model_file
    from thaw.retention.source_tasks import SourceTask

    model, length = options["model"], None
    if is_named := isinstance(model, str) and not is_model_file(model):
        if model != EMBEDDED_TEXT:
            raise ValueError(f"model={model!r} does not read texts; expected {EMBEDDED_TEXT} or a .keras file.")
        if options["max_forgetting"] is not None:
            raise ValueError(f"{model} has no head, so that what it forgets cannot be measured; leave the budget out.")
    else:
        source = open_source(options, progress)
        length = _length_of(source.backbone)
    splits = read_data(data, "text", options, length)
    own = int(splits.train.x.shape[1])
    if is_named:
        weights = None if options["weights"] == "none" else options["weights"]
        return SourceTask(backbone=backbone(model, weights=weights, input_shape=(own,))), splits
    if length not in (None, own):
        raise ValueError(f"{source.backbone.name} takes texts of {length} pieces, and the Splits have {own}.")
    _check_pieces(source.backbone, splits)
    return source, splits


def _length_of(model):
    shape, dtype = tuple(model.inputs[0].shape[1:]), model.inputs[0].dtype
    if len(model.inputs) != 1 or len(shape) != 1:
        shapes = ", ".join(str(tuple(x.shape[1:])) for x in model.inputs)
        raise ValueError(f"{model.name} takes inputs of {shapes} ({dtype}); expected texts as one row of pieces each.")
    return shape[0]


def check_input_shape(model, x):
    """Refuse arrays of another shape than a model takes.

    Args:
        model: ``keras.Model``.
        x: ``(n, ...)``.

    Raises:
        ValueError: they do not fit.
    """
    if len(model.inputs) != 1:
        raise ValueError(f"{model.name} has {len(model.inputs)} inputs, and the arrays are one; expected one input.")
    own, given = tuple(model.inputs[0].shape[1:]), tuple(x.shape[1:])
    if len(own) != len(given) or any(n not in (None, m) for n, m in zip(own, given)):
        raise ValueError(f"{model.name} takes inputs of shape {own}, and the arrays hold {given}; expected the same.")


def _check_pieces(model, splits):
    """Refuse a vocabulary that does not fit, before a lookup fails or, on a GPU, returns zeros."""
    import keras

    highest = max(int(part.x.max()) for part in (splits.train, splits.validation, splits.test) if part is not None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Embedding):
            if layer.input_dim <= highest:
                raise ValueError(
                    f"{model.name} knows {layer.input_dim} word pieces, and the tokenizer makes {highest + 1}; "
                    "expected a model of the same pieces, or the Splits of load_text(..., tokenizer=FILE)."
                )
            return


def open_source(options, progress=None):
    """Open the backbone, with the head and the images of its source task where there are any.

    Args:
        options: dict of the arguments of :func:`thaw.tune`.
        progress: as for :func:`open_data`.

    Returns:
        :class:`~thaw.retention.source_tasks.SourceTask`.
    """
    from thaw.models.backbone import input_size
    from thaw.models.heads import remove_head
    from thaw.models.precision import with_precision
    from thaw.retention.source_tasks import SourceTask, source_images, source_task

    model, retain, budget = options["model"], options["retain"], options["max_forgetting"]
    if isinstance(model, (str, os.PathLike)):
        source = source_task(
            os.fspath(model),
            retain,
            weights=None if options["weights"] == "none" else options["weights"],
            preprocessing=options["preprocessing"],
            image_size=options["image_size"],
            max_forgetting=budget,
            progress=progress,
        )
    elif isinstance(model, SourceTask):
        if retain is not None or budget is not None:
            raise ValueError("The SourceTask has its own images and budget; leave out retain and max_forgetting.")
        source = model
    elif retain is None:
        source = SourceTask.of(model, max_forgetting=budget)
    else:
        outputs, size = max(2, int(model.output_shape[-1])), input_size(model)
        examples, labelled, notes = source_images(retain, size, outputs=outputs, progress=progress)
        found = {"examples": examples, "labelled": labelled, "notes": tuple(notes)}
        source = SourceTask.of(model, max_forgetting=budget, **found)
    # Layers of a file have the precision that they were saved with.
    whole = source.backbone if source.model is None else source.model
    converted = with_precision(whole, options["precision"])
    if converted is whole:
        return source
    headless = converted if source.model is None else remove_head(converted)
    return dataclasses.replace(source, model=source.model and converted, backbone=headless)


def read_data(data, kind, options, size=None, progress=None):
    """Read data as the loader of their kind does; Splits are returned as they are.

    Args:
        data: as for :func:`thaw.tune`.
        kind: what :func:`find_input` returns.
        options: dict of the arguments of :func:`thaw.tune`; what is missing has its default.
        size: side of the images in pixels, or length of the texts in word pieces. Default ``None``: the loader's.
        progress: as for :func:`open_data`.

    Returns:
        :class:`~thaw.data.splits.Splits`.
    """
    from thaw.data.arrays import load_arrays
    from thaw.data.columns import load_table
    from thaw.data.images import label_columns, load_images
    from thaw.data.joined_columns import load_columns
    from thaw.data.splits import Splits
    from thaw.data.text import load_text

    if isinstance(data, Splits):
        return data
    common = {name: options[name] for name in LOADER_OPTIONS[kind] if options.get(name) is not None}
    if kind == "array":
        return load_arrays(data, **common)
    label, columns = label_columns(options.get("label")), options.get("columns")
    if kind == "image":
        size = {} if size is None else {"image_size": size}
        return load_images(data, label=label, **size, progress=progress, **common)
    if kind == "text":
        return load_text(data, label=label, length=size, **common)
    if isinstance(label, list):
        raise ValueError(f"label={label} names several columns; the rows of a table have one class or one number.")
    if kind == "joined":
        return load_columns(data, label=label or "label", progress=progress, **common)
    columns = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns
    return load_table(data, label=label or "label", columns=columns, **common)


def open_continued(run, data, kind, options, progress=None):
    """Read data, and open the model of an earlier run to go on with.

    Args:
        run: the earlier :class:`~thaw.runs.folder.Run`.
        data: as for :func:`thaw.tune`.
        kind: what :func:`find_input` returns.
        options: dict of the arguments of :func:`thaw.tune`.
        progress: as for :func:`open_data`.

    Returns:
        ``(source, splits, model)``: as :func:`open_data`, and the model that goes on, as
        :func:`thaw.models.continuation.continue_head` makes it.

    Raises:
        ValueError: it takes other inputs, predicts something else, or has no head to go on with.
    """
    from thaw.models.backbone import input_size
    from thaw.models.continuation import continue_head, continue_table, last_of_blend
    from thaw.retention.source_tasks import SourceTask

    own = "image" if run.input is None else run.input.kind
    if own != kind:
        raise ValueError(f"{run.folder} is a run on {SAID[own]}, and the data are {SAID[kind]}; expected the same.")
    if kind == "table":
        known = {column.name: column.kind for column in run.input.columns}  # the kinds of others are found
        splits = read_data(data, kind, options | {"columns": known})
        model, splits = continue_table(run.model, run.input.columns, splits, old_labels=run.task, seed=options["seed"])
        return SourceTask(backbone=model), splits, model
    source = open_source(options | {"model": run.folder / "model.keras", "preprocessing": "none"}, progress)
    whole = source.model or run.model
    if kind == "image":
        splits = read_data(data, kind, options, input_size(whole), progress)
    elif kind == "text":
        splits = read_data(data, kind, options | {"tokenizer": run.folder / TOKENIZER}, run.input.length)
    else:
        splits = read_data(data, kind, options)
        check_input_shape(whole, splits.train.x)
    try:
        model = continue_head(last_of_blend(whole), run.task, splits.task)
    except ValueError as error:
        raise ValueError(
            f"{run.folder} cannot go on: {error} To put a new head on it, give -m FILE instead."
        ) from error
    return source, splits, model


def open_any(data, options, show):
    """Open data of any kind and the backbone for them, as ``thaw advise`` does.

    Args:
        data: as for :func:`thaw.tune`.
        options: dict of arguments of :func:`thaw.tune`; what is missing has its default.
        show: function of a line of text, which is told of the notes.

    Returns:
        ``(kind, source, splits)``: as :func:`find_input` and :func:`open_data`.
    """
    from thaw.training.progress import count_progress

    kind = find_input(data, text=options.get("text"), columns=options.get("columns"))
    check_input_options(kind, options)
    options = options | {"model": default_model(options["model"], kind)}
    with count_progress() as progress:
        source, splits = open_data(data, kind, {"retain": None, "max_forgetting": None} | options, progress)
    show_notes(splits, show, f"thaw check {data} lists them")
    return kind, source, splits


def show_notes(splits, show, more):
    """Report the notes on a data set, and the first files that were left out.

    Args:
        splits: :class:`~thaw.data.splits.Splits`.
        show: function of a line of text.
        more: where the other files are listed, after "left out: 12 more, ".
    """
    for note in splits.notes:
        show(note)
    for bad in splits.rejected[:MAX_REJECTED_SHOWN]:
        show(f"left out: {bad.path} {bad.reason}")
    if len(splits.rejected) > MAX_REJECTED_SHOWN:
        show(f"left out: {len(splits.rejected) - MAX_REJECTED_SHOWN} more, {more}")
