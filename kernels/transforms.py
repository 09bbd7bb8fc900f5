"""How an operation is differentiated: by its own backward, or in any other way, as plain torch.

An operation's kernels have one derivative, the gradient. `torch.func` (grad, jacrev, jvp, jacfwd, hessian, vmap) and
forward-mode differentiation (`torch.autograd.forward_ad`) want others, of any order, and batches of them. All of these
torch finds by itself in plain torch code: there an operation is its reference.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def has_tangent(*arguments: Any) -> bool:
    """Whether a tensor among the arguments (or in lists of them) is dual: it carries a tangent of forward mode."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in _tensors(arguments))


def wants_plain_torch(*arguments: Any) -> bool:
    """Whether this call must be plain torch. For functions; operations are told by `register`. Can be compiled."""
    return torch._C._are_functorch_transforms_active() or has_tangent(*arguments)


def wants_gradient(arguments: Iterable[Any]) -> bool:
    """Whether a tensor among the arguments (or in lists of them) asks for a gradient."""
    return torch.is_grad_enabled() and _requires_grad(arguments)


def _requires_grad(arguments: Iterable[Any]) -> bool:
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.requires_grad:
                return True
        elif isinstance(argument, list | tuple) and _requires_grad(argument):
            return True
    return False


def _is_watched() -> bool:
    """Whether calls are recorded, compiled or differentiated in another way, by those who must meet the operation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def is_intercepted() -> bool:
    """As `_is_watched`, or a mode has a say in each call that goes through torch's dispatcher."""
    return (
        _is_watched()  # first: a compiler that traces this cannot ask the others
        or torch._C._len_torch_dispatch_stack() > 0
        or _is_in_a_function_mode()
    )


def _is_in_a_function_mode() -> bool:
    """Whether a mode looks on that is more than a default device, of which nothing here makes use."""
    if not torch._C._is_torch_function_mode_enabled():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def is_seen() -> bool:
    """As `is_intercepted`, or a profiler notes each such call."""
    return is_intercepted() or torch._C._autograd._profiler_enabled()


def plain_tensors(names: Iterable[str]) -> str:
    """Python that says whether the tensors of these names, or None, are torch's own, which no subclass watches, and
    hold what they are: their device, the first one's, has memory, and they are no views that negate it.

    Gradients, by their names, may also be several at a time. A conjugate view is complex, as no kernel takes it.
    """
    names = list(names)
    each = [f"({name} is None or (type({name}) in _plain and not {name}.is_neg()))" for name in names]
    each += [f"not ({name} is not None and _is_batched({name}))" for name in names if name.startswith("grad_")]
    each += [f"not {names[0]}.is_meta"]
    return " and ".join(each)


PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})


def check_readable(name: str, tensor: Tensor) -> None:
    """Plain torch reads sequence bounds on the host, where those of a batch made by vmap, or of a compiler, cannot lie.

    Raises:
        ValueError: the tensor is batched by vmap.
        GuardOnDataDependentSymNode: a compiler traces the call; without fullgraph=True torch.compile breaks its graph.
    """
    if torch._C._functorch.is_batchedtensor(tensor):
        raise ValueError(f"vmap over {name}: it must be the same in the whole batch, give it in_dims=None")
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if type(tensor).__name__ == "FakeTensor":
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # loads SymPy

        raise GuardOnDataDependentSymNode(
            None, f"torch.func reads {name}, as no compiled graph can: put torch.compiler.disable around the transform"
        )


def is_batched(*gradients: Tensor | None) -> bool:
    """Whether a backward is asked for several gradients at a time, by is_grads_batched=True."""
    return any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in gradients)


def below_autograd(operation: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the operation as if no argument required a gradient."""
    with torch._C._AutoDispatchBelowAutograd():
        return operation(*arguments)


def call(
    operation: Callable[..., Any],
    *arguments: Any,
    direct: Callable[..., Any] | None = None,
    are_plain: Callable[..., bool] | None = None,
) -> Any:
    """Calls an operation from a backward: straight to its kernel, unless somebody differentiates that once more.

    Args:
        direct, are_plain: as for `register`.
    """
    if torch.is_grad_enabled() or _is_watched():
        return operation(*arguments)
    if direct is not None and are_plain is not None and not is_seen() and are_plain(*arguments):
        return direct(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operation(*arguments)


def register(
    name: str,
    plain: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    backward: Callable[..., Any] | None = None,
    record: Callable[..., Any] | None = None,
    asks: Callable[..., bool] | None = None,
    direct: Callable[..., Any] | None = None,
    are_plain: Callable[..., bool] | None = None,
) -> Callable[..., Any]:
    """Makes an operation differentiable; its schema is defined beforehand.

    `torch.library.register_autograd` would leave out forward mode without a word, and raise under torch.func.

    Args:
        name: the operation's, without "penstock::".
        plain: the operation in plain torch, with the same arguments and results; what its own backward would need may
            be left empty.
        setup_context, backward: the gradient, as in torch.library.register_autograd. Without them an operation that is
            asked for a gradient is plain torch too.
        record: in the place of these two: calls the operation such that it is recorded.
        asks: whether a call asks for a gradient, of its arguments; `wants_gradient`, which looks at each, by default.
        direct: the operation's kernel. are_plain: whether all tensors of a call are torch's own, of no subclass.

    Returns:
        What the public function calls: the operation, entered from here and, given `direct`, not through torch's
        dispatcher, which takes longer to reach a kernel in Python than a small call takes. Where anybody sees what goes
        through the dispatcher, it does.
    """
    operation = getattr(torch.ops.penstock, name).default

    record_directly: Callable[..., Any] | None = None
    if backward is not None and setup_context is not None:
        differentiate, keep = backward, setup_context

        class Recorded(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> Any:
                with torch._C._AutoDispatchBelowAutograd():
                    output = operation(*arguments)
                keep(ctx, arguments, output)
                return output

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                return differentiate(ctx, *gradients)

        class Direct(Recorded):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> Any:
                assert direct is not None
                output = direct(*arguments)
                keep(ctx, arguments, output)
                return output

        record = Recorded.apply
        # without the frame in Python that unwraps what torch.func has left: nothing of it is active here
        record_directly = super(torch.autograd.Function, Direct).apply

    differentiable, asks = record or plain, asks or (lambda *arguments: wants_gradient(arguments))

    def recorded(*arguments: Any) -> Any:
        if asks(*arguments):
            return differentiable(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*arguments)

    def autograd(*arguments: Any) -> Any:
        return plain(*arguments) if has_tangent(*arguments) else recorded(*arguments)

    def enter(*arguments: Any) -> Any:
        if direct is not None and are_plain is not None and not is_seen() and are_plain(*arguments):
            if not asks(*arguments):
                return direct(*arguments)
            if record_directly is not None:
                return record_directly(*arguments)
        if _is_watched():
            return operation(*arguments)
        if asks(*arguments):
            return differentiable(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*arguments)

    torch.library.impl(f"penstock::{name}", "Autograd")(autograd)
    torch.library.impl(f"penstock::{name}", "FuncTorchDynamicLayerFrontMode")(plain)
    return enter
