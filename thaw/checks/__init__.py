"""Checks before the first step: a model, its data and its plan."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "Finding": "thaw.checks.findings",
        "check_data": "thaw.checks.model_and_data",
        "preflight": "thaw.checks.model_and_plan",
        "raise_on_errors": "thaw.checks.findings",
    },
)
