"""The READMEs cannot rot: every command in them is run at small size, every link leads somewhere."""

import re
import shutil
import subprocess
import sys

import bench_quickdraw
import pytest
from test_emnist import emnist_host  # noqa: F401
from test_quickdraw import doodles, google, npy  # noqa: F401

import common
import tiny_clip

READMES = "README.md", "README.zh-CN.md"
TEXTS = {name: (common.ROOT / name).read_text() for name in READMES}


def commands(name):
    """Every line of every block of code that names no language, cut at &&; then those within sentences."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", TEXTS[name], re.M | re.S)
    found = [
        part.strip()
        for block in blocks
        for line in block.strip().splitlines()
        for part in line.split("&&")
    ]
    inline = re.findall(
        r"`(?:time )?(python [^`\n]+)`",
        re.sub(r"^ *```.*?^ *```$", "", TEXTS[name], flags=re.M | re.S),
    )
    return found + sorted({*inline} - {*found})


def test_both_readmes_have_the_same_commands():
    assert commands(READMES[0]) == commands(READMES[1]) and len(commands(READMES[0])) > 25


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    anchors = {slug(head) for head in re.findall(r"^#+ (.*)$", TEXTS[name], re.M)}
    quoted = r"\[`([^`]+)`\]\(([^)\s]+)\)"  # may hold brackets
    links = re.findall(quoted, TEXTS[name]) + re.findall(
        r"\[([^\[\]]*)\]\(([^)\s]+)\)", re.sub(quoted, "", TEXTS[name])
    )
    assert len(links) > 60
    for text, target in links:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            path, _, line = target.partition("#L")
            assert (common.ROOT / path).exists(), target
            if line:  # a line of code, quoted
                lines = (common.ROOT / path).read_text().splitlines()
                here = [n for n, code in enumerate(lines, 1) if text in code]
                assert int(line) in here, f"{text} in {path} is at {here}, not {line}"


@pytest.mark.parametrize("name", READMES)
def test_a_readme_names_no_path_of_one_machine(name):
    assert not re.search(r"[\s`(]/\w+/", TEXTS[name])


def test_the_readmes_have_the_same_numbers_in_their_tables():
    tables = [
        re.findall(r"\d[\d.,]*\d|\d", "".join(re.findall(r"^\|.*\n", text, re.M)))
        for text in TEXTS.values()
    ]
    assert sorted(tables[0]) == sorted(tables[1])


def test_ci_runs_the_readmes_tests():
    """Lines with pip are those of .ci/run, which takes the last one from the README and installs what it says."""
    pips = [command for command in commands("README.md") if command.startswith("pip")]
    assert all(pips[-1].startswith(pip) for pip in pips) and "python -m pytest" in commands(
        "README.md"
    )
    assert "python -m pytest' README.md" in (common.ROOT / ".ci" / "run").read_text()


SMALL = "--train-steps 4 --batch-size 8 --samples 24"


def test_every_command_works(here, tmp_path, monkeypatch, emnist_host, google):  # noqa: F811
    """From top to bottom in one folder, as a reader would, but small."""
    google.files = {name: npy(doodles(name, 40)) for name in common.DRAWINGS}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tiny_clip, "STEPS", 2)
    monkeypatch.setattr(bench_quickdraw, "STEPS", 2)
    monkeypatch.setattr(
        tiny_clip, "EMBEDDED", shutil.copy(tiny_clip.EMBEDDED, tmp_path / "tiny_clip.pt")
    )
    copy = tmp_path / "copy"
    shutil.copytree(
        common.ROOT,
        copy,
        ignore=shutil.ignore_patterns(".*", "data", "results", "*.npz", "*.pt", "*.png"),
    )
    for command in commands("README.md"):
        program, script, *flags = [*command.split(), ""]
        if program == "pip" or command == "python -m pytest":
            continue  # .ci/run
        if program != "python" or script == "colab/build.py":
            folder = tmp_path if program in ("mkdir", "cp") else copy
            done = subprocess.run(
                command.replace("python", sys.executable),
                shell=True,
                cwd=folder,
                capture_output=True,
            )
            assert done.returncode == (program == "diff"), command
            continue
        words = re.findall(r'"[^"]*"|\S+', command)[2:]
        flags = [word.strip('"') for word in words]
        if script.startswith(("a", "c")) and script != "compare.py" and "--help" not in flags:
            flags += SMALL.split() if "--prompt" not in flags else []
            flags += (
                [] if script == "cgan.py" or "--sample-steps" in flags else ["--sample-steps", "2"]
            )
        elif script == "evaluate.py":
            flags += ["--extractor", "tiny"]
        here([script.replace("tests/", ""), *flags], tmp_path)
    assert {path.name for path in (tmp_path / "results" / "mnist").iterdir()} >= {
        "a0_uncond",
        "cgan",
        "compare",
    }
    made = [*copy.glob("colab/*.ipynb")]
    assert len(made) == 7 and all(
        path.read_text() == (common.ROOT / "colab" / path.name).read_text() for path in made
    )
