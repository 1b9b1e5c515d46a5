"""split_by_content and split_by_time: properties, and splits computed by hand."""

import hashlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

from thaw.data.splits import split_by_content, split_by_time


def key(i):
    return hashlib.sha256(str(i).encode()).hexdigest()


@st.composite
def tables(draw, most=40):
    n = draw(st.integers(1, most))
    numbers = draw(st.lists(st.integers(0, 10**6), min_size=n, max_size=n))
    labels = draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    groups = draw(st.lists(st.none() | st.sampled_from(["g1", "g2", "g3", "g4"]), min_size=n, max_size=n))
    clusters = draw(st.lists(st.integers(0, 30), min_size=n, max_size=n))
    return [key(i) for i in numbers], labels, groups, clusters


@given(tables(), st.integers(0, 3))
def test_every_example_has_a_split_and_companies_stay_together(table, seed):
    keys, _labels, groups, clusters = table
    part = split_by_content(*table, seed=seed)
    assert part.shape == (len(keys),)
    assert set(part) <= {0, 1, 2}
    for column in (keys, groups, clusters):
        for value in set(column) - {None}:
            assert len({part[i] for i, other in enumerate(column) if other == value}) == 1


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(table, random):
    order = list(range(len(table[0])))
    random.shuffle(order)
    shuffled = [[column[i] for i in order] for column in table]
    assert split_by_content(*shuffled).tolist() == split_by_content(*table)[order].tolist()


@given(tables())
def test_every_class_is_in_train_and_where_it_has_enough_companies_everywhere(table):
    keys, labels, _, _ = table
    part = split_by_content(keys, labels)
    for label in set(labels):
        companies = {keys[i] for i in range(len(keys)) if labels[i] == label}
        shared = {keys[i] for i in range(len(keys)) if labels[i] != label}
        here = {part[i] for i in range(len(keys)) if labels[i] == label}
        assert 0 in here
        # Companies of one class only can be spared without thought for others.
        if not companies & shared:
            assert here >= set(range(min(3, len(companies))))


@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_adding_files_moves_no_others(start, added, grouped):
    keys = [key(start + i) for i in range(120 + added)]
    labels = ["ab"[i % 2] for i in range(len(keys))]
    groups = [f"{start} {i % 90 // 2}" for i in range(len(keys))] if grouped else None
    before = split_by_content(keys[:120], labels[:120], groups and groups[:120])
    after = split_by_content(keys, labels, groups)
    for label in "ab":
        for split in range(3):
            here = [i for i in range(120) if labels[i] == label and before[i] == split]
            # With two companies or more in each split, none was moved there to fill it.
            assume(len({groups[i] if groups else i for i in here}) > 1)
    assert before.tolist() == after[:120].tolist()


def test_proportions_are_within_binomial_bounds_in_every_class():
    n = 6000
    labels = ["abc"[i % 3] for i in range(n)]
    part = split_by_content([key(i) for i in range(n)], labels)
    for label in "abc":
        inside = part[np.array(labels) == label]
        for split, share in enumerate((0.7, 0.15, 0.15)):
            low, high = binom.interval(0.9999, len(inside), share)
            assert low <= (inside == split).sum() <= high


def test_a_place_worked_out_by_hand():
    name = hashlib.sha256(f"key {key(1)}".encode()).digest()
    place = int.from_bytes(hashlib.sha256(b"7 " + name).digest()[:8], "big") / 2**64
    others = [key(i) for i in range(2, 60)]
    part = split_by_content([key(1), *others], ["a"] * 59, fractions=(place + 1e-9, 1 - place - 1e-9), seed=7)
    assert part[0] == 0
    part = split_by_content([key(1), *others], ["a"] * 59, fractions=(place - 1e-9, 1 - place + 1e-9), seed=7)
    assert part[0] == 1


def test_the_seed_changes_the_split():
    keys = [key(i) for i in range(50)]
    one, two = (split_by_content(keys, ["a"] * 50, seed=seed).tolist() for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize("patient", ["anna", "bert", "cleo", "dora", "emil", "fritz"])
def test_a_user_group_keeps_its_place_whatever_joins_it(patient):
    background = [key(i) for i in range(1000, 1060)]
    places = set()
    for joined in range(1, 30):
        keys = background + [key(i) for i in range(joined)]
        # The group has one picture; others look like it, and come with content keys of their own.
        groups = [None] * 60 + [patient] + [None] * (joined - 1)
        clusters = [*range(60)] + [99] * joined
        places.add(int(split_by_content(keys, ["a"] * len(keys), groups, clusters)[-1]))
    assert len(places) == 1


def test_few_companies_fill_train_first_then_validation():
    for start in range(20):
        keys = [key(start * 10 + i) for i in range(3)]
        assert split_by_content(keys[:1], ["a"]).tolist() == [0]
        assert sorted(split_by_content(keys[:2], ["a"] * 2).tolist()) == [0, 1]
        assert sorted(split_by_content(keys, ["a"] * 3).tolist()) == [0, 1, 2]


def test_a_company_of_several_classes_goes_to_train_when_a_class_has_no_other():
    for start in range(20):
        keys = [key(start * 100 + i) for i in range(12)]
        part = split_by_content(keys, ["a", "b"] + ["a"] * 10, ["g", "g"] + [None] * 10)
        assert part[0] == part[1] == 0
        assert set(part) == {0, 1, 2}


def test_a_share_of_nothing_stays_empty():
    part = split_by_content([key(i) for i in range(100)], ["a"] * 100, fractions=(0.5, 0.5, 0))
    assert set(part) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["a"]}, "There are 2 keys and 1 labels; expected one for each"),
        ({"groups": ["a"]}, "There are 2 keys and 1 groups; expected one for each"),
        ({"clusters": [1, 2, 3]}, "There are 2 keys and 3 clusters; expected one for each"),
        (
            {"fractions": (0.5, 0.4)},
            r"The fractions of the splits are \(0.5, 0.4\); expected numbers from 0 to 1",
        ),
        ({"fractions": (1.5, -0.5)}, "expected numbers from 0 to 1 that sum to 1"),
        ({"fractions": (float("nan"), 1)}, "expected numbers from 0 to 1 that sum to 1"),
    ],
)
def test_misfits(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_by_content(**({"keys": [key(0), key(1)], "labels": ["a", "b"]} | arguments))


def test_nothing_to_split():
    assert split_by_content([], []).tolist() == []


def test_split_by_time_takes_the_latest_for_the_test():
    """Ten moments: 0.7 ends after the seventh; 0.85 lies between 0.8 and 0.9, and the first of the two is taken."""
    times = [30, 10, 20, 100, 90, 40, 50, 80, 60, 70]
    assert split_by_time(times, [key(i) for i in range(10)]).tolist() == [0, 0, 0, 2, 2, 0, 0, 1, 0, 0]


def test_split_by_time_does_not_divide_a_moment():
    times = [1, 1, 1, 2, 2, 2, 3, 3]  # up to 1: 3/8, up to 2: 6/8
    assert (
        split_by_time(times, [key(i) for i in range(8)], fractions=(0.5, 0.25, 0.25)).tolist()
        == [0] * 3 + [1] * 3 + [2] * 2
    )


def test_split_by_time_keeps_a_group_in_the_split_of_its_latest_row():
    """Patient p was there in 2001 and in 2010; in train it would bring what was seen in the test's time."""
    times = [2001, 2002, 2003, 2004, 2010, 2009]
    groups = ["p", None, None, None, "p", None]
    split = split_by_time(times, [key(i) for i in range(6)], groups, fractions=(0.5, 0.25, 0.25))
    # Components by their latest row: 2002, 2003, 2004 (3/6), 2009 (4/6), p in 2010 (6/6).
    assert split.tolist() == [2, 0, 0, 0, 2, 1]


def test_split_by_time_keeps_near_duplicates_and_copies_together():
    keys = [key(0), key(1), key(2), key(0), key(4), key(5)]
    split = split_by_time([1, 2, 3, 4, 5, 6], keys, clusters=[0, 1, 2, 3, 4, 2], fractions=(0.4, 0.3, 0.3))
    # Components: 1 at 2 (1/6), 0 and 3 at 4 (3/6), 4 at 5 (4/6), 2 and 5 at 6 (6/6).
    assert split.tolist() == [0, 0, 2, 0, 1, 2]


def test_split_by_time_into_two():
    assert split_by_time([3, 1, 2, 4], list("abcd"), fractions=(0.75, 0.25, 0)).tolist() == [0, 0, 0, 1]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.none() | st.sampled_from("pqrst")), min_size=3, max_size=40),
    st.floats(0.1, 0.8),
)
def test_split_by_time_trains_on_nothing_later_than_its_end(rows, train):
    times, groups = [time for time, _ in rows], [group for _, group in rows]
    keys = [key(i) for i in range(len(rows))]
    fractions = (train, (1 - train) / 2, 1 - train - (1 - train) / 2)
    latest = [max(time for time, g in rows if g == group) if group else time for time, group in rows]
    assume(len(set(latest)) >= 3)
    split = split_by_time(times, keys, groups, fractions=fractions)
    assert set(split) == {0, 1, 2}
    alone = [i for i in range(len(rows)) if groups[i] is None]
    for earlier in (0, 1):
        end = max(times[i] for i in range(len(rows)) if split[i] <= earlier)
        assert all(split[i] > earlier or times[i] <= end for i in alone)
        assert all(times[i] > end for i in alone if split[i] > earlier)
    for group in set(groups) - {None}:
        assert len({split[i] for i in range(len(rows)) if groups[i] == group}) == 1


def test_split_by_time_needs_a_moment_for_each_split():
    with pytest.raises(ValueError, match=r"examples have 2 different times.*; expected at least 3, one for each"):
        split_by_time([1, 2, 2, 1], list("abcd"))
    assert split_by_time([], []).tolist() == []
