"""Interruptions, two at once, files that were edited, other people's machines, odd prompts."""

import contextlib
import csv
import io
import json
import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import filelock
import matplotlib
import numpy as np
import pytest
import torch
from conftest import CPU, TINY, contents, data_args, rows, run_folder
from matplotlib.image import imread

import a4_full
import common
import compare
import evaluate
from kit import base, captions, clip, locks, pictures, run, samples, tiny_clip

SMALL = "a4_full.py --clip tiny --train-steps 3 --batch-size 4 --samples 4 --sample-steps 1"
SMALL += " --scales 2"
MEASURE = "evaluate.py --clip tiny --extractor judge"


@pytest.fixture(scope="module")
def measured(finished, typed_here, tmp_path_factory):
    """The finished run, measured. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("measured") / "copy"
    shutil.copytree(finished, folder)
    typed_here(MEASURE, folder)
    typed_here("compare.py", folder)
    return folder


@pytest.fixture
def again(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "again")


def only_error(done, *words):
    """The one line of an error, in which all these words stand."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


# ── 1. Interruption ──


@pytest.fixture
def hang_up():
    """SIGHUP as it is without nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_finishes_the_step_saves_and_the_next_run_goes_on(
    finished, here, tmp_path, monkeypatch, hang_up, name, code
):
    true_loss, calls = a4_full.diffusion_loss, []

    def loss(*args):
        calls.append(1)
        if len(calls) == 25:
            os.kill(os.getpid(), getattr(signal, name))
        return true_loss(*args)

    before = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(a4_full, "diffusion_loss", loss)
    done = here(TINY, tmp_path, check=code)
    assert "saved at step 25 of 60" in done.stderr and "Traceback" not in done.stderr
    assert "the same command (without --fresh) goes on" in done.stderr.splitlines()[-1]
    assert [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)] == before
    assert "going on from step 25 of 60" in here(TINY, tmp_path).stderr
    assert [row["step"] for row in rows(run_folder(tmp_path) / "metrics/loss.csv")] == [
        "20",
        "25",
        "40",
        "60",
    ]
    for path in (run_folder(finished) / "images").glob("*.npz"):
        assert (run_folder(tmp_path) / "images" / path.name).read_bytes() == path.read_bytes()


def test_a_signal_while_the_last_checkpoint_is_saved_is_not_lost(here, tmp_path, monkeypatch):
    true_save = base.save_file

    def save_file(path, write):
        if path.name == "last.pt":
            os.kill(os.getpid(), signal.SIGTERM)
        true_save(path, write)

    monkeypatch.setattr(base, "save_file", save_file)
    assert "saved at step 3 of 3" in here(SMALL, tmp_path, check=143).stderr
    monkeypatch.undo()
    assert not (run_folder(tmp_path) / "images").exists()


def test_pictures_of_earlier_samples_do_not_pass_for_those_of_new_ones(copy, here, monkeypatch):
    true_picture = pictures.save_prompts_picture
    monkeypatch.setattr(pictures, "save_prompts_picture", stop)
    here(f"{TINY},3,4", copy, check=130)
    monkeypatch.setattr(pictures, "save_prompts_picture", true_picture)
    assert "complete" not in here(f"{TINY},3,4", copy).stderr
    assert "complete" in here(f"{TINY},3,4", copy).stderr


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("lacking", ["rng", "optimizer", "schedule", "step", "key"])
def test_a_half_written_training_is_begun_anew_as_if_there_was_none(tmp_path, lacking):
    def modules():
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=4)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    first = modules()
    with torch.no_grad():
        first["model"].weight.add_(1)
    locks.Halfway(tmp_path / "a.pt", "key", **first).save(2)
    assert locks.Halfway(tmp_path / "a.pt", "key", **modules()).step == 2
    assert locks.Halfway(tmp_path / "a.pt", "another", **modules()).step == 0
    state = torch.load(tmp_path / ".a.pt.halfway", weights_only=True)
    del state[lacking]
    torch.save(state, tmp_path / ".a.pt.halfway")
    fresh, second = modules(), modules()
    assert locks.Halfway(tmp_path / "a.pt", "key", **second).step == 0
    assert torch.equal(second["model"].weight, fresh["model"].weight)
    assert second["schedule"].state_dict() == fresh["schedule"].state_dict()


def test_a_gan_goes_on_after_a_signal_too(here, tmp_path, monkeypatch):
    """Two networks, two optimisers, the running mean."""
    flags = "cgan.py --clip tiny --train-steps 9 --batch-size 4 --samples 12"
    places = [tmp_path / name for name in ("whole", "stopped")]
    for place in places:
        place.mkdir()
    here(flags, places[0])
    true_say, calls = captions.Captions.say, []

    def say_of(self, i):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_say(self, i)

    monkeypatch.setattr(captions.Captions, "say", say_of)
    here(flags, places[1], check=143)
    assert "going on from step 5 of 9" in here(flags, places[1]).stderr
    whole, stopped = (run_folder(place, "cgan") for place in places)
    for path in (whole / "images").glob("*.npz"):
        assert (stopped / "images" / path.name).read_bytes() == path.read_bytes()


def test_a_second_ctrl_c_ends_at_once_and_an_ignored_signal_stays_ignored():
    with pytest.raises(KeyboardInterrupt), base.noted(patient=False) as came:
        os.kill(os.getpid(), signal.SIGINT)
        assert came == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with base.noted(patient=False) as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not came
    finally:
        signal.signal(signal.SIGHUP, before)


class Killed(BaseException):
    """As SIGKILL: nothing that comes after it happens."""


def test_killed_at_any_write_the_next_run_leaves_what_an_undisturbed_one_does(
    here, tmp_path, monkeypatch
):
    """Before and after each renaming: of checkpoint, curve, samples, pictures, config."""
    flags = "a0_uncond.py --train-steps 3 --batch-size 4 --samples 4 --sample-steps 1"
    true_replace, counted, dies = Path.replace, [], [0, ""]

    def replace(path, target):
        counted.append(target)
        if len(counted) == dies[0]:
            if dies[1] == "after":
                true_replace(path, target)
            raise Killed
        return true_replace(path, target)

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    place, whole = tmp_path / "killed", run_folder(tmp_path / "whole", "a0_uncond")
    here(flags, tmp_path / "whole")
    kills, run = 0, run_folder(place, "a0_uncond")
    monkeypatch.setattr(common.Run, "SAVE_EVERY", 0)
    monkeypatch.setattr(common.Run, "LOG_EVERY", 2)
    monkeypatch.setattr(Path, "replace", replace)
    for number in range(1, 40):
        counted.clear()
        dies[:] = number, ("before", "after")[number % 2]
        shutil.rmtree(place / "results", ignore_errors=True)
        with contextlib.suppress(Killed):
            here(flags, place)
            break
        kills += 1
        dies[0] = 0
        here(flags, place)
        assert [row["step"] for row in rows(run / "metrics/loss.csv")] == ["2", "3"]
        for path in (whole / "images").glob("*.npz"):
            assert (run / "images" / path.name).read_bytes() == path.read_bytes()
    assert kills > 8 and (run / "plots" / "loss.png").exists()


def test_tiny_clip_interrupted_and_gone_on_with_is_the_same(here, tmp_path, monkeypatch):
    flags, true_loss, calls = "--train-steps 5 --out", tiny_clip.contrastive_loss, []

    def loss(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_loss(*args)

    here(f"kit.tiny_clip {flags} whole.pt", tmp_path)
    monkeypatch.setattr(tiny_clip, "contrastive_loss", loss)
    done = here(f"kit.tiny_clip {flags} b.pt", tmp_path, check=143)
    assert "goes on" in done.stderr and not (tmp_path / "b.pt").exists()
    assert "going on from step 3" in here(f"kit.tiny_clip {flags} b.pt", tmp_path).stderr
    assert len(calls) == 5
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not list(tmp_path.glob(".*.halfway"))


# ── 2. Two at once ──


@pytest.fixture
def other_process(tmp_path):
    """other_process(path) starts one that holds it; -> the process. It ends with the test."""
    started = []

    def start(path):
        code = "import sys, pathlib; from kit import locks\n"
        code += "assert locks.hold(pathlib.Path(sys.argv[1])); print(flush=True); input()"
        line, pipes = [sys.executable, "-c", code, str(path)], subprocess.PIPE
        process = subprocess.Popen(line, cwd=base.ROOT, stdin=pipes, stdout=pipes)
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.communicate(b"\n")


def test_the_second_says_who_has_the_run_and_who_measures_leaves_it_out(
    again, here, other_process, tmp_path
):
    other = other_process(run_folder(again))
    before = contents(again)
    done = here(f"{TINY},3", again, check=2)
    only_error(done, f"process {other.pid} ", "is at work on results/mnist/a4_full")
    done = here("a4_full.py --prompt 7 --n 1 --sample-steps 1", again)
    assert Path(again / done.stdout.strip()).exists(), "reading disturbs nobody"
    Path(again / done.stdout.strip()).unlink()
    for command in (MEASURE, "compare.py"):
        error = here(command, again, check=2).stderr
        assert f"process {other.pid} (" in error and "is at work" in error
    assert contents(again) == before
    shutil.copytree(run_folder(again), run_folder(again, "a3_cfg"))
    config = run_folder(again, "a3_cfg") / "config.json"
    config.write_text(config.read_text().replace('"a4_full"', '"a3_cfg"'))
    done = here(MEASURE, again)
    assert "left out: results/mnist/a4_full" in done.stderr and "a3_cfg" in done.stdout


def test_who_read_the_run_before_another_went_on_with_it_does_not_write(again, here, monkeypatch):
    """Between a start and the first write another process may have come and gone."""
    true_check = common.Run.check_model

    def check_model(self, model):
        true_check(self, model)
        os.utime(self.last, ns=(1, 1))

    monkeypatch.setattr(common.Run, "check_model", check_model)
    only_error(here(f"{TINY},3", again, check=2), "another process has just gone on")


def test_a_killed_process_holds_nothing(tmp_path, other_process):
    other = other_process(tmp_path / "run")
    assert locks.holder(tmp_path / "run") and not locks.hold(tmp_path / "run")
    other.kill()
    other.wait()
    assert locks.hold(tmp_path / "run") and not locks.holder(tmp_path / "run")
    locks.release(tmp_path / "run")


def test_what_another_account_holds_is_held(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert locks.hold(tmp_path / "run"), "no lock at all: nobody can hold it"
    (tmp_path / ".run.lock").touch()
    assert not locks.hold(tmp_path / "run") and locks.holder(tmp_path / "run")


def test_a_run_that_is_drawn_anew_while_it_is_measured_is_not_mixed(again, here, monkeypatch):
    path = run_folder(again) / "images" / "samples_w1.0.npz"
    before = contents(run_folder(again) / "metrics")
    true_look, looked = evaluate.Evaluator.look, []

    def look(self, *args):
        looked.append(1)
        if len(looked) == 2:
            images, labels, prompts = samples.load_samples(path)
            base.save_arrays(path, {"images": 255 - images, "labels": labels, "prompts": prompts})
        return true_look(self, *args)

    monkeypatch.setattr(evaluate.Evaluator, "look", look)
    only_error(here(MEASURE, again, check=2), "was drawn anew meanwhile; give this command again")
    after = contents(run_folder(again) / "metrics")
    assert all(after[x] == before[x] for x in before if x.suffix == ".csv")


def test_of_processes_the_environment_may_say_anything(monkeypatch):
    for text, expected in (("", 1), ("abc", 1), ("-3", 1), ("4", 4), (" 2", 1)):
        monkeypatch.setenv("WORLD_SIZE", text)
        assert base.count_of("WORLD_SIZE", 1) == expected
    env = os.environ | {"RANK": "1", "WORLD_SIZE": "", "PYTHONPATH": str(base.ROOT)}
    line = [sys.executable, "-c", "from kit import base; print(base.RANK, base.COUNT)"]
    assert subprocess.run(line, env=env, capture_output=True, text=True).stdout == "0 1\n"


def test_many_writers_of_one_file_and_its_readers_see_whole_ones(tmp_path):
    path, wrong = tmp_path / "file", []

    def write(number):
        for _ in range(30):
            base.save_file(path, lambda file: file.write(bytes([number]) * 50_000))

    def read():
        while any(writer.is_alive() for writer in writers):
            with contextlib.suppress(FileNotFoundError):
                content = path.read_bytes()
                if len(content) != 50_000 or len({*content}) != 1:
                    wrong.append(len(content))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    threads = [*writers, threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and [x.name for x in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_goes_an_hour_later(tmp_path):
    for name, age in {".a.1.part": 4000, ".a.2.part": 10, ".b.3.part": 4000}.items():
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    base.save_text(tmp_path / "a", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".a.2.part", ".b.3.part"}


def test_two_that_want_a_clip_train_it_once(tmp_path, monkeypatch, offline):
    config, made = data_args("mnist", data_dir=tmp_path), []
    file = tmp_path / "deep" / "clip.pt"

    def make(file, *_):
        made.append(file)
        time.sleep(0.7)
        file.write_bytes(tiny_clip.EMBEDDED.read_bytes())
        return "made"

    monkeypatch.setattr(tiny_clip, "make", make)
    monkeypatch.setattr(tiny_clip, "tiny_path", lambda config: file)
    threads = [threading.Thread(target=tiny_clip.load_tiny, args=(config, CPU)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


# ── 3. Files that a person or a tool touched ──


def saved_again(text, form, comma=False, empty=0, **options):
    """A CSV file as another program writes it; comma: in numbers, instead of a point."""
    table, target = [*csv.reader(io.StringIO(text))], io.StringIO()
    if comma:
        table = [[re.sub(r"^(-?\d+)\.(\d+)$", r"\1,\2", cell) for cell in row] for row in table]
    table += [[""] * len(table[0])] * empty
    csv.writer(target, **options).writerows(table)
    return target.getvalue().encode(form)


SPREADSHEETS = {
    "byte order mark": {"form": "utf-8-sig", "lineterminator": "\n"},
    "semicolons, decimal commas, quotes": {"form": "utf-8-sig", "comma": True, "delimiter": ";",
                                           "quoting": csv.QUOTE_ALL},
    "UTF-16 with tabs": {"form": "utf-16", "delimiter": "\t"},
    "empty lines": {"form": "utf-8", "empty": 3},
}  # fmt: skip


def test_a_last_line_without_its_end_is_whole_where_others_end_as_in_windows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"step,loss\r\n20,1.5")
    assert base.read_table(tmp_path / "a.csv", ("step",), "").shape == (1, 2)


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_a_curve_saved_by_a_spreadsheet_is_gone_on_with(finished, copy, here, kind):
    path = run_folder(copy) / "metrics" / "loss.csv"
    half = torch.load(run_folder(copy) / "checkpoints/last.pt", weights_only=True) | {"step": 40}
    torch.save(half, run_folder(copy) / "checkpoints/last.pt")
    path.write_bytes(saved_again(path.read_text(), **SPREADSHEETS[kind]))
    here(TINY, copy)
    now, before = rows(path), rows(run_folder(finished) / "metrics" / "loss.csv")
    assert [row["step"] for row in now] == ["20", "40", "60"]
    assert [float(row["loss"]) for row in now[:2]] == [float(row["loss"]) for row in before[:2]]


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_measures_saved_by_a_spreadsheet_are_read(again, here, kind):
    for path in (run_folder(again) / "metrics").glob("*.csv"):
        path.write_bytes(saved_again(path.read_text(), **SPREADSHEETS[kind]))
    assert "measuring" not in here("compare.py", again).stderr


def test_other_habits_of_spreadsheets(tmp_path):
    path, texts = tmp_path / "a.csv", (
        'sep=;\nstep;loss\n20;1,5\n', 'step,loss\n20,"1,5"\n', "step,loss\r20,1.5\r",
        "step, loss\n20, 1.5\n", "step,loss,,\n20,1.5,,\n", "step,loss,notes\n20,1.5,good\n",
    )  # fmt: skip
    for text in texts:
        path.write_bytes(text.encode())
        table = base.read_table(path, ("step", "loss"), "")
        assert float(table["loss"][0]) == 1.5 and float(table["step"][0]) == 20, text
        assert not [name for name in table if name.startswith("Unnamed")]


def test_a_doubled_row_is_no_second_seed(again, here):
    path = run_folder(again) / "metrics" / "performance.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    here("compare.py", again)
    assert "± 0" not in (again / "results/mnist/compare/report.md").read_text("utf-8")


def test_what_is_kept_is_made_anew_where_it_was_edited(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"values": np.arange(9)}

    for _ in range(2):
        assert base.kept(tmp_path, "x", [np.zeros(3)], compute)["values"].sum() == 36
    assert len(calls) == 1
    (path,) = tmp_path.glob("x_*.npz")
    for arrays in ({"values": np.arange(3)}, {"other": np.arange(9)}, {}):
        base.save_arrays(path, arrays | {"crc32": np.array(7)})
        assert base.kept(tmp_path, "x", [np.zeros(3)], compute)["values"].sum() == 36
    assert len(calls) == 4


@pytest.mark.parametrize("edit", ["lost", "cut", "text", "steps that fall", "no numbers"])
def test_a_curve_that_is_lost_or_bad(copy, here, edit):
    path = run_folder(copy) / "metrics" / "loss.csv"
    half = torch.load(run_folder(copy) / "checkpoints/last.pt", weights_only=True) | {"step": 40}
    torch.save(half, run_folder(copy) / "checkpoints/last.pt")
    text = path.read_text()
    first, *lines = text.splitlines()
    path.unlink()
    bad = {"cut": text[:-5], "text": "hello\n", "steps that fall": "\n".join(
        [first, *lines[::-1], ""]), "no numbers": text.replace("20,", "x,")}  # fmt: skip
    if edit != "lost":
        path.write_text(bad[edit])
        before = contents(copy)
        line = only_error(here(TINY, copy, check=2), "loss.csv", "only the curve so far is lost")
        assert contents(copy) == before and "delete it" in line
        path.unlink()  # the remedy
    assert "the curve begins anew at step 40" in here(TINY, copy).stderr
    assert [row["step"] for row in rows(path)] == ["60"]


def zeros_in_the_middle(content):
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


def rewritten(**others):
    """A change of a sample file's arrays."""

    def change(content):
        with np.load(io.BytesIO(content)) as file:
            arrays = dict(file)
        for name, made in others.items():
            arrays[name] = made(arrays[name]) if made else arrays.pop(name)[:0]
        target = io.BytesIO()
        np.savez_compressed(target, **{x: arrays[x] for x in arrays if others.get(x, 1)})
        return target.getvalue()

    return change


SPOILT = {  # what is done to a sample file -> words of the line
    "zeros in the middle": (zeros_in_the_middle, ""),
    "cut": (lambda content: content[:500], ""),
    "empty": (lambda content: b"", ""),
    "a web page": (lambda content: b"<html>sign in</html>", ""),
    "32 x 32": (rewritten(images=lambda x: np.pad(x, ((0, 0), (2, 2), (2, 2)))), "(30, 32, 32)"),
    "colour": (rewritten(images=lambda x: np.stack([x] * 3, -1)), "(30, 28, 28, 3)"),
    "floats": (rewritten(images=lambda x: x / 255), "float64"),
    "a label of 25": (rewritten(labels=lambda x: x + 16), "labels go from 16 to 25, not from 0"),
    "some labels -1": (rewritten(labels=lambda x: x - 1), "labels go from -1 to 8"),
    "labels as floats": (rewritten(labels=lambda x: x * 1.0), "labels are float64"),
    "fewer labels": (rewritten(labels=lambda x: x[:9]), "9 labels"),
    "bytes for text": (rewritten(prompts=lambda x: x.astype("S")), "prompts are |S"),
    "no prompts": (rewritten(prompts=None), "it lacks 'prompts is not a file"),
    "a pickle": (rewritten(prompts=lambda x: x.astype(object)), "allow_pickle"),
    "a .npy": (lambda content: as_npy(np.zeros((30, 28, 28), np.uint8)), "no .npz"),
}


def as_npy(array):
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_sample_file_is_named_and_drawn_anew_by_the_remedy(again, finished, here, fault):
    spoil, words = SPOILT[fault]
    path = run_folder(again) / "images" / "samples_w1.0.npz"
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    before = contents(again)
    thorough = fault in ("zeros in the middle", "a label of 25")
    for command in (MEASURE, "compare.py --clip tiny --extractor judge")[: 1 + thorough]:
        line = only_error(here(command, again, check=2), "samples_w1.0.npz", words)
        assert "move it away and give its script's command again" in line
    assert contents(again) == before
    if thorough:
        path.rename(again / "moved away")
        here(TINY, again)
        assert path.read_bytes() == whole
        here(MEASURE, again)


@pytest.mark.parametrize("name", ["samples_attributes_w2.0.npz", "samples_heldout_w2.0.npz"])
def test_so_is_one_of_the_others(again, here, name):
    path = run_folder(again) / "images" / name
    path.write_bytes(zeros_in_the_middle(path.read_bytes()))
    only_error(here(MEASURE, again, check=2), name)


def test_what_evaluate_has_written_is_made_anew_where_it_is_spoilt(again, here):
    folder = run_folder(again)
    judged = folder / "metrics" / "judged_w2.0.npz"
    judged.write_bytes(zeros_in_the_middle(judged.read_bytes()))
    only_error(here("compare.py", again, check=2), "judged_w2.0.npz", "python evaluate.py")
    here(MEASURE, again)
    here("compare.py", again)
    real = again / "results/mnist/compare/real.npz"
    real.write_bytes(b"")
    only_error(here("compare.py", again, check=2), "real.npz", "move it away: it is made anew")
    real.unlink()
    here("compare.py", again)
    for name in ("fid_scores.csv", "attributes.csv"):
        (folder / "metrics" / name).write_text("hello\n")
        done = here("compare.py", again)
        assert "measuring results/mnist/a4_full" in done.stderr


def test_what_does_not_belong_by_name_is_left_out_with_a_line(again, here):
    images, whole = run_folder(again) / "images", run_folder(again)
    mine = ["samples_w1.0 (1).npz", "samples_w2.0 - Copy.npz", "samples_best.npz"]
    for name in mine:
        (images / name).write_bytes((images / "samples_w1.0.npz").read_bytes())
    (whole / "metrics" / "loss (1).csv").write_text("x")
    shutil.copytree(whole, whole.with_name("a4_full (1)"))
    for command in (MEASURE, "compare.py"):
        base.say_once.cache_clear()
        done = here(command, again)
        for name in mine:
            line = f"left out: results/mnist/a4_full/images/{name}, which no script has named so"
            assert done.stderr.count(line) == 1
        assert "left out: results/mnist/a4_full (1), which is a run of a4_full" in done.stderr
    here(TINY.replace("--sample-steps 3", "--sample-steps 2"), again)
    assert all((images / name).exists() for name in mine), "drawing anew deletes none of them"


CHECKPOINTS = {  # what is done to a checkpoint -> words of the line
    "no optimizer": (lambda x: x.pop("optimizer"), "it lacks 'optimizer'"),
    "no step": (lambda x: x.pop("step"), "it lacks 'step'"),
    "no random state": (lambda x: x.pop("rng"), "it lacks 'rng'"),
    "no ema": (lambda x: x.pop("ema"), "it lacks 'ema'"),
    "an empty config": (lambda x: x.update(config={}), "it lacks 'classes'"),
    "no config": (lambda x: x.update(config=None), "config is a NoneType"),
    "text for the step": (lambda x: x.update(step="forty"), "step is a str"),
    "a weight is NaN": (
        lambda x: x["ema"]["inp.bias"].fill_(float("nan")),
        "ema.inp.bias holds numbers that are none",
    ),
    "another shape": (lambda x: x["ema"].update({"inp.bias": torch.zeros(3)}), "inp.bias"),
    "a weight is missing": (lambda x: x["ema"].pop("inp.bias"), "inp.bias"),
    "a list": (None, "a list, no checkpoint of a run"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_checkpoint_that_was_tampered_with(copy, here, fault):
    change, words = CHECKPOINTS[fault]
    last = run_folder(copy) / "checkpoints" / "last.pt"
    checkpoint = torch.load(last, weights_only=True) | {"step": 40}
    if change:
        change(checkpoint)
    torch.save(checkpoint if change else [1, 2], last)
    before = contents(copy)
    commands = [TINY] if fault == "no optimizer" else [TINY, "a4_full.py --prompt 7 --n 1"]
    for command in commands:
        if fault == "no random state" and command != TINY:
            continue
        only_error(here(command, copy, check=2), "last.pt cannot be read", words, "--fresh")
        assert contents(copy) == before


def test_damage_anywhere_in_a_checkpoint_is_noticed_or_harmless(copy):
    """torch.load() itself compares no checksums."""
    last, rng = run_folder(copy) / "checkpoints" / "last.pt", random.Random(0)
    whole, known, noticed = last.read_bytes(), torch.load(last, weights_only=True), 0
    for _ in range(60):
        content, i = bytearray(whole), rng.randrange(len(whole))
        content[i : i + 8] = rng.randbytes(8)
        last.write_bytes(content)
        try:
            state = base.load_tensors(last)
        except Exception:
            noticed += 1
        else:
            for name in ("model", "ema"):
                assert all(torch.equal(state[name][x], known[name][x]) for x in known[name])
    assert noticed > 50


@pytest.mark.parametrize("fault", ["lost", "empty", "text", "no classes", "a byte order mark"])
def test_a_lost_or_edited_config_is_mended_by_the_same_command(again, finished, here, fault):
    path = run_folder(again) / "config.json"
    text, trained = path.read_text(), (run_folder(again) / "checkpoints/last.pt").read_bytes()
    path.unlink()
    other = {"empty": "", "text": "hello", "no classes": text.replace('"classes"', '"x"'),
             "a byte order mark": "\ufeff" + text}  # fmt: skip
    if fault != "lost":
        path.write_text(other[fault], encoding="utf-8")
    if fault == "a byte order mark":
        here(MEASURE, again)
        return
    line = only_error(here(MEASURE, again, check=2), "config.json")
    assert "give its script's command again, which mends it and trains nothing" in line
    done = here(TINY, again)
    assert "training" not in done.stderr and json.loads(path.read_text()) == json.loads(text)
    assert (run_folder(again) / "checkpoints/last.pt").read_bytes() == trained
    for name in (run_folder(finished) / "images").glob("*.npz"):
        assert (run_folder(again) / "images" / name.name).read_bytes() == name.read_bytes()


TYPES = {  # of config.json
    "eta": "x", "contrast": None, "text_encoder_crc32": "x", "interval": [5], "attributes": "x",
    "scale": "x", "classes": ["zero", "one"], "seed": True, "widths": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_a_choice_of_another_type_is_one_line_and_mended(again, here, name):
    path = run_folder(again) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {name: TYPES[name]}))
    for command in (MEASURE, "compare.py"):
        only_error(here(command, again, check=2), "config.json cannot be read", name)
    assert "training" not in here(TINY, again).stderr
    assert json.loads(path.read_text())[name] == config[name]


def test_files_beside_the_scripts_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    (tmp_path / "a5_mine.py").write_text("class Config(common.Config):\n")
    (tmp_path / "._a5_mine.py").write_bytes(b"\0\x05\xff")
    (tmp_path / "gbk.py").write_bytes("# 数据".encode("gbk"))
    (tmp_path / "old.py").mkdir()
    assert compare.scripts_here() == ["a5_mine"]


# ── 4. A user's own file ──


def test_an_existing_file_that_is_no_clip_is_not_replaced_by_one(here, tmp_path):
    for script, name in (("kit.tiny_clip", "notes.txt"), ("kit.judge", "a.pt")):
        (tmp_path / name).write_text("my own")
        done = here(f"{script} --train-steps 1 --out {name}", tmp_path, check=2)
        only_error(done, f"{name} exists and is not", "another --out")
        assert (tmp_path / name).read_text() == "my own"
        only_error(here(f"{script} --train-steps 1", tmp_path, check=2), "--out FILE is needed")


# ── 5. Other people's machines ──


def test_every_text_file_is_utf_8_and_what_is_printed_never_fails(offline_env, warm, tmp_path):
    """In a locale of ASCII, a folder of Chinese, commas and blanks, a stdout of ASCII: no text file
    is opened by the locale, and all is written, printed and drawn.
    """
    place = tmp_path / "数据, a b (1)"
    place.mkdir()
    warm(place)
    code = """
import sys, common, a4_full, evaluate, compare, warnings
flags = "--clip tiny --train-steps 2 --batch-size 4 --samples 20 --sample-steps 1 --scales 2"
common.cli(lambda: a4_full.main([*flags.split(), "--out", "结果, b"]))
common.cli(lambda: a4_full.main(["--prompt", "七 seven", "--n", "1", "--out", "结果, b"]))
flags = "--clip tiny --extractor judge --out"
common.cli(lambda: evaluate.main([*flags.split(), "结果, b"]))
common.cli(lambda: compare.main([*flags.split(), "结果, b"]))
"""
    (place / "所有.py").write_text(code, encoding="utf-8")
    env = {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    env |= {"PYTHONPATH": str(base.ROOT), "PYTHONWARNDEFAULTENCODING": "1"}
    line = [sys.executable, "-W", "always::EncodingWarning", "所有.py"]
    done = subprocess.run(line, cwd=place, env=offline_env | env, capture_output=True, timeout=120)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    ours = [x for x in said.splitlines() if "EncodingWarning" in x and str(base.ROOT) in x]
    assert not ours and b"\\u7ed3\\u679c" in done.stdout
    report = place / "结果, b" / "mnist" / "compare" / "report.md"
    links = [part.split(")")[0] for part in report.read_text("utf-8").split("](")[1:]]
    assert links and all(" " not in link for link in links)


class Stream(io.TextIOWrapper):
    def __init__(self, encoding, fails=False):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.fails = fails

    def write(self, text):
        if self.fails:
            raise BrokenPipeError
        return super().write(text)


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "cp932", "cp1252"])
def test_any_sign_can_be_printed(monkeypatch, encoding):
    stream = Stream(encoding)
    base.say("七 ä – 😀 caf\udce9 \\ done", stream)
    assert stream.buffer.getvalue().decode(encoding).endswith("\\ done\n")
    monkeypatch.setattr(sys, "stdout", Stream(encoding))
    base.prepare_streams()
    print("七 ä – 😀", flush=True)


def test_nobody_listens_and_the_work_goes_on(monkeypatch, here, tmp_path):
    closed = io.StringIO()
    closed.close()
    for stream in (Stream("utf-8", fails=True), closed):
        base.say("seven", stream)
    monkeypatch.setattr(sys, "stderr", Stream("utf-8", fails=True))
    monkeypatch.setattr(sys, "stdout", Stream("utf-8", fails=True))
    here(SMALL, tmp_path)
    assert (run_folder(tmp_path) / "images" / "prompts.png").exists()


def test_a_program_without_streams(monkeypatch, tmp_path, offline, warm):
    monkeypatch.chdir(tmp_path)
    warm(tmp_path)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    common.cli(lambda: a4_full.main(SMALL.split()[1:]))
    with pytest.raises(SystemExit) as ended:
        common.cli(lambda: a4_full.main(["--dataset", "none"]))
    assert ended.value.code == 2 and (run_folder(tmp_path) / "images/prompts.png").exists()


def test_a_reader_that_stops_after_a_line_gets_no_traceback(again, offline_env):
    """python evaluate.py | head -1"""
    line = [sys.executable, str(base.ROOT / "evaluate.py"), *MEASURE.split()[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(line, cwd=again, env=offline_env, **pipes)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == 0 and "Error" not in errors, errors


def test_no_shell_sees_a_path_and_no_other_repository_is_reported(tmp_path, monkeypatch):
    place = tmp_path / "x$(touch owned)y" / "ours"
    place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C"]
    subprocess.run([*git, str(tmp_path), "init", "-q"], check=True)
    subprocess.run([*git, str(tmp_path), "commit", "-qm", "x", "--allow-empty"], check=True)
    monkeypatch.setattr(base, "ROOT", place)
    assert run.git_revision() is None, "a stranger's repository lies around it"
    subprocess.run([*git, str(place), "init", "-q"], check=True)
    assert run.git_revision() is None, "nothing is committed yet"
    subprocess.run([*git, str(place), "commit", "-qm", "x", "--allow-empty"], check=True)
    (place / ".git" / "config").open("a").write("[core]\nfsmonitor = touch owned\n")
    revision = run.git_revision()
    assert len(revision) >= 7 and not list(tmp_path.rglob("owned"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert run.git_revision() == revision
    (place / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert run.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert run.git_revision() is None


def test_an_account_without_a_home_folder(monkeypatch, here, tmp_path):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    with pytest.raises(base.UserError, match="no home folder"):
        clip.fetch_clip("ViT-B/32")
    monkeypatch.chdir(tmp_path)
    assert common.load_clip("auto", data_args(), CPU).name == "tiny"
    with pytest.raises(base.UserError, match="--out"):
        a4_full.Config.parse(["--out", "~/runs"])


def test_a_read_only_data_folder(here, tmp_path, monkeypatch):
    true_access, true_open = os.access, Path.open

    def access(path, mode):
        return true_access(path, mode) and "data" not in Path(path).parts

    def opened(self, mode="r", *args, **others):
        if "data" in self.parts and mode != "r" and mode != "rb":
            raise PermissionError(13, "Permission denied")
        return true_open(self, mode, *args, **others)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(Path, "open", opened)
    here(SMALL, tmp_path)
    here(MEASURE, tmp_path)
    done = here("a4_full.py --dataset emnist", tmp_path, check=2)
    only_error(done, "the folder is read-only")


def test_a_users_matplotlibrc_changes_nothing(again, here):
    picture = run_folder(again) / "images" / "prompts.png"
    before, figure = picture.read_bytes(), again / "results/mnist/compare/speed.png"
    here("compare.py", again)
    speed = figure.read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "axes.facecolor": "red",
                                "savefig.dpi": 10, "font.family": "no such font",
                                "savefig.format": "svg"}):  # fmt: skip
        picture.unlink()
        here(TINY, again)
        here("compare.py", again)
        assert matplotlib.rcParams["font.size"] == 40, "which stays as the user has it"
    assert picture.read_bytes() == before and figure.read_bytes() == speed


@pytest.mark.parametrize("name", ["matplotlibrc", "MPLBACKEND"])
def test_settings_that_matplotlib_cannot_read(tmp_path, name):
    (tmp_path / "matplotlibrc").write_bytes("# 数据\nfont.size: 40\n".encode("gbk"))
    env = os.environ | {"PYTHONPATH": str(base.ROOT)}
    if name == "MPLBACKEND":
        (tmp_path / "matplotlibrc").unlink()
        env["MPLBACKEND"] = "nonsense"
    line = [sys.executable, "-c", "from kit import pictures; print(pictures.drawable('7'))"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "7\n" and "Traceback" not in done.stderr, done.stderr


def test_results_moved_elsewhere_with_a_clip_of_ones_own(here, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    shutil.copyfile(tiny_clip.EMBEDDED, first / "my clip.pt")
    flags = SMALL.replace("--clip tiny", "").split()
    here([*flags, "--clip", "my clip.pt"], first)
    first.rename(second)
    assert "complete" in here(flags, second).stderr
    assert here("a4_full.py --prompt 7 --n 1", second).stdout
    here(MEASURE, second)
    here("compare.py", second)
    (second / "my clip.pt").rename(tmp_path / "elsewhere.pt")
    line = only_error(here("a4_full.py --prompt 7 --n 1", second, check=2), "my clip.pt, which is")
    assert line.endswith("say where it is now: --clip FILE")
    ask = ["a4_full.py", "--prompt", "7", "--n", "1", "--clip", str(tmp_path / "elsewhere.pt")]
    assert here(ask, second).stdout, "the remedy"
    more = [*flags[:-1], "1,2", "--clip", str(tmp_path / "elsewhere.pt")]
    assert "training" not in here(more, second).stderr
    shutil.copytree(second / "results", tmp_path / "third" / "results")
    assert here(MEASURE, tmp_path / "third").stdout


# ── 7. Numbers ──


def test_a_weight_that_is_no_number_is_never_saved(here, tmp_path, monkeypatch):
    monkeypatch.setattr(common.Run, "SAVE_EVERY", 0)
    true_loss, calls = a4_full.diffusion_loss, []

    def loss(model, *args):
        calls.append(1)
        if len(calls) == 30:
            with torch.no_grad():
                next(model.func.parameters()).view(-1)[0] = float("inf")
        return true_loss(model, *args) if len(calls) < 30 else torch.ones((), requires_grad=True)

    monkeypatch.setattr(a4_full, "diffusion_loss", loss)
    line = only_error(here(TINY, tmp_path, check=2), "holds numbers that are none at step 40")
    assert "--fresh with --lr 0.00166667" in line and "the last good checkpoint stays at" in line
    state = torch.load(run_folder(tmp_path) / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == 20 and not run.not_finite(state["model"])


def test_a_clip_with_a_weight_that_is_no_number_is_named(here, tmp_path):
    state = torch.load(tiny_clip.EMBEDDED, weights_only=True)
    state["text_projection"][0, 0] = float("nan")
    torch.save(state, tmp_path / "my.pt")
    line = only_error(here("a4_full.py --clip my.pt --train-steps 2", tmp_path, check=2), "my.pt")
    assert "text_projection holds numbers that are none" in line


# ── 8. Prompts ──

PROMPTS = {
    "Chinese": "画一个七",
    "emoji": "😀 seven 👍🏽",
    "control characters": "seven\x07\x1b[31m\t\nnew\x00line",
    "like a path": "../../etc/passwd",
    "a long word": "seven" * 10,
    "mathematics": r"$\frac{1}{2}$ seven",
    "marks": "s\u0301even \u200f\u202e\ufeff",
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


def test_ten_thousand_signs(copy, here, tmp_path):
    done = here(["a4_full.py", "--prompt", "seven " * 1700, "--n", "1"], copy, check=2)
    only_error(done, "77 tokens")
    flags = "--train-steps 2 --samples 4 --sample-steps 1"
    here(f"a1_cond.py {flags}", copy)
    done = here(["a1_cond.py", "--prompt", "seven " * 1700, "--n", "1"], copy)
    assert max(imread(copy / done.stdout.strip()).shape) < 2000


def test_signs_are_drawn_by_a_font_that_has_them_or_escaped(monkeypatch):
    assert pictures.drawable("a\tb\n\u4e03 \x07") == "a b \\u4e03 \\x07"
    missing = font_signs("STIXGeneral") - font_signs("DejaVu Sans")
    only_stix = next(x for x in sorted(missing) if chr(x).isalpha())
    assert pictures.drawable(chr(only_stix)).startswith("\\")
    monkeypatch.setattr(pictures, "FONTS", ("no such font", "STIXGeneral"))
    pictures.fonts.cache_clear()
    try:
        assert pictures.drawable(chr(only_stix)) == chr(only_stix)
        with pictures.plain_style():
            assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "STIXGeneral"]
    finally:
        monkeypatch.undo()
        pictures.fonts.cache_clear()


def font_signs(name):
    path = matplotlib.font_manager.findfont(name)
    return {*matplotlib.font_manager.get_font(path).get_charmap()}


def test_the_first_images_are_the_same_however_many_are_drawn(finished, monkeypatch, offline):
    """Noise is equal exactly; what rounding in another batch changes is at most 2 grey levels."""
    monkeypatch.chdir(finished)
    drawn = {}
    for n in ("1", "16"):
        true_grid = pictures.save_grid
        monkeypatch.setattr(
            pictures, "save_grid", lambda path, pixels, *_, n=n, **__: drawn.update({n: pixels})
        )
        a4_full.main(["--prompt", "seven", "--n", n])
        monkeypatch.setattr(pictures, "save_grid", true_grid)
    one, first = drawn["1"][0].astype(int), drawn["16"][0].astype(int)
    assert np.abs(one - first).max() <= 2


def test_fewer_samples_are_the_beginning_of_more(finished, here, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    here(TINY.replace("--samples 30", "--samples 130"), copy)
    few, _, asked = samples.load_samples(run_folder(finished) / "images" / "samples_w2.0.npz")
    many, _, prompts = samples.load_samples(run_folder(copy) / "images" / "samples_w2.0.npz")
    assert (prompts[:30] == asked).all()
    assert np.abs(many[:30].astype(int) - few).max() <= 2


# ── 10. While a run draws ──


def test_a_run_that_was_killed_while_it_drew_is_measured_as_far_as_it_came(again, here):
    (run_folder(again) / "images" / "samples_w2.0_throughout.npz").unlink()
    here(MEASURE, again)
    here("compare.py", again)
    (run_folder(again) / "metrics" / "performance.csv").unlink()
    line = only_error(here("compare.py", again, check=2), "performance.csv is missing")
    assert line.endswith("without this file a4_full.py's command makes it anew")
    here(TINY, again)
    here("compare.py", again)


def test_results_are_saved_before_they_are_printed(again, here, monkeypatch):
    shutil.rmtree(again / "data" / "features")
    for path in (run_folder(again) / "metrics").glob("fid*"):
        path.unlink()

    def tell(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "tell", tell)
    here(MEASURE, again, check=130)
    assert (run_folder(again) / "metrics" / "fid_scores.csv").exists()
    assert compare.measured(run_folder(again), "mnist").shape[0] > 3
