"""Run folders: write, verify, open, predict."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "Run": "thaw.runs.folder",
        "lock_run": "thaw._files",
        "open_run": "thaw.runs.folder",
        "verify_run": "thaw.runs.folder",
        "write_run": "thaw.runs.folder",
    },
)
