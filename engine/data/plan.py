"""The batches of an epoch: a pure function of lengths, seed, epoch and parameters, the same on every machine."""

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from penstock._native import plan_epoch as native_plan_epoch
from penstock.engine.data.cut import Cut
from penstock.engine.data.manifest import digest
from penstock.engine.data.rows import checked_rows
from penstock.engine.errors import ConfigError

PLAN_VERSION = 2  # of the algorithm: another one gives other batches, and an old run must not go on with them

Mode = Literal["pack", "bucket"]


@dataclass(frozen=True)
class PlanParameters:
    """How an epoch is cut into batches. Saved with a run, never recomputed.

    Example:
        >>> from penstock.engine import PlanParameters
        >>> PlanParameters(tokens_per_batch=8192, batches_per_step=1, mode="pack").tokens_per_batch
        8192

    Attributes:
        tokens_per_batch: a batch holds at most this many tokens, unless it is one longer example.
        batches_per_step: batches of one optimizer step (U). Ranks x accumulation = U: any number of ranks that divides
            it trains the same steps.
        mode: "pack" puts each of the shuffled examples into that of 16 open batches where it leaves the least room; an
            example moves by a few batches, none waits for its length. "bucket" sorts them by length inside windows and
            shuffles the batches: for models whose cost follows the longest example.
        window_batches: batches' worth of examples in a window of mode "bucket".
    """

    tokens_per_batch: int = 16384
    batches_per_step: int = 1
    mode: Mode = "pack"
    window_batches: int = 64

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "batches_per_step", "window_batches"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31 - 1:
                raise ConfigError(f"{name} must be a whole number from 1 to 2^31 - 1, got {value!r}")
        if self.mode not in ("pack", "bucket"):
            raise ConfigError(f"mode must be pack or bucket, got {self.mode!r}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PlanParameters":
        unknown = content.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown plan parameters: {', '.join(sorted(unknown))}")
        return cls(**content)


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch. Step s consists of the batches s * U to (s + 1) * U - 1.

    Every row is in exactly one batch. The last step's batches are smaller; none is empty unless the epoch has fewer
    examples than batches (long examples, each in a batch of its own). In epoch 0 the largest batch comes first, so that
    memory that does not suffice shows at once.

    Attributes:
        fingerprint: of all that decides the epochs' batches, the epoch number left out.
        order: int64, (rows,): the store's rows, batch after batch.
        bounds: int64, (batches + 1,): batch b is order[bounds[b]:bounds[b + 1]].
        tokens, squares: int64, (batches,): sums of the lengths and of their squares (what attention costs).
        longest: int32, (batches,): the greatest length.
    """

    fingerprint: str
    epoch: int
    parameters: PlanParameters
    order: np.ndarray
    bounds: np.ndarray
    tokens: np.ndarray
    squares: np.ndarray
    longest: np.ndarray

    @property
    def num_batches(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_steps(self) -> int:
        return self.num_batches // self.parameters.batches_per_step

    def rows(self, batch: int) -> np.ndarray:
        """int64: the store's rows in one batch."""
        return self.order[self.bounds[batch] : self.bounds[batch + 1]]

    def step_examples(self, step: int) -> int:
        """Examples of a step, over all ranks: what the loss is averaged over."""
        width = self.parameters.batches_per_step
        return int(self.bounds[(step + 1) * width] - self.bounds[step * width])

    def step_tokens(self, step: int) -> int:
        """Tokens of a step, over all ranks."""
        width = self.parameters.batches_per_step
        return int(self.tokens[step * width : (step + 1) * width].sum())

    def statistics(self) -> dict[str, float]:
        """How well the batches are filled and how evenly a step's work is spread.

        `fill` is tokens over room, the last step left out. `attention_balance` is the mean over steps of the mean over
        the greatest sum of squared lengths among a step's batches: 1 when all ranks have the same work.
        """
        width = self.parameters.batches_per_step
        full = self.tokens[:-width] if self.num_steps > 1 else self.tokens
        squares = self.squares.reshape(-1, width).astype(np.float64)
        greatest = squares.max(1)
        balance = np.divide(squares.mean(1), greatest, out=np.ones_like(greatest), where=greatest > 0)
        return {
            "batches": self.num_batches,
            "steps": self.num_steps,
            "examples": len(self.order),
            "tokens": int(self.tokens.sum()),
            "fill": float(full.sum() / (len(full) * self.parameters.tokens_per_batch)) if len(full) else 0.0,
            "attention_balance": float(balance.mean()) if len(balance) else 1.0,
        }


def plan_fingerprint(
    fingerprint: str,
    seed: int,
    parameters: PlanParameters,
    rows: np.ndarray | None = None,
    shuffle: bool = True,
    cut: Cut | None = None,
) -> str:
    """Identifies all that decides the batches of a run's epochs."""
    return digest(
        {
            "version": PLAN_VERSION,
            "store": fingerprint,
            "seed": seed,
            "parameters": parameters.to_json(),
            "rows": None
            if rows is None
            else hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest(),
            "shuffle": shuffle,
            **({} if cut is None else {"cut": cut.to_json()}),  # as it was before there were cuts
        }
    )


def plan_epoch(
    lengths: np.ndarray,
    fingerprint: str,
    seed: int,
    epoch: int,
    parameters: PlanParameters,
    rows: np.ndarray | None = None,
    shuffle: bool = True,
    cut: Cut | None = None,
) -> Plan:
    """Plans one epoch.

    Args:
        lengths: int32, the store's: tokens that are read of each of its rows.
        fingerprint: the store's.
        seed: 0 to 2^64 - 1.
        rows: int64, the rows of the store to use; None for all.
        shuffle: False keeps the rows' order (of windows, in mode "bucket"), the same in every epoch: for evaluation.
        cut: what made `lengths` shorter than they are stored.

    Raises:
        ConfigError: fewer examples than a step of a training has batches.
        TypeError, ValueError: as `checked_rows`.
    """
    rows = None if rows is None else checked_rows(rows, len(lengths))
    count = len(lengths) if rows is None else len(rows)
    if shuffle and count < parameters.batches_per_step:
        raise ConfigError(
            f"{count} training examples are too few for data.batches_per_step={parameters.batches_per_step}: give more "
            "examples, or smaller steps"
        )
    order, bounds, tokens, squares, longest = native_plan_epoch(
        np.ascontiguousarray(lengths, np.int32),
        rows,
        seed,
        epoch,
        parameters.tokens_per_batch,
        parameters.batches_per_step,
        parameters.window_batches if parameters.mode == "bucket" else 0,
        shuffle,
        shuffle and epoch == 0,
    )
    name = plan_fingerprint(fingerprint, seed, parameters, rows, shuffle, cut)
    return Plan(name, epoch, parameters, order, bounds, tokens, squares, longest)
