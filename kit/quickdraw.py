"""QuickDraw's bitmaps: the beginning of Google's file of each category, byte for byte, so that more can be added."""

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

import common
import loading

HOST = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/"
AT_ONCE = 4  # downloads


def npy_size(path: Path) -> tuple[int, int]:
    """Where the rows of a .npy file begin, and how many its header promises. ValueError if it is no uint8 (N, 784)."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(4096))
    if (version := np.lib.format.read_magic(head)) != (1, 0):
        raise ValueError(f"version {version} of the .npy format, not (1, 0)")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(head)
    if dtype != np.uint8 or by_column or len(shape) != 2 or shape[1] != 784:
        raise ValueError(f"holds {dtype} {shape}{' by column' * by_column}, not uint8 (N, 784)")
    return head.tell(), shape[0]


def promised(path: Path) -> int:
    """The bytes of the whole file, by its header."""
    start, rows = npy_size(path)
    return start + 784 * rows


def read_bitmaps(path: Path, n: int) -> np.ndarray:
    """-> uint8 (n, 28, 28), or fewer: the file may be only a beginning, which np.load would refuse."""
    start, rows = npy_size(path)
    return np.fromfile(path, np.uint8, 784 * min(rows, n), offset=start).reshape(-1, 28, 28)


def bytes_wanted(path: Path, per_class: int) -> tuple[int, int]:
    """How many bytes of a category are there, and how many there have to be; of a damaged file none are."""
    have = path.stat().st_size if path.exists() else 0
    try:
        start, rows = npy_size(path)
        return have, start + 784 * min(rows, per_class)
    except (OSError, ValueError) as error:
        if have >= 128:  # a whole header
            print(f"{path} is damaged ({common.one_line(error)}); fetching again", file=sys.stderr)
            path.replace(path.with_name(f"{path.name}.damaged"))
        return 0, 128 + 784 * per_class


def fetch_category(url: str, path: Path, per_class: int, bar: common.Progress, stop: threading.Event) -> None:
    """Fetch what path lacks to hold per_class images, or all if there are fewer. UserError if that cannot be had."""
    by_hand, why, idle = f"fetch {url} and put it at {path}", "", 0
    while idle < 3:  # a broken connection goes on where it stopped, unless three in a row bring nothing
        have, want = bytes_wanted(path, per_class)
        if have >= want or stop.is_set():
            return
        idle += 1
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-{want - 1}"})
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                sent = re.fullmatch(rf"bytes {have}-\d+/(\d+)", answer.headers.get("Content-Range", ""))
                if answer.status != 206 or not sent:
                    raise common.UserError(f"{url}: the server ignores Range and would send all of it; {by_hand}")
                total = int(sent[1])
                if have and total != promised(path):
                    raise common.UserError(f"{url} is another file by now than the one begun at {path}; delete that")
                bar.total += min(want, total) - want
                with path.open("ab" if have else "wb") as file:
                    while (chunk := answer.read(1 << 16)) and not stop.is_set():
                        file.write(chunk)
                        bar.update(len(chunk))
                        idle = 0
            if not have and path.stat().st_size >= min(128, total):  # a whole header, or all there is
                check_new(url, path, total)
        except urllib.error.HTTPError as error:
            why = f"the server answers {error.code} {error.reason}"
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            why = common.one_line(error)
    if not stop.is_set():
        have, want = bytes_wanted(path, per_class)
        why = why or "the connection breaks"
        raise common.UserError(f"{url}: {why} at byte {have} of {want}; the same command goes on there, or {by_hand}")


def check_new(url: str, path: Path, total: int) -> None:
    """UserError, and path is gone, if its header does not fit a server's file of total bytes."""
    try:
        if (size := promised(path)) == total:
            return
        why = f"ends early: {total} bytes of the {size} that its header promises"
    except ValueError as error:
        why = f"is not what it should be: {common.one_line(error)}"
    path.unlink()
    raise common.UserError(f"{url} {why}")


def quickdraw(root: Path, split: str, classes: list[str], per_class: int):
    """-> pixels uint8 (N, 28, 28), labels (N,), names, source: of the first per_class every tenth is in "test"."""
    paths = {name: root / "quickdraw" / f"{name}.npy" for name in classes}
    lacking = {name: want - have for name in classes for have, want in [bytes_wanted(paths[name], per_class)]}
    lacking = {name: count for name, count in lacking.items() if count > 0}
    urls = {name: HOST + urllib.parse.quote(f"{name}.npy") for name in lacking}
    if lacking:
        name, more = next(iter(lacking)), f", and so on for {len(lacking) - 1} more" * (len(lacking) > 1)
        if not loading.reachable(urls[name]):
            by_hand = f"fetch {urls[name]} and put it at {paths[name]}{more}"
            raise common.UserError(f"QuickDraw: {urls[name].split('/')[2]} does not answer; {by_hand}")
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        style, stop = {"unit": "B", "unit_scale": True, "leave": sys.stderr.isatty()}, threading.Event()
        with (
            common.Progress(desc=f"QuickDraw, {len(lacking)} categories", total=sum(lacking.values()), **style) as bar,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            jobs = [pool.submit(fetch_category, urls[x], paths[x], per_class, bar, stop) for x in lacking]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:  # Ctrl-C too: what has come is kept, and the next command goes on there
                stop.set()
                raise
    parts = [read_bitmaps(path, per_class) for path in paths.values()]
    parts = [part[(np.arange(len(part)) % 10 == 9) == (split == "test")] for part in parts]
    labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return torch.from_numpy(np.concatenate(parts)), labels, classes, "QuickDraw"
