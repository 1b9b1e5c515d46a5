"""What several commands share: their options, and the backbone and the pictures that those name."""

import math
from pathlib import Path
from typing import Annotated

import typer

from thaw.printing import say


def above_zero(value: float | None):
    """Refuse a number of minutes that cannot be meant, before anything is read."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} was given; expected a number above 0.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A backbone's name, or a .keras or .h5 file.")]
Weights = Annotated[str, typer.Option(help='"imagenet", "none" for random, or a file.')]
Preprocessing = Annotated[
    str, typer.Option(help="How pixels are scaled before a model file that does not: none, -1..1, 0..1, caffe, torch.")
]
Size = Annotated[
    int | None, typer.Option(min=8, help="Side in pixels that pictures are brought to; 224, or as a model file has it.")
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures in a batch.")]
PlanName = Annotated[
    str, typer.Option("--plan", "-p", help="auto, probe, probe_then_tune, gradual, full, or a .toml file.")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        callback=above_zero, help="Minutes of trials, for advice; if not given as many as tuning takes, 1 to 5."
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Epochs of each phase that moves the backbone; twice as many from random weights."),
]
HeadEpochs = Annotated[int | None, typer.Option(min=1, help="Epochs of the head alone.")]
Rate = Annotated[
    float | None, typer.Option(help="Peak learning rate of what moves the backbone; advice then tries no other.")
]
Data = Annotated[
    Path, typer.Argument(help="A folder that holds a folder of pictures for each class, or a CSV file image,label.")
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same data, same machine: same bits.")]
Flips = Annotated[str, typer.Option(help="Augment by mirroring: horizontal, vertical, both or none.")]
MaxBad = Annotated[float, typer.Option(help="Leave bad files out, but refuse when they are more than this share.")]


def open_backbone(name, weights, preprocessing="auto", *, head=False, image_size=None):
    """The backbone that ``--model``, ``--weights``, ``--preprocessing`` and ``--image-size`` name.

    Without its head it is meant for pictures, and one that takes none is refused before any is read.
    """
    from thaw.backbones.backbone import backbone
    from thaw.jobs.picture_size import picture_size

    shape = None if image_size is None else (image_size, image_size, 3)
    weights = None if weights == "none" else weights
    found = backbone(name, weights=weights, head=head, input_shape=shape, preprocessing=preprocessing)
    if not head:
        picture_size(found, name)
    return found


def open_pictures(data, image_size, seed, max_bad=0.05):
    """The pictures at a path; what there is to say about them is said."""
    from thaw.data.images import images
    from thaw.progress import counting

    with counting() as progress:
        pictures = images(data, image_size=image_size, seed=seed, max_bad=max_bad, progress=progress)
    for note in pictures.notes:
        say(note)
    for bad in pictures.quarantine[:10]:
        say(f"left out: {bad.path} {bad.reason}")
    if len(pictures.quarantine) > 10:
        say(f"left out: {len(pictures.quarantine) - 10} more; thaw check {data} lists them")
    return pictures
