"""The judge: what it reads, what it learned from, and for what it is taken."""

import numpy as np
import pytest
import torch
from conftest import CPU, data_args, idx, no_answer

from kit import base, downloads, images, judge


@pytest.fixture
def simple(monkeypatch):
    """Two classes that a few steps tell apart: bars that lie and bars that stand."""
    asked = []

    def load(config, split="train"):
        asked.append(split)
        pixels = torch.zeros(60, 28, 28, dtype=torch.uint8)
        pixels[::2, 10:16, 4:24], pixels[1::2, 4:24, 10:16] = 255, 255
        return pixels, torch.arange(60) % 2, "made up"

    monkeypatch.setattr(judge, "load_dataset", load)
    monkeypatch.setattr(images, "load_dataset", load)
    monkeypatch.setattr(judge, "STEPS", 30)
    monkeypatch.setattr(judge, "BATCH", 16)
    return asked


def test_the_shipped_one_reads_held_out_digits():
    shipped = judge.load_judge(data_args(), CPU)
    pixels, labels = images.embedded_mnist("test")
    features, read = shipped.see(pixels.numpy())
    assert (read == labels.numpy()).mean() >= 0.993
    assert features.shape == (5000, 64) and features.min() >= 0 and features.std() > 0.5
    assert judge.SHIPPED.stat().st_size <= 1_000_000
    # An image by itself or among others: what is kept of it must not depend on that.
    alone, _ = shipped.see(pixels[7:8].numpy())
    assert np.abs(alone - features[7]).max() < 1e-4


def test_it_is_trained_once_announced_and_kept(simple, tmp_path, capsys):
    config = data_args("quickdraw", ("bar", "pole"), per_class=30, data_dir=tmp_path)
    first = judge.load_judge(config, CPU)
    said, path = capsys.readouterr().err, judge.judge_path(config)
    assert "training one for quickdraw, once" in said and str(path) in said
    assert "reads 100.00% of 60 held-out ones right" in said and "learned from 60 images" in said
    assert path.is_relative_to(tmp_path / "judge") and {*simple} == {"train", "test"}
    pupil = judge.train(*images.load_dataset(config)[:2], 2, 2, 0, CPU)
    assert not pupil.training, "what it reads must not depend on the other images of a batch"
    simple.clear()
    again = judge.load_judge(config, CPU)
    assert not simple and "training" not in capsys.readouterr().err
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    assert (first.see(pixels)[0] == again.see(pixels)[0]).all() and first.crc32 == again.crc32


def test_it_is_never_taken_for_other_classes(simple, tmp_path):
    bars = data_args("quickdraw", ("bar", "pole"), per_class=30, data_dir=tmp_path)
    others = [
        data_args("quickdraw", ("pole", "bar"), per_class=30, data_dir=tmp_path),
        data_args("quickdraw", ("bar", "pole"), per_class=40, data_dir=tmp_path),
        data_args("emnist", ("bar", "pole"), emnist_split="letters", data_dir=tmp_path),
    ]
    judge.load_judge(bars, CPU)
    for other in others:
        assert judge.judge_path(other) != judge.judge_path(bars)
    judge.judge_path(others[0]).write_bytes(judge.judge_path(bars).read_bytes())
    with pytest.raises(base.UserError, match="learned other classes than pole, bar"):
        judge.load_judge(others[0], CPU)


def test_a_damaged_one_is_one_line(simple, tmp_path):
    config = data_args("quickdraw", ("bar", "pole"), per_class=30, data_dir=tmp_path)
    path = judge.judge_path(config)
    path.parent.mkdir()
    for content in (b"", b"<html>", judge.SHIPPED.read_bytes()[:3000]):
        path.write_bytes(content)
        with pytest.raises(base.UserError, match="delete it"):
            judge.load_judge(config, CPU)


def test_of_mnist_it_learns_no_embedded_digit(here, tmp_path, monkeypatch):
    """By its command, on MNIST's own files: here the embedded digits and 40 others."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = images.embedded_mnist("train")
    others, their_labels = (x[::125] for x in images.embedded_mnist("test"))
    for part, (x, y) in {
        "train": (torch.cat([pixels, others]), torch.cat([labels, their_labels])),
        "t10k": (others, their_labels),
    }.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(x.numpy()))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(y.numpy()))
    seen = []

    def train(pixels, labels, classes, *_):
        seen.extend(image.tobytes() for image in pixels.numpy())
        return judge.Judge(classes)

    monkeypatch.setattr(judge, "train", train)
    here("kit.judge --dataset mnist --train-steps 1 --out mine.pt", tmp_path)
    assert set(seen) == {image.tobytes() for image in others.numpy()} and len(seen) == 40
    assert (tmp_path / "mine.pt").stat().st_size < 1_000_000
    monkeypatch.setattr(downloads, "ask", no_answer)
    done = here("kit.judge --dataset mnist --data-dir nowhere --out mine.pt", tmp_path, check=2)
    assert "takes MNIST's own files; put them in nowhere" in done.stderr
