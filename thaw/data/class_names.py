"""Names of classes as people write them: which are one class, and which look so alike that one may be meant."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Soft hyphen, zero-width space, word joiner, byte order mark, marks of the writing direction. The joiners U+200C and
# U+200D are not among them: words of some languages, and emoji, are written with them.
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_JOINERS = re.compile("[\u200c\u200d\ufe0e\ufe0f]")
# What spreadsheets and programs write where there is no value.
_GAPS = {"nan", "null", "n/a", "#n/a", "<na>", "#ref!", "#value!"}


def class_name(text: str) -> str:
    """Return the name of a class without what nobody sees.

    That is: composed characters (Unicode's form NFC), no invisible ones, the plain space for every other one, and no
    spaces at the ends.

    Args:
        text: as it is written in a table, or the name of a folder.

    Example:
        >>> class_name("A\\u0308pfel\\u00a0"), class_name("\\ufeffbig\\u00a0cat")
        ('Äpfel', 'big cat')
    """
    if text.isascii():
        return text.strip()
    text = _INVISIBLE.sub("", text)
    text = "".join(" " if unicodedata.category(letter) == "Zs" else letter for letter in text)
    return unicodedata.normalize("NFC", text).strip()


def note_merged(spellings: Iterable[str]) -> list[str]:
    """Return a note on classes that are written in several ways which look the same, or nothing.

    Args:
        spellings: names as they are written.

    Example:
        >>> note_merged(["cat", "cat ", "dog"])
        ["The names 'cat' and 'cat ' look the same and are one class."]
        >>> note_merged(["cat", "dog"])
        []
    """
    of_name: dict[str, list[str]] = {}
    for text in sorted(set(spellings)):
        of_name.setdefault(class_name(text), []).append(text)
    merged = [texts for texts in of_name.values() if len(texts) > 1]
    if not merged:
        return []
    # In ASCII, for the difference would not be seen.
    first = " and ".join(map(ascii, merged[0]))
    if len(merged) == 1:
        return [f"The names {first} look the same and are one class."]
    return [f"{len(merged)} classes are written in several ways that look the same, such as {first}; each is one."]


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Group the names that differ only in form: capitals, spaces, hyphens, quotes, or how a number is written.

    Args:
        names: of classes.

    Returns:
        Groups of two or more, each sorted.

    Example:
        >>> similar_names(["0", "0.0", "Polar bear", "polar_bear", "dog"])
        [['0', '0.0'], ['Polar bear', 'polar_bear']]
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_spelling_key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def note_ambiguous_names(names: Iterable[str]) -> list[str]:
    """Return notes on names that may not be meant: that differ only in form, or stand for a missing value.

    Args:
        names: of classes.

    Example:
        >>> note_ambiguous_names(["Cat", "cat", "nan"])[1]
        "The class 'nan' may stand for a missing label: if so, leave its images out."
    """
    notes = []
    for group in similar_names(names):
        listed = " and ".join(map(repr, group))
        notes.append(f"The classes {listed} differ in form only: if they are one, use one name.")
    for name in sorted(set(names)):
        if name.lower() in _GAPS:
            notes.append(f"The class {name!r} may stand for a missing label: if so, leave its images out.")
    return notes


def _spelling_key(name: str) -> str:
    """What is left of a name without its form; two names that share it may be one class."""
    text = _JOINERS.sub("", unicodedata.normalize("NFKC", name).casefold())
    text = text.strip("\"'` ") or text
    # Zeros are removed afterwards: several stars in a row that match the same digits would take cubic time.
    number = re.fullmatch(r"\+?(-?)(\d*)(?:\.(\d*))?", text)
    if number and any(letter.isdigit() for letter in text):
        sign, whole, fraction = number[1], number[2].lstrip("0"), (number[3] or "").rstrip("0")
        return f"{sign}{whole or 0}" + (f".{fraction}" if fraction else "")
    # Between two digits a hyphen is more than form: 1-2 is not 12.
    plain = re.sub(r"[\s_-]+", " ", re.sub(r"(?<!\d)[\s_-]+|[\s_-]+(?!\d)", "", text))
    return plain or text
