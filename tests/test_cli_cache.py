"""``thaw cache``: look at what is kept, and clear it."""

import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from thaw.cli import main
from thaw.data.decoded_cache import decoded
from thaw.jobs.cache_folder import cache_folder, clear_cache
from thaw.shipping.lock_run import lock_run
from thaw.tuning.activation_cache import ActivationCache


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache with three decoded pictures of two sizes, and five rows on one shelf."""
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    for data, size in ((b"a", 4), (b"b", 4), (b"c", 5)):
        decoded(data, hashlib.sha256(data).hexdigest(), size, decode=lambda _, n: np.zeros((n, n, 3), np.uint8))
    shelf = ActivationCache().shelf("5eed", {"model": "small", "sha256": "f" * 64}, [((2,), "float32")])
    ids = np.array([[i, 0] for i in range(5)])
    for part in (ids[:3], ids[3:]):
        with shelf.writer(len(part)) as writer:
            writer.add(part, [np.ones((len(part), 2), "float32")])
    return tmp_path


def thaw(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_rows_of_both_caches(kept):
    rows = {(row["what"], row["about"].get("image_size")): row for row in cache_folder()}
    assert rows["decoded", 4]["rows"] == 2
    assert rows["decoded", 4]["bytes"] + rows["decoded", 5]["bytes"] == size_of(kept / "decoded")
    assert rows["decoded", 5]["rows"] == 1
    shelf = rows["activations", None]
    assert shelf["about"]["model"] == "small"
    assert (shelf["rows"], shelf["pictures"]) == (5, 5)
    assert shelf["told"] == "small"
    assert shelf["bytes"] == size_of(kept / "activations") - (kept / "activations/5eed/about.json").stat().st_size
    assert shelf["path"] == str(kept / "activations" / "5eed")
    assert shelf["last_used"].startswith("20")
    assert shelf["last_used"].endswith("+00:00")
    assert cache_folder(kept) == cache_folder()


def test_a_table_and_json(kept, capsys):
    assert thaw("cache") == 0
    shown = capsys.readouterr().out
    assert "small" in shown
    assert "pictures of 4 x 4" in shown
    assert "ffff" not in shown
    assert thaw("cache", "--json") == 0
    assert json.loads(capsys.readouterr().out) == cache_folder()


def test_clearing_takes_what_is_ours_and_nothing_else(kept, capsys):
    (kept / "activations/5eed.runtime").write_text("tensorflow")
    strangers = [kept / "notes.txt", kept / "activations/notes.txt", kept / "decoded/ab/notes.txt"]
    for file in strangers:
        file.parent.mkdir(exist_ok=True)
        file.write_text("not ours")
    size = sum(row["bytes"] for row in cache_folder())
    assert thaw("cache", "--clear", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"freed": size}
    assert not list(kept.rglob("*.runtime"))
    assert sorted(f for f in kept.rglob("*") if f.is_file()) == sorted(strangers)
    assert cache_folder() == []
    assert thaw("cache") == 0
    assert "Nothing is kept." in capsys.readouterr().out


def test_clearing_asks(kept, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert thaw("cache", "--clear") == 2
    assert "add --yes" in capsys.readouterr().err
    for answer, left in (("n\n", 3), ("y\n", 0)):
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stdin)
        assert thaw("cache", "--clear") == (130 if left else 0)
        assert len(cache_folder()) == left


def test_a_damaged_shelf_can_be_looked_at_and_cleared(kept):
    (kept / "activations/5eed/about.json").write_text("{")
    for file in (kept / "activations/5eed").glob("*/segment.json"):
        file.write_text("{")
    row = next(row for row in cache_folder() if row["what"] == "activations")
    assert (row["about"], row["rows"]) == ({}, 0)
    assert clear_cache() > 0
    assert list((kept / "activations").iterdir()) == []


def test_no_keras_is_imported_for_it(kept):
    code = "import sys; sys.argv = ['thaw', 'cache']\nfrom thaw.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "decoded" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_kept_is_said_in_words(kept):
    about = {"model": "lite", "stages": 3, "behind": "block4_add", "precision": "float16"}
    shelf = ActivationCache().shelf("ab", about, [((2,), "float32")])
    ids = np.array([[7, 0], [7, 1], [8, 0], [8, 1]])
    with shelf.writer(4) as writer:
        writer.add(ids, [np.ones((4, 2), "float32")])
    row = next(row for row in cache_folder() if row["about"].get("model") == "lite")
    assert row["told"] == "lite, stages 1 to 3, to block4_add, half precision"
    assert (row["pictures"], row["rows"]) == (2, 4)
    assert next(row for row in cache_folder() if row["about"].get("image_size") == 5)["told"] == "pictures of 5 x 5"


def long_ago(folder):
    os.utime(folder, (0, 0))


def test_what_a_killed_comparison_left_is_cleared(kept):
    left = kept / "compare-x/activations/ab"
    left.mkdir(parents=True)
    (left / "0.npy").write_bytes(b"x" * 100)
    long_ago(kept / "compare-x")
    rows = cache_folder()
    assert [row["bytes"] for row in rows if row["told"] == "left by a comparison"] == [100]
    assert clear_cache() == sum(row["bytes"] for row in rows)
    assert not (kept / "compare-x").exists()


def test_a_comparison_is_shown_and_clearing_asks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "compare-x").mkdir()
    long_ago(tmp_path / "compare-x")
    assert thaw("cache") == 0
    assert "left by a comparison" in capsys.readouterr().out
    assert thaw("cache", "--clear") == 2  # nothing else is kept, and yet it asks
    assert "add --yes" in capsys.readouterr().err
    with lock_run(tmp_path / "compare-x"):
        assert thaw("cache") == 0
        assert "in use by a comparison" in capsys.readouterr().out
        assert thaw("cache", "--clear") == 0  # nothing to ask about
        assert "0.0 MB were freed. What a comparison has in use stays." in capsys.readouterr().err
        assert (tmp_path / "compare-x").exists()
    assert thaw("cache", "--clear", "--yes") == 0
    assert not (tmp_path / "compare-x").exists()
