"""READMEs and docs cannot rot: every command is run at small size, every link is followed."""

import re
import shutil
import subprocess
import sys

import pytest
import torch.distributed.run
from test_quickdraw import doodles, google, host, npy  # noqa: F401

from kit import captions, clip, files, judge, words

ROOT = files.ROOT
ENGLISH = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
CHINESE = ["README.zh-CN.md", *(name.replace("docs/", "docs/zh-CN/") for name in ENGLISH[1:])]
PAGES = ENGLISH + CHINESE
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
PAIRS = list(zip(ENGLISH, CHINESE))


def commands(name):
    """Every line of every block of code that names no language; then those within sentences."""
    text = TEXTS[name]
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
    blocks = [block for language, block in blocks if not language]
    found = [line.strip() for block in blocks for line in block.strip().splitlines()]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    inline = re.findall(r"`(?:time )?(python [^`\n]+)`", prose)
    return found + sorted({*inline} - {*found})


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_commands_and_numbers_in_tables(english, chinese):
    assert commands(english) == commands(chinese)
    tables = []
    for name in (english, chinese):
        rows = "".join(re.findall(r"^\|.*\n", TEXTS[name], re.M))
        tables.append(sorted(re.findall(r"\d[\d.,]*\d|\d", rows)))
    assert tables[0] == tables[1]


def test_a_readme_is_short():
    assert max(len(TEXTS[x].splitlines()) for x in (ENGLISH[0], CHINESE[0])) <= 230


def anchors(text):
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", text.lower(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.strip()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_no_path_is_of_one_machine(name):
    links = re.findall(r"\]\((?!https://)([^)\s]+)\)", TEXTS[name])
    assert links and not re.search(r"[\s`(]/\w+/|#L", TEXTS[name])
    for target in links:
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", PAGES)
def test_functions_that_a_page_names_are_in_their_files(name):
    """`diffusion_loss` in [a0_uncond.py](../a0_uncond.py)"""
    file = r"\[`?[\w./]+`?\]\(([^)\s#]+\.py)\)"
    named = re.findall(rf"`(\w+)` in {file}", TEXTS[name])
    named += [pair[::-1] for pair in re.findall(rf"{file} ?中的 ?`(\w+)`", TEXTS[name])]
    assert named or not name.endswith("mathematics.md")
    for function, target in named:
        source = ((ROOT / name).parent / target).read_text(encoding="utf-8")
        assert re.search(rf"\b{function}\b", source), f"{function} in {target}"


SMALL = "--train-steps 2 --batch-size 4 --samples 10"


def small(script, flags):
    """The same command in a few steps."""
    if "--help" in flags or script in ("compare.py", "colab/build.py", "evaluate.py", "-m"):
        return flags
    if script.endswith("py") and not script.startswith("tests/"):
        flags = flags + (SMALL.split() if "--prompt" not in flags else [])
        if script not in ("cgan.py", "cvae.py"):
            return [*flags, "--sample-steps", "2" if "--sample-steps" in flags else "1"]
    return flags


@pytest.mark.usefixtures("coarse_figures")
def test_every_command_works(here, tmp_path, monkeypatch, host, google):  # noqa: F811
    """From top to bottom in one folder, as a reader would, but small; tiny CLIPs are made first."""
    for name in words.DRAWINGS:
        google.serve(name, npy(doodles(40)))
    monkeypatch.setattr(judge.make, "__defaults__", (2, 0))  # steps, seed
    monkeypatch.setattr(captions, "MOST", 400)
    monkeypatch.setattr(clip, "MANY", 100)  # so that what a text encoder has read is cached
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "data", "results", "*.npz", "*.pt", "*.png")
    shutil.copytree(ROOT, copy, ignore=ignored)
    monkeypatch.syspath_prepend(copy)  # where a5_mine.py will be
    done = set()
    lines = [line for name in ENGLISH for line in commands(name)]
    for command in sorted(lines, key=lambda line: "kit.tiny_clip" not in line):
        program, script, *flags = [*command.split(), ""]
        if program == "pip" or command.startswith("python -m pytest") or command in done:
            continue  # .ci/run, or was run
        done.add(command)
        if program == "torchrun":  # which test_processes.py starts; here, by one
            started = torch.distributed.run.parse_args([script, *flags[:-1]])
            assert started.nproc_per_node == "2"
            script, flags = started.training_script, [*started.training_script_args]
            here([script, *small(script, flags), "--out", "by_one"], tmp_path)
            continue
        if program != "python" or script == "colab/build.py":
            made_by_runs = program == "mkdir" or "results" in command
            line = command.replace("python", sys.executable)
            folder = tmp_path if made_by_runs else copy
            ran = subprocess.run(line, shell=True, cwd=folder, capture_output=True)
            assert ran.returncode == (program in ("diff", "git")), command
            continue
        typed = re.findall(r'"[^"]*"|\S+', command)[2:]
        flags = small(script, [word.strip('"') for word in typed])
        if script == "-m":
            script, flags = flags[0], [*flags[1:], "--train-steps", "2"]
        here([script.replace("tests/", ""), *flags], tmp_path)
    made = {path.name for path in (tmp_path / "results" / "mnist").iterdir()}
    assert made >= {"a0_uncond", "a5_mine", "cgan", "cvae", "compare"}
    notebooks = [path.name for path in copy.glob("colab/*.ipynb")]
    assert len(notebooks) == 9, "a notebook for each script, mine too"
    for name in set(notebooks) - {"a5_mine.ipynb", "compare.ipynb"}:
        assert (copy / "colab" / name).read_bytes() == (ROOT / "colab" / name).read_bytes()
