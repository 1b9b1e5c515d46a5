"""Families are told apart by their layers' names."""

import keras
import pytest

from thaw.models.applications import family_of


@pytest.mark.parametrize(
    ("name", "family"),
    [("VGG16", "vgg16"), ("Xception", "xception"), ("ResNet50", "resnet")],  # the first two share names of layers
)
def test_family_of_a_flat_and_renamed_net(name, family):
    net = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(96, 96, 3))
    found, function = family_of(keras.Model(net.input, net.output, name="my_dogs"))
    assert found == family
    assert function is getattr(keras.applications, family).preprocess_input


def test_strangers():
    x = inputs = keras.Input((16, 16, 3))
    for i in range(8):
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"mine_{i}")(x)
    assert family_of(keras.Model(inputs, x, name="my_dogs")) is None
