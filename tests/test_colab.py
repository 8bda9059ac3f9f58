"""The notebooks: fresh, whole, and one of them run from top to bottom in an empty folder, with local hosts."""

import ast
import gzip
import hashlib
import json
import re
import subprocess
import sys

import pytest
from conftest import idx

import common
import loading

sys.path.insert(0, str(common.ROOT / "colab"))

import build  # noqa: E402

NOTEBOOKS = build.build()


def cells(name, kind="code"):
    book = json.loads((common.ROOT / "colab" / f"{name}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_fresh(path):
    assert path.read_text() == NOTEBOOKS[path], "python colab/build.py"


def test_there_is_one_for_each_model_and_for_the_comparison():
    assert {path.stem for path in NOTEBOOKS} == {*build.MODELS, "compare"}
    assert {path.stem for path in (common.ROOT / "colab").glob("*.ipynb")} == {
        path.stem for path in NOTEBOOKS
    }


@pytest.mark.parametrize("name", build.MODELS)
def test_a_notebook_holds_all_of_its_script_under_its_headings(name):
    source = (common.ROOT / f"{name}.py").read_text()
    code, heads = "\n".join(cells(name)), [text.lstrip("# ") for text in cells(name, "markdown")]
    for heading in ("Network", "Conditioning", "Loss", "Sampler", "Training", "Main"):
        assert any(head.startswith(heading) for head in heads), heading
    for node in ast.parse(source).body[1:-1]:
        assert ast.get_source_segment(source, node) in code
    assert ("clip-anytorch" in code) == (name not in ("a0_uncond", "a1_cond"))


OWNERS = {name: set(build.Module(name).owners) for name in build.SOURCES}


@pytest.mark.parametrize("name", [*build.MODELS, "compare"])
def test_modules_in_a_notebook_lack_nothing_that_they_use(name):
    """What a module or the script uses of itself or of another one is there, and the pruned parts are not."""
    sources = dict(text[9:].split("\n", 1) for text in cells(name) if text.startswith("%%module "))
    trees = {module: ast.parse(source) for module, source in sources.items()}
    made = {
        module: {x for node in tree.body for x in build.made(node)}
        for module, tree in trees.items()
    }
    for module, tree in trees.items():
        assert ast.get_docstring(tree)
        for node in (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module in OWNERS
        ):
            assert {alias.name for alias in node.names} <= made.get(node.module, set()), (
                f"{module}: {ast.unparse(node)}"
            )
        for other, used in build.uses(tree):
            owner = other or module
            assert used not in OWNERS[owner] or used in made[owner], f"{module} uses {owner}.{used}"
    if name == "a0_uncond":
        assert "tiny_clip" not in made and "fetch" not in made["loading"]


@pytest.fixture
def hosts(server, tmp_path):
    """MNIST's host; -> lines that make a kernel use it, and no other network."""
    resources = []
    for part, split in (("train", "train"), ("t10k", "test")):
        for kind, array in zip(("images-idx3", "labels-idx1"), loading.embedded_mnist(split)):
            packed = gzip.compress(idx(array.numpy()), 1)
            (server.root / f"{part}-{kind}-ubyte.gz").write_bytes(packed)
            resources.append((f"{part}-{kind}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    home = str(tmp_path / "home")
    return f"""
import os
os.environ.update(HOME={home!r}, https_proxy="http://127.0.0.1:9", http_proxy="", no_proxy="127.0.0.1")
from torchvision.datasets import MNIST
MNIST.mirrors, MNIST.resources = [{server.url!r}], {resources!r}
"""


def execute(path, folder, first, change):
    """Run a notebook in a folder: its code cells through change(), after a first cell. -> (error, its outputs)."""
    import nbclient
    import nbformat

    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = change(cell.source)
    book.cells.insert(0, nbformat.v4.new_code_cell(first))
    client, error = (
        nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}),
        None,
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as caught:
        error = caught
    return error, [
        output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs
    ]


TINY = '"--train-steps", "4", "--batch-size", "8", "--samples", "20", "--sample-steps", "2"'


def small(source):
    if "%pip" in source:
        return ""
    return source.replace(
        'main(["--dataset", "mnist"])', f'main(["--dataset", "mnist", {TINY}])'
    ).replace("= 1300", "= 2")


def test_a_notebook_runs_from_top_to_bottom_in_an_empty_folder(hosts, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    error, outputs = execute(common.ROOT / "colab" / "a4_full.ipynb", folder, hosts, small)
    assert error is None, error
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and len(pictures[0]["data"]["image/png"]) > 3000
    said = "".join(output.get("text", "") for output in outputs)
    assert "training a tiny one for mnist, once" in said and "error" not in said
    config = json.loads((folder / "results/mnist/a4_full/config.json").read_text())
    assert config["data_source"] == "torchvision" and config["image_count"] == 4500
    assert {path.name for path in folder.iterdir()} == {"results", "data"}, (
        "modules leave no files behind"
    )


def test_the_comparison_runs_from_top_to_bottom_in_an_empty_folder(hosts, tmp_path):
    def smaller(source):
        if "import_module" not in source:
            return "" if "%pip" in source else source.replace("= 1300", "= 2")
        return source.replace(
            '"mnist"]', '"mnist", "--train-steps", "4", "--batch-size", "8", "--samples", "20"]'
        )

    folder = tmp_path / "empty"
    folder.mkdir()
    error, outputs = execute(common.ROOT / "colab" / "compare.ipynb", folder, hosts, smaller)
    assert error is None, error
    pages = [
        output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})
    ]
    assert (
        len(pages) == 1
        and all(name in pages[0] for name in build.MODELS)
        and "Missing here" not in pages[0]
    )


def test_a_notebook_without_a_network_says_in_one_line_what_is_missing(hosts, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    error, outputs = execute(
        common.ROOT / "colab" / "a1_cond.ipynb",
        folder,
        re.sub(r"127.0.0.1:\d+/", "127.0.0.1:9/", hosts),
        small,
    )
    said = [line for output in outputs for line in output.get("text", "").splitlines() if line]
    assert error is not None and not [
        output for output in outputs if output["output_type"] == "error"
    ]
    assert len(said) == 1 and said[0].startswith("error: MNIST:") and "data/MNIST/raw" in said[0], (
        said
    )


def test_a_script_pasted_into_a_cell_runs_whatever_the_kernels_argv(hosts, tmp_path):
    import nbformat

    for name in ("common.py", "drawing", "loading"):
        (tmp_path / name).symlink_to(common.ROOT / name)
    first = f"""{hosts}
import common
parse = common.parse_args
def small(script, doc, argv):
    parse(script, doc, argv)  # with the kernel's own arguments
    return parse(script, doc, [{TINY}])
common.parse_args = small
"""
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell((common.ROOT / "a1_cond.py").read_text())]
    )
    nbformat.write(book, tmp_path / "pasted.ipynb")
    error, _ = execute(tmp_path / "pasted.ipynb", tmp_path, first, str)
    assert error is None and (tmp_path / "results/mnist/a1_cond/images/prompts.png").exists()


def test_a_script_alone_says_in_one_line_what_belongs_beside_it(tmp_path):
    (tmp_path / "a4_full.py").write_text((common.ROOT / "a4_full.py").read_text())
    done = subprocess.run(
        [sys.executable, "a4_full.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        done.returncode
        and len(done.stderr.splitlines()) == 1
        and re.search(r"common.py.*colab/", done.stderr)
    )
