"""The figures of compare.py's report: curves, points, matrices, rows of images."""

import base64
import io
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from kit.captions import HELD_OUT, words_of
from kit.files import ROOT, load_arrays, reading
from kit.pictures import COLORS, plain_log_scale, save_figure, save_grid, shown_classes
from kit.words import with_words


@cache
def colors() -> dict[str, str]:
    """Script -> its colour in all figures; the scripts here, the user's own included."""
    files, mark = sorted(ROOT.glob("[!.]*.py")), b"\nclass Config(common.Config)"
    names = [file.stem for file in files if mark in file.read_bytes()]
    return dict(zip(names, COLORS * len(names)))


def save_rows(path: Path, classes: list[str], rows: dict[str, np.ndarray], title: str = "") -> Path:
    """rows: caption -> pixels uint8 (n, 28, 28), classes in turn; 10 are shown, or 26 classes."""
    n = min(map(len, rows.values()))
    shown = shown_classes(len(classes), n) if len(classes) > 10 else np.arange(min(10, n))
    pixels = np.concatenate([images[shown] for images in rows.values()])
    titles = [classes[i % len(classes)] for i in shown]
    save_grid(path, pixels, len(shown), title, titles, [*rows], inches=0.35)
    return path


def save_words(path: Path, run: dict, samples: dict) -> Path:
    """Save a row for each combination of words. run, samples: of compare.py's functions."""
    words, rows = [*map(tuple, run["config"]["attributes"].values())], {}
    chosen = (samples["kind"] == "words") & (samples["scale"] == samples["at"])
    shares = run["asked"][run["asked"]["scale"] == samples["at"]].set_index("asked")["as_asked"]
    for combination in dict.fromkeys(map(tuple, samples["asked"][chosen].tolist())):
        said = words_of(words, combination)
        caption = with_words("…", said) if said else "no words"
        caption += " *" if combination == HELD_OUT else ""
        caption += f": {shares[', '.join(said)]:.0%} as asked" if said else ""
        rows[caption] = samples["images"][chosen & (samples["asked"] == combination).all(1)]
    note = "the same noise in each column; * = never said together in training"
    return save_rows(path, run["config"]["classes"], rows, f"{samples['caption']}; {note}")


def draw_lines(axes, values: pd.Series, lines: pd.Series, x: pd.Series) -> None:
    """Plot the mean of values over x for each of lines; bars show one standard deviation."""
    means = values.groupby([lines, x], sort=False).agg(["mean", "std"])
    for i, (line, points) in enumerate(means.groupby(level=0, sort=False)):
        points, marker = points.droplevel(0).sort_index(), "os^Dv*XP"[i % 8]
        style = {"color": colors().get(line.split(",")[0]), "marker": marker, "label": line}
        axes.errorbar(points.index, points["mean"], points["std"], capsize=3, **style)
    axes.grid(alpha=0.3)


def save_with_legend(path: Path, figure: Figure, place: str, columns: int = 1) -> Path:
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc=place, ncols=columns, fontsize=8)
    return save_figure(path, figure, dpi=130)


def save_curves(path: Path, table, lines: pd.Series, x: pd.Series, titles: dict, real) -> Path:
    """Save a panel for each column of table that titles names; real: the same for real images."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(3, 3).flat, titles.items()):
        draw_lines(axes, table[column], lines, x)
        axes.axhline(real[column], color="grey", linestyle="--", label="real images")
        if column == "copied":
            axes.set_ylim(-0.02, 1.02)  # otherwise zeros would fill a scale of their own
        axes.set(xlabel=x.name, ylabel=title)
    return save_with_legend(path, figure, "outside upper center", 4)


def save_speed(path: Path, rows: pd.DataFrame, titles: dict, real: pd.Series) -> Path:
    """Save two distances against images per second, by model, guidance scale and steps."""
    keys, speed = ["model", "at", "sample_steps"], "sample_images_per_second"
    points = rows.groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    notes = points["sample_steps"].map(" in {:g}".format)
    notes = points["at"].replace("–", "") + notes.where(points["model"].duplicated(False), "")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("fid", "fd_pixels")):
        for model, group in points.groupby("model", sort=False):
            axes.loglog(group[speed], group[column], "o", color=colors().get(model), label=model)
        for note, *place in zip(notes, points[speed], points[column]):
            axes.annotate(note, place, (5, 5), fontsize=8, textcoords="offset points")
        axes.axhline(real[column], color="grey", linestyle="--", label="real images")
        axes.set(xlabel="images per second (guidance scale, in steps)", ylabel=titles[column])
        plain_log_scale(axes.xaxis)
        plain_log_scale(axes.yaxis)
    return save_with_legend(path, figure, "outside right upper")


def save_obedience(path: Path, shares: pd.DataFrame) -> Path:
    """Save a panel for each model: shares_of() of compare.py, against the guidance scale."""
    groups = shares.groupby("model", sort=False)
    figure = Figure(figsize=(5 * len(groups), 5), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (model, rows) in zip(panels, groups):
        draw_lines(axes, rows["as_asked"], rows["demand"], rows["scale"])
        baselines = rows.pivot_table("without_asking", "scale", "demand", sort=False)
        axes.plot(baselines.index, baselines, ":")
        axes.set(title=model, xlabel="guidance scale", ylim=(0, 1.02))
    panels[0].set_ylabel("share as asked (dotted: without asking)")
    return save_with_legend(path, figure, "outside upper center", 4)


def save_confusion(path: Path, classes: list[str], matrices: dict[str, np.ndarray]) -> Path:
    """Save a matrix for each caption: of each class asked for (rows), the share read as each."""
    columns, n = min(3, len(matrices)), len(classes)
    rows, size = math.ceil(len(matrices) / columns), max(2.4, 0.6 + 0.26 * n)
    figure = Figure(figsize=(columns * size, rows * size + 0.3), layout="constrained")
    for i, (caption, matrix) in enumerate(matrices.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(matrix, cmap="Blues", norm=PowerNorm(0.4, 0, 1))  # so that 1 % is visible too
        for row, column in np.argwhere(matrix > 0):
            share = matrix[row, column]
            text, color = f"{100 * share:.0f}", "white" if share > 0.4 else "black"
            style = {"ha": "center", "va": "center", "fontsize": 6, "color": color}
            axes.text(column, row, text if share >= 0.01 else "<1", **style)
        axes.set_xticks(range(n), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(n), classes, fontsize=7)
        axes.set_title(caption, fontsize=8)
        axes.set_xlabel("read by the judge, %", fontsize=7)
        axes.set_ylabel("asked for", fontsize=7)
    return save_figure(path, figure, dpi=130)


def inline(pixels: np.ndarray) -> str:
    """A grey picture (h, w) as the address of an HTML image, which holds all of it."""
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def load_films(paths: dict[str, Path]) -> list[dict]:
    """Model -> film.npz -> films: prompts, scales, moments, and a sprite for each model: a picture
    of all frames, with a row for each prompt, scale and view (x_t, x0_hat).
    """
    films = {}
    for model, path in paths.items():
        if not path.exists():  # no guidance
            continue
        with reading(path, "delete it, and the script's command generates it again"):
            prompts, scales, views, moments, *_ = (film := load_arrays(path))["frames"].shape
            frames = film.pop("frames").swapaxes(3, 4)  # (prompts, scales, views, 28, moments, 28)
            sprite = inline(frames.reshape(prompts * scales * views * 28, moments * 28))
        film = {name: array.tolist() for name, array in film.items()}
        alike = films.setdefault(str(film), film | {"sprites": {}})
        alike["sprites"][model] = sprite
    return [*films.values()]
