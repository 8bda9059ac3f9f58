"""The promises about the code itself: which way imports run, twins, budgets of differences."""

import ast
import re
import subprocess
import sys

import pytest

from kit import base

ROOT = base.ROOT
LADDER = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full"
SCRIPTS = *LADDER, "cgan", "cvae"
FILES = [*ROOT.glob("*.py"), *ROOT.glob("kit/*.py")]
TREES = {
    path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", "."): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in FILES
}
FLOORS = [  # from the ground up; a module imports from floors below its own, or acyclically beside
    {"kit.base", "kit.__init__"},
    {"kit.datasets", "kit.attributes", "kit.captions", "kit.folder", "kit.flags", "kit.muon"}
    | {"kit.processes"},
    {"kit.downloads", "kit.locks"},
    {"kit.images", "kit.quickdraw", "kit.clip"},
    {"kit.tiny_clip", "kit.judge", "kit.run"},
    {"kit.encoders", "kit.samples", "kit.pictures", "kit.metrics"},
    {"common"},
    {*SCRIPTS, "evaluate"},
    {"compare"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
# Of PyPI; matplotlib and torch among them are what the issue of a slow start is about.
PACKAGES = {"torch", "torchvision", "clip", "numpy", "pandas", "matplotlib", "jinja2", "tqdm"}
PACKAGES |= {"packaging", "scipy", "PIL", "filelock"}


def imported(tree):
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


GRAPH = {name: {x for x in imported(tree) if x in TREES} for name, tree in TREES.items()}


def reach(name, seen=None):
    """All of ours that a module can load, itself included."""
    seen = set() if seen is None else seen
    if name not in seen:
        seen.add(name)
        for other in GRAPH[name]:
            reach(other, seen)
    return seen


def test_every_module_has_a_floor():
    assert set(FLOOR) == set(TREES)


@pytest.mark.parametrize("name", TREES)
def test_imports_run_down_the_floors_and_never_in_a_circle(name):
    assert {other for other in GRAPH[name] if FLOOR[other] > FLOOR[name]} == set()
    assert not any(name in reach(other) for other in GRAPH[name]), "a circle"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_knows_the_standard_library_torch_and_common(name):
    outside = {x.split(".")[0] for x in imported(TREES[name])} - set(sys.stdlib_module_names)
    assert outside == {"torch", "common"} and GRAPH[name] == {"common"}


def test_a_script_loads_nothing_that_it_does_not_use():
    """What reads CLIP, QuickDraw and tables is loaded where it is needed."""
    code = "import sys, a0_uncond; print(*[x for x in sys.modules if x.startswith('kit.')], *"
    code += "{'clip', 'pandas', 'torchvision', 'evaluate'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    names = "base datasets captions flags images run samples pictures encoders muon processes"
    names += " downloads locks"
    assert {*done.stdout.split()} == {f"kit.{name}" for name in names.split()}, done.stderr


def test_only_allowed_packages_and_each_of_them_is_required():
    outside = {x.split(".")[0] for tree in TREES.values() for x in imported(tree)}
    outside -= set(sys.stdlib_module_names) | {"kit", "common", "evaluate"}
    assert outside == PACKAGES
    lines = (ROOT / "requirements.txt").read_text().split()
    required = {re.match(r"[\w-]+", line)[0] for line in lines}
    of_clip = {"ftfy", "regex"}  # which OpenAI's package imports
    assert required == PACKAGES - {"clip", "PIL"} | {"clip-anytorch", "pillow"} | of_clip


@pytest.mark.parametrize("name", SCRIPTS)
def test_common_has_what_a_script_takes_from_it(name):
    """A reader who sees a script and common.py can say where each thing comes from."""
    text = (ROOT / "common.py").read_text(encoding="utf-8")
    used = {
        node.attr
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "common"
    }
    assert len(used) >= 7
    for word in used:
        one_line = rf"(?m)^from kit\.\w+ import {word}  # .+|^def {word}\(|^{word} = "
        assert re.search(one_line, text), word


def test_no_rule_goes_by_a_scripts_name():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                texts = {x.value for x in ast.walk(node) if isinstance(x, ast.Constant)}
                assert not texts & {*SCRIPTS, "cvae"}, f"{name}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_sections_stand_in_one_order(name):
    lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()
    banners = [line.split()[2] for line in lines if line.startswith("# ──")]
    order = "Choices Network Conditioning Loss Sampler Training Main"
    assert banners == order.split()


@pytest.mark.parametrize(("one", "other"), list(zip(LADDER, LADDER[1:])))
def test_neighbours_differ_by_little(one, other):
    """As `diff` prints it: every line with < or > counts."""
    texts = [str(ROOT / f"{name}.py") for name in (one, other)]
    done = subprocess.run(["diff", *texts], capture_output=True, text=True)
    changed = re.findall(r"^[<>]", done.stdout, re.M)
    assert 0 < len(changed) <= {"a1_cond": 60, "a4_full": 50}.get(other, 40)


def parts(name):
    """Every field, function and method of a script -> its syntax tree as text, docs and all."""
    found = {}
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.ClassDef):
            for x in node.body:
                if isinstance(x, ast.FunctionDef):
                    found[f"{node.name}.{x.name}"] = ast.dump(x)
                elif isinstance(x, ast.AnnAssign):
                    found[f"{node.name}.{x.target.id}"] = ast.dump(x)
    return found


# What a rung may change; everything else that two neighbours both have must be the same.
IDEA = {
    "a1_cond": {"UNet.__init__", "UNet.forward", "train", "main"},
    "a2_clip": {"main"},
    "a3_cfg": {"train", "main"},
    "a4_full": {"UNet.__init__", "UNet.forward"},
}
BAG = {"BagOfWords.encode_text"}
ADDED = {
    "a1_cond": {*BAG, "Config.prompt", "Config.n"},
    "a2_clip": {"Config.clip"},
    "a3_cfg": {"guided_v", *(f"Config.{x}" for x in ("p_uncond", "scale", "scales", "interval"))},
    "a4_full": {"Attention.__init__", "Attention.forward"},
}


@pytest.mark.parametrize(("one", "other"), list(zip(LADDER, LADDER[1:])))
def test_twins_are_equal_as_syntax_trees(one, other):
    old, new = parts(one), parts(other)
    assert {name for name in old.keys() & new.keys() if old[name] != new[name]} == IDEA[other]
    assert set(new) - set(old) == ADDED[other]
    assert set(old) - set(new) == (BAG if other == "a2_clip" else set())


def test_the_vae_shares_what_makes_sense_for_a_vae():
    vae, a2 = parts("cvae"), parts("a2_clip")
    same = {name for name in vae.keys() & a2.keys() if vae[name] == a2[name]}
    shared = {"train_steps", "batch_size", "lr", "muon_lr", "ema_decay"}
    shared |= {"widths", "prompt", "n", "clip"}
    assert same == {f"Config.{x}" for x in shared} | {"ResBlock.__init__", "ResBlock.forward"}


def test_the_gan_shares_what_makes_sense_for_a_gan():
    gan, a2 = parts("cgan"), parts("a2_clip")
    same = {name for name in gan.keys() & a2.keys() if gan[name] == a2[name]}
    shared = {"widths", "ema_decay", "prompt", "n", "clip"}
    assert same == {f"Config.{x}" for x in shared} | {"ResBlock.__init__", "ResBlock.forward"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_scripts_docstring_tells_the_idea_and_the_result(name):
    text = ast.get_docstring(TREES[name])
    heads = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z][a-z]+  ", line)]
    assert heads == ["Idea", "Changed", "Papers", "Commands", "Result"]
    assert f"python {name}.py --dataset mnist" in text
