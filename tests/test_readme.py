"""Everything that the README and the documentation show is run."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if page.exists()]
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", re.M | re.S)


def blocks(page, *languages):
    """(line, code) of each fenced block in one of the languages."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        indent, language, code = found.groups()
        if language in languages:
            line = text[: found.start()].count("\n") + 2
            yield line, re.sub(f"^{indent}", "", code, flags=re.M)


def commands(page):
    """(line, words) of each command that begins with ``thaw``."""
    for first, code in blocks(page, "console", "bash", "sh", "shell"):
        for line, text in enumerate(code.replace("\\\n", " ").splitlines(), first):
            words = shlex.split(text.removeprefix("$ "), comments=True)
            if words and words[0] == "thaw":
                # What the shell does with the output is not for us to parse.
                yield (
                    line,
                    list(itertools.takewhile(lambda word: not word.startswith(("<", ">", "|", "&", ";")), words[1:])),
                )


COMMANDS = [pytest.param(words, id=f"{page.name}:{line}") for page in PAGES for line, words in commands(page)]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A place with ``photos/`` in it, two classes of small pictures that can be told apart, and ``old-photos/``."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, colour in (("cat", 60), ("dog", 190)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(colour, 40, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST).save(folder / f"{i:02}.png")
    (tmp_path / "old-photos").mkdir()
    for i in range(20):  # of what the backbone knew, in no classes
        pixels = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(tmp_path / "old-photos" / f"{i:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_runs(page, photos):
    names = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        # The lines are counted as in the page, so that a traceback leads to them.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


def parse(words):
    """Parse a command line to its last option, with the parser that people use; run nothing."""
    import typer

    from thaw.cli import app

    command, context, name = typer.main.get_command(app), None, "thaw"
    try:
        while hasattr(command, "commands"):
            context = command.make_context(name, list(words), parent=context)
            # A group takes its own options and leaves the name of a command, and what follows it.
            name, *words = [*context._protected_args, *context.args]
            assert name in command.commands, f"thaw has no command {name!r}; it has {', '.join(command.commands)}"
            command = command.commands[name]
        command.make_context(name, list(words), parent=context)
    except typer.Exit:  # --help
        pass


@pytest.mark.parametrize("words", COMMANDS)
def test_the_commands_exist(words, photos):
    parse(words)


@pytest.mark.parametrize("words", [["tune", "photos/", "--no-such-option"], ["nosuchcommand"], ["tune"]])
def test_a_command_that_does_not_exist_would_be_found(words, photos):
    with pytest.raises(Exception, match=r"(?i)no such option|no such command|missing parameter|no command"):
        parse(words)


def test_the_fences_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```python\nx = 1\n```\n"
        "  ```console\n  $ thaw tune photos/ -o \\\n  runs/a\n  thaw plan > a.toml  # dry\n  done\n  ```\n"
        "```\nthaw not this\n```\n"
    )
    assert list(blocks(page, "python")) == [(3, "x = 1\n")]
    assert [words for _, words in commands(page)] == [["tune", "photos/", "-o", "runs/a"], ["plan"]]
