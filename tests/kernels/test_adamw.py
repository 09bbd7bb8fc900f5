"""AdamW on some rows of a table, against torch's own optimizer."""

import itertools

import pytest
import torch
from kernel_cases import isas, on_threads, pairwise
from subtested import as_subtests

from penstock.kernels.adamw import adamw_rows, decay_rows

SETTINGS = {"lr": 2e-3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}
WIDTHS, DTYPES = [1, 7, 16, 40, 256], [torch.float32, torch.float64]


def torchs(table: torch.Tensor, gradients: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """In float64."""
    parameter = torch.nn.Parameter(table.double())
    optimizer = torch.optim.AdamW([parameter], **SETTINGS)
    for gradient in gradients:
        parameter.grad = gradient.double()
        optimizer.step()
    state = optimizer.state[parameter]
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


def ours(table: torch.Tensor, gradients: list[torch.Tensor], rows: torch.Tensor, divisor: float = 1.0) -> list:
    tensors = [table.clone(), torch.zeros_like(table), torch.zeros_like(table)]
    for step, gradient in enumerate(gradients, 1):
        others = torch.full_like(gradient, torch.nan)
        others[rows] = gradient[rows] * divisor
        settings = {name: value for name, value in SETTINGS.items() if name != "lr"}
        adamw_rows(*tensors, others, rows, step=step, rate=SETTINGS["lr"], divisor=divisor, **settings)
    return tensors


@pairwise({"isa": isas("norm"), "width": WIDTHS, "dtype": DTYPES, "count": [0, 1, 13, 50], "divisor": [1.0, 3.0]})
def test_it_is_torchs_own(isa, width, dtype, count, divisor) -> None:
    torch.manual_seed(width)
    table = torch.randn(50, width, dtype=dtype)
    gradients = [torch.randn(50, width, dtype=dtype) * 10.0**-i for i in range(4)]
    rows = torch.randperm(50)[:count]
    found, *others = on_threads([1, 2, 5], lambda: ours(table, gradients, rows, divisor))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    rest = torch.ones(50, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(found[0][rest], table[rest])
    assert not found[1][rest].any()
    for mine, true in zip(found, torchs(table, gradients), strict=True):
        tolerance = {"rtol": 2e-5, "atol": 2e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
        torch.testing.assert_close(mine[rows].double(), true[rows], **tolerance)


def test_what_is_not_finite_stays_in_its_place() -> None:
    table, gradient = torch.ones(3, 20), torch.ones(3, 20)
    gradient[1, 4], gradient[2, 5] = torch.nan, torch.inf
    found = ours(table, [gradient], torch.arange(3))[0]
    assert found.isnan().nonzero().tolist() == [[1, 4], [2, 5]]


@pairwise({"isa": isas("norm"), "width": [1, 16, 130, 256, 300], "dtype": DTYPES, "count": [0, 1, 40]})
def test_decay_has_the_bits_of_as_many_steps(isa, width, dtype, count) -> None:
    torch.manual_seed(width)
    table, rows = torch.randn(50, width, dtype=dtype), torch.randperm(50)[:20]
    factors = 1 - torch.rand(count, dtype=dtype) * 1e-3
    expected = table.clone()
    for factor in factors:
        expected[rows] *= factor

    def decayed() -> torch.Tensor:
        found = table.clone()
        decay_rows(found, rows, factors)
        return found

    assert all(torch.equal(found, expected) for found in on_threads([1, 3], decayed))


T, M, S, G = torch.zeros(4, 4, 3).unbind()
ROWS = torch.arange(2)


@as_subtests(
    "arguments, error, message",
    [
        ((T.half(), T, T, T, ROWS), TypeError, "parameter must be float32 or float64"),
        ((T[0], T, T, T, ROWS), ValueError, r"shape \(rows, width\)"),
        ((T.to("meta"), T, T, T, ROWS), ValueError, "parameter must be on the CPU"),
        ((T, T[:2], T, T, ROWS), ValueError, "mean must be torch.float32"),
        ((T, T, T.double(), T, ROWS), ValueError, "square must be torch.float32"),
        ((T, M, S, torch.zeros(3, 4).t(), ROWS), ValueError, "gradient must be contiguous"),
        ((T, M, S, T.to("meta"), ROWS), ValueError, "gradient must be contiguous and on cpu, got .* meta"),
        ((T, M, S, G, ROWS.int()), ValueError, "rows must be int64"),
        ((T, M, S, G, ROWS[None]), ValueError, "rows must be int64"),
        ((T, M, S, G, ROWS - 1), IndexError, "rows are -1 to 0, the table has 4"),
        ((T, M, S, G, ROWS + 3), IndexError, "rows are 3 to 4, the table has 4"),
        ((T, M, S, G, ROWS.flip(0) - 1), IndexError, "rows are -1 to 0, the table has 4"),
        ((T, M, S, G, torch.tensor([1, 1])), ValueError, "rows must be distinct"),
        ((T, M, S, G, torch.tensor([2, 0, 2])), ValueError, "rows must be distinct"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        adamw_rows(*arguments, step=1, rate=0.1)


NAMES, BUFFER = ("parameter", "mean", "square", "gradient"), torch.zeros(24)


@as_subtests("one, other, start", [(a, b, start) for a, b in itertools.combinations(NAMES, 2) for start in (0, 1, 11)])
def test_no_two_tensors_share_memory(one: str, other: str, start: int) -> None:
    given = dict(zip(NAMES, (T, M, S, G), strict=True))
    given |= {one: BUFFER[:12].view(4, 3), other: BUFFER[start : start + 12].view(4, 3)}
    with pytest.raises(ValueError, match=f"{one} and {other} share memory|{other} and {one} share memory"):
        adamw_rows(**given, rows=ROWS, step=1, rate=0.1)
    given[other] = BUFFER[12:].view(4, 3)  # side by side in one storage they are apart
    adamw_rows(**given, rows=ROWS, step=1, rate=0.1)


def test_factors_are_not_the_tables_memory() -> None:
    with pytest.raises(ValueError, match="share memory"):
        decay_rows(BUFFER[:12].view(4, 3), ROWS, BUFFER[10:14])
    with pytest.raises(ValueError, match="rows must be distinct"):
        decay_rows(torch.ones(4, 3), torch.tensor([1, 1]), torch.ones(2))


NAN = float("nan")
# {name: (values that are no numbers of its kind, values that lie outside, what the message says)}
SETTINGS_REFUSED = {
    "step": ([1.5, "1", None, True, torch.tensor(1)], [0, -1], "step must be"),
    "rate": (["0.1", None, True, torch.tensor(0.1)], [-0.1, NAN], "rate must be"),
    "betas": (
        [("0.9", 0.9), (0.9, None), (torch.tensor(0.9), 0.9)],
        [(0.9,), (0.9, 0.9, 0.9), 0.9, None],
        "betas must be",
    ),
    "eps": (["0.1", None, True, torch.tensor(0.1)], [-1e-8, NAN], "eps must be"),
    "weight_decay": (["0.1", None, True, torch.tensor(0.1)], [-0.1, NAN], "weight_decay must be"),
    "divisor": (["1", None, True, torch.tensor(1.0)], [0, 0.0, -1.0, NAN], "divisor must be"),
}
SETTINGS_REFUSED["betas"][1].extend(
    pair for beta in (1, 1.0, 1.5, -0.1, NAN) for pair in ((beta, 0.9), (0.9, beta), (beta, beta))
)


@as_subtests(
    "name, value, error, dtype",
    [
        (name, value, error, dtype)
        for name, (kinds, outside, _) in SETTINGS_REFUSED.items()
        for error, values in ((TypeError, kinds), (ValueError, outside))
        for value in values
        for dtype in DTYPES  # of which only one reaches C++
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(name, value, error, dtype) -> None:
    tensors = [torch.ones(4, 3, dtype=dtype) for _ in range(4)]
    with pytest.raises(error, match=SETTINGS_REFUSED[name][-1]):
        adamw_rows(*tensors, ROWS, **{"step": 1, "rate": 0.1, name: value})
    assert all(bool((tensor == 1).all()) for tensor in tensors)


@as_subtests("name, value", [("rate", 0), ("betas", (0, 0)), ("betas", [0.0, 0.5]), ("eps", 0), ("weight_decay", 0)])
def test_settings_may_lie_at_their_ends(name, value) -> None:
    tensors = [torch.ones(4, 3) for _ in range(4)]
    adamw_rows(*tensors, ROWS, **{"step": 1, "rate": 0.1, name: value})
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)
