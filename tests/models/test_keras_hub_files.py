"""A file with classes of KerasHub is opened where that is installed, though nobody has imported it."""

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None, reason="keras-hub is not installed")

SAVE = """
import keras, keras_hub, numpy as np
sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 6}
net = keras_hub.models.BertBackbone(20, **sizes)
model = keras.Model(net.input, keras.layers.Dense(2)(net.output["pooled_output"]))
model.save("hub.keras")
x = {name: np.ones((2, 6), int) for name in ("token_ids", "segment_ids", "padding_mask")}
np.save("expected.npy", model(x))
"""
OPEN = """
import sys, numpy as np
from thaw import freeze, split_model, stages_of
from thaw.models.loading import load_model_file
assert "keras_hub" not in sys.modules
model = load_model_file("hub.keras")
x = {name: np.ones((2, 6), int) for name in ("token_ids", "segment_ids", "padding_mask")}
freeze(model, "head")
prefix, suffix = split_model(model)
expected = np.load("expected.npy")
print(np.abs(model(x) - expected).max(), np.abs(suffix(prefix(x)) - expected).max(), len(stages_of(model)))
"""
REFUSE = """
import importlib.util
importlib.util.find_spec = lambda name, *_: None  # as where it is not installed
from thaw.models.loading import load_model_file
try:
    load_model_file("hub.keras")
except ModuleNotFoundError as error:
    print(error)
"""


def test_keras_hub_file(tmp_path, python):
    saved = python("-c", SAVE, folder=tmp_path)
    assert saved.returncode == 0, saved.stderr
    opened = python("-c", OPEN, folder=tmp_path)
    assert opened.returncode == 0, opened.stderr
    loaded, split, stages = map(float, opened.stdout.split())
    assert max(loaded, split) < 1e-6
    assert stages == 4  # embeddings, two blocks and the head
    refused = python("-c", REFUSE, folder=tmp_path)
    expected = "hub.keras has layers of KerasHub, which is not installed; install it: pip install keras-hub."
    assert refused.stdout.strip() == expected, refused.stderr
