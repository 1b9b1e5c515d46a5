"""Names of classes: which are one, and which are pointed out."""

import signal
import unicodedata

import pytest

from thaw.data.class_names import class_name, note_ambiguous_names, note_merged, similar_names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cat ", "cat"),
        ("\u00a0cat\u3000", "cat"),
        ("\ufeffcat\u200b", "cat"),
        ("big\u00a0cat", "big cat"),
        ("big\u2009cat", "big cat"),
        ("co\u00adoperate", "cooperate"),
        ("\u202eabc\u202c", "abc"),
        (unicodedata.normalize("NFD", "Äpfel"), "Äpfel"),
        (unicodedata.normalize("NFD", "한국어"), "한국어"),
        ("a\u200b\u0308", "ä"),
        # What is seen, or has a meaning, stays.
        ("two  spaces", "two  spaces"),
        ("two\nlines", "two\nlines"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ﬁ ½ ２", "ﬁ ½ ２"),
        ("0.0", "0.0"),
        ("\u200b", ""),
    ],
)
def test_class_name(text, name):
    assert class_name(text) == name
    assert class_name(name) == name


ALIKE = [
    ("0", "0.0"),
    ("1", "01"),
    ("1.5", "1.50"),
    ("+1", "1"),
    ("-2", "-2.0"),
    ("007.50", "7.5"),
    (".5", "0.5"),
    ("0" * 3000 + "1", "1." + "0" * 3000),
    ("True", "true"),
    ("Cat", "cat"),
    ("Straße", "STRASSE"),
    ("polar bear", "polar_bear"),
    ("New York", "NewYork"),
    ("'cat'", "cat"),
    ("ﬁsh", "fish"),
    ("２", "2"),
    ("❤", "❤\ufe0f"),
    ("می\u200cخواهم", "میخواهم"),
]
DIFFERENT = [
    ("1-2", "12"),
    ("1 2", "12"),
    ("-1", "1"),
    ("10", "1"),
    ("1.05", "1.5"),
    ("-", "_"),
    ("'", '"'),
    ("a.", "a"),
]
DIFFERENT += [("12345678901234567890123456789012", "12345678901234567890123456789013")]


def test_names_that_differ_in_form():
    assert [similar_names(pair) for pair in ALIKE] == [[sorted(pair)] for pair in ALIKE]
    assert [similar_names(pair) for pair in DIFFERENT] == [[] for _ in DIFFERENT]
    assert note_ambiguous_names(["0", "dog", "0.0"]) == [
        "The classes '0' and '0.0' differ in form only: if they are one, use one name."
    ]


def test_long_numbers_take_little_time():
    """No letter decides before the end whether it is a number."""

    def too_slow(*_):
        raise AssertionError("names of 50,000 digits took two seconds")

    names = [digit * 50_000 + end for digit in "01" for end in ("x", ".x", ".0x", "." + "0" * 50_000 + "x")]
    before = signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2)  # of this process alone
    try:
        assert similar_names(names) == []
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_a_class_called_nan():
    assert note_ambiguous_names(["cat", "nan"]) == [
        "The class 'nan' may stand for a missing label: if so, leave its images out."
    ]


def test_merged_names_are_noted_once():
    assert note_merged(["cat", "dog"]) == []
    assert note_merged(["cat", "cat "]) == ["The names 'cat' and 'cat ' look the same and are one class."]
    assert note_merged(["cat", "cat ", "dog", "\u200bdog"]) == [
        "2 classes are written in several ways that look the same, such as 'cat' and 'cat '; each is one."
    ]
