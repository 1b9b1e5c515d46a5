"""Seconds from `python -m thaw tune ...` being typed to the end of the first training step, with everything cached.

    scripts/setup
    python benchmarks/first_step.py [RUNS] [--pictures 2000] [--explain] [--before FOLDER]

The first run fills the cache and is not counted: those that follow find their photographs decoded and the frozen layers
computed. They stop after the first step. `--explain` says where the time goes: seconds in the functions that are worth
a name, and of the imports by package. `--before` names another copy of thaw (of an earlier commit, say, from
`git worktree add FOLDER COMMIT`), which is run in turn with this one; the aim is half of its seconds, and half of them
explained.
"""

import argparse
import collections
import contextlib
import functools
import importlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from in_pairs import ROOT, in_pairs, print_ratio, ratios, run
from photographs import photographs

# Where each is used, not where it is made: a name that was imported is looked up there. What a copy of thaw does not
# have is left out.
BEFORE_KERAS = [("thaw.cli.options", "import_keras"), ("thaw.cli.train", "import_keras")]
WATCHED = [
    *[("thaw.models.state", "seed_everything"), ("thaw.models.backbone", "backbone")],
    *[("thaw.data.images", name) for name in ("load_images", "check_images", "near_duplicates", "split_by_content")],
    *[("thaw.workflow", "tune_splits"), ("thaw.models.heads", "attach_head")],
    *[("thaw.finetune", name) for name in ("fine_tune", "preflight", "fingerprint_run", "stages_of", "freeze")],
    *[("thaw.finetune", name) for name in ("flatten_model", "find_cut_point", "precompute_phase", "_compile", "_fit")],
    *[("thaw.finetune", name) for name in ("read_checkpoint", "_resume", "_cuts")],
    *[("thaw.features.precompute", name) for name in ("precompute", "submodel")],
    *[("thaw.features.extraction", name) for name in ("inference_runner", "fingerprint_model")],
    *[("keras", "Model.fit"), ("keras", "Model.compile"), ("keras", "Model.build")],
]


class Spans:
    """Seconds in named functions, one inside another."""

    def __init__(self):
        self.seconds, self.inside = {}, ()

    def watch(self, module, name):
        """Put a function that notes its time in the place of ``name`` in a module."""
        place = importlib.import_module(module)
        *owners, last = name.split(".")
        for owner in owners:
            place = getattr(place, owner)
        function = getattr(place, last, None)
        if function is None or isinstance(function, type):
            return

        @functools.wraps(function)
        def watched(*arguments, **named):
            outside, begin = self.inside, time.monotonic()
            self.inside = (*outside, name)
            self.seconds.setdefault(self.inside, 0.0)
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[self.inside] += time.monotonic() - begin
                self.inside = outside

        setattr(place, last, watched)


class FirstStepDone(BaseException):
    """Thrown through everything, so that each watched function notes its end; holds the time."""


def child(arguments, began, explain):
    """The command line in this process, left behind the first training step."""
    from thaw.cli import options, train

    spans, typed = Spans(), time.monotonic() - began
    for module, name in BEFORE_KERAS if explain else ():
        spans.watch(module, name)
    importing = options.import_keras

    def then_watch():
        importing()
        import keras

        plain = keras.callbacks.CallbackList.on_train_batch_end

        def first_step(self, batch, logs=None):
            plain(self, batch, logs)
            keras.tree.map_structure(float, dict(logs or {}))  # the step has run, not only begun
            raise FirstStepDone(time.monotonic() - began)

        keras.callbacks.CallbackList.on_train_batch_end = first_step
        begin = time.monotonic()
        for module, name in WATCHED if explain else ():
            with contextlib.suppress(ModuleNotFoundError):
                spans.watch(module, name)
        if explain:  # of thaw, and of what it imports; a run that is not watched does it as it goes
            spans.seconds[("import of thaw's own files",)] = time.monotonic() - begin

    options.import_keras = train.import_keras = then_watch
    from thaw.cli.main import main

    sys.argv = ["thaw", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            main()
    except FirstStepDone as first:
        (done,) = first.args
    except SystemExit:
        sys.exit(f"{said.getvalue()}\nThe command ended before its first training step.")
    rows = [[["Python, until thaw is imported"], typed], *spans.seconds.items()] if explain else []
    print(json.dumps({"first_step": done, "rows": rows}), flush=True)
    os._exit(0)  # what TensorFlow does at its end is not of interest


def print_rows(answers):
    """Medians of the seconds in each watched function, and how much of all the innermost of them explain."""
    total = statistics.median(answer["first_step"] for answer in answers)
    seconds = collections.defaultdict(list)
    for answer in answers:
        for path, value in answer["rows"]:
            seconds[tuple(path)].append(value)
    median = {path: statistics.median(values) for path, values in seconds.items()}
    inner = {path: sum(v for p, v in median.items() if p[:-1] == path) for path in median}
    print(f"\nwhere they go (medians of {len(answers)} watched runs of {total:.1f} s)")
    print(f"  {'':44}{'in all':>9}{'itself':>9}")
    for path, value in median.items():
        if value >= 0.02:
            name = "  " * (len(path) - 1) + path[-1]
            print(f"  {name:44}{value:9.2f}{value - inner[path]:9.2f} s {value / total:6.0%}")
    explained = sum(value for path, value in median.items() if not inner[path])
    print(f"  {'explained, by the innermost of these':44}{explained:18.2f} s {explained / total:6.0%}")


def print_imports(least=0.1):
    """Seconds of `import keras, tensorflow` by package: each module's own time, added up."""
    command = [sys.executable, "-X", "importtime", "-c", "import keras, tensorflow"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    own = collections.Counter()
    for line in lines:
        if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)", line):
            own[found[2].split(".")[0]] += int(found[1]) / 1e6
    print(f"\nimport keras, tensorflow: {sum(own.values()):.1f} s, by package")
    for package, seconds in own.most_common():
        if seconds >= least:
            print(f"  {package:44}{seconds:8.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--plan", default="probe_then_tune")
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--before", type=Path, help="another copy of thaw to compare with")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = photographs(given.pictures)
    if given.out:
        return child(["tune", str(folder), "--out", given.out, "--plan", given.plan], given.began, given.explain)
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as work:

        def way(name, root, *more):
            def once(number):
                out = Path(work, "runs", f"{name} {number} {len(more)}")  # a new one: nothing to go on with
                same = ["--out", out, "--pictures", given.pictures, "--plan", given.plan, *more]
                answer = run(__file__, *same, cache=Path(work, name), root=root)
                return answer | {"seconds": answer["first_step"]}

            return name, once

        roots = [("now", ROOT)] + ([("before", given.before.resolve())] if given.before else [])
        cold = {name: way(name, root)[1]("cold")["seconds"] for name, root in roots}
        answers = in_pairs(given.runs, *[way(name, root) for name, root in roots])
        print(f"first_step.py: {given.pictures} photographs, plan {given.plan}, {given.runs} runs\n")
        for name, rows in answers.items():
            seconds = [row["seconds"] for row in rows]
            warm = f"{min(seconds):.1f} {statistics.median(seconds):.1f} {max(seconds):.1f} s"
            print(f"{name}: to the end of the first step, with nothing kept {cold[name]:.1f} s; warm {warm}")
        if given.before:
            print_ratio("now / before", ratios(answers, "now", "before"), "at most 0.5")
        if given.explain:
            watched = [way(name, root, "--explain") for name, root in roots[:1]]
            print_rows(in_pairs(given.runs, *watched)["now"])
            print_imports()


if __name__ == "__main__":
    main()
