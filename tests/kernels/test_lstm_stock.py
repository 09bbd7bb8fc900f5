"""`LSTM` where tools expect torch.nn.LSTM: tracing, ONNX, quantization, parametrizations, pruning, copies."""

import copy
import importlib.util
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from subtested import as_subtests
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from penstock.kernels import LSTM, Ragged

OPTIONS = [
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "proj_size": 3},
]
WITHOUT_PROJECTION = OPTIONS[:3]
BEYOND = [
    ({"zoneout": 0.1}, "zoneout"),
    ({"weight_dropout": 0.2}, "weight_dropout"),
    ({"num_layers": 2, "dropout": 0.2, "variational": True}, "variational"),
]


def flat(result: Any) -> list[Tensor]:
    y, (h, c) = result
    return [y.data if isinstance(y, PackedSequence) else y, h, c]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(flat(found), flat(expected), atol=1e-5, rtol=1e-4)


def test_is_an_rnn_that_torch_compiles() -> None:
    """torch.compile refuses every nn.LSTM by isinstance: that is why this is none."""
    module = LSTM(5, 7, 2, True, True, 0.1, True, 3)
    assert isinstance(module, nn.RNNBase)
    assert isinstance(module.to_torch(), nn.LSTM)
    if isinstance(module, nn.LSTM):
        torch.compile(module, fullgraph=True, backend="eager")(torch.randn(2, 3, 5))
    assert repr(module) == repr(nn.LSTM(5, 7, 2, True, True, 0.1, True, 3))
    assert list(module.state_dict()) == list(nn.LSTM(5, 7, 2, True, True, 0.1, True, 3).state_dict())


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", OPTIONS)
def test_to_torch(options: dict) -> None:
    module = LSTM(5, 7, **options)
    module.weight_hh_l0.requires_grad_(False)
    state = torch.get_rng_state()
    stock = module.to_torch()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(stock) is nn.LSTM
    assert stock.training
    assert [p.requires_grad for p in stock.parameters()] == [p.requires_grad for p in module.parameters()]
    x = torch.randn(4, 6, 5)
    close(stock(x), module(x))
    stock.weight_ih_l0.data.zero_()
    assert bool((module.weight_ih_l0 != 0).any())
    assert not module.eval().to_torch().training
    assert module.double().to_torch().weight_hh_l0.dtype == torch.float64


@as_subtests("options, name", BEYOND)
def test_to_torch_refuses_what_torch_has_not(options: dict, name: str) -> None:
    module, x = LSTM(5, 7, **options), torch.randn(4, 2, 5)
    for call in (module.to_torch, lambda: torch.jit.trace(module, (x,), check_trace=False)):
        with pytest.raises(ValueError, match=name):
            call()
    module.eval()
    if name == "zoneout":  # its expectation stays
        with pytest.raises(ValueError, match=name):
            module.to_torch()
    else:
        close(module.to_torch()(x), module(x))


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore::DeprecationWarning")
@pytest.mark.parametrize("options", OPTIONS)
def test_trace(options: dict) -> None:
    module = LSTM(5, 7, **options).eval()
    directions = 2 if options.get("bidirectional") else 1
    layers = options.get("num_layers", 1) * directions
    width = options.get("proj_size", 7)
    traced = torch.jit.trace(module, (torch.randn(4, 6, 5),))
    x = torch.randn(3, 3, 5)
    close(traced(x), module(x))
    states = torch.randn(layers, 3, width), torch.randn(layers, 3, 7)
    close(torch.jit.trace(module, (x, states))(x, states), module(x, states))
    states = torch.randn(layers, width), torch.randn(layers, 7)
    close(torch.jit.trace(module, (x[0], states))(x[0], states), module(x[0], states))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::lstm" in kinds
    assert not any(kind.startswith("penstock") for kind in kinds)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    close(torch.jit.load(file)(x), module(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trace_of_packed_input() -> None:
    module = LSTM(5, 7, 2, bidirectional=True).eval()

    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.lstm(pack_sequence([a, b], enforce_sorted=False))[1][0]

    a, b = torch.randn(2, 5), torch.randn(4, 5)
    traced = torch.jit.trace(Packs(), (a, b))
    torch.testing.assert_close(traced(a + 1, b), Packs()(a + 1, b))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trace_refuses_what_is_ours_alone() -> None:
    module, x = LSTM(5, 7), torch.randn(3, 2, 5)
    ours = Ragged.from_lengths(torch.randn(3, 5), [1, 2])
    for call in (
        lambda: torch.jit.trace(lambda x: module(x, return_cells=True)[0], (x,)),
        lambda: torch.jit.trace(lambda x: module(x, resets=torch.zeros(3, 2, dtype=torch.bool))[0], (x,)),
    ):
        with pytest.raises(ValueError, match="torch's own LSTM, which has no"):
            call()
    with pytest.raises(TypeError, match="padded"):
        torch.jit.trace(lambda x: module(ours.with_values(x))[0].values, (ours.values,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_says_what_to_do() -> None:
    model = nn.Sequential(LSTM(5, 7))
    with pytest.raises(RuntimeError, match="to_torch"):
        torch.jit.script(model)
    assert type(model[0]) is LSTM
    torch.jit.script(nn.Sequential(model[0].to_torch()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", [{nn.LSTM}, {LSTM}, {nn.Linear}, {"0": torch.ao.quantization.default_dynamic_qconfig}])
def test_quantize_dynamic_says_what_to_do(what: Any) -> None:
    model = nn.Sequential(LSTM(5, 7), nn.Linear(7, 3))
    with pytest.warns(UserWarning, match="to_torch"):
        found = torch.ao.quantization.quantize_dynamic(model, what)
    assert type(found[0]) is LSTM
    assert type(found[1]) is (torch.ao.nn.quantized.dynamic.Linear if nn.Linear in what else nn.Linear)
    assert type(model[0]) is LSTM
    model[0] = model[0].to_torch()
    assert isinstance(torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})[0], torch.ao.nn.quantized.dynamic.LSTM)


@pytest.mark.slow
@pytest.mark.parametrize("options", WITHOUT_PROJECTION)
def test_onnx(options: dict, tmp_path) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    import onnxruntime

    module = LSTM(5, 7, **options).eval()

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            return tuple(flat(self.lstm(x, (h, c))))

    def arguments(batch: int, time: int) -> tuple[Tensor, ...]:
        layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        shape = (batch, time, 5) if options.get("batch_first") else (time, batch, 5)
        return torch.randn(shape), torch.randn(layers, batch, 7), torch.randn(layers, batch, 7)

    batch, time = (
        ({0: "batch", 1: "time"}, {1: "batch"})
        if options.get("batch_first")
        else ({0: "time", 1: "batch"}, {1: "batch"})
    )
    program = torch.onnx.export(
        Flat().eval(), arguments(4, 6), dynamo=True, dynamic_shapes=(batch, time, time), verbose=False
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = arguments(3, 9)
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    for one, other in zip(found, Flat()(*given), strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-5)
    assert [node.op_type for node in program.model.graph].count("LSTM") == module.num_layers


def test_onnx_operator_is_what_is_recorded(monkeypatch) -> None:
    """Without an exporter: the operator's inputs, one for each layer, and what is refused with its reason."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    module = LSTM(5, 7, 2, bidirectional=True).eval()
    program = torch.export.export(module, (torch.randn(6, 4, 5),), strict=False)
    nodes = [node for node in program.graph.nodes if "onnx" in str(node.target)]
    assert len(nodes) == 2
    assert not any("penstock" in str(node.target) for node in program.graph.nodes)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # as it is in every export
    for options, training in [
        ({"proj_size": 3}, False),
        ({"num_layers": 2, "dropout": 0.1}, True),
        *((o, True) for o, _ in BEYOND),
    ]:
        with pytest.warns(UserWarning, match="cannot write"), pytest.raises(ValueError):
            LSTM(5, 7, **options).train(training)(torch.randn(6, 4, 5))
    with pytest.warns(UserWarning, match="cannot write"), pytest.raises(TypeError, match="padded"):
        module(Ragged.from_lengths(torch.randn(3, 5), [1, 2]))


def weight_norm(module: nn.Module) -> None:
    parametrizations.weight_norm(module, "weight_hh_l0")


def spectral_norm(module: nn.Module) -> None:
    parametrizations.spectral_norm(module.eval(), "weight_ih_l0")


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(module: nn.Module) -> None:
    nn.utils.parametrize.register_parametrization(module, "bias_ih_l0", Doubled())


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [weight_norm, spectral_norm, parametrized, pruned])
def test_changed_weights_are_the_ones_that_run(change: Any) -> None:
    module, x = LSTM(5, 7).eval(), torch.randn(4, 2, 5)
    before = module(x)[0]
    change(module)
    assert isinstance(module, nn.RNNBase)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    for hook in module._forward_pre_hooks.values():  # pruning applies its mask in one
        hook(module, ())
    stock = module.to_torch()
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert torch.equal(getattr(stock, name), getattr(module, name))
    close(module(x), stock(x))
    close(torch.jit.trace(module, (x,))(x), stock(x))
    assert not torch.allclose(module(x)[0], before)
    module(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_parameters_as_a_vector() -> None:
    module, other = LSTM(5, 7, 2), LSTM(5, 7, 2)
    vector = nn.utils.parameters_to_vector(module.parameters())
    assert torch.equal(vector, nn.utils.parameters_to_vector(module.to_torch().parameters()))
    nn.utils.vector_to_parameters(vector, other.parameters())
    x = torch.randn(4, 2, 5)
    close(other(x), module(x))


def test_copies() -> None:
    module, x = LSTM(5, 7, 2, dropout=0.1, zoneout=0.2, weight_dropout=0.1).eval(), torch.randn(4, 2, 5)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert type(twin) is LSTM
        close(twin(x), module(x))
