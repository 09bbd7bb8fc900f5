"""Which tokens of a stored row a run reads."""

from dataclasses import dataclass

import numpy as np


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
