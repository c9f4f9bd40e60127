"""The processes of one run, as ``torchrun`` or ``accelerate launch`` started them; one process where nobody did.

All processes hold the same data, model and random draws. What is dealt out among them are the forward passes of an
optimiser step and the rows of an evaluation; sums and answers come together again by accelerate's collectives, so that
every process continues with the same numbers. Process 0 alone writes files and logs.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce

T = TypeVar("T")
# A process may wait for another that trains a recommender; one that died ends the others through its launcher.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process, by its index, among the ``count`` of its run."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes for all."""
        return self.index == 0

    def share(self, dealt: Sequence[T]) -> list[T]:
        """This process's part of a sequence: every ``count``-th element."""
        return list(dealt[self.index :: self.count])

    def bounds(self, total: int) -> tuple[int, int]:
        """Where this process's part of ``total`` rows begins and ends; the parts differ by one row at most."""
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes; the same bits in each."""
        return tensor if self.count == 1 else reduce(tensor, "sum")

    def gather(self, own: T) -> list[T]:
        """The values of all processes, by index."""
        return [own] if self.count == 1 else gather_object([own])

    def from_main(self, make: Callable[[], T]) -> T:
        """Make a value in process 0 and broadcast it; an error there ends all processes through their launcher."""
        if self.count == 1:
            return make()
        made: list[Any] = [make() if self.is_main else None]
        return broadcast_object_list(made)[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; one that none used stays None, so that no optimiser moves its parameter."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.float32)
        for parameter, is_used in zip(trained, self.sum(used.to(trained[0].device)).tolist(), strict=True):
            if is_used:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.sum(own)

    @torch.no_grad()
    def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the values of process 0."""
        if self.count > 1:
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.detach().clone()))


def launched() -> int:
    """How many processes a launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_index() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(launched())))


def go_alone() -> tuple[int, int]:
    """From here on this process runs without those started with it; returns its number among them, and its GPU's here."""
    index, gpu = int(os.environ.get("RANK", "0")), local_index()
    visible = dict(enumerate(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))).get(gpu, "")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return index, int(visible) if visible.isdigit() else gpu


def end_group() -> None:
    """End the process group of this process, if it is in one: Python aborts at its own end where the group's threads still run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def processes_of(config: Any) -> Processes:
    """This process among those of a run. The first call initialises the process group, where a launcher started several."""
    return _processes(torch.device(config["device"]).type == "cpu")


@cache
def _processes(is_cpu: bool) -> Processes:
    if launched() == 1:
        return Processes()
    state = PartialState(cpu=is_cpu, timeout=TIMEOUT)  # gloo connects processes that compute on CPUs
    return Processes(state.process_index, state.num_processes)
