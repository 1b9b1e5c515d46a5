"""A classifier's answers to the same questions, again and again while it is tuned."""

import numpy as np

MOST_BYTES = 512e6  # of what stands still that is kept in memory


class Answers:
    """The probabilities that a model gives the same examples, at little cost while only a part of it moves.

    What stands still in front is run once and kept in memory, so that a later call runs the rest only; and where no
    weight has changed since the last call, nothing is run. All of it goes through TensorFlow: the same weights must
    give the same answers, today and after an interruption. The model is the same afterwards, to the bit.

    Args:
        model: a ``keras.Model`` that puts out one score for each class.
        examples: :class:`thaw.Examples`; labels are not looked at.
        batch_size: examples in a batch.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Examples
        >>> from thaw.jobs.answers import Answers
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> Answers(model, Examples(x=np.zeros((1, 2), "float32"), y=np.zeros(1)))().tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, model, examples, *, batch_size=32):
        from thaw.tuning.flatten import CannotSplit, flatten

        self.model, self.examples, self.batch_size = model, examples, min(batch_size, len(examples))
        self._cut = self._prefix = self._run = self._kept = self._last = None
        try:
            self._flat = flatten(model)
        except CannotSplit:
            self._flat = None

    def follow(self):
        """From now on that moves which the ``trainable`` flags say; what stands still in front of it is kept.

        It need not be true of the weights so far: it is kept when it is asked for the next time, and made anew where
        it has moved all the same.
        """
        from thaw.tuning.flatten import CannotSplit
        from thaw.tuning.part import part
        from thaw.tuning.split import find_cut

        self._cut = self._prefix = self._run = self._kept = None
        if self._flat is not None:
            try:
                self._cut = find_cut(self._flat)
                self._prefix = part(self._flat, None, self._cut)
            except CannotSplit:
                pass  # nothing stands still that is worth keeping

    def __call__(self):
        """The probabilities now, float64 ``(n, classes)``, in the order of the examples."""
        from thaw.forward import held
        from thaw.probabilities import as_probabilities

        now = _values(self.model)
        if self._last is None or not _equal(self._last[0], now):
            with held(self.model.non_trainable_variables):
                out = np.concatenate([_one(self.model, self._run(x)) for x in self._inputs()])
            self._last = now, as_probabilities(self.model, out.astype(np.float64))
        return self._last[1]

    def _inputs(self):
        """Batches of what goes into the part that is run, which is made ready on the way."""
        from thaw.forward import forward
        from thaw.tuning.part import part

        if self._cut is not None:
            standing = _values(self._prefix)
            if self._kept is None or not _equal(self._kept[0], standing):
                features = self._features()
                self._kept = None if features is None else (standing, features)
            if self._kept is not None:
                if self._run is None:
                    self._run = forward(part(self._flat, self._cut, None), self.batch_size, runtime="tensorflow")
                return self._slices(self._kept[1])
            self._cut = self._run = None
        self._run = self._run or forward(self.model, self.batch_size, runtime="tensorflow")
        return (x for x, *_ in self.examples.ordered(self.batch_size))

    def _features(self):
        """What the prefix puts out for every example, an array for each tensor; ``None`` where that is too much."""
        from thaw.forward import forward

        run, found, begin = forward(self._prefix, self.batch_size, runtime="tensorflow"), None, 0
        for x, *_ in self.examples.ordered(self.batch_size):
            out = run(x)
            if found is None:
                if sum(a.nbytes for a in out) / len(out[0]) * len(self.examples) > MOST_BYTES:
                    return None
                found = [np.empty((len(self.examples), *a.shape[1:]), a.dtype) for a in out]
            for rows, a in zip(found, out):
                rows[begin : begin + len(a)] = a
            begin += len(out[0])
        return found

    def _slices(self, features):
        for begin in range(0, len(self.examples), self.batch_size):
            batch = [rows[begin : begin + self.batch_size] for rows in features]
            yield batch[0] if len(batch) == 1 else batch


def _one(model, out):
    if len(out) != 1:
        raise ValueError(f"{model.name} has {len(out)} outputs; expected one with a score for each class.")
    return out[0]


def _values(model):
    return [variable.numpy() for variable in model.weights]


def _equal(some, others):
    return all(map(np.array_equal, some, others))
