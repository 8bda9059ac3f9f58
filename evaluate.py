"""Measures every run of a data set, from its saved files: how real, how various, how obedient.

Command   python evaluate.py --dataset mnist
          every run in results/mnist and results/*/mnist, or those named
Writes    metrics/fid_scores.csv, mse_diversity.csv and clip_sim_scores.csv of each run; prints all
          as one table
Metrics   FID (Heusel et al. 2017), precision (Kynkäänniemi et al. 2019), coverage (Naeem et al.
          2020): on features of Inception v3, or else of tiny CLIP, scaled so that their FID is
          1000 times that of its embeddings
          diversity: mean squared difference of two images of a class; of_real: as a share of real
          images'; clip_similarity: cosine of image and prompt; accuracy: tiny CLIP reads the class
          that was asked for
Floors    The same for real images outside the reference, for noise, and (similarity) for prompts
          of other classes
"""

import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import common
from kit.base import UserError, pick_device, save_table
from kit.datasets import DATASETS, OWNERS
from kit.flags import Flags, flag
from kit.metrics import mse_diversity, precision_coverage, wrong_prompts
from kit.run import encode_once, read_config
from kit.samples import balanced_prompts, load_samples, save_arrays
from kit.tiny_clip import class_vectors

REFERENCE = 5000  # real images that others are compared with, at most
KEYS = ("model", "phrasings", "scale", "n", "seed", "extractor", "text_encoder")
TABLES = {  # file -> its columns, besides KEYS
    "fid_scores": ("fid", "precision", "coverage", "reference", "samples_crc32"),
    "mse_diversity": ("mse_diversity", "of_real", "least_of_real", "least_class"),
    "clip_sim_scores": ("clip_similarity", "with_wrong_prompts", "accuracy"),
}


@dataclass
class Config(Flags):
    """The flags, which compare.py has too."""

    models: list[str] = flag((), "for example a4_full; none: every run found", use="positional")
    dataset: str = flag("mnist", "whose runs", choices=DATASETS)
    out: Path = flag(Path("results"), "where runs are kept")
    extractor: str = flag("auto", "of FID's features", choices=("auto", "inception", "tiny"))
    clip: str = flag("auto", "for clip_similarity, as the models' flag")
    device: str = flag("auto", "cpu, cuda, ...")
    data_dir: Path = flag(Path("data"), "where data sets are kept")

    emnist_split, classes, per_class = None, None, None  # no flags: find_runs() fills them in


# ── Which runs ──


def find_runs(config: Config) -> list[Path]:
    """Folders with samples in --out/<dataset> and --out/*/<dataset>; UserError if one is missing.

    Puts into config what the first of them learned; those that learned something else are left
    out.
    """
    folders = [*sorted(config.out.glob(f"{config.dataset}/[!.]*"))]
    folders += sorted(config.out.glob(f"*/{config.dataset}/[!.]*"))
    found = [folder for folder in folders if any(folder.glob("images/samples_*.npz"))]
    names = {folder.name for folder in found}
    for name in config.models or ([] if found else ["a4_full"]):
        if name not in names:
            first = f"python {name}.py --dataset {config.dataset}"
            raise UserError(
                f"no samples of {name} in {config.out / config.dataset}; first: {first}"
            )
    if config.models:
        found = [folder for folder in found if folder.name in config.models]
    learned = {folder: {x: read_config(folder).get(x) for x in OWNERS} for folder in found}
    chosen = learned[found[0]]
    for folder in found:
        if learned[folder] != chosen:
            what = f"which has other classes or images than {found[0]}"
            print(f"left out: {folder}, {what}", file=sys.stderr)
    for name, value in chosen.items():
        setattr(config, name, value)
    return [folder for folder in found if learned[folder] == chosen]


# ── Measuring ──


def pick_extractor(name: str, tiny):
    """name: auto, inception or tiny -> its name in columns, and a function.

    The function makes features (n, d) of pixels uint8 (n, 28, 28).
    """
    if name != "tiny":
        try:
            return "inception_v3", common.inception_features(tiny.device)
        except UserError as error:
            if name != "auto":
                raise
            print(f"FID: {error}; using the features of tiny CLIP", file=sys.stderr)
    return "tiny_clip", lambda pixels: embed(tiny, pixels) * 1000**0.5


def embed(clip, pixels: np.ndarray) -> np.ndarray:
    """pixels uint8 (n, 28, 28) -> (n, dim), rows of length 1."""
    return clip.encode_image(common.to_images(torch.from_numpy(pixels))).cpu().numpy()


class Judge:
    """Measures images against real ones: of each class as many are the reference as calibrate."""

    def __init__(self, config: Config):
        device = pick_device(config.device)
        self.config, self.names = config, config.classes
        self.tiny = common.load_clip("tiny", config, device)
        self.clip = common.load_clip(config.clip, config, device)
        self.extractor, self.features = pick_extractor(config.extractor, self.tiny)
        self.classes = class_vectors(self.tiny, config).cpu().numpy()
        self.text_vectors, self.floors = {}, {}
        images, labels, _ = common.load_dataset(config)
        half = min(REFERENCE // len(self.names), labels.bincount().min().item() // 2)
        torch.manual_seed(0)
        groups = [(labels == label).nonzero()[:, 0] for label in range(len(self.names))]
        chosen = [group[torch.randperm(len(group))[: 2 * half]] for group in groups]
        pixels = images[torch.stack(chosen, 1).flatten()].numpy()  # round the classes
        self.reference = self.features(pixels[: len(pixels) // 2])
        self.real = pixels[len(pixels) // 2 :]
        prompts, labels = balanced_prompts(config, common.TRAIN_TEMPLATES, len(self.real))
        self.labels, self.prompts = labels.numpy(), np.array(prompts)
        self.diversity = mse_diversity(self.real, self.labels)

    def measure(self, pixels: np.ndarray, labels: np.ndarray, prompts: np.ndarray) -> dict:
        """All columns for images uint8 (n, 28, 28).

        Labels of -1: nothing was asked for, so the class is the one that is read.
        """
        features, tiny = self.features(pixels), embed(self.tiny, pixels)
        read, asked = (tiny @ self.classes.T).argmax(1), labels.min() >= 0
        precision, coverage = precision_coverage(self.reference, features)
        diversity = mse_diversity(pixels, labels if asked else read) or {0: np.nan}
        of_real = {label: value / self.diversity[label] for label, value in diversity.items()}
        least = min(of_real, key=of_real.get)
        row = {
            # Two extractors share no column.
            f"fid_{self.extractor}": common.frechet_distance(features, self.reference),
            f"precision_{self.extractor}": precision,
            f"coverage_{self.extractor}": coverage,
            "reference": len(self.reference),
            "extractor": self.extractor,
            "text_encoder": self.clip.name,
            "mse_diversity": float(np.mean([*diversity.values()])),
            "of_real": float(np.mean([*of_real.values()])),
            "least_of_real": of_real[least],
            "least_class": self.names[least],
            "clip_similarity": np.nan,
            "with_wrong_prompts": np.nan,
            "accuracy": np.nan,
        }
        if asked:
            same = self.clip.crc32 == self.tiny.crc32
            seen = tiny if same else embed(self.clip, pixels)
            row["clip_similarity"] = self.similarity(seen, prompts)
            row["with_wrong_prompts"] = self.similarity(seen, wrong_prompts(labels, prompts))
            row["accuracy"] = float((read == labels).mean())
        return row

    def similarity(self, seen: np.ndarray, prompts: np.ndarray) -> float:
        """Mean cosine between images, given as their embeddings (n, dim), and their prompts."""
        vectors = encode_once(self.clip, prompts.tolist(), self.text_vectors).cpu().numpy()
        return float((seen * vectors).sum(1).mean())

    def calibrate(self, n: int) -> list[dict]:
        """Rows of n real images and of n of noise, in place of a model's."""
        n = min(n, len(self.real))
        if n not in self.floors:
            noise = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
            self.floors[n] = []
            for name, pixels in {"real images": self.real[:n], "noise": noise}.items():
                head = {"model": name, "phrasings": "trained", "scale": "", "n": n, "seed": 0}
                row = self.measure(pixels, self.labels[:n], self.prompts[:n])
                self.floors[n].append({**head, "samples_crc32": "", **row})
        return self.floors[n]

    def judge(self, folder: Path) -> list[dict]:
        """Measure all samples of a run and write its CSV files -> their rows, joined."""
        seed, rows = read_config(folder)["seed"], []
        files = sorted(folder.glob("images/samples_*.npz"))
        for path in sorted(files, key=lambda path: "heldout" in path.name):
            images, labels, prompts = load_samples(path)
            phrasings = "held out" if "heldout" in path.name else "trained"
            head = {
                "model": folder.name,
                "phrasings": "none" if labels.min() < 0 else phrasings,
                "scale": path.stem.split("_w")[1],
                "n": len(images),
                "seed": seed,
                "samples_crc32": zlib.crc32(path.read_bytes()),
            }
            rows.append({**head, **self.measure(images, labels, prompts)})
        for n in sorted({row["n"] for row in rows}):
            rows += self.calibrate(n)
        for name, columns in TABLES.items():
            wanted = {*KEYS, *columns}
            names = [x for x in rows[0] if x.removesuffix(f"_{self.extractor}") in wanted]
            table = [{name: row[name] for name in names} for row in rows]
            save_table(folder / "metrics" / f"{name}.csv", table, "%.5g")
        return rows

    def save_real(self) -> None:
        """The first real images, for compare.py."""
        n = max(260, len(self.names))
        real = {"images": self.real, "labels": self.labels, "prompts": self.prompts}
        path = self.config.out / self.config.dataset / "compare" / "real.npz"
        save_arrays(path, {name: array[:n] for name, array in real.items()})


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    folders = find_runs(config)
    judge, rows = Judge(config), []
    for folder in folders:
        for row in judge.judge(folder):
            if row["scale"]:  # the floors come once, at the end
                rows.append({**row, "model": folder.relative_to(config.out)})
    judge.save_real()
    for n in sorted(judge.floors):
        rows += judge.floors[n]
    hidden = ["reference", "extractor", "mse_diversity", "text_encoder", "samples_crc32"]
    table = pd.DataFrame(rows).drop(columns=hidden).astype(object)
    table = table.where(table.notna(), None)
    print(table.to_markdown(index=False, floatfmt=".4g", missingval="–"))
    print(f"{len(judge.reference)} real images are the reference; text encoder {judge.clip.name}")


if __name__ == "__main__":
    common.cli(main)
