"""What sentences say beside the class: measures, thresholds, captions, obedience."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import data_args

import compare
from kit import attributes, captions, datasets, metrics, samples
from kit.base import UserError
from kit.datasets import DRAWINGS, HELDOUT_TEMPLATES, TRAIN_TEMPLATES
from kit.images import embedded_mnist


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
    plus = np.maximum(stroke(4, 90), stroke(4, 0))
    shape = attributes.shape(np.stack([wide, tall, plus]))
    # Standard deviations 18 and 4 over the root of 12, and a pixel's own 1 / 12 in either.
    expected = np.log2((18**2 + 1) / (4**2 + 1)) / 2
    assert shape == pytest.approx([expected, -expected, 0], abs=0.1)
    assert attributes.ink(wide[None]) == pytest.approx(4 * 18 / 784, rel=0.01)


def test_an_image_without_ink_is_neither_low_nor_high():
    blank = np.zeros((2, 28, 28), np.uint8)
    for attribute in (*attributes.WRITTEN, *attributes.DRAWN):
        assert np.isnan(attribute.measure(blank)).all()
    config, values = data_args(), np.full((2, 2), np.nan)
    chosen = {"thickness": {"thin": 2.0, "thick": 3.0}, "slant": {"leaning left": -1.0, "b": 1.0}}
    assert not attributes.states(config, values, chosen).any()


def test_thresholds_are_the_quantiles_of_the_training_digits(tmp_path):
    pixels, config = embedded_mnist("train")[0][::10], data_args(data_dir=tmp_path)
    start = time.process_time()  # which other processes do not add to
    values = attributes.measured(config, pixels.numpy())
    assert time.process_time() - start < 0.002 * len(pixels)  # 2 ms an image
    chosen = attributes.thresholds(config, values)
    assert list(chosen) == ["thickness", "slant"]
    assert list(chosen["slant"]) == ["leaning left", "leaning right"]
    states = attributes.states(config, values, chosen)
    assert (states == -1).mean(0) == pytest.approx([0.25, 0.2], abs=0.01)
    assert (states == 1).mean(0) == pytest.approx([0.25, 0.2], abs=0.01)
    thickest = pixels[values[:, 0].argmax()].float().mean()
    assert thickest > 2 * pixels[values[:, 0].argmin()].float().mean()


def test_measures_are_kept_by_content(tmp_path, monkeypatch):
    pixels, config = embedded_mnist("test")[0][:6].numpy(), data_args(data_dir=tmp_path)
    values = attributes.measured(config, pixels)
    calls = []
    counted = [x._replace(measure=lambda part, x=x: calls.append(1) or x.measure(part))
               for x in attributes.WRITTEN]  # fmt: skip
    monkeypatch.setattr(attributes, "of_dataset", lambda dataset: counted)
    for x, old in zip(counted, attributes.WRITTEN):
        x.measure.__name__ = old.measure.__name__
    assert np.array_equal(attributes.measured(config, pixels), values) and not calls
    attributes.measured(config, pixels[::-1])
    assert len(calls) == 2


def test_an_attribute_that_separates_nothing_is_left_out_and_said(capfd):
    values = np.stack([np.full(100, 2.0), np.arange(100.0)], 1)
    assert list(attributes.thresholds(data_args(), values)) == ["slant"]
    assert "no caption says thin or thick" in capfd.readouterr().err
    config = data_args("quickdraw", ["cat", "wide load"])
    assert list(attributes.thresholds(config, np.random.rand(100, 2))) == ["ink"]
    assert "its words name a class" in capfd.readouterr().err


@pytest.mark.parametrize("templates", [TRAIN_TEMPLATES, HELDOUT_TEMPLATES])
def test_no_template_says_an_attributes_word(templates):
    words = {word for attribute in (*attributes.WRITTEN, *attributes.DRAWN)
             for word in f"{attribute.low} {attribute.high}".split()}  # fmt: skip
    for group in templates.values():
        for template in group:
            assert not words & {*template.replace("{}", "").lower().split()}, template


# ── Captions ──

WORDS = [("thin", "thick"), ("leaning left", "leaning right")]


def made(config, n=4000, words=WORDS):
    torch.manual_seed(0)
    labels = torch.arange(n) % len(config.classes)
    states = torch.randint(-1, 2, (n, len(words)), dtype=torch.int8)
    return captions.Captions(config, labels, states, words)


def test_a_caption_says_no_more_than_what_is_so_and_two_of_three_times():
    them, n = made(data_args()), 4000
    i = torch.arange(n)
    sentences = [them.sentences[x] for x in them.find(i, them.say(i)).tolist()]
    said = torch.zeros(n, 2)
    for row, text, label, states in zip(said, sentences, them.labels, them.states.tolist()):
        assert any(word in text for word in (datasets.DIGITS[label], str(int(label))))
        for k, (low, high) in enumerate(WORDS):
            for word, state in ((low, -1), (high, 1)):
                if word in text:
                    assert states[k] == state, (text, states)
                    row[k] = state
    pair = (them.states == torch.tensor([1, -1])).all(1)  # thick and leaning left
    for k in (0, 1):
        asked = (them.states[:, k] != 0) & ~pair
        assert (said[asked, k] != 0).float().mean() == pytest.approx(2 / 3, abs=0.03)
        assert (said[pair, k] != 0).float().mean() == pytest.approx(4 / 9, abs=0.06)
    both = (said != 0).all(1)[(them.states != 0).all(1) & ~pair]
    assert both.float().mean() == pytest.approx(4 / 9, abs=0.05)


def test_captions_without_words_stand_for_all_images():
    """What is thin is as frequent among them as in the data, though its word is often said."""
    torch.manual_seed(0)
    states = torch.tensor([-1, 1, 0, 0], dtype=torch.int8).repeat(500)[:, None]  # quartiles
    labels = torch.zeros(2000, dtype=torch.long)
    them = captions.Captions(data_args(), labels, states, WORDS[:1])
    i = them.draw(60_000)
    said = them.say(i)[:, 0]
    assert (said == 0).float().mean() == pytest.approx(0.5, abs=0.01)  # half of all captions
    silent = states[i[said == 0], 0]
    for state, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        assert (silent == state).float().mean() == pytest.approx(share, abs=0.01)


def test_the_held_out_pair_stands_in_no_sentence():
    sentences = made(data_args()).sentences
    assert len({*sentences}) == len(sentences) == 10 * 32 * 8
    assert not any("thick" in text and "left" in text for text in sentences)
    assert any("thick" in text and "right" in text for text in sentences)


@pytest.mark.parametrize("classes", [62, 345, 2])
def test_with_many_classes_some_sentences_evenly_chosen(classes):
    config = data_args("quickdraw", [f"thing{i}x" for i in range(classes)])
    words = [("simple", "detailed"), ("tall", "wide")]
    sentences = made(config, 10, words).sentences
    assert classes * 8 <= len(sentences) <= captions.MOST
    assert len({*sentences}) == len(sentences)
    counts = [sum(f"thing{i}x" in text for text in sentences) for i in range(classes)]
    assert len({*counts}) == 1
    starts = "a doodle of", "please draw", "draw me", "the outline of"
    of_template = [sum(text.startswith(start) for text in sentences) for start in starts]
    assert max(of_template) <= 1.25 * min(of_template)


def test_words_stand_where_english_has_them():
    words = datasets.class_words(data_args(), ("thick", "leaning left"))
    assert words[7] == ("thick seven leaning left", "thick 7 leaning left")
    words = datasets.class_words(data_args("quickdraw", DRAWINGS), ("simple", "wide"))
    assert words[0] == ("simple wide apple", "a simple wide apple")
    assert words[3] == ("simple wide eyeglasses", "simple wide eyeglasses")
    assert datasets.class_words(data_args("quickdraw", DRAWINGS))[0] == ("apple", "an apple")
    letters = data_args("emnist", datasets.EMNIST_SPLITS["letters"])
    assert datasets.class_words(letters, ("thin",))[1] == ("thin B", "thin letter B")


# ── Prompts of the sample file, and obedience ──


def test_prompts_ask_for_every_combination_with_the_same_noise():
    attributes_of_run = {"thickness": dict.fromkeys(WORDS[0], 1.0),
                         "slant": dict.fromkeys(WORDS[1], 1.0)}  # fmt: skip
    arrays = samples.attribute_prompts(data_args(), attributes_of_run, 2000)
    assert arrays["asked"].shape == (9 * 220, 2) and arrays["asked"].dtype == np.int8
    asked = [tuple(row) for row in arrays["asked"][::220].tolist()]
    assert {*asked} == {*itertools.product((-1, 0, 1), repeat=2)}
    assert asked[0] == (0, 0) and asked[-1] == captions.UNSAID
    for name in ("noise", "labels"):
        assert (arrays[name].reshape(9, 220) == arrays[name][:220]).all()
    assert arrays["labels"][:11].tolist() == [*range(10), 0]
    assert arrays["prompts"][7] == "seven"
    assert arrays["prompts"][-220 + 7] == "thick seven leaning left"


def test_obedience_counts_what_is_as_asked():
    asked = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [-1, 1], [-1, 1]])
    states = np.array([[1, 0], [-1, 1], [1, 0], [1, 0], [-1, 1], [-1, -1]])
    right = np.array([True, False, False, True, True, True])
    shares = metrics.obedience(asked, states, right)
    assert shares[0, 0]["as_asked"] == 1 and shares[0, 0]["accuracy"] == 0.5
    thick = shares[1, 0]
    assert (thick["as_asked"], thick["everything"], thick["accuracy"]) == (1.0, 0.5, 0.5)
    assert (thick["without_asking"], thick["everything_without_asking"]) == (0.5, 0.5)
    pair = shares[-1, 1]
    assert (pair["as_asked"], pair["single"], pair["everything"]) == (0.5, [1.0, 0.5], 0.5)
    assert (pair["without_asking"], pair["everything_without_asking"]) == (0.5, 0.0)


FOUND = "画一个seven", "画7吧", "画一个７", "ｓｅｖｅｎ please", "七(7)"


@pytest.mark.parametrize("text", FOUND)
def test_a_class_word_is_found_in_full_width_and_beside_chinese(text):
    assert datasets.names_a_class(data_args(), text)


@pytest.mark.parametrize("text", ["17", "seventeen", "七", "a bold figure"])
def test_no_class_word_is_found_where_there_is_none(text):
    assert not datasets.names_a_class(data_args(), text)


def test_the_table_of_obedience_has_floors_and_the_spread_over_seeds():
    rows = []
    for seed, share in ((0, 0.9), (1, 0.8)):
        for asked, kind in (("nothing", "nothing"), ("thin", "one word"), ("thick", "one word"),
                            ("thin, leaning left", "said pair"),
                            ("thick, leaning left", "held-out pair")):  # fmt: skip
            row = {"model": "a4_full", "scale": 2.0, "seed": seed, "asked": asked, "kind": kind}
            row |= {"n": 220, "as_asked": share, "without_asking": 0.25, "accuracy": 1.0}
            row |= {"everything": share, "everything_without_asking": 0.2}
            rows.append(row)
    (cells,) = compare.obeyed(pd.DataFrame(rows)).to_dict("records")
    assert (cells["model"], cells["scale"], cells["n of each"], cells["seeds"]) == (
        "a4_full", "2", "220", "2")  # fmt: skip
    assert cells["thin"] == "85.0% ± 7.1% (25%)" and cells["held-out pair: both"] == cells["thin"]
    assert cells["one word: everything"] == "85.0% ± 7.1% (20%)"
    assert cells["one word: class"] == "100.0% ± 0.0%"


def test_a_sample_file_without_what_was_asked_is_one_line(tmp_path):
    path = tmp_path / "samples_attributes_w1.0.npz"
    np.savez(path, labels=np.zeros(4, np.int64), asked=np.full((4, 2), 7))
    with pytest.raises(UserError, match="asked holds"):
        samples.load_asked(path, 2)
    np.savez(path, labels=np.zeros(4, np.int64))
    with pytest.raises(UserError, match="move it away and give its script"):
        samples.load_asked(path, 2)
