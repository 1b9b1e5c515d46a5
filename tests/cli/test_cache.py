"""``thaw cache``: look at what is kept, and clear it."""

import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from thaw._files import lock_run
from thaw.cli.main import main
from thaw.data.image_decoding import cache_decoded
from thaw.features.cache_folder import clear_cache, list_cache
from thaw.features.store import FeatureCache


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache with three decoded images of two sizes, and five rows on one table."""
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    for data, size in ((b"a", 4), (b"b", 4), (b"c", 5)):
        cache_decoded(data, hashlib.sha256(data).hexdigest(), size, decode=lambda _, n: np.zeros((n, n, 3), np.uint8))
    table = FeatureCache().table("5eed", {"model": "small", "sha256": "f" * 64}, [((2,), "float32")])
    ids = np.array([[i, 0] for i in range(5)])
    for part in (ids[:3], ids[3:]):
        with table.writer(len(part)) as writer:
            writer.add(part, [np.ones((len(part), 2), "float32")])
    return tmp_path


def thaw(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_rows_of_both_caches(kept):
    rows = {(row["what"], row["about"].get("image_size")): row for row in list_cache()}
    assert rows["decoded", 4]["rows"] == 2
    assert rows["decoded", 4]["bytes"] + rows["decoded", 5]["bytes"] == size_of(kept / "decoded")
    assert rows["decoded", 5]["rows"] == 1
    table = rows["activations", None]
    assert table["about"]["model"] == "small"
    assert (table["rows"], table["examples"]) == (5, 5)
    assert table["description"] == "small"
    assert table["bytes"] == size_of(kept / "activations") - (kept / "activations/5eed/about.json").stat().st_size
    assert table["path"] == str(kept / "activations" / "5eed")
    assert table["last_used"].startswith("20")
    assert table["last_used"].endswith("+00:00")
    assert list_cache(kept) == list_cache()


def test_a_table_and_json(kept, capsys):
    assert thaw("cache") == 0
    shown = capsys.readouterr().out
    assert "small" in shown
    assert "images of 4 x 4" in shown
    assert "ffff" not in shown
    assert thaw("cache", "--json") == 0
    assert json.loads(capsys.readouterr().out) == list_cache()


def test_clearing_takes_what_is_ours_and_nothing_else(kept, capsys):
    (kept / "activations/5eed.runtime").write_text("tensorflow")
    strangers = [kept / "notes.txt", kept / "activations/notes.txt", kept / "decoded/ab/notes.txt"]
    for file in strangers:
        file.parent.mkdir(exist_ok=True)
        file.write_text("not ours")
    size = sum(row["bytes"] for row in list_cache())
    assert thaw("cache", "--clear", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"freed": size}
    assert not list(kept.rglob("*.runtime"))
    assert sorted(f for f in kept.rglob("*") if f.is_file()) == sorted(strangers)
    assert list_cache() == []
    assert thaw("cache") == 0
    assert "The cache is empty." in capsys.readouterr().out


def test_clearing_asks(kept, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert thaw("cache", "--clear") == 2
    assert "add --yes" in capsys.readouterr().err
    for answer, left in (("n\n", 3), ("y\n", 0)):
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stdin)
        assert thaw("cache", "--clear") == 0
        said = capsys.readouterr().err
        assert ("Nothing was deleted." in said) == bool(left)
        assert "interrupted" not in said
        assert len(list_cache()) == left


def test_a_damaged_shelf_can_be_looked_at_and_cleared(kept):
    (kept / "activations/5eed/about.json").write_text("{")
    for file in (kept / "activations/5eed").glob("*/shard.json"):
        file.write_text("{")
    row = next(row for row in list_cache() if row["what"] == "activations")
    assert (row["about"], row["rows"]) == ({}, 0)
    assert clear_cache() > 0
    assert list((kept / "activations").iterdir()) == []


def test_no_keras_is_imported_for_it(kept):
    code = (
        "import sys; sys.argv = ['thaw', 'cache']\n"
        "from thaw.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "decoded" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_kept_is_said_in_words(kept):
    about = {"model": "lite", "stages": 3, "last_layer": "block4_add", "cache_dtype": "float16"}
    table = FeatureCache().table("ab", about, [((2,), "float32")])
    ids = np.array([[7, 0], [7, 1], [8, 0], [8, 1]])
    with table.writer(4) as writer:
        writer.add(ids, [np.ones((4, 2), "float32")])
    row = next(row for row in list_cache() if row["about"].get("model") == "lite")
    assert row["description"] == "lite, stages 1 to 3, to block4_add, half precision"
    assert (row["examples"], row["rows"]) == (2, 4)
    assert next(row for row in list_cache() if row["about"].get("image_size") == 5)["description"] == "images of 5 x 5"


def long_ago(folder):
    os.utime(folder, (0, 0))


def test_what_a_killed_comparison_left_is_cleared(kept):
    left = kept / "compare-x/activations/ab"
    left.mkdir(parents=True)
    (left / "0.npy").write_bytes(b"x" * 100)
    long_ago(kept / "compare-x")
    rows = list_cache()
    assert [row["bytes"] for row in rows if row["description"] == "left by a comparison"] == [100]
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
        assert "0.0 MB were freed. What a comparison uses is still there." in capsys.readouterr().err
        assert (tmp_path / "compare-x").exists()
    assert thaw("cache", "--clear", "--yes") == 0
    assert not (tmp_path / "compare-x").exists()


def test_list_cache_lists_what_precompute_and_cache_decoded_wrote(tmp_path):
    """One layout: a folder that is given as ``cache_dir`` everywhere is listed and cleared as a whole."""
    import keras

    from thaw.features.precompute import precompute

    prefix = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(2.0)])
    precompute(prefix, np.arange(3, dtype="float32")[:, None], cache_dir=tmp_path)
    cache_decoded(b"a", "a" * 64, 4, decode=lambda _, n: np.zeros((n, n, 3), np.uint8), cache_dir=tmp_path)
    assert sorted((row["what"], row["examples"]) for row in list_cache(tmp_path)) == [
        ("activations", 3),
        ("decoded", 1),
    ]
    assert list_cache() == []
    assert clear_cache(tmp_path) > 0
    assert list_cache(tmp_path) == []
