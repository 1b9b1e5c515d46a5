"""Every family of keras.applications: raw pixels reach the first weights scaled once, as published, and the stages are
found, flat and nested."""

import math

import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.applications import application_names, find_application
from thaw.models.backbone import backbone
from thaw.models.stages import calls_of, stages_of

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Published conventions, written down apart from the code under test.
PUBLISHED = {
    "-1..1": lambda x: x / 127.5 - 1,
    "/128-1": lambda x: x / 128 - 1,
    "caffe": lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68]),
    "torch": lambda x: (x / 255 - MEAN) / DEVIATION,
    "0..1": lambda x: x / 255,
}
# The smallest net of each module, and how many stages it has before the head. EfficientNet's mean and deviation come
# with its weights: without them, 0..1 is right.
SMALLEST = {
    "convnext_tiny": ("torch", 4),
    "densenet121": ("torch", 5),
    "efficientnet_b0": ("0..1", 5),
    "efficientnet_v2_b0": ("torch", 5),
    "efficientnet_v2_s": ("/128-1", 5),
    "inception_resnet_v2": ("-1..1", 5),
    "inception_v3": ("-1..1", 5),
    "mobilenet": ("-1..1", 5),
    "mobilenet_v2": ("-1..1", 5),
    "mobilenet_v3_small": ("-1..1", 5),
    "nasnet_mobile": ("-1..1", 5),
    "resnet50": ("caffe", 5),
    "resnet50_v2": ("-1..1", 5),
    "vgg16": ("caffe", 5),
    "vgg19": ("caffe", 5),
    "xception": ("-1..1", 5),
}


@pytest.fixture(scope="module", params=SMALLEST)
def family(request):
    """The name of a net, and the net, made for pictures of any size; it takes seconds to build and is only read."""
    size = 224 if request.param == "nasnet_mobile" else None  # this one is made for one size only
    return request.param, backbone(request.param, weights=None, input_shape=(size, size, 3))


def seen_by_the_first_weights(model, pixels):
    """What the first layer that learns is given, before the border of zeros that some lay around it."""
    scaling = (layers.Rescaling, layers.Normalization)
    first = next(
        x for x in model.layers if isinstance(x, layers.ZeroPadding2D) or (x.weights and not isinstance(x, scaling))
    )
    return keras.Model(model.inputs[0], first.input)(pixels).numpy()


def test_every_family_is_in_the_table():
    scaling = {find_application(name)[1] for name in application_names()}
    assert scaling == {find_application(name)[1] for name in SMALLEST}
    assert len(application_names()) >= 38


def test_backbone_scales_pixels_once_as_published(family):
    name, model = family
    size = model.input_shape[1] or 32
    pixels = np.random.default_rng(7).integers(0, 256, (2, size, size, 3)).astype("float32")
    pixels[:, 0], pixels[:, -1] = 0, 255
    expected = PUBLISHED[SMALLEST[name][0]](pixels.astype("float64"))
    found = seen_by_the_first_weights(model, pixels)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert not any(isinstance(layer, keras.Model) and "preprocess" in layer.name for layer in model.layers)
    assert len(model.output_shape) == 4
    # An integer picture gives the same as one in floating point.
    np.testing.assert_array_equal(seen_by_the_first_weights(model, pixels.astype("uint8")), found)


def test_stages_of_every_family_flat_and_nested(assert_partition, family):
    name, inner = family
    flat = stages_of(inner)
    assert [stage.name for stage in flat] == [f"stage{i + 1}" for i in range(SMALLEST[name][1])]  # a map: no head
    assert_partition(inner, flat)
    # As the guide to transfer learning writes it.
    entry = keras.Input((224, 224, 3))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(inner(entry, training=False)))
    model = keras.Model(entry, layers.Dense(5)(x))
    found = stages_of(model)
    assert [stage.name for stage in found] == [*(stage.name for stage in flat), "head"]
    assert_partition(model, found)
    # The same layers, however it is wrapped and whatever size it is used at.
    assert [s.layers for s in found[:-1]] == [s.layers for s in flat]
    assert [type(layer).__name__ for layer in found[-1].layers] == ["GlobalAveragePooling2D", "Dropout", "Dense"]
    assert found[-1].shape == (5,)
    assert all(stage.parameters for stage in found)
    # Each grid is half of the one before, but where the boundary lies behind the pooling that halves it.
    grids = [stage.shape[0] for stage in found[:-1]]
    assert grids[0] >= 50
    assert grids[-1] <= 7
    for above, below in zip(grids, grids[1:]):
        assert above == below or 1.7 <= above / below <= 2.5  # 12 to 5 where the border falls away
    # One tensor crosses each boundary, but in nets whose cells all read the last two.
    if name != "nasnet_mobile":
        calls = calls_of(model)
        at = {id(call.layer): i for i, call in enumerate(calls)}
        for before, stage in zip(found, found[1:]):
            begin = at[id(stage.layers[0])]
            made = {key for call in calls[:begin] for key in call.outputs}
            assert len({key for call in calls[begin:] for key in call.inputs if key in made}) == 1
            assert stage.crossing == 4 * math.prod(before.shape)
