"""Everything that the README and the guides show is executed."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """(line, code) of each fenced block in one of the languages."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        indent, language, code = match.groups()
        if language in languages:
            line = text[: match.start()].count("\n") + 2
            yield line, re.sub(f"^{indent}", "", code, flags=re.M)


def commands(page):
    """(line, words) of each command that begins with ``thaw``."""
    for first, code in blocks(page, "console", "bash", "sh", "shell"):
        for line, text in enumerate(code.replace("\\\n", " ").splitlines(), first):
            words = shlex.split(text.removeprefix("$ "), comments=True)
            if words and words[0] == "thaw":
                # What the shell does with the output is not for us to parse.
                rest = itertools.takewhile(lambda word: not word.startswith(("<", ">", "|", "&", ";")), words[1:])
                yield line, list(rest)


def anchors(page):
    """The anchors that the site makes of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Make ``photos/``, two classes of small images that can be told apart, and ``old-photos/``; go there."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, colour in (("cat", 60), ("dog", 190)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(colour, 40, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST).save(folder / f"{i:02}.png")
    (tmp_path / "old-photos").mkdir()
    for i in range(12):  # of what the backbone knows, in no classes
        pixels = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(tmp_path / "old-photos" / f"{i:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(codes, file):
    names = {"__name__": "__main__"}
    for line, code in codes:
        # The lines are counted as in the page, so that a traceback leads to them.
        exec(compile("\n" * (line - 1) + code, str(file), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if next(blocks(p, "python"), None)], ids=name_of)
def test_the_python_of_a_page_runs(page, photos):
    execute(blocks(page, "python"), page)


def parse(words):
    """Parse a command line to its last option, with the parser of the command line; run nothing."""
    import typer

    from thaw.cli.main import app

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


@pytest.mark.parametrize("page", [p for p in PAGES if next(commands(p), None)], ids=name_of)
def test_the_commands_of_a_page_exist(page, photos):
    for line, words in commands(page):
        if "--config" in words:  # of a run that an earlier command would have made
            config = Path(words[words.index("--config") + 1])
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(f'data = "{photos / "photos"}"\n')
        try:
            if words != ["--install-completion"]:  # it would
                parse(words)
        except Exception as error:
            raise AssertionError(f"{name_of(page)}:{line}: thaw {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("words", [["tune", "photos/", "--no-such-option"], ["nosuchcommand"], ["tune"]])
def test_a_command_that_does_not_exist_would_be_found(words, photos):
    with pytest.raises(Exception, match=r"(?i)no such option|no such command|missing parameter|no command"):
        parse(words)


def test_every_command_is_in_the_guide():
    import typer

    from thaw.cli.main import app

    table = (ROOT / "docs/guides/command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `thaw ([\w-]+)`", table, re.M)) == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(file), f"{link}: {name_of(file)} has no such heading"


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"[\w./-]+\.md", nav)) == sorted(
        p.relative_to(ROOT / "docs").as_posix() for p in PAGES[1:]
    )


def test_the_new_names_of_the_changelog_exist():
    import thaw

    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("| 0.1 | 0.2 |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        old, new = row.strip("| ").split(" | ")
        same = re.search(r"the same in `(\w+)`", new)
        names = (
            [f"{same[1]}.{name}" for name in re.findall(r"`(\w+)`", old)] if same else re.findall(r"`([\w.]+)[`(]", new)
        )
        for name in names:
            package, _, name = name.rpartition(".")
            home = importlib.import_module(f"thaw.{package}") if package else thaw
            assert name in home.__all__, f"{row}: {name} does not exist"


def test_the_fences_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```python\nx = 1\n```\n"
        "  ```console\n  $ thaw tune photos/ -o \\\n  runs/a\n  thaw plan > a.toml  # dry\n  done\n  ```\n"
        "```\nthaw not this\n```\n"
    )
    assert list(blocks(page, "python")) == [(3, "x = 1\n")]
    assert [words for _, words in commands(page)] == [["tune", "photos/", "-o", "runs/a"], ["plan"]]
