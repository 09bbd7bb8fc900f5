"""AdamW on some rows of a table, against torch's own optimizer."""

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


T, ROWS = torch.zeros(4, 3), torch.arange(2)


@as_subtests(
    "arguments, error, message",
    [
        ((T.half(), T, T, T, ROWS), TypeError, "parameter must be float32 or float64"),
        ((T[0], T, T, T, ROWS), ValueError, r"shape \(rows, width\)"),
        ((T, T[:2], T, T, ROWS), ValueError, "mean must be torch.float32"),
        ((T, T, T.double(), T, ROWS), ValueError, "square must be torch.float32"),
        ((T, T, T, torch.zeros(3, 4).t(), ROWS), ValueError, "gradient must be contiguous"),
        ((T, T, T, T.to("meta"), ROWS), ValueError, "gradient must be contiguous and on the CPU"),
        ((T, T, T, T, ROWS.int()), ValueError, "rows must be int64"),
        ((T, T, T, T, ROWS[None]), ValueError, "rows must be int64"),
        ((T, T, T, T, ROWS - 1), IndexError, "rows are -1 to 0, the table has 4"),
        ((T, T, T, T, ROWS + 3), IndexError, "rows are 3 to 4, the table has 4"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        adamw_rows(*arguments, step=1, rate=0.1)
