"""minimal.py, and the answers to the exercises of docs/teach.md."""

import re

import numpy as np
import torch
from conftest import ROOT
from PIL import Image
from test_structure import TEXTS, TREES, imported

CODE = TEXTS["minimal"]


def run(folder, monkeypatch, steps, ideal=None):
    """What minimal.py leaves in its variables; ideal: the only image there is, for the network."""
    (folder / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    code = CODE.replace("200, 4000,", f"200, {steps},")
    if ideal is not None:
        knows = "model = lambda x_t, t: ideal.expand_as(x_t)\n"
        code = code.replace("x_t, film =", f"{knows}x_t, film =")
    exec(code, names := {"ideal": ideal})
    return names


def test_it_has_60_lines_and_needs_torch_numpy_pillow_and_one_file():
    assert len(CODE.splitlines()) <= 60
    assert {x.split(".")[0] for x in imported(TREES["minimal"])} == {"torch", "numpy", "PIL"}
    assert {*re.findall(r"\w+/\w+\.\w+", CODE)} == {"assets/mnist_20k.npz"}


def test_it_generates_the_only_image_there_is(tmp_path, monkeypatch):
    image = torch.rand(1, 1, 24, 24) * 1.8 - 0.9
    names = run(tmp_path, monkeypatch, 0, image)
    assert (names["x_t"] - image).abs().max() < 1e-5 and len(names["film"]) == 200
    noisy, seen = torch.stack(names["film"]).unbind(2)  # (200, 6, 24, 24)
    assert (seen - image[0]).abs().max() < 1e-5
    share = (noisy * image[0]).mean((1, 2, 3))  # of the image in x_t
    assert share[0].abs() < 0.1 * share[-1] and abs(noisy[0].std() - 1) < 0.1


def test_it_learns_and_saves_eight_moments(tmp_path, monkeypatch, capsys):
    loss = run(tmp_path, monkeypatch, 80)["loss"]
    first = float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1])
    assert loss < 0.6 * first
    picture = np.asarray(Image.open("minimal.png"))
    assert picture.shape == (6 * 2 * 24, 8 * 24) and picture.dtype == np.uint8
    noisy, seen = picture[:24, :24], picture[24:48, :24]  # the first image
    assert noisy.std() > 80 and seen[6:18, 6:18].mean() > 2 * seen[:3].mean(), "the mean digit"


def test_the_answers_to_the_exercises_hold(tmp_path, monkeypatch):
    """All blocks of Python, from top to bottom; the eleven exercises are there."""
    text = (ROOT / "docs" / "teach.md").read_text(encoding="utf-8")
    parts = re.split(r"(?m)^## (\d+)\. ", text)
    assert parts[1::2] == [str(i) for i in range(1, 12)]
    monkeypatch.chdir(tmp_path)  # no trained run is there
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert sum("assert" in block for block in blocks) == 10  # the other is a command
    exec("\n".join(blocks), {"__name__": "answers"})
