"""CLIP: OpenAI's formats and download, the package it needs; the tiny one's training."""

import hashlib
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CPU, contents, data_args, save_openai_clip
from test_attributes import with_states

import common
from kit import clip as ours
from kit import tiny_clip, words
from kit.attributes import thickness
from kit.data import embedded_mnist, to_images
from kit.files import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and says so at length


def load(name):
    return common.load_clip(data_args(clip=str(name)), CPU)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small CLIP in OpenAI's formats: a JIT archive with its extra buffers, and a state dict."""
    folder = tmp_path_factory.mktemp("openai")
    save_openai_clip(folder, (32, 32, 1, 64, 16, 77, 49408, 64, 1, 1))
    return folder


def test_a_jit_archive_and_a_state_dict_are_read_as_by_openais_model(files):
    texts, images = ["a photo of a cat", "画 7"], torch.rand(2, 1, 28, 28) * 2 - 1
    tokens, pixels = ours.tokenize(texts), ours.clip_pixels(images, 32)
    known = [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert tokens[0, :8].tolist() == known and tokens.shape == (2, 77)
    model = ours.clip_module("model").build_model(torch.load(files / "state.pt")).float()
    normal = partial(torch.nn.functional.normalize, dim=1)
    with torch.no_grad():
        vectors, seen = normal(model.encode_text(tokens)), normal(model.encode_image(pixels))
    for name in ("jit.pt", "state.pt"):
        mine = load(files / name)
        assert mine.dim == 32 and mine.encode_text(texts).dtype == torch.float32
        assert (mine.encode_text(texts) - vectors).abs().max() < 1e-5
        assert (mine.encode_image(images) - seen).abs().max() < 1e-5
    for side, expected in ((1, [1.9303, 2.0749, 2.1459]), (-1, [-1.7923, -1.7521, -1.4802])):
        pixels = ours.clip_pixels(torch.full((1, 1, 28, 28), float(side)), 32)
        assert pixels.shape == (1, 3, 32, 32), "white and black as OpenAI's transform makes them"
        assert pixels[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-3)


def test_words_are_the_last_layers_tokens_and_zero_beyond_the_end(files):
    texts = ["seven", "a thick seven leaning left " * 4]
    for name in ("tiny", files / "jit.pt"):  # which has more numbers in a token than in a vector
        clip = ours.load_clip(data_args(clip=str(name)), CPU, words=9)
        sentences, (short, long) = load(name).encode_text(texts), clip.encode_text(texts)
        assert torch.equal(short[0], sentences[0]) and torch.equal(long[0], sentences[1])
        assert short.shape == (10, clip.dim) and short[1:3].any(1).all() and not short[3:].any()
        assert long.any(1).all(), "cut off after nine"
        tokens, seen = ours.tokenize(texts[1:]), []
        clip.model.ln_final.register_forward_hook(lambda *args, seen=seen: seen.append(args[-1]))
        clip.model.encode_text(tokens)
        assert (long[1:] - seen[0][0, 1:10, : clip.dim]).abs().max() < 1e-5


def test_neither_torchvision_nor_pkg_resources_is_needed(monkeypatch):
    """The newest setuptools have no pkg_resources, and a broken torchvision stops no script."""
    for name in ("pkg_resources", "torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("model", "simple_tokenizer"):
        ours.clip_module.__wrapped__(name)


def test_what_is_read_of_a_text(files):
    """Apostrophes and full-width signs do not change a word; more than 77 tokens are one line."""
    marked, plain = ours.tokenize(["the 'seven", "the ‘seven", "the ’seven", "the seven"]).split(3)
    assert (marked == plain).all()
    assert not torch.equal(ours.tokenize(["child's"]), ours.tokenize(["childs"]))
    encoder = load(files / "state.pt")
    assert torch.equal(encoder.encode_text(["画ｓｅｖｅｎ"]), encoder.encode_text(["画 seven"]))
    assert encoder.encode_text(["seven " * 75]).shape == (1, 32)
    with pytest.raises(UserError, match="77 tokens: seven seven"):
        encoder.encode_text(["seven " * 76])


@pytest.mark.parametrize("fault", ["cut", "damaged inside", "a text"])
def test_a_file_that_is_no_clip_is_one_line(files, tmp_path, fault):
    content, path = bytearray((files / "jit.pt").read_bytes()), tmp_path / "my.pt"
    content[len(content) // 2] ^= 255  # torch.jit.load() compares no checksums
    path.write_bytes({"cut": content[:9999], "damaged inside": content, "a text": b"oid"}[fault])
    before = contents(tmp_path)
    with pytest.raises(UserError, match="my.pt"):
        load(path)
    assert contents(tmp_path) == before


def test_each_text_is_read_once_and_its_vector_depends_on_no_other(files, monkeypatch):
    encoder, texts = load(files / "state.pt"), ["seven", "a thick 7", "an eight"]
    read, forward = [], encoder.model.encode_text
    monkeypatch.setattr(encoder.model, "encode_text", lambda x: read.append(len(x)) or forward(x))
    alone = encoder.encode_text(texts[:1])
    together = encoder.encode_text([*texts, texts[1]])
    assert sum(read) == 3 and torch.equal(alone[0], together[0])
    assert torch.equal(together[1], together[3]) and together.shape == (4, 32)


@pytest.fixture
def host(server, files, monkeypatch, tmp_path):
    """Serves the JIT archive as ViT-B/32, its SHA-256 in the address; the user's cache is empty."""
    content = (files / "jit.pt").read_bytes()
    server.file = server.root / hashlib.sha256(content).hexdigest() / "ViT-B-32.pt"
    server.file.parent.mkdir()
    server.file.write_bytes(content)
    url = f"{server.url}{server.file.parent.name}/ViT-B-32.pt"
    monkeypatch.setattr(sys.modules[common.load_clip.__module__], "VIT", url)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    server.cached = tmp_path / "home" / ".cache" / "clip" / "ViT-B-32.pt"  # as OpenAI's package
    return server


def test_auto_downloads_openais_model_and_then_finds_it_in_the_cache(host):
    for name in ("auto", "ViT-B/32"):
        loaded = load(name)
        assert (loaded.name, loaded.dim) == ("ViT-B/32", 32)
    assert len(host.requests) == 1 and host.cached.read_bytes() == host.file.read_bytes()


@pytest.mark.parametrize("fault", ["half", "html", "cached"])
def test_what_is_not_openais_file_is_one_line_and_auto_takes_tiny(host, files, capfd, fault):
    host.truncate = "ViT-B-32.pt" if fault == "half" else None
    if fault == "html":
        host.file.write_text("<html>sign in</html>")
    elif fault == "cached":
        host.cached.parent.mkdir(parents=True)
        host.cached.write_bytes((files / "state.pt").read_bytes())  # another one
    before = contents(host.cached.parents[2])
    assert load("auto").name == "tiny"
    said = [x for x in capfd.readouterr().err.splitlines() if x.startswith("CLIP: ")]
    assert len(said) == 1 and said[0].endswith("using tiny CLIP")
    with pytest.raises(UserError):
        load("ViT-B/32")
    assert contents(host.cached.parents[2]) == before, "nothing wrong is kept, nothing overwritten"


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
    asked = "7|Seven!|SEVEN|‘seven’|the 'seven'|画一个７|a thick seven leaning left".split("|")
    assert ((shipped.encode_text(asked) @ classes.T).argmax(1) == 7).all()
    sevens = pixels[labels == 7]
    order = torch.from_numpy(thickness(sevens.numpy())).argsort()
    images = shipped.encode_image(to_images(sevens[torch.cat([order[:50], order[-50:]])]))
    thin, thick = (images @ shipped.encode_text(["a thin seven", "a thick seven"]).T).unbind(1)
    assert ((thick > thin) == (torch.arange(100) >= 50)).float().mean() > 0.9


def test_noise_says_nothing_that_is_known(monkeypatch):
    torch.manual_seed(0)
    captions = with_states(data_args(), torch.randint(-1, 2, (400, 2)), monkeypatch)
    vocabulary = tiny_clip.vocabulary_of(data_args(), captions)
    name, thick, left = map(ours.tokenizer().encode, ("seven", "thick", "leaning left"))
    first = []
    for _ in range(200):
        row = tiny_clip.noisy_caption(name, [thick, left], vocabulary).tolist()
        said = [token for token in row if token in vocabulary.known]
        assert sorted(said) == sorted(name + thick + left), "and nothing else that means something"
        assert any(row[i : i + 2] == left for i in range(77)), "two words stay together"
        first.append(row.index(thick[0]) < row.index(name[0]))
    assert 60 < sum(first) < 140, "words and class in any order"


def test_it_is_trained_for_other_classes_once_and_used_for_no_others(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "quickdraw").mkdir(parents=True)
    for k, name in enumerate(("cat", "ice cream")):
        images = np.random.default_rng(k).integers(0, 2, (60, 784), np.uint8) * 255
        images[:, : 200 + 90 * k] = 0
        np.save(tmp_path / "data" / "quickdraw" / f"{name}.npy", images)
    flags = "--dataset quickdraw --per-class 60 --train-steps 2 --classes cat".split()
    config_of = partial(data_args, "quickdraw", per_class=60, data_dir=tmp_path / "data")
    pets = config_of(("cat", "ice cream"))
    with pytest.raises(UserError, match="python -m kit.tiny_clip --dataset quickdraw"):
        common.load_clip(pets, CPU)
    tiny_clip.main([*flags, "ice cream"])
    made = tmp_path / capfd.readouterr().out.strip()
    assert made.is_relative_to(tmp_path / "data") and made.stat().st_size < 8e6
    loaded = common.load_clip(pets, CPU)
    assert (loaded.name, loaded.dim) == ("tiny", 64)
    assert loaded.encode_text(["a cat", "an ice cream"]).isfinite().all()
    for config in (config_of(("cat", "owl"), clip=str(made)), data_args(clip=str(made))):
        with pytest.raises(UserError, match="other classes: cat, ice cream"):
            common.load_clip(config, CPU)
    with pytest.raises(UserError, match="exists"):
        tiny_clip.main([*flags, "ice cream"])
