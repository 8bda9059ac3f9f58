"""The tiny CLIP: what the one in the repository reads, its captions, its training."""

import numpy as np
import pytest
import torch
from conftest import CPU, ROOT, data_args
from test_attributes import with_states

import common
from kit import tiny_clip, words
from kit.attributes import thickness
from kit.clip import tokenizer
from kit.data import embedded_mnist, to_images
from kit.files import UserError


def test_the_one_in_the_repository_reads_digits_and_phrasings_it_never_saw():
    """Zero-shot as in CLIP Sec. 3.1: a class is the mean of its training phrasings."""
    shipped, config = common.load_clip(data_args(), CPU), data_args()
    groups = words.phrasings(config, words.TRAIN_TEMPLATES)
    classes = torch.stack([shipped.encode_text(group).mean(0) for group in groups])  # (10, dim)
    pixels, labels = embedded_mnist("test")
    images = shipped.encode_image(to_images(pixels[::5]))
    right = (images @ classes.T).argmax(1) == labels[::5]
    assert len(right) == 1000 and right.float().mean() >= 0.98
    groups = words.phrasings(config, words.HELDOUT_TEMPLATES)
    read = torch.stack([(shipped.encode_text(group) @ classes.T).argmax(1) for group in groups])
    right = read == torch.arange(10)[:, None]
    assert right.numel() == 240 and right.float().mean() >= 0.98
    asked = "7|seven|Seven!|SEVEN|‘seven’|the 'seven'|画一个７|a thick seven leaning left".split(
        "|"
    )
    assert ((shipped.encode_text(asked) @ classes.T).argmax(1) == 7).all()
    sevens = pixels[labels == 7]
    order = torch.from_numpy(thickness(sevens.numpy())).argsort()
    images = shipped.encode_image(to_images(sevens[torch.cat([order[:50], order[-50:]])]))
    thin, thick = (images @ shipped.encode_text(["a thin seven", "a thick seven"]).T).unbind(1)
    assert ((thick > thin) == (torch.arange(100) >= 50)).float().mean() > 0.9


def vocabulary_of(config, monkeypatch):
    torch.manual_seed(0)
    captions = with_states(config, torch.randint(-1, 2, (400, 2)), monkeypatch)
    return captions, tiny_clip.vocabulary_of(config, captions)


def test_noise_says_nothing_that_is_known(monkeypatch):
    _, vocabulary = vocabulary_of(data_args(), monkeypatch)
    name, thick, left, digit = map(tokenizer().encode, ("seven", "thick", "leaning left", "3"))
    assert {*name, *thick, *left, *digit} <= vocabulary.known
    first = []
    for _ in range(200):
        row = tiny_clip.noisy_caption(name, [thick, left], vocabulary).tolist()
        assert len(row) == 77 and row[0] == 49406 and row.count(49407) == 1
        said = [token for token in row if token in vocabulary.known]
        assert sorted(said) == sorted(name + thick + left), "and nothing else that means something"
        assert any(row[i : i + 2] == left for i in range(77)), "two words stay together"
        first.append(row.index(thick[0]) < row.index(name[0]))
    assert 60 < sum(first) < 140, "words and class in any order"
    bare = tiny_clip.noisy_caption([], [thick], vocabulary).tolist()
    assert [token for token in bare if token in vocabulary.known] == thick


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """In a folder with drawings of three kinds: flags, and a config for some of the classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "quickdraw").mkdir(parents=True)
    for k, name in enumerate(("cat", "ice cream", "owl")):
        images = np.random.default_rng(k).integers(0, 2, (60, 784), np.uint8) * 255
        images[:, : 200 + 90 * k] = 0
        np.save(tmp_path / "data" / "quickdraw" / f"{name}.npy", images)
    flags = "--dataset quickdraw --per-class 60 --train-steps 2 --classes cat".split()
    this = {"per_class": 60, "data_dir": tmp_path / "data"}
    return [*flags, "ice cream"], lambda *names, **x: data_args("quickdraw", names, **this, **x)


def test_it_is_trained_for_other_classes_once_and_used_for_no_others(pets, tmp_path, capfd):
    flags, config_of = pets
    with pytest.raises(UserError, match="python -m kit.tiny_clip.*--classes"):
        common.load_clip(config_of("cat", "ice cream"), CPU)
    tiny_clip.main(flags)
    made = tmp_path / capfd.readouterr().out.strip()
    assert made.is_relative_to(tmp_path / "data") and made.stat().st_size < 8e6
    loaded = common.load_clip(config_of("cat", "ice cream"), CPU)
    assert (loaded.name, loaded.dim) == ("tiny", 64)
    assert loaded.encode_text(["a cat", "an ice cream"]).isfinite().all()
    for config in (config_of("cat", "owl", clip=str(made)), data_args(clip=str(made))):
        with pytest.raises(UserError, match="other classes: cat, ice cream"):
            common.load_clip(config, CPU)
    with pytest.raises(UserError, match="other classes: zero, one"):
        shipped = ROOT / "assets" / "tiny_clip.pt"
        common.load_clip(config_of("cat", "ice cream", clip=str(shipped)), CPU)
    with pytest.raises(UserError, match="exists"):
        tiny_clip.main(flags)
