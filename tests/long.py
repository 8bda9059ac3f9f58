"""Trials that take minutes. No test: run the ones whose code has changed.

python tests/long.py processes     two processes of one thread each against one: images/s of a4
python tests/long.py images        the same cost for each image with 5,000 and with 60,000 of them
python tests/long.py drawings      memory with 345 categories of 5,000 made-up drawings

Each prints what it measured, and fails where a promise is broken. They need the packages of the
tests (README).
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from conftest import ROOT

from kit import datasets

CODE = """
import common, sys, torch, a4_full
if {float32}: common.Run.half = lambda self: None
if {images}:
    pixels = torch.randint(256, ({images}, 28, 28), dtype=torch.uint8)
    data = pixels, torch.arange({images}) % 10, "made-up"
    import kit.run
    kit.run.load_dataset = lambda config, keep: data
common.cli(a4_full.main)
"""


def train(place: Path, steps: int, *flags: str, processes: int = 0, float32: bool = False,
          images: int = 0) -> dict[str, float]:  # fmt: skip
    """Run a4; processes: by torchrun, of one thread each. -> images/s, peak memory in MB."""
    file = place / "run.py"
    file.write_text(CODE.format(float32=float32, images=images))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if processes:
        env["OMP_NUM_THREADS"] = "1"
    line = [sys.executable, *(launch if processes > 1 else []), str(file), "--fresh"]
    line += f"--clip tiny --train-steps {steps} --scales 1 --samples 400".split()
    subprocess.run([*line, *flags], cwd=place, env=env, check=True, capture_output=True)
    (folder,) = place.glob("results/*/a4_full")
    with (folder / "metrics" / "loss.csv").open() as log:
        speeds = [float(row["images_per_second"]) for row in csv.DictReader(log)]
    with (folder / "metrics" / "performance.csv").open() as table:
        memory = float(next(csv.DictReader(table))["peak_memory_mb"])
    return {"images/s": statistics.median(speeds[1:]), "MB": memory}


def processes(place: Path) -> None:
    for float32 in (False, True):
        for batch in (64, 128, 256):
            flags, speeds = ("--batch-size", str(batch)), []
            for count in (1, 2):
                found = train(place, 16000 // batch, *flags, processes=count, float32=float32)
                speeds.append(found["images/s"])
            one, two = speeds
            kind = "float32" if float32 else "default"
            print(f"{kind}, batches of {batch}: {one:.0f} and {two:.0f} images/s: {two / one:.2f}")
            assert two > 1.3 * one


def images(place: Path) -> None:
    speeds = {5_000: [], 60_000: []}
    for _ in range(3):
        for n, found in speeds.items():
            found.append(train(place, 150, images=n)["images/s"])
    few, many = (statistics.median(found) for found in speeds.values())
    print(f"{few:.0f} images/s with 5,000 images, {many:.0f} with 60,000: {many / few:.3f}")
    assert many > 0.95 * few


def drawings(place: Path) -> None:
    """The bitmaps are noise, so that nothing is to be learned; tiny CLIP is trained on them too."""
    folder, rng = place / "data" / "quickdraw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = datasets.CATEGORIES.read_text(encoding="utf-8").splitlines()
    for name in names:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (5000, 784), np.uint8))
    flags = "--dataset", "quickdraw", "--per-class", "5000", "--classes", ",".join(names)
    memory = train(place, 60, *flags)
    print(f"345 classes of 5,000: {memory['MB']:.0f} MB, {memory['images/s']:.0f} images/s")
    assert memory["MB"] < 3000


if __name__ == "__main__":
    for name in sys.argv[1:] or ("processes", "images", "drawings"):
        with tempfile.TemporaryDirectory() as place:
            {"processes": processes, "images": images, "drawings": drawings}[name](Path(place))
