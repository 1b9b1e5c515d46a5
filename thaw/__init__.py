"""Fine-tuning for Keras: a plain ``keras.Model`` goes in, and a plain ``keras.Model`` comes out.

The names below are imported when they are first used: ``import thaw`` and ``thaw --help`` take no time.

Example:
    >>> import thaw
    >>> thaw.Phase(name="head", epochs=5, train="head").epochs
    5
"""

from thaw._namespace import namespace

__version__ = "0.2.0"

_MODULES = {
    "Advice": "thaw.advice.result",
    "Classification": "thaw.tasks",
    "Dataset": "thaw.data.dataset",
    "Finding": "thaw.checks.findings",
    "MultiLabel": "thaw.targets",
    "Phase": "thaw.plan",
    "Plan": "thaw.plan",
    "Regression": "thaw.targets",
    "Run": "thaw.runs.folder",
    "Splits": "thaw.data.splits",
    "Stage": "thaw.models.stages",
    "ThawClassifier": "thaw.estimators",
    "ThawRegressor": "thaw.estimators",
    "TuneCallback": "thaw.training.callbacks",
    "add_lora": "thaw.models.lora",
    "advise": "thaw.advice.advise",
    "as_dataset": "thaw.data.conversion",
    "attach_head": "thaw.models.heads",
    "augment": "thaw.data.augmentation",
    "backbone": "thaw.models.backbone",
    "check": "thaw.workflow",
    "compare": "thaw.advice.compare",
    "continue_head": "thaw.models.continuation",
    "continue_table": "thaw.models.continuation",
    "evaluate": "thaw.features.predictions",
    "find_rate": "thaw.workflow",
    "fine_tune": "thaw.finetune",
    "forecast": "thaw.training.forecasting",
    "freeze": "thaw.training.freezing",
    "gradient_boosting": "thaw.transfer.boosted_trees",
    "layerwise_lr_decay": "thaw.training.optimizers",
    "list_cache": "thaw.features.cache_folder",
    "load_adapters": "thaw.models.adapter_files",
    "load_images": "thaw.data.images",
    "load_table": "thaw.data.columns",
    "load_text": "thaw.data.text",
    "lr_finder": "thaw.advice.lr_range",
    "merge_lora": "thaw.models.lora",
    "open_run": "thaw.runs.folder",
    "precompute": "thaw.features.precompute",
    "predict": "thaw.runs.predictor",
    "preflight": "thaw.checks.model_and_plan",
    "probe": "thaw.transfer.probing",
    "rank": "thaw.transfer.probing",
    "save_adapters": "thaw.models.adapter_files",
    "seed_everything": "thaw.models.state",
    "split_model": "thaw.features.split",
    "stages_of": "thaw.models.stages",
    "table_model": "thaw.models.table_backbone",
    "tune": "thaw.workflow",
    "weight_change": "thaw.training.freezing",
}

__getattr__, __dir__, __all__ = namespace(__name__, _MODULES)
