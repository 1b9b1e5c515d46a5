"""load_text: tables and folders of texts, good and bad, and what is said about them."""

import json
import sys

import numpy as np
import pytest

from thaw import fine_tune, freeze, precompute, probe, stages_of
from thaw.data.minilm_files import minilm_file
from thaw.data.text import LENGTHS, load_text, load_tokenizer
from thaw.data.text_checks import check_texts, misread, note_foreign
from thaw.data.text_files import read_texts
from thaw.plan import Phase, Plan

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "##s", ".", "a", "##b", "##c"]
PIECES += [str(n) for n in range(10)] + [f"##{n}" for n in range(10)]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES))
    return path


def rows(n=40):
    """Texts of two classes, all different."""
    return [(f"{('good', 'bad')[i % 2]} films. {i}", ("up", "down")[i % 2]) for i in range(n)]


def write(path, header, cells, separator=","):
    path.write_text("\n".join(separator.join(line) for line in [header, *cells]) + "\n")
    return path


def notes(splits, *words):
    """The notes that hold all of these words."""
    return [note for note in splits.notes if all(word in note for word in words)]


def all_rows(splits):
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])


def test_pieces_are_those_of_the_published_tokenizer(vocabulary):
    """Beside it, the class of the package that builds a BERT tokenizer, and pieces written by hand."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = [
        "Thawing naïve CAFÉS, don't!",
        "日本 2024-05-31\tx\u00a0y",
        "",
        "<b>&amp;</b> \u200b",
        "unaffable" * 30,
    ]
    theirs = tokenizers.BertWordPieceTokenizer(str(minilm_file("vocab.txt")), lowercase=True)
    ours = load_tokenizer()
    for text in texts:
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert 102 not in ours.encode("a [SEP] in a text").ids[1:-1]  # what is written is never a sign of the model
    assert ours.encode("The girl is carrying a baby.").ids == [101, 1996, 2611, 2003, 4755, 1037, 3336, 1012, 102]
    assert load_tokenizer(vocabulary).encode("Good films.").tokens == ["[CLS]", "good", "film", "##s", ".", "[SEP]"]


def test_a_saved_tokenizer_is_the_same(vocabulary, tmp_path):
    tokenizer = load_tokenizer(vocabulary)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode("good bad 12").ids == tokenizer.encode("good bad 12").ids
    tokenizer.enable_truncation(3)
    assert len(load_tokenizer(tokenizer).encode("good bad good bad").ids) == 6
    assert len(tokenizer.encode("good bad good bad").ids) == 3  # the caller's own stays as it is


def test_tokenizers_that_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="no file of a tokenizer"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "words.txt").write_text("the\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(ValueError, match=r"Piece 0 of the tokenizer is 'the'; expected \[PAD\]"):
        load_tokenizer(tmp_path / "words.txt")
    (tmp_path / "plain.txt").write_text("[PAD]\n[UNK]\nthe\n")
    with pytest.raises(ValueError, match=r"no pieces \[CLS\] and \[SEP\]"):
        load_tokenizer(tmp_path / "plain.txt")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "keras-thaw\[text\]"'):
        load_tokenizer()


def test_one_data_set_in_many_formats(tmp_path, vocabulary):
    found = {}
    for name, separator in (("a.csv", ","), ("b.tsv", "\t"), ("c.csv", ";")):
        path = write(tmp_path / name, ["text", "label"], rows(), separator)
        found[name] = load_text(path, tokenizer=vocabulary)
    lines = [json.dumps({"text": text, "label": label, "n": i}) for i, (text, label) in enumerate(rows())]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    found["d"] = load_text(tmp_path / "d.jsonl", tokenizer=vocabulary)
    found["e"] = load_text({"review": [t for t, _ in rows()], "stars": [s for _, s in rows()]}, tokenizer=vocabulary)
    for i, (text, label) in enumerate(rows()):
        file = tmp_path / "folder" / label / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found["f"] = load_text(tmp_path / "folder", tokenizer=vocabulary)
    expected = sorted(map(tuple, all_rows(found["a.csv"])[0].tolist()))
    for splits in found.values():
        assert splits.labels == ("down", "up")
        x, y = all_rows(splits)
        assert sorted(map(tuple, x.tolist())) == expected
        assert [row[1] for row in x] == [PIECES.index(("bad", "good")[label]) for label in y]
    # The same contents are divided the same way, wherever they lie.
    assert len({part.train.content_keys.sum() for part in found.values()}) == 1
    assert found["d"].notes[0] == "Columns of d.jsonl that are not used: n."
    assert found["e"].notes[0].endswith("taken under another name: 'review' for text, 'stars' for label.")
    assert found["f"].files["train"][0].endswith(".txt")


def test_parquet(tmp_path, vocabulary):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows(), columns=["text", "label"])
    assert len(all_rows(load_text(frame, tokenizer=vocabulary))[0]) == 40
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "t.parquet")
    assert len(all_rows(load_text(tmp_path / "t.parquet", tokenizer=vocabulary))[0]) == 40


def test_the_result_is_that_of_the_seed(tmp_path, vocabulary):
    path = write(tmp_path / "t.csv", ["text", "label"], rows())
    one, same, other = (load_text(path, tokenizer=vocabulary, seed=seed) for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    more = load_text(write(tmp_path / "more.csv", ["text", "label"], rows(60)), tokenizer=vocabulary)
    # Rows that are added move no others.
    assert set(map(tuple, one.test.x.tolist())) <= set(map(tuple, more.test.x.tolist()))


@pytest.mark.parametrize(("words", "expected"), [(7, 32), (30, 32), (31, 64), (100, 128), (200, 256)])
def test_the_length_is_the_smallest_that_fits(tmp_path, vocabulary, words, expected):
    cells = rows(20) + [(" ".join(["bad"] * words), "down")]
    splits = load_text(write(tmp_path / "t.csv", ["text", "label"], cells), tokenizer=vocabulary, max_length=256)
    x, _ = all_rows(splits)
    assert x.dtype == np.int32
    assert x.shape[1] == expected
    assert (x != 0).sum(1).max() == words + 2
    assert notes(splits, f"padded to {expected} pieces; the longest has {words + 2}, and none is cut off")


def test_long_texts_are_cut_and_counted(tmp_path, vocabulary):
    cells = rows(20) + [(" ".join(["bad"] * n), "down") for n in (31, 40)]
    path = write(tmp_path / "t.csv", ["text", "label"], cells)
    splits = load_text(path, tokenizer=vocabulary, max_length=32)
    x, _ = all_rows(splits)
    assert x.shape[1] == 32
    assert sorted((x != 0).sum(1))[-2:] == [32, 32]
    assert set(x[(x != 0).all(1)][:, -1]) == {PIECES.index("[SEP]")}  # the end stays
    assert notes(splits, "the longest has 42, and 2 of 22 are cut off (max_length=64 takes more)")
    assert LENGTHS == (32, 64, 128, 256)
    with pytest.raises(ValueError, match="max_length=100; expected one of 32, 64, 128, 256 pieces"):
        load_text(path, tokenizer=vocabulary, max_length=100)


def test_given_splits_and_a_text_in_two_of_them(tmp_path, vocabulary):
    cells = [(*row, "train") for row in rows()] + [("good FILMS.  4", "up", "test"), ("bad a", "down", "test")]
    splits = load_text(write(tmp_path / "t.csv", ["text", "label", "split"], cells), tokenizer=vocabulary)
    assert len(splits.test) == 2
    assert len(splits.train) + len(splits.validation) == 39
    (left_out,) = splits.rejected
    assert str(left_out) == "t.csv, row 5 is in train the same text as in test, which is used"
    assert notes(splits, "left out, because they are in another split too: 1")
    assert notes(splits, "Validation is cut from train")


def test_near_duplicates_share_a_split(tmp_path, vocabulary):
    cells = [
        (f"{text[: -len(str(i))]}{mark} {i}", label) for i, (text, label) in enumerate(rows()) for mark in ("", " ...")
    ]
    splits = load_text(write(tmp_path / "t.csv", ["text", "label"], cells), tokenizer=vocabulary)
    numbers = [{text.split()[-1] for text in map(str, part.groups)} for part in (splits.train, splits.validation)]
    assert not numbers[0] & numbers[1]
    assert len(splits.train) % 2 == 0
    assert notes(splits, "80 texts are near-duplicates of others, in 40 clusters")


def test_empty_and_unlabelled_texts(tmp_path, vocabulary):
    cells = rows() + [("  ", "up"), ("a film", "")]
    splits = load_text(write(tmp_path / "t.csv", ["text", "label"], cells), tokenizer=vocabulary)
    assert [str(r) for r in splits.rejected] == ["t.csv, row 41 is empty", "t.csv, row 42 has no label"]
    assert notes(splits, "Empty texts left out: 1, such as t.csv, row 41.")
    with pytest.raises(ValueError, match=r"2 of 42 texts are bad, more than the accepted 1%"):
        load_text(tmp_path / "t.csv", tokenizer=vocabulary, max_bad=0.01)


def test_what_is_found_in_texts():
    texts = ["It is good", "it  is GOOD", "donâ€™t", "lost \ufffd", "fine"]
    checks = check_texts(texts, ["up", "down", "up", "up", None])
    assert checks.keys[0] == checks.keys[1]
    assert checks.clusters.tolist() == [0, 0, 2, 3, 4]
    assert checks.notes == (
        "Texts in several classes: 1, such as text 0 ('down' and 'up'); check their labels.",
        "Texts that were saved or read in a wrong encoding: 1, such as text 2 ('â€™' for '’'); repair the file.",
        "Texts with the sign for a letter that was lost (U+FFFD): 1, such as text 3; save them again from where they "
        "come from.",
    )


@pytest.mark.parametrize("text", ["façade", "“quoted” – naïve", "Ã", "ÄÖÜ", "日本語", "Ωmega"])
def test_good_letters_are_not_taken_for_misread_ones(text):
    assert misread(text) is None
    if text != "Ã" and not any(b in (0x81, 0x8D, 0x8F, 0x90, 0x9D) for b in text.encode()):
        found = misread(text.encode().decode("cp1252"))
        assert found is not None
        assert found[1] in text


def test_other_languages_are_said():
    english = ["How far is it from Denver to Aspen?", "A man is eating a piece of bread in the kitchen."]
    others = ["Где находится ближайшая железнодорожная станция?", "ሰላም ለዓለም ሁሉ ይሁን አሜን"]
    others.append("Kraftfahrzeughaftpflichtversicherungen gewährleisten Schadensersatzansprüche Außenstehender")
    tokenizer = load_tokenizer()
    names = [str(i) for i in range(5)]
    assert note_foreign(tokenizer.encode_batch(english), "[UNK]", names) == []
    (note,) = note_foreign(tokenizer.encode_batch(english + others), "[UNK]", names)
    assert "3 of 5, such as 2" in note


def test_columns_are_found_or_asked_for(tmp_path):
    cells = [["x", "1", "one", "spoons"], ["y", "2", "two", "forks"]]
    path = write(tmp_path / "t.csv", ["body", "stars", "title", "set"], cells)
    columns, _, said = read_texts(path)
    assert (columns["text"], columns["label"]) == (["x", "y"], ["1", "2"])
    assert "split" not in columns
    assert said[-1] == "Columns of t.csv that are not used: title, set."
    assert read_texts(path, text="Title", label="set")[0]["label"] == ["spoons", "forks"]
    with pytest.raises(ValueError, match=r"no column 'words' \(it has: 'body', 'stars', 'title', 'set'\)"):
        read_texts(path, text="words")
    with pytest.raises(ValueError, match="has no column 'label'"):
        read_texts(write(tmp_path / "u.csv", ["text", "remark"], [["x", "y"]]))
    with pytest.raises(ValueError, match="row 1: split is 'spoons'; expected train, validation or test"):
        read_texts(path, split="set")
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "nowhere.csv")


def test_folders_with_splits_and_other_files(tmp_path, vocabulary):
    for split in ("train", "val"):
        for i, (text, label) in enumerate(rows(20)):
            file = tmp_path / "d" / split / label / f"{i}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text} {split}", encoding="utf-8")
    (tmp_path / "d" / "train" / "up" / "0.txt").write_bytes("good caf\xe9".encode("latin-1"))
    (tmp_path / "d" / "train" / "up" / "photo.jpg").touch()
    splits = load_text(tmp_path / "d", tokenizer=vocabulary)
    assert (len(splits.train), len(splits.validation), splits.test) == (20, 20, None)
    assert notes(splits, "Files ignored, because they are not .txt: 1 (.jpg).")
    assert notes(splits, "not UTF-8, and are read as Windows-1252 (Western European): 1")
    with pytest.raises(ValueError, match="is a folder and has no column for text='body'"):
        load_text(tmp_path / "d", text="body", tokenizer=vocabulary)
    (tmp_path / "e" / "up").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"hold no \.txt files"):
        load_text(tmp_path / "e", tokenizer=vocabulary)


@pytest.fixture(scope="module")
def small_model():
    """A transformer of two blocks, built as all-MiniLM-L6-v2 is."""
    import keras
    from keras import layers, ops

    from thaw import attach_head

    def build(features="last"):
        keras.utils.set_random_seed(0)
        tokens = keras.Input((32,), dtype="int32")
        x = layers.Embedding(len(PIECES), 16, mask_zero=True)(tokens)
        attended = ops.expand_dims(ops.not_equal(tokens, 0), 1)
        for _ in range(2):
            mixed = layers.MultiHeadAttention(2, 8)(x, x, attention_mask=attended)
            x = layers.LayerNormalization()(layers.Add()([x, mixed]))
            x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(16)(layers.Dense(32, "gelu")(x))]))
        return attach_head(keras.Model(tokens, x), 2, features=features)

    return build


@pytest.mark.parametrize("features", ["last", "all"])
def test_everything_works_on_texts(tmp_path, vocabulary, small_model, features):
    path = write(tmp_path / "t.csv", ["text", "label"], rows(80))
    splits, cache = load_text(path, tokenizer=vocabulary), tmp_path / "cache"
    model = small_model(features)
    assert [stage.name for stage in stages_of(model)] == ["stage1", "stage2", "stage3", "head"]
    plan = Plan([Phase(name="head", epochs=1, train="head", solver="lbfgs"), Phase(name="tune", epochs=2, train=1)])
    options = {"validation_data": splits.validation, "cache_dir": cache, "verbose": 0}
    history = fine_tune(model, plan, splits.train, **options)
    assert history.history["val_accuracy"][-1] == 1.0  # a word says the class
    assert any("computed once" in note for note in history.notes)
    freeze(model, "head")
    assert precompute(model, splits.train, cache_dir=cache).x is not None
    if features == "last":
        rows_of_stages = probe(model, splits.train).rows
        assert [row.width for row in rows_of_stages] == [16, 16, 16]
        assert rows_of_stages[-1].score.value > 0.9
