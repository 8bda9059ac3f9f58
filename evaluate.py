"""Measures every run of a data set, from its saved files: how real, how various, how obedient.

Command   python evaluate.py --dataset mnist
          every run in results/mnist and results/*/mnist, or those named
Writes    metrics/fid_scores.csv, mse_diversity.csv, clip_sim_scores.csv, attributes.csv of each
          run, a judged_*.npz for each sample file; prints all as tables. What takes long is kept in
          data/features, so that a second time is short
Judge     a small CNN (kit/judge.py) that learned from real images alone: it reads the class of
          each image, and FID is made of its features where Inception v3 cannot be had
Held out  half of the images that nothing was trained on are the reference; the other half are
          measured as if a model had made them
Metrics   FID (Heusel et al. 2017), KID (Binkowski et al. 2018), density and coverage (Naeem et al.
          2020): features of the images against those of the reference
          mse_diversity: mean squared difference of two images of a class, over pixels from 0 to 1;
          of_real: as a share of real images'
          train_on_samples: how many held-out real images a classifier reads right that learned
          from the generated ones; copied: share of images that repeat a training image
          clip_similarity: cosine of image and prompt; accuracy: the share that the judge reads as
          what was asked for
Obedience attributes.csv: where prompts say more than a class, the share of images that formulas
          find as asked (kit/attributes.py), beside the same share without asking
Floors    The same for real images outside the reference, for noise, and (similarity) for prompts
          of other classes
"""

import glob
import zlib
from collections import Counter, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import common
from kit import attributes, images, judge, metrics
from kit.base import (
    Progress,
    UserError,
    crc32,
    kept,
    pick_device,
    save_arrays,
    save_table,
    say,
    tell,
)
from kit.captions import UNSAID, words_of
from kit.datasets import DATASETS, OWNERS, settle_dataset, typed_dataset
from kit.flags import Flags, flag
from kit.locks import holder
from kit.run import encode_once, read_config, sample_files_in, without_folder
from kit.samples import balanced_prompts, guidance_of, load_asked, load_samples

REFERENCE = 5000  # held-out images that others are compared with, at most
LEAST = 200  # with fewer images in the reference FID and its like mean nothing
TAUGHT = 500  # fewer images teach no classifier
SHOWN = 26  # images of a file that a picture shows beside their nearest training images
KEYS = ("model", "phrasings", "scale", "guidance", "n", "seed", "extractor", "text_encoder")
TABLES = {  # file -> its columns, besides KEYS; those of DISTANCES have the extractor in their name
    "fid_scores": ("fid", "kid", "kid_se", "density", "coverage", "reference", "samples_crc32",
                   "judge_crc32"),
    "mse_diversity": ("mse_diversity", "of_real", "least_of_real", "least_class",
                      "train_on_samples", "copied"),
    "clip_sim_scores": ("clip_similarity", "with_wrong_prompts", "accuracy", "accuracy_low",
                        "accuracy_high"),
}  # fmt: skip
DISTANCES = TABLES["fid_scores"][:5]


@dataclass
class Config(Flags):
    """The flags, which compare.py has too."""

    models: list[str] = flag((), "for example a4_full; none: every run found", use="positional")
    dataset: str = flag("mnist", f"whose runs: {', '.join(DATASETS)}, or a folder of pictures")
    out: Path = flag(Path("results"), "where runs are kept")
    extractor: str = flag("auto", "of FID's features", choices=("auto", "inception", "judge"))
    clip: str = flag("auto", "for clip_similarity, as the models' flag")
    device: str = flag("auto", "cpu, cuda, ...")
    data_dir: Path = flag(Path("data"), "where data sets are kept")

    # No flags: find_runs() fills them in.
    emnist_split, classes, per_class, folder, pictures = None, None, None, None, None

    def check(self) -> None:
        self.models = [Path(name).name.removesuffix(".py") for name in self.models]
        settle_dataset(self, self.out)


# ── Which runs ──


def find_runs(config: Config) -> list[Path]:
    """Folders with samples in --out/<dataset> and --out/*/<dataset>; UserError if one is missing.

    Puts into config what the first of them learned; those that learned something else are left
    out.
    """
    name = glob.escape(config.dataset)
    folders = [*sorted(config.out.glob(f"{name}/[!.]*"))]
    folders += sorted(config.out.glob(f"*/{name}/[!.]*"))
    found = [folder for folder in folders if sample_paths(folder) and counts(folder)]
    names = {folder.name for folder in found}
    for name in config.models or ([] if found else ["a4_full"]):
        if name not in names:
            first = f"python {name}.py --dataset {typed_dataset(config)}"
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
            say(f"left out: {folder}, {what}")
    for name, value in chosen.items():
        setattr(config, name, value)
    return [folder for folder in found if learned[folder] == chosen]


def counts(folder: Path) -> bool:
    """Whether a run is measured; if not, a line says why: it is at work, or has another name."""
    by, script = holder(folder), read_config(folder).get("script", folder.name)
    if by:
        say(f"left out: {folder}, at which {by} is at work; later give this command again")
    elif script != folder.name:
        say(f"left out: {folder}, which is a run of {script} by another name")
    return not by and script == folder.name


def sample_paths(folder: Path) -> list[Path]:
    """Of a run: the sample files whose prompts name a class alone, held-out phrasings last."""
    return sample_files_in(folder) + sample_files_in(folder, "heldout")


def crc32_of_file(path: Path) -> int:
    return zlib.crc32(path.read_bytes()) if path.exists() else 0


def kind_of(combination: tuple[int, ...]) -> str:
    """What prompts asked of the attributes: nothing, one word, a pair, or the held-out pair."""
    if combination == UNSAID:
        return "held-out pair"
    return ("nothing", "one word", "said pair")[sum(map(abs, combination))]


# ── Like with like ──


def settings(config: dict) -> dict[str, str | None]:
    """What must be alike in runs that are compared, of a config.json; None: it has no such choice.

    A script without --clip has no text, or an encoder of its own, which is its idea.
    """
    encoder = without_folder(str(config.get("text_encoder")))
    encoder += f" (CRC-32 {config.get('text_encoder_crc32') or 0:08x})"
    steps = config.get("sample_steps", 1)
    sampling = f"{steps} step{'s' if steps != 1 else ''}"
    if config.get("sampler"):
        sampling += f" of {config['sampler']}"
    if "eta" in config:
        sampling += f", eta {config['eta']:g}"
    if "contrast" in config:
        sampling += f", contrast {config['contrast']:g}"
    interval = config.get("interval")
    return {
        "data": f"{config.get('data_source')}, {config.get('image_count')} images",
        "text encoder": encoder if "clip" in config else None,
        "training": f"{config.get('train_steps')} steps of {config.get('batch_size')} images",
        "sampling": sampling,
        "guidance": f"for t in {interval[0]}-{interval[1]}" if interval else None,
    }


def like_with_like(configs: dict[str, dict]) -> list[tuple[str, list[str]]]:
    """Runs (name -> config.json) by settings() -> for each group a line about it, and its names.

    First come those that have all of the commonest settings.
    """
    found, common_ones = {name: settings(config) for name, config in configs.items()}, {}
    for what in settings({}):
        counts = Counter(run[what] for run in found.values() if run[what])
        common_ones[what] = counts.most_common(1)[0][0] if counts else None
    groups = {}
    for name, run in found.items():
        others = {what: run[what] for what in run if run[what] not in (None, common_ones[what])}
        groups.setdefault(tuple(others.items()), []).append(name)
    lines = []
    for others, names in sorted(groups.items(), key=lambda group: len(group[0])):
        line = "; ".join(f"{what}: {value}" for what, value in common_ones.items() if value)
        if others:
            unlike = [f"{what}: {value}, not {common_ones[what]}" for what, value in others]
            line = f"Not quite comparable with the others: {'; '.join(unlike)}"
        lines.append((line, names))
    return lines


# ── Measuring ──


def pick_extractor(name: str, judge_network: judge.Judge, device):
    """name: auto, inception or judge -> its name in columns, and a function.

    The function makes features (n, d) of pixels uint8 (n, 28, 28).
    """
    if name != "judge":
        try:
            return "inception_v3", common.inception_features(device)
        except UserError as error:
            if name != "auto":
                raise
            say(f"FID: {error}; using the features of the judge")
    return "judge", lambda pixels: judge_network.see(pixels)[0]


def round_the_classes(pixels, labels, classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """As many images of each class, at most so many in all, round the classes.

    Of a class evenly spread over its images, the even ones first, each half in an order by chance:
    so the two halves are alike, whatever the order in the data set means.
    """
    each = min(most // classes, labels.bincount(minlength=classes).min().item())
    generator, chosen = torch.Generator().manual_seed(0), []
    for label in range(classes):
        group = (labels == label).nonzero()[:, 0]
        group = group[torch.linspace(0, len(group) - 1, each).round().long()]
        halves = group[::2], group[1::2]
        order = [half[torch.randperm(len(half), generator=generator)] for half in halves]
        chosen.append(torch.cat(order))
    chosen = torch.stack(chosen, 1).flatten()
    return pixels[chosen].numpy(), labels[chosen].numpy()


def scale_and_guidance(path: Path, config: dict) -> dict[str, str]:
    """Of a sample file: what its name says, and where that guidance acted."""
    scale, _, throughout = path.stem.split("_w")[1].partition("_")
    interval = None if throughout else config.get("interval")
    return {"scale": scale, "guidance": guidance_of(interval, float(scale))}


# Images uint8 (N, 28, 28), which may be a gigabyte, so that their CRC-32 is worked out once.
Training = namedtuple("Training", "pixels labels crc32")


class Evaluator:
    """Measures images against held-out real ones."""

    def __init__(self, config: Config):
        self.config, self.names = config, config.classes
        self.device = pick_device(config.device)
        self.judge = judge.load_judge(config, self.device)
        self.clip = common.load_clip(config.clip, config, self.device)
        self.extractor, self.extract = pick_extractor(config.extractor, self.judge, self.device)
        self.text_vectors, self.floors, self.floor_rows, self.trainings = {}, {}, {}, {}
        self.asked = []  # rows of obedience()
        pixels, labels, _ = common.load_dataset(config, "test")
        self.held_out = round_the_classes(pixels, labels, len(self.names), 2 * REFERENCE)
        half = len(self.held_out[0]) // (2 * len(self.names)) * len(self.names)
        if not half:
            few = self.names[int(labels.bincount(minlength=len(self.names)).argmin())]
            raise UserError(f"{config.dataset}: {few} has fewer than 2 held-out images")
        self.diversity = metrics.mse_diversity(*self.held_out)
        self.reference = self.features(self.held_out[0][:half])
        if half < LEAST:
            say(
                f"only {half} held-out images are the reference: FID, KID, density and coverage "
                f"are left empty (they take {LEAST})"
            )
        pixels, labels = (array[half : 2 * half] for array in self.held_out)
        prompts, _ = balanced_prompts(config, common.TRAIN_TEMPLATES, half)
        self.real = {"pixels": pixels, "labels": labels, "prompts": np.array(prompts)}

    # What takes long

    def kept(self, name: str, of: list, compute, *code) -> dict[str, np.ndarray]:
        return kept(self.config.data_dir / "features", name, of, compute, *code)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        name, code = self.extractor, []  # Inception's weights are always the same
        if name == "judge":
            name, code = f"judge_{self.judge.crc32:08x}", [judge]

        def compute():
            return {"features": self.extract(pixels)}

        return self.kept(name, [pixels], compute, *code)["features"]

    def read(self, pixels: np.ndarray) -> np.ndarray:
        """-> the class that the judge reads in each image (n,)."""

        def compute():
            return {"read": self.judge.see(pixels)[1]}

        return self.kept(f"read_{self.judge.crc32:08x}", [pixels], compute, judge)["read"]

    def training(self, run: dict) -> Training | None:
        """What a run learned from, by its config.json; None if that is gone."""
        key = run.get("data_source"), run.get("image_count")
        if key not in self.trainings:
            if key[0] == "embedded":
                pixels, labels = images.embedded_mnist("train")
                found = "embedded", len(pixels)
            else:
                pixels, labels, source = common.load_dataset(self.config)
                found = source, len(pixels)
            self.trainings[key] = None
            if found == key:
                self.trainings[key] = Training(pixels, labels, crc32(pixels.numpy()))
            else:
                lost = f"learned from {key[1]} images ({key[0]}), not from the {found[1]} here"
                say(f"{run.get('script')} {lost}: no copied share")
        return self.trainings[key]

    def look(self, arrays: dict, training) -> dict[str, np.ndarray]:
        """arrays: pixels, labels, prompts -> with all that is known of each image by itself."""
        pixels = arrays["pixels"]

        def embed():
            vectors = self.clip.encode_image(common.to_images(torch.from_numpy(pixels)))
            return {"embeddings": vectors.cpu().numpy()}

        def nearest():
            index, distances = metrics.nearest(pixels, training.pixels.numpy())
            return {"nearest": index, "distances": distances}

        look = {**arrays, "features": self.features(pixels)}
        look["read"] = self.read(pixels)
        if arrays["labels"].min() >= 0:
            look |= self.kept(f"clip_{self.clip.crc32:08x}", [pixels], embed)
        if training is not None:
            look |= self.kept("nearest", [pixels, training.crc32], nearest, metrics)
        return look

    def distances(self, features: np.ndarray) -> dict[str, float]:
        """FID and the others of DISTANCES; density and coverage with as many on both sides."""
        real, n = self.reference, min(len(features), len(self.reference))
        if len(real) < LEAST:
            return dict.fromkeys(DISTANCES, np.nan)

        def compute():
            values = [common.frechet_distance(features, real), *metrics.kid(features, real)]
            values += metrics.density_coverage(real[:n], features[:n]) if n > 5 else [np.nan] * 2
            return {"values": np.array(values)}

        values = self.kept("distances", [features, real], compute, metrics, common)["values"]
        return dict(zip(DISTANCES, values.tolist()))

    def taught(self, pixels: np.ndarray, labels: np.ndarray) -> float:
        """The share of held-out images that is read right by one that learned from these images.

        Ravuri & Vinyals 2019. In six turns through 2,000 of them.
        """
        if len(pixels) < TAUGHT or labels.min() < 0:
            return np.nan

        def compute():
            data, steps = (torch.from_numpy(pixels), torch.from_numpy(labels)), len(pixels) // 20
            pupil = judge.train(*data, len(self.names), max(100, steps), 0, self.device)
            return {"share": (pupil.see(self.held_out[0])[1] == self.held_out[1]).mean()}

        of = [pixels, labels, *self.held_out]
        return float(self.kept("taught", of, compute, judge, images)["share"])

    def similarity(self, look: dict) -> tuple[float, float]:
        """CLIP's of images and their prompts, and of images and the prompts of other classes."""
        seen, labels, prompts = look["embeddings"], look["labels"], look["prompts"]

        def compute():
            vectors = encode_once(self.clip, prompts.tolist(), self.text_vectors).cpu().numpy()
            return {"values": np.array(metrics.similarity(seen, vectors, labels))}

        name, of = f"similarity_{self.clip.crc32:08x}", [seen, labels, prompts]
        return tuple(self.kept(name, of, compute, metrics)["values"].tolist())

    # One row

    def measure(self, look: dict, taught: float) -> dict:
        """All columns. Labels of -1: nothing was asked for, so the class is the one that is read.

        taught: of a classifier that learned from these images; see taught().
        """
        pixels, labels, read = look["pixels"], look["labels"], look["read"]
        asked, n = labels.min() >= 0, len(labels)
        distances = self.distances(look["features"])
        diversity = metrics.mse_diversity(pixels, labels if asked else read) or {0: np.nan}
        mean = np.mean([*diversity.values()])
        of_real = {label: value / self.diversity[label] for label, value in diversity.items()}
        least = min(of_real, key=of_real.get)
        right, similar = np.nan, (np.nan, np.nan)
        if asked:
            right, similar = float((read == labels).mean()), self.similarity(look)
        low, high = metrics.wilson(right, n)
        return {
            # Two extractors share no column.
            **{f"{name}_{self.extractor}": value for name, value in distances.items()},
            "reference": len(self.reference),
            "extractor": self.extractor,
            "judge_crc32": f"{self.judge.crc32:08x}",
            "text_encoder": self.clip.name,
            "mse_diversity": float(mean),
            "of_real": float(mean / np.mean([self.diversity[label] for label in diversity])),
            "least_of_real": of_real[least],
            "least_class": self.names[least],
            "train_on_samples": taught,
            "copied": metrics.copied(look["distances"]) if "distances" in look else np.nan,
            "clip_similarity": similar[0],
            "with_wrong_prompts": similar[1],
            "accuracy": right,
            "accuracy_low": low,
            "accuracy_high": high,
        }

    def floor_looks(self, n: int, training) -> dict[str, dict]:
        """real images and noise -> look() of n of them, or as many as there are.

        A smaller n is the beginning of a larger one, so only the largest costs anything.
        """
        n, known = min(n, len(self.real["labels"])), self.floors.get(id(training))
        if known is None or len(known["noise"]["labels"]) < n:
            noise = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
            real = {name: array[:n] for name, array in self.real.items()}
            known = {"real images": real, "noise": {**real, "pixels": noise}}
            known = {name: self.look(arrays, training) for name, arrays in known.items()}
            self.floors[id(training)] = known
        return {name: {x: look[x][:n] for x in look} for name, look in known.items()}

    def calibrate(self, n: int, training) -> list[dict]:
        """Rows of n real images and of n of noise, in place of a model's."""
        if (n, id(training)) in self.floor_rows:
            return self.floor_rows[n, id(training)]
        asked, rows = n, []
        for name, look in self.floor_looks(n, training).items():
            n = len(look["labels"])
            head = {"model": name, "phrasings": "trained", "scale": "", "guidance": "none"}
            head |= {"n": n, "seed": 0}
            lesson = look["pixels"], look["labels"]
            if name == "real images" and training is not None:  # held-out ones teach nothing here
                lesson = round_the_classes(training.pixels, training.labels, len(self.names), n)
            row = self.measure(look, self.taught(*lesson))
            rows.append({**head, "samples_crc32": "", **row})
        self.floor_rows[asked, id(training)] = rows
        return rows

    # What more was asked for than a class

    def obedience(self, folder: Path, run: dict) -> list[dict]:
        """A row for each scale and each combination of attributes that prompts asked for.

        By the formulas of kit/attributes.py; the judge reads the class alone.
        """
        chosen, rows = run.get("attributes") or {}, []
        words = [tuple(pair) for pair in chosen.values()]
        paths = sample_files_in(folder, "attributes") if chosen else []
        if not paths:
            return []
        real = self.states(self.real["pixels"], chosen)
        for path in Progress(paths, f"{folder.name}, attributes", unit="file", leave=False):
            pixels, labels, _ = load_samples(path, len(self.names))
            asked, read = load_asked(path, len(words)), self.read(pixels)
            shares = metrics.obedience(asked, self.states(pixels, chosen), read == labels)
            for combination, row in shares.items():
                single = dict(zip(words_of([*zip(chosen, chosen)], combination), row.pop("single")))
                asks = np.array(combination) != 0
                fits = (real == combination)[:, asks].all(1)
                rows.append({
                    "model": folder.name,
                    **scale_and_guidance(path, run),
                    "seed": run["seed"],
                    "asked": ", ".join(words_of(words, combination)) or "nothing",
                    "kind": kind_of(combination),
                    **row,
                    "of_real": fits.mean(),
                    **{name: single.get(name, np.nan) for name in chosen},
                    "samples_crc32": zlib.crc32(path.read_bytes()),
                    "judge_crc32": f"{self.judge.crc32:08x}",
                })  # fmt: skip
        return rows

    def states(self, pixels: np.ndarray, chosen: dict) -> np.ndarray:
        values = attributes.measured(self.config, pixels)
        return attributes.states(self.config, values, chosen)

    # A run

    def judge_run(self, folder: Path) -> list[dict]:
        """Measure all samples of a run and write what is measured -> the rows of its CSV files."""
        config, rows = read_config(folder), []
        training = self.training(config)
        files = sample_paths(folder)
        for path in Progress(files, folder.name, unit="file", leave=False):
            pixels, labels, prompts = load_samples(path, len(self.names))
            phrasings = "held out" if "heldout" in path.name else "trained"
            head = {
                "model": folder.name,
                "phrasings": "none" if labels.min() < 0 else phrasings,
                **scale_and_guidance(path, config),
                "n": len(pixels),
                "seed": config["seed"],
                "samples_crc32": crc32_of_file(path),
            }
            look = self.look({"pixels": pixels, "labels": labels, "prompts": prompts}, training)
            taught = self.taught(pixels, labels) if "heldout" not in path.name else np.nan
            rows.append({**head, **self.measure(look, taught)})
            self.save_judged(folder, path, look, training)
        if [row["samples_crc32"] for row in rows] != [*map(crc32_of_file, sample_paths(folder))]:
            raise UserError(f"{folder} was drawn anew meanwhile; give this command again")
        for n in sorted({row["n"] for row in rows}):
            rows += self.calibrate(n, training)
        for name, columns in TABLES.items():
            wanted = {*KEYS, *columns}
            names = [x for x in rows[0] if x.removesuffix(f"_{self.extractor}") in wanted]
            table = [{name: row[name] for name in names} for row in rows]
            save_table(folder / "metrics" / f"{name}.csv", table, "%.5g")
        asked = self.obedience(folder, config)
        if asked:
            save_table(folder / "metrics" / "attributes.csv", asked, "%.5g")
            named = str(folder.relative_to(self.config.out))
            self.asked += [{**row, "model": named} for row in asked]
        return rows

    def save_judged(self, folder: Path, path: Path, look: dict, training) -> None:
        """What compare.py draws of one sample file: classes read, the nearest training images."""
        judged = {"read": look["read"]}
        if training is not None:
            real = self.floor_looks(len(look["read"]), training)["real images"]["distances"]
            judged |= {"distances": look["distances"], "real_distances": real}
            judged["nearest"] = training.pixels.numpy()[look["nearest"][:SHOWN, 0]]
        save_arrays(folder / "metrics" / path.name.replace("samples", "judged"), judged)

    def save_real(self) -> None:
        """The first real images, for compare.py."""
        n = max(260, len(self.names))
        path = self.config.out / self.config.dataset / "compare" / "real.npz"
        real = {"images": self.real["pixels"], **self.real}
        del real["pixels"]
        save_arrays(path, {name: array[:n] for name, array in real.items()})


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    folders = {str(folder.relative_to(config.out)): folder for folder in find_runs(config)}
    evaluator = Evaluator(config)
    rows = {name: evaluator.judge_run(folder) for name, folder in folders.items()}
    evaluator.save_real()
    hidden = ["reference", "extractor", "text_encoder", "samples_crc32", "judge_crc32", "seed"]
    configs = {name: read_config(folder) for name, folder in folders.items()}
    for line, names in like_with_like(configs):
        shown, floors = [], {}
        for name in names:
            shown += [{**row, "model": name} for row in rows[name] if row["scale"]]
            floors |= {(row["model"], row["n"]): row for row in rows[name] if not row["scale"]}
        table = pd.DataFrame([*shown, *floors.values()]).drop(columns=hidden).astype(object)
        table = table.where(table.notna(), None)
        tell(f"{line}\n")
        tell(f"{table.to_markdown(index=False, floatfmt='.4g', missingval='–')}\n")
    if evaluator.asked:
        asked = pd.DataFrame(evaluator.asked)
        shares = asked.pivot_table("as_asked", ["model", "scale"], "asked", sort=False)
        shares = shares.drop(columns="nothing").reset_index()
        tell("Share of images whose attributes are as asked, by formulas\n")
        tell(f"{shares.to_markdown(index=False, floatfmt='.3f')}\n")
    reference = f"{len(evaluator.reference)} held-out images are the reference"
    tell(f"{reference}; text encoder {evaluator.clip.name}")


if __name__ == "__main__":
    common.cli(main)
