"""The command line: thaw COMMAND."""

import os
import sys
import warnings
from typing import Annotated

import typer
from typer.core import TyperCommand

from thaw import __version__
from thaw._files import FULL_DISK_ERRORS
from thaw.cli.inspect import check, compare, find_rate, probe, rank, stages
from thaw.cli.output import any_letters, report
from thaw.cli.train import advise, cache, evaluate, plan, predict, tune

# Options of version 0.1 that have another name now; they still work, and no help shows them.
RENAMED_OPTIONS = {"--anchor": "--l2-sp", "--pictures": "--images", "--most": "--max-images"}


INTERRUPTED = "interrupted; give the same command again to resume."


class Command(TyperCommand):
    """A command that also takes the old names of its options."""

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, [_renamed(argument) for argument in args])


def _renamed(argument):
    name, equals, value = argument.partition("=")
    return RENAMED_OPTIONS.get(name, name) + equals + value


app = typer.Typer(
    name="thaw",
    help="Fine-tune a pre-trained Keras model on your own images or texts, or train one on a table.\n\n"
    "Begin with thaw tune IMAGES -o RUN, where IMAGES has a sub-folder for each class.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    *(tune, predict, evaluate, check, plan, stages),
    *(advise, probe, rank, find_rate, compare, cache),
):
    app.command(cls=Command)(_command)


def _print_version(asked: bool):
    if asked:
        typer.echo(f"thaw {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
):
    """The options of ``thaw`` itself; their callbacks do the work."""


def main(arguments=None):
    """Run the command line; an error is one sentence on stderr and an exit code.

    0: success. 1: check found an error, predict could not read a file, or find-rate has no clear suggestion.
    2: invalid input. 3: the training diverged. 4: tune exceeded --max-forgetting; its run is written, with the best
    weights it found. 70: an internal error. 130: interrupted. 141: the reader of the output has closed it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's log messages are not for our users
    if os.environ.get("COLUMNS") == "0":  # as some editors and services set it; nothing fits into that
        del os.environ["COLUMNS"]
    _open_streams()
    shown, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        with any_letters():
            try:
                code = _run(arguments)
                sys.stdout.flush()  # not at exit, where an error would be a traceback
            except BrokenPipeError:  # also while an error was being reported
                code = _discard_output()
            except OSError as error:
                code = 2
                _discard_output(sys.stdout)
                try:
                    _fail(f"the output cannot be written ({error.strerror})", code)
                except OSError:
                    _discard_output(sys.stderr)
    finally:
        warnings.showwarning = shown
    sys.exit(code)


def _run(arguments):
    """Run a command, report its error, and return the exit code."""
    try:
        if "" in (sys.argv[1:] if arguments is None else arguments):
            raise ValueError("an argument is empty; a variable in the command may have no value.")
        result = app(args=arguments, prog_name="thaw", standalone_mode=False)
        code = result if isinstance(result, int) else 0  # the code of typer.Exit
        return _fail(INTERRUPTED, code) if code == 130 else code
    except SystemExit as error:  # shell completion ends like this, and so does the parser when its output is closed
        return _discard_output() if isinstance(error.__context__, OSError) else error.code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130)
    except typer.Abort:
        return _fail("interrupted.", 130)
    except FloatingPointError as error:
        return _fail(error, 3)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "thaw":
            return _fail_internally(error)
        sys.stdout.flush()  # if this fails too, it was the output that could not be written
        return _fail(_sentence(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error; its message is empty where the help has been shown
            message = error.format_message()
            stop = "" if message.endswith((".", "?")) else "."
            return _fail(f"{message}{stop} See {_command_of(error)} --help.", 2) if message else 2
        if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            return _fail("out of memory or disk space; free some, or try a smaller --batch-size.", 2)
        if type(error).__name__ == "NotFoundError":  # TensorFlow's, which is no OSError
            return _fail("a file that was being read is gone (thaw cache --clear?); give the same command again.", 2)
        return _fail_internally(error)


def _fail_internally(error):
    if os.environ.get("THAW_TRACEBACK"):
        raise error
    return _fail(
        f"internal error: {type(error).__name__}: {str(error).strip()[:300]} (THAW_TRACEBACK=1 shows the traceback; "
        "please report it)",
        70,
    )


def _open_streams():
    """Open a closed stdin, stdout or stderr on the null device, before another file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8"))


def _discard_output(*streams):
    """The reader of the output has closed it, as head does: write the rest to the null device."""
    for stream in streams or (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 141


def _show_warning(message, category, *where, **more):
    """Print a warning of thaw on one line, and others as Python does."""
    if category.__module__.split(".")[0] == "thaw":
        report(f"note: {message}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *where[:2]))


def _command_of(error):
    """The command whose help explains a usage error."""
    name = error.ctx.info_name if error.ctx and error.ctx.parent else ""
    return f"thaw {name}".strip()


def _sentence(error):
    if isinstance(error, FileNotFoundError) and not _is_folder_here():
        return "the current folder has been deleted; change to another one (cd) and give the command again."
    if isinstance(error, ModuleNotFoundError) and error.name:  # the base installation has no Keras, SciPy and so on
        return f"{error.name} is not installed; install all that thaw needs: pip install 'keras-thaw[cpu]' (or [gpu])."
    if not isinstance(error, OSError) or not error.strerror:
        text = str(error)
        # TensorFlow writes its own trace around an exception inside a graph.
        return text.rpartition("Error: ")[2].strip() if text.startswith("in user code:") else text
    if error.filename is None:
        if error.errno in FULL_DISK_ERRORS and error.strerror == os.strerror(error.errno):  # where is not known
            return (
                f"{error.strerror}: free some space on the disk of the output, the run folder, THAW_CACHE and TMPDIR, "
                "or name others."
            )
        if "temporary directory" in error.strerror:  # Python's, after it has tried them all
            return f"{error.strerror}; set TMPDIR to a folder that can be written to, on a disk with room."
        return error.strerror
    if isinstance(error, PermissionError):
        return f"{error.filename} is not accessible ({error.strerror}); change its permissions, or name another path."
    return f"{error.filename}: {error.strerror}."


def _is_folder_here():
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _fail(message, code):
    text = str(message)
    report(f"thaw: {text}" if "\n" in text or text.endswith((".", "?", ")")) else f"thaw: {text}.")
    return code
