"""The ground floor: errors, what is said, signals, files that are written whole, progress."""

import contextlib
import functools
import glob
import io
import os
import re
import secrets
import signal
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent  # the repository


def count_of(name: str, least: int) -> int:
    """A number that torchrun puts into the environment, where others may have put anything."""
    text = os.environ.get(name, "")
    return max(least, int(text)) if text.isdecimal() else least


COUNT = count_of("WORLD_SIZE", 1)  # of processes that train one model
RANK = count_of("RANK", 0) if COUNT > 1 else 0  # of this process among them

# ── Errors ──


class UserError(Exception):
    """Something the user can mend: cli() prints it as one line and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter and Colab print instead of a traceback; there no cli() gives back."""
        for give_back in AT_END:
            give_back()
        return [f"error: {self}"]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split())[:160] or type(error).__name__


@contextlib.contextmanager
def reading(path: Path, remedy: str):
    """Whatever a missing, damaged or edited file raises in this block becomes one UserError."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except KeyError as error:
        raise UserError(f"{path} cannot be read (it lacks {error}); {remedy}") from None
    except Exception as error:  # of many kinds: zlib's, pickle's, zipfile's, ...
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


class Terminated(BaseException):
    """SIGTERM has come, or SIGHUP; its argument is the number."""


def cli(main) -> None:
    """Run main(). What the user can mend becomes one line on stderr and exit code 2.

    Everything else is a fault of the code, and keeps its traceback.
    """
    prepare_streams()
    try:
        with signals(raise_terminated, "SIGTERM", "SIGHUP"):
            run_main(main)
    except PeerLost:
        end(LOST, 143, RANK < 2)  # whichever process is lost, another one says it
    except KeyboardInterrupt:
        end(f"\n{GOES_ON}", 130, RANK == 0)
    except Terminated as error:
        end(GOES_ON, 128 + error.args[0], RANK == 0)
    finally:
        for give_back in AT_END:
            give_back()


AT_END = []  # what cli() calls in the end, see kit.locks
GOES_ON = "stopped; the same command (without --fresh) goes on from what is saved"
LOST = f"error: process {RANK}: another process of this run has ended, or torchrun was stopped; "
LOST += "the same command goes on from the last checkpoint"


def run_main(main) -> None:
    try:
        main()
        if joined():
            torch.distributed.destroy_process_group()
    except UserError as error:
        wait_for_the_first()
        end(f"error: {error}".replace("\n", "\\n").replace("\r", "\\r"), 2)
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


def joined() -> bool:
    """Whether this process has met others, see kit/processes.py."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def end(message: str, code: int, aloud: bool = True) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on the way out nothing shall be raised
    if aloud:
        say(message, sys.__stderr__ if RANK > 0 else None)  # see processes.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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


# ── Typed paths ──


def expanded(text: str) -> Path:
    """The path that is meant; ~ stays where an account has no home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


# ── What is said ──


def prepare_streams() -> None:
    """So that nothing that is printed can fail: for its signs, or because nobody listens."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a program without a terminal
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def say(text: str, stream=None) -> None:
    """Print to stderr, or to stream, whatever its encoding and whether anybody listens or not."""
    stream = sys.stderr if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = str(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a broken pipe, a full disk, a closed stream
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # else it fails again at exit


@functools.cache
def say_once(text: str) -> None:
    say(text)


def tell(text: str) -> None:
    """Print to stdout what was asked for: a path, a table. See say()."""
    say(text, sys.stdout)


# ── Signals ──


@contextlib.contextmanager
def signals(handler, *names: str):
    """Within this block handler(number, frame) is called; not for a signal that is ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in names):
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def raise_terminated(number: int, frame=None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


@contextlib.contextmanager
def noted(patient: bool):
    """-> a list: the signals that ask this process to end, as they come in this block.

    patient: any number of them; else the second one ends it at once.
    """
    came = []

    def note(number: int, frame) -> None:
        if came and not patient:
            raise_terminated(number)
        came.append(number)

    names = ["SIGINT"] if joined() else ["SIGINT", "SIGTERM", "SIGHUP"]
    with signals(note, *names):
        yield came


# ── Files ──


def save_file(path: Path, write) -> None:
    """write(file), but aside and then renamed: path holds the old content or all of the new.

    UserError if the disk is full or the folder cannot be written.
    """
    content = io.BytesIO()
    write(content)
    with writing(path), aside(path) as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())


@contextlib.contextmanager
def aside(path: Path):
    """-> a file beside path, of a name that no other process has; it becomes path at the end.

    What a process that was killed has left of its own goes when path is written an hour later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(path, lambda file: np.savez_compressed(file, **arrays))


def load_tensors(path: Path, map_location="cpu"):
    """What torch.save() wrote, tensors and plain types alone; ValueError if it is damaged.

    torch.load() compares no checksums: it takes a changed weight for a weight.
    """
    check_sums(path)
    return torch.load(path, map_location=map_location, weights_only=True)


def check_sums(path: Path) -> None:
    """ValueError if path is a zip archive, as torch writes them, in which something is damaged."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong:
            raise ValueError(f"{wrong} in it is damaged")


def not_finite(state, name: str = "") -> str:
    """The name of a tensor in nested dicts and lists that holds NaN or infinity, or ""."""
    if isinstance(state, torch.Tensor):
        return name if state.is_floating_point() and not state.isfinite().all() else ""
    if not isinstance(state, (dict, list, tuple)):
        return ""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    found = (not_finite(value, f"{name}.{key}".lstrip(".")) for key, value in items)
    return next(filter(None, found), "")


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """What save_arrays() wrote; zlib compares its checksums. KeyError for a name that lacks."""
    file = np.load(path)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a single array, no .npz")
    with file:
        return {name: file[name] for name in names or file.files}


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
        arrays = load_arrays(path)
        if int(arrays.pop("crc32")) != crc32_of(arrays):
            raise ValueError("edited")
        return arrays
    except Exception:  # missing, or damaged in one of many ways: it is made again
        arrays = compute()
        with contextlib.suppress(UserError):  # a folder that cannot be written costs time alone
            save_arrays(path, arrays | {"crc32": np.array(crc32_of(arrays))})
        return arrays


def crc32_of(arrays: dict[str, np.ndarray]) -> int:
    return zlib.crc32(str([(name, crc32(array)) for name, array in arrays.items()]).encode())


def save_text(path: Path, text: str) -> None:
    save_file(path, lambda file: file.write(text.encode()))


def save_table(path: Path, rows: list[dict], float_format: str | None = None) -> None:
    """Write a CSV file with a line for each row."""
    import pandas as pd

    options = {"index": False, "float_format": float_format, "lineterminator": "\n"}
    save_text(path, pd.DataFrame(rows).to_csv(**options))


def read_table(path: Path, columns: tuple[str, ...], remedy: str, dtype=None):
    """-> a pandas DataFrame of a CSV file that has at least these columns, else UserError.

    Also of one that a spreadsheet has saved: with semicolons, decimal commas, in UTF-16.
    """
    import pandas as pd

    with reading(path, remedy):
        content = path.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = content.decode("utf-16" if wide else "utf-8-sig")
        text = re.sub(r"\Asep=.\s+", "", text)  # Excel's own hint
        if not text.endswith(("\n", "\r")) and "\r\n" not in text:
            raise ValueError("cut short")
        first = text.splitlines()[0]
        separator = max(",;\t", key=first.count)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        table = pd.read_csv(io.StringIO(text), dtype=dtype, sep=separator, skipinitialspace=True)
        table = table.dropna(how="all")  # lines of separators alone, as a spreadsheet adds them
        table = table.loc[:, ~table.columns.str.startswith("Unnamed")]  # such columns
        for name in table.columns if dtype is None else ():
            with contextlib.suppress(ValueError, AttributeError):  # text, or numbers already
                table[name] = table[name].str.replace(",", ".").astype(float)
        missing = [name for name in columns if name not in table]
        if missing or table.empty:
            raise ValueError(f"no column {missing[0]}" if missing else "no rows")
    return table


# ── Progress ──


class Progress(tqdm):
    """A bar that counts images; where there is no terminal, a line at every tenth of the way."""

    def __init__(self, *args, unit: str = "image", **others):
        self.tenth = 0  # of the way, that the last line told of
        others.setdefault("leave", sys.stderr.isatty())
        super().__init__(*args, unit=unit, **others)

    def display(self, *args, **kwargs):
        if sys.stderr.isatty():
            with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
                super().display(*args, **kwargs)
        elif self.total and self.n * 10 // self.total > self.tenth:
            self.tenth = self.n * 10 // self.total
            say(self)

    def close(self):
        with contextlib.suppress(OSError, ValueError):
            super().close()
