"""Write the reference of the documentation: a hook of mkdocs and an extension of griffe, both named in mkdocs.yml.

A page of docs/reference says ``<!-- reference: thaw.metrics -->`` where the public names of that package belong, so
that no list of names is kept by hand.
"""

import importlib
import re
import textwrap

import griffe

MARK = re.compile(r"^<!-- reference: ([\w.]+) -->$", re.M)
RETURNS = re.compile(r"^Returns:\n((?: +.*\n?|\n)+)", re.M)


def public_names(package):
    """Return the full name of everything that a package lists in ``__all__``."""
    return [f"{getattr(package, name).__module__}.{name}" for name in package.__all__]


def on_page_markdown(markdown, **others):
    """Called by mkdocs for each page: put the public names in the place of a mark."""
    return MARK.sub(
        lambda mark: "\n\n".join(f"::: {name}" for name in public_names(importlib.import_module(mark[1]))), markdown
    )


class Docstrings(griffe.Extension):
    """Turn what Python's own tools understand in our docstrings into what mkdocstrings shows."""

    def on_object(self, *, obj, **others):
        if obj.docstring:
            text = re.sub(r":(?:func|class|meth|mod|attr|data):`~?([^`]+)`", r"`\1`", obj.docstring.value)
            text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
            # What is returned has no name, and would be a list of one point without one.
            obj.docstring.value = RETURNS.sub(lambda part: f"**Returns:**\n\n{textwrap.dedent(part[1])}", text)
