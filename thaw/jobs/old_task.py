"""What a pre-trained model could do before it is tuned."""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OldTask:
    """A backbone together with what it knew, and how much of that may be forgotten.

    Given to :func:`thaw.tune_pictures` in place of the backbone. It is one value, because none of it means anything
    without the others: the old head stands on these very layers, and the pictures and the budget are those of
    that head.

    Args:
        backbone: what is tuned, without a head.
        model: the same layers with the old head on them; ``None`` where there is no head.
        examples: :class:`thaw.Examples` of the old task; ``None``: pictures of the new task stand in.
        labelled: whether their ``y`` are class numbers of the old head; if not, what counts is whether it says the
            same as before.
        max_forgetting: share of the old score that may be lost, from 0 to 1; ``None`` for no such limit.
        notes: sentences to show.

    Raises:
        ValueError: a budget out of its range, or one without a head to measure by.

    Example:
        >>> from thaw import OldTask, backbone
        >>> OldTask.of(backbone(weights=None)).model is None
        True
    """

    backbone: Any
    model: Any = None
    examples: Any = None
    labelled: bool = False
    max_forgetting: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        budget = self.max_forgetting
        if budget is not None and not 0 <= budget <= 1:
            raise ValueError(f"max_forgetting={budget!r}; expected a share from 0 to 1, such as 0.02.")
        if self.model is None and (budget is not None or self.examples is not None):
            raise ValueError(
                f"{self.backbone.name} has no head of its own, so that nobody can say what it forgets; leave out "
                "the old pictures and the budget, or take a model with its head."
            )

    @classmethod
    def of(cls, model, **more):
        """The old task of a model as it is: with a head, if it ends in the probabilities of classes.

        Args:
            model: a ``keras.Model`` with or without a head, or an :class:`OldTask`, which is given back.
            more: the other arguments of :class:`OldTask`.
        """
        import keras

        from thaw.backbones.remove_head import remove_head

        if isinstance(model, cls):
            return model
        activation = getattr(model.layers[-1], "activation", None)
        classes = activation in (keras.activations.softmax, keras.activations.sigmoid)
        if classes and len(model.outputs) == 1 and len(model.outputs[0].shape) == 2:
            return cls(backbone=remove_head(model), model=model, **more)
        return cls(backbone=model, **more)


def old_task(
    name, retain=None, *, weights="imagenet", preprocessing="auto", image_size=None, max_forgetting=None, progress=None
):
    """Open a backbone with its head, and read pictures of what it knew.

    Class folders are matched to the head's classes by their names where these are known: for ImageNet by WordNet
    number (``n01443537``), for the model of a run folder by the labels beside it. For any other file their sorted
    order counts, where there are as many folders as classes. Where they cannot be matched, and for pictures without
    classes, the score is how often the head says the same as before.

    Args:
        name: as for :func:`thaw.backbone`: a name, or a ``.keras`` or ``.h5`` file.
        retain: a folder ``class/picture``, a folder of pictures, or a CSV file, of the old task; ``None``: what is
            forgotten is estimated on pictures of the new task.
        weights: as for :func:`thaw.backbone`.
        preprocessing: as for :func:`thaw.backbone`.
        image_size: side in pixels; ``None`` for the size the model was made for.
        max_forgetting: share of the old score that may be lost, such as 0.02; ``None`` for no such limit.
        progress: called with (done, total, what) while pictures are read.

    Returns:
        An :class:`OldTask`.

    Raises:
        FileNotFoundError: a file or folder that is not there.
        ValueError: a model or pictures that cannot be used, or a model without a head where one is needed.
        ConnectionError: Keras could not download the weights.

    Example:
        >>> from thaw import images, old_task, tune_pictures
        >>> old = old_task("efficientnet_lite0", "old-photos", max_forgetting=0.02)    # doctest: +SKIP
        >>> tune_pictures(images("photos"), "run", backbone=old, plan=plan)            # doctest: +SKIP
    """
    from thaw.backbones.backbone import EMBEDDED, backbone
    from thaw.backbones.imagenet_classes import imagenet_classes
    from thaw.backbones.remove_head import remove_head
    from thaw.jobs.old_pictures import old_pictures
    from thaw.jobs.picture_size import picture_size

    if retain is not None and not Path(retain).exists():  # before the model, which takes seconds
        raise FileNotFoundError(
            f"{retain} does not exist; expected a folder of pictures or a CSV file of the old task."
        )
    given = {"input_shape": None if image_size is None else (image_size, image_size, 3), "preprocessing": preprocessing}
    from_file = Path(name).suffix.lower() in (".keras", ".h5", ".hdf5")
    needed = retain is not None or max_forgetting is not None
    # Where Keras would have to download the head along with the rest, up to ten times as much, it is left out.
    if not needed and not from_file and (name != EMBEDDED or weights != "imagenet"):
        return OldTask(backbone=backbone(name, weights=weights, **given))
    if weights is None and not from_file:  # a file brings its own, which backbone() says
        raise ValueError(
            "A network with random weights knows nothing that it could forget; leave --retain and --max-forgetting out."
        )
    model = backbone(name, weights=weights, head=True, **given)
    bare = remove_head(model)
    if bare is model:
        model = None
    if retain is None or model is None:
        found = {} if retain is None else {"examples": ()}  # refused, with the reason
        return OldTask(backbone=bare, model=model, max_forgetting=max_forgetting, **found)
    outputs = max(2, int(model.output_shape[-1]))  # a single unit answers for two classes
    classes = _beside(Path(name), outputs) if from_file else imagenet_classes() if outputs == 1000 else None
    size = picture_size(model, name)
    examples, labelled, notes = old_pictures(retain, size, classes=classes, outputs=outputs, progress=progress)
    found = {"examples": examples, "labelled": labelled, "notes": tuple(notes)}
    return OldTask(backbone=bare, model=model, max_forgetting=max_forgetting, **found)


def _beside(file, outputs):
    """The labels of the run folder that a model lies in, by their plain form, or ``None``."""
    try:
        labels = json.loads((file.parent / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(labels, list) or len(labels) != outputs:
        return None
    return {str(label).strip().lower().replace(" ", "_"): i for i, label in enumerate(labels)}
