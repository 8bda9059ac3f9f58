"""A learner's own rung, and what a learner's own mistakes look like."""

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
import traceback

import pandas as pd
import pytest
import torch
from conftest import CPU, data_args

import a4_full
import common
from kit import base, datasets, flags, run, samples

SMALL = "--train-steps 4 --batch-size 8 --samples 20 --sample-steps 2 --clip tiny"


@pytest.fixture(scope="module")
def clone(tmp_path_factory, warm):
    """What a learner has: the files of the repository, in a folder of their own."""
    folder = tmp_path_factory.mktemp("clone")
    for path in base.ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("kit", "assets"):
        ignored = shutil.ignore_patterns("*.png", "__pycache__")
        shutil.copytree(base.ROOT / name, folder / name, ignore=ignored)
    warm(folder)
    return folder


@pytest.fixture(scope="module")
def type_in(clone, offline_env):
    def run_there(command, check=0):
        line = [sys.executable, *command.split()]
        done = subprocess.run(line, cwd=clone, env=offline_env, capture_output=True, text=True)
        assert done.returncode == check, done.stderr
        return done

    return run_there


@pytest.mark.usefixtures("coarse_figures")
def test_a_copy_of_a_script_with_one_thing_changed_stands_in_every_table(
    clone, type_in, here, monkeypatch
):
    """As README's "Make your own rung" says, with a class renamed and a flag of its own."""
    source = (clone / "a4_full.py").read_text(encoding="utf-8")
    changes = {
        "A4, the full model: CLIP, classifier-free guidance, and attention.": "A5: narrower.",
        "flag((32, 64)": "flag((16, 32)",
        "UNet": "MyNet",
        "class Config(common.Config)": "class Choices(common.Config)",
        "config: Config": "config: Choices",
        "Config.parse": "Choices.parse",
        "    lr: float": '    strength: float = flag(0.5, "my own", 0, 1)\n    lr: float',
        "(text - self.text_mean)": "self.strength * (text - self.text_mean)",
        "self.patch = config.patch": "self.patch, self.strength = config.patch, config.strength",
    }
    for old, new in changes.items():
        assert old in source, old
        source = source.replace(old, new)
    (clone / "a5_mine.py").write_text(source, encoding="utf-8")

    here(f"a3_cfg.py {SMALL}", clone)
    monkeypatch.delitem(sys.modules, "a5_mine", raising=False)  # another test's
    monkeypatch.syspath_prepend(clone)
    type_in(f"a5_mine.py {SMALL} --strength 0.7")
    config = json.loads((clone / "results/mnist/a5_mine/config.json").read_text())
    assert (config["strength"], config["widths"]) == (0.7, [16, 32])
    done = here(f"a5_mine.py {SMALL} --strength 0.6", clone, check=2)
    assert "has strength 0.7, not 0.6" in done.stderr
    assert "my own" not in done.stderr and len(done.stderr.splitlines()) == 1
    picture = here("a5_mine.py --prompt seven --n 1 --sample-steps 1", clone).stdout.strip()
    assert (clone / picture).exists()

    type_in("evaluate.py --extractor judge --clip tiny")
    done = here("compare.py --extractor judge --clip tiny", clone)
    folder = clone / "results" / "mnist"
    text = (folder / "compare" / "report.md").read_text(encoding="utf-8")
    assert "a5_mine: A5: narrower." in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 4, "the settings, the two of the ablation, obedience"
    for table in tables:
        models = re.findall(r"^\| (a\w+)", table, re.M)
        assert models == sorted(models) and {*models} == {"a3_cfg", "a5_mine"}
    assert "![a5_mine](" in text and (folder / "cfg_scale" / "images" / "a5_mine.png").exists()
    study = pd.read_csv(folder / "cfg_scale" / "metrics" / "cfg_scale.csv")
    models = [
        f"{name}{suffix}" for name in ("a3_cfg", "a5_mine") for suffix in ("", ", throughout")
    ]
    assert {*study["model"]} == {*models}
    assert "missing: a4_full (python a4_full.py --dataset mnist)" in done.stderr


def test_a_broken_shape_shows_its_file_and_line(clone, here, monkeypatch):
    source = (clone / "a0_uncond.py").read_text(encoding="utf-8")
    broken = source.replace("nn.Conv2d(c2, c1, 1)", "nn.Conv2d(c2, c1 + 1, 1)")
    (clone / "a6_broken.py").write_text(broken, encoding="utf-8")
    monkeypatch.syspath_prepend(clone)
    line = 1 + next(i for i, x in enumerate(broken.splitlines()) if "self.norm1(x)" in x)
    with pytest.raises(RuntimeError) as caught:
        here("a6_broken.py --train-steps 2", clone)
    shown = "".join(traceback.format_exception(caught.value))
    assert re.search(rf'a6_broken.py", line {line}, in forward', shown)
    (clone / "a6_broken.py").unlink()


def stopped(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        common.cli(main)
    return caught.value.code, capsys.readouterr().err


def test_what_the_user_can_mend_is_a_line_and_everything_else_a_traceback(capsys):
    assert stopped(base.UserError("a mistake"), capsys) == (2, "error: a mistake\n")
    code, said = stopped(KeyboardInterrupt(), capsys)
    assert code == 130 and "the same command" in said
    for error in (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
    ):
        code, said = stopped(error, capsys)
        assert code == 2 and said == "error: out of memory; try a smaller --batch-size\n"
    for kind in (RuntimeError, OSError, KeyError, IndexError, TypeError, UnicodeError):
        with pytest.raises(kind):
            stopped(kind("a fault"), capsys)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(base.UserError, match=r"cannot write .*results/x.csv: Not a directory"):
        base.save_table(tmp_path / "file" / "results" / "x.csv", [{"a": 1}])


DAMAGED = {
    "zeros in the middle of samples": ("images/samples_w1.0.npz", "zeros"),
    "a pickle for samples": ("images/samples_w1.0.npz", "pickle"),
    "a checkpoint without its optimizer": ("checkpoints/last.pt", "no optimizer"),
    "a checkpoint with an empty config": ("checkpoints/last.pt", "no config"),
    "a loss.csv without its step": ("metrics/loss.csv", "other columns"),
    "a performance.csv without its scale": ("metrics/performance.csv", "other columns"),
}


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory, typed_here):
    """A run stopped in the middle of its training."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.Run, "LOG_EVERY", 2)
        patch.setattr(common.Run, "SAVE_EVERY", 0)
        flags = "--train-steps 4 --batch-size 8 --samples 20 --sample-steps 2"
        typed_here(f"a1_cond.py {flags}", folder)
    last = folder / "results/mnist/a1_cond/checkpoints/last.pt"
    torch.save(torch.load(last, weights_only=True) | {"step": 2}, last)
    return folder


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_or_edited_file_is_one_line_that_names_it(half_trained, tmp_path, here, what):
    name, damage = DAMAGED[what]
    copy = shutil.copytree(half_trained, tmp_path / "copy")
    path = copy / "results" / "mnist" / "a1_cond" / name
    if damage == "zeros":
        whole = path.read_bytes()
        path.write_bytes(whole[:400] + bytes(2000) + whole[2400:])
    elif damage == "pickle":
        path.write_bytes(b"\x80\x04N.")
    elif damage == "other columns":
        path.write_text("one;other\n1;2\n")
    else:
        state = torch.load(path, weights_only=True)
        change = {"no optimizer": "optimizer", "no config": "config"}[damage]
        state = {**state, "config": {}} if change == "config" else state
        state.pop("optimizer") if change == "optimizer" else None
        torch.save(state, path)
    flags = "--train-steps 4 --batch-size 8 --samples 20 --sample-steps 2"
    if damage == "no config":  # then nothing says what it was made with
        here("a1_cond.py --prompt seven", copy, check=2)
        return
    done = here(f"a1_cond.py {flags}", copy, check=2)
    lines = [
        x for x in done.stderr.splitlines() if not re.match("CLIP:|MNIST:|results|training", x)
    ]
    assert lines[-1].startswith("error: ") and path.name in lines[-1], done.stderr


def test_prompts_are_encoded_once_each_and_outside_the_timed_batches(monkeypatch):
    """Speed: the median over batches after the first; an encoder that dawdles is not counted."""
    calls, clock = [], iter(range(10**6))

    class Encoder:
        def encode_text(self, texts):
            calls.extend(texts)
            [next(clock) for _ in range(100)]  # seconds
            return torch.ones(len(texts), 8)

    it = object.__new__(run.Run)
    it.config, it.encoder, it.text_vectors = a4_full.Config(seed=0), Encoder(), {}
    it.device = CPU
    seconds = iter([50, 4, 1, 2, 4])

    def draw(prompts, scale, generator):
        it.encode(prompts)
        [next(clock) for _ in range(next(seconds))]
        return torch.zeros(len(prompts), 1, 28, 28)

    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    texts = [f"{name} {i}" for i in range(5) for name in ("a seven", "an eight")]
    prompts = [text for i in range(0, 10, 2) for text in texts[i : i + 2] * 50]  # new in each batch
    pixels, speed = samples.draw_all(it, draw, prompts, 1.0, "test")
    assert calls == texts and pixels.shape == (500, 28, 28)
    assert speed == statistics.median([100 / 5, 100 / 2, 100 / 3, 100 / 5])  # + 1 of the clock


def test_a_prompts_vector_depends_on_no_other_prompt():
    clip = common.load_clip("tiny", data_args(), CPU)
    texts = datasets.phrasings(data_args(), datasets.TRAIN_TEMPLATES)[7]
    alone = run.encode_once(clip, texts[:1], {})
    assert torch.equal(run.encode_once(clip, texts, {})[:1], alone)


def test_images_stay_uint8_until_a_batch_is_drawn(monkeypatch):
    pixels, labels, source = common.load_dataset(data_args(data_dir=base.ROOT / "none"))
    assert pixels.dtype == torch.uint8 and pixels.nbytes == len(pixels) * 784
    images = common.to_images(pixels[:3])
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)


def test_flags_are_made_from_fields_also_plain_ones():
    """A field without flag() works; its checks are its type's."""
    import dataclasses

    @dataclasses.dataclass
    class Config(common.Config):
        plain: float = 0.5
        on: bool = True
        names: list[str] | None = None
        steps: int = common.flag(3, "a number, 50 % more", 1, 9, quickdraw=5)

    config = Config.parse(["--plain", "2", "--no-on", "--names", "a,b", "--dataset", "quickdraw"])
    assert (config.plain, config.on, config.names, config.steps) == (2.0, False, ["a", "b"], 5)
    assert config.given == {"plain", "on", "names", "dataset"} and not config.has_text
    assert Config.parse([]).steps == 3
    for bad in ("--plain nan", "--plain inf", "--steps 0", "--steps 10", "--steps 2.5"):
        with pytest.raises(base.UserError, match="invalid"):
            Config.parse(bad.split())
    assert flags.plain({"a": (1, 2), "b": base.ROOT}) == {"a": [1, 2], "b": str(base.ROOT)}
