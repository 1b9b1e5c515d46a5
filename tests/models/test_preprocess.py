"""What cannot be written as a scale and an offset is refused; what can, is written as layers."""

import keras
import numpy as np
import pytest

from thaw.models.preprocessing import preprocess


def test_nothing_to_do_adds_no_layer():
    pixels = keras.Input((4, 4, 3))
    assert preprocess(pixels, "none") is pixels
    assert preprocess(pixels, keras.applications.efficientnet.preprocess_input) is pixels


def test_numbers_read_as_published():
    pixels = keras.Input((4, 4, 3))
    layer = keras.Model(pixels, preprocess(pixels, "caffe")).get_layer("preprocessing")
    assert list(layer.scale) == [1.0, 1.0, 1.0]
    assert list(layer.offset) == [-103.939, -116.779, -123.68]


def test_channels_in_reverse_order_alone():
    pixels = keras.Input((1, 1, 3))
    model = keras.Model(pixels, preprocess(pixels, lambda x: x[..., ::-1]))
    np.testing.assert_array_equal(model(np.array([[[[1.0, 2, 3]]]]))[0, 0, 0], [3, 2, 1])


@pytest.mark.parametrize("odd", [np.sqrt, lambda x: x.mean(-1, keepdims=True) + 0 * x, lambda x: np.roll(x, 1, -1)])
def test_what_is_no_scale_per_channel_is_refused(odd):
    with pytest.raises(ValueError, match="does not scale each channel on its own; expected a scale and an offset"):
        preprocess(keras.Input((4, 4, 3)), odd)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"preprocessing='imagenet'; expected one of none, -1\.\.1, 0\.\.1, caffe"):
        preprocess(keras.Input((4, 4, 3)), "imagenet")
