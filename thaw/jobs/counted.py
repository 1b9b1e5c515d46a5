"""Examples that tell how far they have been read."""

import dataclasses
import itertools
from collections.abc import Callable

from thaw.examples import Examples


def counted(examples, progress, what, total=None):
    """The same examples; whoever reads them tells how far it has come.

    Args:
        examples: :class:`thaw.Examples`.
        progress: called with (done, total, what) after each batch.
        what: what is being done, for people.
        total: batches in all; ``None`` for those of one pass.

    Returns:
        :class:`thaw.Examples`.

    Example:
        >>> import numpy as np
        >>> examples = Examples(x=np.zeros((5, 2)), y=np.arange(5))
        >>> for _ in counted(examples, print, "measuring").ordered(3):
        ...     pass
        1 2 measuring
        2 2 measuring
    """
    own = {field.name: getattr(examples, field.name) for field in dataclasses.fields(Examples)}
    return _Counted(**own, progress=progress, what=what, total=total, done=itertools.count(1))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Counted(Examples):
    progress: Callable
    what: str
    total: int | None
    done: itertools.count

    def ordered(self, batch_size, view=None, seed=0):
        for done, batch in enumerate(super().ordered(batch_size, view, seed), 1):
            self.progress(done, self.steps(batch_size), self.what)
            yield batch

    def epochs(self, batch_size, seed, first=0, views=None):
        import tensorflow as tf

        def tell():
            self.progress(min(next(self.done), self.total), self.total, self.what)

        def told(*batch):
            with tf.control_dependencies([tf.py_function(tell, [], [])]):
                return tf.nest.map_structure(tf.identity, batch)

        return super().epochs(batch_size, seed, first, views).map(told)
