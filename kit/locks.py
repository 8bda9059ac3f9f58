"""Of several processes only one works on the same thing; and a training that a kill only delays."""

import contextlib
import copy
import errno
import os
import sys
import time
from pathlib import Path

import filelock
import torch

from kit.base import (
    AT_END,
    ROOT,
    UserError,
    load_tensors,
    noted,
    raise_terminated,
    save_file,
    say,
    writing,
)

HELD = {}  # the files that this process has for itself -> their locks


@contextlib.contextmanager
def alone(path: Path, what: str):
    """In this block no other process makes path; whoever comes second waits, and says for whom."""
    with contextlib.ExitStack() as stack:
        if not hold(path, again=False):
            say(f"{what}: waiting for {holder(path) or 'this process'}, which is at work on it")
            while not hold(path, again=False):
                time.sleep(0.3)
        stack.callback(release, path)
        yield


def hold(path: Path, again: bool = True) -> bool:
    """Have path for this process, until release() or its end. Whether that is possible.

    again: whether it is where this process has it already. Where nothing can be written or locked,
    nobody needs to hold anything.
    """
    lock, note = lock_files(path)
    if lock in HELD:
        return again
    if not os.access(path.parent, os.W_OK):
        return True
    try:
        made = filelock.FileLock(lock, thread_local=False, mode=0o666)  # for all accounts
        made.acquire(timeout=0.5)  # holder() may have it for a moment
    except (filelock.Timeout, PermissionError):  # the latter: it is another account's
        return not lock.exists()
    except (OSError, NotImplementedError):  # as on some network drives
        return True
    HELD[lock] = made
    with contextlib.suppress(OSError):
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        note.write_text(f"process {os.getpid()} ({command})", encoding="utf-8", errors="replace")
    return True


def release(path: Path) -> None:
    """Give up what hold() has got."""
    lock, note = lock_files(path)
    if lock in HELD:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        HELD.pop(lock).release()


@AT_END.append
def release_all() -> None:
    for lock in [*HELD]:
        release(lock.with_name(lock.name[1 : -len(".lock")]))


def holder(path: Path) -> str:
    """Which process has path, for the reader; "" if none has, this one apart."""
    lock, note = lock_files(path)
    if lock in HELD or not lock.exists():
        return ""
    if hold(path):
        release(path)
        return ""
    try:
        return note.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def lock_files(path: Path) -> tuple[Path, Path]:
    """The file that is locked, and the one that tells by whom."""
    path = path.absolute()
    return path.with_name(f".{path.name}.lock"), path.with_name(f".{path.name}.by")


# ── What is trained once ──


def make_once(file: Path, title: str, make, again: bool = False) -> str:
    """make() writes file -> how it went; another process that wants it too waits for it.

    again: also where it is there already; else that is "".
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the folder is read-only")
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    with alone(file, title):
        return make() if again or not file.is_file() else ""


def check_own(file: Path, asked: bool, what: str, read) -> None:
    """UserError if there is a file that read() does not know as one of ours: it stays.

    So does one that the repository brings, unless it is asked for by name.
    """
    if not asked and file.parent == ROOT / "assets":
        raise UserError(
            f"--out FILE is needed: {file} is the repository's, and runs made with it need it"
        )
    if file.exists():
        known = None
        with contextlib.suppress(Exception):  # whatever a stranger's file raises
            known = read()
        if known is None:
            raise UserError(f"{file} exists and is not {what}; give another --out")


class Halfway:
    """The steps of a training, each 30 s kept beside the file that it is for, if there is one.

    key: what must be the same to go on. modules: name -> what has a state.
    """

    SAVE_EVERY = 30  # seconds

    def __init__(self, file: Path | None, key: str, **modules):
        self.path = file and file.with_name(f".{file.name}.halfway")
        self.key, self.modules, self.step = key, modules, 0
        if file is None or not self.path.exists():
            return
        before = copy.deepcopy({name: module.state_dict() for name, module in modules.items()})
        before["rng"] = torch.get_rng_state()
        try:
            state = load_tensors(self.path)
            if state["key"] == key:
                self.load(state)
                self.step = state["step"]
                say(f"{file}: going on from step {self.step}")
        except Exception:  # damaged, of an earlier version: from 0
            self.load(before)

    def load(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])

    def steps(self, total: int):
        """Yield the number of each step still to do. Asked to end, it finishes one and saves."""
        saved = time.monotonic()
        with noted(patient=False) as signals:
            for step in range(self.step, total):
                yield step
                if self.path and (signals or time.monotonic() - saved > self.SAVE_EVERY):
                    self.save(step + 1)
                    saved = time.monotonic()
                if signals:
                    raise_terminated(signals[0])

    def save(self, step: int) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"key": self.key, "step": step, "rng": torch.get_rng_state()}
        save_file(self.path, lambda content: torch.save(state, content))

    def done(self) -> None:
        if self.path:
            self.path.unlink(missing_ok=True)
