"""The promises about the code itself: its size, which way imports run, twins, differences."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT, ours

LADDER = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "a5_fast"
SCRIPTS = *LADDER, "cgan", "cvae"
ASIDE = {"minimal", "a5_fast", "demo"}  # not counted among all Python outside tests
FLOORS = [  # a module imports from lower floors, or beside it without a circle
    "kit.__init__ kit.files kit.words kit.attributes kit.muon kit.metrics",
    "kit.config kit.captions",
    "kit.data kit.folder kit.clip",
    "kit.tiny_clip kit.judge kit.run",
    *"kit.samples kit.pictures kit.figures common".split(),
    f"{' '.join(SCRIPTS)} evaluate",
    "compare",
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names.split()}

PATHS = {x.stem: x for x in ours("*.py") if x.parent == ROOT}
PATHS |= {f"kit.{x.stem}": x for x in ours("*.py") if x.parent == ROOT / "kit"}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
SIZES = {name: len(text.splitlines()) for name, text in TEXTS.items()}


def imported(tree):
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


GRAPH = {name: imported(tree) & {*TREES} for name, tree in TREES.items()}


def reach(name):
    """All of ours that a module can load, itself included."""
    found = [name]
    for module in found:  # which grows on the way
        found += GRAPH[module] - {*found}
    return {*found}


def test_all_python_has_at_most_4800_lines_and_its_tests_5000():
    outside = [x for x in ours("*.py") if x.parent != ROOT / "tests" and x.stem not in ASIDE]
    assert sum(len(x.read_text(encoding="utf-8").splitlines()) for x in outside) <= 4800
    paths = [x for x in ours("*.py") if x.parent == ROOT / "tests"]
    assert sum(len(x.read_text(encoding="utf-8").splitlines()) for x in paths) <= 5000


def test_modules_classes_functions_and_lines_are_short():
    found = [f"{name}: {n} lines" for name, n in SIZES.items() if "kit." in name and n > 230]
    most = {ast.FunctionDef: 40, ast.ClassDef: 150}
    for name, tree in TREES.items():
        for x in ast.walk(tree):
            if type(x) in most and x.end_lineno - x.lineno + 1 > most[type(x)]:
                found.append(f"{name}.{x.name}: {x.end_lineno - x.lineno + 1} lines")
        found += [f"{name}: {x}" for x in TEXTS[name].splitlines() if len(x) > 100]
    assert found == []


def test_imports_run_down_the_floors_and_never_in_a_circle():
    assert {*FLOOR} == {*TREES} - ASIDE | {"a5_fast"}, "every module has a floor"
    for name in FLOOR:
        assert not {other for other in GRAPH[name] if FLOOR[other] > FLOOR[name]}, name
        assert not any(name in reach(other) for other in GRAPH[name]), f"a circle: {name}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_torch_and_common_and_behind_it_stand_at_most_1700_lines(name):
    outside = {x.split(".")[0] for x in imported(TREES[name])} - {*sys.stdlib_module_names}
    assert outside == {"torch", "common"} and GRAPH[name] == {"common"}
    assert sum(SIZES[x] for x in reach(name) - {name}) <= 1700


def test_each_package_is_required_and_each_requirement_imported():
    outside = {x.split(".")[0] for name in FLOOR for x in imported(TREES[name])}
    outside -= {*sys.stdlib_module_names, "kit", "common", "evaluate"}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {re.match(r"[\w-]+", line)[0].lower() for line in lines if re.match(r"\w", line)}
    of_clip = {"clip-anytorch", "ftfy", "regex"}  # found by its name, not imported by it
    named = {"PIL": "pillow"}
    assert {named.get(x, x) for x in outside} - {"clip"} == required - of_clip - {"gradio"}


def test_no_shell_is_started_and_no_rule_goes_by_a_scripts_name():
    for name, tree in TREES.items():
        assert not re.search(r"shell=|os\.system|os\.popen", TEXTS[name]), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                texts = {x.value for x in ast.walk(node) if isinstance(x, ast.Constant)}
                assert not texts & {*SCRIPTS}, f"{name}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_sections_stand_in_one_order_after_a_docstring_with_the_result(name):
    banners = [x.split()[2] for x in TEXTS[name].splitlines() if x.startswith("# ──")]
    assert banners == "Choices Network Conditioning Loss Sampler Training Main".split()
    text = ast.get_docstring(TREES[name])
    heads = re.findall(r"(?m)^([A-Z][a-z]+)  ", text)
    assert heads == ["Idea", "Changed", "Papers", "Commands", "Result"]
    assert f"python {name}.py --dataset mnist" in text


def parts(name):
    """Every field, function and method of a script -> its syntax tree as text, docs and all."""
    found = {}
    for node in TREES[name].body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for x in inner:
            if isinstance(x, ast.FunctionDef):
                found[prefix + x.name] = ast.dump(x)
            elif isinstance(x, ast.AnnAssign):
                found[prefix + x.target.id] = ast.dump(x)
    return found


# What a rung may change; everything else that two neighbours both have must be the same.
IDEA = {
    "a1_cond": {"UNet.__init__", "UNet.forward", "train", "main"},
    "a2_clip": {"main"},
    "a3_cfg": {"train", "main"},
    "a4_full": {"UNet.__init__", "UNet.forward", "train", "main"},
    "a5_fast": {*"Config.train_steps Config.sample_steps Config.eta sample train main".split()},
}


@pytest.mark.parametrize(("one", "other"), [*zip(LADDER, LADDER[1:])])
def test_neighbours_differ_by_little_and_their_twins_are_equal_as_syntax_trees(one, other):
    """As `diff` prints it: every line with < or > counts."""
    command = ["diff", str(PATHS[one]), str(PATHS[other])]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    changed = re.findall(r"^[<>]", done.stdout, re.M)
    assert 0 < len(changed) <= {"a1_cond": 60, "a4_full": 70, "a5_fast": 80}.get(other, 40)
    old, new = parts(one), parts(other)
    assert {name for name in old.keys() & new.keys() if old[name] != new[name]} <= IDEA[other]
    assert len(old.keys() & new.keys()) >= 18
