"""The ground floor: errors, files that are written whole, downloads, a progress bar."""

import contextlib
import hashlib
import io
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent  # the repository
RANK = int(os.environ.get("RANK", 0))  # of this process; torchrun sets it

# ── Errors ──


class UserError(Exception):
    """Something the user can mend: cli() prints it as one line and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        return [f"error: {self}"]  # what Jupyter and Colab print instead of a traceback


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split())[:160] or type(error).__name__


@contextlib.contextmanager
def reading(path: Path, remedy: str):
    """Whatever a missing, damaged or edited file raises in this block becomes one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many kinds: zlib's, pickle's, zipfile's, KeyError, ...
        raise UserError(f"{path} cannot be read ({one_line(error)}); {remedy}") from None


@contextlib.contextmanager
def writing(path: Path):
    """A full disk or a folder that cannot be written, in this block, becomes one UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or one_line(error)}") from None


class PeerLost(BaseException):  # as KeyboardInterrupt: no except clause may take it for its own
    """Of several processes that train together another one has ended, or all shall end."""


def cli(main) -> None:
    """Run main(). What the user can mend becomes one line on stderr and exit code 2.

    Everything else is a fault of the code, and keeps its traceback.
    """
    try:
        main()
        if joined():
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        end("\nstopped; the same command without --fresh goes on from here", 130, RANK == 0)
    except PeerLost:
        end(LOST, 143, RANK == 0)
    except UserError as error:
        wait_for_the_first()
        end(f"error: {error}", 2)
    except (RuntimeError, MemoryError) as error:
        if joined() and re.search("Connection (closed|reset)|Broken pipe", str(error)):
            end(LOST, 143)
        if joined() and re.search("NCCL|peer GPU memory", str(error)):  # it may have other reasons
            end(f"{LOST} ({one_line(error)})", 143)
        wait_for_the_first()
        memory = re.search("out of memory|can't allocate memory", str(error))
        if not memory and not isinstance(error, MemoryError):
            raise
        end("error: out of memory; try a smaller --batch-size", 2)
    except Exception:
        wait_for_the_first()
        raise


LOST = f"error: process {RANK}: another process of this run has ended, or torchrun was stopped; "
LOST += "the same command goes on from the last checkpoint"


def joined() -> bool:
    """Whether this process has met others, see kit/processes.py."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def end(message: str, code: int, aloud: bool = True) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # on the way out nothing shall be raised
    if aloud:
        print(message, file=sys.__stderr__ if RANK > 0 else sys.stderr)  # see processes.join()
    sys.exit(code)


def wait_for_the_first() -> None:
    """Of several processes, most often all meet the same error: then only the first one tells.

    Within this time torchrun, which sees that one end, ends this one.
    """
    if RANK > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)
        sys.stderr = sys.__stderr__


def pick_device(name: str) -> torch.device:
    """auto: a GPU if CUDA finds one, else the CPU. UserError if the device cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = one_line(error)
        raise UserError(f"--device {name} cannot be used ({why}); try --device cpu") from None


# ── Files ──


def save_file(path: Path, write) -> None:
    """write(file), but aside and then renamed: path holds the old content or all of the new.

    UserError if the disk is full or the folder cannot be written.
    """
    content = io.BytesIO()
    write(content)
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(path, lambda file: np.savez_compressed(file, **arrays))


def crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8))


def kept(folder: Path, name: str, of: list, compute, *code) -> dict[str, np.ndarray]:
    """compute()'s arrays, or those that it gave before for what has the same content.

    of: arrays, or the CRC-32 of one where it is known. code: the modules that make them; where
    their files have changed, they are made anew.
    """
    files = [np.frombuffer(Path(module.__file__).read_bytes(), np.uint8) for module in code]
    known = (x if isinstance(x, int) else crc32(x) for x in (*of, *files))
    content = "_".join(f"{crc:08x}" for crc in known)
    path = folder / f"{name}_{content}.npz"
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception:  # missing, or damaged in one of many ways: it is made again
        arrays = compute()
        with contextlib.suppress(UserError):  # a folder that cannot be written costs time alone
            save_arrays(path, arrays)
        return arrays


def save_text(path: Path, text: str) -> None:
    save_file(path, lambda file: file.write(text.encode()))


def save_table(path: Path, rows: list[dict], float_format: str | None = None) -> None:
    """Write a CSV file with a line for each row."""
    import pandas as pd

    options = {"index": False, "float_format": float_format, "lineterminator": "\n"}
    save_text(path, pd.DataFrame(rows).to_csv(**options))


def read_table(path: Path, columns: tuple[str, ...], remedy: str, dtype=None):
    """-> a pandas DataFrame of a CSV file that has at least these columns, else UserError."""
    import pandas as pd

    with reading(path, remedy):
        text = path.read_text(encoding="utf-8-sig")
        if not text.endswith("\n"):
            raise ValueError("cut short")
        table = pd.read_csv(io.StringIO(text), dtype=dtype)
        missing = [name for name in columns if name not in table]
        if missing or table.empty:
            raise ValueError(f"no column {missing[0]}" if missing else "no rows")
    return table


# ── Downloads ──


def reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether url's host answers. In a thread: a dead name server ignores a socket's time-out."""
    answers = []

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.append("yes")
        except urllib.error.HTTPError:
            answers.append("an error's number, which is an answer all the same")
        except Exception:  # of many kinds: no answer
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return bool(answers)


@contextlib.contextmanager
def time_limit(seconds: float = 15.0):
    """Within this block a connection that stands still for so long is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download to path what is not there yet; its SHA-256 begins so. UserError if that fails."""
    with reading(path, "delete it"):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
            return
    if not reachable(url):
        host = url.split("/")[2]
        raise UserError(f"{path} is missing or damaged and {host} does not answer")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with time_limit():
            torch.hub.download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty())
    except Exception as error:  # of many kinds
        why = f"its host sends no such file ({one_line(error)})"
        raise UserError(f"{path} is missing or damaged and {why}") from None


# ── Progress ──


class Progress(tqdm):
    """A bar that counts images; where there is no terminal, a line at every tenth of the way."""

    def __init__(self, *args, unit: str = "image", **others):
        self.tenth = 0  # of the way, that the last line told of
        others.setdefault("leave", sys.stderr.isatty())
        super().__init__(*args, unit=unit, **others)

    def display(self, *args, **kwargs):
        if sys.stderr.isatty():
            super().display(*args, **kwargs)
        elif self.total and self.n * 10 // self.total > self.tenth:
            self.tenth = self.n * 10 // self.total
            print(self, file=sys.stderr, flush=True)
