"""Bags of n-grams on a CPU, in C++ (csrc/bag/cpu)."""

from typing import Any

import torch
from torch import Tensor

from penstock.kernels.bag import Backward, Problem, RowGradients, Update
from penstock.kernels.compiled import call, native


def ngram_bag(problem: Problem) -> Tensor:
    table, out = problem.table, problem.empty()
    arguments = _texts(problem, table.shape[0]) | {"width": table.shape[1]}
    call(native.bag_mean, arguments | {"table": table.data_ptr(), "out": out.data_ptr()})
    return out


def ngram_bag_backward(problem: Backward) -> RowGradients:
    grad_out = problem.grad_out
    most = problem.tokens.shape[0] * problem.ngrams  # pages that are not filled are not there
    rows, values = torch.empty(most, dtype=torch.int64, device="cpu"), grad_out.new_empty(most, grad_out.shape[1])
    arguments = _texts(problem, problem.table_rows) | {"width": grad_out.shape[1]}
    arguments |= {"grad_out": grad_out.data_ptr(), "rows": rows.data_ptr(), "values": values.data_ptr()}
    distinct = call(native.bag_gradient, arguments)
    return RowGradients(rows[:distinct], values[:distinct])


def adagrad_rows(problem: Update) -> None:
    table, sums, rows, values, rate, eps = problem
    arguments: dict[str, Any] = {"count": rows.shape[0], "width": table.shape[1], "rate": rate, "eps": eps}
    arguments |= {"rows": rows.data_ptr(), "values": values.data_ptr()}
    call(native.bag_update, arguments | {"table": table.data_ptr(), "sums": sums.data_ptr()})
    torch.autograd.graph.increment_version((table, sums))  # so that autograd sees that C++ has written to them


def _texts(problem: Problem | Backward, table_rows: int) -> dict[str, Any]:
    return {
        "tokens": problem.tokens.data_ptr(),
        "total": problem.tokens.shape[0],
        "cu_seqlens": problem.cu_seqlens.data_ptr(),
        "batch": problem.cu_seqlens.shape[0] - 1,
        "vocabulary": problem.vocabulary,
        "buckets": table_rows - problem.vocabulary,
        "ngrams": problem.ngrams,
    }
