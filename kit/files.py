"""Messages, files, downloads, devices, training by several processes, requests to stop."""

import contextlib
import ctypes
import hashlib
import io
import os
import signal
import socket
import sys
import time
import urllib.request
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from joblib import Memory
from torch import distributed
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent  # the repository
LAUNCHED = distributed.is_available() and distributed.is_torchelastic_launched()  # by torchrun
RANK = int(os.environ["RANK"]) if LAUNCHED else 0  # of this process; only rank 0 writes files
COUNT = int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1  # the number of processes
PATIENCE = 15  # seconds to wait for a server


class UserError(SystemExit):
    """A problem that the user can fix: Python prints one line and exits with code 1."""

    def __init__(self, text: str):
        self.text = text.replace("\r", "\\r").replace("\n", "\\n")
        super().__init__(f"error: {self.text}")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())[:160] or type(error).__name__


def say(text: str) -> None:
    """Print to stderr, in the first process only."""
    if RANK == 0:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def reading(path: Path, remedy: str):
    """Turn any error from a missing, damaged or edited file into a UserError."""
    try:
        yield
    except Exception as error:  # zlib's, pickle's, zipfile's, json's, ...
        why = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{path} cannot be read ({why}); {remedy}") from None


@contextlib.contextmanager
def writing(path: Path):
    """Turn a full disk, or a folder that is not writable, into a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def progress(*args, **options) -> tqdm:
    """A progress bar; if stderr is not a terminal, a line every ten seconds."""
    style = {"disable": RANK > 0, "leave": sys.stderr.isatty()}
    if not sys.stderr.isatty():
        style |= {"delay": 10, "mininterval": 10, "bar_format": "{l_bar}{bar:10}{r_bar}\n"}
    return tqdm(*args, **style | options)


def save_file(path: Path, write) -> None:
    """Save what write(file) writes, by way of a temporary file: path is never half written."""
    content, temporary = io.BytesIO(), path.with_name(f".{path.name}.part")
    write(content)
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                os.fsync(file.fileno())
            for seconds in (0.2, 0.8, 2, 0):  # on Windows, another program may have path open
                with contextlib.suppress(PermissionError if seconds else ()):
                    temporary.replace(path)
                    break
                time.sleep(seconds)
        finally:
            temporary.unlink(missing_ok=True)  # where that failed


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(path, lambda file: np.savez_compressed(file, **arrays))


def save_table(path: Path, rows, float_format: str | None = None) -> None:
    """Write a CSV file. rows: a DataFrame or a list of dicts."""
    import pandas as pd  # takes 0.3 s, and --prompt does not need it

    text = pd.DataFrame(rows).to_csv(index=False, float_format=float_format, lineterminator="\n")
    save_file(path, lambda file: file.write(text.encode()))


def load_tensors(path: Path):
    """Load what torch.save() wrote, without running pickled code. ValueError if it is damaged."""
    check_sums(path)  # which torch.load() does not
    return torch.load(path, map_location="cpu", weights_only=True)


def check_sums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError(f"{archive.testzip()} in it is damaged")


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def memory(folder: Path) -> Memory:
    """An on-disk cache of function results, keyed by the content of the arguments."""
    writable = os.access(folder if folder.exists() else folder.parent, os.W_OK)
    return Memory(folder / "cache" if writable else None, verbose=0)


def lock(path: Path) -> FileLock:
    """Lock path until .release() or the end of this process. UserError if it is locked already."""
    with writing(path):
        held = FileLock(path.with_name(f".{path.name}.lock"), is_singleton=True, thread_local=False)
        try:
            return held.acquire(timeout=0).lock
        except Timeout:
            raise UserError(f"another process is using {path}; wait until it ends") from None


@contextlib.contextmanager
def network(url: str):
    """Turn a server that does not answer, or a failed download of url, into a UserError."""
    before, head = socket.getdefaulttimeout(), urllib.request.Request(url, method="HEAD")
    socket.setdefaulttimeout(PATIENCE)
    try:  # in a thread, since a timeout does not cover name resolution
        ThreadPool(1).apply_async(urllib.request.urlopen, [head]).get(PATIENCE)
        yield
    except Exception as error:  # of many kinds
        late = f"no answer within {PATIENCE} s"
        why = late if type(error).__name__ == "TimeoutError" else one_line(error)
        raise UserError(f"{url} cannot be downloaded: {why}") from None
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, path: Path, sha256: str) -> Path:
    """Download url to path unless it exists. sha256: the first digits of the expected hash."""
    if not path.exists():
        with writing(path), network(url):
            torch.hub.download_url_to_file(url, str(path), sha256, progress=RANK == 0)
    with reading(path, "move it away to download it again"):
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
            raise ValueError("its SHA-256 is not the expected one")
    return path


def pick_device(name: str) -> torch.device:
    """auto: a CUDA GPU if there is one. Under torchrun, also assign GPUs and connect processes."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # freed memory stays here for the next step,
        ctypes.CDLL(None).mallopt(-3, 2**25)  # which saves 5 to 10 % of its time on a CPU
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and COUNT > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:  # xpu, hpu
        raise UserError(f"--device {name} cannot be used: {one_line(error)}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)  # whose random state is saved
    if COUNT > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """True for GPUs of compute capability 8 (2020) or higher, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.6 and later
    return device.type == "cpu" and bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def mean_of_processes(values: list[float]) -> list[float]:
    """values of this process -> each one's mean over all processes."""
    total = torch.tensor(values, dtype=torch.float64)
    if COUNT > 1:
        distributed.all_reduce(total)
    return (total / COUNT).tolist()


@contextlib.contextmanager
def stop_requests():
    """-> a list of the signals SIGINT and SIGTERM in this block; the second one interrupts."""
    asked = []

    def note(number, frame):
        asked.append(number)
        signal.signal(number, signal.default_int_handler)  # which interrupts

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
