"""The LSTM on a GPU against float64 on the CPU."""

import emulated_cuda
import lstm_cases as cases
import pytest
import torch
from kernel_cases import pairwise
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from penstock.kernels import LSTM, Ragged, lstm_cell, use_backend
from penstock.kernels.lstm import cuda, ops, reference
from penstock.kernels.lstm.protocol import LayerInputs, LayerWeights, OutputGrads

pytestmark = pytest.mark.gpu  # skipped, with the reason, where there is none

BACKENDS = ["torch", "triton"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# the persistent tier and the stepwise one, H a multiple of nothing and of everything
SHAPES = [([3, 0, 5, 1, 17], 5, 7), ([64] * 70, 64, 64), ([211, 3, 1, 0, 90], 30, 128), ([70, 33, 129], 100, 300)]


def on_gpu(inputs: LayerInputs, dtype: torch.dtype) -> LayerInputs:
    def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.detach().cuda().requires_grad_(tensor.requires_grad)

    inputs = cases.recorded(inputs, dtype)
    x, cu_seqlens, max_seqlen, weights, *rest, pool = inputs
    weights = LayerWeights(*([move(weight) for weight in kind] for kind in weights))
    return LayerInputs(move(x), cu_seqlens.cuda(), max_seqlen, weights, *map(move, rest), pool)


def run(backend: str, inputs: LayerInputs, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = ops.lstm_layer(inputs, False, True, backend)[:3]
    grads = [grad.to("cuda", out.dtype) for grad, out in zip(grads, outputs, strict=False)]
    return [*outputs, *torch.autograd.grad(outputs, cases.floats(inputs), grads)]


OPTIONS = [{}, {"states": False, "bias": False, "directions": 1}, {"resets": True}]


@pytest.mark.kernel("lstm")
@pairwise({"backend": BACKENDS, "dtype": DTYPES, "shape": SHAPES, "options": OPTIONS})
def test_values_and_gradients(backend: str, dtype: torch.dtype, shape: tuple, options: dict) -> None:
    inputs = cases.layer(*shape, dtype=dtype, **options)
    grads = cases.cotangents(inputs)
    true_outputs, true_gradients = cases.truth(inputs, [*grads[:3], None])
    found = run(backend, on_gpu(inputs, dtype), grads)
    of_outputs, of_gradients = cases.BOUNDS[dtype]
    errors = list(cases.errors([each.cpu() for each in found], [*true_outputs[:3], *true_gradients]))
    assert all(error <= of_outputs for error in errors[:3])  # not their maximum: it may overlook NaN
    assert all(error <= of_gradients for error in errors[3:])


@pytest.mark.kernel("lstm")
@pairwise({"backend": BACKENDS, "hidden": [64, 300]})
def test_same_bits_and_no_leak_between_sequences(backend: str, hidden: int) -> None:
    inputs = cases.layer([40, 0, 90, 7] * 30, 20, hidden, dtype=torch.bfloat16)
    grads = cases.cotangents(inputs)
    changed = inputs._replace(x=inputs.x.clone())
    changed.x[40:130] = 3
    first = run(backend, on_gpu(inputs, torch.bfloat16), grads)
    for _ in range(20):
        again = run(backend, on_gpu(inputs, torch.bfloat16), grads)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = run(backend, on_gpu(changed, torch.bfloat16), grads)
    for place in (0, 3):  # y and dx
        assert torch.equal(first[place][:40], other[place][:40])
        assert torch.equal(first[place][130:], other[place][130:])


def needs_cuda(hidden: int) -> None:
    facts = {"device_type": "cuda", "dtype": torch.bfloat16, "hidden_size": hidden}
    reason = cuda.available() or cuda.why_not(**facts)
    if reason:
        pytest.skip(f"cuda: {reason}")


CUDA_LENGTHS = [
    [3, 0, 5, 1, 17],
    [211, 3, 1, 0, 90, 37],
    [1],
    [64] * 70,
    [(37 * i) % 61 for i in range(700)],  # several sequences to a lane
]


@pytest.mark.kernel("lstm", "cuda")
@pairwise({"hidden": cuda.HIDDEN_SIZES, "lengths": CUDA_LENGTHS, "options": OPTIONS})
def test_cuda_values_and_gradients(hidden: int, lengths: list[int], options: dict) -> None:
    needs_cuda(hidden)
    inputs = cases.layer(lengths, 64, hidden, dtype=torch.bfloat16, **options)
    grads = cases.cotangents(inputs)
    # the float64 reference on the GPU itself: these layers are large for a CPU
    true_inputs = on_gpu(inputs, torch.float64)
    true = reference.lstm_layer(true_inputs)[:3]
    true_grads = [grad.cuda() for grad in grads[:3]]
    true = [*true, *torch.autograd.grad(true, cases.floats(true_inputs), true_grads)]
    found = run("cuda", on_gpu(inputs, torch.bfloat16), grads)
    errors = list(cases.errors(found, true))
    of_outputs, of_gradients = cases.BOUNDS[torch.bfloat16]
    assert all(error <= of_outputs for error in errors[:3])  # not their maximum: it may overlook NaN
    assert all(error <= of_gradients for error in errors[3:])


@pytest.mark.kernel("lstm", "cuda")
@pairwise(
    {
        "hidden": cuda.HIDDEN_SIZES,
        "lengths": CUDA_LENGTHS,
        "vocabulary": [31, 40000],  # projected as a whole, and token by token
        "pool": ["", "max", "mean"],
    }
)
def test_cuda_embeddings_and_pooling(
    hidden: int, lengths: list[int], vocabulary: int, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by torch's own operations around the same recurrence, and the same bits each time."""
    needs_cuda(hidden)
    inputs = on_gpu(
        cases.layer(lengths, 64, hidden, vocabulary=vocabulary, pool=pool, dtype=torch.bfloat16), torch.bfloat16
    )
    grads = cases.cotangents(inputs)
    found = run("cuda", inputs, grads)
    assert all(torch.equal(a, b) for a, b in zip(found, run("cuda", inputs, grads), strict=True))
    monkeypatch.setattr(cuda, "FUSES", False)
    apart = run("cuda", inputs, grads)
    if pool == "max":
        assert torch.equal(found[0], apart[0])
    of_outputs, of_gradients = cases.BOUNDS[torch.bfloat16]
    errors = list(cases.errors(found, apart))
    assert all(error <= of_outputs for error in errors[:3])
    assert all(error <= of_gradients for error in errors[3:])


@pytest.mark.kernel("lstm", "cuda")
@pytest.mark.parametrize("hidden", cuda.HIDDEN_SIZES)
def test_cuda_same_bits_and_no_leak_between_sequences(hidden: int) -> None:
    needs_cuda(hidden)
    inputs = cases.layer([40, 0, 90, 7] * 60, 20, hidden, dtype=torch.bfloat16)
    grads = cases.cotangents(inputs)
    changed = inputs._replace(x=inputs.x.clone())
    changed.x[40:130] = float("nan")
    first = run("cuda", on_gpu(inputs, torch.bfloat16), grads)
    for _ in range(20):
        again = run("cuda", on_gpu(inputs, torch.bfloat16), grads)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = run("cuda", on_gpu(changed, torch.bfloat16), grads)
    for place in (0, 3):  # y and dx
        assert torch.equal(first[place][:40], other[place][:40])
        assert torch.equal(first[place][130:], other[place][130:])


@pytest.mark.kernel("lstm", "cuda")
@pytest.mark.parametrize("hidden", cuda.HIDDEN_SIZES)
def test_cuda_fills_whatever_it_returns(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_cuda(hidden)
    inputs = cases.layer([4, 0, 130, 1], 6, hidden, dtype=torch.bfloat16)
    emulated_cuda.poison(monkeypatch)
    found = run("cuda", on_gpu(inputs, torch.bfloat16), cases.cotangents(inputs))
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.kernel("lstm", "cuda")
@pytest.mark.parametrize("hidden", cuda.HIDDEN_SIZES)
@pytest.mark.parametrize("bounds", [[0, 5, 3, 9], [-7, 4, 2**31 - 1, 12], [12, 0, 0, 0]], ids=str)
def test_cuda_malformed_bounds_stay_within_the_tokens(
    hidden: int, bounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_cuda(hidden)
    inputs = on_gpu(cases.layer([4, 5, 3], 6, hidden, dtype=torch.bfloat16), torch.bfloat16)
    inputs = inputs._replace(cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device="cuda"))
    guards = emulated_cuda.guard(monkeypatch)
    with torch.no_grad():
        out = cuda.forward(inputs, False, True)
        grads = OutputGrads(torch.ones_like(out.y), None, None, None)
        cuda.backward(grads, inputs, out.y, out.saved, True, True)
    assert all((guard == emulated_cuda.GUARD).all() for guard in guards)


@pytest.mark.kernel("lstm")
@pairwise({"backend, hidden": [("triton", 64), ("triton", 300), ("cuda", 256), ("cuda", 1024)]})
def test_never_waits_and_replays_in_a_graph(backend: str, hidden: int) -> None:
    if backend == "cuda":
        needs_cuda(hidden)
    torch.manual_seed(0)
    module = LSTM(32, hidden, 2, bidirectional=True, device="cuda", dtype=torch.bfloat16)
    lengths = [[30, 2, 60, 0, 8], [20, 20, 20, 20, 20], [60, 40, 0, 0, 0]]
    batches = [Ragged.from_lengths(torch.randn(100, 32, dtype=torch.bfloat16), each).to("cuda") for each in lengths]
    fixed = Ragged(batches[0].values.clone().requires_grad_(), batches[0].cu_seqlens.clone(), 60)

    def step(batch: Ragged) -> list[torch.Tensor]:
        with use_backend(backend):
            y, (h_n, c_n) = module(batch)
        loss = y.values.float().square().sum() + h_n.float().sum() + c_n.float().sum()
        return [y.values, *torch.autograd.grad(loss, [batch.values, *module.parameters()])]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(fixed)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(fixed)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(fixed)
    for batch in batches:
        with torch.no_grad():
            fixed.values.copy_(batch.values)
        fixed.cu_seqlens.copy_(batch.cu_seqlens)
        graph.replay()
        expected = step(Ragged(batch.values.requires_grad_(), batch.cu_seqlens, 60))
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.kernel("lstm", "cuda")
@pytest.mark.parametrize("vocabulary", [30, 1000])
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_cuda_embeddings_and_pooling_never_wait(pooling: str, vocabulary: int) -> None:
    needs_cuda(256)
    module = LSTM(32, 256, bidirectional=True, device="cuda", dtype=torch.bfloat16)
    table = torch.randn(vocabulary, 32, device="cuda", requires_grad=True)
    ids = torch.randint(vocabulary, (100,), dtype=torch.int32)
    batch = Ragged.from_lengths(ids, [30, 2, 60, 0, 8]).to("cuda")

    def step() -> None:
        with use_backend("cuda"):
            pooled, _ = module(batch, embeddings=table, pooling=pooling)
        torch.autograd.grad(pooled.float().square().sum(), [table, *module.parameters()])

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.kernel("lstm_cell", "triton")
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_cell(dtype: torch.dtype) -> None:
    gates = torch.randn(1000, 4 * 70, device="cuda").to(dtype).requires_grad_()
    c = torch.randn(1000, 70, device="cuda", requires_grad=True)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            h, c_next = lstm_cell(gates, c)
        results.append([h, c_next, *torch.autograd.grad([h, c_next], [gates, c], [h.detach(), c_next.detach()])])
    assert max(cases.errors(*results)) <= cases.BOUNDS[dtype][1]


@pytest.mark.kernel("lstm", "torch")
def test_module_is_nn_lstm() -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(20, 40, 2, bidirectional=True, device="cuda")
    ours = LSTM(20, 40, 2, bidirectional=True, device="cuda")
    ours.load_state_dict(theirs.state_dict())
    packed = pack_sequence([torch.randn(n, 20, device="cuda") for n in (7, 30, 1)], enforce_sorted=False)
    expected, found = theirs(packed), ours(packed)
    torch.testing.assert_close(found[0].data, expected[0].data, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-3)


@pytest.mark.kernel("lstm")
@pairwise({"backend": BACKENDS})
def test_autocast_stays_in_bfloat16(backend: str) -> None:
    module = LSTM(20, 40, 2, bidirectional=True, device="cuda", dropout=0.1)
    batch = Ragged.from_lengths(torch.randn(9, 20), [4, 5]).to("cuda")
    with torch.autocast("cuda", torch.bfloat16), use_backend(backend):
        y = module(batch)[0].values
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert module.weight_hh_l0.grad.dtype == torch.float32
