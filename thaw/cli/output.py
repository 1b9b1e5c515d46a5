"""Print tables, JSON and messages."""

import contextlib
import sys

import typer

from thaw._files import to_json

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
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss", "calibration_error"):
        estimate = metrics.get(name)
        if not estimate or estimate.get("value") is None:
            continue
        low, high = estimate.get("low"), estimate.get("high")
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        rows.append((name.replace("_", " "), f"{estimate['value']:.3f}", interval))
    if "majority" in metrics:
        rows.insert(1, ("  most frequent class", f"{metrics['majority']:.3f}", ""))
    print_table([f"on {metrics.get('split', 'these images')}", "value", "95 % interval"], rows)
    if metrics.get("retention"):  # measured on other images than the table
        from rich.text import Text

        _print_rich(Text("\n".join(_retention_lines(metrics["retention"]))))


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
