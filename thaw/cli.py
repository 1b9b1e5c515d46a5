"""The command line: one subcommand for each public function; parse, call, print."""

import os
import sys
import warnings

import typer

from thaw.cli_measuring import check, compare, find_rate, probe, rank, stages
from thaw.cli_tuning import advise, cache, evaluate, plan, predict, tune
from thaw.printing import say

app = typer.Typer(
    name="thaw",
    help="Fine-tune a pre-trained Keras model on your own pictures.\n\n"
    "Begin with thaw tune PHOTOS -o RUN, where PHOTOS holds a folder of pictures for each class.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    *(tune, predict, evaluate, check, plan, stages),
    *(advise, probe, rank, find_rate, compare, cache),
):
    app.command()(_command)


def main(arguments=None):
    """Run the command line; every error is one sentence on stderr and an exit code.

    0: done. 1: check found an error, predict could not read a file, or find-rate has no clear suggestion. 2: what was
    given cannot be used.
    3: the training diverged. 4: tune could not hold --max-forgetting; its run is written, with the best it found.
    70: a mistake of ours. 130: interrupted. 141: whoever read the output has gone.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's own remarks are not for our users
    _open_streams()
    shown, warnings.showwarning = warnings.showwarning, _remark
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
    except (BrokenPipeError, SystemExit):  # whoever was reading has gone, such as head: nobody is there to be told
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 141
    except KeyboardInterrupt:
        code = _fail("interrupted; the same command goes on where it stopped.", 130)
    except typer.Abort:
        code = _fail("interrupted.", 130)
    except FloatingPointError as error:
        code = _fail(error, 3)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        code = _fail(_sentence(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser; without words where it has shown the help
            said = error.format_message()
            code = _fail(f"{said.rstrip('.')}. See {_asked(error)} --help.", 2) if said else 2
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
    finally:
        warnings.showwarning = shown
    sys.exit(code)


def _open_streams():
    """Where stdin, stdout or stderr is closed, nothing takes its place: what is opened next would be written over."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8"))


def _remark(message, category, *where, **more):
    """A warning of ours as one line; those of others as Python shows them."""
    text = str(message)
    if "does not scale its pixels" in text:
        say("note: " + text.replace("pass preprocessing= one of", "give --preprocessing, one of"))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *where[:2]))


def _asked(error):
    """The command whose help explains a usage error."""
    name = error.ctx.info_name if error.ctx and error.ctx.parent else ""
    return f"thaw {name}".strip()


def _sentence(error):
    if not isinstance(error, OSError) or not error.strerror:
        text = str(error)
        # TensorFlow writes its own trace around what is raised inside a graph.
        return text.rpartition("Error: ")[2].strip() if text.startswith("in user code:") else text
    if error.filename is None:
        return error.strerror
    if isinstance(error, PermissionError):
        return f"{error.filename} is not open to you ({error.strerror}); change its permissions, or name another place."
    return f"{error.filename}: {error.strerror}."


def _fail(message, code):
    text = str(message)
    say(f"thaw: {text}" if "\n" in text or text.endswith((".", "?", ")")) else f"thaw: {text}.")
    return code
