"""Rows of a store, as a caller gives them."""

from typing import Any

import numpy as np


def checked_rows(rows: Any, num_examples: int, name: str = "rows") -> np.ndarray:
    """Rows of a store, int64 and contiguous.

    Args:
        rows: integers, (count,). num_examples: rows that the store has. name: for messages.

    Raises:
        TypeError: they are no integers. ValueError: they have another shape, or the store lacks one.
    """
    found = np.asarray(rows)
    if found.dtype == np.bool_:
        raise TypeError(f"{name} must be numbers of rows, got a mask: give np.flatnonzero({name})")
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"{name} must be numbers of rows, got {found.dtype}")
    if found.ndim != 1:
        raise ValueError(f"{name} must have shape (count,), got {found.shape}")
    if found.size and not (found.min() >= 0 and found.max() < num_examples):
        raise ValueError(f"{name} must be from 0 to {num_examples - 1:,}, got {found.min():,} to {found.max():,}")
    return np.ascontiguousarray(found, np.int64)
