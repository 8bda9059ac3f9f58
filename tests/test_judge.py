"""The judge: what it reads, what it is trained on, and for which classes it is used."""

import numpy as np
import pytest
import torch

from kit import judge
from kit.config import DataConfig
from kit.data import EMBEDDED, embedded_mnist
from kit.files import UserError

CPU = torch.device("cpu")


def bars(config, split="train"):
    """Two classes that a few steps tell apart: bars that lie and bars that stand."""
    pixels = torch.zeros(60, 28, 28, dtype=torch.uint8)
    pixels[::2, 10:16, 4:24], pixels[1::2, 4:24, 10:16] = 255, 255
    return pixels, torch.arange(60) % 2, "quickdraw"


@pytest.fixture
def config(monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "load_dataset", bars)
    monkeypatch.setattr(judge, "BATCH", 16)
    monkeypatch.setattr(judge.make, "__defaults__", (30, 0))
    return DataConfig("quickdraw", classes=("cat", "train"), data_dir=tmp_path)


def test_the_shipped_judge_reads_held_out_digits():
    shipped = judge.load_judge(DataConfig(), CPU)
    pixels, labels = (array.numpy() for array in embedded_mnist("test"))
    features, read = shipped.see(pixels)
    assert (read == labels).mean() >= 0.993
    assert features.shape == (5000, 64) and features.min() >= 0 and features.std() > 0.5
    alone, _ = shipped.see(pixels[7:8])  # the other images of a batch do not matter
    assert np.abs(alone - features[7]).max() < 1e-4


def test_it_is_trained_once_and_kept(config, monkeypatch, capsys):
    first, said = judge.load_judge(config, CPU), capsys.readouterr().err
    monkeypatch.setattr(judge, "train", None)
    again, pixels = judge.load_judge(config, CPU), bars(config)[0].numpy()
    features, read = first.see(pixels)
    assert "training one for quickdraw" in said and read.tolist() == [0, 1] * 30
    assert (features == again.see(pixels)[0]).all() and first.crc32 == again.crc32


def test_it_is_never_used_for_other_classes_and_damage_is_one_line(config):
    other = DataConfig("quickdraw", classes=("train", "cat"), data_dir=config.data_dir)
    judge.load_judge(config, CPU)
    path, known = judge.judge_path(other), judge.judge_path(config).read_bytes()
    assert path != judge.judge_path(config)
    for content in (known, b"", b"<html>", known[:3000]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="other classes" if content == known else "delete it"):
            judge.load_judge(other, CPU)


def test_of_mnist_it_learns_no_embedded_digit(monkeypatch):
    (pixels, labels), (others, theirs) = (embedded_mnist(split) for split in EMBEDDED)
    both = torch.cat([pixels, others[::125]]), torch.cat([labels, theirs[::125]]), "mnist"  # + 40
    monkeypatch.setattr(judge, "load_dataset", lambda *_: both)
    learned, chosen = (judge.real_images(DataConfig(), choices=x)[0] for x in (False, True))
    assert torch.equal(chosen, others[::1000]) and len(learned) == 35, "every eighth is for choices"
    learned, chosen, both = ({*map(bytes, x.numpy())} for x in (learned, chosen, others[::125]))
    assert learned == both - chosen
    monkeypatch.setattr(judge, "load_dataset", lambda *_: (pixels, labels, "embedded"))
    with pytest.raises(UserError, match="MNIST's own files"):
        judge.real_images(DataConfig())


def test_its_command_overwrites_nothing(config, tmp_path):
    flags = ["--dataset", "quickdraw", "--out", str(tmp_path / "judge.pt")]
    judge.main([*flags, "--train-steps", "10"])
    with pytest.raises(UserError, match="judge.pt exists; choose another file"):
        judge.main(flags)
