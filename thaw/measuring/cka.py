"""How alike two representations of the same examples are: linear CKA."""

from __future__ import annotations

import hashlib

import numpy as np

from thaw.forward import forward, held
from thaw.measuring.inputs_of import inputs_of
from thaw.measuring.stage_outputs import StageOutputs

RESAMPLES = 2000
FEWEST = 4  # examples in a batch, below which the unbiased estimate is not defined
FEWEST_BATCHES = 8  # below which resampling batches says nothing


def linear_cka(a, b):
    """Linear centered kernel alignment of two sets of features (Kornblith et al. 2019).

    1 where the one is the other turned, mirrored, scaled or shifted; 0 where they have nothing in common. The
    unbiased estimate of HSIC (Song et al. 2012) is used: the plain one is near 1 for unrelated features as soon
    as there are more features than examples. It may come out slightly below 0 or above 1.

    Args:
        a: ``(n, ...)``, at least 4 examples; what follows the first axis is flattened.
        b: ``(n, ...)`` for the same examples; the number of features may differ.

    Returns:
        A float, or NaN where one of the two does not vary.

    Raises:
        ValueError: arrays that do not belong together, or fewer than 4 examples.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.cka import linear_cka
        >>> a = np.random.default_rng(0).normal(size=(20, 3))
        >>> round(linear_cka(a, 2 * a[:, ::-1] + 1), 6)
        1.0
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) != len(b) or len(a) < FEWEST:
        raise ValueError(f"There are {len(a)} and {len(b)} examples; expected the same {FEWEST} or more.")
    return _ratio(_terms(_gram(a), _gram(b)))


def stage_grams(model, data, *, batch_size=64):
    """Remember how a model sees some inputs, at the end of every stage, to compare with later.

    For each batch and stage the inner products of all pairs of examples are kept, over the whole activations and
    not only their means: 4 x ``batch_size`` bytes an example, however large the activations are. The model is the
    same afterwards, to the bit.

    Args:
        model: a built ``keras.Model``.
        data: any inputs, labels are not looked at: :class:`thaw.Examples`, arrays ``(x, y)`` or ``x``, or a
            batched, finite ``tf.data.Dataset`` that comes in the same order each time. 500 examples go far.
        batch_size: examples in a batch; a data set keeps its own.

    Returns:
        A dict from the stage's name to a list of ``(n, n)`` float32 arrays, one for each batch of ``n``.

    Raises:
        ValueError: no batch of 4 examples or more, or data that cannot be read.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.cka import stage_cka, stage_grams
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(20, 4))
        >>> before = stage_grams(model, x)
        >>> {name: round(found["value"], 6) for name, found in stage_cka(before, stage_grams(model, x)).items()}
        {'stage1': 1.0, 'head': 1.0}
    """
    outputs = StageOutputs(model)
    kept, run, digest = {stage.name: [] for stage in outputs.stages}, None, hashlib.sha256()
    with held(model.non_trainable_variables):
        for batch in inputs_of(data, batch_size, digest):
            rows = _rows(batch)
            if rows < FEWEST:
                continue
            if run is None or rows > run.batch_size:
                # Always TensorFlow: the same weights must give the same numbers before and after.
                run = forward(_Grams(outputs), rows, runtime="tensorflow")
            for name, gram in zip(kept, run(batch)):
                kept[name].append(gram[:, :rows])  # behind them, the row a short batch was filled up with
    if run is None:
        raise ValueError(f"There is no batch of {FEWEST} examples; similarity needs at least so many.")
    return _Kept(kept, digest.hexdigest())


def stage_cka(before, after, *, seed=0):
    """Linear CKA of every stage between two moments, or two models, on the same inputs.

    HSIC is estimated without bias in each batch and averaged over the batches (Nguyen et al. 2021), each
    counting by its examples. The 95 % interval is the bootstrap over batches.

    Args:
        before: from :func:`stage_grams`.
        after: from :func:`stage_grams` on the same data with the same batch size.
        seed: of the resampling.

    Returns:
        A dict from the stage's name to ``{"value", "low", "high"}``, with ``"reason"`` where a number is
        ``None``. Stages that only one of the two has are left out.

    Raises:
        ValueError: the two are of different data, or have no stage in common.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.cka import stage_cka
        >>> gram = np.diag([1.0, 2.0, 3.0, 4.0, 5.0]) + 0.5
        >>> stage_cka({"head": [gram]}, {"head": [gram]})["head"]["reason"]
        'the representation does not vary'
    """
    names = [name for name in before if name in after]
    if not names:
        raise ValueError(f"before has the stages {', '.join(before)}, after {', '.join(after)}; none is in both.")
    if getattr(before, "digest", None) != getattr(after, "digest", None):
        raise ValueError("The inputs came in another order the second time, or were others; leave shuffle() out.")
    found = {}
    for name in names:
        sizes = [[len(gram) for gram in grams[name]] for grams in (before, after)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{name} was seen on {sum(sizes[0])} examples in {len(sizes[0])} batches before, {sum(sizes[1])} in "
                f"{len(sizes[1])} after; give stage_grams the same data and the same batch size."
            )
        found[name] = _with_interval(before[name], after[name], np.array(sizes[0], np.float64), seed)
    return found


def _with_interval(before, after, sizes, seed):
    terms = sizes[:, None] * np.array([_terms(k, m) for k, m in zip(before, after)])
    value = _ratio(terms.sum(axis=0))
    if np.isnan(value):
        return {"value": None, "low": None, "high": None, "reason": "the representation does not vary"}
    if all(map(np.array_equal, before, after)):
        return {"value": value, "low": value, "high": value}
    if len(terms) < FEWEST_BATCHES:
        why = f"{len(terms)} batches are too few for an interval"
        return {"value": value, "low": None, "high": None, "reason": why}
    drawn = np.random.default_rng(seed).integers(0, len(terms), (RESAMPLES, len(terms)))
    ratios = _ratio(terms[drawn].sum(axis=1).T)
    low, high = np.nanquantile(ratios, (0.025, 0.975))
    return {"value": value, "low": float(low), "high": float(high)}


class _Kept(dict):
    """What was remembered, and a digest of the inputs where these may come in another order."""

    def __init__(self, grams, digest):
        super().__init__(grams)
        self.digest = digest


class _Grams:
    """Inner products of all pairs of a batch, for each stage; called as a model is."""

    def __init__(self, outputs):
        self.outputs = outputs

    def __call__(self, x, training=False):
        from keras import ops

        grams = []
        for out in self.outputs(x, training=training):
            flat = ops.reshape(ops.cast(out, "float32"), (out.shape[0], -1))
            # A shift of all examples changes nothing in the end; here it saves digits.
            flat = flat - ops.mean(flat, axis=0, keepdims=True)
            grams.append(ops.matmul(flat, ops.transpose(flat)))
        return grams


def _rows(batch):
    import keras

    return int(keras.tree.flatten(batch)[0].shape[0])


def _gram(a):
    flat = a.reshape(len(a), -1)
    flat = flat - flat.mean(axis=0)
    return flat @ flat.T


def _terms(k, m):
    """Unbiased HSIC of the two with each other and each with itself; nothing else enters CKA."""
    k, m = _centered(k), _centered(m)
    return (k * m).sum(), (k * k).sum(), (m * m).sum()


def _centered(gram):
    """Without its diagonal, rows and columns sum to zero (Székely and Rizzo 2014).

    The sum of the products of two such matrices, over n (n - 3), is the unbiased HSIC of Song et al.; the factor
    is the same above and below the line, but between batches of different size.
    """
    gram = np.array(gram, np.float64)
    n = len(gram)
    np.fill_diagonal(gram, 0)
    means = gram.sum(axis=0) / (n - 2)
    centered = gram - means[:, None] - means[None, :] + means.sum() / (n - 1)
    np.fill_diagonal(centered, 0)
    if (centered**2).sum() <= 1e-12 * (gram**2).sum():  # the rounding of inputs that all look the same
        return np.zeros_like(centered)
    return centered / np.sqrt(n * (n - 3))


def _ratio(terms):
    both, one, other = terms
    with np.errstate(invalid="ignore", divide="ignore"):
        found = both / np.sqrt(one * other)
    return float(found) if np.ndim(found) == 0 else found
