"""A text as the mean of embeddings of its n-grams, hashed from its token ids: `ngram_bag`, and its sparse update.

The reference, in plain torch, is in plain.py, C++ in cpu.py. The gradient of the table holds the rows that the texts
name and no others: a coalesced sparse tensor, which `adagrad_rows` takes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from penstock.kernels import checks, compiled, dispatch
from penstock.kernels.operation import Operation
from penstock.kernels.ragged import check_cu_seqlens, check_cu_seqlens_form

MOST_NGRAMS = 8


class Problem(NamedTuple):
    """table (vocabulary + buckets, width), tokens (total,) int32, cu_seqlens (batch + 1,)."""

    table: Tensor
    tokens: Tensor
    cu_seqlens: Tensor
    vocabulary: int
    ngrams: int

    @property
    def table_rows(self) -> int:
        return self.table.shape[0]

    def check(self) -> None:
        if not 1 <= self.ngrams <= MOST_NGRAMS:
            raise ValueError(f"ngrams must be at most {MOST_NGRAMS} and at least 1, got {self.ngrams}")
        least = self.vocabulary + (self.ngrams > 1)
        if not 1 <= least <= self.table_rows < 2**31:
            raise ValueError(f"table must have {least:,} to 2^31 - 1 rows, it has {self.table_rows:,}")
        total = self.tokens.shape[0]
        check_cu_seqlens("cu_seqlens", self.cu_seqlens, total, total)

    def empty(self) -> Tensor:
        return self.table.new_empty(self.cu_seqlens.shape[0] - 1, self.table.shape[1])


class Backward(NamedTuple):
    """As in Problem; grad_out (batch, width)."""

    grad_out: Tensor
    tokens: Tensor
    cu_seqlens: Tensor
    table_rows: int
    vocabulary: int
    ngrams: int


class RowGradients(NamedTuple):
    """The table's rows that have a gradient, ascending int64 (rows,), and their gradients, (rows, width)."""

    rows: Tensor
    values: Tensor


class Gradients(NamedTuple):
    table: Tensor


class Update(NamedTuple):
    """table (rows, width) and sums (rows,), changed in place; rows int64 (count,), distinct; values (count, width)."""

    table: Tensor
    sums: Tensor
    rows: Tensor
    values: Tensor
    rate: float
    eps: float


dispatch.register("ngram_bag", "cpu", "penstock.kernels.bag.cpu", compiled.why_not_float32)
dispatch.register("ngram_bag", "reference", "penstock.kernels.bag.plain")


def _gradient(
    grad_out: Tensor, tokens: Tensor, cu_seqlens: Tensor, table_rows: int, vocabulary: int, ngrams: int, backend: str
) -> Gradients:
    """Sparse: its number of rows follows from the tokens, so it is no operation with shapes that a compiler knows."""
    problem = Backward(grad_out.resolve_neg().contiguous(), tokens, cu_seqlens, table_rows, vocabulary, ngrams)
    rows, values = dispatch.implementation("ngram_bag", backend).ngram_bag_backward(problem)
    size = (table_rows, grad_out.shape[1])
    made: dict[str, Any] = {"dtype": values.dtype, "device": values.device, "is_coalesced": True}
    return Gradients(torch.sparse_coo_tensor(rows[None], values, size, check_invariants=False, **made))


_forms = {"table": "rows, width", "tokens": "total: int32", "cu_seqlens": "bounds: int32"}
_operation = Operation("ngram_bag", Problem, forms=_forms, backward=_gradient)


def ngram_bag(tokens: Tensor, cu_seqlens: Tensor, table: Tensor, *, vocabulary: int, ngrams: int = 2) -> Tensor:
    """The mean of a table's rows over the n-grams of each text of a ragged batch; a text without tokens gives 0.

    A single token names the row of its id; a longer n-gram one of the rows behind the vocabulary, by its hash, which
    it may share with others (as in Joulin et al. 2017, Bag of Tricks for Efficient Text Classification).

    Example:
        >>> import torch
        >>> from penstock.kernels import ngram_bag
        >>> table = torch.zeros(10 + 8, 3)
        >>> ngram_bag(torch.tensor([1, 2, 9], dtype=torch.int32), torch.tensor([0, 2, 3], dtype=torch.int32), table,
        ...           vocabulary=10).shape
        torch.Size([2, 3])

    Args:
        tokens: int32, (total_tokens,), each below `vocabulary`.
        cu_seqlens: int32, (batch + 1,).
        table: (vocabulary + buckets, width), float32 or float64; below 2^31 rows, and one bucket at least if `ngrams`
            is more than 1.
        ngrams: tokens of the longest n-gram, 1 to 8; the shorter ones count too.
    Returns:
        (batch, width). The gradient of the table is a coalesced sparse tensor of the rows named, whose sums are made in
        the order of the texts, whatever the number of threads. Autocast changes nothing. torch.compile breaks its graph
        where the table asks for a gradient.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. IndexError: a token is not in the vocabulary.
        RuntimeError: the backend that `use_backend` forces cannot serve the call.
    """
    if tokens.dtype != torch.int32:
        raise TypeError(f"tokens must be int32, got {tokens.dtype}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have shape (total_tokens,), got {tuple(tokens.shape)}")
    checks.table("table", table)
    if table.device != tokens.device:
        raise ValueError(f"table is on {table.device}, tokens is on {tokens.device}")
    check_cu_seqlens_form("cu_seqlens", cu_seqlens, tokens.device)
    vocabulary, ngrams = checks.integer("vocabulary", vocabulary, 1), checks.integer("ngrams", ngrams, 1)
    backend = dispatch.choose("ngram_bag", device_type=table.device.type, dtype=table.dtype)
    call, traced = _operation.call, torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if traced and torch.is_grad_enabled() and table.requires_grad:
        call = torch.compiler.disable(call, reason="no graph holds the gradient of ngram_bag, which is sparse")
    return call(table, tokens, cu_seqlens, vocabulary, ngrams, backend)


@torch.no_grad()
def adagrad_rows(table: Tensor, sums: Tensor, gradient: Tensor, *, rate: float, eps: float = 1e-10) -> None:
    """A step of Adagrad in place that touches the rows with a gradient alone, with one sum of squares for each row.

    sums[r] += mean(g²), then table[r] -= rate g / (sqrt(sums[r]) + eps), g being the gradient of row r.

    Args:
        table: (rows, width), float32 or float64, contiguous.
        sums: (rows,), of the same dtype, contiguous.
        gradient: sparse, as of `ngram_bag`.
    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. IndexError: the gradient names a row that the
            table does not have.
    """
    rate, eps = checks.real("rate", rate, 0), checks.real("eps", eps, 0)
    checks.table("table", table)
    if gradient.layout != torch.sparse_coo or gradient.shape != table.shape or gradient.dtype != table.dtype:
        raise ValueError(
            f"gradient must be sparse, of the table's shape {tuple(table.shape)} and dtype {table.dtype}, "
            f"got {gradient.layout}, {tuple(gradient.shape)} and {gradient.dtype}"
        )
    if gradient.sparse_dim() != 1:
        raise ValueError(f"gradient must be sparse in its rows alone, it is in {gradient.sparse_dim()} dimensions")
    if sums.shape != table.shape[:1] or sums.dtype != table.dtype:
        raise ValueError(f"sums must be {table.dtype} ({table.shape[0]},), got {sums.dtype} {tuple(sums.shape)}")
    if gradient.device != table.device:
        raise ValueError(f"gradient is on {gradient.device}, table is on {table.device}")
    gradient = coalesced(gradient)
    rows, values = gradient.indices()[0], gradient.values().resolve_neg().contiguous()
    checks.dense_and_apart(table.device, table=table, sums=sums, gradient=values)
    checks.rows("the gradient's rows", rows, table.shape[0])  # torch does not check them, unless it is told to
    backend = dispatch.choose("ngram_bag", device_type=table.device.type, dtype=table.dtype)
    found = Update(table, sums, rows.contiguous(), values, rate, eps)
    dispatch.implementation("ngram_bag", backend).adagrad_rows(found)


def coalesced(gradient: Tensor) -> Tensor:
    """The same sparse rows, distinct and ascending. Autograd forgets that a gradient was so; seeing it is quicker than
    sorting again."""
    rows = gradient._indices()[0]
    if not gradient.is_coalesced() and bool((rows[1:] > rows[:-1]).all()):
        return gradient._coalesced_(True)
    return gradient.coalesce()
