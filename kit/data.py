"""MNIST, EMNIST, QuickDraw, or a folder: pixels uint8 in memory; and pixels as images."""

import gzip
import hashlib
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.files import ROOT, TIMEOUT, UserError, load_arrays, lock, network, progress, reading
from kit.files import one_line, save_file, say
from kit.words import data_kind

EMBEDDED = {  # 5,000 digits of each split of MNIST, 500 of each class; missing in a notebook
    "train": ROOT / "assets" / "mnist_5k.npz",
    "test": ROOT / "assets" / "mnist_test_5k.npz",
}
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
QUICKDRAW_URL = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/"


def load_dataset(config, split: str = "train") -> tuple[torch.Tensor, torch.Tensor, str]:
    """split train or test -> pixels uint8 (N, 28, 28), labels int64 (N,), where they come from.

    UserError if they cannot be had. No network in this repository is trained on the test split.
    """
    if data_kind(config) == "mnist":
        return mnist(config.data_dir, split)
    if data_kind(config) == "emnist":
        return *emnist(config.data_dir, config.emnist_split, split), "EMNIST"
    if data_kind(config) == "quickdraw":
        return *quickdraw(config, split), "QuickDraw"
    from kit.folder import pictures  # other data sets need no Pillow

    return *pictures(config, split), "folder"


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """pixels uint8 (n, H, W) -> images float32 (n, 1, H, W) in [-1, 1]."""
    return pixels[:, None] / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """images (n, 1, H, W) in [-1, 1] -> pixels uint8 (n, H, W)."""
    return ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Augmentation: rotate, scale, shear and shift each image (B, 1, 28, 28) a little."""
    n = len(images)
    angle, shear = torch.empty(2, n).uniform_(-0.2, 0.2)
    scale = torch.empty(n).uniform_(0.85, 1.15)
    shift = torch.empty(n, 2).uniform_(-0.1, 0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    top = torch.stack([cos, shear - sin, shift[:, 0]], 1)
    bottom = torch.stack([sin, cos, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside it is black


# ── MNIST and EMNIST ──


def mnist(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """MNIST's files on disk, else torchvision's download, else the 5,000 embedded digits.

    The test split is always the embedded one, if it is there, so that results are comparable.
    """
    if split == "test" and EMBEDDED["test"].exists():
        return *embedded_mnist("test"), "embedded"
    part = "train" if split == "train" else "t10k"
    place = root / "torchvision"  # a folder of its own: a download overwrites nothing
    if not mnist_files(root, part):
        try:
            with network(MNIST_URL):
                from torchvision.datasets import MNIST

                held = lock(place / "MNIST")
                MNIST(place, download=True)
                held.release()
        except UserError as error:
            how = f"put MNIST's four files into {root / 'MNIST' / 'raw'}"
            if not EMBEDDED["train"].exists():
                raise UserError(f"MNIST: {error.text}; {how}") from None
            say(f"MNIST: {error.text}; using 5,000 embedded digits. To use all 60,000, {how}")
            return *embedded_mnist("train"), "embedded"
    images, labels = mnist_files(root, part)
    with reading(images, "move it and its labels away"):
        return *paired(read_idx(images), read_idx(labels), 10), "MNIST"


def mnist_files(root: Path, part: str) -> list[Path]:
    """part: train or t10k -> its images and labels under their usual names, packed or not."""
    found = []
    for kind in ("images", "labels"):
        for folder in (root / "MNIST", root / "torchvision" / "MNIST"):
            found += sorted(folder.rglob(f"{part}-{kind}[-.]idx?-ubyte*"))[:1]
    same_folder = [path for path in found[1:] if path.parent == found[0].parent]
    return [found[0], *same_folder[-1:]] if same_folder else []


def read_idx(path: Path) -> np.ndarray:
    """The array in a file of MNIST's format, packed by gzip or not. ValueError for any other."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08":
        raise ValueError("it is no IDX file of bytes")
    shape = np.frombuffer(content, ">u4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def paired(images: np.ndarray, labels: np.ndarray, classes: int):
    """-> pixels uint8 (N, 28, 28), labels int64 (N,). ValueError if shapes or labels are wrong."""
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1 or not len(labels):
        raise ValueError(f"{images.shape} are no images of 28 x 28 for {len(labels)} labels")
    if labels.max() >= classes:
        raise ValueError(f"it has the label {labels.max()}, but there are {classes} classes")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def embedded_mnist(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """split train or test -> pixels uint8 (5000, 28, 28), labels (5000,), 500 of each digit."""
    with reading(EMBEDDED[split], "get it from the repository"):
        arrays = load_arrays(EMBEDDED[split])
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def emnist(root: Path, emnist_split: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """By torchvision (Cohen et al. 2017), but upright, and with labels that start from 0."""
    try:
        from torchvision.datasets import EMNIST
    except Exception as error:  # torchvision does not fit torch, or Python lacks a module
        raise UserError(f"EMNIST: torchvision cannot be imported ({one_line(error)})") from None
    archive, options = root / "EMNIST" / "raw" / "gzip.zip", {"train": split == "train"}
    with reading(archive, f"delete {archive.parent}, or put {EMNIST.url} there"):
        try:
            data = EMNIST(root, emnist_split, **options)
        except RuntimeError:  # it is not there yet
            held = lock(archive)
            if not archive.exists():
                say("EMNIST: downloading 540 MB, once")
                with network(EMNIST.url):
                    EMNIST(root, emnist_split, download=True)
            elif hashlib.md5(archive.read_bytes()).hexdigest() != EMNIST.md5:
                raise ValueError("its MD5 is not the expected one") from None
            data = EMNIST(root, emnist_split, download=True, **options)
            held.release()
        first = int(emnist_split == "letters")  # only this split counts from 1
        pixels, labels = data.data.mT.contiguous(), data.targets.long() - first
        return paired(pixels.numpy(), labels.numpy(), 10**6)


# ── QuickDraw ──


def quickdraw(config, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first --per-class drawings of each category; every tenth of them is the test split."""
    folder, files = config.data_dir / "quickdraw", []
    for name in progress(config.classes, "QuickDraw", unit="category", leave=False):
        own, cut = folder / f"{name}.npy", folder / f"{name}_{config.per_class}.npy"
        if not own.exists() and not cut.exists():
            url = QUICKDRAW_URL + urllib.parse.quote(f"{name}.npy")
            say(f"QuickDraw: downloading {name}; a file at {own} would be used instead")
            with network(url):
                drawings = fetch_drawings(url, config.per_class)
            save_file(cut, lambda file, drawings=drawings: np.save(file, drawings))
        files.append(own if own.exists() else cut)
    groups = []
    for path in files:
        with reading(path, "move it away, and it is downloaded again"):
            drawings = np.load(path, mmap_mode="r")[: config.per_class]
            if drawings.dtype != np.uint8 or drawings.shape[1:] != (784,):
                raise ValueError(f"it holds {drawings.dtype} {drawings.shape}, not bitmaps")
        groups.append(drawings.reshape(-1, 28, 28))
    return every_tenth(groups, split)


def fetch_drawings(url: str, n: int) -> np.ndarray:
    """-> the first n rows of a .npy file uint8 (N, 784); the rest is not downloaded."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        np.lib.format.read_magic(answer)
        (rows, *_), _, dtype = np.lib.format.read_array_header_1_0(answer)
        content = answer.read(784 * min(n, rows))
    if dtype != np.uint8 or len(content) < 784 * min(n, rows):
        raise ValueError(f"only {len(content)} bytes of {min(n, rows)} drawings came")
    return np.frombuffer(content, np.uint8).reshape(-1, 784)


def every_tenth(groups: list[np.ndarray], split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of each class -> pixels, labels. Every tenth image of a class is the test split."""
    chosen = [np.flatnonzero((np.arange(len(x)) % 10 == 9) == (split == "test")) for x in groups]
    sizes = [len(rows) for rows in chosen]
    pixels, end = np.empty((sum(sizes), 28, 28), np.uint8), 0  # parts and a copy would take twice
    for images, rows in zip(groups, chosen):
        pixels[end : end + len(rows)] = images[rows]
        end += len(rows)
    labels = torch.arange(len(groups)).repeat_interleave(torch.tensor(sizes))
    return torch.from_numpy(pixels), labels
