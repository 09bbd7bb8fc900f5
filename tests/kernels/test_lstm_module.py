"""`LSTM` beside torch.nn.LSTM, and what it does beyond it."""

import copy
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from subtested import as_subtests
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from penstock.kernels import LSTM, Ragged, lstm, use_backend
from penstock.kernels.lstm.protocol import LayerWeights

OPTIONS = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "proj_size": 3, "bias": False},
    {"batch_first": True, "bidirectional": True},
]


def pair(dtype: torch.dtype = torch.float32, **options: object) -> tuple[nn.LSTM, LSTM]:
    torch.manual_seed(0)
    theirs = nn.LSTM(5, 7, dtype=dtype, **options)
    torch.manual_seed(0)
    ours = LSTM(5, 7, dtype=dtype, **options)
    return theirs, ours


def forms(batch_first: bool) -> Iterator[tuple[str, Tensor | PackedSequence, int | None]]:
    x = torch.randn(6, 4, 5)
    yield "padded", x, x.shape[0 if batch_first else 1]
    yield "not contiguous", torch.randn(5, 4, 6).transpose(0, 2), 6 if batch_first else 4
    yield "unbatched", x[0], None
    yield "one step", x[:1], 1 if batch_first else 4
    pieces = [torch.randn(n, 5) for n in (3, 5, 1, 5)]
    yield "packed, unsorted", pack_sequence(pieces, enforce_sorted=False), 4
    yield "packed, sorted", pack_sequence(sorted(pieces, key=len, reverse=True)), 4
    yield "packed from padded", pack_padded_sequence(x, [6, 4, 4, 2], batch_first=False), 4


def data(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", OPTIONS)
def test_matches_nn_lstm(options: dict) -> None:
    theirs, ours = pair(**options)
    for (name, a), (other, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    for form, x, batch in forms(options.get("batch_first", False)):
        middle = () if batch is None else (batch,)
        hx = torch.randn(layers, *middle, options.get("proj_size", 7)), torch.randn(layers, *middle, 7)
        for states in (None, hx):
            results = []
            for module in (theirs, ours):
                module.zero_grad()
                output, (h_n, c_n) = module(x, states)
                (data(output).square().sum() + h_n.sum() + (c_n * c_n).sum()).backward()
                results.append([data(output), h_n, c_n, *(p.grad for p in module.parameters())])
                if isinstance(x, PackedSequence):
                    assert isinstance(output, PackedSequence)
                    assert torch.equal(output.batch_sizes, x.batch_sizes)
                    assert output.sorted_indices is x.sorted_indices
                    assert output.unsorted_indices is x.unsorted_indices
            for expected, found in zip(*results, strict=True):
                torch.testing.assert_close(
                    found, expected, atol=2e-5, rtol=1e-4, msg=lambda text, f=form: f"{f}: {text}"
                )
                assert found.is_contiguous() or not expected.is_contiguous()


def test_state_dict_both_ways() -> None:
    theirs, ours = pair(num_layers=2, bidirectional=True, proj_size=4)
    other = LSTM(5, 7, 2, bidirectional=True, proj_size=4)
    other.load_state_dict(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), ours.parameters(), strict=True))
    nn.LSTM(5, 7, 2, bidirectional=True, proj_size=4).load_state_dict(ours.state_dict())


def test_copies_and_pickles() -> None:
    module = LSTM(5, 7, 2, dropout=0.1, bidirectional=True, zoneout=(0.1, 0.2), weight_dropout=0.3, variational=True)
    batch = Ragged.from_lengths(torch.randn(6, 5), [4, 2])
    expected = module.eval()(batch)[0].values
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(batch)[0].values, expected)
        assert repr(twin) == repr(module)
        twin.weight_hh_l0.data.zero_()
        assert not torch.equal(twin(batch)[0].values, expected)


def test_ragged_and_nested_agree_with_each_sequence() -> None:
    theirs, ours = pair(num_layers=2, bidirectional=True)
    pieces = [torch.randn(n, 5) for n in (3, 7, 1)]
    expected = [theirs(piece) for piece in pieces]
    output, (h_n, c_n) = ours(Ragged.from_lengths(torch.cat(pieces), [3, 7, 1]))
    torch.testing.assert_close(output.values, torch.cat([y for y, _ in expected]))
    torch.testing.assert_close(h_n, torch.stack([h for _, (h, _) in expected], 1))
    torch.testing.assert_close(c_n, torch.stack([c for _, (_, c) in expected], 1))
    nested = torch.nested.nested_tensor(pieces, layout=torch.jagged, requires_grad=True)
    output, _ = ours(nested)
    assert output.is_nested
    torch.testing.assert_close(output.values(), torch.cat([y for y, _ in expected]))
    (output * output).values().sum().backward()
    assert nested.grad is not None


def test_empty_sequences_return_their_state() -> None:
    ours = LSTM(5, 7, bidirectional=True)
    h0, c0 = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7, requires_grad=True)
    _, (h_n, c_n) = ours(Ragged.from_lengths(torch.randn(4, 5), [0, 4, 0]), (h0, c0))
    assert torch.equal(h_n[:, [0, 2]], h0[:, [0, 2]])
    assert torch.equal(c_n[:, [0, 2]], c0[:, [0, 2]])
    (2 * h_n + 3 * c_n).sum().backward()
    assert (h0.grad[:, [0, 2]] == 2).all()
    assert (c0.grad[:, [0, 2]] == 3).all()


def test_autocast_stays_in_bfloat16() -> None:
    module = LSTM(5, 7, 2, bidirectional=True)
    batch = Ragged.from_lengths(torch.randn(9, 5), [4, 5])
    hx = torch.randn(4, 2, 7), torch.randn(4, 2, 7, requires_grad=True)
    seen = []
    with torch.autocast("cpu", torch.bfloat16), _Ops(seen):
        output, (h_n, _) = module(batch, hx)
    assert output.values.dtype == h_n.dtype == torch.bfloat16
    x, _, _, w_ih, _, _, _, _, h0, c0, *_ = seen[0]
    assert x.dtype == w_ih[0].dtype == h0.dtype == torch.bfloat16
    assert c0.dtype == torch.float32
    output.values.float().sum().backward()
    assert module.weight_hh_l0.grad.dtype == hx[1].grad.dtype == torch.float32
    expected = module(batch, hx)[0].values
    assert float((output.values.float() - expected).norm() / expected.norm()) < 1e-2
    with torch.autocast("cpu", torch.bfloat16):
        assert module.double()(Ragged.from_lengths(torch.randn(2, 5).double(), [2]))[0].values.dtype == torch.float64


class _Ops(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the arguments of the LSTM's operation."""

    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.penstock.lstm_layer.default:
            self.seen.append(args)
        return func(*args, **(kwargs or {}))


def test_cell_state_is_float32_from_the_function() -> None:
    module = LSTM(5, 7, dtype=torch.bfloat16)
    weights = [LayerWeights([module.weight_ih_l0], [module.weight_hh_l0], [], [], [])]
    x, cu_seqlens = torch.randn(4, 5, dtype=torch.bfloat16), torch.tensor([0, 4], dtype=torch.int32)
    y, h_n, c_n, cells = lstm(x, cu_seqlens, 4, weights, return_cells=True)
    assert (y.dtype, h_n.dtype) == (torch.bfloat16, torch.bfloat16)
    assert c_n.dtype == cells[0].dtype == torch.float32
    assert module(x)[1][1].dtype == torch.bfloat16


def test_dropout_depends_on_the_example_not_on_the_batch() -> None:
    module = LSTM(5, 8, 3, dropout=0.5, bidirectional=True, zoneout=0.2)
    seed = torch.tensor(2**62 + 12345)
    pieces = {7: torch.randn(3, 5), 8: torch.randn(0, 5), 2**40: torch.randn(6, 5), 5: torch.randn(2, 5)}

    def run(*ids: int) -> dict[int, Tensor]:
        lengths = [len(pieces[i]) for i in ids]
        batch = Ragged.from_lengths(torch.cat([pieces[i] for i in ids]), lengths, torch.tensor(ids))
        return dict(zip(ids, module(batch, seed=seed)[0].values.split(lengths), strict=True))

    together, alone = run(7, 8, 2**40, 5), run(2**40)
    torch.testing.assert_close(together[2**40], alone[2**40])
    torch.testing.assert_close(run(5, 7)[7], together[7])
    module.eval()
    assert not torch.allclose(run(7)[7], together[7])


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"weight_dropout": 0.5}, {"zoneout": 0.3}])
def test_dropout_follows_torchs_generator(options: dict) -> None:
    module = LSTM(5, 8, 2, **options)
    x = torch.randn(6, 2, 5)
    torch.manual_seed(1)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(1)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_variational_dropout_is_one_mask_per_sequence() -> None:
    module = LSTM(5, 8, 2, dropout=0.5, variational=True)
    for name, parameter in module.named_parameters():  # layer 1 passes on which of its inputs are zero
        nn.init.zeros_(parameter) if name.endswith("l1") else nn.init.ones_(parameter)
    nn.init.eye_(module.weight_ih_l1[16:24])
    batch = Ragged.from_lengths(torch.rand(9, 5), [4, 5])
    first, second = (module(batch)[0].values > 0).split([4, 5])
    assert (first == first[0]).all()
    assert (second == second[0]).all()
    assert not torch.equal(first[0], second[0])
    assert 0 < int(first[0].sum()) < 8


def test_weight_dropout_drops_weights() -> None:
    module = LSTM(3, 40, weight_dropout=0.25)
    dropped = module._layers(torch.tensor(3))[0].w_hh[0]
    share = float((dropped == 0).float().mean())
    assert 0.2 < share < 0.3
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (module.weight_hh_l0 / 0.75)[kept])


def test_zoneout_in_evaluation_is_the_expectation() -> None:
    module = LSTM(3, 4, zoneout=(1.0, 1.0)).eval()
    h0, c0 = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    _, (h_n, c_n) = module(torch.randn(5, 2, 3), (h0, c0))
    assert torch.equal(h_n, h0)
    assert torch.equal(c_n, c0)


def test_resets_and_cells_of_a_padded_batch() -> None:
    module = LSTM(3, 4, 2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 6, 3)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[0, 2] = resets[1, 5] = True
    output, _, cells = module(x, resets=resets, return_cells=True)
    torch.testing.assert_close(output[0], torch.cat([module(x[0, :2])[0], module(x[0, 2:])[0]]))
    torch.testing.assert_close(output[1], torch.cat([module(x[1, :5])[0], module(x[1, 5:])[0]]))
    assert [layer.shape for layer in cells] == [(2, 6, 8), (2, 6, 8)]
    time_first = LSTM(3, 4, 2, bidirectional=True)
    time_first.load_state_dict(module.state_dict())
    torch.testing.assert_close(time_first(x.transpose(0, 1), resets=resets.t())[0].transpose(0, 1), output)


PADDED, FLAGS = torch.randn(5, 2, 3), torch.arange(10).view(5, 2) % 4 == 1
IN_TURN = [torch.randn(n, 3) for n in (4, 1, 3)]
OF_EACH = [torch.arange(n) % 2 == 1 for n in (4, 1, 3)]


def jagged(pieces: list[Tensor]) -> Tensor:
    return torch.nested.nested_tensor(pieces, layout=torch.jagged)


def narrowed(padded: Tensor, starts: list[int], lengths: list[int]) -> Tensor:
    starts, lengths = torch.tensor(starts), torch.tensor(lengths)
    return torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)


NESTED, ROWS = jagged(IN_TURN), torch.randn(3, 6, 3)
# {form: (input, resets that are right, each sequence of input with its resets)}; whatever fits another is wrong here
RESETS: dict[str, tuple[Any, dict[str, Any], list[tuple[Tensor, Tensor]]]] = {
    "padded": (PADDED, {"(T, B)": FLAGS}, [(PADDED[:, b], FLAGS[:, b]) for b in range(2)]),
    "batch_first": (
        PADDED.transpose(0, 1),
        {"(B, T)": FLAGS.t()},
        [(PADDED[:, b], FLAGS[:, b]) for b in range(2)],
    ),
    "unbatched": (PADDED[:, 0], {"(T,)": FLAGS[:, 0]}, [(PADDED[:, 0], FLAGS[:, 0])]),
    "ragged": (
        Ragged.from_lengths(torch.cat(IN_TURN), [4, 1, 3]),
        {"(8,)": torch.cat(OF_EACH)},
        [*zip(IN_TURN, OF_EACH, strict=True)],
    ),
    "packed": (
        pack_sequence(IN_TURN, enforce_sorted=False),
        {"(8,) as packed": pack_sequence(OF_EACH, enforce_sorted=False).data},
        [*zip(IN_TURN, OF_EACH, strict=True)],
    ),
    "nested": (
        NESTED,
        {
            "(8,)": torch.cat(OF_EACH),
            "nested": jagged(OF_EACH),
            "nested, with input's offsets": torch.nested.nested_tensor_from_jagged(
                torch.cat(OF_EACH), NESTED.offsets()
            ),
            "nested, with int32 offsets": torch.nested.nested_tensor_from_jagged(
                torch.cat(OF_EACH), NESTED.offsets().int()
            ),
            "narrowed": narrowed(
                nn.utils.rnn.pad_sequence([*OF_EACH, torch.zeros(6, dtype=torch.bool)], batch_first=True)[:3],
                [0, 0, 0],
                [4, 1, 3],
            ),
        },
        [*zip(IN_TURN, OF_EACH, strict=True)],
    ),
    "narrowed": (
        narrowed(ROWS, [0, 2, 1], [4, 1, 3]),
        {"(8,)": torch.cat(OF_EACH), "nested": jagged(OF_EACH)},
        [*zip([ROWS[0, :4], ROWS[1, 2:3], ROWS[2, 1:4]], OF_EACH, strict=True)],
    ),
}


def each_sequence(form: str, output: Any) -> list[Tensor]:
    if isinstance(output, PackedSequence):
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        return [row[:n] for row, n in zip(padded, lengths, strict=True)]
    if isinstance(output, Ragged):
        return [*output.values.split(output.lengths.tolist())]
    if output.is_nested:
        return [*output.unbind()]
    return [output] if form == "unbatched" else [*output.unbind(0 if form == "batch_first" else 1)]


@as_subtests("form, resets", [(form, given) for form, (_, right, _) in RESETS.items() for given in right])
def test_resets_are_read_in_inputs_form(form: str, resets: str) -> None:
    x, right, expected = RESETS[form]
    module = LSTM(3, 4, bidirectional=True, batch_first=form == "batch_first")
    found = each_sequence(form, module(x, resets=right[resets])[0])
    for mine, (sequence, flags) in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, module(sequence, resets=flags)[0])
    with torch.no_grad():  # NestedTensors are not among what packed weights would refuse
        low = module.eval().prepare_inference(torch.bfloat16)(x, resets=right[resets])[0]
    for mine, other in zip(each_sequence(form, low), found, strict=True):
        torch.testing.assert_close(mine, other, atol=0.05, rtol=0)


def fits(resets: Tensor, right: Iterable[Tensor]) -> bool:
    if not resets.is_nested:
        return any(not each.is_nested and each.shape == resets.shape for each in right)
    jagged_rows = resets.layout == torch.jagged and resets.ndim == 2
    return jagged_rows and any(each.is_nested for each in right) and [len(row) for row in resets.unbind()] == [4, 1, 3]


def wrong_resets() -> list[tuple[str, Tensor]]:
    """For each form: what is right for others, and as many flags in other shapes."""
    shapes = [(10,), (1, 10), (10, 1), (5, 2, 1), (1, 5, 2), (8, 1), (1, 8), (7,), (9,), (5, 1), (1, 5), (), (0,), (3,)]
    lengths = [1, 4, 3], [4, 1, 2, 1], [8]
    every = [torch.zeros(shape, dtype=torch.bool) for shape in shapes]
    every += [jagged([torch.zeros(n, dtype=torch.bool) for n in each]) for each in lengths]
    every += [jagged([flags[:, None] for flags in OF_EACH]), torch.nested.nested_tensor(OF_EACH)]
    every += [given for _, right, _ in RESETS.values() for given in right.values()]
    return [
        (form, given) for form, (_, right, _) in RESETS.items() for given in every if not fits(given, right.values())
    ]


@as_subtests("form, resets", wrong_resets())
def test_resets_of_another_form_are_refused(form: str, resets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^resets must .*, got ") as caught:
        LSTM(3, 4, batch_first=form == "batch_first")(RESETS[form][0], resets=resets)
    assert "\n" not in str(caught.value)


@as_subtests("form", RESETS)
def test_resets_are_a_tensor(form: str) -> None:
    packed = pack_sequence(OF_EACH, enforce_sorted=False)
    for wrong in (FLAGS.tolist(), packed, True, 3):
        with pytest.raises(TypeError, match="resets must be a tensor"):
            LSTM(3, 4, batch_first=form == "batch_first")(RESETS[form][0], resets=wrong)


def test_many_resets_of_other_lengths_make_a_short_message() -> None:
    with pytest.raises(ValueError, match=r"got .* and so on") as caught:
        LSTM(3, 4)(jagged([torch.randn(n + 1, 3) for n in range(99)]), resets=jagged([torch.ones(50) > 0] * 99))
    assert len(str(caught.value)) < 200


def test_distributed_data_parallel_and_checkpointing(tmp_path) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        module = LSTM(5, 7, 2, bidirectional=True)
        parallel = DistributedDataParallel(module)
        batch = Ragged.from_lengths(torch.randn(6, 5), [4, 2])
        parallel(batch)[0].values.sum().backward()
        grads = [p.grad.clone() for p in module.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    module.zero_grad()
    output = torch.utils.checkpoint.checkpoint(lambda: module(batch)[0].values, use_reentrant=False)
    output.sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, module.parameters(), strict=True))


def test_parametrized_weights() -> None:
    module = nn.utils.parametrizations.weight_norm(LSTM(5, 7), "weight_hh_l0")
    module(torch.randn(3, 2, 5))[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original0.grad is not None


@pytest.mark.parametrize("inside", ["both", "backward"])
def test_autocast_rounds_no_gradient_that_is_differentiated_again(inside: str) -> None:
    module = LSTM(3, 4, bidirectional=True)
    batch = Ragged.from_lengths(torch.randn(5, 3, requires_grad=True), [2, 3])

    def gradient(forward: bool, backward: bool, create_graph: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            loss = module(batch)[0].values.square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(loss, batch.values, create_graph=create_graph)[0].detach()

    forward = inside == "both"
    assert torch.equal(gradient(forward, True, True), gradient(forward, False, True))
    torch.testing.assert_close(
        gradient(forward, True, True), gradient(forward, False, False), rtol=0, atol=2e-2 if forward else 1e-6
    )


def test_double_backward() -> None:
    module = LSTM(3, 4, 2, bidirectional=True).double()
    batch = Ragged.from_lengths(torch.randn(5, 3, dtype=torch.float64, requires_grad=True), [2, 3])
    grads = torch.autograd.grad(module(batch)[0].values.square().sum(), batch.values, create_graph=True)
    grads[0].square().sum().backward()
    assert all(float(p.grad.norm()) > 0 for p in module.parameters())


PIECES, ZERO = [torch.randn(2, 4), torch.randn(3, 4)], torch.zeros(1, 4)
ERRORS = [
    (lambda: LSTM(0, 4), ValueError, "input_size"),
    (lambda: LSTM(4, 0), ValueError, "hidden_size"),
    (lambda: LSTM(4, 4, zoneout=1.5), ValueError, "zoneout"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 5)), ValueError, "input"),
    (lambda: LSTM(4, 4)(torch.randn(3)), ValueError, "input"),
    (lambda: LSTM(4, 4)([1, 2]), TypeError, "input"),
    (lambda: LSTM(4, 4)(torch.nested.nested_tensor(PIECES, layout=torch.jagged).transpose(1, 2)), ValueError, "input"),
    (lambda: LSTM(4, 4)(torch.nested.nested_tensor(PIECES)), ValueError, "input"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 4).double()), TypeError, "w_ih"),
    (lambda: LSTM(4, 4)(torch.randn(3, 4).half()), TypeError, r"w_ih must be torch.float16, .*: x is torch.float16"),
    (lambda: LSTM(4, 4).half()(torch.randn(3, 4)), TypeError, r"w_ih must be torch.float32, .*: x is torch.float32"),
    (lambda: LSTM(4, 4)(torch.ones(2, 3, 4, dtype=torch.int32)), TypeError, "x"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 4), (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4))), ValueError, "h0"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 4), (torch.zeros(1, 3, 4), torch.zeros(1, 3, 5))), ValueError, "c0"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 4), (torch.zeros(3, 4), torch.zeros(3, 4))), ValueError, "hx"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 4), resets=torch.zeros(2, 2, dtype=torch.bool)), ValueError, "resets"),
    (lambda: LSTM(4, 4)(torch.randn(2, 3, 4, device="meta")), ValueError, "w_ih"),
    (lambda: LSTM(4, 4)(torch.randn(3, 4), (ZERO, ZERO.double())), TypeError, r"c0 must be torch\.float32, got"),
    (lambda: nested([0, 2, 2**32 + 5]), ValueError, "cu_seqlens"),
    (lambda: nested([2**32, 2, 5]), ValueError, "cu_seqlens"),
    (lambda: nested([0, 2**32 + 2, 5]), ValueError, "cu_seqlens"),
    (lambda: nested([0.0, 2.7, 5.0]), TypeError, "offsets must be integers"),
    (lambda: ragged([0, 2, 1, 4]), ValueError, "cu_seqlens"),
    (lambda: ragged([0, 2, 5]), ValueError, "cu_seqlens"),
    (lambda: ragged([1, 4]), ValueError, "cu_seqlens"),
    (lambda: ragged([0, 4], max_seqlen=3), ValueError, "max_seqlen"),
    (lambda: ragged([[0, 4]]), ValueError, "cu_seqlens"),
    (lambda: ragged([]), ValueError, "cu_seqlens"),
    (lambda: ragged([0, 4], dtype=torch.int64), TypeError, "cu_seqlens"),
    (lambda: ragged([0, 4], ids=torch.zeros(2, dtype=torch.int64)), ValueError, "ids"),
]


def nested(offsets: list) -> object:
    return LSTM(4, 4)(torch.nested.nested_tensor_from_jagged(torch.randn(5, 4), torch.tensor(offsets), max_seqlen=5))


def ragged(bounds: list, max_seqlen: int = 4, dtype: torch.dtype = torch.int32, ids: Tensor | None = None) -> object:
    return LSTM(4, 4)(Ragged(torch.randn(4, 4), torch.tensor(bounds, dtype=dtype), max_seqlen, ids))


@as_subtests("call, error, name", ERRORS)
def test_errors_name_the_argument(call, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_unservable_backend_says_why() -> None:
    with use_backend("cuda"), pytest.raises(RuntimeError, match="cuda"):
        LSTM(4, 4)(torch.randn(2, 3, 4))
