"""Callbacks of Keras, and those written for it, see the phases of a run as one training of the whole model."""

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import callbacks, layers

from thaw import Dataset, Phase, Plan, fine_tune, freeze

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
STEPS = 6  # of 8 examples


def net(optimizer="adam", **compiled):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(6, "relu"), layers.Dense(2, "softmax")]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", **{"metrics": ["accuracy"]} | compiled)
    return model


def phase(name="all", epochs=2, **more):
    settings = {"train": name if name == "head" else "all", "learning_rate": 1e-2, "schedule": "constant", "warmup": 0}
    return Phase(name=name, epochs=epochs, **settings | more)


TWO = [phase("head"), phase("all", layer_decay=0.5, l2_sp=0.1)]


def run(plan, given, model=None, **options):
    return fine_tune(
        model or net(), Plan(plan), X, Y, callbacks=given, batch_size=8, verbose=0,
        **{"validation_data": (X, Y)} | options,
    )  # fmt: skip


class Events(callbacks.Callback):
    """Everything that a callback is called with, but for the values in the logs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def set_model(self, model):
        super().set_model(model)
        self.seen.append(("model", model.name, len(model.layers)))

    def on_train_begin(self, logs=None):
        self.seen.append("train begin")

    def on_train_end(self, logs=None):
        self.seen.append(("train end", sorted(logs)))

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(("epoch begin", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(("epoch end", epoch, self.params["epochs"], self.params["steps"]))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(("batch end", batch, sorted(logs)))

    def on_test_begin(self, logs=None):
        self.seen.append("test begin")

    def on_test_batch_begin(self, batch, logs=None):
        self.seen.append(("test batch", batch))

    def on_test_end(self, logs=None):
        self.seen.append(("test end", sorted(logs)))


class Tracker(callbacks.Callback):
    """Log as MLflow's and W&B's callbacks do: parameters once, each only one value; a table by epoch; the model."""

    def __init__(self):
        super().__init__()
        self.parameters, self.lines, self.table, self.steps, self.saved = {}, [], [], 0, None

    def on_train_begin(self, logs=None):
        for name, value in self.model.optimizer.get_config().items():
            if name in self.parameters:
                raise RuntimeError(f"Changing param values is not allowed: {name}")
            self.parameters[name] = value
        self.model.summary(print_fn=lambda line, *more: self.lines.append(line))
        assert [layer["class_name"] for layer in self.model.get_config()["layers"]] == ["InputLayer"] + ["Dense"] * 3

    def on_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        rate = float(self.model.optimizer.learning_rate)
        self.table.append((epoch, self.params["epochs"], round(rate, 6), logs["val_loss"]))

    def on_train_end(self, logs=None):
        self.saved = [w.numpy() for w in self.model.weights]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of a phase on cached features and one of the whole model, with all kinds of callbacks at once."""
    folder = tmp_path_factory.mktemp("two")
    events, tracker, history = Events(), Tracker(), callbacks.History()
    given = [
        events, tracker, history, callbacks.CSVLogger(folder / "log.csv"), callbacks.TerminateOnNaN(),
        callbacks.ReduceLROnPlateau("val_accuracy", patience=1, min_delta=5.0),
        callbacks.EarlyStopping("val_accuracy", patience=4, start_from_epoch=1, restore_best_weights=True),
        callbacks.TensorBoard(folder / "board", histogram_freq=1, update_freq=2, write_steps_per_second=True),
        callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
        callbacks.ModelCheckpoint(folder / "{batch}-step.keras", save_freq=STEPS - 1),
        callbacks.ModelCheckpoint(folder / "best-{val_loss:.1f}.keras", monitor="val_accuracy", save_best_only=True),
        callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
    ]  # fmt: skip
    model = net(keras.optimizers.SGD(momentum=0.9))
    result = run(TWO, given, model)
    assert any("computed once" in note for note in result.notes)  # the suffix was fitted in the first phase
    return SimpleNamespace(
        folder=folder, model=model, result=result, events=events.seen, tracker=tracker, history=history
    )


def test_csv_logger_has_the_rows_of_all_phases(two):
    with open(two.folder / "log.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [float(row["val_loss"]) for row in rows] == two.result.history["val_loss"]
    assert two.history.history["loss"] == two.result.history["loss"]
    assert two.history.epoch == [0, 1, 2, 3]


def test_one_training_begins_and_ends_once(two):
    names = [event if isinstance(event, str) else event[0] for event in two.events]
    assert names[:2] == ["model", "train begin"]
    assert names[-1] == "train end"
    assert [names.count(name) for name in ("model", "train begin", "train end")] == [1, 1, 1]
    assert [event[1:] for event in two.events if event[0] == "epoch end"] == [(n, 4, STEPS) for n in range(4)]


def test_trackers_get_the_whole_model_and_the_best_weights(two):
    tracker = two.tracker
    assert tracker.parameters["momentum"] == 0.9
    assert "\n".join(tracker.lines).count("(Dense)") == 3
    assert tracker.steps == 4 * STEPS
    assert [row[:2] for row in tracker.table] == [(n, 4) for n in range(4)]
    assert [row[3] for row in tracker.table] == two.result.history["val_loss"]
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(tracker.saved, two.model.weights))


def test_reduce_lr_on_plateau_begins_again_in_each_phase(two):
    """With patience 1 the rate falls after the second epoch without a change of 5, and the next phase has its own."""
    assert [row[2] for row in two.tracker.table] == pytest.approx([0.01, 0.01, 0.01, 0.01])
    assert two.result.history["learning_rate"] == pytest.approx([0.01, 0.001, 0.01, 0.001])


def test_tensorboard_goes_on_counting(two):
    steps = {}
    for file in (two.folder / "board" / "train").glob("events*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    assert steps["keras"] == [0]  # the graph, once
    assert steps["epoch_loss"] == [0, 1, 2, 3]
    assert steps["batch_loss"] == list(range(2, 4 * STEPS + 1, 2))
    kernels = [tag for tag in steps if tag.endswith("kernel/histogram")]
    assert [steps[tag] for tag in kernels] == [[0, 1, 2, 3]] * 3  # of all layers, also in the phase of the head


def test_remote_monitor_posts_every_epoch_once(monkeypatch):
    pytest.importorskip("requests")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    posted = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        result = run(TWO, [callbacks.RemoteMonitor(root, send_as_json=True)])
        server.shutdown()
    assert [row["epoch"] for row in posted] == [0, 1, 2, 3]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert [row[name] for row in posted] == result.history[name]


def test_checkpoints_of_a_phase_open_with_keras_alone(two, with_keras_alone):
    files = sorted(file.name for file in two.folder.glob("*.keras"))
    assert {"1.keras", "2.keras", "3.keras", "4.keras"} < set(files)
    assert any(name.startswith("best-0.") for name in files)
    np.save(two.folder / "x.npy", X)
    code = (
        "import glob, keras, numpy as np; x = np.load('x.npy')\n"
        "for name in sorted(glob.glob('*.keras')):\n"
        "    m = keras.saving.load_model(name); p = m(x).numpy()\n"
        "    assert p.shape == (48, 2) and type(m.optimizer) is keras.optimizers.SGD, name\n"
        "    if len(name) == 7:\n"
        "        m.load_weights(name[0] + '.weights.h5'); assert (m(x).numpy() == p).all()\n"
        "        print(len([l for l in m.layers if l.trainable]), int(m.optimizer.iterations))\n"
    )
    words = with_keras_alone(two.folder, code)
    assert words[0::2] == ["1", "1", "3", "3"]  # layers that the phase trains
    assert words[1::2] == ["6", "12", "6", "12"]


def test_state_of_the_optimizer_returns_with_a_checkpoint(tmp_path):
    """The whole model has its variables in another order than the suffix: the state must be that of its variable."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((4,))
    frozen = layers.Dense(5, "relu", name="frozen")(entry)
    a = layers.Dense(3, name="a")(layers.Dense(6, "relu", name="first")(frozen))
    b = layers.Dense(3, name="b")(frozen)
    model = keras.Model(entry, layers.Dense(2, "softmax", name="last")(layers.Add()([b, a])))
    model.compile(keras.optimizers.SGD(momentum=0.9), "sparse_categorical_crossentropy")
    last = {}

    class Momenta(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            optimizer = self.model.optimizer
            known = zip(self.model.trainable_variables, optimizer.variables[2:])
            last.update({v.path: m.numpy() for v, m in known})

    saver = callbacks.ModelCheckpoint(tmp_path / "m.keras")
    run([phase("upper", 1, train=3)], [saver, Momenta()], model)
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert len(again.trainable_variables) == len(last) == len(again.optimizer.variables) - 2
    for variable, momentum in zip(again.trainable_variables, again.optimizer.variables[2:]):
        assert variable.shape == momentum.shape
        assert np.array_equal(last[variable.path], momentum.numpy())
        assert np.any(momentum.numpy())


def test_checkpoints_of_every_schedule_open_with_keras_alone(tmp_path, with_keras_alone):
    """https://github.com/keras-team/keras/issues/18887"""
    plan = [
        phase("head", schedule="linear", warmup=0.5),
        phase("straight", schedule="linear", train="all"),
        phase("late", 4, schedule="linear", warmup=0.25, train="all"),
        phase("flat", schedule="constant", warmup=0.5, train="all", layer_decay=0.5),
        phase("round", schedule="cosine", warmup=0.5, train="all"),
    ]
    rates = {}

    class Rates(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates[epoch + 1] = float(self.model.optimizer.learning_rate)

    run(plan, [callbacks.ModelCheckpoint(tmp_path / "{epoch:02}.keras"), Rates()])
    code = (
        "import glob, keras\n"
        "for name in sorted(glob.glob('*.keras')):\n"
        "    o = keras.saving.load_model(name).optimizer\n"
        "    print(type(o.get_config()['learning_rate']).__name__, float(o.learning_rate))"
    )
    words = with_keras_alone(tmp_path, code)
    # A file continues at the rate of the next step.
    assert [float(word) for word in words[1::2]] == pytest.approx(list(rates.values()), rel=1e-6, abs=1e-12)
    assert set(words[0::2]) == {"dict"}


def test_one_phase_logs_what_fit_logs(tmp_path):
    given, expected = ((Events(), callbacks.CSVLogger(tmp_path / f"{name}.csv")) for name in ("ours", "fit"))
    run([phase(epochs=3)], [*given, callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))], net())
    plain = net()
    freeze(plain, "all")
    plain.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    examples = Dataset(x=X, y=Y)
    plain.fit(
        examples.epochs(8, 0), steps_per_epoch=STEPS, epochs=3, validation_data=examples.ordered(8), shuffle=False,
        verbose=0, callbacks=[*expected, callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))],
    )  # fmt: skip
    assert (tmp_path / "ours.csv").read_text() == (tmp_path / "fit.csv").read_text()

    def without_names(seen):
        return [event for event in seen if event[0] != "model"]

    assert without_names(given[0].seen) == without_names(expected[0].seen)


def test_early_stopping_ends_a_phase_by_a_metric_of_the_suffix():
    """Keras looks the direction up in the model's metrics, which are not built while only the suffix is fitted."""
    stop = callbacks.EarlyStopping("val_accuracy", patience=1, min_delta=5.0)
    base = callbacks.EarlyStopping("val_loss", baseline=0.0, patience=3)
    history = run([phase("head", 5), phase("all", 5)], [stop, base])
    assert history.history["phase"] == ["head"] * 2 + ["all"] * 2
    assert stop.monitor_op is keras.ops.greater


def test_a_resumed_run_appends_rows(tmp_path):
    def interrupted(epoch, logs):
        if epoch == 3:
            raise KeyboardInterrupt

    def log():
        return callbacks.CSVLogger(tmp_path / "log.csv")

    first, stop = log(), callbacks.LambdaCallback(on_epoch_begin=interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(TWO, [first, stop], backup_dir=tmp_path / "run")
    first.csv_file.close()
    history = run(TWO, [log()], backup_dir=tmp_path / "run")
    with open(tmp_path / "log.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert [float(row["loss"]) for row in rows] == history.history["loss"]


def at_half(epoch, rate=0.0):
    return 0.5


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (
            callbacks.ReduceLROnPlateau(),
            'ReduceLROnPlateau sets .* phase "b"; write schedule="constant" and warmup=0',
        ),
        (callbacks.LearningRateScheduler(at_half), 'LearningRateScheduler sets .* schedule="constant" and warmup=0'),
        (callbacks.BackupAndRestore("backup"), r"BackupAndRestore .* leave it out and write fine_tune\(.*backup_dir="),
        (callbacks.SwapEMAWeights(), "SwapEMAWeights .* leave it out. With use_ema=True in the optimizer the moving"),
        (callbacks.EarlyStopping("val_acc"), "monitors val_acc, .* one of loss, accuracy, val_loss, val_accuracy"),
        (callbacks.ModelCheckpoint("a.keras", "acc", save_best_only=True), "ModelCheckpoint monitors acc, which no"),
        (callbacks.ModelCheckpoint("{val_auc:.2f}.keras"), 'names its files "{val_auc:.2f}.keras", by val_auc, which'),
        (
            callbacks.ModelCheckpoint("{val_loss}.keras", save_freq=3),
            "val_loss, which no epoch logs; .* loss, accuracy",
        ),
        (callbacks.TerminateOnNaN, "callbacks holds the class TerminateOnNaN; expected objects of"),
        (print, "callbacks holds a builtin_function_or_method; expected objects of keras.callbacks.Callback"),
    ],
)
def test_callbacks_that_cannot_work_are_refused_before_the_first_epoch(callback, words):
    model, history = net(), callbacks.History()
    before = model.get_weights()
    with pytest.raises(ValueError, match=words):
        run([phase("a", 1), phase("b", 2, schedule="cosine", warmup=0.1)], [history, callback], model)
    assert not hasattr(history, "epoch")  # which Keras sets where a training begins
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_missing_metric_beside_a_callback_of_the_users():
    """keras#13689: one that only listens adds no value to the logs."""

    class Count(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise AssertionError("an epoch began")

    with pytest.raises(ValueError, match="EarlyStopping monitors val_acc, which no epoch logs; expected one of loss"):
        run([phase(epochs=1)], [Count(), callbacks.EarlyStopping("val_acc", mode="max")])


@pytest.mark.parametrize(("name", "validation"), [("val_acc", (X, Y)), ("val_accuracy", None)])
def test_what_decides_must_be_logged(name, validation):
    with pytest.raises(ValueError, match=f"fine_tune monitors {name}, which no epoch logs; expected one of loss, acc"):
        run([phase(epochs=1)], [], monitor=name, mode="max", validation_data=validation)


def test_a_callback_that_logs_may_be_monitored():
    class Score(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = 1.0

    with pytest.raises(ValueError, match=r"There is no metric 'score'; .* mode=\"max\""):
        run([phase(epochs=1)], [Score(), callbacks.EarlyStopping("score", patience=1)])
    history = run([phase(epochs=5)], [Score(), callbacks.EarlyStopping("score", patience=1, mode="max")])
    assert history.history["score"] == [1.0, 1.0]


WEIGHT = np.random.default_rng(1).uniform(0, 2, 48).astype("float32")


@pytest.mark.parametrize(
    ("make", "compiled", "weight"),
    [
        (lambda: keras.optimizers.Adam(clipnorm=0.1, gradient_accumulation_steps=4), {}, None),
        (lambda: keras.optimizers.SGD(global_clipnorm=0.1, loss_scale_factor=8.0), {"run_eagerly": True}, None),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(clipvalue=0.01)), {}, None),
        ("adam", {"weighted_metrics": ["acc"], "loss_weights": [0.5]}, WEIGHT),
        ("adam", {"steps_per_execution": 3}, WEIGHT[:, None]),
    ],
)
def test_compile_options_are_those_of_fit(make, compiled, weight):
    def optimizer():
        return make() if callable(make) else keras.optimizers.get(make)

    last = {}

    class Last(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            last[id(self.model)] = [w.numpy() for w in self.model.weights]

    model, plain = net(optimizer(), **compiled), net()
    weights = None if weight is None else weight.ravel()
    history = run([phase()], [Last()], model, sample_weight=weight)
    freeze(plain, "all")
    own = optimizer()
    getattr(own, "inner_optimizer", own).learning_rate = 1e-2
    plain.compile(
        own, "sparse_categorical_crossentropy", **{"metrics": ["accuracy"], "jit_compile": False} | compiled
    )  # fmt: skip
    expected = plain.fit(
        Dataset(x=X, y=Y, sample_weight=weights).epochs(8, 0), steps_per_epoch=STEPS, epochs=2, shuffle=False,
        verbose=0, validation_data=Dataset(x=X, y=Y).ordered(8), callbacks=[Last()],
    )  # fmt: skip
    assert {name: history.history[name] for name in expected.history} == expected.history
    assert all(np.array_equal(a, b) for a, b in zip(last[id(model)], last[id(plain)]))


def test_steps_per_execution_that_do_not_divide_an_epoch():
    """Keras would read the last steps of an epoch from the next one."""
    one, four = (run([phase()], [], net(steps_per_execution=steps)) for steps in (1, 4))
    for name in ("loss", "val_loss", "val_accuracy"):
        assert one.history[name] == four.history[name]
