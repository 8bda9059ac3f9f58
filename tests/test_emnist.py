"""EMNIST by the true path: a zip of gzipped IDX files, mirrored, letters counted from 1."""

import gzip
import hashlib
import zipfile

import numpy as np
import pytest
import torch
from conftest import CPU, data_args, idx
from matplotlib import font_manager, ft2font
from torchvision.datasets import EMNIST

import common
import evaluate
from kit import base, captions, datasets, downloads, images, judge, tiny_clip
from kit.clip import Clip, import_clip
from kit.encoders import load_clip

UPPER, LOWER = range(65, 91), range(97, 123)
OFFICIAL = {  # split -> ASCII code of each label, from emnist-<split>-mapping.txt in the archive
    "digits": [*range(48, 58)],
    "letters": [*UPPER],
    "byclass": [*range(48, 58), *UPPER, *LOWER],
    "balanced": [*range(48, 58), *UPPER, 97, 98, 100, 101, 102, 103, 104, 110, 113, 114, 116],
}
FONTS = (
    "DejaVu Sans",
    "DejaVu Serif",
    "DejaVu Sans Mono",
    "STIXGeneral",
    "cmr10",
    "cmss10",
    "cmtt10",
)


def rendered(character, font="DejaVu Sans", bold=False):
    """-> uint8 (28, 28), white on black, the right way up, centred."""
    face = font_manager.findfont(
        font_manager.FontProperties(family=font, weight="bold" if bold else "normal")
    )
    glyph = ft2font.FT2Font(face)
    glyph.set_size(22, 72)
    glyph.set_text(character)
    glyph.draw_glyphs_to_bitmap()
    image = np.asarray(glyph.get_image())[:28, :28]
    image = image[np.ix_(image.any(1), image.any(0))][:28, :28]
    (h, w), page = image.shape, np.zeros((28, 28), np.uint8)
    page[(28 - h) // 2 : (28 - h) // 2 + h, (28 - w) // 2 : (28 - w) // 2 + w] = image
    return page


def letters(characters, n):
    """n jittered images of each, from several fonts -> uint8 (N, 28, 28), labels from 0."""
    torch.manual_seed(0)
    styles = [
        (font, bold)
        for font in FONTS
        for bold in ((False, True) if font.startswith(("Deja", "STIX")) else (False,))
    ]
    pages = np.stack([rendered(x, *styles[i % len(styles)]) for i in range(n) for x in characters])
    images = tiny_clip.jitter(torch.from_numpy(pages)[:, None] / 127.5 - 1)
    return ((images[:, 0] + 1) * 127.5).round().byte().numpy(), np.tile(
        np.arange(len(characters)), n
    )


def write_archive(path, parts):
    """parts: letters-train and so on -> upright images, labels from 0. -> the archive's MD5."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, (images, labels) in parts.items():
            mirrored, counted = images.swapaxes(1, 2), labels + name.startswith("letters")
            for kind, array in {"images-idx3": mirrored, "labels-idx1": counted}.items():
                archive.writestr(
                    f"gzip/emnist-{name}-{kind}-ubyte.gz", gzip.compress(idx(array), 1)
                )
        archive.writestr(
            "gzip/emnist-letters-mapping.txt",
            "".join(f"{y + 1} {65 + y} {97 + y} \n" for y in range(26)),
        )
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def emnist_host(server, monkeypatch):
    """Serves gzip.zip as EMNIST's host does; server.parts is what is in it."""
    server.parts = {}
    for split, codes in OFFICIAL.items():
        for part, n in (("train", 2), ("test", 3)):
            server.parts[f"{split}-{part}"] = letters([chr(x) for x in codes], n)
    md5 = write_archive(server.root / "gzip.zip", server.parts)
    monkeypatch.setattr(EMNIST, "url", f"{server.url}gzip.zip")
    monkeypatch.setattr(EMNIST, "md5", md5)
    monkeypatch.setattr(downloads, "PAUSE", 0)
    return server


def load(folder, emnist_split, split="train"):
    return common.load_dataset(
        data_args("emnist", data_dir=folder, emnist_split=emnist_split), split
    )


@pytest.mark.parametrize("split", OFFICIAL)
def test_names_are_those_of_the_official_mapping(split):
    names = [chr(code) for code in OFFICIAL[split]]
    assert list(datasets.EMNIST_SPLITS[split]) == names
    words = datasets.class_words(data_args("emnist", names))
    spoken = [tuple(import_clip().clip._tokenizer.encode(word)) for pair in words for word in pair]
    assert len(set(spoken)) == 2 * len(names), (
        "CLIP reads no capitals, so the words must tell b and B apart"
    )
    merged = {"c", "i", "j", "k", "l", "m", "o", "p", "s", "u", "v", "w", "x", "y", "z"}
    if split == "balanced":
        assert {chr(x) for x in LOWER} - set(names) == merged
        assert (
            ("C", "letter C") in words
            and ("capital B", "uppercase B") in words
            and ("small b", "lowercase b") in words
        )


def test_download_is_announced_and_every_split_is_upright_from_0(emnist_host, tmp_path, capfd):
    load(tmp_path, "letters")
    asked = len(emnist_host.requests)
    for split in OFFICIAL:
        for part in ("train", "test"):
            got, labels, source = load(tmp_path, split, part)
            pixels, y = emnist_host.parts[f"{split}-{part}"]
            assert source == "torchvision" and labels.tolist() == y.tolist()
            assert got.dtype == torch.uint8 and (got.numpy() == pixels).all()
    assert len(emnist_host.requests) == asked and capfd.readouterr().err.count("540 MB") == 1
    raw = {path.name for path in (tmp_path / "EMNIST" / "raw").glob("[!.]*")}
    assert raw == {"gzip.zip"}, "nothing is unpacked"


def test_an_archive_put_there_by_hand_needs_no_network(emnist_host, tmp_path, monkeypatch, capfd):
    (tmp_path / "EMNIST" / "raw").mkdir(parents=True)
    (emnist_host.root / "gzip.zip").rename(tmp_path / "EMNIST" / "raw" / "gzip.zip")
    monkeypatch.setattr(EMNIST, "url", "http://127.0.0.1:9/gzip.zip")
    assert len(load(tmp_path, "letters")[0]) == 52
    assert "540 MB" not in capfd.readouterr().err


def unpack(archive, raw):
    """What torchvision leaves beside the archive."""
    raw.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if name.endswith(".gz"):
                content = gzip.decompress(file.read(name))
                (raw / name.split("/")[-1].removesuffix(".gz")).write_bytes(content)


def test_files_that_torchvision_has_unpacked_are_enough(emnist_host, tmp_path):
    unpack(emnist_host.root / "gzip.zip", tmp_path / "EMNIST" / "raw")
    got, labels, _ = load(tmp_path, "letters")
    assert (got.numpy() == emnist_host.parts["letters-train"][0]).all()
    assert not emnist_host.requests


@pytest.mark.parametrize("fault", ["cut", "a web page", "damaged inside", "other files", "hostile"])
def test_an_archive_that_cannot_be_used_stays_and_another_is_fetched(
    emnist_host, tmp_path, capfd, fault
):
    mine = tmp_path / "EMNIST" / "raw" / "gzip.zip"
    mine.parent.mkdir(parents=True)
    whole = (emnist_host.root / "gzip.zip").read_bytes()
    half = len(whole) // 2
    content = {"cut": whole[:half], "a web page": b"<html>login</html>"}
    content["damaged inside"] = whole[:9000] + bytes(half - 9000) + whole[half:]
    mine.write_bytes(content.get(fault, b""))
    if fault in ("other files", "hostile"):
        with zipfile.ZipFile(mine, "w") as archive:
            archive.writestr("gzip/readme" if fault == "other files" else "../../owned", "!")
    before = mine.read_bytes()
    for _ in range(2):
        got, labels, _ = load(tmp_path, "letters")
        assert (got.numpy() == emnist_host.parts["letters-train"][0]).all()
    assert mine.read_bytes() == before and len(emnist_host.requests) == 1
    assert "gzip.zip is left out" in capfd.readouterr().err
    assert (mine.parent / "gzip-fetched.zip").exists() and not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("fault", ["half", "html", "gone", "offline"])
def test_without_the_archive_one_line_names_it_and_its_place(
    emnist_host, tmp_path, monkeypatch, fault
):
    if fault == "half":
        emnist_host.truncate = "gzip.zip"
    elif fault == "html":  # what the archive's host has been seen to answer
        (emnist_host.root / "gzip.zip").write_text("<html>moved</html>")
    elif fault == "gone":
        (emnist_host.root / "gzip.zip").unlink()
    else:
        monkeypatch.setattr(EMNIST, "url", "http://127.0.0.1:9/gzip.zip")
    with pytest.raises(base.UserError) as caught:
        load(tmp_path, "letters")
    message = str(caught.value)
    assert (
        f"fetch {EMNIST.url}" in message
        and str(tmp_path / "EMNIST/raw/gzip.zip") in message
        and "\n" not in message
    )


def test_labels_of_another_split_are_refused(emnist_host, tmp_path, capfd):
    raw = tmp_path / "EMNIST" / "raw"
    unpack(emnist_host.root / "gzip.zip", raw)
    (emnist_host.root / "gzip.zip").unlink()
    for kind in ("images-idx3", "labels-idx1"):
        (raw / f"emnist-byclass-train-{kind}-ubyte").replace(
            raw / f"emnist-letters-train-{kind}-ubyte"
        )
    with pytest.raises(base.UserError, match="404"):
        load(tmp_path, "letters")
    assert "labels from 0 to 61, not from 1 to 26" in capfd.readouterr().err


def test_captions_about_other_letters_have_articles_in_them():
    """A sentence about B may hold "a" and "I", which are letters too; about A, only before it."""
    torch.manual_seed(0)
    encode = import_clip().clip._tokenizer.encode
    config = data_args("emnist", datasets.EMNIST_SPLITS["letters"])
    labels, states = torch.arange(26), torch.zeros(26, 2, dtype=torch.int8)
    words = [("thin", "thick"), ("leaning left", "leaning right")]
    made = captions.Captions(config, labels, states, words)
    vocabulary = tiny_clip.vocabulary_of(config, made)
    (a,), (i,), (thick,) = map(encode, ("a", "i", "thick"))
    assert vocabulary.letters == [a, i] and {a, i, thick} < vocabulary.known

    def about(label):
        name = vocabulary.names[label][0]
        return [tiny_clip.noisy_caption(name, [[thick]], vocabulary).tolist() for _ in range(200)]

    about_b = about(1)
    assert 40 < sum(a in row or i in row for row in about_b) < 190
    for row in about(0):
        last = max(k for k, token in enumerate(row) if token in (a, i))
        assert last == len(row) - 1 - row[::-1].index(a)
    for row in about_b:
        assert row.count(thick) == row.count(encode("b")[0]) == row.count(49407) == 1
    first = [row.index(thick) < row.index(encode("b")[0]) for row in about_b]
    assert 60 < sum(first) < 140, "words and class in any order"


def test_digits_are_read_from_emnist_as_the_digits_they_are(emnist_host, tmp_path):
    """MNIST's digits, packed as EMNIST's, come out as they went in: the CLIP reads them."""
    pixels, y = (x.numpy() for x in images.embedded_mnist("test"))
    md5 = write_archive(
        emnist_host.root / "gzip.zip", {"digits-train": (pixels, y), "digits-test": (pixels, y)}
    )
    EMNIST.md5 = md5  # the fixture puts the true one back
    got, labels, _ = load(tmp_path, "digits")
    tiny = load_clip("tiny", data_args(), CPU)
    seen = (
        tiny.encode_image(images.to_images(got)) @ tiny_clip.class_vectors(tiny, data_args()).T
    ).argmax(1)
    assert (seen == labels).float().mean() > 0.98


def test_the_judge_learns_the_training_split_and_the_reference_is_of_the_test_split(
    emnist_host, tmp_path, monkeypatch
):
    learned = []

    def train(pixels, labels, classes, *_):
        learned.append((pixels, labels))
        return judge.Judge(classes)

    monkeypatch.setattr(judge, "train", train)
    tiny = base.ROOT / "assets" / "tiny_clip.pt"
    monkeypatch.setattr(common, "load_clip", lambda *_: Clip("tiny", tiny, CPU))
    choices = {"emnist_split": "letters", "data_dir": tmp_path, "device": "cpu"}
    letters = datasets.EMNIST_SPLITS["letters"]
    config = data_args("emnist", letters, **choices, clip="tiny", extractor="judge")
    evaluator = evaluate.Evaluator(config)
    (pixels, labels), (held_out, asked) = learned[0], evaluator.held_out
    trained, tested = (emnist_host.parts[f"letters-{part}"] for part in ("train", "test"))
    assert (pixels.numpy() == trained[0]).all() and labels.tolist() == trained[1].tolist()
    assert {*map(bytes, held_out)} == {*map(bytes, tested[0])} and len(held_out) == 78
    assert np.bincount(asked).tolist() == [3] * 26
    assert len(evaluator.reference) == len(evaluator.real["labels"]) == 26
    assert (tmp_path / "judge").is_dir()
