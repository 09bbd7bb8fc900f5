"""Checkpoints written beside the training: a copy in host memory, and a thread that writes it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from penstock.engine.training.shard import is_share, whole


class HostCopy:
    """Copies of trees of tensors in host memory, whose buffers are used again for the next one.

    Tensors that share their memory share it in the copy. A copy is that of one moment if nothing runs while it is made.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple, Tensor] = {}

    def of(self, tree: Any, *, keep: bool = True) -> Any:
        """The same dictionaries, lists and tuples with copies of their tensors. It overwrites the copy before it.

        Tensors of which each process has a share are brought together, one after the other; all processes call this.

        Args:
            keep: False for a process that only helps with that, and gets nothing.
        """
        with torch.no_grad():
            return self._copied(tree, (), {} if keep else None)

    def _copied(self, tree: Any, place: tuple, made: dict[tuple, Tensor] | None) -> Any:
        if isinstance(tree, Tensor):
            return self._tensor(tree, place, made)
        if isinstance(tree, dict):
            return {key: self._copied(value, (*place, key), made) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self._copied(value, (*place, index), made) for index, value in enumerate(tree))
        return tree

    def _tensor(self, tensor: Tensor, place: tuple, made: dict[tuple, Tensor] | None) -> Tensor | None:
        is_of_shares = is_share(tensor)
        tensor = whole(tensor)
        if made is None:
            return None
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in made:
            return made[memory]
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[place] = torch.empty(tensor.shape, dtype=tensor.dtype)
        buffer.copy_(tensor)
        if not is_of_shares:  # the memory of a tensor brought together is the next one's
            made[memory] = buffer
        return buffer


class Writer:
    """A thread that does one thing after another; what one of them raises comes out at the next `wait`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._under_way: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        return self._under_way is not None and self._under_way.done() and self._under_way.exception() is not None

    def start(self, action: Callable[[], None]) -> None:
        """Begins with it; `wait` has to have been called after the one before."""
        assert self._under_way is None
        self._under_way = self._thread.submit(action)

    def wait(self) -> None:
        """Returns when all has been done; raises what it raised."""
        action, self._under_way = self._under_way, None
        if action is not None:
            action.result()

    def close(self) -> None:
        """Lets what is under way come to its end; what it raises is lost, as something else has ended the run."""
        self._thread.shutdown()
