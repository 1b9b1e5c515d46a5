"""The average of those runs whose weights make it better."""

import dataclasses
import math

from thaw.tuning.average import average
from thaw.tuning.scored import Scored, score_of


@dataclasses.dataclass(frozen=True)
class Soup:
    """What :func:`greedy_average` took.

    Args:
        taken: numbers of the versions in the average, the best one first.
        score: of the average.
        alone: score of each version by itself.
    """

    taken: tuple[int, ...]
    score: Scored
    alone: tuple[Scored, ...]


def greedy_average(model, versions, measure, data=None, *, batch_size=128):
    """Average the best of several runs with those others that do not make it worse.

    The greedy model soup (Wortsman et al. 2022): from the best run to the worst, each is added to the average and
    stays in it where the score is not lower than before. So the score is at least that of the best run by itself, on
    the data that it was chosen on; measure it once more on other data.

    Args:
        model: a built ``keras.Model``; changed in place. After an error or an interruption it has its weights
            from before.
        versions: one list of arrays for each run, in the order of ``model.weights``.
        measure: how a model is scored, on validation data: :class:`thaw.Examples`, ``(x, y)``, or a function of the
            model, higher is better; see :func:`thaw.tuning.scored.score_of`.
        data: pictures to measure BatchNorm's statistics on anew, or ``None``; see :func:`thaw.average`.
        batch_size: examples in a batch of ``data``.

    Returns:
        :class:`Soup`.

    Raises:
        ValueError: no versions, versions that do not fit the model, or no version whose score is a number.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.greedy_average import greedy_average
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> versions = [[np.array([[w]])] for w in (9.0, 1.0, 4.0)]
        >>> near = lambda m: -abs(float(m.weights[0][0, 0]) - 3)
        >>> greedy_average(model, versions, near).taken
        (2, 1)
    """
    versions = list(versions)
    if not versions:
        raise ValueError("There are no versions to average; expected a list of weights for each run.")
    weights = start = [v.numpy() for v in model.weights]
    try:
        alone = [score_of(average(model, [version]), measure) for version in versions]
        order = [i for i in range(len(versions)) if math.isfinite(alone[i].value)]
        if not order:
            raise ValueError(f"None of the {len(versions)} versions has a score that is a number; look at the runs.")
        order.sort(key=lambda i: -alone[i].value)  # of equal ones the first
        taken, score, chosen = [order[0]], alone[order[0]], versions[order[0]]
        for i in order[1:]:
            tried = [versions[j] for j in (*taken, i)]
            found = score_of(average(model, tried, None, data, batch_size=batch_size), measure)
            if found.value >= score.value:
                taken.append(i)
                score, chosen = found, [v.numpy() for v in model.weights]
        weights = chosen
    except BaseException:
        weights = start
        raise
    finally:
        for variable, value in zip(model.weights, weights):
            variable.assign(value)
    return Soup(tuple(taken), score, tuple(alone))
