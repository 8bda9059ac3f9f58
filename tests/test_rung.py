"""A learner's own rung, and what a learner's own mistakes look like."""

import json
import re
import shutil
import traceback

import pytest
from conftest import ROOT, SMALL, only_error, run_folder
from matplotlib.image import imread

FLAGS = f"{SMALL} --clip tiny --scales 1 2"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a learner has: the files of the repository, in a folder of their own."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("kit", "assets"):
        ignored = shutil.ignore_patterns("*.png", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def changed(clone, script, name, changes):
    """`cp <script>.py <name>.py`, and these changes. -> its text"""
    source = (clone / f"{script}.py").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in source, old
        source = source.replace(old, new)
    (clone / f"{name}.py").write_text(source, encoding="utf-8")
    return source


@pytest.mark.usefixtures("coarse_figures")
def test_a_copy_of_a_script_with_one_thing_changed_is_a_run_like_all(clone, cli, here, monkeypatch):
    """With classes renamed, other widths, and a flag of its own; as typed, then in this process."""
    changed(clone, "a4_full", "a6_mine", {
        "A4, the full model: CLIP, classifier-free guidance, and attention to image and words.":
            "A5: narrower.",
        "= (32, 64)": "= (16, 32)",
        "UNet": "MyNet",
        "class Config(common.Config)": "class Choices(common.Config)",
        "config: Config": "config: Choices",
        "Config.parse": "Choices.parse",
        "    lr: float": "    strength: float = 0.5  # my own\n    lr: float",
        "(text[:, 0]": "self.strength * (text[:, 0]",
        "self.patch = config.patch": "self.patch, self.strength = config.patch, config.strength",
    })  # fmt: skip
    command = f"a6_mine.py {FLAGS} --strength 0.7"
    cli(f"{clone}/{command}", clone, env={"PYTHONPATH": ""})
    monkeypatch.syspath_prepend(clone)
    assert "a6_mine is complete" in here(command, clone).stderr
    config = json.loads((run_folder(clone, "a6_mine") / "config.json").read_text())
    assert (config["strength"], config["widths"]) == (0.7, [16, 32])
    assert config["description"] == "A5: narrower."
    assert "my own" in here("a6_mine.py --help", clone).stdout
    done = here(f"a6_mine.py {FLAGS} --strength 0.6", clone, check=1)
    only_error(done, "strength 0.7, not 0.6")
    done = here("a6_mine.py --prompt seven --n 1", clone)
    assert imread(clone / done.stdout.strip()).std() > 0.02
    assert not done.stderr, "strength, too, is as it was trained"


def test_a_broken_shape_shows_its_file_and_line(clone, here, monkeypatch):
    broken = changed(clone, "a0_uncond", "a6_broken",
                     {"nn.Conv2d(c2, c1, 1)": "nn.Conv2d(c2, c1 + 1, 1)"})  # fmt: skip
    monkeypatch.syspath_prepend(clone)
    line = 1 + next(i for i, x in enumerate(broken.splitlines()) if "self.norm1(x)" in x)
    with pytest.raises(RuntimeError) as caught:
        here("a6_broken.py --train-steps 2", clone)
    shown = "".join(traceback.format_exception(caught.value))
    assert re.search(rf'a6_broken.py", line {line}, in forward', shown)
