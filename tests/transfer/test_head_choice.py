"""choose_head: the narrowest head that is as good as the best, in one pass that later steps find again."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw import Dataset, attach_head
from thaw.transfer import choose_head, solve_head


def pictures(n=120):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 8, 8, 3)).astype("float32")
    x[y == 1, ::2] += 2.0  # stripes
    return x, y


def backbone(loses=True):
    """Four stages; the last layer of one that ``loses`` puts out hardly anything but noise of its own."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    last = layers.Conv2D(8, 3, padding="same", activation="tanh")
    x = last(x)
    if loses:
        last.kernel.assign(1e3 * last.kernel)  # all but signs are gone
    return keras.Model(inputs, x, name="net")


def test_reads_more_layers_where_the_last_has_lost_what_counts(tmp_path):
    x, y = pictures()
    net = backbone()
    before = [w.numpy() for w in net.weights]
    choice = choose_head(net, 2, x, y, cache_dir=tmp_path)
    assert choice.features != "last"
    assert choice.validations["all"].log_loss < choice.validations["last"].log_loss
    assert choice.widths["last"] == 8
    assert choice.widths["all"] == 12 + 16 + 8
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(before, net.weights))
    assert str(choice).splitlines()[0].split("  ")[-3:] == ["log loss", "difference", "standard error"]
    assert "chosen" in next(line for line in str(choice).splitlines() if line.startswith(choice.features))
    last, best = choice.validations["last"], min(choice.validations.values(), key=lambda found: found.log_loss)
    paired = (last.losses - best.losses).std(ddof=1) / np.sqrt(len(y))
    numbers = str(choice).splitlines()[1].split()[2:]
    assert numbers == [f"{value:.3f}" for value in (last.log_loss, last.log_loss - best.log_loss, paired)]
    assert "±" not in str(choice)  # no interval of the model comes from these folds


def test_where_all_are_as_good_it_reads_the_last_layer(tmp_path):
    x, y = pictures()
    assert choose_head(backbone(), 2, x, np.random.default_rng(1).permutation(y), cache_dir=tmp_path).features == "last"


@pytest.mark.parametrize("features", ["last", "upper", "all"])
def test_its_features_are_found_again(features, tmp_path):
    x, y = pictures()
    net = backbone()
    batches = []
    choose_head(net, 2, x, y, cache_dir=tmp_path, progress=lambda done, total: batches.append(done))
    assert batches == [1, 2, 3, 4]  # one pass
    model = attach_head(net, 2, features=features)
    solve_head(model, x, y, cache_dir=tmp_path, progress=lambda done, total: batches.append(done))
    assert batches == [1, 2, 3, 4]


def test_one_example_of_a_class_is_too_few_to_choose(tmp_path):
    x, y = pictures(21)
    y = np.where(np.arange(21) == 0, 2, y)
    choice = choose_head(backbone(), 3, x, y, cache_dir=tmp_path)
    assert choice.features == "last"
    assert not choice.validations
    expected = (
        'The head reads features="last" and its strength is 1, without cross-validation: a class has examples of one'
    )
    assert [note for note in choice.notes if note.startswith(expected)]
    assert not list(tmp_path.iterdir())  # nothing was computed
    groups = np.where(y == 1, 0, np.arange(21))
    assert not choose_head(backbone(), 2, x, y % 2, groups=groups, cache_dir=tmp_path).validations


def test_a_backbone_of_vectors_has_one_width(tmp_path):
    net = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu")])
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    choice = choose_head(net, 2, x, np.arange(40) % 2, cache_dir=tmp_path)
    assert choice.features == "last"
    assert any("puts out a vector" in note for note in choice.notes)


def test_a_nested_backbone_and_a_stream(tmp_path):
    import tensorflow as tf

    x, y = pictures()
    inputs = keras.Input((8, 8, 3))
    nested = keras.Model(inputs, backbone()(layers.Rescaling(1.0)(inputs)))
    assert set(choose_head(nested, 2, x, y, cache_dir=tmp_path).widths) == {"last", "upper", "all"}
    with pytest.raises(ValueError, match="its own order"):
        choose_head(nested, 2, tf.data.Dataset.from_tensor_slices((x, y)).batch(8))


def test_groups_come_from_the_dataset_and_stay_in_one_fold(tmp_path):
    """Each picture is there three times under a label by chance: only folds that separate the copies can tell it."""
    x, _ = pictures(40)
    x, y = np.tile(x, (3, 1, 1, 1)), np.tile(np.random.default_rng(1).permutation(np.arange(40) % 2), 3)
    groups = np.tile(np.arange(40), 3)
    grouped = choose_head(backbone(), 2, Dataset(x=x, y=y, groups=groups), cache_dir=tmp_path)
    given = choose_head(backbone(), 2, x, y, groups=groups, cache_dir=tmp_path)
    single = choose_head(backbone(), 2, x, y, cache_dir=tmp_path)
    assert grouped.validations["all"].log_loss == given.validations["all"].log_loss > 0.6
    assert single.validations["all"].log_loss < grouped.validations["all"].log_loss - 0.1


def test_what_was_cross_validated_for_the_choice_is_not_again_for_the_solution(tmp_path):
    x, y = pictures()
    choice = choose_head(backbone(), 2, x, y, cache_dir=tmp_path)
    validation = choice.validations["all"]
    model = attach_head(backbone(), 2, features="all")
    assert solve_head(model, x, y, cache_dir=tmp_path).cross_validation is validation
    other = solve_head(model, x, y, sample_weight=1.0 + y, cache_dir=tmp_path)
    assert other.cross_validation is not validation
    logits = validation.logits.copy()
    del choice, validation  # nobody holds it now
    again = solve_head(model, x, y, cache_dir=tmp_path).cross_validation
    np.testing.assert_array_equal(again.logits, logits)
