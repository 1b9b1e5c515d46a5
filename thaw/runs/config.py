"""Write the options of a run as TOML, and read them back: the file that repeats a run."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from types import NoneType

from thaw import __version__
from thaw._files import to_toml, write_all, write_text
from thaw.models.loading import is_model_file
from thaw.plan import Plan, is_plan_file
from thaw.runs.folder import CONFIG, FOLDS, UNFINISHED
from thaw.runs.frozen_model import CHOICE
from thaw.runs.resolved_plan import PLAN, RECORD

# Options whose value is a path, and those whose value may be the path of a file or a name.
PATH_OPTIONS = ("data", "out", "retain", "from_run")
FILE_OPTIONS = ("model", "weights", "plan")
OBJECTS = "given_in_python"  # the key with the names of what cannot be written


def config_text(options, folder):
    """Write options as TOML.

    Paths are written relative to ``folder``, so that they say nothing of the machine. Options that are ``None`` are
    left out. Of those that have no text form, such as a model in memory, only the names are written, and
    :func:`read_config` refuses the file.

    Args:
        options: dict of the arguments of :func:`thaw.tune`.
        folder: path of the folder in which the file will lie.

    Returns:
        A string; :func:`read_config` reads it back.

    Example:
        >>> from thaw.runs.config import config_text
        >>> print(config_text({"data": "photos", "epochs": 3, "minutes": None}, "runs/a").split("\\n\\n")[1])
        data = "../../photos"
        epochs = 3
    """
    lines = [
        f"# Options of a run, written by thaw {__version__}. Paths are relative to this file. Repeat the run with",
        "# thaw tune --config THIS_FILE -o ANOTHER_FOLDER",
        "",
    ]
    for name, value in options.items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if is_path(name, value):
            value = _relative(value, folder)
        if isinstance(value, (str, int, float)):
            lines.append(f"{name} = {to_toml(value)}")
    texts = (str, int, float, os.PathLike, NoneType)
    objects = ", ".join(name for name, value in options.items() if not isinstance(value, texts))
    if objects:
        lines += ["", "# Given in Python as objects; write paths of files for them here, and delete this line."]
        lines.append(f"{OBJECTS} = {to_toml(objects)}")
    return "\n".join(lines) + "\n"


def read_config(path, names):
    """Read options from TOML.

    Args:
        path: path of the file. Paths in it are relative to its folder.
        names: names of the options that are known.

    Returns:
        dict of name to value.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: invalid TOML, an unknown option, a value that is neither a number nor a string, or the file of a run
            with a model or data that were objects in Python.

    Example:
        >>> from thaw.runs.config import read_config
        >>> read_config("nothing.toml", ["epochs"])
        Traceback (most recent call last):
        FileNotFoundError: nothing.toml does not exist; expected options in TOML.
    """
    path = Path(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {state}; expected options in TOML.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None
    options = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == OBJECTS:
            raise ValueError(
                f"{path} is of a run whose {value} was given in Python as an object, so it cannot repeat the run; "
                f"write the path of a file for it there and delete the line {OBJECTS}."
            )
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            expected = f'"{close[0]}"' if close else "one of " + ", ".join(names)
            raise ValueError(f'{path} has an option "{key}"; expected {expected}.')
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError(f"{path} has {key} = {value!r}; expected a number or a string.")
        options[name] = _absolute(value, path.parent) if is_path(name, value, path.parent) else value
    return options


def is_path(name, value, folder="."):
    """Whether the value of an option is a path, and not the name of a model or of a plan.

    Args:
        name: name of the option.
        value: its value.
        folder: folder to which the path may be relative. Defaults to the current one.
    """
    if not isinstance(value, str) or not (name in PATH_OPTIONS or name in FILE_OPTIONS):
        return False
    if name == "plan":
        return is_plan_file(value)
    if name == "weights":
        return value not in ("imagenet", "none")
    if name == "model":
        return is_model_file(value) or (not value.isidentifier() and Path(folder, value).exists())
    return True


def _relative(path, folder):
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Windows: another drive
        return os.path.abspath(path)


def _absolute(path, folder):
    return os.path.normpath(os.path.join(folder, path))


def write_config(folder, options, plan):
    """Write ``config.toml`` when a run begins; compare it when the run is resumed.

    Args:
        folder: path of the run folder.
        options: dict of the arguments of :func:`thaw.tune`.
        plan: a :class:`thaw.Plan`, or ``"auto"``; one given in Python is written to ``plan.toml``.

    Returns:
        The text of the file.

    Raises:
        ValueError: the folder holds an unfinished run with other options.
    """
    from thaw.training.checkpoint import CHECKPOINT, unfinished_run_error

    options = dict(options)
    asked, writers = options.get("plan", plan), {}
    if isinstance(plan, Plan) and (isinstance(asked, Plan) or is_plan_file(asked)):
        options["plan"] = str(folder / PLAN)
        writers = {folder / PLAN: write_text(plan.to_toml())}
    text = config_text(options, folder)
    path, work = folder / CONFIG, folder / UNFINISHED
    begun = any((work / name).exists() for name in (CHECKPOINT, RECORD, CHOICE)) or (folder / FOLDS).exists()
    if not begun or not path.exists():
        write_all(writers | {path: write_text(text)})
        return text
    before, now = (_comparable(tomllib.loads(part)) for part in (path.read_text(encoding="utf-8"), text))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            difference = f"with {name} = {before.get(name)!r}, and now it is {now.get(name)!r}"
            raise unfinished_run_error(folder, difference)
    return text


def _comparable(options):
    """Models, data and plans are compared by their content when the checkpoint is read."""
    return {name: value for name, value in options.items() if name not in (*PATH_OPTIONS, *FILE_OPTIONS)}
