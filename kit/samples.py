"""The sample files of a run: what they hold, how they are drawn and read, and what they cost."""

import math
import statistics
import sys
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kit import processes
from kit.base import Progress, load_arrays, read_table, reading, save_arrays, save_table, say
from kit.captions import combinations, words_of
from kit.datasets import HELDOUT_TEMPLATES, TRAIN_TEMPLATES, phrasings
from kit.images import to_pixels
from kit.run import Run

BATCH = 100  # images drawn at a time
THROUGHOUT = "throughout"  # guidance at every step


# kind: which prompts, see prompts_of(). n: how many images. guidance: where it acts, as
# guidance_of() says it
SampleFile = namedtuple("SampleFile", "path kind scale n guidance")


def heldout_scale(config) -> float:
    """The guidance scale of held-out samples and of pictures of prompts: the script's default."""
    return type(config).scale


def guidance_of(interval, scale: float) -> str:
    """Where guidance acts: "t 300-700", "throughout", or "none" for a scale of 1."""
    if scale == 1:
        return "none"
    if scale < 1:  # less than the text asks for, down to 0, without it
        return THROUGHOUT
    return f"t {interval[0]}-{interval[1]}" if interval else THROUGHOUT


def sample_files(run: Run) -> list[SampleFile]:
    """A file for each scale, another one with guidance on the whole way where that differs."""
    config, files = run.config, []
    kind = "trained" if config.has_text else "none"
    for scale in config.scales:
        guidance = guidance_of(config.interval, scale)
        for where in dict.fromkeys((guidance, THROUGHOUT if scale != 1 else "none")):
            suffix = f"_{where}" if where != guidance else ""
            path = run.images / f"samples_w{scale}{suffix}.npz"
            files.append(SampleFile(path, kind, scale, config.samples, where))
    if config.has_text:
        scale, n = heldout_scale(config), min(500, config.samples)
        path = run.images / f"samples_heldout_w{scale}.npz"
        guidance = guidance_of(config.interval, scale)
        files.append(SampleFile(path, "held out", scale, n, guidance))
    if run.saved.get("attributes"):  # a run of an earlier version has none
        for scale in config.scales:
            path = run.images / f"samples_attributes_w{scale}.npz"
            guidance = guidance_of(config.interval, scale)
            files.append(SampleFile(path, "attributes", scale, config.samples, guidance))
    return files


def prompts_of(run: Run, kind: str, n: int) -> dict[str, np.ndarray]:
    """About n prompts -> arrays: prompts, labels int64 (n,), noise (n,): the number of each noise.

    kind: "none" for a script without text, "trained" or "held out" for a phrasing, "attributes"
    for prompts that say more than a class: these have asked, too, int8 (n, attributes), and the
    same noise for all that is asked of a class in a phrasing.
    """
    config = run.config
    if kind == "attributes":
        return attribute_prompts(config, run.saved["attributes"], n)
    templates = {"trained": TRAIN_TEMPLATES, "held out": HELDOUT_TEMPLATES}.get(kind)
    prompts, labels = balanced_prompts(config, templates, n)
    return {"prompts": np.array(prompts), "labels": labels.numpy(), "noise": np.arange(n)}


def attribute_prompts(config, attributes: dict, n: int) -> dict[str, np.ndarray]:
    """See prompts_of(); attributes: as config.json has them."""
    words, parts = [tuple(pair) for pair in attributes.values()], []
    every = combinations(len(words))
    each = max(1, n // len(every))
    if each > len(config.classes):  # as many of each class
        each -= each % len(config.classes)
    for combination in every:
        said = words_of(words, combination)
        prompts, labels = balanced_prompts(config, TRAIN_TEMPLATES, each, said)
        part = {"prompts": np.array(prompts), "labels": labels.numpy(), "noise": np.arange(each)}
        parts.append(part | {"asked": np.tile(np.array(combination, np.int8), (each, 1))})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def balanced_prompts(
    config, templates: dict | None, n: int, said: tuple[str, ...] = ()
) -> tuple[list[str], torch.Tensor]:
    """n prompts round the classes and their phrasings -> prompts, labels int64 (n,).

    Without templates each prompt is "" and each label -1. said: words of attributes in each.
    """
    if templates is None:
        return [""] * n, torch.full((n,), -1)
    texts = phrasings(config, templates, said)
    labels = torch.arange(n) % len(texts)
    prompts = []
    for i, label in enumerate(labels.tolist()):
        group = texts[label]
        prompts.append(group[i // len(texts) % len(group)])
    return prompts, labels


def generators_of(seed: int, images) -> list[torch.Generator]:
    """One for each image, by its number: what it draws depends neither on batch nor on device."""
    return [torch.Generator().manual_seed((1_000_003 * seed + int(i)) % 2**32) for i in images]


def noise(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """-> (B, *shape), standard normal, each row by its image's generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def draw_all(run: Run, draw, prompts: list[str], scale, what: str, shared=False, numbers=None):
    """-> pixels uint8 (n, 28, 28), images per second. shared: all processes draw, the first gets.

    The noise of image i depends on --seed and numbers[i], or i, alone. The speed is the median
    over batches, without the first one if there are more: it warms up. Prompts are encoded before.
    """
    if run.encoder is not None:
        run.encode(prompts)
    numbers = range(len(prompts)) if numbers is None else numbers
    parts, speeds, starts = {}, [], range(0, len(prompts), BATCH)
    mine = starts[processes.RANK :: processes.COUNT] if shared else starts
    with Progress(desc=what, total=sum(len(prompts[i : i + BATCH]) for i in mine)) as bar:
        for i in mine:
            batch, start = prompts[i : i + BATCH], time.perf_counter()
            generators = generators_of(run.config.seed, numbers[i : i + BATCH])
            parts[i] = to_pixels(draw(batch, scale, generators))
            speeds.append(len(batch) / (time.perf_counter() - start))
            bar.update(len(batch))
    speed = statistics.median(speeds[1:] or speeds or [0.0])
    everyone = processes.gather((parts, speed)) if shared else [(parts, speed)]
    parts = {i: pixels for some, _ in everyone for i, pixels in some.items()}
    pixels = np.concatenate([parts[i] for i in starts]) if parts else None
    return pixels, sum(speed for _, speed in everyone)


def save_samples(run: Run, draw) -> None:
    """Write those sample files that are not there yet, and what they cost into performance.csv.

    All processes draw, the first one writes.
    """
    rows, files = processes.from_first(lambda: missing_files(run))
    if files and processes.RANK == 0:  # a picture of others would pass for one of these
        (run.images / "samples.png").unlink(missing_ok=True)
    for file in files:
        arrays = prompts_of(run, file.kind, file.n)
        throughout = file.path.stem.endswith(THROUGHOUT)
        draw_so = partial(draw, interval=(0, math.inf)) if throughout else draw
        what = f"samples, scale {file.scale:g}{', throughout' if throughout else ''}"
        prompts, numbers = arrays["prompts"].tolist(), arrays["noise"]
        pixels, speed = draw_all(run, draw_so, prompts, file.scale, what, True, numbers)
        if processes.RANK > 0:
            continue
        if tells_costs(file):
            key = file.scale, file.guidance
            rows[key] = performance(run, *key, speed)
            save_table(run.metrics / "performance.csv", list(rows.values()))
        del arrays["noise"]
        save_arrays(file.path, {"images": pixels, **arrays})


def tells_costs(file: SampleFile) -> bool:
    """Whether a row of performance.csv tells what these samples cost."""
    return file.kind in ("trained", "none")


def missing_files(run: Run) -> tuple[dict, list[SampleFile]]:
    """-> earlier_performance(), the sample files that are still to be drawn."""
    rows, files = earlier_performance(run), []
    for file in sample_files(run):
        row_there = (file.scale, file.guidance) in rows or not tells_costs(file)
        if not (file.path.exists() and row_there):
            files.append(file)
    return rows, files


DRAWN_ANEW = "move it away and give its script's command again, which draws it anew"


def load_samples(path: Path, classes: int = 2**31, remedy: str = DRAWN_ANEW):
    """-> images uint8 (N, 28, 28), labels int64 (N,), prompts (N,).

    UserError if the file holds anything else, or fewer than 2 images. Labels are all below
    classes, or all -1.
    """
    with reading(path, remedy):
        images, labels, prompts = load_arrays(path, "images", "labels", "prompts").values()
        n, shape = len(labels), f"{images.dtype} {images.shape}"
        if images.dtype != np.uint8 or images.shape != (n, 28, 28) or n < 2:
            raise ValueError(f"holds {shape}, {n} labels, not uint8 (N, 28, 28), N > 1")
        if labels.dtype.kind != "i" or labels.shape != (n,):
            raise ValueError(f"labels are {labels.dtype} {labels.shape}, not int64 ({n},)")
        if prompts.dtype.kind != "U" or prompts.shape != (n,):
            raise ValueError(f"prompts are {prompts.dtype} {prompts.shape}, not text ({n},)")
        least, most = labels.min(), labels.max()
        if not (0 <= least <= most < classes or least == most == -1):
            raise ValueError(f"labels go from {least} to {most}, not from 0 to {classes - 1}")
    return images, labels.astype(np.int64), prompts


def load_asked(path: Path, attributes: int) -> np.ndarray:
    """Of a sample file: what was asked of each attribute, -1, 0 or 1, int8 (N, attributes)."""
    with reading(path, DRAWN_ANEW):
        asked, labels = load_arrays(path, "asked", "labels").values()
        if asked.dtype.kind != "i" or asked.shape != (len(labels), attributes):
            wanted = f"not int8 ({len(labels)}, {attributes})"
            raise ValueError(f"asked is {asked.dtype} {asked.shape}, {wanted}")
        if {*map(tuple, asked.tolist())} != {*combinations(attributes)}:
            raise ValueError("asked holds other combinations than there are")
    return asked.astype(np.int8)


def load_film(path: Path) -> dict[str, np.ndarray]:
    """What save_film() wrote: frames uint8 (P, S, M, 28, 28), prompts (P,), scales float (S,),
    moments (M,). UserError if the file holds anything else.
    """
    with reading(path, DRAWN_ANEW):
        film = load_arrays(path, "frames", "prompts", "scales", "moments")
        kinds = {"prompts": "U", "scales": "f", "moments": "U"}
        for name, kind in kinds.items():
            if film[name].dtype.kind != kind or film[name].ndim != 1 or not len(film[name]):
                raise ValueError(f"{name} are {film[name].dtype} {film[name].shape}")
        shape = *(len(film[name]) for name in kinds), 28, 28
        frames = film["frames"]
        if frames.dtype != np.uint8 or frames.shape != shape:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 {shape}")
    return film


# ── What they cost ──


def earlier_performance(run: Run) -> dict[tuple[float, str], dict]:
    """(scale, where guidance acts) -> its row of performance.csv."""
    path = run.metrics / "performance.csv"
    if not path.exists():
        return {}
    remedy = "move it away and give the command again, which draws the samples anew"
    table = read_table(path, ("scale", "guidance"), remedy)
    with reading(path, remedy):
        return {(float(row["scale"]), row["guidance"]): row for row in table.to_dict("records")}


def performance(run: Run, scale: float, guidance: str, speed: float) -> dict:
    """A row of performance.csv."""
    config, seconds = run.config, training_seconds(run)
    trained, alone = config.train_steps * config.batch_size, processes.COUNT == 1
    return {
        "parameters": run.saved["parameters"],
        "train_seconds": round(seconds, 1),
        "train_images_per_second": round(trained / seconds, 1),
        "scale": scale,
        "guidance": guidance,
        "sample_images_per_second": round(speed, 1),
        "sample_steps": config.sample_steps,
        "peak_memory_mb": round(peak_memory_mb(run.device)),
        "device": str(run.device) if alone else f"{processes.COUNT} x {run.device.type}",
    }


def training_seconds(run: Run) -> float:
    """By loss.csv, so that it holds for a run with interruptions too."""
    path, columns = run.metrics / "loss.csv", ("step", "images_per_second")
    if not path.exists():
        return math.nan
    remedy = "delete it: only the curve is lost"
    log = read_table(path, columns, remedy)
    with reading(path, remedy):
        log = log[[*columns]].astype(float)
        images = log["step"].diff().fillna(log["step"]) * run.config.batch_size
        return float((images / log["images_per_second"]).sum()) or math.nan


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB: the GPU's, else this process's (nan on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# ── A whole run ──


def complete(run: Run) -> bool:
    """Whether all that a run leaves is on disk; if so, says it. Never so with --prompt."""
    if run.config.prompt is not None or not processes.from_first(lambda: has_all(run)):
        return False
    say(f"{run.folder} is complete; --fresh starts over")
    return True


def has_all(run: Run) -> bool:
    names = ["images/samples.png", "images/denoising.png", "plots/loss.png"]
    names += ["images/prompts.png"] if run.config.has_text else []
    names += ["images/film.npz"] if run.config.has_guidance else []
    names += ["images/reconstructions.png"] if run.config.reconstructs else []
    names += ["metrics/performance.csv"]
    paths = [run.folder / name for name in names] + [file.path for file in sample_files(run)]
    trained = run.step == run.config.train_steps
    return trained and run.drawn_alike() and all(path.exists() for path in paths)
