"""EMNIST by the true path: a zip of gzipped IDX files, mirrored, letters counted from 1."""

import gzip
import hashlib
import string
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import contents, data_args, idx
from torchvision.datasets import EMNIST

from kit import words
from kit.clip import tokenizer
from kit.data import load_dataset
from kit.files import UserError


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


def test_an_archive_put_there_by_hand_needs_no_network(host, tmp_path, capfd):
    config, raw = config_of(tmp_path, "letters"), tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    (host.root / "gzip.zip").rename(raw / "gzip.zip")
    assert len(load_dataset(config)[0]) == 52
    assert "540 MB" not in capfd.readouterr().err and not host.requests


def test_a_wrong_archive_is_one_line_and_stays(host, tmp_path):
    mine = tmp_path / "EMNIST" / "raw" / "gzip.zip"
    mine.parent.mkdir(parents=True)
    mine.write_bytes((host.root / "gzip.zip").read_bytes()[:9000])
    before = contents(tmp_path)
    with pytest.raises(UserError, match="gzip.zip is another file"):
        load_dataset(config_of(tmp_path, "letters"))
    assert contents(tmp_path) == before and not host.requests


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
