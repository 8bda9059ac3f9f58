"""MNIST: on disk, from a server in the genuine format, damaged, and with no network at all."""

import gzip
import hashlib
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, Handler, contents, data_args, idx
from torchvision.datasets import MNIST

from kit import data, files
from kit.data import embedded_mnist, load_dataset, to_images, to_pixels
from kit.files import UserError

RAW = "MNIST/raw"
USUAL = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def arrays():
    """In place of MNIST's 60,000 and 10,000 digits: images and labels."""
    rng, sizes = np.random.default_rng(0), {"train": 50, "t10k": 20}
    return {x: (rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10) for x, n in sizes.items()}


@pytest.fixture
def host(server, arrays, monkeypatch):
    """Serves four .gz files as MNIST's hosts do."""
    resources = []
    for part in arrays:
        for name, array in zip(("images-idx3", "labels-idx1"), arrays[part]):
            packed, file = gzip.compress(idx(array)), f"{part}-{name}-ubyte.gz"
            (server.root / file).write_bytes(packed)
            resources.append((file, hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(data, "MNIST_URL", f"{server.url}{resources[0][0]}")
    return server


def put(folder, names, files):
    """Files where a user would put them. -> all that lies there."""
    for name, content in zip(names, files):
        (folder / RAW / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / RAW / name).write_bytes(content)
    return contents(folder)


def load(folder, split="train"):
    return load_dataset(data_args(data_dir=folder), split)


def check(loaded, arrays):
    pixels, labels, source = loaded
    assert source != "embedded" and labels.dtype == torch.int64 and pixels.dtype == torch.uint8
    assert (pixels.numpy() == arrays[0]).all() and labels.tolist() == arrays[1].tolist()


@pytest.mark.parametrize("dot", ["-", "."], ids=["usual names", "Kaggle's names"])
@pytest.mark.parametrize("packed", ["", ".gz", "packed without .gz"])
def test_files_on_disk_are_used_without_a_network(arrays, tmp_path, dot, packed):
    names = [name.replace("-idx", f"{dot}idx") + ".gz" * (packed == ".gz") for name in USUAL]
    pack = gzip.compress if packed else bytes
    if dot == ".":  # Kaggle's archive has folders of the usual names, too
        put(tmp_path, [f"{name}/{name}" for name in USUAL], map(idx, arrays["train"]))
    before = put(tmp_path, names, [pack(idx(array)) for array in arrays["train"]])
    check(load(tmp_path), arrays["train"])
    assert contents(tmp_path) == before


FAULTS = {
    "cut": lambda x, y: (idx(x)[:9000], idx(y)),
    "a web page": lambda x, y: (b"<html>login", idx(y)),
    "a broken gzip": lambda x, y: (gzip.compress(idx(x))[:-500] + bytes(500), idx(y)),
    "other size": lambda x, y: (idx(np.zeros((50, 32, 32))), idx(y)),
    "fewer labels": lambda x, y: (idx(x), idx(y[:10])),
    "labels above 9": lambda x, y: (idx(x), idx(y + 11)),
    "no digit at all": lambda x, y: (idx(x[:0]), idx(y[:0])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_one_line_that_names_it_and_stays(arrays, tmp_path, fault):
    """And never the embedded digits in its place: who put it there believes it is used."""
    before = put(tmp_path, USUAL, FAULTS[fault](*arrays["train"]))
    with pytest.raises(UserError, match="idx3-ubyte cannot be read .*move it"):
        load(tmp_path)
    assert contents(tmp_path) == before


def test_a_download_overwrites_nothing(host, arrays, tmp_path, monkeypatch):
    """A user's file has the name that a download wants, and is something else."""
    before = put(tmp_path, [f"{USUAL[0]}.gz", f"../../torchvision/{USUAL[0]}.gz"], [b"my own"] * 2)
    check(load(tmp_path), arrays["train"])
    asked = len(host.requests)
    check(load(tmp_path), arrays["train"])
    assert len(host.requests) == asked > 0 and contents(tmp_path).items() > before.items()
    pixels, labels, source = load(tmp_path, "test")
    assert source == "embedded" and torch.equal(pixels, embedded_mnist("test")[0])
    monkeypatch.setattr(data, "EMBEDDED", dict.fromkeys(data.EMBEDDED, tmp_path / "no"))
    check(load(tmp_path, "test"), arrays["t10k"])  # as in a notebook, which has none
    monkeypatch.setattr(data, "MNIST_URL", "http://127.0.0.1:9/gone.gz")
    with pytest.raises(UserError, match="127.0.0.1:9.*put MNIST's four"):
        load(tmp_path / "elsewhere")


@pytest.mark.parametrize("fault", ["half", "html"])
def test_a_bad_download_is_one_line_and_never_trained_on(host, arrays, tmp_path, capfd, fault):
    path = host.root / MNIST.resources[0][0]
    whole = path.read_bytes()
    if fault == "half":
        host.truncate = path.name
    else:  # the answer of a captive portal
        path.write_text("<!DOCTYPE html><html>moved</html>")
    for _ in range(2):
        assert load(tmp_path)[2] == "embedded"
        assert capfd.readouterr().err.count("MNIST: ") == 1
    host.truncate = None
    path.write_bytes(whole)
    check(load(tmp_path), arrays["train"])


DEAD = "refuses at once", "accepts and never answers", "look-up hangs", "stops sending"


@pytest.mark.parametrize("kind", DEAD)
def test_a_dead_network_means_the_embedded_digits(host, tmp_path, monkeypatch, capfd, kind):
    assert files.PATIENCE <= 15
    monkeypatch.setattr(files, "PATIENCE", 0.4)
    start, before, silent = time.time(), socket.getdefaulttimeout(), socket.create_server(("", 0))
    if kind == "look-up hangs":  # no time-out of a socket ends it
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    elif kind == "stops sending":
        monkeypatch.setattr(Handler, "copyfile", lambda *_: time.sleep(5))
    else:
        port = 9 if kind == "refuses at once" else silent.getsockname()[1]
        monkeypatch.setattr(data, "MNIST_URL", f"http://127.0.0.1:{port}/a.gz")
    pixels, _, source = load(tmp_path)
    assert time.time() - start < 4 and socket.getdefaulttimeout() == before
    assert source == "embedded" and torch.equal(pixels, embedded_mnist("train")[0])
    (said,) = (x for x in capfd.readouterr().err.splitlines() if x.startswith("MNIST: "))
    assert "127.0.0.1" in said and "using 20,000 embedded digits" in said and RAW in said
    silent.close()


def test_a_python_without_lzma_loses_torchvision_and_a_line(host, arrays, tmp_path):
    """As many a self-built one is. What lies on disk needs no torchvision."""
    (tmp_path / "_lzma.py").write_text("raise ImportError('no lzma here')")
    put(tmp_path / "full", USUAL, map(idx, arrays["train"]))
    code = "import argparse, pathlib, common\nfrom kit import data\n"
    code += f"data.MNIST_URL = {data.MNIST_URL!r}\nfor folder in ('none', 'full'):\n"
    code += "    config = argparse.Namespace(dataset='mnist', data_dir=pathlib.Path(folder))\n"
    code += "    print(len(data.load_dataset(config)[0]))"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["20000", "50"], done.stderr
    (said,) = done.stderr.splitlines()
    assert "no lzma here; using 20,000 embedded digits" in said


def test_no_embedded_test_digit_is_trained_on():
    splits = [embedded_mnist(split) for split in ("train", "test")]
    for pixels, labels in splits:
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (28, 28)
        assert labels.dtype == torch.int64 and {*labels.bincount().tolist()} == {len(pixels) // 10}
        images = to_images(pixels)
        assert images.dtype == torch.float32 and (images.min(), images.max()) == (-1, 1)
        expected = pixels.numpy() * (pixels.numpy() >= 10)  # haze becomes black
        assert (to_pixels(images) == expected).all() and to_pixels(9 * images).max() == 255
    train, test = ({*map(bytes, pixels.numpy())} for pixels, _ in splits)
    assert len(train) == 20_000 and len(test) == 5000 and not train & test
