"""MNIST: from disk, from a server in the genuine format, damaged, and not at all."""

import gzip
import hashlib
import io
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib

import numpy as np
import pytest
import torch
from conftest import data_args, idx
from torchvision.datasets import MNIST

import common
from kit import base, datasets, downloads, images, locks, samples


@pytest.fixture
def mnist_host(server, monkeypatch):
    """Serves four .gz files as MNIST's hosts do; -> server, the arrays in server.arrays."""
    rng, resources, server.arrays = np.random.default_rng(0), [], {}
    for part, n in (("train", 50), ("t10k", 20)):
        server.arrays[part] = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        for name, array in zip(("images-idx3", "labels-idx1"), server.arrays[part]):
            packed = gzip.compress(idx(array))
            (server.root / f"{part}-{name}-ubyte.gz").write_bytes(packed)
            resources.append((f"{part}-{name}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(downloads, "PAUSE", 0)
    known = {}
    for part, arrays in server.arrays.items():
        crcs = (zlib.crc32(array.astype(np.uint8)) for array in arrays)
        known[part] = len(arrays[1]), dict(zip(("images", "labels"), crcs))
    monkeypatch.setattr(images, "GENUINE", known)
    return server


RAW = "data/MNIST/raw"


def put(folder, arrays, names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), pack=bytes):
    """Images and labels as IDX files, as a user would put them there."""
    raw = folder / RAW
    raw.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays):
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_bytes(pack(idx(array)))


def contents(folder):
    """What lies there, locks apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def load(folder, split="train"):
    return common.load_dataset(data_args(data_dir=folder / "data"), split)


def check_served(server, loaded, part="train"):
    got, labels, source = loaded
    pixels, digits = server.arrays[part]
    assert source == "torchvision" and labels.dtype == torch.int64
    assert got.dtype == torch.uint8 and (got.numpy() == pixels).all()
    assert labels.tolist() == digits.tolist()


def test_download_then_disk(mnist_host, tmp_path):
    check_served(mnist_host, load(tmp_path))
    asked = len(mnist_host.requests)
    check_served(mnist_host, load(tmp_path))
    assert len(mnist_host.requests) == asked, "the second load must come from disk"


def test_of_the_test_split_all_are_measured_against_the_same_digits(
    mnist_host, tmp_path, monkeypatch
):
    """Those of the repository, also where MNIST's files are there; a notebook has none."""
    load(tmp_path)
    pixels, labels, source = load(tmp_path, "test")
    assert source == "embedded" and torch.equal(pixels, images.embedded_mnist("test")[0])
    missing = dict.fromkeys(images.EMBEDDED, tmp_path / "no")
    monkeypatch.setattr(images, "EMBEDDED", missing)
    check_served(mnist_host, load(tmp_path, "test"), "t10k")


def test_four_packed_files_put_there_by_hand_need_no_network(mnist_host, tmp_path, monkeypatch):
    put(tmp_path, [])
    for path in mnist_host.root.glob("*.gz"):
        (tmp_path / RAW / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    check_served(mnist_host, load(tmp_path))


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train-images-idx3-ubyte/", b"")
        archive.writestr("__MACOSX/._train-images.idx3-ubyte", b"!")
        archive.writestr("train-images.idx3-ubyte", content)
        archive.writestr("train-labels.idx1-ubyte", content)
    return file.getvalue()


WRAPPERS = {  # names of images and labels, how they are packed
    "unpacked": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", bytes),
    "packed again": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", gzip.compress),
    "Kaggle's names": ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", bytes),
    "Kaggle's folders": ("a/train-images-idx3-ubyte", "b/train-labels-idx1-ubyte", bytes),
    "unpacked, but still .gz": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", bytes),
    "a browser's second": (
        "train-images-idx3-ubyte (1).gz",
        "Copy of train-labels-idx1-ubyte.gz",
        gzip.compress,
    ),
    "zip": ("train-images.zip", "train-labels.zip", zipped),
    "twice": (
        "train-images-idx3-ubyte.gz.gz",
        "train-labels-idx1-ubyte.gz",
        lambda content: gzip.compress(gzip.compress(content)),
    ),
}


def test_kaggles_archive_as_it_is_downloaded(mnist_host, tmp_path):
    put(tmp_path, [])
    with zipfile.ZipFile(tmp_path / RAW / "archive.zip", "w") as archive:
        for kind, array in zip(("images.idx3", "labels.idx1"), mnist_host.arrays["train"]):
            archive.writestr(f"train-{kind}-ubyte/train-{kind}-ubyte", idx(array))
    check_served(mnist_host, load(tmp_path))
    assert not mnist_host.requests


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_genuine_files_in_any_wrapper_are_used_and_stay_as_they_are(mnist_host, tmp_path, wrapper):
    *names, pack = WRAPPERS[wrapper]
    put(tmp_path, mnist_host.arrays["train"], names, pack)
    before = contents(tmp_path)
    check_served(mnist_host, load(tmp_path))
    assert contents(tmp_path / "data") == {k.removeprefix("data/"): v for k, v in before.items()
                                           if k.startswith("data/")}  # fmt: skip
    assert not mnist_host.requests


def test_of_two_files_one_damaged_the_other_is_used(mnist_host, tmp_path, capfd):
    put(tmp_path, mnist_host.arrays["train"], pack=lambda content: content[:-9] + bytes(9))
    names = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
    put(tmp_path, mnist_host.arrays["train"], names, gzip.compress)
    check_served(mnist_host, load(tmp_path))
    assert "cannot be used" in capfd.readouterr().err and not mnist_host.requests


def bent(fault, images, labels):
    """Images and labels with a fault."""
    if fault == "other size":
        return np.zeros((50, 32, 32)), labels
    if fault == "labels above 9":
        return images, labels + 11
    if fault == "fewer labels":
        return images, labels[:10]
    if fault == "ten bad bytes":
        images = images.copy()
        images[7, 3, :10] ^= 255
    return images, labels


BENT = {
    "other size": "images are (50, 32, 32), not (N, 28, 28)",
    "labels above 9": "not from 0 to 9",
    "fewer labels": "50 images, but 10 labels",
    "ten bad bytes": "50 images, but not MNIST's for train: damaged, or another data set",
    "test digits": "20 images, but not MNIST's for train: damaged, or another data set",
    "cut": "bytes are not (50, 28, 28)",
    "a web page": "no IDX file of bytes",
    "empty": "no IDX file of bytes",
    "a broken gzip": "train-images",
}


def put_bent(folder, fault, arrays):
    put(folder, bent(fault, *arrays["t10k" if fault == "test digits" else "train"]))
    path = folder / RAW / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    content = {"cut": whole[:30], "a web page": b"<html>login", "empty": b"",
               "a broken gzip": gzip.compress(whole)[:-500] + bytes(500)}  # fmt: skip
    path.write_bytes(content.get(fault, whole))


@pytest.mark.parametrize("fault", BENT)
def test_a_file_that_is_no_mnist_stays_and_others_are_fetched(mnist_host, tmp_path, capfd, fault):
    put_bent(tmp_path, fault, mnist_host.arrays)
    before = contents(tmp_path / "data")
    check_served(mnist_host, load(tmp_path))
    after = contents(tmp_path / "data")
    assert before.items() < after.items(), "what the user had is as it was"
    err = capfd.readouterr().err
    assert "train-images-idx3-ubyte" in err and "left alone" in err
    asked = len(mnist_host.requests)
    check_served(mnist_host, load(tmp_path))
    assert len(mnist_host.requests) == asked, "once fetched, it is read from there"


@pytest.mark.parametrize("fault", BENT)
def test_without_a_host_it_is_one_line_and_never_the_embedded_digits(
    mnist_host, tmp_path, monkeypatch, fault
):
    put_bent(tmp_path, fault, mnist_host.arrays)
    before = contents(tmp_path / "data")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(base.UserError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert BENT[fault] in message, message
    assert "train-images-idx3-ubyte" in message and "\n" not in message
    assert contents(tmp_path / "data") == before
    for path in (tmp_path / RAW).glob("train*"):  # the remedy
        path.unlink()
    assert load(tmp_path)[2] == "embedded"


def test_a_packed_file_of_the_users_own_is_not_overwritten_by_a_download(mnist_host, tmp_path):
    """It has the name that a download wants, and is something else."""
    put(tmp_path, [])
    mine = tmp_path / RAW / "train-images-idx3-ubyte.gz"
    mine.write_bytes(b"my own")
    for _ in range(2):
        check_served(mnist_host, load(tmp_path))
    assert mine.read_bytes() == b"my own"
    assert (tmp_path / RAW / "train-images-idx3-ubyte-fetched.gz").exists()
    assert len(mnist_host.requests) == 2


def test_own_digits_in_the_same_format_are_told_from_mnist(mnist_host, tmp_path):
    put(tmp_path, [array[:31] for array in mnist_host.arrays["train"]])
    pixels, _, source = load(tmp_path)
    assert len(pixels) == 31 and source.startswith("files (CRC-32 ")


def test_the_checksums_of_the_genuine_files_are_in_the_code():
    """As the hosts' files have them, unpacked, without their heads."""
    train, test = (0xF3639B56, 0xBA07E8EF), (0xE4CA5F57, 0xEE8604D9)
    known = {part: (n, tuple(crcs.values())) for part, (n, crcs) in images.GENUINE.items()}
    assert known == {"train": (60000, train), "t10k": (10000, test)}


def test_images_without_labels_are_no_reason_for_the_embedded_digits(mnist_host, tmp_path):
    put(tmp_path, mnist_host.arrays["train"])
    (tmp_path / RAW / "train-labels-idx1-ubyte").unlink()
    for path in mnist_host.root.glob("*.gz"):
        path.unlink()
    with pytest.raises(base.UserError, match="has train-images, but no train-labels"):
        load(tmp_path)


# ── Downloads ──


BAD_HOST = {
    "half": "breaks off after",
    "html": "sends a web page",
    "other": "sends another file (its checksum differs)",
    "gone": "answers 404",
}


@pytest.mark.parametrize("fault", BAD_HOST)
def test_a_bad_download_is_never_trained_on(mnist_host, tmp_path, capfd, fault):
    file = mnist_host.root / "train-images-idx3-ubyte.gz"
    if fault == "half":
        mnist_host.truncate = file.name
    elif fault == "html":  # what a captive portal or a moved archive answers
        file.write_text("<!DOCTYPE html><html>moved</html>")
    elif fault == "other":
        file.write_bytes(gzip.compress(b"other"))
    else:
        file.unlink()
    pixels, _, source = load(tmp_path)
    assert source == "embedded" and len(pixels) == 5000 and not contents(tmp_path / "data")
    err = capfd.readouterr().err.strip().splitlines()[-1]
    assert "train-images-idx3-ubyte.gz is missing" in err and BAD_HOST[fault] in err, err
    tried = sum(request.endswith(file.name) for request in mnist_host.requests)
    assert tried == (3 if fault in ("half", "other") else fault == "html")


def test_a_certificate_that_fails_is_the_reason_and_the_host_is_not_called_dead(
    mnist_host, tmp_path, monkeypatch, capfd
):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"

    def urlopen(*_, **__):
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert load(tmp_path)[2] == "embedded"
    err = capfd.readouterr().err
    assert "has a certificate that cannot be trusted (self-signed certificate" in err


def test_a_slow_host_is_waited_for_and_said_so(mnist_host, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    true_open, before = urllib.request.urlopen, socket.getdefaulttimeout()

    def urlopen(*args, **others):
        time.sleep(0.5)
        return true_open(*args, **others)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    check_served(mnist_host, load(tmp_path))
    assert "waiting for 127.0.0.1" in capfd.readouterr().err
    assert socket.getdefaulttimeout() == before


def test_another_mirror_is_asked_where_one_is_dead(mnist_host, tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", mnist_host.url])
    check_served(mnist_host, load(tmp_path))


def test_another_mirror_is_asked_where_one_sends_a_web_page(mnist_host, tmp_path, monkeypatch):
    (mnist_host.root / "portal").mkdir()
    for path in mnist_host.root.glob("*.gz"):
        (mnist_host.root / "portal" / path.name).write_text("<html>sign in</html>")
    monkeypatch.setattr(MNIST, "mirrors", [f"{mnist_host.url}portal/", mnist_host.url])
    check_served(mnist_host, load(tmp_path))


def test_two_at_once_download_once(mnist_host, tmp_path):
    """Another process holds the download; this one waits, says for whom, and finds the file."""
    put(tmp_path, [])
    code = "import sys, time, pathlib; from kit import locks\n"
    code += "locks.hold(pathlib.Path(sys.argv[1])); print(flush=True); sys.stdin.readline()"
    path = tmp_path / RAW / "train-images-idx3-ubyte.gz"
    line = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(line, cwd=base.ROOT, **pipes)
    other.stdout.readline()
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(locks, "say", said.append)
        thread = threading.Thread(target=lambda: loaded.append(load(tmp_path)))
        thread.start()
        while not said:
            time.sleep(0.05)
        whole = mnist_host.root / path.name
        path.write_bytes(whole.read_bytes())
        other.communicate(b"\n")
        thread.join(20)
    check_served(mnist_host, loaded[0])
    assert f"waiting for process {other.pid}" in said[0]
    assert not any(request.endswith(path.name) for request in mnist_host.requests)


def test_no_network_means_the_embedded_digits_within_15_seconds(offline, tmp_path, capfd):
    start = time.time()
    pixels, labels, source = load(tmp_path)
    assert time.time() - start < 15 and source == "embedded"
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    assert torch.bincount(labels).tolist() == [500] * 10
    assert pixels.dtype == torch.uint8 and (pixels.min(), pixels.max()) == (0, 255)


def test_hosts_that_accept_and_never_answer_are_given_up_within_15_seconds(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(MNIST, "mirrors", [url, url])
        monkeypatch.setattr(downloads, "LIMIT", 2)  # which is 14.5
        start = time.time()
        assert load(tmp_path)[2] == "embedded"
        assert 1.5 < time.time() - start < 3


def test_embedded_splits_share_no_image():
    train, _ = images.embedded_mnist("train")
    test, labels = images.embedded_mnist("test")
    assert torch.bincount(labels).tolist() == [500] * 10
    assert not {x.numpy().tobytes() for x in train} & {x.numpy().tobytes() for x in test}


def test_template_lists():
    for dataset in datasets.DATASETS:
        trained, heldout = datasets.TRAIN_TEMPLATES[dataset], datasets.HELDOUT_TEMPLATES[dataset]
        assert (
            len(set(trained)) >= 12 and len(set(heldout)) >= 10 and not set(trained) & set(heldout)
        )
        assert all(t.count("{}") == 1 for t in trained + heldout)


def test_balanced_prompts():
    prompts, labels = samples.balanced_prompts(data_args(), {"mnist": ["draw {}", "{}!"]}, 45)
    assert torch.bincount(labels).tolist() == [5] * 5 + [4] * 5
    assert prompts[:2] + [prompts[7], prompts[17], prompts[27], prompts[37]] == [
        "draw zero", "draw one", "draw seven", "draw 7", "seven!", "7!",
    ]  # fmt: skip
