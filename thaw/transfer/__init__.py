"""Estimate before training how well pre-trained features suit a target task."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "Calibration": "thaw.transfer.calibration",
        "CannotCalibrate": "thaw.transfer.calibration",
        "adjust_logits": "thaw.transfer.calibration",
        "calibrate": "thaw.transfer.calibration",
        "choose_blend": "thaw.transfer.blending",
        "choose_head": "thaw.transfer.head_choice",
        "contrastive_tuning": "thaw.transfer.contrastive",
        "fit_temperature": "thaw.transfer.calibration",
        "h_score": "thaw.transfer.transferability",
        "learning_curve": "thaw.transfer.learning_curves",
        "leep": "thaw.transfer.transferability",
        "logme": "thaw.transfer.transferability",
        "nce": "thaw.transfer.transferability",
        "probe_features": "thaw.transfer.probing",
        "CannotSolve": "thaw.transfer.solved_head",
        "relative_gradient_norm": "thaw.features.stage_features",
        "scale_logits": "thaw.transfer.calibration",
        "solve_head": "thaw.transfer.solved_head",
        "stage_features": "thaw.features.stage_features",
    },
)
