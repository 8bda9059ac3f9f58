"""Measures every run of a data set from its samples: how real, how diverse, how obedient.

Command   python evaluate.py --dataset mnist
          every run in results/mnist and results/*/mnist, or those that are named
Writes    into metrics/ of each run four tables, and judged.npz for the figures of compare.py
Judge     a small CNN trained on real images alone (kit/judge.py) reads the class of each image;
          FID is made of its features, or of Inception v3's with --extractor inception
Reference half of the images that nothing was trained on; the other half, and noise, are measured
          as if a model had generated them
Metrics   FID (Heusel et al. 2017), KID (Binkowski et al. 2018), density and coverage (Naeem et al.
          2020): features of the images against those of the reference
          mse_diversity: mean squared difference of two images of a class, over pixels from 0 to 1;
          of_real: as a share of real images'
          train_on_samples: accuracy on real images of a classifier trained on the generated ones
          copied: share of images that repeat a training image
          clip_similarity: cosine of image and prompt, and with_wrong_prompts of other classes
          accuracy: share of images that the judge reads as the class of their prompt
          attributes.csv: share of images with the attributes that their prompts ask for, by
          formulas (kit/attributes.py), beside the same share without asking
"""

import glob
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro

import common
from kit import attributes, judge, metrics
from kit.captions import HELD_OUT, words_of
from kit.config import DataConfig
from kit.data import embedded_mnist, load_dataset, to_images
from kit.files import UserError, memory, progress, save_arrays, save_table, say
from kit.processes import pick_device
from kit.run import read_config
from kit.samples import load_samples
from kit.words import TRAIN_TEMPLATES, class_names, phrasings

REFERENCE = 5000  # half of the held-out images used, at most
LEAST = 200  # with a smaller reference FID and its like mean nothing
TAUGHT = 500  # fewer images teach no classifier
SHOWN = 26  # images of a group that a picture shows beside their nearest training images
LEARNED = "classes", "emnist_split", "per_class"  # must be the same in runs that are compared
KEYS = "model kind scale n seed extractor text_encoder"
TABLES = {  # file -> its columns, besides KEYS
    "mse_diversity": "mse_diversity of_real least_of_real least_class train_on_samples copied",
    "clip_sim_scores": "clip_similarity with_wrong_prompts accuracy accuracy_low accuracy_high",
    "fid_scores": "fid kid kid_se density coverage reference samples_crc32 judge_crc32",
}


@dataclass
class Config(DataConfig):
    """Which runs, and how they are measured."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()  # such as a4_full; none: every run found
    out: Path = Path("results")  # where runs are kept
    extractor: Literal["judge", "inception"] = "judge"  # whose features FID is made of
    clip: str = "auto"  # for clip_similarity: tiny, ViT-B/32 or a file
    device: str = "auto"  # cpu, cuda, ...

    def __post_init__(self):
        super().__post_init__()
        self.models = tuple(Path(name).name.removesuffix(".py") for name in self.models)


# ── Which runs ──


def find_runs(config: Config) -> dict[Path, dict]:
    """Folder -> config.json, of the runs with samples that learned the same; sets config.classes.

    UserError if there is none, or not one that config.models names.
    """
    found, name, paths = {}, glob.escape(config.name), []
    for where in (name, f"*/{name}"):
        paths += sorted(config.out.glob(f"{where}/[!.]*/images/samples.npz"))
    for path in paths:
        folder = path.parent.parent
        if config.models and folder.name not in config.models:
            continue
        try:
            run = read_config(folder)
        except UserError as error:  # damaged, or of an earlier version
            say(f"left out: {error.text}")
            continue
        chosen = next(iter(found.values()), run)
        if run["script"] != folder.name:
            say(f"left out: {folder}, which is a renamed run of {run['script']}")
        elif any(run.get(x) != chosen.get(x) for x in LEARNED):
            say(f"left out: {folder}, which learned other classes than {next(iter(found))}")
        else:
            found[folder] = run
    names = {folder.name for folder in found}
    for name in config.models or (() if found else ("a4_full",)):
        if name not in names:
            raise no_samples(config, name)
    config.emnist_split, config.per_class = chosen["emnist_split"], chosen["per_class"]
    config.classes = tuple(chosen["classes"])
    if class_names(config) != config.classes:
        raise UserError(f"{config.dataset} has other classes now than {next(iter(found))} learned")
    return found


def no_samples(config: Config, name: str) -> UserError:
    where = config.out / config.name
    for folder in (config.out, where, where / name, where / name / "images"):
        if os.path.lexists(folder) and not os.access(folder, os.R_OK | os.X_OK):
            return UserError(f"{folder} may not be read: change its permissions")
    first = f"python {name}.py --dataset {config.dataset}"
    return UserError(f"no samples of {name} in {where}; first: {first}")


def is_measured(folder: Path, config: Config) -> bool:
    """Whether these samples have been measured with the networks that config names."""
    here, network = folder / "metrics", judge.judge_path(config)
    files = [here / "judged.npz", network, *(here / f"{name}.csv" for name in TABLES)]
    files += [here / "attributes.csv"] if read_config(folder).get("attributes") else []
    if not all(file.exists() for file in files):
        return False
    row = pd.read_csv(here / "fid_scores.csv", dtype=str).iloc[0]
    samples_crc32 = str(zlib.crc32((folder / "images" / "samples.npz").read_bytes()))
    wanted = samples_crc32, f"{zlib.crc32(network.read_bytes()):08x}", config.extractor
    same = tuple(row[["samples_crc32", "judge_crc32", "extractor"]]) == wanted
    return same and config.clip in ("auto", row["text_encoder"])


# ── Measuring ──


def round_the_classes(pixels, labels, classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """As many images of each class, at most so many in all, in turn of the classes.

    Of a class evenly spread over its images, the even ones first, each half in random order: so
    the two halves are alike, whatever the order in the data set means.
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


class Evaluator:
    """Measures images against held-out real ones. What takes long is cached in --data-dir."""

    def __init__(self, config: Config):
        self.config, self.names, self.trainings = config, config.classes, {}
        self.device, self.memory = pick_device(config.device), memory(config.data_dir)
        self.apply = self.memory.cache(metrics.apply, ignore=["function"])
        self.judge = judge.load_judge(config, self.device)
        self.clip = common.load_clip(config, self.device)
        inception = config.extractor == "inception"
        self.inception = common.inception_features(self.device) if inception else None
        pixels, labels, _ = load_dataset(config, "test")
        self.held_out = round_the_classes(pixels, labels, len(self.names), 2 * REFERENCE)
        half = len(self.held_out[0]) // (2 * len(self.names)) * len(self.names)
        if not half:
            raise UserError(f"{config.dataset}: a class has fewer than 2 held-out images")
        if half < LEAST:
            say(f"FID, KID, density and coverage take {LEAST} held-out images, not {half}: empty")
        diversity = pd.Series(metrics.mse_diversity(*self.held_out))
        self.diversity = diversity.replace(0, np.nan)  # of images that are all alike
        self.reference = self.see(self.held_out[0][:half])[0]
        texts = phrasings(config, TRAIN_TEMPLATES)
        prompts = [texts[i % len(texts)][i // len(texts) % len(texts[0])] for i in range(half)]
        self.real = [array[half : 2 * half] for array in self.held_out] + [np.array(prompts)]
        self.facts = {"extractor": config.extractor, "text_encoder": self.clip.name}
        self.facts |= {"judge_crc32": f"{self.judge.crc32:08x}", "reference": half}

    def training(self, run: dict) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The images and labels that a run was trained on; None if they are not the ones here."""
        wanted = run["data_crc32"]
        if wanted not in self.trainings:
            embedded = run["data_source"] == "embedded"
            pixels, labels = embedded_mnist("train") if embedded else load_dataset(self.config)[:2]
            same = zlib.crc32(labels.numpy(), zlib.crc32(pixels.numpy())) == wanted
            self.trainings[wanted] = (pixels, labels) if same else None
            if not same:
                say(f"{run['script']} was trained on other images than those here: no copied share")
        return self.trainings[wanted]

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        return self.clip.encode_image(to_images(torch.from_numpy(pixels))).cpu().numpy()

    def see(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n, 28, 28) -> features of the extractor (n, d), classes that the judge reads."""
        features, read = self.apply(self.judge.see, f"judge {self.judge.crc32:08x}", pixels)
        if self.inception:
            features = self.apply(self.inception, "inception", pixels)
        return features, read

    def look(self, pixels, labels, prompts, training) -> dict[str, np.ndarray]:
        """Images uint8 (n, 28, 28), their classes and prompts -> what each is by itself."""
        seen = {"pixels": pixels, "labels": labels, "prompts": prompts}
        seen["features"], seen["read"] = self.see(pixels)
        if labels.min() >= 0:
            seen["embeddings"] = self.apply(self.embed, f"CLIP {self.clip.crc32:08x}", pixels)
        if training is not None:
            nearest = self.memory.cache(metrics.nearest)
            seen["nearest"], seen["distances"] = nearest(pixels, training[0].numpy())
        return seen

    def distances(self, features: np.ndarray) -> dict[str, float]:
        """From the reference; density and coverage with as many images on both sides."""
        real, n, values = self.reference, min(len(features), len(self.reference)), []
        if len(real) >= LEAST and n > 5:
            values = [common.frechet_distance(features, real), *metrics.kid(features, real)]
            values += metrics.density_coverage(real[:n], features[:n])
        return dict(zip(TABLES["fid_scores"].split(), values or [np.nan] * 5))

    def taught(self, pixels: np.ndarray, labels: np.ndarray) -> float:
        """Accuracy on held-out images of a classifier trained on these (Ravuri & Vinyals 2019)."""
        if len(pixels) < TAUGHT or labels.min() < 0:
            return np.nan
        taught = self.memory.cache(judge.taught, ignore=["device"])
        return taught(pixels, labels, *self.held_out, len(self.names), self.device)

    def score(self, seen: dict) -> dict:
        """What look() says of a group of images -> columns.

        Without labels (-1) the diversity is that of the classes that are read.
        """
        pixels, labels, read = seen["pixels"], seen["labels"], seen["read"]
        right, similar, asked = np.nan, (np.nan, np.nan), labels.min() >= 0
        if asked:
            texts = self.clip.encode(seen["prompts"].tolist()).cpu().numpy()
            similar = metrics.similarity(seen["embeddings"], texts, labels)
            right = float((read == labels).mean())
        diversity = metrics.mse_diversity(pixels, labels if asked else read)
        diversity = pd.Series(diversity, dtype=float)
        real = self.diversity[diversity.index]
        of_real = (diversity / real).dropna()
        accuracy = right, *metrics.wilson(right, len(read))
        return {
            "n": len(read),
            **self.facts,
            **self.distances(seen["features"]),
            "mse_diversity": diversity.mean(),
            "of_real": diversity[of_real.index].mean() / real.mean(),
            "least_of_real": of_real.min(),
            "least_class": self.names[of_real.idxmin()] if len(of_real) else "",
            "copied": metrics.copied(seen["distances"]) if "distances" in seen else np.nan,
            **dict(zip(TABLES["clip_sim_scores"].split(), (*similar, *accuracy))),
        }

    def floors(self, n: int, training) -> list[dict]:
        """Rows of n real images and of n of noise, in place of a model's."""
        (pixels, labels, prompts), rows = (array[:n] for array in self.real), []
        noise = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
        for name, images in (("real images", pixels), ("noise", noise)):
            lesson = images, labels
            if images is pixels and training is not None:  # these are what the test is made of
                lesson = round_the_classes(*training, len(self.names), n)
            row = {"run": name, "model": name, "kind": "trained", "scale": np.nan, "seed": 0}
            row |= {"samples_crc32": "", "train_on_samples": self.taught(*lesson)}
            rows.append(row | self.score(self.look(images, labels, prompts, training)))
        return rows

    def states(self, pixels: np.ndarray, chosen: dict) -> np.ndarray:
        return attributes.states(self.config, attributes.measured(self.config, pixels), chosen)

    def obedience(self, samples: dict, read: np.ndarray, chosen: dict, facts: dict) -> pd.DataFrame:
        """A row for each scale and for each combination of attributes that prompts ask for."""
        words, rows = [tuple(pair) for pair in chosen.values()], []
        real, asking = self.states(self.real[0], chosen), samples["kind"] == "words"
        for scale in dict.fromkeys(samples["scale"][asking].tolist()):
            i = np.flatnonzero(asking & (samples["scale"] == scale))
            states, right = self.states(samples["images"][i], chosen), read == samples["labels"]
            shares = metrics.obedience(samples["asked"][i], states, right[i])
            for asked, row in shares.items():
                names = [name for name, asks in zip(chosen, asked) if asks]
                single = dict.fromkeys(chosen, np.nan) | dict(zip(names, row.pop("single")))
                kind = ("nothing", "one word", "said pair")[len(names)]
                kind = "held-out pair" if asked == HELD_OUT else kind
                said = ", ".join(words_of(words, asked)) or "nothing"
                of_real = (real == asked)[:, np.array(asked) != 0].all(1).mean()
                row = {**facts, "scale": scale, "asked": said, "kind": kind, **row}
                rows.append({**row, "of_real": of_real, **single})
        return pd.DataFrame(rows).assign(judge_crc32=self.facts["judge_crc32"])

    def measure(self, folder: Path, run: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Write metrics/ of a run -> the rows of TABLES, those of attributes.csv."""
        path, training, rows = folder / "images" / "samples.npz", self.training(run), []
        samples, facts = load_samples(path), {"run": str(folder.relative_to(self.config.out))}
        facts |= {"model": folder.name, "seed": run["seed"]}
        facts["samples_crc32"] = zlib.crc32(path.read_bytes())
        seen = self.look(*(samples[x] for x in ("images", "labels", "prompts")), training)
        table = pd.DataFrame({x: samples[x] for x in ("kind", "scale")})
        groups = table[table["kind"] != "words"].groupby(["kind", "scale"], sort=False)
        for (kind, scale), group in progress(groups, folder.name, unit="group", leave=False):
            part = {x: array[group.index] for x, array in seen.items()}
            teach = kind != "held-out"
            taught = self.taught(part["pixels"], part["labels"]) if teach else np.nan
            row = {**facts, "kind": kind, "scale": scale, "train_on_samples": taught}
            rows.append(row | self.score(part))
        for n in sorted({min(row["n"], len(self.real[0])) for row in rows}):
            rows += self.floors(n, training)
        plain = table[table["kind"].isin(["trained", "unconditional"])].groupby("scale")
        self.save_judged(folder, seen, plain.head(SHOWN).index.to_numpy(), training)
        rows = pd.DataFrame(rows)
        asked = self.obedience(samples, seen["read"], run.get("attributes") or {}, facts)
        if len(asked):
            columns = asked.columns.drop("run")
            save_table(folder / "metrics" / "attributes.csv", asked[columns], "%.5g")
        for name, columns in TABLES.items():
            columns = f"{KEYS} {columns}".split()
            save_table(folder / "metrics" / f"{name}.csv", rows[columns], "%.5g")
        return rows, asked

    def save_judged(self, folder: Path, seen: dict, shown: np.ndarray, training) -> None:
        """For compare.py: the classes that are read, distances to training images, the nearest."""
        judged = {"read": seen["read"]}
        if training is not None:
            judged |= {"distances": seen["distances"], "nearest_rows": shown}
            judged["nearest"] = training[0].numpy()[seen["nearest"][shown, 0]]
            judged["real_distances"] = self.look(*self.real, training)["distances"]
        save_arrays(folder / "metrics" / "judged.npz", judged)

    def save_real(self) -> None:
        """The first real images, for compare.py."""
        n = max(260, len(self.names))
        arrays = {x: array[:n] for x, array in zip(("images", "labels", "prompts"), self.real)}
        save_arrays(self.config.out / self.config.name / "compare" / "real.npz", arrays)


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    runs, evaluator = find_runs(config), Evaluator(config)
    tables = [evaluator.measure(folder, run) for folder, run in runs.items()]
    evaluator.save_real()
    rows, asked = (pd.concat(parts) for parts in zip(*tables))
    rows = rows.sort_values("scale", key=pd.isna, kind="stable")  # floors last
    rows = rows.drop_duplicates(["run", "kind", "scale", "n"])
    shown = rows[["run", "kind", "scale", "n", *" ".join(TABLES.values()).split()]]
    shown = shown.drop(columns=["samples_crc32", "judge_crc32"]).astype(object)
    shown = shown.where(shown.notna(), None)
    print(shown.to_markdown(index=False, floatfmt=".4g", missingval="–"))
    if len(asked):
        shares = asked.pivot_table("as_asked", ["run", "scale"], "asked", sort=False)
        print("\nShare of images whose attributes are as asked, by formulas\n")
        print(shares.drop(columns="nothing").reset_index().to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
