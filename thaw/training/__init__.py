"""Freezing, optimizers, callbacks and checkpoints."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "BestWeights": "thaw.training.callbacks",
        "ProgressBar": "thaw.training.progress",
        "TerminateOnNonFinite": "thaw.training.callbacks",
        "clone_optimizer": "thaw.training.optimizers",
        "lr_scale": "thaw.training.optimizers",
        "lr_schedule": "thaw.training.optimizers",
        "reinitialize_weights": "thaw.models.state",
        "snapshot_weights": "thaw.training.freezing",
        "unexpected_changes": "thaw.training.freezing",
    },
)
