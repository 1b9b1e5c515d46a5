"""Small images and a small backbone for the tests of the command line."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def small_place(tmp_path_factory):
    """A folder with ``photos`` of a dark and a light class, ``table.csv`` of them, and ``small.keras``."""
    import keras
    from keras import layers

    place, rng, rows = tmp_path_factory.mktemp("small"), np.random.default_rng(0), []
    for label, level in (("dark", 100), ("light", 150)):
        (place / "photos" / label).mkdir(parents=True)
        for i in range(40):
            pixels = np.clip(rng.normal(level, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "photos" / label / f"{i}.png")
            rows.append(f"photos/{label}/{i}.png,{label},lot{i % 8},2024-01-{1 + i % 28:02}")
    (place / "table.csv").write_text("image,label,lot,day\n" + "\n".join(rows) + "\n")
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(x)
    for filters in (4, 6):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.Dropout(0.1)(layers.ReLU()(layers.BatchNormalization()(x)))
    keras.Model(inputs, x).save(place / "small.keras")
    return place


@pytest.fixture
def thaw(capsys):
    """Run a command in this process; returns its exit code, and what it wrote to stdout and stderr."""
    from thaw.cli.main import main

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return run
