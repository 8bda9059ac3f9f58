"""CLIP: OpenAI's formats and download, the embedded default, and what it understands."""

import hashlib
import os
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, ROOT, STAND_IN, data_args, save_openai_clip

import a2_clip
from kit import base, datasets, downloads, images, tiny_clip
from kit import clip as openai_clip
from kit.clip import import_clip
from kit.encoders import load_clip

pytestmark = pytest.mark.filterwarnings("ignore")  # tracing tells of its retirement, at length


@pytest.fixture(scope="module")
def tiny():
    return load_clip("tiny", data_args(), CPU)


@pytest.fixture(scope="module")
def openai_files(tmp_path_factory):
    """A small CLIP in OpenAI's formats: a JIT archive with its extra buffers, and a state dict."""
    folder = tmp_path_factory.mktemp("openai")
    save_openai_clip(folder, (32, 32, 1, 64, 16, 77, 49408, 64, 1, 1))
    return folder


def test_jit_archive_and_state_dict_are_the_same_model(openai_files):
    texts, images = ["a seven", "the number 3"], torch.rand(2, 1, 28, 28) * 2 - 1
    jit, state = (
        load_clip(str(openai_files / name), data_args(), CPU) for name in ("jit.pt", "state.pt")
    )
    assert jit.dim == 32 and jit.encode_text(texts).dtype == torch.float32
    assert (jit.encode_text(texts) - state.encode_text(texts)).abs().max() < 1e-5
    assert (jit.encode_image(images) - state.encode_image(images)).abs().max() < 1e-5
    assert (jit.encode_text(texts)[0] - jit.encode_text(texts)[1]).abs().max() > 1e-3
    assert (jit.encode_image(images).norm(dim=1) - 1).abs().max() < 1e-5


def cone(texts):
    """texts (classes, phrasings, dim) -> mean cosine between any two of them."""
    rows = F.normalize(texts.flatten(0, 1), dim=1)
    return ((rows @ rows.T).sum() - len(rows)) / (len(rows) * (len(rows) - 1))


def test_vectors_of_openais_geometry_lie_in_a_cone_and_the_network_reads_them_out_of_it(tmp_path):
    """ViT-B/32's text tower at random weights: all its vectors point one way."""
    save_openai_clip(tmp_path, STAND_IN, archive=False)
    encoder = load_clip(str(tmp_path / "state.pt"), data_args(), CPU)
    groups = datasets.phrasings(data_args(), datasets.TRAIN_TEMPLATES)
    texts = torch.stack([encoder.encode_text(group[::11]) for group in groups])  # (10, 3, 512)
    assert texts.shape == (10, 3, 512) and cone(texts) > 0.6
    between = F.cosine_similarity(texts[3], texts[7])
    assert between.mean() > 0.85, "two classes in one phrasing"
    net = a2_clip.UNet(a2_clip.Config(), encoder.dim)
    net.text_mean, net.text_std = texts.mean((0, 1)), texts.std((0, 1)).mean()  # as in train()
    seen = []
    net.text[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(torch.zeros(30, 1, 28, 28), torch.full((30,), 500), texts.flatten(0, 1))
    assert cone(seen[0].view(10, 3, 512)).abs() < 0.05 and 0.9 < seen[0].std() < 1.1
    raw, read = texts.flatten(0, 1) * 512**0.5, seen[0]  # raw: as long as what the network reads
    assert (read[9] - read[21]).norm() > 1.5 * (raw[9] - raw[21]).norm(), "a three from a seven"


@pytest.fixture
def clip_host(server, openai_files, monkeypatch, tmp_path):
    """Serves the JIT archive as ViT-B/32, its SHA-256 in the address; the cache is empty."""
    data = (openai_files / "jit.pt").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    (server.root / sha256).mkdir()
    (server.root / sha256 / "ViT-B-32.pt").write_bytes(data)
    clip = import_clip().clip
    monkeypatch.setitem(clip._MODELS, "ViT-B/32", f"{server.url}{sha256}/ViT-B-32.pt")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # never the user's own cache
    server.file = server.root / sha256 / "ViT-B-32.pt"
    monkeypatch.setattr(downloads, "PAUSE", 0)
    return server


def test_auto_downloads_openais_model_and_then_finds_it_in_the_cache(clip_host):
    for _ in range(2):
        loaded = load_clip("auto", data_args(), CPU)
        assert (loaded.name, loaded.dim) == ("ViT-B/32", 32)
    assert len(clip_host.requests) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(clip_host, tmp_path):
    cached = tmp_path / "home" / ".cache" / "clip" / "ViT-B-32.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    assert load_clip("ViT-B/32", data_args(), CPU).dim == 32
    assert cached.read_bytes() == b"half a download", "it may be a file of the user's own"
    fetched = cached.with_name("ViT-B-32-fetched.pt")
    assert fetched.read_bytes() == clip_host.file.read_bytes()
    clip_host.file.unlink()
    assert load_clip("ViT-B/32", data_args(), CPU).dim == 32


@pytest.mark.parametrize("fault", ["half", "html", "gone"])
def test_a_bad_download_falls_back_only_for_auto(clip_host, capfd, fault):
    if fault == "half":
        clip_host.truncate = "ViT-B-32.pt"
    elif fault == "html":
        clip_host.file.write_text("<html>sign in</html>")
    else:
        clip_host.file.unlink()
    assert load_clip("auto", data_args(), CPU).name == "tiny"
    lines = capfd.readouterr().err.strip().splitlines()
    said = [line for line in lines if "image/s" not in line and "B/s" not in line]
    assert len(said) == 1 and said[0].startswith("CLIP: ViT-B/32: "), lines
    with pytest.raises(base.UserError, match="ViT-B/32"):
        load_clip("ViT-B/32", data_args(), CPU)


def test_a_dead_network_is_noticed_within_15_seconds(offline, capfd):
    start = time.time()
    assert load_clip("auto", data_args(), CPU).name == "tiny"
    assert time.time() - start < 15
    assert "tiny CLIP" in capfd.readouterr().err


def test_damage_inside_openais_own_format_is_noticed(openai_files, tmp_path):
    """torch.jit.load() compares no checksums."""
    content = bytearray((openai_files / "jit.pt").read_bytes())
    for i in range(8):
        content[len(content) // 2 + i] ^= 255
    (tmp_path / "my.pt").write_bytes(content)
    with pytest.raises(base.UserError, match="in it is damaged"):
        openai_clip.Clip("my.pt", tmp_path / "my.pt", CPU)


def test_a_damaged_checkpoint_and_an_unknown_name(tmp_path):
    (tmp_path / "cut.pt").write_bytes((base.ROOT / "assets/tiny_clip.pt").read_bytes()[:100_000])
    for name in (str(tmp_path / "cut.pt"), "ViT-Z/9", str(base.ROOT / "README.md")):
        with pytest.raises(base.UserError):
            load_clip(name, data_args(), CPU)


@pytest.mark.parametrize("before", [None, sys], ids=["none", "one"])
def test_clip_imports_without_pkg_resources_and_leaves_a_real_one_alone(monkeypatch, before):
    """None makes `import pkg_resources` fail; sys is any module to find again."""
    for name in [name for name in sys.modules if name.split(".")[0] == "clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", before)
    tokens = import_clip().tokenize(["7"])
    assert sys.modules.get("pkg_resources") is before and tokens.shape == (1, 77)


def test_a_missing_clip_is_one_line_that_says_what_to_install(monkeypatch):
    class Missing:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "clip":
                raise ModuleNotFoundError("No module named 'clip'")

    for name in [name for name in sys.modules if name.split(".")[0] == "clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    with pytest.raises(base.UserError, match="pip install clip-anytorch"):
        openai_clip.import_clip()


def test_a_prompt_over_77_tokens_is_refused(tiny):
    assert tiny.encode_text(["seven " * 75]).shape == (1, tiny.dim)
    with pytest.raises(base.UserError, match="77"):
        tiny.encode_text(["seven " * 76])


def test_the_embedded_clip_reads_digits_it_never_saw(tiny):
    pixels, labels = images.embedded_mnist("test")
    result = tiny_clip.measure(tiny, data_args(), pixels, labels)
    assert result["zero-shot"] >= 0.98 and result["held-out phrasings"] >= 0.98, result
    assert (base.ROOT / "assets" / "tiny_clip.pt").stat().st_size < 8e6


def test_seven_by_any_name_is_a_seven(tiny):
    asked = [
        "7",
        "seven",
        "the number seven",
        "Seven!",
        "SEVEN",
        "‘seven’",
        "the 'seven'",
        "draw the digit 7 for me",
        "show me the figure 7",
    ]
    assert (
        (tiny.encode_text(asked) @ tiny_clip.class_vectors(tiny, data_args()).T).argmax(1) == 7
    ).all()


def test_tiny_clip_trains_and_writes_what_it_can_read(here, tmp_path, monkeypatch):
    whole = tiny_clip.real_images
    monkeypatch.setattr(tiny_clip, "real_images", lambda *which: [x[::10] for x in whole(*which)])
    done = here("kit.tiny_clip --train-steps 3 --out new.pt", tmp_path)
    assert "zero-shot" in done.stdout
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    assert state["token_embedding.weight"].dtype == torch.float16
    assert (tmp_path / "new.pt").stat().st_size < 8e6


def test_clip_is_imported_without_torchvision_and_its_load_works_all_the_same(tmp_path):
    code = """
import sys
from kit.clip import import_clip
clip = import_clip()
assert "torchvision" not in sys.modules and "pkg_resources" not in sys.modules
assert clip.tokenize("seven").shape == (1, 77)
from PIL import Image
image = clip.clip._transform(224)(Image.new("RGB", (300, 400), "white"))
assert image.shape == (3, 224, 224) and 1.9 < image.mean() < 2.2
import torchvision.transforms
assert torchvision.transforms.Compose is not None
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
