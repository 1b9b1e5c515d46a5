"""Learning without Forgetting: distill soft targets of the source model."""

import dataclasses

import keras
import numpy as np

from thaw._validation import as_int
from thaw.data.conversion import as_dataset
from thaw.data.dataset import Dataset
from thaw.features.inference import inference_runner
from thaw.features.predictions import log_proba
from thaw.features.split import operations_in, preserve_graph


def distill(model, source, *, temperature=2.0):
    """Make a model with two outputs: the predictions of the new head, and those of the source head, softened.

    Learning without Forgetting (Li and Hoiem 2016) keeps the source head's predictions on the *new* examples where they
    were before; no data of the source task are needed. :func:`soft_targets` computes them before the training. All is
    plain Keras and shares its variables with ``model``; train the two outputs, save ``model``::

        both = distill(model, source)
        x, y = soft_targets(both, x, y)
        both.compile("adam", ["sparse_categorical_crossentropy", "kl_divergence"], loss_weights=[1.0, 1.0])
        both.fit(x, y)

    The second of the ``loss_weights`` is that of the source task; the paper takes 1. Its loss is the cross-entropy,
    which differs from the divergence by a constant; ``logs["soft_targets_loss"]`` is 0 where nothing is forgotten. The
    source head is trained too where it is trainable, as in the paper; freeze it with ``layer.trainable = False``.

    Args:
        model: a functional ``keras.Model`` with the new head.
        source: a functional ``keras.Model`` with the source head, from the same input tensor through the same layers,
            such as ``keras.Model(backbone.input, source_head(backbone.output))``.
        temperature: a float above 0. Above 1 small probabilities count for more: each becomes
            ``p ** (1 / temperature)``, scaled to a sum of 1. Default 2.

    Returns:
        A ``keras.Model`` with the outputs ``[new, source]``; not compiled.

    Raises:
        ValueError: models that do not share one input, or a head that does not give probabilities or logits.

    Example:
        >>> import keras
        >>> from thaw.retention import distill
        >>> pixels = keras.Input((4,))
        >>> features = keras.layers.Dense(8, "relu")(pixels)
        >>> source = keras.Model(pixels, keras.layers.Dense(3, "softmax")(features))
        >>> new = keras.Model(pixels, keras.layers.Dense(2, "softmax")(features))
        >>> distill(new, source).output_shape
        [(None, 2), (None, 3)]
    """
    if isinstance(temperature, bool) or not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature!r}; expected a finite number above 0.")
    if len(model.outputs) != 1 or len(source.outputs) != 1:
        raise ValueError(
            f"{model.name} has {len(model.outputs)} outputs and {source.name} {len(source.outputs)}; expected one each."
        )
    if list(map(id, model.inputs)) != list(map(id, source.inputs)):
        raise ValueError(
            f"{source.name} does not begin at the input of {model.name}, so that the backbone would be computed twice; "
            "build both on one: keras.Model(backbone.input, head(backbone.output))."
        )
    if not {id(v) for v in model.weights} & {id(v) for v in source.weights}:
        raise ValueError(
            f"{source.name} and {model.name} share no variables; nothing that one learns reaches the other."
        )
    # Both heads often have layers of the same name, which one graph may not: they are renamed while it is built.
    with preserve_graph([*operations_in(model), *operations_in(source)]):
        softened = keras.layers.Softmax(name="soft_targets", dtype="float32")(
            log_proba(source, source.outputs[0]) / temperature
        )
        return keras.Model(model.input, [model.outputs[0], softened], name=f"{model.name}_and_source")


def soft_targets(model, x, y=None, *, views=0, batch_size=32):
    """Compute the source head's predictions on the new examples, as second targets. Call it before the training.

    To mix in replay as well, mix first: ``soft_targets(both, mix_replay(new, source, ...))``.

    Args:
        model: from :func:`distill`.
        x: examples of the target task: a :class:`thaw.Dataset`, or arrays.
        y: labels, for arrays.
        views: for an augmented dataset, how many versions of each example to predict, int; then train with
            ``epochs(..., views=views)``, which has the same ones. 0, the default, predicts the example itself for all
            of its versions.
        batch_size: examples in a batch. Default 32.

    Returns:
        For arrays ``(x, [y, targets])``; for a dataset the same one, whose batches hold ``(y, targets)`` in place of
        ``y``. The targets are ``(n, classes)`` probabilities at the temperature of ``model``.

    Raises:
        ValueError: a stream, no labels, or an invalid number of views.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import distill, soft_targets
        >>> pixels = keras.Input((4,))
        >>> features = keras.layers.Dense(8, "relu")(pixels)
        >>> source = keras.Model(pixels, keras.layers.Dense(3, "softmax", kernel_initializer="zeros")(features))
        >>> new = keras.Model(pixels, keras.layers.Dense(2, "softmax")(features))
        >>> x, (y, targets) = soft_targets(distill(new, source), np.ones((5, 4)), np.zeros(5))
        >>> targets.shape
        (5, 3)
    """
    views = as_int("views", views)
    dataset = as_dataset(x, y, labelled=True)
    if not dataset.random_access:
        raise ValueError("The data are a stream, which cannot be read twice; expected thaw.Dataset or arrays x and y.")
    views = dataset.views or views
    source = keras.Model(model.input, model.outputs[1])
    # Always TensorFlow, so that a resumed run has bit-identical targets.
    run = inference_runner(source, min(batch_size, len(dataset)), runtime="tensorflow", examples=len(dataset))
    targets = np.stack(
        [
            np.concatenate([run(batch[0])[0] for batch in dataset.ordered(run.batch_size, view=view)])
            for view in (range(views) if views else [None])
        ]
    )
    return _with_soft_targets(dataset, targets) if isinstance(x, Dataset) else (dataset.x, [dataset.y, targets[0]])


def _with_soft_targets(dataset, targets):
    fields = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
    return _SoftTargetDataset(**fields, soft_targets=targets)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _SoftTargetDataset(Dataset):
    """Examples whose labels come with soft targets, ``(versions, n, classes)``."""

    soft_targets: np.ndarray

    def __post_init__(self):
        super().__post_init__()
        if self.soft_targets.shape[1] != len(self):
            raise ValueError(
                f"There are {len(self)} examples, and soft targets for {self.soft_targets.shape[1]} of them; expected "
                "one for each. Mix replay in before: soft_targets(both, mix_replay(new, source, ...))."
            )

    def take(self, indices):
        """Return the examples at ``indices``, in that order, each with its soft targets."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Dataset)}
        return _with_soft_targets(Dataset(**fields).take(indices), self.soft_targets[:, indices])

    def _gather(self, i, view):
        import tensorflow as tf

        if self.y is None:
            return super()._gather(i, view)
        x, y, *weight = super()._gather(i, view)
        # One version for a whole batch: batches never straddle epochs.
        version = tf.reshape(view, [-1])[0] % len(self.soft_targets)

        def read(version, i):
            return self.soft_targets[version, i]

        targets = tf.numpy_function(read, [version, i], tf.as_dtype(self.soft_targets.dtype), stateful=False)
        targets.set_shape((*i.shape, self.soft_targets.shape[-1]))
        return x, (y, targets), *weight
