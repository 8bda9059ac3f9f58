"""MNIST: from disk, from a server in the genuine format, damaged, and not at all."""

import gzip
import hashlib
import socket
import time

import numpy as np
import pytest
import torch
from conftest import data_args, idx
from torchvision.datasets import MNIST

import common
from kit import datasets, images, samples


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
    return server


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
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in mnist_host.root.glob("*.gz"):
        (raw / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    check_served(mnist_host, load(tmp_path))


@pytest.mark.parametrize("cut", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_truncated_file_on_disk_is_named_and_fetched_again(mnist_host, tmp_path, capfd, cut):
    load(tmp_path)
    for path in (tmp_path / "data").rglob(f"{cut}*"):
        path.write_bytes(path.read_bytes()[:30])
    check_served(mnist_host, load(tmp_path))
    assert "damaged" in capfd.readouterr().err
    assert list((tmp_path / "data").rglob("*.damaged")), "what was there is kept aside"


def test_labels_cut_to_a_whole_but_shorter_file_are_noticed(mnist_host, tmp_path):
    load(tmp_path)
    labels = mnist_host.arrays["train"][1][:10]
    (tmp_path / "data/MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels))
    check_served(mnist_host, load(tmp_path))


@pytest.mark.parametrize("fault", ["half", "html"])
def test_a_bad_download_is_never_trained_on(mnist_host, tmp_path, capfd, fault):
    if fault == "half":
        mnist_host.truncate = "train-images-idx3-ubyte.gz"
    else:  # what a captive portal or a moved archive answers
        (mnist_host.root / "train-images-idx3-ubyte.gz").write_text("<html>moved</html>")
    pixels, _, source = load(tmp_path)
    assert source == "embedded" and len(pixels) == 5000
    err = capfd.readouterr().err
    assert "train-images-idx3-ubyte.gz" in err or "corrupted" in err, err


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
        start = time.time()
        assert load(tmp_path)[2] == "embedded"
        assert time.time() - start < 15


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
