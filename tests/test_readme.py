"""READMEs, docs and notebooks cannot rot: commands are run at small size, links are followed."""

import gzip
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest
import torch.distributed.run
from conftest import DEAD, ROOT, idx
from test_quickdraw import doodles, google, host, npy  # noqa: F401
from test_structure import reach

from kit import captions, clip, judge, words
from kit.data import embedded_mnist

sys.path.insert(0, str(ROOT / "colab"))
import build  # noqa: E402

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


def test_readmes_have_180_lines_and_docs_11000_words():
    """All words but those of code; the bars of tables are no words."""
    assert max(len(TEXTS[x].splitlines()) for x in (ENGLISH[0], CHINESE[0])) <= 180
    pages = "".join(TEXTS[name] for name in ENGLISH[1:])
    pages = re.sub(r"```.*?```|<!-- .*? -->|\|", " ", pages, flags=re.S)
    assert len(pages.split()) <= 11000


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_no_path_is_of_one_machine(name):
    links = re.findall(r"\]\((?!https://)([^)\s]+)\)", TEXTS[name])
    assert links and not re.search(r"[\s`(]/\w+/|#L", TEXTS[name])
    for target in links:
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if not anchor:
            continue
        heads = re.findall("^#+ (.*)$", file.read_text(encoding="utf-8").lower(), re.M)
        anchors = [re.sub(r"[^\w\- ]", "", head.strip()).replace(" ", "-") for head in heads]
        assert anchor in anchors, f"{target}: what GitHub makes of the headings"


@pytest.mark.parametrize("name", PAGES)
def test_functions_that_a_page_names_are_in_their_files(name):
    """`diffusion_loss` in [a0_uncond.py](../a0_uncond.py)"""
    file = r"\[`?[\w./]+`?\]\(([^)\s#]+\.py)\)"
    named = re.findall(rf"`(\w+)` in {file}", TEXTS[name])
    named += [pair[::-1] for pair in re.findall(rf"{file} ?中的 ?`(\w+)`", TEXTS[name])]
    assert named or not name.endswith("1-diffusion.md")
    for function, target in named:
        source = ((ROOT / name).parent / target).read_text(encoding="utf-8")
        assert re.search(rf"\b{function}\b", source), f"{function} in {target}"


SMALL = "--train-steps 2 --batch-size 4 --samples 10"


def small(script, flags):
    """The same command in a few steps."""
    if script == "-m":
        return [*flags, "--train-steps", "2"]
    if "--help" in flags or script in ("compare.py", "evaluate.py"):
        return [script, *flags]
    flags = flags + (SMALL.split() if "--prompt" not in flags else [])
    if script not in ("cgan.py", "cvae.py"):
        flags += ["--sample-steps", "2" if "--sample-steps" in flags else "1"]
    return [script, *flags]


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
    monkeypatch.syspath_prepend(copy)  # where a6_mine.py will be
    done = set()
    lines = [line for name in ENGLISH for line in commands(name)]
    for command in sorted(lines, key=lambda line: "kit.tiny_clip" not in line):
        program, script, *flags = shlex.split(command)
        if program == "pip" or re.search("-m pytest|minimal", command) or command in done:
            continue  # .ci/run, test_minimal.py, or was run
        done.add(command)
        if program == "torchrun":  # which test_run.py starts; here, by one
            started = torch.distributed.run.parse_args([script, *flags])
            assert started.nproc_per_node == "2"
            script, flags = started.training_script, [*started.training_script_args]
            flags += ["--out", "by_one"]
        if program in ("python", "torchrun") and script != "colab/build.py":
            here(small(script, flags), tmp_path)
            continue
        folder = tmp_path if program == "mkdir" or "results" in command else copy
        line = command.replace("python", sys.executable)
        ran = subprocess.run(line, shell=True, cwd=folder, capture_output=True)
        assert ran.returncode == (program in ("diff", "git")), command
    made = {path.name for path in (tmp_path / "results" / "mnist").iterdir()}
    assert made >= {"a0_uncond", "a6_mine", "cgan", "cvae", "compare"}
    assert len([*copy.glob("colab/*.ipynb")]) == 10, "a notebook for each script, mine too"


NOTEBOOKS = {path.stem: nbformat.reads(text, 4) for path, text in build.build().items()}


def test_notebooks_are_fresh_and_one_for_each_model():
    assert {*NOTEBOOKS} == {*build.MODELS, "compare"} >= {"a0_uncond", "a4_full", "cgan", "cvae"}
    assert {path.stem for path in (ROOT / "colab").glob("*.ipynb")} == {*NOTEBOOKS}
    for path, text in build.build().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python colab/build.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_writes_all_modules_that_it_loads(name):
    code = "\n".join(cell.source for cell in NOTEBOOKS[name].cells)
    written = {*re.findall(r"(?m)^%%writefile (.*)$", code), f"{name}.py"}
    scripts = [*build.MODELS, "compare"] if name == "compare" else [name]
    assert written >= {f"{x.replace('.', '/')}.py" for script in scripts for x in reach(script)}


@pytest.fixture
def mnist_host(server):
    """MNIST's host, with a tenth of our digits; -> lines that make a kernel use it alone."""
    resources = []
    for part, split in (("train", "train"), ("t10k", "test")):
        for kind, array in zip(("images-idx3", "labels-idx1"), embedded_mnist(split)):
            name, packed = f"{part}-{kind}-ubyte.gz", gzip.compress(idx(array[::10].numpy()), 1)
            (server.root / name).write_bytes(packed)
            resources.append((name, hashlib.md5(packed).hexdigest()))
    lines = ["import os", f"os.environ.update({DEAD})", "from torchvision.datasets import MNIST"]
    return "\n".join([*lines, f"MNIST.mirrors, MNIST.resources = [{server.url!r}], {resources}"])


def test_a_notebook_runs_from_top_to_bottom(mnist_host, server, tmp_path, monkeypatch):
    """As a user would run it, but without the installation and with few steps."""
    folder, book = tmp_path / "empty", NOTEBOOKS["a1_cond"]
    flags = f"--dataset mnist {SMALL} --sample-steps 2".split()
    folder.mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the kernel has what it writes itself
    for cell in book.cells:
        cell.source = re.sub("(?m)^%pip .*$", "", cell.source).replace("MOST = 6000", "MOST = 600")
        cell.source = re.sub(r'"https://ossci-.*/', f'"{server.url}', cell.source)
        cell.source = cell.source.replace('main(["--dataset", "mnist"])', f"main({flags})")
    book.cells.insert(0, nbformat.v4.new_code_cell(mnist_host))
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=200, resources=place).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) == 4 and min(len(x["data"]["image/png"]) for x in pictures) > 3000
    run = json.loads((folder / "results/mnist/a1_cond/config.json").read_text())
    assert (run["data_source"], run["image_count"]) == ("mnist", 2000)
    assert run["description"].startswith("A1: ")
    assert {path.name for path in folder.iterdir()} == {"results", "data", "common.py", "kit"}
