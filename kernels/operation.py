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

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, NoReturn, get_type_hints

import torch
from torch import Tensor

from penstock.kernels import dispatch, transforms
from penstock.kernels.autocast import without_autocast
from penstock.kernels.precision import accumulate_dtype

# a field whose last dimension alone is made dense: rows are read where they lie
Rows = Annotated[Tensor, "last dimension dense"]

_SCHEMA: dict[Any, str] = {Tensor: "Tensor", Rows: "Tensor", Tensor | None: "Tensor?"}
_SCHEMA |= {bool: "bool", int: "SymInt", float: "float", str: "str"}
_DENSE: dict[Any, str] = {
    Tensor: "{0} = {0}.contiguous()",
    Rows: "if {0}.stride(-1) != 1: {0} = {0}.contiguous()",
    Tensor | None: "if {0} is not None: {0} = {0}.contiguous()",
}


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
        forms: dict[str, str] | None = None,
        backward: "Operation | Callable[..., Any] | None" = None,
        twice: bool = False,
        plain: Callable[[Any], Any] | None = None,
    ) -> None:
        """Defines the operation.

        Args:
            family: the name that its backends are registered by; the operation's, without "_backward".
            forms: {"x": "tokens, width", "weight bias": "width: wide", "seed": "...: int64"}, sizes and dtypes that
                tensors must have. A size is a new name, or Python of names before and of fields; "..." is any shape. A
                dtype is "same" as the first tensor's (by default), "wide", its `accumulate_dtype`, int32, int64 or any.
                The public function checks its arguments in its own words. Forms are for callers of
                `torch.ops.penstock.name` itself, by hand or compiled: C++ reads what it is given by its address.
            backward: an operation whose fields, or a function whose parameters, are named after what they take:
                grad_<result> (Tensor | None if that result may be None), results, fields or properties of the problem,
                and for a function, last, backend. It returns gradients in attributes named after the fields.
            twice: the gradient can be differentiated again: by the reference of `backward`, in what that takes.
            plain: what stands for the operation in torch.func and forward mode, if not the reference.
        """
        self.name, self.problem, self.results = name, problem, results
        self.fields = get_type_hints(problem, include_extras=True)
        self.made = {"out": Tensor} if results is Tensor else get_type_hints(results)
        for field, kind in self.fields.items():
            if kind not in _SCHEMA:
                raise TypeError(f"{problem.__name__}.{field} is a {kind}: expected {', '.join(map(str, _SCHEMA))}")
        family = family or name.removesuffix("_backward")

        def by(backend: str) -> Callable[[Any], Any]:
            return getattr(dispatch.implementation(family, backend), name)

        def reference(given: Any) -> Any:
            return (plain or by("reference"))(given)

        def shapes(given: Any) -> Any:
            return given.empty() if hasattr(problem, "empty") else by("reference")(given)

        takes = ", ".join(f"{_SCHEMA[kind]} {field}" for field, kind in self.fields.items())
        gives = "Tensor" if len(self.made) == 1 else f"({', '.join(f'Tensor {result}' for result in self.made)})"
        full = f"penstock::{name}"
        torch.library.define(full, f"({takes}, str backend) -> {gives}", tags=(torch.Tag.pt2_compliant_tag,))
        self._direct = self._implementation(by, dense=True, check=True)
        torch.library.impl(full, "default")(self._guarded(family, forms) if forms else self._direct)
        torch.library.register_fake(full)(self._implementation(lambda _: shapes, dense=True, check=False))
        keep, differentiate = (None, None) if backward is None else self._gradient(backward, twice)
        plain_torch = self._implementation(lambda _: reference, dense=False, check=True)
        self._overload = getattr(torch.ops.penstock, name).default
        watched = {"_plain": transforms.PLAIN, "_is_batched": torch._C._functorch.is_legacy_batchedtensor}
        self._are_plain = self._written_of_tensors(transforms.plain_tensors, watched)
        self.call = transforms.register(
            name,
            plain_torch,
            keep,
            differentiate,
            asks=self._asks(),
            direct=self._direct,
            are_plain=self._are_plain,
        )

    def from_backward(self, *arguments: Any) -> Any:
        """The results, named, for a backward: straight from the kernel, unless somebody differentiates once more."""
        found = transforms.call(self._overload, *arguments, direct=self._direct, are_plain=self._are_plain)
        if self.results is Tensor:
            return found
        return tuple.__new__(self.results, (found,) if len(self.made) == 1 else found)

    def _implementation(self, by: Callable[[str], Callable[[Any], Any]], dense: bool, check: bool) -> Any:
        """(*fields, backend) -> results, by the function that `by` finds for the backend."""
        lines, first = [], next(iter(self.fields))
        for field, kind in self.fields.items():
            if dense and kind in _DENSE:
                lines += [_DENSE[kind].format(field)]
            elif check and not dense and field.startswith("cu_seqlens"):
                lines += [f"if {field} is not None: _check_readable('{field}', {field})"]
        lines += [f"_given = _new(_problem, {_row(self.fields)})"]
        lines += ["_given.check()"] if check and hasattr(self.problem, "check") else []
        lines += ["_function = _functions.get(backend) or _functions.setdefault(backend, _by(backend))"]
        lines += [f"with _without_autocast({first}.device.type): _found = _function(_given)"]
        if Tensor | None in self.made.values():
            names = [f"_{i}" for i in range(len(self.made))]
            lines += [f"{', '.join(names)} = _found"]
            kinds = zip(names, self.made.values(), strict=True)
            each = [n if kind is Tensor else f"{first}.new_empty(0) if {n} is None else {n}" for n, kind in kinds]
            lines += [f"return {', '.join(each)}"]
        else:
            lines += ["return _found[0]" if len(self.made) == 1 and self.results is not Tensor else "return _found"]
        uses = {"_problem": self.problem, "_by": by, "_functions": {}}
        uses |= {"_check_readable": transforms.check_readable, "_without_autocast": without_autocast}
        return _written([*self.fields, "backend"], lines, uses)

    def _guarded(self, family: str, forms: dict[str, str]) -> Any:
        """(*fields, backend) -> results, if the tensors have the problem's forms and the backend serves them."""
        first, known, facts = next(iter(self.fields)), {*self.fields}, ""
        lines = [f"same, device = {first}.dtype, {first}.device", "wide = _wide(same)"]
        for name, form in ((name, form) for names, form in forms.items() for name in names.split()):
            sizes, _, dtypes = form.partition(": ")
            there = f"{name} is not None and " if self.fields[name] == Tensor | None else ""
            refuse = f"_refuse({name!r}, {name}, {form!r}, device)"
            new = [size for size in sizes.split(", ") if size.isidentifier() and size not in known]
            known, facts = known.union(new), facts + "".join(f", {size}={size}" for size in new)
            wrong = [] if name == first else [f"{name}.device != device"]
            wrong += [] if name == first or dtypes == "any" else [f"{name}.dtype not in ({dtypes or 'same'},)"]
            if new:
                lines += [f"if {there}{name}.ndim != {len(sizes.split(', '))}: {refuse}"]
                lines += [f"{size} = {there}{name}.shape[{sizes.split(', ').index(size)}]" for size in new]
            if sizes not in ("...", ", ".join(new)):
                wrong += [f"{name}.shape != ({sizes},)"]
            lines += [f"if {there}({' or '.join(wrong)}): {refuse}"] if wrong else []
        lines += [f"_check({family!r}, backend, device_type=device.type, dtype=same{facts})"]
        lines += [f"return _direct({', '.join([*self.fields, 'backend'])})"]
        uses = {"_wide": accumulate_dtype, "_check": dispatch.check, "_direct": self._direct}
        uses |= {"int32": torch.int32, "int64": torch.int64, "_refuse": partial(_refuse, self.name)}
        return _written([*self.fields, "backend"], lines, uses)

    def _asks(self) -> Any:
        """(*fields, backend) -> whether a gradient is wanted."""

        def asks(tensors: list[str]) -> str:
            wanted = " or ".join(f"({field} is not None and {field}.requires_grad)" for field in tensors)
            return f"_is_grad_enabled() and ({wanted})"

        return self._written_of_tensors(asks, {"_is_grad_enabled": torch.is_grad_enabled})

    def _written_of_tensors(self, expression: Callable[[list[str]], str], names: dict[str, Any]) -> Any:
        """(*fields, backend) -> the expression of those fields that are tensors."""
        tensors = [field for field, kind in self.fields.items() if kind in _DENSE]
        return _written([*self.fields, "backend"], [f"return {expression(tensors)}"], names)

    def _gradient(self, backward: "Operation | Callable[..., Any]", twice: bool) -> tuple[Any, Any]:
        """`setup_context` and `backward` of torch.autograd, by the names of what `backward` takes and gives."""
        if isinstance(backward, Operation):
            taken, gives, compute = backward.fields, backward.results, backward.from_backward
        else:
            taken = {n: kind for n, kind in get_type_hints(backward, include_extras=True).items() if n != "backend"}
            gives, compute = taken.pop("return"), backward
        grads = [name for name in taken if name.startswith("grad_")]
        known = {*(f"grad_{name}" for name in self.made), *self.made, *dir(self.problem)}
        if not known.issuperset(taken) or not hasattr(gives, "_fields"):
            raise TypeError(f"the gradient of {self.name} takes {list(taken)}, of {sorted(known)}, and gives {gives}")
        made = {name: f"_{name}" if name in self.fields else name for name in self.made}  # their variables
        asked = [made[name.removeprefix("grad_")] for name in grads]
        optional = [result for result, name in zip(asked, grads, strict=True) if taken[name] == Tensor | None]
        kept = {name: name for name in taken if name not in grads}
        kept |= {name: f"_given.{name}" for name in kept if name not in self.fields and name not in made}
        tensors = [name for name in kept if _SCHEMA[taken[name]].startswith("Tensor")]
        others = [*(name for name in kept if name not in tensors), "backend"]

        keep = [f"{_row([*self.fields, 'backend'])} = inputs", f"{_row(made.values())} = output"]
        keep[1] = keep[1] if len(made) > 1 else "out = output"
        unasked = [result for result in made.values() if result not in asked]
        unasked += [f"*(({result},) if {result}.shape == (0,) else ())" for result in optional]
        if unasked:  # else torch itself makes zeros for gradients that do not come
            keep += ["ctx.set_materialize_grads(False)", f"ctx.mark_non_differentiable({', '.join(unasked)})"]
            keep += [f"ctx.like = {_row(f'({r}.shape, {r}.dtype)' for r in asked)}"] if len(grads) > 1 else []
        if any(value != name for name, value in kept.items()):
            keep += [f"_given = _new(_problem, {_row(self.fields)})"]
        keep += [f"ctx.save_for_backward({', '.join(kept[name] for name in tensors)})"]
        keep += [f"ctx.others = {_row(kept.get(name, name) for name in others)}"]

        none = ["None"] * (len(self.fields) + 1)
        lines = [f"if {' and '.join(f'{name} is None' for name in grads)}: return {_row(none)}"] if unasked else []
        lines += [] if twice else ["if _is_grad_enabled(): raise RuntimeError(_once)"]
        if unasked and len(grads) > 1:
            missing = [f"{name} is None" for name in grads]
            for i, result in enumerate(asked):
                missing[i] += f" and ctx.like[{i}][0] != (0,)" if result in optional else ""
            lines += [f"if {' or '.join(missing)}: {_row(grads)} = _filled({_row(grads)}, ctx.like)"]
        lines += [f"{_row(tensors)} = ctx.saved_tensors"] if tensors else []
        lines += [f"{_row(others)} = ctx.others", f"_found = _compute({', '.join(taken)}, backend)"]
        lines += ["_needed = ctx.needs_input_grad"]
        for i, field in enumerate(self.fields):
            if hasattr(gives, field):
                none[i] = f"_found.{field} if _needed[{i}] else None"
        lines += [f"return {_row(none)}"]

        names = {"_problem": self.problem, "_compute": compute, "_filled": _filled}
        names["_is_grad_enabled"] = torch.is_grad_enabled
        names["_once"] = f"{self.name} can be differentiated once only (it was asked for with create_graph=True)"
        of_made = [f"grad_{name}" if f"grad_{name}" in grads else f"_grad_{name}" for name in made]
        return _written(["ctx", "inputs", "output"], keep, names), _written(["ctx", *of_made], lines, names)


def _filled(grads: tuple[Tensor | None, ...], like: tuple[tuple[torch.Size, torch.dtype], ...]) -> list[Tensor | None]:
    """Zeros in the place of gradients that did not come, of results that are there."""
    there = next(grad for grad in grads if grad is not None)
    return [
        there.new_zeros(shape, dtype=dtype) if grad is None and shape != (0,) else grad
        for grad, (shape, dtype) in zip(grads, like, strict=True)
    ]


def _refuse(operation: str, name: str, tensor: Tensor, form: str, device: torch.device) -> NoReturn:
    sizes, _, dtypes = form.partition(": ")
    got = f"{tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
    raise ValueError(f"{operation}: {name} must have shape ({sizes}), dtype {dtypes or 'same'}, on {device}, got {got}")


def _row(names: Iterable[str]) -> str:
    return "(" + "".join(f"{name}, " for name in names) + ")"


def _written(parameters: list[str], lines: list[str], names: dict[str, Any]) -> Any:
    """A function of straight lines, as somebody would write it for this operation: loops would cost at each call."""
    source = f"def function({', '.join(parameters)}):\n" + "".join(f"    {line}\n" for line in lines)
    names = {"_new": tuple.__new__, **names}  # half of the time that a NamedTuple takes to make itself
    exec(compile(source, "<penstock.kernels.operation>", "exec"), names)
    return names["function"]
