"""Several processes that train one model: torchrun starts them, torch.distributed joins them.

The first of them, of rank 0, is the one that reads and writes the run's folder. Without torchrun
there is one process, and nothing here waits for others.
"""

import contextlib
import ctypes
import inspect
import os
import signal
import sys
import threading
import time
import zlib
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kit.base import COUNT, LOST, RANK, PeerLost, UserError, count_of, one_line, say

LOCAL_RANK = count_of("LOCAL_RANK", 0)  # of this process on this machine
TIMEOUT = timedelta(days=1)  # of a wait for others, who may be fetching 39 GB


def device_name(name: str) -> str:
    """--device of this process: each GPU gets one. UserError if all would get the same."""
    if COUNT > 1 and ":" in name:
        raise UserError(
            f"--device {name} is one device for {COUNT} processes; leave out its number"
        )
    if COUNT > 1 and name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name} cannot train by several processes; cpu and cuda can")
    if COUNT > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{LOCAL_RANK}"
    return name


def keep_memory() -> None:
    """Linux: memory that a step has freed stays with the process, for the next step.

    Else the system hands out fresh pages again and again, page by page, which costs a step on a
    CPU 5 to 10 % of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)  # the most that glibc allows


def join(device: torch.device) -> None:
    """Meet the other processes, once. From here on only the first one tells what it does."""
    if COUNT == 1 or dist.is_initialized():
        return
    nccl = device.type == "cuda" and dist.is_nccl_available()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=TIMEOUT)
    except ValueError as error:
        wrong = f"WORLD_SIZE in the environment says {COUNT} processes"
        raise UserError(f"{wrong}, but torchrun has started none ({one_line(error)})") from None
    signal.signal(signal.SIGTERM, stopped)  # torchrun sends it to all as soon as one has ended
    if nccl:
        end_when_stuck()
    if RANK > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")


def stopped(*_) -> None:
    raise PeerLost


def end_when_stuck() -> None:
    """A process that waits for its GPU does not come to stopped(): a thread of its own ends it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)  # a signal's number is written there as soon as it comes

    def watch() -> None:
        while os.read(reading, 1)[0] != signal.SIGTERM:
            pass
        time.sleep(2)
        if RANK == 0:
            say(LOST)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def from_first(make):
    """-> make() of the first process, in all of them."""
    if COUNT == 1:
        return make()
    made = [make() if RANK == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def gather(value) -> list:
    """-> every process's value, by rank; an empty list for all but the first one."""
    if COUNT == 1:
        return [value]
    values = [None] * COUNT if RANK == 0 else None
    dist.gather_object(value, values)
    return values or []


def mean(values: list[float]) -> list[float]:
    """-> entry by entry the mean over all processes."""
    if COUNT == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / COUNT).tolist()


@contextlib.contextmanager
def in_turn():
    """What may fetch or make files: first by the first process, then by one of each other machine,
    which may share its disk or not, then by all others, which find them.
    """
    turn = 0 if RANK == 0 else 1 if LOCAL_RANK == 0 else 2
    together = COUNT > 1 and dist.is_initialized()  # evaluate.py, say, joins nobody
    for _ in range(turn if together else 0):
        mean([0.0])  # waits for all
    yield
    for _ in range(2 - turn if together else 0):
        mean([0.0])


def check_alike(what: str, value) -> None:
    """UserError if this process has another value than the first one: a model of two minds."""
    first = from_first(lambda: value)
    if value != first:
        where = f"process {RANK} has {what} {value}, the first one {first}"
        raise UserError(f"{where}; give all machines the same files")


def share_of(batch_size: int) -> int:
    """How many images of a batch are this process's. UserError if it cannot be shared equally."""
    if batch_size % COUNT:
        most = batch_size // COUNT * COUNT or COUNT
        wrong = f"--batch-size {batch_size} cannot be shared equally by {COUNT} processes"
        raise UserError(f"{wrong}; for example {most}")
    return batch_size // COUNT


def parallel(model: torch.nn.Module):
    """-> model, and under torchrun one whose backward() gives the mean gradient of all processes.

    Li et al. 2020, PyTorch Distributed. Both share their weights.
    """
    if COUNT == 1:
        return model
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    # The buffers need no exchange: all processes have encoded the same texts.
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{buffers: False})


def own_seed(*numbers: int) -> int:
    """A seed that differs between processes."""
    return zlib.crc32(f"{numbers} {RANK}".encode())
