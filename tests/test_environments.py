"""Containers, read-only disks, old code pages, narrow terminals: a command works, or one sentence names the setting."""

import hashlib
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thaw import open_run
from thaw._files import cache_root, lock_run, write_all
from thaw.cli.main import _sentence, main
from thaw.cli.output import any_letters, print_table
from thaw.features.cache_folder import list_cache
from thaw.features.store import FeatureCache

PYTHON = sys.executable
# As in a container whose user is in no list: HOME is not set, and looking the user up fails.
NOBODY = """
import os, pwd, sys
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "KERAS_HOME"):
    os.environ.pop(name, None)
"""
RUN = "\nfrom thaw.cli.main import main\nmain(sys.argv[1:])"
TUNE = ("tune", "photos", "-m", "small.keras", "-p", "probe", "--head-epochs", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with ``photos`` of cats and dogs, in Chinese, and ``small.keras``."""
    import keras

    place, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for label, count in (("猫", 24), ("犬", 6)):  # uneven, so that a note names the classes
        (place / "photos" / label).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(place / "photos" / label / f"{i}é.png")
    keras.utils.set_random_seed(0)
    entry = keras.Input((16, 16, 3))
    scaled = keras.layers.Rescaling(1 / 255)(entry)
    keras.Model(entry, keras.layers.Conv2D(4, 3, 2, activation="relu")(scaled)).save(place / "small.keras")
    return place


def shell(command, folder, **environment):
    """Run a command line in a shell, in which ``thaw`` is ours."""
    source = f'thaw() {{ "{PYTHON}" -m thaw "$@"; }}; set -o pipefail; {command}'
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment
    return subprocess.run(["bash", "-c", source], cwd=folder, env=env, capture_output=True)


def is_one_sentence(text):
    return text.startswith("thaw: ") and text.endswith(".\n") and text.count("\n") == 1 and "Traceback" not in text


# The user, and where the cache lies


def test_no_home_and_no_name(place, tmp_path):
    """A new process, for Keras looks for the home folder when it is imported."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    del env["THAW_CACHE"]
    command = [PYTHON, "-c", NOBODY + RUN, "check", place / "photos", "--image-size", "16"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert is_one_sentence(done.stderr)
    assert "set THAW_CACHE to a folder that can be written to" in done.stderr
    assert list(tmp_path.iterdir()) == []  # no folder with the name ~


def test_home_that_cannot_be_written_to(place, monkeypatch, capsys):
    """Not even root creates a folder there; the same happens in a container whose home is ``/``."""
    monkeypatch.delenv("THAW_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(place / "photos"), "--image-size", "16"])
    message = capsys.readouterr().err
    assert is_one_sentence(message)
    assert "/proc/.cache/thaw/decoded" in message
    assert "set THAW_CACHE to another folder" in message
    with pytest.raises(OSError, match=r"/proc/.cache/thaw/activations .*: set THAW_CACHE to another folder"):
        FeatureCache().table("ab", {}, [((1,), "float32")])
    assert list_cache() == []


@pytest.mark.parametrize("kind", ["file", "long", "stranger"])
def test_cache_that_is_no_folder(place, tmp_path, monkeypatch, capsys, kind):
    (tmp_path / "file").write_text("mine")
    name = {"file": tmp_path / "file", "long": tmp_path / ("x" * 256), "stranger": "~nobody-of-this-name/cache"}[kind]
    monkeypatch.setenv("THAW_CACHE", str(name))
    for command in (["check", str(place / "photos"), "--image-size", "16"], ["cache"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        message = capsys.readouterr().err
        if command == ["cache"] and kind == "file":
            assert ended.value.code == 0  # there is nothing in it
            continue
        assert ended.value.code == 2
        assert is_one_sentence(message)
        assert "set THAW_CACHE to a" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_two_processes_with_one_cache(tmp_path):
    """Both decode the same images and compute the same features at the same time."""
    code = """
import hashlib, sys, numpy as np
from thaw.data.image_decoding import cache_decoded
from thaw.features.store import FeatureCache
fill = lambda data, size: np.full((size, size, 3), data[0], np.uint8)
digest = hashlib.sha256()
table = FeatureCache(shard_bytes=4096).table("5eed", {}, [((64,), "float32")])
ids = np.stack([np.arange(100), np.zeros(100, int)], axis=1)
for start in range(0, 100, 10):
    part = ids[start:start + 10]
    for i in part[:, 0]:
        digest.update(cache_decoded(bytes([i]), hashlib.sha256(bytes([i])).hexdigest(), 8, decode=fill)[1].tobytes())
    absent = part[table.missing(part)]
    if len(absent):
        with table.writer(len(absent)) as writer:
            writer.add(absent, [np.repeat(absent[:, :1], 64, axis=1).astype("float32")])
digest.update(np.asarray(table.rows(ids)[0][np.arange(100)]).tobytes())
print(digest.hexdigest())
"""
    env = os.environ | {"THAW_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    both = [subprocess.Popen([PYTHON, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    expected = hashlib.sha256(b"".join(bytes([i]) * 192 for i in range(100)))
    expected.update(np.repeat(np.arange(100, dtype="float32")[:, None], 64, axis=1).tobytes())
    assert said == [expected.hexdigest()] * 2
    assert [p.name for p in tmp_path.rglob("*") if p.name.startswith((".", "trash-")) or p.suffix == ".part"] == []


# Letters that a stream does not have


class Stream(io.TextIOWrapper):
    """A file of another encoding, as stdout is one on Windows in a pipe."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def written(monkeypatch, encoding, *arguments):
    out, err = Stream(encoding), Stream(encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    assert (out.errors, err.errors) == ("strict", "strict")  # restored
    return ended.value.code, out.text(), err.text()


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "utf-16"])
def test_class_names_in_a_code_page(place, monkeypatch, encoding):
    command = ("check", place / "photos", "--image-size", "16")
    code, text, _ = written(monkeypatch, encoding, *command)
    assert code == 0
    assert ("猫" if encoding == "utf-16" else r"\u732b") in text
    code, text, _ = written(monkeypatch, encoding, *command, "--json")
    assert code == 0
    assert json.loads(text) == json.loads(written(monkeypatch, "utf-8", *command, "--json")[1])
    assert "'猫' is the most frequent" in text.encode().decode("unicode_escape" if "\\u" in text else "utf-8")
    code, text, err = written(monkeypatch, encoding, "tune", "犬🐕", "-o", "run")
    assert (code, text) == (2, "")
    assert "does not exist; expected a folder of images" in err


def test_boxes_and_tables_in_a_code_page(monkeypatch):
    for encoding in ("cp1252", "latin-1"):
        code, text, _ = written(monkeypatch, encoding, "tune", "--help")
        assert code == 0
        assert "--learning-rate" in text
        out = Stream(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            with any_letters():
                print_table(["Größe", "名"], [("ä", "猫🐈"), ("b", "\udce9")])
        assert out.text().split() == ["Größe", r"\u540d", "ä", r"\u732b\U0001f408", "b", r"\udce9"]


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii:strict", "LANG": "C"}])
def test_ascii_in_a_new_process(tmp_path, settings):
    (tmp_path / "猫.toml").write_text("[[phase]]\nname = '猫'\nepochs = 1\n", encoding="utf-8")
    done = shell("thaw plan 猫.toml --toml && thaw --help && thaw plan 犬.toml", tmp_path, **settings)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.decode())
    assert b"Traceback" not in done.stdout
    name = done.stdout.splitlines()[1].decode()
    assert name in ('name = "猫"', r'name = "\u732b"')


def test_folders_of_other_letters_in_an_ascii_locale(place, tmp_path):
    """Python then has the bytes of the names as escapes, and the classes are those of the letters all the same."""
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "THAW_CACHE": str(tmp_path / "cache")}
    command = f"thaw tune photos -m small.keras -p probe --head-epochs 1 -o {tmp_path}/run"
    done = shell(command, place, **settings)
    assert done.returncode == 0, done.stderr.decode()
    assert open_run(tmp_path / "run").labels == ("犬", "猫")


# The output


def test_reader_that_goes_away(tmp_path):
    for command in ("thaw plan nothing 2>&1 | true", "thaw --help | true", "thaw cache --json | head -c 0"):
        done = shell(command, tmp_path)
        assert done.returncode in (0, 2, 141), command  # 0 or 2 where all was written before the reader had gone
        assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_on_a_full_disk(tmp_path):
    done = shell("thaw plan probe --toml > /dev/full", tmp_path)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.decode())
    assert b"No space left on device" in done.stderr
    done = shell("thaw plan nothing 2> /dev/full", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def shown(columns, *arguments, **environment):
    """What a command writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env |= {"PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm"} | environment
    with subprocess.Popen([PYTHON, "-m", "thaw", *arguments], env=env, stdin=slave, stdout=slave, stderr=slave) as done:
        os.close(slave)
        text = b""
        while True:
            try:
                text += os.read(master, 65536)
            except OSError:  # it has ended
                break
    os.close(master)
    return done.returncode, text.decode()


def test_narrow_and_plain_terminals(tmp_path):
    table = FeatureCache(tmp_path).table("5eed", {"model": "small", "last_layer": "a_long_name"}, [((1,), "float32")])
    with table.writer(1) as writer:
        writer.add(np.zeros((1, 2), np.int64), [np.zeros((1, 1), "float32")])
    for columns, settings in (
        (20, {}),
        (0, {}),
        (80, {"COLUMNS": "0"}),
        (80, {"NO_COLOR": "1"}),
        (80, {"TERM": "dumb"}),
    ):
        code, text = shown(columns, "cache", THAW_CACHE=str(tmp_path), **settings)
        assert code == 0
        assert "small, to a_long_name" in text  # in one piece
        if "TERM" in settings:
            assert "\x1b" not in text


def test_columns_zero(tmp_path):
    for columns in ("0", "many"):
        done = shell("thaw tune --help", tmp_path, COLUMNS=columns)
        assert done.returncode == 0
        assert b"--learning-rate" in done.stdout


# Folders


def test_current_folder_deleted(tmp_path):
    for command, code in (("thaw plan mine.toml", 2), ("thaw tune photos -o run", 2), ("thaw plan probe --toml", 0)):
        done = shell(f"mkdir gone; cd gone; rmdir ../gone; {command}", tmp_path)
        assert done.returncode == code, done.stderr
        if code:
            message = done.stderr.decode()
            assert is_one_sentence(message)
            assert "the current folder has been deleted" in message or "mine.toml" in message


def test_long_paths_and_no_home(place, python, tmp_path):
    """A run folder and a cache of names as long as a disk allows; no HOME; TMPDIR names nothing; a strict umask."""
    run, cache = tmp_path / ("r" * 250), tmp_path / ("c" * 250)
    env = os.environ | {"THAW_CACHE": str(cache), "TMPDIR": "/nowhere"}
    code = "import os, tempfile\nos.umask(0o077)\ntempfile.tempdir = None" + NOBODY + RUN
    done = python("-c", code, *TUNE, "-o", run, folder=place, env=env)
    assert done.returncode == 0, done.stderr
    assert (run / "model.keras").stat().st_mode & 0o077 == 0
    assert set(json.loads((run / "labels.json").read_text(encoding="utf-8"))) == {"猫", "犬"}


def test_run_folder_of_too_long_a_name(place, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*TUNE[:1], str(place / "photos"), "-p", "probe", "-o", str(tmp_path / ("r" * 256))])
    message = capsys.readouterr().err
    assert is_one_sentence(message)
    assert "File name too long" in message


def test_files_of_long_names(tmp_path):
    """255 bytes are the longest name; the temporary file beside it is shorter."""
    first, second = tmp_path / ("猫" * 83 + ".toml"), tmp_path / ("猫" * 82 + "b.toml")
    write_all({first: lambda path: path.write_text("1"), second: lambda path: path.write_text("2")})
    assert [path.read_text() for path in (first, second)] == ["1", "2"]
    assert len(list(tmp_path.iterdir())) == 2
    ending = tmp_path / ("a." + "b" * 250)
    write_all({ending: lambda path: path.write_text("3")})
    assert ending.read_text() == "3"


def test_limit_of_a_file_size(place, python, tmp_path):
    """The nearest thing to a full disk: the model does not fit. No half-written file is left, nor the model."""
    code = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))" + RUN
    env = os.environ | {"THAW_CACHE": str(tmp_path / "cache")}
    done = python("-c", code, *TUNE, "-o", tmp_path / "run", folder=place, env=env)
    assert done.returncode == 2
    assert "There is no room on the disk for" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/model.keras").exists()
    left = [path for path in tmp_path.rglob(".*") if path.is_file() and path.name != ".lock"]
    assert left == []


def test_sentences_for_full_and_missing_folders():
    missing = FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    assert _sentence(missing).endswith("; set TMPDIR to a folder that can be written to, on a disk with room.")
    full = _sentence(OSError(28, os.strerror(28)))
    assert full.startswith("No space left on device: free some space")
    assert "TMPDIR" in full
    refused = pytest.raises(OSError, match=r"^The folder /proc/run cannot be used \(No such file or directory\); name")
    with refused, lock_run("/proc/run"):
        pass
    with pytest.raises(OSError, match="set THAW_CACHE"):
        cache_root("~nobody-of-this-name/cache")
