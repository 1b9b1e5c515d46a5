"""Which pictures say what a model knew, and by which labels."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from thaw.retention.source_tasks import SourceTask, source_images, source_task


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype("uint8")
    Image.fromarray(pixels).save(path)


def folder(place, names, each=3):
    for c, name in enumerate(names):
        for i in range(each):
            picture(place / name / f"{i}.png", 10 * c + i)
    return place


def test_folders_are_matched_by_name(tmp_path):
    place = folder(tmp_path / "old", ["Gold Fish", "unheard", "tench"])
    examples, labelled, notes = source_images(place, 8, classes={"gold_fish": 1, "tench": 0}, outputs=1000)
    assert labelled
    assert sorted(examples.y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert notes == ["Source images of unheard are left out: the source head has no such class."]
    x, y = next(iter(examples.ordered(6)))
    for pixels, label in zip(x.numpy(), y.numpy()):
        name = "Gold Fish" if label == 1 else "tench"
        files = [np.asarray(Image.open(p).convert("RGB").resize((8, 8), 2)) for p in (place / name).iterdir()]
        assert min(np.abs(pixels - f).mean() for f in files) < 30  # of unrelated noise it is twice as much


def test_without_names_the_order_counts_where_there_are_as_many(tmp_path):
    place = folder(tmp_path / "old", ["b", "a"])
    examples, labelled, notes = source_images(place, 8, outputs=2)
    assert labelled
    assert sorted(examples.y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert notes == ["The source classes are taken in sorted order for those of the source head, which has no names."]
    examples, labelled, notes = source_images(place, 8, outputs=3)
    assert not labelled
    assert set(examples.y.tolist()) == {-1}
    assert "3 classes without names, and there are 2 folders" in notes[0]


def test_names_that_nobody_knows_and_no_names_at_all(tmp_path):
    place = folder(tmp_path / "old", ["x"])
    for source in (place, place / "x"):
        examples, labelled, notes = source_images(source, 8, classes={"tench": 0}, outputs=1000)
        assert len(examples) == 3
        assert not labelled
        assert "forgetting is measured by whether the source head predicts the same as before." in notes[0]


def test_a_table_and_splits(tmp_path):
    """What the old model was trained on says little about what it knows."""
    folder(tmp_path / "old" / "train", ["a", "b"])
    folder(tmp_path / "old" / "val", ["a", "b"], each=2)
    assert len(source_images(tmp_path / "old", 8, outputs=2)[0]) == 4
    (tmp_path / "old" / "table.csv").write_text("image,label\ntrain/a/0.png,a\ntrain/b/1.png,b\n")
    assert len(source_images(tmp_path / "old" / "table.csv", 8, outputs=2)[0]) == 2


def test_source_images_draws_by_content(tmp_path):
    for i in range(12):
        picture(tmp_path / "one" / f"{i}.png", i)
        picture(tmp_path / "other" / f"{97 * i % 12:02}.png", i)
    one, other = (source_images(tmp_path / name, 8, max_examples=5)[0] for name in ("one", "other"))
    assert len(one) == 5
    assert one.content_keys.tolist() == other.content_keys.tolist()


def test_bad_files_are_counted_and_none_at_all_is_an_error(tmp_path):
    place = folder(tmp_path / "old", ["a"])
    (place / "a" / "bad.png").write_bytes(b"no picture")
    _, _, notes = source_images(place, 8, outputs=1)
    assert "1 of 4 images of the source task could not be used." in notes
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no images; expected some of the source task"):
        source_images(tmp_path / "none", 8)
    (tmp_path / "none" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="has no usable image of the source task"):
        source_images(tmp_path / "none", 8)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        source_images(tmp_path / "nowhere", 8)


def test_imagenet_is_known_by_its_numbers(tmp_path, monkeypatch):
    from thaw.models.applications import imagenet_classes

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    classes = imagenet_classes()
    assert sorted(classes.values()) == list(range(1000))
    # Published places of some of them.
    assert [classes[f"n{n}"] for n in ("01440764", "01443537", "02123045", "15075141")] == [0, 1, 281, 999]
    (tmp_path / "models").mkdir()
    index = {"1": ["n01443537", "goldfish"], "134": ["n02012849", "crane"], "517": ["n03126707", "crane"]}
    (tmp_path / "models" / "imagenet_class_index.json").write_text(json.dumps(index))
    assert imagenet_classes()["goldfish"] == 1
    assert "crane" not in imagenet_classes()


def test_a_users_own_file(tmp_path):
    keras = pytest.importorskip("keras")
    from keras import layers

    net = [keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*net, layers.Dense(2, "softmax")])
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    place = folder(tmp_path / "old", ["dog", "cat"])
    old = source_task(str(tmp_path / "run" / "model.keras"), place, max_forgetting=0.1)
    assert old.labelled
    assert old.backbone.output_shape == (None, 6, 6, 4)
    assert {id(w) for w in old.backbone.weights} < {id(w) for w in old.model.weights}
    # The labels of a run say which class is which, and not the order.
    (tmp_path / "run" / "labels.json").write_text('["dog", "cat"]')
    again = source_task(str(tmp_path / "run" / "model.keras"), place)
    assert again.notes == ()
    assert again.examples.y.tolist() == (1 - old.examples.y).tolist()


def test_a_backbone_without_a_head(tmp_path):
    keras = pytest.importorskip("keras")

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1.0), keras.layers.Conv2D(4, 3)])
    model.save(tmp_path / "bare.keras")
    assert source_task(str(tmp_path / "bare.keras")).model is None
    with pytest.raises(ValueError, match="has no head of its own, so that what it forgets cannot be measured"):
        source_task(str(tmp_path / "bare.keras"), max_forgetting=0.1)
    with pytest.raises(ValueError, match="random weights knows nothing that it could forget"):
        source_task("mobilenet_v2", weights=None, max_forgetting=0.1)
    with pytest.raises(ValueError, match=r"bare.keras contains its own weights; leave weights=None out"):
        source_task(str(tmp_path / "bare.keras"), weights=None)
    # Nothing is fetched that nobody asked for.
    assert source_task("mobilenet_v2", weights=None, image_size=32).model is None
    assert SourceTask.of(model).backbone is model


def test_source_task_recognizes_a_softmax_layer_as_the_head():
    """Dense(10) and Softmax() are a head, which must be taken off before another one is put on."""
    import keras

    from thaw.models.heads import attach_head

    net = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*net, keras.layers.Dense(10), keras.layers.Softmax()])
    task = SourceTask.of(model)
    assert task.model is model
    assert task.backbone.output_shape == (None, 6, 6, 4)
    assert attach_head(task.backbone, 2).output_shape == (None, 2)


@pytest.mark.parametrize("last", [[[1]], [[5], []], [[5]], [[1, "sigmoid"]]])
def test_a_head_in_each_form(last):
    """A head of logits, or a softmax that is a layer of its own, is no backbone: features are what is before it."""
    layers = keras.layers
    body = [keras.Input((32, 32, 3)), layers.Conv2D(16, 3, 2), layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*body, *(layers.Dense(*args) if args else layers.Softmax() for args in last)])
    if last == [[5]]:  # may be features too: its loss says that it puts out logits
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    source = SourceTask.of(model)
    assert source.model is model
    assert source.backbone.output_shape == (None, 15, 15, 16)
    assert SourceTask.of(source.backbone).model is None


def test_a_linear_layer_may_be_features():
    layers = keras.layers
    body = [keras.Input((32, 32, 3)), layers.Conv2D(16, 3, 2), layers.GlobalAveragePooling2D(), layers.Dense(5)]
    model = keras.Sequential(body, name="embedding")
    with pytest.warns(UserWarning, match=r"embedding ends in 5 linear units, which are taken .*, pass SourceTask\("):
        source = SourceTask.of(model)
    assert source.model is model
    assert source.backbone.output_shape == (None, 15, 15, 16)
    assert SourceTask(backbone=model).backbone is model  # as the warning says
