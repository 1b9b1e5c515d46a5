"""Between the weights before the tuning and after it."""

from thaw.tuning.average import average


def interpolate(model, before, after, alpha, data=None, *, importance=None, batch_size=128):
    """Give a model the weights at one place on the line from ``before`` to ``after``.

    Fine-tuning forgets; part of the way back much of what was forgotten is there again, and most of what was
    learned is still there (WiSE-FT, Wortsman et al. 2022). It costs no training. The two ends are given to the
    bit, and nothing is measured anew there.

    A new head that was random before the tuning is of no use half way: give it to ``before`` as it is after, with
    :func:`thaw.keep_stages`.

    With ``importance`` each weight goes its own way: back where it matters to the old task, and not where it matters to
    the new one (Matena and Raffel 2022). From handwritten digits to clothes (EfficientNet-Lite0) that gave back as much
    as the line for half the cost, the other way round more for a little less.

    Args:
        model: a built ``keras.Model``; changed in place. Compile it again before training on: what its optimizer
            has gathered belongs to other weights.
        before: arrays in the order of ``model.weights``, as ``model.get_weights()`` gives them.
        after: the same, after the tuning.
        alpha: 0 for ``before``, 1 for ``after``: each weight is ``(1 - alpha) * before + alpha * after``. What
            cannot be averaged, such as a counter, is taken from the nearer end, half way from ``before``.
        data: pictures to measure BatchNorm's statistics on anew, as :func:`thaw.estimate_batchnorm` takes them;
            of both tasks where both are to be kept. It is done for layers at which something else arrives before
            than after, and for no others. ``None``: statistics are weighted like the rest. Try both
            where the tuning held BatchNorm, as thaw's plans do: the weights are then used to the statistics that they
            had, and EfficientNet-Lite0 forgot more with others than by the tuning.
        importance: ``(to the old task, to the new one)``, each as :func:`thaw.fisher` gives it, the first measured at
            the weights before, the second at those after, both ``of=model``; see :func:`thaw.average`. The place is
            then on a curve between the same two ends. ``None``: all weights alike.
        batch_size: examples of ``data`` in a batch; all in one batch make the statistics exact.

    Returns:
        The same model.

    Raises:
        ValueError: an alpha outside 0 to 1, or weights of another model.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.interpolate import interpolate
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> before, after = [np.array([[1.0]])], [np.array([[5.0]])]
        >>> interpolate(model, before, after, 0.25).get_weights()[0].tolist()
        [[2.0]]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}; expected a number from 0, the weights before, to 1, those after.")
    return average(model, (before, after), (1 - alpha, alpha), data, importance=importance, batch_size=batch_size)
