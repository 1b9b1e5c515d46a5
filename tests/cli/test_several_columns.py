"""``thaw tune --image --text --numbers``: several columns of a row under one solved head."""

import csv
import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def goods(tmp_path_factory):
    """A table of things: the picture says half of what the class is, the price the other half."""
    place, rng, rows = tmp_path_factory.mktemp("goods"), np.random.default_rng(0), []
    for i in range(72):
        bright, dear = i % 2, i // 2 % 2
        pixels = np.clip(rng.normal(60 + 120 * bright, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
        title = f"{('lamp', 'bulb')[dear]} number {i}"
        rows.append([f"{i}.png", title, round(5 + 20 * dear + rng.normal(), 2), f"{bright}{dear}"])
    with open(place / "goods.csv", "w", newline="") as file:
        csv.writer(file).writerows([["photo", "title", "price", "kind"], *rows])
    return place / "goods.csv"


def test_tune_on_two_columns_takes_both_where_each_says_half(goods, thaw, tmp_path):
    options = ("--image", "photo", "--numbers", "price", "--label", "kind", "--image-size", 32)
    code, out, err = thaw("tune", goods, *options, "-o", tmp_path / "run", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    scores = {score["name"]: score for score in metrics["columns"]}
    assert {"image", "numbers"} < set(scores)
    [chosen] = [score for score in metrics["columns"] if score["chosen"]]
    assert chosen["name"].startswith("all")
    assert chosen["log_loss"] < min(scores["image"]["log_loss"], scores["numbers"]["log_loss"])
    assert "column" in err
    assert "chosen" in err
    code, out, err = thaw("predict", tmp_path / "run", goods, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found[71]["row"] == "goods.csv, row 72"
    truth = [row["kind"] for row in csv.DictReader(goods.read_text().splitlines())]
    right = np.mean([row["label"] == kind for row, kind in zip(found, truth)])
    assert right > 0.9
    code, out, err = thaw("evaluate", tmp_path / "run", goods, "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"]["value"] == pytest.approx(right)
    lines = goods.read_text().replace("\n0.png", "\nnowhere.png")
    (goods.parent / "bad.csv").write_text(lines)
    code, out, err = thaw("predict", tmp_path / "run", goods.parent / "bad.csv")
    assert code == 1
    assert "bad.csv, row 1: has the image" in err
    assert "nowhere.png, which cannot be read" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--image", "photo"), "name columns that are used together; give two of them or more"),
        (("--image", "photo", "--text", "title", "--columns", "price"), "and no columns"),
        (("--image", "photo", "--text", "title", "-p", "full"), "plan is for one kind of input"),
        (("--image", "photo", "--text", "title", "--flips", "both"), "flips='both' is for images"),
        (("--image", "picture", "--text", "title"), "no column 'picture'"),
        (("--image", "photo", "--text", "title", "--optimizer", "sgd"), "optimizer is for one kind of input"),
        (("--image", "photo", "--numbers", "weight"), "'weight'"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(goods, thaw, tmp_path, options, said):
    code, out, err = thaw("tune", goods, *options, "--label", "kind", "-o", tmp_path / "run")
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
