"""Mistakes that a reader of the code found; each was there once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image

from thaw import Dataset, Phase, Plan, fine_tune, freeze, load_images, preflight
from thaw.features.split import split_model


def small(*on_top):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, 2)(inputs)
    x = layers.Conv2D(4, 3)(x)
    for layer in on_top or (layers.GlobalAveragePooling2D(),):
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(2, "softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(augment=None):
    x = np.random.default_rng(0).uniform(0, 255, (32, 16, 16, 3)).astype("float32")
    return Dataset(x=x, y=np.arange(32) % 2, augment=augment)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_a_run_does_not_go_on_with_another_augmentation(tmp_path):
    plan = Plan([Phase(name="a", epochs=2, views=2)])
    flip, turn = (lambda x, seed: tf.reverse(x, [1])), (lambda x, seed: tf.reverse(x, [0]))
    with pytest.raises(KeyboardInterrupt):
        fine_tune(small(), plan, data(flip), validation_data=data(), backup_dir=tmp_path, callbacks=[Stop()])
    with pytest.raises(ValueError, match="unfinished run of another plan, model, data or seed"):
        fine_tune(small(), plan, data(turn), validation_data=data(), backup_dir=tmp_path)
    fine_tune(small(), plan, data(flip), validation_data=data(), backup_dir=tmp_path)


def test_weights_that_break_in_the_last_batch_are_not_the_best():
    model = small()

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model.layers[1].kernel.assign(model.layers[1].kernel * np.nan)

    with pytest.raises(FloatingPointError, match='validation loss became nan in phase "a", epoch 1'):
        fine_tune(
            model, Plan([Phase(name="a", epochs=1)]), data(), validation_data=data(), batch_size=32, callbacks=[Break()]
        )
    assert all(np.isfinite(w.numpy()).all() for w in model.weights)


def test_dropout_under_a_flatten_goes_on_dropping():
    model = small(layers.Dropout(0.5), layers.Flatten())
    freeze(model, "head")
    _, suffix = split_model(model)
    assert any(isinstance(layer, layers.Dropout) for layer in suffix.layers)


def test_what_is_random_in_the_standing_part_is_said():
    model = small(layers.Dropout(0.5, name="early"), layers.Conv2D(4, 1), layers.GlobalAveragePooling2D())
    history = fine_tune(model, Plan([Phase(name="a", epochs=1, train="head", views=1)]), data(), validation_data=data())
    assert any("early" in note and "off" in note for note in history.notes)


def test_a_metric_may_be_a_function():
    model = small()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[keras.metrics.sparse_categorical_accuracy])
    history = fine_tune(model, Plan([Phase(name="a", epochs=1)]), data(), validation_data=data())
    assert "val_sparse_categorical_accuracy" in history.history


def test_batchnorm_is_seen_in_a_phase_of_one_stage():
    model = small(layers.BatchNormalization(), layers.GlobalAveragePooling2D())
    plan = Plan([Phase(name="a", epochs=1, train="stage1", batchnorm="trained")])
    assert "trainable-batchnorm" in [finding.code for finding in preflight(model, plan=plan)]


def test_a_copy_outside_the_class_folders_is_left_out(tmp_path):
    random = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype="uint8")).save(folder / f"{i}.png")
    (tmp_path / "photos/loose.png").write_bytes((tmp_path / "photos/a/0.png").read_bytes())
    pictures = load_images(tmp_path / "photos", image_size=16, cache_dir=tmp_path)
    assert [bad.reason for bad in pictures.rejected] == ["lies outside every class folder"]


def test_a_table_shows_brackets_as_they_are(capsys):
    from thaw.cli.output import print_table

    print_table(["file"], [("pic[red].jpg",), ("[/b].jpg",)])
    said = capsys.readouterr().out
    assert "pic[red].jpg" in said
    assert "[/b].jpg" in said


def test_what_a_killed_clean_up_left_is_cleared(tmp_path):
    from thaw.runs.folder import refuse_finished

    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="holds a finished run"):
        refuse_finished(tmp_path)
    assert not (tmp_path / "unfinished").exists()
