"""Run folders: write, verify, open, predict; export a model."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "Run": "thaw.runs.folder",
        "export_model": "thaw.runs.export",
        "lock_run": "thaw._files",
        "open_run": "thaw.runs.folder",
        "verify_run": "thaw.runs.folder",
        "write_run": "thaw.runs.folder",
    },
)
