"""Metrics and their intervals; NumPy, SciPy and scikit-learn only."""

from thaw._namespace import namespace

__getattr__, __dir__, __all__ = namespace(
    __name__,
    {
        "Estimate": "thaw.metrics.intervals",
        "best_thresholds": "thaw.metrics.multilabel",
        "binomial_interval": "thaw.metrics.intervals",
        "bootstrap": "thaw.metrics.intervals",
        "classification_metrics": "thaw.metrics.classification",
        "multilabel_metrics": "thaw.metrics.multilabel",
        "regression_metrics": "thaw.metrics.regression",
        "residual_spread": "thaw.metrics.regression",
    },
)
