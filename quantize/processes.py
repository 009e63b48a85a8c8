"""The processes that train one network together, as ``torchrun`` starts them, and the device that each computes on."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from sparrow.kernels.errors import SparrowError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Processes:
    """All processes of a training, seen by one of them.

    Attributes:
        device: Where this one computes.
        rank: Number of this one, from 0.
        count: Number of them.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; each has to call it."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average floating tensors over all processes, in place; each has to call it."""
        for tensor in tensors if self.count > 1 else ():
            if tensor.is_floating_point():
                self.sum(tensor).div_(self.count)


def is_main_process() -> bool:
    """Whether this process is the only one, or the one that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def choose_device(name: str) -> torch.device:
    """Choose where to compute.

    Args:
        name: ``cpu``, ``cuda``, or ``auto``: a CUDA device if there is one.

    Raises:
        SparrowError: CUDA was asked for and there is no such device.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SparrowError("this PyTorch finds no CUDA device", expected="a GPU, its driver, and PyTorch for CUDA",
                           next_step="train on the CPU: --device cpu")  # fmt: skip
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; without it, this one is alone.

    Args:
        device: As ``choose_device`` takes it. Tensors travel by NCCL between CUDA devices, else by Gloo.

    Raises:
        SparrowError: CUDA was asked for and there is no such device.
    """
    chosen, count = choose_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(chosen)
        return
    joined = distributed.is_initialized()
    if not joined:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, distributed.get_rank(), count)
    finally:
        if not joined:
            distributed.destroy_process_group()
