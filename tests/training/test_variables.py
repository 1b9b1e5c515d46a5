"""Phases that train some kinds of weights only: those change, and nothing else does."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.features.split import split_model
from thaw.finetune import fine_tune
from thaw.models.stages import stages_of
from thaw.plan import Phase, Plan
from thaw.training.freezing import freeze


def net():
    """Two stages of a filter over space, a depthwise one and a product over channels, and a head."""
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((8, 8, 3))
    for i in range(2):
        x = layers.DepthwiseConv2D(3, 2, padding="same", name=f"depthwise{i}")(x)
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"wide{i}")(x)
        x = layers.LayerNormalization(name=f"layer{i}")(layers.BatchNormalization(name=f"batch{i}")(x))
        x = layers.Conv2D(6, 1, name=f"point{i}", activation="relu")(x)
    x = layers.Dense(2, "softmax", name="out")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 3)).astype("float32"), np.arange(16) % 2
    x[y == 1, 2:5, 2:5] += 2
    return x, y


def phase(**options):
    return Phase(**{"name": "top", "epochs": 1, "learning_rate": 1e-2, "train": 1, "warmup": 0} | options)


def train(model, *phases, **options):
    x, y = data()
    return fine_tune(model, Plan(phases), x, y, validation_data=(x, y), batch_size=8, verbose=0, **options)


HEAD = {"out/kernel", "out/bias"}
CHOSEN = {
    ("pointwise", "frozen"): {"point1/kernel", "point1/bias", "depthwise1/bias", "layer1/gamma", "layer1/beta"},
    ("norms", "frozen"): {"layer1/gamma", "layer1/beta"},
    ("norms", "trained"): {"layer1/gamma", "layer1/beta", "batch1/gamma", "batch1/beta"},
    ("bias", "frozen"): {"point1/bias", "depthwise1/bias", "layer1/beta"},
}
STATISTICS = {"batch1/moving_mean", "batch1/moving_variance"}


@pytest.mark.parametrize(("variables", "batchnorm"), CHOSEN)
def test_exactly_those_variables_change(variables, batchnorm):
    model = net()
    assert [stage.name for stage in freeze(model, 1, batchnorm, variables=variables)] == ["stage2", "head"]
    expected = CHOSEN[variables, batchnorm] | HEAD
    assert {v.path for v in model.trainable_variables} == expected
    before = {v.path: v.numpy() for v in model.weights}
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(*data(), verbose=0)
    changed = {v.path for v in model.weights if not np.array_equal(v.numpy(), before[v.path])}
    assert changed == expected | (STATISTICS if batchnorm == "trained" else set())


def test_all_are_trained_again_in_the_next_phase_but_those_that_the_user_froze():
    model = net()
    model.get_layer("wide1").kernel.trainable = False
    model.get_layer("point1").bias.trainable = False
    freeze(model, "all")
    before = {v.path for v in model.trainable_variables}
    for variables in ("pointwise", "bias", "pointwise"):
        freeze(model, "all", variables=variables)
        assert not model.get_layer("wide1").kernel.trainable
        assert not model.get_layer("point1").bias.trainable
    freeze(model, "head")
    freeze(model, "all")
    assert {v.path for v in model.trainable_variables} == before
    assert {"wide1/kernel", "point1/bias"}.isdisjoint(before)
    assert "wide0/kernel" in before


def test_base_weights_under_lora_stay_frozen():
    model = net()
    model.get_layer("point1").enable_lora(2)
    freeze(model, 1, variables="pointwise")
    names = {v.path for v in model.trainable_variables}
    assert {"point1/lora_kernel_a", "point1/lora_kernel_b"} <= names
    assert "point1/kernel" not in names


def test_no_gradient_of_a_depthwise_filter_is_computed():
    def gradient_operations(variables):
        model = net()
        freeze(model, 1, variables=variables)
        suffix = split_model(model)[1]

        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(suffix(x, training=True))
            return tape.gradient(loss, [v.value for v in suffix.trainable_variables])

        graph = step.get_concrete_function(tf.TensorSpec((2, *suffix.input_shape[1:]))).graph
        used = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), [t.op.name for t in graph.outputs])
        return sorted(node.op for node in used.node if node.op.endswith("BackpropFilter"))

    assert gradient_operations("all") == ["Conv2DBackpropFilter"] * 2 + ["DepthwiseConv2dNativeBackpropFilter"]
    assert gradient_operations("pointwise") == ["Conv2DBackpropFilter"]
    assert gradient_operations("norms") == []


def test_layers_without_such_weights_join_the_prefix():
    model = net()
    freeze(model, 1, variables="norms")
    prefix, suffix = split_model(model)
    assert {"depthwise1", "wide1"} <= {layer.name for layer in prefix.layers}
    assert "layer1" in {layer.name for layer in suffix.layers}


def test_fine_tune_leaves_out_what_the_phase_leaves_out():
    model = net()
    before = {v.path: v.numpy() for v in model.weights}
    history = train(model, phase(epochs=2, variables="norms"))
    changed = {v.path for v in model.weights if not np.array_equal(v.numpy(), before[v.path])}
    assert changed == CHOSEN["norms", "frozen"] | HEAD
    assert not any("did not change" in note or "was frozen" in note for note in history.notes)
    # A file saved now names an optimizer of all the weights that Keras finds trainable when it opens it.
    assert {v.path for v in model.trainable_variables} > changed
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)


def test_a_later_phase_trains_the_rest_and_a_resumed_run_is_bit_identical(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    plan = [phase(epochs=2, variables="pointwise"), phase(name="all", epochs=2)]
    whole, stopped, resumed = net(), net(), net()
    before = whole.get_layer("wide1").kernel.numpy()
    train(whole, *plan)
    assert not np.array_equal(whole.get_layer("wide1").kernel.numpy(), before)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, *plan, backup_dir=tmp_path, callbacks=[Stop()])
    train(resumed, *plan, backup_dir=tmp_path)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(whole.weights, resumed.weights))


def test_nothing_to_train_is_said_before_the_training():
    model = net()
    stages = [stage.name for stage in stages_of(model)]
    without = keras.Model(model.input, layers.Dense(2, "softmax")(layers.Flatten()(model.get_layer("batch1").output)))
    without.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r'variables = "norms" leaves nothing to train in stage2; .* batchnorm = "t'):
        train(without, phase(variables="norms"))
    with pytest.raises(ValueError, match="variables='kernels'; expected one of all, pointwise, norms, bias"):
        freeze(model, variables="kernels")
    assert stages == ["stage1", "stage2", "head"]


def test_a_plan_says_which():
    plan = Plan([phase(variables="pointwise")])
    assert Plan.from_toml(plan.to_toml()) == plan
    assert 'variables = "pointwise"' in plan.to_toml()
    assert "head + 1 (pointwise)" in str(plan)
    with pytest.raises(ValueError, match="\"top\" has variables = 'depthwise'; expected one of all, pointwise"):
        phase(variables="depthwise")
