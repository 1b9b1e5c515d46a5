"""The command line: one subcommand for each public function; parse, call, print."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="thaw",
    help="Fine-tune a pre-trained Keras model on your own pictures.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A backbone's name, or a .keras or .h5 file.")]
Weights = Annotated[str, typer.Option(help='"imagenet", "none" for random, or a file.')]
Size = Annotated[
    int | None, typer.Option(min=8, help="Side in pixels that pictures are brought to; 224, or as a model file has it.")
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures in a batch.")]
PlanName = Annotated[str, typer.Option("--plan", "-p", help="probe, probe_then_tune, gradual, full, or a .toml file.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs of each phase that moves the backbone.")]
HeadEpochs = Annotated[int | None, typer.Option(min=1, help="Epochs of the head alone.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate of the phases that move the backbone.")]


@app.command()
def stages(
    model: Annotated[str, typer.Argument(help="A backbone's name, or a .keras or .h5 file.")] = "efficientnet_lite0",
    as_json: Json = False,
):
    """Show the stages of a model, input to output."""
    from thaw.stages import stages_of

    a_file = Path(model).suffix.lower() in (".keras", ".h5", ".hdf5")
    # Stages do not depend on the weights, so none are fetched; a file brings its own.
    found = stages_of(_backbone(model, "imagenet" if a_file else "none", head=True, image_size=None))
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
        return _print_json(rows)
    _table(
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


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="probe, probe_then_tune, gradual, full, or a .toml file.")],
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
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

    tuned = attach_head(_backbone(model, weights, head=False, image_size=image_size), classes)
    forecasts = dry_run(tuned, chosen, (pictures, max(1, pictures // 5)), batch_size=batch_size)
    if as_json:
        import dataclasses

        return _print_json([dataclasses.asdict(f) for f in forecasts])
    _table(
        ["phase", "epochs", "moves", "weights", "rates", "about"],
        [
            (
                f.phase,
                phase.epochs,
                " ".join(f.moving),
                f"{f.parameters:,}",
                " ".join(f"{rate:.2g}" for rate in f.rates.values()),
                _duration(f.seconds),
            )
            for f, phase in zip(forecasts, chosen)
        ],
    )
    _say(f"About {_duration(sum(f.seconds for f in forecasts))} for {pictures:,} training pictures on this machine.")


@app.command()
def tune(
    data: Annotated[Path, typer.Argument(help="A folder class/picture, or a CSV file image,label.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")],
    plan: PlanName = "probe_then_tune",
    model: Model = "efficientnet_lite0",
    weights: Weights = "imagenet",
    epochs: Epochs = None,
    head_epochs: HeadEpochs = None,
    learning_rate: Rate = None,
    image_size: Size = None,
    batch_size: Batch = 32,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same data, same machine: same bits.")] = 0,
    flips: Annotated[str, typer.Option(help="Augment by mirroring: horizontal, both or none.")] = "horizontal",
    rotation: Annotated[float, typer.Option(help="Augment by turning, up to this share of a full turn.")] = 0.0,
    zoom: Annotated[float, typer.Option(help="Augment by zooming, up to this share.")] = 0.0,
    max_bad: Annotated[float, typer.Option(help="Refuse when more than this share of the files is bad.")] = 0.05,
    as_json: Json = False,
):
    """Fine-tune a backbone on pictures; the same command goes on where a run was cut off."""
    from thaw.jobs.read_plan import read_plan
    from thaw.shipping.run_folder import refuse_finished

    chosen = read_plan(plan, epochs, head_epochs, learning_rate)
    refuse_finished(out)  # before the pictures are read, which may take long
    import dataclasses

    from thaw.data.augment import augment
    from thaw.data.images import images
    from thaw.jobs.reproducible import reproducible
    from thaw.progress import Progress, counting

    if not data.exists():  # before the backbone, which takes seconds
        raise FileNotFoundError(f"{data} does not exist; expected a folder of pictures or a CSV file.")
    view = augment(flips=flips, rotation=rotation, zoom=zoom)
    reproducible(seed)
    backbone = _backbone(model, weights, head=False, image_size=image_size)
    with counting() as progress:
        pictures = images(data, image_size=backbone.input_shape[1], seed=seed, max_bad=max_bad, progress=progress)
    for note in pictures.notes:
        _say(note)
    for bad in pictures.quarantine[:10]:
        _say(f"left out: {bad.path} {bad.reason}")
    if len(pictures.quarantine) > 10:
        _say(f"left out: {len(pictures.quarantine) - 10} more, listed in {out / 'quarantine.csv'}")
    from thaw.jobs.tune_pictures import tune_pictures

    pictures = dataclasses.replace(pictures, train=dataclasses.replace(pictures.train, augment=view))
    with Progress() as shown:
        _, metrics, history = tune_pictures(
            pictures, out, backbone=backbone, plan=chosen, batch_size=batch_size, seed=seed, callbacks=[shown]
        )
    _print_metrics(metrics, as_json)
    for note in metrics["notes"]:
        if note not in [*pictures.notes, *history.notes]:  # those were said when they came up
            _say(note)
    _say(f"The model is {out / 'model.keras'}: a plain Keras file.")


@app.command()
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
        _say(f"left out: {path} {reason}")
    _print_metrics(metrics, as_json)


@app.command()
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
        _print_json(answers)
    else:
        good = [a for a in answers if "error" not in a]
        _table(
            ["file", "label", "probability", "then"],
            [
                (
                    a["file"],
                    a["label"],
                    f"{a['probability']:.3f}",
                    ", ".join(f"{t['label']} {t['probability']:.3f}" for t in a["top"][1:]),
                )
                for a in good
            ],
        )
    for answer in answers:
        if "error" in answer:
            _say(f"{answer['file']}: {answer['error']}")
    if any("error" in a for a in answers):
        raise typer.Exit(1)


@app.command()
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
        _print_json({"kind": kind, "findings": findings})
    else:
        for finding in findings:
            typer.echo(f"{finding['level']}: {finding['what']} {finding['fix']}".rstrip())
        if not any(f["level"] in ("error", "warning") for f in findings):
            typer.echo(f"{path}: nothing wrong was found.")
    if any(f["level"] == "error" for f in findings):
        raise typer.Exit(1)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it; a run that is going on will stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
):
    """Show what is kept on disk between runs, or clear it; it is made again when it is needed."""
    from thaw.jobs.cache_folder import cache_folder, clear_cache

    rows = cache_folder()
    total = sum(row["bytes"] for row in rows)
    if clear:
        if rows and not yes:
            if not sys.stdin.isatty():
                raise ValueError("Nobody can be asked whether to clear the cache; add --yes.")
            typer.confirm(f"Remove {total / 1e6:,.1f} MB? A run that is going on will stop.", abort=True, err=True)
        freed = clear_cache()
        return _print_json({"freed": freed}) if as_json else _say(f"{freed / 1e6:,.1f} MB were freed.")
    if as_json:
        return _print_json(rows)
    if not rows:
        return typer.echo("Nothing is kept.")
    told = [", ".join(f"{k} {v}" for k, v in row["about"].items() if len(str(v)) <= 40) for row in rows]
    _table(
        ["kept", "of", "rows", "MB", "last used"],
        [
            (row["what"], of, f"{row['rows']:,}", f"{row['bytes'] / 1e6:,.1f}", row["last_used"][:16].replace("T", " "))
            for row, of in zip(rows, told)
        ],
    )
    _say(f"{total / 1e6:,.1f} MB in all. Times are UTC. thaw cache --clear removes it.")


def main(arguments=None):
    """Run the command line; every error is one sentence on stderr and an exit code.

    0: done. 1: check found an error, or predict could not read a file. 2: what was given cannot be used.
    3: the training diverged. 70: a mistake of ours. 130: interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's own remarks are not for our users
    try:
        if "" in (sys.argv[1:] if arguments is None else arguments):
            raise ValueError("an argument is empty; a variable in the command may have no value.")
        light = {"-h", "--help"} & set(sys.argv) or sys.argv[1:2] == ["cache"]
        if arguments is None and len(sys.argv) > 1 and not light:
            from thaw.jobs.import_keras import import_keras

            import_keras()
        result = app(args=arguments, standalone_mode=False)
        code = result if isinstance(result, int) else 0  # what typer.Exit was raised with
        if code == 130:
            _fail("interrupted; the same command goes on where it stopped.", code)
    except KeyboardInterrupt:
        code = _fail("interrupted; the same command goes on where it stopped.", 130)
    except typer.Abort:
        code = _fail("interrupted.", 130)
    except FloatingPointError as error:
        code = _fail(error, 3)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        code = _fail(_sentence(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser
            code = _fail(f"{error.format_message()} See thaw --help.", 2)
        elif isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            code = _fail("no room in memory or on the disk; make room, or try a smaller --batch-size.", 2)
        elif type(error).__name__ == "NotFoundError":  # TensorFlow's, which is no OSError
            code = _fail("a file is gone that was being read (thaw cache --clear?); the same command makes it anew.", 2)
        elif os.environ.get("THAW_TRACEBACK"):
            raise
        else:
            code = _fail(
                f"a mistake of ours: {type(error).__name__}: {str(error).strip()[:300]} "
                "(THAW_TRACEBACK=1 shows where; please report it)",
                70,
            )
    sys.exit(code)


def _sentence(error):
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return error


def _fail(message, code):
    typer.echo(f"thaw: {message}", err=True)
    return code


def _backbone(name, weights, *, head, image_size):
    from thaw.backbones.backbone import backbone

    shape = None if image_size is None else (image_size, image_size, 3)
    return backbone(name, weights=None if weights == "none" else weights, head=head, input_shape=shape)


def _print_metrics(metrics, as_json):
    if as_json:
        return _print_json(metrics)
    rows = []
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss", "calibration_error"):
        figure = metrics.get(name)
        if not figure or figure.get("value") is None:
            continue
        low, high = figure.get("low"), figure.get("high")
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        rows.append((name.replace("_", " "), f"{figure['value']:.3f}", interval))
    if "majority" in metrics:
        rows.insert(1, ("  always the commonest class", f"{metrics['majority']:.3f}", ""))
    _table([f"on {metrics.get('split', 'these pictures')}", "value", "95 % interval"], rows)


def _table(header, rows):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        numbers = all(str(row[i])[:1].isdigit() for row in rows) if rows else False
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # as it is: a file may be called [red].jpg
    Console().print(table)


def _print_json(value):
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _say(message):
    typer.echo(message, err=True)


def _duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
