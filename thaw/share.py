"""A share of examples, such as an accuracy, and how sure it is."""

from __future__ import annotations


def share(count, of, method="wilson"):
    """A share and its 95 % interval.

    Args:
        count: of how many examples it is true.
        of: how many there are, at least 1.
        method: ``"wilson"`` (Wilson 1927), right on average; ``"exact"`` (Clopper and Pearson 1934), never too narrow.

    Returns:
        ``(share, low, high)``.

    Example:
        >>> from thaw.share import share
        >>> value, low, high = share(9, 10)
        >>> value, round(low, 3), round(high, 3)
        (0.9, 0.596, 0.982)
    """
    from scipy.stats import binomtest

    value, between = int(count) / int(of), binomtest(int(count), int(of)).proportion_ci(0.95, method=method)
    # At 0 and 1 rounding would leave the value outside by its last bit.
    return value, float(min(between.low, value)), float(max(between.high, value))
