"""Estimate before training how well pre-trained features suit a target task."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "choose_head": "thaw.transfer.head_choice",
        "h_score": "thaw.transfer.transferability",
        "learning_curve": "thaw.transfer.learning_curves",
        "leep": "thaw.transfer.transferability",
        "logme": "thaw.transfer.transferability",
        "nce": "thaw.transfer.transferability",
        "probe_features": "thaw.transfer.probing",
        "CannotSolve": "thaw.transfer.solved_head",
        "relative_gradient_norm": "thaw.features.stage_features",
        "solve_head": "thaw.transfer.solved_head",
        "stage_features": "thaw.features.stage_features",
    },
)
