"""MNIST: on disk, from a server in the genuine format, damaged, and with no network at all."""

import gzip
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, data_args, idx
from torchvision.datasets import MNIST

from kit import data, files
from kit.data import embedded_mnist, load_dataset, to_images, to_pixels
from kit.files import UserError

RAW = "MNIST/raw"


@pytest.fixture
def arrays():
    """In place of MNIST's 60,000 and 10,000 digits: images and labels."""
    rng = np.random.default_rng(0)
    sizes = {"train": 50, "t10k": 20}
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


def put(folder, arrays, names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), pack=bytes):
    """Images and labels as IDX files, where a user would put them."""
    (folder / RAW).mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays):
        (folder / RAW / name).parent.mkdir(exist_ok=True)
        (folder / RAW / name).write_bytes(pack(idx(array)))


def load(folder, split="train"):
    return load_dataset(data_args(data_dir=folder), split)


def check(loaded, arrays):
    pixels, labels, source = loaded
    assert source != "embedded" and labels.dtype == torch.int64 and pixels.dtype == torch.uint8
    assert (pixels.numpy() == arrays[0]).all() and labels.tolist() == arrays[1].tolist()


def lines(capfd):
    """What was said on stderr, progress bars apart."""
    said = capfd.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in said if line.strip() and "B/s" not in line]


# ── On disk ──


@pytest.mark.parametrize("dot", ["-", "."], ids=["usual names", "Kaggle's names"])
@pytest.mark.parametrize("packed", ["", ".gz", "packed without .gz"])
def test_files_on_disk_are_used_without_a_network(arrays, tmp_path, dot, packed):
    names = [f"train-{x}{'.gz' * (packed == '.gz')}" for x in (f"images{dot}idx3-ubyte",
                                                             f"labels{dot}idx1-ubyte")]  # fmt: skip
    put(tmp_path, arrays["train"], names, gzip.compress if packed else bytes)
    before = contents(tmp_path)
    check(load(tmp_path), arrays["train"])
    assert contents(tmp_path) == before


def test_kaggles_archive_has_files_and_folders_of_such_names(arrays, tmp_path):
    names = [f"train-{x}-ubyte/train-{x}-ubyte" for x in ("images-idx3", "labels-idx1")]
    put(tmp_path, arrays["train"], names)
    for name in names:
        content = (tmp_path / RAW / name).read_bytes()
        (tmp_path / RAW / name.split("/")[1].replace("-idx", ".idx")).write_bytes(content)
    check(load(tmp_path), arrays["train"])


def damaged(fault, images, labels):
    whole = idx(images), idx(labels)
    return {
        "cut": (whole[0][:9000], whole[1]),
        "cut in its head": (whole[0][:6], whole[1]),
        "a web page": (b"<html>login", whole[1]),
        "empty": (b"", whole[1]),
        "a broken gzip": (gzip.compress(whole[0])[:-500] + bytes(500), whole[1]),
        "other size": (idx(np.zeros((50, 32, 32))), whole[1]),
        "fewer labels": (whole[0], idx(labels[:10])),
        "labels above 9": (whole[0], idx(labels + 11)),
        "labels that are images": (whole[0], whole[0]),
        "no digit at all": (idx(np.zeros((0, 28, 28))), idx(np.zeros(0))),
    }[fault]


FAULTS = (
    "cut",
    "cut in its head",
    "a web page",
    "empty",
    "a broken gzip",
    "other size",
    "fewer labels",
    "labels above 9",
    "labels that are images",
    "no digit at all",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_one_line_that_names_it_and_stays(arrays, tmp_path, fault):
    """And never the embedded digits in its place: who put it there believes it is used."""
    put(tmp_path, arrays["train"])
    names = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    for name, content in zip(names, damaged(fault, *arrays["train"])):
        (tmp_path / RAW / name).write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="idx3-ubyte cannot be read .*move it") as caught:
        load(tmp_path)
    assert "\n" not in caught.value.text and contents(tmp_path) == before


# ── Downloads ──


def test_torchvisions_download_is_used_and_then_found_on_disk(host, arrays, tmp_path):
    check(load(tmp_path), arrays["train"])
    asked = len(host.requests)
    check(load(tmp_path), arrays["train"])
    assert len(host.requests) == asked > 0


def test_a_download_overwrites_nothing(host, arrays, tmp_path):
    """A user's file has the name that a download wants, and is something else."""
    put(tmp_path, [])
    for folder in (RAW, "torchvision"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "train-images-idx3-ubyte.gz").write_bytes(b"my own")
    before = contents(tmp_path)
    for _ in range(2):
        check(load(tmp_path), arrays["train"])
    assert contents(tmp_path).items() > before.items()


@pytest.mark.parametrize("fault", ["half", "html", "gone"])
def test_a_bad_download_is_one_line_and_never_trained_on(host, arrays, tmp_path, capfd, fault):
    path = host.root / MNIST.resources[0][0]
    whole = path.read_bytes()
    if fault == "half":
        host.truncate = path.name
    elif fault == "html":  # the answer of a captive portal
        path.write_text("<!DOCTYPE html><html>moved</html>")
    else:
        path.unlink()
    for _ in range(2):
        assert load(tmp_path)[2] == "embedded"
        said = [line for line in lines(capfd) if not line.startswith(("Downloading", "Failed"))]
        assert len([line for line in said if line.startswith("MNIST: ")]) == 1, said
    host.truncate = None
    path.write_bytes(whole)
    check(load(tmp_path), arrays["train"])


def test_of_the_test_split_all_are_measured_against_the_same_digits(host, arrays, tmp_path, capfd):
    """Those of the repository, also where MNIST's files are there; a notebook has none."""
    load(tmp_path)
    pixels, labels, source = load(tmp_path, "test")
    assert source == "embedded" and torch.equal(pixels, embedded_mnist("test")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "EMBEDDED", dict.fromkeys(data.EMBEDDED, tmp_path / "no"))
        check(load(tmp_path, "test"), arrays["t10k"])
        patch.setattr(data, "MNIST_URL", "http://127.0.0.1:9/gone.gz")
        with pytest.raises(UserError, match="127.0.0.1:9.*put MNIST.s four"):
            load(tmp_path / "elsewhere")


# ── No network ──


def test_no_network_means_the_embedded_digits_in_one_line_at_once(offline, tmp_path, capfd):
    start = time.time()
    pixels, labels, source = load(tmp_path)
    assert time.time() - start < 3 and source == "embedded"
    (said,) = lines(capfd)
    assert "s3.amazonaws.com" in said and "using 5,000 embedded digits" in said
    assert str(tmp_path / RAW) in said
    assert pixels.dtype == torch.uint8 and pixels.shape == (5000, 28, 28)
    assert (pixels.min(), pixels.max()) == (0, 255) and labels.bincount().tolist() == [500] * 10


class OnlyHead(BaseHTTPRequestHandler):
    """A host that says that the file is there, and then never sends it."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        time.sleep(5)


@pytest.mark.parametrize("kind", ["accepts and never answers", "look-up hangs", "stops sending"])
def test_a_dead_network_is_noticed(tmp_path, monkeypatch, offline, capfd, kind):
    assert files.PATIENCE <= 15
    monkeypatch.setattr(files, "PATIENCE", 0.4)
    before, httpd = socket.getdefaulttimeout(), ThreadingHTTPServer(("127.0.0.1", 0), OnlyHead)
    url = f"http://127.0.0.1:{httpd.server_port}/"
    if kind == "look-up hangs":  # no time-out of a socket ends it
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    elif kind == "stops sending":
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(MNIST, "mirrors", [url])
    monkeypatch.setattr(data, "MNIST_URL", f"{url}train-images-idx3-ubyte.gz")
    start = time.time()
    assert load(tmp_path)[2] == "embedded"
    assert 0.3 < time.time() - start < 3 and socket.getdefaulttimeout() == before
    assert lines(capfd)[-1].startswith("MNIST: ")
    httpd.socket.close()


def test_a_python_without_lzma_loses_torchvision_and_a_line(host, arrays, tmp_path):
    """As many a self-built one is. What lies on disk needs no torchvision."""
    (tmp_path / "_lzma.py").write_text("raise ImportError('no lzma here')")
    put(tmp_path / "full", arrays["train"])
    code = "import sys, argparse, pathlib, common\nfrom kit import data\n"
    code += f"data.MNIST_URL = {data.MNIST_URL!r}\nfor folder in ('none', 'full'):\n"
    code += "    config = argparse.Namespace(dataset='mnist', data_dir=pathlib.Path(folder))\n"
    code += "    print(len(data.load_dataset(config)[0]))"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["5000", "50"], done.stderr
    (said,) = done.stderr.splitlines()
    assert "no lzma here; using 5,000 embedded digits" in said


# ── Embedded ──


def test_no_embedded_test_digit_is_trained_on():
    splits = [embedded_mnist(split) for split in ("train", "test")]
    for pixels, labels in splits:
        assert pixels.dtype == torch.uint8 and pixels.shape == (5000, 28, 28)
        assert labels.dtype == torch.int64 and labels.bincount().tolist() == [500] * 10
    train, test = ({x.numpy().tobytes() for x in pixels} for pixels, _ in splits)
    assert len(train) == len(test) == 5000 and not train & test


def test_pixels_and_images_are_the_same_thing_twice():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(4)[:784].view(1, 28, 28)
    images = to_images(pixels)
    assert images.dtype == torch.float32 and images.shape == (1, 1, 28, 28)
    assert (images.min(), images.max()) == (-1, 1)
    assert (to_pixels(images) == pixels.numpy()).all()
    assert to_pixels(torch.full((1, 1, 2, 2), 7.0)).tolist() == [[[255, 255], [255, 255]]]
