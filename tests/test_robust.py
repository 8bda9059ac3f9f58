"""Full disks, damaged files, losses that are no numbers, odd prompts, other people's machines."""

import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY, contents, last_of, only_error, ours, run_folder, warm
from matplotlib.image import imread

import a0_uncond
import a4_full
from kit import files

UNCOND, SAMPLES = f"a0_uncond.py {SMALL}", "images/samples.npz"


@pytest.fixture(scope="module")
def small(here, tmp_path_factory):
    """A finished run of a0, which costs little. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("small")
    here(UNCOND, folder)
    return folder


@pytest.fixture
def mine(small, tmp_path, monkeypatch):
    monkeypatch.setattr(a0_uncond, "train", lambda *_: pytest.fail("it trains"))
    return run_folder(shutil.copytree(small, tmp_path / "mine", symlinks=True), "a0_uncond")


@pytest.fixture
def half(copy):
    """The finished run of a4 as it was at step 40, without samples."""
    shutil.rmtree(run_folder(copy) / "images")
    checkpoint = torch.load(last_of(copy), weights_only=True)
    torch.save(checkpoint | {"step": 40, "losses": checkpoint["losses"][:2]}, last_of(copy))
    return copy


def place_of(run):
    return run.parent.parent.parent


# ── Disks ──


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint(half, here, monkeypatch):
    before, true_save = contents(half), files.save_file

    def save_file(path, write):
        if path.name == "last.pt":
            monkeypatch.setattr(os, "fsync", full)
        true_save(path, write)

    monkeypatch.setattr(files, "save_file", save_file)
    only_error(here(TINY, half, check=1), "cannot write", "checkpoints/last.pt", "No space left")
    assert contents(half) == before, "nor is a half-written file left"
    monkeypatch.undo()
    assert "resuming from step 40 of 60" in here(TINY, half).stderr


def test_a_curve_that_is_open_in_a_spreadsheet_does_not_stop_the_training(
    small, here, tmp_path, monkeypatch
):
    true_replace = Path.replace

    def replace(path, target):
        if Path(target).name == "loss.csv":
            raise PermissionError(13, "Permission denied")
        return true_replace(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    done = here(UNCOND, tmp_path)
    (line,) = (x for x in done.stderr.splitlines() if "loss.csv" in x)
    assert "Permission denied" in line and "training continues" in line
    samples = [(run_folder(x, "a0_uncond") / SAMPLES).read_bytes() for x in (tmp_path, small)]
    assert samples[0] == samples[1]


def test_a_rename_that_is_refused_is_tried_again_for_some_seconds(tmp_path, monkeypatch):
    """On Windows, while another program has the file open."""
    waits, path, true_replace = [], tmp_path / "loss.csv", Path.replace

    def replace(old, new):
        if len(waits) < 3:
            raise PermissionError(13, "Permission denied")
        return true_replace(old, new)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    files.save_table(path, [{"step": 1}])
    assert (
        path.read_text() == "step\n1\n" and 2 < sum(waits) < 5 and {*contents(tmp_path)} == {path}
    )


def test_a_folder_that_cannot_be_made_is_one_line(here, tmp_path):
    (tmp_path / "file").write_text("no folder")
    only_error(here(f"{UNCOND} --out file/x", tmp_path, check=1), "cannot write file/x")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(half, here, monkeypatch):
    true_loss, before = a4_full.diffusion_loss, contents(half)
    monkeypatch.setattr(a4_full, "diffusion_loss", lambda *args: true_loss(*args) * math.nan)
    only_error(here(TINY, half, check=1), "the loss is nan at step 60", "--lr", "--fresh")
    assert contents(half) == before


# ── Files that were damaged or edited ──


class Evil:
    def __reduce__(self):
        return open, ("owned", "w")


def edited(**others):
    """A checkpoint with other entries, or without those that are None here."""

    def change(path):
        state = torch.load(path, weights_only=True) | others
        torch.save({name: x for name, x in state.items() if x is not None}, path)

    return change


def bytes_of(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


DAMAGE = {  # what is done to last.pt -> words of the line
    "cut": (bytes_of(lambda x: x[:-1000]), ""),
    "empty": (bytes_of(lambda x: b""), ""),
    "a web page": (bytes_of(lambda x: b"<html>sign in</html>"), ""),
    "one bit": (bytes_of(lambda x: x[:300_000] + bytes([x[300_000] ^ 1]) + x[300_001:]), "damaged"),
    "code": (bytes_of(lambda x: pickle.dumps(Evil())), ""),
    "code in an archive": (lambda path: torch.save({"config": Evil()}, path), ""),
    "an earlier version": (edited(losses=None), "lacks 'losses'"),
    "no weights": (edited(model=None), "'model'"),
    "no step": (edited(step=None), "'step'"),
    "no config": (edited(config=None), "'config'"),
    "another network": (edited(model={"inp.weight": torch.zeros(3)}), ""),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("command", [TINY, "a4_full.py --prompt 7 --n 1"], ids=["run", "prompt"])
def test_a_damaged_checkpoint_is_one_line_that_names_it(copy, here, kind, command):
    (run_folder(copy) / SAMPLES).unlink()  # so that the weights are wanted
    damage, words = DAMAGE[kind]
    damage(last_of(copy))
    before = contents(copy)
    only_error(here(command, copy, check=1), "results/mnist/a4_full", words, "--fresh")
    assert contents(copy) == before and not (copy / "owned").exists()


@pytest.mark.parametrize("text", ["", "hello", "[]", '{"seed": 0}'])
def test_a_damaged_config_is_one_line_and_its_remedy_mends_it(mine, here, text):
    whole, known = (mine / "config.json").read_text(), np.load(mine / SAMPLES)["images"]
    (mine / "config.json").write_text(text)
    only_error(here(UNCOND, place_of(mine), check=1), "config.json", "delete it")
    (mine / "config.json").unlink()
    here(UNCOND, place_of(mine))
    assert (mine / "config.json").read_text() == whole
    assert (np.load(mine / SAMPLES)["images"] == known).all()


# ── Prompts ──

PROMPTS = ["画一个七", "a ７ ｓｅｖｅｎ", "😀 seven 👍🏽", "../../etc/passwd", "seven" * 10,
           "--help me", r"$\frac{1}{2}$ seven", "<b>seven</b> & {x} %s \\n"]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_prompt_gives_a_picture_with_a_title_and_no_warning(copy, here, prompt):
    before = contents(copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = here(["a4_full.py", f"--prompt={prompt}", "--n", "1"], copy)
    (path,) = contents(copy).keys() - before.keys()
    assert path.parent == run_folder(copy) / "images" and done.stdout.strip() in str(path)
    assert imread(path).std() > 0.05 and "Warning" not in done.stderr


@pytest.mark.parametrize(
    "prompt", ["", " ", "seven\x07\x1b[31m", "a\nb", "caf\udce9 7", "7 " * 5000]
)
def test_a_prompt_that_cannot_be_read_is_one_short_line(copy, here, prompt):
    before = contents(copy)
    done = here(["a4_full.py", "--prompt", prompt], copy, check=1)
    only_error(done, "77 tokens" if len(prompt) > 99 else "--prompt")
    assert contents(copy) == before and len(done.stderr) < 300


# ── Other people's machines ──


def test_a_locale_of_ascii_and_a_folder_with_a_chinese_name(tmp_path):
    """No text file is opened by the locale, and all is written, printed and drawn."""
    place = tmp_path / "数据, a b (1)"
    place.mkdir()
    warm(place)
    (place / "所有.py").write_text(f"""
import a1_cond
a1_cond.main([*{SMALL.split()}, "--out", "结果, b"])
a1_cond.main(["--prompt", "七 seven", "--n", "1", "--out", "结果, b"])
""", encoding="utf-8")  # fmt: skip
    env = {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    env |= {"PYTHONWARNDEFAULTENCODING": "1"}
    line = [sys.executable, "-W", "always::EncodingWarning", "所有.py"]
    done = subprocess.run(line, cwd=place, env=os.environ | env, capture_output=True, timeout=120)
    told = done.stderr.decode()
    assert done.returncode == 0 and b"\\u7ed3\\u679c" in done.stdout, told
    blamed = {":".join(x.split(":")[:2]) for x in told.splitlines() if "EncodingWarning" in x}
    assert [x for x in blamed if Path(x.split(":")[0]) in ours("*.py")] == []


def test_every_text_file_of_ours_is_utf_8():
    kinds = {".py", ".md", ".txt", ".toml", ".json", ".ipynb", ".html", ".jinja", ".js", ".csv"}
    paths = [path for path in ours("*") if path.suffix in kinds]
    assert len(paths) > 50
    for path in paths:
        assert path.read_bytes().decode("utf-8"), path


def test_without_a_network_each_replacement_is_said_in_one_line(here, tmp_path):
    lines = here(f"a2_clip.py {SMALL}", tmp_path).stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("CLIP: ") and "tiny CLIP" in lines[0]
    assert lines[1].startswith("MNIST: ") and "20,000 embedded digits" in lines[1]
