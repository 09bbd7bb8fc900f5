"""How this process's C library gives out memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Lets glibc reuse the pages of freed tensors instead of giving each back to the system; elsewhere does nothing.

    A step on a CPU frees what the next one asks for: gigabytes a second, which the system would clear page by page.
    For programs of ours only, not for whoever calls `train`: the whole process keeps what it once needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)
