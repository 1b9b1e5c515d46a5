"""Solve linear problems of wide features: standardization, inner products or projections, and the solvers.

Up to 4,096 rows the inner products of the rows hold all that can be learned (representer theorem, Kimeldorf and Wahba
1971). Above that the features are projected at random (Achlioptas 2003), and a few more steps with all of them bring
the solution near the exact one. SciPy does the minimizing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import numpy as np

from thaw.models.taps import MAX_STANDARDIZED, MIN_VARIANCE

MAX_EXACT_ROWS = 4096  # and width of the projection above; half of it costs two points in cross-validation
NONZEROS = 4  # of the random projection, for each feature
MAX_REFINING_STEPS = 24  # each reads all features; half as many were half a point short of the exact accuracy
TOLERANCE = 1e-8  # relative decrease of the loss at which L-BFGS stops
PATH_TOLERANCE = 1e-7  # where strengths are compared: out-of-fold log losses within 1e-4 in four fifths of the steps
MAX_ONE_THREAD_SIDE = 512  # of a matrix whose products and factors gain nothing from a second thread
REFERENCE_STRENGTH = 3.0  # that the variables are scaled for
# Of the median standard deviation: a channel that varies less is not scaled up to 1, where the constants are folded
# into the kernel. It would get weights in the hundreds, under which the first steps of fine-tuning do harm.
MIN_FOLDED_SPREAD = 0.5
MIN_RELATIVE_SPREAD = 1e-5  # standard deviation over mean; below it is rounding, which differs between runtimes
CONSTANT_VARIANCE = 1e38  # divides a near-constant channel down to nothing, and is finite in float32
BLOCK_NUMBERS = 2**22  # numbers of the features in work at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Standardization:
    """Scale features to mean 0 and standard deviation 1, and clip them.

    Args:
        mean: ``(d,)`` float32.
        variance: ``(d,)`` float32; of a near-constant channel so large that it comes out as 0.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.linear_solvers import Standardization
        >>> x = np.array([[1.0, 7.0], [3.0, 7.0]])
        >>> Standardization.of(x)(x).round(3).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, features, sample_weight=None, least=0.0):
        """Measure mean and variance of ``(n, d)`` features, with ``(n,)`` weights or without.

        ``least`` is the smallest standard deviation that is used, as a share of the median one.
        """
        weight = np.ones(len(features)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        return standardizations(features, weight[None], least)[0]

    def __call__(self, features, clip=True):
        """Return ``(n, d)`` float32, by default clipped at 5 standard deviations."""
        return _standardize(features, self.mean, self.variance, clip)


@dataclasses.dataclass(frozen=True, eq=False)
class Coefficients:
    """Of the design matrix of a space: ``(m, c)`` and ``(c,)``, and the classes that the columns are of.

    ``floor`` is the logit of all others, a number or one for each class.
    """

    weights: np.ndarray
    bias: np.ndarray
    columns: np.ndarray
    floor: float | np.ndarray

    def outputs(self, scores, classes):
        """Return the logits of all classes, from the products of rows and weights."""
        outputs = np.full((len(scores), classes), self.floor)
        outputs[:, self.columns] = scores + self.bias
        return outputs


class GramSpace:
    """All that can be learned from few rows, by their inner products: the Cholesky factor of the Gram matrix."""

    projection = None

    def __init__(self, features, train, standardize):
        self.features, self.train, self.standardize = features, train, standardize
        self.gram = np.zeros((len(features), len(features)))
        for columns in self._column_blocks():
            z = standardize(features[:, columns], columns)
            self.gram += z @ z.T  # float64 sums of float32 products
        gram = self.gram[np.ix_(train, train)]
        jitter = 1e-6 * max(1.0, float(np.diag(gram).mean()))
        while True:  # duplicates make it singular
            shifted = gram.copy()
            shifted[np.diag_indices(len(gram))] += jitter
            try:
                self.factor = _cholesky(shifted)
                break
            except np.linalg.LinAlgError:
                jitter *= 10
                if jitter > 1e-2 * max(1.0, float(np.diag(gram).mean())):
                    raise
        self.design = self.factor

    def _column_blocks(self):
        n, d = self.features.shape
        step = max(1, BLOCK_NUMBERS // n)
        return [slice(start, start + step) for start in range(0, d, step)]

    def _dual(self, weights):
        from scipy.linalg import solve_triangular

        return solve_triangular(self.factor, weights, lower=True, trans="T")

    def scores(self, weights, rows):
        """Return the products of some rows and the weights."""
        return self.gram[np.ix_(rows, self.train)] @ self._dual(weights)

    def kernel(self, weights):
        """Return the kernel ``(d, c)`` of all features that the weights amount to."""
        dual = np.zeros((len(self.features), weights.shape[1]), np.float32)
        dual[self.train] = self._dual(weights)
        return np.concatenate([self.standardize(self.features[:, c], c).T @ dual for c in self._column_blocks()])


class RowSpace:
    """Standardized features, or a random projection of them (Achlioptas 2003), of which the rows are kept."""

    def __init__(self, features, train, standardize, projection=None):
        self.projection, width = projection, features.shape[1] if projection is None else projection.shape[1]
        self.rows = np.empty((len(features), width), np.float32)
        for block in row_blocks(features):
            z = standardize(features[block], slice(None))
            self.rows[block] = z if projection is None else z @ projection
        self.design = self.rows[train]

    def scores(self, weights, rows):
        """Return the products of some rows and the weights."""
        return self.rows[rows] @ weights

    def kernel(self, weights):
        """Return the kernel ``(d, c)`` of all features that the weights amount to."""
        return weights if self.projection is None else self.projection @ weights


def space_of(features, train, standardization, clip, seed, max_exact_rows):
    """Choose what a problem is solved in: inner products, the features themselves, or a projection of them.

    Args:
        features: ``(n, d)``.
        train: indices of the rows to fit to.
        standardization: :class:`Standardization`.
        clip: whether standardized features are clipped.
        seed: of the projection.
        max_exact_rows: above so many rows, wider features are projected.

    Returns:
        :class:`GramSpace` or :class:`RowSpace`.
    """

    def standardize(block, columns):
        return _standardize(block, standardization.mean[columns], standardization.variance[columns], clip)

    n, d = features.shape
    if n <= max_exact_rows:
        features = np.asarray(features)  # read once
        return GramSpace(features, train, standardize) if d > len(train) else RowSpace(features, train, standardize)
    projection = _sparse_signs(d, max_exact_rows, seed) if d > max_exact_rows else None
    return RowSpace(features, train, standardize, projection)


def _sparse_signs(d, width, seed):
    """Draw a sparse ``(d, width)`` matrix that keeps inner products on average: a few random signs in each row."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    # One column of each of several equal parts, so that no column is drawn twice.
    part = max(1, width // NONZEROS)
    columns = rng.integers(0, part, (d, NONZEROS)) + part * np.arange(NONZEROS)
    signs = rng.choice(np.float32([-1, 1]), (d, NONZEROS)) / np.float32(np.sqrt(NONZEROS))
    return csr_array((signs.ravel(), columns.ravel(), np.arange(0, d * NONZEROS + 1, NONZEROS)), (d, width))


def threads_for(features):
    """Return a context that keeps BLAS to one thread where the problem is small.

    A second thread gains nothing there, and waits long where the machine is busy.
    """
    return _one_thread() if min(features.shape) <= MAX_ONE_THREAD_SIDE else contextlib.nullcontext()


def _one_thread():
    return _blas().limit(limits=1, user_api="blas")


def _cholesky(matrix):
    """Return the lower factor of a matrix, which is overwritten.

    Where the machine is busy, two threads take ten times the time of one.
    """
    from scipy.linalg import cholesky

    with _one_thread():
        return cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)


@functools.cache
def _blas():
    """The libraries, which take 5 ms to find; SciPy brings its own."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def solution_path(space, train, data, strengths, temperature=1.0, tolerance=TOLERANCE):
    """Yield each strength and its :class:`Coefficients`, every solution beginning at the one before.

    The variables are changed so that the Hessian is near the identity: with G = h A'SA + pD, where A has a column of
    ones for the intercept, S the weights, h the curvature of the loss, p the penalty and D = diag(1, ..., 1, 0), and
    its Cholesky factor M, U = M'W are the new variables. The penalty needs no other product, because p W'DW is
    U'U - h Z'SZ for the outputs Z = AW. For ridge regression G is the Hessian.
    """
    from scipy.linalg import solve_triangular

    y, weight, ridge = data.y[train], data.weight[train], data.solver == "ridge"
    total, weight = weight.sum(), (weight / weight.sum())[:, None]
    columns, targets = _columns(data, y, weight)
    if not len(columns):  # labels that all or none of these rows have
        none = np.zeros((space.design.shape[1], 0))
        floor = _rare_logits(y, weight, total, temperature)
        yield from ((strength, Coefficients(none, none[0], columns, floor)) for strength in strengths)
        return
    curvature, loss_of = _curvature(data, columns), _loss_of(data)
    dtype = np.float64 if ridge else np.float32
    design = np.column_stack([space.design, np.ones(len(y))]).astype(dtype, copy=False)
    weighted = design * np.sqrt(weight).astype(dtype)
    moments = weighted.T @ weighted  # of one matrix with itself: half the operations

    def factor(strength):
        hessian = curvature * moments
        hessian[np.diag_indices(len(hessian) - 1)] += data.penalty(strength, total)
        return _cholesky(hessian)

    def coefficients(m, u, outputs):
        w = solve_triangular(m, u, lower=True, trans="T") / temperature
        if data.multilabel:
            return Coefficients(w[:-1], w[-1], columns, _rare_logits(y, weight, total, temperature))
        partition = 0.0 if ridge else log_partition(outputs.astype(np.float64) / temperature)
        return Coefficients(w[:-1], w[-1], columns, float((weight[:, 0] * partition).sum() + np.log(0.5 / total)))

    if ridge:
        products = design.T @ (weight * y)
        for strength in strengths:
            m = factor(strength)
            yield strength, coefficients(m, solve_triangular(m, products, lower=True), None)
        return
    m = factor(REFERENCE_STRENGTH)
    basis = solve_triangular(m, design.T, lower=True, check_finite=False).T
    shape = design.shape[1], len(columns)
    solution = np.zeros(shape)
    for strength in strengths:
        ratio = REFERENCE_STRENGTH / strength

        def objective(u, ratio=ratio):
            u = u.reshape(shape)
            z = (basis @ u.astype(dtype)).astype(np.float64)
            loss, gradient = loss_of(z, targets, weight)
            shared = curvature * weight * z
            loss += ratio / 2 * ((u * u).sum() - (shared * z).sum())
            return loss, ((basis.T @ (gradient - ratio * shared).astype(dtype)) + ratio * u).ravel()

        solution = _minimize(objective, solution, 500, tolerance)
        yield strength, coefficients(m, solution, basis @ solution.astype(dtype))


def refine(kernel, bias, columns, data, standardization, clip, strength):
    """Go on from a projected solution with all features, read in blocks at every step.

    Args:
        kernel: ``(d, c)``, to begin with.
        bias: ``(c,)``, to begin with.
        columns: the classes that the columns are of.
        data: features, labels, weights and the solver.
        standardization: :class:`Standardization`.
        clip: whether standardized features are clipped.
        strength: prior variance of a logit.

    Returns:
        ``(kernel, bias)``, float64.
    """
    total, weight = data.weight.sum(), (data.weight / data.weight.sum())[:, None]
    targets, loss_of = _targets(data, data.y, columns), _loss_of(data)
    penalty = data.penalty(strength, total)

    def objective(w):
        w = w.reshape(-1, len(columns))
        loss, gradient = penalty / 2 * (w[:-1] ** 2).sum(), penalty * w
        gradient[-1] = 0
        for rows in row_blocks(data.features):
            z = standardization(data.features[rows], clip)
            part, slope = loss_of(
                (z @ w[:-1].astype(np.float32) + w[-1]).astype(np.float64), targets[rows], weight[rows]
            )
            loss += part
            gradient[:-1] += z.T @ slope.astype(np.float32)
            gradient[-1] += slope.sum(axis=0)
        return loss, gradient.ravel()

    w = _minimize(objective, np.concatenate([kernel, bias[None]]), MAX_REFINING_STEPS)
    return w[:-1], w[-1]


def _minimize(objective, start, steps, tolerance=TOLERANCE):
    from scipy.optimize import minimize

    options = {"maxiter": steps, "gtol": 1e-6, "ftol": tolerance, "maxcor": 20}
    # Products with few columns: a second thread gains little, and waits long where the machine is busy.
    with _one_thread():
        found = minimize(objective, start.astype(np.float64).ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)


def _columns(data, y, weight):
    """Return the outputs that can be learned from some rows, and their targets."""
    if data.solver == "ridge":
        columns = np.arange(data.outputs)
    elif data.multilabel:
        frequency = (weight * y).sum(axis=0)
        columns = np.flatnonzero((frequency > 0) & (frequency < 1 - 1e-12))
    else:
        columns = np.unique(y[weight[:, 0] > 0])
    return columns, _targets(data, y, columns)


def _targets(data, y, columns):
    if data.solver == "ridge":
        return y
    return y[:, columns] > 0 if data.multilabel else y[:, None] == columns


def _rare_logits(y, weight, total, temperature):
    """Return the logits of labels that all or none of the rows have, as of half an example of the other kind."""
    count = total * (weight * y).sum(axis=0)
    return np.log((count + 0.5) / (total - count + 0.5)) / temperature


def _curvature(data, columns):
    """Return a typical second derivative of the loss of one output."""
    if data.solver != "lbfgs":
        return 1.0
    return 1 / 4 if data.multilabel else 1 / len(columns)


def _loss_of(data):
    return _binary_loss if data.multilabel and data.solver == "lbfgs" else LOSSES[data.solver]


def _softmax_loss(z, is_class, weight):
    """Return the weighted cross-entropy of logits and its gradient."""
    partition = log_partition(z)[:, None]
    known = is_class.any(axis=1, keepdims=True)  # a row of weight 0 may be of a class without others
    loss = (weight * (known * partition - (z * is_class).sum(axis=1, keepdims=True))).sum()
    return float(loss), weight * (np.exp(z - partition) - is_class)


def _binary_loss(z, is_label, weight):
    """Return the weighted binary cross-entropy of logits, summed over the labels, and its gradient."""
    size = np.exp(-np.abs(z))
    loss = (weight * (np.maximum(z, 0) - z * is_label + np.log1p(size))).sum()
    return float(loss), weight * (np.where(z >= 0, 1, size) / (1 + size) - is_label)


def _squared_hinge_loss(z, is_class, weight):
    """Return the weighted squared hinge loss of each class against the rest, summed, and its gradient."""
    sign = np.where(is_class, 1.0, -1.0)
    gap = np.maximum(0, 1 - sign * z)
    return float((weight * gap**2).sum()), -2 * weight * sign * gap


def _squared_error(z, y, weight):
    return float((weight * (z - y) ** 2).sum()) / 2, weight * (z - y)


LOSSES = {"lbfgs": _softmax_loss, "svm": _squared_hinge_loss, "ridge": _squared_error}


def binary_problems(logits, y, sample_weight):
    """Make each label of each example an example of its own, of two classes.

    Args:
        logits: ``(n, labels)``.
        y: ``(n, labels)`` numbers 0 or 1.
        sample_weight: ``(n,)``.

    Returns:
        ``(logits, y, sample_weight)`` of ``n * labels`` examples: two logits, a class number and a weight.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.linear_solvers import binary_problems
        >>> logits, y, weight = binary_problems(np.array([[2.0, -1.0]]), np.array([[1, 0]]), np.ones(1))
        >>> logits.tolist(), y.tolist(), weight.tolist()
        ([[0.0, 2.0], [0.0, -1.0]], [1, 0], [1.0, 1.0])
    """
    pairs = np.stack([np.zeros(logits.size, logits.dtype), logits.ravel()], axis=1)
    return pairs, y.ravel().astype(np.int64), np.repeat(sample_weight, logits.shape[1])


def log_partition(logits):
    """Return ``log(sum(exp(logits)))`` of each row; SciPy's takes several times as long."""
    largest = logits.max(axis=1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))


def row_blocks(features):
    """Return slices of rows that fit into memory together."""
    step = max(1, BLOCK_NUMBERS // features.shape[1])
    return [slice(start, start + step) for start in range(0, len(features), step)]


def standardizations(features, weights, least=0.0):
    """Measure the :class:`Standardization` for each row of ``(folds, n)`` weights, in one pass over the features.

    ``least`` is the smallest standard deviation that is used, as a share of the median one.
    """
    shift = np.nan_to_num(np.asarray(features[0], np.float64))
    sums, squares = np.zeros((2, len(weights), features.shape[1]))
    for rows in row_blocks(features):
        x = np.array(features[rows], np.float64)
        if not np.isfinite(x).all():
            row = rows.start + int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise ValueError(
                f"features has NaN or an infinite number in row {row}; expected finite numbers: remove it."
            )
        x -= shift
        sums += weights[:, rows] @ x
        squares += weights[:, rows] @ np.square(x, out=x)
    total = weights.sum(axis=1, keepdims=True)
    means, variances = shift + sums / total, squares / total - (sums / total) ** 2
    smallest = np.maximum(MIN_VARIANCE, (MIN_RELATIVE_SPREAD * means) ** 2)
    varies = (variances > smallest) & (variances < CONSTANT_VARIANCE)
    typical = [np.median(v[kept]) if kept.any() else 0.0 for v, kept in zip(variances, varies)]
    least = least**2 * np.array(typical)[:, None]
    variances = np.where(varies, np.maximum(variances, least), CONSTANT_VARIANCE)
    return [Standardization(m, v) for m, v in zip(means.astype(np.float32), variances.astype(np.float32))]


def _standardize(features, mean, variance, clip):
    z = np.subtract(features, mean, dtype=np.float32)
    z /= np.sqrt(variance)
    return np.clip(z, -MAX_STANDARDIZED, MAX_STANDARDIZED, out=z) if clip else z
