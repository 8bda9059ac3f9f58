"""Flags: what is accepted, what is refused in one line, and what --help says."""

import importlib
import random
import re
import sys

import pytest
import torch
from conftest import ROOT, contents, last_of, only_error

import a4_full
from kit.files import UserError

SCRIPTS = *"a0_uncond a1_cond a2_clip a3_cfg a4_full a5_fast".split(), "cgan", "cvae"
VALUES = "-1 0 1 3 0.5 1e309 nan -inf 1e9 016 +2 ½ ٣ 1_000 0x10 1,2 seven 七 😀 \\ $x$ - -- %s{}"
VALUES = [*VALUES.split(" "), "", " ", "\0", "/dev/null", "~nobody/x", "mnist", "tiny"]

WRONG = {  # flags -> words of the one line
    "--lr nan": ("--lr nan", "finite"), "--eta -1": ("--eta -1", "not negative"),
    "--scales 1 nan": ("--scales nan",), "--scales 1,2": ("--scales", "1,2"),
    "--train-steps 0": ("--train-steps 0", "at least 1"), "--n 0 --prompt 7": ("--n 0",),
    "--widths 8": ("--widths",), "--dataset nowhere": ("nowhere", "mnist, emnist, quickdraw"),
    "--widths 30 60": ("--widths", "8"), "--device cuda:9": ("--device cuda:9",),
    "--interval 700 350": ("--interval", "lower"), "--promt 7": ("--promt", "--help"),
    "--dataset quickdraw --classes cat cat": ("--classes", "two different"),
    "--classes cat dog": ("--classes", "zero"), "--clip nowhere.pt": ("--clip", "nowhere.pt"),
    "--clip ViT-B/32": ("openaipublic.azureedge.net",), "--prompt=": ("--prompt", "readable"),
}  # fmt: skip


@pytest.mark.parametrize("flags", WRONG)
def test_a_wrong_flag_is_one_line_and_leaves_no_file(here, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(a4_full, "train", lambda *_: pytest.fail("it was accepted"))
    done = here(f"a4_full.py {flags}", tmp_path, check=1)
    only_error(done, *WRONG[flags])
    assert len(done.stderr.splitlines()) == 1 and not done.stdout and not contents(tmp_path)


def test_a_wrong_flag_typed_in_a_terminal_is_one_line_and_exit_code_1(cli, tmp_path):
    done = cli("a1_cond.py --train-steps -3", tmp_path, check=1)
    line = "error: --train-steps -3: it must be at least 1"
    assert done.stderr.splitlines() == [line] and not done.stdout and not contents(tmp_path)


def test_the_arguments_of_a_notebooks_kernel_are_not_ours(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/colab_kernel_launcher.py", "-f", "/x/kernel.json"])
    assert a4_full.Config.parse() == a4_full.Config()
    assert a4_full.Config.parse(["--prompt", "7", "--n", "3"]).n == 3


def test_any_command_line_is_read_or_refused_in_one_line(tmp_path, monkeypatch):
    """150 made-up ones; nothing is started, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    dice, refused = random.Random(0), 0
    for _ in range(150):
        config = importlib.import_module(dice.choice(SCRIPTS)).Config
        names = [*config.__dataclass_fields__, "promt", "gamma", "scale", "no-fresh"]
        flags = [f"--{name.replace('_', '-')}" for name in dice.choices(names, k=2)]
        sizes = dice.choices((0, 1, 1, 1, 2), k=2)  # values after a flag
        line = [x for flag, k in zip(flags, sizes) for x in (flag, *dice.choices(VALUES, k=k))]
        try:
            config.parse(line)
        except UserError as error:
            assert str(error).startswith("error: ") and "\n" not in str(error), line
            refused += 1
    assert 50 < refused < 150 and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_each_flag_with_the_comment_of_its_field(here, tmp_path, monkeypatch, script):
    monkeypatch.setenv("COLUMNS", "400")  # each comment on a line
    module, told = importlib.import_module(script), here(f"{script}.py --help", tmp_path).stdout
    files = ROOT / "kit" / "config.py", ROOT / f"{script}.py"
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    comments = dict(re.findall(r"(?m)^    (\w+): .*  # (.*)$", source))
    for name in module.Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in told and comments[name] in told, name
    assert module.__doc__.splitlines()[0] in told


RUN = "a4_full.py --clip tiny --train-steps 60 --batch-size 16"
REFUSED = {  # another value -> the choice and both values
    "--seed 1": "seed 0, not 1", "--lr 0.1": "lr 0.005, not 0.1",
    "--widths 16 32": "widths [32, 64], not [16, 32]", "--train-steps 70": "train_steps 60, not 70",
}  # fmt: skip


@pytest.mark.parametrize("flags", REFUSED)
def test_other_choices_of_training_are_refused_in_a_line_with_both_values(finished, here, flags):
    before = contents(finished)
    done = here(f"{RUN} {flags}", finished, check=1)
    only_error(done, "was trained with", REFUSED[flags], "--fresh")
    assert len(done.stderr.splitlines()) == 1 and contents(finished) == before


def test_so_are_they_with_a_prompt_and_so_is_another_text_encoder(copy, here):
    only_error(here("a4_full.py --prompt 7 --widths 16 32", copy, check=1), "[32, 64], not [16,")
    checkpoint = torch.load(last_of(copy), weights_only=True) | {"step": 40}
    checkpoint["config"]["text_encoder_crc32"] = 1
    torch.save(checkpoint, last_of(copy))
    only_error(here(RUN, copy, check=1), "text_encoder_crc32 1, not", "--fresh")
