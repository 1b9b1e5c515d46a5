"""Nothing heavy is imported before it is needed, and the shell gets the exit codes it expects."""

import json
import os
import subprocess
import sys

import pytest

import thaw

# What the shell asks for, the exit code, and nothing heavy. Each command runs in a fork of an interpreter that has
# imported the command line alone.
COMMANDS = {
    "--help": 0,
    "--version": 0,
    "tune --help": 0,
    "find-rate -h": 0,
    "tuna": 2,
    "tune": 2,
    "tune photos": 2,
    "tune photos -o run --epochs three": 2,
    "tune photos -o run --epoch 3": 2,
    "tune nowhere -o run": 2,
    "tune nowhere -o run --optimizer adm": 2,
    "tune . -o run --precision half": 2,
    "tune . -o run -m nothing.keras": 2,
    "stages nothing.keras": 2,
    "advise nowhere": 2,
    "compare nowhere": 2,
    "plan probe --toml": 0,
    "plan prob": 2,
    "predict nowhere a.png": 2,
    "evaluate nowhere": 2,
}
RUN = """
import json, os, sys
from thaw.cli.main import main
for command in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            main(command.split())
        except SystemExit as end:
            heavy = [m for m in ("keras", "tensorflow", "scipy", "sklearn", "numpy") if m in sys.modules]
            sys.stdout.flush()
            os.write(int(sys.argv[2]), (json.dumps([command, end.code, heavy]) + "\\n").encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_usage_errors_and_help_import_nothing_heavy(tmp_path):
    with open(tmp_path / "said", "w+") as said:
        words = [sys.executable, "-c", RUN, json.dumps(list(COMMANDS)), str(said.fileno())]
        done = subprocess.run(words, capture_output=True, text=True, pass_fds=[said.fileno()], cwd=tmp_path)
        said.seek(0)
        answers = [json.loads(line) for line in said]
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert answers == [[command, code, []] for command, code in COMMANDS.items()]


def test_version():
    done = subprocess.run([sys.executable, "-m", "thaw", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"thaw {thaw.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion_exits_with_0(shell):
    env = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "thaw", "--show-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "_THAW_COMPLETE" in done.stdout


def test_completion_lists_the_commands():
    """As bash asks for it."""
    env = os.environ | {"_THAW_COMPLETE": "complete_bash", "COMP_WORDS": "thaw tu", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "thaw"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "tune" in done.stdout.split()


def test_completion_of_fish_exits_with_0_where_there_are_words():
    """fish takes the exit code of ``is-args`` as its condition."""
    env = os.environ | {"_THAW_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "thaw tu"}
    for action in ("is-args", "get-args"):
        done = subprocess.run(
            [sys.executable, "-m", "thaw"],
            capture_output=True,
            text=True,
            env=env | {"_TYPER_COMPLETE_FISH_ACTION": action},
        )
        assert done.returncode == 0, (action, done.stderr)
