"""Compare two models: linear CKA of their features, agreement of their predictions."""

from __future__ import annotations

import hashlib

import numpy as np

from thaw.data.conversion import as_dataset
from thaw.features.inference import inference_runner
from thaw.features.stage_features import stage_outputs
from thaw.metrics.intervals import Estimate, binomial_interval, bootstrap
from thaw.models.state import preserve_variables

MIN_BATCH_SIZE = 4  # examples in a batch; the unbiased estimate is not defined for fewer
MIN_BATCHES_FOR_INTERVAL = 8
MIN_PROBABILITY = 1e-7  # so that the divergence is finite


def linear_cka(a, b):
    """Compute the linear centered kernel alignment of two sets of features (Kornblith et al. 2019).

    It is 1 where one is the other up to rotation, reflection, scale and shift, and 0 where they have nothing in common.
    The unbiased estimate of HSIC (Song et al. 2012) is used: the plain one is near 1 for unrelated features as soon as
    there are more features than examples. It may be slightly below 0 or above 1.

    Args:
        a: ``(n, ...)``, at least 4 examples; the axes after the first are flattened.
        b: ``(n, ...)`` for the same examples; the number of features may differ.

    Returns:
        A float, or NaN where one of the two does not vary.

    Raises:
        ValueError: arrays of different length, or fewer than 4 examples.

    Example:
        >>> import numpy as np
        >>> from thaw.retention import linear_cka
        >>> a = np.random.default_rng(0).normal(size=(20, 3))
        >>> round(linear_cka(a, 2 * a[:, ::-1] + 1), 6)
        1.0
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) != len(b) or len(a) < MIN_BATCH_SIZE:
        raise ValueError(f"There are {len(a)} and {len(b)} examples; expected the same {MIN_BATCH_SIZE} or more.")
    return float(_cka(_hsic_terms(_gram(a), _gram(b))))


def stage_grams(model, x, *, batch_size=64):
    """Compute the Gram matrices of a model's features at the end of every stage, to compare them later.

    For each batch and stage, the inner products of all pairs of examples over the whole feature maps: 4 x
    ``batch_size`` bytes an example, however large the features are. The model is bit-identical afterwards.

    Args:
        model: a built ``keras.Model``.
        x: inputs, as :func:`thaw.as_dataset` takes them; a :class:`thaw.Dataset`; or a stream that comes in the same
            order each time. 500 examples are enough.
        batch_size: examples in a batch; a stream keeps its own. Default 64.

    Returns:
        A dict from the stage's name to a list of ``(n, n)`` float32 arrays, one for each batch of ``n``.

    Raises:
        ValueError: no batch of 4 examples or more, or data without an end.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import stage_cka, stage_grams
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(20, 4))
        >>> before = stage_grams(model, x)
        >>> {name: round(cka["value"], 6) for name, cka in stage_cka(before, stage_grams(model, x)).items()}
        {'stage1': 1.0, 'head': 1.0}
    """
    import keras

    dataset = as_dataset(x)
    grams, runner, digest, stages = None, None, hashlib.sha256(), None
    with preserve_variables(model.non_trainable_variables):
        for batch in dataset.inputs(batch_size):
            arrays = keras.tree.flatten(batch)
            if not dataset.random_access:  # only a stream may come in another order the next time
                for array in arrays:
                    digest.update(np.ascontiguousarray(array).tobytes())
            rows = int(arrays[0].shape[0])
            if rows < MIN_BATCH_SIZE:
                continue
            if stages is None:
                stages, outputs = stage_outputs(model, batch)
                grams = {stage.name: [] for stage in stages}
            if runner is None or rows > runner.batch_size:
                # Always TensorFlow: the same weights must give the same numbers before and after.
                runner = inference_runner(_grams_of(outputs), rows, runtime="tensorflow")
            for name, gram in zip(grams, runner(batch)):
                grams[name].append(gram[:, :rows])  # without the rows that pad a short batch
    if grams is None:
        raise ValueError(f"There is no batch of {MIN_BATCH_SIZE} examples; expected at least one.")
    return StageGrams(grams, digest.hexdigest())


def stage_cka(before, after, *, seed=0):
    """Compute the linear CKA of every stage between two moments, or two models, on the same inputs.

    HSIC is estimated without bias in each batch and averaged over the batches (Nguyen et al. 2021), weighted by their
    examples. The 95 % interval is the bootstrap over batches.

    Args:
        before: from :func:`stage_grams`.
        after: from :func:`stage_grams` on the same data with the same batch size.
        seed: seed of the bootstrap. Default 0.

    Returns:
        A dict for JSON from the stage's name to ``{"value", "low", "high"}``, with ``"reason"`` where a number is
        ``None``. Stages that only one of the two has are left out.

    Raises:
        ValueError: the two are of different data, or have no stage in common.

    Example:
        >>> import numpy as np
        >>> from thaw.retention import stage_cka
        >>> gram = np.diag([1.0, 2.0, 3.0, 4.0, 5.0]) + 0.5
        >>> stage_cka({"head": [gram]}, {"head": [gram]})["head"]["reason"]
        'the representation does not vary'
    """
    names = [name for name in before if name in after]
    if not names:
        raise ValueError(f"before has the stages {', '.join(before)}, after {', '.join(after)}; none is in both.")
    if getattr(before, "digest", None) != getattr(after, "digest", None):
        raise ValueError("The inputs came in another order the second time, or were others; leave shuffle() out.")
    result = {}
    for name in names:
        sizes = [[len(gram) for gram in grams[name]] for grams in (before, after)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{name} was computed on {sum(sizes[0])} examples in {len(sizes[0])} batches before, "
                f"{sum(sizes[1])} in {len(sizes[1])} after; give stage_grams the same data and the same batch size."
            )
        estimate = _estimate_cka(before[name], after[name], np.array(sizes[0], np.float64), seed)
        result[name] = estimate.to_dict()
    return result


def agreement(before, after, *, seed=0):
    """Compare the predictions of a classifier before and after, without labels.

    Without labels of the source task this is what can be known of forgetting: whether the original head still predicts
    the same. It counts every change, also one for the better.

    - ``same``: proportion of examples with the same most probable class. Its 95 % interval is exact (Clopper and
      Pearson 1934), or 1 to 1 where the probabilities are bit-identical.
    - ``divergence``: mean Kullback-Leibler divergence of ``after`` from ``before`` in nats, probabilities clipped at
      1e-7, with a 95 % interval by the bootstrap over examples (Efron 1979).

    Args:
        before: probabilities ``(n, classes)``.
        after: probabilities ``(n, classes)`` for the same examples in the same order.
        seed: seed of the bootstrap. Default 0.

    Returns:
        A dict for JSON: ``examples``, and for each metric ``{"value", "low", "high"}``.

    Raises:
        ValueError: arrays of different shapes, or that are not probabilities.

    Example:
        >>> import numpy as np
        >>> from thaw.retention import agreement
        >>> result = agreement(np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([[0.9, 0.1], [0.2, 0.8]]))
        >>> result["same"]["value"], round(result["divergence"]["value"], 4)
        (0.5, 0.1116)
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.ndim != 2 or before.shape != after.shape or not len(before):
        raise ValueError(
            f"before has shape {before.shape} and after {after.shape}; expected (examples, classes) for both, the "
            "same examples and classes."
        )
    for name, p in (("before", before), ("after", after)):
        if p.min() < 0 or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
            raise ValueError(f"The rows of {name} do not sum to 1; expected probabilities, not logits.")
    n = len(before)
    if np.array_equal(before, after):
        same = Estimate(1.0, 1.0, 1.0)  # no uncertainty
    else:
        same = binomial_interval((before.argmax(axis=1) == after.argmax(axis=1)).sum(), n, "exact")
    p, q = np.maximum(before, MIN_PROBABILITY), np.maximum(after, MIN_PROBABILITY)
    divergences = (before * (np.log(p) - np.log(q))).sum(axis=1)
    if n < 2:
        divergence = Estimate(float(divergences.mean()), reason="one example allows no interval")
    else:
        divergence = bootstrap(lambda values: values.mean(axis=1), divergences, seed=seed)
    return {"examples": n, "same": same.to_dict(), "divergence": divergence.to_dict()}


class StageGrams(dict):
    """Hold Gram matrices by stage, and a digest of inputs that may come in another order.

    Args:
        grams: dict from the stage's name to a list of arrays.
        digest: hexadecimal digest of a stream's inputs.
    """

    def __init__(self, grams, digest):
        super().__init__(grams)
        self.digest = digest


def _grams_of(outputs):
    """Return a function, called like a model, that computes the Gram matrix of a batch for each output."""
    import keras
    from keras import ops

    def grams(x, training=False):
        matrices = []
        for out in keras.tree.flatten(outputs(x, training=training)):
            flat = ops.reshape(ops.cast(out, "float32"), (out.shape[0], -1))
            # A shift of all examples changes nothing in the end; here it saves digits.
            flat = flat - ops.mean(flat, axis=0, keepdims=True)
            matrices.append(ops.matmul(flat, ops.transpose(flat)))
        return matrices

    return grams


def _estimate_cka(before, after, sizes, seed):
    terms = sizes[:, None] * np.array([_hsic_terms(k, m) for k, m in zip(before, after)])
    value = float(_cka(terms.sum(axis=0)))
    if np.isnan(value):
        return Estimate(None, reason="the representation does not vary")
    if all(map(np.array_equal, before, after)):
        return Estimate(value, value, value)
    if len(terms) < MIN_BATCHES_FOR_INTERVAL:
        return Estimate(value, reason=f"{len(terms)} batches are too few for an interval")
    return bootstrap(lambda drawn: _cka(drawn.sum(axis=1).T), terms, seed=seed)


def _gram(a):
    flat = a.reshape(len(a), -1)
    flat = flat - flat.mean(axis=0)
    return flat @ flat.T


def _hsic_terms(k, m):
    """Return the unbiased HSIC of two Gram matrices with each other and of each with itself."""
    k, m = _centered(k), _centered(m)
    return (k * m).sum(), (k * k).sum(), (m * m).sum()


def _centered(gram):
    """Center a Gram matrix so that, without its diagonal, rows and columns sum to zero (Székely and Rizzo 2014).

    The sum of the products of two such matrices, over n (n - 3), is the unbiased HSIC of Song et al.; the factor
    cancels in CKA, but not between batches of different size.
    """
    gram = np.array(gram, np.float64)
    n = len(gram)
    np.fill_diagonal(gram, 0)
    means = gram.sum(axis=0) / (n - 2)
    centered = gram - means[:, None] - means[None, :] + means.sum() / (n - 1)
    np.fill_diagonal(centered, 0)
    if (centered**2).sum() <= 1e-12 * (gram**2).sum():  # the rounding of features that are all the same
        return np.zeros_like(centered)
    return centered / np.sqrt(n * (n - 3))


def _cka(terms):
    both, one, other = terms
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / np.sqrt(one * other)
