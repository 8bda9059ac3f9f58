"""Write the notebooks: one for each model, and one for the comparison, each of which needs no other file.

Command   python colab/build.py        after every change of a script
Cells     the script's sections under headings; before them, folded, what it uses of the modules beside it. Those cells
          begin with %%module, a magic that the notebook defines: they become modules and leave no file behind.
"""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan"
FILES = [*ROOT.glob("*.py"), *ROOT.glob("drawing/*.py"), *ROOT.glob("loading/*.py")]
SOURCES = {
    x.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", "."): x for x in FILES
}
MAGIC = '''\
import importlib.abc
import importlib.util
import linecache
import sys

from IPython import get_ipython


class Cells(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from cells that begin with %%module."""

    sources = {}

    def find_spec(self, name, path=None, target=None):
        package = any(other.startswith(name + ".") for other in self.sources)
        return importlib.util.spec_from_loader(name, self, is_package=package) if name in self.sources else None

    def exec_module(self, module):
        module.__file__, source = f"{module.__name__}.py", self.sources[module.__name__]
        linecache.cache[f"<{module.__name__}>"] = len(source), None, source.splitlines(True), f"<{module.__name__}>"
        exec(compile(source, f"<{module.__name__}>", "exec"), vars(module))


sys.meta_path.insert(0, Cells())
get_ipython().register_magic_function(lambda name, text: Cells.sources.update({name: text}), "cell", "module")
'''


# ── What a script uses of the other modules ──


class Module:
    """A source file, cut into its top-level statements."""

    def __init__(self, name: str):
        self.name, self.lines = name, SOURCES[name].read_text().splitlines()
        body = ast.parse("\n".join(self.lines)).body
        self.doc, self.statements, self.needed = body[0], body[1:], set()
        self.owners = {}  # name -> the statements that make it
        for node in self.statements:
            for name in made(node):
                self.owners.setdefault(name, []).append(node)


def made(node: ast.stmt) -> list[str]:
    """The names that a top-level statement defines or changes."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if hasattr(node, "target") else []
    return [x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]


def uses(tree: ast.AST) -> set[tuple[str | None, str]]:
    """(None, name) for every name read in tree, (module, name) for what it takes of another of our modules."""
    dotted = [x for x in ast.walk(tree) if isinstance(x, ast.Attribute) and isinstance(x.value, ast.Name)]
    found = {(None, x.id) for x in ast.walk(tree) if isinstance(x, ast.Name)} | {(x.value.id, x.attr) for x in dotted}
    return {(module, name) for module, name in found if module is None or module in SOURCES}


def prune(roots: list[str]) -> dict[str, str]:
    """Modules that these scripts need -> their source, without what nobody uses."""
    modules, waiting = {}, []  # waiting: (module, name) that somebody uses

    def want(module, name):
        if module in SOURCES and module not in roots and (module, name) not in waiting:
            waiting.append((module, name))

    def follow(tree, inside):
        for module, name in uses(tree):
            want(module or inside, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                [want(node.module, alias.name) for alias in node.names if inside is None]
                [want(f"{node.module}.{alias.name}", None) for alias in node.names]
            elif isinstance(node, ast.Import):
                [want(alias.name, None) for alias in node.names]

    for root in roots:
        follow(ast.parse(SOURCES[root].read_text()), None)
    for module, name in waiting:  # grows while it is read
        if module not in modules:
            modules[module] = Module(module)
        module = modules[module]
        for node in module.owners.get(name, ()):
            if isinstance(node, ast.ImportFrom):
                want(node.module, name)
            elif node not in module.needed:
                follow(node, module.name)
            module.needed.add(node)
    names = {module: {name for owner, name in waiting if owner == module} for module in modules}
    return {name: text(module, names[name]) for name, module in sorted(modules.items())}


def text(module: Module, names: set[str]) -> str:
    """The needed statements of a module in their order, with the comments over them and the blank lines before."""
    lines, parts = module.lines, [*module.lines[: module.doc.end_lineno]]
    for node in module.statements:
        if node in module.needed:
            first = start = min([node, *getattr(node, "decorator_list", ())], key=lambda x: x.lineno).lineno - 1
            while lines[first - 1].startswith("# ") and not lines[first - 1].startswith("# ──"):
                first -= 1
            blank = first - len("\n".join(lines[:first]).rstrip().split("\n"))
            parts += [""] * max(blank, parts[-1] == lines[module.doc.end_lineno - 1]) + lines[first:start]
            if isinstance(node, ast.ImportFrom):
                parts.append(f"from {node.module} import {', '.join(x.name for x in node.names if x.name in names)}")
            else:
                parts += lines[start : node.end_lineno]
    return "\n".join(parts) + "\n"


# ── Notebooks ──


def cell(kind: str, source: str, **metadata) -> dict:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": "", "metadata": metadata, **code, "source": source.strip("\n").splitlines(True)}


def sections(name: str) -> list[tuple[str, str]]:
    """(heading, source) of each part of a script between its banners; imports and constants first, no main guard."""
    source = SOURCES[name].read_text().split('if __name__ == "__main__":')[0]
    source = source[source.index('"""', 3) + 3 :]  # without the docstring
    parts = re.split(r"^# ── (.+?) ─+$", source, flags=re.M)
    return [("Imports and choices", parts[0]), *zip(parts[1::2], parts[2::2])]


INSTALL = {
    True: "%pip install -q clip-anytorch ftfy regex  # OpenAI's CLIP; torch and the rest are there in Colab\n",
    False: "# Nothing to install: Colab has torch, torchvision, numpy, matplotlib and scipy\n",
}
ONE_LINE = """\
import common


def one_line(shell, kind, error, traceback, tb_offset=None):
    print(f"error: {error}", file=sys.stderr)


get_ipython().set_custom_exc((common.UserError,), one_line)  # what you can mend is one line, without a traceback
"""
TRAIN = """## Train

A checkpoint is kept every 30 seconds in `results/`: run the cell again to go on after an interruption. Add `"--fresh"`
to the list to start over, or other flags: `main(["--help"])` tells them."""
SHOW = """\
import contextlib
import io

from IPython.display import Image, display

with contextlib.redirect_stdout(io.StringIO()) as printed:
    main(["--dataset", "mnist", "--prompt", "a handwritten seven", "--n", "16"])
display(Image(printed.getvalue().strip()))
"""
SHOW_SAMPLES = """\
from IPython.display import Image, display

display(Image("results/mnist/a0_uncond/images/samples.png"))  # it takes no prompt: nothing can be asked of it
"""
TRAIN_ALL = "## Train all six\n\nWhat is complete is not done again; an interrupted run goes on where it stopped."
EACH = """\
import importlib

for name in "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan":
    importlib.import_module(name).main(["--dataset", "mnist"])
"""
REPORT = """\
from pathlib import Path

from IPython.display import HTML, display

display(HTML(Path("results/mnist/compare/report.html").read_text()))
"""
FOLDED = "What follows is plumbing, the same for all models: unfold it if you are curious, run it in any case."


def head(title: str, doc: str, modules: dict[str, str]) -> list[dict]:
    """The first cells of every notebook: title, installation, and, folded, the modules."""
    doc = f"```\n{doc}\n```\n\nThis notebook needs no other file. It was made by `python colab/build.py`."
    hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
    uses_clip = "tiny_clip" in modules
    cells = [cell("markdown", f"# {title}\n\n{doc}"), cell("code", INSTALL[uses_clip])]
    cells += [cell("markdown", f"## Plumbing (folded)\n\n{FOLDED}", id="plumbing"), cell("code", MAGIC, **hidden)]
    cells += [cell("code", f"%%module {name}\n{source}", **hidden) for name, source in modules.items()]
    return [*cells, cell("code", ONE_LINE, **hidden)]


def notebook(cells: list[dict]) -> str:
    for n, one in enumerate(cells):
        one["id"] = f"cell-{n}"
    facts = {"colab": {"collapsed_sections": ["plumbing"]}, "accelerator": "GPU", "language_info": {"name": "python"}}
    facts["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": facts, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False
    )


def of_model(name: str) -> str:
    doc = ast.get_docstring(ast.parse(SOURCES[name].read_text()))
    cells = head(f"{name}.py", doc, prune([name]))
    for heading, source in sections(name):
        cells += [cell("markdown", f"## {heading}"), cell("code", source)]
    cells += [cell("markdown", TRAIN), cell("code", 'main(["--dataset", "mnist"])')]
    cells += [cell("markdown", "## Draw"), cell("code", SHOW_SAMPLES if name == "a0_uncond" else SHOW)]
    return notebook(cells)


def of_comparison() -> str:
    scripts = [*MODELS, "evaluate", "compare"]
    whole = {name: SOURCES[name].read_text().split('\n\nif __name__ == "__main__":')[0] + "\n" for name in scripts}
    doc = ast.get_docstring(ast.parse(whole["compare"]))
    cells = head("All models side by side", doc, prune(scripts) | whole)
    cells += [cell("markdown", TRAIN_ALL), cell("code", EACH)]
    for script in ("evaluate", "compare"):
        cells += [cell("markdown", f"## {script.capitalize()}")]
        cells += [cell("code", f'import {script}\n\n{script}.main(["--dataset", "mnist"])')]
    return notebook([*cells, cell("markdown", "## The report"), cell("code", REPORT)])


def build() -> dict[Path, str]:
    """Path of every notebook -> its content."""
    made = {name: of_model(name) for name in MODELS} | {"compare": of_comparison()}
    return {ROOT / "colab" / f"{name}.ipynb": content + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for path, content in build().items():
        path.write_text(content)
        print(path.relative_to(ROOT))
