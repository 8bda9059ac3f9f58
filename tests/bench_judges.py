"""Do other judges agree with the shipped one? No test: run it after the study, or another ladder.

python tests/bench_judges.py --out results/study/mnist/seed0

The same sample files and the same reference under the shipped judge, one trained with another seed,
and one of another architecture -> docs/results/judges.csv. It takes MNIST's own files in
data/MNIST/raw and ten minutes.
"""

import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate  # noqa: E402
from kit import judge  # noqa: E402
from kit.base import ROOT, cli, pick_device, save_table  # noqa: E402
from kit.run import read_config  # noqa: E402
from kit.samples import load_samples  # noqa: E402

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


def rows(config: evaluate.Config, folders: list[Path]) -> list[dict]:
    """The numbers that depend on the judge, a row for each sample file, real images last."""
    evaluator, found = evaluate.Evaluator(config), []
    real = {name: array[:2000] for name, array in evaluator.real.items()}
    looks = []
    for folder in folders:
        run = read_config(folder)
        for path in evaluate.sample_paths(folder):
            arrays = dict(zip(("pixels", "labels", "prompts"), load_samples(path)))
            phrasings = "held out" if "heldout" in path.name else "trained"
            where = evaluate.scale_and_guidance(path, run)
            head = {"model": folder.name, "phrasings": phrasings, **where, "seed": run["seed"]}
            looks.append((head, evaluator.look(arrays, None)))
    for head, look in [*looks, ({"model": "real images"}, evaluator.look(real, None))]:
        row = {**head, "n": len(look["labels"]), **evaluator.distances(look["features"])}
        if look["labels"].min() >= 0:
            row["accuracy"] = (look["read"] == look["labels"]).mean()
        found.append(row)
    return found


def main(argv: list[str] | None = None) -> None:
    config, table = evaluate.Config.parse(argv), []
    config.extractor = "judge"
    folders = evaluate.find_runs(config)
    judges = {"shipped": (judge.Judge, 0), "seed 1": (judge.Judge, 1), "deep": (Deep, 0)}
    for name, (network, seed) in judges.items():
        judge.Judge = network
        if name != "shipped":
            judge.SHIPPED = config.data_dir / "judge" / f"bench_{name.replace(' ', '_')}.pt"
        if not judge.SHIPPED.exists():
            device = pick_device(config.device)
            print(judge.make(judge.SHIPPED, config, device, STEPS, seed), file=sys.stderr)
        found = rows(config, folders)
        a2 = next((row for row in found if row["model"] == "a2_clip"), {"fid": 1, "kid": 1})
        for row in found:
            times = {"fid_of_a2": row["fid"] / a2["fid"], "kid_of_a2": row["kid"] / a2["kid"]}
            table.append({"judge": name, **row, **times})
    path = ROOT / "docs" / "results" / "judges.csv"
    save_table(path, table, "%.4g")
    print(path)


if __name__ == "__main__":
    cli(main)
