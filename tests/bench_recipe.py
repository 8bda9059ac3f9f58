"""What each change of the training recipe brought. No test: a run takes three minutes.

python tests/bench_recipe.py "as before" 0        one recipe, one seed; without these: all of them

Each recipe is a4_full.py with some lines replaced, trained on about as much arithmetic as 80,000
images of the network before, half of what a default run has; it appends a row to
docs/results/recipe.csv: what the judge says of 2,000 images at scale 1, and of 500 with held-out
phrasings at scale 2. A row that is there is not made again.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT, data_args

import evaluate
from kit import metrics
from kit.base import save_table
from kit.run import read_config
from kit.samples import load_samples

ROWS, SEEDS = ROOT / "docs" / "results" / "recipe.csv", range(3)
ADAMW = "torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.99), fused=True)"
# What stands in a4_full.py now, and what stood there before; the first is undone last.
CHANGES = {
    "Muon": {
        "common.Muon(model.parameters(), config.lr, config.muon_lr)": ADAMW,
        'group["peak"]': "config.lr",
    },
    "narrower, batches of 64": {
        "flag((32, 64)": "flag((48, 96)",
        'flag(64, "images': 'flag(32, "images',
    },
    "2.5 % of texts dropped": {"flag(0.025, ": "flag(0.1, "},
    "noisier": {"    u = 1.6 * u / (1 + 0.6 * u)\n": ""},
}
IMAGES = {"as before": 80_000, "Muon": 80_000}  # the others are half the arithmetic each
NARROW = 147_200


def recipes() -> dict[str, str]:
    """name -> the text of a4_full.py with this change and all before it, without those after it."""
    text, names = (ROOT / "a4_full.py").read_text(encoding="utf-8"), ["as before", *CHANGES]
    found = {names[-1]: text}
    for name, earlier in zip(reversed(names), reversed(names[:-1])):
        for new, old in CHANGES[name].items():
            assert text.count(new) == 1, f"{new} does not stand in a4_full.py"
            text = text.replace(new, old)
        found[earlier] = text
    return {name: found[name] for name in names}


def train(name: str, seed: int) -> Path:
    """-> the folder of the run."""
    place = Path("results") / "recipe" / name.replace(" ", "_").replace("%", "percent")
    place.mkdir(parents=True, exist_ok=True)
    script, text = place / "a4_full.py", recipes()[name]
    script.write_text(text, encoding="utf-8")
    batch = 32 if 'flag(32, "images' in text else 64
    steps = IMAGES.get(name, NARROW) // batch
    flags = f"--clip tiny --scales 1 --train-steps {steps} --seed {seed}"
    flags += f" --out {place / f'seed{seed}'}"
    command = [sys.executable, str(script), "--dataset", "mnist", *flags.split()]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return place / f"seed{seed}" / "mnist" / "a4_full"


def judged(folder: Path) -> dict[str, str]:
    """The judge's numbers of a run's three sample files."""
    evaluator = evaluate.Evaluator(data_args(device="cpu", clip="tiny", extractor="judge"))
    numbers = {}
    for what in ("w1.0", "heldout_w2.0"):
        pixels, labels, _ = load_samples(folder / "images" / f"samples_{what}.npz")
        features, read = evaluator.judge.see(pixels)
        numbers[f"accuracy_{what}"] = f"{(read == labels).mean():.4f}"
        if "heldout" not in what:
            spread = metrics.mse_diversity(pixels, labels)
            real = np.mean([evaluator.diversity[label] for label in spread])
            numbers[f"fid_{what}"] = f"{evaluator.distances(features)['fid']:.3f}"
            numbers[f"of_real_{what}"] = f"{np.mean([*spread.values()]) / real:.3f}"
    return numbers


def rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    name, seeds = (sys.argv + [None] * 2)[1], [*map(int, sys.argv[2:])] or SEEDS
    for recipe in [name] if name else recipes():
        for seed in seeds:
            if any((row["recipe"], row["seed"]) == (recipe, str(seed)) for row in rows()):
                continue
            folder = train(recipe, seed)
            config = read_config(folder)
            row = {"recipe": recipe, "seed": seed}
            row |= {x: config[x] for x in ("train_steps", "batch_size", "parameters")}
            row |= judged(folder)
            save_table(ROWS, [*rows(), row])  # read again: another process may have added one


if __name__ == "__main__":
    main()
