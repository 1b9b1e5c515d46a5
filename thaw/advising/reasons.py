"""The sentences that go with advice."""

from __future__ import annotations


def reasons(found):
    """Say what to do and why, and what is not known.

    Args:
        found: what was found, a :class:`thaw.advising.advise.Found`.

    Returns:
        A tuple of sentences, the advice first.
    """
    said = [_advice(found), *_similarity(found), *_more_data(found)]
    trials = [trial for trial in found.trials if trial.moving or trial.train == "scratch"]
    if len(trials) > 1:
        said.append(
            f"The score is the best of {len(trials)} trials on the same {found.counts['validation']} validation "
            "examples and flatters; measure the tuned model on others."
        )
    used, all_of_them = found.counts["used"], found.counts["train"]
    if used < all_of_them:
        more = "" if found.later is not None else "; with all of them moving more stages may pay more"
        said.append(f"The trials saw {used:,} of the {all_of_them:,} training examples, each class in its share{more}.")
    return (*said, *found.notes)


def _advice(found):
    trial, frozen = found.chosen, found.frozen
    tried = [t for t in found.trials if t.rung is not None and (t.moving or t.train == "scratch")]
    if found.head == "new":
        tried = [t for t in tried if t.train != "head"]
    plan = "the usual one" if found.head == "new" else "the least that could be tuned"
    if not tried:
        return f"There was no room for trials in the budget, so the plan is {plan}; give it more minutes."
    closest = max((t for t in tried if t.against is not None), key=lambda t: t.against[0], default=None)
    of_frozen = "frozen features" + (f" under a {frozen.name}" if not frozen.learning_rate else "")
    beaten = of_frozen if found.head == "new" else "the model as it is"
    gain = "" if trial.against is None else f", {_gain(trial.against)} over {beaten}{_doubt(trial)}"
    if trial.train == ():
        others = "all that was tried diverged"
        if closest is not None:
            others = f"the best that was tried, {closest.name}, changes this by {_gain(closest.against)}"
        return f"Leave the model as it is: {_score(trial)}; {others}. The plan is {plan}."
    if trial.train == "head" and found.head == "new":
        others = f"all that moves more diverged, down to {min(t.learning_rate for t in tried):.2g}"
        if closest is not None:
            differs = f"differs from {of_frozen} by {_gain(closest.against)}"
            others = f"the best that moves more, {closest.name}, {differs}"
        if found.later is not None:
            return (
                f"Frozen features did as well on the examples that the trials saw: {_score(trial)} with the head "
                f"alone; {others}. With all of them moving more may pay: the plan tries {found.later.name} after the "
                "head, and the best epoch of all is kept."
            )
        return f"Frozen features are enough: {_score(trial)} with the head alone; {others}."
    if trial.train == "scratch":
        return (
            f"Start from random weights: {_score(trial)}{gain}. The trial had {trial.epochs} epochs; the plan has "
            "more, because everything is to be learned."
        )
    return f"Move {_moving(found, trial)} at {trial.learning_rate:.2g}: {_score(trial)}{gain}."


def _doubt(trial):
    _, low, high = trial.against
    if high < 0:
        return "; a readout is better, but is nothing that is trained"
    return "; that may still be chance" if low <= 0 else ""


def _similarity(found):
    best = found.probe.best
    if found.untrained is not None:
        random, (gain, low, high) = found.untrained.best, found.over_random
        if low > 0:
            begin, end = "Pre-training helps", ""
            if found.chosen.train == "scratch":
                begin = "As they are the pre-trained features are better"
                end = "; trained, the network does without them"
            yield (
                f"{begin}: a readout of {best.stage} is right in {best.score:.3f}, of random weights in "
                f"{random.score:.3f} ({_gain((gain, low, high))}){end}."
            )
        else:
            yield (
                f"The pre-trained features are not better than random ones beyond chance ({best.score:.3f} against "
                f"{random.score:.3f}, {_gain((gain, low, high))}): this task may be unlike the one they were made for."
            )
    last = found.probe.rows[-1]
    if best is not last and best.low > last.high:
        yield (
            f"{best.stage} tells the classes apart better ({best.score:.3f}) than {last.stage}, the last one "
            f"({last.score:.3f}): what comes behind it belongs to the old task."
        )


def _more_data(found):
    curve, chosen = found.curve, found.chosen
    if found.counts["used"] < found.counts["train"] or not found.accuracy or found.head == "kept":
        return
    gain = 0.0 if chosen.against is None else max(0.0, chosen.against[0])
    if curve.low > 0 and curve.expected > gain:
        brought = f"tuning brought {gain:+.3f}" if gain else "tuning brings nothing beyond chance"
        yield (
            f"More examples would help more than more tuning: the last doubling brought "
            f"{_gain((curve.gained, curve.low, curve.high))} to frozen features, another may bring about "
            f"{curve.expected:+.3f}; {brought}."
        )


def _moving(found, trial):
    names = [name if name != "head" else "the head" for name in found.stages_moved(trial.train)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _score(trial):
    return f"{trial.score:.3f} [{trial.low:.3f}, {trial.high:.3f}]"


def _gain(triple):
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*triple)
