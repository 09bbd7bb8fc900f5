"""Autograd inside an operation's kernel, for backends that differentiate by running forward again."""

import contextlib
from collections.abc import Iterator

import torch

_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


@contextlib.contextmanager
def enable_grad_inside_operation() -> Iterator[None]:
    """Records for autograd, even where a dispatch mode (a FLOP counter, say) has put the call below autograd."""
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
    torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, excluded)
