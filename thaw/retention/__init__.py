"""Measure and limit catastrophic forgetting."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "GreedySoup": "thaw.retention.epoch_soup",
        "SourceTask": "thaw.retention.source_tasks",
        "agreement": "thaw.features.similarity",
        "average_weights": "thaw.retention.merging",
        "combine_stages": "thaw.retention.merging",
        "distill": "thaw.retention.distillation",
        "estimate_batchnorm": "thaw.retention.batchnorm",
        "ewc": "thaw.training.optimizers",
        "fisher": "thaw.retention.fisher_information",
        "greedy_soup": "thaw.retention.merging",
        "interpolate_weights": "thaw.retention.merging",
        "l2_sp": "thaw.training.optimizers",
        "linear_cka": "thaw.features.similarity",
        "mix_replay": "thaw.data.replay",
        "retention_callback": "thaw.retention.monitor",
        "score_of": "thaw.retention.merging",
        "soft_targets": "thaw.retention.distillation",
        "source_task": "thaw.retention.source_tasks",
        "stage_cka": "thaw.features.similarity",
        "stage_grams": "thaw.features.similarity",
        "wise_ft_search": "thaw.retention.budget",
    },
)
