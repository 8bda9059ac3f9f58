"""Write the notebooks: one for each script and one for the comparison; each needs no other file.

Command   python colab/build.py        after every change of a script or of kit/; needs nbformat
"""

import ast
import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
INSTALL = """\
import os

%pip install -q clip-anytorch ftfy regex tabulate tyro joblib
os.makedirs("kit", exist_ok=True)"""
SHOW = """\
from glob import glob
from IPython.display import Image, display

{}for name in "{}".split():
    display(Image(max(glob(f"results/*/*/{{name}}*.png"), key=os.path.getmtime)))"""
PROMPT = 'main(["--dataset", "mnist", "--prompt", "a thick seven leaning left", "--n", "16"])\n'
REPORT = """\
from IPython.display import HTML, display
display(HTML(open("results/mnist/compare/report.html", encoding="utf-8").read()))"""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


NOTES = dict(re.findall(r"^## ([^\n]+)\n\n(.*?)(?=\n## |\Z)", read("colab/notes.md"), re.M | re.S))
MODELS = [x.stem for x in sorted(ROOT.glob("*.py")) if "(common.Config):" in read(x.name)]


def loaded(names: list[str]) -> list[str]:
    """Files of this repository -> these and all that they import, also inside functions."""
    found = [*names]
    for name in found:  # which grows on the way
        modules = re.findall(r"^ *from kit\.(\w+) import", read(name), re.M)
        listed = re.findall(r"^ *from kit import (.*)", read(name), re.M)
        files = [f"kit/{x}.py" for x in modules + re.findall(r"\w+", " ".join(listed))]
        files += [f"{x}.py" for x in re.findall(r"^import (common|evaluate)\b", read(name), re.M)]
        found += [x for x in dict.fromkeys(files) if x not in found]
    return found


def note(heading: str, name: str = "", more: str = ""):
    text = NOTES.get(f"{heading} ({name})", NOTES.get(heading, ""))
    return new_markdown_cell(f"## {heading}{more}\n\n{text}".strip())


def head(title: str, doc: str, files: list[str]) -> list:
    """The first cells of every notebook."""
    fields = re.sub(r"^(\w+)  +", r"\n**\1** ", doc, flags=re.M)
    intro = new_markdown_cell(f"# {title}\n\n{fields}\n\n{NOTES['Needs']}")
    hidden, lines, cells = {"jupyter": {"source_hidden": True}, "cellView": "form"}, 0, []
    for path in files:
        lines += (size := read(path).count("\n"))
        title = f"#@title {path}: {size} lines\n" * path.endswith("py")
        cells.append(new_code_cell(f"%%writefile {path}\n{title}{read(path)}", metadata=hidden))
    more = f": {lines:,} lines in {len(files)} files, folded"
    return [intro, new_code_cell(INSTALL), note("Plumbing", more=more), *cells]


def of_model(name: str) -> list:
    source = read(f"{name}.py").split('if __name__ == "__main__":')[0]
    files = loaded([f"{name}.py"])[1:] + ["kit/tiny_clip.py"] * ("    clip: " in source)
    doc = ast.get_docstring(ast.parse(source))
    first, *parts = re.split(r"^# ── (.+?) ─+$", source.split('"""', 2)[2], flags=re.M)
    names = f'__file__ = "{name}.py"  # names the folder of its results\n'
    names += f'__doc__ = "{doc.splitlines()[0]}"'
    cells = [*head(f"{name}.py", doc, sorted(files)), new_code_cell(names)]
    for heading, text in [("Imports", first), *zip(parts[::2], parts[1::2])]:
        cells += [note(heading, name), new_code_cell(text.strip("\n"))]
    shown = SHOW.format("", "images/samples images/denoising plots/loss")
    cells += [note("Train"), new_code_cell('main(["--dataset", "mnist"])'), new_code_cell(shown)]
    if "    prompt: " in source:
        cells += [note("Draw"), new_code_cell(SHOW.format(PROMPT, "images/prompt_"))]
    return cells


def of_comparison() -> list:
    files = loaded([f"{name}.py" for name in (*MODELS, "compare")])
    files += sorted(f"kit/{path.name}" for path in (ROOT / "kit").glob("report.*"))
    cells = head("All models side by side", ast.get_docstring(ast.parse(read("compare.py"))), files)
    runs = [f'import {x}\n\n{x}.main(["--dataset", "mnist"])' for x in (*MODELS, "compare")]
    cells += [note("Train"), *map(new_code_cell, runs)]
    return [*cells, note("The report"), new_code_cell(REPORT)]


def build() -> dict[Path, str]:
    """Path of every notebook -> its content."""
    notebooks = {name: of_model(name) for name in MODELS} | {"compare": of_comparison()}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"accelerator": "GPU", "kernelspec": kernel, "language_info": {"name": "python"}}
    contents = {}
    for name, cells in notebooks.items():
        for n, cell in enumerate(cells):
            cell["id"] = f"cell-{n}"  # else they are random
        notebook = new_notebook(cells=cells, metadata=metadata)
        contents[ROOT / "colab" / f"{name}.ipynb"] = nbformat.writes(notebook)
    return contents


if __name__ == "__main__":
    for path, content in build().items():
        path.write_bytes(content.encode())
        print(path.relative_to(ROOT))
