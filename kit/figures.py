"""The figures of compare.py's report: curves, points, matrices, histograms, rows of images."""

import base64
import io
import math
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from kit.captions import HELD_OUT, words_of
from kit.files import load_arrays, reading
from kit.pictures import COLORS, save_figure, save_grid, shown_classes
from kit.words import with_words

MARKERS = "os^Dv*X"


def save_rows(path: Path, classes: list[str], rows: dict[str, np.ndarray], title: str = "") -> Path:
    """Save a grid with a row of images for each caption.

    rows: caption -> pixels uint8 (n, 28, 28), the classes in turn. Shown are two images of each
    class; of more than 13 classes one image each, at most 26.
    """
    n = min(map(len, rows.values()))
    shown = np.arange(min(2 * len(classes), n))
    if len(classes) > 13:
        shown = shown_classes(len(classes), n)
    pixels = np.concatenate([images[shown] for images in rows.values()])
    titles = [classes[i % len(classes)] for i in shown]
    save_grid(path, pixels, len(shown), title, titles, [*rows], inches=0.35)
    return path


def save_words(path: Path, model, asked: pd.DataFrame) -> Path:
    """Save what a model generated for each combination of words, a row each, from the same noise.

    model: a Model of compare.py. asked: rows of its attributes.csv.
    """
    samples, words, rows = model.samples, [*map(tuple, model.config["attributes"].values())], {}
    chosen = (samples["kind"] == "words") & (samples["scale"] == model.scale)
    shares = asked[asked["scale"] == model.scale].set_index("asked")["as_asked"]
    for combination in dict.fromkeys(map(tuple, samples["asked"][chosen].tolist())):
        said = words_of(words, combination)
        caption = with_words("…", said) if said else "no words"
        caption += " *" if combination == HELD_OUT else ""
        caption += f": {shares[', '.join(said)]:.0%} as asked" if said else ""
        rows[caption] = samples["images"][chosen & (samples["asked"] == combination).all(1)]
    title = f"{model.caption}; the same noise in each column; * = never said together in training"
    return save_rows(path, model.config["classes"], rows, title)


def save_nearest(path: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Save a grid of images, and below each its nearest training image.

    pairs: caption -> images, nearest, both uint8 (n, 28, 28).
    """
    columns, captions = min(len(images) for images, _ in pairs.values()), []
    for caption in pairs:
        captions += [caption, "nearest in training"]
    pixels = np.concatenate([part[:columns] for pair in pairs.values() for part in pair])
    save_grid(path, pixels, columns, captions=captions, inches=0.35)
    return path


def draw_line(axes, points: pd.Series, **style) -> None:
    """Plot the mean of points over their index, with bars of one standard deviation."""
    groups = points.groupby(level=0)
    mean, spread = groups.mean(), groups.std().fillna(0)
    axes.errorbar(mean.index, mean, spread if spread.any() else None, capsize=3, **style)


def save_curves(path: Path, table: pd.DataFrame, x: str, columns: dict, real: pd.Series) -> Path:
    """Save a panel for each of columns (name -> title), with a curve for each table["line"].

    x: the column on the horizontal axis. real: the same columns for real images.
    """
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(math.ceil(len(columns) / 3), 3).flat
    for axes, (column, title) in zip(panels, columns.items()):
        styles = zip(table.groupby("line", sort=False), cycle(COLORS), cycle(MARKERS))
        for (line, rows), color, marker in styles:
            points = rows.set_index(x)[column]
            draw_line(axes, points, label=line, color=color, marker=marker)
        axes.axhline(real[column], color="grey", linestyle="--", label="real images")
        if column == "copied":
            axes.set_ylim(-0.02, 1.02)  # otherwise zeros would fill a scale of their own
        axes.set(xlabel=x.replace("_", " "), ylabel=title)
        axes.grid(alpha=0.3)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=4)
    return save_figure(path, figure, dpi=130)


def save_speed(path: Path, rows: pd.DataFrame, guided: list[str], real: float, title: str) -> Path:
    """Save FID against images generated per second, a point for each model and guidance scale.

    real: FID of real images. title: of the vertical axis.
    """
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes, groups = figure.subplots(), rows.groupby("model", sort=False)
    for (model, group), color, marker in zip(groups, cycle(COLORS), cycle(MARKERS)):
        scales = group.groupby("scale")
        speed, fid = scales["sample_images_per_second"].first(), scales["fid"].mean()
        axes.plot(speed, fid, marker, color=color, label=model, markersize=8)
        for scale in speed.index if model in guided else ():
            place, style = (speed[scale], fid[scale]), {"textcoords": "offset points"}
            axes.annotate(f"{scale:g}", place, (5, 5), fontsize=8, **style)
    axes.axhline(real, color="grey", linestyle="--", label="real images")
    axes.set(xlabel="images generated per second (numbers: guidance scale)", ylabel=title)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper")
    return save_figure(path, figure, dpi=130)


def save_obedience(path: Path, asked: pd.DataFrame) -> Path:
    """Save a panel for each model: shares of images as asked, against the guidance scale.

    asked: model, scale, seed, demand, as_asked, without_asking, accuracy. Dotted: the share that is
    so without being asked.
    """
    models = asked["model"].unique()
    figure = Figure(figsize=(5 * len(models), 5), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models):
        rows = asked[(asked["model"] == model) & (asked["demand"] != "nothing")]
        points = rows.groupby(["scale", "seed"])["accuracy"].mean().droplevel("seed")
        draw_line(axes, points, label="class", color="black", marker="o")
        groups = rows.groupby("demand", sort=False)
        for (demand, group), color, marker in zip(groups, COLORS, MARKERS[1:]):
            seeds = group.groupby(["scale", "seed"])[["as_asked", "without_asking"]].mean()
            seeds = seeds.droplevel("seed")
            draw_line(axes, seeds["as_asked"], label=demand, color=color, marker=marker)
            floor = seeds["without_asking"].groupby(level=0).mean()
            axes.plot(floor.index, floor, ":", color=color)
        axes.set(title=model, xlabel="guidance scale", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share as asked (dotted: without asking)")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=4, fontsize=8)
    return save_figure(path, figure, dpi=130)


def save_confusion(path: Path, classes: list[str], matrices: dict[str, np.ndarray]) -> Path:
    """Save a matrix for each caption: of each class asked for (rows), the share read as each."""
    columns = min(3, len(matrices))
    rows, size = math.ceil(len(matrices) / columns), max(2.4, 0.6 + 0.26 * len(classes))
    figure = Figure(figsize=(columns * size, rows * size + 0.3), layout="constrained")
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    for (caption, matrix), axes in zip(matrices.items(), panels):
        axes.imshow(matrix, cmap="Blues", norm=PowerNorm(0.4, 0, 1))  # so that 1 % is visible too
        for (row, column), share in np.ndenumerate(matrix):
            if share:
                color = "white" if share > 0.4 else "black"
                style = {"ha": "center", "va": "center", "fontsize": 6, "color": color}
                axes.text(column, row, f"{100 * share:.0f}" if share >= 0.01 else "<1", **style)
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
        axes.set_title(caption, fontsize=8)
        axes.set_xlabel("read by the judge, %", fontsize=7)
        axes.set_ylabel("asked for", fontsize=7)
    for axes in panels[len(matrices) :]:
        axes.remove()
    return save_figure(path, figure, dpi=130)


def save_distances(path: Path, lines: dict[str, np.ndarray]) -> Path:
    """Save histograms (caption -> distances) of how far images are from the nearest training one.

    The first line is drawn in black.
    """
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes, bins = figure.subplots(), np.linspace(0, max(map(np.max, lines.values())), 41)
    for (caption, distances), color in zip(lines.items(), ("black", *COLORS * len(lines))):
        weights = np.full(len(distances), 100 / len(distances))
        axes.hist(distances, bins, weights=weights, histtype="step", label=caption, color=color)
    axes.set(xlabel="distance to the nearest training image (root mean square of a pixel, 0 to 1)")
    axes.set(ylabel="% of the images")
    figure.legend(loc="outside right upper", fontsize=8)
    return save_figure(path, figure, dpi=130)


def data_address(png: bytes) -> str:
    """A data: URL, by which a page contains its pictures."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def load_films(paths: dict[str, Path]) -> list[dict]:
    """Model -> film.npz -> the films, each with prompts, scales, moments and sprites: for each
    model that has these the data: URL of one picture, a row of frames for each prompt and scale.
    """
    films = {}
    for model, path in paths.items():
        if not path.exists():
            continue
        with reading(path, "delete it, and the script's command generates it again"):
            film = load_arrays(path)
            prompts, scales, moments = film["frames"].shape[:3]
            frames = film.pop("frames").swapaxes(2, 3)  # (prompts, scales, 28, moments, 28)
        sprite, content = frames.reshape(prompts * scales * 28, moments * 28), io.BytesIO()
        Image.fromarray(sprite).save(content, "PNG", optimize=True)
        names = {name: array.tolist() for name, array in film.items()}
        alike = films.setdefault(str(names), names | {"sprites": {}})
        alike["sprites"][model] = data_address(content.getvalue())
    return [*films.values()]
