"""Load a folder of pictures, a subfolder for each class, as grey images, light on dark, 28 x 28."""

import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from kit.files import UserError, memory, one_line, progress, say
from kit.words import HIDDEN, class_folders, visible

LEAST = 20  # minimum number of pictures of a class
BLANK = 8  # pictures with a smaller range of greys count as blank


def pictures(config) -> list[np.ndarray]:
    """-> for each class its pictures uint8 (n, 28, 28). UserError for fewer than 20 of a class."""
    root, groups, found = Path(config.dataset), {}, []
    left_out = [f"{x} (in no class)" for x in visible(root) if x.is_file()]
    for name, folders in class_folders(root).items():
        files = []
        for path in (path for folder in folders for path in folder.rglob("*")):
            inner = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
            if path.is_file() and not re.match(HIDDEN, inner):
                state = path.stat()
                files.append((inner, path, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
        files = [(str(path), *state) for _, path, *state in sorted(files)]  # on any system the same
        groups[name], wrong = memory(config.data_dir).cache(read_pictures)(files)
        left_out += wrong
        if len(groups[name]) < LEAST:
            why = f"{name!r} has {len(groups[name])} pictures, but needs {LEAST}"
            raise UserError(f"{root}: {why}; {len(left_out)} files are left out {left_out[:3]}")
        merged = f" (in {len(folders)} folders)" if len(folders) > 1 else ""
        found.append(f"{len(groups[name])} of {name}{merged}")
    pixels = np.concatenate([*groups.values()])
    inverted = frame(pixels).mean() > pixels.mean()
    text = ", ".join(found) + (", inverted to light on dark" if inverted else "")
    text += f"; left out: {len(left_out)} files, such as {left_out[0]}" if left_out else ""
    say(f"{root}: {text}")
    return [255 - group if inverted else group for group in groups.values()]


def read_pictures(files: list[tuple]) -> tuple[np.ndarray, list[str]]:
    """files: path, size, times (for the cache) -> pixels uint8 (n, 28, 28), other files and why."""
    pixels, others = [], []
    for path, *_ in progress(files, "reading pictures", leave=False):
        try:
            pixels.append(read_picture(Path(path)))
        except Exception as error:  # of many kinds
            others.append(f"{path} ({one_line(error).partition(' file ')[0][:60]})")
    return np.array(pixels, np.uint8).reshape(-1, 28, 28), others


def read_picture(path: Path) -> np.ndarray:
    """-> grey uint8 (28, 28): the whole picture, not distorted, stretched from black to white.

    Of an animation or of several pages, the first that is not blank. ValueError if all are.
    """
    with Image.open(path) as image:
        image.draft("L", (56, 56))  # decode a JPEG at a reduced size
        pages = (to_grey(ImageOps.exif_transpose(page)) for page in ImageSequence.Iterator(image))
        grey = next((page for page in pages if np.ptp(np.asarray(page)) >= BLANK), None)
    if grey is None:
        raise ValueError("it is blank")
    method = Image.Resampling.BOX if max(grey.size) > 28 else Image.Resampling.BICUBIC
    margin = int(np.median(frame(np.asarray(grey)[None])))
    pixels = np.asarray(ImageOps.pad(grey, (28, 28), method, margin), np.float32)
    pixels = (pixels - pixels.min()) * 255 / max(1, np.ptp(pixels))
    return pixels.round().astype(np.uint8)


def frame(pixels: np.ndarray) -> np.ndarray:
    """The border pixels of images (n, H, W)."""
    return np.concatenate([pixels[:, [0, -1]].ravel(), pixels[:, :, [0, -1]].ravel()])


def to_grey(image: Image.Image) -> Image.Image:
    """Any mode -> 8-bit grey. Transparent areas become dark if the rest is light, else white."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all():
            raise ValueError("a value in it is not finite")
        values = (values - values.min()) * 255 / max(np.ptp(values), 1e-9)
        return Image.fromarray(values.astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        grey, alpha = image.convert("RGBA").convert("LA").split()
        opaque = np.asarray(grey)[np.asarray(alpha) > 127]
        back = 0 if opaque.size and opaque.mean() > 127 else 255
        return Image.composite(grey, Image.new("L", grey.size, back), alpha)
    return image.convert("L")
