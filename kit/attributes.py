"""What a sentence says beside the class: measures of an image, and the words for low and high.

Thickness and slant are measured as in Morpho-MNIST (Castro et al. 2019).
"""

import sys
from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from kit.base import Progress, kept, say

# measure: pixels uint8 (n, 28, 28) -> (n,), nan for an image without ink. low, high: words.
# quantile: of the measure, below which it is low; above 1 - quantile it is high.
Attribute = namedtuple("Attribute", "name measure low high quantile")
LEAST = 0.05  # an attribute for which fewer images than this share are low, or high, is left out
SCALE = 4  # by which images are enlarged before their strokes are measured


def thickness(pixels: np.ndarray) -> np.ndarray:
    """Of the strokes, in pixels: twice the mean distance to the background over the ridge, that is,
    where it is the largest among the 8 neighbours."""
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
    """In degrees; above 0 it leans right. y points down, hence the minus."""
    _, xy, yy = moments(pixels)
    return np.degrees(np.arctan2(-xy, yy))


def shape(pixels: np.ndarray) -> np.ndarray:
    """Width against height: of the standard deviations of the ink, the logarithm to base 2."""
    xx, _, yy = moments(pixels)
    return np.log2(np.maximum(xx, 1e-9) / np.maximum(yy, 1e-9)) / 2


def ink(pixels: np.ndarray) -> np.ndarray:
    """The share of the image that is ink, from 0 to 1."""
    share = pixels.mean((1, 2), dtype=np.float64) / 255
    return np.where(share > 0, share, np.nan)


WRITTEN = (
    Attribute("thickness", thickness, "thin", "thick", 0.25),
    Attribute("slant", slant, "leaning left", "leaning right", 0.2),
)
DRAWN = (  # QuickDraw's pen is always the same
    Attribute("ink", ink, "simple", "detailed", 0.25),
    Attribute("shape", shape, "tall", "wide", 0.25),
)


def of_dataset(dataset: str) -> tuple[Attribute, ...]:
    return DRAWN if dataset == "quickdraw" else WRITTEN


def measured(config, pixels: np.ndarray) -> np.ndarray:
    """pixels uint8 (n, 28, 28) -> measures (n, attributes), which are kept under --data-dir."""
    measures = [x.measure for x in of_dataset(config.dataset)]

    def compute():
        parts = Progress(np.split(pixels, range(500, len(pixels), 500)), "attributes", unit="500")
        return {"values": np.concatenate([np.stack([x(y) for x in measures], 1) for y in parts])}

    folder, name = config.data_dir / "attributes", "_".join(x.__name__ for x in measures)
    return kept(folder, name, [pixels], compute, sys.modules[__name__])["values"]


def thresholds(config, values: np.ndarray) -> dict[str, dict[str, float]]:
    """values: measured() of all training images -> attribute -> word -> where it begins.

    What separates nothing, or whose words name a class, is left out, which a line says.
    """
    chosen, names = {}, {word for name in config.classes for word in name.lower().split()}
    for attribute, value in zip(of_dataset(config.dataset), values.T):
        words, q = (attribute.low, attribute.high), attribute.quantile
        known = value[~np.isnan(value)]
        low, high = np.quantile(known, [q, 1 - q]) if len(known) else (0.0, 0.0)
        if min((value < low).mean(), (value > high).mean()) < LEAST:
            why = f"the training images are too much alike in {attribute.name}"
        elif names & {*" ".join(words).split()}:
            why = "its words name a class"
        else:
            chosen[attribute.name] = dict(zip(words, (float(low), float(high))))
            continue
        say(f"{config.dataset}: no caption says {words[0]} or {words[1]}: {why}")
    return chosen


def states(config, values: np.ndarray, chosen: dict) -> np.ndarray:
    """-> int8 (n, len(chosen)): -1 where an image is low, 1 where it is high, 0 between."""
    names = [x.name for x in of_dataset(config.dataset)]
    result = np.zeros((len(values), len(chosen)), np.int8)
    for column, (name, words) in zip(result.T, chosen.items()):
        value, (low, high) = values[:, names.index(name)], words.values()
        column[value < low], column[value > high] = -1, 1
    return result
