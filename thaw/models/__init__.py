"""Models: backbones, heads, stages."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "Adapters": "thaw.models.lora",
        "blend_models": "thaw.models.blends",
        "copy_model": "thaw.models.blends",
        "input_size": "thaw.models.backbone",
        "load_model_file": "thaw.models.loading",
        "remove_head": "thaw.models.heads",
    },
)
