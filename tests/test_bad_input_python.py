"""Bad input to the Python functions: one sentence, before anything is changed."""

import json

import numpy as np
import pytest

keras = pytest.importorskip("keras")
import tensorflow as tf
from keras import layers

from thaw.advice.advise import advise
from thaw.advice.compare import compare
from thaw.advice.lr_range import lr_finder
from thaw.checks import preflight
from thaw.data.conversion import as_dataset
from thaw.data.images import load_images
from thaw.features.predictions import evaluate
from thaw.finetune import fine_tune
from thaw.models.heads import attach_head
from thaw.models.stages import stages_of
from thaw.models.state import seed_everything
from thaw.plan import Phase, Plan
from thaw.retention.fisher_information import fisher
from thaw.retention.merging import score_of
from thaw.runs.export import export_model
from thaw.runs.predictor import predict
from thaw.transfer.probing import probe, rank

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
NAN = np.where(np.arange(32)[:, None] == 3, np.nan, X).astype("float32")
ONE = Plan([Phase(name="all", epochs=1)])


def net(units=2, activation="softmax"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,)), *(layers.Dense(4, "relu") for _ in range(2)), layers.Dense(units, activation)]
    )


def compiled(loss="sparse_categorical_crossentropy", metrics=("accuracy",), optimizer="adam", **shape):
    model = net(**shape)
    model.compile(optimizer, loss, metrics=list(metrics))
    return model


def batches(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def trace(model):
    """What must not have changed."""
    return (
        [v.numpy().tolist() for v in model.variables],
        [layer.trainable for layer in model._flatten_layers()],
        [v.trainable for v in model.weights],
        model.compiled,
        id(model.optimizer),
    )


COMPARE = {"minutes": 0.001, "seeds": 1}


def both(data):
    return {"validation_data": data, "test_data": data}


def everywhere(x, y, loss="sparse_categorical_crossentropy", **shape):
    """What every function that looks at a model and labelled data says."""
    model = compiled(loss, **shape)
    before, said, data = trace(model), {}, (x, y)
    calls = {
        "fine_tune": lambda: fine_tune(model, ONE, x, y, validation_data=data),
        "advise": lambda: advise(model, x, y, validation_data=data, minutes=0.01, epochs=1),
        "compare": lambda: compare(lambda seed: compiled(loss, **shape), x, y, **COMPARE | both(data)),
        "lr_finder": lambda: lr_finder(model, x, y, steps=20, repeats=2),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError) as raised:
            call()
        said[name] = str(raised.value)
    assert trace(model) == before
    return said


def test_inputs_that_are_no_numbers():
    model = compiled()
    sentence = "1 of 32 inputs hold NaN or infinity, the first of them at 3"
    assert all(sentence in text for text in everywhere(NAN, Y).values())
    for call in (probe, fisher):
        with pytest.raises(ValueError, match=sentence):
            call(model, NAN, Y)
    with pytest.raises(ValueError, match=sentence):
        score_of(model, (NAN, Y))
    for call in (probe, fisher, lr_finder):
        with pytest.raises(ValueError, match=r"NaN or infinity"):
            call(model, batches(NAN))
    with pytest.raises(ValueError, match="1 of 32 sample weights hold NaN"):
        fine_tune(model, ONE, X, Y, sample_weight=NAN[:, 0])


def test_large_numbers_are_numbers_and_memory_maps_are_not_read_through(tmp_path):
    as_dataset(np.full((4, 9), 3e38, "float32"), np.zeros(4))
    as_dataset(np.full((4, 999), 6e4, "float16"), np.zeros(4))
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "float32", (32, 4))
    stored[:] = NAN
    as_dataset(stored, Y)
    with pytest.raises(ValueError, match="The first batch holds NaN or infinity"):
        fine_tune(compiled(), ONE, stored, Y)


@pytest.mark.parametrize(
    ("y", "loss", "sentence"),
    [
        (Y + 1, "sparse_categorical_crossentropy", "labels go from 1 to 2 and the model has 2 classes"),
        (np.eye(2)[Y], "sparse_categorical_crossentropy", r"labels have shape (2,) (one-hot) and the loss is sparse"),
        (np.array(["a", "b"])[Y], "sparse_categorical_crossentropy", "texts, such as"),
        (np.where(Y, np.nan, 0), "sparse_categorical_crossentropy", "labels hold NaN or infinity"),
        (Y + 0.5, "sparse_categorical_crossentropy", "labels are not whole numbers"),
        (Y, "categorical_crossentropy", "Use sparse_categorical_crossentropy"),
    ],
)
def test_labels_that_do_not_fit(y, loss, sentence):
    said = everywhere(X, y, loss)
    if y.ndim == 1 and y.dtype.kind in "Uf":  # no class numbers: advice says so in its own words
        assert "The labels are" in said.pop("advise")
    for name, text in said.items():
        assert sentence in text, name


def test_labels_of_a_binary_loss():
    said = everywhere(X, np.arange(32) % 3, "binary_crossentropy", units=1, activation="sigmoid")
    assert all("labels go from 0 to 2 and binary_crossentropy expects 0 to 1" in text for text in said.values())


def test_labels_of_other_losses_are_left_alone():
    """Labels that are missing are often NaN, and a loss of the user's own knows."""

    def masked(y, p):
        known = keras.ops.isfinite(y)
        return keras.ops.mean(keras.ops.where(known, keras.ops.where(known, y, 0.0) - p, 0.0) ** 2)

    y = np.where(Y, np.nan, 0).astype("float32")[:, None]
    model = compiled(masked, [], units=1, activation=None)
    assert np.isfinite(fine_tune(model, ONE, X, y, validation_data=(X, y)).history["loss"]).all()


def test_inputs_of_another_shape():
    sentence = r"inputs have shape (3,) and sequential"
    said = everywhere(X[:, :3], Y)
    for name, text in said.items():
        assert sentence in text, name
        assert "takes (4,)" in text, name
    for call in (lambda: probe(net(), X[:, :3], Y), lambda: rank({"a": net()}, X[:, :3], Y)):
        with pytest.raises(ValueError, match=r"is given inputs of shape \(3,\); expected \(4,\)") as raised:
            call()
        assert "in user code" not in str(raised.value)
    with pytest.raises(ValueError, match=r"The validation inputs have shape \(3,\)"):
        fine_tune(compiled(), ONE, X, Y, validation_data=(X[:, :3], Y))
    with pytest.raises(ValueError, match="The data set is not batched"):
        fine_tune(compiled(), ONE, batches().unbatch())


def test_inputs_that_keras_brings_into_shape():
    entry = keras.Input((1,))
    model = keras.Model(entry, layers.Dense(2, "softmax")(layers.Dense(2)(entry)))
    model.compile("adam", "sparse_categorical_crossentropy")
    fine_tune(model, ONE, X[:, 0], Y)
    fine_tune(compiled(), ONE, X[:, :, None], Y)


def test_an_empty_data_set():
    for call in (
        lambda: lr_finder(compiled(), batches(X[:0], Y[:0]), steps=20, repeats=2),
        lambda: fine_tune(compiled(), ONE, batches(X[:0], Y[:0])),
    ):
        with pytest.raises(ValueError, match=r"The (data set is|training data are) empty; expected at least one batch"):
            call()


def test_what_scores_a_model():
    model = compiled()
    for y, sentence in ((Y + 5, "labels go from 5 to 6; expected class numbers 0 to 1"), (Y.astype(str), "texts|<U")):
        with pytest.raises(ValueError, match=sentence):
            score_of(model, (X, y))
    with pytest.raises(ValueError, match=r"A label is b'[ab]'; expected a class number from 0 to 1"):
        fisher(model, X, np.array(["a", "b"])[Y], classes="true")
    with pytest.raises(ValueError, match="A label is nan; expected a class number from 0 to 1"):
        fisher(model, X, np.full(32, np.nan), classes="true")


@pytest.mark.parametrize(
    "plan", [Phase(name="a", epochs=1), [], None, {"phase": []}], ids=["phase", "empty", "none", "dict"]
)
def test_a_plan_that_is_none(plan):
    model = compiled()
    before = trace(model)
    with pytest.raises(ValueError, match=r"The plan is a .*; expected a thaw.Plan, such as Plan.named"):
        fine_tune(model, plan, X, Y)
    assert trace(model) == before


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"x": (X, Y)}, "The training data have no labels: y is None; expected one label for each input"),
        ({"x": {"x": X, "y": Y}}, "The training data have no labels"),
        ({"x": "photos", "y": Y}, "The training data are a str; expected thaw.Dataset, arrays x and y"),
        ({"x": None, "y": Y}, "The training data are a NoneType"),
        ({"x": ((X, Y), (X, Y)), "y": Y}, "rows of different lengths|There are 2 inputs"),
        ({"x": batches(), "y": Y}, "The training data are a _BatchDataset, which brings its own labels"),
        ({"x": X, "y": Y, "validation_data": "val"}, "The validation data are a str"),
        ({"x": X, "y": Y, "validation_data": 0.2}, "The validation data are a float"),
        ({"x": X, "y": Y, "validation_data": (X,)}, "The validation data are 1 arrays"),
        ({"x": X, "y": "Y"}, "The labels are 'Y'; expected one for each input"),
        ({"x": batches().map(lambda x, y: x)}, "The training data have inputs and no labels; expected batches of"),
        ({"x": X.astype(complex), "y": Y}, r"The training data are complex numbers \(complex128\); expected real"),
        ({"x": X, "y": Y, "validation_data": (NAN, Y)}, "In the validation data, 1 of 32 inputs hold NaN"),
        ({"x": X, "y": Y, "validation_data": (X[:0], Y[:0])}, "In the validation data, there are no examples"),
        ({"x": X, "y": Y, "sample_weight": -X[:, 0]}, "In the training data, the lowest sample weight is -"),
        ({"x": X, "y": Y, "sample_weight": 0 * X[:, 0]}, "In the training data, all sample weights are 0"),
        (
            {"x": batches().map(lambda x, y: (x, y, tf.cast(y, "float32") - 1))},
            "The lowest sample weight in the first batch is -1",
        ),
        ({"x": X, "y": Y, "monitor": "val_auc", "validation_data": (X, Y)}, "There is no metric 'auc'; expected one"),
        ({"x": X, "y": Y, "mode": "min", "validation_data": (X, Y)}, "accuracy is better when higher; leave mode"),
    ],
)
def test_data_in_the_wrong_wrapper(data, sentence):
    with pytest.raises(ValueError, match=sentence):
        fine_tune(compiled(), ONE, **data)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "is a NoneType; expected a keras.Model."),
        ("net.keras", "is a str; expected a keras.Model: load it by keras.saving.load_model"),
        (net, "is a function; expected a keras.Model: call the function"),
        (layers.Dense(2), "is a Dense; expected a keras.Model: put the layer into"),
    ],
    ids=["none", "path", "function", "layer"],
)
def test_a_model_that_is_none(given, sentence):
    for call in (
        lambda: fine_tune(given, ONE, X, Y),
        lambda: attach_head(given, 2),
        lambda: probe(given, X, Y),
        lambda: rank({"a": given}, X, Y),
        lambda: evaluate(given, X, Y),
        lambda: predict(given, X, ["a", "b"]),
        lambda: export_model(given, "served"),
        lambda: stages_of(given),
        lambda: lr_finder(given, X, Y),
        lambda: advise(given, X, Y, validation_data=(X, Y)),
    ):
        with pytest.raises(TypeError) as raised:
            call()
        assert sentence in str(raised.value)


@pytest.mark.parametrize("seed", [-1, 2**32, None, "x", 1.5])
def test_a_seed_that_is_none(seed):
    for call in (
        lambda: fine_tune(compiled(), ONE, X, Y, seed=seed),
        lambda: attach_head(net(), 2, seed=seed),
        lambda: probe(net(), X, Y, seed=seed),
        lambda: evaluate(net(), X, Y, seed=seed),
        lambda: load_images("photos", seed=seed),
        lambda: seed_everything(seed),
    ):
        with pytest.raises(ValueError, match=r"seed=.*; expected a whole number from 0 to 4294967295"):
            call()


@pytest.mark.parametrize("loss", ["mse", "mae", keras.losses.Huber(), "poisson"])
def test_numbers_of_another_width_are_not_broadcast(loss):
    for units, y, sentence in (
        (1, X[:, :3], r"labels have shape \(3,\) and the model has 1 output\."),
        (3, Y, r"labels have shape \(\) and the model has 3 outputs\."),
        (3, X[:, :1], r"labels have shape \(1,\) and the model has 3 outputs\."),
    ):
        model = compiled(loss, [], units=units, activation=None)
        assert sentence.replace("\\", "") in " ".join(map(str, preflight(model, X, y)))
        with pytest.raises(ValueError, match=sentence):
            fine_tune(model, ONE, X, y)
    for units, y in ((1, Y), (1, X[:, :1]), (3, X[:, :3])):
        assert "labels" not in {finding.code for finding in preflight(compiled(loss, [], units=units), X, y)}


def two_of_each():
    """Two inputs, a and b, and two outputs, c and d."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    both = layers.Dense(4)(layers.Concatenate()([a, b]))
    model = keras.Model([a, b], [layers.Dense(1, name="c")(both), layers.Dense(1, name="d")(both)], name="two")
    model.compile("adam", "mse")
    return model


def test_several_inputs_and_outputs():
    inputs, labels = {"a": X, "b": X}, (X[:, 0], X[:, 1])
    with pytest.raises(ValueError, match="The inputs are named a, c; two takes a, b: b is missing"):
        fine_tune(two_of_each(), ONE, {"a": X, "c": X}, labels)
    with pytest.raises(ValueError, match=r"The labels are one array and the model has 2 outputs \(c, d\)"):
        fine_tune(two_of_each(), ONE, inputs, X[:, 0])
    with pytest.raises(ValueError, match=r"The validation inputs are named a; two takes a, b: b is missing"):
        fine_tune(two_of_each(), ONE, inputs, labels, validation_data=({"a": X}, labels))
    findings = preflight(two_of_each(), inputs, labels, validation_data=(inputs, labels))
    assert "error" not in {finding.level for finding in findings}


def test_inputs_of_another_shape_are_named_in_one_line():
    for x, sentence in ((X[:, :2], r"is given inputs of shape \(2,\); expected \(4,\)"), ((X, X), "takes 1")):
        with pytest.raises(ValueError, match=sentence) as raised:
            evaluate(net(), x, Y)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("x", [X.tolist(), (X * 10).astype(int), X.astype("float64")], ids=["list", "int", "double"])
def test_training_and_validation_data_of_different_types(x):
    """The first phase computes features of both, in one runtime, in the type that the model's input declares."""
    plan = Plan([Phase(name="head", epochs=1, train="head")])
    histories = []
    for given in (x, np.asarray(x, "float32")):
        histories.append(fine_tune(compiled(), plan, given, Y, validation_data=(X, Y)).history)
    assert histories[0]["val_loss"] == histories[1]["val_loss"]


def test_a_folder_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file' is a file; expected a folder to save the run in"):
        fine_tune(compiled(), ONE, X, Y, backup_dir=tmp_path / "file")
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="file is a file; expected a folder for the cache"):
        compare(lambda seed: compiled(), X, Y, **COMPARE | both((X, Y)))
    assert (tmp_path / "file").read_text() == "mine"


def test_after_an_error_the_model_is_as_it_was(tmp_path):
    model = compiled()
    model.layers[0].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    fine_tune(compiled(), ONE, X, Y, backup_dir=tmp_path)
    before = trace(model)
    with pytest.raises(ValueError, match="holds an unfinished run of another plan"):
        fine_tune(model, Plan.named("probe"), X, Y, backup_dir=tmp_path)
    assert trace(model) == before

    class Wrong(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fine_tune(model, Plan.named("probe"), X, Y, callbacks=[Wrong()])
    assert trace(model) == before
    model.fit(X, Y, verbose=0)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`compile\\(\\)` was not called:UserWarning"
)  # says Keras when it clones such a model
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")  # a list, as Own was given it
def test_a_model_with_a_compile_of_its_own():
    class Own(keras.Model):
        def compile(self, optimizer, my_loss, extra=1.0):
            super().compile(optimizer=optimizer, loss=my_loss, metrics=["accuracy"])
            self.extra = extra

    def own(seed=0):
        plain = net()
        model = Own(plain.inputs, plain.outputs)
        model.compile("adam", "sparse_categorical_crossentropy", extra=2.0)
        return model

    model = own()
    advise(model, X, Y, validation_data=(X, Y), minutes=0.001, epochs=1)
    advise(model, X, Y, validation_data=(X, Y), minutes=0.001, epochs=1, head="kept")
    fine_tune(model, Plan.named("probe", epochs=1), X, Y, validation_data=(X, Y))
    assert model.compiled
    assert model.extra == 2.0
    compare(own, X, Y, **COMPARE | both((X, Y)), ways=("frozen", "scratch"))


def test_an_optimizer_that_does_not_say_what_it_is_made_of():
    class Own(keras.optimizers.SGD):
        def __init__(self, mine, **more):
            super().__init__(**more)

    model = compiled(optimizer=Own(3))
    before = trace(model)
    for call in (
        lambda: fine_tune(model, ONE, X, Y),
        lambda: advise(model, X, Y, validation_data=(X, Y), minutes=0.001, epochs=1),
        lambda: lr_finder(model, X, Y, steps=20, repeats=2),
    ):
        with pytest.raises(ValueError, match=r"Own cannot be cloned from its get_config \(.*mine"):
            call()
        assert trace(model) == before


def test_build_gives_the_same_model_twice():
    model, shared = compiled(), layers.Dense(4, "relu")
    before = trace(model)

    def one_layer_is_shared(seed):
        made = keras.Sequential([keras.Input((4,)), shared, layers.Dense(4), layers.Dense(2, "softmax")])
        made.compile("adam", "sparse_categorical_crossentropy")
        return made

    for build in (lambda seed: model, one_layer_is_shared):
        with pytest.raises(ValueError, match="returned the same model twice, or two that share layers"):
            compare(build, X, Y, **COMPARE | both((X, Y)))
    with pytest.raises(ValueError, match="build is a Sequential; expected a function from a seed"):
        compare(model, X, Y, **COMPARE | both((X, Y)))
    assert trace(model) == before


def test_numbers_of_numpy(tmp_path):
    phase = Phase(name="a", epochs=np.int64(1), train=np.int32(1), learning_rate=np.float32(0.5), views=np.int8(0))
    plan = Plan([phase])
    assert Plan.from_toml(plan.to_toml()) == plan
    settings = {"batch_size": np.int64(8), "seed": np.int64(1)}
    fine_tune(compiled(), plan, X, Y, validation_data=(X, Y), backup_dir=tmp_path, **settings)
    advice = advise(compiled(), X, Y, validation_data=(X, Y), minutes=np.float32(1e-6), epochs=np.int64(1), **settings)
    json.dumps(advice.to_dict())
    lr_finder(compiled(), X, Y, steps=np.int64(20), repeats=np.int64(2), **settings)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": -1}, {"batch_size": 2.5}, {"batch_size": "8"}, {"seed": -1}, {"seed": "a"}],
    ids=str,
)
def test_numbers_that_cannot_be_meant(wrong):
    sentence = f"{next(iter(wrong))}=.*; expected a whole number from [01]"
    for call in (
        lambda: fine_tune(compiled(), ONE, X, Y, **wrong),
        lambda: advise(compiled(), X, Y, validation_data=(X, Y), **wrong),
        lambda: lr_finder(compiled(), X, Y, **wrong),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    for minutes in ("5", None, [1]):
        with pytest.raises(ValueError, match=r"minutes=.*; expected a number above 0|Advice needs"):
            advise(compiled(), X, Y, validation_data=None, minutes=minutes)
    for rates in (1e-3, ("a", "b"), (1,)):
        with pytest.raises(ValueError, match="expected a rate above 0 and a higher one"):
            lr_finder(compiled(), X, Y, rates=rates)


def test_what_is_no_number_in_the_logs(tmp_path):
    class Mine(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs |= {"matrix": [[1, 2], [3, 4]], "odd": [[1], [2, 3]], "word": "good"}

    y = np.eye(2, dtype="float32")[Y]
    model = compiled("categorical_crossentropy", ["accuracy", keras.metrics.F1Score()])
    history = fine_tune(model, ONE, X, y, validation_data=(X, y), callbacks=[Mine()], backup_dir=tmp_path).history
    assert np.shape(history["f1_score"]) == np.shape(history["val_f1_score"]) == (1, 2)
    assert history["matrix"] == [[[1.0, 2.0], [3.0, 4.0]]]
    assert (history["odd"], history["word"]) == (["[[1], [2, 3]]"], ["good"])


def test_metrics_that_make_their_variables_late():
    y = np.eye(2, dtype="float32")[Y]
    score = keras.metrics.F1Score(average="macro")
    model = compiled("categorical_crossentropy", ["accuracy", score])
    before = sorted(vars(score)), len(score.variables), score._built
    advise(model, X, y, validation_data=(X, y), minutes=0.001, epochs=1)
    assert (sorted(vars(score)), len(score.variables), score._built) == before
    model.fit(X, y, verbose=0)
    assert len(score.variables) == 4
    assert score._built


def test_data_for_a_training_step_of_the_users_own():
    """What such a step makes of the data, and of the loss, is its own affair."""

    class Own(keras.Model):
        def train_step(self, data):
            x = data[0] if isinstance(data, tuple) else data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=tf.one_hot(tf.zeros(8, tf.int32), 2), y_pred=tf.nn.softmax(self(x)[:, :2]))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    for parts in ((X,), (X, Y), (X, Y, Y, Y)):
        plain = net(4, None)
        model = Own(plain.inputs, plain.outputs)
        model.compile("adam", keras.losses.CategoricalCrossentropy())
        data = tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else X).batch(8)
        if len(parts) == 2:
            lr_finder(model, data, steps=20, repeats=2)
        fine_tune(model, Plan([Phase(name="head", epochs=1, train="head")]), data)


def test_advice_for_two_outputs():
    entry = keras.Input((4,))
    inner = layers.Dense(4)(entry)
    model = keras.Model(entry, [layers.Dense(2, "softmax", name=name)(inner) for name in "ab"])
    model.compile("adam", ["sparse_categorical_crossentropy"] * 2)
    with pytest.raises(ValueError, match="has 2 outputs; advice is for one"):
        advise(model, X, Y, validation_data=(X, Y))
