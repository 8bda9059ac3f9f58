"""Seconds of training, sampling and --prompt on this machine. No test.

python tests/benchmark.py                                   every script in a few steps; 4 minutes
python tests/benchmark.py --scripts a4_full --steps 4600 --samples 2000     the main job
python tests/benchmark.py --write                           rows into docs/results/performance.csv

It prints a table. Run nothing else meanwhile: a machine's speed changes by 15 % within minutes, so
compare only numbers of one call. The runs are in results/benchmark.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pandas as pd
import tyro
from conftest import ROOT
from study import RESULTS, SEVEN, hardware

from kit.files import save_table

OUT = Path("results/benchmark")
PROMPT = ["a4_full.py", "--prompt", "a handwritten seven", "--n", "16"]


def seconds(words: list[str]) -> float:
    """How long a command takes, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(script: str, steps: int, samples: int) -> list[tuple]:
    """-> rows: metric, condition, value, unit."""
    folder = ROOT / OUT / "mnist" / script
    shutil.rmtree(folder, ignore_errors=True)
    flags = ["--out", str(OUT), "--train-steps", str(steps), "--samples", str(samples)]
    total = seconds([f"{script}.py", *flags])
    run = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    costs, curve = (pd.read_csv(folder / "metrics" / f"{x}.csv") for x in ("performance", "loss"))
    bfloat16 = run["bfloat16"] and script != "cgan"  # whose gradients of gradients are float32
    speed = curve["images_per_second"][1:].median()  # the first row warms up
    rows = [("training", "bfloat16" if bfloat16 else "float32", speed, "images/s")]
    for scale, speed in zip(costs["scale"], costs["sample_images_per_second"]):
        metric = "guided" if scale > 1 else "sampling"
        rows.append((metric, f"scale {scale:g}", speed, "images/s"))
    rows.append(("time of training", f"{steps} steps", costs["train_seconds"].iloc[-1], "s"))
    what = f"{steps} steps, {samples} images a scale"
    return [*rows, ("time of the command", what, total, "s")]


def main(
    scripts: tuple[str, ...] = SEVEN, steps: int = 120, samples: int = 300, write: bool = False
) -> None:
    """samples: images at each guidance scale. write: replace rows of performance.csv."""
    rows = [(x, *row) for x in scripts for row in measure(x, steps, samples)]
    times = [seconds(PROMPT) for _ in range(4)]  # the first one warms up
    what = "from the start of a --prompt command to its end, 16 images"
    rows.append((what, "time", "", statistics.median(times[1:]), "s"))
    table = pd.DataFrame(rows, columns="what metric condition value unit".split())
    table["value"] = table["value"].map("{:.4g}".format)
    print(table.to_markdown(index=False, disable_numparse=True))
    if write:
        command = f"tests/benchmark.py --steps {steps} --samples {samples}"
        facts = {"how": "measured", "hardware": hardware(), "date": str(date.today())}
        path = RESULTS / "performance.csv"
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = pd.concat([old, table.assign(**facts, command=command)]).fillna("")
        save_table(path, table.drop_duplicates([*old.columns[:4]], keep="last"))


if __name__ == "__main__":
    tyro.cli(main)
