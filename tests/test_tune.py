"""``thaw.tune``: the whole job in Python, the same as the command."""

import json

import numpy as np
import pytest
from PIL import Image

import thaw
from thaw import Phase, Plan

PROBE = Plan.named("probe", epochs=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import keras
    from keras import layers

    place, rng = tmp_path_factory.mktemp("tune"), np.random.default_rng(0)
    for label, level in (("dark", 100), ("light", 150)):
        (place / "photos" / label).mkdir(parents=True)
        for i in range(30):
            pixels = np.clip(rng.normal(level, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "photos" / label / f"{i}.png")
    keras.utils.set_random_seed(1)
    net = [keras.Input((16, 16, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, 2, activation="relu")]
    keras.Sequential(net, name="small").save(place / "small.keras")
    return place


def weights_of(run):
    return run.manifest["weights_sha256"]


def test_tune_does_what_the_command_does(place, tmp_path, capsys):
    from thaw.cli.main import main

    options = {"model": str(place / "small.keras"), "plan": "probe", "epochs": 2, "seed": 1, "rotation": 0.1}
    run = thaw.tune(place / "photos", tmp_path / "python", **options, verbose=0)
    assert capsys.readouterr() == ("", "")
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(place / "photos"), "-o", str(tmp_path / "command"), *given])
    assert ended.value.code == 0
    command = thaw.open_run(tmp_path / "command")
    assert weights_of(run) == weights_of(command)
    assert run.metrics == command.metrics
    assert run.config == command.config
    assert run.plan == command.plan == Plan.named("probe", epochs=2)


@pytest.fixture(scope="module")
def tuned(place, tmp_path_factory):
    """A finished run; only to be read."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return thaw.tune(place / "photos", folder, model=str(place / "small.keras"), plan=PROBE, verbose=0)


def test_tune_returns_a_run_that_is_open(tuned):
    x = np.zeros((1, 16, 16, 3), np.uint8)
    loaded = thaw.open_run(tuned.folder).model
    np.testing.assert_array_equal(tuned.model.predict(x, verbose=0), loaded.predict(x, verbose=0))
    assert not tuned.model.compiled
    assert tuned.labels == ("dark", "light")
    assert tuned.metrics == json.loads((tuned.folder / "metrics.json").read_text())
    assert {stage["stage"] for stage in tuned.metrics["weight_change"]} == {"stage1", "head"}
    assert set(tuned.metrics["weight_change_by_phase"]) == {"head"}


def test_tune_takes_splits_a_model_and_callbacks(place, tuned, tmp_path):
    import keras

    class Count(thaw.TuneCallback):
        phases = epochs = 0

        def on_phase_begin(self, phase, stages):
            self.phases += 1

        def on_epoch_begin(self, epoch, logs=None):
            self.optimizer = self.model.optimizer

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1

    splits, count = thaw.load_images(place / "photos", image_size=16), Count()
    model = keras.saving.load_model(place / "small.keras")
    run = thaw.tune(splits, tmp_path / "b", model=model, plan=PROBE, callbacks=[count], verbose=0)
    assert (count.phases, count.epochs) == (1, 1)
    assert type(count.optimizer) is keras.optimizers.AdamW
    assert (count.optimizer.global_clipnorm, count.optimizer.weight_decay) == (1.0, 1e-4)  # the defaults
    assert weights_of(run) == weights_of(tuned)
    assert "data" not in run.config
    assert "model" not in run.config
    assert run.config["plan"] == "plan.toml"


def test_a_resumed_run_keeps_the_head_that_was_chosen(place, tmp_path):
    """The choice is recorded: where the cache is gone, another runtime might tip it."""
    import keras

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    options = {"model": str(place / "small.keras"), "plan": PROBE, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        thaw.tune(place / "photos", tmp_path / "run", callbacks=[Stop()], **options)
    record = tmp_path / "run/unfinished/head.json"
    chosen = json.loads(record.read_text())
    assert chosen["features"] in ("last", "upper", "all")
    chosen["features"] = "all"
    record.write_text(json.dumps(chosen))
    run = thaw.tune(place / "photos", tmp_path / "run", **options)
    assert any(layer.name == "head_standardized" or layer.name.endswith("_norm") for layer in run.model.layers)
    assert not record.exists()


def write_table(folder):
    """Forty photographs of two classes, and a third class whose two training images are of one patient."""
    rng, rows = np.random.default_rng(1), []
    for name, level, n in (("dark", 80, 20), ("light", 150, 20), ("rare", 220, 4)):
        for i in range(n):
            pixels = np.clip(rng.normal(level, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
            split = "train" if i < n / 2 else "val"
            rows.append(f"{name}{i}.png,{name},{split},{'p' if name == 'rare' and split == 'train' else ''}")
    (folder / "table.csv").write_text("image,label,split,patient\n" + "\n".join(rows))
    return folder / "table.csv"


def test_a_class_of_one_group_has_the_last_layer_and_the_default_strength_and_it_is_said(place, tmp_path, capsys):
    table = write_table(tmp_path)
    options = {"model": str(place / "small.keras"), "plan": PROBE, "group": "patient"}
    run = thaw.tune(table, tmp_path / "run", **options)
    said = 'The head reads features="last" and its strength is 1, without cross-validation: a class has examples of one'
    solved = 'Phase "head": Not cross-validated, strength 1 and temperature 1: a class has examples of one group only'
    for sentence in (said, solved):
        assert any(note.startswith(sentence) for note in run.metrics["notes"])
    assert said in capsys.readouterr().err
    assert not any(layer.name.endswith("_norm") for layer in run.model.layers)


def test_tune_keeps_the_augmentation_of_splits(place, tmp_path):
    import dataclasses

    splits, seen = thaw.load_images(place / "photos", image_size=16), []

    def darken(image, seed):
        seen.append(1)
        return image / 2

    train = dataclasses.replace(splits.train, augment=darken)
    splits = dataclasses.replace(splits, train=train)
    thaw.tune(splits, tmp_path / "run", model=str(place / "small.keras"), plan=PROBE, verbose=0)
    assert seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": PROBE, "epochs": 3}, "epochs is set in the plan; leave it out"),
        ({"minutes": 0}, "minutes=0; expected a number above 0"),
        ({"soup": -1}, "soup"),
        ({"label_smoothing": 1}, "label_smoothing=1; expected a share from 0 to below 1"),
        ({"folds": 1}, "folds"),
        ({"optimizer": "adm"}, "optimizer='adm'; expected one of adamw"),
        ({"clip_norm": float("nan")}, "clip_norm=nan; expected a number from 0"),
        ({"precision": "half"}, "precision='half'; expected one of auto"),
        ({"learning_rate": -1}, "expected a number above 0"),
        ({"plan": "prob"}, 'There is no plan "prob"'),
    ],
)
def test_tune_refuses_invalid_options_before_images_are_read(place, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        thaw.tune(place / "photos", tmp_path / "run", verbose=0, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("train", ["head", 0])
def test_find_rate_of_no_stage_below_the_head_is_that_of_the_head(place, train):
    """B3: 0 stages below the head are the head; neither trains it beforehand."""
    result = thaw.find_rate(place / "photos", train=train, model=str(place / "small.keras"), verbose=0)
    # A head of zeros: every class has the same probability.
    assert np.allclose(result.losses[:, 0], np.log(2), atol=1e-3)


def test_find_rate_leaves_the_flags_of_a_model_alone(place):
    import keras

    model = keras.saving.load_model(place / "small.keras")
    model.layers[-1].trainable = False
    thaw.find_rate(place / "photos", train="head", model=model, verbose=0)
    assert [layer.trainable for layer in model.layers] == [True, False]


def test_check_of_a_model_a_run_and_images(place, tuned):
    for path, kind in ((place / "small.keras", "model"), (tuned.folder, "run"), (place / "photos", "data")):
        found, findings = thaw.check(path, image_size=16)
        assert found == kind
        assert not [f for f in findings if f.level == "error"]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a model file, a run folder, or data"):
        thaw.check("nowhere")


TWO = Plan(
    [
        Phase(name="head", epochs=1, train="head", solver="lbfgs"),
        Phase(name="tune", epochs=3, train=1, learning_rate=1e-2, views=1),
    ]
)


def test_soup_balance_and_label_smoothing(place, tmp_path):
    options = {"soup": 3, "balance": "logit-adjustment", "label_smoothing": 0.1}
    # 20 dark images for 30 light ones
    few = tmp_path / "few"
    for label, n in (("dark", 20), ("light", 30)):
        (few / label).mkdir(parents=True)
        for i in range(n):
            (few / label / f"{i}.png").symlink_to(place / "photos" / label / f"{i}.png")
    model = str(place / "small.keras")
    run = thaw.tune(few, tmp_path / "run", model=model, plan=TWO, features="last", verbose=0, **options)
    plain = thaw.tune(few, tmp_path / "plain", model=model, plan=TWO, features="last", balance="none", verbose=0)
    assert run.config | options == run.config
    assert [phase.soup for phase in run.plan] == [3, 3]
    # A smoothed loss has a floor, that of targets of 0.95 and 0.05.
    floor = -(0.95 * np.log(0.95) + 0.05 * np.log(0.05))
    assert min(run.history["loss"]) > floor
    assert weights_of(run) != weights_of(plain)


def test_logit_adjustment_moves_the_bias_by_the_frequencies(place, tmp_path):
    from thaw.data.images import load_images

    few = tmp_path / "few"
    for label, n in (("dark", 12), ("light", 30)):
        (few / label).mkdir(parents=True)
        for i in range(n):
            (few / label / f"{i}.png").symlink_to(place / "photos" / label / f"{i}.png")
    counts = np.bincount(load_images(few, image_size=16).train.y)
    options = {"model": str(place / "small.keras"), "plan": "probe", "features": "last", "verbose": 0}
    runs = {b: thaw.tune(few, tmp_path / b, balance=b, **options) for b in ("none", "logit-adjustment")}
    (kernel, bias), (adjusted_kernel, adjusted) = (run.model.layers[-1].get_weights() for run in runs.values())
    np.testing.assert_array_equal(kernel, adjusted_kernel)
    moved = adjusted - bias
    assert moved[0] - moved[1] == pytest.approx(np.log(counts[1] / counts[0]), rel=1e-4)
