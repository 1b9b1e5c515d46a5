"""What commands print: data to stdout, as a table or as JSON; talk to stderr."""

import dataclasses
import json
import math

import typer


def print_json(value):
    """Print for machines."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def plain(found, *left_out):
    """A dataclass as JSON has it, without the fields that are left out; what is no finite number is ``None``.

    Example:
        >>> import dataclasses
        >>> found = dataclasses.make_dataclass("Found", ["score", "errors"])(float("nan"), [1])
        >>> plain(found, "errors")
        {'score': None}
    """
    if dataclasses.is_dataclass(found):
        names = [field.name for field in dataclasses.fields(found)]
        return {name: plain(getattr(found, name), *left_out) for name in names if name not in left_out}
    if hasattr(found, "tolist"):
        found = found.tolist()
    if isinstance(found, (list, tuple)):
        return [plain(value, *left_out) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        numbers = all(str(row[i])[:1].isdigit() for row in rows) if rows else False
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # as it is: a file may be called [red].jpg
    # In a file or a pipe a row stays one line, whatever its length.
    console = Console() if Console().is_terminal else Console(width=100_000)
    console.print(table)


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
    if metrics.get("retention"):
        value, low, high = (metrics["retention"]["forgotten"][key] for key in ("value", "low", "high"))
        rows.append(("forgotten of the old task", f"{value:.3f}", f"{low:.3f} to {high:.3f}"))
    if "majority" in metrics:
        rows.insert(1, ("  always the commonest class", f"{metrics['majority']:.3f}", ""))
    print_table([f"on {metrics.get('split', 'these pictures')}", "value", "95 % interval"], rows)
