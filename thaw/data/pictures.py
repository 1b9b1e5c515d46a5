"""What came of a folder or table of pictures: the examples, and all there is to say about them."""

from __future__ import annotations

from dataclasses import dataclass

from thaw.examples import Examples


@dataclass(frozen=True)
class Bad:
    """A file that is left out of training.

    Args:
        path: Where it lies, made printable (bytes that are no text are written like `\\udcff`).
        reason: Why, to be read after the path: "is cut short", "is in two classes".
    """

    path: str
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Pictures:
    """Pictures ready for training, and what was found on the way.

    Args:
        train: What the model learns from.
        validation: What decides when to stop and which weights are best.
        test: What nothing is decided on; None where there is none.
        labels: Class names, sorted; the place of a name is its class number.
        files: From "train", "validation" and "test" to picture paths, in the order of the examples.
        quarantine: Files left out, each with its reason.
        class_weight: Class number to weight where the classes are uneven, else None.
        notes: Sentences to show to the user.
        digest: SHA-256 over contents, labels, weights and splits in order: which data set this is.

    Example:
        >>> import numpy as np
        >>> one = Examples(x=np.zeros((1, 2)), y=np.zeros(1, int))
        >>> pictures = Pictures(train=one, validation=one, test=None, labels=("cat", "dog"),
        ...     files={"train": ("a.png",), "validation": ("b.png",), "test": ()}, quarantine=(),
        ...     class_weight=None, notes=(), digest="")
        >>> pictures.labels
        ('cat', 'dog')
    """

    train: Examples
    validation: Examples
    test: Examples | None
    labels: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    quarantine: tuple[Bad, ...]
    class_weight: dict[int, float] | None
    notes: tuple[str, ...]
    digest: str
