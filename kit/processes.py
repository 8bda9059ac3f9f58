"""Devices, training by several processes (started by torchrun), and requests to stop."""

import contextlib
import ctypes
import os
import signal
import sys

import torch
from torch import distributed

from kit.files import LAUNCHED, UserError, one_line

COUNT = int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1  # the number of processes


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
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"--device {name} cannot be used: {one_line(error)}") from None
    if COUNT > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """True for GPUs of compute capability 8 (2020) or higher, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.6 and later
    return device.type == "cpu" and bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def mean(values: list[float]) -> list[float]:
    """-> each value's mean over all processes."""
    if COUNT == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(total)
    return (total / COUNT).tolist()


@contextlib.contextmanager
def stop_requests():
    """-> a list of the signals SIGINT and SIGTERM in this block; the second one interrupts."""
    asked = []

    def note(number, frame):
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
