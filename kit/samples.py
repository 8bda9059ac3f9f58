"""The table of generated images: which prompts, from which noise, at which guidance scale."""

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


def table_of(run: Run) -> dict[str, np.ndarray]:
    """What is generated, an entry for each image: labels, prompts, kind, scale, noise, asked.

    kind   "trained": phrasings of the training, the class alone; "held-out": 500 of other ones, at
           the default scale; "words": all that prompts may ask for besides the class, a third as
           many at other scales than the default; "unconditional": a script without text, labels -1
    noise  the number of the image's noise: a class has the same for all that is asked of it
    asked  of each attribute -1 low, 1 high, 0 nothing
    """
    config, rows, default = run.config, [], type(run.config).scale
    words = [tuple(pair) for pair in run.saved.get("attributes", {}).values()]
    every = combinations(len(words))

    def add(kind: str, scale: float, n: int, combination: tuple[int, ...]) -> None:
        templates = HELDOUT_TEMPLATES if kind == "held-out" else TRAIN_TEMPLATES
        texts = phrasings(config, templates, words_of(words, combination))
        for i in range(n):  # in turn of the classes, and of their phrasings
            label = i % len(texts)
            prompt = texts[label][i // len(texts) % len(texts[label])]
            if kind == "unconditional":
                label, prompt = -1, ""
            rows.append((label, prompt, kind, scale, i, combination))

    for scale in config.scales:
        add("trained" if config.has("prompt") else "unconditional", scale, config.samples, every[0])
    if config.has("prompt"):
        add("held-out", default, min(500, config.samples), every[0])
    for scale in config.scales if words else ():
        n = max(1, config.samples // len(every) // (1 if scale == default else 3))
        if n > len(config.classes):  # as many of each class
            n -= n % len(config.classes)
        for combination in every:
            add("words", scale, n, combination)
    names = "labels", "prompts", "kind", "scale", "noise", "asked"
    table = dict(zip(names, map(np.array, zip(*rows))))
    return table | {"scale": table["scale"].astype(float), "asked": table["asked"].astype(np.int8)}


def generators_of(seed: int, numbers) -> list[torch.Generator]:
    """A generator for each image, by the number of its noise: neither batch nor device matters."""
    return [torch.Generator().manual_seed((1_000_003 * seed + int(i)) % 2**32) for i in numbers]


def noise(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """-> (B, *shape), standard normal, each row from its image's generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def generate(run: Run, draw, prompts, scale: float, title: str, numbers=None):
    """-> pixels uint8 (n, 28, 28), images per second. numbers: of the noise of each image.

    The speed is the median over batches, without the first one, and without the text encoder.
    """
    prompts, parts, speeds = [str(prompt) for prompt in prompts], [], []
    numbers = range(len(prompts)) if numbers is None else numbers
    if run.encoder is not None:
        run.encoder.encode(prompts)  # it remembers them
    with progress(desc=title, total=len(prompts), unit="image") as bar:
        for i in range(0, len(prompts), BATCH):
            batch, start = prompts[i : i + BATCH], time.perf_counter()
            generators = generators_of(run.config.seed, numbers[i : i + BATCH])
            parts.append(to_pixels(draw(batch, scale, generators)))
            speeds.append(len(batch) / (time.perf_counter() - start))
            bar.update(len(batch))
    return np.concatenate(parts), statistics.median(speeds[1:] or speeds)


def save_samples(run: Run, draw) -> None:
    """Write samples.npz and performance.csv, unless they are there. An interrupted call resumes
    after the last group: all images of one kind at one scale.
    """
    path, partial = run.images / "samples.npz", run.images / ".samples.npz"
    if path.exists():
        return
    table, images, speeds = table_of(run), np.zeros((0, 28, 28), np.uint8), np.zeros(0)
    if partial.exists():
        images, speeds = (load_samples(partial)[name] for name in ("images", "speeds"))
    kinds, scales = table["kind"], table["scale"]
    new = (kinds[1:] != kinds[:-1]) | (scales[1:] != scales[:-1])
    starts = [0, *(np.flatnonzero(new) + 1)]
    groups = [*zip(starts, [*starts[1:], len(kinds)])]
    for start, end in groups[len(speeds) :]:
        prompts, numbers = table["prompts"][start:end], table["noise"][start:end]
        title = f"{kinds[start]}, scale {scales[start]:g}"
        drawn, speed = generate(run, draw, prompts, float(scales[start]), title, numbers)
        images, speeds = np.concatenate([images, drawn]), np.append(speeds, speed)
        so_far = {name: column[:end] for name, column in table.items()}
        save_arrays(partial, so_far | {"images": images, "speeds": speeds})
    plain = ("trained", "unconditional")
    rows = [performance(run, scales[i], x) for i, x in zip(starts, speeds) if kinds[i] in plain]
    save_table(run.metrics / "performance.csv", rows)
    save_arrays(path, table | {"images": images})
    partial.unlink()


def load_samples(path: Path) -> dict[str, np.ndarray]:
    """table_of(), and images uint8 (N, 28, 28). UserError if the file is damaged."""
    with reading(path, "delete it, and its script's command generates it again, without training"):
        arrays = load_arrays(path)
        if arrays["images"].shape != (len(arrays["labels"]), 28, 28):
            raise ValueError(f"it holds images of the shape {arrays['images'].shape}")
        return arrays


def performance(run: Run, scale: float, speed: float) -> dict:
    """A row of performance.csv: what training and sampling cost."""
    batch, steps, seconds = run.config.batch_size, 0, 0.0
    for row in run.rows:  # interruptions do not count
        seconds += (row["step"] - steps) * batch / row["images_per_second"]
        steps = row["step"]
    return {
        "parameters": run.saved["parameters"],
        "train_seconds": round(seconds, 1),
        "train_images_per_second": round(steps * batch / seconds, 1),
        "scale": float(scale),
        "sample_images_per_second": round(float(speed), 1),
        "sample_steps": run.config.sample_steps,
        "peak_memory_mb": peak_memory_mb(run.device),
        "device": str(run.device),
    }


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory used so far: the GPU's, or on Linux this process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    status = Path("/proc/self/status")
    peak = status.read_text().partition("VmHWM:")[2].split() if status.exists() else []
    return round(int(peak[0]) * 1024 / 1e6) if peak else None
