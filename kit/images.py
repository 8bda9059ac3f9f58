"""Where images come from: MNIST and EMNIST, from disk, from their hosts, or embedded."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.base import ROOT, UserError, one_line, reachable, reading, time_limit
from kit.datasets import EMNIST_SPLITS, data_kind

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


# ── MNIST and EMNIST, by torchvision ──


def from_torchvision(make, raw: Path, packed: list[str], unpacked: str, hosts: list[str]):
    """make(download) -> one of torchvision's data sets; UserError with the reason if it fails."""
    why = "no host answers"
    for attempt in range(3):  # what is on disk, a download, and another if that came damaged
        there = all((raw / name).exists() for name in packed)  # then unpacking needs no network
        if attempt and not there and not any(reachable(url) for url in hosts):
            break
        try:
            with time_limit():
                data = make(attempt > 0)
            if len(data.data) != len(data.targets):
                raise ValueError(f"{len(data.data)} images, {len(data.targets)} labels")
            return data
        except Exception as error:  # of many kinds; none may reach training
            why = one_line(error) if attempt else why
            # torchvision checks a .gz, but not the file that it unpacked from it.
            if not attempt and "not found" not in str(error):
                set_aside(raw, unpacked, one_line(error))
    raise UserError(why)


def set_aside(raw: Path, pattern: str, why: str) -> None:
    print(f"damaged files in {raw} ({why}); fetching again", file=sys.stderr)
    for path in raw.glob(pattern):
        path.replace(path.with_name(f"{path.name}.damaged"))


def mnist(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """MNIST on disk, else downloaded, else (said in one line) the 5,000 embedded digits.

    Of test always the embedded ones where they are: so all are measured against the same digits.
    """
    from torchvision.datasets import MNIST

    raw, packed = root / "MNIST" / "raw", [name for name, _ in MNIST.resources]
    unpacked = "train-*-ubyte" if split == "train" else "t10k-*-ubyte"
    if split == "test" and EMBEDDED["test"].exists():
        return *embedded_mnist("test"), "embedded"

    def make(download: bool):
        return MNIST(root, split == "train", download=download)

    try:
        data = from_torchvision(make, raw, packed, unpacked, MNIST.mirrors)
        return data.data, data.targets, "torchvision"
    except UserError as why:
        if not EMBEDDED["train"].exists():
            raise UserError(f"MNIST: {why}; put its four .gz files in {raw}") from None
        more = f"For all 60,000 put the four .gz files in {raw}"
        print(f"MNIST: {why}; using the 5,000 embedded. {more}", file=sys.stderr)
    return *embedded_mnist("train"), "embedded"


def embedded_mnist(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """split train or test -> pixels uint8 (5000, 28, 28), labels (5000,), 500 of each digit."""
    path = EMBEDDED[split]
    with reading(path, "get it from the repository"), np.load(path) as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])


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


def emnist(root: Path, split: str, emnist_split: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """The right way up, labels from 0 (Cohen et al. 2017)."""
    from torchvision.datasets import EMNIST

    raw, part = root / "EMNIST" / "raw", "train" if split == "train" else "test"
    archive = raw / EMNIST.url.split("/")[-1]

    def make(download: bool):
        if download and not archive.exists():
            size = "about 540 MB, once; unpacked it takes 1.8 GB more"
            print(f"EMNIST: fetching {archive}, {size}", file=sys.stderr)
        return EMNIST(root, emnist_split, train=split == "train", download=download)

    unpacked = f"emnist-{emnist_split}-{part}-*-ubyte"
    try:
        data = from_torchvision(make, raw, [archive.name], unpacked, [EMNIST.url])
    except UserError as why:
        by_hand = f"fetch {EMNIST.url} (540 MB) and put it at {archive}"
        raise UserError(f"EMNIST: {why}; {by_hand}") from None
    labels = data.targets - int(emnist_split == "letters")  # that split alone counts from 1
    if not 0 <= labels.min() <= labels.max() < len(EMNIST_SPLITS[emnist_split]):
        wrong = f"labels of {emnist_split} out of range; delete emnist-{emnist_split}-* in it"
        raise UserError(f"{raw}: {wrong}")
    # The files hold images mirrored at their diagonal.
    return data.data.mT.contiguous(), labels, "torchvision"
