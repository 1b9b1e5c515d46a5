"""Print tables, JSON and messages."""

import contextlib
import sys

import typer

from thaw._files import to_json

METRICS = (
    *("accuracy", "mean_average_precision", "balanced_accuracy", "micro_f1", "macro_f1", "subset_accuracy"),
    *("roc_auc", "log_loss", "calibration_error"),
    *("rmse", "mae", "r2", "quadratic_weighted_kappa", "log_likelihood", "coverage"),
)
MIN_TABLE_COLUMNS = 60  # in fewer, the columns of a table would be one letter wide


@contextlib.contextmanager
def any_letters():
    """Let stdout and stderr take every letter: one that their encoding does not have becomes an escape.

    In a pipe of Windows the encoding is a code page, under ``LANG=C`` it may be ASCII, and names of files and classes
    have letters of all languages.
    """
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
            changed.append(stream)
    try:
        yield
    finally:
        for stream in changed:
            stream.reconfigure(errors="strict")


def print_json(value):
    """Print JSON to stdout; NaN and infinity become null."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # The escapes of JSON, which every parser undoes.
    typer.echo(to_json(value, escape=not encoding.lower().startswith("utf")), nl=False)


def report(message):
    """Print a message to stderr, apart from the result on stdout."""
    typer.echo(message, err=True)


def duration(seconds):
    """Format a duration.

    Example:
        >>> duration(75), duration(600), duration(9000)
        ('75 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_table(header, rows):
    """Print rows under a header, as wide as the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        numbers = all(str(row[i])[:1].isdigit() for row in rows) if rows else False
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # without markup: a file may be called [red].jpg
    _print_rich(table)


def print_metrics(metrics, as_json):
    """Print the metrics of :func:`thaw.evaluate`, as a table or as JSON."""
    if as_json:
        return print_json(metrics)
    rows = []
    for name in METRICS:
        estimate = metrics.get(name)
        if not estimate or estimate.get("value") is None:
            continue
        low, high = estimate.get("low"), estimate.get("high")
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        shown = {"rmse": "RMSE", "mae": "mean absolute error", "r2": "R²"}.get(name, name.replace("_", " "))
        rows.append((shown, f"{estimate['value']:.3f}", interval))
    if "majority" in metrics:
        rows.insert(1, ("  most frequent class", f"{metrics['majority']:.3f}", ""))
    elif "rmse" in metrics:
        rows.insert(1, ("  always the mean", f"{metrics['baseline']:.3f}", ""))
    elif "baseline" in metrics:
        rows.insert(1, ("  one score for all", f"{metrics['baseline']:.3f}", ""))
    for part in metrics.get("targets", ()) if "rmse" not in metrics else ():
        low, high = part["rmse"]["low"], part["rmse"]["high"]
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        rows.append((f"RMSE of {part['target']}", f"{part['rmse']['value']:.3f}", interval))
        rows.append(("  always the mean", f"{part['baseline']:.3f}", ""))
    print_table([f"on {metrics.get('split', 'these examples')}", "value", "95 % interval"], rows)
    if metrics.get("retention"):  # measured on other images than the table
        from rich.text import Text

        _print_rich(Text("\n".join(_retention_lines(metrics["retention"]))))


def print_predictions(predictions):
    """Print what :meth:`thaw.Run.predict` gives for files or rows, without those that cannot be read."""
    if not predictions:
        return
    name = "file" if "file" in predictions[0] else "row"
    if "labels" in predictions[0]:
        rows = [
            (p[name], ", ".join(f"{label} {p['probabilities'][label]:.3f}" for label in p["labels"]) or "none")
            for p in predictions
        ]
        return print_table([name, "labels"], rows)
    if "prediction" in predictions[0]:
        ends = [name for name in ("low", "high") if name in predictions[0]]
        rows = [(p[name], *(_numbers(p[name]) for name in ("prediction", *ends))) for p in predictions]
        return print_table([name, "prediction", *ends], rows)
    rows = [
        (
            p[name],
            p["label"],
            f"{p['probability']:.3f}",
            ", ".join(f"{t['label']} {t['probability']:.3f}" for t in p["top"][1:]),
        )
        for p in predictions
    ]
    print_table([name, "label", "probability", "then"], rows)


def _numbers(value):
    """Format a number, or several by name."""
    return ", ".join(f"{k} {v:.5g}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.5g}"


def _retention_lines(retention):
    """How much of the source task is lost, and how similar the features of the trained stages still are."""
    value, low, high = (f"{retention['forgotten'][key]:.1%}" for key in ("value", "low", "high"))
    before, after = retention["before"]["value"], retention["after"]
    if retention["score"] == "agreement":
        text = f"Agreement: {after['value']:.1%} ({after['low']:.1%} to {after['high']:.1%})"
    else:
        text = f"Forgotten: {value} ({low} to {high}) of the source score, from {before:.1%} to {after['value']:.1%}"
    lines = [f"{text}: the {retention['measured']}."]
    similar = [
        f"{name} {cka['value']:.2f}"
        for name, cka in retention.get("similarity", {}).items()
        if cka["value"] is not None
    ]
    changed = [stage for stage in similar if not stage.endswith(" 1.00")] or similar[-1:]
    if changed:
        lines.append(f"Similarity (linear CKA): {', '.join(changed[-4:])}")  # as many as fit 80 columns
    return lines


def _print_rich(renderable):
    """Print to stdout; in a file, a pipe or a narrow terminal a row stays one line, whatever its length."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.width < MIN_TABLE_COLUMNS:
        console = Console(width=100_000)
    console.print(renderable)
