"""The scripts train the same weights and generate the same pixels as before, but for rounding.

golden.json holds a number for each: whatever changes one of them changes the published numbers too.
tests/long.py tries all scripts with 20 steps. After a change that is meant to change them:
    cd tests && python test_golden.py
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from numpy.linalg import norm

CLOSE = 1e-4  # processors differ in sines and cosines even so
GOLDEN = json.loads((ROOT / "tests" / "golden.json").read_text())
# One thread, and none of what only some processors can do: they round differently.
EXACT = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41",
         "MKL_CBWR": "COMPATIBLE", "PYTHONPATH": str(ROOT)}  # fmt: skip
CODE = """
import importlib, sys, torch
torch.cpu.get_capabilities = dict  # no bfloat16
import common
from kit import samples
def only_samples(run, draw, *_):
    run.begin()
    samples.save_samples(run, draw)
    run.lock.release()
common.save_outputs = only_samples  # the pictures would take as long as the rest
for script in sys.argv[1:]:
    flags = ["--train-steps", "{steps}", "--samples", "20"]
    clip = [] if script in ("a0_uncond", "a1_cond") else ["--clip", "tiny"]
    importlib.import_module(script).main([*flags, *clip])
"""


def projection(values) -> float:
    """On a random direction, of values scaled to length 1: it moves by about as much as they do."""
    values = np.concatenate([np.ravel(x).astype(float) for x in values])
    return float(values @ np.random.default_rng(0).standard_normal(len(values)) / norm(values))


def train(folder: Path, scripts, steps: int) -> None:
    line = [sys.executable, "-c", CODE.format(steps=steps), *scripts]
    done = subprocess.run(line, cwd=folder, env=os.environ | EXACT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def numbers(folder: Path, script: str) -> dict[str, float]:
    """Of the weights and of each group of samples of this script's run in folder."""
    run, found = folder / "results" / "mnist" / script, {}
    checkpoint = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    for name in {"model", "discriminator"} & {*checkpoint}:
        found[name] = projection(checkpoint[name][x].numpy() for x in sorted(checkpoint[name]))
    with np.load(run / "images" / "samples.npz") as table:
        images, kinds, scales = (table[name] for name in ("images", "kind", "scale"))
    for kind, scale in {*zip(kinds.tolist(), scales.tolist())}:
        pixels = images[(kinds == kind) & (scales == scale)]
        found[f"{kind}, scale {scale}"] = projection(pixels)
    return dict(sorted(found.items()))


def differences(folder: Path, script: str, steps: int) -> list[str]:
    """What of this script's run in folder is not as it was."""
    known, found = GOLDEN[f"{steps} steps"][script], numbers(folder, script)
    assert known.keys() == found.keys()
    return [name for name in known if abs(found[name] - known[name]) > CLOSE]


@pytest.mark.skipif(
    torch.__version__.split("+")[0] != GOLDEN["torch"] or platform.machine() != "x86_64",
    reason=f"golden.json is of torch {GOLDEN['torch']} on x86_64; others may round differently",
)
def test_weights_and_samples_are_the_same(tmp_path):
    train(tmp_path, GOLDEN["4 steps"], 4)
    assert [differences(tmp_path, script, 4) for script in GOLDEN["4 steps"]] == [[], []]


if __name__ == "__main__":
    for steps in ("20 steps", "4 steps"):
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder), GOLDEN[steps], int(steps.split()[0]))
            GOLDEN[steps] = {script: numbers(Path(folder), script) for script in GOLDEN[steps]}
    GOLDEN["torch"] = torch.__version__.split("+")[0]
    (ROOT / "tests" / "golden.json").write_text(json.dumps(GOLDEN, indent=1) + "\n")
