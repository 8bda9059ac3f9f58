"""The table of generated images: which prompts, from which noise, at which guidance scale."""

import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from kit.captions import combinations, words_of
from kit.data import to_pixels
from kit.files import load_arrays, progress, reading, save_arrays, save_table
from kit.run import Run
from kit.words import HELDOUT_TEMPLATES, TRAIN_TEMPLATES, phrasings

BATCH = 100  # images generated at a time
HELD_OUT = 500  # images of held-out phrasings, at most


def table_of(run: Run) -> dict[str, np.ndarray]:
    """What is generated, a row for each image: labels, prompts, kind, scale, asked, noise.

    kind   "unconditional": a script without text, labels -1; "trained": phrasings of the training,
           the class alone; "held-out": other phrasings, at the default scale; "words": what else
           a prompt may ask for, at other scales than the default a third as many
    asked  of each attribute -1 low, 1 high, 0 nothing
    noise  the number of the image's noise: the same noise for all that is asked of a class
    """
    config, rows = run.config, []
    words = [tuple(pair) for pair in run.saved.get("attributes", {}).values()]
    plain = (0,) * len(words)
    for scale in config.scales:
        kind = "trained" if config.has("prompt") else "unconditional"
        rows += rows_of(config, kind, scale, config.samples, words, plain)
    if config.has("prompt"):
        n = min(HELD_OUT, config.samples)
        rows += rows_of(config, "held-out", type(config).scale, n, words, plain)
    for scale in config.scales if words else ():
        n = config.samples if scale == type(config).scale else config.samples // 3
        each = max(1, n // len(combinations(len(words))))
        if each > len(config.classes):  # as many of each class
            each -= each % len(config.classes)
        for combination in combinations(len(words)):
            rows += rows_of(config, "words", scale, each, words, combination)
    names = "labels", "prompts", "kind", "scale", "noise", "asked"
    table = dict(zip(names, map(np.array, zip(*rows))))
    types = {"labels": np.int64, "scale": np.float64, "noise": np.int64, "asked": np.int8}
    return table | {name: table[name].astype(kind) for name, kind in types.items()}


def rows_of(config, kind: str, scale: float, n: int, words, combination) -> list[tuple]:
    """n rows of table_of(), in turn of the classes and of their phrasings."""
    if kind == "unconditional":
        return [(-1, "", kind, scale, i, combination) for i in range(n)]
    templates = HELDOUT_TEMPLATES if kind == "held-out" else TRAIN_TEMPLATES
    texts = phrasings(config, templates, words_of(words, combination))
    rows = []
    for i in range(n):
        label = i % len(texts)
        prompt = texts[label][i // len(texts) % len(texts[label])]
        rows.append((label, prompt, kind, scale, i, combination))
    return rows


def generators_of(seed: int, numbers) -> list[torch.Generator]:
    """A generator for each image, by the number of its noise: neither batch nor device matters."""
    return [torch.Generator().manual_seed((1_000_003 * seed + int(i)) % 2**32) for i in numbers]


def noise(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """-> (B, *shape), standard normal, each row from its image's generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def generate(run: Run, draw, prompts, scale: float, title: str, numbers=None):
    """-> pixels uint8 (n, 28, 28), images per second.

    numbers: of the noise of each image; None: 0, 1, 2, ... The speed is the median over batches,
    without the first one, which warms up, and without the text encoder.
    """
    prompts = [str(prompt) for prompt in prompts]
    numbers = range(len(prompts)) if numbers is None else numbers
    if run.encoder is not None:
        run.encoder.encode(prompts)  # kept by the encoder
    parts, speeds = [], []
    with progress(desc=title, total=len(prompts), unit="image") as bar:
        for i in range(0, len(prompts), BATCH):
            batch, start = prompts[i : i + BATCH], time.perf_counter()
            generators = generators_of(run.config.seed, numbers[i : i + BATCH])
            parts.append(to_pixels(draw(batch, scale, generators)))
            speeds.append(len(batch) / (time.perf_counter() - start))
            bar.update(len(batch))
    return np.concatenate(parts), statistics.median(speeds[1:] or speeds)


def save_samples(run: Run, draw) -> None:
    """Write samples.npz and performance.csv, unless they are there. Resumes after the last group,
    which is all images of one kind at one scale.
    """
    done, partial = run.images / "samples.npz", run.images / ".samples.npz"
    if done.exists():
        return
    table, pixels, speeds = table_of(run), np.zeros((0, 28, 28), np.uint8), np.zeros(0)
    if partial.exists():
        pixels, speeds = (load_samples(partial)[name] for name in ("images", "speed"))
    new = (table["kind"][1:] != table["kind"][:-1]) | (table["scale"][1:] != table["scale"][:-1])
    starts = [0, *(np.flatnonzero(new) + 1)]
    for start, end in zip(starts, [*starts[1:], len(table["kind"])]):
        if end <= len(pixels):
            continue
        scale, (prompts, numbers) = (
            table["scale"][start],
            (table[x][start:end] for x in ("prompts", "noise")),
        )
        title = f"{table['kind'][start]}, scale {scale:g}"
        drawn, speed = generate(run, draw, prompts, float(scale), title, numbers)
        pixels, speeds = np.concatenate([pixels, drawn]), np.append(speeds, [speed] * len(drawn))
        arrays = {
            "images": pixels,
            "speed": speeds,
            **{x: column[:end] for x, column in table.items()},
        }
        save_arrays(partial, arrays)
    plain = [i for i in starts if table["kind"][i] in ("trained", "unconditional")]
    rows = [performance(run, float(table["scale"][i]), float(speeds[i])) for i in plain]
    save_table(run.metrics / "performance.csv", rows)
    save_arrays(done, {"images": pixels, **table})
    partial.unlink()


def load_samples(path: Path) -> dict[str, np.ndarray]:
    """Read samples.npz: see table_of(), and images uint8 (N, 28, 28). UserError if damaged."""
    with reading(path, "delete it; its script's command generates it again, without training"):
        arrays = load_arrays(path)
        if arrays["images"].shape != (len(arrays["labels"]), 28, 28):
            raise ValueError(f"images are {arrays['images'].shape}")
        return arrays


def performance(run: Run, scale: float, speed: float) -> dict:
    """A row of performance.csv: what training and sampling cost."""
    config, before, seconds = run.config, 0, 0.0
    for row in run.rows:  # so that interruptions do not count
        seconds += (row["step"] - before) * config.batch_size / row["images_per_second"]
        before = row["step"]
    return {
        "parameters": run.saved["parameters"],
        "train_seconds": round(seconds, 1),
        "train_images_per_second": round(before * config.batch_size / seconds, 1),
        "scale": scale,
        "sample_images_per_second": round(speed, 1),
        "sample_steps": config.sample_steps,
        "peak_memory_mb": round(peak_memory_mb(run.device)),
        "device": str(run.device),
    }


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB: the GPU's, else this process's (nan on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
