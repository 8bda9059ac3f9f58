"""The promises about the code itself: budgets, imports, words that must not appear."""

import ast
import sys

import pytest

import common

SCRIPTS = sorted(path.name for path in common.ROOT.glob("*.py"))
BUDGETS = {"common.py": 350}
ALLOWED = {"torch", "torchvision", "clip", "numpy", "matplotlib", "scipy", "tqdm", "packaging", "ftfy", "regex"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_line_budgets(name):
    assert len((common.ROOT / name).read_text().splitlines()) <= BUDGETS.get(name, 250)


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_allowed_packages(name):
    allowed = ALLOWED | set(sys.stdlib_module_names) | {script.removesuffix(".py") for script in SCRIPTS}
    for node in ast.walk(ast.parse((common.ROOT / name).read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {module.split(".")[0] for module in modules} <= allowed


@pytest.mark.parametrize("name", [script for script in SCRIPTS if script[0] == "a"])
def test_sections_stand_in_one_order(name):
    banners = [line.split()[2] for line in (common.ROOT / name).read_text().splitlines() if line.startswith("# ──")]
    assert banners == ["Network", "Conditioning", "Loss", "Sampler", "Training", "Main"]


def test_help_names_every_flag(cli, tmp_path):
    text = cli("a4_full.py --help", tmp_path).stdout
    flags = "dataset train-steps batch-size lr seed device clip sample-steps eta samples data-dir out fresh scales"
    flags += " prompt n scale"
    assert all(f"--{flag}" in text for flag in flags.split())
