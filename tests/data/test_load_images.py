"""load_images: from files to datasets, as a user would."""

import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thaw.data.images import load_images
from thaw.features.cache_folder import list_cache


def picture(path, seed, size=(24, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    # Coarse, so that each has a look of its own and not only noise.
    Image.fromarray(pixels[::4, ::4]).resize(size, Image.Resampling.NEAREST).save(path, **options)


def photo(path, seed):
    """Smooth as photographs are, so that it looks the same after it is saved again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((144, 128), Image.Resampling.BICUBIC).save(path)


def folder(root, classes=("cat", "dog"), each=20, start=0):
    for c, name in enumerate(classes):
        for i in range(each):
            picture(root / name / f"{i:03}.png", start + 1000 * c + i)
    return root


@pytest.fixture
def load(tmp_path):
    return lambda source, **options: load_images(source, image_size=16, cache_dir=tmp_path / "cache", **options)


def test_a_folder(tmp_path, load):
    root = folder(tmp_path / "photos")
    seen = []
    got = load(root, progress=lambda *said: seen.append(said))
    assert got.labels == ("cat", "dog")
    assert got.rejected == ()
    assert got.class_weight is None
    assert seen[-1] == (40, 40, "checking images")
    sizes = {"train": len(got.train), "validation": len(got.validation), "test": len(got.test)}
    assert sum(sizes.values()) == 40
    assert min(sizes.values()) > 0
    assert sizes["train"] > 15
    assert sorted(sum(got.files.values(), ())) == sorted(str(path) for path in root.rglob("*.png"))
    for name, size in sizes.items():
        part = getattr(got, name)
        assert [got.labels[y] for y in part.y] == [os.path.basename(os.path.dirname(f)) for f in got.files[name]]
        assert len(got.files[name]) == size
        assert set(part.y) == {0, 1}
        assert part.groups is None
    assert got.notes[-1].startswith("40 images of 2 classes: ")


def test_examples_load_the_decoded_pixels(tmp_path, load):
    got = load(folder(tmp_path / "photos", each=6))
    x, _y = next(iter(got.train.ordered(len(got.train))))
    assert x.shape == (len(got.train), 16, 16, 3)
    assert x.dtype == "float32"
    for i, path in enumerate(got.files["train"]):
        expected = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BICUBIC, reducing_gap=3.0))
        assert (x[i].numpy() == expected).all()


def test_the_load_function_holds_no_state(tmp_path, load):
    import tensorflow as tf

    got = load(folder(tmp_path / "photos", each=6))
    graph = tf.function(got.train.load).get_concrete_function(tf.TensorSpec((), tf.string)).graph
    assert {op.type for op in graph.get_operations() if op.op_def.is_stateful} == set()


def test_keys_come_from_content_not_from_the_place(tmp_path, load):
    one = load(folder(tmp_path / "photos", each=6))
    two = load_images(folder(tmp_path / "elsewhere", each=6), image_size=16, cache_dir=tmp_path / "other")
    assert one.train.keys.tolist() == two.train.keys.tolist()
    assert one.digest == two.digest
    data = Path(one.files["train"][0]).read_bytes()
    assert one.train.keys[0] == np.frombuffer(hashlib.sha256(data).digest()[:8], "<i8")[0]


def test_load_images_decodes_once(tmp_path, load):
    root = folder(tmp_path / "photos", each=6)
    one = load(root)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "decoded").rglob("*.u8")}
    assert len(written) == 12
    assert [(row["what"], row["examples"]) for row in list_cache(tmp_path / "cache")] == [("decoded", 12)]
    assert load(root).digest == one.digest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "decoded").rglob("*.u8")} == written


def test_adding_pictures_moves_no_others(tmp_path, load):
    root = folder(tmp_path / "photos", each=40)
    before = load(root).files
    for i in range(15):
        picture(root / "cat" / f"new{i}.png", 5000 + i)
    after = load(root).files
    for name in before:
        assert set(before[name]) <= set(after[name])
    assert sum(map(len, after.values())) == 95


def test_the_digest_follows_content_label_and_split_not_the_name_of_the_root(tmp_path, load):
    digests = [load(folder(tmp_path / "a", each=6)).digest]
    digests.append(load(folder(tmp_path / "a", each=6), seed=3).digest)
    digests.append(load(folder(tmp_path / "b", classes=("cat", "wolf"), each=6)).digest)
    digests.append(load(folder(tmp_path / "c", each=6, start=77)).digest)
    assert len(set(digests)) == 4


def test_saved_again_and_made_smaller_stays_on_one_side(tmp_path, load):
    root = tmp_path / "photos"
    for i in range(24):
        photo(root / ("cat", "dog")[i % 2] / f"{i:03}.png", i)
    for path in sorted(root.rglob("*.png")):
        image = Image.open(path)
        image.save(path.with_suffix(".jpg"), quality=90)
        image.resize((290, 250), Image.Resampling.BICUBIC).save(path.with_name(path.stem + "_big.png"))
    got = load_images(root, image_size=64, cache_dir=tmp_path / "cache")
    side = {}
    for name, files in got.files.items():
        for path, group in zip(files, getattr(got, name).groups.tolist(), strict=True):
            side.setdefault(path.rsplit(".")[0].removesuffix("_big"), set()).add((name, group))
    assert len(side) == 24
    assert all(len(places) == 1 for places in side.values())
    assert len({group for places in side.values() for _, group in places}) == 24
    assert "72 images are near-duplicates of others, in 24 clusters." in got.notes


def test_given_splits_are_kept(tmp_path, load):
    for k, name in enumerate(("train", "val", "test")):
        folder(tmp_path / "photos" / name, each=3, start=100 * k)
    got = load(tmp_path / "photos")
    for folder_name, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert len(got.files[name]) == 6
        assert all(f"photos/{folder_name}/" in path for path in got.files[name])


def test_a_table_without_a_training_split_is_refused(tmp_path, load):
    (tmp_path / "1.png").touch()
    (tmp_path / "images.csv").write_text("image,label,split\n1.png,a,test\n")
    with pytest.raises(ValueError, match="no row has the split train; expected some to learn from"):
        load(tmp_path / "images.csv")


def test_validation_is_cut_from_train_where_only_test_is_given(tmp_path, load):
    folder(tmp_path / "photos/train", each=20)
    folder(tmp_path / "photos/test", each=3, start=500)
    got = load(tmp_path / "photos", splits=(0.6, 0.2, 0.2))
    assert len(got.test) == 6
    assert all("/test/" in path for path in got.files["test"])
    assert len(got.train) + len(got.validation) == 40
    assert len(got.validation) > 2
    assert "Validation is cut from train: 25% of it." in got.notes


def test_no_test_where_only_train_and_validation_are_given(tmp_path, load):
    folder(tmp_path / "photos/train", each=4)
    folder(tmp_path / "photos/val", each=4, start=500)
    got = load(tmp_path / "photos")
    assert got.test is None
    assert got.files["test"] == ()
    assert any(note.startswith("There is no test split") for note in got.notes)


def test_a_table_with_groups_and_weights(tmp_path, load):
    folder(tmp_path, each=20)
    rows = [f"{c}/{i:03}.png,{c},{i % 7},{1 + i % 2}" for c in ("cat", "dog") for i in range(20)]
    (tmp_path / "t.csv").write_text("image,label,group,weight\n" + "\n".join(rows))
    got = load(tmp_path / "t.csv")
    side = {}
    for name, files in got.files.items():
        for path in files:
            side.setdefault(int(path[-7:-4]) % 7, set()).add(name)
    assert len(side) == 7
    assert all(len(names) == 1 for names in side.values())
    expected = [1 + int(path[-7:-4]) % 2 for path in got.files["train"]]
    assert got.train.sample_weight.tolist() == expected
    assert got.train.sample_weight.dtype == np.float32


def test_bad_files_are_put_aside_with_a_reason(tmp_path, load):
    root = folder(tmp_path / "photos", each=30)
    (root / "cat" / "empty.jpg").write_bytes(b"")
    (root / "dog" / os.fsdecode(b"\xff.jpg")).write_text("no picture")
    picture(root / "loose.png", 9999)
    got = load(root)
    assert [(bad.path.removeprefix(str(root)), bad.reason[:22]) for bad in got.rejected] == [
        ("/cat/empty.jpg", "is empty (0 bytes)"),
        ("/dog/\\udcff.jpg", "is not an image of a s"),
        ("/loose.png", "lies outside every cla"),
    ]
    assert sum(map(len, got.files.values())) == 60


def test_names_that_are_no_text_are_trained_on(tmp_path, load):
    root = folder(tmp_path / "photos", each=6)
    os.rename(root / "cat" / "000.png", os.fsencode(root / "cat") + b"/\xff.png")
    assert sum(map(len, load(root).files.values())) == 12


def test_one_picture_in_two_classes(tmp_path, load):
    root = folder(tmp_path / "photos", each=20)
    picture(root / "dog" / "also.png", 0)
    got = load(root)
    assert {bad.path.removeprefix(f"{root}/") for bad in got.rejected} == {"cat/000.png", "dog/also.png"}


def test_a_class_of_one_picture_is_left_out_and_said(tmp_path, load):
    root = folder(tmp_path / "photos", each=20)
    picture(root / "catt" / "1.png", 777)
    picture(root / "catt" / "copy.png", 777)
    got = load(root)
    assert got.labels == ("cat", "dog")
    assert [bad.reason for bad in got.rejected] == [
        "is of the class 'catt', which has only one usable image; at least two are needed"
    ] * 2
    assert "The class 'catt' is left out: it has only one usable image, and at least two are needed." in got.notes


def test_uneven_classes_are_weighted_and_said(tmp_path, load):
    root = folder(tmp_path / "photos", classes=("cat",), each=40)
    folder(root, classes=("dog",), each=6, start=3000)
    got = load(root)
    counts = np.bincount(got.train.y)
    assert got.class_weight == {c: len(got.train) / (2 * n) for c, n in enumerate(counts)}
    assert any("'cat' is the most frequent, 'dog' the rarest" in note for note in got.notes)


def test_near_identical_pictures_in_several_given_splits_are_said(tmp_path, load):
    for k, name in enumerate(("train", "val", "test")):
        folder(tmp_path / "photos" / name, each=3, start=100 * k)
    photo(tmp_path / "photos/test/cat/photo.png", 1)
    Image.open(tmp_path / "photos/test/cat/photo.png").save(tmp_path / "photos/train/cat/again.jpg", quality=95)
    assert any("1 cluster of near-duplicates is in several splits" in n for n in load(tmp_path / "photos").notes)


def test_too_many_bad_files_are_refused_with_the_first_reasons(tmp_path, load):
    root = folder(tmp_path / "photos", each=10)
    for i in range(7):
        (root / "cat" / f"bad{i}.png").write_bytes(b"")
    (root / "dog" / "text.png").write_text("no picture")
    message = (
        r"8 of 28 files are bad, more than the accepted 5%; .*\n  .*bad0.png is empty \(0 bytes\); 6 others too"
        r"\n  .*text.png is not an image .*$"
    )
    with pytest.raises(ValueError, match=message):
        load(root)
    assert len(load(root, max_bad=0.3).rejected) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0; expected a whole number of pixels from 8 to 4096"),
        ({"image_size": 224.0}, "image_size is 224.0; expected a whole number"),
        ({"image_size": 100_000}, "image_size is 100000; expected"),
        ({"splits": (0.7, 0.2, 0.2)}, r"splits is \(0.7, 0.2, 0.2\); expected the fractions .* which sum to 1"),
        ({"splits": (0.5, 0.5)}, "splits is .*; expected the fractions of train, validation and test"),
        ({"splits": (1.0, 0, 0)}, "expected fractions above 0 for train and validation"),
        ({"max_bad": 5}, "max_bad is 5; expected a fraction from 0 to 1"),
        ({"max_bad": "a"}, "max_bad is 'a'; expected a fraction from 0 to 1"),
        ({"max_bad": None}, "max_bad is None; expected a fraction from 0 to 1"),
        ({"seed": -1}, "seed=-1; expected a whole number from 0"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_images(folder(tmp_path / "photos", each=1), **options)


def test_a_source_that_is_none(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a folder of images or a CSV"):
        load(tmp_path / "nowhere")
    for nothing in ("", None, 3):
        with pytest.raises(ValueError, match=r"data=.*; expected the path of a folder of images or of a CSV file"):
            load(nothing)
    picture(tmp_path / "one.png", 0)
    with pytest.raises(ValueError, match=r"one.png is a file; expected a folder of images, or a table that ends in"):
        load(tmp_path / "one.png")


def test_one_class_only(tmp_path, load):
    with pytest.raises(ValueError, match=r"has usable images of 1 class \(cat\); expected two or more"):
        load(folder(tmp_path / "photos", classes=("cat",), each=3))


def test_a_class_unknown_to_train(tmp_path, load):
    folder(tmp_path / "photos/train", each=4)
    folder(tmp_path / "photos/val", classes=("cat", "dog", "wolf"), each=4, start=500)
    with pytest.raises(ValueError, match=r"the class 'wolf' is in validation \(4\) but not in train"):
        load(tmp_path / "photos")


def test_nothing_left_for_validation(tmp_path, load):
    folder(tmp_path, each=4)
    rows = [f"{c}/{i:03}.png,{c},{c}" for c in ("cat", "dog") for i in range(4)]
    (tmp_path / "t.csv").write_text("image,label,group\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"no image is left for validation, since .* of one group"):
        load(tmp_path / "t.csv")


def test_weights_that_are_all_zero(tmp_path, load):
    folder(tmp_path, each=4)
    rows = [f"{c}/{i:03}.png,{c},0" for c in ("cat", "dog") for i in range(4)]
    (tmp_path / "t.csv").write_text("image,label,weight\n" + "\n".join(rows))
    with pytest.raises(ValueError, match="every weight in train is 0; expected some above 0"):
        load(tmp_path / "t.csv")


def test_missing_files_of_a_table(tmp_path, load):
    folder(tmp_path, each=20)
    rows = [f"{c}/{i:03}.png,{c}" for c in ("cat", "dog") for i in range(22)]
    (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"4 of 44 files are bad.*\n  .*cat/020.png does not exist; 3 others too$"):
        load(tmp_path / "t.csv")
    assert [bad.reason for bad in load(tmp_path / "t.csv", max_bad=0.1).rejected] == ["does not exist"] * 4
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/t.csv").write_text("image,label\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"44 of 44 images of t.csv are not found, such as 'cat/000.png'; paths are"):
        load(tmp_path / "elsewhere/t.csv")


def test_rows_without_a_label_are_left_out(tmp_path, load):
    folder(tmp_path, each=20)
    rows = [f"{c}/{i:03}.png,{c if i else ''}" for c in ("cat", "dog") for i in range(20)]
    (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows))
    got = load(tmp_path / "t.csv")
    assert [str(bad) for bad in got.rejected] == [f"{tmp_path}/{c}/000.png has no label" for c in ("cat", "dog")]
    assert sum(map(len, got.files.values())) == 38


def test_thumbnails_of_a_network_drive_are_no_images(tmp_path, load):
    """mbrrg/synology-thumbgen#10, immich-app/immich#6825: they doubled the data, and some were in the test."""
    root = folder(tmp_path / "photos", each=12)
    for path in sorted(root.rglob("*.png")):
        thumbnails = path.parent / "@eaDir" / path.name
        thumbnails.mkdir(parents=True)
        Image.open(path).resize((12, 10)).save(thumbnails / "SYNOPHOTO_THUMB_M.jpg")
    for name in ("cat/Icon\r", "dog/000.png:Zone.Identifier", "dog/._000.png", "cat/.ipynb_checkpoints/1.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"nothing to see")
    got = load(root)
    assert got.rejected == ()
    assert sorted(sum(got.files.values(), ())) == sorted(
        str(root / c / f"{i:03}.png") for c in ("cat", "dog") for i in range(12)
    )
    assert "Files ignored, because they lie in folders of systems and programs: 24 (@eaDir)." in got.notes


def test_backslashes_in_a_table(tmp_path, load):
    """roboflow/supervision#2581, microsoft/CNTK#1321"""
    folder(tmp_path / "pics", each=12)
    rows = [f"pics\\{c}\\{i:03}.png,{c}" for c in ("cat", "dog") for i in range(12)]
    (tmp_path / "t.csv").write_text("image,label\r\n" + "\r\n".join(rows) + "\r\n")
    got = load(tmp_path / "t.csv")
    assert got.labels == ("cat", "dog")
    assert sum(map(len, got.files.values())) == 24
    first = tmp_path / "pics/cat/000.png"
    assert got.notes[0].endswith(f"and were found elsewhere, such as 'pics\\\\cat\\\\000.png' at {first}.")


def test_classes_in_two_unicode_forms(tmp_path, load):
    """A folder that was zipped on a Mac, next to one that was made on Linux (Garmelon/PFERD#141)."""
    composed, decomposed = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    folder(tmp_path / "fruit/train", (composed, "Birne"), each=6)
    folder(tmp_path / "fruit/validation", (decomposed, "Birne"), each=3, start=500)
    got = load(tmp_path / "fruit")
    assert got.labels == ("Birne", composed)
    assert np.bincount(got.train.y).tolist() == [6, 6]
    assert np.bincount(got.validation.y).tolist() == [3, 3]
    assert r"The names 'A\u0308pfel' and '\xc4pfel' look the same and are one class." in got.notes


def test_a_class_with_other_capitals_in_validation(tmp_path, load):
    folder(tmp_path / "photos/train", ("Cat", "dog"), each=4)
    folder(tmp_path / "photos/val", ("cat", "dog"), each=4, start=500)
    with pytest.raises(
        ValueError, match=r"'cat' is in validation \(4\) but not in train; .* Train has 'Cat': use the same"
    ):
        load(tmp_path / "photos")


def test_names_that_differ_in_form_are_noted(tmp_path, load):
    root = folder(tmp_path / "photos", ("0", "0.0", "Dog", "dog"), each=4)
    picture(root / "DOG" / "1.png", 777)  # left out, since it is alone
    notes = load(root, max_bad=0.1).notes
    assert "The classes '0' and '0.0' differ in form only: if they are one, use one name." in notes
    assert "The classes 'DOG' and 'Dog' and 'dog' differ in form only: if they are one, use one name." in notes


def test_a_folder_around_the_classes(tmp_path, load):
    folder(tmp_path / "download/photos", each=3)
    message = (
        rf"1 class \(photos\); expected two or more. If the folders in {tmp_path}/download/photos are the classes, give"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "download")


def dated(tmp_path, more="", extra=()):
    """Twenty images; cats on odd days of January 2024 and dogs on even ones."""
    folder(tmp_path, each=10)
    rows = [
        f"{('dog', 'cat')[day % 2]}/{(day - 1) // 2:03}.png,{('dog', 'cat')[day % 2]},2024-01-{day:02}"
        for day in range(1, 21)
    ]
    rows = [row + (f",{extra[i]}" if extra else "") for i, row in enumerate(rows)]
    (tmp_path / "t.csv").write_text(f"image,label,taken{more}\n" + "\n".join(rows))
    return {str(tmp_path / row.split(",")[0]): i + 1 for i, row in enumerate(rows)}


def days_of(splits, day_of):
    return {name: sorted(day_of[path] for path in files) for name, files in splits.files.items()}


def test_load_images_splits_by_time(tmp_path, load):
    day_of = dated(tmp_path)
    splits = load(tmp_path / "t.csv", time="taken")
    # 0.7 and 0.85 of twenty days
    assert days_of(splits, day_of) == {
        "train": list(range(1, 15)),
        "validation": [15, 16, 17],
        "test": [18, 19, 20],
    }
    note = "Split by time: train is up to 2024-01-14, validation up to 2024-01-17, test after it."
    assert note in splits.notes
    assert load(tmp_path / "t.csv", time="taken", seed=5).digest == splits.digest


def test_load_images_splits_by_time_and_group(tmp_path, load):
    groups = ["p" if day in (3, 20) else day for day in range(1, 21)]
    day_of = dated(tmp_path, ",patient", groups)
    splits = load(tmp_path / "t.csv", time="taken", group="patient")
    # p counts on day 20: up to day 15 there are 14 of 20 images, up to day 18 there are 17.
    assert days_of(splits, day_of) == {
        "train": [1, 2, *range(4, 16)],
        "validation": [16, 17, 18],
        "test": [3, 19, 20],
    }


def test_load_images_cuts_validation_by_time_from_a_given_train(tmp_path, load):
    day_of = dated(tmp_path, ",split", ["test" if day <= 4 else "train" for day in range(1, 21)])
    splits = load(tmp_path / "t.csv", time="taken", splits=(0.6, 0.2, 0.2))
    assert days_of(splits, day_of) == {
        "train": list(range(5, 17)),
        "validation": [17, 18, 19, 20],
        "test": [1, 2, 3, 4],
    }


def test_load_images_refuses_a_time_where_all_splits_are_given(tmp_path, load):
    dated(tmp_path, ",split", [("train", "val")[day > 16] for day in range(1, 21)])
    with pytest.raises(ValueError, match=r"t.csv: train and validation are given, so there is nothing to split by"):
        load(tmp_path / "t.csv", time="taken")


@pytest.mark.parametrize("last", ["train", "val"])
def test_load_images_notes_that_only_train_is_given(tmp_path, load, last):
    dated(tmp_path, ",split", [("train", last)[day > 16] for day in range(1, 21)])
    note = "All images are given as train: validation and test are cut from them."
    assert (note in load(tmp_path / "t.csv").notes) == (last == "train")


def test_load_images_notes_groups_in_several_given_splits(tmp_path, load):
    dated(tmp_path, ",split,group", [f"{('train', 'val')[day > 16]},{day % 16}" for day in range(1, 21)])
    splits = load(tmp_path / "t.csv")
    note = "4 groups are in several splits, as given (first: '1'): the scores may be too optimistic."
    assert note in splits.notes


def test_splits_print_well(tmp_path, load):
    root = folder(tmp_path / "photos", each=20)
    (root / "cat" / "empty.jpg").write_bytes(b"")
    splits = load(root)
    sizes = f"{len(splits.train)} train, {len(splits.validation)} validation and {len(splits.test)} test"
    lines = str(splits).splitlines()
    assert lines[0] == f"{sizes} examples of 2 classes: cat, dog"
    assert lines[1] == f"1 file is left out, the first: {root}/cat/empty.jpg is empty (0 bytes)"
    assert lines[2:] == list(splits.notes)
    assert splits.task.labels == splits.labels == ("cat", "dog")


def test_a_group_of_the_table_and_a_near_duplicate_of_one_of_it_are_one_group(tmp_path, load):
    for c, name in enumerate(("cat", "dog")):
        for i in range(6):
            photo(tmp_path / name / f"{i}.png", 10 * c + i)
    Image.open(tmp_path / "cat/1.png").save(tmp_path / "cat/again.jpg", quality=95)
    rows = [f"{c}/{i}.png,{c},{'train' if i < 4 else 'val'}" for c in ("cat", "dog") for i in range(6)]
    rows = [*rows, "cat/again.jpg,cat,train"]
    column = ["p" if row.startswith(("cat/0.png", "cat/1.png", "dog/5.png")) else "" for row in rows]

    def read(groups):
        table = zip(rows, groups, strict=True)
        (tmp_path / "t.csv").write_text(
            "image,label,split,group\n" + "\n".join(f"{row},{group}" for row, group in table)
        )
        return load(tmp_path / "t.csv")

    got = read(column)
    of = {
        "/".join(Path(path).parts[-2:]): group
        for name in ("train", "validation")
        for path, group in zip(got.files[name], getattr(got, name).groups.tolist(), strict=True)
    }
    together = ["cat/0.png", "cat/1.png", "cat/again.jpg", "dog/5.png"]  # the last one was given for validation
    assert len({of[name] for name in together}) == 1
    assert len(set(of.values())) == 1 + len(rows) - len(together)
    assert read([group and "q" for group in column]).digest != got.digest
