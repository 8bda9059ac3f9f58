"""QuickDraw's bitmaps: of Google's file of each category only as much as is wanted."""

import http.client
import io
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from kit.base import Progress, UserError, one_line, reachable, reading, writing

HOST = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/"
AT_ONCE = 4  # downloads
AGAIN = "delete it and it will be fetched again"
PARSING = threading.Lock()  # Python 3.11 cannot read two headers at once: SystemError, at times


def quickdraw(root: Path, split: str, classes: list[str], per_class: int, keep=slice(None)):
    """-> pixels uint8 (N, 28, 28), labels (N,). Of the first per_class, every tenth is in test.

    keep: which ones of each class.
    """
    paths = {name: root / "quickdraw" / f"{name}.npy" for name in classes}
    lacking = {}  # name -> bytes
    for name, path in paths.items():
        have, want = bytes_wanted(path, per_class)
        if have < want:
            lacking[name] = want - have
    if lacking:
        fetch_categories(paths, lacking, per_class)
    # One array from the start: the parts and their concatenation would take twice the memory.
    total = 0
    for path in paths.values():
        rows = rows_wanted(path, per_class)
        of_split = rows // 10 if split == "test" else rows - rows // 10
        total += len(range(of_split)[keep])
    pixels = np.empty((total, 28, 28), np.uint8)
    sizes, end = [], 0
    for path in paths.values():
        images = read_bitmaps(path, per_class)
        images = images[(np.arange(len(images)) % 10 == 9) == (split == "test")][keep]
        pixels[end : end + len(images)] = images
        sizes.append(len(images))
        end += len(images)
    labels = torch.arange(len(paths)).repeat_interleave(torch.tensor(sizes))
    return torch.from_numpy(pixels[:end]), labels


# ── A file, or the beginning of one ──


def npy_size(path: Path) -> tuple[int, int]:
    """Where the rows of a .npy file begin, and how many its header promises.

    ValueError if it is no uint8 (N, 784).
    """
    with path.open("rb") as file:
        head = io.BytesIO(file.read(4096))
    version = np.lib.format.read_magic(head)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format, not (1, 0)")
    with PARSING:
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(head)
    if dtype != np.uint8 or by_column or len(shape) != 2 or shape[1] != 784:
        order = " by column" if by_column else ""
        raise ValueError(f"holds {dtype} {shape}{order}, not uint8 (N, 784)")
    return head.tell(), shape[0]


def promised(path: Path) -> int:
    """The bytes of the whole file, by its header."""
    start, rows = npy_size(path)
    return start + 784 * rows


def rows_wanted(path: Path, n: int) -> int:
    """How many of n there are, by its header. UserError if that is damaged."""
    with reading(path, AGAIN):
        return min(npy_size(path)[1], n)


def read_bitmaps(path: Path, n: int) -> np.ndarray:
    """-> uint8 (n, 28, 28), or fewer: the file may be a beginning, which np.load would refuse."""
    with reading(path, AGAIN):
        start, rows = npy_size(path)
        pixels = np.fromfile(path, np.uint8, 784 * min(rows, n), offset=start)
        return pixels.reshape(-1, 28, 28)


def bytes_wanted(path: Path, per_class: int) -> tuple[int, int]:
    """How many bytes of a category are there, and how many there have to be."""
    have = path.stat().st_size if path.exists() else 0
    try:
        start, rows = npy_size(path)
        return have, start + 784 * min(rows, per_class)
    except (OSError, ValueError) as error:
        if have >= 128:  # a whole header
            print(f"{path} is damaged ({one_line(error)}); fetching again", file=sys.stderr)
            path.replace(path.with_name(f"{path.name}.damaged"))
        return 0, 128 + 784 * per_class


# ── Downloads ──


def fetch_categories(paths: dict[str, Path], lacking: dict[str, int], per_class: int) -> None:
    """Fetch the missing bytes (name -> how many), several files at once."""
    urls = {name: HOST + urllib.parse.quote(f"{name}.npy") for name in lacking}
    first, *others = lacking
    if not reachable(urls[first]):
        more = f", and so on for {len(others)} more" if others else ""
        by_hand = f"fetch {urls[first]} and put it at {paths[first]}{more}"
        raise UserError(f"QuickDraw: {urls[first].split('/')[2]} does not answer; {by_hand}")
    with writing(paths[first]):
        paths[first].parent.mkdir(parents=True, exist_ok=True)
    stop, title = threading.Event(), f"QuickDraw, {len(lacking)} categories"
    bar = Progress(desc=title, total=sum(lacking.values()), unit="B", unit_scale=True)
    with bar, ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = []
        for name, url in urls.items():
            jobs.append(pool.submit(fetch_category, url, paths[name], per_class, bar, stop))
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:  # Ctrl-C too: the next command goes on from what has come
            stop.set()
            raise


def fetch_category(url: str, path: Path, per_class: int, bar: Progress, stop) -> None:
    """Fetch what path lacks to hold per_class images, or all there are. UserError if that fails."""
    by_hand, why, idle = f"fetch {url} and put it at {path}", "the connection breaks", 0
    while idle < 3:  # a broken connection goes on where it stopped, unless 3 in a row bring nothing
        have, want = bytes_wanted(path, per_class)
        if have >= want or stop.is_set():
            return
        idle += 1
        try:
            for _ in fetch_range(url, path, have, want, bar, by_hand):
                idle = 0
                if stop.is_set():
                    return
        except urllib.error.HTTPError as error:
            why = f"the server answers {error.code} {error.reason}"
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            why = one_line(error)
    have, want = bytes_wanted(path, per_class)
    if have < want:
        how = f"the same command goes on there, or {by_hand}"
        raise UserError(f"{url}: {why} at byte {have} of {want}; {how}")


def fetch_range(url: str, path: Path, have: int, want: int, bar: Progress, by_hand: str):
    """Append bytes have to want of url to path; yield at each piece. UserError for a wrong file."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-{want - 1}"})
    with urllib.request.urlopen(request, timeout=15) as answer:
        header = answer.headers.get("Content-Range", "")
        sent = re.fullmatch(rf"bytes {have}-\d+/(\d+)", header)
        if answer.status != 206 or not sent:
            raise UserError(f"{url}: the server ignores Range and would send all of it; {by_hand}")
        total = int(sent[1])
        if have and total != promised(path):
            raise UserError(
                f"{url} is another file by now than the one begun at {path}; delete that"
            )
        bar.total += min(want, total) - want
        with path.open("ab" if have else "wb") as file:
            while chunk := answer.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
                yield
    if not have and path.stat().st_size >= min(128, total):  # a whole header, or all there is
        check_new(url, path, total)


def check_new(url: str, path: Path, total: int) -> None:
    """UserError, and path is gone, if its header does not fit a server's file of total bytes."""
    try:
        size = promised(path)
        if size == total:
            return
        why = f"ends early: {total} bytes of the {size} that its header promises"
    except ValueError as error:
        why = f"is not what it should be: {one_line(error)}"
    path.unlink()
    raise UserError(f"{url} {why}")
