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
def test_thickness_is_the_width_of_a_drawn_stroke(width):
    strokes = np.stack([stroke(width, angle) for angle in (-40, -30, -10, 0, 5, 20, 90)])
    assert abs(attributes.thickness(strokes) - width).max() < 0.3


@pytest.mark.parametrize("width", [1.5, 2, 3])
def test_slant_is_the_angle_of_a_drawn_stroke(width):
    angles = np.array([-30, -20, -10, 0, 10, 20, 30])
    strokes = np.stack([stroke(width, angle) for angle in angles])
    assert abs(attributes.slant(strokes) - angles).max() < 2


def test_shape_and_ink():
    wide, tall = stroke(4, 90), stroke(4, 0)
    shape = attributes.shape(np.stack([wide, tall, np.maximum(wide, tall)]))
    # Standard deviations 18 and 4 over the root of 12, and a pixel's own 1 / 12 in either.
    expected = np.log2((18**2 + 1) / (4**2 + 1)) / 2
    assert shape == pytest.approx([expected, -expected, 0], abs=0.1)
    assert attributes.ink(wide[None]) == pytest.approx(4 * 18 / 784, rel=0.01)
    assert attributes.ink(np.full((1, 28, 28), 255, np.uint8)) == 1


def test_neither_place_nor_neighbours_count():
    one = stroke(3, 20, 12)
    moved = np.roll(one, (4, -5), (0, 1))
    for measure in MEASURES:
        pair = measure(np.stack([moved, one, stroke(5, 0)]))
        assert pair[0] == pytest.approx(measure(one[None])[0], abs=1e-6) == pair[1]


def test_an_image_without_ink_is_neither_low_nor_high():
    blank = np.zeros((2, 28, 28), np.uint8)
    for measure in MEASURES:
        assert np.isnan(measure(blank)).all()
    chosen = {"thickness": {"thin": 2.0, "thick": 3.0}, "slant": {"leaning left": -1.0, "b": 1.0}}
    assert not attributes.states(data_args(), np.full((2, 2), np.nan), chosen).any()


def test_thresholds_are_quantiles_of_the_training_digits():
    pixels, config = embedded_mnist("train")[0][::25].numpy(), data_args()
    values = attributes.measured(config, pixels)
    chosen = attributes.thresholds(config, values)
    assert {name: [*pair] for name, pair in chosen.items()} == {
        "thickness": ["thin", "thick"],
        "slant": ["leaning left", "leaning right"],
    }
    states = attributes.states(config, values, chosen)
    assert states.dtype == np.int8 and states.shape == (200, 2)
    assert (states == -1).mean(0) == pytest.approx([0.25, 0.2], abs=0.01)
    assert (states == 1).mean(0) == pytest.approx([0.25, 0.2], abs=0.01)
    ink = pixels.mean((1, 2))
    assert ink[states[:, 0] == 1].mean() > 1.5 * ink[states[:, 0] == -1].mean()
    known = [[2.0, -40.0], [9.0, 40.0], [np.mean([*chosen["thickness"].values()]), np.nan]]
    assert attributes.states(config, np.array(known), chosen)[:2].tolist() == [[-1, -1], [1, 1]]
    assert attributes.states(config, np.array(known), chosen)[2].tolist() == [0, 0]
    only = {"slant": chosen["slant"]}
    assert attributes.states(config, values, only)[:, 0].tolist() == states[:, 1].tolist()


def test_drawings_are_simple_or_detailed_tall_or_wide(tmp_path):
    images = [stroke(w, a, n) for w in (1.5, 5) for a in (0, 90) for n in (8, 14, 20)]
    config = data_args("quickdraw", ("cat", "owl"), data_dir=tmp_path)
    values = attributes.measured(config, np.stack(images * 3))
    chosen = attributes.thresholds(config, values)
    assert [[*pair] for pair in chosen.values()] == [["simple", "detailed"], ["tall", "wide"]]
    states = attributes.states(config, values, chosen)
    assert states[0, 0] == -1 and states[11, 0] == 1, "little ink and much"
    assert states[2, 1] == -1 and states[5, 1] == 1, "upright and flat"
    assert (states[:3, 1] < 1).all() and (states[9:12, 1] > -1).all()


def test_what_separates_nothing_is_left_out_and_said(capfd):
    values = np.stack([np.full(100, 2.0), np.arange(100.0)], 1)
    assert [*attributes.thresholds(data_args(), values)] == ["slant"]
    (said,) = capfd.readouterr().err.splitlines()
    assert "thin" in said and "thick" in said and "hardly differ" in said
    assert attributes.thresholds(data_args(), np.full((100, 2), np.nan)) == {}
    config = data_args("quickdraw", ["cat", "wide load"])
    assert [*attributes.thresholds(config, np.random.rand(100, 2))] == ["ink"]
    assert "a class has such a name" in capfd.readouterr().err.splitlines()[-1]


def test_measures_are_found_by_content(tmp_path, monkeypatch):
    """And measured anew for other pixels."""
    pixels, config = embedded_mnist("test")[0][:6].numpy(), data_args(data_dir=tmp_path)
    values = attributes.measured(config, pixels)
    calls, thickness = [], attributes.thickness
    monkeypatch.setattr(attributes, "thickness", lambda x: calls.append(len(x)) or thickness(x))
    assert np.array_equal(attributes.measured(config, pixels.copy()), values) and not calls
    assert np.array_equal(attributes.measured(config, pixels[::-1].copy()), values[::-1])
    assert calls == [6]
