"""The feature cache returns what was cached, within its budget, and never damaged."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thaw.features.store as module
from thaw.features.disk_budget import DiskBudget
from thaw.features.store import FeatureCache

ROOT = Path(__file__).parents[2]
KEY = "ab12"
TENSORS = [((2, 3), "float32"), ((), "int32")]
ROW = 16 + 24 + 4


def ids_of(*contents, variant=0):
    return np.array([(content, variant) for content in contents], np.int64).reshape(-1, 2)


def values(ids):
    """Features that a prefix would compute: any function of the id."""
    ids = np.asarray(ids).reshape(-1, 2)
    first = (ids[:, :1] * 10.0 + ids[:, 1:] + np.arange(6.0)).astype("float32").reshape(-1, 2, 3)
    return [first, (ids[:, 0] * 7 + ids[:, 1]).astype("int32")]


def fill(table, ids):
    with table.writer(len(ids)) as writer:
        writer.add(ids, values(ids))


def table_in(folder, key=KEY, budget=1e9, shard_rows=1000):
    cache = FeatureCache(folder.parent, budget, shard_bytes=shard_rows * ROW)
    return cache.table(key, {"model": "small"}, TENSORS)


def small_table_in(folder, key=KEY, budget=1e9):
    """A table with shards of four rows."""
    return table_in(folder, key, budget, shard_rows=4)


def check(table, ids):
    for rows, expected in zip(table.rows(ids), values(ids)):
        np.testing.assert_array_equal(np.asarray(rows), expected.reshape(*ids.shape[:-1], *expected.shape[1:]))


def shards(folder, key=KEY):
    return sorted(path for path in (Path(folder) / key).iterdir() if path.is_dir())


def everything(folder):
    return [p for p in Path(folder).iterdir() if p.name.endswith(".part") or p.name.startswith("trash")]


@pytest.fixture
def folder(tmp_path):
    """The folder of the tables, in a cache folder."""
    folder = tmp_path / "activations"
    folder.mkdir()
    return folder


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# What a process does in these tests: keeps rows one at a time, in shards of so many.
WRITER = f"""
import sys, time
import numpy as np
from thaw.features.store import FeatureCache
folder, begin, end, pause, shard_rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:])
table = FeatureCache(folder, 1e9, shard_bytes=shard_rows * {ROW}).table({KEY!r}, {{}}, {TENSORS!r})
with table.writer(end - begin) as writer:
    for i in range(begin, end):
        first = (i * 10.0 + np.arange(6.0)).astype("float32").reshape(1, 2, 3)
        writer.add(np.array([[i, 0]]), [first, np.array([i * 7], "int32")])
        print(i, flush=True)
        time.sleep(pause)
"""


def test_cache_returns_rows_in_another_object(folder):
    ids = ids_of(*range(11))
    fill(small_table_in(folder), ids)
    again = small_table_in(folder)
    assert [len(np.load(s / "ids.npy")) for s in shards(folder)] == [4, 4, 3]
    assert not again.missing(ids).any()
    check(again, ids[::-1])
    assert json.loads((folder / KEY / "about.json").read_text())["about"] == {"model": "small"}
    assert everything(folder) == []


def test_an_id_is_content_and_variant(folder):
    table = table_in(folder)
    fill(table, ids_of(5, variant=0))
    big = 2**63 - 1
    fill(table, ids_of(-(2**63), variant=big))
    wanted = np.array([[5, 0], [5, 1], [0, 5], [-(2**63), big], [-(2**63), 0]])
    assert table.missing(wanted).tolist() == [False, True, True, False, True]


def test_missing_then_added_then_there(folder):
    table = small_table_in(folder)
    assert table.missing(ids_of(1, 2)).tolist() == [True, True]
    fill(table, ids_of(2))
    assert table.missing(ids_of(1, 2)).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"1 of 2 rows are not in .*missing\(\)"):
        table.rows(ids_of(1, 2))
    fill(table, ids_of(1))
    check(table, ids_of(1, 2, 1))


def test_rows_of_views(folder):
    table = small_table_in(folder)
    ids = np.stack([ids_of(*range(7), variant=v) for v in (3, 9)])
    fill(table, ids.reshape(-1, 2))
    rows, numbers = table.rows(ids)
    assert rows.shape == (2, 7, 2, 3)
    assert rows.ndim == 4
    assert rows.dtype == np.float32
    assert rows.nbytes == 2 * 7 * 24
    assert len(rows) == 2
    assert numbers.shape == (2, 7)
    expected = values(ids)[0].reshape(2, 7, 2, 3)
    some = np.array([6, 0, 5, 5])
    np.testing.assert_array_equal(rows[1, some], expected[1, some])
    np.testing.assert_array_equal(rows[:, some], expected[:, some])
    np.testing.assert_array_equal(rows[np.int64(1), 4], expected[1, 4])
    np.testing.assert_array_equal(numbers[1], values(ids)[1].reshape(2, 7)[1])
    with pytest.raises(ValueError, match="always a copy"):
        np.asarray(rows, copy=False)
    assert np.asarray(rows, "float64").dtype == np.float64


@given(data=st.data())
def test_rows_against_a_dict(tmp_path_factory, data):
    """Any batches, duplicates among them, shards of any length, asked for in any order."""
    folder = tmp_path_factory.mktemp("rows")
    pair = st.tuples(st.integers(-3, 3), st.integers(0, 2))
    kept = {}
    for version, batch in enumerate(data.draw(st.lists(st.lists(pair, min_size=1, max_size=6), max_size=4))):
        cache = FeatureCache(folder, 1e9, shard_bytes=20 * data.draw(st.integers(1, 4)))
        with cache.table(KEY, {}, [((1,), "float32")]).writer(len(batch)) as writer:
            ids = np.array(batch, np.int64)
            writer.add(ids, [np.arange(len(batch), dtype="float32")[:, None] + 100 * version])
        for i, one in enumerate(batch):
            kept[one] = kept.get(one, set()) | {i + 100.0 * version}
    asked = data.draw(st.lists(pair, min_size=1, max_size=8))
    table = FeatureCache(folder, 1e9).table(KEY, {}, [((1,), "float32")])
    assert table.missing(np.array(asked, np.int64)).tolist() == [one not in kept for one in asked]
    there = [one for one in asked if one in kept]
    if there:
        rows = table.rows(np.array(there, np.int64))[0]
        assert rows.shape == (len(there), 1)
        whole = np.asarray(rows)
        for i, one in enumerate(there):
            assert whole[i, 0] in kept[one]  # of equal ids any version: in use they are equal too
        index = np.array(data.draw(st.lists(st.integers(-len(there), len(there) - 1), max_size=5)), np.int64)
        np.testing.assert_array_equal(rows[index], whole[index])
        np.testing.assert_array_equal(rows[1:], whole[1:])
        np.testing.assert_array_equal(rows[0], whole[0])


@pytest.mark.parametrize("name", ["ids.npy", "0.npy", "1.npy", "shard.json"])
@pytest.mark.parametrize("at", [0.0, 0.5, 0.999])
def test_cache_detects_a_flipped_byte_and_drops_only_its_shard(folder, name, at):
    ids = ids_of(*range(8))
    fill(small_table_in(folder), ids)
    file = shards(folder)[1] / name
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 0x11
    file.write_bytes(content)
    table = small_table_in(folder)
    assert table.missing(ids).tolist() == [False] * 4 + [True] * 4
    assert len(table.cache.notes) == 1
    assert "were damaged and are computed again" in table.cache.notes[0]
    assert len(shards(folder)) == 1
    fill(table, ids[4:])
    check(small_table_in(folder), ids)


@pytest.mark.parametrize("name", ["ids.npy", "0.npy", "shard.json"])
@pytest.mark.parametrize("how", ["gone", "cut", "longer"])
def test_cache_detects_an_incomplete_shard(folder, name, how):
    fill(table_in(folder), ids_of(1, 2))
    file = shards(folder)[0] / name
    content = file.read_bytes()
    file.unlink()
    if how != "gone":
        file.write_bytes(content[:-1] if how == "cut" else content + b"!")
    table = table_in(folder)
    assert table.missing(ids_of(1, 2)).all()
    assert len(table.cache.notes) == 1
    assert shards(folder) == []


def test_what_nobody_asks_for_is_not_read(folder):
    ids = ids_of(*range(8))
    fill(small_table_in(folder), ids)
    (shards(folder)[1] / "0.npy").write_bytes(b"")
    table = small_table_in(folder)
    assert not table.missing(ids[:4]).any()
    assert table.cache.notes == []


def test_an_error_that_says_nothing_against_the_data_removes_nothing(folder, monkeypatch):
    fill(table_in(folder), ids_of(1))

    def too_many(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        table_in(folder).missing(ids_of(1))
    monkeypatch.undo()
    check(table_in(folder), ids_of(1))


def test_killed_in_the_middle(folder):
    process = python(WRITER, folder.parent, 0, 1000, 0.001, 4)
    for _ in range(30):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    table = table_in(folder)
    missing = table.missing(ids_of(*range(1000)))
    kept = int((~missing).sum())
    assert kept >= 28
    assert kept % 4 == 0
    assert not missing[:kept].any()
    check(table, ids_of(*range(kept)))
    assert table.cache.notes == []


@pytest.mark.skipif(os.name != "posix", reason="asks whether a process lives")
def test_left_overs_of_killed_processes_go(folder):
    cache = FeatureCache(folder.parent, 1e9)
    gone = python("")
    gone.communicate()
    own = cache.disk.part()
    of_gone = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    elsewhere = own.with_name("ffffffff-" + of_gone.name.split("-", 1)[1])
    old = own.with_name("ffffffff-1-abcd.part")
    for path in (own, of_gone, elsewhere, old, folder / "trash-1"):
        path.mkdir()
        (path / "0.npy").write_bytes(b"half")
    file_of_gone = of_gone.with_name(of_gone.name.replace(".part", "0.part"))
    file_of_gone.write_text("half")
    os.utime(old, (time.time() - 3700,) * 2)
    FeatureCache(folder.parent, 1e9)
    assert sorted(folder.iterdir()) == sorted([own, elsewhere])


def test_two_processes_at_once(folder):
    """Both write the same rows and some of their own; nothing is lost and nothing half-written is left."""
    one, two = python(WRITER, folder.parent, 0, 40, 0.002, 4), python(WRITER, folder.parent, 20, 60, 0.002, 4)
    for process in (one, two):
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    check(table_in(folder), ids_of(*range(60)))
    assert everything(folder) == []


def test_an_exception_keeps_what_is_whole(folder):
    table = small_table_in(folder)

    def fail():
        with table.writer(10) as writer:
            writer.add(ids_of(*range(6)), values(ids_of(*range(6))))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert small_table_in(folder).missing(ids_of(*range(6))).tolist() == [False] * 4 + [True] * 2


def test_what_was_not_used_for_longest_goes_first(folder):
    ids = ids_of(*range(50))
    fill(table_in(folder, "a1"), ids)
    (_, size, _), *_ = DiskBudget(folder, 1e9).shards()
    room = 2 * size + module.SHARD_OVERHEAD_BYTES  # for two tables of fifty rows, and not for three
    fill(table_in(folder, "b2", room), ids)
    assert not table_in(folder, "a1", room).missing(ids).any()  # used again: now b2 is the older one
    fill(table_in(folder, "c3", room), ids)
    assert sorted(path.name for path in folder.iterdir()) == ["a1", "c3"]
    for key in ("a1", "c3"):
        check(table_in(folder, key), ids)


def test_cache_spares_tables_that_are_written_side_by_side(folder):
    """A table that is only read is evicted before them, and stays readable."""
    ids = ids_of(*range(8))
    fill(small_table_in(folder, "a1"), ids)
    size = sum(length for _, length, _ in DiskBudget(folder, 1e9).shards())
    cache = FeatureCache(folder.parent, 2 * size + module.SHARD_OVERHEAD_BYTES, shard_bytes=4 * ROW)
    early, one, two = (cache.table(key, {}, TENSORS) for key in ("a1", "b2", "c3"))
    assert cache.room() == cache.budget
    rows = early.rows(ids)[0]
    assert cache.room() == cache.budget - size
    with one.writer(8) as first, two.writer(8) as second:
        for half in (ids[:4], ids[4:]):
            first.add(half, values(half))
            second.add(half, values(half))
    assert sorted(path.name for path in folder.iterdir()) == ["b2", "c3"]
    np.testing.assert_array_equal(np.asarray(rows), values(ids)[0])
    check(small_table_in(folder, "b2"), ids)
    check(small_table_in(folder, "c3"), ids)
    with pytest.raises(OSError, match="this run alone needs more"):
        fill(two, ids_of(*range(20, 28)))


def test_cache_evicts_old_shards_of_the_same_table(folder):
    """All data sets of a user may share one table, which must not fill up."""
    fill(small_table_in(folder), ids_of(*range(8)))
    size = sum(length for _, length, _ in DiskBudget(folder, 1e9).shards())
    table = small_table_in(folder, budget=size + 4500)
    assert not table.missing(ids_of(4, 5, 6, 7)).any()
    fill(table, ids_of(*range(20, 24)))
    fill(table, ids_of(*range(24, 28)))
    expected = [True] * 4 + [False] * 4
    assert small_table_in(folder).missing(ids_of(*range(8))).tolist() == expected
    check(table, ids_of(4, 5, 6, 7, *range(20, 28)))


def test_what_alone_exceeds_the_budget_is_refused_beforehand(folder):
    table = table_in(folder, budget=1000)
    assert table.room() == 1000
    with pytest.raises(OSError, match="set THAW_CACHE_GB to a larger number"):
        table.writer(1000 // ROW + 1)
    with pytest.raises(OSError, match="this run alone needs more than"), table.writer(1) as writer:
        writer.add(ids_of(*range(100)), values(ids_of(*range(100))))
    assert shards(folder) == []


def test_room_counts_what_is_in_use(folder):
    ids = ids_of(*range(50))
    fill(table_in(folder), ids)
    size = sum(length for _, length, _ in DiskBudget(folder, 1e9).shards())
    table = table_in(folder, budget=10_000)
    assert table.room() == 10_000
    table.missing(ids[:1])
    assert table.room() == 10_000 - size


def test_a_small_disk_bounds_the_room(folder, monkeypatch):
    fill(table_in(folder, "0a"), ids_of(*range(50)))
    size = sum(length for _, length, _ in DiskBudget(folder, 1e9).shards())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 5000))
    assert table_in(folder).room() == 4000 + size
    assert FeatureCache(folder.parent).budget == (5000 + size) / 2


def test_make_room_on_a_disk_that_is_full_of_other_things(folder, monkeypatch):
    fill(table_in(folder, "0a"), ids_of(*range(50)))
    disk = DiskBudget(folder, 1e9)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 4000))
    disk.make_room(4000, in_use=set())
    assert len(disk.shards()) == 1  # there is room as it is
    with pytest.raises(OSError, match=r"the disk is full at .*: free some space, or set THAW_CACHE"):
        disk.make_room(4001, in_use=set())
    assert disk.shards() == []


def test_the_budget_follows_the_environment(folder, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_GB", "0.5")
    assert FeatureCache(folder.parent).budget == 0.5e9
    assert FeatureCache(folder.parent, 7).budget == 7
    for wrong in ("many", "-1", "nan", "inf"):
        monkeypatch.setenv("THAW_CACHE_GB", wrong)
        with pytest.raises(ValueError, match=f"THAW_CACHE_GB is '{wrong}'; expected a number of GB"):
            FeatureCache(folder.parent)


def test_the_default_folder_follows_the_environment(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("THAW_CACHE", raising=False)
    assert FeatureCache().folder == folder / "home/.cache/thaw/activations"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    assert FeatureCache().folder == folder / "xdg/thaw/activations"
    monkeypatch.setenv("THAW_CACHE", str(folder / "own"))
    assert FeatureCache().folder == folder / "own/activations"
    assert not (folder / "own").exists()  # to look leaves nothing behind


def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing(folder, monkeypatch):
    table = small_table_in(folder)
    fill(table, ids_of(*range(4)))
    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"the disk is full at .*: free some space, or set THAW_CACHE"):
        fill(table, ids_of(*range(4, 8)))
    assert everything(folder) == []
    assert len(shards(folder)) == 1
    check(table, ids_of(*range(4)))


def test_a_real_limit_on_the_size_of_files(folder):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
    process = python(code + WRITER, folder.parent, 0, 100, 0, 400)
    _, said = process.communicate()
    assert "OSError: [Errno 27] the disk is full at" in said
    assert shards(folder) == []
    assert everything(folder) == []


def test_a_cache_that_cannot_be_written(folder):
    (folder / KEY).write_text("in the way")
    with pytest.raises(OSError, match=r"the feature cache cannot be written at .*activations"):
        table_in(folder)


def test_what_was_found_stays_readable_when_another_process_removes_it(folder):
    ids = ids_of(*range(6))
    fill(small_table_in(folder), ids)
    table = small_table_in(folder)
    assert not table.missing(ids[:4]).any()
    assert DiskBudget(folder, 1e9).remove(folder / KEY)
    check(table, ids[:4])
    assert table.missing(ids).tolist() == [False] * 4 + [True] * 2
    assert table.cache.notes == []  # removed is not damaged


def test_what_is_removed_while_it_is_being_opened_is_missing_and_not_damaged(folder, monkeypatch):
    ids = ids_of(1, 2)
    fill(table_in(folder), ids)
    table, read, removed = table_in(folder), np.load, []

    def read_and_remove(file, **options):
        """Another process removes the table between its list of ids and its rows."""
        rows = read(file, **options)
        removed.append((file.name, DiskBudget(folder, 1e9).remove(folder / KEY)))
        return rows

    monkeypatch.setattr(np, "load", read_and_remove)
    assert table.missing(ids).all()
    assert removed == [("ids.npy", True)]
    assert table.cache.notes == []


def test_more_rows_than_announced(folder):
    table, ids = small_table_in(folder), ids_of(*range(7))
    with table.writer(2) as writer:
        for i in range(7):
            writer.add(ids[i : i + 1], values(ids[i : i + 1]))
    check(small_table_in(folder), ids)


def test_writer_creates_its_table_again_after_removal(folder):
    table, ids = small_table_in(folder), ids_of(*range(8))
    with table.writer(8) as writer:
        writer.add(ids[:4], values(ids[:4]))
        DiskBudget(folder, 1e9).remove(folder / KEY)
        writer.add(ids[4:], values(ids[4:]))
    check(table, ids)
    again = small_table_in(folder)
    assert again.missing(ids).tolist() == [True] * 4 + [False] * 4
    check(again, ids[4:])


def test_many_threads_read_at_once(folder):
    ids = ids_of(*range(40))
    fill(small_table_in(folder), ids)
    rows, expected, wrong = small_table_in(folder).rows(ids)[0], values(ids)[0], []

    def read(seed):
        draw = np.random.default_rng(seed)
        for _ in range(200):
            index = draw.integers(0, 40, 8)
            if not np.array_equal(rows[index], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_mistakes_are_said(folder):
    cache = FeatureCache(folder.parent, 1e9)
    with pytest.raises(ValueError, match="expected up to 128 hex digits"):
        cache.table("../up", {}, TENSORS)
    with pytest.raises(ValueError, match="cannot be cached"):
        cache.table(KEY, {}, [((2,), "object")])
    with pytest.raises(ValueError, match="cannot be cached"):
        cache.table(KEY, {}, [((None, 2), "float32")])
    with pytest.raises(ValueError, match="expected a number of bytes"):
        FeatureCache(folder.parent, -1)
    table = cache.table(KEY, {}, TENSORS)
    with pytest.raises(ValueError, match="expected a key of its own"):
        cache.table(KEY, {}, TENSORS[:1])
    with pytest.raises(ValueError, match="content and version"):
        table.missing(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="content and version"):
        table.missing(np.zeros(2, np.int64))
    with table.writer(2) as writer:
        with pytest.raises(ValueError, match="came with arrays of shape"):
            writer.add(ids_of(1, 2), values(ids_of(1)))
        with pytest.raises(ValueError, match="expected float32"):
            writer.add(ids_of(1), [values(ids_of(1))[0].astype("float64"), values(ids_of(1))[1]])
    assert shards(folder) == []


@pytest.mark.parametrize("about", ["{", "[]", '{"format": 0, "tensors": []}'])
def test_table_of_another_format_is_replaced(folder, about):
    table_in(folder)
    (folder / KEY / "about.json").write_text(about)
    table = table_in(folder)
    fill(table, ids_of(3))
    assert json.loads((folder / KEY / "about.json").read_text())["format"] == module.FORMAT_VERSION
    check(table_in(folder), ids_of(3))
