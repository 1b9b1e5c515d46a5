"""scikit-learn estimators for the whole job: tables, texts and images become a model that ``fit`` has trained."""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from thaw._validation import as_int
from thaw.data.sklearn_inputs import (
    FitTargets,
    array_splits,
    checked_images,
    checked_texts,
    checked_weight,
    choose_validation,
    is_frame,
    kind_of,
    refuse_texts,
    table_splits,
    take_rows,
    tokenized,
)
from thaw.plan import Phase, Plan, as_plan
from thaw.runs.plans import TABLE_BATCH, TABLE_EPOCHS, TABLE_RATE, plan_for_numbers

NOUNS = {"table": "a table", "text": "texts", "image": "images"}
# Epochs, learning rate of what is trained by gradient descent, and rows in a batch.
TRAINING = {"table": (TABLE_EPOCHS, TABLE_RATE, TABLE_BATCH), "text": (4, 1e-4, 32), "image": (12, 5e-4, 32)}


class _Estimator(BaseEstimator):
    """What the two estimators have in common: everything but the targets."""

    def __init__(
        self,
        *,
        backbone=None,
        plan=None,
        tune_stages=0,
        features="last",
        max_length=128,
        columns=None,
        members=16,
        width=128,
        depth=2,
        dropout=0.1,
        epochs=None,
        learning_rate=None,
        patience=20,
        batch_size=None,
        validation_fraction=0.15,
        random_state=None,
        verbose=0,
    ):
        self.backbone = backbone
        self.plan = plan
        self.tune_stages = tune_stages
        self.features = features
        self.max_length = max_length
        self.columns = columns
        self.members = members
        self.width = width
        self.depth = depth
        self.dropout = dropout
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.patience = patience
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "model_")

    def __getstate__(self):
        if hasattr(self, "model_"):
            name = type(self).__name__
            raise TypeError(
                f"A fitted {name} is not pickled: write it with save(folder), and read it with {name}.load(folder)."
            )
        return super().__getstate__()

    def fit(self, X, y, sample_weight=None):
        """Train a model.

        Args:
            X: numbers ``(n, columns)``, with NaN for gaps, or a pandas frame; a list of ``n`` texts; or images ``(n,
                height, width, 3)``, pixels 0 to 255.
            y: ``(n,)`` targets.
            sample_weight: ``(n,)`` weights in the loss; rows of weight 0 are left out. Default ``None``.

        Returns:
            The estimator.

        Raises:
            ValueError: data or a parameter that cannot be used; the message says what was expected.
            TypeError: a sparse matrix.
        """
        from thaw.finetune import fine_tune
        from thaw.models.state import preserve_rng, seed_everything
        from thaw.runs.row_inputs import input_files

        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        for name in ("model_", "n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)  # one whose fit fails is not fitted
        kind = kind_of(X)
        rows = self._read(X, kind, reset=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        assert_all_finite(y, input_name="y")
        weight = checked_weight(sample_weight, len(y))
        if weight is not None and not weight.all():
            used = np.flatnonzero(weight)
            rows, y, weight = take_rows(rows, used), y[used], weight[used]
        values, classes = self._targets(y)
        if len(values) < 2:
            raise ValueError("There is n_samples=1; expected 2 rows or more.")
        plan = self._training_plan(kind, classes is None)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with preserve_rng():
            seed_everything(seed)
            splits = self._splits(X, kind, rows, FitTargets(values, classes, weight), plan, seed)
            model = self._model(kind, splits, seed)
            # As the ensemble of a table is trained: the log loss tells the epochs apart where the accuracy does not.
            by_loss = kind == "table" and classes is not None
            history = fine_tune(
                model,
                plan,
                splits.train,
                validation_data=splits.validation,
                batch_size=self._batch_size(kind),
                seed=seed,
                verbose=self.verbose,
                **({"monitor": "val_loss", "mode": "min"} if by_loss else {}),
            )
        if classes is not None:
            self.classes_ = classes
        self.plan_, self.task_ = plan, splits.task
        self.history_ = {"epoch": [epoch + 1 for epoch in history.epoch]} | history.history
        self.notes_ = [*splits.notes, *history.notes]
        self._kind, self._seed, self._files = kind, seed, input_files(splits)
        if kind == "table":
            self._columns = splits.columns
        elif kind == "text":
            self._tokenizer, self._length = splits.tokenizer, int(splits.train.x.shape[1])
        self.model_ = model
        return self

    def save(self, folder):
        """Write a run folder, which :func:`thaw.open_run` opens too.

        Its ``model.keras`` opens with Keras alone. A pickle would run code when it is read, and would not outlast the
        next version of Keras; so there is none.

        Args:
            folder: path of the folder, new or empty.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: the folder holds something else.
        """
        from thaw.runs.folder import refuse_finished, write_run

        check_is_fitted(self)
        refuse_finished(folder)
        parameters = self.get_params(deep=False)
        parameters["plan"] = None if self.plan is None else "saved"
        if not isinstance(self.random_state, int | np.integer | None):
            parameters["random_state"] = self._seed
        if not isinstance(self.backbone, str | None) or os.path.isabs(self.backbone or ""):
            parameters["backbone"] = {"of": "the model"}
        saved = {"class": type(self).__name__, "inputs": self._kind, "parameters": parameters}
        if hasattr(self, "classes_"):
            saved |= {"classes": self.classes_.tolist(), "dtype": self.classes_.dtype.str}
        if self._kind == "table":
            saved |= {"names": self._names, "named": hasattr(self, "feature_names_in_")}
        numeric = not hasattr(self, "classes_")
        write_run(
            folder,
            self.model_,
            self.task_.targets if numeric else self.task_.labels,
            plan=self.plan_.to_toml(),
            tables={"history": self.history_},
            metrics={"notes": self.notes_},
            about={"seed": self._seed, "estimator": saved},
            task=self.task_ if numeric else None,
            files=self._files,
        )

    @classmethod
    def load(cls, folder):
        """Read a fitted estimator from the folder that :meth:`save` wrote.

        Every file is compared with its SHA-256 first. A ``backbone`` that was given as a model or as a file with an
        absolute path is that of the saved model afterwards.

        Args:
            folder: path of the folder.

        Returns:
            A fitted estimator with bit-identical predictions on the same machine.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: a file is damaged, or another class wrote it.
        """
        from thaw._files import write_text
        from thaw.data.text import load_tokenizer
        from thaw.models.heads import remove_head
        from thaw.runs.folder import open_run
        from thaw.runs.row_inputs import INPUT, TOKENIZER, read_input

        run = open_run(folder)
        saved = run.manifest.get("estimator")
        if saved is None or saved["class"] != cls.__name__:
            writer = "no estimator: open it with thaw.open_run" if saved is None else f"{saved['class']}: load it there"
            raise ValueError(f"{folder} was written by {writer}; expected a folder of {cls.__name__}.save.")
        parameters = saved["parameters"]
        if parameters["plan"] is not None:
            parameters["plan"] = run.plan
        if isinstance(parameters["backbone"], dict):
            parameters["backbone"] = remove_head(run.model)
        found = cls(**parameters)
        if "classes" in saved:
            found.classes_ = np.array(saved["classes"], saved["dtype"])
        found.plan_, found.task_, found.history_, found.notes_ = run.plan, run.task, run.history, list(run.notes)
        found._kind, found._seed = saved["inputs"], run.manifest["seed"]
        taken, files = read_input(folder), [run.folder / name for name in (INPUT, TOKENIZER)]
        found._files = {file.name: write_text(file.read_text(encoding="utf-8")) for file in files if file.exists()}
        if found._kind == "table":
            found._columns, found._names = taken.columns, saved["names"]
            found.n_features_in_ = len(found._names)
            if saved["named"]:
                found.feature_names_in_ = np.array(found._names, object)
        elif found._kind == "text":
            found._tokenizer, found._length = load_tokenizer(taken.tokenizer), taken.length
        found.model_ = run.model
        return found

    def _read(self, X, kind, *, reset):
        """Check the rows: a dict of columns by the names that they had in ``fit``, a list of texts, or an array."""
        if kind != "table":
            return checked_texts(X) if kind == "text" else checked_images(X)
        if is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            values, names = [X.iloc[:, i].tolist() for i in range(X.shape[1])], list(map(str, X.columns))
        else:
            refuse_texts(X)
            X = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
            values, names = X.T.tolist(), [f"x{i}" for i in range(X.shape[1])]
        if reset:
            self._names = names
        return dict(zip(self._names, values))

    def _encode(self, X):
        """Return rows to predict from as the model takes them."""
        from thaw.data.column_kinds import encode_columns
        from thaw.data.table_rows import read_rows
        from thaw.data.text import encode_texts

        check_is_fitted(self)
        if (kind := kind_of(X)) != self._kind:
            given, own = NOUNS[kind], NOUNS[self._kind]
            raise ValueError(f"X is {given}, and {type(self).__name__} was fitted to {own}; give the same kind.")
        rows = self._read(X, kind, reset=False)
        if kind == "table":
            return encode_columns(read_rows(rows)[0], self._columns)
        return encode_texts(self._tokenizer, rows, self._length) if kind == "text" else rows

    def _training_plan(self, kind, numeric):
        stages, (epochs, rate, _) = as_int("tune_stages", self.tune_stages), TRAINING[kind]
        epochs = epochs if self.epochs is None else self.epochs
        rate = rate if self.learning_rate is None else self.learning_rate
        if kind == "table" and (stages or self.backbone is not None):
            given = "tune_stages" if stages else "backbone"
            raise ValueError(f"{given} is for texts and images, and X is a table; leave it out.")
        if stages and self.plan is not None:
            raise ValueError(f"plan and tune_stages={stages} were given; a plan says what is trained, give one.")
        if self.plan is not None:
            plan = as_plan(self.plan)
        elif kind == "table":
            # Without patience there is no end before the last epoch, which table_plan does not offer.
            plan = Plan([Phase(name="all", epochs=epochs, learning_rate=rate, patience=self.patience)])
        elif not stages:
            plan = Plan.named("probe")
        else:
            head, tune = Plan.named("probe_then_tune", epochs=epochs, learning_rate=rate)
            plan = Plan([head, dataclasses.replace(tune, train=stages, views=0, patience=self.patience)])
        return plan_for_numbers(plan) if numeric else plan

    def _batch_size(self, kind):
        return TRAINING[kind][2] if self.batch_size is None else self.batch_size

    def _splits(self, X, kind, rows, targets, plan, seed):
        """Divide the rows; where a solver does all, there are no validation rows."""
        is_validation = np.zeros(len(targets.values), bool)
        if kind == "table" or not all(phase.solves for phase in plan):
            is_validation = choose_validation(rows, targets, self.validation_fraction, seed)
        if kind == "image":
            return array_splits(rows, targets, is_validation)
        if kind == "text":  # a model of the user's own may have a length of its own
            length = getattr(self.backbone, "input_shape", (None, None))[1]
            tokenizer, x = tokenized(rows, length, as_int("max_length", self.max_length, 3))
            return array_splits(x, targets, is_validation, tokenizer)
        columns = self.columns
        if columns is None and not is_frame(X):  # which holds numbers, whatever they look like
            columns = dict.fromkeys(rows, "number")
        return table_splits(rows, targets, is_validation, columns)

    def _model(self, kind, splits, seed):
        import keras

        from thaw.models.backbone import EMBEDDED, EMBEDDED_TEXT, backbone
        from thaw.models.blends import copy_model
        from thaw.models.heads import attach_head
        from thaw.models.table_backbone import table_model

        if kind == "table":
            options = {"members": self.members, "width": self.width, "depth": self.depth, "dropout": self.dropout}
            return table_model(splits, **options, seed=seed)
        given = self.backbone
        if isinstance(given, keras.Model):
            frozen = copy_model(given)  # the user's own stays as it is
        elif kind == "text" and given not in (None, EMBEDDED_TEXT):
            raise ValueError(f'backbone={given!r} does not read texts; expected "{EMBEDDED_TEXT}" or a keras.Model.')
        else:
            name = given or (EMBEDDED_TEXT if kind == "text" else EMBEDDED)
            frozen = backbone(name, input_shape=splits.train.x.shape[1:])
        return attach_head(frozen, splits.task, features=self.features, seed=seed)


class ThawClassifier(ClassifierMixin, _Estimator):
    """Classify the rows of a table, texts or images, as an estimator of scikit-learn.

    What ``X`` is decides what ``fit`` does:

    - Numbers ``(n, columns)`` or a pandas frame: :func:`thaw.table_model` is trained from random weights, an ensemble
      whose first layers prepare the columns (:func:`thaw.load_table` finds what those of a frame hold).
    - A list, a series or a 1-D array of texts: a head is solved on the frozen features of all-MiniLM-L6-v2.
    - Images ``(n, height, width, 3)``: a head is solved on the frozen features of a backbone, without augmentation.

    The training is that of :func:`thaw.fine_tune`. Its frozen features are cached by their content, so that the folds
    of a cross-validation compute them once. The random states of Python, NumPy and Keras are restored afterwards;
    TensorFlow's operations stay deterministic, as after :func:`thaw.seed_everything`.

    A fitted estimator cannot be pickled: :meth:`save` and :meth:`load` write and read a run folder. One that is not
    fitted can, so that ``n_jobs`` works, and ``sklearn.base.clone`` copies the parameters.

    Args:
        backbone: of texts or images: a name or a file as for :func:`thaw.backbone`, or a ``keras.Model`` without a
            head, which does not change. Default ``None``: ``"minilm"`` or ``"efficientnet_lite0"``.
        plan: a :class:`thaw.Plan`, or the name of one. Default ``None``: a table is trained for ``epochs``, else the
            head is solved and ``tune_stages`` are trained.
        tune_stages: stages below the head of texts and images to train when the head is solved. Default 0.
        features: what that head reads: ``"last"`` (default), ``"upper"`` or ``"all"``, as for :func:`thaw.attach_head`.
        max_length: largest length of texts in word pieces, 3 or more; what is longer is cut off. Default 128.
        columns: what the columns of a table hold, as for :func:`thaw.load_table`; those of an array are ``x0``, ``x1``
            ... Default ``None``: found for a frame; numbers for an array.
        members: members of a table's ensemble. Default 16.
        width: units of each of its hidden layers. Default 128.
        depth: its hidden layers. Default 2.
        dropout: fraction of its units dropped at each training step. Default 0.1.
        epochs: epochs at most of what is trained by gradient descent. Default ``None``: 100 for a table, 4 for texts,
            12 for images.
        learning_rate: its peak rate. Default ``None``: 2e-3 for a table, 1e-4 for texts, 5e-4 for images.
        patience: epochs without a better validation score after which it ends. Default 20.
        batch_size: rows in a batch. Default ``None``: 64 for a table, else 32.
        validation_fraction: fraction of the rows by which the best epoch is chosen, above 0 and below 1; a head that is
            solved learns from all rows. Default 0.15.
        random_state: int, ``numpy.random.RandomState`` or ``None`` (default), for another result at each call.
        verbose: as for :func:`thaw.fine_tune`. Default 0.

    Attributes:
        model_: plain ``keras.Model``.
        classes_: ``(classes,)`` the labels, sorted.
        n_features_in_: columns of a table.
        feature_names_in_: ``(columns,)`` their names, where a frame has some.
        plan_: :class:`thaw.Plan` of the training.
        history_: dict of lists, one value for each epoch.
        notes_: list of sentences about the data and the training.
        task_: :class:`thaw.Classification` of the labels as texts.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from thaw.estimators import ThawClassifier
        >>> x, y = load_iris(return_X_y=True)
        >>> model = ThawClassifier(members=4, width=32, epochs=20, learning_rate=0.01, random_state=0).fit(x, y)
        >>> bool(model.score(x, y) > 0.9), model.predict_proba(x[:2]).shape
        (True, (2, 3))
    """

    def predict_proba(self, X):
        """Predict the probability of each class.

        Args:
            X: rows, as for :meth:`fit`.

        Returns:
            Float64 ``(n, classes)``, in the order of ``classes_``.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: rows of another kind than those of ``fit``.
        """
        from thaw.features.predictions import predict_proba

        x = self._encode(X)
        return predict_proba(self.model_, x, batch_size=self._batch_size(self._kind))

    def predict(self, X):
        """Predict the most probable class.

        Args:
            X: rows, as for :meth:`fit`.

        Returns:
            ``(n,)`` labels.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: rows of another kind than those of ``fit``.
        """
        p = self.predict_proba(X)
        return self.classes_[p.argmax(axis=1)]

    def _targets(self, y):
        try:
            check_classification_targets(y)
            classes, numbers = np.unique(y, return_inverse=True)
        except TypeError:
            kinds = ", ".join(sorted({type(label).__name__ for label in y}))
            raise ValueError(f"y holds labels of several types ({kinds}); expected texts, or whole numbers.") from None
        if len(classes) < 2:
            raise ValueError(f"y has 1 class, {classes.tolist()[0]!r}; expected 2 or more.")
        return numbers, classes


class ThawRegressor(RegressorMixin, _Estimator):
    """Predict a number for each row of a table, text or image, as an estimator of scikit-learn.

    As :class:`ThawClassifier`, with the same parameters and attributes but ``classes_``; the head of texts and images
    is solved by ridge regression.

    Args:
        **parameters: those of :class:`ThawClassifier`.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from thaw.estimators import ThawRegressor
        >>> x, y = load_diabetes(return_X_y=True)
        >>> model = ThawRegressor(members=4, width=32, epochs=20, learning_rate=0.01, random_state=0).fit(x, y)
        >>> bool(model.score(x, y) > 0.4), model.predict(x[:2]).shape
        (True, (2,))
    """

    def predict(self, X):
        """Predict a number for each row.

        Args:
            X: rows, as for :meth:`fit`.

        Returns:
            Float64 ``(n,)``.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: rows of another kind than those of ``fit``.
        """
        from thaw.data.conversion import as_dataset
        from thaw.features.predictions import as_targets, batch_probabilities

        dataset = as_dataset(self._encode(X))
        convert = functools.partial(as_targets, task=self.task_)
        batches = dataset.inputs(self._batch_size(self._kind))
        return batch_probabilities(self.model_, batches, examples=len(dataset), convert=convert)[:, 0]

    def _targets(self, y):
        try:
            numbers = np.asarray(y, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"y holds {y.tolist()[0]!r}; expected numbers. For classes take ThawClassifier.") from None
        return numbers, None
