"""Run the whole job of a command: read data, fine-tune a backbone on them, leave a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from pathlib import Path
from time import monotonic

from thaw._keras import compile_settings
from thaw._validation import as_number
from thaw.models.loading import is_model_file
from thaw.plan import Phase, Plan
from thaw.runs.folder import MANIFEST, open_run, verify_run
from thaw.runs.input_options import check_input_options
from thaw.runs.open_data import (
    default_model,
    find_input,
    open_continued,
    open_data,
    read_data,
    said_by_run,
    show_notes,
)
from thaw.runs.plans import TABLE_BATCH, continued_plan, table_plan
from thaw.runs.tune_options import check_options, require_data
from thaw.runs.tuning import check_task, tune_splits

LR_FINDER_STEPS, LR_FINDER_REPEATS = 100, 3


def tune(
    data,
    folder,
    *,
    task=None,
    label=None,
    text=None,
    columns=None,
    image=None,
    numbers=None,
    plan="auto",
    features="auto",
    model="auto",
    from_run=None,
    weights="imagenet",
    preprocessing="auto",
    epochs=None,
    head_epochs=None,
    learning_rate=None,
    image_size=None,
    max_length=128,
    batch_size=None,
    seed=0,
    flips="horizontal",
    rotation=0.0,
    zoom=0.0,
    max_bad=0.05,
    l2_sp=None,
    retain=None,
    max_forgetting=None,
    minutes=None,
    folds=None,
    soup=None,
    balance="auto",
    label_smoothing=0.0,
    optimizer="adamw",
    clip_norm=1.0,
    patience=None,
    precision="auto",
    group=None,
    time=None,
    monitor=None,
    mode=None,
    callbacks=(),
    verbose="auto",
):
    """Fine-tune a backbone on images, texts or a table, and leave a run folder: the command ``thaw tune``.

    The data are read and split, a head is put on the backbone, the plan is run, and the model is measured on the test
    examples (on the validation examples where there are none). The folder holds the model, a plain Keras file, and all
    that belongs to it; its ``config.toml`` repeats the run. An interrupted run, even a killed one, is resumed by the
    same call, and ends in bit-identical weights. The global random seeds are set, as :func:`thaw.seed_everything` does.

    For a table there is no pre-trained model: one is trained from random weights, and compared with gradient boosting
    on the same split.

    Args:
        data: a folder ``class/image`` or ``class/text.txt``; a table (CSV, JSON lines, Parquet) with a column of
            images, of texts, or of neither; a pandas or polars frame; arrays, a file ``.npz`` or a pair ``(x, y)``, for
            a model of your own (:func:`thaw.data.arrays.load_arrays`); or the :class:`~thaw.data.splits.Splits` of
            :func:`thaw.load_images`, :func:`thaw.load_text` or :func:`thaw.load_table`.
        folder: path of the run folder, new or empty.
        task: what is predicted: ``"classification"``, one class for each example; ``"multilabel"``, any number of
            labels; or ``"regression"``, numbers. The last two need a table or arrays; advice, folds and a budget for
            forgetting are for classes only. Defaults to ``None``: classes; numbers where the label of a table without
            images and texts is one; or the task of the :class:`~thaw.data.splits.Splits`.
        label: column of the table with what is predicted, or a list of columns, as for :func:`thaw.load_images`; a text
            with commas names several. Defaults to ``None``: the column "label".
        text: column of the table with the texts to learn from, as for :func:`thaw.load_text`. Defaults to ``None``:
            a column "text", or with another usual name, where there is no column of images.
        columns: columns of the table to predict from, as for :func:`thaw.load_table`; a text with commas names
            several. Defaults to ``None``: all that are of use.
        image: column of the table with images, to be used together with ``text`` or ``numbers``: a head is solved on
            each alone and on all together, and the best by cross-validation is the run's model. Defaults to ``None``.
        numbers: columns of the table with numbers, categories or dates, to be used together with ``image`` or ``text``;
            a text with commas names several. Defaults to ``None``.
        plan: ``"auto"`` (default): :func:`thaw.advise` chooses one; ``"probe"``, ``"probe_then_tune"``, ``"gradual"``
            or ``"full"``; the path of a ``.toml`` file; or a :class:`thaw.Plan`.
        features: what the head reads: ``"last"``, ``"upper"`` or ``"all"`` layers, as for :func:`thaw.attach_head`;
            ``"auto"`` (default): :func:`thaw.transfer.choose_head` decides for a solved head. Where the plan trains the
            backbone too, the tuned model reads the last layer, and a wide head is solved on a copy of the frozen
            backbone; the run's model is the blend of both, or the better one, by the validation images.
        model: name of a backbone as for :func:`thaw.backbone`, a ``.keras`` or ``.h5`` file, a ``keras.Model`` that
            takes square images, or word pieces ``(length,)``, or a :class:`~thaw.retention.source_tasks.SourceTask`.
            A head is taken off. Defaults to ``"auto"``: ``"efficientnet_lite0"`` for images, ``"minilm"`` for texts,
            and :func:`thaw.models.table_backbone.table_backbone` for tables.
        from_run: path of an earlier run, to go on with its model on more or other data of the same kind: the head
            keeps what it knows of the classes whose names match, and of a table the columns keep their weights; what is
            new begins at zero. Its plan solves for no head. Defaults to ``None``.
        weights: ``"imagenet"`` (default), ``"none"`` for random ones, or a file of weights.
        preprocessing: scaling of the pixels for a model file without one, as for :func:`thaw.backbone`.
        epochs: epochs of each phase that trains the backbone; defaults to those of the plan.
        head_epochs: epochs of the head alone; defaults to those of the plan.
        learning_rate: peak rate of the phases that train the backbone; defaults to that of the plan. Where it is not
            given, the rates of a predefined plan are multiplied by 20 for SGD and by 0.2 for Lion.
        image_size: side of the images in pixels; defaults to 224, or to the input size of the model.
        max_length: largest length of a text in word pieces: 32, 64, 128 (default) or 256.
        batch_size: examples in a batch. Defaults to 32, for tables to 64.
        seed: seed of the split, of the order, the augmentation and the head. Defaults to 0.
        flips: augmentation by flipping: ``"horizontal"`` (default), ``"vertical"``, ``"both"`` or ``"none"``.
        rotation: augmentation by rotating, up to this fraction of a full turn. Defaults to 0.
        zoom: augmentation by zooming, up to this fraction. Defaults to 0.
        max_bad: largest fraction of images or texts that may be left out because they cannot be used. Defaults to
            0.05.
        l2_sp: strength of L2-SP in the phases that train the backbone; see :class:`thaw.Phase`. Defaults to none.
        retain: images of the source task, on which forgetting is measured: a folder or a CSV file. Defaults to
            ``None``: it is estimated on images of the target task.
        max_forgetting: largest fraction of the score on the source task that may be lost, such as 0.02. Defaults to no
            limit.
        minutes: time in which the run is to end: the plan is shortened to fit, by a forecast of a few batches, and the
            notes say what was left out. A quarter of it is for the trials behind ``plan="auto"``, if that is half a
            minute or more. Defaults to no limit, with 1 to 5 minutes of trials.
        folds: number of folds, at least 2: the training and validation images are divided again, a model is fine-tuned
            for each fold on the others, and the run's model is the mean of them all. ``out_of_fold.csv`` has the
            predictions of each image by the model that has not seen it. Callbacks see one training after another.
            Defaults to one model.
        soup: average the weights of up to so many of the best epochs of a phase, where that is better on the validation
            images; see :class:`thaw.Phase`. Defaults to what the plan says.
        balance: what is done about classes of different size: ``"none"``, ``"balanced"`` (weights in the loss),
            ``"logit-adjustment"`` (after the training), or ``"auto"`` (default): ``"balanced"`` where the rarest class
            has less than a third of the images of the most frequent one.
        label_smoothing: share of each target that is spread over all classes in the phases that train by gradient
            descent; see :class:`thaw.Classification`. Defaults to 0.
        optimizer: name of a Keras optimizer, such as ``"adamw"`` (default), ``"adam"``, ``"sgd"`` or ``"lion"``.
        clip_norm: largest global norm of the gradients; 0 for no clipping. Defaults to 1.
        patience: end a phase after this many epochs without a better validation score; defaults to that of the plan.
        precision: ``"float32"``, ``"mixed_float16"``, ``"mixed_bfloat16"``, or ``"auto"`` (default), which is float32
            on a CPU; see :func:`thaw.models.precision.resolve_precision`.
        group: column of the table whose values are kept within one split, such as a patient or a lot.
        time: column of the table by which images or rows are split, the latest for the test.
        monitor: name of the metric that decides which epoch is best; defaults to the accuracy, or to that of the task.
        mode: ``"min"`` or ``"max"``: which direction of ``monitor`` is better; defaults to what the metric declares.
        callbacks: list of Keras callbacks, as for :func:`thaw.fine_tune`. Defaults to none.
        verbose: ``"auto"`` or 1 to show progress and notes on stderr, 2 for a line for each epoch and no bar, 0 for
            silence.

    Returns:
        The finished :class:`~thaw.runs.folder.Run`.

    Raises:
        FileNotFoundError: a file or folder that does not exist.
        ValueError: a mistake that is found before the first step, or a folder that holds another run.
        FloatingPointError: the training diverged; the last good weights are in ``last-good.keras``.
        OSError: the disk is full.

    Example:
        >>> from thaw import tune
        >>> run = tune("photos", "runs/photos")                             # doctest: +SKIP
        >>> print(run)                                                      # doctest: +SKIP
    """
    arguments, began = dict(locals()), monotonic()
    not_options = ("folder", "callbacks", "verbose")
    options = {name: as_number(value) for name, value in arguments.items() if name not in not_options}
    options["weights"] = "none" if weights is None else weights
    for name in ("label", "columns", "numbers"):
        if not (options[name] is None or isinstance(options[name], (str, dict))):
            options[name] = ",".join(options[name])
    earlier = None if from_run is None else open_run(from_run)
    if earlier is not None:
        options |= said_by_run(earlier, data, options)
    check_task(options["task"], options)
    chosen = check_options(data, folder, options)
    kind = find_input(data, text=options["text"], columns=columns, image=image, numbers=numbers)
    check_input_options(kind, options)
    if kind == "joined" and callbacks:
        raise ValueError("Several columns are joined under a solved head, which trains no epochs; leave callbacks out.")
    options["model"] = model = model if from_run is not None else default_model(model, kind)
    options["batch_size"] = batch_size = batch_size or (TABLE_BATCH if kind == "table" else 32)
    if from_run is not None:
        is_table_plan = kind == "table" and chosen == "auto"
        chosen = continued_plan(chosen, kind, epochs=epochs, learning_rate=learning_rate, patience=patience)
        patience = None if is_table_plan else patience
    elif kind == "table" and chosen == "auto":
        chosen = table_plan(epochs=epochs, learning_rate=learning_rate, patience=patience)
        patience = None
    options["metric"] = options.pop("monitor")  # as the command calls it, for config.toml
    if not isinstance(plan, (str, os.PathLike)):
        options["plan"] = chosen  # a list of phases was given, say

    from thaw.data.augmentation import augment
    from thaw.models.precision import resolve_precision, use_precision
    from thaw.models.state import seed_everything
    from thaw.runs.folds import tune_folds
    from thaw.training.callbacks import callback_list
    from thaw.training.progress import ProgressBar, count_progress

    augmentation = augment(flips=flips, rotation=rotation, zoom=zoom)
    options["precision"] = resolve_precision(precision)
    seed_everything(seed)
    with use_precision(options["precision"]):
        console = _console(verbose)
        with _progress(count_progress, verbose) as progress:
            if from_run is None:
                source, splits, going_on = *open_data(data, kind, options, progress), {}
            else:
                source, splits, continued = open_continued(earlier, data, kind, options, progress)
                going_on = {"model": continued}
        check_task({"sigmoid": "multilabel", "linear": "regression"}.get(splits.task.activation), options)
        for note in () if kind == "joined" else source.notes:
            console.print(note)
        show_notes(splits, console.print, f"listed in {Path(folder) / 'quarantine.csv'}")
        if label_smoothing:
            splits = dataclasses.replace(splits, task=dataclasses.replace(splits.task, label_smoothing=label_smoothing))
        if splits.train.augment is None and kind == "image":
            splits = dataclasses.replace(splits, train=dataclasses.replace(splits.train, augment=augmentation))
        shown = {*([] if kind == "joined" else source.notes), *splits.notes}
        if kind == "joined":
            return _tune_joined(splits, folder, source, options, console, verbose)
        with ProgressBar(console, verbose=2 if verbose == 2 else 1) if verbose else contextlib.nullcontext() as bar:
            train = tune_splits if folds is None else functools.partial(tune_folds, folds=folds)
            model, metrics, _ = train(
                splits,
                folder,
                backbone=source if folds is None else source.backbone,
                plan=chosen,
                features=features,
                advice={name: options[name] for name in ("epochs", "head_epochs", "learning_rate", "l2_sp")},
                minutes=options["minutes"],
                began=began,
                batch_size=batch_size,
                seed=seed,
                optimizer=(optimizer, clip_norm),
                patience=patience,
                soup=soup,
                monitor=monitor,
                mode=mode,
                callbacks=[*callback_list(callbacks), *([bar] if bar else [])],
                options=options,
                **going_on,
            )
        shown |= bar.said if bar else set()
        for note in metrics["notes"]:
            if note not in shown and re.sub(r"^Fold \d+: ", "", note) not in shown:
                console.print(note)
    run = open_run(folder)
    run.model = model
    return run


def _tune_joined(splits, folder, backbones, options, console, verbose):
    from thaw.runs.joined import tune_joined
    from thaw.training.progress import count_progress

    with _progress(count_progress, verbose) as progress:
        sizes = {"batch_size": options["batch_size"], "seed": options["seed"]}
        shown = progress and (lambda done, total: progress(done, total, "the frozen networks, once"))
        model, _, comparison = tune_joined(
            splits, folder, backbones=backbones, **sizes, options=options, progress=shown
        )
    console.print(str(comparison))
    run = open_run(folder)
    run.model = model
    return run


def _console(verbose):
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=not verbose)


@contextlib.contextmanager
def _progress(count_progress, verbose):
    if not verbose:
        yield None
        return
    with count_progress() as progress:
        yield progress


def find_rate(
    data,
    *,
    train=None,
    model="efficientnet_lite0",
    weights="imagenet",
    preprocessing="auto",
    image_size=None,
    batch_size=32,
    seed=0,
    max_bad=0.05,
    verbose="auto",
):
    """Run a learning-rate range test where fine-tuning would begin: the command ``thaw find-rate``.

    The frozen prefix is run once. Where more than the head is trained, the head is first trained alone for a few
    epochs, as the plans do: with a head of zeros, nothing below it would learn. The images are not augmented. The
    global random seeds are set, as :func:`thaw.seed_everything` does.

    Args:
        data: as for :func:`tune`.
        train: ``"head"``, ``"all"``, or the number of stages below the head to train; defaults to 2, or to 1 where
            there are no more.
        model: as for :func:`tune`.
        weights: as for :func:`tune`.
        preprocessing: as for :func:`tune`.
        image_size: as for :func:`tune`.
        batch_size: images in a batch. Defaults to 32.
        seed: seed of the split and of the order. Defaults to 0.
        max_bad: as for :func:`tune`.
        verbose: ``"auto"`` or 1 to show progress and notes on stderr, 0 for silence.

    Returns:
        :class:`~thaw.advice.lr_range.RangeTest`.

    Raises:
        FileNotFoundError: a file or folder that does not exist.
        ValueError: the model has no such stages, or data that cannot be used.

    Example:
        >>> from thaw.workflow import find_rate
        >>> print(find_rate("photos", train=2))                             # doctest: +SKIP
    """
    require_data(data)

    from thaw.models.backbone import backbone, input_size
    from thaw.models.state import preserve_flags, seed_everything
    from thaw.training.progress import count_progress

    seed_everything(seed)
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    if name is not None:
        shape = None if image_size is None else (image_size, image_size, 3)
        weights = None if weights == "none" else weights
        model = backbone(name, weights=weights, input_shape=shape, preprocessing=preprocessing)
    size = input_size(model, name)
    with _progress(count_progress, verbose) as progress:
        splits = read_data(data, "image", {"seed": seed, "max_bad": max_bad}, size, progress)
        listed = f"thaw check {data} lists them" if isinstance(data, (str, os.PathLike)) else "see splits.rejected"
        console = _console(verbose)
        show_notes(splits, console.print, listed)
        with preserve_flags(model):  # a model of the user's own
            return _range_test(model, splits, train, batch_size, seed, console.print, progress)


def _range_test(backbone, splits, train, batch_size, seed, say, progress):
    from thaw.advice.lr_range import lr_finder
    from thaw.features.precompute import precompute
    from thaw.features.split import CannotSplit, split_model
    from thaw.finetune import fine_tune
    from thaw.models.heads import attach_head
    from thaw.models.stages import stages_of
    from thaw.training.freezing import freeze
    from thaw.training.progress import with_estimate

    model = attach_head(backbone, splits.task, seed=seed)
    settings = compile_settings(model)
    dataset = splits.train.weighted(splits.class_weight)
    batch_size = min(batch_size, len(dataset))
    train = min(2, len(stages_of(model)) - 1) if train is None else train

    def shown(what):
        return progress and (lambda done, total: progress(done, total, what))

    freeze(model, train)  # raises for a stage that does not exist, before anything is computed
    if Phase(name="test", epochs=1, train=train).trains_backbone:
        say("training the head alone first, 3 epochs")
        model.compile(**settings)
        alone = Plan([Phase(name="head", epochs=3, train="head", learning_rate=1e-3, views=1)])
        validation = splits.validation
        fine_tune(model, alone, dataset, validation_data=validation, batch_size=batch_size, seed=seed, verbose=0)
        freeze(model, train)
    try:
        prefix, tested = split_model(model)
    except CannotSplit:
        tested = model
    else:
        say("computing the frozen layers once")
        dataset = precompute(prefix, dataset, batch_size=batch_size, progress=shown("the frozen layers, once"))
    tested.compile(**settings)
    say(f"range test: {LR_FINDER_REPEATS * LR_FINDER_STEPS} steps")
    lengths = {"steps": LR_FINDER_STEPS, "repeats": LR_FINDER_REPEATS}
    counted = with_estimate(shown("range test"), say)
    return lr_finder(tested, dataset, batch_size=batch_size, **lengths, seed=seed, progress=counted)


def check(path, *, label=None, text=None, image_size=224, max_bad=0.05, progress=None):
    """Look for common mistakes in a model file, a run folder, or data: the command ``thaw check``.

    Args:
        path: a ``.keras`` or ``.h5`` file; a run folder; or data as for :func:`tune`.
        label: column of a table with what is predicted, as for :func:`tune`. Defaults to ``None``.
        text: column of a table with texts, as for :func:`tune`. Defaults to ``None``.
        image_size: side in pixels to which images are resized. Defaults to 224.
        max_bad: largest fraction of files that :func:`tune` is to leave out because they cannot be used; more of them
            are an error. Defaults to 0.05.
        progress: function of (files done, files in all, text), called while images are read. Defaults to none.

    Returns:
        ``(kind, findings)``: ``"model"``, ``"run"`` or ``"data"``, and a list of :class:`thaw.Finding`.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file cannot be read.

    Example:
        >>> from thaw import check
        >>> kind, findings = check("photos")                                # doctest: +SKIP
        >>> [finding.what for finding in findings]                          # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a model file, a run folder, or data.")
    if is_model_file(path):
        return "model", _check_model(path)
    if (path / MANIFEST).exists():
        verify_run(path)
        return "run", _check_model(path / "model.keras")
    from thaw.checks import Finding

    kind = find_input(path, text=text)
    size = image_size if kind == "image" else None
    splits = read_data(path, kind, {"label": label, "text": text, "max_bad": 1.0}, size, progress)
    name = "unusable-image" if kind == "image" else "unusable-row"
    findings = [
        Finding(name, "warning", f"{bad.path} {bad.reason}.", "It will be left out.") for bad in splits.rejected
    ]
    files = sum(map(len, splits.files.values())) + len(splits.rejected)
    if kind in ("image", "text", "joined") and len(splits.rejected) > max_bad * files:
        what = (
            f"{len(splits.rejected)} of {files} {'files' if kind == 'image' else 'rows'} are bad, more than the "
            f"{max_bad:.0%} that thaw tune accepts."
        )
        fix = f"Repair or remove them, or raise --max-bad above {len(splits.rejected) / files:.2g}."
        findings.insert(0, Finding("too-many-bad-files", "error", what, fix))
    return "data", findings + [Finding("note", "note", note, "") for note in splits.notes]


def _check_model(path):
    import keras

    from thaw.checks import Finding, preflight
    from thaw.models.loading import load_model_file

    model, findings = load_model_file(path), []  # refuses code, and names what is damaged
    try:
        # With its compilation, which is half of what preflight looks at.
        model = keras.saving.load_model(path, safe_mode=True, compile=True)
    except Exception as error:  # a custom loss or metric may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        findings.append(
            Finding(
                "compilation-lost",
                "warning",
                f"Its compilation cannot be restored ({first}), so that its loss and rate are not checked.",
                "Register its loss and metrics with keras.saving.register_keras_serializable.",
            )
        )
    return findings + list(preflight(model))
