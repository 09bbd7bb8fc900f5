"""An operation declared as kernels/operation.py says: what follows from its fields and its mathematics."""

import functools
import re
import textwrap
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import forward_ad

from penstock.kernels import dispatch, use_backend
from penstock.kernels import operation as operation_module
from penstock.kernels.operation import Operation, Rows


class Problem(NamedTuple):
    """times (x sigmoid(slope x) + rows + shift); with `save` the sigmoid too, in the mode "two" also 2 x."""

    x: Tensor
    shift: Tensor | None
    rows: Rows
    slope: float
    times: int
    save: bool
    mode: str

    @property
    def factor(self) -> int:
        return self.times

    def check(self) -> None:
        if self.times == 0:
            raise ValueError("times is 0")


class Results(NamedTuple):
    out: Tensor
    double: Tensor | None
    gate: Tensor | None


class Backward(NamedTuple):
    grad_out: Tensor
    grad_double: Tensor | None
    x: Tensor
    slope: float
    factor: int


class Gradients(NamedTuple):
    own_x: Tensor
    shift: Tensor
    rows: Tensor

    @property
    def x(self) -> Tensor:
        return self.own_x


SEEN: list[tuple[str, Any, bool]] = []


def forward(by: str, problem: Problem) -> Results:
    SEEN.append((by, problem, torch.is_autocast_enabled("cpu")))
    gate = torch.sigmoid(problem.slope * problem.x)
    out = problem.x * gate + problem.rows
    out = problem.times * (out if problem.shift is None else out + problem.shift)
    return Results(out, 2 * problem.x if problem.mode == "two" else None, gate if problem.save else None)


def backward(by: str, problem: Backward) -> Gradients:
    SEEN.append((by, problem, torch.is_autocast_enabled("cpu")))
    gate = torch.sigmoid(problem.slope * problem.x)
    rows = problem.factor * problem.grad_out
    x = rows * (gate + problem.slope * problem.x * gate * (1 - gate))
    return Gradients(x if problem.grad_double is None else x + 2 * problem.grad_double, rows.sum(0), rows)


@functools.cache  # at the first test that asks: what is collected beside this file knows nothing of it
def declared(twice: bool) -> Operation:
    name = "tests_twice" if twice else "tests_once"
    for by in ("torch", "reference"):
        functions = {name: functools.partial(forward, by), f"{name}_backward": functools.partial(backward, by)}
        dispatch.register(name, by, type("Backend", (), {key: staticmethod(each) for key, each in functions.items()}))
    of_gradient = Operation(f"{name}_backward", Backward, Gradients)
    return Operation(name, Problem, Results, backward=of_gradient, twice=twice)


@pytest.fixture(scope="module", autouse=True)
def registry() -> Any:
    yield
    for name in ("tests_twice", "tests_once", "swish"):
        dispatch._registry.pop(name, None)


def call(
    x: Tensor, shift: Tensor | None, rows: Tensor, *, twice: bool = True, mode: str = "", save: bool = False
) -> Any:
    backend = dispatch.choose(declared(twice).name)
    out, double, gate = declared(twice).call(x, shift, rows, 0.5, 3, save, mode, backend)
    assert (gate.shape == x.shape) is save
    assert (double.shape == x.shape) is (mode == "two")
    return (out, double) if mode == "two" else out


def formula(x: Tensor, shift: Tensor | None, rows: Tensor) -> Tensor:
    return 3 * (x * torch.sigmoid(0.5 * x) + rows + (0 if shift is None else shift))


def inputs(dtype: torch.dtype = torch.float64, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (3,), (4, 3)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes[:count]]


def test_schema() -> None:
    assert str(getattr(torch.ops.penstock, declared(True).name).default._schema) == (
        "penstock::tests_twice(Tensor x, Tensor? shift, Tensor rows, float slope, SymInt times, bool save, str mode, "
        "str backend) -> (Tensor out, Tensor double, Tensor gate)"
    )


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_values_and_gradients(backend: str, save: bool, twice: bool) -> None:
    given = inputs()
    with use_backend(backend):
        torch.testing.assert_close(call(*given, save=save, twice=twice), formula(*given))
        assert torch.autograd.gradcheck(lambda *xs: call(*xs, save=save, twice=twice), given)
        assert torch.autograd.gradcheck(lambda *xs: call(*xs, save=save, mode="two", twice=twice), given)
        assert torch.autograd.gradcheck(lambda x, rows: call(x, None, rows, twice=twice), given[::2])


def test_each_gradient_is_made_by_the_backend_of_forward() -> None:
    given = inputs()
    with use_backend("reference"):
        out = call(*given)
    SEEN.clear()
    out.sum().backward()
    assert [by for by, *_ in SEEN] == ["reference"]


def test_gradients_that_are_not_asked_for_are_none() -> None:
    x, shift, rows = inputs()
    out, _ = call(x.detach(), shift, rows, mode="two")
    (gradient,) = torch.autograd.grad(out.sum(), [shift])
    assert torch.equal(gradient, torch.full((3,), 12.0, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(call(x, shift, rows, mode="two")[1].sum(), [x])  # out itself was not used
    assert torch.equal(gradient, torch.full((4, 3), 2.0, dtype=torch.float64))
    assert not call(x.detach(), None, rows.detach()).requires_grad


def test_a_second_derivative_is_refused_by_name_or_right() -> None:
    given = inputs()
    assert torch.autograd.gradgradcheck(lambda *xs: call(*xs, twice=True), given)
    with pytest.raises(RuntimeError, match=r"tests_once can be differentiated once only .*create_graph=True"):
        torch.autograd.grad(call(*given, twice=False).sum(), given, create_graph=True)


def test_backends_get_dense_tensors() -> None:
    x, shift, rows = inputs()
    strided = x.detach().t().contiguous().t(), shift.detach().repeat_interleave(2)[::2]
    wide = torch.randn(4, 6, dtype=torch.float64)[:, :3]
    SEEN.clear()
    torch.testing.assert_close(call(*strided, wide), formula(*strided, wide))
    ((_, problem, _),) = SEEN
    assert problem.x.is_contiguous()
    assert problem.shift.is_contiguous()
    assert problem.rows.data_ptr() == wide.data_ptr()  # rows are read where they lie
    call(*strided, rows.detach().t().contiguous().t())
    assert SEEN[-1][1].rows.stride(-1) == 1
    out = call(x, shift, rows)
    out.backward(torch.ones(3, 4, dtype=torch.float64).t())
    assert SEEN[-1][1].grad_out.is_contiguous()


def test_no_autocast_inside() -> None:
    given = inputs(torch.float32)
    SEEN.clear()
    with torch.autocast("cpu", torch.bfloat16):
        call(*given).sum().backward()
        torch.func.jvp(call, tuple(x.detach() for x in given), tuple(x.detach() for x in given))
    assert len(SEEN) == 3
    assert not any(autocast for *_, autocast in SEEN)


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("mode", ["two", ""])
@pytest.mark.parametrize("shifted", [True, False])
def test_opcheck(shifted: bool, mode: str, twice: bool) -> None:
    x, shift, rows = inputs(torch.float32)
    strided = torch.randn(3, 4).t().requires_grad_()
    arguments = (strided, shift if shifted else None, rows, 0.5, 3, mode == "", mode, "torch")
    declared(twice)
    torch.library.opcheck(getattr(torch.ops.penstock, declared(twice).name).default, arguments)
    gradients = (x.detach(), x.detach() if mode else None, x.detach(), 0.5, 3, "torch")
    torch.library.opcheck(getattr(torch.ops.penstock, f"{declared(twice).name}_backward").default, gradients)


def test_compiles_whole_and_once_for_all_shapes() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = declared(True).call
    compiled = torch.compile(
        lambda *xs: run(*xs, 0.5, 3, True, "two", "torch")[:2], backend=counter, fullgraph=True, dynamic=True
    )
    for rows in (4, 9, 5):
        given = [torch.randn(rows, 3, requires_grad=True), torch.randn(3, requires_grad=True), torch.randn(rows, 3)]
        found, expected = (f(*given) for f in (compiled, lambda *xs: call(*xs, save=True, mode="two")))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        gradients = [torch.autograd.grad(y[0].sum() + y[1].square().sum(), given[:2]) for y in (found, expected)]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


def test_shapes_without_memory() -> None:
    x, shift, rows = (each.detach().to("meta").requires_grad_() for each in inputs())
    out, double = call(x, shift, rows, mode="two")
    (out.sum() + double.sum()).backward()
    assert out.is_meta
    assert [each.grad.shape for each in (x, shift, rows)] == [x.shape, shift.shape, rows.shape]


def test_torch_func_and_forward_mode() -> None:
    given = tuple(x.detach() for x in inputs())
    directions = tuple(torch.randn_like(x) for x in given)
    expected = torch.func.jvp(formula, given, directions)
    torch.testing.assert_close(torch.func.jvp(call, given, directions), expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(*map(forward_ad.make_dual, given, directions))).tangent
    torch.testing.assert_close(tangent, expected[1])
    batch = [torch.stack([x, 2 * x]) for x in given]
    torch.testing.assert_close(
        torch.vmap(call)(*batch), torch.stack([formula(*given), formula(*(2 * x for x in given))])
    )
    hessians = [torch.func.hessian(lambda x, f=f: f(x, *given[1:]).sum())(given[0]) for f in (call, formula)]
    torch.testing.assert_close(*hessians)


def test_contents_are_checked_before_anything_is_computed() -> None:
    x, shift, rows = (each.detach() for each in inputs())
    with pytest.raises(ValueError, match="times is 0"):
        declared(True).call(x, shift, rows, 0.5, 0, False, "", "torch")
    with pytest.raises(ValueError, match="times is 0"):
        torch.func.jvp(lambda x: declared(True).call(x, shift, rows, 0.5, 0, False, "", "torch")[0], (x,), (x,))


def test_wrong_declarations_are_refused() -> None:
    class Listed(NamedTuple):
        xs: list[Tensor]

    class Misnamed(NamedTuple):
        grad_out: Tensor
        y: Tensor

    with pytest.raises(TypeError, match=r"Listed\.xs is a list"):
        Operation("tests_listed", Listed)
    gradient = Operation("tests_misnamed_backward", Misnamed, Gradients)
    with pytest.raises(TypeError, match=r"the gradient of tests_misnamed takes \['grad_out', 'y'\]"):
        Operation("tests_misnamed", Problem, backward=gradient)


def test_the_example_of_the_docstring() -> None:
    text = operation_module.__doc__ or ""
    (example,) = re.findall(r"own:\n\n(    class .*?)\n\nFrom this", text, re.DOTALL)
    names: dict[str, Any] = {"NamedTuple": NamedTuple, "Tensor": Tensor, "torch": torch, "dispatch": dispatch}
    names |= {"Operation": Operation, "__name__": "example"}
    exec(textwrap.dedent(example), names)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(names["swish"], [x])
    torch.testing.assert_close(names["swish"](x), torch.nn.functional.silu(x))
    torch.library.opcheck(torch.ops.penstock.swish.default, (x, 0.5, "reference"))
