"""Do other judges agree with the shipped one? No test: run it after the ladder was trained.

python tests/bench_judges.py

The same sample files and the same reference under the shipped judge, one trained with another seed,
and one of another architecture. It takes MNIST's own files in data/MNIST/raw and ten minutes.
"""

import sys
from pathlib import Path

import pandas as pd
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate  # noqa: E402
from kit import judge  # noqa: E402
from kit.base import cli, pick_device  # noqa: E402
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


def rows(config: evaluate.Config, folders: list[Path]) -> dict[tuple, dict]:
    """(model, phrasings, scale) -> the numbers that depend on the judge."""
    evaluator, numbers = evaluate.Evaluator(config), {}
    real = {name: array[:2000] for name, array in evaluator.real.items()}
    looks = {("real images", "", ""): evaluator.look(real, None)}
    for folder in folders:
        for path in sorted(folder.glob("images/samples_*.npz")):
            arrays = dict(zip(("pixels", "labels", "prompts"), load_samples(path)))
            phrasings = "held out" if "heldout" in path.name else ""
            key = folder.name, phrasings, path.stem.split("_w")[1]
            looks[key] = evaluator.look(arrays, None)
    for key, look in looks.items():
        numbers[key] = evaluator.distances(look["features"])
        if look["labels"].min() >= 0:
            numbers[key]["accuracy"] = (look["read"] == look["labels"]).mean()
    return numbers


def main(argv: list[str] | None = None) -> None:
    config = evaluate.Config.parse(argv)
    config.extractor = "judge"
    folders, columns = evaluate.find_runs(config), {}
    judges = {"shipped": (judge.Judge, 0), "seed 1": (judge.Judge, 1), "deep": (Deep, 0)}
    for name, (network, seed) in judges.items():
        judge.Judge = network
        if name != "shipped":
            judge.SHIPPED = config.data_dir / "judge" / f"bench_{name.replace(' ', '_')}.pt"
        if not judge.SHIPPED.exists():
            device = pick_device(config.device)
            print(judge.make(judge.SHIPPED, config, device, STEPS, seed), file=sys.stderr)
        for key, numbers in rows(config, folders).items():
            row = columns.setdefault(key, dict(zip(("model", "phrasings", "scale"), key)))
            for column in ("fid", "kid", "kid_se", "density", "coverage", "accuracy"):
                row[f"{column}, {name}"] = numbers.get(column)
    table = pd.DataFrame(columns.values())
    names = sorted(
        table.columns[3:], key=lambda column: column.split(",")[0]
    )  # judges side by side
    table = table[["model", "phrasings", "scale", *names]]
    print(table.to_markdown(index=False, floatfmt=".4g"))


if __name__ == "__main__":
    cli(main)
