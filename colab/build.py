"""Write the notebooks: one for each script and one for the comparison; each needs no other file.

Command   python colab/build.py        after every change of a script or of kit/; needs nbformat
Cells     the script's sections; before them, folded, its modules as %%writefile cells
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
NEEDS = """This notebook needs no other file, but internet: it fetches MNIST and OpenAI's CLIP
(350 MB), so its numbers will differ from those above. The repository's docs explain the rest."""
FOLDED = """## Plumbing (folded)

Run it in any case. Each cell writes a file; if you change one, run it again and restart."""
TRAIN = "## Train\n\nAfter an interruption run the cell again, after a restart run all."
SHOW = """\
from glob import glob
from IPython.display import Image, display

{}display(Image(max(glob("results/*/*/images/{}*.png"), key=os.path.getmtime)))"""
PROMPT = 'main(["--dataset", "mnist", "--prompt", "a thick seven leaning left", "--n", "16"])\n'
REPORT = """\
from IPython.display import HTML, display
display(HTML(open("results/mnist/compare/report.html", encoding="utf-8").read()))"""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


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


def head(title: str, doc: str, files: list[str]) -> list:
    """The first cells of every notebook."""
    intro = new_markdown_cell(f"# {title}\n\n```\n{doc}\n```\n\n{NEEDS}")
    hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
    cells = [new_code_cell(f"%%writefile {x}\n{read(x)}", metadata=hidden) for x in files]
    return [intro, new_code_cell(INSTALL), new_markdown_cell(FOLDED), *cells]


def of_model(name: str) -> list:
    source = read(f"{name}.py").split('if __name__ == "__main__":')[0]
    files = loaded([f"{name}.py"])[1:] + ["kit/tiny_clip.py"] * ("    clip: " in source)
    doc = ast.get_docstring(ast.parse(source))
    first, *parts = re.split(r"^# ── (.+?) ─+$", source.split('"""', 2)[2], flags=re.M)
    names = f'__file__ = "{name}.py"  # names the folder of its results\n'
    names += f'__doc__ = "{doc.splitlines()[0]}"'
    cells = [*head(f"{name}.py", doc, sorted(files)), new_code_cell(names)]
    for heading, text in [("Imports", first), *zip(parts[::2], parts[1::2])]:
        cells += [new_markdown_cell(f"## {heading}"), new_code_cell(text.strip("\n"))]
    cells += [new_markdown_cell(TRAIN), new_code_cell('main(["--dataset", "mnist"])')]
    cells.append(new_markdown_cell('## Draw\n\nChange the prompt, or add `"--seed", "1"`.'))
    shown = (PROMPT, "prompt_") if "    prompt: " in source else ("", "samples")
    return [*cells, new_code_cell(SHOW.format(*shown))]


def of_comparison() -> list:
    files = loaded([f"{name}.py" for name in (*MODELS, "compare")])
    files += sorted(f"kit/{path.name}" for path in (ROOT / "kit").glob("report.*"))
    cells = head("All models side by side", ast.get_docstring(ast.parse(read("compare.py"))), files)
    runs = [f'import {x}\n\n{x}.main(["--dataset", "mnist"])' for x in (*MODELS, "compare")]
    cells += [new_markdown_cell(TRAIN), *map(new_code_cell, runs)]
    return [*cells, new_markdown_cell("## The report"), new_code_cell(REPORT)]


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
