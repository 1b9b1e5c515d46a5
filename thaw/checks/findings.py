"""Findings: what a check found, and the error that is made of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """One mistake, or possible mistake, in a model, its data or its plan.

    Args:
        code: a short name that stays the same from version to version.
        level: ``"error"``: the result would be wrong; ``"warning"``: it may be worse than it could be; ``"note"``:
            nothing is wrong, but it is good to know.
        what: one sentence: what is wrong.
        fix: one sentence: what to write instead; empty where there is nothing to do.

    Example:
        >>> from thaw import Finding
        >>> print(Finding("logits", "error", "The loss expects logits.", "Write from_logits=False."))
        The loss expects logits. Write from_logits=False.
    """

    code: str
    level: str
    what: str
    fix: str

    def __str__(self):
        return f"{self.what} {self.fix}".rstrip()


def raise_on_errors(findings):
    """Raise where a finding is an error.

    Args:
        findings: of :func:`thaw.checks.check_data` or :func:`thaw.preflight`.

    Raises:
        ValueError: all errors: what is wrong, and what to write instead.

    Example:
        >>> from thaw.checks import Finding, raise_on_errors
        >>> raise_on_errors([Finding("logits", "error", "The loss expects logits.", "Write from_logits=False.")])
        Traceback (most recent call last):
        ValueError: The loss expects logits. Write from_logits=False.
    """
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise ValueError(" ".join(errors))
