"""Augmentation is a pure function of (picture, seed)."""

import functools
import random

import numpy as np
import pytest

from thaw.data.augmentation import augment, count_flips, flipped

ALL = {"flips": "both", "rotation": 0.1, "zoom": 0.2, "translation": 0.1, "contrast": 0.4, "brightness": 0.3}
PICTURE = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype("float32")


def mapped(function, n=24, parallel=1, first=0):
    import tensorflow as tf

    seeds = tf.data.Dataset.range(first, first + n, output_type=tf.int32)
    made = seeds.map(lambda i: function(PICTURE, tf.stack([3, i])), num_parallel_calls=parallel)
    return np.stack(list(made.as_numpy_iterator()))


@functools.cache
def augmented():
    return mapped(augment(**ALL))


def test_the_same_seed_gives_the_same_bits_and_another_another_picture():
    function = augment(**ALL)
    one, two = augmented(), mapped(function)
    assert one.tobytes() == two.tobytes()
    assert len({picture.tobytes() for picture in one}) == 24
    assert mapped(function, first=5, n=3).tobytes() == one[5:8].tobytes()


def test_parallel_and_sequential_and_eager_give_the_same_bits():
    function, one = augment(**ALL), augmented()
    assert one.tobytes() == mapped(function, parallel=4).tobytes()
    assert np.allclose(one[3], function(PICTURE, (3, 3)), atol=1e-3)


def test_the_graph_holds_no_state():
    import tensorflow as tf

    function = tf.function(augment(**ALL))
    graph = function.get_concrete_function(tf.TensorSpec((32, 32, 3)), tf.TensorSpec((2,), tf.int32)).graph
    # An assert checks shapes and keeps nothing.
    stateful = {op.type for op in graph.get_operations() if op.op_def.is_stateful} - {"Assert"}
    assert stateful == set()
    assert graph.variables == ()


def test_no_global_random_state_is_read_or_moved():
    import tensorflow as tf

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one = mapped(augment(**ALL), n=2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    random.seed(2)
    tf.random.set_seed(9)
    assert mapped(augment(**ALL), n=2).tobytes() == one.tobytes()


def test_pixels_stay_in_range():
    made = mapped(augment(**ALL | {"contrast": 1.0, "brightness": 1.0}), n=60)
    assert made.dtype == np.float32
    assert made.shape == (60, 32, 32, 3)
    assert made.min() >= 0
    assert made.max() <= 255
    assert np.isfinite(made).all()


@pytest.mark.parametrize(("flips", "expected"), [("horizontal", {0, 1}), ("vertical", {0, 2}), ("both", {0, 1, 2, 3})])
@pytest.mark.parametrize("warp", [{}, {"zoom": 1e-9}])
def test_flips_are_these_and_each_is_about_as_frequent(flips, expected, warp):
    made = mapped(augment(flips=flips, **warp), n=200)
    kinds = [PICTURE, PICTURE[:, ::-1], PICTURE[::-1], PICTURE[::-1, ::-1]]
    # With a warp the flips are part of its matrix, and the pixels go through its interpolation.
    seen = [[k for k, kind in enumerate(kinds) if np.allclose(picture, kind, atol=0.1)] for picture in made]
    assert all(len(k) == 1 for k in seen)
    counts = {k: seen.count([k]) for k in expected}
    assert sum(counts.values()) == 200
    # Five standard deviations of a fair coin.
    share = 1 / len(expected)
    assert all(abs(n - 200 * share) < 5 * np.sqrt(200 * share * (1 - share)) for n in counts.values())


@pytest.mark.parametrize("warp", [{}, {"zoom": 1e-9}])
def test_versions_that_follow_each_other_are_not_flipped_alike(warp):
    for first in (0, 7, 2**31 - 9):
        made = mapped(augment(flips="both", **warp), first=first, n=4)
        kinds = [PICTURE, PICTURE[:, ::-1], PICTURE[::-1], PICTURE[::-1, ::-1]]
        found = [k for picture in made for k, kind in enumerate(kinds) if np.allclose(picture, kind, atol=0.1)]
        assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["rotation", "zoom"])
def test_one_warp_equals_the_layer_alone(name):
    from keras import layers

    import thaw.data.augmentation as module

    value = 0.1
    made = augment(flips="none", **{name: value})(PICTURE, (4, 5))
    layer = {"rotation": layers.RandomRotation, "zoom": layers.RandomZoom}[name](value, seed=0)
    import tensorflow as tf

    generator = module._seed_generator_class()(tf.constant([4, 5]))
    generator.count = {"rotation": 0, "zoom": 1}[name]
    batch = tf.constant(PICTURE)[None]
    expected = layer.transform_images(batch, layer.get_random_transformation(batch, seed=generator))[0]
    assert np.allclose(made, expected, atol=0.05)
    assert not np.allclose(made, PICTURE, atol=1)


def test_a_shift_is_drawn_apart_for_each_direction():
    dot = np.zeros((33, 33, 1), "float32")
    dot[16, 16] = 255
    function = augment(flips="none", translation=0.3)
    places = []
    for i in range(30):
        picture = np.array(function(dot, (1, i)))[..., 0]
        total = picture.sum()
        places.append([(picture.sum(axis) * np.arange(33)).sum() / total - 16 for axis in (0, 1)])
    places = np.array(places)
    assert np.abs(places).max() <= 0.3 * 33 + 0.01
    assert np.abs(places).max(0).min() > 5
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.6


def test_contrast_falls_as_well_as_rises():
    made = mapped(augment(flips="none", contrast=0.5), n=60)
    spread = made.std(axis=(1, 2, 3)) / PICTURE.std()
    assert spread.min() < 0.7
    assert spread.max() > 1.1


def test_brightness_shifts_by_at_most_its_share_of_255():
    grey = np.full((4, 4, 3), 100, "float32")
    shifts = [float(np.mean(augment(flips="none", brightness=0.2)(grey, (0, i)))) - 100 for i in range(40)]
    assert -51 <= min(shifts) < -20
    assert 20 < max(shifts) <= 51


def test_half_precision_policy_does_not_round_pixels():
    import keras

    policy = keras.config.dtype_policy()
    expected = mapped(augment(**ALL), n=2)
    try:
        keras.config.set_dtype_policy("mixed_float16")
        assert mapped(augment(**ALL), n=2).tobytes() == expected.tobytes()
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("flips", ["horizontal", "vertical", "both"])
def test_flipped_versions_come_in_the_order_of_the_training(flips):
    views = count_flips(flips)
    made = list(flipped(PICTURE[None], flips, views))
    assert len({version.tobytes() for version in made}) == views
    function = augment(flips=flips)
    for turn, version in enumerate(made):
        np.testing.assert_array_equal(version[0], function(PICTURE, (0, turn)))


def test_nothing_to_do_is_none():
    assert augment(flips="none") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"flips": "sideways"},
            "flips='sideways'; expected one of 'none', 'horizontal', 'vertical', 'both'",
        ),
        ({"rotation": 90}, "rotation=90; expected a fraction from 0 to 0.5"),
        ({"zoom": 1.0}, "zoom=1.0; expected a fraction from 0 to 0.99"),
        ({"translation": -0.1}, "translation=-0.1; expected a fraction from 0 to 1.0"),
        ({"contrast": 2}, "contrast=2; expected a fraction from 0 to 1.0"),
        ({"brightness": float("nan")}, "brightness=nan; expected a fraction from 0 to 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        augment(**arguments)
