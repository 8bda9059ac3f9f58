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

    kind   trained: phrasings of the training, the class alone; held-out: 500 of other ones; words:
           all that prompts may ask for, a third as many at other scales than the default one;
           unconditional: of a script without text, labels -1
    noise  the number of the image's noise; asked: of each attribute -1 low, 1 high, 0 nothing
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
    """-> pixels uint8 (n, 28, 28), images per second: the median over batches but the first one.

    numbers: of the noise of each image
    """
    prompts, parts, speeds = [str(prompt) for prompt in prompts], [], []
    numbers = range(len(prompts)) if numbers is None else numbers
    if run.encoder is not None:
        run.encoder.encode_text(prompts)  # it remembers them
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
    kinds, scales = table["kind"], table["scale"].tolist()
    changes = (kinds[1:] != kinds[:-1]) | np.diff(table["scale"]).astype(bool)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist()]
    for start, end in [*zip(starts, [*starts[1:], len(kinds)])][len(speeds) :]:
        prompts, numbers = table["prompts"][start:end], table["noise"][start:end]
        title = f"{kinds[start]}, scale {scales[start]:g}"
        drawn, speed = generate(run, draw, prompts, scales[start], title, numbers)
        images, speeds = np.concatenate([images, drawn]), np.append(speeds, speed)
        save_arrays(partial, {"images": images, "speeds": speeds, "labels": table["labels"][:end]})
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
    steps = np.diff([0, *(row["step"] for row in run.rows)])  # interruptions do not count
    images, status = steps * run.config.batch_size, Path("/proc/self/status")
    seconds = sum(images / [row["images_per_second"] for row in run.rows])
    memory = torch.cuda.max_memory_allocated() / 1e6 if run.device.type == "cuda" else 0
    if not memory and status.exists():  # on Linux
        memory = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    row = {"parameters": run.saved["parameters"], "train_seconds": round(seconds, 1)}
    row |= {"train_images_per_second": round(sum(images) / seconds, 1), "scale": scale}
    row |= {"sample_images_per_second": round(float(speed), 1), "device": str(run.device)}
    return row | {"sample_steps": run.config.sample_steps, "peak_memory_mb": round(memory)}
