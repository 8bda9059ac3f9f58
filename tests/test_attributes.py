"""What sentences say beside the class: measures, thresholds, and which captions fit an image."""

import itertools

import numpy as np
import pytest
import torch
from conftest import data_args

from kit import attributes, captions, words
from kit.captions import HELD_OUT, MOST, Captions, combinations
from kit.data import embedded_mnist
from kit.words import DIGITS, HELDOUT_TEMPLATES, TRAIN_TEMPLATES

MEASURES = attributes.thickness, attributes.slant, attributes.ink, attributes.shape
WORDS = [("thin", "thick"), ("leaning left", "leaning right")]


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
    expected = np.int8([[-1, -1], [0, 0], [0, 0], [1, 1]])
    assert (attributes.states(data_args(), values, chosen) == expected).all()
    slant = {"slant": chosen["slant"]}
    assert (attributes.states(data_args(), values, slant) == expected[:, 1:]).all()


def test_thresholds_are_quantiles_of_the_training_digits():
    pixels, config = embedded_mnist("train")[0][::100].numpy(), data_args()
    values = attributes.measured(config, pixels)
    chosen = attributes.thresholds(config, values)
    assert [*chosen] == ["thickness", "slant"] and [*map(tuple, chosen.values())] == WORDS
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


def with_states(config, states, monkeypatch, names=("thickness", "slant"), pairs=WORDS):
    """The captions of images that are measured as these states (N, 2) of -1, 0, 1."""
    monkeypatch.setattr(attributes, "measured", lambda *_: states.numpy().astype(float))
    chosen = {name: dict(zip(pair, (-0.5, 0.5))) for name, pair in zip(names, pairs)}
    labels = torch.arange(len(states)) % len(config.classes)
    return Captions(config, torch.zeros(len(states), 28, 28).byte(), labels, chosen)


@pytest.fixture
def digits(monkeypatch):
    torch.manual_seed(0)
    return with_states(data_args(), torch.randint(-1, 2, (6000, 2)), monkeypatch)


def test_every_sentence_fits_its_image(digits):
    i = torch.arange(6000)
    said = digits.mention(i)
    rows = zip(digits.find(i, said).tolist(), digits.labels.tolist(), digits.states, said)
    for sentence, label, states, of_text in rows:
        text = digits.sentences[sentence]
        assert any(word in text for word in (DIGITS[label], str(label)))
        for pair, state, spoken in zip(WORDS, states.tolist(), of_text.tolist()):
            for word, value in zip(pair, (-1, 1)):
                assert (word in text) == (spoken == value), (text, spoken)
                assert word not in text or state == value, (text, state)


def test_a_word_that_fits_is_said_two_of_three_times_and_the_pair_never(digits):
    i = torch.arange(6000).repeat(5)
    said, states = digits.mention(i), digits.states[i]
    pair = (states == torch.tensor(HELD_OUT)).all(1)  # thick and leaning left
    assert HELD_OUT == (1, -1) and not (said == torch.tensor(HELD_OUT)).all(1).any()
    for k in (0, 1):
        asked = (states[:, k] != 0) & ~pair
        assert (said[asked, k] != 0).float().mean() == pytest.approx(2 / 3, abs=0.02)
        assert (said[pair, k] != 0).float().mean() == pytest.approx(2 / 5, abs=0.03)
    both = (said != 0).all(1)[(states != 0).all(1) & ~pair]
    assert both.float().mean() == pytest.approx(4 / 9, abs=0.02)


def test_what_is_said_goes_with_what_is_not_said_as_often_as_in_the_data(digits):
    """No leak: "thick" alone would go with left-leaning images more often than thick images do."""
    i, pair = digits.pick(200_000), (digits.states == torch.tensor(HELD_OUT)).all(1)
    fitting, counts = (digits.states != 0).sum(1), torch.bincount(i, minlength=6000).float()
    groups = [(fitting == k) & ~pair for k in (0, 1, 2)] + [pair]
    means = [counts[group].mean().item() for group in groups]
    turns = [mean / means[0] for mean in means]
    assert turns == pytest.approx([1, 3, 9, 5], rel=0.1), "three for each word, five for the pair"
    said, states = digits.mention(i), digits.states[i]
    for asked in map(torch.tensor, combinations(2)[:5]):  # nothing, or one word
        shown = states[(said == asked).all(1)]
        of_data = digits.states[((digits.states == asked) | (asked == 0)).all(1)]
        for state in itertools.product((-1, 0, 1), repeat=2):
            one, other = ((x == torch.tensor(state)).all(1) for x in (shown, of_data))
            assert abs(one.float().mean() - other.float().mean()) < 0.015, (asked, state)


def test_the_held_out_pair_needs_two_attributes_and_can_be_left_out(digits, monkeypatch):
    """One is left where all images are equally thick."""
    one = with_states(data_args(), digits.states, monkeypatch, ("slant",), WORDS[1:])
    high = one.states[:, 0] == 1
    said = one.mention(high.nonzero()[:, 0])
    assert said.shape[1] == 1 and said.float().mean() == pytest.approx(2 / 3, abs=0.03)
    assert len(one.turns) == (3 ** (one.states != 0)).sum()
    monkeypatch.setattr(captions, "HELD_OUT_TURNS", 0)
    none = with_states(data_args(), digits.states, monkeypatch)
    assert not (digits.states[none.turns.long()] == torch.tensor(HELD_OUT)).all(1).any()
    assert none.turns.unique().numel() == (digits.states != torch.tensor(HELD_OUT)).any(1).sum()


def test_the_held_out_pair_stands_in_no_sentence(digits):
    sentences = digits.sentences
    assert len({*sentences}) == len(sentences) == 10 * 32 * 8
    assert not any("thick" in text and "left" in text for text in sentences)
    assert any("thick" in text and "right" in text for text in sentences)
    assert combinations(2)[0] == (0, 0) and combinations(2)[-1] == HELD_OUT
    assert len({*combinations(2)}) == 9 and combinations(0) == [()]
    assert not {x.format("three") for x in HELDOUT_TEMPLATES["mnist"]} & {*sentences}


@pytest.mark.parametrize("classes", [2, 62, 345])
def test_with_many_classes_some_sentences_evenly_chosen(classes, monkeypatch):
    config = data_args("quickdraw", [f"thing{i}x" for i in range(classes)])
    pairs, states = [("simple", "detailed"), ("tall", "wide")], torch.zeros(10, 2)
    sentences = with_states(config, states, monkeypatch, ("ink", "shape"), pairs).sentences
    assert MOST == 6000 and classes * 8 <= len({*sentences}) == len(sentences) <= MOST
    counts = [sum(f"thing{i}x" in text for text in sentences) for i in range(classes)]
    assert {*counts} == {len(sentences) / classes}
    starts = "a doodle of", "please draw", "draw me", "the outline of"
    of_template = [sum(text.startswith(start) for text in sentences) for start in starts]
    assert max(of_template) <= 1.25 * min(of_template)


def test_templates_name_one_class_and_are_trained_or_held_out():
    pairs = (*WORDS, ("simple", "detailed"), ("tall", "wide"))
    taken = {part for pair in pairs for word in pair for part in word.split()}
    for kind in TRAIN_TEMPLATES:
        trained, heldout = TRAIN_TEMPLATES[kind], HELDOUT_TEMPLATES[kind]
        assert len({*trained}) >= 12 and len({*heldout}) >= 10 and not {*trained} & {*heldout}
        for template in trained + heldout:
            assert template.count("{}") == 1
            assert not {*template.replace("{}", "").lower().split()} & taken, template


@pytest.mark.parametrize("name", ["007", "$5 or $x$", "c++", "an (odd) one", "été"])
def test_class_words_are_found(name):
    """In full width, beside Chinese, and where they end with a sign that is no letter."""
    for text in ("画一个seven", "画7吧", "画一个７", "ｓｅｖｅｎ please", "七(7)", "SEVEN!"):
        assert words.names_a_class(data_args(), text), text
    for text in ("17", "seventeen", "七", "a bold figure", ""):
        assert not words.names_a_class(data_args(), text), text
    for text in (name, f"a {name}, drawn in seconds", f"{name}!"):
        assert words.names_a_class(data_args("folder", (name, "other")), text), text
