"""Gradient boosting of trees on the same split: what a model for a table has to beat."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from thaw._validation import as_int, as_seed
from thaw.data.column_kinds import Column
from thaw.features.predictions import predict_proba, predict_targets
from thaw.metrics.classification import MIN_PROBABILITY
from thaw.metrics.intervals import Estimate, bootstrap
from thaw.tasks import Task, class_numbers

MAX_CATEGORIES = 254  # that scikit-learn's histograms tell apart; rarer ones are missing values
MAX_ONE_THREAD_NUMBERS = 50_000  # of a table that gains next to nothing from a second thread


@dataclasses.dataclass(frozen=True, eq=False)
class BoostedTrees:
    """Trees that :func:`gradient_boosting` fitted.

    Args:
        estimator: scikit-learn's ``HistGradientBoostingClassifier`` or ``HistGradientBoostingRegressor``.
        task: what they predict.
        columns: of the table.
        categories: tuple of the categories of each column that has some, by its name.
    """

    estimator: Any
    task: Task
    columns: tuple[Column, ...]
    categories: dict[str, tuple[str, ...]]

    def predict(self, x):
        """Predict probabilities, or numbers.

        Args:
            x: a dict of inputs, as in ``splits.test.x``.

        Returns:
            ``(n, classes)`` probabilities, or ``(n, 1)`` numbers, float64.
        """
        rows = _matrix(x, self.columns, self.categories)
        with _threads_for(rows):
            if self.task.activation == "linear":
                return self.estimator.predict(rows)[:, None]
            p = np.zeros((len(rows), self.task.units))
            p[:, self.estimator.classes_.astype(int)] = self.estimator.predict_proba(rows)
        return p


def gradient_boosting(splits, *, max_trees=300, seed=0):
    """Fit scikit-learn's histogram gradient boosting (Ke et al. 2017) to the training rows of a table.

    Its own settings, but for the number of trees, which is the one with the lowest loss on the validation rows, as the
    epochs of a net are. Gaps are missing values to the trees, and categories are categories.

    Args:
        splits: what :func:`thaw.data.columns.load_table` returns.
        max_trees: int, rounds of boosting at most. Default 300.
        seed: int, seed of the quantiles of tables with more than 200,000 rows. Default 0.

    Returns:
        :class:`BoostedTrees`.

    Raises:
        ValueError: the task is neither one class for each row nor one number.

    Example:
        >>> from thaw.data.columns import load_table
        >>> from thaw.transfer.boosted_trees import gradient_boosting
        >>> table = {"a": [i % 9 for i in range(400)], "label": [["no", "yes"][i % 9 > 3] for i in range(400)]}
        >>> splits = load_table(table)
        >>> gradient_boosting(splits, max_trees=5).predict(splits.validation.x).shape[1]
        2
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    task, columns = splits.task, splits.columns
    max_trees, seed = as_int("max_trees", max_trees, 1), as_seed(seed)
    numeric = task.activation == "linear"
    if task.activation not in ("linear", "softmax") or (numeric and task.units != 1):
        raise ValueError("The task has several outputs; expected one class for each row, or one number.")
    categories = _categories(splits.train.x, columns)
    x, held_out = (_matrix(part.x, columns, categories) for part in (splits.train, splits.validation))
    y, y_held_out = (_targets(part.y, task) for part in (splits.train, splits.validation))
    kind = HistGradientBoostingRegressor if numeric else HistGradientBoostingClassifier

    def fitted(trees):
        estimator = kind(
            max_iter=trees,
            early_stopping=False,
            random_state=seed,
            categorical_features=[column.kind == "category" for column in columns],
        )
        return estimator.fit(x, y, sample_weight=splits.train.sample_weight)

    with _threads_for(x):
        estimator = fitted(max_trees)
        if numeric:
            losses = [np.mean((p - y_held_out) ** 2) for p in estimator.staged_predict(held_out)]
        else:
            known = {c: i for i, c in enumerate(estimator.classes_.tolist())}
            at = [known[c] for c in y_held_out.tolist()]
            rows = np.arange(len(at))
            losses = [
                -np.log(np.maximum(p[rows, at], MIN_PROBABILITY)).mean()
                for p in estimator.staged_predict_proba(held_out)
            ]
        best = int(np.argmin(losses)) + 1
        return BoostedTrees(estimator if best == max_trees else fitted(best), task, columns, categories)


def compare_with_trees(model, splits, trees, *, seed=0):
    """Compare a model with boosted trees on the test rows; without a test, on the validation rows.

    Args:
        model: ``keras.Model`` for the table.
        splits: what :func:`thaw.data.columns.load_table` returns.
        trees: :class:`BoostedTrees`.
        seed: int, seed of the bootstrap. Default 0.

    Returns:
        ``(difference, sentence)``: :class:`thaw.metrics.intervals.Estimate` of the accuracy of the model minus that of
        the trees, or for numbers of the root mean squared error, whose interval resamples the rows of both together;
        and what it means.

    Example:
        >>> from thaw.data.columns import load_table
        >>> from thaw.models.table_backbone import table_model
        >>> from thaw.transfer.boosted_trees import compare_with_trees, gradient_boosting
        >>> table = {"a": [i % 40 for i in range(400)], "b": [i * 7 % 101 for i in range(400)]}
        >>> table["label"] = [["no", "yes"][a > 13] for a in table["a"]]
        >>> splits = load_table(table)
        >>> model = table_model(splits, width=8)  # not trained
        >>> difference, sentence = compare_with_trees(model, splits, gradient_boosting(splits, max_trees=20))
        >>> difference.value < 0, sentence.startswith("On the")
        (True, True)
    """
    name, part = ("test", splits.test) if splits.test is not None else ("validation", splits.validation)
    y, by_trees, task = _targets(part.y, splits.task), trees.predict(part.x), splits.task
    if task.activation == "linear":
        predicted = predict_targets(model, part, task=task, runtime="tensorflow")[1][:, 0]
        squared = [(predicted - y) ** 2, (by_trees[:, 0] - y) ** 2]
        own, other = (float(np.sqrt(errors.mean())) for errors in squared)
        difference = bootstrap(lambda a, b: np.sqrt(a.mean(axis=1)) - np.sqrt(b.mean(axis=1)), *squared, seed=seed)
        metric, is_better = "root mean squared error", difference.value < 0
    else:
        right = [(p.argmax(axis=1) == y).astype(float) for p in (predict_proba(model, part.x), by_trees)]
        own, other = (float(hits.mean()) for hits in right)
        difference = bootstrap(lambda a, b: a.mean(axis=1) - b.mean(axis=1), *right, seed=seed)
        metric, is_better = "accuracy", difference.value > 0
    return difference, _sentence(name, len(y), metric, own, other, difference, is_better)


def _sentence(name, n, metric, own, other, difference: Estimate, is_better) -> str:
    text = f"On the {n} {name} rows the {metric} of the model is {own:.4g}, that of gradient boosting {other:.4g}"
    if difference.value == 0:
        return f"{text}: no difference."
    better = "the model is better" if is_better else "gradient boosting is better"
    low, high = difference.low, difference.high
    chance = ", which may be chance" if low <= 0 <= high else ""
    return f"{text}: {better} by {abs(difference.value):.3g} (difference {low:.3g} to {high:.3g}){chance}."


def _targets(y, task):
    return np.asarray(y, np.float64)[:, 0] if task.activation == "linear" else class_numbers(y, task.units)


def _categories(x, columns):
    """The most frequent categories of each column, in the order of their names."""
    found = {}
    for column in columns:
        if column.kind == "category":
            names, counts = np.unique(x[column.inputs[0]], return_counts=True)
            kept = np.sort(names[np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]])
            found[column.name] = tuple(kept.tolist())
    return found


def _matrix(x, columns, categories):
    """Rows of numbers for the trees: NaN where a value is missing, or a category is not known."""
    rows = []
    for column in columns:
        values = np.asarray(x[column.inputs[0]]).ravel()
        if column.kind == "category":
            numbers = {category: float(i) for i, category in enumerate(categories[column.name])}
            rows.append(np.array([numbers.get(value, np.nan) for value in values.tolist()]))
            continue
        values = values.astype(np.float64)
        rows.append(np.where(x[column.inputs[1]].ravel() > 0, np.nan, values) if column.missing else values)
    return np.stack(rows, axis=1)


def _threads_for(rows):
    """Keep scikit-learn to one thread where a table is small.

    A second thread gains little there, and where the machine is busy every step waits for it.
    """
    from threadpoolctl import threadpool_limits

    small = rows.size <= MAX_ONE_THREAD_NUMBERS
    return threadpool_limits(1, user_api="openmp") if small else contextlib.nullcontext()
