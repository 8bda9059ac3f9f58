"""demo.py without a browser: its images are those of the command line (the browser: long.py)."""

import base64
import importlib.util
import io
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import run_folder
from PIL import Image

import common
import demo
from kit import pictures
from kit.files import UserError


@pytest.fixture
def play(tmp_path, monkeypatch):
    """-> a function: (run, sentence, other, scale, seed, n, steps) -> the states of the page."""
    monkeypatch.chdir(tmp_path)

    def states(*args):
        with monkeypatch.context() as patch:
            patch.setattr(common, "save_outputs", common.save_outputs)  # put back afterwards
            return [*demo.play(*args)]

    return states


def images_of(page: str) -> list[np.ndarray]:
    found = re.findall(r'<img src="data:image/png;base64,(.*?)"', page)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]


def test_the_page_draws_what_the_command_draws(play, here, tmp_path, monkeypatch):
    pages = play("results/mnist/a4_full", "7", "a thin two", 2, 4, 3, 5)
    *views, last = pages[-1].split("x0_hat")
    assert len(views) == 2 and not list(tmp_path.rglob("*.png")), "a page saves nothing"
    monkeypatch.setattr(pictures, "save_grid", grid := Mock())
    for prompt, part in (("7", views[1]), ("a thin two", last)):
        flags = ["--scale", "2", "--seed", "4", "--n", "3", "--sample-steps", "5"]
        here(["a4_full.py", "--prompt", prompt, *flags], tmp_path)
        tiles = [x[1:-1, 1:-1] for x in images_of(part) if x.shape == (30, 30)]
        assert np.array_equal(tiles, grid.call_args.args[1])
    assert "seven, " in views[1] and "two, thin" in last and "thickness" in last


def test_a_run_of_ones_own_and_what_is_wrong_are_lines(play, copy, monkeypatch):
    own = str(run_folder(copy))
    assert len(images_of(play(own, "7", "", 2, 0, 2, 2)[-1])) == 4  # x_t, x0_hat, two images
    for sentence in ("", " ", "x " * 5000):
        (page,) = play(own, sentence, "", 2, 0, 2, 2)
        assert re.search("readable text|too long for CLIP", page) and "<img" not in page
    config = Path(own, "config.json")  # of a script that reads no text
    config.write_text(config.read_text().replace('"a4_full"', '"a0_uncond"'))
    assert "Unrecognized options: --prompt" in play(own, "7", "", 2, 0, 2, 2)[-1]
    shutil.rmtree(own)
    assert re.search("no trained model in.*&lt;b&gt;", play(own, "7", "<b>", 2, 0, 2, 2)[-1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gradio"):
        demo.main()
