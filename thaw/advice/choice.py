"""Choose a trial, and write the plan that follows from it."""

from __future__ import annotations

from thaw.advice.trials import Candidate, is_better
from thaw.plan import Plan

# Standard errors within which the simpler trial is chosen. With a kept head many stages are tried, and the best of many
# is more optimistic.
STANDARD_ERRORS = {"new": 1.0, "kept": 2.0}
SCRATCH_EPOCHS_FACTOR = 2  # epochs of a plan from random weights relative to other plans


def choose(evidence, finalists, space):
    """Choose the best trial, or a simpler one that is about as good.

    Args:
        evidence: :class:`thaw.advice.result.Evidence`.
        finalists: the trials to choose from.
        space: :class:`thaw.advice.space.SearchSpace`.

    Returns:
        ``(chosen, later)``: the trial, and the one of the backbone that the plan runs after the head although frozen
        features did as well; ``None`` where there is none.
    """
    chosen = simplest(finalists, complexity_of(evidence), STANDARD_ERRORS[evidence.head])
    saw_all = evidence.n_train_used == evidence.n_train
    needs_more = evidence.head == "new" and chosen.train == "head" and not saw_all
    return chosen, _later(finalists, space) if needs_more else None


def complexity_of(evidence):
    """Return the function from a trial to its complexity: of trials that are about as good the least is chosen."""

    def complexity(trial):
        if evidence.head == "kept":
            return trial.trainable_weights  # training fewer weights forgets less
        if trial.train == "head":
            return 0
        # A trial from random weights has not learned all that its plan will: where the features are no better than
        # random ones, being about as good is enough.
        return 1 if evidence.pretraining_helps or trial.train == "scratch" else 2

    return complexity


def simplest(trials, complexity, standard_errors):
    """Return the best trial, or the best of those of the least complexity that are within some standard errors."""
    best, leaders = max(trials, key=lambda trial: trial.rank), {}
    for trial in sorted(trials, key=lambda trial: trial.rank):
        leaders[complexity(trial)] = trial
    return next(
        trial
        for _, trial in sorted(leaders.items(), key=lambda item: item[0])
        if trial is best or not is_better(best.values, trial.values, standard_errors)
    )


def _later(finalists, space):
    """Return the trial of the backbone that the plan runs after the head, although the trials saw few examples.

    Few examples favor training few weights, and low rates. The best of all epochs is restored, so that training more
    costs time only. It is the usual depth at the usual rate, unless another is better beyond its standard error.
    """
    of_backbone = [trial for trial in finalists if trial.train not in ("head", "scratch")]
    best = max(of_backbone, key=lambda trial: trial.rank, default=None)
    usual = space.usual_depth, space.learning_rates[0]
    at_usual = [trial for trial in of_backbone if (trial.train, trial.learning_rate) == usual]
    return next((trial for trial in at_usual if not is_better(best.values, trial.values)), best)


def plan_of(evidence, finalists, space, *, epochs, head_epochs, l2_sp):
    """Return the :class:`thaw.Plan` that follows from the chosen trial.

    Args:
        evidence: :class:`thaw.advice.result.Evidence`, with the trials and the chosen one.
        finalists: the trials to choose from.
        space: :class:`thaw.advice.space.SearchSpace`.
        epochs: epochs of the phase that trains the backbone.
        head_epochs: epochs of the head alone; a solved one takes one.
        l2_sp: strength of L2-SP in that phase.
    """
    chosen = evidence.chosen
    if evidence.head == "kept":
        if chosen.train == ():
            trained = [trial for trial in finalists if trial.train != ()]
            if not trained:
                return Plan([_phase(Candidate("head", space.learning_rates[0]), epochs, l2_sp=l2_sp)])
            chosen = simplest(trained, complexity_of(evidence), STANDARD_ERRORS["kept"])
        return Plan([_phase(chosen, epochs, l2_sp=l2_sp)])
    if chosen.train == "scratch":
        return Plan([_phase(chosen, max(SCRATCH_EPOCHS_FACTOR * epochs, chosen.epochs), name="scratch")])
    best_head = max(evidence.head_trials, key=lambda trial: trial.rank)
    head = _phase(best_head, head_epochs, name="head")
    if not evidence.halving_trials:
        usual = Candidate(space.usual_depth, space.learning_rates[0])
        return Plan([head, _phase(usual, epochs, l2_sp=l2_sp)])
    trained = evidence.later or (None if chosen.train == "head" else chosen)
    return Plan([head] if trained is None else [head, _phase(trained, epochs, l2_sp=l2_sp)])


def _phase(trial, epochs, **settings):
    return Candidate(trial.train, trial.learning_rate, solver=trial.solver).phase(epochs, **settings)
