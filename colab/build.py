"""Write the notebooks: one for each model, and one for the comparison, each of which needs no other file.

Command   python colab/build.py        after every change of a script
Cells     the script's sections under headings; before them, folded, what it uses of the modules beside it. Those cells
          begin with %%module, a magic that the notebook defines: they become modules and leave no file behind.
"""

import ast
import json
import re
from pathlib import Path

from texts import DRAW, EACH, FOLDED, INSTALL, MAGIC, NEEDS, ONE_LINE, REPORT, SHOW, SHOW_SAMPLES, TRAIN, TRAIN_ALL

ROOT = Path(__file__).resolve().parent.parent
MODELS = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan"
FILES = [*ROOT.glob("*.py"), *ROOT.glob("drawing/*.py"), *ROOT.glob("loading/*.py")]
SOURCES = {
    x.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", "."): x for x in FILES
}


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


def head(title: str, doc: str, modules: dict[str, str]) -> list[dict]:
    """The first cells of every notebook: title, installation, and, folded, the modules."""
    doc = f"```\n{doc}\n```\n\n{NEEDS}"
    hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
    uses_clip = "tiny_clip" in modules
    cells = [cell("markdown", f"# {title}\n\n{doc}"), cell("code", INSTALL[uses_clip])]
    cells += [cell("markdown", f"## Plumbing (folded)\n\n{FOLDED}", id="plumbing"), cell("code", MAGIC, **hidden)]
    cells += [cell("code", f"%%module {name}\n{source}", **hidden) for name, source in modules.items()]
    return [*cells, cell("code", f'{ONE_LINE}__doc__ = "{title}, in a notebook"  # of --help', **hidden)]


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
    cells += [cell("markdown", DRAW), cell("code", SHOW_SAMPLES if name == "a0_uncond" else SHOW)]
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
