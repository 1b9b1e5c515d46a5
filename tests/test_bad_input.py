"""What people got wrong when they were let loose on it."""

import os

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers
from PIL import Image

from thaw.checks import preflight
from thaw.cli.main import main
from thaw.data.dataset import Dataset
from thaw.data.image_decoding import decode
from thaw.data.images import load_images
from thaw.finetune import fine_tune
from thaw.models.heads import attach_head
from thaw.plan import Phase, Plan, read_plan
from thaw.runs.folder import refuse_finished
from thaw.training.callbacks import TuneCallback
from thaw.workflow import tune_splits


def pictures(folder, names=("a", "b"), count=8):
    rng = np.random.default_rng(0)
    for label in names:
        place = os.path.join(folder, label)
        os.makedirs(place)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(os.path.join(place, f"{i}.png"))
    return folder


def net(shape=(16, 16, 3)):
    keras.utils.set_random_seed(0)
    entry = keras.Input(shape)
    return keras.Model(entry, layers.Conv2D(4, 3, 2, activation="relu")(entry), name="small")


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code, capsys.readouterr().err


def test_an_empty_argument(capsys):
    code, text = said(capsys, "tune", "", "-o", "r")
    assert code == 2
    assert "an argument is empty; a variable in the command may have no value" in text


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; expected a new or empty folder"):
        refuse_finished(tmp_path)
    code, text = said(capsys, "tune", pictures(str(tmp_path / "photos")), "-o", tmp_path)
    assert code == 2
    assert "holds other files" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "thesis.txt"]
    refuse_finished(tmp_path / "new")


def test_a_name_that_is_not_utf_8(tmp_path):
    pictures(os.fsdecode(os.fsencode(tmp_path) + b"/photos"), ("a", os.fsdecode(b"kl\xff")))
    with pytest.raises(ValueError, match=r"the name of the folder .*kl.* is not UTF-8 .*rename it"):
        load_images(tmp_path / "photos", image_size=16)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is not a regular file"):
        decode(tmp_path / "pipe.png", 16)


def test_when_nearly_all_is_bad_it_says_what(tmp_path):
    folder = pictures(str(tmp_path / "photos"))
    for i in range(8):
        (tmp_path / f"photos/b/{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"usable images of 1 class \(a\); expected two or more. Left out:\n.*0 bytes"):
        load_images(folder, image_size=16, max_bad=1.0)


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 32, 3)])
def test_a_backbone_that_takes_no_square_colours(tmp_path, shape):
    found = load_images(pictures(str(tmp_path / "photos")), image_size=16)
    with pytest.raises(ValueError, match=r"small takes inputs of shape .*expected square images of one size with 3"):
        tune_splits(found, tmp_path / "run", backbone=net(shape), plan=Plan.named("probe", epochs=1))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers():
    model = attach_head(net(), 2)
    model.layers[1].kernel.assign(model.layers[1].kernel * np.nan)
    (finding,) = [f for f in preflight(model) if f.code == "weights-not-finite"]
    assert finding.level == "error"
    assert "1 weights hold NaN or infinity" in finding.what


def examples(n=8, top=2, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset(x=rng.normal(size=(n, 16, 16, 3)).astype("float32"), y=np.arange(n) % top)


def compiled():
    model = attach_head(net(), 2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_a_plan_that_never_moves_a_new_head():
    plan = Plan([Phase(name="low", epochs=1, train=("stage1",))])
    with pytest.raises(ValueError, match="The new head is all zeros and no phase trains it"):
        fine_tune(compiled(), plan, examples(), validation_data=examples(seed=1))


def test_validation_labels_out_of_range():
    plan = Plan([Phase(name="a", epochs=1, train="head")])
    with pytest.raises(ValueError, match="labels go from 0 to 2 and the model has 2 classes"):
        fine_tune(compiled(), plan, examples(), validation_data=examples(top=3))


def test_more_views_than_epochs_and_batches_larger_than_the_data():
    """No more is kept than is read, and no more memory taken."""
    seen = []

    class Watch(TuneCallback):
        def on_precompute(self, done, total):
            seen.append(total)

    def change(x, seed):
        return x + 1.0

    data = Dataset(x=examples().x, y=examples().y, augment=change)
    plan = Plan([Phase(name="a", epochs=2, train="head", views=10**9)])
    history = fine_tune(compiled(), plan, data, validation_data=examples(seed=1), batch_size=10**9, callbacks=[Watch()])
    assert set(seen) == {3}
    assert len(history.epoch) == 2


def test_a_plan_as_editors_write_it(tmp_path):
    text = Plan.named("probe").to_toml()
    (tmp_path / "Plan.TOML").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_plan(str(tmp_path / "Plan.TOML")) == Plan.named("probe")
    (tmp_path / "wide.toml").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"wide.toml is not UTF-8 text; save it as UTF-8"):
        read_plan(str(tmp_path / "wide.toml"))
    (tmp_path / "d.toml").mkdir()
    with pytest.raises(FileNotFoundError, match=r"d.toml is a folder; expected a plan"):
        read_plan(str(tmp_path / "d.toml"))
