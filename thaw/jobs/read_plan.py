"""A plan by its name, or from a file."""

from pathlib import Path

from thaw.plan import Plan


def read_plan(name, epochs=None, head_epochs=None, learning_rate=None):
    """Make the plan that somebody asked for.

    Args:
        name: of a plan, or a file that ends in .toml.
        epochs: of the plan with that name; a file says it itself.
        head_epochs: of the head alone, likewise.
        learning_rate: the peak, likewise.

    Returns:
        A :class:`thaw.Plan`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such plan, a file that is none, or options beside a file.

    Example:
        >>> from thaw.jobs.read_plan import read_plan
        >>> read_plan("probe", epochs=3).epochs
        3
    """
    path = Path(name)
    if path.suffix.lower() != ".toml":
        return Plan.named(name, epochs=epochs, head_epochs=head_epochs, learning_rate=learning_rate)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a plan in TOML.")
    if (epochs, head_epochs, learning_rate) != (None, None, None):
        raise ValueError("Epochs and learning rates stand in the plan file; leave the options out.")
    try:
        return Plan.from_toml(path.read_text(encoding="utf-8-sig"))  # some editors put a mark in front
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
