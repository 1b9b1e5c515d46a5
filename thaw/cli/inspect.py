"""Commands that measure: stages, check, probe, rank, find-rate, compare."""

from pathlib import Path
from typing import Annotated

import typer

from thaw._files import to_jsonable
from thaw.cli.options import (
    Batch,
    Data,
    Flips,
    Json,
    Label,
    MaxBad,
    MaxImages,
    Model,
    Preprocessing,
    Seed,
    Size,
    Text,
    Weights,
    above_zero,
    import_keras,
    open_backbone,
    open_images,
    require_data,
    valid_seed,
)
from thaw.cli.output import duration, print_json, print_table, report


def stages(
    model: Annotated[str, typer.Argument(help="Name of a backbone, a .keras or .h5 file, or a run folder.")] = (
        "efficientnet_lite0"
    ),
    as_json: Json = False,
):
    """Show the stages of a model, from input to output."""
    from thaw.models.loading import is_model_file
    from thaw.models.stages import stages_of
    from thaw.runs.folder import MANIFEST

    if (Path(model) / MANIFEST).exists():  # a run folder
        model = str(Path(model) / "model.keras")
    # Stages do not depend on the weights, so none are downloaded; a file has its own.
    weights = "imagenet" if is_model_file(model) else "none"
    rows = [
        {
            "stage": s.name,
            "layers": len(s.layers),
            "weights": s.parameters,
            "output": list(s.shape),
            "crossing_bytes": s.crossing,
            "first": s.layers[0].name,
        }
        for s in stages_of(open_backbone(model, weights, head=True))
    ]
    if as_json:
        return print_json(rows)
    print_table(
        ["stage", "begins with", "layers", "weights", "output", "enters (KB)"],
        [
            (
                r["stage"],
                r["first"],
                r["layers"],
                f"{r['weights']:,}",
                " x ".join(map(str, r["output"])),
                f"{r['crossing_bytes'] / 1e3:,.0f}",
            )
            for r in rows
        ],
    )


def check(
    path: Annotated[Path, typer.Argument(help="A model file, a run folder, or data as for thaw tune.")],
    label: Label = None,
    text: Text = None,
    image_size: Annotated[int, typer.Option(min=8, help="Side in pixels to which images are resized.")] = 224,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Look for common mistakes in a model or in data; exit code 1 if there is an error."""
    import_keras()
    from thaw.training.progress import count_progress
    from thaw.workflow import check

    with count_progress() as progress:
        kind, findings = check(path, label=label, text=text, image_size=image_size, max_bad=max_bad, progress=progress)
    if as_json:
        print_json({"kind": kind, "findings": [to_jsonable(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{finding.level}: {finding}")
        if not any(f.level in ("error", "warning") for f in findings):
            typer.echo(f"{path}: nothing wrong was found.")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


def probe(
    data: Data,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    image_size: Size = None,
    max_images: MaxImages = 5000,
    batch_size: Batch = 32,
    seed: Seed = 0,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Measure how well the frozen features of each stage separate the classes of these images."""
    require_data(data)
    backbone = open_backbone(model, weights, preprocessing, image_size=image_size)

    from thaw.training.progress import count_progress
    from thaw.transfer.probing import probe as measure

    splits = open_images(data, backbone.input_shape[1], seed, max_bad)
    report(f"Running the network once on {min(max_images, len(splits.train)):,} images ...")
    options = {"max_examples": max_images, "batch_size": batch_size, "seed": seed}
    with count_progress() as progress:
        result = measure(backbone, splits.train, **options, progress=lambda *done: progress(*done, "images"))
    if as_json:
        return print_json(to_jsonable(result, "errors") | {"best": result.best.stage})
    typer.echo(str(result))
    report("* the best. Cross-validated on the training images, with 95 % intervals.")


def rank(
    data: Data,
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="Name of a backbone, or a .keras or .h5 file; once for each."),
    ],
    weights: Annotated[
        list[str],
        typer.Option(
            help='"imagenet", "none" for random weights, or a file; once for all models, or for each in order.'
        ),
    ] = ("imagenet",),
    preprocessing: Annotated[
        list[str],
        typer.Option(
            help="Scaling of the pixels for a model file that has none: auto, none, -1..1, 0..1, caffe or torch; once "
            "for all models, or for each in order."
        ),
    ] = ("auto",),
    image_size: Size = None,
    max_images: MaxImages = 5000,
    batch_size: Batch = 32,
    seed: Seed = 0,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Rank backbones by how well their frozen features separate the classes of these images."""
    if len(set(model)) < max(2, len(model)):
        raise ValueError(f"The models are {', '.join(model)}; expected two or more that differ, each with its --model.")
    weights = _for_each(model, "--weights", weights)
    preprocessing = _for_each(model, "--preprocessing", preprocessing)
    require_data(data)
    backbones, size = {}, image_size
    # Files first: they have a size of their own, and named backbones are built for any.
    for name in sorted(model, key=lambda name: Path(name).suffix == ""):
        asked = image_size if Path(name).suffix else size
        backbones[name] = open_backbone(name, weights[name], preprocessing[name], image_size=asked)
        own = backbones[name].input_shape[1]
        if own != (size or own):
            raise ValueError(f"{name} takes images of side {own}, and another model of side {size}; expected one size.")
        size = own

    from thaw.training.progress import count_progress
    from thaw.transfer.probing import rank as measure

    splits = open_images(data, size, seed, max_bad)
    report(f"Running {len(model)} networks once on {min(max_images, len(splits.train)):,} images ...")
    options = {"max_examples": max_images, "batch_size": batch_size, "seed": seed}
    with count_progress() as progress:
        result = measure(backbones, splits.train, **options, progress=progress)
    if as_json:
        return print_json([to_jsonable(row, "probe") | {"best": row.probe.best.stage} for row in result.rows])
    typer.echo(str(result))
    report("By LogME. Where the intervals of the accuracies overlap, take the smaller network.")


def _for_each(models, option, values):
    """The value of an option for each model."""
    if len(values) not in (1, len(models)):
        raise ValueError(
            f"{option} is given {len(values)} times and --model {len(models)} times; expected it once, for all of "
            "them, or once for each, in the same order."
        )
    return dict(zip(models, values if len(values) > 1 else [*values] * len(models)))


def find_rate(
    data: Data,
    train: Annotated[
        str | None,
        typer.Option(help="What to train: head, all, or a number of stages below the head; default 2, at most all."),
    ] = None,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    image_size: Size = None,
    batch_size: Batch = 32,
    seed: Seed = 0,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Run a learning-rate range test, repeated; exit code 1 when there is no clear suggestion."""
    if train not in (None, "head", "all") and not train.isdecimal():
        raise ValueError(f"--train is {train!r}; expected head, all, or a number of stages below the head.")
    options = {name: value for name, value in locals().items() if name not in ("data", "as_json")}
    options["train"] = train if train in (None, "head", "all") else int(train)
    require_data(data)
    import_keras()
    from thaw.workflow import find_rate

    result = find_rate(data, **options)
    if as_json:
        print_json(result)
    else:
        typer.echo(str(result))
    if result.suggestion is None:
        raise typer.Exit(1)


def compare(
    data: Data,
    minutes: Annotated[
        float, typer.Option(callback=above_zero, help="Minutes of training for each way and each seed.")
    ] = 5.0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings of each way.")] = 3,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    image_size: Size = None,
    batch_size: Batch = 32,
    seed: Annotated[int, typer.Option(callback=valid_seed, help="Random seed of the split of the images.")] = 0,
    flips: Flips = "horizontal",
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Compare four ways to fine-tune, each trained for the same time.

    Frozen features; the top stages too; the whole network; and the whole network from random weights.
    """
    require_data(data)
    import_keras()
    import dataclasses

    from thaw.advice.compare import compare as train_all
    from thaw.data.augmentation import augment
    from thaw.models.heads import attach_head
    from thaw.models.state import seed_everything
    from thaw.training.callbacks import TuneCallback
    from thaw.training.progress import ProgressBar

    seed_everything(seed)
    size = open_backbone(model, weights, preprocessing, image_size=image_size).input_shape[1]
    splits = open_images(data, size, seed, max_bad)
    if splits.test is None:
        raise ValueError(
            f"{data} has no test images, on which a comparison is measured; add some, or name a source without splits, "
            "such as its train folder alone, which is then split in three."
        )
    train = dataclasses.replace(splits.train.weighted(splits.class_weight), augment=augment(flips=flips))

    def build(seed):
        backbone = open_backbone(model, weights, preprocessing, image_size=image_size)
        return attach_head(backbone, splits.task, seed=seed)

    class Announce(TuneCallback):
        def on_way_begin(self, way, seed, epochs, done, total):
            if done == 0:
                each, whole = duration(60 * minutes), duration(60 * minutes * total)
                times = "once" if seeds == 1 else f"{seeds} times"
                report(
                    f"{total // seeds} ways, {times} {each} of training each: {whole} in all, or more where an "
                    "epoch takes longer."
                )

    with ProgressBar(trainings=False) as progress:
        result = train_all(
            build,
            train,
            validation_data=splits.validation,
            test_data=splits.test,
            minutes=minutes,
            seeds=seeds,
            batch_size=batch_size,
            callbacks=[Announce(), progress],
        )
    if as_json:
        return print_json(result.to_dict())
    typer.echo(str(result))
