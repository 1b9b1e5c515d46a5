"""``thaw tune --from RUN``: go on with the model of an earlier run."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from thaw import Plan


def write(path, columns):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values())])
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """``old.csv`` with two columns, and ``new.csv`` with one more column and one more town."""
    place, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)

    def table(n, towns):
        columns = {"size": rng.normal(size=n).round(3), "town": rng.choice(towns, n)}
        columns["sold"] = np.where(columns["size"] + (columns["town"] == "Ulm") > 0.5, "yes", "no")
        return columns

    write(place / "old.csv", table(400, ["Ulm", "Bonn"]))
    write(place / "new.csv", table(80, ["Ulm", "Bonn", "Kiel"]) | {"age": rng.integers(0, 50, 80)})
    return place


def test_a_table_with_more_columns_goes_on_from_a_run(tables, thaw, tmp_path):
    code, _, err = thaw("tune", tables / "old.csv", "--label", "sold", "--epochs", 25, "-o", tmp_path / "old")
    assert code == 0, err
    # At a rate of nearly zero it still predicts what the earlier model did.
    same = ("--learning-rate", 1e-12, "--epochs", 1, "-o", tmp_path / "new", "--json")
    code, out, err = thaw("tune", tables / "new.csv", "--from", tmp_path / "old", *same)  # which says the label
    assert code == 0, err
    predicted = []
    for run in ("old", "new"):
        code, out, err = thaw("predict", tmp_path / run, tables / "new.csv", "--json")
        assert code == 0, err
        predicted.append([row["probability"] for row in json.loads(out)])
    np.testing.assert_allclose(predicted[0], predicted[1], atol=1e-5)
    config = (tmp_path / "new/config.toml").read_text()
    assert 'from_run = "../old"' in config
    code, _, err = thaw("tune", tables / "new.csv", "--config", tmp_path / "new/config.toml", "-o", tmp_path / "again")
    assert code == 0, err
    hashes = [json.loads((tmp_path / r / "manifest.json").read_text())["weights_sha256"] for r in ("new", "again")]
    assert hashes[0] == hashes[1]


def test_images_with_one_class_more_go_on_from_a_run(small_place, thaw, tmp_path):
    options = ("-m", small_place / "small.keras", "-p", "probe")
    code, _, err = thaw("tune", small_place / "photos", *options, "-o", tmp_path / "old")
    assert code == 0, err
    rng = np.random.default_rng(1)
    for label, level in (("dark", 100), ("light", 150), ("night", 10)):
        (tmp_path / "more" / label).mkdir(parents=True)
        for i in range(16):
            pixels = np.clip(rng.normal(level, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "more" / label / f"{i}.png")
    options = ("--from", tmp_path / "old", "--epochs", 1, "--head-epochs", 1, "--l2-sp", 0.01, "-o", tmp_path / "new")
    code, _, err = thaw("tune", tmp_path / "more", *options)
    assert code == 0, err
    assert [phase.l2_sp for phase in Plan.load(tmp_path / "new/plan.toml")] == [0, 0.01]
    code, _, err = thaw("tune", tmp_path / "more", "--config", tmp_path / "new/config.toml", "-o", tmp_path / "again")
    assert code == 0, err
    hashes = [json.loads((tmp_path / r / "manifest.json").read_text())["weights_sha256"] for r in ("new", "again")]
    assert hashes[0] == hashes[1]
    assert json.loads((tmp_path / "new/labels.json").read_text()) == ["dark", "light", "night"]
    metrics = json.loads((tmp_path / "new/metrics.json").read_text())
    assert metrics["retention"]["score"] == "agreement"  # of the earlier head, which is the source task now


def test_numbers_go_on_and_no_forgetting_is_claimed_of_them(small_place, thaw, tmp_path):
    rows = [f"{path},{i % 7}" for i, path in enumerate(sorted((small_place / "photos").rglob("*.png")))]
    (tmp_path / "table.csv").write_text("image,stars\n" + "\n".join(rows) + "\n")
    asked = ("--task", "regression", "--label", "stars")
    old = ("-m", small_place / "small.keras", "-p", "probe", *asked, "-o", tmp_path / "old")
    code, _, err = thaw("tune", tmp_path / "table.csv", *old)
    assert code == 0, err
    new = ("--from", tmp_path / "old", "--epochs", 1, "--head-epochs", 1, "-o", tmp_path / "new", "--json")
    code, out, err = thaw("tune", tmp_path / "table.csv", *new)
    assert code == 0, err
    metrics = json.loads(out)
    assert "retention" not in metrics
    assert any("predicts numbers" in note for note in metrics["notes"])


def test_the_tuned_model_of_a_blend_goes_on():
    import keras

    from thaw.models.blends import blend_models
    from thaw.models.continuation import last_of_blend

    entry = keras.Input((4,))
    models = [keras.Model(entry, keras.layers.Dense(3, "softmax")(entry)) for _ in range(2)]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    last = last_of_blend(blend_models(models, [0.3, 0.7]))
    np.testing.assert_allclose(last.predict(x, verbose=0), models[1].predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "nowhere"), "There is no folder nowhere"),
        (("--from", "RUN", "-m", "minilm"), "model was given, and the earlier run says it"),
        (("--from", "RUN", "--columns", "size"), "columns was given, and the earlier run says it"),
        (("--from", "RUN", "--text", "town"), "is a run on images, and the data are texts"),
    ],
)
def test_what_cannot_go_on_is_refused_in_a_sentence(tables, small_place, thaw, tmp_path, options, said):
    if "RUN" in options:
        probe = ("-m", small_place / "small.keras", "-p", "probe", "-o", tmp_path / "RUN")
        assert thaw("tune", small_place / "photos", *probe)[0] == 0
    options = [tmp_path / "RUN" if option == "RUN" else option for option in options]
    code, out, err = thaw("tune", tables / "new.csv", "--label", "sold", *options, "-o", tmp_path / "new")
    assert code == 2
    assert out == ""
    assert said in err
    assert not (tmp_path / "new").exists()
