"""Measures the runs of a data set from their samples: how real, how diverse, how obedient.

Command   python evaluate.py --dataset mnist: all runs in results/mnist and results/*/mnist
Writes    into metrics/ of each run four tables, and judged.npz for the figures of compare.py
Judge     kit/judge.py, a small CNN trained on real images alone, reads the class of each image
Reference half of the held-out real images; the other half, and noise, are measured like a model
Metrics   by kit/metrics.py and frechet_distance() in common.py; docs/4-measuring.md explains them
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
from kit import attributes, captions, judge, metrics
from kit.config import DataConfig
from kit.data import embedded_mnist, load_dataset, to_images
from kit.files import UserError, memory, pick_device, progress, save_arrays, save_table, say
from kit.run import read_config
from kit.samples import PLAIN, load_samples
from kit.words import TRAIN_TEMPLATES, class_names, phrasings

REFERENCE = 5000  # images in the reference and in the real images beside it, at most
LEAST = 200  # with a smaller reference, FID and similar metrics mean nothing
SHOWN = 26  # images of a group that a picture shows beside their nearest training images
LEARNED = "classes", "emnist_split", "per_class"  # must be the same in runs that are compared
STYLE = "thickness", "slant", "ink", "shape"  # measures of kit/attributes.py
KEYS = "model kind scale n seed extractor text_encoder"
TABLES = {  # file -> its columns, besides KEYS
    "mse_diversity": "mse_diversity of_real train_on_samples copied nearer_training",
    "clip_sim_scores": "clip_similarity with_wrong_prompts accuracy accuracy_low accuracy_high",
    "fid_scores": "fid kid kid_se density coverage fd_pixels fd_style fid_balanced class_mix "
    "reference samples_crc32 judge_crc32",
}


@dataclass
class Config(DataConfig):
    models: tyro.conf.Positional[tuple[str, ...]] = ()  # such as a4_full; none: every run found
    out: Path = Path("results")  # where runs are kept
    extractor: Literal["judge", "inception"] = "judge"  # whose features FID compares
    clip: str = "auto"  # for clip_similarity: tiny, ViT-B/32 or a file
    device: str = "auto"  # cpu, cuda, ...


def find_runs(config: Config) -> dict[Path, dict]:
    """Runs with samples that learned the same: folder -> config.json. Sets config.classes."""
    found, name, wanted = {}, glob.escape(config.name), [Path(x).stem for x in config.models]
    places = [f"{where}/[!.]*/images/samples*.npz" for where in (name, f"*/{name}")]
    folders = [path.parent.parent for x in places for path in sorted(config.out.glob(x))]
    for folder in dict.fromkeys(x for x in folders if not wanted or x.name in wanted):
        try:
            run = {x: getattr(config, x) for x in LEARNED} | read_config(folder)
        except UserError as error:  # damaged, or of an earlier version
            say(f"left out: {error.text}")
            continue
        chosen = next(iter(found.values()), run)
        if run["script"] != folder.name:
            say(f"left out: {folder}, which is a renamed run of {run['script']}")
        elif any(run[x] != chosen[x] for x in LEARNED):
            say(f"left out: {folder}, which learned other classes than {next(iter(found))}")
        else:
            found[folder] = run
    for path in (x for y in (name, f"*/{name}", f"{name}/[!.]*") for x in config.out.glob(y)):
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            say(f"left out: {path}, which may not be read")
    names = [folder.name for folder in found]
    for name in wanted or names or ["a4_full"]:
        if name not in names:
            first = f"python {name}.py --dataset {config.dataset}"
            raise UserError(f"no samples of {name} in {config.out / config.name}; first: {first}")
    config.emnist_split, config.per_class = chosen["emnist_split"], chosen["per_class"]
    config.classes = tuple(chosen["classes"])
    if class_names(config) != config.classes:
        raise UserError(f"{config.dataset} has other classes now than {next(iter(found))} learned")
    return found


def training_images(config: Config, run: dict) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The images and labels that a run was trained on; None if they are not the ones here."""
    embedded = run.get("data_source") == "embedded"
    pixels, labels = embedded_mnist("train") if embedded else load_dataset(config)[:2]
    if zlib.crc32(labels.numpy(), zlib.crc32(pixels.numpy())) == run.get("data_crc32"):
        return pixels, labels
    say(f"{run['script']} was trained on other images than those here: no copied share")
    return None


def is_measured(folder: Path, config: Config) -> bool:
    """Whether these samples have been measured with the networks that config names."""
    here, network = folder / "metrics", judge.judge_path(config)
    names = [*TABLES, "attributes"] if read_config(folder).get("attributes") else TABLES
    files = [here / "judged.npz", network, *(here / f"{name}.csv" for name in names)]
    if not all(file.exists() for file in files):
        return False
    row = pd.read_csv(here / "fid_scores.csv", dtype=str).iloc[0]
    samples, known = (zlib.crc32(x.read_bytes()) for x in (folder / "images/samples.npz", network))
    wanted = str(samples), f"{known:08x}", config.extractor
    same = (*row[["samples_crc32", "judge_crc32", "extractor"]],) == wanted and "fd_style" in row
    return same and config.clip in ("auto", row["text_encoder"])


def distances(seen: dict, real: dict) -> dict[str, float]:
    """Of what Evaluator.see() returns from the reference: columns of fid_scores.csv."""
    (features, others), values = (x["features"] for x in (seen, real)), [np.nan] * 7
    n, scaled = min(len(features), len(others)), metrics.standardised(real["style"])
    if len(others) >= LEAST and n > 5:
        values = [common.frechet_distance(features, others), *metrics.kid(features, others)]
        values += metrics.density_coverage(others[:n], features[:n])  # as many on both sides
        values.append(common.frechet_distance(seen["components"], real["components"]))
        values.append(common.frechet_distance(scaled(seen["style"]), scaled(real["style"])))
    return dict(zip(TABLES["fid_scores"].split(), values))


class Evaluator:
    """Measures images against held-out real ones. Slow results are cached in --data-dir."""

    def __init__(self, config: Config):
        self.config, self.names = config, config.classes
        self.device, cache = pick_device(config.device), memory(config.data_dir).cache
        self.apply = cache(metrics.apply, ignore=["function"])
        self.taught = cache(judge.taught, ignore=["device"])
        self.nearest, self.measured = cache(metrics.nearest), cache(attributes.measure_all)
        self.judge = judge.load_judge(config, self.device)
        self.clip = common.load_clip(config, self.device)
        if config.extractor == "inception":
            self.inception = common.inception_features(self.device)
        held_out = load_dataset(config, "test")[:2]
        self.held_out = metrics.round_the_classes(*held_out, len(self.names), 2 * REFERENCE)
        self.test = *self.held_out, len(self.names), self.device
        half = len(self.held_out[0]) // (2 * len(self.names)) * len(self.names)
        if not half:
            raise UserError(f"{config.dataset}: a class has fewer than 2 held-out images")
        if half < LEAST:
            say(f"{half} held-out images, not {LEAST}: FID and similar metrics are left empty")
        self.diversity = pd.Series(metrics.mse_diversity(*self.held_out))
        pixels = self.held_out[0][:half]
        self.components = metrics.components(pixels)
        self.reference = {"pixels": pixels} | self.see(pixels)
        texts = phrasings(config, TRAIN_TEMPLATES)
        prompts = [texts[i % len(texts)][i // len(texts) % len(texts[0])] for i in range(half)]
        self.real = [array[half : 2 * half] for array in self.held_out] + [np.array(prompts)]
        self.facts = {"extractor": config.extractor, "text_encoder": self.clip.name}
        self.facts |= {"judge_crc32": f"{self.judge.crc32:08x}", "reference": half}

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        return self.clip.encode_image(to_images(torch.from_numpy(pixels))).cpu().numpy()

    def see(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (n, 28, 28) -> measurements by networks and formulas, a row for each image.

        features (n, d) of the extractor, read (n,): the class that the judge reads, components
        (n, 64) of the pixels, style (n, 4): STYLE, as kit/attributes.py measures it.
        """
        features, read = self.apply(self.judge.see, f"judge {self.judge.crc32:08x}", pixels)
        if self.config.extractor == "inception":
            features = self.apply(self.inception, "inception", pixels)
        seen = {"features": features, "read": read, "components": self.components(pixels)}
        return seen | {"style": self.measured(pixels, [*STYLE])}

    def look(self, pixels, labels, prompts, training) -> dict[str, np.ndarray]:
        """Images uint8 (n, 28, 28), their classes and prompts -> what each is by itself."""
        seen = {"pixels": pixels, "labels": labels, "prompts": prompts, **self.see(pixels)}
        if labels.min() >= 0:
            seen["embeddings"] = self.apply(self.embed, f"CLIP {self.clip.crc32:08x}", pixels)
        if training is not None:
            seen["nearest"], seen["distances"] = self.nearest(pixels, training[0].numpy())
            held_out = self.reference["pixels"]
            as_many, _ = metrics.round_the_classes(*training, len(self.names), len(held_out))
            near = [self.nearest(pixels, x)[1][:, 0] for x in (as_many, held_out[: len(as_many)])]
            seen["nearer"] = near[0] < near[1]
        return seen

    def score(self, seen: dict) -> dict:
        """Columns of a group of images, see look(). Without labels those that are read count."""
        labels, read, asked = seen["labels"], seen["read"], seen["labels"].min() >= 0
        diversity = metrics.mse_diversity(seen["pixels"], labels if asked else read)
        diversity = pd.Series(diversity, dtype=float)
        real = self.diversity[diversity.index].replace(0, np.nan)  # 0: all its images are alike
        of_real = (diversity / real).dropna()
        row = {"n": len(read), **self.facts, **distances(seen, self.reference)}
        row["mse_diversity"] = diversity.mean()
        row["of_real"] = diversity[of_real.index].mean() / real.mean()
        row["copied"] = metrics.copied(seen["distances"]) if "distances" in seen else np.nan
        row["nearer_training"] = seen["nearer"].mean() if "nearer" in seen else np.nan
        if not asked:  # nothing chose the classes
            counts, rows = np.bincount(read, minlength=len(self.names)), metrics.balanced(read)
            even = {name: array[rows] for name, array in seen.items()}
            row["class_mix"] = " ".join(map("{:.3f}".format, counts / len(read)))
            return row | {"fid_balanced": distances(even, self.reference)["fid"]}
        texts = self.clip.encode_text(seen["prompts"].tolist()).cpu().numpy()
        right = float((read == labels).mean())
        values = [*metrics.similarity(seen["embeddings"], texts, labels), right]
        values += metrics.wilson(right, len(read))
        return row | dict(zip(TABLES["clip_sim_scores"].split(), values))

    def baselines(self, n: int, training) -> list[dict]:
        """Rows of n real images and of n of noise, in place of a model's."""
        pixels, labels, prompts = (array[:n] for array in self.real)
        noise = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
        lessons, rows = {"real images": (pixels, labels), "noise": (noise, labels)}, []
        if training is not None:  # the real images are part of the test
            lessons["real images"] = metrics.round_the_classes(*training, len(self.names), n)
        for name, images in (("real images", pixels), ("noise", noise)):
            row = {"model": name, "kind": "trained", "seed": 0, "samples_crc32": ""}
            row |= self.score(self.look(images, labels, prompts, training))
            rows.append(row | {"train_on_samples": self.taught(*lessons[name], *self.test)})
        return rows

    def obedience(self, samples: dict, seen: dict, chosen: dict, facts: dict) -> pd.DataFrame:
        """A row for each scale and for each combination of attributes that prompts ask for."""
        words, rows = [tuple(pair) for pair in chosen.values()], []
        first = STYLE.index(attributes.measures_of(self.config)[0])
        about = slice(first, first + 2)  # the two measures that words are about
        real = self.measured(self.real[0], [*STYLE])[:, about]
        real = attributes.states(self.config, real, chosen)
        right = seen["read"] == samples["labels"]
        asking = samples["kind"] == "words"
        for scale in dict.fromkeys(samples["scale"][asking].tolist()):
            i = asking & (samples["scale"] == scale)
            shown = attributes.states(self.config, seen["style"][i][:, about], chosen)
            for asked, row in metrics.obedience(samples["asked"][i], shown, right[i]).items():
                kind = ("nothing", "one word", "said pair")[sum(map(abs, asked))]
                kind = "held-out pair" if asked == captions.HELD_OUT else kind
                said = ", ".join(captions.words_of(words, asked)) or "nothing"
                row["of_real"] = (real == asked)[:, np.array(asked) != 0].all(1).mean()
                row |= dict(zip(chosen, row.pop("single")))
                rows.append({**facts, "scale": scale, "asked": said, "kind": kind, **row})
        return pd.DataFrame(rows).assign(judge_crc32=self.facts["judge_crc32"])

    def measure(self, folder: Path, run: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Write metrics/ of a run -> the rows of TABLES, those of attributes.csv."""
        path, training = folder / "images" / "samples.npz", training_images(self.config, run)
        samples, crc32, rows = load_samples(path), zlib.crc32(path.read_bytes()), []
        facts = {"model": folder.name, "seed": run["seed"], "samples_crc32": crc32}
        seen = self.look(*(samples[x] for x in ("images", "labels", "prompts")), training)
        table = pd.DataFrame({x: samples[x] for x in ("kind", "scale")})
        groups = table[table["kind"] != "words"].groupby(["kind", "scale"], sort=False)
        for (kind, scale), group in progress(groups, folder.name, unit="group", leave=False):
            part = {x: array[group.index] for x, array in seen.items()}
            row = {**facts, "kind": kind, "scale": scale, **self.score(part)}
            if kind != "held-out":
                row["train_on_samples"] = self.taught(part["pixels"], part["labels"], *self.test)
            rows.append(row)
        for n in sorted({min(row["n"], len(self.real[0])) for row in rows}):
            rows += self.baselines(n, training)
        rows, judged = pd.DataFrame(rows), {"read": seen["read"]}
        if training is not None:
            shown = table[table["kind"].isin(PLAIN)].groupby("scale").head(SHOWN).index.to_numpy()
            nearest = training[0].numpy()[seen["nearest"][shown, 0]]
            judged |= {"nearest": nearest, "nearest_rows": shown}
        save_arrays(folder / "metrics" / "judged.npz", judged)
        asked = self.obedience(samples, seen, run.get("attributes") or {}, facts)
        if len(asked):
            save_table(folder / "metrics" / "attributes.csv", asked, "%.5g")
        for name, columns in TABLES.items():
            chosen = rows.reindex(columns=f"{KEYS} {columns}".split())
            save_table(folder / "metrics" / f"{name}.csv", chosen, "%.5g")
        return rows, asked


def save_real(evaluator: Evaluator) -> None:
    """Save the first real images, for compare.py."""
    config, n = evaluator.config, max(260, len(evaluator.names))
    arrays = {x: array[:n] for x, array in zip(("images", "labels", "prompts"), evaluator.real)}
    save_arrays(config.out / config.name / "compare" / "real.npz", arrays)


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    runs = find_runs(config)
    evaluator = Evaluator(config)
    tables = zip(*(evaluator.measure(folder, run) for folder, run in runs.items()))
    names = [str(folder.relative_to(config.out)) for folder in runs]
    rows, asked = (pd.concat(x, keys=names, names=["run"]).reset_index("run") for x in tables)
    save_real(evaluator)
    rows["run"] = rows["run"].mask(rows["scale"].isna(), rows["model"])  # the same for all runs
    shown = rows.drop(columns=["model", "seed", "samples_crc32", "judge_crc32"])
    shown = shown.drop_duplicates(["run", "kind", "scale", "n"]).astype(object)
    shown = shown.where(shown.notna(), None).sort_values("scale", key=pd.isna, kind="stable")
    print(shown.to_markdown(index=False, floatfmt=".4g", missingval="–"))
    if len(asked):
        shares = asked.pivot_table("as_asked", ["run", "scale"], "asked", sort=False)
        print("\nShare of images whose attributes are as asked, by formulas\n")
        print(shares.drop(columns="nothing").reset_index().to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
