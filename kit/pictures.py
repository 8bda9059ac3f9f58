"""The pictures of a run: grids of images and curves of losses, as PNG files."""

import contextlib
import functools
import math
import os
import re
import sys
import textwrap
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import torch

try:
    import matplotlib
except Exception:  # there is a matplotlibrc, or an MPLBACKEND, that it cannot read
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        if str(getattr(sys.modules[name], "__file__", "")).endswith(".py"):
            del sys.modules[name]
    here = os.getcwd()
    os.environ |= {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "agg"}
    os.chdir(os.path.dirname(__file__))  # where there is none
    import matplotlib

    os.chdir(here)
from matplotlib import font_manager
from matplotlib.colors import PowerNorm  # noqa: F401 for compare.py
from matplotlib.figure import Figure

from kit import processes
from kit.base import read_table, reading, save_arrays, save_file, say, tell
from kit.captions import combinations, words_of
from kit.datasets import (
    HELDOUT_TEMPLATES,
    TRAIN_TEMPLATES,
    class_words,
    data_kind,
    names_a_class,
    phrasings,
)
from kit.images import load_dataset, to_images, to_pixels
from kit.run import Run
from kit.samples import draw_all, generators_of, heldout_scale, load_samples, save_samples

# Okabe & Ito: to be told apart by colour-blind eyes too.
COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"


# Those of Linux, Windows and macOS that have Chinese, Japanese or Korean signs.
FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei",
    "SimSun", "Malgun Gothic", "Yu Gothic", "PingFang SC", "Hiragino Sans GB", "Heiti TC",
    "Arial Unicode MS", "Noto Emoji", "Symbola",
)  # fmt: skip
LONGEST = 300  # signs of a title
FILM_SCALES = 0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0  # of film.npz


# ── Text in pictures ──


@contextlib.contextmanager
def plain_style():
    """In this block figures look the same whatever matplotlibrc a user has."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.family"] = [name for name, _ in fonts()]
        yield


@functools.cache
def fonts() -> list[tuple[str, set[int]]]:
    """The fonts that text is drawn with, by name, with the signs that each has."""
    found = []
    for name in ("DejaVu Sans", *FONTS):
        with contextlib.suppress(Exception):  # a font that is not there, or that cannot be read
            file = font_manager.findfont(name, fallback_to_default=False)
            found.append((name, {*font_manager.get_font(file).get_charmap()}))
    return found


def drawable(text: str) -> str:
    """text, its blanks plain, with escapes such as \\u4e03 for signs that no font has."""
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} …"
    signs = []
    for sign in text:
        there = sign.isprintable() and any(ord(sign) in known for _, known in fonts())
        signs.append(sign if there else sign.encode("unicode_escape").decode())
    return "".join(signs)


def wide(text: str) -> int:
    """How many Latin letters are as wide."""
    return sum(1 + (unicodedata.east_asian_width(sign) in "WF") for sign in text)


# ── Grids and curves ──


def shown_classes(classes: int, n: int) -> np.ndarray:
    """Which classes a grid of n images shows, one a column: all, or 26 spread over them."""
    classes = min(classes, n)
    return np.linspace(0, classes - 1, min(classes, 26)).round().astype(int)


def tiled(pixels, columns: int) -> np.ndarray:
    """Images uint8 (28, 28), row by row -> one (rows * 30, columns * 30), a white line between."""
    rows, tile = math.ceil(len(pixels) / columns), 30
    blank = np.full((rows * columns, tile, tile), 255, np.uint8)
    blank[: len(pixels), 1:-1, 1:-1] = pixels
    blank = blank.reshape(rows, columns, tile, tile).swapaxes(1, 2)
    return blank.reshape(rows * tile, columns * tile)


def save_grid(path: Path, pixels, columns: int, title="", titles=(), captions=(), inches=0.3):
    """pixels: images uint8 (28, 28), row by row.

    titles stand over the columns, captions left of the rows; an image is so many inches wide.
    """
    title, titles, captions = drawable(title), [*map(drawable, titles)], [*map(drawable, captions)]
    canvas, rows = tiled(pixels, columns), math.ceil(len(pixels) / columns)
    width = inches * columns + 0.085 * max(map(wide, captions), default=0)
    room = width / 0.065 * max(1, len(title)) / max(1, wide(title))
    lines = textwrap.wrap(title, max(12, int(room)))
    longest = max(map(wide, titles), default=0)
    upright = longest > 20 * inches  # more than what fits over a column
    above = 0.06 * longest + 0.08 if upright else 0.18 * bool(titles)
    height = inches * rows + 0.12 * len(lines) + above + 0.05
    figure = Figure(figsize=(width + 0.1, height + 0.1), dpi=200)
    left = 1 - inches * columns / width
    axes = figure.add_axes((left, 0, inches * columns / width, inches * rows / height))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    style = {"fontsize": 7, "parse_math": False}  # a prompt may hold a $, which is no mathematics
    middle = np.arange(max(rows, columns)) * 30 + 15
    axes.set_xticks(middle[: len(titles)], titles, rotation=90 if upright else 0, **style)
    axes.set_yticks(middle[: len(captions)], captions, **style)
    axes.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle("\n".join(lines), y=1, va="top", **style)
    options = {"format": "png", "dpi": 200, "bbox_inches": "tight", "pad_inches": 0.05}
    save_file(path, lambda file: figure.savefig(file, **options))


def save_loss_plot(path: Path, curves: dict[str, Path]) -> Path:
    """curves: model -> its loss.csv. Raw faint, over it the mean of 15 rows.

    Denoising losses can be compared; other losses have axes of their own.
    """
    logs = {}
    for model, file in curves.items():
        if file.exists():
            remedy = "delete it: only the curve is lost"
            logs[model] = read_table(file, ("step",), remedy)
            with reading(file, remedy):
                drawn = [name for name in logs[model] if name == "step" or name.endswith("loss")]
                logs[model] = logs[model][drawn].astype(float)
    lines = [
        (model, name, log) for model, log in logs.items() for name in log if name.endswith("loss")
    ]
    kinds = sorted({name != "loss" for _, name, _ in lines})
    figure = Figure(figsize=(7 if len(kinds) < 2 else 11, 4), layout="constrained")
    all_axes = dict(zip(kinds, figure.subplots(1, max(1, len(kinds)), squeeze=False)[0]))
    for (model, name, log), color in zip(lines, COLORS * len(lines)):
        other, step, loss = name != "loss", log["step"].to_numpy(), log[name].to_numpy()
        width, label = min(15, len(loss)), drawable(model)
        label += f", {name.replace('_', ' ')}" if other else ""
        all_axes[other].plot(step, loss, color=color, alpha=0.25)
        mean = np.convolve(loss, np.ones(width) / width, "valid")
        all_axes[other].plot(step[width // 2 :][: len(mean)], mean, color=color, label=label)
    for other, axes in all_axes.items():
        name = "loss" if other else "denoising loss: MSE of v"
        axes.set(xlabel="training step", ylabel=name, yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    save_file(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path


def with_scale(text: str, guidance: bool, scale: float) -> str:
    """Pictures name the guidance scale only where there is guidance."""
    return f"{text}, guidance scale {scale:g}" if guidance else text


# ── What a script leaves ──


def save_outputs(run: Run, draw, reconstruct=None) -> None:
    """All that a run leaves beside its checkpoint; with --prompt, one picture.

    draw(prompts, scale, generators, film) -> images (n, 1, 28, 28) in [-1, 1]; film, a list, is
    given (title, images) of each moment that denoising.png shows. reconstruct(images, prompts) ->
    the same images as an autoencoder gives them back.
    """
    if run.config.prompt is not None:
        if processes.RANK == 0:
            with plain_style():
                save_prompt_picture(run, draw)
        return
    run.begin()
    save_samples(run, draw)
    if processes.RANK > 0:
        return
    with plain_style():
        if run.config.has_text:
            save_prompts_picture(run, draw)
        save_denoising_picture(run, draw)
        if run.config.has_guidance:
            save_film(run, draw)
        if reconstruct is not None:
            save_reconstructions(run, reconstruct)
        losses = {run.config.script: run.metrics / "loss.csv"}
        save_loss_plot(run.folder / "plots" / "loss.png", losses)
        save_samples_picture(run)
    run.finish()


def save_prompt_picture(run: Run, draw) -> None:
    """--prompt: save a picture of --n images and print its path."""
    config, steps = run.config, run.saved["train_steps"]
    if not names_a_class(config, config.prompt):
        known = ", ".join(word for pair in class_words(config)[:2] for word in pair)
        say(f"note: the prompt names nothing that was trained on: {known}, ...")
    if run.shipped:
        own = f"python {config.script}.py --dataset {config.dataset} trains your own"
        say(f"drawn with {run.last}, which comes with the repository; {own}")
    if run.step < steps:
        say(f"note: the model is trained to step {run.step} of {steps} only")
    pixels, _ = draw_all(run, draw, [config.prompt] * config.n, config.scale, "drawing")
    path = run.images / f"prompt_{prompt_slug(config)}.png"
    title = with_scale(config.prompt, config.has_guidance, config.scale)
    save_grid(path, pixels, math.ceil(config.n**0.5), title, inches=0.6)
    tell(path)


def prompt_slug(config) -> str:
    """A part of a file's name that differs where the picture does."""
    words = re.sub(r"\W+", "_", config.prompt.lower())[:40].strip("_")
    try:
        os.fsencode(words)
    except UnicodeEncodeError:  # where file names have less signs than prompts
        words = re.sub(r"\W+", "_", words, flags=re.ASCII).strip("_")
    parts = [words, f"{zlib.crc32(config.prompt.encode()):08x}", f"w{config.scale:g}"]
    parts += [f"n{config.n}", f"seed{config.seed}"]
    for name in config.names("sampling"):
        if name != "samples":
            value = getattr(config, name)
            value = f"{value:g}" if isinstance(value, float) else value
            value = "-".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(f"{name.removeprefix('sample_')}{value}")
    return "_".join(parts)


def shown_prompts(run: Run) -> list[str]:
    """12 prompts, in turn of trained and of held-out phrasings; for a script without text "".

    The latter half of them says words of attributes, if the run has some.
    """
    config, prompts = run.config, []
    if not config.has_text:
        return [""] * 12
    trained, heldout = TRAIN_TEMPLATES[data_kind(config)][1:], HELDOUT_TEMPLATES[data_kind(config)]
    pairs = [tuple(words) for words in run.saved.get("attributes", {}).values()]
    asked = combinations(len(pairs))[1:] or [()]
    for i in range(12):
        said = words_of(pairs, asked[i % 6 % len(asked)]) if i >= 6 else ()
        words = class_words(config, said)
        template = (heldout if i % 2 else trained)[i // 2]
        prompts.append(template.format(words[i % len(words)][i // 3 % 2]))
    return prompts


def save_prompts_picture(run: Run, draw) -> None:
    """prompts.png: eight images of each of shown_prompts()."""
    config, scale = run.config, heldout_scale(run.config)
    prompts = shown_prompts(run)
    repeated = [prompt for prompt in prompts for _ in range(8)]
    pixels, _ = draw_all(run, draw, repeated, scale, "prompts.png")
    captions = [f"{prompt} *" if i % 2 else prompt for i, prompt in enumerate(prompts)]
    title = with_scale(config.script, config.has_guidance, scale)
    title += "; * = a phrasing never trained on"
    save_grid(run.images / "prompts.png", pixels, 8, title, captions=captions)


def save_denoising_picture(run: Run, draw) -> None:
    """denoising.png: how six images come about, at most 11 moments of each."""
    config, prompts, film = run.config, shown_prompts(run)[:6], []
    draw(prompts, heldout_scale(config), generators_of(config.seed, range(6)), film)
    moments = np.linspace(0, len(film) - 1, min(11, len(film))).round().astype(int)
    titles = [str(film[i][0]) for i in moments]
    frames = np.stack([to_pixels(film[i][1]) for i in moments], 1)  # (6, moments, 28, 28)
    strip = frames.reshape(-1, *frames.shape[2:])
    save_grid(run.images / "denoising.png", strip, len(titles), config.film, titles, prompts)


def save_film(run: Run, draw) -> None:
    """film.npz: one noise, and what becomes of it, by prompt, guidance scale and moment.

    For the sliders of report.html; see load_film(). At most 21 moments: 20 steps and the image.
    """
    shown, frames, moments = shown_prompts(run), [], []
    prompts = [shown[i] for i in (0, 2, 4, 8, 10, 9)]  # the last one's phrasing is held out
    for scale in FILM_SCALES:
        film = []
        draw(prompts, scale, generators_of(run.config.seed, [0] * len(prompts)), film)
        chosen = np.linspace(0, len(film) - 1, min(21, len(film))).round().astype(int)
        frames.append(np.stack([to_pixels(film[i][1]) for i in chosen], 1))
    for i in chosen:
        moment = film[i][0]  # t, or what else the script calls it
        name = f"t = {moment}" if isinstance(moment, int) else moment
        moments.append(f"{i} of {len(film) - 1}, {name}")
    arrays = {"frames": np.stack(frames, 1), "prompts": np.array(prompts)}
    arrays |= {"scales": np.array(FILM_SCALES), "moments": np.array(moments)}
    save_arrays(run.images / "film.npz", arrays)


def save_reconstructions(run: Run, reconstruct) -> None:
    """reconstructions.png: held-out images, two of each class or one, and what comes back."""
    names = run.config.classes
    pixels, labels, _ = load_dataset(run.config, "test")
    shown = shown_classes(len(names), len(pixels))
    each = 2 if len(shown) <= 13 else 1
    found = [(labels == label).nonzero()[:each, 0] for label in shown.tolist()]
    chosen = torch.cat(found)
    texts = phrasings(run.config, TRAIN_TEMPLATES)
    prompts = [texts[label][0] for label in labels[chosen].tolist()]
    images = reconstruct(to_images(pixels[chosen]).to(run.device), prompts)
    strip = np.concatenate([pixels[chosen].numpy(), to_pixels(images)])
    titles = [names[label] for label in labels[chosen].tolist()]
    captions = "held-out images", "through z and back"
    title = f"{run.config.script}: the autoencoder's half"
    path = run.images / "reconstructions.png"
    save_grid(path, strip, len(chosen), title, titles, captions, inches=0.35)


def save_samples_picture(run: Run) -> None:
    """samples.png: ten images of each class, at the middle one of the scales."""
    config, names = run.config, run.config.classes
    scale = sorted(config.scales)[len(config.scales) // 2]
    pixels, labels, _ = load_samples(run.images / f"samples_w{scale}.npz", len(names))
    shown = shown_classes(len(names), len(pixels))
    title = with_scale(config.script, config.has_guidance, scale)
    if labels[0] < 0:
        titles, order = [], np.arange(10 * len(shown))
    else:
        titles = [names[label] for label in shown]
        order = (np.arange(10)[:, None] * len(names) + shown).flatten()
        title += f"; {len(shown)} of {len(names)} classes" if len(shown) < len(names) else ""
    longest = max(map(len, titles), default=0)
    inches = 0.3 if len(shown) > 13 else min(0.6, max(0.3, longest / 18))  # so that titles fit
    pixels = pixels[order[order < len(pixels)]]
    save_grid(run.images / "samples.png", pixels, len(shown), title, titles, inches=inches)
