"""Load a folder of pictures, a subfolder for each class, as grey images, light on dark, 28 x 28."""

import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kit.files import UserError, memory, one_line, progress, say
from kit.words import class_folders

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LEAST = 20  # minimum number of pictures of a class


def pictures(config) -> list[np.ndarray]:
    """-> for each class its pictures uint8 (n, 28, 28). UserError for fewer than 20 of a class."""
    groups, broken = {}, []
    for name, folders in class_folders(Path(config.dataset).expanduser()).items():
        files = []
        for path in (path for folder in folders for path in folder.rglob("*")):
            inner = unicodedata.normalize("NFC", path.relative_to(folders[0].parent).as_posix())
            hidden = re.search(r"(^|/)([.@]|__MACOSX)", inner)
            if path.suffix.lower() in ENDINGS and path.is_file() and not hidden:
                files.append((inner, path, path.stat().st_size, path.stat().st_mtime_ns))
        files = [(str(path), *state) for _, path, *state in sorted(files)]  # on any system the same
        groups[name], wrong = memory(config.data_dir).cache(read_pictures)(files)
        broken += wrong
        if len(groups[name]) < LEAST:
            found = f"{name!r} has {len(groups[name])} pictures, not {LEAST}"
            raise UserError(f"{config.dataset}: {found}; {len(broken)} are broken {broken[:3]}")
    pixels = np.concatenate([*groups.values()])
    inverted = frame(pixels).mean() > pixels.mean()
    text = ", ".join(f"{len(group)} of {name}" for name, group in groups.items())
    text += ", inverted to light on dark" if inverted else ""
    text += f"; {len(broken)} broken ones are left out, such as {broken[0]}" if broken else ""
    say(f"{config.dataset}: {text}")
    return [255 - group if inverted else group for group in groups.values()]


def read_pictures(files: list[tuple]) -> tuple[np.ndarray, list[str]]:
    """files: path, size, time (for the cache) -> pixels uint8 (n, 28, 28), broken ones and why."""
    pixels, broken = [], []
    for path, *_ in progress(files, "reading pictures", leave=False):
        try:
            pixels.append(read_picture(Path(path)))
        except Exception as error:  # of many kinds
            broken.append(f"{path} ({one_line(error)[:60]})")
    return np.array(pixels, np.uint8).reshape(-1, 28, 28), broken


def read_picture(path: Path) -> np.ndarray:
    """-> grey uint8 (28, 28): the whole picture, not distorted, stretched from black to white."""
    with Image.open(path) as image:
        image.draft("L", (56, 56))  # decode a JPEG at a reduced size
        grey = to_grey(ImageOps.exif_transpose(image))
    scale = 28 / max(grey.size)
    if grey.size != (28, 28):
        size = [max(1, round(length * scale)) for length in grey.size]
        grey = grey.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    inner = np.asarray(grey, np.float32)
    low, high = inner.min(), inner.max()
    if high - low >= 32:  # otherwise the picture is empty
        inner = (inner - low) * 255 / (high - low)
    pixels = np.full((28, 28), np.median(frame(inner[None])), np.float32)  # margins
    top, left = (28 - inner.shape[0]) // 2, (28 - inner.shape[1]) // 2
    pixels[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return pixels.round().clip(0, 255).astype(np.uint8)


def frame(pixels: np.ndarray) -> np.ndarray:
    """The border pixels of images (n, H, W)."""
    return np.concatenate([pixels[:, [0, -1]].ravel(), pixels[:, :, [0, -1]].ravel()])


def to_grey(image: Image.Image) -> Image.Image:
    """Any mode -> 8-bit grey. Transparent areas become dark if the rest is light, else white."""
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
