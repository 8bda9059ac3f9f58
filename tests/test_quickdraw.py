"""QuickDraw and EMNIST: downloads, what goes wrong, names and words."""

import gzip
import hashlib
import string
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, data_args, idx
from torchvision.datasets import EMNIST

import a4_full
from kit import data, words
from kit.clip import tokenizer
from kit.data import load_dataset
from kit.files import UserError

NAMES = (ROOT / "assets/quickdraw_categories.txt").read_text(encoding="utf-8").splitlines()


def npy(images, rows=None, kind="|u1"):
    """A .npy file as Google's are: images (N, 784), a header of 80 bytes, as NumPy wrote then."""
    shape = rows or len(images), images.shape[1]
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00F\x00" + text.ljust(69).encode() + b"\n" + images.tobytes()


def doodles(n=300, seed=0):
    """n different images (n, 784)."""
    return np.random.default_rng(seed).integers(0, 256, (n, 784), np.uint8)


@pytest.fixture
def google(server, monkeypatch):
    """serve(name, content) puts a file on Google's host."""
    server.handle_error = lambda *_: None  # who asked may hang up
    server.serve = lambda name, content: (server.root / f"{name}.npy").write_bytes(content)
    monkeypatch.setattr(data, "QUICKDRAW_URL", server.url)
    return server


def load(root, classes, per_class, split="train"):
    return load_dataset(data_args("quickdraw", classes, per_class=per_class, data_dir=root), split)


def test_the_first_rows_are_fetched_once_and_every_tenth_is_held_out(google, tmp_path):
    names, arrays = ["cat", "ice cream"], [doodles(seed=seed) for seed in (1, 2)]
    for name, array in zip(names, arrays):
        google.serve(name, npy(array[:40], rows=300))  # of the rest nothing is read
    pixels, labels, _ = load(tmp_path, names, 40)
    unseen, asked, _ = load(tmp_path, names, 40, "test")
    assert len(google.requests) == 2, "the second load is from disk"
    assert pixels.shape == (72, 28, 28) and pixels.dtype == torch.uint8
    assert (labels.bincount().tolist(), asked.bincount().tolist()) == ([36, 36], [4, 4])
    for label, array in enumerate(arrays):
        rows = array[:40].reshape(4, 10, 28, 28)
        assert (pixels[labels == label].numpy() == rows[:, :9].reshape(-1, 28, 28)).all()
        assert (unseen[asked == label].numpy() == rows[:, 9]).all()
    google.serve("cat", npy(arrays[0]))
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "more of them are fetched when asked for"
    assert len(load(tmp_path, ["cat"], 5000)[0]) == 270, "all that there are"


BAD_HOST = {"a web page": b"<html>" * 1000, "ends early": npy(doodles(100), rows=300)}
BAD_HOST["another shape"] = npy(doodles().reshape(-1, 392))[:9000]


@pytest.mark.parametrize("fault", [*BAD_HOST, "not there"])
def test_a_bad_host_is_one_line_and_nothing_of_it_is_kept(google, tmp_path, fault):
    if fault in BAD_HOST:
        google.serve("cat", BAD_HOST[fault])
    with pytest.raises(UserError, match="127.0.0.1"):
        load(tmp_path, ["cat"], 300)
    google.serve("cat", npy(doodles()))
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "once the host is well again, so are we"


@pytest.mark.parametrize("wrong", [npy(doodles(8), 1, "<f8"), npy(doodles(9)[:, :100])])
def test_a_users_own_file_that_is_wrong_is_one_line_and_stays(tmp_path, wrong):
    (tmp_path / "quickdraw").mkdir()
    (tmp_path / "quickdraw" / "cat.npy").write_bytes(wrong)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="cat.npy cannot be read .*; move it away"):
        load(tmp_path, ["cat"], 50)
    assert contents(tmp_path) == before


def test_many_classes_cost_little_more_than_their_pixels(tmp_path):
    """345 of them with 5,000 images each: 1.4 GB, not 2.8 or 5."""
    (tmp_path / "quickdraw").mkdir()
    for name in NAMES[:30]:
        (tmp_path / "quickdraw" / f"{name}.npy").write_bytes(npy(doodles(1000)))
    tracemalloc.start()
    pixels, *_ = load(tmp_path, NAMES[:30], 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.numel() == 27_000 * 784 <= peak < 1.2 * pixels.numel()


def test_ten_of_the_345_categories_by_default_and_their_articles():
    config = a4_full.Config.parse(["--dataset", "quickdraw"])
    assert len(config.classes) == 10 and {*config.classes} < {*NAMES} and len({*NAMES}) == 345
    spoken = dict(zip(NAMES, words.class_words(data_args("quickdraw", NAMES))))
    articles = {"cat": "a ", "bus": "a ", "owl": "an ", "hourglass": "an "}
    for name, article in (articles | {"pants": "", "The Mona Lisa": ""}).items():
        assert spoken[name] == (name, article + name)


# ── EMNIST by the true path: a zip of gzipped IDX files, mirrored, letters counted from 1 ──


def config_of(folder, split):
    return data_args("emnist", words.EMNIST_SPLITS[split], data_dir=folder, emnist_split=split)


@pytest.fixture
def host(server, monkeypatch):
    """Serves gzip.zip as EMNIST's host does; server.parts: upright images, labels from 0."""
    server.parts, rng = {}, np.random.default_rng(0)
    with zipfile.ZipFile(server.root / "gzip.zip", "w") as archive:
        for split in [*words.EMNIST_SPLITS, "bymerge", "mnist"]:  # torchvision wants all of them
            for part, n in (("train", 2), ("test", 1)):
                classes, name = len(words.EMNIST_SPLITS.get(split, "a")), f"{split}-{part}"
                labels = np.arange(classes).repeat(n)
                images = rng.integers(0, 256, (len(labels), 28, 28))
                server.parts[name] = images, labels
                genuine = images.swapaxes(1, 2), labels + (split == "letters")
                for kind, array in zip(("images-idx3", "labels-idx1"), genuine):
                    content = gzip.compress(idx(array), 1)
                    archive.writestr(f"gzip/emnist-{name}-{kind}-ubyte.gz", content)
    md5 = hashlib.md5((server.root / "gzip.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(EMNIST, "url", f"{server.url}gzip.zip")
    monkeypatch.setattr(EMNIST, "md5", md5)
    return server


@pytest.mark.parametrize("split", words.EMNIST_SPLITS)
def test_names_are_those_of_the_official_mapping(split):
    """Cohen et al. 2017: balanced merges the lower case of letters that look like the upper one."""
    names = [*words.EMNIST_SPLITS[split]]
    upper, lower, digits = string.ascii_uppercase, "abdefghnqrt", string.digits
    official = {"letters": upper, "balanced": digits + upper + lower, "digits": digits}
    assert names == [*official.get(split, digits + upper + string.ascii_lowercase)]
    spoken = words.class_words(config_of(None, split))
    read = [tuple(tokenizer().encode(word)) for pair in spoken for word in pair]
    assert len({*read}) == 2 * len(names), "CLIP reads no capitals; words tell b and B apart"


def test_every_split_is_downloaded_once_upright_and_counted_from_0(host, tmp_path, capfd):
    for split in words.EMNIST_SPLITS:
        for part in ("train", "test"):
            pixels, labels, source = load_dataset(config_of(tmp_path, split), part)
            images, expected = host.parts[f"{split}-{part}"]
            assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
            assert (pixels.numpy() == images).all() and pixels.is_contiguous()
            assert labels.tolist() == expected.tolist() and "emnist" in source.lower()
    assert len({*host.requests}) == 1 and capfd.readouterr().err.count("540 MB, once") == 1


def test_an_archive_put_there_by_hand_needs_no_network_and_a_wrong_one_stays(host, tmp_path, capfd):
    config, mine = config_of(tmp_path, "letters"), tmp_path / "EMNIST" / "raw" / "gzip.zip"
    mine.parent.mkdir(parents=True)
    whole = (host.root / "gzip.zip").read_bytes()
    mine.write_bytes(whole[:9000])
    before = contents(tmp_path)
    with pytest.raises(UserError, match="gzip.zip is another file"):
        load_dataset(config)
    assert contents(tmp_path) == before
    mine.write_bytes(whole)
    assert len(load_dataset(config)[0]) == 52
    assert "540 MB" not in capfd.readouterr().err and not host.requests


@pytest.mark.parametrize("fault", ["html", "offline", "no torchvision"])
def test_without_the_archive_one_line_says_why(host, tmp_path, monkeypatch, fault):
    (host.root / "gzip.zip").write_text("<html>moved</html>")  # its host has been seen to say so
    known = EMNIST.url.split("/")[2]
    if fault == "offline":
        monkeypatch.setattr(EMNIST, "url", f"http://127.0.0.1:9/{(known := '127.0.0.1:9')}")
    elif fault == "no torchvision":
        monkeypatch.setitem(sys.modules, known := "torchvision.datasets", None)
    with pytest.raises(UserError, match=known):
        load_dataset(config_of(tmp_path, "letters"))
