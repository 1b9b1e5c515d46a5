"""Whole processes, timed in turn: what a person waits for, with imports, decoding and compilation."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(script, *arguments, cache=None, root=ROOT):
    """Run a script in a process of its own and return what it says, with its ``seconds``.

    The script prints one line of JSON at its end; it is also given ``--began``, the time of ``time.monotonic()`` at
    which it was started, so that it can count its imports.

    Args:
        script: the file.
        *arguments: its arguments.
        cache: folder where thaw keeps things between runs; ``None`` for an empty one, removed afterwards.
        root: the copy of thaw to use.
    """
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as fresh:
        # A copy of thaw that is named stands before an installed one.
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        own = {"THAW_CACHE": str(cache or fresh), "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": path}
        begin = time.monotonic()
        command = [sys.executable, str(script), *map(str, arguments), "--began", str(begin)]
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
        seconds = time.monotonic() - begin
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds}


@contextlib.contextmanager
def empty_cache():
    """An empty folder where thaw keeps things between runs, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as folder:
        os.environ["THAW_CACHE"] = folder
        yield


def in_pairs(count, *ways):
    """Call every way once in each of ``count`` rounds, the first to begin in turn.

    Args:
        count: how many rounds.
        *ways: pairs of a name and a function from the round's number to the result of :func:`run`.

    Returns:
        The results, a list for each name.
    """
    answers = {name: [] for name, _ in ways}
    for number in range(count):
        for name, way in ways if number % 2 == 0 else ways[::-1]:
            answers[name].append(way(number))
            print(f"  {number} {name}: {answers[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    return answers


def ratios(answers, above, below, what="seconds"):
    """The ratio of each round, one answer of it to the other."""
    return [a[what] / b[what] for a, b in zip(answers[above], answers[below])]


def print_seconds(answers):
    """A table: seconds of each way, least, median and most, and the median of each of its parts."""
    for name, rows in answers.items():
        seconds = [row["seconds"] for row in rows]
        print(f"{name:14}{min(seconds):8.1f} {statistics.median(seconds):8.1f} {max(seconds):8.1f} s")
    names = list(dict.fromkeys(part for rows in answers.values() for row in rows for part in row.get("parts", {})))
    if names:
        print(f"\n{'of these, seconds (medians)':40}" + "".join(f"{name:>14}" for name in answers))
    for part in names:
        cells = [[row["parts"][part] for row in rows if part in row.get("parts", {})] for rows in answers.values()]
        print(f"  {part:38}" + "".join(f"{statistics.median(c):14.1f}" if c else f"{'':14}" for c in cells))


def print_ratio(what, values, aim):
    """The median of the ratios, how far they lie apart, and what was aimed at."""
    spread = f"{min(values):.2f} to {max(values):.2f}"
    print(f"\n{what}: {statistics.median(values):.2f} (median of {len(values)}, {spread}; aim: {aim})")
