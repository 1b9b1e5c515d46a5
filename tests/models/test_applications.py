"""Families are told apart by their layers' names."""

import keras
import pytest

from thaw.models.applications import family_of


@pytest.mark.parametrize(
    ("name", "family"),
    [("MobileNetV2", "mobilenet_v2"), ("VGG16", "vgg16"), ("Xception", "xception"), ("ResNet50", "resnet")],
)
def test_flat_and_renamed(name, family):
    net = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(96, 96, 3))
    found, function = family_of(keras.Model(net.input, net.output, name="my_dogs"))
    assert found == family
    assert function is getattr(keras.applications, family).preprocess_input


def test_strangers():
    x = inputs = keras.Input((16, 16, 3))
    for i in range(8):
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"mine_{i}")(x)
    assert family_of(keras.Model(inputs, x, name="my_dogs")) is None
