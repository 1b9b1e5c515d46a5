"""Divide checked, labelled examples into training, validation and test, and say what was found.

The one way from rows to :class:`thaw.data.splits.Splits`, whatever the rows hold: images or texts.
"""

from __future__ import annotations

import datetime
import hashlib
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from thaw.data.class_names import note_ambiguous_names, similar_names
from thaw.data.dataset import Dataset
from thaw.data.files import printable
from thaw.data.splits import (
    BALANCES,
    SPLITS,
    Balance,
    RejectedFile,
    Splits,
    connected_groups,
    resolve_balance,
    split_by_content,
    split_by_time,
)
from thaw.data.target_columns import target_task
from thaw.tasks import Classification


def check_split_arguments(splits, max_bad, balance) -> None:
    """Check what says how data are divided.

    Args:
        splits: fractions of train, validation and test.
        max_bad: largest fraction of bad examples that is accepted.
        balance: as in :func:`thaw.data.splits.resolve_balance`.

    Raises:
        ValueError: one of them is invalid.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance={balance!r}; expected one of {', '.join(BALANCES)}.")
    if len(splits) != 3 or not all(0 <= fraction <= 1 for fraction in splits) or abs(sum(splits) - 1) > 1e-6:
        raise ValueError(f"splits is {splits}; expected the fractions of train, validation and test, which sum to 1")
    if not (splits[0] and splits[1]):
        raise ValueError(f"splits is {splits}; expected fractions above 0 for train and validation")
    if not isinstance(max_bad, numbers.Real) or not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad is {max_bad!r}; expected a fraction from 0 to 1")


def refuse_no_train(source: Path, given: Sequence[str] | None) -> None:
    """Refuse a table whose splits leave nothing to learn from; a folder says so itself.

    Args:
        source: path of the data.
        given: split of each example; ``None`` where none are given.

    Raises:
        ValueError: no row is in train.
    """
    if given is not None and "train" not in given and not source.is_dir():
        raise ValueError(f"{source}: no row has the split train; expected some to learn from")


def split_examples(
    source: Path,
    columns: dict[str, list],
    keys: Sequence[str],
    bad: dict[int, str],
    *,
    names: Sequence[str],
    noun: str,
    cluster: Callable,
    inputs: Callable,
    unlabelled: str,
    fractions: Sequence[float],
    seed: int,
    max_bad: float,
    balance: str,
    task: str = "classification",
    target_names: Sequence[str] = (),
    repeated: Mapping[int, str] = MappingProxyType({}),
    notes: Sequence[str] = (),
    more_notes: Sequence[str] = (),
) -> Splits:
    """Divide labelled examples into three datasets.

    Splits given by the user are used as they are; without them, examples are split by content, group or time. The
    example of a class that has only one is left out, for it cannot be both learned from and measured.

    Args:
        source: path of the data, for messages.
        columns: dict from "label" (``None`` for an example without one) and, where given, "split", "group", "time" and
            "weight" to lists of ``n`` values.
        keys: SHA-256 of the content of each example, in hex.
        bad: dict from the index of an example that is left out to the reason.
        names: name of each example in messages, such as the path of its file.
        noun: what an example is: "image", "text". Its plural has an s.
        cluster: function from the indices of the examples that are used to their cluster numbers of near-duplicates.
        inputs: function from indices to the fields ``x`` and, where there is one, ``load`` of a :class:`thaw.Dataset`;
            and ``keys``, where what is loaded depends on more than the content.
        unlabelled: why an example without a label is left out.
        fractions: of train, validation and test.
        seed: int, of the split.
        max_bad: largest fraction of bad examples that is accepted.
        balance: as in :func:`thaw.data.splits.resolve_balance`.
        task: what is predicted: ``"classification"`` (default), the classes in "label", or another task, as
            :func:`thaw.data.target_columns.target_task` takes it.
        target_names: names of the labels or numbers in the column "target", for another task. Default: none.
        repeated: dict from the index of an example that is in another split too to the reason; it is left out, and is
            not counted among the bad ones. Default: none.
        notes: sentences to begin with.
        more_notes: sentences to say behind those on what is left out.

    Returns:
        :class:`thaw.data.splits.Splits`.

    Raises:
        ValueError: too many examples are bad, too few are left, or the given splits do not fit together.
    """
    notes, classes, given = list(notes), columns["label"], columns.get("split")
    refuse_no_train(source, given)
    bad = {i: unlabelled for i, name in enumerate(classes) if name is None} | bad | dict(repeated)
    if not target_names and (given is None or "validation" not in given):
        _reject_single(classes, given, keys, bad, notes, noun)
    _refuse_too_many(names, {i: reason for i, reason in bad.items() if i not in repeated}, max_bad, noun)
    good = np.array([i for i in range(len(classes)) if i not in bad])
    labels = sorted({classes[i] for i in good})
    if not len(good):
        raise ValueError(f"{source} has no usable {noun}. Left out:\n{_reasons(names, bad)}")
    if not target_names and len(labels) < 2:
        raise ValueError(_too_few_classes(source, names, labels, good, bad, noun))
    notes += more_notes
    clusters = np.full(len(classes), -1)
    clusters[good] = cluster(good)
    try:
        split_of = _assign_splits(columns, keys, clusters, good, fractions, seed, notes, noun)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    _check_splits(source, split_of, classes, None if target_names else labels, notes, noun)
    _note_near_duplicates(clusters, good, classes, split_of, notes, noun)
    notes += note_ambiguous_names(target_names or (name for name in classes if name is not None))
    targets = columns["target"] if target_names else classes
    if target_names:
        found, more = target_task(task, target_names, [targets[i] for i in good if split_of[i] == "train"])
        notes += more
    else:
        found = Classification(labels)
    datasets, paths, digest = _datasets(columns, keys, names, inputs, good, clusters, split_of, targets, found)
    weight = datasets["train"].sample_weight
    if weight is not None and not weight.any():
        raise ValueError(f"{source}: every weight in train is 0; expected some above 0")
    balanced = Balance("none") if target_names else resolve_balance(balance, datasets["train"].y, len(labels))
    _note_balance(balanced, labels, notes)
    return Splits(
        **datasets,
        task=found,
        files=paths,
        rejected=tuple(RejectedFile(printable(names[i]), bad[i]) for i in sorted(bad)),
        class_weight=balanced.class_weight,
        class_counts=balanced.class_counts,
        notes=tuple(notes),
        digest=digest,
    )


def _datasets(columns, keys, names, inputs, good, clusters, split_of, targets, task) -> tuple[dict, dict, str]:
    """Return the dataset and the names of each split, and the digest of all."""
    groups, weights = columns.get("group"), columns.get("weight")
    belongs = connected_groups(
        [keys[i] for i in good], None if groups is None else [groups[i] for i in good], clusters[good]
    )
    group_of = None if belongs is None else dict(zip(good.tolist(), belongs.tolist(), strict=True))
    content_keys = [int.from_bytes(bytes.fromhex(key[:16]), "little", signed=True) for key in keys]
    datasets, paths, digest = {}, {}, hashlib.sha256()
    for split in SPLITS:
        rows = [i for i in good if split_of[i] == split]
        paths[split] = tuple(names[i] for i in rows)
        for i in rows:
            row = (split, targets[i], keys[i], 1.0 if weights is None else weights[i])
            row += () if groups is None else (groups[i],)
            digest.update((repr(row) + "\n").encode("utf-8", "surrogateescape"))
        datasets[split] = None
        if rows:
            own_keys = {"keys": np.array([content_keys[i] for i in rows], np.int64)}
            datasets[split] = Dataset(
                **own_keys | inputs(rows),
                y=task.encode([targets[i] for i in rows]),
                sample_weight=None if weights is None else np.array([weights[i] for i in rows], np.float32),
                groups=None if group_of is None else np.array([group_of[i] for i in rows], np.int64),
            )
    return datasets, paths, digest.hexdigest()


def _note_balance(balanced, labels, notes) -> None:
    if weight := balanced.class_weight:
        rare, frequent = max(weight, key=weight.get), min(weight, key=weight.get)
        notes.append(
            f"The classes are uneven ({labels[frequent]!r} is the most frequent, {labels[rare]!r} the rarest): each "
            f"has a balanced weight, from {weight[frequent]:.2f} to {weight[rare]:.2f}."
        )
    if balanced.class_counts:
        notes.append("The model is adjusted for the frequencies of the classes after the training.")


def _reject_single(classes, given, keys, bad, notes, noun) -> None:
    """Reject the examples of a class with one usable example, which cannot be divided."""
    usable = [i for i in range(len(classes)) if i not in bad and (given is None or given[i] == "train")]
    distinct = Counter(name for name, _ in {(classes[i], keys[i]) for i in usable})
    for single in sorted(name for name, count in distinct.items() if count == 1):
        for i, name in enumerate(classes):
            if name == single and i not in bad:
                bad[i] = f"is of the class {name!r}, which has only one usable {noun}; at least two are needed"
        notes.append(f"The class {single!r} is left out: it has only one usable {noun}, and at least two are needed.")


def _refuse_too_many(names, bad, max_bad, noun) -> None:
    if len(bad) > max_bad * len(names):
        files = "files" if noun == "image" else f"{noun}s"
        raise ValueError(
            f"{len(bad)} of {len(names)} {files} are bad, more than the accepted {max_bad:.0%}; "
            f"repair or remove them, or raise max_bad (--max-bad):\n{_reasons(names, bad)}"
        )


def _reasons(names, bad) -> str:
    """List the reasons, the most frequent first, each with its first example and the number of others."""
    of_reason: dict[str, list[int]] = {}
    for i in sorted(bad):
        of_reason.setdefault(bad[i], []).append(i)
    rows = sorted(of_reason.values(), key=len, reverse=True)
    lines = [
        f"  {printable(names[first])} {bad[first]}" + (f"; {len(others)} others too" if others else "")
        for first, *others in rows[:5]
    ]
    more = sum(map(len, rows[5:]))
    return "\n".join(lines + [f"  and {more} more"] * bool(more))


def _too_few_classes(source, names, labels, good, bad, noun) -> str:
    text = (
        f"{source} has usable {noun}s of {len(labels)} class{'es' if len(labels) != 1 else ''} "
        f"({', '.join(labels) or 'none'}); expected two or more"
    )
    if source.is_dir() and labels:
        inside = {Path(names[i]).relative_to(source).parts[:-1] for i in good}
        if all(len(folders) > 1 for folders in inside) and len(inside) > 1:
            text += f". If the folders in {source / min(inside)[0]} are the classes, give that folder"
    return text + (f". Left out:\n{_reasons(names, bad)}" if bad else "")


def _assign_splits(columns, keys, clusters, good, fractions, seed, notes, noun) -> dict[int, str]:
    """Return the split of each good example."""
    given, groups, times = columns.get("split"), columns.get("group"), columns.get("time")
    split_of = {}
    rows = good  # those still to be split
    if given is not None:
        split_of = {i: given[i] for i in good}
        _note_split_groups(groups, split_of, notes)
        if "validation" in split_of.values():
            if times is not None:
                raise ValueError("train and validation are given, so there is nothing to split by time; leave one out")
            if "test" not in split_of.values():
                notes.append("There is no test split: the score on validation is optimistic, since it is tuned on.")
            return split_of
        rows = [i for i in good if given[i] == "train"]
        if len(rows) == len(good):
            notes.append(f"All {noun}s are given as train: validation and test are cut from them.")
        if "test" in split_of.values():
            total = fractions[0] + fractions[1]
            fractions = [fractions[0] / total, fractions[1] / total]
            notes.append(f"Validation is cut from train: {fractions[1]:.0%} of it.")
    row_keys, row_clusters = [keys[i] for i in rows], [clusters[i] for i in rows]
    row_groups = None if groups is None else [groups[i] for i in rows]
    if times is None:
        row_classes = [columns["label"][i] for i in rows]
        numbers = split_by_content(row_keys, row_classes, row_groups, row_clusters, fractions, seed)
    else:
        row_times = [times[i] for i in rows]
        numbers = split_by_time(row_times, row_keys, row_groups, row_clusters, fractions)
        ends = [max(time for time, k in zip(row_times, numbers, strict=True) if k == number) for number in (0, 1)]
        text = f"Split by time: train is up to {_format_time(ends[0])}, validation up to {_format_time(ends[1])}"
        notes.append(text + (", test after it." if 2 in numbers else "."))
    return split_of | {i: SPLITS[number] for i, number in zip(rows, numbers, strict=True)}


def _format_time(time) -> str:
    return time.isoformat().removesuffix("T00:00:00") if isinstance(time, datetime.datetime) else f"{time:.12g}"


def _check_splits(source, split_of, classes, labels, notes, noun) -> None:
    counts = Counter((split_of[i], classes[i]) for i in split_of)
    sizes = Counter(split_of.values())
    for split in ("validation", "test"):
        for name in labels or ():
            if counts[split, name] and not counts["train", name]:
                known = [other for other in labels if counts["train", other]]
                alike = next((group for group in similar_names([*known, name]) if name in group), None)
                raise ValueError(
                    f"{source}: the class {name!r} is in {split} ({counts[split, name]}) but not in train; "
                    "expected every class in train"
                    + (f". Train has {next(n for n in alike if n != name)!r}: use the same name" if alike else "")
                )
            if sizes[split] and not counts[split, name]:
                notes.append(f"No {noun} of the class {name!r} is in {split}.")
    if not sizes["validation"]:
        raise ValueError(
            f"{source}: no {noun} is left for validation, since the {noun}s of each class are near-duplicates or of "
            "one group; expected at least two different ones in a class"
        )
    parts = ", ".join(f"{sizes[split]} in {split}" for split in SPLITS if sizes[split])
    kinds = "" if labels is None else f" of {len(labels)} classes"
    notes.append(f"{len(split_of)} {noun}s{kinds}: {parts}.")


def _note_split_groups(groups, split_of, notes) -> None:
    """Note the groups that the given splits divide."""
    splits: dict[str, set] = {}
    for i, split in split_of.items():
        if groups is not None and groups[i] is not None:
            splits.setdefault(groups[i], set()).add(split)
    divided = sorted(group for group, parts in splits.items() if len(parts) > 1)
    if divided:
        groups_are = "1 group is" if len(divided) == 1 else f"{len(divided)} groups are"
        notes.append(
            f"{groups_are} in several splits, as given (first: {divided[0]!r}): the scores may be too optimistic."
        )


def _note_near_duplicates(clusters, good, classes, split_of, notes, noun) -> None:
    """Note how many near-duplicates there are, and which contradict one another."""
    members: dict[int, list[int]] = {}
    for i in good:
        members.setdefault(clusters[i], []).append(i)
    near = [indices for indices in members.values() if len(indices) > 1]
    if near:
        count = sum(map(len, near))
        notes.append(f"{count} {noun}s are near-duplicates of others, in {_clusters(len(near))}.")
    divided = [indices for indices in near if len({split_of[i] for i in indices}) > 1]
    if divided:
        notes.append(
            f"{_clusters(len(divided))} of near-duplicates {'is' if len(divided) == 1 else 'are'} in several splits, "
            f"as given (first: {split_of[divided[0][0]]} and others): the scores may be too optimistic."
        )
    mixed = [indices for indices in near if len({classes[i] for i in indices}) > 1]
    if mixed:
        notes.append(
            f"{_clusters(len(mixed))} of near-duplicates {'holds' if len(mixed) == 1 else 'hold'} different classes: "
            "check their labels."
        )


def _clusters(count) -> str:
    return "1 cluster" if count == 1 else f"{count} clusters"
