"""Command lines that nobody would type: a proper result, or one clear line and exit code 2.

Here 60 of them; tests/long.py tries 400, and ten more as processes of their own.
"""

import contextlib
import dataclasses
import importlib
import io
import typing
from pathlib import Path

import pytest
import torch
from conftest import go_offline
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import common
from kit import base, flags, judge, tiny_clip

SCRIPTS = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan", "cvae"
COMMANDS = *SCRIPTS, "evaluate", "compare", "kit.tiny_clip", "kit.judge"
SMALL = {"train_steps": 1, "samples": 4, "sample_steps": 1, "n": 4, "batch_size": 4}
FOLDERS = "results", "out", "a b", "结果", "deep/er", "notes.txt/x", ".", "x,y"
NUMBERS = "-1", "0", "1", "2", "3", "0.5", "1e-5", "1e309", "nan", "-inf", "1e9", "8", "016", "+2"
NUMBERS += "½", "٣", "1_000", "0x10", "1,2", "8,16", "16,16,16", "", " ", "1;2", "seven"
NUMBERS += ("350,700",)
TEXTS = (
    "seven",
    "a thick seven leaning left",
    "",
    " ",
    "七",
    "😀",
    "\\",
    "$x$",
    "-",
    "--",
    "%s{}",
    "\0",
)
PATHS = (
    "tiny",
    "auto",
    "RN50",
    "ViT-B/32",
    "notes.txt",
    "no.pt",
    "",
    "~nobody/x",
    "my/clip",
    "x" * 300,
)
DATASETS = (
    "mnist",
    "emnist",
    "quickdraw",
    "pictures",
    "no",
    "",
    "..",
    "notes.txt",
    "MNIST",
    "x" * 300,
)
DEVICES = "cpu", "auto", "cuda", "cuda:9", "mps", "meta", "banana", "", "cpu:0"


ASSETS = {path: path.stat().st_mtime_ns for path in (base.ROOT / "assets").iterdir()}


def values_of(name: str, hint) -> st.SearchStrategy[str]:
    known = {"prompt": TEXTS, "dataset": DATASETS, "device": DEVICES, "clip": PATHS}
    known |= {"out": FOLDERS, "data_dir": ("data", "data", "d 2"), "models": SCRIPTS}
    known |= {"classes": ("cat,rainbow", "cat", "x,y", ""), "extractor": ("judge", "auto", "x")}
    known |= {"emnist_split": ("letters", "x"), "patch": ("2", "4", "7", "x")}
    if name == "prompt":
        return st.sampled_from(TEXTS) | st.text(max_size=60)
    return st.sampled_from(known.get(name, NUMBERS))


@st.composite
def lines(draw) -> list[str]:
    """A command and its flags: those that it has and some that it has not."""
    command = draw(st.sampled_from(COMMANDS))
    config = importlib.import_module(command).Config
    hints = typing.get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config)]
    line = [command]
    if draw(st.integers(0, 3)) == 0:  # most would end at the first flag that makes no sense
        names += ["promt", "scale", "prompt", "help", "gamma"]
    for name in draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
        flag = f"--{name.replace('_', '-')}"
        if hints.get(name) is bool or name == "help":
            line.append(flag if name == "help" else draw(st.sampled_from((flag, f"--no-{name}"))))
        elif name == "models":
            line.append(draw(values_of(name, None)))
        else:
            value = draw(values_of(name, hints.get(name)))
            line += draw(st.sampled_from(([f"{flag}={value}"], [flag, value])))
    return line


def make_place(place: Path) -> None:
    """A folder to start commands in, with what a user may have there."""
    (place / "notes.txt").write_text("my own")
    for name in ("cat", "dog"):
        (place / "pictures" / name).mkdir(parents=True)


@contextlib.contextmanager
def small_budgets():
    """Training and drawing at one step, networks of a few channels."""
    true_parse = flags.Flags.parse.__func__

    def parse(cls, argv=None):
        config = true_parse(cls, argv)
        for name, most in SMALL.items():
            if name in config.__dataclass_fields__:
                setattr(config, name, min(getattr(config, name), most))
        for name in ("widths", "scales"):
            if name in config.__dataclass_fields__:
                most = 64 if name == "widths" else 100
                setattr(config, name, tuple(min(x, most) for x in getattr(config, name)[:2]))
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags.Flags, "parse", classmethod(parse))
        patch.setattr(tiny_clip, "STEPS", 1)
        patch.setattr(judge, "STEPS", 1)
        yield


def attempt(place: Path, line: list[str], env) -> tuple[int, str]:
    """-> exit code, what was said; AssertionError for a traceback, or a file where none belongs."""
    outside = {path for path in place.parent.rglob("*") if place not in path.parents}
    said, code = io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        go_offline(patch, env)
        patch.chdir(place)
        try:
            common.cli(lambda: importlib.import_module(line[0]).main(line[1:]))
        except SystemExit as ended:
            code = ended.code or 0
    errors = [x for x in said.getvalue().splitlines() if x.startswith("error: ")]
    assert code in (0, 2) and len(errors) == (code == 2), (line, code, said.getvalue())
    roots = {folder.split("/")[0] for folder in FOLDERS} | {"data", "d 2", "pictures", "results"}
    roots |= {"mnist", ".mnist.lock"}  # --out=.
    found = {path.name for path in place.iterdir()}
    if line[0].startswith("kit."):  # where --out is the file to write
        roots |= {f".{root}{end}" for root in roots for end in (".lock", ".by", ".halfway")}
    assert found <= roots, (line, found - roots)
    assert (place / "notes.txt").read_text() == "my own", line
    assert {x for x in place.parent.rglob("*") if place not in x.parents} == outside, line
    now = {path: path.stat().st_mtime_ns for path in (base.ROOT / "assets").iterdir()}
    assert now == ASSETS, line
    return code, said.getvalue()


def fuzz(place: Path, env, count: int) -> dict[int, int]:
    """-> exit code -> how many command lines ended with it."""
    ended = {0: 0, 2: 0}

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(lines())
    def try_one(line):
        ended[attempt(place, line, env)[0]] += 1

    make_place(place)
    with small_budgets():
        try_one()
    return ended


def test_any_command_line_gives_a_result_or_one_clear_line(offline_env, warm, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    warm(place)
    before = torch.get_rng_state()
    ended = fuzz(place, offline_env, 60)
    torch.set_rng_state(before)
    assert ended[0] > 5 and ended[2] > 10, ended
