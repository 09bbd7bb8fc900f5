"""How much of each text a run reads: the one place that decides it, and says it."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError
from penstock.engine.training.recipe import most_tokens

if TYPE_CHECKING:
    from penstock.engine.study.baselines.settings import BaselineSettings
    from penstock.engine.training.settings import Settings

LENGTH, TRUNCATION = "data.max_length", "data.truncation"
WHOLE = "whole"  # a max_length: all that the store keeps of a text
OWN = "auto"  # a truncation: the store's own


@dataclass(frozen=True)
class Reading:
    """What a run reads of the texts it is given.

    Attributes:
        max_length: tokens of a text at most. truncation: what is kept of a longer one.
        texts: how many there are. longer: those of them that are cut.
        tokens: of all texts, as they are stored. left_out: those that are not read.
        cut_before: texts of the whole store that were cut when it was prepared.
    """

    max_length: int
    truncation: str
    texts: int
    longer: int
    tokens: int
    left_out: int
    cut_before: int

    @classmethod
    def of(cls, store: Store, rows: np.ndarray | None = None) -> "Reading":
        """
        Args:
            store: as the run reads it. rows: int64, those that it reads; all by default.
        """
        chosen = slice(None) if rows is None else rows
        stored, read = store.stored_lengths[chosen], store.lengths[chosen]
        tokens = int(stored.sum(dtype=np.int64))
        return cls(
            max_length=store.max_length,
            truncation=store.truncation,
            texts=len(stored),
            longer=int((stored > read).sum()),
            tokens=tokens,
            left_out=tokens - int(read.sum(dtype=np.int64)),
            cut_before=store.manifest.truncated_texts,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        before = ""
        if self.cut_before:
            before = f"; {self.cut_before:,} texts of the store were cut when it was prepared"
        if not self.longer:
            return f"reads whole texts, as they are stored (none has more than {self.max_length:,} tokens{before})"
        return (
            f"reads texts cut at {self.max_length:,} tokens ({self.truncation}): "
            f"{share(self.longer, self.texts)} of texts are longer, "
            f"{share(self.left_out, self.tokens)} of tokens left out{before}"
        )


def recipe_lines(store: Store) -> list[str]:
    """A line for each kind of model that by its recipe reads less of a text than the store keeps."""
    lines, stored = [], store.stored_lengths
    for kind in ("encoder", "lstm") if not store.is_pair else ():
        length = most_tokens(kind)
        if length is not None and length < store.longest:
            over = stored[stored > length].astype(np.int64) - length
            lines.append(
                f"by its recipe, {kind} reads {length:,} tokens of a text (data.max_length): "
                f"{share(len(over), len(stored))} of texts are longer, "
                f"{share(int(over.sum()), store.manifest.num_tokens)} of tokens left out"
            )
    return lines


def share(part: int, whole: int) -> str:
    """In percent, without claiming none or all where there are some or not all."""
    exact = part / max(whole, 1)
    text = f"{exact:.0%}"
    if text in ("0%", "100%") and 0 < part < whole:
        return "under 1%" if text == "0%" else "over 99%"
    return text


def settle_reading(
    settings: "Settings", store: Store, positions: int | None = None, *, strict: bool = True
) -> "Settings":
    """The settings with the cut decided: `data.max_length` a number below the store's limit, or "whole".

    Args:
        store: whole. positions: tokens of a text at most that an encoder has positions for; None for other models.
        strict: whether a truncation without effect is an error; otherwise it is left out.

    Raises:
        ConfigError: the encoder has not enough positions for what was stated, the store's pairs of texts would have to
            be cut, or what is kept of longer texts was stated and none is longer.
    """
    flat = settings.flat()
    stated, truncation = flat[LENGTH], flat[TRUNCATION]
    recipe = most_tokens(settings.model.kind or "lstm", positions)
    length = as_settled(stated if stated is not None else recipe, store)
    if stated is None and isinstance(length, int) and store.is_pair and store.longest > length:
        length = WHOLE  # pairs are cut when they are prepared
    longest = length if isinstance(length, int) else store.longest
    if positions is not None and longest > positions:
        remedy = f"set data.max_length={positions}"
        if store.is_pair:
            remedy = f"prepare the store with --max-length {positions}: pairs of texts are cut then"
        what = f"{LENGTH}={stated}" if stated is not None else f"{store.path}: texts have up to {longest:,} tokens"
        raise ConfigError(f"{what}: the encoder has positions for {positions:,} tokens: {remedy}")
    if truncation in (OWN, store.truncation) or (length == WHOLE and not strict):
        truncation = OWN
    elif length == WHOLE:
        raise ConfigError(
            f"{TRUNCATION}={truncation} has no effect: the run reads texts as {store.path} keeps them, cut at "
            f"{store.max_length:,} tokens ({store.truncation}): set {LENGTH} to fewer, or leave it out"
        )
    elif store.is_pair and truncation == "head+tail":
        raise ConfigError(f"{TRUNCATION}=head+tail is for single texts: of a pair, head or tail is kept")
    settled = settings.replace({LENGTH: length, TRUNCATION: truncation})
    read_by(settled, store)  # whether that can be done
    return settled


def as_settled(length: int | str | None, store: Store) -> int | str:
    """A limit as a run's configuration has it: "whole" where the store keeps no more."""
    return length if isinstance(length, int) and length < store.max_length else WHOLE


def read_by(settings: "Settings | BaselineSettings", store: Store) -> Store:
    """The run's training store as the run reads it.

    Args:
        settings: settled; those of an earlier penstock's run read all.
    """
    length, truncation = settings.reading
    if not isinstance(length, int):
        return store
    return store.cut_to(length, None if truncation == OWN else truncation)


def read_alike(train: Store, test: Store) -> Store:
    """A test store as the run reads it: its texts cut where those of the training store are, whatever it keeps itself.
    `run_record.as_trained` is the same of a run that is there.

    Args:
        train: as `read_by` gives it.

    Raises:
        ConfigError: its pairs of texts are longer than those of the training data.
    """
    return test.cut_to(train.max_length, train.truncation)
