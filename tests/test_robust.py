"""Full disks, damaged files, losses that are no numbers, odd prompts, other people's machines."""

import math
import os
import pickle
import shutil
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import SMALL, TINY, contents, last_of, only_error, ours, run_folder
from matplotlib.image import imread

import a4_full
from kit import files

SAMPLES = "images/samples.npz"


@pytest.fixture
def half(copy):
    """The finished run of a4 as it was at step 40, without samples."""
    shutil.rmtree(run_folder(copy) / "images")
    checkpoint = torch.load(last_of(copy), weights_only=True)
    torch.save(checkpoint | {"step": 40, "losses": checkpoint["losses"][:2]}, last_of(copy))
    return copy


def test_what_cannot_be_written_is_one_line_and_leaves_what_was_there(half, here, monkeypatch):
    (half / "file").write_text("no folder")
    only_error(here(f"{TINY} --out file/x", half, check=1), "cannot write file/x")
    before, true_save = contents(half), files.save_file
    full = Mock(side_effect=OSError(28, "No space left on device"))

    def save_file(path, write):
        if path.name == "last.pt":
            monkeypatch.setattr(os, "fsync", full)
        true_save(path, write)

    monkeypatch.setattr(files, "save_file", save_file)
    only_error(here(TINY, half, check=1), "cannot write", "checkpoints/last.pt", "No space left")
    assert contents(half) == before, "nor is a half-written file left"
    monkeypatch.undo()
    assert "resuming from step 40 of 60" in here(TINY, half).stderr


@pytest.fixture
def opened(monkeypatch):
    """Another program has loss.csv open, on Windows: .waits, .until so many of them are over."""
    found, true_replace = Mock(waits=[], until=10**6), Path.replace

    def replace(path, target):
        if Path(target).name == "loss.csv" and len(found.waits) < found.until:
            raise PermissionError(13, "Permission denied")
        return true_replace(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", found.waits.append)
    return found


@pytest.mark.usefixtures("opened")
def test_a_curve_that_is_open_in_a_spreadsheet_does_not_stop_the_training(finished, here, tmp_path):
    (line,) = (x for x in here(TINY, tmp_path).stderr.splitlines() if "loss.csv" in x)
    assert "Permission denied" in line and "training continues" in line
    samples = [(run_folder(x) / SAMPLES).read_bytes() for x in (finished, tmp_path)]
    assert samples[0] == samples[1]


def test_a_rename_that_is_refused_is_tried_again_for_some_seconds(opened, tmp_path):
    opened.until, path = 3, tmp_path / "loss.csv"
    files.save_table(path, [{"step": 1}])
    assert path.read_text() == "step\n1\n" and 2 < sum(opened.waits) < 5
    assert [*contents(tmp_path)] == [path]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(half, here, monkeypatch):
    true_loss, before = a4_full.diffusion_loss, contents(half)
    monkeypatch.setattr(a4_full, "diffusion_loss", lambda *args: true_loss(*args) * math.nan)
    only_error(here(TINY, half, check=1), "the loss is nan at step 60", "--lr", "--fresh")
    assert contents(half) == before


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
def test_a_damaged_config_is_one_line_and_its_remedy_mends_it(copy, here, monkeypatch, text):
    monkeypatch.setattr(a4_full, "train", lambda *_: pytest.fail("it trains"))
    path, known = run_folder(copy) / "config.json", (run_folder(copy) / SAMPLES).read_bytes()
    whole = path.read_text()
    path.write_text(text)
    only_error(here(TINY, copy, check=1), "config.json", "delete it")
    path.unlink()
    here(TINY, copy)
    assert path.read_text() == whole and (run_folder(copy) / SAMPLES).read_bytes() == known


# ── Prompts ──

PROMPTS = ["画一个七", "a ７ ｓｅｖｅｎ", "😀 seven 👍🏽", "../../etc/passwd", "seven" * 10,
           "--help me", r"$\frac{1}{2}$ seven", "<b>seven</b> & {x} %s \\n"]  # fmt: skip
UNREADABLE = "", " ", "seven\x07\x1b[31m", "a\nb", "caf\udce9 7", "7 " * 5000


@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_prompt_gives_a_picture_with_a_title_and_no_warning(copy, here, prompt):
    before = contents(copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = here(["a4_full.py", f"--prompt={prompt}", "--n", "1"], copy)
    (path,) = contents(copy).keys() - before.keys()
    assert path.parent == run_folder(copy) / "images" and done.stdout.strip() in str(path)
    assert imread(path).std() > 0.05 and "Warning" not in done.stderr


@pytest.mark.parametrize("prompt", UNREADABLE)
def test_a_prompt_that_cannot_be_read_is_one_short_line(copy, here, prompt):
    before = contents(copy)
    done = here(["a4_full.py", "--prompt", prompt], copy, check=1)
    only_error(done, "77 tokens" if len(prompt) > 99 else "--prompt")
    assert contents(copy) == before and len(done.stderr) < 300


def test_a_locale_of_ascii_and_a_folder_with_a_chinese_name(cli, tmp_path):
    """All is written, printed and drawn. Text files are UTF-8, and none is opened by the locale."""
    place = tmp_path / "数据, a b (1)"
    place.mkdir()
    (place / "所有.py").write_text(f"""
import a1_cond
a1_cond.main([*{SMALL.split()}, "--out", "结果, b"])
a1_cond.main(["--prompt", "七 seven", "--n", "1", "--out", "结果, b"])
""", encoding="utf-8")  # fmt: skip
    env = {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    env |= {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "always::EncodingWarning"}
    done = cli([str(place / "所有.py")], place, env=env)
    assert "\\u7ed3\\u679c" in done.stdout
    blamed = [x for x in done.stderr.splitlines() if "EncodingWarning" in x]
    assert [x for x in blamed if Path(x.split(":")[0]) in ours("*.py")] == []
    kinds = {".py", ".md", ".txt", ".toml", ".json", ".ipynb", ".html", ".jinja", ".js", ".csv"}
    for path in (x for x in ours("*") if x.suffix in kinds):
        assert path.read_bytes().decode("utf-8"), path
