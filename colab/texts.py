"""What stands in every notebook, whatever the script."""

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
INSTALL = {
    True: "# OpenAI's CLIP; torch and the rest are there in Colab\n%pip install -q clip-anytorch ftfy regex\n",
    False: "# Nothing to install: Colab has torch, torchvision, numpy, matplotlib and scipy\n",
}
ONE_LINE = """\
import common


def one_line(shell, kind, error, traceback, tb_offset=None):
    print(f"error: {error}", file=sys.stderr)


get_ipython().set_custom_exc((common.UserError,), one_line)  # what you can mend is one line, without a traceback
"""
TRAIN = """## Train

A checkpoint is kept every 30 seconds in `results/`, where the pictures will be too: after an interruption run the cell
again, after a restart run all. Add `"--fresh"` to the list to start over, `"--out"` and a folder of your Drive to keep
it when the machine goes, or other flags: `main(["--help"])` tells them (and ends in SystemExit 0: no error)."""
DRAW = """## Draw

Change the prompt. For more guidance add `"--scale", "3"` to the list, for other sevens `"--seed", "1"`."""
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
NEEDS = """This notebook needs no other file, but internet: it fetches MNIST and OpenAI's CLIP (350 MB, without a
progress bar), so its numbers will differ from those above. Training a model takes a minute or two on a T4 (an
estimate). It was made by `python colab/build.py` in the script's repository, whose README explains the mathematics."""
FOLDED = "What follows is plumbing, the same for all models: unfold it if you are curious, run it in any case."
