"""A split that depends on the pictures themselves, so that it stays when more pictures come."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def split_by_content(
    keys: Sequence[str],
    labels: Sequence[Hashable],
    groups: Sequence[str | None] | None = None,
    clusters: Sequence[Hashable] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> np.ndarray:
    """Place each example in a split by a hash of its content.

    Examples with one key, one group or one cluster go together; where these overlap, all of them do. Each
    such company has a *name*: the user's group where it has one, else a content key; of several the one whose
    SHA-256 is smallest. Its *place* is the SHA-256 of (seed, name) read as a number from 0 to 1, and the
    place is compared with the running sums of `fractions`. So neither order nor file names matter, each class
    is divided in the same proportion up to chance, and adding files moves no others, with two exceptions:

    - A new file that joins a company without a user's group may bring a smaller name, and the company moves
      with it.
    - A class that would be absent from a split gets the company with the lowest place among those that can be
      spared, whose own split keeps another company of every class in it; if there are none, among those of
      later splits. The splits are filled in the order given (train first), in each the classes in sorted
      order. When files are added later, such a company may go back to its own place. A class of one company
      is thus only in the first split, a class of two in the first two.

    Args:
        keys: Content keys (SHA-256 in hex), one per example.
        labels: Class of each example.
        groups: User's group of each example (a patient, a place); None: on its own.
        clusters: Number of each example's cluster of near-identical pictures.
        fractions: Share of each split, in order; they sum to 1. A split of share 0 stays empty.
        seed: Another number gives another split.

    Returns:
        Number of the split of each example, shape (n,), int64.

    Raises:
        ValueError: The columns differ in length, or the fractions are no shares.

    Example:
        >>> keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(6)]
        >>> split_by_content(keys, list("aaabbb"), fractions=(0.5, 0.5)).tolist()
        [1, 0, 1, 0, 0, 1]
    """
    n = len(keys)
    for name, column in (("labels", labels), ("groups", groups), ("clusters", clusters)):
        if column is not None and len(column) != n:
            raise ValueError(f"there are {n} keys and {len(column)} {name}, expected one for each")
    fractions = [float(share) for share in fractions]
    if not fractions or not all(0 <= share <= 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"the shares of the splits are {tuple(fractions)}, expected numbers from 0 to 1 that sum to 1")
    if not n:
        return np.zeros(0, np.int64)
    company = _companies(keys, groups, clusters)
    place = _places(company, keys, groups, seed)
    last = max(i for i, share in enumerate(fractions) if share > 0)
    # Rounding must not leave a place above the last sum.
    chosen = np.minimum(np.searchsorted(np.cumsum(fractions), place, side="right"), last)
    used = [i for i, share in enumerate(fractions) if share > 0]
    return _fill_absent(chosen, place, company, labels, used)[company]


def _companies(keys, groups, clusters) -> np.ndarray:
    """Number of the company of each example: connected through keys, groups and clusters."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    node: dict[tuple, int] = {}
    links = []
    for kind, column in (("key", keys), ("group", groups), ("cluster", clusters)):
        for i, value in enumerate(column if column is not None else ()):
            if value is not None:
                links.append((i, len(keys) + node.setdefault((kind, value), len(node))))
    a, b = np.array(links).T
    size = len(keys) + len(node)
    graph = coo_array((np.ones(len(links), bool), (a, b)), shape=(size, size))
    number = connected_components(graph, directed=False)[1][: len(keys)]
    return np.unique(number, return_inverse=True)[1]


def _places(company, keys, groups, seed) -> np.ndarray:
    """Place of each company, 0 to 1."""
    names: dict[int, tuple] = {}
    for i, number in enumerate(company):
        group = None if groups is None else groups[i]
        text = f"key {keys[i]}" if group is None else f"group {group}"
        # Keys come second: a company with a user's group keeps its name whatever pictures join it.
        name = (group is None, hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())
        if number not in names or name < names[number]:
            names[number] = name
    places = np.empty(len(names))
    for number, (_, name) in names.items():
        digest = hashlib.sha256(f"{seed} ".encode() + name).digest()
        places[number] = int.from_bytes(digest[:8], "big") / 2**64
    return places


def _fill_absent(chosen, place, company, labels, used) -> np.ndarray:
    """Give every class to every split where it can be done without taking a class from another."""
    classes_of: dict[int, set] = defaultdict(set)
    companies_of: dict[Hashable, set] = defaultdict(set)
    for number, label in zip(company.tolist(), labels, strict=True):
        classes_of[number].add(label)
        companies_of[label].add(number)
    chosen = chosen.copy()
    held = defaultdict(int)
    for number, classes in classes_of.items():
        for label in classes:
            held[chosen[number], label] += 1
    for rank, split in enumerate(used):
        for label in sorted(companies_of, key=str):
            if held[split, label]:
                continue
            members = companies_of[label]
            spare = [m for m in members if all(held[chosen[m], other] > 1 for other in classes_of[m])]
            later = [m for m in members if chosen[m] in used[rank + 1 :]]
            if spare or later:
                number = min(spare or later, key=lambda member: (place[member], member))
                for other in classes_of[number]:
                    held[chosen[number], other] -= 1
                    held[split, other] += 1
                chosen[number] = split
    return chosen
