"""The samples of a run: which prompts, noise and guidance scales they are generated from."""

import statistics
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
COLUMNS = "labels", "prompts", "kind", "scale", "noise", "asked"
PLAIN = "trained", "unconditional"  # kinds of prompts: training phrasings of the class; none


def groups_of(run: Run) -> dict[tuple[str, float], list[tuple]]:
    """(kind, guidance scale) -> COLUMNS of the images to generate.

    kind: trained, held-out (phrasings of the class alone), words (each combination of attributes,
    a third as many at scales other than the default), unconditional (no text; labels -1).
    noise: a number that seeds the image's noise. asked: per attribute -1 low, 1 high, 0 nothing.
    """
    config, groups, default = run.config, {}, type(run.config).scale
    if not config.has("prompt"):
        nothing = [(-1, "", "unconditional", 1.0, i, ()) for i in range(config.samples)]
        return {("unconditional", 1.0): nothing}
    words = [tuple(pair) for pair in run.saved.get("attributes", {}).values()]
    every = combinations(len(words))
    parts = [("trained", scale, config.samples, every[0]) for scale in config.scales]
    parts.append(("held-out", default, min(500, config.samples), every[0]))
    for scale in config.scales if words else ():
        n = max(1, config.samples // len(every) // (1 if scale == default else 3))
        if n > len(config.classes):  # equally many of each class
            n -= n % len(config.classes)
        parts += [("words", scale, n, asked) for asked in every]
    for kind, scale, n, asked in parts:
        templates = HELDOUT_TEMPLATES if kind == "held-out" else TRAIN_TEMPLATES
        texts = phrasings(config, templates, words_of(words, asked))
        for i in range(n):  # cycle through classes, then phrasings
            label = i % len(texts)
            prompt = texts[label][i // len(texts) % len(texts[label])]
            groups.setdefault((kind, scale), []).append((label, prompt, kind, scale, i, asked))
    return groups


def generators_of(seed: int, numbers) -> list[torch.Generator]:
    """A generator for each image, seeded by its number: its noise is the same in every batch."""
    return [torch.Generator().manual_seed((1_000_003 * seed + int(i)) % 2**32) for i in numbers]


def noise(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """-> (B, *shape), standard normal, each row from its image's generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def generate(run: Run, draw, prompts, scale: float, title: str, numbers=None):
    """-> pixels uint8 (n, 28, 28), images per second: the median over all batches but the first."""
    numbers, parts, speeds = numbers or range(len(prompts)), [], []
    if run.encoder is not None:
        run.check({"text_encoder_crc32": run.encoder.crc32})
        run.encoder.encode_text(prompts)  # remembered, so that it is not timed below
    with progress(desc=title, total=len(prompts), unit="image") as bar:
        for i in range(0, len(prompts), BATCH):
            batch, start = prompts[i : i + BATCH], time.perf_counter()
            generators = generators_of(run.config.seed, numbers[i : i + BATCH])
            parts.append(to_pixels(draw(batch, scale, generators)))
            speeds.append(len(batch) / (time.perf_counter() - start))
            bar.update(len(batch))
    return np.concatenate(parts), statistics.median(speeds[1:] or speeds)


def save_samples(run: Run, draw) -> None:
    """Write samples.npz and performance.csv, unless they exist. Resumes after the last group."""
    path, partial = run.images / "samples.npz", run.images / ".samples.npz"
    if path.exists():
        return
    groups, images, speeds = groups_of(run), np.zeros((0, 28, 28), np.uint8), []
    if partial.exists():
        images, speeds = (load_samples(partial)[name] for name in ("images", "speeds"))
    for (kind, scale), rows in [*groups.items()][len(speeds) :]:
        _, prompts, _, _, numbers, _ = zip(*rows)
        drawn, speed = generate(run, draw, prompts, scale, f"{kind}, scale {scale:g}", numbers)
        images, speeds = np.concatenate([images, drawn]), [*speeds, speed]
        save_arrays(partial, {"images": images, "speeds": speeds, "labels": images[:, 0, 0]})
    costs = [(scale, x) for (kind, scale), x in zip(groups, speeds) if kind in PLAIN]
    save_table(run.metrics / "performance.csv", [performance(run, *cost) for cost in costs])
    table = dict(zip(COLUMNS, map(np.array, zip(*sum(groups.values(), [])))))
    save_arrays(path, {"images": images, **table, "asked": table["asked"].astype(np.int8)})
    partial.unlink()


def load_samples(path: Path) -> dict[str, np.ndarray]:
    """Images uint8 (N, 28, 28), and COLUMNS as in groups_of(). UserError if the file is damaged."""
    with reading(path, "delete it; its script's command will generate it again, without training"):
        arrays = load_arrays(path)
        if arrays["images"].shape != (len(arrays["labels"]), 28, 28):
            raise ValueError(f"it holds images of the shape {arrays['images'].shape}")
        return arrays


def performance(run: Run, scale: float, speed: float) -> dict:
    """A row of performance.csv: the costs of training and sampling."""
    steps = np.diff([0, *(row["step"] for row in run.rows)])  # interruptions do not count
    images, memory = steps * run.config.batch_size, torch.cuda.max_memory_allocated() // 10**6
    seconds = sum(images / [row["images_per_second"] for row in run.rows])
    row = {"parameters": run.saved["parameters"], "train_seconds": round(seconds, 1)}
    row |= {"train_images_per_second": round(sum(images) / seconds, 1), "scale": scale}
    row |= {"sample_images_per_second": round(float(speed), 1), "device": str(run.device)}
    return row | {"sample_steps": run.config.sample_steps, "peak_memory_mb": memory or None}
