"""QuickDraw's bitmaps: of Google's file of each category only as much as is wanted."""

import http.client
import io
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from kit.base import Progress, UserError, one_line, reading, save_file, say, writing
from kit.downloads import WEB_PAGE, fetched_name, host_of, out_of_reach, reason
from kit.locks import alone

HOST = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/"
AT_ONCE = 4  # downloads
AGAIN = "move it away and it will be fetched again"
EMPTY = 6  # so many drawings without ink in a row are a gap in the file
PARSING = threading.Lock()  # Python 3.11 cannot read two headers at once: SystemError, at times


def quickdraw(root: Path, split: str, classes: list[str], per_class: int, keep=slice(None)):
    """-> pixels uint8 (N, 28, 28), labels (N,). Of the first per_class, every tenth is in test.

    keep: which ones of each class.
    """
    folder = root / "quickdraw"
    paths = {name: file_of(folder / f"{name}.npy") for name in classes}
    missing = lacking(paths, per_class)
    if missing:
        check_host(paths, [*missing])
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, "QuickDraw"):
            fetch_categories(paths, per_class)
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
        return header_size(file.read(4096))


def header_size(content: bytes) -> tuple[int, int]:
    head = io.BytesIO(content)
    version = np.lib.format.read_magic(head)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format, not (1, 0)")
    try:
        with PARSING, warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(head)
    except Exception as error:  # of many kinds, tokenize's too
        raise ValueError(one_line(error)) from None
    if len(shape) and (type(shape[0]) is not int or shape[0] < 1):
        raise ValueError(f"{shape[0]} drawings")
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
        pixels = np.fromfile(path, np.uint8, 784 * min(rows, n), offset=start).reshape(-1, 784)
        empty = np.flatnonzero(~pixels.any(1))
        if len(empty) >= EMPTY and (empty[EMPTY - 1 :] - empty[: 1 - EMPTY] == EMPTY - 1).any():
            raise ValueError(f"zeros instead of drawings, near number {empty[0]}")
        return pixels.reshape(-1, 28, 28)


def bytes_wanted(path: Path, per_class: int) -> tuple[int, int]:
    """How many bytes of a category are there, and how many there have to be."""
    if not path.exists():
        return 0, 128 + 784 * per_class
    with reading(path, AGAIN):
        start, rows = npy_size(path)
        return path.stat().st_size, start + 784 * min(rows, per_class)


def lacking(paths: dict[str, Path], per_class: int) -> dict[str, int]:
    """Category -> how many bytes of it are still to be fetched."""
    missing = {}
    for name, path in paths.items():
        have, want = bytes_wanted(path, per_class)
        if have < want:
            missing[name] = want - have
    return missing


def file_of(path: Path) -> Path:
    """path, or where there is something else than bitmaps, which stays as it is, a name beside."""
    try:
        if path.exists():
            npy_size(path)
        return path
    except (OSError, ValueError) as error:
        other = fetched_name(path)
        if not other.exists():
            say(f"{path} holds no bitmaps ({one_line(error)}); it stays, {other.name} is fetched")
        return other


# ── Downloads ──


def url_of(name: str) -> str:
    return HOST + urllib.parse.quote(f"{name}.npy")


def check_host(paths: dict[str, Path], missing: list[str]) -> None:
    """UserError if it does not answer."""
    first, *others = missing
    why = out_of_reach(url_of(first))
    if why:
        more = f", and so on for {len(others)} more" if others else ""
        by_hand = f"fetch {url_of(first)} and put it at {paths[first]}{more}"
        raise UserError(f"QuickDraw: {host_of(url_of(first))} {why}; {by_hand}")


def fetch_categories(paths: dict[str, Path], per_class: int) -> None:
    """Fetch the bytes that are missing, several files at once."""
    missing = lacking(paths, per_class)
    if not missing:
        return
    urls = {name: url_of(name) for name in missing}
    stop, title = threading.Event(), f"QuickDraw, {len(missing)} categories"
    bar = Progress(desc=title, total=sum(missing.values()), unit="B", unit_scale=True)
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
            why = f"the server {reason(error)}"
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
        if "html" in answer.headers.get("Content-Type", ""):
            raise UserError(f"{host_of(url)} {WEB_PAGE}; {by_hand}")
        if answer.status != 206 or not sent:
            raise UserError(f"{url}: the server ignores Range and would send all of it; {by_hand}")
        total = int(sent[1])
        if have and total != promised(path):
            raise UserError(
                f"{url} is another file by now than the one begun at {path}; move that away"
            )
        bar.total += min(want, total) - want
        if not have:
            head = received(answer, min(128, total))
            if len(head) < min(128, total):
                raise http.client.HTTPException("the connection breaks")
            check_header(url, head, total)
            save_file(path, lambda file: file.write(head))  # so a file begins with all of it
            bar.update(len(head))
        with writing(path), path.open("ab") as file:
            while chunk := received(answer):
                file.write(chunk)
                bar.update(len(chunk))
                yield


def received(answer, most: int = 1 << 16) -> bytes:
    """The next bytes of an answer. HTTPException if that fails: an OSError is the disk's."""
    try:
        return answer.read(most)
    except OSError as error:
        raise http.client.HTTPException(reason(error)) from None


def check_header(url: str, head: bytes, total: int) -> None:
    """UserError if a .npy file that begins with head is not one of bitmaps of total bytes."""
    try:
        start, rows = header_size(head)
        size = start + 784 * rows
    except ValueError as error:
        raise UserError(f"{url} is not what it should be: {one_line(error)}") from None
    if size != total:
        promise = f"{total} bytes of the {size} that its header promises"
        raise UserError(f"{url} ends early: {promise}")
