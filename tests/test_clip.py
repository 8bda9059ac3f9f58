"""CLIP: OpenAI's formats and download, the package it needs, and what the encoder remembers."""

import hashlib
import importlib
import sys
import types

import packaging.version
import pytest
import torch
from conftest import CPU, contents, data_args, save_openai_clip

import common
from kit import clip as ours
from kit.files import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and says so at length


def load(name, **others):
    return common.load_clip(data_args(clip=str(name), **others), CPU)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small CLIP in OpenAI's formats: a JIT archive with its extra buffers, and a state dict."""
    folder = tmp_path_factory.mktemp("openai")
    save_openai_clip(folder, (32, 32, 1, 64, 16, 77, 49408, 64, 1, 1))
    return folder


@pytest.fixture
def no_clip(monkeypatch):
    """As if nothing of the package was imported yet; with the pkg_resources of old setuptools."""
    old = types.ModuleType("pkg_resources")
    old.packaging = packaging
    monkeypatch.setitem(sys.modules, "pkg_resources", old)
    names = [name for name in sys.modules if name.split(".")[0] == "clip"]
    kept = {name: sys.modules.pop(name) for name in names}
    ours.clip_module.cache_clear()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "clip"]:
        del sys.modules[name]
    sys.modules.update(kept)
    ours.clip_module.cache_clear()


def test_jit_archive_and_state_dict_are_the_same_model(files):
    texts, images = ["a seven", "the number 3"], torch.rand(2, 1, 28, 28) * 2 - 1
    jit, state = load(files / "jit.pt"), load(files / "state.pt")
    assert jit.dim == 32 and jit.encode_text(texts).dtype == torch.float32
    for rows in ("encode_text", texts), ("encode_image", images):
        one, other = (getattr(clip, rows[0])(rows[1]) for clip in (jit, state))
        assert (one - other).abs().max() < 1e-5 and (one[0] - one[1]).abs().max() > 1e-3
        assert (one.norm(dim=1) - 1).abs().max() < 1e-5
    assert type(jit.model) is type(state.model) is ours.clip_module("model").CLIP
    for side, expected in ((1, [1.9303, 2.0749, 2.1459]), (-1, [-1.7923, -1.7521, -1.4802])):
        pixels = ours.clip_pixels(torch.full((1, 1, 28, 28), float(side)), 32)
        assert pixels.shape == (1, 3, 32, 32), "white and black as OpenAI's transform makes them"
        assert pixels[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-3)


def test_vectors_and_tokens_are_those_of_openais_own_package(files, no_clip):
    texts = "a seven|the number 3, handwritten!|画 a 7|don't|it's  a\tfish|c++ & $x$".split("|")
    package, mine = importlib.import_module("clip"), load(files / "state.pt")
    for some in (texts, ["seven " * 75]):
        assert torch.equal(ours.tokenize(some), package.tokenize(some).long())
    theirs, _ = package.load(str(files / "state.pt"), device="cpu")
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(theirs.encode_text(package.tokenize(texts)), dim=1)
    assert (mine.encode_text(texts) - vectors).abs().max() < 1e-5


def test_neither_torchvision_nor_pkg_resources_is_needed(no_clip, monkeypatch):
    """The newest setuptools have no pkg_resources, and a broken torchvision stops no script."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", None)
        patch.setitem(sys.modules, "torchvision.transforms", None)
        assert ours.clip_module("model").CLIP and ours.clip_module("simple_tokenizer")
    assert hasattr(importlib.import_module("clip"), "load"), "a notebook may want the whole package"


def test_what_is_read_of_a_text(files):
    """Apostrophes and full-width signs do not change a word; more than 77 tokens are one line."""
    for text in ("the 'seven", "the ‘seven", "the ’seven"):
        assert torch.equal(ours.tokenize([text]), ours.tokenize(["the seven"])), text
    assert not torch.equal(ours.tokenize(["child's"]), ours.tokenize(["childs"]))
    encoder = load(files / "state.pt")
    assert torch.equal(encoder.encode_text(["画ｓｅｖｅｎ"]), encoder.encode_text(["画 seven"]))
    assert encoder.encode_text(["seven " * 75]).shape == (1, 32)
    with pytest.raises(UserError, match="77 tokens: seven seven"):
        encoder.encode_text(["seven " * 76])


@pytest.mark.parametrize("fault", ["cut", "damaged inside", "a text", "a tensor", "missing"])
def test_a_file_that_is_no_clip_is_one_line(files, tmp_path, fault):
    content, path = bytearray((files / "jit.pt").read_bytes()), tmp_path / "my.pt"
    if fault in ("cut", "damaged inside"):  # torch.jit.load() compares no checksums
        content[len(content) // 2] ^= 255
        path.write_bytes(content[: len(content) // 2 if fault == "cut" else None])
    elif fault == "a text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif fault == "a tensor":
        torch.save({"weight": torch.zeros(3)}, path)
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
    again = load(files / "state.pt").encode_text(texts[::-1])
    assert torch.equal(again, together[:3].flip(0))


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
    if fault == "half":
        host.truncate = "ViT-B-32.pt"
    elif fault == "html":
        host.file.write_text("<html>sign in</html>")
    else:
        host.cached.parent.mkdir(parents=True)
        host.cached.write_bytes((files / "state.pt").read_bytes())  # another one
    before = contents(host.cached.parents[2])
    assert load("auto").name == "tiny"
    said = [x for x in capfd.readouterr().err.splitlines() if x.startswith("CLIP: ")]
    assert len(said) == 1 and said[0].endswith("using tiny CLIP")
    with pytest.raises(UserError):
        load("ViT-B/32")
    assert contents(host.cached.parents[2]) == before, "nothing wrong is kept, nothing overwritten"
