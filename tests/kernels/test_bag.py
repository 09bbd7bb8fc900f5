"""Bags of n-grams against their definition, written down here without tensors, and against the reference."""

import itertools

import pytest
import torch
from kernel_cases import bounds, isas, pairwise
from subtested import as_subtests

from penstock.kernels import adagrad_rows, ngram_bag, use_backend
from penstock.kernels.bag import Backward, Problem, cpu, plain

LENGTHS = [
    [0],
    [],
    [1],
    [3, 0, 1, 17, 0, 1, 131, 2, 0],
    [0, 0, 2],
    [5000],
    [700, 1, 0, 2300, 5, 4, 3, 2, 1],
]
WIDTHS = [1, 3, 8, 16, 17, 40, 64, 67, 130]
VOCABULARY, BUCKETS = 50, 37
OUTSIDE = [-1, VOCABULARY, 2**31 - 1, -(2**31)]  # no tokens


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def case(lengths, width=5, buckets=BUCKETS, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (sum(lengths),), generator=generator, dtype=torch.int32)
    table = torch.randn(VOCABULARY + buckets, width, generator=generator, dtype=torch.float64).to(dtype)
    return tokens, bounds(lengths), table.requires_grad_()


def rows_of(tokens, ngrams, buckets):
    """The rows of one text's features, as somebody would write it down."""
    low = 2**64 - 1
    rows = []
    for start in range(len(tokens)):
        for end in range(start + 1, min(start + ngrams, len(tokens)) + 1):
            if end == start + 1:
                rows.append(tokens[start])
                continue
            value = 0
            for token in tokens[start:end]:
                value = (value * 0x9E3779B97F4A7C15 + token + 1) & low
            value = (value ^ value >> 32) * 0xD6E8FEB86659FD93 & low
            rows.append(VOCABULARY + ((value >> 32) * buckets >> 32))
    return rows


def definition(tokens, cu, table, ngrams):
    out = []
    for start, end in itertools.pairwise(cu.tolist()):
        rows = rows_of(tokens[start:end].tolist(), ngrams, table.shape[0] - VOCABULARY)
        out.append(table[rows].sum(0) / max(len(rows), 1))
    return torch.stack(out) if out else table.new_zeros(0, table.shape[1])


def close(found, expected, bound=1e-5):
    """Within the bound that the project has for float32."""
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= bound * expected.norm()


def bag(tokens, cu, table, ngrams):
    return ngram_bag(tokens, cu, table, vocabulary=VOCABULARY, ngrams=ngrams)


@pairwise({"backend": ["cpu", "reference"], "lengths": LENGTHS[:-2], "ngrams": [1, 2, 3, 5, 8]})
def test_values_and_gradients_equal_the_definition(backend, lengths, ngrams):
    dtype = torch.float64 if backend == "reference" else torch.float32
    tokens, cu, table = case(lengths, dtype=dtype)
    with use_backend(backend):
        out = bag(tokens, cu, table, ngrams)
    exact = table.detach().double().requires_grad_()
    expected = definition(tokens, cu, exact, ngrams)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(out.double(), expected, **tolerance)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(direction.to(dtype))
    if expected.requires_grad:
        expected.backward(direction)
    wanted = torch.zeros_like(exact) if exact.grad is None else exact.grad
    assert table.grad.layout == torch.sparse_coo
    torch.testing.assert_close(table.grad.to_dense().double(), wanted, **tolerance)
    rows = table.grad._indices()[0].tolist()
    parts = [tokens[start:end].tolist() for start, end in itertools.pairwise(cu.tolist())]
    assert rows == sorted({row for part in parts for row in rows_of(part, ngrams, BUCKETS)})


@pairwise({"isa": isas("bag"), "width": WIDTHS, "lengths": LENGTHS[3:]})
def test_every_instruction_set_agrees_with_the_reference(isa, lengths, width):
    tokens, cu, table = case(lengths, width, buckets=4001)
    exact = table.detach().double()
    out = bag(tokens, cu, table, 3)
    expected = plain.ngram_bag(Problem(exact, tokens, cu, VOCABULARY, 3))
    close(out, expected)
    direction = torch.randn_like(expected)
    out.backward(direction.float())
    problem = Backward(direction, tokens, cu, table.shape[0], VOCABULARY, 3)
    rows, values = plain.ngram_bag_backward(problem)
    assert torch.equal(table.grad._indices()[0], rows)
    close(table.grad._values(), values)

    sums = torch.rand(table.shape[0])
    exact_sums = sums.double()
    adagrad_rows(table.detach(), sums, table.grad, rate=0.3, eps=1e-8)
    gradient = torch.sparse_coo_tensor(rows[None], values, exact.shape, check_invariants=True)
    adagrad_rows(exact, exact_sums, gradient, rate=0.3, eps=1e-8)
    close(table.detach(), exact)
    close(sums, exact_sums)


def test_nothing_is_read_that_was_not_written(monkeypatch):
    """Outputs start as NaN: what is not filled, or read before it is, shows."""
    tokens, cu, table = case(LENGTHS[3], 17)
    expected, found = bag(tokens, cu, table, 2), None
    poisoned = torch.Tensor.new_empty

    def new_empty(self, *shape, **options):
        made = poisoned(self, *shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    gradient = torch.autograd.grad(expected.sum(), table)[0].to_dense()
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    found = bag(tokens, cu, table, 2)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found.sum(), table)[0].to_dense(), gradient)


@pytest.mark.parametrize("width", [3, 16])
def test_the_number_of_threads_changes_no_bit(threads, width):
    lengths = [300] * 400 + [0, 9000, 1]  # enough features for every pass to be shared out
    tokens, cu, table = case(lengths, width, buckets=100_000)
    results = []
    for count in (1, 2, 5):
        threads(count)
        mine = table.detach().clone().requires_grad_()
        out = bag(tokens, cu, mine, 2)
        out.backward(torch.ones_like(out).cumsum(0).sin())
        sums = torch.zeros(mine.shape[0])
        adagrad_rows(mine.detach(), sums, mine.grad, rate=0.1)
        results.append((out.detach(), mine.grad._indices(), mine.grad._values(), mine.detach(), sums))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_texts_mean_does_not_depend_on_the_others():
    tokens, cu, table = case([40, 7, 900, 3], 16)
    together = bag(tokens, cu, table, 2)
    alone = bag(tokens[40:47], bounds([7]), table, 2)
    assert torch.equal(together[1], alone[0])


def test_order_matters_beyond_single_tokens():
    _, cu, table = case([3, 3], buckets=10_000)
    tokens = torch.tensor([1, 2, 3, 3, 2, 1], dtype=torch.int32)
    same, other = bag(tokens, cu, table, 1), bag(tokens, cu, table, 2)
    torch.testing.assert_close(same[0], same[1])
    assert not torch.allclose(other[0], other[1])


def test_buckets_are_used_evenly():
    tokens = torch.cartesian_prod(torch.arange(300), torch.arange(300)).flatten().to(torch.int32)
    cu = torch.arange(0, len(tokens) + 1, 2, dtype=torch.int32)
    rows, _ = plain.features(tokens, cu, 300, 1000, 2)
    counts = torch.bincount(rows[rows >= 300] - 300, minlength=1000).double()
    assert ((counts - 90).square() / 90).sum() < 1000 + 5 * 2000**0.5  # chi-square with 999 degrees of freedom


@as_subtests("backend, token, place", itertools.product(["cpu", "reference"], OUTSIDE, [0, 4, 9]))
def test_a_token_outside_the_vocabulary_is_an_error_that_names_it(backend, token, place):
    tokens, cu, table = case([5, 0, 5])
    tokens[place] = token
    with use_backend(backend), pytest.raises(IndexError, match=f"token {token} is not in the vocabulary of 50"):
        bag(tokens, cu, table, 2)


WRONG = {
    "int32": (TypeError, "tokens must be int32", lambda t, cu, table: (t.long(), cu, table, {})),
    "two dimensions": (ValueError, "tokens must have shape", lambda t, cu, table: (t[None], cu, table, {})),
    "half": (TypeError, "table must be float32 or float64", lambda t, cu, table: (t, cu, table.half(), {})),
    "flat": (ValueError, "table must have shape", lambda t, cu, table: (t, cu, table[0], {})),
    "no bucket": (ValueError, "rows, it has 50", lambda t, cu, table: (t, cu, table[:VOCABULARY], {})),
    "none": (ValueError, "ngrams must be at least 1", lambda t, cu, table: (t, cu, table, {"ngrams": 0})),
    "many": (ValueError, "ngrams must be at most 8", lambda t, cu, table: (t, cu, table, {"ngrams": 9})),
    "true": (TypeError, "ngrams must be an integer", lambda t, cu, table: (t, cu, table, {"ngrams": True})),
    "falling": (ValueError, "cu_seqlens", lambda t, cu, table: (t, cu.flip(0), table, {})),
    "short": (ValueError, "cu_seqlens", lambda t, cu, table: (t, cu[:-1], table, {})),
}


@as_subtests("name", WRONG)
def test_a_wrong_argument_is_named(name):
    error, message, change = WRONG[name]
    tokens, cu, table, options = change(*case([3, 2]))
    with pytest.raises(error, match=message):
        ngram_bag(tokens, cu, table, **{"vocabulary": VOCABULARY, **options})


def sparse(rows, values, size=(4, 2), **options):
    return torch.sparse_coo_tensor(torch.tensor(rows), torch.as_tensor(values), size, check_invariants=False, **options)


WRONG_NUMBERS, BELOW_ZERO = ["0.1", None, True, torch.tensor(0.1)], [-0.1, float("nan"), float("-inf")]
SHARED = torch.zeros(8)
WRONG_STEPS = {
    "a row before": (
        IndexError,
        "rows are -1 to 2, the table has 4",
        {"gradient": sparse([[-1, 2]], torch.ones(2, 2))},
    ),
    "a row beyond": (IndexError, "rows are 0 to 4", {"gradient": sparse([[0, 4]], torch.ones(2, 2))}),
    "a row far beyond": (IndexError, "the gradient's rows are", {"gradient": sparse([[2**40]], torch.ones(1, 2))}),
    "a row beyond, said to be in order": (
        IndexError,
        "rows are 1 to 9",
        {"gradient": sparse([[9, 1]], torch.ones(2, 2), is_coalesced=True)},
    ),
    "sparse in both": (ValueError, "sparse in its rows alone", {"gradient": torch.eye(4, 2).to_sparse()}),
    "another size": (ValueError, "gradient must be sparse", {"gradient": torch.zeros(5, 2).to_sparse(1)}),
    "another dtype": (ValueError, "gradient must be sparse", {"gradient": torch.zeros(4, 2).double().to_sparse(1)}),
    "elsewhere": (ValueError, "gradient is on meta", {"gradient": torch.zeros(4, 2).to_sparse(1).to("meta")}),
    "sums elsewhere": (
        ValueError,
        "sums must be contiguous and on cpu, got .* meta",
        {"sums": torch.zeros(4, device="meta")},
    ),
    "sums apart": (ValueError, "contiguous", {"sums": torch.zeros(8)[::2]}),
    "sums negated": (ValueError, "negated view: call resolve_neg", {"sums": torch._neg_view(torch.zeros(4))}),
    "integers": (TypeError, "table must be float32", {"table": torch.zeros(4, 2, dtype=torch.int64)}),
    "flat": (ValueError, "table must have shape", {"table": torch.zeros(4)}),
    "a row twice, said to be distinct": (
        ValueError,
        "rows must be distinct",
        {"gradient": sparse([[1, 1]], torch.ones(2, 2), is_coalesced=True)},
    ),
    **{f"a rate of {rate!r}": (TypeError, "rate must be a number", {"rate": rate}) for rate in WRONG_NUMBERS},
    **{f"an eps of {eps!r}": (TypeError, "eps must be a number", {"eps": eps}) for eps in WRONG_NUMBERS},
    **{f"a rate of {rate}": (ValueError, "rate must be at least 0", {"rate": rate}) for rate in BELOW_ZERO},
    **{f"an eps of {eps}": (ValueError, "eps must be at least 0", {"eps": eps}) for eps in BELOW_ZERO},
    "sums in the table": (
        ValueError,
        "table and sums share memory|sums and table share memory",
        {"table": SHARED.view(4, 2), "sums": SHARED[2:6]},
    ),
    "a gradient in the table": (
        ValueError,
        "gradient and table share memory|table and gradient share memory",
        {"table": SHARED.view(4, 2), "gradient": sparse([[1]], SHARED.view(4, 2)[:1], is_coalesced=True)},
    ),
}


@as_subtests("backend, name", itertools.product(["cpu", "reference"], WRONG_STEPS))
def test_a_wrong_step_is_named_and_changes_nothing(backend, name):
    error, message, change = WRONG_STEPS[name]
    given = {
        "table": torch.zeros(4, 2),
        "sums": torch.zeros(4),
        "gradient": sparse([[0]], torch.ones(1, 2)),
        "rate": 0.1,
    }
    given |= change
    with use_backend(backend), pytest.raises(error, match=message):
        adagrad_rows(**given)
    assert given["table"].count_nonzero() == 0


@as_subtests("backend", ["cpu", "reference"])
def test_autograd_sees_that_a_step_has_written(backend):
    table, sums = torch.ones(4, 2, requires_grad=True), torch.ones(4, requires_grad=True)
    products = (table * table).sum(), (sums * sums).sum()
    with use_backend(backend):
        adagrad_rows(table.detach(), sums.detach(), sparse([[0]], torch.ones(1, 2)), rate=0.1)
    for product in products:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()
    with torch.inference_mode():
        adagrad_rows(torch.ones(4, 2), torch.ones(4), sparse([[0]], torch.ones(1, 2)), rate=0.1)


def test_a_wrong_gradient_is_named():
    table = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="gradient must be sparse"):
        adagrad_rows(table, torch.zeros(4), torch.zeros(4, 2), rate=0.1)
    sparse = torch.zeros(4, 2).to_sparse(1)
    with pytest.raises(ValueError, match="sums must be"):
        adagrad_rows(table, torch.zeros(3), sparse, rate=0.1)
    with pytest.raises(ValueError, match="contiguous"):
        adagrad_rows(torch.zeros(2, 4).t(), torch.zeros(4), sparse, rate=0.1)


@pytest.mark.parametrize("kind", ["eager", "aot_eager"])
def test_compiles_around_the_call_that_has_a_gradient(kind):
    tokens, cu, table = case([3, 0, 7])

    def squared(table):
        return (2 * bag(tokens, cu, table, 2)).square()

    torch._dynamo.reset()
    compiled = torch.compile(squared, backend=kind)
    found, expected = (torch.autograd.grad(f(table).sum(), table)[0] for f in (compiled, squared))
    torch.testing.assert_close(found.to_dense(), expected.to_dense())
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(squared, backend=kind, fullgraph=True)(table), squared(table))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="no graph holds the gradient of ngram_bag"):
        torch.compile(squared, backend=kind, fullgraph=True)(table)


def test_gradients_of_several_batches_add_up():
    tokens, cu, table = case(LENGTHS[3], 6)
    for _ in range(2):
        bag(tokens, cu, table, 2).sum().backward()
    once = torch.autograd.grad(bag(tokens, cu, table, 2).sum(), table)[0].to_dense()
    stepped, expected = table.detach().clone(), table.detach().clone()
    adagrad_rows(stepped, torch.zeros(len(table)), table.grad, rate=0.1)
    adagrad_rows(expected, torch.zeros(len(table)), (2 * once).to_sparse(1), rate=0.1)
    torch.testing.assert_close(stepped, expected)


def test_what_the_memory_of_a_kernel_holds_does_not_matter():
    """Offsets beyond the tokens, which the public function refuses, reach no memory that is not the batch's."""
    tokens, _, table = case([10])
    cu = torch.tensor([-5, 4, 2, 400], dtype=torch.int32)
    out = cpu.ngram_bag(Problem(table.detach(), tokens, cu, VOCABULARY, 2))
    expected = definition(tokens, torch.tensor([0, 4]), table.detach(), 2)
    torch.testing.assert_close(out[0], expected[0])
    assert torch.equal(out[1], torch.zeros(5))
