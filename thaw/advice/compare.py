"""compare: train frozen features, the top stages, the whole network and from scratch for the same time each."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable

import numpy as np

from thaw._keras import compile_settings, learnable_variables, metric_function, sublayers
from thaw._validation import as_int, as_number
from thaw.advice.comparison import compared
from thaw.advice.trials import LAYER_DECAY, randomize_weights
from thaw.features.cache_folder import isolated_cache
from thaw.plan import Phase, Plan
from thaw.tasks import class_numbers, compiled_metrics, first_metric, monitor_of

HEAD_EPOCHS = 5  # of the head alone, before the backbone is trained
MAX_EPOCHS = 1000
MAX_TIME_ERROR = 0.2  # of the time; a way that misses it by more gets a note
MAX_TOP_STAGES = 2
VIEWS = 4  # of an example, where frozen stages are cached


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to use a pre-trained network.

    Args:
        name: name in the table.
        subject: name in a sentence.
        verb: ``"is"`` or ``"are"``.
        plan: function from a number of epochs to the :class:`thaw.Plan` whose last phase has as many.
        prepare: function of (model, seed) that changes the model beforehand. Default ``None``.
    """

    name: str
    subject: str
    verb: str
    plan: Callable
    prepare: Callable | None = None


def compare(
    build,
    x,
    y=None,
    *,
    validation_data,
    test_data,
    sample_weight=None,
    class_weight=None,
    minutes=5.0,
    seeds=3,
    ways=None,
    batch_size=32,
    callbacks=(),
):
    """Train in several ways, each for the same wall-clock time and with several seeds, and compare the scores.

    The ways are ``"frozen"`` (the head alone), ``"top"`` (the head, then the top two stages too), ``"whole"`` (the
    head, then everything, BatchNorm statistics frozen) and ``"scratch"`` (the same architecture with random weights,
    everything trained, BatchNorm statistics too). The number of epochs is forecast from a few batches and, from the
    second seed on, from the run before; the time that was really taken is in the table. Every run starts with an empty
    cache. The number of epochs follows from the clock, so that two calls may differ.

    Intervals are the percentile bootstrap over the test examples and, with two seeds or more, over the seeds, paired:
    a resample takes the same examples and seeds of all ways (Efron 1979). With few seeds their spread is
    underestimated. The best is chosen on the same examples, which makes its score slightly optimistic.

    Args:
        build: function from a seed to a fresh, compiled ``keras.Model`` with its head, as :func:`thaw.fine_tune` takes
            it.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`; see :func:`thaw.as_dataset`.
        y: targets; ``None`` where ``x`` brings them. Default ``None``.
        validation_data: ``(x, y)`` or a :class:`thaw.Dataset`, to choose the best epoch on.
        test_data: ``(x, y)`` or a :class:`thaw.Dataset`, to score on.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        class_weight: dict from class number to weight in the loss. Default ``None``.
        minutes: training time of each way and each seed; the whole takes ``minutes * seeds * len(ways)``. Default 5.
        seeds: number of seeds; they are 0, 1, 2 ... Default 3.
        ways: names of the ways, at least two. Default ``None``: all that the model allows.
        batch_size: examples in a batch. Default 32.
        callbacks: Keras callbacks, as in :func:`thaw.fine_tune`; a :class:`thaw.TuneCallback` also gets
            ``on_way_begin`` before each run. Default ``()``.

    Returns:
        :class:`~thaw.advice.comparison.Comparison`; as a string it is a table and a sentence. The score is the
        accuracy, or the first metric of the model where that is something else.

    Raises:
        ValueError: invalid data, ways or numbers, a model with a mistake that :func:`thaw.fine_tune` finds, or a first
            metric that is no mean over examples; before anything is trained.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import compare
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> def build(seed):
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"),
        ...                               keras.layers.Dense(2, "softmax")])
        ...     model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        ...     return model
        >>> comparison = compare(build, x, y, validation_data=(x, y), test_data=(x, y), minutes=0.01, seeds=2,
        ...                      ways=("frozen", "scratch"))
        >>> sorted(row.name for row in comparison.rows)
        ['from scratch', 'frozen features']
    """
    import keras

    from thaw.checks import check_data, raise_on_errors
    from thaw.models.state import preserve_rng
    from thaw.training.callbacks import callback_list

    callbacks = callback_list(callbacks)
    if not callable(build) or isinstance(build, keras.Model):
        raise ValueError(
            f"build is a {type(build).__name__}; expected a function from a seed to a fresh, compiled keras.Model."
        )
    minutes, seeds = as_number(minutes), as_int("seeds", seeds, 1)
    batch_size = as_int("batch_size", batch_size, 1)
    if not (isinstance(minutes, (int, float)) and 0 < minutes < float("inf")):
        raise ValueError(f"minutes={minutes!r}; expected a number above 0.")
    train, validation, test = _datasets((x, y, sample_weight), validation_data, test_data)
    train = train.weighted(class_weight)
    with preserve_rng():
        model = _built(build, 0)
        raise_on_errors(check_data(model, train, validation) + check_data(model, test))
        chosen, notes = _ways(model, ways, train)
        _values(model, test.take(np.arange(min(batch_size, len(test)))), batch_size)  # a mistake raises now
        training = TimedTraining((train, validation), batch_size, callbacks)
        runs, run_notes = train_ways(build, model, chosen, training, test, minutes=minutes, seeds=seeds)
    metric, mode = _metric(model)
    return compared(chosen, runs, minutes, metric, mode, [*notes, *run_notes, *_time_notes(runs, minutes)])


def _datasets(training, validation_data, test_data):
    from thaw.data.conversion import as_dataset, as_validation

    parts = {
        "training data": as_dataset(*training, name="training data", labelled=True),
        "validation data": as_validation(validation_data),
        "test data": as_validation(test_data, name="test data"),
    }
    for name, part in parts.items():
        if part is None:
            raise ValueError(f"compare needs {name}: give {name.replace(' ', '_')}=(x, y).")
        if not part.random_access:
            raise ValueError(
                f"The {name} are a stream; expected arrays or a thaw.Dataset, because features are cached by example."
            )
    return parts.values()


def _built(build, seed):
    """Build a model with this seed, also where the user's function ignores its argument."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model = build(seed)
    if not getattr(model, "compiled", False) or not model.built:
        raise ValueError("build(seed) has to return a built and compiled keras.Model; call model.compile in it.")
    return model


def _learnable(model):
    """Return the ids of the variables that can be learned; others, such as those of a Normalization, may be shared."""
    return {id(v) for layer in sublayers(model) for v in learnable_variables(layer)}


def train_ways(build, model, ways, training, test, *, minutes, seeds):
    """Train a fresh model in each way and with each seed, and score it.

    Args:
        build: as in :func:`compare`.
        model: what it has built before; no model may share its layers.
        ways: :class:`Way` s, the cheapest first.
        training: :class:`TimedTraining`.
        test: :class:`thaw.Dataset` to score on.
        minutes: time of each run.
        seeds: number of seeds.

    Returns:
        ``(runs, notes)``: for the name of each way a list of what ``training.run`` returns, one for each seed, with the
        ``values`` of the test examples; and sentences.
    """
    import keras

    from thaw.training.callbacks import notify

    runs, notes, total = {way.name: [] for way in ways}, [], seeds * len(ways)
    for number in range(total):
        seed, way = number // len(ways), ways[number % len(ways)]
        with isolated_cache() as cache_dir:
            fresh = _built(build, seed)
            if _learnable(fresh) & _learnable(model):
                raise ValueError(
                    "build(seed) returned the same model twice, or two that share layers, so that one run would "
                    "continue with the weights of another: create every layer inside of it."
                )
            model = fresh
            if way.prepare is not None:
                way.prepare(model, seed)
            settings = compile_settings(model)
            before = runs[way.name]
            if before:
                epochs = _epochs_after(before[-1], 60 * minutes)
            else:
                epochs = training.forecast_epochs(model, way.plan(MAX_EPOCHS), 60 * minutes)
            notify(training.callbacks, "on_way_begin", way.name, seed, epochs, number, total)
            keras.Model.compile(model, **settings)
            run, note = training.run(model, way.plan(epochs), seed, cache_dir)
            notes += [f"{way.name}, seed {seed}: {note}"] if note else []
            before.append(run | {"values": _values(model, test, training.batch_size)})
    return runs, notes


def _ways(model, wanted, train):
    """Return the ways that this model allows, the cheapest first, and notes."""
    from thaw.models.stages import HEAD, stages_of
    from thaw.training.optimizers import lr_scale

    stages = stages_of(model)
    if stages[-1].name != HEAD or len(stages) < 2:
        raise ValueError(f"{model.name} has no head on top of other stages; add one: attach_head(model, classes).")
    top, notes, scale = min(MAX_TOP_STAGES, len(stages) - 2), [], lr_scale(model.optimizer)
    head = Phase(name="head", epochs=HEAD_EPOCHS, train="head", learning_rate=1e-3 * scale, views=VIEWS)

    def after_head(**phase):
        return lambda epochs: Plan([head, Phase(epochs=epochs, layer_decay=LAYER_DECAY, **phase)])

    def from_scratch(epochs):
        return Plan([Phase(name="all", epochs=epochs, learning_rate=1e-3 * scale, batchnorm="trained")])

    all_ways = {
        "frozen": Way(
            name="frozen features",
            subject="frozen features",
            verb="are",
            plan=lambda epochs: Plan([dataclasses.replace(head, epochs=epochs)]),
        ),
        "top": Way(
            name=f"top {top} stages" if top > 1 else "top stage",
            subject=f"fine-tuning the top {'two stages' if top > 1 else 'stage'}",
            verb="is",
            plan=after_head(name="top", train=max(top, 1), learning_rate=5e-4 * scale, views=VIEWS),
        ),
        "whole": Way(
            name="whole network",
            subject="fine-tuning the whole network",
            verb="is",
            plan=after_head(name="all", learning_rate=1e-4 * scale),
        ),
        "scratch": Way(
            name="from scratch",
            subject="training from scratch",
            verb="is",
            plan=from_scratch,
            prepare=lambda model, seed: randomize_weights(model, train, seed),
        ),
    }
    for name in wanted or ():
        if name not in all_ways:
            raise ValueError(f"There is no way {name!r}; expected some of {', '.join(all_ways)}.")
    names = [name for name in all_ways if wanted is None or name in wanted]
    if top == 0 and "top" in names:
        names.remove("top")
        notes.append(f"{model.name} has one stage below the head: the top stage is the whole network.")
    if len(names) < 2:
        raise ValueError(f"Only {', '.join(names)} is left to compare; expected at least two ways.")
    return [all_ways[name] for name in names], notes


def _forecast_epochs(model, plan, data, batch_size, seconds):
    """Forecast from a few batches how many epochs of the last phase fit into the time."""
    from thaw.training.forecasting import epoch_overheads, forecast

    forecasts = forecast(model, plan, tuple(map(len, data)), batch_size=batch_size)
    overheads = epoch_overheads(plan, data, batch_size)
    return _epochs_that_fit(forecasts, overheads, [phase.epochs for phase in plan], seconds)


def _epochs_that_fit(forecasts, overheads, epochs, seconds):
    """Compute how many epochs of the last phase fit into the time, from the forecast for so many of each phase."""
    *before, last = [f.seconds + n * overhead for f, n, overhead in zip(forecasts, epochs, overheads)]
    once = forecasts[-1].seconds_before
    return _clip_epochs((seconds - once - sum(before)) / max(1e-6, (last - once) / epochs[-1]))


def _clip_epochs(epochs):
    return int(min(MAX_EPOCHS, max(1, epochs)))


def _epochs_after(run, seconds):
    """Compute from the run before how many epochs fit into the time."""
    if not run["epochs"]:
        return run["planned"]  # it diverged in the first one
    before = run["seconds"] - run["in_epochs"]  # the head, and the frozen stages
    epochs = _clip_epochs((seconds - before) * run["epochs"] / max(1e-6, run["in_epochs"]))
    return min(epochs, run["planned"]) if run["diverged"] else epochs


@dataclasses.dataclass(frozen=True)
class TimedTraining:
    """Train on a clock.

    Args:
        data: training and validation :class:`thaw.Dataset`.
        batch_size: examples in a batch.
        callbacks: list of Keras callbacks.
    """

    data: tuple
    batch_size: int
    callbacks: list

    def forecast_epochs(self, model, plan, seconds):
        """Forecast how many epochs of the last phase of the plan fit into the time."""
        return _forecast_epochs(model, plan, self.data, self.batch_size, seconds)

    def run(self, model, plan, seed, cache_dir):
        """Train; return a dict of the time and the epochs, and a note where it diverged."""
        from thaw.finetune import fine_tune

        begin, note, stopwatch = time.perf_counter(), "", _stopwatch()
        options = {"batch_size": self.batch_size, "seed": seed, "cache_dir": cache_dir, "verbose": 0}
        callbacks = [*self.callbacks, stopwatch]
        try:
            fine_tune(model, plan, self.data[0], validation_data=self.data[1], callbacks=callbacks, **options)
        except FloatingPointError as error:  # the model has the last good weights
            note = str(error)
        is_last = stopwatch.phase == plan[-1].name
        return {
            "planned": plan[-1].epochs,
            "epochs": stopwatch.epochs if is_last else 0,
            "in_epochs": stopwatch.seconds if is_last else 0.0,
            "seconds": time.perf_counter() - begin,
            "diverged": bool(note),
        }, note


def _stopwatch():
    from thaw.training.callbacks import TuneCallback

    class Stopwatch(TuneCallback):
        """Count the epochs of the current phase, and their seconds."""

        def on_phase_begin(self, phase, stages):
            self.phase, self.epochs, self.seconds = phase.name, 0, 0.0

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            self.seconds += time.perf_counter() - self.began

    return Stopwatch()


def _time_notes(runs, minutes):
    """Yield a sentence for each way that did not take the time it had."""
    for name, of_way in runs.items():
        used = np.mean([run["seconds"] for run in of_way]) / 60
        if abs(used - minutes) <= MAX_TIME_ERROR * minutes:
            continue
        epochs = [run["planned"] for run in of_way]
        took = f"{name} took {used:.2g} of {minutes:.2g} minutes"
        if used < minutes and any(run["epochs"] < run["planned"] for run in of_way):
            yield f"{took}: it ended before its last epoch."
        elif max(epochs) == 1 and used > minutes:
            yield f"{took}: not even one epoch fits into the time; give more minutes."
        elif min(epochs) == MAX_EPOCHS and used < minutes:
            yield f"{took}: {MAX_EPOCHS:,} epochs are the most."
        else:
            difference = "more" if used > minutes else "less"
            yield f"{took}, {difference} than forecast: the speed of the machine changed."


def _metric(model):
    """Return the name of the score, and ``"max"`` or ``"min"``."""
    name, is_accuracy = first_metric(model)
    if is_accuracy or name is None:
        return "accuracy", "max"
    return name, monitor_of(model, name, validation=False)[1]


def _values(model, test, batch_size):
    """Compute the score of each test example."""
    import keras

    from thaw.features.predictions import predict_proba

    name, is_accuracy = first_metric(model)
    if is_accuracy or name is None:
        p = predict_proba(model, test, batch_size=batch_size)
        return (p.argmax(axis=1) == class_numbers(test.y, p.shape[1])).astype(np.float64)
    metric = keras.metrics.get(compiled_metrics(model)[0])
    # A mean over examples has a function; other metrics, such as an area under a curve, have none.
    function, options = metric_function(metric)
    if not callable(function) or hasattr(function, "update_state"):
        raise ValueError(
            f"The first metric is {name}, which is no mean over examples; expected an accuracy, or one such as "
            "mean_absolute_error, in front."
        )
    pieces = [
        np.asarray(function(y, model(x, training=False), **options), np.float64).reshape(len(y), -1).mean(axis=1)
        for x, y, *_ in test.ordered(batch_size)
    ]
    return np.concatenate(pieces)
