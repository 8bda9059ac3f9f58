"""Measures of images, and words for low and high ones, as in Morpho-MNIST (Castro et al. 2019)."""

import numpy as np
import torch
import torch.nn.functional as F

from kit.files import memory, progress, say
from kit.words import data_kind

WORDS = {  # measure -> the words for low and high values, the share of images that each fits
    "thickness": ("thin", "thick", 0.25),  # measured as in Morpho-MNIST (Castro et al. 2019)
    "slant": ("leaning left", "leaning right", 0.2),  # as in Morpho-MNIST, too
    "ink": ("simple", "detailed", 0.25),
    "shape": ("tall", "wide", 0.25),
}
LEAST = 0.05  # share of images that a word must fit at least
SCALE = 4  # factor by which images are enlarged to measure their strokes


def thickness(pixels: np.ndarray) -> np.ndarray:
    """Mean stroke width in pixels: twice the distance to the background, at its local maxima."""
    from scipy import ndimage  # takes 0.2 s, and --prompt does not need it

    widths = np.full(len(pixels), np.nan)
    images = torch.tensor(pixels.copy())[:, None].float()
    large = F.interpolate(images, scale_factor=SCALE, mode="bicubic")[:, 0] >= 127.5
    for i, inside in enumerate(large.numpy()):
        if inside.any():
            (box,) = ndimage.find_objects(inside.astype(np.uint8))
            inside = np.pad(inside[box], 1)
            distance = ndimage.distance_transform_edt(inside)
            ridge = inside & (distance == ndimage.maximum_filter(distance, 3))
            widths[i] = 2 * distance[ridge].mean() / SCALE
    return widths


def moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Central second moments of the grey image: of x, of x and y, of y; nan without ink."""
    total, (y, x) = pixels.sum((1, 2), keepdims=True, dtype=np.float64), np.mgrid[:28, :28]
    ink = pixels / np.where(total > 0, total, np.nan)
    x = x - (ink * x).sum((1, 2), keepdims=True)
    y = y - (ink * y).sum((1, 2), keepdims=True)
    return tuple((ink * product).sum((1, 2)) for product in (x * x, x * y, y * y))


def slant(pixels: np.ndarray) -> np.ndarray:
    """Slant in degrees; positive leans right. The minus is there because y points down."""
    _, xy, yy = moments(pixels)
    return np.degrees(np.arctan2(-xy, yy))


def shape(pixels: np.ndarray) -> np.ndarray:
    """log2 of width over height, each the standard deviation of the ink."""
    xx, _, yy = moments(pixels)
    return np.log2(np.maximum(xx, 1e-9) / np.maximum(yy, 1e-9)) / 2


def ink(pixels: np.ndarray) -> np.ndarray:
    """The share of the image that is ink, from 0 to 1."""
    share = pixels.mean((1, 2), dtype=np.float64) / 255
    return np.where(share > 0, share, np.nan)


def measures_of(config) -> list[str]:
    """The names of the two measures that apply; all QuickDraw strokes are equally thick."""
    return ["ink", "shape"] if data_kind(config) == "quickdraw" else ["thickness", "slant"]


def measured(config, pixels: np.ndarray) -> np.ndarray:
    """pixels uint8 (n, 28, 28) -> measures (n, 2), cached in --data-dir."""
    return memory(config.data_dir).cache(measure_all)(pixels, measures_of(config))


def measure_all(pixels: np.ndarray, names: list[str]) -> np.ndarray:
    parts, measures = np.split(pixels, range(500, len(pixels), 500)), [globals()[x] for x in names]
    bar = progress(parts, "measuring attributes", unit="batch")
    return np.concatenate([np.stack([measure(x) for measure in measures], 1) for x in bar])


def thresholds(config, values: np.ndarray) -> dict[str, dict[str, float]]:
    """values: measured() of all training images -> {measure: {word: threshold}}, where useful."""
    chosen, names = {}, {word for name in config.classes for word in name.lower().split()}
    for measure, value in zip(measures_of(config), values.T):
        *words, q = WORDS[measure]
        known = value[~np.isnan(value)]
        low, high = np.quantile(known, [q, 1 - q]) if len(known) else (0.0, 0.0)
        alike = min((value < low).mean(), (value > high).mean()) < LEAST
        if alike or names & {*" ".join(words).split()}:
            why = f"the images hardly differ in {measure}" if alike else "a class has that name"
            say(f"{config.dataset}: no prompts with {' and '.join(words)}, since {why}")
        else:
            chosen[measure] = dict(zip(words, (float(low), float(high))))
    return chosen


def states(config, values: np.ndarray, chosen: dict) -> np.ndarray:
    """-> int8 (n, len(chosen)): -1 where an image is low, 1 where it is high, 0 between."""
    result = np.zeros((len(values), len(chosen)), np.int8)
    for column, (name, words) in zip(result.T, chosen.items()):
        value, (low, high) = values[:, measures_of(config).index(name)], words.values()
        column[value < low], column[value > high] = -1, 1
    return result
