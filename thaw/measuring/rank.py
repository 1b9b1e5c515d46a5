"""Rank: which of several backbones suits the data best, before any is tuned."""

from __future__ import annotations

import dataclasses

from thaw.measuring.probe import Probe, probe


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """One backbone, as :func:`rank` found it.

    Attributes:
        name: the name it was given.
        log_me: of its last features, by which it is ranked.
        score, low, high: of the ridge readout of its last features, with its 95 % interval: accuracy, or R².
        parameters: how many numbers its weights hold.
        probe: all its stages.
    """

    name: str
    log_me: float
    score: float
    low: float
    high: float
    parameters: int
    probe: Probe = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """What :func:`rank` found; ``str()`` is a table.

    Attributes:
        rows: one :class:`Ranked` for each backbone, the best first.
    """

    rows: tuple[Ranked, ...]

    def __str__(self):
        found = self.rows[0].probe
        score = "ridge R2" if found.classes is None else "ridge accuracy"
        longest = min(26, max(8, *(len(row.name) for row in self.rows)))
        lines = [f"{'backbone':<{longest}} {'parameters':>11}  {'LogME':>8}  {score:<21}  best"]
        for row in self.rows:
            name = row.name if len(row.name) <= longest else row.name[: longest - 1] + "…"
            interval = f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
            lines.append(
                f"{name:<{longest}} {row.parameters:>11,}  {row.log_me:>8.3f}  {interval:<21}  {row.probe.best.stage}"
            )
        return "\n".join(lines)


def rank(backbones, data, *, folds=5, most=5000, batch_size=32, regression=False, seed=0):
    """Order pre-trained models by how well their last features explain the labels.

    By LogME (You et al. 2021), which on ten ImageNet models orders their fine-tuned accuracy with a weighted
    Kendall's tau of 0.785 on CIFAR-10, 0.654 on Stanford Cars and 0.748 on SUN397 (Transfer-Learning-Library); the
    cross-validated accuracy stands beside it. It says nothing about training from scratch, and a difference in LogME
    has no interval: where the accuracies' intervals overlap, take the smaller model.

    Args:
        backbones: dict from a name to a ``keras.Model``, with or without a head, all for the same inputs. They are the
            same afterwards, to the bit.
        data: :class:`thaw.Examples`, arrays ``(x, y)``, or a batched ``tf.data.Dataset`` that gives the same examples
            every time; see :func:`probe`.
        folds: of the cross-validation.
        most: use this many examples at most; ``None`` for all.
        batch_size: examples in a batch; a data set keeps its own.
        regression: the labels are numbers, not classes.
        seed: of the drawing and the folds.

    Returns:
        :class:`Ranking`, highest LogME first; equal ones in the order of their accuracy, then of their names.

    Raises:
        ValueError: no backbones, or one that cannot be measured; the message names it.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.rank import rank
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
        >>> def net(*weights):
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1), keras.layers.Dense(2)])
        ...     model.layers[0].set_weights([np.array(weights)[:, None], np.zeros(1)])
        ...     return model
        >>> found = rank({"deaf": net(0, 0, 1), "keen": net(1, 0, 0)}, (x, (x[:, 0] > 0).astype(int)))
        >>> [row.name for row in found.rows]
        ['keen', 'deaf']
    """
    if not isinstance(backbones, dict) or not backbones:
        raise ValueError("There are no backbones; expected a dict from names to models.")
    rows = []
    for name, model in backbones.items():
        try:
            found = probe(model, data, folds=folds, most=most, batch_size=batch_size, regression=regression, seed=seed)
        except ValueError as error:
            raise ValueError(f'Backbone "{name}": {error}') from error
        last = found.rows[-1]
        rows.append(Ranked(name, last.log_me, last.score, last.low, last.high, model.count_params(), found))
    return Ranking(tuple(sorted(rows, key=lambda row: (-row.log_me, -row.score, row.name))))
