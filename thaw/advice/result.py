"""Advice: the plan, its evidence, and the sentences that explain it."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

from thaw._files import to_jsonable
from thaw.metrics.intervals import Estimate
from thaw.plan import Plan

WIDTH = 80  # of a printed line
MIN_SIMILARITY_OF_CLOSE_TASKS = 0.5  # share of the errors of random features that are avoided


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """The result of :func:`thaw.advise`; ``str()`` is a table of the evidence, 80 columns wide.

    Attributes:
        plan: the advised :class:`thaw.Plan`.
        scratch: whether to start from random weights (:func:`thaw.training.reinitialize_weights`).
        trials: every :class:`thaw.advice.trials.Trial`, in order.
        chosen: the best trial, or a simpler one that is about as good. The plan may train more than this trial did:
            where the trials used only some of the examples, or where there was no time for trials.
        probe: :class:`thaw.transfer.probing.Probe` of the frozen stages.
        random_probe: the same with random weights; ``None`` where that was not measured.
        similarity: :class:`~thaw.metrics.intervals.Estimate` of how similar the task is to the one that the model was
            trained on: of the errors that a readout of random features makes, the share that one of the pre-trained
            features avoids; ``None`` where that was not measured.
        learning_curve: :class:`thaw.transfer.learning_curves.LearningCurve` of frozen features.
        gradient_norms: dict from stage to its relative gradient norm
            (:func:`thaw.transfer.relative_gradient_norm`), where the head was kept; else empty.
        reasons: sentences: how similar the tasks are, what to do and why, and what is not known.
        budget_used: proportion of the budget that was spent.

    Example:
        >>> from thaw import advise, fine_tune
        >>> advice = advise(model, x, y, validation_data=(xv, yv))                          # doctest: +SKIP
        >>> print(advice)                                                                   # doctest: +SKIP
        >>> history = fine_tune(model, advice.plan, x, y, validation_data=(xv, yv))         # doctest: +SKIP
    """

    plan: Plan
    scratch: bool
    trials: tuple
    chosen: Any
    probe: Any
    random_probe: Any
    similarity: Estimate | None
    learning_curve: Any
    gradient_norms: dict
    reasons: tuple[str, ...]
    budget_used: float

    def __str__(self):
        baseline = "the unchanged model" if any(trial.train == () for trial in self.trials) else "frozen features"
        lines = [f"{'trial':<21} {'epochs':>6}  {'score':<23}  gain over {baseline}"]
        lines += [_row(trial, trial is self.chosen) for trial in self.trials]
        lines += ["", "frozen features: " + str(self.probe)]
        if self.random_probe is not None:
            row = self.random_probe.best
            lines.append(f"random weights: at best {row.score:.3f}, after {row.stage}")
        if self.gradient_norms:
            shown = ", ".join(f"{stage} {norm:.2g}" for stage, norm in self.gradient_norms.items())
            lines += textwrap.wrap(f"gradient norm relative to the weights: {shown}", WIDTH)
        lines += ["", str(self.learning_curve), ""]
        for reason in self.reasons:
            lines += textwrap.wrap(reason, WIDTH)
        return "\n".join([*lines, "", str(self.plan)])

    def to_dict(self):
        """Return everything for JSON, without the values of single examples."""
        return {
            "reasons": list(self.reasons),
            "scratch": self.scratch,
            "plan": to_jsonable(list(self.plan)),
            "trials": [_json(trial, "values") | {"chosen": trial is self.chosen} for trial in self.trials],
            "probe": _json(self.probe.rows, "errors"),
            "random_probe": None if self.random_probe is None else _json(self.random_probe.rows, "errors"),
            "similarity": None if self.similarity is None else self.similarity.to_dict(),
            "learning_curve": _json(self.learning_curve, "correct"),
            "gradient_norms": to_jsonable(self.gradient_norms),
            "budget_used": self.budget_used,
        }


def _json(value, *omit):
    return to_jsonable(value, "reason", *omit)  # of an estimate; none is missing here


def _row(trial, is_chosen):
    score = "diverged" if trial.diverged else f"{trial.score:.3f}"
    gain = "" if trial.gain is None else f"{trial.gain:+.3f}"
    mark = "*" if is_chosen else " "
    return f"{trial.name[:20]:<20}{mark} {trial.epochs:>6}  {score:<23}  {gain}".rstrip()


@dataclasses.dataclass(kw_only=True)
class Evidence:
    """Results of a search so far.

    Args:
        head: ``"new"`` or ``"kept"``.
        accuracy: whether the score is the accuracy; else it is minus the log loss.
        metric: name of the first metric of the model; ``None`` where it has none.
        n_train: number of training examples.
        n_train_used: number of those that the trials of the backbone used.
        n_head_used: number of those that the head alone was fitted to.
        n_validation: number of validation examples.
        stages_of: function from a trial's ``train`` to the names of the stages that it trains.

    Attributes:
        notes: sentences about what was not done.
        probe, random_probe, similarity, learning_curve, gradient_norms, trials, chosen: as in :class:`Advice`.
        gain_over_random: :class:`~thaw.metrics.intervals.Estimate` of how much better the pre-trained features are than
            random ones; ``None`` where that was not measured.
        frozen: the trial, or the ridge readout, of frozen features, that the others are compared with.
        later: the trial of the backbone that the plan runs after the head, although frozen features did as well.
    """

    head: str
    accuracy: bool
    metric: str | None
    n_train: int
    n_train_used: int
    n_head_used: int
    n_validation: int
    stages_of: Callable
    notes: list = dataclasses.field(default_factory=list)
    probe: Any = None
    random_probe: Any = None
    similarity: Estimate | None = None
    gain_over_random: Estimate | None = None
    learning_curve: Any = None
    gradient_norms: dict = dataclasses.field(default_factory=dict)
    trials: list = dataclasses.field(default_factory=list)
    frozen: Any = None
    chosen: Any = None
    later: Any = None

    @property
    def pretraining_helps(self):
        """Whether the pre-trained features are significantly better than random ones, or this is not known."""
        return self.gain_over_random is None or self.gain_over_random.low > 0

    @property
    def head_trials(self):
        """The trials of the head alone that the others start from."""
        return [trial for trial in self.trials if trial.rung is None and trial.train == "head"]

    @property
    def halving_trials(self):
        """The trials of the successive halving."""
        return [trial for trial in self.trials if trial.rung is not None]


def explain(evidence):
    """Explain what to do and why, and what is not known.

    Args:
        evidence: :class:`Evidence`, with the chosen trial.

    Returns:
        A tuple of sentences: how similar the tasks are, where that was measured; the advice; and what it rests on.
    """
    reasons = [*_similarity(evidence), _advice(evidence), *_pretraining(evidence), *_more_data(evidence)]
    trials = [trial for trial in evidence.trials if trial.trainable_weights or trial.train == "scratch"]
    if len(trials) > 1:
        reasons.append(
            f"The score is the best of {len(trials)} trials on the same {evidence.n_validation} validation examples, "
            "and so it is optimistic; evaluate the fine-tuned model on others."
        )
    if evidence.n_train_used < evidence.n_train and evidence.halving_trials:
        reasons.append(_examples(evidence))
    if evidence.metric is not None and not evidence.accuracy:
        reasons.append(
            f"The trials were scored by the log loss, because the first metric, {evidence.metric}, is not the accuracy."
        )
    return (*reasons, *evidence.notes)


def _similarity(evidence):
    if evidence.similarity is None:
        return
    value, low, high = evidence.similarity
    source = "the source task, on which the network was trained,"
    if value is None:
        yield f"How similar this task is to {source} is not known: a readout of random features makes no errors."
        return
    grade = "close to" if value >= MIN_SIMILARITY_OF_CLOSE_TASKS else "related to"
    begin, end = f"This task is {grade} the source task, on which the network was trained", ""
    if not evidence.pretraining_helps:
        begin = "This task is unlike the source task, on which the network was trained"
        if high is None or high >= MIN_SIMILARITY_OF_CLOSE_TASKS:  # it may be close as well
            begin = f"How similar this task is to {source} is not known from so few errors"
        end = ", which may be chance" if evidence.gain_over_random.high >= 0 else ""
    more = "fewer"
    if value < 0:
        more, value, low, high = "more", -value, -high, -low
    interval = "" if low is None else f" ({_percent(low)} to {_percent(high)})"
    yield (
        f"{begin}: a readout of its features makes {_percent(value)} %{interval} {more} errors than one of random "
        f"features{end}."
    )


def _percent(share):
    return f"{100 * share:.0f}"


def _examples(evidence):
    """Say what part of the examples the trials saw, and what they were compared with."""
    used, n = evidence.n_train_used, evidence.n_train
    share = f"used {used:,} of the {n:,} training examples ({_percent(used / n)} %), stratified by class"
    more = "" if evidence.later is not None else "; with all of them, training more stages may help more"
    if evidence.n_head_used == used:
        return f"The trials {share}{more}."
    of_head = "all of them" if evidence.n_head_used == n else f"{evidence.n_head_used:,} of them"
    return (
        f"The trials of the backbone {share}; the head on frozen features, from which those with pre-trained weights "
        f"began, was fitted to {of_head}{more}."
    )


def _advice(evidence):
    trial, frozen = evidence.chosen, evidence.frozen
    tried = [t for t in evidence.halving_trials if t.trainable_weights or t.train == "scratch"]
    if evidence.head == "new":
        tried = [t for t in tried if t.train != "head"]
    plan = "the default" if evidence.head == "new" else "the smallest change"
    if not tried:
        return f"The budget allowed no trials, so the plan is {plan}; give more minutes."
    closest = max((t for t in tried if t.gain is not None), key=lambda t: t.gain.value, default=None)
    frozen_features = "frozen features" + ("" if frozen.learning_rate else f" with a {frozen.name}")
    baseline = frozen_features if evidence.head == "new" else "the unchanged model"
    gain = "" if trial.gain is None else f", {trial.gain:+.3f} over {baseline}{_caveat(trial.gain)}"
    score = f"{trial.score:.3f}"
    if trial.train == ():
        others = "all trials diverged"
        if closest is not None:
            others = f"the best trial, {closest.name}, changes this by {closest.gain:+.3f}"
        return f"Leave the model unchanged: {score}; {others}. The plan is {plan}."
    if trial.train == "head" and evidence.head == "new":
        others = f"all trials that train more diverged, down to {min(t.learning_rate for t in tried):.2g}"
        if closest is not None:
            others = f"the best trial that trains more, {closest.name}, differs from {frozen_features} by "
            others += f"{closest.gain:+.3f}"
        if evidence.later is not None:
            did = "Frozen features did as well on the examples that the trials used"
            if evidence.n_head_used > evidence.n_train_used:
                did = f"Frozen features of {evidence.n_head_used:,} examples did as well as the trials that train more "
                did += f"on {evidence.n_train_used:,} of them"
            return (
                f"{did}: {score} with the head alone; {others}. With all examples training more may help: the plan "
                f"trains {evidence.later.name} after the head, and the best epoch of all is restored."
            )
        return f"Frozen features are enough: {score} with the head alone; {others}."
    if trial.train == "scratch":
        return (
            f"Start from random weights: {score}{gain}. The trial had {trial.epochs} epochs; the plan has more, "
            "because everything has to be learned."
        )
    return f"Train {_listed(evidence.stages_of(trial.train))} at {trial.learning_rate:.2g}: {score}{gain}."


def _caveat(gain):
    if gain.high < 0:
        return "; the readout is better, but no plan trains one"
    return "; this may be chance" if gain.low <= 0 else ""


def _pretraining(evidence):
    best = evidence.probe.best
    if evidence.random_probe is not None:
        random, gain = evidence.random_probe.best, evidence.gain_over_random
        if evidence.pretraining_helps:
            begin, end = "Pre-training helps", ""
            if evidence.chosen.train == "scratch":
                begin = "The frozen pre-trained features are better than random ones"
                end = "; trained, the network does without them"
            yield (
                f"{begin}: a readout of {best.stage} has an accuracy of {best.score.value:.3f}, with random weights "
                f"{random.score.value:.3f} ({gain:+.3f}){end}."
            )
        else:
            yield (
                f"The pre-trained features are not better than random ones beyond chance ({best.score.value:.3f} and "
                f"{random.score.value:.3f}, {gain:+.3f})."
            )
    last = evidence.probe.rows[-1]
    if best is not last and best.score.low > last.score.high:
        yield (
            f"{best.stage} separates the classes better ({best.score.value:.3f}) than {last.stage}, the last stage "
            f"({last.score.value:.3f}): the stages behind it are specific to the source task."
        )


def _more_data(evidence):
    curve, chosen = evidence.learning_curve, evidence.chosen
    if evidence.n_train_used < evidence.n_train or not evidence.accuracy or evidence.head == "kept":
        return
    gain = 0.0 if chosen.gain is None else max(0.0, chosen.gain.value)
    if curve.gain.low > 0 and curve.expected_gain > gain:
        of_tuning = f"fine-tuning gained {gain:+.3f}" if gain else "fine-tuning gained nothing beyond chance"
        yield (
            f"More examples would help more than more fine-tuning: the last doubling gained {curve.gain:+.3f} with "
            f"frozen features, another one may gain about {curve.expected_gain:+.3f}; {of_tuning}."
        )


def _listed(names):
    names = ["the head" if name == "head" else name for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
