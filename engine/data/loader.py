"""Batches for the model, made ahead of it by threads that hold no lock of Python's."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock._native import Prefetcher
from penstock.engine.data.plan import Plan, PlanParameters, plan_epoch, plan_fingerprint
from penstock.engine.data.rows import checked_rows
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, RunError, StoreError
from penstock.kernels.ragged import Ragged

STATE_VERSION = 1


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        tokens: token ids, int32, and in `tokens.ids` the store's rows.
        labels: int64, (batch,); of a store with lists of labels float32, (batch, num_labels), 1 for each of a row's.
        seconds: int32, (batch,): of pairs of texts, how many tokens of each stand before the first of type 1; None
            where tokens have no types.
        teacher: float32, (batch, num_labels): the teachers' logits; None of a store that none has read.
        labelled: bool, (batch,): with a teacher, whether the label is a true one; otherwise None.
    """

    tokens: Ragged
    labels: Tensor
    seconds: Tensor | None = None
    teacher: Tensor | None = None
    labelled: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.tokens.values.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        # A copy to the CPU is read by it, which waits for no stream: that one must block.
        non_blocking = non_blocking and torch.device(device).type != "cpu"
        others = [
            None if each is None else each.to(device, non_blocking=non_blocking)
            for each in (self.seconds, self.teacher, self.labelled)
        ]
        return Batch(self.tokens.to(device, non_blocking), self.labels.to(device, non_blocking=non_blocking), *others)

    def types(self) -> dict[str, Tensor]:
        """What a model takes beside the tokens: token_type_ids, int64 (total_tokens,), or nothing without types."""
        if self.seconds is None:
            return {}
        cu_seqlens, total = self.tokens.cu_seqlens, self.num_tokens
        # given the sum, no device is asked for it
        begins = torch.repeat_interleave(cu_seqlens[:-1] + self.seconds, cu_seqlens.diff(), output_size=total)
        return {"token_type_ids": (torch.arange(total, device=cu_seqlens.device) >= begins).long()}

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask (int64, (batch, longest)) and labels, for models that know no ragged batches.

        Also token_type_ids, where tokens have types.
        """
        lengths = self.tokens.lengths
        mask = torch.arange(self.tokens.max_seqlen, device=lengths.device) < lengths[:, None]
        input_ids = torch.full(mask.shape, pad_token_id, device=lengths.device)
        input_ids[mask] = self.tokens.values.long()
        padded = {"input_ids": input_ids, "attention_mask": mask.long(), "labels": self.labels}
        for name, types in self.types().items():
            padded[name] = torch.zeros_like(input_ids)
            padded[name][mask] = types
        return padded


@dataclass(frozen=True)
class Step:
    """This rank's batches of one optimizer step.

    Attributes:
        epoch, index: which step.
        batches: U / world_size of them, to be accumulated.
        num_examples, num_tokens: of the whole step, over all ranks: known without asking them.
    """

    epoch: int
    index: int
    batches: list[Batch]
    num_examples: int
    num_tokens: int

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Iterates over the steps of an epoch.

    Each `for step in loader` goes through one epoch and moves on to the next; leaving it early and starting again
    repeats the epoch, as with a DataLoader. After `load_state_dict`, the first one resumes where the state was taken.
    Order and batches depend on the store and its cut, the seed, the parameters and the rows alone: not on ranks,
    threads or interruptions.

    Batches are new tensors, never reused while anything refers to them; they are in pinned memory when there is a GPU,
    from torch's allocator, which also waits for copies under way.

    Example:
        >>> from penstock.engine import Loader, PlanParameters, Store
        >>> parameters = PlanParameters(tokens_per_batch=128, batches_per_step=1, mode="pack")
        >>> loader = Loader(Store.open("train"), seed=0, parameters=parameters)
        >>> sum(len(batch) for batch in loader.batches())
        60

    Args:
        store: what to read; `Store.cut_to` says how much of each row.
        seed: seeds the shuffles, 0 to 2^64 - 1.
        parameters: how an epoch is cut into batches and steps.
        rows: int64, the rows of the store to use, for training on a part of it; None for all.
        rank, world_size: which batches of each step are made here; world_size must divide parameters.batches_per_step.
        shuffle: False for evaluation: the rows in their order.
        start_state: what `state_dict` gave.
        threads: how many make batches.
        ahead: batches made before they are asked for.
        pin_memory: None for whether there is a GPU.

    Raises:
        ConfigError: numbers that do not fit together.
        RunError: `start_state` belongs to other data or other parameters.
    """

    def __init__(
        self,
        store: Store,
        *,
        seed: int,
        parameters: PlanParameters,
        rows: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        start_state: dict[str, Any] | None = None,
        threads: int = 1,
        ahead: int = 4,
        pin_memory: bool | None = None,
    ) -> None:
        if world_size < 1 or parameters.batches_per_step % world_size:
            raise ConfigError(
                f"{world_size} ranks cannot share steps of {parameters.batches_per_step} batches evenly: "
                "their number must divide it"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size}")
        if threads < 1 or ahead < 1:
            raise ConfigError("the loader needs one thread and one batch ahead at least")
        self.store = store
        self.seed = seed
        self.parameters = parameters
        self.rows = None if rows is None else checked_rows(rows, store.num_examples)
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.fingerprint = plan_fingerprint(store.fingerprint, seed, parameters, self.rows, shuffle, store.cut)
        self._threads = threads
        self._ahead = ahead
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._epoch = self._step = self._examples = self._tokens = 0
        self._resumed = False
        self._plan: Plan | None = None
        if start_state is not None:
            self.load_state_dict(start_state)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, over all ranks."""
        return self.store.num_examples if self.rows is None else len(self.rows)

    def plan(self, epoch: int | None = None) -> Plan:
        """The batches of an epoch, by default of the current one; the last one asked for is kept."""
        epoch = self._epoch if epoch is None else epoch
        if self._plan is None or (self._plan.epoch != epoch and self.shuffle):
            store = self.store
            self._plan = plan_epoch(
                store.lengths,
                store.fingerprint,
                self.seed,
                epoch,
                self.parameters,
                self.rows,
                self.shuffle,
                store.cut,
            )
        return self._plan

    def __len__(self) -> int:
        """Steps of the current epoch."""
        return self.plan().num_steps

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch; does nothing if the loader is in it, so that a resumed position stays."""
        if epoch != self._epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, step: int = 0) -> None:
        """Makes the next iteration begin at this step. Takes no time that depends on it."""
        self._epoch, self._step, self._resumed = epoch, step, True

    def state_dict(self) -> dict[str, Any]:
        """Where the next step is: as small as that, whatever was made ahead. JSON."""
        return {
            "version": STATE_VERSION,
            "plan": self.fingerprint,
            "epoch": self._epoch,
            "step": self._step,
            "examples": self._examples,
            "tokens": self._tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            RunError: the state belongs to another store, seed, parameters, rows or cut.
        """
        if state.get("version") != STATE_VERSION:
            raise RunError(
                f"the loader's state is of version {state.get('version')}, this penstock reads {STATE_VERSION}"
            )
        if state["plan"] != self.fingerprint:
            raise RunError(
                "the loader's state belongs to other data or other batches: store, seed, tokens_per_batch, "
                "batches_per_step, mode, rows and the cut must be those of the run that is resumed"
            )
        self.seek(state["epoch"], state["step"])
        self._examples, self._tokens = state["examples"], state["tokens"]

    def __iter__(self) -> Iterator[Step]:
        if not self._resumed:
            self._step = 0
        self._resumed = False
        return self._steps()

    def batches(self) -> Iterator[Batch]:
        """The same as iterating, one batch at a time."""
        for step in self:
            yield from step

    def _steps(self) -> Iterator[Step]:
        plan, epoch, first = self.plan(), self._epoch, self._step
        width = self.parameters.batches_per_step // self.world_size
        made = self._made_ahead(plan, first)
        for index in range(first, plan.num_steps):
            batches = [next(made) for _ in range(width)]
            step = Step(epoch, index, batches, plan.step_examples(index), plan.step_tokens(index))
            self._step = index + 1
            self._examples += step.num_examples
            self._tokens += step.num_tokens
            if self._step == plan.num_steps:
                self._epoch, self._step = epoch + 1, 0
            yield step

    def _made_ahead(self, plan: Plan, first_step: int) -> Iterator[Batch]:
        """This rank's batches from a step on: within each step, every world_size-th."""
        numbers = range(first_step * self.parameters.batches_per_step + self.rank, plan.num_batches, self.world_size)
        labels = self.store.labels
        prefetcher = Prefetcher(self.store.shards, self._threads)
        for number in numbers:
            if len(prefetcher) == self._ahead:
                yield self._pop(prefetcher)
            self._submit(prefetcher, plan, number, labels)
        while len(prefetcher):
            yield self._pop(prefetcher)

    def _pop(self, prefetcher: Prefetcher) -> Batch:
        """The next batch, with all labels of its rows where they have lists, and with what teachers say of them."""
        try:
            batch = prefetcher.pop()
        except RuntimeError as error:  # met in the shards: memory runs out elsewhere
            raise StoreError(f"{self.store.path}: {error}; penstock verify says more") from None
        assert batch.tokens.ids is not None
        if self.store.multi_label:
            return Batch(batch.tokens, self._tensor(self.store.targets(batch.tokens.ids.numpy())))
        if (soft := self.store.soft_targets(batch.tokens.ids.numpy())) is None:
            return batch
        return replace(batch, teacher=self._tensor(soft.logits), labelled=self._tensor(soft.labelled))

    def _tensor(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._pin_memory else tensor

    def _submit(self, prefetcher: Prefetcher, plan: Plan, number: int, labels: np.ndarray) -> None:
        rows = plan.rows(number)
        count, tokens = len(rows), int(plan.tokens[number])
        pin = self._pin_memory
        values = torch.empty(tokens, dtype=torch.int32, pin_memory=pin)
        cu_seqlens = torch.empty(count + 1, dtype=torch.int32, pin_memory=pin)
        ids = torch.empty(count, dtype=torch.int64, pin_memory=pin)
        ids.numpy()[:] = rows
        batch_labels = torch.empty(count, dtype=torch.int64, pin_memory=pin)
        seconds = None
        if self.store.seconds is not None:
            seconds = torch.empty(count, dtype=torch.int32, pin_memory=pin)
            seconds.numpy()[:] = self.store.seconds[rows]
        batch = Batch(Ragged(values, cu_seqlens, int(plan.longest[number]), ids), batch_labels, seconds)
        cut = self.store.cut
        prefetcher.submit(
            rows,
            labels,
            values.data_ptr(),
            tokens,
            cu_seqlens.data_ptr(),
            batch_labels.data_ptr(),
            batch,
            None if cut is None else (cut.head, cut.tail),
        )
