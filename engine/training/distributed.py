"""One process or many under torchrun: who we are, and what all must agree on."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from penstock.engine.errors import ConfigError, RankError
from penstock.engine.training.meeting import is_under_torchrun, place_of_this_start

T = TypeVar("T")


class Stopped(BaseException):
    """A signal ends what is under way, see `signals`. Not an Exception: no library takes it for an error of its own."""


@dataclass(frozen=True)
class World:
    """This process's place among `size` processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device | str | None = None, timeout: float = 600.0) -> "World":
        """Reads torchrun's environment and starts the process group it asks for: NCCL on GPUs, gloo on CPUs.

        Args:
            timeout: seconds that a process waits for another one.

        Raises:
            RankError: one of the processes did not come.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if device is None:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if size == 1:
            return cls(0, 1, device)
        if not dist.is_initialized():
            with answering(timeout):
                backend = "nccl" if device.type == "cuda" else "gloo"
                place = place_of_this_start(timeout) if is_under_torchrun() else {}
                dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **place)
        return cls(dist.get_rank(), size, device)

    def wait_at_most(self, timeout: float) -> None:
        """Sets for how many seconds a process waits for another one from here on."""
        if self.size > 1:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout))

    @classmethod
    def alone(cls, model: torch.nn.Module) -> "World":
        """This process by itself, on a model's device."""
        return cls(0, 1, next(model.parameters()).device)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, vote: bool) -> bool:
        """Whether any process votes yes."""
        return vote if self.size == 1 else bool(self.sum(torch.tensor(int(vote), device=self.device)).item())

    def on_main(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0; every process gets its result, or its exception."""
        if self.size == 1:
            return action()
        outcome: list[object] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except (Exception, Stopped) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[1], BaseException):
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value]

    def check_divides(self, batches_per_step: int) -> None:
        """Raises ConfigError unless the processes share a step's batches evenly."""
        if batches_per_step % self.size:
            raise ConfigError(
                f"data.batches_per_step={batches_per_step} cannot be shared by {self.size} processes: "
                f"set it to a multiple of {self.size}"
            )


@contextlib.contextmanager
def answering(timeout: float) -> Iterator[None]:
    """Around what several processes do together.

    Raises:
        RankError: one of them did not answer in `timeout` seconds, or is gone: in one line, where the library has a
            message of its own for each of its ways to wait.
    """
    try:
        yield
    except RuntimeError as error:  # torch's own errors of processes are such ones
        said = str(error).lower()
        again = "the same command goes on from the last checkpoint"
        if any(words in said for words in _NO_WAY):
            raise RankError(
                "another process of this run cannot be reached: it has ended, which its own message explains, or the "
                "network lets nothing through (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface to use); "
                f"{again}"
            ) from error
        if any(words in said for words in _NO_ANSWER):
            raise RankError(
                f"another process did not answer within {timeout:g} s (training.rank_timeout): it hangs, or is slower "
                f"than that; look at its machine, or raise training.rank_timeout; {again}"
            ) from error
        if any(words in said for words in _GONE):
            raise RankError(f"another process of this run has ended: its own message says why; {again}") from error
        raise


# What gloo, NCCL and the store where processes meet say.
_NO_WAY = ("connectfullmesh failed", "timed out connecting", "failed to connect", "connection refused")
_NO_ANSWER = ("timed out", "timeout")
_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "recvvalue failed",
    "failed to recv",
    "sendbytes failed",
    "connection was likely closed",
    "remote process exited",
)
