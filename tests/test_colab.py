"""The notebooks: fresh, whole, and some run from top to bottom in an empty folder."""

import ast
import gzip
import hashlib
import json
import re
import subprocess
import sys

import pytest
from conftest import idx

from kit import base, images

sys.path.insert(0, str(base.ROOT / "colab"))

import build  # noqa: E402

NOTEBOOKS = build.build()


def cells(name, kind="code"):
    book = json.loads((base.ROOT / "colab" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_fresh(path):
    assert path.read_text(encoding="utf-8") == NOTEBOOKS[path], "python colab/build.py"


def test_there_is_one_for_each_model_and_for_the_comparison():
    names = {path.stem for path in base.ROOT.glob("a?_*.py")} | {"cgan", "cvae", "compare"}
    assert {path.stem for path in NOTEBOOKS} == names == {*build.MODELS, "compare"}
    assert {path.stem for path in (base.ROOT / "colab").glob("*.ipynb")} == names


@pytest.mark.parametrize("name", build.MODELS)
def test_a_notebook_holds_all_of_its_script_under_its_headings(name):
    source = (base.ROOT / f"{name}.py").read_text(encoding="utf-8")
    code = "\n".join(cells(name))
    heads = [text.lstrip("# ") for text in cells(name, "markdown")]
    headings = "Imports Choices Network Conditioning Loss Sampler Training Main".split()
    assert [head for head in heads if head in headings] == headings
    for node in ast.parse(source).body[1:-1]:
        assert ast.get_source_segment(source, node) in code


@pytest.mark.parametrize("name", [*build.MODELS, "compare"])
def test_its_plumbing_is_whole_files_written_by_standard_means_and_folded(name):
    book = json.loads((base.ROOT / "colab" / f"{name}.ipynb").read_text(encoding="utf-8"))
    written = {}
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if source.startswith("%%writefile "):
            first, text = source.split("\n", 1)
            written[first.split()[1]] = text
            assert cell["metadata"]["jupyter"] == {"source_hidden": True}
        else:
            assert not re.search(r"(?m)^%%|meta_path|get_ipython|importlib", source), source
    plumbing = {"common.py", *(f"kit/{path.name}" for path in (base.ROOT / "kit").glob("*.*"))}
    scripts = {f"{x}.py" for x in (*build.MODELS, "evaluate", "compare")}
    assert set(written) == plumbing | (scripts if name == "compare" else set())
    for file, text in written.items():
        assert text == (base.ROOT / file).read_text(encoding="utf-8"), file


@pytest.fixture
def hosts(server, tmp_path):
    """MNIST's host, with 500 images of each split; -> lines that make a kernel use it alone."""
    resources = []
    for part, split in (("train", "train"), ("t10k", "test")):
        for kind, array in zip(("images-idx3", "labels-idx1"), images.embedded_mnist(split)):
            packed = gzip.compress(idx(array[::10].numpy()), 1)
            (server.root / f"{part}-{kind}-ubyte.gz").write_bytes(packed)
            resources.append((f"{part}-{kind}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    env = {"HOME": str(tmp_path / "home"), "https_proxy": "http://127.0.0.1:9", "http_proxy": ""}
    return f"""
import os
os.environ.update({env | {"no_proxy": "127.0.0.1"}!r})
from torchvision.datasets import MNIST
MNIST.mirrors, MNIST.resources = [{server.url!r}], {resources!r}
"""


def execute(book, folder, first, change, last=()):
    """Run a notebook in a folder: its code cells through change(), between first and last ones.

    -> (error, its outputs)
    """
    import nbclient
    import nbformat

    book = nbformat.read(base.ROOT / "colab" / f"{book}.ipynb", 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = change(cell.source)
    book.cells.insert(0, nbformat.v4.new_code_cell(first))
    book.cells += [nbformat.v4.new_code_cell(source) for source in last]
    resources = {"metadata": {"path": str(folder)}}
    client, error = nbclient.NotebookClient(book, timeout=300, resources=resources), None
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as caught:
        error = caught
    return error, [output for x in book.cells if x.cell_type == "code" for output in x.outputs]


TINY = '"--train-steps", "4", "--batch-size", "8", "--samples", "20"'
STEPS = ', "--sample-steps", "2"'


def small(source, flags=TINY + STEPS):
    """As a user would run it, but without the installation and with few steps."""
    source = re.sub(r"(?m)^%pip .*$", "", source)
    source = source.replace("= 2600, 40,", "= 2, 40,").replace("= 1200, 128,", "= 2, 128,")
    source = source.replace("MOST = 6000", "MOST = 600")
    return source.replace('main(["--dataset", "mnist"])', f'main(["--dataset", "mnist", {flags}])')


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def said(outputs):
    return "".join(output.get("text", "") for output in outputs)


def test_a_notebook_runs_from_top_to_bottom_then_an_edited_cell_and_a_pasted_script(hosts, empty):
    error, outputs = execute("a4_full", empty, hosts, small)
    assert error is None, error
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and len(pictures[0]["data"]["image/png"]) > 3000
    assert "training a tiny one for mnist, once" in said(outputs) and "error" not in said(outputs)
    config = json.loads((empty / "results/mnist/a4_full/config.json").read_text())
    assert config["data_source"].startswith("files (CRC-32 ") and config["image_count"] == 500
    assert config["description"].startswith("A4, the full model")
    written = {"common.py", "kit"}
    assert {path.name for path in empty.iterdir()} == {"results", "data", *written}

    def edited(source):  # a plumbing cell, changed and run again; and all after a restart
        return small(source).replace("is complete; --fresh", "is complete, says my edit; --fresh")

    first = f"""
del __file__  # of the notebook
import common
parse = common.Config.parse.__func__
def small(cls, argv=None):
    parse(cls, argv)  # with the kernel's own arguments
    return parse(cls, [{TINY + STEPS}])
common.Config.parse = classmethod(small)
"""
    pasted = (base.ROOT / "a1_cond.py").read_text(encoding="utf-8")
    error, outputs = execute("a4_full", empty, hosts, edited, [first, pasted])
    assert error is None, error
    assert "says my edit" in said(outputs)
    assert (empty / "results/mnist/notebook/images/prompts.png").exists()


def test_the_comparison_runs_from_top_to_bottom_in_an_empty_folder(hosts, empty):
    def smaller(source):
        name = re.match(r"import (\w+)", source)
        flags = TINY if name and name[1] in ("cgan", "cvae") else TINY + STEPS
        return source if name and name[1] == "compare" else small(source, flags)

    error, outputs = execute("compare", empty, hosts, smaller)
    assert error is None, error
    pages = [x["data"]["text/html"] for x in outputs if "text/html" in x.get("data", {})]
    assert len(pages) == 1 and all(name in pages[0] for name in build.MODELS)
    assert "Missing here" not in pages[0]


def test_a_notebook_without_a_network_says_in_one_line_what_is_missing(hosts, empty):
    dead = re.sub(r"127.0.0.1:\d+/", "127.0.0.1:9/", hosts)
    error, outputs = execute("a1_cond", empty, dead, small)
    assert error is not None
    shown = [output["traceback"] for output in outputs if output["output_type"] == "error"]
    assert len(shown) == 1 and len(shown[0]) == 1 and shown[0][0].startswith("error: MNIST:")
    assert "data/MNIST/raw" in shown[0][0]


def test_a_script_alone_says_what_belongs_beside_it(tmp_path):
    """By the line that the traceback shows."""
    source = (base.ROOT / "a4_full.py").read_text(encoding="utf-8")
    (tmp_path / "a4_full.py").write_text(source, encoding="utf-8")
    line = [sys.executable, "a4_full.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "import common  # this file of the repository" in done.stderr
