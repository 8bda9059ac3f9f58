"""Sentences: templates, words, and which of them are said of which image how often."""

import pytest
import torch
from conftest import data_args

from kit import attributes, words
from kit.captions import HELD_OUT, MOST, Captions, combinations
from kit.words import DIGITS, DRAWINGS, HELDOUT_TEMPLATES, TRAIN_TEMPLATES

WORDS = [("thin", "thick"), ("leaning left", "leaning right")]


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
    said = digits.say(i)
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
    said, states = digits.say(i), digits.states[i]
    pair = (states == torch.tensor(HELD_OUT)).all(1)  # thick and leaning left
    assert HELD_OUT == (1, -1) and not (said == torch.tensor(HELD_OUT)).all(1).any()
    for k in (0, 1):
        asked = (states[:, k] != 0) & ~pair
        assert (said[asked, k] != 0).float().mean() == pytest.approx(2 / 3, abs=0.02)
        assert (said[pair, k] != 0).float().mean() == pytest.approx(4 / 9, abs=0.03)
    both = (said != 0).all(1)[(states != 0).all(1) & ~pair]
    assert both.float().mean() == pytest.approx(4 / 9, abs=0.02)


def test_captions_without_words_stand_for_all_images(digits):
    """An image is drawn three times as often for each word, which is said two of three times."""
    i = digits.draw(90_000)
    fitting, counts = (digits.states != 0).sum(1), torch.bincount(i, minlength=6000).float()
    means = [counts[fitting == k].mean().item() for k in (0, 1, 2)]
    assert [mean / means[0] for mean in means] == pytest.approx([1, 3, 9], rel=0.1)
    silent = digits.states[i[(digits.say(i) == 0).all(1)]].tolist()
    usual = [x for x in silent if tuple(x) != HELD_OUT]  # whose shares are as in the data: 1 in 8
    for state in ([0, 0], [-1, 0], [0, 1], [-1, -1], [1, 1]):
        assert usual.count(state) / len(usual) == pytest.approx(1 / 8, abs=0.02), state


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


def test_words_stand_where_english_has_them():
    groups = words.phrasings(data_args(), {"mnist": ["draw {}", "{}!"]}, ("thick", "leaning left"))
    seven, digit = "thick seven leaning left", "thick 7 leaning left"
    assert groups[7] == [f"draw {seven}", f"draw {digit}", f"{seven}!", f"{digit}!"]
    drawings = words.class_words(data_args("quickdraw", DRAWINGS), ("simple", "wide"))
    assert [drawings[k][1] for k in (0, 3)] == ["a simple wide apple", "simple wide eyeglasses"]
    assert words.class_words(data_args("emnist", "AB"), ("thin",))[1] == ("thin B", "thin letter B")


@pytest.mark.parametrize("name", ["007", "$5 or $x$", "c++", "an (odd) one", "été"])
def test_class_words_are_found(name):
    """In full width, beside Chinese, and where they end with a sign that is no letter."""
    for text in ("画一个seven", "画7吧", "画一个７", "ｓｅｖｅｎ please", "七(7)", "SEVEN!"):
        assert words.names_a_class(data_args(), text), text
    for text in ("17", "seventeen", "七", "a bold figure", ""):
        assert not words.names_a_class(data_args(), text), text
    for text in (name, f"a {name}, drawn in seconds", f"{name}!"):
        assert words.names_a_class(data_args("folder", (name, "other")), text), text
