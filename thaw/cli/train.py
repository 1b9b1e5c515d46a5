"""Commands of the main job: plan, advise, tune, evaluate, predict, cache."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from thaw.cli.options import (
    AnyData,
    AnyModel,
    Batch,
    Columns,
    Epochs,
    Flips,
    HeadEpochs,
    Json,
    Label,
    Length,
    MaxBad,
    Minutes,
    Model,
    PlanName,
    Preprocessing,
    Rate,
    Seed,
    Size,
    Text,
    Views,
    Weights,
    above_zero,
    import_keras,
    open_backbone,
    require_data,
)
from thaw.cli.output import duration, print_json, print_metrics, print_predictions, print_table, report
from thaw.plan import read_plan


def plan(
    name: Annotated[str, typer.Argument(help="probe, probe_then_tune, gradual, full, or a .toml file.")],
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    images: Annotated[int, typer.Option(min=1, help="Number of training images.")] = 1000,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 2,
    image_size: Size = None,
    batch_size: Batch = 32,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each phase that trains the backbone, or of the only phase.")
    ] = None,
    head_epochs: HeadEpochs = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of the phases that train the backbone, or of the only phase."),
    ] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print the plan as TOML, to edit.")] = False,
    as_json: Json = False,
):
    """Show what each phase of a plan trains, at what rates, and for how long on this machine."""
    if name == "auto":
        raise ValueError(
            "The plan auto is made of measurements on your images, by thaw tune and thaw advise; expected probe, "
            "probe_then_tune, gradual, full, or a .toml file."
        )
    if toml and as_json:
        raise ValueError("--toml and --json were given; expected one of them.")
    chosen = read_plan(name, epochs=epochs, head_epochs=head_epochs, learning_rate=learning_rate)
    if toml:
        return typer.echo(chosen.to_toml(), nl=False)
    backbone = open_backbone(model, weights, preprocessing, image_size=image_size)

    from thaw.models.heads import attach_head
    from thaw.training.forecasting import forecast

    tuned = attach_head(backbone, classes)
    counts = (images, max(1, images // 5))
    forecast(tuned, chosen, counts, measure=False)  # finds a stage that does not exist at once
    report("Timing a few batches of each phase, with random images ...")
    forecasts = forecast(tuned, chosen, counts, batch_size=batch_size)
    if as_json:
        return print_json(forecasts)
    print_table(
        ["phase", "epochs", "trains", "weights", "rates", "about"],
        [
            (
                f.phase,
                phase.epochs,
                " ".join(f.stages),
                f"{f.parameters:,}",
                " ".join(f"{rate:.2g}" for rate in f.rates.values()),
                duration(f.seconds),
            )
            for f, phase in zip(forecasts, chosen)
        ],
    )
    report(f"About {duration(sum(f.seconds for f in forecasts))} for {images:,} training images on this machine.")


def advise(
    data: AnyData,
    label: Label = None,
    text: Text = None,
    model: AnyModel = "auto",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    minutes: Minutes = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    image_size: Size = None,
    max_length: Length = 128,
    batch_size: Batch = 32,
    seed: Seed = 0,
    flips: Flips = "horizontal",
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Measure what of a backbone to fine-tune on these data, at what rate, and whether it is worth it."""
    require_data(data)
    read_plan("probe_then_tune", epochs=epochs, learning_rate=learning_rate)  # raises for an invalid number
    given = {"model": model, "weights": weights, "preprocessing": preprocessing, "image_size": image_size}
    given |= {"label": label, "text": text, "max_length": max_length, "seed": seed, "flips": flips, "max_bad": max_bad}
    from thaw.models.loading import is_model_file, model_format

    if is_model_file(model):
        model_format(Path(model))  # a missing file is refused before Keras is imported
    import_keras()
    import dataclasses

    from thaw.advice.advise import EPOCHS
    from thaw.advice.advise import advise as ask
    from thaw.data.augmentation import augment
    from thaw.models.heads import attach_head
    from thaw.models.precision import resolve_precision, use_precision
    from thaw.models.state import seed_everything
    from thaw.runs.open_data import open_any
    from thaw.runs.resolved_plan import too_few
    from thaw.training.progress import ProgressBar

    precision = resolve_precision("auto")  # as thaw tune, whose advice it is to be
    seed_everything(seed)
    with use_precision(precision):
        kind, source, splits = open_any(data, given | {"precision": precision}, report)
        if kind == "table":
            raise ValueError(
                "Advice says what of a pre-trained model to fine-tune, and that of a table starts from random weights; "
                f"leave it out: thaw tune {data} -o RUN."
            )
        augmentation = augment(flips=flips) if kind == "image" else None
        if few := too_few(splits.train, splits.validation):
            raise ValueError(f"{few}: take more examples, or fine-tune without advice: thaw tune {data} -o RUN.")
        train = dataclasses.replace(splits.train.weighted(splits.class_weight), augment=augmentation)
        with ProgressBar() as progress:
            advice = ask(
                attach_head(source.backbone, splits.task, seed=seed),
                train,
                validation_data=splits.validation,
                minutes=minutes,
                epochs=epochs or EPOCHS,
                learning_rate=learning_rate,
                batch_size=batch_size,
                seed=seed,
                callbacks=[progress],
            )
    if as_json:
        return print_json(advice.to_dict())
    typer.echo(str(advice))
    asked = "" if minutes is None else f" (but --minutes {4 * minutes:g}, a quarter of it for advice)"
    report(
        f"Nothing was changed. thaw tune with the same options{asked} and -o RUN gets the same advice and follows it."
    )


def _read_config(ctx: typer.Context, path: Path | None):
    """Take the values of options that are not given on the command line from a file."""
    if path is not None:
        from thaw.runs.config import read_config

        known = [p.name for p in ctx.command.params if p.name not in ("config", "as_json", "verbose", "help")]
        # As text: the parser checks them as if they had been typed.
        ctx.default_map = {name: str(value) for name, value in read_config(path, known).items()}
    return path


def tune(
    data: AnyData,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")],
    config: Annotated[
        Path | None,
        typer.Option(
            callback=_read_config,
            is_eager=True,
            help="A TOML file of these options, such as the config.toml of a run; those given here win.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What is predicted: classification (default), multilabel or regression.")
    ] = None,
    label: Label = None,
    text: Text = None,
    columns: Columns = None,
    image: Annotated[
        str | None, typer.Option(help="Column of the table with images, to be used together with --text or --numbers.")
    ] = None,
    numbers: Annotated[
        str | None,
        typer.Option(help="Columns of numbers, categories or dates, to be used together with --image or --text: a,b."),
    ] = None,
    plan: PlanName = "auto",
    features: Annotated[
        str,
        typer.Option(help="What a solved head reads: last, upper or all layers; auto: what is best."),
    ] = "auto",
    minutes: Annotated[
        float | None,
        typer.Option(callback=above_zero, help="Shorten the plan so that the run ends in so many minutes."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Train a model for each of so many folds; the run's model is their mean.")
    ] = None,
    model: AnyModel = "auto",
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from", help="An earlier run, to go on with its model: what it knows of the same classes stays."
        ),
    ] = None,
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    epochs: Epochs = None,
    head_epochs: HeadEpochs = None,
    learning_rate: Rate = None,
    image_size: Size = None,
    max_length: Length = 128,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples in a batch; default: 32, for tables 64.")
    ] = None,
    seed: Seed = 0,
    flips: Flips = "horizontal",
    rotation: Annotated[float, typer.Option(help="Augment by rotating, up to this fraction of a full turn.")] = 0.0,
    zoom: Annotated[float, typer.Option(help="Augment by zooming, up to this fraction.")] = 0.0,
    max_bad: MaxBad = 0.05,
    optimizer: Annotated[str, typer.Option(help="A Keras optimizer, such as adamw, adam, sgd or lion.")] = "adamw",
    clip_norm: Annotated[
        float, typer.Option(min=0, help="Largest global norm of the gradients; 0: no clipping.")
    ] = 1.0,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a phase after so many epochs without a better validation score.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto (float32 on a CPU), float32, mixed_float16 or mixed_bfloat16.")
    ] = "auto",
    l2_sp: Annotated[
        float | None,
        typer.Option(min=0, help="L2-SP: penalize the distance from the pre-trained weights; 0.001 to 0.1 is usual."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric that decides which epoch is best, such as loss; default: the accuracy.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="Which direction of --metric is better: min or max.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of the table whose values stay within one split, such as a patient.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of the table to split by: the latest images or rows are the test.")
    ] = None,
    retain: Annotated[
        Path | None,
        typer.Option(help="Images of the source task, to measure forgetting on: a folder or a CSV file."),
    ] = None,
    max_forgetting: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fraction of the source score that may be lost, such as 0.02; else exit 4."),
    ] = None,
    soup: Annotated[
        int | None, typer.Option(min=0, help="Average the weights of up to so many of the best epochs; 3 is usual.")
    ] = None,
    balance: Annotated[
        str, typer.Option(help="Classes of different size: auto, none, balanced or logit-adjustment.")
    ] = "auto",
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of each target that is spread over all classes; 0.1 is usual.")
    ] = 0.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print a line for each epoch, however short.")] = False,
    as_json: Json = False,
):
    """Fine-tune a model on images, texts or a table; the same command resumes an interrupted run.

    Exit code 4: the run is written, and it forgets more than --max-forgetting allows.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out", "config", "as_json")}
    options |= {"monitor": options.pop("metric"), "verbose": 2 if verbose else "auto"}
    from thaw.runs.tune_options import check_options
    from thaw.workflow import tune

    check_options(data, out, options)
    from thaw.tasks import check_mode

    check_mode(mode)
    import_keras()
    run = tune(data, out, **options)
    print_metrics(run.metrics, as_json)
    report(f"The model is {out / 'model.keras'}: a plain Keras file.")
    if not run.metrics.get("retention", {}).get("inside", True):
        raise typer.Exit(4)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path | None, typer.Argument(help="Labelled examples, a folder or a table.")] = None,
    views: Views = 1,
    as_json: Json = False,
):
    """Measure the model of a run on labelled examples; without any, show its metrics."""
    from thaw.runs.folder import open_run

    opened = open_run(run)
    if data is None:
        return print_metrics(opened.evaluate(views=views), as_json)
    require_data(data)
    import_keras()
    from thaw.training.progress import count_progress

    with count_progress() as progress:
        metrics = opened.evaluate(data, progress=progress, views=views)
    for path, reason in metrics["rejected"].items():
        report(f"left out: {path} {reason}")
    _report_views(opened, views, [metrics])
    for note in metrics["notes"]:
        report(note)
    print_metrics(metrics, as_json)


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    files: Annotated[
        list[Path],
        typer.Argument(help="Images; of other runs tables, .txt files, arrays, or a text of several words."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to report for each image.")] = 3,
    views: Views = 1,
    as_json: Json = False,
):
    """Predict with the model of a run; exit code 1 if a file cannot be read."""
    from thaw.runs.folder import open_run

    opened = open_run(run)
    import_keras()
    if opened.input is None:
        predictions = opened.predict(files, top=top, views=views)
    else:
        predictions = []
        for file in files:
            try:
                predictions += opened.predict(file, top=top, views=views)
            except (OSError, ValueError) as error:
                if len(files) == 1:
                    raise
                predictions.append({"file": str(file), "error": str(error)})
    _report_views(opened, views, predictions)
    if as_json:
        print_json(predictions)
    else:
        print_predictions([p for p in predictions if "error" not in p])
    unreadable = [p for p in predictions if "error" in p]
    for prediction in unreadable:
        report(f"{prediction.get('file', prediction.get('row'))}: {prediction['error']}")
    if unreadable:
        raise typer.Exit(1)


def _report_views(run, asked, results):
    """Say where there are fewer views than were asked for."""
    used = next((result["views"] for result in results if "views" in result), asked)
    if used < asked:
        flips = run.config.get("flips", "none")
        report(f"{used} of {asked} views of each image: the run was trained with --flips {flips}, which makes no more.")


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete it, except what a running comparison uses; other runs will stop.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
):
    """Show what is cached on disk between runs, or delete it; it is computed again when needed."""
    from thaw.features.cache_folder import clear_cache, list_cache

    rows = list_cache()
    total = sum(row["bytes"] for row in rows)
    if clear:
        loose = [row for row in rows if not row["about"].get("in_use")]
        if loose and not yes:
            if not sys.stdin.isatty():
                raise ValueError("The command cannot ask whether to clear the cache; add --yes.")
            size = sum(row["bytes"] for row in loose)
            if not typer.confirm(f"Delete {size / 1e6:,.1f} MB? A run in progress will stop.", err=True):
                return report("Nothing was deleted.")
        freed = clear_cache()
        rest = " What a comparison uses is still there." if len(loose) < len(rows) else ""
        return print_json({"freed": freed}) if as_json else report(f"{freed / 1e6:,.1f} MB were freed.{rest}")
    if as_json:
        return print_json(rows)
    if not rows:
        return typer.echo("The cache is empty.")
    print_table(
        ["cached", "of", "images", "versions", "MB", "last used"],
        [
            (
                row["what"],
                row["description"],
                f"{row['examples']:,}",
                f"{row['rows']:,}",
                f"{row['bytes'] / 1e6:,.1f}",
                row["last_used"][:16].replace("T", " "),
            )
            for row in rows
        ],
    )
    report(f"{total / 1e6:,.1f} MB in all. Times are UTC. thaw cache --clear deletes it.")
