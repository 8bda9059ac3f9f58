"""Full disks, damaged files, numbers that are none, odd prompts, other people's machines."""

import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import (
    CPU,
    ROOT,
    SMALL,
    TINY,
    contents,
    data_args,
    last_of,
    only_error,
    ours,
    rows,
    run_folder,
    warm,
)  # fmt: skip
from matplotlib.image import imread

import a0_uncond
import a4_full
import common
from kit import files, run
from kit.files import UserError

UNCOND = f"a0_uncond.py {SMALL}"
SAMPLES = "images/samples.npz"


@pytest.fixture(scope="module")
def small(here, tmp_path_factory):
    """A finished run of a0, which costs little. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("small")
    here(UNCOND, folder)
    return folder


@pytest.fixture
def mine(small, tmp_path):
    return shutil.copytree(small, tmp_path / "mine", symlinks=True)


@pytest.fixture
def half(copy):
    """The finished run of a4 as it was at step 40, without samples."""
    shutil.rmtree(run_folder(copy) / "images")
    checkpoint = torch.load(last_of(copy), weights_only=True)
    torch.save(checkpoint | {"step": 40, "losses": checkpoint["losses"][:2]}, last_of(copy))
    return copy


# ── Disks ──


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint(half, here, monkeypatch):
    before = contents(half)
    true_save = files.save_file

    def save_file(path, write):
        if path.name == "last.pt":
            monkeypatch.setattr(os, "fsync", full)
        true_save(path, write)

    monkeypatch.setattr(files, "save_file", save_file)
    line = only_error(here(TINY, half, check=1), "cannot write", "last.pt", "No space left")
    assert "results/mnist/a4_full/checkpoints" in line
    assert contents(half) == before, "nor is a half-written file left"
    monkeypatch.undo()
    assert "resuming from step 40 of 60" in here(TINY, half).stderr


def test_a_full_disk_while_samples_are_saved_costs_no_training(mine, here, monkeypatch):
    (run_folder(mine, "a0_uncond") / SAMPLES).unlink()
    trained = last_of(mine, "a0_uncond").read_bytes()
    true_fsync, calls = os.fsync, []

    def fsync(number):
        calls.append(1)
        return full() if len(calls) > 3 else true_fsync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    only_error(here(UNCOND, mine, check=1), "cannot write", "No space left on device")
    monkeypatch.undo()
    monkeypatch.setattr(a0_uncond, "train", lambda *_: pytest.fail("it trains"))
    here(UNCOND, mine)
    assert last_of(mine, "a0_uncond").read_bytes() == trained
    assert not [path for path in mine.rglob("*") if path.name.endswith(".part")]


def test_a_curve_that_is_open_in_a_spreadsheet_does_not_stop_the_training(
    small, here, tmp_path, monkeypatch
):
    true_replace = Path.replace

    def replace(path, target):
        if Path(target).name == "loss.csv":
            raise PermissionError(13, "Permission denied")
        return true_replace(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    done = here(UNCOND, tmp_path)
    told = [x for x in done.stderr.splitlines() if "loss.csv" in x]
    assert len(told) == 1 and "Permission denied" in told[0] and "continues" in told[0]
    samples = [(run_folder(x, "a0_uncond") / SAMPLES).read_bytes() for x in (tmp_path, small)]
    assert samples[0] == samples[1]


def test_a_folder_that_cannot_be_made_is_one_line(here, tmp_path):
    (tmp_path / "file").write_text("no folder")
    only_error(here(f"{UNCOND} --out file/x", tmp_path, check=1), "cannot write file/x")


def test_a_data_folder_that_is_not_writable_costs_the_cache_alone(here, tmp_path, monkeypatch):
    true_access = os.access

    def access(path, mode):
        return true_access(path, mode) and "data" not in Path(path).parts

    monkeypatch.setattr(os, "access", access)
    here(UNCOND, tmp_path)
    assert (run_folder(tmp_path, "a0_uncond") / SAMPLES).exists()


def test_readers_of_a_file_that_is_written_again_and_again_see_whole_ones(tmp_path):
    path, wrong = tmp_path / "file", []

    def write():
        for number in range(60):
            files.save_file(path, lambda file, number=number: file.write(bytes([number]) * 50_000))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        content = path.read_bytes() if path.exists() else bytes(50_000)
        if len(content) != 50_000 or len({*content}) != 1:
            wrong.append(len(content))
    assert not wrong and [x.name for x in tmp_path.iterdir()] == ["file"]


def test_two_that_want_a_file_make_it_once(tmp_path):
    path, made = tmp_path / "deep" / "file", []

    def make():
        made.append(1)
        time.sleep(0.3)
        path.write_text("made")

    threads = [threading.Thread(target=files.once, args=(path, make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and path.read_text() == "made"


# ── Numbers ──


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(half, here, monkeypatch):
    true_loss, before = a4_full.diffusion_loss, contents(half)
    monkeypatch.setattr(a4_full, "diffusion_loss", lambda *args: true_loss(*args) * math.nan)
    line = only_error(here(TINY, half, check=1), "the loss is nan at step 60", "--lr")
    assert "--fresh" in line and contents(half) == before


def test_a_clip_with_a_weight_that_is_no_number_is_named(here, tmp_path):
    state = torch.load(ROOT / "assets" / "tiny_clip.pt", weights_only=True)
    state["text_projection"][0, 0] = math.nan
    torch.save(state, tmp_path / "my.pt")
    done = here("a4_full.py --clip my.pt --train-steps 2", tmp_path, check=1)
    only_error(done, "my.pt", "not finite")


# ── Checkpoints that were damaged or edited ──


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
    "cut early": (bytes_of(lambda x: x[:50_000]), ""),
    "cut late": (bytes_of(lambda x: x[:-1000]), ""),
    "empty": (bytes_of(lambda x: b""), ""),
    "a web page": (bytes_of(lambda x: b"<html>sign in</html>"), ""),
    "one bit": (bytes_of(lambda x: x[:300_000] + bytes([x[300_000] ^ 1]) + x[300_001:]), "damaged"),
    "code": (bytes_of(lambda x: pickle.dumps(Evil())), ""),
    "an earlier version": (edited(losses=None), "earlier version"),
    "no weights": (edited(ema=None), "'ema'"),
    "no step": (edited(step=None), "'step'"),
    "no config": (edited(config=None), "'config'"),
    "another network": (edited(ema={"inp.weight": torch.zeros(3)}), ""),
    "a list": (lambda path: torch.save([1, 2], path), ""),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("command", [TINY, "a4_full.py --prompt 7 --n 1"], ids=["run", "prompt"])
def test_a_damaged_checkpoint_is_one_line_that_names_it(copy, here, kind, command):
    (run_folder(copy) / SAMPLES).unlink()  # so that the weights are wanted
    damage, words = DAMAGE[kind]
    damage(last_of(copy))
    before = contents(copy)
    line = only_error(here(command, copy, check=1), "last.pt", words)
    assert "--fresh" in line and contents(copy) == before and not (copy / "owned").exists()


def test_pickled_code_is_not_run_from_inside_an_archive_either(copy, here):
    torch.save({"config": Evil()}, last_of(copy))
    only_error(here("a4_full.py --prompt 7", copy, check=1), "last.pt")
    assert not (copy / "owned").exists()


def test_damage_anywhere_in_a_checkpoint_is_noticed_or_harmless(copy):
    """torch.load() itself compares no checksums."""
    last, dice = last_of(copy), random.Random(0)
    whole, known, noticed = last.read_bytes(), torch.load(last, weights_only=True), 0
    for _ in range(40):
        content, i = bytearray(whole), dice.randrange(len(whole))
        content[i : i + 8] = dice.randbytes(8)
        last.write_bytes(content)
        try:
            state = common.load_tensors(last)
        except Exception:
            noticed += 1
        else:
            assert all(torch.equal(state["ema"][name], x) for name, x in known["ema"].items())
    assert noticed > 30


CONFIGS = {  # what stands in config.json instead
    "empty": "",
    "text": "hello",
    "a list": "[]",
    "no script": '{"seed": 0}',
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_damaged_config_is_one_line_and_its_remedy_mends_it(mine, here, monkeypatch, kind):
    monkeypatch.setattr(a0_uncond, "train", lambda *_: pytest.fail("it trains"))
    path, samples = (run_folder(mine, "a0_uncond") / x for x in ("config.json", SAMPLES))
    whole, known = json.loads(path.read_text()), np.load(samples)["images"]
    path.write_text(CONFIGS[kind])
    only_error(here(UNCOND, mine, check=1), "config.json", "delete it", "without training")
    path.unlink()
    here(UNCOND, mine)
    assert json.loads(path.read_text()) == whole
    assert (np.load(samples)["images"] == known).all()


def test_a_config_saved_by_another_editor_is_read(mine, here):
    path = run_folder(mine, "a0_uncond") / "config.json"
    path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    assert "is complete" in here(UNCOND, mine).stderr


def test_a_choice_that_was_edited_in_config_only_generates_anew(mine, here, monkeypatch):
    """What was trained is known by the checkpoint."""
    monkeypatch.setattr(a0_uncond, "train", lambda *_: pytest.fail("it trains"))
    path = run_folder(mine, "a0_uncond") / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eta": "x", "lr": 7}))
    here(UNCOND, mine)
    assert json.loads(path.read_text()) == config


def test_half_written_samples_that_were_damaged_are_named(mine, here):
    images = run_folder(mine, "a0_uncond") / "images"
    (images / "samples.npz").rename(images / ".samples.npz")
    (images / ".samples.npz").write_bytes(b"half")
    only_error(here(UNCOND, mine, check=1), ".samples.npz cannot be read", "delete it")
    (images / ".samples.npz").unlink()
    here(UNCOND, mine)
    assert (images / "samples.npz").exists()


# ── Prompts ──

PROMPTS = {
    "Chinese": "画一个七",
    "full-width signs": "a ７ ｓｅｖｅｎ",
    "emoji": "😀 seven 👍🏽",
    "like a path": "../../etc/passwd",
    "a long word": "seven" * 10,
    "mathematics": r"$\frac{1}{2}$ seven",
    "a flag": "--help me",
    "markup": "<b>seven</b> & {x} %s \\n",
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_any_prompt_gives_a_picture_with_a_title_and_no_warning(copy, here, kind):
    before = contents(copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = here(["a4_full.py", f"--prompt={PROMPTS[kind]}", "--n", "1"], copy)
    (path,) = contents(copy).keys() - before.keys()
    assert path.parent == run_folder(copy) / "images" and done.stdout.strip() in str(path)
    assert imread(path).std() > 0.05 and "Warning" not in done.stderr


@pytest.mark.parametrize("prompt", ["", " ", "seven\x07\x1b[31m", "a\nb", "caf\udce9 seven"])
def test_a_prompt_that_cannot_be_read_is_one_line(copy, here, prompt):
    before = contents(copy)
    only_error(here(["a4_full.py", "--prompt", prompt], copy, check=1), "--prompt")
    assert contents(copy) == before


def test_ten_thousand_characters(copy, here):
    before = contents(copy)
    done = here(["a4_full.py", "--prompt", "seven " * 1700, "--n", "1"], copy, check=1)
    only_error(done, "77 tokens", "seven seven")
    assert contents(copy) == before and len(done.stderr) < 300
    here(f"a1_cond.py {SMALL}", copy)
    done = here(["a1_cond.py", "--prompt", "seven " * 1700, "--n", "1"], copy)
    assert max(imread(copy / done.stdout.strip()).shape) < 2000


# ── Other people's machines ──


def test_a_locale_of_ascii_and_a_folder_with_a_chinese_name(tmp_path):
    """No text file is opened by the locale, and all is written, printed and drawn."""
    place = tmp_path / "数据, a b (1)"
    place.mkdir()
    warm(place)
    code = f"""
import a1_cond
a1_cond.main([*{SMALL.split()}, "--out", "结果, b"])
a1_cond.main(["--prompt", "七 seven", "--n", "1", "--out", "结果, b"])
"""
    (place / "所有.py").write_text(code, encoding="utf-8")
    env = {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    env |= {"PYTHONWARNDEFAULTENCODING": "1"}
    line = [sys.executable, "-W", "always::EncodingWarning", "所有.py"]
    done = subprocess.run(line, cwd=place, env=os.environ | env, capture_output=True, timeout=120)
    told = done.stderr.decode()
    assert done.returncode == 0 and b"\\u7ed3\\u679c" in done.stdout, told
    blamed = {x.split(":")[0] for x in told.splitlines() if "EncodingWarning" in x}
    assert not blamed & {str(path) for path in ours("*.py")}
    assert (place / "结果, b" / "mnist" / "a1_cond" / SAMPLES).exists()


TEXTS = ".py .md .txt .toml .json .ipynb .html .jinja .js .yml .cfg .csv .svg".split()


def test_every_text_file_of_ours_is_utf_8():
    paths = [path for path in ours("*") if path.suffix in TEXTS or path.parent.name == ".ci"]
    assert len(paths) > 50
    for path in paths:
        assert path.read_bytes().decode("utf-8").isprintable or path


def test_a_users_matplotlibrc_changes_no_picture(mine, here):
    picture = run_folder(mine, "a0_uncond") / "images" / "samples.png"
    before = picture.read_bytes()
    picture.unlink()
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "savefig.dpi": 10,
                                "font.family": "no such font"}):  # fmt: skip
        here(UNCOND, mine)
    assert picture.read_bytes() == before


def test_no_shell_sees_a_path_and_no_other_repository_is_reported(tmp_path, monkeypatch):
    place = tmp_path / "x$(touch owned)y" / "ours"
    place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C"]
    subprocess.run([*git, str(tmp_path), "init", "-q"], check=True)
    subprocess.run([*git, str(tmp_path), "commit", "-qm", "x", "--allow-empty"], check=True)
    monkeypatch.setattr(run, "ROOT", place)

    def revision():
        return run.facts_of(a0_uncond.Config(), CPU)["git_revision"]

    assert revision() is None, "a stranger's repository lies around it"
    subprocess.run([*git, str(place), "init", "-q"], check=True)
    assert revision() is None, "nothing is committed yet"
    subprocess.run([*git, str(place), "commit", "-qm", "x", "--allow-empty"], check=True)
    assert len(revision()) >= 7 and not [*tmp_path.rglob("owned")]
    monkeypatch.setenv("PATH", "")
    assert revision() is None


def test_results_may_be_moved_elsewhere_with_a_clip_of_ones_own(here, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    shutil.copyfile(ROOT / "assets" / "tiny_clip.pt", first / "my clip.pt")
    command = ["a2_clip.py", *SMALL.split()]
    here([*command, "--clip", "my clip.pt"], first)
    first.rename(second)
    assert "complete" in here(command, second).stderr
    assert here("a2_clip.py --prompt 7 --n 1", second).stdout
    (second / "my clip.pt").rename(tmp_path / "elsewhere.pt")
    only_error(here("a2_clip.py --prompt 7 --n 1", second, check=1), "my clip.pt", "--clip")
    ask = ["a2_clip.py", "--prompt", "7", "--n", "1", "--clip", str(tmp_path / "elsewhere.pt")]
    assert here(ask, second).stdout, "the remedy"


def test_clip_that_is_asked_for_by_name_and_cannot_be_had_is_one_line(here, tmp_path):
    done = here(f"a2_clip.py {SMALL} --clip ViT-B/32", tmp_path, check=1)
    only_error(done, "openaipublic.azureedge.net does not answer")
    assert not contents(tmp_path)


def test_without_network_all_is_said_in_a_line_each(here, tmp_path):
    done = here(f"a2_clip.py {SMALL}", tmp_path)
    lines = [x for x in done.stderr.splitlines() if x]
    assert len(lines) == 2 and lines[0].startswith("CLIP: ") and "tiny CLIP" in lines[0]
    assert lines[1].startswith("MNIST: ") and "5,000 embedded digits" in lines[1]
    assert rows(run_folder(tmp_path, "a2_clip") / "metrics" / "loss.csv")


def test_no_command_of_ours_is_stopped_by_an_account_without_a_home(monkeypatch, tmp_path):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(UserError):
        common.load_clip(data_args(clip="ViT-B/32"), CPU)
    assert common.load_clip(data_args(clip="auto"), CPU).name == "tiny"
