"""Find empty, damaged, repeated and foreign texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_PIECES_A_WORD = 2.0  # of texts in the language of a tokenizer; English ones have 1.1 to 1.4
MAX_UNKNOWN = 0.1  # fraction of the words
MIN_WORDS = 4  # in shorter texts a name alone decides
MIN_FOREIGN = 0.01  # fraction of the texts from which it is said; names and numbers are cut into pieces in any language
# A text in two splits stays in the first of these: leaving it out of the test would change what is measured.
_SPLIT_PRIORITY = ("test", "validation", "train")
# UTF-8 that was read as Windows-1252: a letter for the first byte, and letters of the upper half behind it.
_UPPER = "\u0080-\u00bf" + re.escape("".join(bytes([b]).decode("cp1252", "ignore") for b in range(0x80, 0xA0)))
_MISREAD = re.compile(f"[\u00c2-\u00df][{_UPPER}]|[\u00e0-\u00ef][{_UPPER}]{{2}}|[\u00f0-\u00f4][{_UPPER}]{{3}}")


@dataclass(frozen=True, eq=False, kw_only=True)
class TextChecks:
    """The result of checking ``n`` texts, in the order given.

    Args:
        keys: SHA-256 of each text in hex, without capitals and the number of spaces, which change no token.
        clusters: int64 ``(n,)``: texts that differ in nothing but capitals, spaces and punctuation share a number.
        bad: dict from the index of an empty text to the reason.
        repeated: dict from the index of a text that is in a later split too to the reason.
        notes: sentences for the user.
    """

    keys: list[str]
    clusters: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    repeated: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_texts(
    texts: Sequence[str],
    labels: Sequence[str | None],
    splits: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> TextChecks:
    """Find texts that are empty, in several splits or classes, or were read in a wrong encoding.

    Of a text in two splits given by the user, the copies in test are used, else those in validation, so that nothing
    is measured on what was learned. A text in two classes stays, for short ones often are; a note says how many.

    Args:
        texts: ``n`` texts.
        labels: class of each, ``None`` for none.
        splits: "train", "validation" or "test" for each; ``None`` (default) where none are given.
        names: what each is called in messages; ``None`` (default) for its number.

    Returns:
        :class:`TextChecks`.

    Example:
        >>> checks = check_texts(["Good", " ", "good!"], ["a", "a", "b"])
        >>> checks.bad, checks.clusters.tolist()
        ({1: 'is empty'}, [0, 1, 0])
        >>> check_texts(["a cafÃ© here"], ["x"]).notes[0]
        "Texts that were saved or read in a wrong encoding: 1, such as text 0 ('Ã©' for 'é'); repair the file."
    """
    names = [f"text {i}" for i in range(len(texts))] if names is None else names
    plain = [" ".join(unicodedata.normalize("NFC", text).casefold().split()) for text in texts]
    keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in plain]
    bad = {i: "is empty" for i, text in enumerate(plain) if not text}
    numbers: dict[str, int] = {}
    clusters = []
    for i, text in enumerate(plain):
        letters = " ".join(re.findall(r"\w+", text)) or text
        clusters.append(i if i in bad else numbers.setdefault(letters, i))
    repeated = {} if splits is None else _find_repeated(keys, splits, bad)
    notes = [*_note_repeated(repeated), *_note_classes(keys, labels, names, bad), *_note_encoding(texts, names)]
    if bad:
        notes.insert(0, f"Empty texts left out: {len(bad)}, such as {names[min(bad)]}.")
    return TextChecks(keys=keys, clusters=np.array(clusters, np.int64), bad=bad, repeated=repeated, notes=tuple(notes))


def _find_repeated(keys, splits, bad) -> dict[int, str]:
    first: dict[str, str] = {}
    for split in _SPLIT_PRIORITY:
        for i, key in enumerate(keys):
            if splits[i] == split and i not in bad:
                first.setdefault(key, split)
    return {
        i: f"is in {splits[i]} the same text as in {first[key]}, which is used"
        for i, key in enumerate(keys)
        if i not in bad and splits[i] != first.get(key, splits[i])
    }


def _note_repeated(repeated) -> list[str]:
    if not repeated:
        return []
    return [f"Texts left out, because they are in another split too: {len(repeated)}, the first of them "
            f"{next(iter(repeated.values()))}."]  # fmt: skip


def _note_classes(keys, labels, names, bad) -> list[str]:
    classes: dict[str, set] = {}
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if i not in bad and label is not None:
            classes.setdefault(key, set()).add(label)
    mixed = [key for key, found in classes.items() if len(found) > 1]
    if not mixed:
        return []
    first = names[keys.index(mixed[0])]
    listed = " and ".join(map(repr, sorted(classes[mixed[0]])))
    return [f"Texts in several classes: {len(mixed)}, such as {first} ({listed}); check their labels."]


def _note_encoding(texts, names) -> list[str]:
    found = [(i, *what) for i, text in enumerate(texts) if (what := misread(text)) is not None]
    notes = []
    if found:
        i, wrong, right = found[0]
        notes.append(
            f"Texts that were saved or read in a wrong encoding: {len(found)}, such as {names[i]} ({wrong!r} for "
            f"{right!r}); repair the file."
        )
    lost = [i for i, text in enumerate(texts) if "\ufffd" in text]
    if lost:
        notes.append(
            f"Texts with the sign for a letter that was lost (U+FFFD): {len(lost)}, such as {names[lost[0]]}; save "
            "them again from where they come from."
        )
    return notes


def misread(text: str) -> tuple[str, str] | None:
    """Find letters of UTF-8 that were read as Windows-1252.

    Args:
        text: any text.

    Returns:
        The first such letters and what they stand for; ``None`` where there are none.

    Example:
        >>> misread("donâ€™t"), misread("Ärger")
        (('â€™', '’'), None)
    """
    if text.isascii():
        return None
    for match in _MISREAD.finditer(text):
        try:
            # The five bytes that Windows-1252 lacks are control characters there.
            data = b"".join(
                c.encode("cp1252") if c not in "\x81\x8d\x8f\x90\x9d" else bytes([ord(c)]) for c in match[0]
            )
            return match[0], data.decode("utf-8")
        except UnicodeError:
            continue
    return None


def note_foreign(encodings: Sequence, unknown: str | None, names: Sequence[str]) -> list[str]:
    """Return a note on texts that a tokenizer cuts into more than two pieces a word, or does not know; or nothing.

    Args:
        encodings: ``tokenizers.Encoding`` of each text, not truncated.
        unknown: the piece for what the tokenizer does not know; ``None`` where it has none.
        names: what each text is called.

    Example:
        >>> note_foreign([], "[UNK]", [])
        []
    """
    foreign, counted = [], 0
    for i, encoding in enumerate(encodings):
        pieces = [word for word in encoding.word_ids if word is not None]
        words = len(set(pieces))
        if words < MIN_WORDS:
            continue
        counted += 1
        lost = encoding.tokens.count(unknown)
        if len(pieces) > MAX_PIECES_A_WORD * words or lost > MAX_UNKNOWN * words:
            foreign.append(i)
    if not foreign or len(foreign) < MIN_FOREIGN * counted:
        return []
    return [
        f"Texts that the tokenizer cuts into more than {MAX_PIECES_A_WORD:.0f} pieces a word, or has no pieces for: "
        f"{len(foreign)} of {counted}, such as {names[foreign[0]]}; a backbone learns little from a language that "
        "it was not trained on, and all-MiniLM-L6-v2 was trained on English."
    ]
