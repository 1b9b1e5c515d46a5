"""LEEP: how well a model's own classes, as they are, tell the new labels."""

from __future__ import annotations

import numpy as np


def leep(p, y):
    """The mean log-likelihood of new labels under the old head's classes (Nguyen et al. 2020): higher is better.

    The old head gives each example probabilities over the classes it was trained on. Counted over the data, each old
    class has its shares of new labels; an example's new label is then as likely as these shares weighted by its
    probabilities. Nothing is trained. At most 0.

    Args:
        p: ``(n, old classes)`` probabilities, rows summing to 1, as :mod:`thaw.probabilities` gives them.
        y: ``(n,)`` new class numbers.

    Returns:
        The score, a float in nats.

    Raises:
        ValueError: arrays that do not belong together, or rows that are no probabilities.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.leep import leep
        >>> leep(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 0, 1]))
        0.0
    """
    p, y = np.asarray(p, np.float64), np.asarray(y)
    if p.ndim != 2 or 0 in p.shape or y.shape != p.shape[:1] or y.dtype.kind not in "iub":
        raise ValueError(
            f"p has shape {p.shape} and y is {y.dtype} of shape {y.shape}; expected (n, old classes) and n class "
            "numbers."
        )
    if not (np.isfinite(p).all() and p.min() >= 0 and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("The rows of p do not sum to 1; expected probabilities, not logits.")
    classes, place = np.unique(y, return_inverse=True)
    joint = np.zeros((len(classes), p.shape[1]))
    np.add.at(joint, place, p)
    total = joint.sum(axis=0)
    shares = joint / np.where(total > 0, total, 1)  # an old class that no example has any part in says nothing
    likelihood = (p * shares[place]).sum(axis=1) / p.sum(axis=1)
    return float(np.minimum(np.log(likelihood), 0).mean())
