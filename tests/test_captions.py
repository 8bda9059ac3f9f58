"""Sentences: templates, words, and which of them are said of which image how often."""

import pytest
import torch
from conftest import data_args

from kit import attributes, words
from kit.captions import HELD_OUT, MOST, Captions, combinations
from kit.words import DIGITS, DRAWINGS, HELDOUT_TEMPLATES, TRAIN_TEMPLATES

WORDS = [("thin", "thick"), ("leaning left", "leaning right")]
ALL_WORDS = {x for pair in (*WORDS, ("simple", "detailed"), ("tall", "wide")) for x in pair}


def with_states(config, states, monkeypatch, names=("thickness", "slant"), pairs=WORDS):
    """The captions of images that are measured as these states (N, 2) of -1, 0, 1."""
    monkeypatch.setattr(attributes, "measured", lambda *_: states.numpy().astype(float))
    chosen = {name: dict(zip(pair, (-0.5, 0.5))) for name, pair in zip(names, pairs)}
    labels = torch.arange(len(states)) % len(config.classes)
    pixels = torch.zeros(len(states), 28, 28, dtype=torch.uint8)
    return Captions(config, pixels, labels, chosen)


@pytest.fixture
def digits(monkeypatch):
    torch.manual_seed(0)
    return with_states(data_args(), torch.randint(-1, 2, (6000, 2)), monkeypatch)


def texts_of(captions, i, said):
    return [captions.sentences[x] for x in captions.find(i, said).tolist()]


def test_every_sentence_fits_its_image(digits):
    i = torch.arange(6000)
    assert torch.equal(digits.states, digits.states.sign()) and digits.states.dtype == torch.int8
    said = digits.say(i)
    for k, text in enumerate(texts_of(digits, i, said)):
        label, state = int(digits.labels[k]), digits.states[k].tolist()
        assert any(word in text for word in (DIGITS[label], str(label)))
        for pair, of_image, of_text in zip(WORDS, state, said[k].tolist()):
            for word, value in zip(pair, (-1, 1)):
                assert (word in text) == (of_text == value), (text, of_text)
                assert word not in text or of_image == value, (text, state)


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


def test_an_image_is_drawn_three_times_as_often_for_each_word_that_fits(digits):
    """So captions without words stand for all images: none is rarer for having a word."""
    i = digits.draw(90_000)
    fitting = (digits.states != 0).sum(1)
    counts = torch.bincount(i, minlength=6000).float()
    means = [counts[fitting == k].mean().item() for k in (0, 1, 2)]
    assert [mean / means[0] for mean in means] == pytest.approx([1, 3, 9], rel=0.1)
    silent = digits.states[i[(digits.say(i) == 0).all(1)]]
    usual = ~((digits.states == torch.tensor(HELD_OUT)).all(1))
    for state in ((0, 0), (-1, 0), (0, 1), (-1, -1), (1, 1)):
        of_all = (digits.states == torch.tensor(state)).all(1).float().mean() / usual.float().mean()
        unpaired = silent[~(silent == torch.tensor(HELD_OUT)).all(1)]
        share = (unpaired == torch.tensor(state)).all(1).float().mean()
        assert share == pytest.approx(of_all.item(), abs=0.02), state


def test_the_held_out_pair_stands_in_no_sentence(digits):
    sentences = digits.sentences
    assert len({*sentences}) == len(sentences) == 10 * 32 * 8
    assert not any("thick" in text and "left" in text for text in sentences)
    assert any("thick" in text and "right" in text for text in sentences)
    assert combinations(2)[0] == (0, 0) and combinations(2)[-1] == HELD_OUT
    assert len({*combinations(2)}) == 9 and combinations(0) == [()]
    assert not any(
        template.format(DIGITS[3]) in {*sentences} for template in HELDOUT_TEMPLATES["mnist"]
    )


@pytest.mark.parametrize("classes", [2, 62, 345])
def test_with_many_classes_some_sentences_evenly_chosen(classes, monkeypatch):
    config = data_args("quickdraw", [f"thing{i}x" for i in range(classes)])
    pairs = [("simple", "detailed"), ("tall", "wide")]
    states = torch.zeros(10, 2, dtype=torch.int8)
    sentences = with_states(config, states, monkeypatch, ("ink", "shape"), pairs).sentences
    assert MOST == 6000 and classes * 8 <= len(sentences) <= MOST
    assert len({*sentences}) == len(sentences)
    counts = [sum(f"thing{i}x" in text for text in sentences) for i in range(classes)]
    assert len({*counts}) == 1 and counts[0] == len(sentences) / classes
    starts = "a doodle of", "please draw", "draw me", "the outline of"
    of_template = [sum(text.startswith(start) for text in sentences) for start in starts]
    assert max(of_template) <= 1.25 * min(of_template)


@pytest.mark.parametrize("known", [0, 1])
def test_with_fewer_words_there_are_fewer_sentences(known, monkeypatch):
    states = torch.tensor([[-1], [0], [1], [0]]).repeat(500, 1)[:, :known]
    captions = with_states(data_args(), states.int(), monkeypatch, pairs=WORDS[:known])
    i = captions.draw(5000)
    said = captions.say(i)
    assert said.shape == (5000, known) and len(captions.sentences) == 320 * 3**known
    assert all(len(text) for text in texts_of(captions, i, said))
    if known:
        assert (said == 0).float().mean() == pytest.approx(0.5, abs=0.03)


# ── Words ──


def test_templates_name_one_class_and_are_trained_or_held_out():
    for kind in TRAIN_TEMPLATES:
        trained, heldout = TRAIN_TEMPLATES[kind], HELDOUT_TEMPLATES[kind]
        assert len({*trained}) >= 12 and len({*heldout}) >= 10 and not {*trained} & {*heldout}
        for template in trained + heldout:
            assert template.count("{}") == 1
            used = {*template.replace("{}", "").lower().split()}
            assert not used & {part for word in ALL_WORDS for part in word.split()}, template


def test_words_stand_where_english_has_them():
    spoken = words.class_words(data_args(), ("thick", "leaning left"))
    assert spoken[7] == ("thick seven leaning left", "thick 7 leaning left")
    drawings = words.class_words(data_args("quickdraw", DRAWINGS), ("simple", "wide"))
    assert drawings[0] == ("simple wide apple", "a simple wide apple")
    assert drawings[3] == ("simple wide eyeglasses", "simple wide eyeglasses")
    assert words.class_words(data_args("quickdraw", DRAWINGS))[0] == ("apple", "an apple")
    groups = words.phrasings(data_args(), {"mnist": ["draw {}", "{}!"]}, ("thin",))
    assert groups[7] == ["draw thin seven", "draw thin 7", "thin seven!", "thin 7!"]


ODD = ("007", "$5 or $x$", "c++", "an (odd) one", "été")


@pytest.mark.parametrize(
    "text", ["画一个seven", "画7吧", "画一个７", "ｓｅｖｅｎ please", "七(7)", "SEVEN!"]
)
def test_a_class_word_is_found_in_full_width_and_beside_chinese(text):
    assert words.names_a_class(data_args(), text)


@pytest.mark.parametrize("text", ["17", "seventeen", "七", "a bold figure", ""])
def test_no_class_word_is_found_where_there_is_none(text):
    assert not words.names_a_class(data_args(), text)


@pytest.mark.parametrize("name", ODD)
def test_a_class_of_any_name_is_found(name):
    """Its name may begin or end with a sign that is no letter."""
    config = data_args("folder", (name, "other"))
    for text in (name, f"a {name}, drawn in seconds", f"{name}!"):
        assert words.names_a_class(config, text), text
    assert not words.names_a_class(config, "a bold figure")
