"""Estimate before training how well pre-trained features suit a target task."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "h_score": "thaw.transfer.transferability",
        "learning_curve": "thaw.transfer.learning_curves",
        "leep": "thaw.transfer.transferability",
        "logme": "thaw.transfer.transferability",
        "nce": "thaw.transfer.transferability",
        "probe_features": "thaw.transfer.probing",
        "relative_gradient_norm": "thaw.features.stage_features",
        "stage_features": "thaw.features.stage_features",
    },
)
