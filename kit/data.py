"""Load MNIST, EMNIST, QuickDraw or a folder of pictures; convert between pixels and images."""

import gzip
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import torch

from kit.files import PATIENCE, ROOT, UserError, load_arrays, network, reading, save_file, say
from kit.folder import pictures
from kit.words import data_kind

# split -> 20,000 and 5,000 digits of MNIST, equally many of each; missing in a notebook
EMBEDDED = {"train": ROOT / "assets/mnist_20k.npz", "test": ROOT / "assets/mnist_test_5k.npz"}
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
HAZE = 10  # lower grey levels become 0: real backgrounds are black, generated ones nearly so
QUICKDRAW_URL = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/"


def load_dataset(config, split: str = "train") -> tuple[torch.Tensor, torch.Tensor, str]:
    """split train or test -> pixels uint8 (N, 28, 28), labels int64 (N,), their source."""
    kind = data_kind(config)
    if kind == "mnist":
        return mnist(config.data_dir, split)
    if kind == "emnist":
        return *emnist(config.data_dir, config.emnist_split, split), kind
    groups = quickdraw(config) if kind == "quickdraw" else pictures(config)
    return *every_tenth(groups, split), kind


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """pixels uint8 (n, H, W) -> images float32 (n, 1, H, W) in [-1, 1]."""
    return pixels[:, None] / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """images (n, 1, H, W) in [-1, 1] -> pixels uint8 (n, H, W)."""
    pixels = ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    return np.where(pixels < HAZE, 0, pixels).astype(np.uint8)


def mnist(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Test: the embedded digits. Train: MNIST's files, else a download, else the embedded ones."""
    if split == "test" and EMBEDDED["test"].exists():  # so that results are comparable
        return *embedded_mnist("test"), "embedded"
    part = "train" if split == "train" else "t10k"
    try:
        if not mnist_files(root, part):
            with network(MNIST_URL):
                from torchvision.datasets import MNIST

                MNIST(root / "torchvision", download=True)  # which leaves a user's files alone
    except UserError as error:
        how = f"to use all 60,000 digits, put MNIST's four files into {root / 'MNIST' / 'raw'}"
        if not EMBEDDED["train"].exists():
            raise UserError(f"MNIST: {error.text}; {how}") from None
        say(f"MNIST: {error.text}; using 20,000 embedded digits ({how})")
        return *embedded_mnist("train"), "embedded"
    images, labels = mnist_files(root, part)
    with reading(images, "move it and its labels away"):
        images, labels = read_idx(images), read_idx(labels)
        if images.shape != (len(labels), 28, 28) or labels.max() > 9:
            raise ValueError(f"images {images.shape}, {len(labels)} labels up to {labels.max()}")
        return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)), "mnist"


def mnist_files(root: Path, part: str) -> list[Path]:
    """part train or t10k -> [images, labels] under their usual names, gzipped or not, or []."""
    for images in sorted(root.glob(f"**/MNIST/**/{part}-images[-.]idx3-ubyte*")):
        for labels in sorted(images.parent.glob(f"{part}-labels[-.]idx1-ubyte*")):
            if images.is_file() and labels.is_file():  # Kaggle's archive has folders, too
                return [images, labels]
    return []


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, MNIST's format, gzipped or not. ValueError for other files."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08":
        raise ValueError("it is not an IDX file of bytes")
    shape = np.frombuffer(content, ">u4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def embedded_mnist(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """split train or test -> pixels uint8 (n, 28, 28), labels (n,), equally many of each digit."""
    with reading(EMBEDDED[split], "get it from the repository"):
        arrays = load_arrays(EMBEDDED[split])
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def emnist(root: Path, emnist_split: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """EMNIST (Cohen et al. 2017) from torchvision, turned upright, with labels from 0."""
    archive = root / "EMNIST" / "raw" / "gzip.zip"
    with reading(archive.parent, "delete it, or put the right gzip.zip there"):
        from torchvision.datasets import EMNIST
        from torchvision.datasets.utils import check_integrity

        options = {"root": root, "split": emnist_split, "train": split == "train"}
        if archive.exists() and not check_integrity(archive, EMNIST.md5):
            raise ValueError("gzip.zip is another file, or damaged")
        try:
            data = EMNIST(**options, download=archive.exists())  # which unpacks it
        except RuntimeError:  # no file is there yet
            say(f"EMNIST: downloading {EMNIST.url}, 540 MB, once")
            with network(EMNIST.url):
                data = EMNIST(**options, download=True)
        first = int(emnist_split == "letters")  # only this split counts from 1
        return data.data.mT.contiguous(), data.targets.long() - first


def quickdraw(config) -> list[np.ndarray]:
    """-> for each class its first --per-class drawings, uint8 (n, 28, 28)."""
    groups = []
    for name in config.classes:
        path = config.data_dir / "quickdraw" / f"{name}.npy"  # the complete file, from the user
        url = QUICKDRAW_URL + urllib.parse.quote(path.name)
        if not path.exists():
            path = path.with_name(f"{name}_{config.per_class}.npy")
        if not path.exists():
            say(f"QuickDraw: downloading {name}, of assets/quickdraw_categories.txt")
            with network(url), urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                np.lib.format.read_magic(answer)
                (rows, *_), _, dtype = np.lib.format.read_array_header_1_0(answer)
                wanted = min(config.per_class, rows)  # the rest is not downloaded
                drawings = np.frombuffer(answer.read(784 * wanted), dtype).reshape(-1, 784)
                if len(drawings) < wanted:
                    raise ValueError(f"the connection was lost after {len(drawings)} drawings")
            save_file(path, lambda file: np.save(file, drawings))
        with reading(path, f"move it away, or put {url} there"):
            drawings = np.load(path, mmap_mode="r")[: config.per_class]
            groups.append(drawings.view(np.uint8).reshape(len(drawings), 28, 28))
    return groups


def every_tenth(groups: list[np.ndarray], split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of each class -> pixels, labels of a split; the test split is every tenth image."""
    chosen = [np.flatnonzero((np.arange(len(x)) % 10 == 9) == (split == "test")) for x in groups]
    sizes = [len(rows) for rows in chosen]
    pixels = np.empty((sum(sizes), 28, 28), np.uint8)  # filled in place
    for part, images, rows in zip(np.split(pixels, np.cumsum(sizes)), groups, chosen):
        part[:] = images[rows]
    return torch.from_numpy(pixels), torch.from_numpy(np.repeat(range(len(groups)), sizes))
