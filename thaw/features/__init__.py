"""Features of the frozen part: computed once, cached, compared."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "CannotSplit": "thaw.models.flat",
        "cache_root": "thaw._files",
        "clear_cache": "thaw.features.cache_folder",
        "inference_runner": "thaw.features.inference",
        "isolated_cache": "thaw.features.cache_folder",
        "predict_proba": "thaw.features.predictions",
    },
)
