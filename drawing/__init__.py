"""What a run draws and leaves: sample files, what they cost, its pictures. No lesson; the models' scripts call it."""

import json
import math
import re
import sys
import textwrap
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import common

COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"  # Okabe & Ito: for colour-blind eyes too


# ── Samples ──


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
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise common.UserError(f"{folder}/config.json: {common.one_line(error)}; run its script with --fresh") from None


# ── Pictures ──


def save_grid(path: Path, pixels, columns: int, title="", titles=(), captions=(), inches=0.3) -> None:
    """pixels: images uint8 (28, 28), row by row. titles stand over the columns, captions left of the rows."""
    rows, tile = math.ceil(len(pixels) / columns), 30
    blank = np.full((rows * columns, tile, tile), 255, np.uint8)
    blank[: len(pixels), 1:-1, 1:-1] = pixels
    canvas = blank.reshape(rows, columns, tile, tile).swapaxes(1, 2).reshape(rows * tile, columns * tile)
    width = inches * columns + 0.085 * max(map(len, captions), default=0)
    lines = textwrap.wrap(title, max(12, int(width / 0.065)))
    height = inches * rows + 0.12 * len(lines) + 0.18 * bool(titles) + 0.05
    figure = Figure(figsize=(width + 0.1, height + 0.1), dpi=200)
    axes = figure.add_axes((1 - inches * columns / width, 0, inches * columns / width, inches * rows / height))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    style = {"fontsize": 7, "parse_math": False}  # a prompt may hold a $, which is no mathematics
    middle = np.arange(max(rows, columns)) * tile + tile / 2
    axes.set_xticks(middle[: len(titles)], titles, **style)
    axes.set_yticks(middle[: len(captions)], captions, **style)
    axes.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle("\n".join(lines), y=1, va="top", **style)
    options = {"format": "png", "dpi": 200, "bbox_inches": "tight", "pad_inches": 0.05}
    common.save_file(path, lambda file: figure.savefig(file, **options))


def save_loss_plot(path: Path, curves: dict[str, Path]) -> Path:
    """curves: model -> its loss.csv; raw faint, over it the mean of 15 rows; a GAN's losses on axes of their own."""
    logs = {model: log for model, file in curves.items() if (log := common.read_csv(file))}
    lines = [(name != "loss", model, name) for model, log in logs.items() for name in log[0] if name.endswith("loss")]
    kinds = sorted({kind for kind, _, _ in lines})
    figure = Figure(figsize=(7 if len(kinds) < 2 else 11, 4), layout="constrained")
    all_axes = dict(zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0]))
    for (kind, model, name), color in zip(lines, COLORS * len(lines)):
        step, loss = np.array([(int(row["step"]), float(row[name])) for row in logs[model]]).T
        width, label = min(15, len(loss)), f"{model}, {name.replace('_', ' ')}" if kind else model
        all_axes[kind].plot(step, loss, color=color, alpha=0.25)
        mean = np.convolve(loss, np.ones(width) / width, "valid")
        all_axes[kind].plot(step[width // 2 :][: len(mean)], mean, color=color, label=label)
    for kind, axes in all_axes.items():
        axes.set(xlabel="training step", ylabel="loss" if kind else "denoising loss: MSE of v", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    common.save_file(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path


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
    words = [word for group in common.CLASS_WORDS[args.dataset] for word in group]
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
    dataset, scale = run.args.dataset, heldout_scale(run)
    script, names = run.args.script, [words[0] for words in common.CLASS_WORDS[dataset]]
    templates = zip(common.TRAIN_TEMPLATES[dataset][1:], common.HELDOUT_TEMPLATES[dataset])
    pairs = enumerate(pair for both in templates for pair in zip(both, ("", " *")))
    picked = [(t.format(common.CLASS_WORDS[dataset][i % len(names)][i // 3 % 2]), mark) for i, (t, mark) in pairs][:12]
    prompts, captions = [prompt for prompt, _ in picked], [prompt + mark for prompt, mark in picked]
    columns = len(names)
    if common.meaningless(script, "prompt"):
        prompts, names = [""] * 6, ()
    else:
        pixels = draw_all(run, draw, [prompt for prompt in prompts for _ in range(8)], scale, "prompts.png")
        title = with_scale(script, script, scale) + "; * = a phrasing never trained on"
        save_grid(run.images / "prompts.png", pixels, 8, title, captions=captions)

    film = []
    draw(prompts[:6], scale, torch.Generator().manual_seed(run.args.seed), film)
    frames = [film[i] for i in np.linspace(0, len(film) - 1, min(11, len(film))).round().astype(int)]
    strip = [to_pixels(images)[row] for row in range(6) for _, images in frames]
    to_image = "x_t, from noise (t = 1000) to the image (t = 0)"
    what = "a walk from one z to another" if script == "cgan" else to_image
    save_grid(run.images / "denoising.png", strip, len(frames), what, [str(t) for t, _ in frames], prompts[:6])
    save_loss_plot(run.folder / "plots" / "loss.png", {script: run.metrics / "loss.csv"})
    w = run.args.scales[len(run.args.scales) // 2]
    with np.load(run.images / f"samples_w{w}.npz") as file:
        pixels, title = file["images"][: 10 * columns], with_scale(script, script, w)
    save_grid(run.images / "samples.png", pixels, columns, title, names)
