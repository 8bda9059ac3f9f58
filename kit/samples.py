"""What a run draws and leaves: sample files, what they cost, its pictures. No lesson; the models' scripts call it."""

import json
import math
import re
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

import common
from drawing.figures import COLORS, save_grid, save_loss_plot, shown_classes  # noqa: F401

# ── Samples ──


def heldout_scale(run: common.Run) -> float:
    """The guidance scale of held-out samples and of pictures of prompts."""
    return 1.0 if common.meaningless(run.args.script, "scale") else 2.0


def sample_files(run: common.Run) -> dict[Path, tuple]:
    """Each sample file of a run -> its templates (none for a script without text), guidance scale, number of images."""
    args, w = run.args, heldout_scale(run)
    trained, heldout = common.TRAIN_TEMPLATES, common.HELDOUT_TEMPLATES
    if common.meaningless(args.script, "prompt"):
        return {run.images / "samples_w1.0.npz": ({}, 1.0, args.samples)}
    files = {run.images / f"samples_w{w}.npz": (trained, w, args.samples) for w in args.scales}
    return files | {run.images / f"samples_heldout_w{w}.npz": (heldout, w, min(500, args.samples))}


def balanced_prompts(args, templates: dict[str, list[str]], n: int) -> tuple[list[str], torch.Tensor]:
    """n prompts round the classes and their phrasings -> prompts, labels int64 (n,); without templates "" and -1."""
    if not templates:
        return [""] * n, torch.full((n,), -1)
    texts = common.phrasings(args, templates)
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
        (prompts, labels), start = balanced_prompts(args, templates, n), time.perf_counter()
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


def load_samples(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> images uint8 (N, 28, 28), labels int64 (N,), prompts (N,); UserError if the file holds anything else."""
    try:
        with np.load(path) as file:
            images, labels, prompts = file["images"], file["labels"], file["prompts"]
        if images.dtype != np.uint8 or images.shape != (len(labels), 28, 28) or not 1 < len(labels) == len(prompts):
            raise ValueError(f"holds {images.dtype} {images.shape}, {len(labels)} labels, not uint8 (N, 28, 28), N > 1")
    except (*common.UNREADABLE, zipfile.BadZipFile) as error:
        raise common.UserError(f"{path}: {common.one_line(error)}; delete it and run its script again") from None
    return images, labels, prompts


def read_config(folder: Path) -> dict:
    """A run's config.json; UserError if it is missing or damaged."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return {"classes": config["classes"], **config}
    except (OSError, TypeError, ValueError, LookupError) as error:
        raise common.UserError(f"{folder}/config.json: {common.one_line(error)}; run its script with --fresh") from None


# ── Pictures ──


def complete(run: common.Run) -> bool:
    """Whether all of the run is on disk; if so, says it."""
    names = "images/samples.png images/denoising.png plots/loss.png metrics/performance.csv".split()
    names += [] if common.meaningless(run.args.script, "prompt") else ["images/prompts.png"]
    outputs = [*sample_files(run), *(run.folder / name for name in names)]
    done = run.step == run.args.train_steps and run.drawn_alike() and all(path.exists() for path in outputs)
    if done:
        print(f"{run.folder} is complete; --fresh starts over", file=sys.stderr)
    return done


def save_outputs(run: common.Run, draw) -> None:
    """All that a run leaves beside its checkpoint; with --prompt, one picture.

    draw(prompts, scale, generator, film) -> images (n, 1, 28, 28) in [-1, 1]; film, a list, collects (title, images).
    """
    if run.args.prompt is not None:
        save_prompt_picture(run, draw)
    else:
        run.begin()
        save_samples(run, draw)
        save_run_pictures(run, draw)


def with_scale(text: str, script: str, scale: float) -> str:
    """Pictures name the guidance scale only where there is guidance."""
    return text if common.meaningless(script, "scale") else f"{text}, guidance scale {scale:g}"


def save_prompt_picture(run: common.Run, draw) -> None:
    """--prompt: save a picture of --n images and print its path."""
    args = run.args
    slug = re.sub(r"\W+", "_", args.prompt.lower())[:40].strip("_") + f"_{zlib.crc32(args.prompt.encode()):08x}"
    name = f"prompt_{slug}_w{args.scale:g}_n{args.n}_seed{args.seed}_steps{args.sample_steps}_eta{args.eta:g}.png"
    path = run.images / name
    words = [word for pair in common.class_words(args.dataset, args.classes) for word in pair]
    if not any(re.search(rf"\b{re.escape(word)}\b", args.prompt, re.IGNORECASE) for word in words):
        print(f"note: the prompt names nothing the model was trained on ({', '.join(words[:4])}, ...)", file=sys.stderr)
    if run.step < run.config["train_steps"]:
        print(f"note: the model is trained to step {run.step} of {run.config['train_steps']} only", file=sys.stderr)
    pixels = draw_all(run, draw, [args.prompt] * args.n, args.scale, "drawing")
    title = with_scale(args.prompt, args.script, args.scale)
    save_grid(path, pixels, math.ceil(args.n**0.5), title, inches=0.6)
    print(path)


def save_run_pictures(run: common.Run, draw) -> None:
    """samples.png from the samples on disk, prompts.png and denoising.png drawn anew, loss.png from loss.csv."""
    args, scale, names = run.args, heldout_scale(run), run.args.classes
    script, words = args.script, common.class_words(args.dataset, names)
    templates = zip(common.TRAIN_TEMPLATES[args.dataset][1:], common.HELDOUT_TEMPLATES[args.dataset])
    pairs = enumerate(pair for both in templates for pair in zip(both, ("", " *")))
    picked = [(t.format(words[i % len(names)][i // 3 % 2]), mark) for i, (t, mark) in pairs][:12]
    prompts, captions = [prompt for prompt, _ in picked], [prompt + mark for prompt, mark in picked]
    if common.meaningless(script, "prompt"):
        prompts = [""] * 6
    else:
        pixels = draw_all(run, draw, [prompt for prompt in prompts for _ in range(8)], scale, "prompts.png")
        title = with_scale(script, script, scale) + "; * = a phrasing never trained on"
        save_grid(run.images / "prompts.png", pixels, 8, title, captions=captions)

    film = []
    draw(prompts[:6], scale, torch.Generator().manual_seed(args.seed), film)
    frames = [film[i] for i in np.linspace(0, len(film) - 1, min(11, len(film))).round().astype(int)]
    strip = [to_pixels(images)[row] for row in range(6) for _, images in frames]
    to_image = "x_t, from noise (t = 1000) to the image (t = 0)"
    what = "a walk from one z to another" if script == "cgan" else to_image
    save_grid(run.images / "denoising.png", strip, len(frames), what, [str(t) for t, _ in frames], prompts[:6])
    save_loss_plot(run.folder / "plots" / "loss.png", {script: run.metrics / "loss.csv"})
    w = args.scales[len(args.scales) // 2]
    pixels, labels, _ = load_samples(run.images / f"samples_w{w}.npz")
    shown, title = shown_classes(len(names), len(pixels)), with_scale(script, script, w)
    if labels[0] < 0:
        titles, order = (), np.arange(min(10 * len(shown), len(pixels)))
    else:
        titles, order = [names[y] for y in shown], (np.arange(10)[:, None] * len(names) + shown).flatten()
        title += f"; {len(shown)} of {len(names)} classes" * (len(shown) < len(names))
    inches = 0.3 if len(shown) > 13 else min(0.6, max(0.3, max(map(len, titles), default=0) / 18))  # so that they fit
    save_grid(run.images / "samples.png", pixels[order[order < len(pixels)]], len(shown), title, titles, inches=inches)
