"""The C library's allocator, told to keep what training frees."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # from malloc.h


def keep_freed_memory() -> bool:
    """Lets large tensors reuse the pages of freed ones instead of giving each back to the system and faulting in new.

    glibc maps every large allocation anew; touching its pages for the first time then costs more than the arithmetic
    on them. Returns whether this process's C library knows these settings; others are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 64 << 20)])
