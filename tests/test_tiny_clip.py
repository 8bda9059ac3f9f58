"""The tiny CLIP: what the one in the repository reads, its captions, its training."""

import shlex

import numpy as np
import pytest
import torch
from conftest import CPU, ROOT, contents, data_args
from test_captions import with_states

import common
from kit import tiny_clip, words
from kit.attributes import thickness
from kit.clip import clip_module, tokenizer
from kit.data import embedded_mnist, to_images
from kit.files import UserError


@pytest.fixture(scope="module")
def shipped():
    return common.load_clip(data_args(), CPU)


@pytest.fixture(scope="module")
def classes(shipped):
    """The mean of each class over its training phrasings (10, dim): zero-shot, as CLIP Sec. 3.1."""
    groups = words.phrasings(data_args(), words.TRAIN_TEMPLATES)
    return torch.stack([shipped.encode_text(group).mean(0) for group in groups])


# ── What it reads ──


def test_digits_it_never_saw(shipped, classes):
    pixels, labels = (x[::5] for x in embedded_mnist("test"))
    right = (shipped.encode_image(to_images(pixels)) @ classes.T).argmax(1) == labels
    assert len(labels) == 1000 and right.float().mean() >= 0.98


def test_phrasings_it_never_saw(shipped, classes):
    groups = words.phrasings(data_args(), words.HELDOUT_TEMPLATES)
    read = [(shipped.encode_text(group) @ classes.T).argmax(1) for group in groups]
    right = torch.stack(read) == torch.arange(10)[:, None]
    assert right.numel() == 240 and right.float().mean() >= 0.98


def test_seven_by_any_name_is_a_seven(shipped, classes):
    asked = ["7", "seven", "Seven!", "SEVEN", "‘seven’", "the 'seven'", "draw the digit 7 for me",
             "画一个７", "a thick seven leaning left"]  # fmt: skip
    assert ((shipped.encode_text(asked) @ classes.T).argmax(1) == 7).all()


def test_thick_and_thin_digits_are_told_apart(shipped):
    """In words of one class, and images of it."""
    pixels, labels = embedded_mnist("test")
    sevens = pixels[labels == 7]
    order = torch.from_numpy(thickness(sevens.numpy())).argsort()
    images = shipped.encode_image(to_images(sevens[torch.cat([order[:50], order[-50:]])]))
    thin, thick = (images @ shipped.encode_text(["a thin seven", "a thick seven"]).T).unbind(1)
    assert ((thick > thin) == (torch.arange(100) >= 50)).float().mean() > 0.9


# ── Captions among random tokens ──


def vocabulary_of(config, monkeypatch, n=400):
    captions = with_states(config, torch.randint(-1, 2, (n, 2)), monkeypatch)
    return captions, tiny_clip.vocabulary_of(config, captions)


def test_noise_says_nothing_that_is_known(monkeypatch):
    torch.manual_seed(0)
    _, vocabulary = vocabulary_of(data_args(), monkeypatch)
    encode = tokenizer().encode
    name, thick, left = (encode(word) for word in ("seven", "thick", "leaning left"))
    assert {*name, *thick, *left, *encode("3"), *encode("zero")} <= vocabulary.known
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


def test_captions_about_other_letters_have_articles_in_them(monkeypatch):
    """A sentence about B may hold "a" and "I", which are letters too; about A, only before it."""
    torch.manual_seed(0)
    config = data_args("emnist", words.EMNIST_SPLITS["letters"])
    _, vocabulary = vocabulary_of(config, monkeypatch)
    (a,), (i,), (b,) = map(tokenizer().encode, "aib")
    assert vocabulary.letters == [a, i]
    rows = [
        [tiny_clip.noisy_caption([x], [], vocabulary).tolist() for _ in range(200)] for x in (a, b)
    ]
    assert 40 < sum(a in row or i in row for row in rows[1]) < 190
    assert all(row.count(b) == 1 for row in rows[1])
    assert all([x for x in row if x in (a, i)][-1] == a for row in rows[0]), "the last one counts"


def test_which_captions_fit_which_images(monkeypatch):
    """A caption fits all images of its class, or of any if it names none, that are as it says."""
    torch.manual_seed(0)
    captions, vocabulary = vocabulary_of(data_args(), monkeypatch)
    i = captions.draw(40)
    tokens, fits = tiny_clip.captions_for(i, captions, vocabulary)
    assert tokens.shape == (48, 77) and fits.shape == (40, 48) and fits[range(40), range(40)].all()
    seen = set()
    for caption, column in zip(tokens.tolist(), fits.T):
        text = [token for token in caption if token in vocabulary.known]
        said = [[x for x, word in ((-1, low), (1, high)) if word[-1] in text]
                for low, high in vocabulary.words]  # fmt: skip
        named = [y for y, pair in enumerate(vocabulary.names) if any(n[0] in text for n in pair)]
        for image, fit in zip(i.tolist(), column.tolist()):
            so = all(captions.states[image, k] in x for k, x in enumerate(said) if x)
            assert fit == (so and (not named or captions.labels[image] in named))
        seen.add((len(named), sum(map(len, said))))
    assert {(1, 0), (1, 1), (0, 1)} <= seen, "among them such that name no class"


def test_the_loss_is_that_of_clip_where_each_image_has_one_caption():
    torch.manual_seed(0)
    model = tiny_clip.build_clip().eval()
    assert type(model) is clip_module("model").CLIP
    images, tokens = torch.rand(4, 3, 64, 64), torch.randint(1, 49406, (4, 77))
    with torch.no_grad():
        logits, _ = model(images, tokens)
        target = torch.arange(4)
        cross_entropy = torch.nn.functional.cross_entropy
        expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        loss = tiny_clip.contrastive_loss(model, images, tokens, torch.eye(4, dtype=torch.bool))
        several = torch.ones(4, 4, dtype=torch.bool)
        shared = tiny_clip.contrastive_loss(model, images, tokens, several)
        even = -(logits.log_softmax(1).mean() + logits.log_softmax(0).mean()) / 2
    assert abs(loss - expected) < 1e-4 and abs(shared - even) < 1e-4


# ── Training ──


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder with drawings of two kinds, in which commands run: flags of its data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "quickdraw").mkdir(parents=True)
    for k, name in enumerate(("cat", "ice cream", "owl")):
        images = np.random.default_rng(k).integers(0, 2, (60, 28, 28), np.uint8) * 255
        images[:, : 8 + 3 * k] = 0
        np.save(tmp_path / "data" / "quickdraw" / f"{name}.npy", images.reshape(60, 784))
    return ["--dataset", "quickdraw", "--per-class", "60", "--classes"]


def test_it_is_trained_for_other_classes_once_and_used_for_no_others(pets, tmp_path, capfd):
    flags = [*pets, "cat", "ice cream"]
    tiny_clip.main([*flags, "--train-steps", "2"])
    made = tmp_path / capfd.readouterr().out.strip()
    assert made.is_relative_to(tmp_path / "data") and made.stat().st_size < 8e6
    state = torch.load(made, weights_only=True)
    assert state["token_embedding.weight"].dtype == torch.float16
    this = {"per_class": 60, "data_dir": tmp_path / "data"}
    config = data_args("quickdraw", ("cat", "ice cream"), **this)
    loaded = common.load_clip(config, CPU)
    assert (loaded.name, loaded.dim) == ("tiny", 64) and loaded.crc32
    assert loaded.encode_text(["a cat", "an ice cream"]).isfinite().all()
    other = data_args("quickdraw", ("cat", "owl"), **this, clip=str(made))
    for wrong in (other, data_args(clip=str(made)), data_args(**this, clip=str(made))):
        with pytest.raises(UserError, match="other classes: cat, ice cream"):
            common.load_clip(wrong, CPU)
    config.clip = str(ROOT / "assets" / "tiny_clip.pt")
    with pytest.raises(UserError, match="other classes: zero, one"):
        common.load_clip(config, CPU)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="exists"):
        tiny_clip.main([*flags, "--train-steps", "2"])
    with pytest.raises(UserError, match="exists"):
        tiny_clip.main([*flags, "--out", str(made)])
    assert contents(tmp_path) == before


def test_where_it_is_missing_one_line_has_the_command_that_makes_it(pets, tmp_path):
    config = data_args("quickdraw", ("cat", "ice cream"), data_dir=tmp_path / "data", per_class=60)
    with pytest.raises(UserError, match="python -m kit.tiny_clip") as caught:
        common.load_clip(config, CPU)
    command = shlex.split(caught.value.text.partition("python -m kit.tiny_clip ")[2])
    if "quickdraw" in command and "--classes" not in command:
        pytest.fail("it would make the one of QuickDraw's default classes")
    tiny_clip.main([*command, "--per-class", "60", "--train-steps", "2"])
    assert common.load_clip(config, CPU).dim == 64


def test_training_makes_what_belongs_together_score_higher(tmp_path, monkeypatch):
    """Black and white pages: a few steps are enough for those."""
    labels = torch.arange(200) % 2
    pixels = torch.randint(0, 60, (200, 28, 28)).byte() + 190 * labels[:, None, None].byte()
    config, losses = data_args("folder", ("night", "snow"), data_dir=tmp_path), []
    loss = tiny_clip.contrastive_loss
    monkeypatch.setattr(tiny_clip, "IMAGES", 12)
    monkeypatch.setattr(
        tiny_clip, "contrastive_loss", lambda *x: losses.append(loss(*x)) or losses[-1]
    )
    tiny_clip.train(config, pixels, labels, steps=16)
    first, last = (torch.stack(part).mean().item() for part in (losses[:4], losses[-4:]))
    assert last < first - 0.6, (first, last)


def test_augmented_images_are_moved_a_little_over_black():
    torch.manual_seed(0)
    image = to_images(embedded_mnist("test")[0][:1]).repeat(100, 1, 1, 1)
    moved = tiny_clip.jitter(image)
    assert moved.shape == image.shape and moved.abs().max() <= 1.001
    assert (moved - image).abs().amax((1, 2, 3)).min() > 0.1
    assert abs(moved.mean() - image.mean()) < 0.05 and (moved[:, :, 0] == -1).float().mean() > 0.9
