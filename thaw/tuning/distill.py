"""Learning without forgetting: the old head's answers as further targets."""

import dataclasses

import keras
import numpy as np

from thaw.examples import Examples
from thaw.forward import forward
from thaw.tuning.log_probabilities import log_probabilities
from thaw.tuning.part import as_it_was, operations_in


def distill(model, old, *, temperature=2.0):
    """Make a model with two outputs: what the new head says, and what the old head says, softened.

    Learning without forgetting (Li and Hoiem 2016) keeps the old head's answers on the *new* pictures where they
    were before; no old data are needed. :func:`old_answers` notes them down before the training. All is plain Keras
    and shares its variables with ``model``; train the two outputs, save ``model``::

        both = distill(model, old)
        x, y = old_answers(both, (x, y))
        both.compile("adam", ["sparse_categorical_crossentropy", "kl_divergence"], loss_weights=[1.0, 1.0])
        both.fit(x, y)

    The second number in ``loss_weights`` says how much the old answers count; the paper takes 1. Its loss is the
    cross-entropy, which differs from the divergence by a constant; ``logs["old_answers_loss"]`` is 0 where nothing is
    forgotten.
    The old head learns too where it is trainable, as in the paper; hold it with ``layer.trainable = False``.

    Args:
        model: a functional ``keras.Model`` with the new head.
        old: a functional ``keras.Model`` with the old head, from the same input tensor through the same layers,
            for instance ``keras.Model(backbone.input, old_head(backbone.output))``.
        temperature: above 0. Above 1 the smaller probabilities count for more: each becomes ``p ** (1 /
            temperature)``, made to sum to 1.

    Returns:
        A ``keras.Model`` with the outputs ``[new, old]``; not compiled.

    Raises:
        ValueError: models that do not begin at one input, or a head that does not give probabilities.

    Example:
        >>> import keras
        >>> from thaw.tuning.distill import distill
        >>> pixels = keras.Input((4,))
        >>> features = keras.layers.Dense(8, "relu")(pixels)
        >>> old = keras.Model(pixels, keras.layers.Dense(3, "softmax")(features))
        >>> new = keras.Model(pixels, keras.layers.Dense(2, "softmax")(features))
        >>> distill(new, old).output_shape
        [(None, 2), (None, 3)]
    """
    if isinstance(temperature, bool) or not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature!r}; expected a finite number above 0.")
    if len(model.outputs) != 1 or len(old.outputs) != 1:
        raise ValueError(
            f"{model.name} has {len(model.outputs)} outputs and {old.name} {len(old.outputs)}; expected one each."
        )
    if list(map(id, model.inputs)) != list(map(id, old.inputs)):
        raise ValueError(
            f"{old.name} does not begin at the input of {model.name}, so that the backbone would be computed twice; "
            "build both on one: keras.Model(backbone.input, head(backbone.output))."
        )
    if not {id(v) for v in model.weights} & {id(v) for v in old.weights}:
        raise ValueError(f"{old.name} and {model.name} share no variables; nothing the one learns reaches the other.")
    # Both heads often have layers of the same name, which one graph may not: they have others while it is built.
    with as_it_was([*operations_in(model), *operations_in(old)]):
        softened = keras.layers.Softmax(name="old_answers", dtype="float32")(
            log_probabilities(old, old.outputs[0]) / temperature
        )
        return keras.Model(model.input, [model.outputs[0], softened], name=f"{model.name}_and_old")


def old_answers(both, data, *, views=0, batch_size=32):
    """Note down what the old head says about the new data, as second targets. Call it before the training.

    Args:
        both: from :func:`distill`.
        data: :class:`thaw.Examples` or arrays ``(x, y)`` of the new task.
        views: for augmented Examples, how many versions of each to look at; then train with
            ``epochs(..., views=views)``, which has the same ones. At 0 the example as it is stands for all its
            versions.
        batch_size: examples in a batch.

    Returns:
        For arrays ``(x, [y, answers])``; for Examples the same Examples, whose batches hold ``(y, answers)`` in
        place of ``y``. The answers are ``(n, classes)`` probabilities at the temperature of ``both``.

    Raises:
        ValueError: other data, or a number of versions that cannot be meant.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.distill import distill, old_answers
        >>> pixels = keras.Input((4,))
        >>> features = keras.layers.Dense(8, "relu")(pixels)
        >>> old = keras.Model(pixels, keras.layers.Dense(3, "softmax", kernel_initializer="zeros")(features))
        >>> new = keras.Model(pixels, keras.layers.Dense(2, "softmax")(features))
        >>> x, (y, answers) = old_answers(distill(new, old), (np.ones((5, 4)), np.zeros(5)))
        >>> answers.shape
        (5, 3)
    """
    if isinstance(views, bool) or int(views) != views or views < 0:
        raise ValueError(f"views={views!r}; expected a whole number from 0.")
    plain = isinstance(data, (tuple, list))
    if plain and len(data) != 2:
        raise ValueError(f"The data are {len(data)} arrays; expected (x, y).")
    data = Examples.of(data)
    if not isinstance(data, Examples):
        raise ValueError(f"The data are a {type(data).__name__}; expected thaw.Examples or arrays (x, y).")
    views = data.views or views
    old = keras.Model(both.input, both.outputs[1])
    # Always TensorFlow, so that a run that is begun again has the same targets to the bit.
    run = forward(old, min(batch_size, len(data)), runtime="tensorflow", examples=len(data))
    answers = np.stack(
        [
            np.concatenate([run(batch[0])[0] for batch in data.ordered(run.batch_size, view=view)])
            for view in (range(views) if views else [None])
        ]
    )
    if plain:
        return data.x, [data.y, answers[0]]
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(Examples)}
    return _Answered(**fields, answers=answers)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Answered(Examples):
    """Examples whose labels come with the old head's answers, ``(versions, n, classes)``."""

    answers: np.ndarray

    def take(self, indices):
        """The examples at ``indices``, in that order, each with its answers."""
        return dataclasses.replace(super().take(indices), answers=self.answers[:, indices])

    def _gather(self, i, view):
        import tensorflow as tf

        x, y, *weight = super()._gather(i, view)
        # One version for a whole batch: batches never straddle epochs.
        version = tf.reshape(view, [-1])[0] % len(self.answers)

        def read(version, i):
            return self.answers[version, i]

        found = tf.numpy_function(read, [version, i], tf.as_dtype(self.answers.dtype), stateful=False)
        found.set_shape((*i.shape, self.answers.shape[-1]))
        return x, (y, found), *weight
