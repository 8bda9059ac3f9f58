"""What an image shows beside its class: measures of known shapes, thresholds, states."""

import numpy as np
import pytest
from conftest import data_args

from kit import attributes
from kit.data import embedded_mnist

MEASURES = attributes.thickness, attributes.slant, attributes.ink, attributes.shape


def stroke(width, angle, length=18.0, fine=8):
    """uint8 (28, 28): a stroke through the middle; angle in degrees from upright, right is +."""
    steps = (np.arange(28 * fine) + 0.5) / fine - 14
    y, x = np.meshgrid(steps, steps, indexing="ij")
    a = np.radians(angle)
    along, across = x * np.sin(a) - y * np.cos(a), x * np.cos(a) + y * np.sin(a)
    inside = (abs(along) <= length / 2) & (abs(across) <= width / 2)
    return (inside.reshape(28, fine, 28, fine).mean((1, 3)) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("width", [1.5, 2, 3, 4, 5])
def test_thickness_and_slant_are_those_of_a_drawn_stroke(width):
    angles = np.array([-30, -20, -10, 0, 10, 20, 30, -40, 90])
    strokes = np.stack([stroke(width, angle) for angle in angles])
    assert abs(attributes.thickness(strokes) - width).max() < 0.3
    assert width > 3 or abs(attributes.slant(strokes) - angles)[:7].max() < 2


def test_shape_and_ink():
    wide, tall = stroke(4, 90), stroke(4, 0)
    shape = attributes.shape(np.stack([wide, tall, np.maximum(wide, tall)]))
    # Standard deviations 18 and 4 over the root of 12, and a pixel's own 1 / 12 in either.
    expected = np.log2((18**2 + 1) / (4**2 + 1)) / 2
    assert shape == pytest.approx([expected, -expected, 0], abs=0.1)
    assert attributes.ink(wide[None]) == pytest.approx(4 * 18 / 784, rel=0.01)


def test_place_does_not_count_and_an_image_without_ink_is_neither_low_nor_high():
    one = stroke(3, 20, 12)
    images = np.stack([one, np.roll(one, (4, -5), (0, 1)), np.zeros((28, 28), np.uint8)])
    for measure in MEASURES:
        first, moved, blank = measure(images)
        assert moved == pytest.approx(first, abs=1e-6) and np.isnan(blank)
    chosen = {"thickness": {"thin": 2.0, "thick": 3.0}, "slant": {"leaning left": -1.0, "b": 1.0}}
    values = np.array([[1, -2], [np.nan, np.nan], [2.5, 0], [4, 2]])
    assert attributes.states(data_args(), values, chosen).tolist() == [
        [-1] * 2,
        [0] * 2,
        [0] * 2,
        [1] * 2,
    ]
    slant = {"slant": chosen["slant"]}
    assert attributes.states(data_args(), values, slant).tolist() == [[-1], [0], [0], [1]]


def test_thresholds_are_quantiles_of_the_training_digits():
    pixels, config = embedded_mnist("train")[0][::25].numpy(), data_args()
    values = attributes.measured(config, pixels)
    chosen = attributes.thresholds(config, values)
    assert [(x, *y) for x, y in chosen.items()] == [
        ("thickness", "thin", "thick"), ("slant", "leaning left", "leaning right")]  # fmt: skip
    states = attributes.states(config, values, chosen)
    assert states.dtype == np.int8 and states.shape == (200, 2)
    for state in (-1, 1):
        assert (states == state).mean(0) == pytest.approx([0.25, 0.2], abs=0.01)
    ink = pixels.mean((1, 2))
    assert ink[states[:, 0] == 1].mean() > 1.5 * ink[states[:, 0] == -1].mean()


def test_what_separates_nothing_is_left_out_and_said(capfd):
    values = np.stack([np.full(100, 2.0), np.arange(100.0)], 1)
    assert [*attributes.thresholds(data_args(), values)] == ["slant"]
    (said,) = capfd.readouterr().err.splitlines()
    assert "thin" in said and "thick" in said and "hardly differ" in said
    assert attributes.thresholds(data_args(), np.full((100, 2), np.nan)) == {}
    config, values = data_args("quickdraw", ("owl", "wide load")), np.random.rand(100, 2)
    (ink,) = attributes.thresholds(config, values).values()
    assert [*ink] == ["simple", "detailed"], "a class has the name of the others"
    assert "class" in capfd.readouterr().err.splitlines()[-1]
