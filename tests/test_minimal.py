"""minimal.py, and the answers to the exercises of docs/teach.md."""

import re

import numpy as np
import torch
from conftest import ROOT
from PIL import Image
from test_structure import TEXTS, TREES, imported

import minimal


def test_it_has_60_lines_and_needs_torch_numpy_and_one_file():
    assert len(TEXTS["minimal"].splitlines()) <= 60
    assert {x.split(".")[0] for x in imported(TREES["minimal"])} == {"torch", "numpy", "PIL"}
    assert {*re.findall(r"\w+/\w+\.\w+", TEXTS["minimal"])} == {"assets/mnist_20k.npz"}


def test_it_samples_the_only_image_there_is_and_what_it_sees_is_that_image():
    image = torch.rand(1, 1, 28, 28) * 1.8 - 0.9
    images, film = minimal.sample(lambda x_t, t: image.expand_as(x_t), 2)
    assert (images - image).abs().max() < 1e-5 and len(film) == minimal.T
    assert all((x0_hat - image).abs().max() < 1e-5 for _, x0_hat in film)
    share = torch.stack([(x_t * image).mean() for x_t, _ in film])  # of the image in x_t
    assert share[0] < 0.1 * share[-1] and film[0][0].std() > 0.9


def test_it_learns_and_saves_eight_moments(tmp_path, monkeypatch, capsys):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minimal, "STEPS", 60)
    torch.manual_seed(0)
    minimal.main()
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[0] > 0.5 > losses[-1]
    picture = np.asarray(Image.open("minimal.png"))
    assert picture.shape == (8 * 28, 8 * 28) and picture.dtype == np.uint8
    noisy, seen = picture[:28], picture[28:56]  # the first image: x_t, x0_hat
    assert noisy[:, :28].std() > 60 and seen[:, :28].std() < 60


def test_the_answers_to_the_exercises_hold(tmp_path, monkeypatch):
    """All blocks of Python, from top to bottom; the eleven exercises are there."""
    text = (ROOT / "docs" / "teach.md").read_text(encoding="utf-8")
    parts = re.split(r"(?m)^## (\d+)\. ", text)
    assert parts[1::2] == [str(i) for i in range(1, 12)]
    monkeypatch.chdir(tmp_path)  # no trained run is there
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert sum("assert" in block for block in blocks) == 10  # the other is a command
    exec("\n".join(blocks), {"__name__": "answers"})
