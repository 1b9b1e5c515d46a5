"""``thaw tune`` and what follows it, for texts and for the rows of a table."""

import csv
import json

import numpy as np
import pytest

ABOUT = {
    "sea": ["waves", "ships", "harbour", "salt water", "the tide", "an island", "sailors", "a lighthouse"],
    "kitchen": ["soup", "an oven", "fresh bread", "a recipe", "the stove", "butter", "a frying pan", "spices"],
}
ASKED = ["We read about {}.", "A book on {} again?", "Tell me of {}", "It was {} that we saw"]


def write(path, names, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def read(path):
    return csv.DictReader(path.read_text().splitlines())


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A table of sentences on two subjects, and their length as a number."""
    rows = [(form.format(thing), about) for about, things in ABOUT.items() for thing in things for form in ASKED]
    rows = [(text, about, len(text), "|".join([about, *["long"] * (len(text) > 22)])) for text, about in rows]
    return write(tmp_path_factory.mktemp("texts") / "books.csv", ("body", "subject", "letters", "tags"), rows)


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    """The wines of scikit-learn, with names and a gap in each column."""
    from sklearn.datasets import load_wine

    found = load_wine()
    rows = [[*map(str, row), ("barolo", "grignolino", "barbera")[y]] for row, y in zip(found.data, found.target)]
    for i in range(13):
        rows[10 * i][i] = ""
    return write(tmp_path_factory.mktemp("wine") / "wine.csv", (*found.feature_names, "grape"), rows)


@pytest.fixture(scope="module")
def text_run(texts, tmp_path_factory):
    from thaw import tune

    folder = tmp_path_factory.mktemp("runs") / "books"
    return tune(texts, folder, text="body", label="subject", plan="probe", features="last", verbose=0)


def test_tune_texts_from_a_table_predict_and_evaluate(texts, text_run, thaw, tmp_path):
    assert text_run.metrics["accuracy"]["value"] > 0.8
    code, out, err = thaw("predict", text_run.folder, texts, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found[0]["row"] == "books.csv, row 1"
    assert len(found) == 64
    right = np.mean([p["label"] == row["subject"] for p, row in zip(found, read(texts))])
    assert right > 0.9
    (tmp_path / "one.txt").write_text("The ships came back with the tide")
    write(tmp_path / "two.csv", ["id", "body"], [[1, "Bake it in an oven"], [2, ""]])
    code, out, err = thaw("predict", text_run.folder, tmp_path / "one.txt", tmp_path / "two.csv", "--json")
    assert code == 1
    assert "two.csv, row 2: is empty" in err
    assert [p.get("label") for p in json.loads(out)] == ["sea", "kitchen", None]
    code, out, _ = thaw("predict", text_run.folder, "The ships in the harbour, and " + "sailors " * 99)
    assert code == 0
    assert "sea" in out
    code, _, err = thaw("predict", text_run.folder, "boks.csv")
    assert code == 2
    assert "boks.csv is no file" in err
    code, out, err = thaw("predict", text_run.folder, tmp_path / "one.txt", tmp_path / "gone.txt", "--json")
    assert code == 1
    assert [("label" in row, "error" in row) for row in json.loads(out)] == [(True, False), (False, True)]
    assert thaw("predict", text_run.folder, "new reviews.csv")[0] == 2
    code, out, _ = thaw("evaluate", text_run.folder, texts, "--json")
    assert json.loads(out)["accuracy"]["value"] == pytest.approx(right)


def test_the_run_of_texts_opens_again_and_predicts_what_its_model_does(texts, text_run, thaw):
    from thaw import open_run
    from thaw.data.text import load_text

    run = open_run(text_run.folder)
    said = ["A lighthouse", "Spices and butter"]
    found = run.predict(said)
    splits = load_text(texts, text="body", label="subject")
    pieces = np.zeros((2, splits.train.x.shape[1]), "int32")
    for row, text in zip(pieces, said):
        row[: len(ids)] = (ids := splits.tokenizer.encode(text).ids)
    p = run.model.predict(pieces, verbose=0)
    assert [row["label"] for row in found] == ["sea", "kitchen"]
    np.testing.assert_allclose([row["probability"] for row in found], p.max(axis=1), rtol=1e-5)
    assert run.config["model"] == "minilm"
    with pytest.raises(ValueError, match="views=2 is for images, and the run is on texts"):
        run.predict(said, views=2)


def test_the_config_of_a_run_of_texts_repeats_it_and_several_labels_are_learned(texts, thaw, tmp_path):
    """Texts with numbers are looked at in tests/data/test_text.py."""
    options = ("--text", "body", "--label", "tags", "--task", "multilabel", "-p", "probe", "--features", "last")
    code, out, err = thaw("tune", texts, *options, "-o", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["macro_f1"]["value"] > 0.5
    code, _, err = thaw("tune", texts, "--config", tmp_path / "run" / "config.toml", "-o", tmp_path / "again")
    assert code == 0, err
    hashes = [json.loads((tmp_path / f / "manifest.json").read_text())["weights_sha256"] for f in ("run", "again")]
    assert hashes[0] == hashes[1]


def test_tune_a_folder_of_text_files(thaw, tmp_path):
    for about, things in ABOUT.items():
        (tmp_path / "data" / about).mkdir(parents=True)
        for i, thing in enumerate(things * 3):
            (tmp_path / "data" / about / f"{i}.txt").write_text(ASKED[i // 8].format(thing))
    options = ("-p", "probe", "--features", "last")
    code, out, err = thaw("tune", tmp_path / "data", "-o", tmp_path / "run", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"]["value"] > 0.8


def test_tune_a_table_beside_gradient_boosting(wine, thaw, tmp_path):
    code, out, err = thaw("tune", wine, "--label", "grape", "--epochs", 20, "-o", tmp_path / "run", "--json")
    assert code == 0, err
    assert "destroys pre-trained features" not in err
    assert "What is forgotten" not in err
    metrics = json.loads(out)
    assert metrics["accuracy"]["value"] > 0.8
    difference = metrics["gradient_boosting"]["accuracy_difference"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert any("that of gradient boosting" in note for note in metrics["notes"])
    code, out, err = thaw("predict", tmp_path / "run", wine)
    assert code == 0
    assert "wine.csv, row 178" in out
    code, out, err = thaw("evaluate", tmp_path / "run", wine, "--json")
    assert json.loads(out)["accuracy"]["value"] > 0.85


def test_the_model_of_a_table_takes_frames_and_says_which_column_is_missing(thaw, tmp_path):
    import pandas

    from thaw import open_run, tune

    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"size": rng.normal(size=300), "town": rng.choice(["Ulm", "Bonn"], 300)})
    frame["price"] = 3 * frame["size"] + 2 * (frame["town"] == "Ulm") + rng.normal(0, 0.1, 300)
    run = tune(frame, tmp_path / "run", label="price", epochs=30, verbose=0)
    assert run.metrics["rmse"]["value"] < run.metrics["baseline"] / 2
    assert "rmse_difference" in run.metrics["gradient_boosting"]
    found = open_run(tmp_path / "run").predict(frame[["size", "town"]][:3])
    assert [row["row"] for row in found] == ["the table, row 1", "the table, row 2", "the table, row 3"]
    assert found[0]["low"] < found[0]["prediction"] < found[0]["high"]
    assert run.evaluate(frame)["rmse"]["value"] < run.metrics["baseline"] / 2
    with pytest.raises(ValueError, match="no column 'town'"):
        run.predict({"size": [1.0]})
    write(tmp_path / "new.csv", ["size", "town"], [[0.5, "Paris"]])  # a town that it has never seen
    assert len(run.predict(tmp_path / "new.csv")) == 1


def test_the_kinds_of_columns_can_be_said(tmp_path):
    from thaw import tune

    rng = np.random.default_rng(0)
    table = {"zip": rng.integers(0, 3, 90).tolist(), "size": rng.normal(size=90).tolist(), "junk": list(range(90))}
    table["label"] = ["yes" if z == 1 else "no" for z in table["zip"]]
    said = {"zip": "category", "junk": "ignored"}
    run = tune(table, tmp_path / "run", columns=said, epochs=2, verbose=0)
    assert [(column.name, column.kind) for column in run.input.columns] == [("zip", "category"), ("size", "number")]


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_texts_of_other_frames_are_texts(library):
    frames = pytest.importorskip(library)
    from thaw.runs.open_data import find_input

    make = frames.table if library == "pyarrow" else frames.DataFrame
    assert find_input(make({"text": ["a"], "label": ["b"]})) == "text"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--text", "body", "--label", "subject", "--flips", "both"),
            "flips='both' is for images, and the data are texts",
        ),
        (("--text", "body", "--columns", "letters", "--label", "subject"), "text and columns were given"),
        (("--text", "nothing", "--label", "subject"), "has no column 'nothing'"),
        (("--text", "body"), "has no column 'label'"),
        (("--text", "body", "--label", "subject", "-m", "ResNet50"), "model='ResNet50' does not read texts"),
        (("--text", "body", "--label", "subject", "--max-length", 7), "max_length=7; expected one of 32, 64, 128, 256"),
        (
            ("--text", "body", "--label", "subject", "--time", "day"),
            "time names a column of a table, and the data are texts",
        ),
        (("--columns", "letters", "--label", "subject", "-p", "probe"), "plan='probe' is for pre-trained models"),
        (("--columns", "letters", "--label", "subject", "--folds", 3), "folds is for pre-trained models"),
        (("--columns", "letters", "--label", "subject", "-m", "minilm"), "a table has a model of its own"),
        (("--columns", "letters", "--label", "price"), "has no column 'price'"),
        (("--columns", "nothing", "--label", "subject"), "columns names 'nothing'"),
    ],
)
def test_tune_refuses_what_the_data_have_no_use_for(texts, thaw, tmp_path, options, said):
    code, out, err = thaw("tune", texts, *options, "-o", tmp_path / "run")
    assert (code, out) == (2, "") or (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_check_reads_texts_and_tables(texts, wine, thaw):
    code, out, _ = thaw("check", texts, "--text", "body", "--label", "subject")
    assert code == 0
    assert "Texts are padded to 32 pieces" in out
    code, out, _ = thaw("check", wine, "--label", "grape")
    assert code == 0
    assert "178 rows of 3 classes" in out


def test_advise_measures_what_to_tune_for_texts_and_refuses_tables(texts, wine, thaw):
    options = ("--text", "body", "--label", "subject", "--minutes", 0.2, "--json")
    code, _out, err = thaw("advise", texts, *options)
    assert code in (0, 2), err
    if code:
        assert "too few for advice" in err
    code, _, err = thaw("advise", wine, "--label", "grape")
    assert code == 2
    assert "that of a table starts from random weights" in err
