"""Commands that look before anything is tuned, and that compare, as a person meets them."""

import json
import re

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from thaw.cli.main import main


@keras.saving.register_keras_serializable("thaw-tests-inspect")
class Seen(layers.Layer):
    """Pass everything on, and note where it is trained; may interrupt there."""

    trained, interrupts = [], False

    def call(self, x, training=None):
        if training and self.trainable:
            Seen.trained.append(self.name)
            if Seen.interrupts:
                raise KeyboardInterrupt
        return x


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Bright and dark pictures, and two small backbones as somebody's files: one that sees, one that is blind."""
    place = tmp_path_factory.mktemp("measuring")
    rng = np.random.default_rng(0)
    for label, level in (("dark", 90), ("light", 150)):
        (place / "photos" / label).mkdir(parents=True)
        for i in range(50):
            pixels = np.clip(rng.normal(level, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "photos" / label / f"{i}.png")
    for name, scale in (("sees", 1.0), ("blind", 0.0)):
        keras.utils.set_random_seed(1)
        entry = keras.Input((16, 16, 3))
        x = layers.Rescaling(1 / 255)(entry)
        for stage, filters in enumerate((4, 6), 1):
            x = layers.ReLU()(layers.Conv2D(filters, 3, 2, padding="same")(x))
            x = Seen(name=f"seen{stage}")(x)
        model = keras.Model(entry, x, name=name)
        model.set_weights([w * scale for w in model.get_weights()])
        model.save(place / f"{name}.keras")
    x = Seen(name="seen1")(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(entry)))
    keras.Model(entry, x, name="shallow").save(place / "shallow.keras")
    keras.Sequential([keras.Input((24, 24, 3)), layers.Rescaling(1.0), layers.Conv2D(3, 3)]).save(place / "other.keras")
    return place


def thaw(capsys, *arguments):
    """Exit code, and what was said to stdout and to stderr."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, *capsys.readouterr()


def test_probe(place, capsys):
    code, out, err = thaw(capsys, "probe", place / "photos", "-m", place / "sees.keras")
    assert code == 0
    assert "2 classes" in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["stage1", "stage2"]
    assert max(map(len, out.splitlines())) <= 80
    assert "Cross-validated on the training images" in err
    code, out, _ = thaw(capsys, "probe", place / "photos", "-m", place / "sees.keras", "--most", "40", "--json")
    found = json.loads(out)
    assert found["examples"] == 40
    assert found["best"] in ("stage1", "stage2")
    score = found["rows"][0]["score"]
    assert score["low"] <= score["value"] <= score["high"]
    assert "errors" not in found["rows"][0]


def test_rank(place, capsys):
    models = ["-m", place / "blind.keras", "-m", place / "sees.keras"]
    code, out, err = thaw(capsys, "rank", place / "photos", *models)
    assert code == 0
    assert out.splitlines()[1].split("keras")[0].endswith("sees.") or "…" in out.splitlines()[1]
    assert "take the smaller network" in err
    code, out, _ = thaw(capsys, "rank", place / "photos", *models, "--json")
    sees, blind = json.loads(out)
    assert sees["name"].endswith("sees.keras")
    assert blind["logme"] is None or blind["logme"] < sees["logme"]  # features that are all 0: minus infinity
    assert sees["parameters"] == 4 * 27 + 4 + 6 * 36 + 6


def test_rank_wants_models_of_one_size(place, capsys):
    code, _, err = thaw(capsys, "rank", place / "photos", "-m", place / "sees.keras", "-m", place / "other.keras")
    assert code == 2
    assert "takes images of side 24, and another model of side 16; expected one size" in err
    for models in (["-m", "a.keras"], ["-m", "a.keras", "-m", "a.keras"]):
        code, _, err = thaw(capsys, "rank", place / "photos", *models)
        assert code == 2
        assert "expected two or more that differ" in err


@pytest.mark.slow
def test_find_rate_trains_the_head_first(place, capsys):
    Seen.trained.clear()
    ended, out, _ = thaw(capsys, "find-rate", place / "photos", "-m", place / "shallow.keras", "--json")
    found = json.loads(out)
    assert ended == (0 if found["suggestion"] else 1)
    assert set(Seen.trained) == {"seen1"}  # two stages, and at most all
    assert len(found["rates"]) == 100
    assert [len(row) for row in found["losses"]] == [100] * 3
    # A head of zeros would give every class the same probability, and nothing below it would learn.
    assert not np.allclose([row[0] for row in found["losses"]], np.log(2), atol=1e-5)


@pytest.mark.slow
def test_find_rate_says_in_words_and_by_its_exit_code_what_it_found(place, capsys):
    Seen.trained.clear()
    ended, out, err = thaw(capsys, "find-rate", place / "photos", "-m", place / "sees.keras", "--train", "1")
    assert set(Seen.trained) == {"seen2"}
    assert re.search(r"head alone.*\n(.*\n)*range test: 300 steps\nabout \d+ s\n", err), err  # it may take minutes
    assert ("There is no clear suggestion" in out, "Suggested" in out) == (ended == 1, ended == 0)


def test_find_rate_of_all_stages_begins_with_the_lowest(place, capsys, monkeypatch):
    monkeypatch.setattr(Seen, "interrupts", True)
    Seen.trained.clear()
    assert thaw(capsys, "find-rate", place / "photos", "-m", place / "sees.keras", "--train", "all")[0] == 130
    assert Seen.trained == ["seen1"]


def test_find_rate_refuses_stages_that_do_not_exist(place, capsys):
    code, _, err = thaw(capsys, "find-rate", place / "photos", "-m", place / "sees.keras", "--train", "most")
    assert code == 2
    assert "--train is 'most'; expected head, all, or a number" in err
    code, _, err = thaw(capsys, "find-rate", place / "photos", "-m", place / "sees.keras", "--train", "7")
    assert code == 2
    assert "asks for 7 stages below the head" in err


@pytest.mark.slow
def test_compare(place, capsys, monkeypatch):
    arguments = ("compare", place / "photos", "-m", place / "sees.keras", "--minutes", "0.05", "--seeds", "1")
    code, out, err = thaw(capsys, *arguments)
    assert code == 0
    names = ("frozen features", "top stage", "whole network", "from scratch")
    assert sorted(line[:15].strip() for line in out.splitlines()[1:5]) == sorted(names)
    assert max(map(len, out.splitlines())) <= 80
    assert "4 ways, once 3 s of training each: 12 s in all, or more" in err
    assert re.search(r"1 of 4: frozen features, seed 0, \d+ epoch", err)
    assert "epoch   1" not in err
    assert "rests on one seed" in " ".join(out.split())  # wherever the line is broken
    one_stage = ("compare", place / "photos", "-m", place / "shallow.keras", "--minutes", "0.005", "--seeds", "1")
    monkeypatch.setattr(Seen, "interrupts", True)  # once the backbone is to be trained: enough was said
    code, out, err = thaw(capsys, *one_stage)
    assert code == 130
    assert "3 ways, once 0 s of training each: 1 s in all, or more" in err
    assert "1 of 3: frozen features" in err
    code, _, err = thaw(capsys, "compare", place / "photos", "-m", place / "sees.keras", "--minutes", "0")
    assert code == 2
    assert "'--minutes': 0 was given; expected a number above 0. See thaw compare --help." in err
