"""Export public names lazily: a name is imported when it is first used, so that ``import thaw`` takes no time."""

from __future__ import annotations

import importlib
import sys


def namespace(package, modules):
    """Make the module functions that export names lazily.

    Args:
        package: name of the package, ``__name__``.
        modules: dict from a public name to the module that defines it.

    Returns:
        ``(__getattr__, __dir__, __all__)`` for the package.

    Example:
        >>> from thaw._namespace import namespace
        >>> get, names, exported = namespace("thaw", {"Plan": "thaw.plan"})
        >>> get("Plan").__name__, exported
        ('Plan', ['Plan'])
    """

    def get(name):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names():
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names, sorted(modules)
