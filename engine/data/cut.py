"""Which tokens of a stored row a run reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.engine.data.store import Store


@dataclass(frozen=True)
class Cut:
    """What is read of rows with more than `length` tokens: the first `head` and the last `tail`, special ones too.

    Example:
        >>> import numpy as np
        >>> from penstock.engine.data.cut import Cut
        >>> Cut(head=3, tail=1).lengths(np.array([2, 9], np.int32)).tolist()
        [2, 4]
    """

    head: int
    tail: int

    @property
    def length(self) -> int:
        return self.head + self.tail

    def lengths(self, stored: np.ndarray) -> np.ndarray:
        """int32 (rows,): tokens read of rows with that many, int32 (rows,)."""
        return np.minimum(stored, np.int32(self.length))

    def to_json(self) -> list[int]:
        return [self.head, self.tail]


def texts_cut_short(store: "Store", max_length: int, truncation: str) -> int:
    """How many texts of a store were cut when it was prepared so that not all is left that would be read of them, if
    they were whole, with this limit.

    Args:
        store: whole or cut; what counts is how it is stored. max_length, truncation: as `Store.cut_to` takes them.

    Raises:
        TokenizerError, StoreError: its tokenizer, which is needed where the truncations differ, cannot be loaded.
    """
    manifest = store.manifest
    if not manifest.truncated_texts or max_length > manifest.max_length:
        return manifest.truncated_texts
    if truncation == manifest.truncation:
        return 0
    if store.is_pair:
        return manifest.truncated_texts
    from penstock.engine.data.tokenizers import TextTokenizer

    tokenizer = store.tokenizer()
    kept = Cut(*TextTokenizer(tokenizer, manifest.max_length, manifest.truncation).kept)
    read = Cut(*TextTokenizer(tokenizer, max_length, truncation).kept)
    return 0 if read.head <= kept.head and read.tail <= kept.tail else manifest.truncated_texts
