"""Stop at the first loss that is not a number."""

import math

import keras


class StopWhenNotFinite(keras.callbacks.Callback):
    """Raise at the first batch whose loss is NaN or infinite, naming where it was.

    Args:
        phase: name of the phase, for the message.

    Raises:
        FloatingPointError: from ``fit``; names epoch, batch, step and learning rate, and what to try.

    Example:
        >>> from thaw.tuning.stop_when_not_finite import StopWhenNotFinite
        >>> StopWhenNotFinite("head").on_train_batch_end(0, {"loss": 0.7})
    """

    def __init__(self, phase):
        super().__init__()
        self.phase, self.epoch = phase, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        # The last batch of an epoch can break the weights with a loss that was still finite.
        value = (logs or {}).get("val_loss", 0.0)
        if not math.isfinite(value):
            raise FloatingPointError(
                f'The validation loss became {value} in phase "{self.phase}", epoch {epoch + 1}. The last good '
                "weights were put back. Try a tenth of the learning rate, a longer warm-up, or "
                "global_clipnorm=1.0 in the optimizer."
            )

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            optimizer = self.model.optimizer
            step = int(optimizer.iterations)
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            # A schedule has gone on to the next step already.
            rate = inner._learning_rate(step - 1) if callable(inner._learning_rate) else optimizer.learning_rate
            raise FloatingPointError(
                f'The loss became {loss} in phase "{self.phase}", epoch {self.epoch + 1}, batch {batch + 1} '
                f"(step {step} of the phase), at a learning rate of {float(rate):.3g}. The last good weights were "
                "put back. Try a tenth of the learning rate, a longer warm-up, global_clipnorm=1.0 in the "
                "optimizer, and look for inputs that are not finite."
            )
