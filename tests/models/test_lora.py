"""add_lora, merge_lora, save_adapters, load_adapters: the values, what is left out, and which backbone is refused."""

import json
import zipfile

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw import add_lora, freeze, load_adapters, merge_lora, save_adapters, stages_of
from thaw.models.lora import adapter_variables

RNG = np.random.default_rng(0)


def flat():
    x = entry = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="wide")(x)
    x = layers.BatchNormalization(name="norm")(layers.DepthwiseConv2D(3, 2, name="depthwise")(x))
    x = layers.Conv2D(12, 1, groups=2, activation="relu", name="grouped")(x)
    x = layers.Dense(6, "relu", name="dense")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(entry, layers.Dense(3, "softmax", name="out")(x))


def nested():
    x = entry = keras.Input((8, 8, 3))
    body = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(6, 3, 2), layers.Conv2D(8, 1)], name="body")
    x = keras.ops.relu(body(x) * 2.0)
    return keras.Model(entry, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


def words():
    x = entry = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d")(x)
    x = layers.TimeDistributed(layers.Dense(8))(layers.Conv1D(8, 2, padding="causal")(x))
    return keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def recurrent():
    own = [layers.Conv1D(4, 2, name="conv"), layers.LSTM(4, name="lstm"), layers.Dense(2, name="out")]
    return keras.Sequential([keras.Input((6, 3)), *own])


def made(kind):
    """The same model with the same weights at every call; of its BatchNorm statistics none is trivial."""
    keras.utils.set_random_seed(0)
    model = kind()
    for weight in model.weights:
        weight.assign(weight + keras.random.uniform(weight.shape, 0.1, 0.5))
    return model


def batch(model):
    entry = model.inputs[0]
    if entry.dtype == "int32":
        return np.random.default_rng(1).integers(0, 9, (5, *entry.shape[1:])).astype("int32")
    return np.random.default_rng(1).normal(size=(5, *entry.shape[1:])).astype("float32")


def learned(model):
    """Change adapters and head, as training would."""
    rng = np.random.default_rng(2)
    adapted = [v for layer in model._flatten_layers() for v in adapter_variables(layer)]
    for variable in [*adapted, *(w for layer in stages_of(model)[-1].layers for w in layer.weights)]:
        variable.assign(variable + rng.normal(scale=0.1, size=variable.shape))
    return model


KINDS = pytest.mark.parametrize("kind", [flat, nested, words, recurrent])


def test_the_kernel_is_the_frozen_one_plus_the_scaled_product():
    model = made(lambda: keras.Sequential([keras.Input((5,)), layers.Dense(7, "tanh"), layers.Dense(2)]))
    dense = model.layers[0]
    kernel, bias = dense.get_weights()
    adapters = add_lora(model, rank=2, alpha=6)
    a, b = RNG.normal(size=(5, 2)), RNG.normal(size=(2, 7))
    dense.lora_kernel_a.assign(a)
    dense.lora_kernel_b.assign(b)
    x = RNG.normal(size=(4, 5))
    hidden = np.tanh(x @ (kernel + 6 / 2 * a @ b) + bias)
    expected = hidden @ model.layers[1].kernel.numpy() + model.layers[1].bias.numpy()
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(merge_lora(model)(x), expected, rtol=1e-4, atol=1e-5)
    assert adapters.layers == (dense,)
    assert adapters.parameters == 0  # they are merged
    np.testing.assert_allclose(dense.get_weights()[0], kernel + 3 * a @ b, rtol=1e-5)


@KINDS
def test_adding_changes_no_prediction_and_training_reaches_every_adapter(kind):
    model = made(kind)
    x, before = batch(model), np.asarray(made(kind)(batch(model)))
    adapters = add_lora(model, rank=2)
    np.testing.assert_array_equal(model(x), before)
    assert all(not layer.trainable_weights or layer.lora_enabled for layer in adapters.layers)
    freeze(model, "all", variables="adapters")
    head = [v for layer in stages_of(model)[-1].layers for v in layer.trainable_variables]
    expected = [v for layer in adapters.layers for v in adapter_variables(layer)] + head
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in expected}
    model.compile(keras.optimizers.SGD(0.1), "mse")
    start = {id(v): v.numpy() for v in model.weights}
    for _ in range(2):  # B is zero in the first step, and A has no gradient then
        model.fit(x, np.ones((5, model.output_shape[-1])), verbose=0)
    changed = {id(v) for v in model.weights if not np.array_equal(v.numpy(), start[id(v)])}
    assert changed == {id(v) for v in expected}


@KINDS
def test_merged_is_the_same_and_plain(kind, tmp_path, with_keras_alone):
    plain, model = made(kind), made(kind)
    add_lora(model, rank=2, alpha=3)
    x, before = batch(model), np.asarray(learned(model)(batch(model)))
    assert np.abs(before - np.asarray(plain(x))).max() > 1e-3
    assert merge_lora(model) is model
    np.testing.assert_allclose(model(x), before, atol=1e-5)
    assert [w.shape for w in model.weights] == [w.shape for w in plain.weights]
    assert [w.trainable for w in model.weights] == [w.trainable for w in plain.weights]
    assert "lora" not in json.dumps(keras.saving.serialize_keras_object(model))
    model.save(tmp_path / "merged.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.asarray(model(x)))
    code = """
import numpy as np, keras
model = keras.saving.load_model("merged.keras", safe_mode=True)
lora = [layer.name for layer in model._flatten_layers() if getattr(layer, "lora_enabled", False)]
print(np.array_equal(model(np.load("x.npy")), np.load("y.npy")), lora == [])
"""
    if kind is words:  # one is enough for a process
        assert with_keras_alone(tmp_path, code) == ["True", "True"]
    before = np.asarray(model(x))
    merge_lora(model)  # once more is nothing
    np.testing.assert_array_equal(model(x), before)


def test_what_was_merged_is_frozen_and_trained_as_before():
    model = made(flat)
    freeze(model, "head")
    add_lora(model, rank=2)
    freeze(model, "head", variables="adapters")
    merge_lora(model)
    assert [v.path for v in model.trainable_variables] == ["dense/kernel", "dense/bias", "out/kernel", "out/bias"]
    freeze(model, "all", "trained")
    assert {v.path for v in model.trainable_variables} == {v.path for v in made(flat).trainable_variables}
    add_lora(model, rank=2)  # and can be adapted again
    with pytest.raises(ValueError, match=r"^wide has LoRA already; .* merge it first: merge_lora\(model\)\.$"):
        add_lora(model, rank=2)


def test_traces_of_before_are_forgotten():
    """model.predict goes on to compute with the variables that it was traced with."""
    model = made(flat)
    x = batch(model)
    before = model.predict(x, verbose=0)
    add_lora(model, rank=2)
    learned(model)
    after = model.predict(x, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(merge_lora(model).predict(x, verbose=0), after, atol=1e-5)


def test_a_model_that_was_trained_has_to_be_compiled_again():
    model = made(flat)
    model.compile("adam", "sparse_categorical_crossentropy")
    add_lora(model, stages=1, rank=2)
    assert model.compiled  # its optimizer has not seen any variable yet
    model.fit(batch(model), np.zeros(5), verbose=0)
    assert merge_lora(model).compiled is False


def test_the_layers_that_cannot_are_named_once():
    class Own(layers.Dense):
        pass

    x = entry = keras.Input((8, 8, 4))
    for layer in (
        layers.Conv2D(4, 1),
        *(layers.DepthwiseConv2D(3, padding="same") for _ in range(2)),
        layers.SeparableConv2D(4, 3),
        layers.Conv2DTranspose(4, 1),
        layers.SpectralNormalization(layers.Conv2D(4, 1)),
        layers.Dense(4, kernel_constraint="non_neg"),
        Own(4),
        layers.Dense(4, name="quantized"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ):
        x = layer(x)
    model = keras.Model(entry, x)
    model.get_layer("quantized").quantize("int8")
    frozen = (
        "2 DepthwiseConv2D, 1 SeparableConv2D, 1 Conv2DTranspose (Keras has no LoRA for it), "
        "1 Conv2D (a SpectralNormalization scales its kernel), 1 Dense (its kernel has a constraint), "
        "1 Own (a class of your own may compute without its LoRA), 1 Dense (its kernel is quantized)."
    )
    adapters = add_lora(model, rank=1)
    assert str(adapters) == f"LoRA of rank 1 on 1 layer (1 Conv2D), 8 weights; frozen: {frozen}"
    assert repr(adapters) == str(adapters)


def test_which_stages():
    def adapted(**options):
        model = made(flat)
        return [layer.name for layer in add_lora(model, rank=1, **options).layers]

    names = [stage.name for stage in stages_of(made(flat))]
    assert names == ["stage1", "stage2", "head"]
    assert adapted() == ["wide", "grouped"]  # behind the last feature map begins the head
    assert adapted(stages=1) == ["grouped"]
    assert adapted(stages="stage1") == ["wide"]
    assert adapted(stages=("stage1", "head")) == ["wide", "dense", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "stage7"}, r'has no stage "stage7"; it has stage1, stage2, head'),
        ({"stages": 3}, "stages=3; the model has 2 stages below the head"),
        ({"stages": 0}, "stages=0; the model has 2"),
        ({"stages": 1.5}, "stages=1.5; expected names of stages, or a number"),
        ({"rank": 0}, "rank=0; expected a whole number from 1"),
        ({"alpha": 0}, "alpha=0; expected a number above 0, or None"),
        ({"alpha": float("nan")}, "alpha=nan; expected a number above 0"),
        ({"seed": -1}, "seed=-1; expected"),
    ],
)
def test_what_is_refused(options, message):
    model = made(flat)
    with pytest.raises(ValueError, match=message):
        add_lora(model, **options)
    assert not any(adapter_variables(layer) for layer in model._flatten_layers())


def test_a_model_without_a_layer_that_can():
    model = keras.Sequential([keras.Input((6, 3)), layers.LSTM(4), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"^No layer in stage1 can have LoRA \(Keras has no LoRA for it\); expected"):
        add_lora(model)


def test_the_same_seed_gives_the_same_matrices():
    first, same, other = (made(flat) for _ in range(3))
    add_lora(first, rank=2)
    keras.utils.set_random_seed(9)
    add_lora(same, rank=2)
    add_lora(other, rank=2, seed=1)
    matrices = [[v.numpy() for layer in m._flatten_layers() for v in adapter_variables(layer)] for m in (first, same)]
    assert all(np.array_equal(a, b) for a, b in zip(*matrices))
    assert not np.array_equal(other.get_layer("wide").lora_kernel_a, first.get_layer("wide").lora_kernel_a)
    assert np.abs(matrices[0][0]).max() <= np.sqrt(6 / 27)  # He's, of 3 x 3 x 3 inputs


def test_half_precision_merges_in_full():
    keras.config.set_dtype_policy("mixed_float16")
    model = made(flat)
    keras.config.set_dtype_policy("float32")
    add_lora(model, rank=2)
    learned(model)
    wide = model.get_layer("wide")
    expected = wide.kernel.numpy()  # as it is computed with, in half precision
    exact = wide.variables[0].numpy() + wide.lora_kernel_a.numpy() @ wide.lora_kernel_b.numpy()
    merge_lora(model)
    np.testing.assert_allclose(wide.kernel, exact, atol=1e-6)
    np.testing.assert_allclose(wide.kernel, expected, rtol=2e-3, atol=2e-3)


# ----------------------------------------------------------------- files


@KINDS
def test_loaded_onto_a_fresh_backbone_the_predictions_are_bit_identical(kind, tmp_path):
    model = made(kind)
    x = batch(model)
    made(kind).save(tmp_path / "plain.keras")
    add_lora(model, rank=2, alpha=5)
    path = save_adapters(learned(model), tmp_path / "adapters.npz")
    expected = np.asarray(model(x))
    own = made(kind)
    add_lora(own, rank=2, seed=4)
    opened = keras.saving.load_model(tmp_path / "plain.keras", safe_mode=True)
    for fresh in (made(kind), opened, own):
        before = fresh.predict(x, verbose=0)
        assert load_adapters(fresh, path) is fresh
        np.testing.assert_array_equal(fresh(x), expected)
        assert np.abs(fresh.predict(x, verbose=0) - before).max() > 1e-4
        freeze(fresh, "all", variables="adapters")  # they can be trained on
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert save_adapters(model, tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_a_file_holds_the_adapters_and_the_head_alone(tmp_path):
    body = [layers.Dense(512, "relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((512,)), *body, layers.Dense(2)])
    add_lora(model, rank=1)
    path = save_adapters(model, tmp_path / "adapters.npz")
    numbers = 3 * 2 * 512 + 512 * 2 + 2
    assert 4 * numbers < path.stat().st_size < 4 * numbers + 5000
    with np.load(path, allow_pickle=False) as stored:
        assert sum(stored[key].size for key in stored.files if key != "meta") == numbers


def other_weights():
    model = made(flat)
    model.get_layer("norm").moving_mean.assign_add(np.full(8, 1e-6, "float32"))
    model.get_layer("dense").bias.assign_add(np.ones(6))  # of the head, whose weights are in the file
    return model


def with_settings(changed, **settings):
    def change(layer):
        config = layer.get_config()
        return type(layer).from_config(config | settings if layer.name == changed else config)

    model = made(flat)
    fresh = keras.models.clone_model(model, clone_function=change)
    if [w.shape for w in fresh.weights] == [w.shape for w in model.weights]:
        fresh.set_weights(model.get_weights())
    return fresh


def another_wiring():
    model = made(flat)
    hidden = model.get_layer("dense").output
    return keras.Model(model.input, model.get_layer("out")(hidden + hidden))


OTHER = {
    "other weights": (other_weights, "another backbone: norm of functional[_0-9]* had other weights there; load"),
    "other activation": (lambda: with_settings("grouped", activation="gelu"), "grouped of .*, a Conv2D, has other s"),
    "a constraint": (lambda: with_settings("wide", kernel_constraint="non_neg"), "wide of .*, a Conv2D, has other"),
    "other classes": (lambda: with_settings("out", units=4), "out of .*, a Dense, has other settings or inputs there"),
    "other precision": (lambda: with_settings("wide", dtype="mixed_bfloat16"), "wide of .*, a Conv2D, has other"),
    "other wiring": (another_wiring, "belongs to another model: "),
    "fewer layers": (lambda: keras.Model((m := made(flat)).input, m.layers[-2].output), "of 8 layers and operations"),
    "another graph": (nested, "belongs to another model: "),
}


@pytest.mark.parametrize("kind", OTHER)
def test_another_backbone_is_refused(kind, tmp_path):
    model = made(flat)
    add_lora(model, rank=2)
    path = save_adapters(learned(model), tmp_path / "adapters.npz")
    build, message = OTHER[kind]
    other = build()
    before = other.get_weights()
    with pytest.raises(ValueError, match=message) as error:
        load_adapters(other, path)
    assert str(error.value).count(". ") == 0
    assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), before, strict=True))


def test_names_and_training_settings_make_no_other_backbone(tmp_path):
    model = made(flat)
    add_lora(model, rank=2)
    path = save_adapters(learned(model), tmp_path / "adapters.npz")
    renamed = with_settings("wide", name="renamed", kernel_initializer="zeros", kernel_regularizer="l2")
    freeze(renamed, "head")
    x = batch(model)
    np.testing.assert_array_equal(load_adapters(renamed, path)(x), model(x))


def test_other_adapters_and_another_head_are_refused(tmp_path):
    model = made(flat)
    add_lora(model, rank=2)
    path = save_adapters(model, tmp_path / "adapters.npz")
    for options in ({"rank": 3}, {"rank": 2, "stages": 1}):
        other = made(flat)
        add_lora(other, **options)
        with pytest.raises(ValueError, match=r"adapters on other layers, or of another rank, than .*npz; load them o"):
            load_adapters(other, path)

    def sized(side):
        keras.utils.set_random_seed(0)
        body = [layers.Conv2D(4, 3, 2), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)]
        return keras.Sequential([keras.Input((side, side, 3)), *body])

    small = sized(9)
    add_lora(small, rank=1)
    path = save_adapters(small, tmp_path / "small.npz")
    with pytest.raises(ValueError, match="saved with a head whose weights have other shapes"):
        load_adapters(sized(11), path)


def test_what_is_no_file_of_adapters(tmp_path):
    model = made(flat)
    with pytest.raises(ValueError, match=r"has no adapters; add them first: add_lora\(model\)\.$"):
        save_adapters(model, tmp_path / "adapters.npz")
    add_lora(model, rank=2)
    with pytest.raises(ValueError, match=r"adapters\.keras does not end in \.npz; expected a name such as adapters\."):
        save_adapters(model, tmp_path / "adapters.keras")
    path = save_adapters(model, tmp_path / "adapters.npz")
    good = path.read_bytes()
    np.savez(tmp_path / "others.npz", a=np.ones(3))
    np.savez(tmp_path / "pickled.npz", meta=np.array([{"format": 1}], dtype=object))
    (tmp_path / "short.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile(path) as stored:
        position = good.index(stored.read("adapter/1/0.npy")[-16:])
    (tmp_path / "flipped.npz").write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    for name in ("others", "pickled", "short", "empty", "flipped"):
        with pytest.raises(ValueError, match=r"npz is damaged, or no file of adapters; expected one that thaw\."):
            load_adapters(made(flat), tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist; expected a file of adapters"):
        load_adapters(made(flat), tmp_path / "none.npz")


def test_a_full_disk_leaves_the_file_before(tmp_path, monkeypatch):
    model = made(flat)
    add_lora(model, rank=2)
    path = save_adapters(model, tmp_path / "adapters.npz")
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="no room on the disk"):
        save_adapters(learned(model), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapters.npz"]


def test_adapters_that_keras_loaded_as_zeros_are_refused_before_they_train(tmp_path):
    model = made(flat)
    add_lora(model, rank=2)
    x, before = batch(model), np.asarray(learned(model)(batch(model)))
    model.save(tmp_path / "with.keras")
    opened = keras.saving.load_model(tmp_path / "with.keras", safe_mode=True)
    np.testing.assert_allclose(opened(x), before, atol=1e-5)
    with pytest.raises(ValueError, match=r"adapters of wide are all zeros and cannot learn, .* merge_lora\(model\), "):
        freeze(opened, "all", variables="adapters")
    add_lora(merge_lora(opened), rank=2)
    freeze(opened, "all", variables="adapters")
    np.testing.assert_allclose(opened(x), before, atol=1e-5)


def test_a_subclassed_model(tmp_path):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = layers.Dense(8, "relu"), layers.Dense(2)

        def call(self, x):
            return self.out(self.hidden(x))

    x = np.ones((2, 4), "float32")
    model, fresh = made(lambda: (net := Net(), net(x))[0]), made(lambda: (net := Net(), net(x))[0])
    assert add_lora(model, rank=2).layers == (model.hidden,)
    expected = np.asarray(learned(model)(x))
    path = save_adapters(model, tmp_path / "own.npz")
    np.testing.assert_array_equal(load_adapters(fresh, path)(x), expected)
    np.testing.assert_allclose(merge_lora(fresh)(x), expected, atol=1e-5)
