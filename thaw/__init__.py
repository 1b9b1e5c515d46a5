"""Fine-tuning for Keras: a plain ``keras.Model`` goes in, and a plain ``keras.Model`` comes out.

The names below are imported when they are first used: ``import thaw`` and ``thaw --help`` take no time.

Example:
    >>> import thaw
    >>> thaw.Phase(name="head", epochs=5, train="head").epochs
    5
"""

__version__ = "0.1.0"

_HOME = {
    "Advisor": "thaw.advising.advise",
    "CannotSplit": "thaw.tuning.flatten",
    "Examples": "thaw.examples",
    "OldTask": "thaw.jobs.old_task",
    "Phase": "thaw.plan",
    "Plan": "thaw.plan",
    "Stage": "thaw.stages",
    "advise": "thaw.advising.advise",
    "agreement": "thaw.measuring.agreement",
    "anchored": "thaw.tuning.anchored",
    "attach_head": "thaw.tuning.attach_head",
    "augment": "thaw.data.augment",
    "average": "thaw.tuning.average",
    "backbone": "thaw.backbones.backbone",
    "cache_folder": "thaw.jobs.cache_folder",
    "check_path": "thaw.jobs.check_path",
    "compare": "thaw.advising.compare",
    "decode": "thaw.data.decode",
    "distill": "thaw.tuning.distill",
    "dry_run": "thaw.tuning.dry_run",
    "estimate_batchnorm": "thaw.tuning.estimate_batchnorm",
    "evaluate": "thaw.measuring.evaluate",
    "evaluate_run": "thaw.jobs.evaluate_run",
    "find_learning_rate": "thaw.tuning.find_learning_rate",
    "fisher": "thaw.tuning.fisher",
    "freeze": "thaw.tuning.freeze",
    "gradient_ratio": "thaw.measuring.gradient_ratio",
    "greedy_average": "thaw.tuning.greedy_average",
    "h_score": "thaw.measuring.h_score",
    "images": "thaw.data.images",
    "interpolate": "thaw.tuning.interpolate",
    "keep_stages": "thaw.tuning.keep_stages",
    "learning_curve": "thaw.measuring.learning_curve",
    "leep": "thaw.measuring.leep",
    "linear_cka": "thaw.measuring.cka",
    "load_run": "thaw.shipping.run_folder",
    "lock_run": "thaw.shipping.lock_run",
    "log_me": "thaw.measuring.log_me",
    "movement": "thaw.tuning.movement",
    "nce": "thaw.measuring.nce",
    "old_answers": "thaw.tuning.distill",
    "old_task": "thaw.jobs.old_task",
    "per_stage": "thaw.tuning.per_stage",
    "precompute": "thaw.tuning.precompute",
    "predict": "thaw.shipping.predict",
    "predict_files": "thaw.jobs.predict_files",
    "predict_probabilities": "thaw.measuring.predict_probabilities",
    "preflight": "thaw.tuning.preflight",
    "probe": "thaw.measuring.probe",
    "rank": "thaw.measuring.rank",
    "rehearse": "thaw.data.rehearse",
    "reinitialise": "thaw.tuning.reinitialise",
    "reproducible": "thaw.jobs.reproducible",
    "rescue": "thaw.tuning.rescue",
    "retention": "thaw.measuring.retention",
    "schedule": "thaw.tuning.schedule",
    "scores": "thaw.measuring.scores",
    "split": "thaw.tuning.split",
    "stage_cka": "thaw.measuring.cka",
    "stage_features": "thaw.measuring.stage_features",
    "stage_grams": "thaw.measuring.cka",
    "stages_of": "thaw.stages",
    "tune": "thaw.tuning.tune",
    "tune_pictures": "thaw.jobs.tune_pictures",
    "verify_run": "thaw.shipping.run_folder",
    "write_run": "thaw.shipping.run_folder",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'thaw' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
