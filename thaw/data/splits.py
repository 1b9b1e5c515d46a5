"""Split data into training, validation and test, by content, by group or by time; weight the classes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from thaw.data.dataset import Dataset
from thaw.tasks import Task

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {  # as people call them, in lower case
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
BALANCES = ("auto", "none", "balanced", "logit-adjustment")
FRACTIONS = (0.7, 0.15, 0.15)  # of train, validation and test


def holds_splits(values: Sequence) -> bool:
    """Say whether all values of a column are names of splits, train among them.

    Args:
        values: of the column.

    Example:
        >>> from thaw.data.splits import holds_splits
        >>> holds_splits(["Train", "val"]), holds_splits(["train", "bus"])
        (True, False)
    """
    names = {SPLIT_NAMES.get(str(value).lower()) for value in values}
    return None not in names and "train" in names


@dataclass(frozen=True)
class RejectedFile:
    """A file that is left out of training.

    Args:
        path: its path, made printable (bytes that are no text are escaped as ``\\udcff``).
        reason: to be read after the path: "is cut short", "is in two classes".
    """

    path: str
    reason: str

    def __str__(self):
        return f"{self.path} {self.reason}"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Splits:
    """Data ready for training: three datasets, the task, and what was found while they were read.

    Args:
        train: :class:`thaw.Dataset` to learn from.
        validation: :class:`thaw.Dataset` by which training is stopped and the best weights are chosen.
        test: :class:`thaw.Dataset` that decides nothing and is measured once; ``None` if there is none.
        task: what is predicted, such as :class:`thaw.Classification` with the names of the classes.
        files: dict from "train", "validation" and "test" to file paths, in the order of the examples.
        rejected: files that are left out, each with its reason.
        class_weight: dict from class number to weight in the loss; ``None`` for equal weights.
        class_counts: training examples of each class where a trained model is to be adjusted for them
            (:func:`thaw.transfer.adjust_logits`), else ``None``.
        notes: sentences for the user.
        digest: SHA-256 over contents, labels, weights and splits in order: identifies the data.

    Example:
        >>> import numpy as np
        >>> from thaw import Classification
        >>> one = Dataset(x=np.zeros((1, 2)), y=np.zeros(1, int))
        >>> splits = Splits(train=one, validation=one, test=None, task=Classification(["cat", "dog"]))
        >>> splits.labels
        ('cat', 'dog')
        >>> print(splits)
        1 train and 1 validation examples of 2 classes: cat, dog
    """

    train: Dataset
    validation: Dataset
    test: Dataset | None
    task: Task
    files: dict[str, tuple[str, ...]] | None = None
    rejected: tuple[RejectedFile, ...] = ()
    class_weight: dict[int, float] | None = None
    class_counts: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, the labels or the numbers, in the order of the model's outputs."""
        return getattr(self.task, "labels", None) or self.task.targets

    def __str__(self):
        *first, last = [f"{len(part)} {name}" for name in SPLITS if (part := getattr(self, name)) is not None]
        shown = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
        kind = {"softmax": "of {} classes", "sigmoid": "with any of {} labels", "linear": "with {} numbers"}
        kind = kind[self.task.activation].format(len(self.labels)).replace("with 1 numbers", "with 1 number")
        text = f"{', '.join(first)} and {last} examples {kind}: {shown}"
        if self.rejected:
            files = "1 file is" if len(self.rejected) == 1 else f"{len(self.rejected)} files are"
            text += f"\n{files} left out, the first: {self.rejected[0]}"
        return "\n".join([text, *self.notes])

    __repr__ = __str__


def split_by_content(
    keys: Sequence[str],
    labels: Sequence[Hashable],
    groups: Sequence[str | None] | None = None,
    clusters: Sequence[Hashable] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> np.ndarray:
    """Assign each example to a split by a hash of its content.

    Examples with the same key, group or cluster are connected and share a split: they form one *component*. Each
    component has a name: the user's group if it has one, else a content key; of several the one with the smallest
    SHA-256. The SHA-256 of (seed, name), read as a number from 0 to 1, is compared with the cumulative ``fractions``.
    So neither the order nor the file names matter, each class is divided in the same proportions up to chance, and
    adding files moves no others, with two exceptions:

    - A new file that joins a component without a group may bring a smaller name, and the component moves with it.
    - A class that would be missing from a split gets the component with the lowest hash among those that can be spared,
      whose own split keeps another component of every class in it; if there are none, among those of later splits. The
      splits are filled in order (train first), in each the classes in sorted order. When files are added later, such a
      component may go back to its own split. A class of one component is thus only in the first split, a class of two
      in the first two.

    Args:
        keys: content keys (SHA-256 in hex) of ``n`` examples.
        labels: class of each example.
        groups: group of each example (a patient, a place); ``None`` for an example on its own.
        clusters: cluster number of near-duplicates of each example.
        fractions: fraction of each split, in order; they sum to 1. A split with fraction 0 stays empty.
        seed: int; another seed gives another split.

    Returns:
        Number of the split of each example, int64 of shape ``(n,)``.

    Raises:
        ValueError: the columns differ in length, or the fractions are invalid.

    Example:
        >>> keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(6)]
        >>> split_by_content(keys, list("aaabbb"), fractions=(0.5, 0.5)).tolist()
        [1, 0, 1, 0, 0, 1]
    """
    fractions = _checked_fractions(fractions, len(keys), labels=labels, groups=groups, clusters=clusters)
    if not len(keys):
        return np.zeros(0, np.int64)
    component = _components(keys, groups, clusters)
    position = _hash_positions(component, keys, groups, seed)
    used = [i for i, fraction in enumerate(fractions) if fraction > 0]
    # Rounding must not leave a position above the last sum.
    split = np.minimum(np.searchsorted(np.cumsum(fractions), position, side="right"), used[-1])
    return _fill_missing_classes(split, position, component, labels, used)[component]


def split_by_time(
    times: Sequence,
    keys: Sequence[str],
    groups: Sequence[str | None] | None = None,
    clusters: Sequence[Hashable] | None = None,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """Assign the earliest examples to the first split and the latest ones to the last.

    Examples with the same key, group or cluster share a split, which is that of the latest of them: no example of an
    earlier split is later than its end. Examples of the same time share a split too. The ends are chosen so that the
    sizes are as close to ``fractions`` as possible; nothing is random.

    Args:
        times: numbers, or dates, of ``n`` examples.
        keys: content keys of the examples.
        groups: group of each example; ``None`` for an example on its own.
        clusters: cluster number of near-duplicates of each example.
        fractions: fraction of each split, from the earliest to the latest; they sum to 1. A split with fraction 0 stays
            empty.

    Returns:
        Number of the split of each example, int64 of shape ``(n,)``.

    Raises:
        ValueError: the columns differ in length, the fractions are invalid, or there are fewer times than splits.

    Example:
        >>> split_by_time([2020, 2024, 2021, 2022, 2023], list("abcde"), fractions=(0.6, 0.2, 0.2)).tolist()
        [0, 2, 0, 0, 1]
    """
    n = len(keys)
    fractions = _checked_fractions(fractions, n, times=times, groups=groups, clusters=clusters)
    if not n:
        return np.zeros(0, np.int64)
    component = _components(keys, groups, clusters)
    rank = {time: i for i, time in enumerate(sorted(set(times)))}
    latest = np.zeros(component.max() + 1, np.int64)
    np.maximum.at(latest, component, [rank[time] for time in times])
    moments, example = np.unique(latest[component], return_inverse=True)
    used = [i for i, fraction in enumerate(fractions) if fraction > 0]
    if len(moments) < len(used):
        raise ValueError(
            f"The examples have {len(moments)} different times, those of one group or of near-duplicates counted "
            f"once; expected at least {len(used)}, one for each split"
        )
    until = np.cumsum(np.bincount(example)) / n  # fraction of the examples up to each moment
    split, begin = np.full(len(moments), used[-1]), 0
    for count, (number, target) in enumerate(zip(used[:-1], np.cumsum(fractions)[used[:-1]]), 1):
        last = len(moments) - (len(used) - count)  # leaves a moment for each split that follows
        end = begin + 1 + int(np.argmin(np.abs(until[begin:last] - target).round(9)))
        split[begin:end] = number
        begin = end
    return split[example]


def connected_groups(
    keys: Sequence[str], groups: Sequence[str | None] | None = None, clusters: Sequence[Hashable] | None = None
) -> np.ndarray | None:
    """Number the examples so that those with the same key, group or cluster, directly or through others, share one.

    These are the components that :func:`split_by_content` keeps within a split, and folds should keep within a fold.

    Args:
        keys: content keys of ``n`` examples.
        groups: group of each example; ``None`` for an example on its own.
        clusters: cluster number of near-duplicates of each example.

    Returns:
        Int64 of shape ``(n,)``; ``None`` where every example is on its own.

    Example:
        >>> connected_groups(list("abcd"), ["p", "p", None, None], [0, 1, 1, 2]).tolist()
        [0, 0, 0, 1]
        >>> connected_groups(list("abcd")) is None
        True
    """
    if not len(keys):
        return None
    component = _components(keys, groups, clusters)
    return None if component.max() + 1 == len(keys) else component


def _checked_fractions(fractions, n, **columns) -> list[float]:
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise ValueError(f"There are {n} keys and {len(column)} {name}; expected one for each.")
    fractions = [float(fraction) for fraction in fractions]
    valid = all(0 <= fraction <= 1 for fraction in fractions)
    if not fractions or not valid or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"The fractions of the splits are {tuple(fractions)}; expected numbers from 0 to 1 that sum to 1."
        )
    return fractions


def _components(keys, groups, clusters) -> np.ndarray:
    """Number the component of each example: those connected through keys, groups and clusters."""
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


def _hash_positions(component, keys, groups, seed) -> np.ndarray:
    """Return the hash of each component, 0 to 1."""
    names: dict[int, tuple] = {}
    for i, number in enumerate(component):
        group = None if groups is None else groups[i]
        text = f"key {keys[i]}" if group is None else f"group {group}"
        # Keys come second: a component with a group keeps its name whatever files join it.
        name = (group is None, hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())
        if number not in names or name < names[number]:
            names[number] = name
    positions = np.empty(len(names))
    for number, (_, name) in names.items():
        digest = hashlib.sha256(f"{seed} ".encode() + name).digest()
        positions[number] = int.from_bytes(digest[:8], "big") / 2**64
    return positions


def _fill_missing_classes(split, position, component, labels, used) -> np.ndarray:
    """Give every class to every split where that takes no class from another."""
    classes_of: dict[int, set] = defaultdict(set)
    components_of: dict[Hashable, set] = defaultdict(set)
    for number, label in zip(component.tolist(), labels, strict=True):
        classes_of[number].add(label)
        components_of[label].add(number)
    split = split.copy()
    count = defaultdict(int)
    for number, classes in classes_of.items():
        for label in classes:
            count[split[number], label] += 1
    for rank, target in enumerate(used):
        for label in sorted(components_of, key=str):
            if count[target, label]:
                continue
            members = components_of[label]
            spare = [m for m in members if all(count[split[m], other] > 1 for other in classes_of[m])]
            later = [m for m in members if split[m] in used[rank + 1 :]]
            if spare or later:
                number = min(spare or later, key=lambda member: (position[member], member))
                for other in classes_of[number]:
                    count[split[number], other] -= 1
                    count[target, other] += 1
                split[number] = target
    return split


@dataclass(frozen=True)
class Balance:
    """What is done about classes of different size; :func:`resolve_balance` gives one.

    Args:
        name: "none", "balanced" or "logit-adjustment".
        class_weight: dict from class number to weight in the loss; ``None`` for equal weights.
        class_counts: examples of each class, for :func:`thaw.transfer.adjust_logits` after the training; ``None`` where
            nothing is to be adjusted.
    """

    name: str
    class_weight: dict[int, float] | None = None
    class_counts: tuple[int, ...] | None = None


def resolve_balance(balance: str, y: np.ndarray, classes: int) -> Balance:
    """Decide what is done about classes of different size.

    "none" gives the best accuracy and log loss on data as uneven as those of the training, and overlooks rare classes.
    "balanced" weights the classes in the loss, "logit-adjustment" corrects the trained model by the logarithm of their
    frequencies (Menon et al. 2021); both give up accuracy for balanced accuracy, the mean over the classes. For
    photographs of solar cells (ELPV), ten intact ones to a defective one, and logistic regression on frozen features,
    the accuracies were .936, .867 and .799, and the balanced accuracies .672, .732 and .745.

    Args:
        balance: "none"; "balanced"; "logit-adjustment"; or "auto": "balanced" if the rarest class has less than a third
            of the examples of the most frequent one, else "none".
        y: class numbers of the training examples, ``(n,)`` integers from 0 to classes - 1.
        classes: number of classes.

    Returns:
        :class:`Balance`. Classes of the same size need none.

    Raises:
        ValueError: another name; ``y`` as for :func:`balanced_class_weight`; or no example of a class whose frequency
            "logit-adjustment" needs.

    Example:
        >>> resolve_balance("auto", [0, 0, 0, 1], classes=2).name
        'none'
        >>> resolve_balance("logit-adjustment", [0, 0, 0, 1], classes=2).class_counts
        (3, 1)
    """
    if balance not in BALANCES:
        raise ValueError(f"balance={balance!r}; expected one of {', '.join(BALANCES)}.")
    class_weight = balanced_class_weight(y, classes, max_ratio=3.0 if balance == "auto" else 1.0)
    counts = np.bincount(y, minlength=classes)
    if balance == "logit-adjustment" and not counts.all():
        raise ValueError(
            f"Class {counts.argmin()} has no training example, and balance='logit-adjustment' needs the frequency of "
            "each; take another balance, or add examples."
        )
    if balance == "none" or class_weight is None:
        return Balance("none")
    if balance != "logit-adjustment":
        return Balance("balanced", class_weight=class_weight)
    return Balance("logit-adjustment", class_counts=tuple(counts.tolist()))


def balanced_class_weight(y: np.ndarray, classes: int, max_ratio: float = 3.0) -> dict[int, float] | None:
    """Weight each class inversely to its frequency, if the classes are uneven enough to matter.

    The weight of class c is n / (k * n_c), for n examples in k classes, n_c of them in c: every class then contributes
    equally to an epoch, and the mean weight is 1. A class without examples gets weight 1 and is not counted in k.

    Args:
        y: class numbers, ``(n,)`` integers from 0 to classes - 1.
        classes: number of classes.
        max_ratio: how many times as many examples as the rarest class the most frequent one may have without weights.
            Default 3.

    Returns:
        Dict from class number to weight, for ``model.fit(class_weight=...)``; ``None`` if the ratio is at most
        ``max_ratio``.

    Raises:
        ValueError: ``y`` is empty, or holds a number outside 0 to classes - 1.

    Source: King and Zeng (2001), "Logistic Regression in Rare Events Data".

    Example:
        >>> balanced_class_weight([0, 0, 0, 0, 0, 0, 0, 1], classes=2)
        {0: 0.5714285714285714, 1: 4.0}
        >>> balanced_class_weight([0, 0, 0, 1], classes=2) is None
        True
    """
    y = np.asarray(y)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"y has shape {y.shape}, expected (n,) with at least one class number")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"y holds class numbers from {y.min()} to {y.max()}, expected 0 to {classes - 1}")
    counts = np.bincount(y, minlength=classes)
    present = counts[counts > 0]
    if max_ratio * present.min() >= present.max():
        return None
    return {c: float(y.size / (present.size * n)) if n else 1.0 for c, n in enumerate(counts)}
