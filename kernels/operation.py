"""An operation, declared: what torch wants to know of it follows from its typed fields and its mathematics.

An operation takes a *problem*, a NamedTuple, and gives *results*: one Tensor, or a NamedTuple of them. Each backend has
a function of the operation's name, from problem to results; the reference is plain torch, the truth, differentiable.
This adds one, with a gradient of its own:

    class Swish(NamedTuple):
        x: Tensor
        slope: float

    class SwishBackward(NamedTuple):  # what it takes, by name: the gradient of `out`, what is kept of the problem
        grad_out: Tensor
        x: Tensor
        slope: float

    class Gradients(NamedTuple):  # by name as well: of x
        x: Tensor

    class Reference:
        @staticmethod
        def swish(problem: Swish) -> Tensor:
            return problem.x * torch.sigmoid(problem.slope * problem.x)

        @staticmethod
        def swish_backward(problem: SwishBackward) -> Gradients:
            kept = torch.sigmoid(problem.slope * problem.x)
            return Gradients(problem.grad_out * (kept + problem.slope * problem.x * kept * (1 - kept)))

    dispatch.register("swish", "reference", Reference)
    _backward = Operation("swish_backward", SwishBackward, Gradients)
    _operation = Operation("swish", Swish, backward=_backward)

    def swish(x: Tensor, slope: float = 1.0) -> Tensor:
        return _operation.call(x, slope, dispatch.choose("swish", device_type=x.device.type, dtype=x.dtype))

From this follow `penstock::swish`, its schema and its shapes for a compiler; dense tensors and no autocast inside a
backend; the gradient, once (or `twice`); torch.func and forward mode, by the reference. Without `backward` the
operation is plain torch where a gradient is wanted. The LSTM's layer, which takes lists, is not declared so.
"""

from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Annotated, Any, get_type_hints

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms
from penstock.kernels.autocast import without_autocast

# a field whose last dimension alone is made dense: rows are read where they lie
Rows = Annotated[Tensor, "last dimension dense"]

_SCHEMA = {Tensor: "Tensor", Rows: "Tensor", Tensor | None: "Tensor?"}
_SCHEMA |= {bool: "bool", int: "SymInt", float: "float", str: "str"}


class Operation:
    """`penstock::name`. Its `call` takes the problem's fields and, last, the name of a backend.

    A problem is a NamedTuple of Tensor, Tensor | None, Rows, bool, int, float and str, the first a tensor. It may have

        empty(): uninitialised results, from which a compiler has their shapes; the reference gives them otherwise.
        check(): raises ValueError for contents that must be read; fields named cu_seqlens... are read by plain torch.

    A result that is None travels as a tensor of shape (0,), and has no gradient.
    """

    def __init__(
        self,
        name: str,
        problem: Any,
        results: Any = Tensor,
        *,
        family: str | None = None,
        backward: "Operation | Callable[..., Any] | None" = None,
        twice: bool = False,
        plain: Callable[[Any], Any] | None = None,
    ) -> None:
        """Defines the operation.

        Args:
            family: the name that its backends are registered by; the operation's, without "_backward".
            backward: an operation whose fields, or a function whose parameters, are named after what they take:
                grad_<result> (Tensor | None if that result may be None), results, fields or properties of the problem,
                and for a function, last, backend. It returns gradients in attributes named after the fields.
            twice: the gradient can be differentiated again: by the reference of `backward`, in what that takes.
            plain: what stands for the operation in torch.func and forward mode, if not the reference.
        """
        self.name, self._family = name, family or name.removesuffix("_backward")
        self._problem, self._results, self._given_plain = problem, results, plain
        fields = self.fields = get_type_hints(problem, include_extras=True)
        made = {"out": Tensor} if results is Tensor else get_type_hints(results)
        self._dense = [i for i, kind in enumerate(fields.values()) if kind in (Tensor, Tensor | None)]
        self._rows = [i for i, kind in enumerate(fields.values()) if kind == Rows]
        self._bounds = [field for field in fields if field.startswith("cu_seqlens")]
        self._made, self._optional = list(made), [i for i, kind in enumerate(made.values()) if kind == Tensor | None]
        self._checked = hasattr(problem, "check")
        self._functions: dict[str, Callable[[Any], Any]] = {}

        takes = ", ".join(f"{_SCHEMA[kind]} {field}" for field, kind in fields.items())
        gives = "Tensor" if len(made) == 1 else f"({', '.join(f'Tensor {result}' for result in made)})"
        full = f"penstock::{name}"
        torch.library.define(full, f"({takes}, str backend) -> {gives}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(full, "default")(self._run)
        torch.library.register_fake(full)(self._fake)
        self._overload = getattr(torch.ops.penstock, name).default
        gradient = () if backward is None else self._gradient(backward, twice)
        self.call = transforms.register(name, self._plain, *gradient)

    def from_backward(self, *arguments: Any) -> Any:
        """The results, named, for a backward: straight from the kernel, unless somebody differentiates once more."""
        found = transforms.call(self._overload, *arguments)
        if self._results is Tensor:
            return found
        return self._results._make((found,) if len(self._made) == 1 else found)

    def _run(self, *arguments: Any) -> Any:
        *fields, backend = arguments
        problem = self._densely(fields)
        if self._checked:
            problem.check()
        function = self._functions.get(backend)
        if function is None:
            function = getattr(dispatch.implementation(self._family, backend), self.name)
            self._functions[backend] = function
        with without_autocast(fields[0].device.type):
            return self._travelling(function(problem), fields[0])

    def _densely(self, fields: list[Any]) -> Any:
        for i in self._dense:
            if fields[i] is not None:
                fields[i] = fields[i].contiguous()
        for i in self._rows:
            if fields[i].stride(-1) != 1:
                fields[i] = fields[i].contiguous()
        return self._problem._make(fields)

    def _travelling(self, found: Any, like: Tensor) -> Any:
        if any(found[i] is None for i in self._optional):
            return tuple(like.new_empty(0) if each is None else each for each in found)
        return found[0] if len(self._made) == 1 and isinstance(found, tuple) else found

    def _reference(self, problem: Any) -> Any:
        return getattr(dispatch.implementation(self._family, "reference"), self.name)(problem)

    def _fake(self, *arguments: Any) -> Any:
        problem = self._densely(list(arguments[:-1]))
        made = problem.empty() if hasattr(problem, "empty") else self._reference(problem)
        return self._travelling(made, arguments[0])

    def _plain(self, *arguments: Any) -> Any:
        problem = self._problem._make(arguments[:-1])
        for field in self._bounds:
            if getattr(problem, field) is not None:
                transforms.check_readable(field, getattr(problem, field))
        if self._checked:
            problem.check()
        with without_autocast(arguments[0].device.type):
            return self._travelling((self._given_plain or self._reference)(problem), arguments[0])

    def _gradient(self, backward: "Operation | Callable[..., Any]", twice: bool) -> tuple[Callable[..., Any], ...]:
        """`setup_context` and `backward` of torch.autograd, by the names of what `backward` takes and gives."""
        if isinstance(backward, Operation):
            taken, gives, compute = backward.fields, backward._results, backward.from_backward
        else:
            taken = {n: kind for n, kind in get_type_hints(backward, include_extras=True).items() if n != "backend"}
            gives, compute = taken.pop("return"), backward
        grads = [name for name in taken if name.startswith("grad_")]
        places = [self._made.index(name.removeprefix("grad_")) for name in grads]
        optional = [i for i, name in zip(places, grads, strict=True) if taken[name] == Tensor | None]
        hidden = [i for i in range(len(self._made)) if i not in places]
        # what is kept comes from a row of the fields, the backend, the results and the problem's properties
        row = [*self.fields, "backend", *(None if name in self.fields else name for name in self._made)]
        properties = [name for name in taken if name not in grads and name not in row]
        row += properties
        tensors = [name for name in taken if name not in grads and _SCHEMA[taken[name]].startswith("Tensor")]
        others = [*(name for name in taken if name not in grads and name not in tensors), "backend"]
        pick_grads, pick_hidden = _getter(itemgetter, places), _getter(itemgetter, hidden)
        pick_tensors, pick_others = (
            _getter(itemgetter, map(row.index, tensors)),
            _getter(itemgetter, map(row.index, others)),
        )
        pick_properties = _getter(attrgetter, properties)
        in_order = _getter(itemgetter, map([*grads, *tensors, *others].index, [*taken, "backend"]))
        gradients = [(i, field) for i, field in enumerate(self.fields) if hasattr(gives, field)]
        nothing = (None,) * (len(self.fields) + 1)

        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            row = (*inputs, *outputs)
            if properties:
                row += pick_properties(self._problem._make(inputs[:-1]))
            ctx.set_materialize_grads(False)  # else zeros are made for what has no gradient
            absent = [i for i in optional if outputs[i].shape == (0,)] if optional else ()
            if hidden or absent:
                ctx.mark_non_differentiable(*pick_hidden(outputs), *[outputs[i] for i in absent])
            if len(places) > 1:
                ctx.like = [None if i in absent else (outputs[i].shape, outputs[i].dtype) for i in places]
            ctx.save_for_backward(*pick_tensors(row))
            ctx.others = pick_others(row)

        def differentiate(ctx: Any, *all_grads: Tensor | None) -> tuple[Tensor | None, ...]:
            given = pick_grads(all_grads)
            if given[0] is None or len(places) > 1:
                there = next((grad for grad in given if grad is not None), None)
                if there is None:
                    return nothing
                given = [
                    there.new_zeros(like[0], dtype=like[1]) if grad is None and like else grad
                    for grad, like in zip(given, ctx.like, strict=True)
                ]
            if not twice and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{self.name} can be differentiated once only (it was asked for with create_graph=True)"
                )
            found = compute(*in_order((*given, *ctx.saved_tensors, *ctx.others)))
            result, needed = list(nothing), ctx.needs_input_grad
            for i, field in gradients:
                if needed[i]:
                    result[i] = getattr(found, field)
            return tuple(result)

        return keep, differentiate


def _getter(kind: Any, keys: Any) -> Callable[[Any], tuple[Any, ...]]:
    """An itemgetter or attrgetter that gives a tuple also of one key, or of none."""
    keys = list(keys)
    if not keys:
        return lambda _: ()
    get = kind(*keys)
    return get if len(keys) > 1 else lambda of: (get(of),)
