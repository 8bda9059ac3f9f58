"""Trials that take minutes. No test: run the ones whose code has changed.

python tests/long.py processes     two processes of one thread each against one: images/s of a4
python tests/long.py images        the same cost for each image with 5,000 and with 60,000 of them
python tests/long.py drawings      memory with 345 categories of 5,000 made-up drawings
python tests/long.py kills         SIGKILL at 24 moments by chance, while it trains, draws, measures
python tests/long.py flags         400 generated command lines in one process, ten as processes

Each prints what it measured, and fails where a promise is broken. They need the packages of the
tests (README).
"""

import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import test_fuzz
from conftest import ROOT

from kit import base, datasets

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


DEAD = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
RUN = "--clip tiny --train-steps 600 --batch-size 16 --samples 100 --sample-steps 3 --scales 1,2"
KILLS = 24
OFTEN = "import common, sys, {0}; common.Run.SAVE_EVERY = 1; common.cli({0}.main)"


def kills(place: Path) -> None:
    """Training saves every second here. What is left at the end is compared with a run that nobody
    has disturbed: samples and checkpoint's weights byte by byte, the curve row by row.
    """
    env, rng = os.environ | DEAD | {"PYTHONPATH": str(ROOT)}, random.Random(0)

    def start(folder: Path, script: str, flags: str) -> subprocess.Popen:
        line = [sys.executable, "-c", OFTEN.format(script), *flags.split()]
        return subprocess.Popen(line, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)

    whole, killed = place / "whole", place / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    begin = time.monotonic()
    assert start(whole, "a4_full", RUN).wait() == 0
    seconds, died, moments = time.monotonic() - begin, 0, Counter()
    run, other = (folder / "results" / "mnist" / "a4_full" for folder in (killed, whole))
    measure = "--clip tiny --extractor judge"
    while died < KILLS:
        if died and not died % 8:  # it is complete: begin anew with the next seed of the dice
            subprocess.run(["rm", "-rf", str(run)], check=True)
        script, flags = ("a4_full", RUN) if died % 4 < 3 else ("evaluate", measure)
        if script == "evaluate" and not list(run.glob("images/samples*.npz")):
            script, flags = "a4_full", RUN
        process = start(killed, script, flags)
        try:
            error = process.communicate(timeout=rng.uniform(2, seconds * 0.8))[1]
            assert process.returncode in (0, 2) and "Traceback" not in error, error
            if process.returncode == 0:
                moments[f"{script} ended before"] += 1
                subprocess.run(["rm", "-rf", str(run / "images")], check=True)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            died += 1
            state = "before training" if not (run / "checkpoints").exists() else "training"
            state = "drawing" if (run / "images").exists() else state
            moments[state if script == "a4_full" else "measuring"] += 1
    process = start(killed, "a4_full", RUN)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert start(killed, "evaluate", measure).wait() == 0
    assert start(killed, "compare", measure).wait() == 0
    for path in other.glob("images/*.npz"):
        assert (run / "images" / path.name).read_bytes() == path.read_bytes(), path.name
    curves = []
    for folder in (run, other):
        with (folder / "metrics" / "loss.csv").open() as file:
            curves.append([int(row["step"]) for row in csv.DictReader(file)])
    for steps in curves:  # a row more where 20 steps took longer than 30 s
        assert steps == sorted({*steps}) and {*steps} >= {*range(20, 601, 20)}, steps
    states = [
        base.load_tensors(folder / "checkpoints" / "last.pt")["ema"] for folder in (run, other)
    ]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    print(f"{died} kills ({dict(moments)}): samples, curve and weights as if nobody had")


def flags(place: Path) -> None:
    place = place / "place"
    place.mkdir()
    env = os.environ | DEAD | {"HOME": str(place.parent / "home"), "no_proxy": ""}
    ended = test_fuzz.fuzz(place, env, 400)
    print(f"400 command lines: {ended[0]} with a result, {ended[2]} with one line, exit code 2")
    lines = ["a4_full.py --scale nan --prompt 7", "a1_cond.py --train-steps 1 --samples 2 --out a",
             "a0_uncond.py --help", "evaluate.py a9", "compare.py --out /dev/null",
             "cgan.py --batch-size 0", "a3_cfg.py --scales 1,,2", "a2_clip.py --dataset .",
             "-m kit.tiny_clip --out .", "-m kit.judge --train-steps x"]  # fmt: skip
    for line in lines:
        first, *others = line.split()
        script = [first, *others] if first == "-m" else [str(ROOT / first), *others]
        environment = env | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *script], cwd=place, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        assert done.returncode in (0, 2) and len(errors) == (done.returncode == 2), (line, done)
    print(f"{len(lines)} as processes of their own: the same")


TRIALS = {"processes": processes, "images": images, "drawings": drawings, "kills": kills}
TRIALS["flags"] = flags

if __name__ == "__main__":
    for name in sys.argv[1:] or TRIALS:
        with tempfile.TemporaryDirectory() as place:
            TRIALS[name](Path(place))
