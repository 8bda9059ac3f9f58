"""Do other judges agree with the shipped one? No test: run it after the study, or another ladder.

python tests/bench_judges.py --out results/study/mnist/seed0

The same samples and the same reference under the shipped judge, one trained with another seed, and
one of another architecture -> docs/results/judges.csv. It takes MNIST's own files in data/MNIST/raw
and ten minutes.
"""

import numpy as np
import pandas as pd
from conftest import ROOT
from torch import nn

import evaluate
from kit import judge
from kit.files import save_table
from kit.processes import pick_device
from kit.samples import load_samples

STEPS = 6000  # as the shipped one


class Deep(judge.Judge):
    """Five convolutions of 3 x 3 at full resolution first, 128 features by a global maximum."""

    def __init__(self, classes: int):
        nn.Sequential.__init__(self)
        layers = []
        for c_in, c_out in ((1, 32), (32, 32), (32, 64), (64, 128), (128, 128)):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
        layers.insert(9, nn.MaxPool2d(2))  # after 64 channels
        layers.insert(3, nn.MaxPool2d(2))  # after the first 32
        layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        self.append(nn.Sequential(*layers)).append(nn.Linear(128, classes))


def rows_of(config: evaluate.Config, runs: dict) -> pd.DataFrame:
    """The numbers that depend on the judge, a row for each group of samples, real images last."""
    evaluator, groups, rows = evaluate.Evaluator(config), [], []
    for folder, run in runs.items():
        samples, head = load_samples(folder / "images" / "samples.npz"), {"model": folder.name}
        table = pd.DataFrame({name: samples[name] for name in ("kind", "scale")})
        table = table[table["kind"] != "words"]
        for (kind, scale), group in table.groupby(["kind", "scale"], sort=False):
            facts = {**head, "kind": kind, "scale": scale, "seed": run["seed"]}
            groups.append((facts, samples["images"][group.index], samples["labels"][group.index]))
    groups.append(({"model": "real images"}, *(array[:2000] for array in evaluator.real[:2])))
    for facts, pixels, labels in groups:
        features, read = evaluator.see(pixels)
        right = (read == labels).mean() if labels.min() >= 0 else np.nan
        row = {**facts, "n": len(read), **evaluator.distances(features), "accuracy": right}
        rows.append(row)
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> None:
    config, tables = evaluate.Config.parse(argv), []
    runs = evaluate.find_runs(config)
    judges = {"shipped": (judge.Judge, 0), "seed 1": (judge.Judge, 1), "deep": (Deep, 0)}
    for name, (network, seed) in judges.items():
        judge.Judge = network
        if name != "shipped":
            judge.SHIPPED = config.data_dir / "judge" / f"bench_{name.replace(' ', '_')}.pt"
        if not judge.SHIPPED.exists():
            judge.make(config, judge.SHIPPED, pick_device(config.device), STEPS, seed)
        table = rows_of(config, runs).assign(judge=name)
        a2 = table.query("model == 'a2_clip' and kind == 'trained'")[["fid", "kid"]].mean()
        times = {f"{x}_of_a2": table[x] / a2[x] for x in a2.index}
        tables.append(table.assign(**times))
    save_table(ROOT / "docs" / "results" / "judges.csv", pd.concat(tables), "%.4g")


if __name__ == "__main__":
    main()
