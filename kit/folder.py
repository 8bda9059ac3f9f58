"""A folder of one's own pictures: a subfolder for each class, as torchvision's ImageFolder has it.

Pictures of any size and mode become grey, light on dark, 28 x 28. Of each class every tenth, in
the order of the names, is held out.
"""

import re
import sys
import unicodedata
import warnings
import zlib
from os.path import isdir
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from kit.base import Progress, UserError, kept, one_line, say

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LEAST = 20  # pictures of a class
LONGEST = 48  # bytes of a class's name: CLIP reads 77 tokens, a sentence's other words too


# ── What lies there ──


def listing(folder: Path) -> dict[str, list[Path]]:
    """Class words -> its pictures, in the order of their names. UserError if there are too few."""
    if not isdir(folder):
        raise UserError(f"--dataset {folder}: no such folder")
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
        pictures = {}
        for path in subfolders:
            if path.name[0] not in "._@":
                pictures.setdefault(words_of_name(path), []).extend(pictures_in(path))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    wanted = f"{folder} needs one subfolder of pictures for each class, such as cat/ and dog/"
    if not pictures and any(is_picture(path) for path in folder.iterdir()):
        raise UserError(f"{wanted}; its pictures lie in it directly")
    if len(pictures) < 2:
        found = f"there is only {next(iter(pictures))!r}" if pictures else "there is none"
        raise UserError(f"{wanted}, at least two; {found}")
    return pictures


def words_of_name(path: Path) -> str:
    """Hot_dog -> hot dog. UserError for a name that is no text."""
    name = unicodedata.normalize("NFKC", path.name).lower()
    words = " ".join(re.split(r"[_\-\s]+", name)).strip()
    try:
        text = len(words.encode()) <= LONGEST and any(sign.isalnum() for sign in words)
    except UnicodeEncodeError:  # bytes that are no UTF-8 become surrogates
        text = False
    if not text:
        shown = path.name.encode("utf-8", "replace").decode()
        raise UserError(
            f"{path.parent}: the folder name {shown[:80]!r} is no text that a prompt can say; "
            f"rename it (letters or digits, at most {LONGEST} bytes)"
        )
    return words


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.name[0] != "."


def pictures_in(folder: Path) -> list[Path]:
    """Without those that tools keep in folders of their own, such as .ipynb_checkpoints."""
    found = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts[:-1]
        of_tools = any(part[0] in ".@" or part == "__MACOSX" for part in inner)
        if is_picture(path) and path.is_file() and not of_tools:
            found.append(path)
    return found


def fingerprint(folder: Path) -> int:
    """CRC-32 of the names and sizes of all pictures: it stays the same where they are moved."""
    crc = 0
    for paths in listing(folder).values():
        for path in paths:
            line = f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n"
            crc = zlib.crc32(line.encode("utf-8", "surrogateescape"), crc)
    return crc


# ── Pictures as pixels ──


def pictures(config, split: str, keep=slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """-> pixels uint8 (N, 28, 28), labels (N,); keep: which ones of each class.

    config: classes; folder; pictures, its fingerprint(); data_dir, where the pixels are kept.
    """
    found = listing(config.folder)
    if list(found) != list(config.classes) or fingerprint(config.folder) != config.pictures:
        raise UserError(
            f"{config.folder} holds other pictures than the run learned from; bring those back, "
            "or train anew with --fresh"
        )

    def compute():
        return prepare(config.folder, found)

    times = [path.stat().st_mtime_ns for paths in found.values() for path in paths]
    content, place = [config.pictures, np.array(times)], config.data_dir / "pictures"
    arrays = kept(place, config.dataset, content, compute, sys.modules[__name__])
    pixels, labels = [], []
    for label in range(len(found)):
        images = arrays["pixels"][arrays["labels"] == label]
        images = images[(np.arange(len(images)) % 10 == 9) == (split == "test")][keep]
        pixels.append(torch.from_numpy(images))
        labels.append(torch.full((len(images),), label))
    return torch.cat(pixels), torch.cat(labels)


def prepare(folder: Path, found: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    """Read all pictures -> pixels, labels. What is broken is left out, which a line says."""
    pixels, labels, broken = [], [], []
    everything = [(label, path) for label, paths in enumerate(found.values()) for path in paths]
    for label, path in Progress(everything, f"pictures of {folder.name}", leave=False):
        try:
            pixels.append(read_picture(path))
            labels.append(label)
        except Exception as error:  # of many kinds
            broken.append(f"{path.relative_to(folder).as_posix()} ({one_line(error)[:60]})")
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        say(f"{folder}: {len(broken)} left out, which are no pictures or broken: "
              f"{', '.join(broken[:3])}{more}")  # fmt: skip
    counts = np.bincount(np.array(labels, int), minlength=len(found))
    for name, count in zip(found, counts):
        if count < LEAST:
            raise UserError(f"{folder}: {name!r} has {count} pictures; a class needs {LEAST}")
    pixels = np.stack(pixels)
    frame = np.concatenate([pixels[:, [0, -1]].reshape(-1), pixels[:, :, [0, -1]].reshape(-1)])
    dark_on_light = frame.mean() > pixels.mean()
    how = "dark on light, so turned to light on dark" if dark_on_light else "light on dark"
    say(f"{folder}: {len(pixels)} pictures of {len(found)} classes, {how}")
    return {"pixels": 255 - pixels if dark_on_light else pixels, "labels": np.array(labels)}


def read_picture(path: Path) -> np.ndarray:
    """-> grey, uint8 (28, 28): all of the picture, its proportions kept, its range 0 to 255.

    What its proportions leave free has the colour of its frame.
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
    frame = np.concatenate([inner[[0, -1]].ravel(), inner[:, [0, -1]].ravel()])
    pixels = np.full((28, 28), np.median(frame), np.float32)
    top, left = (28 - inner.shape[0]) // 2, (28 - inner.shape[1]) // 2
    pixels[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return pixels.round().clip(0, 255).astype(np.uint8)


def to_grey(image: Image.Image) -> Image.Image:
    """Any mode -> 8 bits of grey; what is transparent gets the colour that the rest is not."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all():
            raise ValueError("it holds numbers that are none")
        return Image.fromarray((values / max(1.0, values.max()) * 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        grey, alpha = image.convert("RGBA").convert("LA").split()
        opaque = np.asarray(grey)[np.asarray(alpha) > 127]
        back = 0 if opaque.size and opaque.mean() > 127 else 255
        return Image.composite(grey, Image.new("L", grey.size, back), alpha)
    return image.convert("L")
