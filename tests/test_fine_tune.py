"""A plan is run as it says, and what comes out is what plain Keras would have made."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

import thaw
from thaw.data.dataset import Dataset
from thaw.finetune import fine_tune
from thaw.models.heads import attach_head
from thaw.plan import Phase, Plan
from thaw.training.callbacks import TuneCallback
from thaw.training.checkpoint import variables_of
from thaw.training.freezing import freeze


def net(kind="flat", policy=None):
    keras.utils.set_random_seed(0)
    if policy:
        keras.config.set_dtype_policy(policy)
    x = entry = keras.Input((8, 8, 1))
    for filters in (4, 6):
        y = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.Add()([y, layers.Conv2D(filters, 3, padding="same")(y)])
    inner = keras.Model(entry, x)
    if kind == "nested":
        entry = keras.Input((8, 8, 1))
        inner = keras.Model(entry, inner(entry, training=False))
    model = attach_head(inner, 3, dropout=0.3)
    model.compile(
        keras.optimizers.Adam(0.5, beta_1=0.8, global_clipnorm=1.0),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def data(n=44, seed=0, **more):
    """Which third of the picture is bright."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n).astype("int32")
    x = rng.normal(0, 1, (n, 8, 8, 1)).astype("float32")
    for i, label in enumerate(y):
        x[i, :, 3 * label : 3 * label + 2] += 1.5
    return Dataset(x=x, y=y, **more)


def noise(x, seed):
    return x + 0.2 * tf.random.stateless_normal(tf.shape(x), seed)


def phase(name="head", epochs=2, train="head", **more):
    return Phase(**{"name": name, "epochs": epochs, "train": train, "learning_rate": 1e-2} | more)


def run(plan, model=None, train=None, validation=None, **options):
    model = model or net()
    train = train if train is not None else data(augment=noise)
    validation = validation if validation is not None else data(20, 1)
    given = dict(zip(("x", "y", "sample_weight"), train if isinstance(train, tuple) else (train,)))
    options = {"batch_size": 8, "verbose": 0} | options
    history = fine_tune(model, Plan(plan), **given, validation_data=validation, **options)
    return model, history


def weights(model):
    return [w.numpy() for w in model.weights]


def equal(a, b):
    return all(np.array_equal(p, q) for p, q in zip(weights(a), weights(b)))


def equal_to(model, arrays):
    return all(np.array_equal(a, b) for a, b in zip(weights(model), arrays))


PLAN = [
    phase(views=2, epochs=3),
    phase("top", 3, 1, views=2, layer_decay=0.5, learning_rate=3e-3),
    phase("one", 2, ("stage2",), views=3, schedule="constant", warmup=0),
]


class After(TuneCallback):
    """The weights after each phase."""

    def __init__(self):
        super().__init__()
        self.after = {}

    def on_phase_end(self, phase, changes, notes):
        self.after[phase.name] = weights(self.model)


class Watch(After):
    """What a user's callback may do."""

    def __init__(self):
        super().__init__()
        self.seen, self.events = [], []

    def on_phase_begin(self, phase, stages):
        self.events.append(("begin", phase.name, [stage.name for stage in stages]))

    def on_phase_end(self, phase, changes, notes):
        super().on_phase_end(phase, changes, notes)
        self.events.append(("end", phase.name, len(changes)))

    def on_precompute(self, done, total):
        self.events.append(("precompute", done, total))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, self.model.predict(data(3).x, verbose=0).shape, self.model.input_shape))

    @property
    def computed(self):
        """(done, total) of each batch of cached features."""
        return [event[1:] for event in self.events if event[0] == "precompute"]


@pytest.fixture(scope="module")
def tuned():
    """A model after three phases on cached features, its history, and what a callback saw; only to be read."""
    watch = Watch()
    return *run(PLAN, callbacks=[watch]), watch


def test_fine_tune_repeats_to_the_bit_and_a_callback_that_watches_changes_nothing(tuned):
    first, one, watch = tuned
    again, two = run(PLAN)
    assert equal(first, again)
    assert one.history["val_loss"] == two.history["val_loss"]
    other, _ = run(PLAN[:1], seed=1)
    assert not equal_to(other, watch.after["head"])


def test_fine_tune_on_cached_features_is_the_same_as_live(tuned):
    """Validation data that are a stream have no features to cache, and then all of the model is computed."""
    cached, one, watched = tuned
    watch = Watch()
    computed, two = run(PLAN, validation=data(20, 1).ordered(8), callbacks=[watch])
    assert watched.computed
    assert not watch.computed
    # On some CPUs the last bit depends on the position of an example in its batch.
    for name in ("loss", "val_loss"):
        assert one.history[name] == pytest.approx(two.history[name], abs=1e-5)
    for here, there in zip(weights(cached), weights(computed)):
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)


def test_fine_tune_traces_a_step_once_and_moves_batchnorm_only_where_it_is_to_be_trained(monkeypatch):
    """Keras alone traces a step twice, because the first step makes the variables of the metrics."""
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda model, batch: traced.append(model) or step(model, batch))
    _, history = run([phase("trained", 1, "all", batchnorm="trained"), phase("frozen", 1, "all")])
    assert len(traced) == 2  # one for each phase
    assert all(m["statistics"] > 0 for m in history.weight_change["trained"][:-1])
    assert all(m["statistics"] == 0 for m in history.weight_change["frozen"])


def test_one_phase_is_plain_fit():
    """The same order, the same bits."""
    train, validation = data(), data(20, 1)
    model, history = run([phase("all", 3, "all", schedule="constant", warmup=0)], None, train, validation, seed=4)
    plain = net()
    freeze(plain, "all")
    optimizer = keras.optimizers.Adam(1e-2, beta_1=0.8, global_clipnorm=1.0)
    plain.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept[epoch] = (logs["val_accuracy"], -logs["val_loss"], weights(plain))

    expected = plain.fit(
        train.epochs(8, 4), steps_per_epoch=6, epochs=3, validation_data=validation.ordered(8), callbacks=[Keep()],
        shuffle=False, verbose=0,
    )  # fmt: skip
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert history.history[name] == expected.history[name]
    best = max(kept, key=lambda epoch: kept[epoch][:2])
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), kept[best][2]))


@pytest.mark.parametrize("views", [0, 2])
def test_fine_tune_counts_sample_weights(views):
    """An example of weight 0 is as one whose label does not matter; one of weight 1 is as without weights."""
    weight = np.ones(44, "float32")
    weight[:20] = 0
    wrong = data()
    wrong.y[:20] = (wrong.y[:20] + 1) % 3
    plan = [phase(epochs=1, views=views, schedule="constant", warmup=0)]

    def after(y, weight):
        return run(plan, None, Dataset(x=data().x, y=y, sample_weight=weight, keys=np.arange(44)))[0]

    a, b = after(data().y, weight), after(wrong.y, weight)
    assert equal(a, b)
    if views:  # the rest does not depend on them
        return
    ones = after(data().y, np.ones(44, "float32"))
    assert not equal(a, ones)
    assert all(np.allclose(p, q, atol=1e-5) for p, q in zip(weights(ones), weights(after(data().y, None))))


def test_the_history_has_a_row_an_epoch():
    _, history = run([phase(epochs=2, schedule="linear"), phase("top", 1, 1, schedule="constant", warmup=0)])
    assert history.epoch == [0, 1, 2]
    assert history.history["phase"] == ["head", "head", "top"]
    assert history.history["learning_rate"][2] == pytest.approx(1e-2)
    # B9 of the first version: the rate of the next step, which is 0 at the end of a phase.
    assert 0 < history.history["learning_rate"][1] < 5e-3
    assert all(len(column) == 3 for column in history.history.values())
    assert all(s >= 0 for s in history.history["seconds"])
    assert set(history.weight_change) == {"head", "top"}


def test_fine_tune_leaves_what_is_frozen_as_it_was(tuned):
    model, history, _ = tuned
    stages = {m["stage"]: m for m in history.weight_change["head"]}
    assert stages["head"]["weights"] > 0
    for frozen in (stages["stage1"], stages["stage2"]):
        assert frozen["weights"] == frozen["statistics"] == 0
    fresh = net()
    assert np.array_equal(model.layers[1].kernel, fresh.layers[1].kernel)
    assert not [note for note in history.notes if "stand still" in note or "held" in note]


def test_fine_tune_keeps_the_best_of_all_phases():
    ruin, watch = phase("ruin", 2, "all", learning_rate=50.0, schedule="constant", warmup=0), After()
    model, history = run([phase(epochs=6), ruin], callbacks=[watch])
    assert equal_to(model, watch.after["head"])
    assert any(
        'Phase "ruin" found nothing better; the weights from before it were restored.' in n for n in history.notes
    )
    best = max(history.history["val_accuracy"])
    x, y = data(20, 1).x, data(20, 1).y
    assert (model.predict(x, verbose=0).argmax(-1) == y).mean() == pytest.approx(best)
    assert best == max(history.history["val_accuracy"][:6])


def test_patience_stops_the_phase_and_not_the_plan():
    still = {"learning_rate": 1e-12, "schedule": "constant", "warmup": 0}
    _, history = run([phase(epochs=9, patience=2, **still), phase("top", 2, 1, **still)])
    assert history.history["phase"] == ["head"] * 3 + ["top"] * 2
    assert history.epoch == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("views", [0, 2])
def test_callbacks_see_the_whole_model_and_stop_a_phase(views, tmp_path):
    watch = Watch()
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    model, history = run([phase(epochs=5, views=views)], callbacks=[watch, saver, stop])
    assert len(history.epoch) == 2
    assert watch.seen == [(0, (3, 3), (None, 8, 8, 1)), (1, (3, 3), (None, 8, 8, 1))]
    assert watch.model is model
    again = keras.saving.load_model(tmp_path / "2.keras")
    assert again.input_shape == (None, 8, 8, 1)
    assert [event for event in watch.events if event[0] != "precompute"] == [
        ("begin", "head", ["head"]),
        ("end", "head", 3),
    ]
    assert watch.computed == ([(i, 15) for i in range(1, 16)] if views else [])


def test_a_callback_may_steer_a_constant_rate():
    steer = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1))
    _, history = run([phase(epochs=2, schedule="constant", warmup=0)], callbacks=[steer])
    assert history.history["learning_rate"] == pytest.approx([0.5, 0.25])


def test_a_number_that_is_not_finite():
    train = data()
    train.x[30] = 3e38
    model = net()
    first = weights(model)
    with pytest.raises(FloatingPointError, match=r'The loss became nan in phase "head", epoch 1, batch \d'):
        run([phase(schedule="constant", warmup=0)], model, train)
    assert all(np.array_equal(a, b) for a, b in zip(first, weights(model)))
    assert all(np.isfinite(w).all() for w in weights(model))


def test_fine_tune_leaves_the_best_where_a_later_phase_explodes():
    class Ruin(After):
        def on_train_batch_end(self, batch, logs=None):
            if "head" in self.after and batch == 1:
                self.model.layers[-1].kernel.assign(np.full((6, 3), np.nan))

    model, ruin = net(), Ruin()
    with pytest.raises(FloatingPointError, match='phase "b", epoch 3, batch'):
        run([phase(epochs=2), phase("b", 2)], model, callbacks=[ruin])
    assert equal_to(model, ruin.after["head"])


def test_fine_tune_leaves_a_plain_keras_model(tmp_path, with_keras_alone):
    model, _ = run([phase(epochs=1, layer_decay=0.5, schedule="linear")])
    assert type(model.optimizer) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == 0.5  # the user's, and fresh
    assert int(model.optimizer.iterations) == 0
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")  # a warning would be an error
    assert type(again.optimizer) is keras.optimizers.Adam
    assert [v.shape for v in again.optimizer.variables] == [v.shape for v in model.optimizer.variables]
    np.save(tmp_path / "x.npy", data(4).x)
    np.save(tmp_path / "y.npy", model.predict(data(4).x, verbose=0))
    code = (
        "import sys, keras, numpy as np; m = keras.saving.load_model('m.keras'); "
        "print(np.array_equal(m.predict(np.load('x.npy'), verbose=0), np.load('y.npy')), "
        "type(m.optimizer).__name__, m.optimizer.beta_1, any(n.split('.')[0] == 'thaw' for n in sys.modules))"
    )
    assert with_keras_alone(tmp_path, code) == ["True", "Adam", "0.8", "False"]
    model.fit(data().x, data().y, epochs=1, verbose=0)  # its user may go on with fit


def test_fine_tune_takes_arrays_and_data_sets():
    plan = [phase(schedule="constant", warmup=0)]
    examples = data()
    a, _ = run(plan, None, examples)
    b, _ = run(plan, None, (examples.x, examples.y), (data(20, 1).x, data(20, 1).y))
    assert equal(a, b)
    # A data set keeps its own order: the same as plain fit on it.
    dataset = tf.data.Dataset.from_tensor_slices((examples.x, examples.y)).batch(8)
    c, history = run([phase(epochs=1, schedule="constant", warmup=0, views=2)], None, dataset, data(20, 1).ordered(8))
    plain = net()
    freeze(plain, "head")
    plain.compile(keras.optimizers.Adam(1e-2, beta_1=0.8, global_clipnorm=1.0), plain.loss, metrics=["accuracy"])
    plain.fit(dataset, epochs=1, shuffle=False, verbose=0)
    assert all(np.allclose(p, q, atol=1e-6) for p, q in zip(weights(c), weights(plain)))
    assert sum("data are a stream" in note for note in history.notes) == 1


def batches(kind):
    """Batches of 8 of the 44 examples, as a data set that knows its length, does not know it, or has no end."""
    rows, known = data(), tf.data.Dataset.from_tensor_slices((data().x, data().y)).batch(8)

    def endless():
        while True:
            yield rows.x[:8], rows.y[:8]

    def unknown():
        yield from ((rows.x[i : i + 8], rows.y[i : i + 8]) for i in range(0, 44, 8))

    if kind in ("known", "repeated"):
        return known.repeat() if kind == "repeated" else known
    make = endless if kind == "endless" else unknown
    return tf.data.Dataset.from_generator(make, output_signature=known.element_spec)


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize(("kind", "words"), [("repeated", "never end: leave repeat"), ("endless", "without coming to")])
def test_data_without_an_end_are_refused(kind, words, part):
    """https://github.com/frankkramer-lab/aucmedi/issues/198"""
    given = batches("known"), batches(kind)
    train, validation = given if part == "validation" else given[::-1]
    with pytest.raises(ValueError, match=f"The {part} data .*{words}"):
        run([phase()], None, train, validation)


def test_data_of_unknown_length_are_the_same_as_those_of_known_length():
    plan = [phase("all", 2, "all")]
    a, known = run(plan, None, batches("known"), batches("known"))
    b, unknown = run(plan, None, batches("unknown"), batches("unknown"))
    assert known.history["loss"] == unknown.history["loss"]
    assert known.history["val_loss"] == unknown.history["val_loss"]
    assert equal(a, b)


@pytest.mark.parametrize(
    ("loss", "metric", "last"),
    [
        ("mse", keras.metrics.RootMeanSquaredError(name="RMSE"), None),
        ("mse", "MAE", None),
        ("binary_crossentropy", "bce", "sigmoid"),
    ],
)
def test_the_lowest_error_is_the_best(loss, metric, last):
    """https://github.com/keras-team/keras/issues/18798"""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(1, last)])
    model.compile("adam", loss, metrics=[metric])
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    y = (x[:, :1] > 0).astype("float32")
    plan = [phase("all", 4, "all", learning_rate=0.02)]
    _, history = run(plan, model, (x, y), (x, y))
    values = history.history["val_" + getattr(metric, "name", metric)]
    assert min(values) < max(values) - 1e-3
    assert model.evaluate(x, y, verbose=0)[1] == pytest.approx(min(values), rel=1e-5)


def test_only_the_adapters_of_lora_train(tmp_path):
    """https://github.com/keras-team/keras/issues/19208; also after a resume, and beside a BatchNorm that trains."""

    def adapted():
        keras.utils.set_random_seed(0)
        norm = layers.BatchNormalization()
        model = keras.Sequential([keras.Input((8,)), layers.Dense(6, "relu"), norm, layers.Dense(6), layers.Dense(3)])
        for layer in (model.layers[0], model.layers[2]):
            layer.enable_lora(2)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    x, y = np.random.default_rng(0).normal(size=(48, 8)).astype("float32"), np.arange(48) % 3
    plan = [phase(epochs=1), phase("all", 2, "all", batchnorm="trained")]

    def interrupted(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    stop = keras.callbacks.LambdaCallback(on_epoch_begin=interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(plan, adapted(), (x, y), (x, y), backup_dir=tmp_path, callbacks=[stop])
    resumed, _ = run(plan, adapted(), (x, y), (x, y), backup_dir=tmp_path)
    whole, _ = run(plan, adapted(), (x, y), (x, y))
    assert equal(resumed, whole)
    changed = {w.path.split("/", 1)[1] for w, v in zip(whole.weights, adapted().weights) if np.any(w.numpy() != v)}
    names = {f"{whole.layers[i].name}/{name}" for i in (0, 2) for name in ("lora_kernel_a", "lora_kernel_b", "bias")}
    names |= {w.path.split("/", 1)[1] for i in (1, 3) for w in whole.layers[i].weights}
    assert changed == names


def test_a_stateful_layer():
    """https://github.com/tensorflow/tensorflow/issues/86310"""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(batch_shape=(8, 5, 3)), layers.GRU(4, stateful=True), layers.Dense(3, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = np.random.default_rng(0).normal(size=(20, 5, 3)).astype("float32"), np.arange(20) % 3
    with pytest.raises(
        ValueError, match=r"layer gru.* takes batches of 8 examples, and 20 examples in batches of 8 leave"
    ):
        run([phase()], model, (x, y), (x[:16], y[:16]))
    with pytest.raises(ValueError, match="validation examples in batches of 8 leave 4"):
        run([phase()], model, (x[:16], y[:16]), (x, y))
    rows = tf.data.Dataset.from_tensor_slices((x, y))
    with pytest.raises(ValueError, match=r"Write data.batch\(8, drop_remainder=True\)"):
        run([phase()], model, rows.batch(8), rows.batch(8, drop_remainder=True))
    _, history = run([phase(epochs=1)], model, (x[:16], y[:16]), (x[:16], y[:16]))
    assert any("passes its state on from batch" in note for note in history.notes)
    assert not any("computed once" in note for note in history.notes)  # its features belong to no example
    states = model.layers[0].states
    assert np.any(states[0].numpy())
    assert any(v is states[0] for v in variables_of(model))  # a resumed run has them
    before = states[0].numpy()
    thaw.evaluate(model, x[:16], y[:16], batch_size=8)
    assert np.array_equal(states[0].numpy(), before)
    with pytest.raises(ValueError, match="takes batches of 8 examples; got 16"):
        thaw.evaluate(model, x[:16], y[:16], batch_size=16)
    with pytest.raises(ValueError, match=r"gru.* belongs to no example"):
        thaw.precompute(model, x, y)


def test_several_outputs_are_chosen_by_the_loss():
    entry = keras.Input((4,))
    outputs = {"kind": layers.Dense(3, "softmax", name="kind")(entry), "size": layers.Dense(1, name="size")(entry)}
    model = keras.Model(entry, outputs)
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model.compile("adam", losses, metrics={"kind": ["accuracy"]})
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    rows = tf.data.Dataset.from_tensor_slices((x, {"kind": np.arange(16) % 3, "size": x[:, :1]})).batch(8)
    history = fine_tune(model, Plan([phase("all", train="all")]), rows, validation_data=rows).history
    assert min(history["val_loss"]) == pytest.approx(model.evaluate(rows, verbose=0)[0], rel=1e-5)


def test_a_model_that_runs_eagerly_may_compute_with_anything():
    def share(y, p):
        return tf.constant(np.mean(y.numpy() == p.numpy().argmax(-1)), "float32")

    model = net()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[share], run_eagerly=True)
    assert len(run([phase()], model, mode="max")[1].history["val_share"]) == 2


def test_a_step_of_ones_own_may_compare_something_else():
    class Own(keras.Model):
        def train_step(self, batch):
            x, _ = batch
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, x, self(x, training=True) @ tf.ones((3, 4)))
            self.optimizer.apply(tape.gradient(loss, [v.value for v in self.trainable_variables]))
            return {"loss": loss}

        def test_step(self, batch):
            return {"loss": tf.reduce_mean(self(batch[0]))}

    entry = keras.Input((4,))
    model = Own(entry, layers.Dense(3)(layers.Dense(3)(entry)))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    rows = Dataset(x=x, y=np.arange(16) % 3)
    assert len(fine_tune(model, Plan([phase("all", train="all")]), rows, validation_data=rows).history["val_loss"]) == 2


def test_nan_behind_a_relu_does_not_pass_for_a_good_epoch():
    entry = keras.Input((4,))
    model = keras.Model(entry, layers.Dense(3, "softmax")(layers.Dense(8, "relu")(entry)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    good = Dataset(x=x.copy(), y=np.arange(16) % 3)
    x[12] = 1e9
    broken = Dataset(x=x, y=good.y, load=lambda row: keras.ops.where(row == 1e9, np.nan, row))
    before = model.get_weights()
    # Whether a ReLU hides the NaN from the loss depends on the CPU.
    with pytest.raises(FloatingPointError, match=r"look for (NaN or infinity in|inputs that are not finite)"):
        fine_tune(model, Plan([phase("all", train="all")]), broken, validation_data=good, batch_size=8)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before))


def test_a_data_set_without_weights_that_says_so():
    rows = data()
    batches = tf.data.Dataset.from_tensor_slices((rows.x, rows.y)).batch(8).map(lambda x, y: (x, y, None))
    history = fine_tune(net(), Plan([phase()]), batches, validation_data=batches).history
    assert len(history["val_accuracy"]) == 2


def test_a_subclassed_model():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, "softmax")

        def call(self, x, training=False):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 4), "float32"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    rows = Dataset(x=x, y=np.arange(16) % 3)
    history = fine_tune(model, Plan([phase("all", train="all")]), rows, validation_data=rows)
    assert len(history.history["val_accuracy"]) == 2


def test_without_validation():
    model = net()
    history = fine_tune(model, Plan([phase(epochs=2)]), data(), batch_size=8)
    assert "val_loss" not in history.history
    assert len(history.epoch) == 2


def test_fine_tune_in_mixed_precision():
    model, history = run([phase("top", 2, 1, views=2, layer_decay=0.5)], net(policy="mixed_float16"))
    assert all(np.isfinite(history.history["loss"]))
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert type(model.optimizer.inner_optimizer) is keras.optimizers.Adam
    assert history.weight_change["top"][-1]["weights"] > 0


def test_fine_tune_of_a_nested_model():
    _, history = run([phase("top", 1, 1, views=2)], net("nested"))
    frozen, trained, _ = history.weight_change["top"]
    assert frozen["weights"] == frozen["statistics"] == 0
    assert trained["weights"] > 0


def test_the_moving_average_is_what_is_validated_and_kept():
    model = net()
    model.compile(
        keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model, history = run([phase(epochs=4, views=2)], model)
    best = int(np.lexsort((history.history["val_loss"], -np.array(history.history["val_accuracy"])))[0])
    x, y = data(20, 1).x, data(20, 1).y
    p = model.predict(x, verbose=0)
    assert -np.log(p[np.arange(20), y]).mean() == pytest.approx(history.history["val_loss"][best], rel=1e-4)


def test_mistakes_are_found_before_the_first_step(tmp_path):
    model = net()
    first = weights(model)
    wrong = data()
    wrong.y[7] = 3
    with pytest.raises(ValueError, match="The labels go from 0 to 3 and the model has 3 classes"):
        run([phase()], model, wrong)
    with pytest.raises(ValueError, match='The model has no stage "stage7"'):
        run([phase(), phase("b", 1, ("stage7",))], model)
    plain = net()
    plain.compiled = False
    with pytest.raises(ValueError, match=r"is not compiled; call model\.compile"):
        run([phase()], plain)
    assert all(np.array_equal(a, b) for a, b in zip(first, weights(model)))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A folder with an ended run of one phase, the model and the history; only to be read."""
    folder = tmp_path_factory.mktemp("ended")
    np.save(folder / "mine.npy", np.ones(3))
    return folder, *run([phase(views=2)], backup_dir=folder)


def test_fine_tune_refuses_the_folder_of_another_run_and_repeats_the_result_of_its_own(ended):
    folder, a, first = ended
    with pytest.raises(ValueError, match="holds an unfinished run of another plan, model, data or seed"):
        run([phase(epochs=3, views=2)], backup_dir=folder)
    with pytest.raises(ValueError, match="another plan, model, data or seed"):
        run([phase(views=2)], backup_dir=folder, seed=1)
    with pytest.raises(ValueError, match="another plan, model, data or seed"):
        run([phase(views=2)], None, data(43), backup_dir=folder)
    # The same call on a run that has ended gives its result again.
    b, again = run([phase(views=2)], backup_dir=folder)
    assert equal(a, b)
    assert again.history == first.history
    assert again.notes == first.notes
    assert again.weight_change == first.weight_change


def test_fine_tune_does_not_take_what_an_earlier_run_left_for_its_own(tmp_path, ended):
    """Killed before its first checkpoint, another run leaves its activations in the folder."""

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    plan = [phase(views=2)]
    other = data(44, 9, augment=noise)
    with pytest.raises(KeyboardInterrupt):
        run(plan, None, other, backup_dir=tmp_path, callbacks=[Kill()])
    model, _ = run(plan, backup_dir=tmp_path)
    assert equal(model, ended[1])


def test_fine_tune_leaves_files_of_the_user_in_its_folder(ended):
    folder = ended[0]
    assert np.load(folder / "mine.npy").tolist() == [1, 1, 1]
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.npz", "mine.npy"]


def test_fine_tune_does_not_repeat_notes_when_a_run_goes_on(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    plan = [phase(views=0)]  # every epoch sees other noise, so that nothing can be cached
    _, whole = run(plan)
    with pytest.raises(KeyboardInterrupt):
        run(plan, backup_dir=tmp_path, callbacks=[Kill()])
    _, resumed = run(plan, backup_dir=tmp_path)
    assert any("all of the model is computed in every epoch" in note for note in resumed.notes)
    assert resumed.notes == whole.notes


def test_fine_tune_refuses_an_optimizer_that_was_changed_and_does_not_lose_it():
    """Fresh optimizers are made for the phases, which would not have what was put on this one."""
    from thaw.models.stages import stages_of
    from thaw.training.optimizers import l2_sp, layerwise_lr_decay

    model = net()
    before = model.get_weights()
    changed = [
        l2_sp(keras.optimizers.Adam(1e-3), model, 0.1),
        layerwise_lr_decay(keras.optimizers.Adam(1e-3), stages_of(model), 0.5),
    ]
    changed += [keras.optimizers.LossScaleOptimizer(optimizer) for optimizer in changed]
    for optimizer in changed:
        model.compile(optimizer, "sparse_categorical_crossentropy")
        with pytest.raises(ValueError, match=r"The Adam optimizer was changed .* Phase\(l2_sp=\.\.\.\)"):
            run([phase()], model)
        assert equal_to(model, before)
        assert model.optimizer is optimizer
    model.compile("adam", "sparse_categorical_crossentropy")  # by its name, nothing can be lost
    run([phase(epochs=1)], model)


@pytest.mark.parametrize("views", [0, 2])
def test_ctrl_c_leaves_flags_compilation_and_the_best_weights(views):
    """B13 of the first version: flags of the phase, and the weights of the last batch."""

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    model = net()
    flags, before = [layer.trainable for layer in model.layers], weights(model)
    with pytest.raises(KeyboardInterrupt):
        run([phase(views=views)], model, callbacks=[Interrupt()])
    assert [layer.trainable for layer in model.layers] == flags
    assert equal_to(model, before)
    assert model.compiled
    assert model.optimizer.__class__ is keras.optimizers.Adam
    model.fit(data().x, data().y, epochs=1, verbose=0)  # and it can be used


def test_class_weight_is_that_of_fit():
    plan, examples = [phase(epochs=1, schedule="constant", warmup=0)], data()
    a, _ = run(plan, None, examples, class_weight={0: 3.0, 2: 0.5})
    factors = np.array([3.0, 1.0, 0.5], "float32")
    b, _ = run(plan, None, (examples.x, examples.y, factors[examples.y]))
    assert equal(a, b)


def test_a_plan_may_be_a_file_or_a_list_of_phases_and_callbacks_a_single_one_or_none(tmp_path):
    (tmp_path / "plan.toml").write_text(Plan([phase(epochs=1)]).to_toml())
    model, examples = net(), data()
    for plan, callbacks in ((str(tmp_path / "plan.toml"), None), ([phase(epochs=1)], keras.callbacks.Callback())):
        history = fine_tune(model, plan, examples.x, examples.y, callbacks=callbacks, verbose=0)
        assert (history.epoch, history.history["phase"]) == ([0], ["head"])
    with pytest.raises(ValueError, match=r'There is no plan "prob"; expected "probe"'):
        fine_tune(model, "prob", examples, verbose=0)
    for wrong in (7, None, [], [1]):
        with pytest.raises(ValueError, match=r"expected a thaw\.Plan"):
            fine_tune(model, wrong, examples, verbose=0)
    with pytest.raises(ValueError, match='verbose=3; expected "auto"'):
        fine_tune(model, "probe", examples, verbose=3)


def test_fine_tune_shows_its_progress_unless_it_is_silenced(capsys):
    run([phase(epochs=1)], verbose=0)
    assert capsys.readouterr().err == ""
    run([phase(epochs=3)], verbose="auto")
    shown = capsys.readouterr().err
    assert "head: head at 0.01, 3 epochs" in shown
    assert shown.count("epoch   ") <= 2  # epochs of less than two seconds are one line
    assert "epoch   3 of 3" in shown


def test_fine_tune_shows_every_epoch_on_request_and_a_metric_of_several_numbers(capsys):
    """B10 of the first version: a TypeError at the end of the first epoch."""
    model = net()
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy", keras.metrics.F1Score()])
    examples, one_hot = data(), np.eye(3, dtype="float32")
    pair = examples.x, one_hot[examples.y]
    run([phase(epochs=3)], model, pair, pair, verbose=2)
    shown = capsys.readouterr().err
    assert shown.count("epoch   ") == 3
    assert "val f1 score 0." in shown


def test_xla_is_left_out_on_a_cpu_unless_it_was_asked_for(monkeypatch):
    """B11 of the first version: a GPU that was hidden from TensorFlow counted as one."""
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model.jit_compile)

    devices, hidden = tf.config.list_physical_devices, tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda k=None: [hidden] if k == "GPU" else devices(k))
    run([phase(epochs=1)], callbacks=[Seen()])
    assert seen == [False]


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_generator_is_refused_before_it_is_used_up(part):
    batches = iter([(np.zeros((2, 8, 8, 1), "float32"), np.zeros(2, "int32"))] * 3)
    given = {"x": batches} if part == "training" else {"x": data(), "validation_data": batches}
    with pytest.raises(ValueError, match=f"The {part} data are a generator, which can be read only once; expected"):
        fine_tune(net(), Plan([phase()]), **given, verbose=0)
