"""Pictures of one's own: a folder with a subfolder for each class (torchvision's ImageFolder).

They become grey, light on dark, 28 x 28. Every tenth picture of a class is held out.
"""

import unicodedata
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from kit.data import every_tenth
from kit.files import UserError, memory, one_line, progress, say
from kit.words import class_folders

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LEAST = 20  # pictures of a class


def pictures(config, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """-> pixels uint8 (N, 28, 28), labels (N,). UserError for a class of fewer than 20 pictures."""
    found = {name: paths_in(folders) for name, folders in class_folders(Path(config.dataset)).items()}
    groups, broken = [], []
    for name, paths in found.items():
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        pixels, wrong = memory(config.data_dir).cache(read_pictures)(name, stats)
        broken += wrong
        groups.append(pixels)
        if len(pixels) < LEAST:
            raise UserError(f"{config.dataset}: {name!r} has {len(pixels)} pictures, not {LEAST}")
    counts = ", ".join(f"{name} {len(group)}" for name, group in zip(found, groups))
    dark_on_light = frames(np.concatenate(groups)).mean() > np.mean([x.mean() for x in groups])
    how = "inverted, since they are dark on light" if dark_on_light else "light on dark"
    if split == "train":
        say(f"{config.dataset}: pictures of {counts}; {how}")
        if broken:
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            say(f"{len(broken)} left out, broken or no picture: {', '.join(broken[:3])}{more}")
    return every_tenth([255 - x if dark_on_light else x for x in groups], split)


def paths_in(folders: list[Path]) -> list[Path]:
    """All pictures below, in an order that does not depend on the file system."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            name = unicodedata.normalize("NFC", path.relative_to(folder.parent).as_posix())
            hidden = any(part[0] in ".@" or part == "__MACOSX" for part in name.split("/"))
            if path.suffix.lower() in ENDINGS and path.is_file() and not hidden:
                found[name] = path
    return [found[name] for name in sorted(found)]


def read_pictures(name: str, stats: list[tuple]) -> tuple[np.ndarray, list[str]]:
    """stats: path, size and time of each picture -> pixels (n, 28, 28), the broken ones and why."""
    pixels, broken = [], []
    for path, *_ in progress(stats, f"pictures of {name}", leave=False):
        try:
            pixels.append(read_picture(Path(path)))
        except Exception as error:  # of many kinds
            broken.append(f"{path} ({one_line(error)[:60]})")
    return np.array(pixels, np.uint8).reshape(-1, 28, 28), broken


def read_picture(path: Path) -> np.ndarray:
    """-> grey, uint8 (28, 28): the whole picture in its proportions, its range 0 to 255.

    What its proportions leave free gets the colour of its frame.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.draft("L", (56, 56))  # a JPEG is read smaller at once
            grey = to_grey(ImageOps.exif_transpose(image))
    scale = 28 / max(grey.size)
    size = [max(1, round(length * scale)) for length in grey.size]
    if grey.size != (28, 28):
        grey = grey.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    inner = np.asarray(grey, np.float32)
    low, high = inner.min(), inner.max()
    if high - low >= 32:  # less is an empty picture
        inner = (inner - low) * 255 / (high - low)
    pixels = np.full((28, 28), np.median(frames(inner[None])), np.float32)
    top, left = (28 - inner.shape[0]) // 2, (28 - inner.shape[1]) // 2
    pixels[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return pixels.round().clip(0, 255).astype(np.uint8)


def frames(pixels: np.ndarray) -> np.ndarray:
    """The values at the borders of images (n, H, W)."""
    return np.concatenate([pixels[:, [0, -1]].ravel(), pixels[:, :, [0, -1]].ravel()])


def to_grey(image: Image.Image) -> Image.Image:
    """Any mode -> 8 bits of grey. What is transparent becomes dark if the rest is light."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all():
            raise ValueError("a value in it is not finite")
        return Image.fromarray((values / max(1.0, values.max()) * 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        grey, alpha = image.convert("RGBA").convert("LA").split()
        opaque = np.asarray(grey)[np.asarray(alpha) > 127]
        back = 0 if opaque.size and opaque.mean() > 127 else 255
        return Image.composite(grey, Image.new("L", grey.size, back), alpha)
    return image.convert("L")
