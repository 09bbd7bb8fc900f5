"""A loader as a torch data set, for training loops that take a DataLoader: Lightning's, accelerate's, one's own."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from penstock.engine.data.loader import Batch, Loader
from penstock.engine.errors import ConfigError


class BatchDataset(IterableDataset):
    """Yields this rank's batches of an epoch, one at a time; each new iteration is the next epoch.

    Give it to `DataLoader(dataset, batch_size=None)`, or torchdata's StatefulDataLoader, which saves and restores its
    state after any batch. One worker at most: batches are made by threads already. Ranks are the loader's own business:
    accelerate must not split it again (`dispatch_batches=False, split_batches=False`, and leave it out of `prepare`).

    Args:
        loader: where the batches come from.
        pad_token_id: None for `Batch` objects; otherwise padded dictionaries, as the transformers library's models take
            them.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from penstock.engine import BatchDataset, Loader, PlanParameters, Store
        >>> parameters = PlanParameters(tokens_per_batch=128, batches_per_step=1, mode="pack")
        >>> loader = Loader(Store.open("train"), seed=0, parameters=parameters)
        >>> batches = DataLoader(BatchDataset(loader, pad_token_id=0), batch_size=None)
        >>> sum(len(batch["input_ids"]) for batch in batches)
        60
    """

    def __init__(self, loader: Loader, pad_token_id: int | None = None) -> None:
        self.loader = loader
        self.pad_token_id = pad_token_id
        self._state = loader.state_dict()  # at the beginning of a step,
        self._done = 0  # and how many of its batches are done
        self._skip = 0

    def __iter__(self) -> Iterator[Batch | dict[str, Tensor]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError(f"{worker.num_workers} workers would each read everything; one is enough, or none")
        skip, self._skip = self._skip, 0
        for step in self.loader:
            for done, batch in enumerate(step, 1):
                if done > skip:
                    at_end = done == len(step)
                    self._state, self._done = (self.loader.state_dict(), 0) if at_end else (self._state, done)
                    yield batch if self.pad_token_id is None else batch.padded(self.pad_token_id)
            skip = 0

    def __len__(self) -> int:
        """Batches of the current epoch on this rank."""
        return len(self.loader) * self.loader.parameters.batches_per_step // self.loader.world_size

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self._state, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            RunError: the state belongs to other data or other batches.
        """
        self.loader.load_state_dict(state["loader"])
        self._state, self._done = state["loader"], state["done"]
        self._skip = self._done
