"""How far two sets of answers to the same questions agree."""

from __future__ import annotations

import numpy as np

from thaw.share import share

RESAMPLES = 2000


def agreement(before, after, *, seed=0):
    """Compare what a classifier said before and after, where nobody knows the truth.

    Without labels of the old task this is what can be known of forgetting: whether the original head still
    says the same about any pictures. It counts every change, also one for the better.

    - ``same``: share of examples with the same most probable class. Its 95 % interval is exact (Clopper and
      Pearson 1934), or 1 to 1 where both are equal to the bit.
    - ``divergence``: mean Kullback-Leibler divergence of ``after`` from ``before`` in nats, probabilities held
      above 1e-7, with a 95 % interval by the bootstrap over examples (Efron 1979).

    Args:
        before: probabilities ``(n, classes)``.
        after: probabilities ``(n, classes)`` for the same examples in the same order.
        seed: of the resampling.

    Returns:
        A dict that goes into JSON as it is: ``examples``, and for each figure ``{"value", "low", "high"}``.

    Raises:
        ValueError: arrays that do not belong together, or that are not probabilities.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.agreement import agreement
        >>> found = agreement(np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([[0.9, 0.1], [0.2, 0.8]]))
        >>> found["same"]["value"], round(found["divergence"]["value"], 4)
        (0.5, 0.1116)
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.ndim != 2 or before.shape != after.shape or not len(before):
        raise ValueError(
            f"before has shape {before.shape} and after {after.shape}; expected (examples, classes) for both, the "
            "same examples and classes."
        )
    for name, p in (("before", before), ("after", after)):
        if p.min() < 0 or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
            raise ValueError(f"The rows of {name} do not sum to 1; expected probabilities, not logits.")
    n = len(before)
    same = int((before.argmax(axis=1) == after.argmax(axis=1)).sum())
    p, q = np.maximum(before, 1e-7), np.maximum(after, 1e-7)
    apart = (before * (np.log(p) - np.log(q))).sum(axis=1)
    if np.array_equal(before, after):
        value = low = high = 1.0  # to the bit: no doubt
    else:
        value, low, high = share(same, n, "exact")
    found = {"examples": n, "same": {"value": value, "low": low, "high": high}}
    found["divergence"] = {"value": float(apart.mean())} | _interval_of_mean(apart, seed)
    return found


def _interval_of_mean(values, seed):
    n = len(values)
    if n < 2:
        return {"low": None, "high": None, "reason": "one example allows no interval"}
    rng = np.random.default_rng(seed)
    rounds = max(1, 4_000_000 // n)  # resamples at a time, so that memory stays small
    means = [
        values[rng.integers(0, n, (min(rounds, RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, RESAMPLES, rounds)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return {"low": float(low), "high": float(high)}
