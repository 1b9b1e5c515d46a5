"""What thaw/_keras.py assumes of Keras' private attributes: a test for each function, failing where Keras changes."""

import ast
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw import _keras


def net():
    return keras.Sequential(
        [keras.Input((3,), name="in"), layers.Dense(4, "relu", name="a"), layers.Dense(2, name="b")]
    )


def nested():
    inner = net()
    entry = keras.Input((3,))
    return keras.Model(entry, layers.Dense(1, name="c")(inner(entry)))


def test_every_function_is_tested():
    """A private attribute without a test of its own would change unseen."""
    functions = [n.name for n in ast.parse(Path(_keras.__file__).read_text()).body if isinstance(n, ast.FunctionDef)]
    here = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in functions if f"_keras.{name}" not in here] == []


def test_sublayers_are_all_layers_with_the_model_first():
    model = nested()
    names = [layer.name for layer in _keras.sublayers(model)]
    assert names[0] == model.name
    assert {"a", "b", "c"} < set(names)
    assert [layer.name for layer in _keras.sublayers(model, include_self=False)] == names[1:]


def test_learnable_variables_are_there_also_when_frozen_and_statistics_are_not():
    norm = layers.BatchNormalization()
    norm.build((None, 3))
    for trainable in (True, False):
        norm.trainable = trainable
        assert [v.name for v in _keras.learnable_variables(norm)] == ["gamma", "beta"]
    assert _keras.learnable_variables(net()) == []  # those of the layers inside are theirs


def test_the_flag_of_a_layer_is_its_own():
    model = nested()
    inner = model.layers[1]
    _keras.set_trainable_flag(inner, False)
    assert _keras.trainable_flag(inner) is False
    assert all(_keras.trainable_flag(layer) for layer in inner.layers)
    assert all(v.trainable for layer in inner.layers for v in layer.weights)
    other = nested().layers[1]
    other.trainable = False  # the public setter reaches what is inside
    assert not any(_keras.trainable_flag(layer) for layer in other.layers)


def test_graphs():
    model, sequential = nested(), net()
    assert _keras.functional_graph(model) is model
    assert isinstance(_keras.functional_graph(sequential), keras.Model)
    nodes = _keras.graph_nodes(sequential)
    assert [node.operation.name for node in nodes] == ["in", "a", "b"]
    assert nodes[0].is_input
    assert _keras.graph_nodes(layers.Dense(1)) is None
    assert _keras.operation_of(model.output).name == "c"


def test_nodes_can_be_forgotten():
    layer = layers.Dense(2)
    first = layer(keras.Input((3,)))
    counts = _keras.node_counts(layer)
    layer(keras.Input((3,)))
    assert _keras.node_counts(layer) == (counts[0] + 1, counts[1])
    _keras.truncate_nodes(layer, counts)
    assert layer.output is first


def test_masks_travel_on_tensors():
    embedded = layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    assert np.asarray(_keras.mask_of(embedded)).tolist() == [[True, False]]
    plain = keras.ops.zeros((1, 2, 2))
    assert _keras.mask_of(plain) is None
    _keras.set_mask(plain, np.array([[True, False]]))
    pooled = layers.GlobalAveragePooling1D()(
        keras.ops.concatenate([plain[:, :1] + 4, plain[:, 1:]], axis=1), mask=_keras.mask_of(plain)
    )
    assert np.asarray(pooled).tolist() == [[4.0, 4.0]]  # the masked position does not count


def test_what_compile_was_given():
    model = net()
    assert _keras.compile_settings(model) == {}
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, "mse", metrics=["mae"], loss_weights=None)
    settings = _keras.compile_settings(model)
    assert settings["optimizer"] is optimizer
    assert (settings["loss"], settings["metrics"]) == ("mse", ["mae"])
    assert set(settings) >= {"jit_compile", "loss_weights", "weighted_metrics", "run_eagerly", "steps_per_execution"}
    model.compile(**settings)
    x = np.zeros((4, 3), "float32")
    model.fit(x, x[:, :2], verbose=0)
    _keras.forget_compiled_metrics(model)
    model.compile("sgd", "mse")
    assert "mae" not in model.evaluate(x, x[:, :2], verbose=0, return_dict=True)
    assert len(_keras.loss_variables(model)) == 2  # a sum and a count


def test_training_can_be_built_before_the_first_step():
    import tensorflow as tf

    model = net()
    model.compile("adam", "mse", metrics=["mae"])
    data = tf.data.Dataset.from_tensor_slices((np.zeros((4, 3), "float32"), np.zeros((4, 2), "float32"))).batch(2)
    _keras.build_training(model, data.element_spec)
    assert model.optimizer.built
    assert any("mae" in metric.name or metric.variables for metric in model.metrics)


def test_a_change_since_compile_is_seen():
    model = net()
    assert not _keras.changed_since_compile(model)
    model.compile("sgd", "mse")
    assert not _keras.changed_since_compile(model)
    model.layers[0].trainable = False
    assert _keras.changed_since_compile(model)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        (keras.metrics.SparseCategoricalAccuracy(), "max"),
        (keras.metrics.AUC(), "max"),
        (keras.metrics.MeanSquaredError(), "min"),
        (keras.metrics.KLDivergence(), "min"),
        (keras.metrics.Mean(), None),
        (None, None),
    ],
)
def test_metric_direction(metric, direction):
    assert _keras.metric_direction(metric) == direction


def test_metric_function():
    metric = keras.metrics.TopKCategoricalAccuracy(k=2)
    function, options = _keras.metric_function(metric)
    assert callable(function)
    assert options == {"k": 2}
    area = keras.metrics.AUC()
    assert _keras.metric_function(area) == (area, {})


def test_variables_of_a_metric_that_come_late_can_be_forgotten():
    metric = keras.metrics.F1Score(average="macro")
    count = len(_keras.metric_variables(metric))
    metric.update_state(np.eye(3, dtype="float32"), np.eye(3, dtype="float32"))
    assert len(_keras.metric_variables(metric)) > count
    _keras.forget_metric_variables(metric, count)
    assert len(_keras.metric_variables(metric)) == len(metric.variables) == count


def test_optimizers():
    model = net()
    inner = keras.optimizers.SGD(0.5)
    scaled = keras.optimizers.LossScaleOptimizer(inner)
    assert _keras.inner_optimizer(scaled) is inner
    assert _keras.inner_optimizer(inner) is inner
    weight = model.weights[0]
    assert _keras.variable_key(scaled, weight) == _keras.variable_key(inner, weight)
    assert _keras.variable_key(inner, weight) != _keras.variable_key(inner, model.weights[1])
    assert not _keras.is_patched(scaled)
    assert not _keras.is_patched("adam")
    _keras.patch_update_step(scaled, lambda step: lambda gradient, v, rate: step(gradient, v, 2 * rate))
    assert _keras.is_patched(scaled)
    before = weight.numpy()
    inner.build(model.trainable_variables)
    inner.apply([np.ones_like(v.numpy()) for v in model.trainable_variables])
    assert np.allclose(weight.numpy(), before - 1.0)


def test_weight_decay_can_be_scaled_by_variable():
    model = net()
    optimizer = keras.optimizers.AdamW(0.5, weight_decay=0.1)
    optimizer.build(model.trainable_variables)
    first, second = model.weights[0], model.weights[2]
    key = _keras.variable_key(optimizer, first)
    _keras.scale_weight_decay(optimizer, lambda v: 0.0 if _keras.variable_key(optimizer, v) == key else 1.0)
    before = first.numpy(), second.numpy()
    optimizer.apply([np.zeros_like(v.numpy()) for v in model.trainable_variables])
    assert np.array_equal(first.numpy(), before[0])
    assert np.allclose(second.numpy(), before[1] * (1 - 0.5 * 0.1))
    assert float(optimizer.learning_rate) == 0.5  # and the rate is what it was


def test_the_rate_of_the_last_step():
    model = net()
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)  # 1, 0.75, 0.5, 0.25, 0
    for optimizer, rates in ((keras.optimizers.SGD(schedule), [1, 0.75, 0.5]), (keras.optimizers.SGD(0.5), [0.5] * 3)):
        optimizer.build(model.trainable_variables)
        for rate in rates:
            optimizer.apply([np.zeros_like(v.numpy()) for v in model.trainable_variables])
            assert float(_keras.learning_rate_of_last_step(optimizer)) == rate
    unused = keras.optimizers.SGD(schedule)
    assert float(_keras.learning_rate_of_last_step(unused)) == 1.0


def test_moving_averages():
    model = net()
    assert _keras.moving_averages(keras.optimizers.SGD(0.5, use_ema=True)) == []  # not built yet
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    optimizer.build(model.trainable_variables)
    pairs = _keras.moving_averages(optimizer)
    assert [id(v) for v, _ in pairs] == [id(v) for v in model.trainable_variables]
    assert [tuple(a.shape) for _, a in pairs] == [tuple(v.shape) for v, _ in pairs]
    assert _keras.moving_averages(keras.optimizers.SGD(0.5)) == []


def test_lora_keeps_the_base_weights_frozen():
    layer = layers.Dense(2)
    layer.build((None, 3))
    assert _keras.lora_base_variables(layer) == []
    layer.enable_lora(1)
    (base,) = _keras.lora_base_variables(layer)
    assert base is layer._kernel
    assert not base.trainable
    for flag in (False, True):
        _keras.set_layer_trainable(layer, flag)
        assert layer.trainable is flag
        assert not base.trainable
        assert layer.lora_kernel_a.trainable is flag
    layer.trainable = False
    layer.trainable = True
    assert base.trainable  # Keras' own setter thaws it: that is why there is another


def test_a_variable_that_was_frozen_alone_stays_frozen():
    layer = layers.Dense(2)
    layer.build((None, 3))
    layer.kernel.trainable = False
    for flag in (True, False, True):
        _keras.set_layer_trainable(layer, flag)
        assert (layer.kernel.trainable, layer.bias.trainable) == (False, flag)


def test_a_graph_can_be_run_with_other_operations():
    model, seen = nested(), []

    def replace(operation):
        seen.append(operation.name)
        return operation

    x = np.ones((2, 3), "float32")
    assert np.array_equal(_keras.run_graph(model, x, replace), model(x))
    assert seen[-1] == "c"


def test_exclusions_from_weight_decay_are_copied():
    model = net()
    source, target = (keras.optimizers.AdamW(0.5, weight_decay=0.1) for _ in range(2))
    source.exclude_from_weight_decay(var_names=["bias"])
    _keras.copy_weight_decay_exclusions(source, target)
    target.build(model.trainable_variables)
    bias, kernel = model.layers[0].bias, model.layers[0].kernel
    bias.assign(np.ones(4))
    before = kernel.numpy()
    target.apply([np.zeros_like(v.numpy()) for v in model.trainable_variables])
    assert np.array_equal(bias.numpy(), np.ones(4))
    assert not np.array_equal(kernel.numpy(), before)


def test_an_object_is_saved_as_one_of_another_class():
    public = keras.optimizers.schedules.PolynomialDecay

    class Own(public):
        __class__ = _keras.serialized_as(public)

        def __call__(self, step):
            return 7.0

    schedule = Own(1.0, 4)
    assert schedule(0) == 7.0
    config = keras.optimizers.schedules.serialize(schedule)
    assert (config["module"], config["class_name"]) == ("keras.optimizers.schedules", "PolynomialDecay")
    assert config["registered_name"] is None
    assert type(keras.optimizers.schedules.deserialize(config)) is public
    assert keras.saving.serialize_keras_object(schedule)["class_name"] == "PolynomialDecay"
