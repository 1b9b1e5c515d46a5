"""Compare: frozen features, top stages, the whole network and a start from scratch, at the same wall-clock time."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable

import numpy as np

from thaw.advising.comparison import compared
from thaw.advising.own_cache import own_cache
from thaw.advising.step_size import step_size
from thaw.number import plain_number, whole_number
from thaw.plan import Phase, Plan
from thaw.tuning.first_metric import first_metric, given_metrics

HEAD_EPOCHS = 5  # of the head alone, before anything else moves
MOST_EPOCHS = 1000
OFF = 0.2  # a share of the time by which a way may miss it before that is said


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to use a pre-trained network.

    Args:
        name: in the table.
        subject: as a sentence begins with it, with "is" or "are".
        plan: from a number of epochs to the :class:`thaw.Plan` whose last phase has as many.
        prepare: what is done to the model beforehand, from (model, seed); ``None`` for nothing.
    """

    name: str
    subject: str
    plan: Callable
    prepare: Callable | None = None


def compare(build, data, *, minutes=5.0, seeds=3, ways=None, batch_size=32, callbacks=()):
    """Train in several ways, each for the same wall-clock time and with several seeds, and measure the difference.

    Ways are ``"frozen"`` (the head alone), ``"top"`` (the head, then the top two stages too), ``"whole"`` (the head,
    then everything, BatchNorm's statistics held) and ``"scratch"`` (the same architecture with random weights,
    everything moves, BatchNorm's statistics too). How many epochs go into the time is forecast from a few batches and,
    from the second seed on, from what the seed before took; what a run really took is in the table. Every run begins
    with nothing kept from another one. The number of epochs follows from the clock, so that two calls may differ.

    Intervals are the percentile bootstrap over the test examples and, with two seeds or more, over the seeds, paired:
    a resample takes the same examples and seeds in all ways (Efron 1979). A few seeds show their own spread too small.
    That the best was chosen by the same examples makes it look a little better than it is.

    Args:
        build: function from a seed to a fresh, compiled ``keras.Model`` with its head, as :func:`thaw.tune` takes it.
        data: ``(train, validation, test)``, each :class:`thaw.Examples` or arrays ``(x, y)``.
        minutes: of training for each way and each seed; the whole takes ``minutes * seeds * len(ways)``.
        seeds: how many; they are 0, 1, 2 …
        ways: names of the ways, two at least; ``None`` for all that the model allows.
        batch_size: examples in a batch.
        callbacks: Keras callbacks, as in :func:`thaw.tune`. Where one has ``on_way_begin(way, seed, epochs, done,
            total)``, it is called before each run.

    Returns:
        :class:`~thaw.advising.comparison.Comparison`; as a string it is a table and a sentence. The score is the
        accuracy, or the model's first metric where that is something else.

    Raises:
        ValueError: data, ways or numbers that cannot be meant, a model with a mistake that ``tune`` finds, or a first
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
        >>> found = compare(build, [(x, y)] * 3, minutes=0.01, seeds=2, ways=("frozen", "scratch"))
        >>> sorted(row.name for row in found.rows)
        ['from scratch', 'frozen features']
    """
    import keras

    from thaw.tuning.mistakes import mistakes, refuse
    from thaw.tuning.untouched import same_randomness

    if not callable(build) or isinstance(build, keras.Model):
        raise ValueError(
            f"build is a {type(build).__name__}; expected a function from a seed to a fresh, compiled keras.Model."
        )
    minutes, seeds = plain_number(minutes), whole_number("seeds", seeds, 1)
    batch_size = whole_number("batch_size", batch_size, 1)
    train, validation, test = _checked(data, minutes)
    with same_randomness():
        model = _built(build, 0)
        refuse(mistakes(model, train, validation) + mistakes(model, test))
        chosen, notes = _ways(model, ways, train)
        _values(model, test.take(np.arange(min(batch_size, len(test)))), batch_size)  # now, and not after an hour
        runs = {way.name: [] for way in chosen}
        for number in range(seeds * len(chosen)):
            seed, way = number // len(chosen), chosen[number % len(chosen)]
            with own_cache():
                fresh = _built(build, seed)
                if _learned(fresh) & _learned(model):
                    raise ValueError(
                        "build(seed) gave the same model twice, or two that share layers, so that one run would go on "
                        "with the weights of another: make every layer anew inside of it."
                    )
                model = fresh
                if way.prepare is not None:
                    way.prepare(model, seed)
                settings = model._compile_config.config
                before = runs[way.name]
                if before:
                    epochs = _again(before[-1], 60 * minutes)
                else:
                    parts = (train, validation)
                    epochs = _epochs(model, way.plan(MOST_EPOCHS), parts, batch_size, 60 * minutes)
                for callback in callbacks:
                    if hasattr(callback, "on_way_begin"):
                        callback.on_way_begin(way.name, seed, epochs, number, seeds * len(chosen))
                keras.Model.compile(model, **settings)
                run, note = _run(model, way.plan(epochs), (train, validation), batch_size, seed, callbacks)
                notes += [f"{way.name}, seed {seed}: {note}"] if note else []
                before.append(run | {"values": _values(model, test, batch_size)})
    return compared(chosen, runs, minutes, _score_of(model), [*notes, *_late(runs, minutes)])


def _checked(data, minutes):
    from thaw.examples import Examples

    if not isinstance(data, (tuple, list)) or len(data) != 3 or any(part is None for part in data):
        raise ValueError("data has to be (train, validation, test): what is compared is measured on test examples.")
    if not (isinstance(minutes, (int, float)) and 0 < minutes < float("inf")):
        raise ValueError(f"minutes={minutes!r}; expected a number above 0.")
    parts = []
    for part in data:
        part = Examples.of(part)
        if not isinstance(part, Examples):
            raise ValueError(
                f"data holds a {type(part).__name__}; expected thaw.Examples or arrays (x, y), of which what stands "
                "still can be kept."
            )
        parts.append(part)
    return parts


def _built(build, seed):
    """A model of the user's function, drawn from this seed also where the function pays no attention to it."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model = build(seed)
    if not getattr(model, "compiled", False) or not model.built:
        raise ValueError("build(seed) has to give a built and compiled keras.Model; call model.compile in it.")
    return model


def _learned(model):
    """What a model could learn, by id; what is shared beside it, such as a Normalization, stands still."""
    return {id(v) for layer in model._flatten_layers() for v in layer._trainable_variables}


def _ways(model, wanted, train):
    """The ways that this model allows, the cheapest first, and what there is to say."""
    from thaw.advising.trials import begin_anew
    from thaw.stages import HEAD, stages_of

    stages = stages_of(model)
    if stages[-1].name != HEAD or len(stages) < 2:
        raise ValueError(f"{model.name} has no head above other stages; put one on it: attach_head(model, classes).")
    top, notes, unit = min(2, len(stages) - 2), [], step_size(model.optimizer)
    stretch = Phase(name="head", epochs=HEAD_EPOCHS, train="head", learning_rate=1e-3 * unit, views=4)
    slow = {"stage_decay": 0.7}

    def then(**phase):
        return lambda epochs: Plan([stretch, Phase(epochs=epochs, **phase)])

    table = {
        "frozen": Way(
            "frozen features",
            "Frozen features are",
            lambda epochs: Plan.named("probe", epochs=epochs, learning_rate=1e-3 * unit),
        ),
        "top": Way(
            f"top {top} stages" if top > 1 else "top stage",
            f"Moving the top {'two stages' if top > 1 else 'stage'} is",
            then(name="top", train=max(top, 1), learning_rate=5e-4 * unit, views=4, **slow),
        ),
        "whole": Way(
            "whole network", "Moving the whole network is", then(name="all", learning_rate=1e-4 * unit, **slow)
        ),
        "scratch": Way(
            "from scratch",
            "Training from scratch is",
            lambda epochs: Plan([Phase(name="all", epochs=epochs, learning_rate=1e-3 * unit, batchnorm="trained")]),
            lambda model, seed: begin_anew(model, train, seed),
        ),
    }
    for name in wanted or ():
        if name not in table:
            raise ValueError(f"There is no way {name!r}; expected some of {', '.join(table)}.")
    names = [name for name in table if wanted is None or name in wanted]
    if top == 0 and "top" in names:
        names.remove("top")
        notes.append(f"{model.name} has one stage below the head: the top stage is the whole network.")
    if len(names) < 2:
        raise ValueError(f"Only {', '.join(names)} is left to compare; expected two ways at least.")
    return [table[name] for name in names], notes


def _epochs(model, plan, data, batch_size, seconds):
    """How many epochs of the last phase go into the time, by a forecast from a few batches."""
    from thaw.tuning.dry_run import dry_run

    forecasts = dry_run(model, plan, tuple(map(len, data)), batch_size=batch_size)
    step, epoch = _overhead()
    for_each = [epoch + step * sum(part.steps(batch_size) for part in data)] * len(plan)
    for i, phase in enumerate(plan):  # what is not kept is read and augmented in every epoch
        for_each[i] += 0.0 if phase.views else _reading(data[0], batch_size) * data[0].steps(batch_size)
    *before, last = [f.seconds + phase.epochs * more for f, phase, more in zip(forecasts, plan, for_each)]
    once = forecasts[-1].once
    return _whole((seconds - once - sum(before)) / max(1e-6, (last - once) / plan[-1].epochs))


@functools.cache
def _overhead():
    """Seconds that ``fit`` takes of its own, for each step and for each epoch."""
    import keras

    from thaw.examples import Examples

    taken = {}
    for steps in (10, 100):
        data = Examples(x=np.zeros((steps, 1), "float32"), y=np.zeros((steps, 1), "float32"))
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("adam", "mse", metrics=["mae"], jit_compile=False)
        fit = {"steps_per_epoch": steps, "validation_data": data.ordered(1), "shuffle": False, "verbose": 0}
        model.fit(data.epochs(1, seed=0), **fit)
        begin = time.perf_counter()
        model.fit(data.epochs(1, seed=0), epochs=3, **fit)
        taken[steps] = (time.perf_counter() - begin) / 3
    step = max(0.0, taken[100] - taken[10]) / 180
    return step, max(0.0, taken[10] - 20 * step)


def _reading(examples, batch_size):
    """Seconds to read and augment a batch."""
    batches = iter(examples.epochs(batch_size, seed=0).take(9))
    next(batches)
    begin = time.perf_counter()
    read = sum(1 for _ in batches)
    return (time.perf_counter() - begin) / read


def _whole(epochs):
    return int(min(MOST_EPOCHS, max(1, epochs)))


def _again(run, seconds):
    """How many epochs go into the time, by the run before."""
    if not run["epochs"]:
        return run["planned"]  # it diverged before there was one
    before = run["seconds"] - run["in_epochs"]  # the head, and what stands still
    epochs = _whole((seconds - before) * run["epochs"] / max(1e-6, run["in_epochs"]))
    return min(epochs, run["planned"]) if run["diverged"] else epochs


def _run(model, plan, data, batch_size, seed, callbacks):
    """Train; what it took, and a note where it went wrong."""
    from thaw.tuning.tune import tune

    begin, note, watch = time.perf_counter(), "", _watch()
    try:
        tune(model, plan, data, batch_size=batch_size, seed=seed, callbacks=[*callbacks, watch])
    except FloatingPointError as error:  # the last good weights are in the model
        note = str(error)
    last = watch.phase == plan[-1].name
    return {
        "planned": plan[-1].epochs,
        "epochs": watch.epochs if last else 0,
        "in_epochs": watch.seconds if last else 0.0,
        "seconds": time.perf_counter() - begin,
        "diverged": bool(note),
    }, note


def _watch():
    import keras

    class Watch(keras.callbacks.Callback):
        """Counts the epochs of the phase that is running, and their seconds."""

        def on_phase_begin(self, phase, moving):
            self.phase, self.epochs, self.seconds = phase.name, 0, 0.0

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            self.seconds += time.perf_counter() - self.began

    return Watch()


def _late(runs, minutes):
    """Sentences about ways that did not take the time they had."""
    for name, done in runs.items():
        used = np.mean([run["seconds"] for run in done]) / 60
        if abs(used - minutes) <= OFF * minutes:
            continue
        epochs = [run["planned"] for run in done]
        told = f"{name} took {used:.2g} of {minutes:.2g} minutes"
        if used < minutes and any(run["epochs"] < run["planned"] for run in done):
            yield f"{told}: it ended before its last epoch."
        elif max(epochs) == 1 and used > minutes:
            yield f"{told}: not even one epoch fits into the time; give more minutes."
        elif min(epochs) == MOST_EPOCHS and used < minutes:
            yield f"{told}: {MOST_EPOCHS:,} epochs are the most."
        else:
            more = "more than its share" if used > minutes else "less than its share"
            yield f"{told}, {more}: the machine was faster or slower than when it was measured."


def _score_of(model):
    """Name of the score, and whether higher is better."""
    from thaw.tuning.best_weights import BestWeights

    name, is_accuracy = first_metric(model)
    name = "accuracy" if is_accuracy or name is None else name
    return name, BestWeights(model, name).higher_is_better


def _values(model, test, batch_size):
    """The score of each test example."""
    import keras

    from thaw.measuring.predict_probabilities import predict_probabilities

    name, is_accuracy = first_metric(model)
    if is_accuracy or name is None:
        y, p = predict_probabilities(model, test, batch_size=batch_size)
        return (p.argmax(axis=1) == y).astype(np.float64)
    metric = keras.metrics.get(given_metrics(model)[0])
    # A mean over examples keeps its function here; anything else, such as an area under a curve, has none.
    function = getattr(metric, "_fn", metric)
    options = getattr(metric, "_fn_kwargs", {})
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
