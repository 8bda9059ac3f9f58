"""Several processes that train one model: torchrun starts them, torch.distributed joins them.

The first of them, of rank 0, is the one that reads and writes the run's folder. Without torchrun
there is one process, and nothing here does anything.
"""

import contextlib
import ctypes
import inspect
import os
import signal
import sys
import zlib
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kit.base import RANK, PeerLost, UserError

COUNT = int(os.environ.get("WORLD_SIZE", 1))  # torchrun's, as RANK
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # on this machine
TIMEOUT = timedelta(hours=2)  # of a wait for others, who may be fetching 540 MB


def device_name(name: str) -> str:
    """--device of this process: each GPU gets one. UserError if all would get the same."""
    if COUNT > 1 and ":" in name:
        raise UserError(
            f"--device {name} is one device for {COUNT} processes; leave out its number"
        )
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
    """Meet the other processes, once. Only the first one's messages are shown from here on."""
    if COUNT == 1 or dist.is_initialized():
        return
    nccl = device.type == "cuda" and dist.is_nccl_available()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=TIMEOUT)
    signal.signal(signal.SIGTERM, stopped)  # torchrun sends it to all as soon as one has ended
    if RANK > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")


def stopped(*_) -> None:
    raise PeerLost


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
    """What may fetch or make files: one process of each machine first, the others find them."""
    together = COUNT > 1 and dist.is_initialized()  # evaluate.py, say, joins nobody
    if together and LOCAL_RANK > 0:
        mean([0.0])  # waits for all
    yield
    if together and LOCAL_RANK == 0:
        mean([0.0])


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
