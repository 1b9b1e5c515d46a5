"""Commands that look before anything is tuned, and that compare. Parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from thaw.cli_options import (
    Batch,
    Data,
    Json,
    MaxBad,
    Model,
    Preprocessing,
    Seed,
    Size,
    Weights,
    above_zero,
    open_backbone,
    open_pictures,
)
from thaw.plain import plain
from thaw.printing import duration, print_json, print_table, say

Most = Annotated[int, typer.Option(min=10, help="Use this many training pictures at most.")]


def stages(
    model: Annotated[str, typer.Argument(help="A backbone's name, or a .keras or .h5 file.")] = "efficientnet_lite0",
    as_json: Json = False,
):
    """Show the stages of a model, input to output."""
    from thaw.stages import stages_of

    a_file = Path(model).suffix.lower() in (".keras", ".h5", ".hdf5")
    # Stages do not depend on the weights, so none are fetched; a file brings its own.
    found = stages_of(open_backbone(model, "imagenet" if a_file else "none", head=True))
    rows = [
        {
            "stage": s.name,
            "layers": len(s.layers),
            "weights": s.parameters,
            "output": list(s.shape),
            "crossing_bytes": s.crossing,
            "first": s.layers[0].name,
        }
        for s in found
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
    path: Annotated[Path, typer.Argument(help="A model file, a run folder, or pictures.")],
    image_size: Size = None,
    as_json: Json = False,
):
    """Look for the classic mistakes in a model or in data; exit code 1 when there is an error among them."""
    from thaw.jobs.check_path import check_path
    from thaw.progress import counting

    with counting() as progress:
        kind, findings = check_path(path, image_size=image_size or 224, progress=progress)
    if as_json:
        print_json({"kind": kind, "findings": findings})
    else:
        for finding in findings:
            typer.echo(f"{finding['level']}: {finding['what']} {finding['fix']}".rstrip())
        if not any(f["level"] in ("error", "warning") for f in findings):
            typer.echo(f"{path}: nothing wrong was found.")
    if any(f["level"] == "error" for f in findings):
        raise typer.Exit(1)


def probe(
    data: Data,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    image_size: Size = None,
    most: Most = 5000,
    batch_size: Batch = 32,
    seed: Seed = 0,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Show how far each stage of a frozen model already gets on these pictures, in one pass."""
    from thaw.jobs.counted import counted
    from thaw.measuring.probe import probe as measure
    from thaw.progress import counting

    backbone = open_backbone(model, weights, preprocessing, image_size=image_size)
    pictures = open_pictures(data, backbone.input_shape[1], seed, max_bad)
    with counting() as progress:
        examples = counted(pictures.train, progress, "one pass of the network")
        found = measure(backbone, examples, most=most, batch_size=batch_size, seed=seed)
    if as_json:
        return print_json(plain(found, "errors") | {"best": found.best.stage})
    typer.echo(str(found))
    say("* the best. Cross-validated on the training pictures, with 95 % intervals.")


def rank(
    data: Data,
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="A backbone's name, or a .keras or .h5 file; the option once for each."),
    ],
    weights: Annotated[
        list[str],
        typer.Option(help='"imagenet", "none" for random, or a file; once for all models, or for each in order.'),
    ] = ("imagenet",),
    preprocessing: Annotated[
        list[str],
        typer.Option(
            help="How pixels are scaled before a model file that does not: none, -1..1, 0..1, caffe, torch; "
            "once for all models, or for each in order."
        ),
    ] = ("auto",),
    image_size: Size = None,
    most: Most = 5000,
    batch_size: Batch = 32,
    seed: Seed = 0,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Order backbones by how well their features explain the labels of these pictures, before any is tuned."""
    from thaw.jobs.counted import counted
    from thaw.measuring.rank import rank as order
    from thaw.progress import counting

    if len(set(model)) < max(2, len(model)):
        raise ValueError(f"The models are {', '.join(model)}; expected two or more that differ, each with its --model.")
    weights = _for_each(model, "--weights", weights)
    preprocessing = _for_each(model, "--preprocessing", preprocessing)
    backbones, size = {}, image_size
    # First the files, which have a size of their own; nets with a name are built for any.
    for name in sorted(model, key=lambda name: Path(name).suffix == ""):
        asked = image_size if Path(name).suffix else size
        backbones[name] = open_backbone(name, weights[name], preprocessing[name], image_size=asked)
        own = backbones[name].input_shape[1]
        if own != (size or own):
            raise ValueError(
                f"{name} takes pictures of side {own}, and another model of side {size}; expected one size."
            )
        size = own
    pictures = open_pictures(data, size, seed, max_bad)
    with counting() as progress:
        examples = counted(pictures.train, progress, f"one pass of each of {len(model)} networks")
        found = order(backbones, examples, most=most, batch_size=batch_size, seed=seed)
    if as_json:
        return print_json([plain(row, "probe") | {"best": row.probe.best.stage} for row in found.rows])
    typer.echo(str(found))
    say("By LogME. Where the intervals of the accuracies overlap, take the smaller network.")


def _for_each(models, option, values):
    """What an option says of each model."""
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
        typer.Option(help="What is to move: head, all, or a number of stages below the head; 2, or 1 if that is all."),
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
    """Look for a learning rate by a range test with repeats; exit code 1 when there is no clear suggestion."""
    from thaw.jobs.find_rate import find_rate as find
    from thaw.jobs.reproducible import reproducible
    from thaw.progress import counting

    if train not in (None, "head", "all") and not train.isdecimal():
        raise ValueError(f"--train is {train!r}; expected head, all, or a number of stages below the head.")
    reproducible(seed)
    backbone = open_backbone(model, weights, preprocessing, image_size=image_size)
    pictures = open_pictures(data, backbone.input_shape[1], seed, max_bad)
    moves = train if train in (None, "head", "all") else int(train)
    with counting() as progress:
        found = find(backbone, pictures, train=moves, batch_size=batch_size, seed=seed, progress=progress)
    if as_json:
        print_json(plain(found))
    else:
        typer.echo(str(found))
    if found.suggestion is None:
        raise typer.Exit(1)


def compare(
    data: Data,
    minutes: Annotated[
        float, typer.Option(callback=above_zero, help="Minutes of training for each way and each seed.")
    ] = 5.0,
    seeds: Annotated[int, typer.Option(min=1, help="How often each way is trained.")] = 3,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    image_size: Size = None,
    batch_size: Batch = 32,
    seed: Annotated[int, typer.Option(min=0, help="Another one splits the pictures in another way.")] = 0,
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Train in four ways for the same time each, and say which is best.

    Frozen features; the top stages as well; the whole network; and all of it from random weights.
    """
    import dataclasses

    import keras

    from thaw.advising.compare import compare as train_all
    from thaw.data.augment import augment
    from thaw.jobs.picture_model import picture_model
    from thaw.jobs.reproducible import reproducible
    from thaw.progress import Progress

    reproducible(seed)
    size = open_backbone(model, weights, preprocessing, image_size=image_size).input_shape[1]
    pictures = open_pictures(data, size, seed, max_bad)
    if pictures.test is None:
        raise ValueError(
            f"{data} has no test pictures, on which a comparison is measured; add some, or name a source without "
            "splits, such as its train folder alone, which is then split in three."
        )
    train = dataclasses.replace(pictures.train.weighted(pictures.class_weight), augment=augment(flips="horizontal"))

    def build(seed):
        backbone = open_backbone(model, weights, preprocessing, image_size=image_size)
        return picture_model(backbone, len(pictures.labels), seed)

    def announce(way, seed, epochs, done, total):
        if done == 0:
            each, whole = duration(60 * minutes), duration(60 * minutes * total)
            times = "once" if seeds == 1 else f"{seeds} times"
            say(
                f"{total // seeds} ways, {times} {each} of training each: {whole} in all, or more where an epoch takes "
                "longer."
            )

    told = keras.callbacks.Callback()
    told.on_way_begin = announce
    with Progress(lines=False) as shown:
        found = train_all(
            build,
            (train, pictures.validation, pictures.test),
            minutes=minutes,
            seeds=seeds,
            batch_size=batch_size,
            callbacks=[told, shown],
        )
    if as_json:
        return print_json(found.to_dict())
    typer.echo(str(found))
