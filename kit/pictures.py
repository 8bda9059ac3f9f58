"""Grids of images and curves of losses, as PNG files."""

import math
import textwrap
import unicodedata
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from kit.files import save_file

# Okabe & Ito: to be told apart by colour-blind eyes too.
COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"
# Fonts with Chinese, Japanese or Korean characters, on Linux, Windows and macOS.
CJK_FONTS = {
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "Malgun Gothic",
    "Yu Gothic", "PingFang SC", "Hiragino Sans GB", "Heiti TC", "Arial Unicode MS",
}  # fmt: skip


def use_plain_style() -> None:
    """The same figures whatever matplotlibrc a user has; no warning for missing characters."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    matplotlib.rcdefaults()
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *sorted(CJK_FONTS & there)]
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a prompt is a $
    warnings.filterwarnings("ignore", "Glyph .* missing from")


def save_figure(path: Path, figure: Figure, **options) -> Path:
    save_file(path, lambda file: figure.savefig(file, format="png", **options))
    return path


def wide(text: str) -> int:
    """The width of text in Latin letters."""
    return sum(1 + (unicodedata.east_asian_width(sign) in "WF") for sign in text)


def tiled(pixels, columns: int) -> np.ndarray:
    """Images uint8 (28, 28), row by row -> one (rows * 30, columns * 30), white between them."""
    rows, tile = math.ceil(len(pixels) / columns), 30
    blank = np.full((rows * columns, tile, tile), 255, np.uint8)
    blank[: len(pixels), 1:-1, 1:-1] = pixels
    blank = blank.reshape(rows, columns, tile, tile).swapaxes(1, 2)
    return blank.reshape(rows * tile, columns * tile)


def save_grid(path: Path, pixels, columns: int, title="", titles=(), captions=(), inches=0.3):
    """pixels: images uint8 (28, 28), row by row; each is so many inches wide.

    titles stand over the columns, captions left of the rows.
    """
    use_plain_style()
    rows = math.ceil(len(pixels) / columns)
    width = inches * columns + 0.085 * max(map(wide, captions), default=0)
    title = textwrap.shorten(title, 300, placeholder=" ...")
    room = width / 0.065 * max(1, len(title)) / max(1, wide(title))
    lines = textwrap.wrap(title, max(12, int(room)))
    longest = max(map(wide, titles), default=0)
    upright = longest > 20 * inches
    above = 0.06 * longest + 0.08 if upright else 0.18 * bool(titles)
    height = inches * rows + 0.12 * len(lines) + above + 0.05
    figure = Figure(figsize=(width + 0.1, height + 0.1), dpi=200)
    left = 1 - inches * columns / width
    axes = figure.add_axes((left, 0, inches * columns / width, inches * rows / height))
    canvas = tiled(pixels, columns)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    middle = np.arange(max(rows, columns)) * 30 + 15
    axes.set_xticks(middle[: len(titles)], titles, rotation=90 if upright else 0, fontsize=7)
    axes.set_yticks(middle[: len(captions)], captions, fontsize=7)
    axes.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle("\n".join(lines), y=1, va="top", fontsize=7)
    save_figure(path, figure, dpi=200, bbox_inches="tight", pad_inches=0.05)


def save_loss_plot(path: Path, losses: dict[str, list[dict]]) -> Path:
    """losses: model -> its rows of loss.csv. Faint as logged, bold the mean of 15 rows.

    Denoising losses share one panel; the losses of other families have another one.
    """
    use_plain_style()
    lines = [(model, name, rows) for model, rows in losses.items() if rows
             for name in rows[0] if name.endswith("loss")]  # fmt: skip
    kinds = sorted({name != "loss" for _, name, _ in lines})
    figure = Figure(figsize=(7 if len(kinds) < 2 else 11, 4), layout="constrained")
    panels = dict(zip(kinds, figure.subplots(1, max(1, len(kinds)), squeeze=False)[0]))
    for (model, name, rows), color in zip(lines, COLORS * len(lines)):
        step, loss = (np.array([float(row[x]) for row in rows]) for x in ("step", name))
        width, other = min(15, len(loss)), name != "loss"
        label = f"{model}, {name.replace('_', ' ')}" if other else model
        panels[other].plot(step, loss, color=color, alpha=0.25)
        mean = np.convolve(loss, np.ones(width) / width, "valid")
        panels[other].plot(step[width // 2 :][: len(mean)], mean, color=color, label=label)
    for other, axes in panels.items():
        name = "loss" if other else "denoising loss: MSE of v"
        axes.set(xlabel="training step", ylabel=name, yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return save_figure(path, figure, dpi=150)


def with_scale(text: str, guidance: bool, scale: float) -> str:
    return f"{text}, guidance scale {scale:g}" if guidance else text


def shown_classes(classes: int, n: int) -> np.ndarray:
    """The classes that a grid of n images has a column for: all, or 26 spread over them."""
    classes = min(classes, n)
    return np.linspace(0, classes - 1, min(classes, 26)).round().astype(int)
