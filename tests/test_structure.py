"""The promises about the code itself: budgets, imports, words that must not appear."""

import ast
import re
import subprocess
import sys

import pytest

import common

FOLDERS = "drawing", "loading", "colab"
SCRIPTS = [str(x.relative_to(common.ROOT)) for x in sorted(common.ROOT.glob("*.py"))]
SCRIPTS += [
    str(x.relative_to(common.ROOT))
    for name in FOLDERS
    for x in sorted((common.ROOT / name).glob("*.py"))
]
LADDER = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full"
BUDGETS = {"common.py": 350}
ALLOWED = {
    "torch",
    "torchvision",
    "clip",
    "numpy",
    "matplotlib",
    "scipy",
    "tqdm",
    "packaging",
    "ftfy",
    "regex",
    "jinja2",
    *FOLDERS,
    "texts",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_line_budgets(name):
    assert len((common.ROOT / name).read_text().splitlines()) <= BUDGETS.get(name, 250)


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_allowed_packages(name):
    allowed = (
        ALLOWED | set(sys.stdlib_module_names) | {script.removesuffix(".py") for script in SCRIPTS}
    )
    for node in ast.walk(ast.parse((common.ROOT / name).read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {module.split(".")[0] for module in modules} <= allowed


@pytest.mark.parametrize("name", [*LADDER, "cgan"])
def test_sections_stand_in_one_order(name):
    lines = (common.ROOT / f"{name}.py").read_text().splitlines()
    banners = [line.split()[2] for line in lines if line.startswith("# ──")]
    assert banners == ["Network", "Conditioning", "Loss", "Sampler", "Training", "Main"]
    assert len({line for line in lines if line.startswith("# ──") and len(line) != 120}) == 0


@pytest.mark.parametrize(("one", "other"), list(zip(LADDER, LADDER[1:])))
def test_neighbours_differ_by_little(one, other):
    """As `diff` prints it: every line with < or > counts."""
    texts = [str(common.ROOT / f"{name}.py") for name in (one, other)]
    changed = re.findall(
        r"^[<>]", subprocess.run(["diff", *texts], capture_output=True, text=True).stdout, re.M
    )
    assert 0 < len(changed) <= {"a1_cond": 60, "a4_full": 50}.get(other, 40)


def parts(name):
    """Every constant, function, class and method of a script -> its syntax tree as text, docstrings and all."""
    found = {}
    for node in ast.parse((common.ROOT / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.dump(node)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{x.name}": ast.dump(x)
                for x in node.body
                if isinstance(x, ast.FunctionDef)
            }
    return found


# What a rung may change; everything else that two neighbours both have must be the same.
IDEA = {
    "a1_cond": {"UNet.__init__", "UNet.forward", "train", "main"},
    "a2_clip": {"main"},
    "a3_cfg": {"UNet.__init__", "train", "main"},
    "a4_full": {"UNet.__init__", "UNet.forward", "main"},
}


@pytest.mark.parametrize(("one", "other"), list(zip(LADDER, LADDER[1:])))
def test_twins_are_equal_as_syntax_trees(one, other):
    old, new = parts(one), parts(other)
    assert {name for name in old.keys() & new.keys() if old[name] != new[name]} == IDEA[other]
    gone, come = set(old) - set(new), set(new) - set(old)
    assert (gone, come) == {
        "a1_cond": (set(), {"BagOfWords.__init__", "BagOfWords.encode_text"}),
        "a2_clip": ({"BagOfWords.__init__", "BagOfWords.encode_text"}, set()),
        "a3_cfg": (set(), {"P_UNCOND", "guided_v"}),
        "a4_full": (set(), {"Attention.__init__", "Attention.forward"}),
    }[other]


def test_the_gan_shares_what_makes_sense_for_a_gan():
    gan, a2 = parts("cgan"), parts("a2_clip")
    same = {name for name in gan.keys() & a2.keys() if gan[name] == a2[name]}
    assert same == {"PATCH", "EMA_DECAY", "ResBlock.__init__", "ResBlock.forward"}


@pytest.mark.parametrize("name", [*LADDER, "cgan"])
def test_a_scripts_docstring_tells_the_idea_and_the_result(name):
    text = ast.get_docstring(ast.parse((common.ROOT / f"{name}.py").read_text()))
    heads = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z][a-z]+  ", line)]
    assert (
        heads == ["Idea", "Changed", "Papers", "Commands", "Result"]
        and f"python {name}.py --dataset mnist" in text
    )
