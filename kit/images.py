"""Where images come from: MNIST and EMNIST, from disk, from their hosts, or embedded."""

import gzip
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.base import ROOT, UserError, load_arrays, one_line, reading, say
from kit.datasets import EMNIST_SPLITS, data_kind
from kit.downloads import fetch, fetched_name

EMBEDDED = {  # split -> 5,000 digits of MNIST's, 500 of each; not there in a notebook
    "train": ROOT / "assets" / "mnist_5k.npz",
    "test": ROOT / "assets" / "mnist_test_5k.npz",
}


def load_dataset(config, split: str = "train", keep=slice(None)):
    """split train or test -> pixels uint8 (N, 28, 28), labels int64 (N,), where they come from.

    config says dataset, data_dir and which images of it; keep, which of these. UserError if they
    cannot be had. Nothing here is ever trained on test images.
    """
    if config.dataset == "quickdraw":  # of which there may be so many that not all find room
        from kit.quickdraw import quickdraw

        found = quickdraw(config.data_dir, split, config.classes, config.per_class, keep)
        return *found, "QuickDraw"
    if data_kind(config) == "folder":
        from kit.folder import pictures

        return *pictures(config, split, keep), f"folder (CRC-32 {config.pictures:08x})"
    if config.dataset == "mnist":
        pixels, labels, source = mnist(config.data_dir, split)
    else:
        pixels, labels, source = emnist(config.data_dir, split, config.emnist_split)
    return pixels[keep].contiguous(), labels[keep].contiguous(), source


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """pixels uint8 (n, H, W) -> images float32 (n, 1, H, W) in [-1, 1]."""
    return pixels[:, None] / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """images (n, 1, H, W) in [-1, 1] -> pixels uint8 (n, H, W)."""
    return ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Turn, scale, shear and shift each image a little (B, 1, 28, 28): a few thousand are few."""
    n = len(images)
    angle, shear = torch.empty(2, n).uniform_(-0.2, 0.2)
    scale = torch.empty(n).uniform_(0.85, 1.15)
    shift = torch.empty(n, 2).uniform_(-0.1, 0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    top = torch.stack([cos, shear - sin, shift[:, 0]], 1)
    bottom = torch.stack([sin, cos, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside it is black


# ── The IDX format of MNIST and EMNIST ──


def idx(content: bytes, name: str) -> np.ndarray:
    """The array in an IDX file, or in one packed by gzip or zip. ValueError for anything else.

    name: part of a file's name in a zip archive.
    """
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = members(archive, name)
            if not found:
                raise ValueError(f"no {name} in it")
            content = archive.read(found[0])
    while content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of bytes")
    shape = tuple(np.frombuffer(content, ">u4", content[3], offset=4).tolist())
    if len(content) != 4 + 4 * len(shape) + int(np.prod(shape)):
        raise ValueError(f"{len(content)} bytes are not {shape}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def check(array: np.ndarray, kind: str, classes: range) -> None:
    """ValueError if it is not images (N, 28, 28), or labels (N,) of these classes."""
    if kind == "images" and (array.ndim != 3 or array.shape[1:] != (28, 28) or not len(array)):
        raise ValueError(f"images are {array.shape}, not (N, 28, 28)")
    if kind == "labels":
        if array.ndim != 1 or not len(array):
            raise ValueError(f"labels are {array.shape}, not (N,)")
        if array.min() < classes[0] or array.max() > classes[-1]:
            found = f"labels from {array.min()} to {array.max()}"
            raise ValueError(f"{found}, not from {classes[0]} to {classes[-1]}")


def paired(images: np.ndarray, labels: np.ndarray, classes: range):
    """-> pixels uint8 (N, 28, 28), labels int64 (N,); ValueError if they are not that."""
    check(images, "images", classes)
    check(labels, "labels", classes)
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


# ── MNIST ──

# How many images MNIST's parts have, and the CRC-32 of what their files hold.
GENUINE = {
    "train": (60000, {"images": 0xF3639B56, "labels": 0xBA07E8EF}),
    "t10k": (10000, {"images": 0xE4CA5F57, "labels": 0xEE8604D9}),
}


def mnist(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """MNIST on disk, else downloaded, else (said in one line) the 5,000 embedded digits.

    Of test always the embedded ones where they are: so all are measured against the same digits.
    UserError if there are files that cannot be used, and no others can be had.
    """
    if split == "test" and EMBEDDED["test"].exists():
        return *embedded_mnist("test"), "embedded"
    part, raw = "train" if split == "train" else "t10k", root / "MNIST" / "raw"
    found, wrong = mnist_on_disk(root / "MNIST", part)
    if found is not None:
        for line in wrong:
            say(f"MNIST: {line}; it is left alone")
        return found
    try:
        content = [idx(file.read_bytes(), part) for file in fetch_mnist(raw, part)]
        found = *paired(*content, range(10)), source_of(*content, part)
    except UserError as why:
        if wrong:
            remedy = "mend or remove what is there (without any, 5,000 embedded digits are used)"
            raise UserError(f"MNIST: {'; '.join(wrong[:2])}; {why}; {remedy}") from None
        if not EMBEDDED["train"].exists():
            raise UserError(f"MNIST: {why}; put its four .gz files in {raw}") from None
        more = f"For all 60,000 put the four .gz files in {raw}"
        say(f"MNIST: {why}; using the 5,000 embedded. {more}")
        return *embedded_mnist("train"), "embedded"
    for line in wrong:
        say(f"MNIST: {line}; it is left alone, others were fetched")
    return found


def mnist_on_disk(folder: Path, part: str):
    """part: train or t10k -> (pixels, labels, where from) or None, what is wrong with files.

    By content: whatever they are packed in and called, as long as their names tell the part.
    """
    wrong, good = [], set()

    def arrays(kind: str):
        name = f"{part}-{kind}"
        paths = sorted(folder.rglob(f"*{name}*"), key=lambda path: (len(path.name), path))
        paths += [path for path in sorted(folder.rglob("*.zip")) if has_member(path, name)]
        for path in dict.fromkeys(paths):
            if path.is_file() and path.name[0] != ".":
                try:
                    array = idx(path.read_bytes(), name)
                    check(array, kind, range(10))
                    check_genuine(array, part, kind)
                except Exception as error:  # of many kinds
                    wrong.append(f"{path} cannot be used ({one_line(error)})")
                else:
                    good.add(kind)
                    yield path, array

    for path, images in arrays("images"):
        for other, labels in arrays("labels"):
            try:
                found = *paired(images, labels, range(10)), source_of(images, labels, part)
                return found, wrong
            except ValueError as error:
                wrong.append(f"{path} and {other.name} cannot be used ({one_line(error)})")
    if good == {"images"} and not wrong:
        wrong.append(f"{folder} has {part}-images, but no {part}-labels")
    return None, [*dict.fromkeys(wrong)]


def has_member(archive: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(archive) as file:
            return bool(members(file, name))
    except (OSError, zipfile.BadZipFile):
        return False


def members(archive: zipfile.ZipFile, name: str) -> list[str]:
    """The files in it whose names have name in them, without those that macOS adds."""
    paths = [path for path in archive.namelist() if "__MACOSX" not in path and path[-1] != "/"]
    return [path for path in paths if name in path.split("/")[-1]]


def check_genuine(array: np.ndarray, part: str, kind: str) -> None:
    """ValueError for as many images or labels as MNIST has, which are not those of this part."""
    for name, (count, known) in GENUINE.items():
        if len(array) == count and (name != part or zlib.crc32(array) != known[kind]):
            what = f"{count} {kind}, but not MNIST's for {part}"
            raise ValueError(f"{what}: damaged, or another data set")


def source_of(images: np.ndarray, labels: np.ndarray, part: str) -> str:
    """What config.json says of where they come from."""
    if len(images) == GENUINE[part][0]:
        return "torchvision"
    return f"files (CRC-32 {zlib.crc32(labels, zlib.crc32(images)):08x})"


def fetch_mnist(raw: Path, part: str) -> list[Path]:
    """Images and labels, from the hosts that torchvision knows. UserError if that fails."""
    from torchvision.datasets import MNIST

    files = []
    for name, md5 in MNIST.resources:
        if name.startswith(part):
            urls = [f"{mirror}{name}" for mirror in MNIST.mirrors]
            files.append(fetch(urls[0], raw / name, md5, *urls[1:]))
    return files


def embedded_mnist(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """split train or test -> pixels uint8 (5000, 28, 28), labels (5000,), 500 of each digit."""
    path = EMBEDDED[split]
    with reading(path, "get it from the repository"):
        arrays = load_arrays(path, "images", "labels")
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def not_embedded(config) -> tuple[torch.Tensor, torch.Tensor]:
    """The training split, of MNIST without the 5,000 embedded digits -> pixels, labels."""
    pixels, labels, _ = load_dataset(config)
    if config.dataset != "mnist" or not EMBEDDED["train"].exists():
        return pixels, labels
    known = {image.tobytes() for image in embedded_mnist("train")[0].numpy()}
    others = [i for i, image in enumerate(pixels.numpy()) if image.tobytes() not in known]
    if not others:
        raise UserError(f"this takes MNIST's own files; put them in {config.data_dir}/MNIST/raw")
    return pixels[others], labels[others]


# ── EMNIST ──


def emnist(root: Path, split: str, emnist_split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """The right way up, labels from 0 (Cohen et al. 2017): of the archive on disk, of files that
    were unpacked from it, or of a download. UserError if none can be had.
    """
    from torchvision.datasets import EMNIST

    raw, part = root / "EMNIST" / "raw", "train" if split == "train" else "test"
    archive, wrong = raw / EMNIST.url.split("/")[-1], []
    others = sorted({*raw.glob("*.zip")} - {archive, fetched_name(archive)})
    for place in (archive, fetched_name(archive), *others, raw, raw / "gzip"):
        try:
            if place.exists():
                return *read_emnist(place, emnist_split, part), "torchvision"
        except Exception as error:  # of many kinds
            wrong.append(f"{place} is left out ({one_line(error)})")
    for line in wrong:
        say(f"EMNIST: {line}")
    say(f"EMNIST: fetching {archive}, about 540 MB, once")
    try:
        place = fetch(EMNIST.url, archive, EMNIST.md5)
    except UserError as why:
        by_hand = f"fetch {EMNIST.url} (540 MB) and put it at {archive}"
        raise UserError(f"EMNIST: {why}; {by_hand}") from None
    with reading(place, "move it away"):
        return *read_emnist(place, emnist_split, part), "torchvision"


def read_emnist(place: Path, emnist_split: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """place: the archive, or a folder of files that were unpacked from it."""
    arrays, first = [], int(emnist_split == "letters")  # that split alone counts from 1
    for kind in ("images-idx3", "labels-idx1"):
        name = f"emnist-{emnist_split}-{part}-{kind}-ubyte"
        if place.is_dir():
            files = [file for file in (place / f"{name}.gz", place / name) if file.is_file()]
            if not files:
                raise FileNotFoundError(f"no {name} there")
            arrays.append(idx(files[0].read_bytes(), name))
        else:
            with zipfile.ZipFile(place) as archive:
                arrays.append(idx(archive.read(members(archive, name)[0]), name))
    classes = range(first, first + len(EMNIST_SPLITS[emnist_split]))
    pixels, labels = paired(*arrays, classes)
    return pixels.mT.contiguous(), labels - first  # the files hold them mirrored at the diagonal
