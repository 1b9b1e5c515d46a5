"""Options that several commands share, and what they open."""

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from thaw._validation import MAX_SEED
from thaw.cli.output import report


def above_zero(value: float | None):
    """Refuse an invalid number of minutes before anything is read."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} was given; expected a number above 0.")
    return value


def valid_seed(value: int | None):
    """Refuse a seed that NumPy and Keras do not take."""
    if value is not None and not 0 <= value <= MAX_SEED:
        raise typer.BadParameter(f"{value} was given; expected a whole number from 0 to {MAX_SEED}.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of a backbone, or a .keras or .h5 file.")]
AnyModel = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Name of a backbone, or a .keras or .h5 file; auto: efficientnet_lite0 for images, minilm for texts.",
    ),
]
Weights = Annotated[str, typer.Option(help='"imagenet", "none" for random weights, or a file.')]
Preprocessing = Annotated[
    str,
    typer.Option(help="Scaling of the pixels for a model file that has none: auto, none, -1..1, 0..1, caffe or torch."),
]
Size = Annotated[
    int | None,
    typer.Option(min=8, help="Side in pixels to which images are resized; default 224, or as a model file has it."),
]
Batch = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
PlanName = Annotated[
    str, typer.Option("--plan", "-p", help="auto, probe, probe_then_tune, gradual, full, or a .toml file.")
]
Minutes = Annotated[
    float | None,
    typer.Option(callback=above_zero, help="Budget in minutes of the trials; default: as the training, 1 to 5."),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Epochs of each phase that trains the backbone; twice as many from random weights."),
]
HeadEpochs = Annotated[int | None, typer.Option(min=1, help="Epochs of the head alone.")]
Rate = Annotated[
    float | None, typer.Option(help="Peak learning rate of the phases that train the backbone; advice tries no other.")
]
Data = Annotated[
    Path, typer.Argument(help="A folder with a sub-folder of images for each class, or a CSV file image,label.")
]
AnyData = Annotated[
    Path,
    typer.Argument(
        help="A folder with a sub-folder of images or .txt files for each class; a table (CSV; of texts and numbers "
        "also JSON lines and Parquet); or arrays (.npz)."
    ),
]
Text = Annotated[str | None, typer.Option(help="Column of the table with the texts to learn from.")]
Columns = Annotated[str | None, typer.Option(help="Columns of the table to predict from: a,b; default: all of use.")]
Label = Annotated[
    str | None, typer.Option(help="Column of the table with what is predicted, or several: x,y; default: label.")
]
Length = Annotated[int, typer.Option(help="Largest length of a text in word pieces: 32, 64, 128 or 256.")]
Seed = Annotated[int, typer.Option(callback=valid_seed, help="Random seed: the same one gives bit-identical results.")]
Flips = Annotated[str, typer.Option(help="Augment by flipping: horizontal, vertical, both or none.")]
Views = Annotated[
    int,
    typer.Option(
        min=1,
        help="Average the probabilities over so many versions of each image: itself, then the flips of the training.",
    ),
]
MaxBad = Annotated[float, typer.Option(help="Largest fraction of files that may be left out as unusable.")]
MaxImages = Annotated[int, typer.Option(min=10, help="Maximum number of training images to use.")]


def import_keras():
    """Import Keras and TensorFlow, and discard what their libraries write to stderr meanwhile.

    TensorFlow does so whatever its settings are. Python exceptions come through.

    Raises:
        ModuleNotFoundError: Keras or TensorFlow is not installed.

    Example:
        >>> from thaw.cli.options import import_keras
        >>> import_keras()
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    has_home = os.path.expanduser("~") != "~"
    sys.stderr.flush()
    saved = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        if not has_home:  # TensorFlow would create a folder with the name ~
            os.environ["HOME"] = tempfile.gettempdir()
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    finally:
        if not has_home:
            os.environ.pop("HOME", None)
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


def require_data(path):
    """Refuse data that do not exist, before Keras is imported."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder of images or texts, or a table.")


def open_backbone(name, weights, preprocessing="auto", *, head=False, image_size=None):
    """Open the backbone of ``--model``, ``--weights``, ``--preprocessing`` and ``--image-size``.

    Without its head it is meant for images, and one that takes none is refused before any image is read.
    """
    from thaw.models.loading import is_model_file, model_format

    if is_model_file(name):
        model_format(Path(name))  # a missing file is refused before Keras is imported
    import_keras()
    from thaw.models.backbone import backbone, input_size

    shape = None if image_size is None else (image_size, image_size, 3)
    weights = None if weights == "none" else weights
    model = backbone(name, weights=weights, head=head, input_shape=shape, preprocessing=preprocessing)
    if not head:
        input_size(model, name)
    return model


def open_images(data, image_size, seed, max_bad=0.05):
    """Read the images at a path, and report the notes on them."""
    from thaw.data.images import load_images
    from thaw.runs.open_data import show_notes
    from thaw.training.progress import count_progress

    with count_progress() as progress:
        splits = load_images(data, image_size=image_size, seed=seed, max_bad=max_bad, progress=progress)
    show_notes(splits, report, f"thaw check {data} lists them")
    return splits
