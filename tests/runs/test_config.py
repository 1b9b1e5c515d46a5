"""Options of a run as TOML, and back."""

import numpy as np
import pytest

from thaw.plan import Plan
from thaw.runs.config import config_text, is_path, read_config

NAMES = ["data", "out", "plan", "model", "weights", "retain", "epochs", "learning_rate", "flips"]


def test_read_config_reads_what_config_text_wrote(tmp_path):
    (tmp_path / "mine.keras").touch()
    options = {
        "data": tmp_path / "photos",
        "retain": str(tmp_path / "old"),
        "plan": "probe",
        "model": str(tmp_path / "mine.keras"),
        "weights": "none",
        "epochs": 3,
        "learning_rate": 1e-5,
        "flips": 'a "quoted" word',
    }
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    text = config_text(options, run)
    assert str(tmp_path) not in text
    (run / "config.toml").write_text(text)
    assert read_config(run / "config.toml", NAMES) == options | {"data": str(tmp_path / "photos")}


def test_config_text_leaves_out_what_has_no_text():
    text = config_text({"data": np.zeros(3), "plan": Plan.named("probe"), "epochs": None, "seed": 0}, ".")
    assert "seed = 0" in text.splitlines()
    assert not any(line.startswith(("data", "plan", "epochs")) for line in text.splitlines())


def test_read_config_takes_names_with_dashes_and_a_byte_order_mark(tmp_path):
    (tmp_path / "c.toml").write_bytes("\ufefflearning-rate = 0.1".encode())
    assert read_config(tmp_path / "c.toml", NAMES) == {"learning_rate": 0.1}


def test_read_config_names_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder; expected options in TOML"):
        read_config(tmp_path, NAMES)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data", "photos", True),
        ("plan", "probe", False),
        ("plan", "Plan.TOML", True),
        ("model", "mobilenet_v2", False),
        ("model", "a.keras", True),
        ("weights", "imagenet", False),
        ("weights", "w.h5", True),
        ("flips", "none", False),
        ("epochs", 3, False),
    ],
)
def test_is_path(name, value, expected):
    assert is_path(name, value) is expected
