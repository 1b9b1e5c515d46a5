"""What leaves each stage of a model, in one pass."""

from __future__ import annotations

import contextlib

from thaw.stages import stages_of


class StageOutputs:
    """A model that is called as it is and gives what its stages put out instead of its own output.

    Works with nested and subclassed models too: each stage's last layer is listened to while the model runs, and
    nothing is left on it. Give it to :func:`thaw.forward.forward` in place of the model.

    Args:
        model: a built ``keras.Model``.

    Attributes:
        stages: from :func:`thaw.stages_of`.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.stage_outputs import StageOutputs
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> [tuple(out.shape) for out in StageOutputs(model)(np.zeros((3, 4)))]
        [(3, 8), (3, 2)]
    """

    def __init__(self, model):
        self.model, self.stages = model, stages_of(model)

    def __call__(self, x, training=False):
        """Run the model on a batch.

        Args:
            x: inputs as the model takes them.
            training: passed on to the model.

        Returns:
            A list of tensors, one for each stage: the output of its last layer (the first tensor, where it has
            several; the first time, where the layer is used more than once).

        Raises:
            ValueError: a stage's last layer is not reached.
        """
        import keras

        found = {}
        with contextlib.ExitStack() as stack:
            for stage in self.stages:
                stack.enter_context(_listening(stage, found))
            self.model(x, training=training)
        missing = [stage.name for stage in self.stages if stage.name not in found]
        if missing:
            raise ValueError(
                f"{self.model.name} does not call the last layer of {', '.join(missing)}; expected a model that uses "
                "all its layers. Quantized layers cannot be listened to: measure the model before quantizing it."
            )
        return [keras.tree.flatten(found[stage.name])[0] for stage in self.stages]


@contextlib.contextmanager
def _listening(stage, found):
    """Note what the stage's last layer puts out, on the instance alone and for as long as this lasts."""
    layer = stage.layers[-1]
    own, call = vars(layer).get("call"), layer.call

    def noting(*args, **kwargs):
        out = call(*args, **kwargs)
        found.setdefault(stage.name, out)
        return out

    vars(layer)["call"] = noting  # past Keras' __setattr__, which would note it as the user's
    try:
        yield
    finally:
        if own is None:
            del vars(layer)["call"]
        else:
            vars(layer)["call"] = own
