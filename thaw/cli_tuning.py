"""Commands of the main job: plan, tune, evaluate, predict; and the cache they share. Parse, call, print."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from thaw.cli_options import (
    Batch,
    Data,
    Epochs,
    Flips,
    HeadEpochs,
    Json,
    MaxBad,
    Minutes,
    Model,
    PlanName,
    Preprocessing,
    Rate,
    Seed,
    Size,
    Weights,
    open_backbone,
    open_pictures,
)
from thaw.printing import duration, print_json, print_metrics, print_table, say


def plan(
    name: Annotated[str, typer.Argument(help="probe, probe_then_tune, gradual, full, or a .toml file.")],
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    pictures: Annotated[int, typer.Option(min=1, help="How many training pictures to reckon with.")] = 1000,
    classes: Annotated[int, typer.Option(min=2, help="How many classes.")] = 2,
    image_size: Size = None,
    batch_size: Batch = 32,
    epochs: Epochs = None,
    head_epochs: HeadEpochs = None,
    learning_rate: Rate = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print the plan as TOML, to edit.")] = False,
    as_json: Json = False,
):
    """Dry run: what moves in each phase, how many weights, at what rates, for how long."""
    from thaw.jobs.read_plan import read_plan

    chosen = read_plan(name, epochs, head_epochs, learning_rate)
    if toml:
        return typer.echo(chosen.to_toml(), nl=False)
    from thaw.tuning.attach_head import attach_head
    from thaw.tuning.dry_run import dry_run

    tuned = attach_head(open_backbone(model, weights, preprocessing, image_size=image_size), classes)
    counts = (pictures, max(1, pictures // 5))
    dry_run(tuned, chosen, counts, measure=False)  # a stage that is not there is found at once
    say("Measuring a few batches of each phase, to say how long it will take ...")
    forecasts = dry_run(tuned, chosen, counts, batch_size=batch_size)
    if as_json:
        import dataclasses

        return print_json([dataclasses.asdict(f) for f in forecasts])
    print_table(
        ["phase", "epochs", "moves", "weights", "rates", "about"],
        [
            (
                f.phase,
                phase.epochs,
                " ".join(f.moving),
                f"{f.parameters:,}",
                " ".join(f"{rate:.2g}" for rate in f.rates.values()),
                duration(f.seconds),
            )
            for f, phase in zip(forecasts, chosen)
        ],
    )
    say(f"About {duration(sum(f.seconds for f in forecasts))} for {pictures:,} training pictures on this machine.")


def advise(
    data: Data,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    minutes: Minutes = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    image_size: Size = None,
    batch_size: Batch = 32,
    seed: Seed = 0,
    flips: Flips = "horizontal",
    max_bad: MaxBad = 0.05,
    as_json: Json = False,
):
    """Say what of a backbone to tune on these pictures, at what rate, and whether it is worth it; change nothing."""
    import dataclasses

    from thaw.advising.advise import EPOCHS, Advisor
    from thaw.data.augment import augment
    from thaw.jobs.advised_plan import too_few
    from thaw.jobs.picture_model import picture_model
    from thaw.jobs.reproducible import reproducible
    from thaw.progress import Progress

    shown = Progress()
    settings = {"minutes": minutes, "learning_rate": learning_rate, "epochs": epochs or EPOCHS}
    advisor = Advisor(**settings, batch_size=batch_size, seed=seed, callbacks=(shown,))
    if not data.exists():
        raise FileNotFoundError(f"{data} does not exist; expected a folder of pictures or a CSV file.")
    view = augment(flips=flips)
    reproducible(seed)
    found = open_backbone(model, weights, preprocessing, image_size=image_size)
    pictures = open_pictures(data, found.input_shape[1], seed, max_bad)
    if few := too_few((pictures.train, pictures.validation)):
        raise ValueError(f"{few}: take more pictures, or tune without advice: thaw tune {data} -o RUN.")
    train = dataclasses.replace(pictures.train.weighted(pictures.class_weight), augment=view)
    with shown:
        advice = advisor(picture_model(found, len(pictures.labels), seed), (train, pictures.validation))
    if as_json:
        return print_json(advice.to_dict())
    typer.echo(str(advice))
    say("Nothing was changed. thaw tune with the same options and -o RUN looks for the same advice and follows it.")


def tune(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")],
    plan: PlanName = "auto",
    minutes: Minutes = None,
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    preprocessing: Preprocessing = "auto",
    epochs: Epochs = None,
    head_epochs: HeadEpochs = None,
    learning_rate: Rate = None,
    image_size: Size = None,
    batch_size: Batch = 32,
    seed: Seed = 0,
    flips: Flips = "horizontal",
    rotation: Annotated[float, typer.Option(help="Augment by turning, up to this share of a full turn.")] = 0.0,
    zoom: Annotated[float, typer.Option(help="Augment by zooming, up to this share.")] = 0.0,
    max_bad: MaxBad = 0.05,
    anchor: Annotated[
        float | None,
        typer.Option(min=0, help="Pull the backbone back to where it began: 0.001 to 0.1 is usual."),
    ] = None,
    retain: Annotated[
        Path | None,
        typer.Option(help="Pictures of what the backbone knew: a folder, in classes or not, or a CSV file."),
    ] = None,
    max_forgetting: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the old score that may be lost, such as 0.02; if not held: exit 4."),
    ] = None,
    as_json: Json = False,
):
    """Fine-tune a backbone on pictures; the same command goes on where a run was cut off.

    Exit code 4: the run is written, and it forgets more than --max-forgetting allows.
    """
    from thaw.advising.advise import EPOCHS, Advisor
    from thaw.jobs.read_plan import read_plan
    from thaw.shipping.run_folder import refuse_finished

    if plan == "auto":  # looked for when the pictures are there
        chosen = Advisor(
            minutes=minutes,
            epochs=epochs or EPOCHS,
            batch_size=batch_size,
            seed=seed,
            learning_rate=learning_rate,
            head_epochs=head_epochs,
            anchor=anchor or 0.0,
        )
    elif minutes is not None:
        raise ValueError("--minutes is for advice; leave it out, or the plan.")
    else:
        chosen = read_plan(plan, epochs, head_epochs, learning_rate, anchor)
    refuse_finished(out)  # before the pictures are read, which may take long
    import dataclasses

    from thaw.data.augment import augment
    from thaw.data.images import images
    from thaw.jobs.old_task import old_task
    from thaw.jobs.picture_size import picture_size
    from thaw.jobs.reproducible import reproducible
    from thaw.progress import Progress, counting

    if not data.exists():  # before the backbone, which takes seconds
        raise FileNotFoundError(f"{data} does not exist; expected a folder of pictures or a CSV file.")
    view = augment(flips=flips, rotation=rotation, zoom=zoom)
    reproducible(seed)
    with counting() as progress:
        old = old_task(
            model,
            retain,
            weights=None if weights == "none" else weights,
            preprocessing=preprocessing,
            image_size=image_size,
            max_forgetting=max_forgetting,
            progress=progress,
        )
        size = picture_size(old.backbone, model)
        pictures = images(data, image_size=size, seed=seed, max_bad=max_bad, progress=progress)
    for note in [*old.notes, *pictures.notes]:
        say(note)
    for bad in pictures.quarantine[:10]:
        say(f"left out: {bad.path} {bad.reason}")
    if len(pictures.quarantine) > 10:
        say(f"left out: {len(pictures.quarantine) - 10} more, listed in {out / 'quarantine.csv'}")
    from thaw.jobs.tune_pictures import tune_pictures

    pictures = dataclasses.replace(pictures, train=dataclasses.replace(pictures.train, augment=view))
    with Progress() as shown:
        _, metrics, history = tune_pictures(
            pictures, out, backbone=old, plan=chosen, batch_size=batch_size, seed=seed, callbacks=[shown]
        )
    print_metrics(metrics, as_json)
    said = [*old.notes, *pictures.notes, *history.notes, *shown.reasons]  # when they came up
    for note in metrics["notes"]:
        if note not in said:
            say(note)
    say(f"The model is {out / 'model.keras'}: a plain Keras file.")
    if not metrics.get("retention", {}).get("inside", True):
        raise typer.Exit(4)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path | None, typer.Argument(help="Labelled pictures, a folder or a CSV file.")] = None,
    as_json: Json = False,
):
    """Measure the model of a run on other pictures; without any, show what was measured when it ended."""
    from thaw.jobs.evaluate_run import evaluate_run
    from thaw.progress import counting

    with counting() as progress:
        metrics, left_out = evaluate_run(run, data, progress=progress)
    for path, reason in left_out.items():
        say(f"left out: {path} {reason}")
    print_metrics(metrics, as_json)


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    files: Annotated[list[Path], typer.Argument(help="Pictures.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to give for each picture.")] = 3,
    as_json: Json = False,
):
    """Say what pictures show, by the model of a run."""
    from thaw.jobs.predict_files import predict_files

    answers = predict_files(run, files, top=top)
    if as_json:
        print_json(answers)
    else:
        rows = [
            (
                a["file"],
                a["label"],
                f"{a['probability']:.3f}",
                ", ".join(f"{t['label']} {t['probability']:.3f}" for t in a["top"][1:]),
            )
            for a in answers
            if "error" not in a
        ]
        if rows:
            print_table(["file", "label", "probability", "then"], rows)
    for answer in answers:
        if "error" in answer:
            say(f"{answer['file']}: {answer['error']}")
    if any("error" in a for a in answers):
        raise typer.Exit(1)


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove it, but what a comparison has in use; another run will stop.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
):
    """Show what is kept on disk between runs, or clear it; it is made again when it is needed."""
    from thaw.jobs.cache_folder import cache_folder, clear_cache

    rows = cache_folder()
    total = sum(row["bytes"] for row in rows)
    if clear:
        loose = [row for row in rows if not row["about"].get("in_use")]
        if loose and not yes:
            if not sys.stdin.isatty():
                raise ValueError("Nobody can be asked whether to clear the cache; add --yes.")
            size = sum(row["bytes"] for row in loose)
            typer.confirm(f"Remove {size / 1e6:,.1f} MB? A run that is going on will stop.", abort=True, err=True)
        freed = clear_cache()
        stays = " What a comparison has in use stays." if len(loose) < len(rows) else ""
        return print_json({"freed": freed}) if as_json else say(f"{freed / 1e6:,.1f} MB were freed.{stays}")
    if as_json:
        return print_json(rows)
    if not rows:
        return typer.echo("Nothing is kept.")
    print_table(
        ["kept", "of", "pictures", "versions", "MB", "last used"],
        [
            (
                row["what"],
                row["told"],
                f"{row['pictures']:,}",
                f"{row['rows']:,}",
                f"{row['bytes'] / 1e6:,.1f}",
                row["last_used"][:16].replace("T", " "),
            )
            for row in rows
        ],
    )
    say(f"{total / 1e6:,.1f} MB in all. Times are UTC. thaw cache --clear removes it.")
