"""Devices, and several processes that train one model: torchrun starts them."""

import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from kit.files import LAUNCHED, UserError, one_line

COUNT = int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1  # of processes


def pick_device(name: str) -> torch.device:
    """name: cpu, cuda, ... or auto: a GPU if there is one. Under torchrun each process gets its
    own GPU, and the processes connect here. UserError if the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and COUNT > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"--device {name} cannot be used ({one_line(error)})") from None
    if COUNT > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def parallel(model: torch.nn.Module) -> torch.nn.Module:
    """-> model; under torchrun a wrapper of it whose gradients are the mean over all processes.

    Li et al. 2020, PyTorch Distributed. Buffers are the same in all processes already.
    """
    return DistributedDataParallel(model, broadcast_buffers=False) if COUNT > 1 else model


def mean(values: list[float]) -> list[float]:
    """-> each value's mean over all processes."""
    if COUNT == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(total)
    return (total / COUNT).tolist()


def gather(value) -> list:
    """-> the values of all processes, by rank."""
    values = [None] * COUNT
    if COUNT == 1:
        return [value]
    distributed.all_gather_object(values, value)
    return values


def share_of(batch_size: int) -> int:
    """How many images of a batch this process draws. UserError unless all can draw as many."""
    if batch_size % COUNT:
        raise UserError(f"--batch-size {batch_size} is no multiple of the {COUNT} processes")
    return batch_size // COUNT
