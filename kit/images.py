"""Where images come from: MNIST, EMNIST, QuickDraw; from disk, from their hosts, or embedded. No lesson."""

import argparse
import difflib
import hashlib
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch

import common
from loading.bitmaps import quickdraw  # noqa: F401, one of the loaders

EMBEDDED = common.ROOT / "assets" / "mnist_5k.npz"
CATEGORIES = common.ROOT / "assets" / "quickdraw_categories.txt"


def reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether url's host answers at all. In a thread, because a dead name server ignores a socket's time-out."""
    answers = []

    def ask():
        try:
            answers.append(urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close())
        except Exception as error:  # an error's number is an answer all the same
            answers.extend([error] if isinstance(error, urllib.error.HTTPError) else [])

    (thread := threading.Thread(target=ask, daemon=True)).start()
    thread.join(seconds + 1)
    return bool(answers)


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download to path what is not there yet, its SHA-256 (or the beginning of it) checked. UserError if that fails."""
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        return
    if not reachable(url):
        raise common.UserError(f"{path} is missing or damaged and {url.split('/')[2]} does not answer")
    socket.setdefaulttimeout(15)  # a download that stalls for longer is given up
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=sys.stderr.isatty())
    except Exception as error:  # of many kinds
        why = f"its host sends no such file ({common.one_line(error)})"
        raise common.UserError(f"{path} is missing or damaged and {why}") from None


def settle_classes(args: argparse.Namespace, earlier: dict) -> None:
    """Fill in what --emnist-split, --classes and --per-class leave open, from an earlier run or the defaults."""
    for flag, dataset in common.WHICH.items():
        if (value := getattr(args, flag)) is None:
            setattr(args, flag, earlier.get(flag))
        elif args.dataset != dataset:
            raise common.UserError(f"--{flag.replace('_', '-')} goes with --dataset {dataset}, not {args.dataset}")
        elif flag == "classes":
            args.classes = list(dict.fromkeys(name.strip() for name in value.split(",")))
    if args.dataset == "mnist":
        args.classes = common.DIGITS
    elif args.dataset == "emnist":
        args.emnist_split = args.emnist_split or "letters"
        args.classes = list(common.EMNIST_SPLITS[args.emnist_split])
    else:
        args.classes, args.per_class = args.classes or common.DRAWINGS, args.per_class or 5000
        known = CATEGORIES.read_text().splitlines() if CATEGORIES.exists() else args.classes
        for name in args.classes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.5)
                meant = f"; did you mean {' or '.join(near)}?" if near else ""
                raise common.UserError(
                    f"--classes: QuickDraw has no {name!r}{meant} (assets/quickdraw_categories.txt has all)"
                )
        if len(args.classes) < 2:
            raise common.UserError("--classes: at least two, with commas between, for example cat,rainbow,train")


# ── MNIST and EMNIST, by torchvision ──


def from_torchvision(make, raw: Path, packed: list[str], unpacked: str, hosts: list[str]):
    """make(download) -> one of torchvision's data sets, or a UserError with the reason why it cannot be had.

    packed: the files a host sends, by name in the folder raw; unpacked: a pattern of what is made of them.
    """
    socket.setdefaulttimeout(15)  # a download that stalls for longer is given up; torchvision itself never does
    why = "no host answers"
    for attempt in range(3):  # what is on disk, the download, and once more if it came damaged
        there = all((raw / name).exists() for name in packed)  # then unpacking them needs no network
        if attempt and not there and not any(reachable(url) for url in hosts):
            break
        try:
            data = make(attempt > 0)
            assert len(data.data) == len(data.targets), f"{len(data.data)} images, {len(data.targets)} labels"
            return data
        except Exception as error:  # of many kinds; none may reach training
            if attempt:
                why = common.one_line(error)
            elif "not found" not in str(error):  # but damaged: torchvision checks a .gz, not the file it unpacked
                print(f"damaged files in {raw} ({common.one_line(error)}); fetching again", file=sys.stderr)
                for path in raw.glob(unpacked):
                    path.replace(path.with_name(f"{path.name}.damaged"))
    raise common.UserError(why)


def mnist(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, list[str], str]:
    """-> pixels uint8 (N, 28, 28), labels (N,), names, source. On disk, else the download, else the embedded ones."""
    from torchvision.datasets import MNIST

    raw, packed = root / "MNIST" / "raw", [name for name, _ in MNIST.resources]
    unpacked = "train-*-ubyte" if split == "train" else "t10k-*-ubyte"
    try:
        data = from_torchvision(
            lambda download: MNIST(root, split == "train", download=download), raw, packed, unpacked, MNIST.mirrors
        )
        return data.data, data.targets, common.DIGITS, "torchvision"
    except common.UserError as why:
        if not EMBEDDED.exists():  # in a notebook
            raise common.UserError(f"MNIST: {why}; put its four .gz files in {raw}") from None
        print(
            f"MNIST: {why}; using the 5,000 embedded. For all 70,000 put the four .gz files in {raw}", file=sys.stderr
        )
    return *embedded_mnist(split), common.DIGITS, "embedded"


def embedded_mnist(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """-> pixels uint8 (N, 28, 28), labels (N,): 450 of each digit in "train", the other 50 in "test"."""
    with np.load(EMBEDDED) as file:
        pixels, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    chosen = (torch.arange(len(labels)) % 10 == 9) == (split == "test")  # the file is sorted by class
    return pixels[chosen], labels[chosen]


def emnist(root: Path, split: str, emnist_split: str) -> tuple[torch.Tensor, torch.Tensor, list[str], str]:
    """-> pixels uint8 (N, 28, 28) the right way up, labels from 0 (N,), names, source (Cohen et al. 2017)."""
    from torchvision.datasets import EMNIST

    raw, part = root / "EMNIST" / "raw", "train" if split == "train" else "test"
    archive = raw / EMNIST.url.split("/")[-1]

    def make(download):
        if download and not archive.exists():
            print(f"EMNIST: fetching {archive}, about 540 MB, once; unpacked it takes 1.8 GB more", file=sys.stderr)
        return EMNIST(root, emnist_split, train=split == "train", download=download)

    try:
        data = from_torchvision(make, raw, [archive.name], f"emnist-{emnist_split}-{part}-*-ubyte", [EMNIST.url])
    except common.UserError as why:
        raise common.UserError(f"EMNIST: {why}; fetch {EMNIST.url} (540 MB) and put it at {archive}") from None
    labels = data.targets - int(emnist_split == "letters")  # that split alone counts from 1
    names = list(common.EMNIST_SPLITS[emnist_split])
    if not 0 <= labels.min() <= labels.max() < len(names):
        raise common.UserError(f"{raw}: labels of {emnist_split} out of range; delete emnist-{emnist_split}-* in it")
    return data.data.mT.contiguous(), labels, names, "torchvision"  # the files hold images mirrored at their diagonal
