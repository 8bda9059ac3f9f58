"""The samples that a run is measured by: a file per guidance scale, class by class, from prompts as one types them."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

import common


def heldout_scale(run: common.Run) -> float:
    """The guidance scale of held-out samples and of pictures of prompts."""
    return 1.0 if common.meaningless(run.args.script, "scale") else 2.0


def sample_files(run: common.Run) -> dict[Path, tuple]:
    """Each sample file of a run -> its templates (none for a script without text), guidance scale, number of images."""
    args, w = run.args, heldout_scale(run)
    trained, heldout = common.TRAIN_TEMPLATES[args.dataset], common.HELDOUT_TEMPLATES[args.dataset]
    if common.meaningless(args.script, "prompt"):
        return {run.images / "samples_w1.0.npz": ([], 1.0, args.samples)}
    files = {run.images / f"samples_w{w}.npz": (trained, w, args.samples) for w in args.scales}
    return files | {run.images / f"samples_heldout_w{w}.npz": (heldout, w, min(500, args.samples))}


def balanced_prompts(dataset: str, templates: list[str], n: int) -> tuple[list[str], torch.Tensor]:
    """n prompts round the classes and their phrasings -> prompts, labels int64 (n,); without templates "" and -1."""
    if not templates:
        return [""] * n, torch.full((n,), -1)
    texts = common.phrasings(dataset, templates)
    labels = torch.arange(n) % len(texts)
    return [texts[y][i // len(texts) % len(texts[y])] for i, y in enumerate(labels.tolist())], labels


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """images (n, 1, H, W) in [-1, 1] -> uint8 (n, H, W)."""
    return ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()


def to_images(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, H, W) -> images (n, 1, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels)[:, None] / 127.5 - 1


def draw_all(run: common.Run, draw, prompts: list[str], scale: float, what: str) -> np.ndarray:
    """-> uint8 (n, 28, 28). The noise depends on --seed alone, so it is the same at every scale."""
    generator, parts = torch.Generator().manual_seed(run.args.seed), []
    with common.Progress(desc=what, total=len(prompts), **common.Progress.STYLE) as bar:
        for i in range(0, len(prompts), 100):
            parts.append(to_pixels(draw(prompts[i : i + 100], scale, generator)))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB: the GPU's, else this process's (nan where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def save_samples(run: common.Run, draw) -> None:
    """Write those sample files that are not there yet, and what they cost into performance.csv."""
    args, table = run.args, run.metrics / "performance.csv"
    log = common.read_csv(run.metrics / "loss.csv")
    steps = np.diff([0] + [int(row["step"]) for row in log])
    seconds = sum(n * args.batch_size / float(row["images_per_second"]) for n, row in zip(steps, log)) or math.nan
    rows = {row["scale"]: row for row in common.read_csv(table)}
    for path, (templates, scale, n) in sample_files(run).items():
        heldout = "heldout" in path.name
        if path.exists() and (heldout or str(scale) in rows):
            continue
        (prompts, labels), start = balanced_prompts(args.dataset, templates, n), time.perf_counter()
        pixels = draw_all(run, draw, prompts, scale, f"samples at scale {scale:g}")
        speed = n / (time.perf_counter() - start)
        if not heldout:
            rows[str(scale)] = {
                "parameters": run.config["parameters"],
                "train_seconds": round(seconds, 1),
                "train_images_per_second": round(args.train_steps * args.batch_size / seconds, 1),
                "scale": scale,
                "sample_images_per_second": round(speed, 1),
                "sample_steps": args.sample_steps,
                "peak_memory_mb": round(peak_memory_mb(args.device)),
                "device": args.device,
            }
            common.save_csv(table, list(rows.values()))
        arrays = {"images": pixels, "labels": labels.numpy(), "prompts": np.array(prompts)}
        common.save_file(path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays))
