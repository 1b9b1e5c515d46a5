"""Hold the budget of forgetting after the training."""

import dataclasses
import functools
import math

import numpy as np

from thaw.stages import HEAD, stages_of

# The first steps away from the start cost the old task most.
ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.15, *(i / 10 for i in range(2, 11)))
CURVE = (0.05, *(i / 10 for i in range(1, 10)))  # between the same ends, by importance
ANEW = (0.3, 0.5, 0.7, 0.9)  # where BatchNorm's statistics are measured too, which takes longer
IMPORTANCE = 100  # pictures of each task that say what matters to it
STATISTICS = 256  # pictures of each task, where BatchNorm's statistics are measured anew


def stay_within(forgetting, plan):
    """Leave the best weights in a model that forget little enough, or the nearest to that, and say so.

    The simplest first. If the best epoch of all is inside the budget, nothing is done. If not, what is chosen from
    is: the best of the epochs that were inside (that of a head alone always is), and the places between the backbone
    before and after, with the tuned head (:func:`thaw.rescue`), on the line and on the curve on which each weight goes
    back by its importance to both tasks (:func:`thaw.interpolate`). The training itself is left as it is: an epoch
    outside may lead to the place that is the best of all.

    The backbone as it was is inside any budget. What is no better at the new task than always naming the commonest
    class does not count as held: then the budget could not be held, and what has learned and forgets least is left,
    or the best epoch where that is inside.

    BatchNorm's statistics are measured anew on pictures of both tasks where the run has moved them, and the line alone
    is tried. Where they were held, both ends work with the same ones, and so does what is between them; measured anew
    they may give back much more of the old task, or less, when the two tasks look different. With old pictures at hand
    both are tried.

    Args:
        forgetting: the :class:`thaw.jobs.forgetting.Forgetting` of the run; its model comes with the best epoch's
            weights.
        plan: the plan that was run.

    Returns:
        ``(found, notes)``: a dict that goes into JSON with ``max_forgetting``, ``inside``, ``chosen`` (a sentence),
        ``alpha`` (of the place between, or ``None``) and ``rescue`` (what was tried); and sentences to show.

    Example:
        >>> from thaw.jobs.stay_within import stay_within
        >>> found, notes = stay_within(forgetting, plan)    # doctest: +SKIP
        >>> found["inside"], found["alpha"]                 # doctest: +SKIP
        (True, 0.6)
    """
    from thaw.jobs.answers import Answers
    from thaw.tuning.estimate_batchnorm import changed_batchnorms
    from thaw.tuning.freeze import freeze
    from thaw.tuning.interpolate import interpolate
    from thaw.tuning.keep_stages import keep_stages
    from thaw.tuning.rescue import rescue
    from thaw.tuning.scored import accuracy_of

    model, validation = forgetting.model, forgetting.pictures.validation
    budget = forgetting.old.max_forgetting
    floor = float(np.bincount(validation.y).max() / len(validation.y))
    epoch, score = forgetting.best_inside, None
    if epoch is not None:  # Keras says it in float32, which may be a hair above what it is
        score = round(epoch.value * len(validation)) / len(validation)
    first = forgetting.measure()
    found = {"max_forgetting": budget, "inside": True, "chosen": "the best epoch", "alpha": None, "rescue": []}
    if inside(1 - first["kept"]["value"], budget):  # then the best epoch is the best of those inside
        if score is None or score > floor:
            return found, []
        return found | {"inside": False}, [
            f"The best epoch forgets no more than {budget:.1%}, but at the new task it is no better than always naming "
            "the commonest class: the budget does not count as held."
        ]
    after = [w.numpy() for w in model.weights]
    before = keep_stages(model, forgetting.start, after)
    anew = functools.partial(interpolate, data=_both(forgetting))
    held = _statistics_are_equal(model, before, after)
    ways = [("line", "held", interpolate, ALPHAS)] if held else [("line", "anew", anew, ALPHAS)]
    if held and forgetting.old.examples is not None and changed_batchnorms(model, [before, after]):
        ways.append(("line", "anew", anew, ANEW))
    try:
        if held and CURVE:
            curve = functools.partial(interpolate, importance=_importance(forgetting, before, after))
            ways.insert(1, ("curve", "held", curve, CURVE))
        # What has not moved in the whole run is run once, for both tasks.
        freeze(model, _moved(model, before, after), "trained")
        answers = Answers(model, validation, batch_size=forgetting.batch_size)
        answers.follow()
        forgetting.answers.follow()
        tried = []
        for name, statistics, path, alphas in ways:
            rows = rescue(
                interpolate(model, before, after, 1.0),
                before,
                lambda _: dataclasses.asdict(accuracy_of(answers(), validation.y)),
                lambda _: forgetting.measure()["after"],
                max_forgetting=budget,
                alphas=alphas,
                path=path,
            ).rows
            tried += [(row, name, statistics, path) for row in rows]
        found["rescue"] = [
            dataclasses.asdict(row) | {"path": name, "statistics": statistics} for row, name, statistics, _ in tried
        ]
        learned = [one for one in tried if one[0].new.value > floor]
        fit = [one for one in learned if inside(one[0].forgotten, budget)]
        if score is not None and score > max([floor, *(row.new.value for row, *_ in fit)]):
            found["chosen"] = f"epoch {epoch.epoch + 1}, the best that was inside the budget"
            for variable, value in zip(model.weights, epoch.weights):
                variable.assign(value)
        elif fit:
            best = max(fit, key=lambda one: (one[0].new.value, -one[0].forgotten))
            found["alpha"], found["chosen"] = _put(model, before, after, best)
        else:
            found["inside"] = False
            if learned:
                best = min(learned, key=lambda one: one[0].forgotten)
                found["alpha"], found["chosen"] = _put(model, before, after, best)
            else:
                interpolate(model, before, after, 1.0)
    finally:
        freeze(model, plan[-1].train, plan[-1].batchnorm)
    return found, [_said(found, first, forgetting)]


def _said(found, first, forgetting):
    budget = f"{found['max_forgetting']:.1%}"
    lost = f"The best epoch forgets {1 - first['kept']['value']:.1%}, more than the {budget} that it may"
    if found["inside"]:
        return (
            f"{lost}; {found['chosen']} was taken instead. The pictures that chose it are "
            "those on which forgetting and validation are measured: both look a little too good."
        )
    return (
        f"{lost}, and nothing was found that has learned the new task and forgets no more: the budget could not be "
        f"held. The model is {found['chosen']}."
    )


def _moved(model, before, after):
    """Names of the stages that have moved, and the head."""
    moved = {id(w) for w, a, b in zip(model.weights, before, after) if not np.array_equal(a, b)}
    names = [s.name for s in stages_of(model) if any(id(w) in moved for layer in s.layers for w in layer.weights)]
    return (*(name for name in names if name != HEAD), HEAD)


def _put(model, before, after, tried):
    """Give the model the weights of one place; its alpha, and what it is called."""
    row, name, statistics, path = tried
    path(model, before, after, row.alpha)
    anew = ", BatchNorm's statistics measured anew" if statistics == "anew" else ""
    return row.alpha, f"alpha = {row.alpha:g} on the {name} from the backbone before to that after{anew}"


def _importance(forgetting, before, after):
    """How much each weight matters to the old task before, and to the new one after."""
    from thaw.tuning.fisher import fisher
    from thaw.tuning.interpolate import interpolate

    model, found = forgetting.model, []
    tasks = (0.0, forgetting.old.model, forgetting.examples), (1.0, model, forgetting.pictures.train)
    for alpha, answers, pictures in tasks:
        interpolate(model, before, after, alpha)
        found.append(fisher(answers, pictures, examples=IMPORTANCE, of=model, seed=forgetting.seed))
    return found


def _statistics_are_equal(model, before, after):
    from thaw.tuning.estimate_batchnorm import batchnorms

    statistics = {id(v) for layer in batchnorms(model) for v in (layer.moving_mean, layer.moving_variance)}
    pairs = zip(model.weights, before, after)
    return all(np.array_equal(a, b) for w, a, b in pairs if id(w) in statistics)


def _both(forgetting):
    """Pictures of both tasks as one data set, well mixed, and the same every time."""
    import tensorflow as tf

    parts = [forgetting.pictures.train, forgetting.examples]
    # By their keys, so that the same ones are taken every time.
    parts = [part.take(np.argsort(part.content_keys, kind="stable")[:STATISTICS]) for part in parts]
    inputs = [dataclasses.replace(p, augment=None).ordered(1).map(lambda x, *_: x).unbatch() for p in parts]
    turns = np.random.default_rng(0).permutation(np.repeat([0, 1], [len(p) for p in parts]))
    return tf.data.Dataset.choose_from_datasets(inputs, tf.data.Dataset.from_tensor_slices(turns)).batch(64)


def inside(forgotten, budget):
    """Is so much inside the budget? A hair of rounding is no forgetting; what is not a number never is."""
    return math.isfinite(forgotten) and forgotten <= budget + 1e-9
