"""What commands print: data to stdout, as a table or as JSON; talk to stderr."""

import json

import typer

from thaw.plain import plain


def print_json(value):
    """Print for machines; what is no finite number is null, for JSON has no NaN."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def say(message):
    """Tell a person something that is not the data that was asked for."""
    typer.echo(message, err=True)


def duration(seconds):
    """A time as people say it.

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
        table.add_row(*(Text(str(cell)) for cell in row))  # as it is: a file may be called [red].jpg
    _show(table)


def print_metrics(metrics, as_json):
    """Print what :func:`thaw.evaluate` measured, as a table or as JSON."""
    if as_json:
        return print_json(metrics)
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
    print_table([f"on {metrics.get('split', 'these pictures')}", "value", "95 % interval"], rows)
    if metrics.get("retention"):  # of other pictures than the table
        from rich.text import Text

        _show(Text("\n".join(_forgotten(metrics["retention"]))))


def _forgotten(found):
    """What a backbone has forgotten, and how alike the stages that moved see the pictures, as lines."""
    value, low, high = (f"{found['forgotten'][key]:.1%}" for key in ("value", "low", "high"))
    before, after = found["before"]["value"], found["after"]
    if found["score"] == "agreement":
        said = f"Kept: {after['value']:.1%} ({after['low']:.1%} to {after['high']:.1%})"
    else:
        said = f"Forgotten: {value} ({low} to {high}) of the old score, from {before:.1%} to {after['value']:.1%}"
    lines = [f"{said}: the {found['measured']}."]
    alike = [
        f"{name} {one['value']:.2f}" for name, one in found.get("similarity", {}).items() if one["value"] is not None
    ]
    moved = [stage for stage in alike if not stage.endswith(" 1.00")] or alike[-1:]
    if moved:
        lines.append(f"Seen alike (linear CKA): {', '.join(moved[-4:])}")  # as many as fit 80 columns
    return lines


def _show(what):
    """Print what rich lays out; in a file or a pipe a line stays one line, whatever its length."""
    from rich.console import Console

    console = Console() if Console().is_terminal else Console(width=100_000)
    console.print(what)
