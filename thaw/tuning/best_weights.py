"""The best weights over several fits."""

import math

import keras
import numpy as np

# A metric whose name holds one of these is better when it is lower.
_LOWER = (
    "loss",
    "error",
    "mae",
    "mse",
    "mape",
    "msle",
    "crossentropy",
    "divergence",
    "hinge",
    "cosh",
    "poisson",
    "false_",
)


class BestWeights(keras.callbacks.Callback):
    """Keep the best weights seen in all fits this callback takes part in.

    ``EarlyStopping(restore_best_weights=True)`` begins anew with every ``fit``, so that a bad second phase
    wins over a good first one. This keeps one best. A tie goes to the lower ``val_loss``. Where the
    optimizer keeps a moving average of the weights, the average is what is kept, as it is what was validated.

    Args:
        model: the model whose weights are kept; it may be larger than the one that is fitted.
        monitor: name in the logs, for instance ``"val_accuracy"``.

    Raises:
        ValueError: the logs have no such value.

    Example:
        >>> import keras
        >>> from thaw.tuning.best_weights import BestWeights
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> best = BestWeights(model, "val_loss")
        >>> best.on_epoch_end(0, {"val_loss": 0.5})
        >>> best.value, best.epoch
        (0.5, 0)
    """

    def __init__(self, model, monitor):
        super().__init__()
        self.whole, self.monitor = model, monitor
        self.higher_is_better = not any(word in monitor for word in _LOWER)
        self.value = self.tie = self.epoch = self.weights = None

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        if self.monitor not in logs:
            raise ValueError(f"There is no {self.monitor} to choose by; the logs have {', '.join(sorted(logs))}.")
        if np.ndim(logs[self.monitor]):
            raise ValueError(
                f"{self.monitor} is {np.size(logs[self.monitor])} numbers; expected one to choose by. Put a metric of "
                'one number first, such as F1Score(average="macro").'
            )
        value, tie = float(logs[self.monitor]), float(logs.get("val_loss", 0.0))
        if self.value is None or self._rank(value, tie) > self._rank(self.value, self.tie):
            weights = validated_weights(self.whole, getattr(self.model, "optimizer", None))
            if not all(np.isfinite(w).all() for w in weights if w.dtype.kind == "f"):
                # A ReLU makes 0 of NaN, so the loss may look well.
                raise FloatingPointError(
                    f"After epoch {epoch + 1} some weights are not finite, though the loss is; look for NaN or "
                    "infinity in the inputs, or lower the learning rate."
                )
            self.value, self.tie, self.epoch, self.weights = value, tie, epoch, weights

    def _rank(self, value, tie):
        value = value if self.higher_is_better else -value
        return (-math.inf if math.isnan(value) else value, -math.inf if math.isnan(tie) else -tie)

    def restore(self):
        """Put the best weights back into the model."""
        if self.weights is not None:
            for variable, value in zip(self.whole.weights, self.weights):
                variable.assign(value)


def validated_weights(model, optimizer):
    """Copies of the weights as validation sees them: the moving average where the optimizer keeps one."""
    average = {}
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if getattr(inner, "use_ema", False) and inner.built:
        average = dict(zip(map(id, inner._trainable_variables), inner._model_variables_moving_average))
    return [average.get(id(v), v).numpy().copy() for v in model.weights]
