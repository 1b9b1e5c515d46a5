"""Pictures that are the same to the eye: saved again, made smaller, a shade brighter."""

from __future__ import annotations

import itertools

import numpy as np

MAX_NEIGHBOURS = 256
# Below this standard deviation, in levels of 255, a picture is one plain colour and its hash is noise.
PLAIN = 2.0


def near_identical(
    hashes: np.ndarray, thumbnails: np.ndarray, max_bits: int = 4, max_difference: float = 2.0
) -> np.ndarray:
    """Number the clusters of pictures that are the same to the eye.

    Two pictures are joined when their perceptual hashes differ in few bits *and* their thumbnails differ
    little: the hash alone joins pictures that are merely of the same kind, such as grey cells of one solar
    panel. Clusters are the connected components. Plain pictures, of one colour, are joined only when their
    thumbnails are equal.

    No two pictures are compared that cannot match: hashes that differ in at most `max_bits` bits agree in one
    of `max_bits + 1` bands of bits, so only pictures with a band and about a mean grey in common are looked
    at, each against at most 256 neighbours in order of mean grey. In a mass of more nearly identical pictures
    than that, two are joined through those between them. 100,000 pictures take a few seconds, half a minute
    where all are alike.

    Args:
        hashes: 64-bit perceptual hashes, shape (n,), uint64.
        thumbnails: Small pictures, shape (n, side, side) or (n, side, side, 3), uint8.
        max_bits: Largest number of differing bits of the hash, 0 to 15.
        max_difference: Largest mean absolute difference of the thumbnails, in levels of 255.

    Returns:
        Cluster numbers, shape (n,), int64: the index of the cluster's first picture.

    Raises:
        ValueError: The arrays do not belong together.

    Source: band index after A. Broder, "Identifying and filtering near-duplicate documents", CPM 2000; hash:
    pHash, C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010.

    Example:
        >>> hashes = np.array([0b1111, 0b1110, 0b1111 << 20], np.uint64)
        >>> near_identical(hashes, np.full((3, 4, 4), 100, np.uint8))
        array([0, 0, 2])
    """
    hashes = np.asarray(hashes, np.uint64)
    n = len(hashes)
    flat = np.asarray(thumbnails, np.uint8).reshape(n, -1) if n else np.zeros((0, 1), np.uint8)
    if len(thumbnails) != n:
        raise ValueError(f"there are {n} hashes and {len(thumbnails)} thumbnails, expected one for each")
    if not 0 <= max_bits <= 15:
        raise ValueError(f"max_bits is {max_bits}, expected a whole number from 0 to 15")
    if not n:
        return np.zeros(0, np.int64)
    mean = flat.mean(axis=1)
    limit = np.where(flat.std(axis=1) < PLAIN, 0.0, max_difference)
    edges = np.linspace(0, 64, max_bits + 2).astype(int)
    pairs = [np.zeros((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        width = np.uint64((1 << int(high - low)) - 1) if high - low < 64 else np.uint64(2**64 - 1)
        band = (hashes >> np.uint64(low)) & width
        pairs += _matches(band, mean, hashes, flat, max_bits, limit)
    return _components(n, np.concatenate(pairs))


def _matches(band, mean, hashes, flat, max_bits, limit) -> list[np.ndarray]:
    """Pairs of matching pictures with the same band, walking along the order of mean grey."""
    order = np.lexsort((mean, band))
    band, mean = band[order], mean[order]
    found = []
    here = np.arange(len(order))
    for step in range(1, MAX_NEIGHBOURS + 1):
        here = here[here + step < len(order)]
        there = here + step
        # The mean of the thumbnails cannot differ by more than the mean of the differences.
        close = (band[here] == band[there]) & (mean[there] - mean[here] <= limit.max())
        here = here[close]
        if not here.size:
            break
        a, b = order[here], order[here + step]
        alike = np.bitwise_count(hashes[a] ^ hashes[b]) <= max_bits
        a, b = a[alike], b[alike]
        for start in range(0, len(a), 4096):
            i, j = a[start : start + 4096], b[start : start + 4096]
            difference = np.abs(flat[i].astype(np.int16) - flat[j]).mean(axis=1)
            same = difference <= np.minimum(limit[i], limit[j])
            found.append(np.stack([i[same], j[same]], axis=1))
    return found


def _components(n: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components, each numbered by its smallest member."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, number = connected_components(graph, directed=False)
    _, first = np.unique(number, return_index=True)
    return first[number].astype(np.int64)
