"""blend_models: the values, what is shared, what is a copy, and that everything else can work with a blend."""

import random
import subprocess
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw import Phase, Plan, attach_head, backbone, evaluate, fine_tune, predict, preflight, split_model, stages_of
from thaw.features.predictions import batch_probabilities, log_proba
from thaw.models import blend_models, copy_model, remove_head
from thaw.models.flat import flatten_model
from thaw.models.heads import has_head, is_predictor, output_activation, task_of
from thaw.models.linear_heads import linear_head
from thaw.models.stages import calls_of
from thaw.models.wide_heads import wide_heads
from thaw.retention import SourceTask
from thaw.runs import export_model
from thaw.tasks import Classification
from thaw.training.freezing import head_norms
from thaw.transfer import CannotSolve, solve_head

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 2, (12, 8, 8, 3)).astype("float32")
Y = np.arange(12) % 3


def net(*last, name="net"):
    body = [layers.Conv2D(6, 3, padding="same", activation="relu", name="low"), layers.BatchNormalization(name="bn")]
    top = layers.Conv2D(8, 3, 2, "same", activation="relu", name="top")
    return keras.Sequential([keras.Input((8, 8, 3)), *body, top, *last], name=name)


def copy_of(model):
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    return again


def trained(model, *names):
    """Change the weights of the layers of these names, as training would."""
    for name in names:
        layer = model.get_layer(name)
        layer.set_weights([w + RNG.normal(scale=0.5, size=w.shape) for w in layer.get_weights()])
    return model


def solved_and_tuned(outer=lambda body: body):
    """A wide head on a frozen backbone, and a copy of the backbone whose top stage was tuned under a narrow head."""
    solved = trained(attach_head(outer(net()), 3, features="all"), "head_classes")
    for norm in head_norms(solved):
        norm.moving_mean.assign(RNG.normal(size=norm.moving_mean.shape))
    body = net()
    body.set_weights(solved.get_weights()[: len(body.weights)])
    tuned = trained(attach_head(outer(trained(body, "top")), 3), "head_classes")
    return solved, tuned


@pytest.fixture(scope="module")
def blended():
    models = solved_and_tuned()
    return models, blend_models(models, [1, 3])


def names_of(model):
    return [layer.name for layer in model.layers]


# ----------------------------------------------------------------- values


def test_a_blend_is_the_weighted_mean(blended):
    (solved, tuned), blend = blended
    np.testing.assert_allclose(blend(X), 0.25 * np.asarray(solved(X)) + 0.75 * np.asarray(tuned(X)), atol=1e-6)
    np.testing.assert_allclose(np.sum(blend(X), 1), 1, atol=1e-6)
    assert (blend.output.dtype, blend.name) == ("float32", tuned.name)
    assert blend_models([solved, tuned], name="mixture").name == "mixture"


def test_equal_shares_are_the_default_and_a_blend_can_be_blended(blended):
    (solved, tuned), blend = blended
    p, q = np.asarray(solved(X)), np.asarray(tuned(X))
    np.testing.assert_allclose(blend_models([solved, tuned])(X), (p + q) / 2, atol=1e-6)
    again = blend_models([blend, tuned, solved], [2, 1, 1])
    np.testing.assert_allclose(again(X), (0.125 + 0.25) * p + (0.375 + 0.25) * q, atol=1e-6)
    assert len(again.weights) == len(blend.weights)  # all of it is there already


def test_nested_models_are_opened():
    def outer(body):
        entry = keras.Input((8, 8, 3))
        return keras.Model(entry, body(layers.Rescaling(0.5)(entry)), name="outer")

    solved, tuned = solved_and_tuned(outer)
    blend = blend_models([solved, tuned])
    np.testing.assert_allclose(blend(X), (np.asarray(solved(X)) + np.asarray(tuned(X))) / 2, atol=1e-6)
    assert sum("rescaling" in name for name in names_of(blend)) == 1


@pytest.mark.parametrize(
    ("heads", "loss", "activate"),
    [
        ([layers.Dense(3), layers.Dense(3, "softmax")], None, ["softmax", None]),
        ([layers.Dense(1), layers.Dense(1, "sigmoid")], None, ["sigmoid", None]),
        ([layers.Dense(3), layers.Dense(3)], "binary_crossentropy", ["sigmoid", "sigmoid"]),
        ([layers.Dense(3, "sigmoid"), layers.Dense(3, "sigmoid")], None, [None, None]),
    ],
)
def test_logits_become_probabilities_first(heads, loss, activate):
    entry = keras.Input((4,))
    models = [keras.Model(entry, head(entry)) for head in heads]
    if loss:
        for model in models:
            model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    blend, x = blend_models(models, [1, 4]), RNG.normal(size=(5, 4))
    p, q = (keras.activations.get(kind)(model(x)) for kind, model in zip(activate, models))
    np.testing.assert_allclose(blend(x), 0.2 * p + 0.8 * q, atol=1e-6)
    assert output_activation(blend) == ("softmax" if "softmax" in activate else "sigmoid")


def test_half_precision_is_averaged_in_float32():
    entry = keras.Input((4,))
    halves = [keras.Model(entry, layers.Dense(3, "softmax", dtype="float16")(entry)) for _ in range(2)]
    blend, x = blend_models(halves, [1, 2]), RNG.normal(size=(5, 4))
    expected = sum(share * np.asarray(m(x), "float32") for share, m in zip((1 / 3, 2 / 3), halves))
    assert blend(x).dtype == "float32"
    np.testing.assert_allclose(blend(x), expected, atol=1e-7)


@pytest.mark.parametrize("changed", ["embedding", "norm", "attention", "head_classes"])
def test_masks_are_those_of_each_model(changed):
    """Attention deletes the mask of the tensor that it reads, which another attention may read too."""
    entry = keras.Input((6,), dtype="int32")
    x = layers.LayerNormalization(name="norm")(layers.Embedding(9, 8, mask_zero=True, name="embedding")(entry))
    x = layers.Add(name="add")([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    first = trained(attach_head(keras.Model(entry, x), 3), "head_classes")
    second = trained(copy_of(first), changed)
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]])
    for models in ([first, second], [second, first]):
        blend = blend_models(models)
        np.testing.assert_allclose(blend(x), (np.asarray(first(x)) + np.asarray(second(x))) / 2, atol=1e-6)
        np.testing.assert_allclose(blend.predict(x, verbose=0), blend(x), atol=1e-6)


def test_normalization_and_tables_are_copied():
    entry = keras.Input((), dtype="string")
    words, scale = layers.TextVectorization(output_sequence_length=3), layers.Normalization()
    words.adapt(np.array(["a b c", "c d"]))
    scale.adapt(np.array([[1.0, 2, 3], [3, 2, 1]]))
    numbers = scale(layers.Rescaling(1.0)(words(entry)))
    models = [keras.Model(entry, layers.Dense(2, "softmax")(numbers)) for _ in range(2)]
    blend, x = blend_models(models), keras.ops.convert_to_tensor(["a d", "e b c"])
    np.testing.assert_allclose(blend(x), (np.asarray(models[0](x)) + np.asarray(models[1](x))) / 2, atol=1e-6)
    assert len([layer for layer in blend.layers if isinstance(layer, layers.TextVectorization)]) == 1


# ----------------------------------------------------------------- what is shared


def test_the_frozen_prefix_is_shared(blended):
    _, blend = blended
    assert [name for name in names_of(blend) if name.startswith(("low", "bn", "top"))] == ["low", "bn", "top", "top_2"]
    assert len(set(names_of(blend))) == len(blend.layers)


def test_one_bit_is_a_difference():
    model = net(layers.Flatten(name="flat"), layers.Dense(3, "softmax", name="last"))
    same, other = copy_of(model), copy_of(model)
    bias = other.get_layer("low").bias
    bias.assign(np.nextafter(bias.numpy(), 1))
    assert len(blend_models([model, same]).weights) == len(model.weights)
    assert len(blend_models([model, other]).weights) == 2 * len(model.weights)


@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (lambda: layers.Activation("relu", name="other"), True),
        (lambda: layers.Activation("tanh", name="act"), False),
        (lambda: layers.Activation("relu", name="act", dtype="float64"), False),
        (lambda: layers.ReLU(name="act"), False),
    ],
)
def test_names_do_not_count_and_configurations_do(make, shared):
    entry = keras.Input((4,))
    models = [
        keras.Model(entry, layers.Dense(2, "softmax", kernel_initializer="ones")(act(entry)))
        for act in (layers.Activation("relu", name="act"), make())
    ]
    assert len(blend_models(models).layers) == (6 if shared else 8)  # the dense layer goes with what it reads


def test_the_arguments_of_a_call_count():
    entry = keras.Input((4,))
    drop, last = layers.Dropout(0.5), layers.Dense(2, "softmax")
    models = [keras.Model(entry, last(drop(entry, training=training))) for training in (False, True, False)]
    assert len([layer for layer in blend_models(models).layers if "dropout" in layer.name]) == 2
    doubled = [keras.Model(entry, last(entry * factor)) for factor in (2.0, 2.0, 3.0)]
    blend = blend_models(doubled)
    assert len([operation for operation in blend.operations if "multiply" in operation.name]) == 2
    x = RNG.normal(size=(3, 4))
    np.testing.assert_allclose(blend(x), sum(np.asarray(m(x)) for m in doubled) / 3, atol=1e-6)


def test_a_layer_that_is_called_twice_stays_one_layer():
    entry = keras.Input((4,))

    def siamese(seed):
        keras.utils.set_random_seed(seed)
        twice = layers.Dense(4, name="twice")
        return keras.Model(entry, layers.Dense(2, "softmax", name="last")(twice(twice(entry))))

    first, second = siamese(0), siamese(1)
    blend, x = blend_models([first, second]), RNG.normal(size=(3, 4))
    assert len(blend.weights) == 8
    np.testing.assert_allclose(blend(x), (np.asarray(first(x)) + np.asarray(second(x))) / 2, atol=1e-6)


def test_many_heads_on_one_backbone():
    body = net()
    models = [trained(attach_head(body, 3, dropout=0), "head_classes") for _ in range(4)]
    blend = blend_models(models)
    assert len(blend.weights) == len(body.weights) + 4 * 2
    np.testing.assert_allclose(blend(X), np.mean([m(X) for m in models], axis=0), atol=1e-6)


# ----------------------------------------------------------------- a copy


def test_a_blend_is_a_copy_and_leaves_the_models_alone():
    models = solved_and_tuned()
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    weights = [model.get_weights() for model in models]
    counts = [len(layer._inbound_nodes) for model in models for layer in model.layers]
    blend = blend_models(models)
    before = np.asarray(blend(X))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # noqa: NPY002
    assert [len(layer._inbound_nodes) for model in models for layer in model.layers] == counts
    for model, old in zip(models, weights):
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), old))
        for variable in model.weights:
            variable.assign(variable + 1)
    np.testing.assert_array_equal(blend(X), before)


def test_copy_model(blended):
    (solved, _), _ = blended
    entry = keras.Input((8, 8, 3))
    outer = keras.Model(entry, {"a": solved(entry), "b": layers.Flatten()(entry)})
    outer.get_layer(solved.name).get_layer("low").trainable = False
    copy = copy_model(outer)
    assert not {id(v) for v in copy.variables} & {id(v) for v in outer.variables}
    assert not copy.compiled
    assert copy.get_layer("low").trainable is False
    outer.get_layer(solved.name).get_layer("low").trainable = True
    assert copy(X).keys() == {"a", "b"}
    np.testing.assert_allclose(copy(X)["a"], solved(X), atol=1e-6)


def test_what_is_frozen_stays_frozen(blended):
    models = solved_and_tuned()
    models[0].get_layer("low").trainable = models[1].get_layer("bn").trainable = False
    blend = blend_models(models)
    assert [blend.get_layer(name).trainable for name in ("low", "bn", "top")] == [False, True, True]
    assert not any(norm.trainable for norm in head_norms(blend))
    assert "low/kernel" not in [v.path for v in blend.trainable_variables]


# ----------------------------------------------------------------- refused


def head(units=2, activation="softmax", inputs=4, dtype=None):
    return keras.Sequential([keras.Input((inputs,), dtype=dtype), layers.Dense(units, activation)])


def with_loss(loss):
    model = head(1, None)
    model.compile(loss=loss)
    return model


def two_outputs():
    entry = keras.Input((4,))
    return keras.Model(entry, [layers.Dense(2, "softmax")(entry), layers.Dense(2, "softmax")(entry)])


@pytest.mark.parametrize(
    ("models", "shares", "message"),
    [
        (lambda: [head()], None, "There are 1 models; expected at least two"),
        (lambda: [head(), head()], [1], "There are 1 shares for 2 models"),
        (lambda: [head(), head()], [1, 0], r"shares=\[1, 0\]; expected finite numbers above 0"),
        (lambda: [head(), head()], [1, float("nan")], "expected finite numbers above 0"),
        (lambda: [head(), head()], [1, "1"], "expected finite numbers above 0"),
        (
            lambda: [head(), head(inputs=5)],
            None,
            r"takes float32 \(None, 4\) and .* float32 \(None, 5\); .* same input",
        ),
        (lambda: [head(), head(dtype="int32")], None, "same input"),
        (lambda: [head(), head(3)], None, "ends in 2 softmax units and .* in 3 softmax units"),
        (lambda: [head(), head(2, "sigmoid")], None, "2 softmax units and .* 2 sigmoid units"),
        (lambda: [head(), two_outputs()], None, r"outputs of shape \(2,\), \(2,\); expected one"),
        (lambda: [head(), head(2, "relu")], None, "does not end in probabilities or their logits"),
        (lambda: [head(1, "sigmoid"), with_loss("mse")], None, "does not end in probabilities or their logits"),
    ],
)
def test_what_cannot_be_blended(models, shares, message):
    with pytest.raises(ValueError, match=message):
        blend_models(models(), shares)


# ----------------------------------------------------------------- the rest of thaw


def test_predictions_and_metrics(blended):
    (solved, tuned), blend = blended
    expected = 0.25 * batch_probabilities(solved, [X]) + 0.75 * batch_probabilities(tuned, [X])
    np.testing.assert_allclose(batch_probabilities(blend, [X]), expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(log_proba(blend, blend(X))), expected, atol=1e-6)
    log_loss = -np.log(expected[np.arange(12), Y]).mean()
    assert evaluate(blend, X, Y)["log_loss"]["value"] == pytest.approx(log_loss, abs=1e-5)
    first = predict(blend, X[:1], ["a", "b", "c"])[0]
    assert first["label"] == "abc"[expected[0].argmax()]
    assert (output_activation(blend), task_of(blend), has_head(blend), is_predictor(blend)) == (
        *("softmax", Classification.of(3), True, True),
    )


def test_a_blend_is_trained_by_its_loss(blended):
    blend = copy_of(blended[1])
    blend.compile("sgd", blended[1].loss, metrics=["accuracy"])
    log_loss = evaluate(blend, X, Y)["log_loss"]["value"]
    assert blend.evaluate(X, Y, verbose=0)[0] == pytest.approx(log_loss, abs=1e-5)
    assert "logits" not in [finding.code for finding in preflight(blend, X, Y)]
    blend.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert "logits" in [finding.code for finding in preflight(blend, X, Y)]


def test_a_phase_of_the_head_alone(blended):
    blend = blend_models(blended[0])
    norms = [norm.moving_mean.numpy() for norm in head_norms(blend)]
    top = [blend.get_layer(name).kernel.numpy() for name in ("top", "top_2")]
    plan = Plan((Phase(name="head", epochs=2, train="head", learning_rate=0.01),))
    assert preflight(blend, X, Y, plan, validation_data=(X, Y)) == ()
    history = fine_tune(blend, plan, X, Y, validation_data=(X, Y), verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]
    assert all(np.array_equal(n.moving_mean, old) for n, old in zip(head_norms(blend), norms, strict=True))
    assert all(np.array_equal(blend.get_layer(n).kernel, old) for n, old in zip(("top", "top_2"), top))


def test_stages_are_those_of_the_models(blended):
    (solved, tuned), blend = blended
    stages = stages_of(blend)
    placed = [id(layer) for stage in stages for layer in stage.layers]
    assert len(placed) == len(set(placed)) == len(blend.layers) - 1  # without the input
    assert sum(stage.parameters for stage in stages) == blend.count_params()
    assert [(s.name, s.shape) for s in stages] == [(s.name, s.shape) for s in stages_of(tuned)]
    assert [layer.name for layer in stages[-2].layers] == ["top", "top_2"]
    assert len(wide_heads(calls_of(blend))) == 1
    assert [norm.name for norm in head_norms(blend)] == [norm.name for norm in head_norms(solved)]
    for stage in stages:
        for layer in stage.layers:
            layer.trainable = stage in stages[-2:]
    prefix, _ = split_model(blend)
    assert "low" in names_of(prefix)
    assert "top" not in names_of(prefix)


def test_the_head_comes_off_to_the_backbone_of_the_last_model(blended):
    (solved, tuned), blend = blended
    np.testing.assert_allclose(remove_head(blend)(X), remove_head(tuned)(X), atol=1e-6)
    assert [name for name in names_of(remove_head(blend)) if "top" in name] == ["top_2"]
    turned = blend_models([tuned, solved])
    np.testing.assert_allclose(remove_head(turned)(X), remove_head(solved)(X), atol=1e-6)
    assert not [name for name in names_of(remove_head(turned)) if name.startswith(("head_", "blend_"))]
    inside = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(0.5), blend])
    assert has_head(inside)
    np.testing.assert_allclose(remove_head(inside)(X), remove_head(tuned)(X / 2), atol=1e-6)
    assert SourceTask.of(blend).backbone.output_shape == remove_head(tuned).output_shape


def test_a_mean_of_features_is_no_head():
    entry = keras.Input((8, 8, 3))
    parts = [layers.Rescaling(0.5)(layers.Conv2D(4, 3, activation="relu")(entry)) for _ in range(2)]
    mean = keras.Model(entry, layers.Add()(parts))
    assert remove_head(mean) is mean
    assert output_activation(mean) == "other"
    vectors = [layers.Rescaling(0.5)(make(entry)) for make in (layers.Flatten(), layers.Flatten())]
    assert output_activation(keras.Model(entry, layers.Add()(vectors))) == "other"


def test_shares_that_do_not_sum_to_one_are_no_mean():
    entry = keras.Input((4,))
    parts = [layers.Rescaling(0.4)(layers.Dense(2, "softmax")(entry)) for _ in range(2)]
    assert output_activation(keras.Model(entry, layers.Add()(parts))) == "other"


def test_a_blend_has_no_linear_head(blended):
    blend = blended[1]
    with pytest.raises(ValueError, match=r"weighted mean of 2 models.*blend them again"):
        linear_head(flatten_model(blend))
    with pytest.raises(CannotSolve, match="weighted mean of 2 models"):
        solve_head(blend, X, Y)


SCRIPT = """
import sys
import keras, numpy as np
x, p = np.load("x.npy"), {}
p["keras"], p["h5"] = (keras.models.load_model(f"blend.{kind}").predict(x, verbose=0) for kind in ("keras", "h5"))
p["export"] = np.asarray(keras.layers.TFSMLayer("blend.export", "serve")(x))
np.savez("p.npz", **p)
assert not [name for name in sys.modules if name.split(".")[0] == "thaw"]
"""


@pytest.mark.filterwarnings("ignore:.*legacy|.*HDF5|.*does not scale")
def test_a_file_opens_with_only_keras(blended, tmp_path):
    (_, tuned), blend = blended
    export_model(blend, tmp_path / "blend.export")
    for kind in ("keras", "h5"):
        blend.save(tmp_path / f"blend.{kind}")
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "open.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "open.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for p in np.load(tmp_path / "p.npz").values():
        np.testing.assert_allclose(p, blend(X), atol=1e-6)
    for kind in ("keras", "h5"):
        opened = backbone(str(tmp_path / f"blend.{kind}"), preprocessing="none")  # what a run begins with
        np.testing.assert_allclose(opened(X), remove_head(tuned)(X), atol=1e-6)
