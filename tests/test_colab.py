"""The notebooks: fresh, whole, and one runs from top to bottom in an empty folder."""

import ast
import gzip
import hashlib
import json
import re
import sys

import nbclient
import nbformat
import pytest
from conftest import DEAD, ROOT, SMALL, idx

from kit.data import embedded_mnist

sys.path.insert(0, str(ROOT / "colab"))

import build  # noqa: E402

NOTEBOOKS = {path.stem: nbformat.reads(text, 4) for path, text in build.build().items()}
HEADINGS = "Imports Choices Network Conditioning Loss Sampler Training Main".split()


def sources(name, kind="code"):
    return [cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == kind]


def test_notebooks_are_fresh_and_one_for_each_model():
    assert {*NOTEBOOKS} == {*build.MODELS, "compare"} >= {"a0_uncond", "a4_full", "cgan", "cvae"}
    assert {path.stem for path in (ROOT / "colab").glob("*.ipynb")} == {*NOTEBOOKS}
    for path, text in build.build().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python colab/build.py"


@pytest.mark.parametrize("name", build.MODELS)
def test_a_notebook_holds_all_of_its_script_under_its_headings(name):
    source, code = (ROOT / f"{name}.py").read_text(encoding="utf-8"), "\n".join(sources(name))
    heads = [text.removeprefix("## ") for text in sources(name, "markdown")]
    assert [head for head in heads if head in HEADINGS] == HEADINGS
    for node in ast.parse(source).body[1:-1]:
        assert ast.get_source_segment(source, node) in code


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_writes_the_modules_that_it_loads_and_no_others(name):
    written, others = {}, []
    for cell in NOTEBOOKS[name].cells:
        if cell.source.startswith("%%writefile "):
            first, text = cell.source.split("\n", 1)
            written[first.split()[1]] = text
            assert text == (ROOT / first.split()[1]).read_text(encoding="utf-8")
        else:
            others += [cell.source] * (cell.cell_type == "code")
    scripts = [f"{x}.py" for x in (*build.MODELS, "compare")] if name == "compare" else []
    needed = {*build.loaded(scripts or [f"{name}.py"])} - {f"{name}.py"} | {*scripts}
    needed |= {"kit/tiny_clip.py"} if "    clip: " in "".join(others) else set()
    assert {x for x in written if "report." not in x} == needed


@pytest.fixture
def host(server):
    """MNIST's host, with 500 images of each split; -> lines that make a kernel use it alone."""
    resources = []
    for part, split in (("train", "train"), ("t10k", "test")):
        for kind, array in zip(("images-idx3", "labels-idx1"), embedded_mnist(split)):
            name, packed = f"{part}-{kind}-ubyte.gz", gzip.compress(idx(array[::10].numpy()), 1)
            (server.root / name).write_bytes(packed)
            resources.append((name, hashlib.md5(packed).hexdigest()))
    lines = ["import os", f"os.environ.update({DEAD})", "from torchvision.datasets import MNIST"]
    return "\n".join([*lines, f"MNIST.mirrors, MNIST.resources = [{server.url!r}], {resources}"])


def test_a_notebook_runs_from_top_to_bottom(host, server, tmp_path, monkeypatch):
    """As a user would run it, but without the installation and with few steps."""
    folder, book = tmp_path / "empty", NOTEBOOKS["a1_cond"]
    folder.mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the kernel has what it writes itself
    for cell in book.cells:
        cell.source = re.sub("(?m)^%pip .*$", "", cell.source).replace("MOST = 6000", "MOST = 600")
        cell.source = re.sub(r'"https://ossci-.*/', f'"{server.url}', cell.source)
        flags = ", ".join(f'"{word}"' for word in ["--dataset", "mnist", *SMALL.split()])
        cell.source = cell.source.replace('main(["--dataset", "mnist"])', f"main([{flags}])")
    book.cells.insert(0, nbformat.v4.new_code_cell(host))
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=200, resources=place).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    pictures = [x for x in outputs if "image/png" in x.get("data", {})]
    assert len(pictures) == 1 and len(pictures[0]["data"]["image/png"]) > 3000
    run = json.loads((folder / "results/mnist/a1_cond/config.json").read_text())
    assert (run["data_source"], run["image_count"]) == ("mnist", 500)
    assert run["description"].startswith("A1: ")
    assert {path.name for path in folder.iterdir()} == {"results", "data", "common.py", "kit"}
