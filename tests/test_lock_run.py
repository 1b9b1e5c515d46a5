"""One run at a time in a run folder."""

import signal
import subprocess
import sys

import pytest

from thaw._files import lock_run

HOLD = """
import sys, time
from thaw._files import lock_run
with lock_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_and_a_killed_one_lets_go(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n"
        told = pytest.raises(BlockingIOError, match=r"^Another run is using .*; wait until it has ended")
        with told, lock_run(tmp_path):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with lock_run(tmp_path) as folder:
        assert folder == tmp_path


def test_the_same_process_is_told_too_and_an_error_lets_go(tmp_path):
    with lock_run(tmp_path / "new"), pytest.raises(BlockingIOError), lock_run(tmp_path / "new"):
        pass
    with pytest.raises(KeyError), lock_run(tmp_path / "new"):
        raise KeyError
    with lock_run(tmp_path / "new") as folder:
        assert folder.is_dir()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"), lock_run(tmp_path / "file"):
        pass
