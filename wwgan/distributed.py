"""Processes that train together, and the devices they train on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .files import first_line


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. Raises ValueError for a device this machine lacks.

    Of the processes that torchrun starts on a machine, each gets the GPU of its local rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must be auto, cpu, cuda or cuda:<number> and present, got {name!r} ({first_line(error)})"
        ) from None
    return device


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """In here torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def world_size() -> int:
    """Number of processes that train together; 1 unless torch.distributed was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among those that train together; the first, 0, writes the run folder."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[None]:
    """In here the processes that torchrun started, if it did, train together: by nccl on GPUs, by gloo on CPUs.

    gloo notices a lost process at once, nccl after four hours: others wait while the first prepares data or evaluates.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    found = pick_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=timedelta(hours=4))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process goes through here before the others: it prepares the data, they find them."""
    if rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def same_everywhere(value: object) -> bool:
    """Whether all processes come here with an equal value of plain types."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found.count(value) == len(found)


def average(values: Tensor) -> Tensor:
    """Mean over processes, of each entry."""
    if world_size() > 1:
        dist.all_reduce(values)
        values = values / world_size()
    return values


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """Means of the parameters' gradients over processes, in one reduction; gradients in images stay within theirs."""
    if world_size() > 1:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        joint = average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, joint.split([g.numel() for g in gradients])):
            gradient.copy_(part.view(gradient.shape))
