"""The progress bar says what happens, and nothing else."""

import io

import pytest

pytest.importorskip("keras")
from rich.console import Console

from thaw.plan import Phase
from thaw.training.progress import ProgressBar


def test_progress_bar_says_that_a_run_resumes_only_where_an_epoch_is_left():
    text, phase = io.StringIO(), Phase(name="top", epochs=3)
    with ProgressBar(Console(file=text, width=80)) as shown:
        shown.set_params({"epochs": 3, "steps": 1})
        shown.on_resume(phase, 3)
        shown.on_phase_begin(phase, ())
        shown.on_phase_end(phase, (), ())
        assert "resuming" not in text.getvalue()
        shown.on_phase_begin(phase, ())
        for epoch in (1, 2):
            shown.on_epoch_begin(epoch)
    assert text.getvalue().count("resuming") == 1
    assert "resuming at epoch 2, phase top\n" in text.getvalue()
