"""Grids of images and curves of losses, as PNG files."""

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import common

COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"  # Okabe & Ito: for colour-blind eyes too


def shown_classes(classes: int, n: int) -> np.ndarray:
    """Which classes a grid of n images shows, one a column: all there are, or 26 spread over them."""
    classes = min(classes, n)
    return np.linspace(0, classes - 1, min(classes, 26)).round().astype(int)


def save_grid(path: Path, pixels, columns: int, title="", titles=(), captions=(), inches=0.3) -> None:
    """pixels: images uint8 (28, 28), row by row. titles stand over the columns, captions left of the rows."""
    rows, tile = math.ceil(len(pixels) / columns), 30
    blank = np.full((rows * columns, tile, tile), 255, np.uint8)
    blank[: len(pixels), 1:-1, 1:-1] = pixels
    canvas = blank.reshape(rows, columns, tile, tile).swapaxes(1, 2).reshape(rows * tile, columns * tile)
    width = inches * columns + 0.085 * max(map(len, captions), default=0)
    lines = textwrap.wrap(title, max(12, int(width / 0.065)))
    longest = max(map(len, titles), default=0)
    upright = longest > 20 * inches  # more than what fits over a column
    height = inches * rows + 0.12 * len(lines) + (0.06 * longest + 0.08 if upright else 0.18 * bool(titles)) + 0.05
    figure = Figure(figsize=(width + 0.1, height + 0.1), dpi=200)
    axes = figure.add_axes((1 - inches * columns / width, 0, inches * columns / width, inches * rows / height))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    style = {"fontsize": 7, "parse_math": False}  # a prompt may hold a $, which is no mathematics
    middle = np.arange(max(rows, columns)) * tile + tile / 2
    axes.set_xticks(middle[: len(titles)], titles, rotation=90 if upright else 0, **style)
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
