"""Data: files, arrays and tables become datasets."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "as_validation": "thaw.data.conversion",
        "decode": "thaw.data.image_decoding",
    },
)
