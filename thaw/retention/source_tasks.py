"""The source task of a backbone: its head, its images and its budget."""

import dataclasses
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from thaw.models.loading import is_model_file

MAX_SOURCE_EXAMPLES = 1000  # the score is then known within three points, and it is measured again and again
HASHED_BYTES = 4096  # at either end of a file


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SourceTask:
    """A backbone with its source head, images of its source task, and a forgetting budget.

    It is given to :func:`thaw.tune` in place of a model. It is one value, because none of its parts means anything
    without the others: the head is on these very layers, and the images and the budget are those of that head.

    Args:
        backbone: the ``keras.Model`` that is tuned, without a head.
        model: the same layers with the source head; ``None`` where there is no head.
        examples: :class:`thaw.Dataset` of the source task; ``None`` to use images of the target task.
        labelled: whether their ``y`` are class numbers of the source head; if not, forgetting is measured by whether it
            predicts the same as before. Default ``False``.
        max_forgetting: largest fraction of the source score that may be lost, from 0 to 1; ``None`` for no limit.
        notes: a tuple of sentences to show.

    Raises:
        ValueError: a budget out of its range, or one without a head to measure by.

    Example:
        >>> from thaw import backbone
        >>> from thaw.retention import SourceTask
        >>> SourceTask.of(backbone(weights=None)).model is None
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
            raise ValueError(f"max_forgetting={budget!r}; expected a fraction from 0 to 1, such as 0.02.")
        if self.model is None and (budget is not None or self.examples is not None):
            raise ValueError(
                f"{self.backbone.name} has no head of its own, so that what it forgets cannot be measured; leave out "
                "the images of the source task and the budget, or take a model with its head."
            )

    @classmethod
    def of(cls, model, **fields):
        """Make the source task of a model: with a head, where it ends in the probabilities or logits of classes.

        Args:
            model: a ``keras.Model`` with or without a head; or a :class:`SourceTask`, which is returned. A last linear
                dense layer is taken for the head, as in a file.
            fields: the other arguments of :class:`SourceTask`.

        Raises:
            ValueError: the model is all head: nothing is left before its dense layers.

        Warns:
            UserWarning: the last layer is a linear dense layer, and no loss of the model says whether it puts out
                logits or features.

        Example:
            >>> import keras
            >>> from thaw.retention import SourceTask
            >>> net = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
            >>> model = keras.Sequential([*net, keras.layers.Dense(5, "softmax")])
            >>> SourceTask.of(model).backbone.output_shape
            (None, 6, 6, 4)
        """
        from thaw.models.heads import ends_in_logits, has_head, is_predictor, last_units, remove_head

        if isinstance(model, cls):
            return model
        if has_head(model) or ends_in_logits(model):
            if not is_predictor(model):
                warnings.warn(
                    f"{model.name} ends in {last_units(model)}, which are taken for the logits of classes and left "
                    "out of the backbone, with the layers before them up to the last feature map; if they are "
                    "features, pass SourceTask(backbone=model), and if they are logits, compile the model with a "
                    "crossentropy.",
                    stacklevel=2,
                )
            return cls(backbone=remove_head(model), model=model, **fields)
        return cls(backbone=model, **fields)


def source_task(
    name, retain=None, *, weights="imagenet", preprocessing="auto", image_size=None, max_forgetting=None, progress=None
):
    """Open a backbone with its head, and read images of its source task.

    Class folders are matched to the head's classes by their names where these are known: for ImageNet by WordNet number
    (``n01443537``), for the model of a run folder by the labels in it. For any other file their sorted order counts,
    where there are as many folders as classes. Where they cannot be matched, and for images without classes, forgetting
    is measured by how often the head predicts the same as before.

    Args:
        name: as for :func:`thaw.backbone`: a name, or a ``.keras`` or ``.h5`` file.
        retain: path of a folder ``class/image``, a folder of images, or a CSV file, of the source task; ``None`` to
            estimate forgetting on images of the target task.
        weights: as for :func:`thaw.backbone`. Default ``"imagenet"``.
        preprocessing: as for :func:`thaw.backbone`. Default ``"auto"``.
        image_size: side in pixels; ``None`` for the size that the model was made for.
        max_forgetting: largest fraction of the source score that may be lost, such as 0.02; ``None`` for no limit.
        progress: function called with (files done, files in all, description) while images are read; or ``None``.

    Returns:
        :class:`SourceTask`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: an invalid model, no usable image, or a model without a head where one is needed.
        ConnectionError: Keras could not download the weights.

    Example:
        >>> from thaw import tune
        >>> from thaw.retention import source_task
        >>> source = source_task("efficientnet_lite0", "old-photos", max_forgetting=0.02)    # doctest: +SKIP
        >>> tune("photos", "run", model=source)                                              # doctest: +SKIP
    """
    from thaw.models.applications import imagenet_classes
    from thaw.models.backbone import EMBEDDED, backbone, input_size
    from thaw.models.heads import remove_head

    if retain is not None and not Path(retain).exists():  # before the model, which takes seconds
        raise FileNotFoundError(
            f"{retain} does not exist; expected a folder of images or a CSV file of the source task."
        )
    options = {
        "weights": weights,
        "input_shape": None if image_size is None else (image_size, image_size, 3),
        "preprocessing": preprocessing,
    }
    is_file = is_model_file(name)
    is_needed = retain is not None or max_forgetting is not None
    # Where Keras would have to download the head along with the rest, up to ten times as much, it is left out.
    if not is_needed and not is_file and (name != EMBEDDED or weights != "imagenet"):
        return SourceTask(backbone=backbone(name, **options))
    if weights is None and not is_file:  # a file brings its own weights, which backbone() says
        raise ValueError(
            "A network with random weights knows nothing that it could forget; leave --retain and --max-forgetting out."
        )
    model = backbone(name, head=True, **options)
    bare = remove_head(model)
    source = SourceTask(backbone=bare, model=None if bare is model else model)
    if source.model is None and is_needed:  # refused, with the reason
        examples = () if retain is not None else None
        return SourceTask(backbone=source.backbone, examples=examples, max_forgetting=max_forgetting)
    if retain is None:
        return dataclasses.replace(source, max_forgetting=max_forgetting)
    outputs = max(2, int(source.model.output_shape[-1]))  # a single sigmoid unit has two classes
    if is_file:
        classes = _labels_of_run(Path(name), outputs)
    else:
        classes = imagenet_classes() if outputs == 1000 else None
    size = input_size(source.model, name)
    examples, labelled, notes = source_images(retain, size, classes=classes, outputs=outputs, progress=progress)
    return dataclasses.replace(
        source, examples=examples, labelled=labelled, notes=tuple(notes), max_forgetting=max_forgetting
    )


def source_images(
    source,
    image_size,
    *,
    classes=None,
    outputs=None,
    max_examples=MAX_SOURCE_EXAMPLES,
    cache_dir=None,
    progress=None,
):
    """Read images of the source task.

    At most ``max_examples`` are drawn by their content: the same images whatever the files are called, and others that
    are added replace few of them. Where the source has splits of its own, the training images are left out: the source
    model has seen them.

    Args:
        source: path of a folder ``class/image``, a folder of images without classes, or a CSV file ``image,label``.
        image_size: side in pixels, as the model takes them.
        classes: dict from the name of a class to its number in the source head; ``None`` where no names are known.
        outputs: number of classes of the source head, for when no names are known: with as many class folders, their
            sorted order is taken for the head's.
        max_examples: number of images at most. Default 1000.
        cache_dir: folder of the caches; see :func:`thaw._files.cache_root`.
        progress: function called with (files done, files in all, description); or ``None``.

    Returns:
        ``(examples, labelled, notes)``: :class:`thaw.Dataset` in the order of the draw; whether their ``y`` are classes
        of the source head; and a list of sentences to show.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it has no usable image.

    Example:
        >>> from thaw.retention.source_tasks import source_images
        >>> source_images("nowhere", 224)
        Traceback (most recent call last):
        FileNotFoundError: nowhere does not exist; expected a folder or a CSV file of images of the source task.
    """
    from thaw.data.dataset import Dataset
    from thaw.data.image_checks import check_images
    from thaw.data.image_decoding import cache_decoded, decode, load_decoded

    files, names = _read_files(Path(source))
    numbers, notes = _match_classes({name for name in names if name is not None}, classes, outputs)
    if numbers:
        known = [i for i, name in enumerate(names) if name in numbers]
        files, names = [files[i] for i in known], [names[i] for i in known]
    drawn = sorted(range(len(files)), key=lambda i: _content_hash(files[i]))[:max_examples]
    files, names = [files[i] for i in drawn], [names[i] for i in drawn]
    checks = check_images(
        files,
        names if numbers else [""] * len(files),  # one image under two names is a contradiction where names are used
        read=lambda data, key: cache_decoded(data, key, image_size, decode=decode, cache_dir=cache_dir),
        progress=progress,
    )
    good = [i for i in range(len(files)) if i not in checks.bad]
    if not good:
        first = f": {files[0]} {checks.bad[0]}" if files else ""
        raise ValueError(f"{source} has no usable image of the source task{first}.")
    if checks.bad:
        notes.append(f"{len(checks.bad)} of {len(files)} images of the source task could not be used.")
    keys = [int.from_bytes(bytes.fromhex(checks.keys[i][:16]), "little", signed=True) for i in good]
    examples = Dataset(
        x=np.array([checks.read[i] for i in good]),
        y=np.array([numbers[names[i]] if numbers else -1 for i in good], np.int64),
        load=load_decoded(image_size),
        keys=np.array(keys, np.int64),
    )
    return examples, bool(numbers), notes


def _read_files(source):
    """Return paths, and names of classes or ``None`` where there is none."""
    from thaw.data.files import list_folder, read_folders
    from thaw.data.image_paths import IMAGE_SUFFIXES, suffix_of
    from thaw.data.tables import read_csv

    if not source.exists():
        raise FileNotFoundError(
            f"{source} does not exist; expected a folder or a CSV file of images of the source task."
        )
    folders, loose = list_folder(source) if source.is_dir() else ([], [])
    if source.is_dir() and not folders:
        files = [file for file in loose if suffix_of(file) in IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f"{source} holds no images; expected some of the source task.")
        return files, [None] * len(files)
    columns, _ = read_folders(source) if source.is_dir() else read_csv(source)
    unseen = [i for i, split in enumerate(columns.get("split", ())) if split != "train"]
    unseen = unseen or range(len(columns["image"]))
    return [columns["image"][i] for i in unseen], [columns["label"][i] for i in unseen]


def _match_classes(names, classes, outputs):
    """Map names to class numbers of the source head, to none where they cannot be matched; and say so in notes."""
    agreement = "; forgetting is measured by whether the source head predicts the same as before."
    if not names:
        return {}, ["The images of the source task have no labels" + agreement]
    if classes is None:
        if len(names) == outputs:
            note = "The source classes are taken in sorted order for those of the source head, which has no names."
            return {name: i for i, name in enumerate(sorted(names))}, [note]
        return {}, [
            f"The source head has {outputs} classes without names, and there are {len(names)} folders of images of the "
            "source task" + agreement
        ]
    numbers = {name: classes[key] for name in names for key in [_normalized(name)] if key in classes}
    unknown = sorted(names - set(numbers))
    if not numbers:
        return {}, [f"The source head knows no class by names such as {unknown[0]!r}" + agreement]
    if unknown:
        left_out = ", ".join(unknown[:5])
        return numbers, [f"Source images of {left_out} are left out: the source head has no such class."]
    return numbers, []


def _normalized(name):
    return name.strip().lower().replace(" ", "_")


def _content_hash(path):
    """Hash both ends of a file, to draw images by: a large collection is not read whole."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise OSError
        with open(path, "rb") as file:
            begin = file.read(HASHED_BYTES)
            length = os.fstat(file.fileno()).st_size
            file.seek(max(0, length - HASHED_BYTES))
            return hashlib.sha256(begin + file.read(HASHED_BYTES) + str(length).encode()).digest()
    except OSError:
        return hashlib.sha256(str(path).encode()).digest()  # the checks will find that it is bad


def _labels_of_run(file, outputs):
    """Read the labels of the run folder that a model is in, by normalized names; ``None`` where there are none."""
    try:
        labels = json.loads((file.parent / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(labels, list) or len(labels) != outputs:
        return None
    return {_normalized(str(label)): i for i, label in enumerate(labels)}
