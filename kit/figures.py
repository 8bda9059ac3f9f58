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
from kit.pictures import COLORS, plain_log_scale, save_figure, save_grid, shown_classes
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
    columns = min(len(images) for images, _ in pairs.values())
    captions = [x for caption in pairs for x in (caption, "nearest in training")]
    pixels = np.concatenate([part[:columns] for pair in pairs.values() for part in pair])
    save_grid(path, pixels, columns, captions=captions, inches=0.35)
    return path


def draw_line(axes, points: pd.Series, **style) -> None:
    """Plot the mean of points over their index, with bars of one standard deviation."""
    groups = points.groupby(level=0)
    mean, spread = groups.mean(), groups.std().fillna(0)
    axes.errorbar(mean.index, mean, spread if spread.any() else None, capsize=3, **style)


def save_with_legend(path: Path, figure: Figure, place: str, columns: int = 1) -> Path:
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc=place, ncols=columns, fontsize=8)
    return save_figure(path, figure, dpi=130)


def save_curves(path: Path, table, xlabel: str, columns: dict[str, str], real: pd.Series) -> Path:
    """Save a panel for each of columns (name -> title), with a curve over x for each line.

    table: with the columns x and line besides. real: the same columns for real images.
    """
    figure = Figure(figsize=(10, 9), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(3, 3).flat, columns.items()):
        groups = table.groupby("line", sort=False)
        for (line, rows), color, marker in zip(groups, cycle(COLORS), cycle(MARKERS)):
            points = rows.set_index("x")[column]
            draw_line(axes, points, label=line, color=color, marker=marker)
        axes.axhline(real[column], color="grey", linestyle="--", label="real images")
        if column == "copied":
            axes.set_ylim(-0.02, 1.02)  # otherwise zeros would fill a scale of their own
        axes.set(xlabel=xlabel, ylabel=title)
        axes.grid(alpha=0.3)
    return save_with_legend(path, figure, "outside upper center", 4)


def save_speed(path: Path, rows: pd.DataFrame, guided: list[str], real: pd.Series) -> Path:
    """Save FID against images generated per second, a point for each model and guidance scale."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes, groups = figure.subplots(), rows.groupby("model", sort=False)
    for (model, group), color, marker in zip(groups, cycle(COLORS), cycle(MARKERS)):
        scales = group.groupby("scale")
        speed, fid = scales["sample_images_per_second"].first(), scales["fid"].mean()
        axes.plot(speed, fid, marker, color=color, label=model, markersize=8)
        for scale in speed.index if model in guided else ():
            place = speed[scale], fid[scale]
            axes.annotate(f"{scale:g}", place, (5, 5), fontsize=8, textcoords="offset points")
    axes.axhline(real["fid"], color="grey", linestyle="--", label="real images")
    axes.set(xlabel="images generated per second (numbers: guidance scale)", xscale="log")
    axes.set(ylabel=f"FID ({real['extractor']})", yscale="log")
    plain_log_scale(axes.xaxis)
    plain_log_scale(axes.yaxis)
    return save_with_legend(path, figure, "outside right upper")


def save_obedience(path: Path, asked: pd.DataFrame) -> Path:
    """Save a panel for each model: shares of images as asked, against the guidance scale."""
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


def save_distances(path: Path, lines: dict[str, np.ndarray]) -> Path:
    """Save histograms of distances to the nearest training image; the first line is black."""
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes, bins = figure.subplots(), np.linspace(0, max(map(np.max, lines.values())), 41)
    for (caption, distances), color in zip(lines.items(), ("black", *COLORS * len(lines))):
        weights = np.full(len(distances), 100 / len(distances))
        axes.hist(distances, bins, weights=weights, histtype="step", label=caption, color=color)
    axes.set(xlabel="distance to the nearest training image (root mean square of a pixel, 0 to 1)")
    axes.set(ylabel="% of the images")
    return save_with_legend(path, figure, "outside right upper")


def data_address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def load_films(paths: dict[str, Path]) -> list[dict]:
    """Model -> film.npz -> films: prompts, scales, moments, and sprites.

    sprites: of each model a picture of its frames, a row for each prompt and scale.
    """
    films = {}
    for model, path in paths.items():
        if not path.exists():  # no guidance
            continue
        with reading(path, "delete it, and the script's command generates it again"):
            film = load_arrays(path)
            prompts, scales, moments = film["frames"].shape[:3]
            frames = film.pop("frames").swapaxes(2, 3)  # (prompts, scales, 28, moments, 28)
        sprite, content = frames.reshape(prompts * scales * 28, moments * 28), io.BytesIO()
        Image.fromarray(sprite).save(content, "PNG", optimize=True)
        film = {name: array.tolist() for name, array in film.items()}
        alike = films.setdefault(str(film), film | {"sprites": {}})
        alike["sprites"][model] = data_address(content.getvalue())
    return [*films.values()]
