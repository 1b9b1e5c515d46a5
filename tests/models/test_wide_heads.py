"""attach_head(features="upper" | "all"): what is tapped, the graph, its stages, and taking it off again."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw import attach_head, backbone, freeze, split_model, stages_of
from thaw._keras import operation_of
from thaw.features.split import submodel
from thaw.models.flat import open_model
from thaw.models.heads import ends_in_logits, has_head, is_predictor, remove_head, task_of
from thaw.models.linear_heads import linear_head
from thaw.models.stages import calls_of
from thaw.models.taps import tapped_stages
from thaw.models.wide_heads import wide_head
from thaw.tasks import Classification


def conv(x, filters, name, stride=1, activation=None):
    return layers.Conv2D(filters, 3, stride, "same", activation=activation, name=name)(x)


def residual(size=16, name="residual"):
    """A stem, and two stages with a shortcut each."""
    entry = keras.Input((size, size, 3))
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(conv(entry, 6, "stem")))
    for stage, filters in enumerate((8, 12), 1):
        x = shortcut = conv(x, filters, f"down{stage}", 2, "relu")
        x = layers.Activation("swish", name=f"swish{stage}")(conv(x, filters, f"conv{stage}"))
        x = layers.Add(name=f"add{stage}")([x, shortcut])
    return keras.Model(entry, x, name=name)


def plain(size=16):
    """Convolutions alone, the last of them linear."""
    entry = keras.Input((size, size, 3))
    x = conv(conv(entry, 5, "a", 2, "relu"), 7, "b", 2, "relu")
    return keras.Model(entry, conv(x, 9, "c"), name="plain")


def inverted(size=16):
    """MobileNetV2 in small: expansion, depthwise, projection, a squeeze-and-excite in the middle."""
    entry = keras.Input((size, size, 3))
    x = layers.ReLU(6.0, name="stem_relu")(conv(entry, 6, "stem", 2))
    for i, stride in enumerate((1, 2, 1)):
        shortcut = x
        x = layers.ReLU(6.0, name=f"expand{i}")(layers.Conv2D(12, 1, name=f"expand_conv{i}")(x))
        x = layers.DepthwiseConv2D(3, stride, "same", name=f"depthwise_conv{i}")(x)
        x = layers.ReLU(6.0, name=f"depthwise{i}")(x)
        if i == 1:
            gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
            gate = layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
            x = layers.Multiply(name="excite")([x, layers.Conv2D(12, 1, activation="sigmoid", name="gate")(gate)])
        x = layers.Conv2D(6, 1, name=f"project{i}")(x)
        x = layers.Add(name=f"add{i}")([x, shortcut]) if stride == 1 else x
    return keras.Model(entry, x, name="inverted")


def transformer(mask=False):
    entry = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=mask, name="embedding")(entry)
    for i in range(3):
        y = layers.LayerNormalization(name=f"norm_a{i}")(x)
        x = layers.Add(name=f"add_a{i}")([x, layers.MultiHeadAttention(2, 4, name=f"attention{i}")(y, y)])
        y = layers.LayerNormalization(name=f"norm_b{i}")(x)
        y = layers.Dense(8, name=f"down{i}")(layers.Dense(16, activation="gelu", name=f"up{i}")(y))
        x = layers.Add(name=f"add_b{i}")([x, y])
    return keras.Model(entry, layers.LayerNormalization(name="final_norm")(x), name="transformer")


def pooled():
    net = residual()
    return keras.Model(net.input, layers.GlobalAveragePooling2D(name="own_pool")(net.output), name="pooled")


def nested():
    entry = keras.Input((16, 16, 3))
    return keras.Model(entry, residual(name="inner")(layers.Rescaling(1 / 255, name="scale")(entry)), name="outer")


NETS = {
    "residual": residual,
    "plain": plain,
    "inverted": inverted,
    "pooled": pooled,
    "nested": nested,
    "sequential": lambda: keras.Sequential(nested().layers, name="row"),
    "transformer": transformer,
    "masked": lambda: transformer(mask=True),
}


def inputs_for(model, n=5):
    rng, shape = np.random.default_rng(0), model.input_shape[1:]
    if len(shape) == 1:
        x = rng.integers(1, 20, (n, *shape))
        x[:2, 4:] = 0
        return x
    return rng.uniform(0, 2, (n, *shape)).astype("float32")


def tapped_names(net):
    return {stage: [operation_of(t).name for t in taps] for stage, taps in tapped_stages(open_model(net)).items()}


def constants(model, seed=0):
    """Give the norms of a head other constants than 0 and 1, and its kernel other weights than 0."""
    rng = np.random.default_rng(seed)
    for norm in wide_head(calls_of(model)).norms:
        width = norm.moving_mean.shape[0]
        norm.moving_mean.assign(3 * rng.normal(size=width))
        norm.moving_variance.assign(rng.uniform(0.01, 2, width))
    dense = model.get_layer("head_classes")
    dense.kernel.assign(rng.normal(size=dense.kernel.shape))
    return model


# ----------------------------------------------------------------- what is tapped


def test_efficientnet_lite0_has_42_activations_of_20224_numbers():
    net = backbone(weights=None, input_shape=(64, 64, 3))
    taps = [t for taps in tapped_stages(net).values() for t in taps]
    kinds = [type(operation_of(t)).__name__ for t in taps]
    assert (kinds.count("ReLU"), kinds.count("Add"), len(kinds)) == (33, 9, 42)
    model = attach_head(net, 3, features="all")
    assert model.get_layer("head_classes").kernel.shape == (20224, 3)
    assert [model.get_layer(f"head_stage{i}_norm").moving_mean.shape[0] for i in range(1, 6)] == [
        *(64, 504, 808, 6432, 12416)
    ]
    upper = attach_head(net, 3, features="upper")
    assert upper.get_layer("head_classes").kernel.shape == (6432 + 12416, 3)
    assert [layer.name for layer in upper.layers if layer.name.endswith("_norm")] == [
        *("head_stage4_norm", "head_stage5_norm")
    ]


def test_activations_and_sums_are_tapped_and_gates_are_not():
    assert tapped_names(residual()) == {
        "stage1": ["stem_relu"],
        "stage2": ["down1", "swish1", "add1"],
        "stage3": ["down2", "swish2", "add2"],
    }
    # The output of the backbone always is; the sigmoid of a squeeze-and-excite, its first layer and its product not.
    assert tapped_names(plain()) == {"stage1": ["a"], "stage2": ["b", "c"]}
    assert tapped_names(inverted()) == {
        "stage1": ["stem_relu", "expand0", "depthwise0", "add0"],
        "stage2": ["expand1", "depthwise1", "expand2", "depthwise2", "add2"],
    }


@pytest.mark.parametrize(
    ("swish", "name"),
    [
        (lambda x: x * keras.ops.sigmoid(x), "multiply"),
        (lambda x: layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) / 6.0]), "multiply"),
        (keras.ops.silu, "silu"),
        (lambda x: layers.TimeDistributed(layers.Dense(4, "relu"), name="each")(x), "each"),
    ],
)
def test_activations_of_other_forms(swish, name):
    entry = keras.Input((8, 8, 3))
    net = keras.Model(entry, conv(swish(conv(entry, 4, "a", 2)), 6, "b", 2))
    (first,) = tapped_names(net)["stage1"] if name != "multiply" else tapped_names(net)["stage1"][-1:]
    assert first.startswith(name)


def test_transformers_are_tapped_at_each_block():
    assert tapped_names(transformer()) == {"stage2": ["add_b0"], "stage3": ["add_b1"], "stage4": ["final_norm"]}


def test_what_the_backbone_pools_itself_is_there_once():
    assert tapped_names(pooled())["stage3"] == ["down2", "swish2", "own_pool"]


# ----------------------------------------------------------------- the graph


@pytest.mark.parametrize("name", NETS)
def test_the_head_computes_what_it_says(name):
    """By hand: mean over positions (and the mask), standardize, clip, dense."""
    net = NETS[name]()
    model = constants(attach_head(net, 3, features="all"))
    x = inputs_for(net)
    flat = open_model(net)
    stages = tapped_stages(flat)
    rows = []
    for i, taps in enumerate(stages.values()):
        vectors = []
        for a in (np.asarray(submodel(flat, None, [t])(x)) for t in taps):
            if name == "masked" and a.ndim == 3:
                weights = (x != 0).astype("float32")
                vectors.append((a * weights[..., None]).sum(1) / weights.sum(1, keepdims=True))
            else:
                vectors.append(a.reshape(len(a), -1, a.shape[-1]).mean(1))
        norm = wide_head(calls_of(model)).norms[i]
        raw = np.concatenate(vectors, 1)
        rows.append(np.clip((raw - norm.moving_mean.numpy()) / np.sqrt(norm.moving_variance.numpy()), -5, 5))
    features = np.concatenate(rows, 1)
    assert np.abs(features).max() == 5
    dense = model.get_layer("head_classes")
    logits = features @ dense.kernel.numpy() + dense.bias.numpy()
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(model(x), expected, atol=2e-5)


def test_dropout_is_off_by_default_and_can_be_turned_on():
    assert not [layer for layer in attach_head(plain(), 2, features="all").layers if "dropout" in layer.name]
    model = attach_head(plain(), 2, features="all", dropout=0.3)
    assert model.get_layer("head_dropout").rate == 0.3
    assert attach_head(plain(), 2).get_layer("head_dropout").rate == 0.2
    assert attach_head(plain(), 2, features="last", dropout=0.4).get_layer("head_dropout").rate == 0.4


def test_training_changes_no_constants():
    model = attach_head(residual(), 3, features="all")
    before = [w.numpy() for norm in wide_head(calls_of(model)).norms for w in norm.weights]
    assert [bool(norm.trainable) for norm in wide_head(calls_of(model)).norms] == [False] * 3
    x = inputs_for(model, 6)
    model.fit(x, np.arange(6) % 3, verbose=0)
    after = [w.numpy() for norm in wide_head(calls_of(model)).norms for w in norm.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    assert model.get_layer("head_classes").kernel.numpy().any()


def test_half_precision_pools_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    model = attach_head(residual(), 3, features="all")
    assert model.get_layer("stem").compute_dtype == "float16"
    head = [layer for layer in model.layers if layer.name.startswith("head_")]
    assert {layer.compute_dtype for layer in head} == {"float32"}
    assert model(inputs_for(model)).dtype == "float32"


def test_max_pooling():
    model = attach_head(residual(), 2, features="upper", pooling="max")
    kinds = {type(layer).__name__ for layer in model.layers if "_pool" in layer.name}
    assert kinds == {"GlobalMaxPooling2D"}
    assert [stage.name for stage in stages_of(model)] == ["stage1", "stage2", "stage3", "head"]


def test_refusals():
    with pytest.raises(ValueError, match='features=\'most\'; expected "last", "upper" or "all"'):
        attach_head(plain(), 2, features="most")
    vectors = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(8, "relu")], name="vectors")
    with pytest.raises(
        ValueError, match="vectors puts out a vector, and no activation in it a feature map or a sequence to"
    ):
        attach_head(vectors, 2, features="all")
    net = plain()  # 140 + 322 + 576 weights; 21 features
    assert attach_head(net, 45, features="all").output_shape == (None, 45)
    with pytest.raises(ValueError, match="gives 21 numbers, and for 46 outputs a head of 1,054 weights, more than the"):
        attach_head(net, 46, features="all")
    with pytest.raises(ValueError, match=r"at most 45 outputs fit, or write features=\"last\""):
        attach_head(net, 46, features="all")
    with pytest.raises(ValueError, match="already ends in 3 softmax units"):
        attach_head(attach_head(residual(), 3, features="all"), 2, features="all")
    entry = keras.Input((16, 16, 3))
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(3, 3, name="same")])
    again = keras.Sequential([keras.Input((14, 14, 3)), layers.Conv2D(3, 3, name="same")])
    twice = keras.Model(entry, again(inner(entry)), name="twice")
    with pytest.raises(ValueError, match="twice has nested models with two layers named same; expected different"):
        attach_head(twice, 2, features="all")


def test_attaching_changes_nothing_in_the_backbone():
    net = nested()
    x = inputs_for(net)
    before = np.asarray(net(x))
    with pytest.raises(ValueError, match="outputs fit"):
        attach_head(net, 5000, features="all")
    attach_head(net, 3, features="all")
    assert np.array_equal(before, net(x))
    assert attach_head(net, 3).output_shape == (None, 3)
    assert stages_of(net)[0].layers[0].name == "scale"


# ----------------------------------------------------------------- files


SCRIPT = """
import sys
import keras, numpy as np
path, x, out = sys.argv[1:]
model = keras.models.load_model(path) if path.endswith(("keras", "h5")) else keras.layers.TFSMLayer(path, "serve")
x = np.load(x)
np.save(out, np.asarray(model(x) if not hasattr(model, "predict") else model.predict(x, verbose=0)))
assert not [name for name in sys.modules if name.split(".")[0] == "thaw"]
"""


@pytest.mark.filterwarnings("ignore:.*legacy|.*HDF5")
@pytest.mark.parametrize(
    ("name", "kind"), [("nested", "keras"), ("nested", "h5"), ("inverted", "export"), ("masked", "keras")]
)
def test_a_file_opens_with_only_keras(name, kind, tmp_path, python):
    model = constants(attach_head(NETS[name](), 3, features="all"))
    x = inputs_for(model)
    path = tmp_path / f"model.{kind}"
    if kind == "export":
        model.export(path, verbose=False)
    else:
        model.save(path)
    np.save(tmp_path / "x.npy", x)
    done = python("-c", SCRIPT, path, "x.npy", "out.npy", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.predict(x, verbose=0), atol=1e-6)
    if kind != "export":
        again = keras.models.load_model(path, compile=False)
        assert [s.name for s in stages_of(again)] == [s.name for s in stages_of(model)]
        assert linear_head(again).norms[0].name == linear_head(model).norms[0].name
        assert not [layer for layer in remove_head(again).layers if layer.name.startswith("head_")]


# ----------------------------------------------------------------- stages


def described(stages):
    below = [(s.name, s.shape, s.crossing, [layer.name for layer in s.layers]) for s in stages[:-1]]
    return [*below, (stages[-1].name, stages[-1].shape, stages[-1].crossing)]


def lite0():
    return backbone(weights=None, input_shape=(64, 64, 3))


def branches():
    """Parallel branches: the order of layers at the same depth is Keras' own."""
    entry = keras.Input((16, 16, 3))
    x = conv(entry, 4, "stem", 2, "relu")
    for i in range(2):
        ways = [conv(x, 4, f"short{i}", 2, "relu"), conv(conv(x, 5, f"a{i}", 1, "relu"), 6, f"b{i}", 2, "relu")]
        x = layers.Concatenate(name=f"join{i}")([*ways, layers.MaxPooling2D(padding="same", name=f"pool{i}")(x)])
    return keras.Model(entry, x, name="branches")


@pytest.mark.parametrize(
    ("name", "features"), [*((name, "all") for name in [*NETS, "lite0", "branches"]), ("residual", "upper")]
)
def test_the_stages_are_those_of_the_narrow_head(name, features, assert_partition):
    net = {"lite0": lite0, "branches": branches}.get(name) or NETS[name]
    net = net()
    narrow, wide = attach_head(net, 2), attach_head(net, 2, features=features)
    stages = stages_of(wide)
    assert described(stages) == described(stages_of(narrow))
    layers_of = [layer for stage in stages for layer in stage.layers]
    assert len(layers_of) == len(set(map(id, layers_of)))
    assert sum(stage.parameters for stage in stages) == wide.count_params()
    ours = {layer.name for layer in wide.layers if layer.name.startswith("head_")}
    assert ours <= {layer.name for layer in stages[-1].layers}


def test_a_wide_model_inside_another_has_the_same_stages():
    wide = attach_head(residual(), 2, features="all")
    entry = keras.Input((16, 16, 3))
    outer = keras.Model(entry, wide(layers.Rescaling(2.0, name="outer_scale")(entry)))
    names = [[layer.name for layer in stage.layers] for stage in stages_of(outer)]
    inner = [[layer.name for layer in stage.layers] for stage in stages_of(wide)]
    assert names == [["outer_scale", *inner[0]], *inner[1:]]


def test_heads_that_only_look_wide_keep_their_stages():
    """Features of two depths, as a user may write them: no constants, no clip, and stages as before."""
    net = residual()
    pools = [layers.GlobalAveragePooling2D()(net.get_layer(name).output) for name in ("add1", "add2")]
    model = keras.Model(net.input, layers.Dense(2)(layers.Concatenate()(pools)))
    assert wide_head(calls_of(model)) is None
    assert wide_head(calls_of(attach_head(net, 2))) is None
    assert wide_head(calls_of(net)) is None
    wide = attach_head(net, 2, features="all")
    tail = wide.get_layer("head_features").output
    # Something else reads the features too: not the head alone.
    two = keras.Model(wide.input, layers.Add()([layers.Dense(2)(tail), layers.Dense(2)(tail)]))
    assert wide_head(calls_of(two)) is None


# ----------------------------------------------------------------- off again


@pytest.mark.parametrize("name", NETS)
def test_remove_head_takes_the_taps_off(name):
    net = NETS[name]()
    bare = remove_head(constants(attach_head(net, 3, features="all")))
    x = inputs_for(net)
    assert np.array_equal(bare(x), net(x))
    assert not [layer.name for layer in bare.layers if layer.name.startswith("head_")]
    assert {id(w) for w in bare.weights} == {id(w) for w in net.weights}
    assert attach_head(bare, 2, features="upper").output_shape == (None, 2)


def test_remove_head_of_a_wide_model_inside_another():
    net = residual()
    wide = attach_head(net, 2, features="all")
    bare = remove_head(keras.Sequential([keras.Input((16, 16, 3)), layers.Rescaling(2.0), wide]))
    x = inputs_for(net)
    np.testing.assert_array_equal(bare(x), net(2 * x))


def test_what_a_wide_head_says_of_itself():
    model = attach_head(residual(), 3, features="all")
    assert has_head(model)
    assert not ends_in_logits(model)
    assert is_predictor(model)
    assert task_of(model).labels == ("0", "1", "2")
    assert task_of(attach_head(residual(), Classification(["a", "b"]), features="all")).labels == ("0", "1")
    logits = keras.Model(model.input, layers.Dense(4, name="four")(model.get_layer("head_features").output))
    assert ends_in_logits(logits)
    assert is_predictor(logits)  # nobody projects features like this


def test_numbers_behind_their_units_are_a_wide_head_too():
    net = residual()
    narrow = [stage.name for stage in stages_of(attach_head(net, 2))]
    classes = attach_head(net, 2, features="all")
    units = layers.Rescaling([10.0, 2.0], [1.0, -3.0], name="units")
    numbers = layers.Dense(2, name="head_classes")(classes.get_layer("head_features").output)
    model = constants(keras.Model(classes.input, units(numbers), name="numbers"))
    head = linear_head(model)
    assert head.units is units
    assert [t.shape[-1] for t in head.inputs] == [t.shape[-1] for t in linear_head(classes).inputs]
    assert [stage.name for stage in stages_of(model)] == narrow
    x = inputs_for(net)
    assert np.array_equal(remove_head(model)(x), net(x))
    freeze(model, "head")
    prefix, suffix = split_model(model)
    features = prefix(x)
    constants(model, seed=1)  # raw vectors cross the cut, before their constants
    np.testing.assert_allclose(suffix(features), model(x), rtol=1e-5, atol=1e-5)
    # A clip that puts its vector out itself has no head behind it.
    clip = keras.Model(model.input, classes.get_layer("head_features").output)
    assert wide_head(calls_of(clip)) is None


# ----------------------------------------------------------------- the cut


@pytest.mark.parametrize(("train", "crossing"), [("head", {64, 504, 808, 6432, 12416}), (1, {64, 504, 808, 6432, 112})])
def test_raw_vectors_cross_the_cut(train, crossing):
    model = constants(attach_head(lite0(), 3, features="all"))
    freeze(model, train)
    prefix, suffix = split_model(model)
    assert {t.shape[-1] for t in prefix.outputs} == crossing
    ours = [layer.name for layer in prefix.layers if layer.name.endswith(("_norm", "_clip"))]
    assert not [name for name in ours if name.startswith("head_")]
    assert sum(layer.name.startswith("head_") and layer.name.endswith("_norm") for layer in suffix.layers) == 5
    x = inputs_for(model, 3)
    features = prefix(x)
    np.testing.assert_allclose(suffix(features), model(x), atol=1e-6)
    # Other constants, and the cached features are still right.
    constants(model, seed=1)
    np.testing.assert_allclose(suffix(features), model(x), atol=1e-6)


def test_the_cut_at_the_head_is_the_input_of_the_linear_head():
    model = attach_head(lite0(), 3, features="all")
    freeze(model, "head")
    prefix, _ = split_model(model)
    x = inputs_for(model, 2)
    crossing = {a.shape[-1]: np.asarray(a) for a in prefix(x)}
    inputs = submodel(model, None, linear_head(model).inputs)(x)
    assert len(inputs) == len(crossing) == 5
    assert all(np.array_equal(a, crossing[a.shape[-1]]) for a in map(np.asarray, inputs))
