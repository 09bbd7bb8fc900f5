"""Weights that stay packed between calls: the same answers, from the weights that the module has at that moment."""

import copy
import io
import itertools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from kernel_cases import codes, has_code, isas, on_threads, pairwise
from subtested import as_subtests
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from penstock import _native
from penstock.kernels import LSTM, Ragged, use_backend
from penstock.kernels.lstm import cpu
from penstock.kernels.lstm.packed import Prepared

ISAS, CODES = isas("lstm"), codes("lstm")
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = {
    "one step": ([1], 3, 1, {}),
    "odd": ([3, 0, 11, 1], 5, 7, {"bidirectional": True}),
    "layers": ([9, 2], 33, 20, {"num_layers": 3, "bidirectional": True}),
    "no bias": ([4, 5, 6], 8, 24, {"bias": False}),
    "wide": ([2, 3], 1100, 130, {"bidirectional": True}),
    "many": ([i % 5 for i in range(40)], 16, 16, {"num_layers": 2}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def module_of(shape: str, dtype: torch.dtype = torch.float32) -> LSTM:
    _, input_size, hidden_size, options = SHAPES[shape]
    torch.manual_seed(0)
    return LSTM(input_size, hidden_size, **options).to(dtype).eval()


def batch_of(shape: str, dtype: torch.dtype = torch.float32) -> Ragged:
    lengths, input_size, *_ = SHAPES[shape]
    torch.manual_seed(1)
    return Ragged.from_lengths(torch.randn(sum(lengths), input_size).to(dtype), lengths)


def states_of(module: LSTM, batch: Ragged, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h0, c0 = torch.rand(2, rows, batch.batch_size, module.hidden_size) * 2 - 1
    return h0.to(dtype), c0.to(dtype)


def answers(module: LSTM, batch: Ragged, **options: Any) -> list[Tensor]:
    """Everything that a call returns."""
    with torch.no_grad():
        output, states, *cells = module(batch, **options)
    return [
        output if options.get("pooling") else output.values,
        *states,
        *(layer.values for of_layers in cells for layer in of_layers),
    ]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def uses_packed(module: LSTM, batch: Ragged, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[bool]:
    """Whether each call of the C++ forward was given packed weights."""
    given: list[bool] = []

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            return getattr(_native.lstm_cpu, name)

        def forward(self, **arguments: Any) -> None:
            given.append(arguments["packed"] is not None)
            _native.lstm_cpu.forward(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "native", Recorded())
        module(batch, **options)
    return given


CALLS: list[dict[str, Any]] = [{}, {"states": True}, {"return_cells": True}, {"resets": True, "states": True}]


@pairwise(
    {"isa": ISAS, "dtype": DTYPES, "shape": list(SHAPES), "call": CALLS, "pooling": [None, "max", "mean"]},
    has_code("lstm"),
)
def test_the_same_bits(isa, dtype, shape, call, pooling, uninitialised_is_nan) -> None:
    module, batch = module_of(shape, dtype), batch_of(shape, dtype)
    options: dict[str, Any] = {**call, "pooling": pooling}
    if options.pop("states", None):
        options["hx"] = states_of(module, batch, dtype)
    if options.pop("resets", None):
        options["resets"] = torch.arange(batch.values.shape[0]) % 3 == 1
    expected = answers(module, batch, **options)
    for _ in range(2):  # packed by the first call for nothing
        found = answers(module.prepare_inference(), batch, **options)
        assert_equal(found, expected)
        assert not any(value.isnan().any() for value in found)


@pairwise({"isa, dtype": CODES, "table": DTYPES}, lambda isa, dtype, table: table in (torch.float32, dtype))
def test_embeddings(isa, dtype, table) -> None:
    module = module_of("layers", dtype)
    rows, ids = torch.randn(12, module.input_size).to(table), torch.randint(12, (14,))
    options = {"embeddings": rows, "pooling": "max"}
    batch = Ragged.from_lengths(ids, [5, 0, 9])
    expected = answers(module, batch, **options)
    assert_equal(answers(module.prepare_inference(), batch, **options), expected)


@pytest.mark.parametrize("form", ["padded", "unbatched", "packed sequence", "nested"])
def test_forms(form: str) -> None:
    module = module_of("odd")
    pieces = [torch.randn(n, 5) for n in (4, 2)]
    x: Any = {
        "padded": torch.randn(4, 3, 5),
        "unbatched": torch.randn(4, 5),
        "packed sequence": nn.utils.rnn.pack_sequence(pieces),
        "nested": torch.nested.nested_tensor(pieces, layout=torch.jagged),
    }[form]

    def values() -> Tensor:
        with torch.inference_mode():
            y = module(x)[0]
        return y.data if form == "packed sequence" else y.values() if form == "nested" else y

    expected = values()
    module.prepare_inference()
    assert torch.equal(values(), expected)


@pairwise({"isa, dtype": CODES, "threads": [2, 5]})
def test_threads(isa, dtype, threads, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "worth_threads", 0)
    for shape in ("many", "wide", "odd"):
        module, batch = module_of(shape, dtype), batch_of(shape, dtype)
        expected = answers(module, batch)
        for found in on_threads([1, threads], lambda m=module, b=batch: answers(m.prepare_inference(), b)):
            assert_equal(found, expected)


@as_subtests("dtype, autocast", itertools.product([None, torch.bfloat16, torch.int8], [False, True]))
def test_another_thread_in_another_dtype_has_its_turn(dtype, autocast: bool, monkeypatch) -> None:
    """Whenever this thread has touched what is shared, the weights as a call used them last, the other one calls."""
    module, batch = module_of("layers").prepare_inference(dtype), batch_of("layers")
    this, turns = threading.get_ident(), []

    def call(autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return answers(module, batch)

    expected, of_other = call(autocast), call(not autocast)

    def let_the_other_call() -> None:
        if threading.get_ident() == this:
            with ThreadPoolExecutor(1) as pool:
                turns.append(pool.submit(call, not autocast).result())

    def get(prepared: Prepared) -> Any:
        found = vars(prepared)["packed"]
        let_the_other_call()
        return found

    def put(prepared: Prepared, packed: Any) -> None:
        vars(prepared)["packed"] = packed
        let_the_other_call()

    monkeypatch.setattr(Prepared, "packed", property(get, put), raising=False)
    for _ in range(2):
        assert_equal(call(autocast), expected)
    assert len(turns) >= 2
    for found in turns:
        assert_equal(found, of_other)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("embedded", [False, True])
def test_in_bfloat16(autocast: bool, embedded: bool) -> None:
    """It computes what the layers do in bfloat16 and returns the dtype of before."""
    module, batch, options = module_of("layers"), batch_of("layers"), {}
    low, states = copy.deepcopy(module).bfloat16(), states_of(module, batch, torch.bfloat16)
    inputs = batch.with_values(batch.values.bfloat16())
    if embedded:
        inputs = batch = Ragged.from_lengths(torch.randint(9, (11,)), [9, 2])
        options = {"embeddings": torch.randn(9, 33)}
    expected = answers(low, inputs, hx=states, return_cells=True, **options)
    module.prepare_inference(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = answers(module, batch, hx=tuple(s.float() for s in states), return_cells=True, **options)
    for mine, theirs in zip(found, expected, strict=True):  # of which c_n is rounded
        assert torch.equal(mine.to(theirs.dtype), theirs)
    assert found[0].dtype == (torch.bfloat16 if autocast else torch.float32)


def test_autocast_packs_what_it_casts(monkeypatch) -> None:
    module, batch = module_of("layers"), batch_of("layers")
    for _ in range(2):
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                expected = answers(module, batch)
                with torch.no_grad():
                    assert all(uses_packed(module.prepare_inference(), batch, monkeypatch))
                assert_equal(answers(module, batch), expected)
                module.train().eval()
    module.prepare_inference()  # outside autocast, then used inside
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(module, batch)
        assert_equal(found, answers(module.train().eval(), batch))


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def step_of(optimizer: type, **options: Any) -> Callable[[LSTM], None]:
    def step(module: LSTM) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(module.parameters(), lr=0.1, **options).step()

    return step


def other_weights(module: LSTM) -> dict[str, Tensor]:
    return {name: tensor + 0.25 for name, tensor in module.state_dict().items()}


def replaced(module: LSTM) -> None:
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 2)


def swapped_back_and_forth(module: LSTM) -> None:
    """The address of memory that was freed may be that of the packed weights, were these not kept."""
    before = module.weight_hh_l0.data
    for _ in range(20):
        module.weight_hh_l0.data = torch.randn_like(before)


def normalised(module: LSTM) -> None:
    parametrizations.weight_norm(module, "weight_hh_l0")
    module.parametrizations.weight_hh_l0.original0.mul_(3)


def doubled(module: LSTM) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector * 2, module.parameters())


def averaged(module: LSTM) -> None:
    """As exponential moving averages of weights are put in place."""
    for parameter in module.parameters():
        parameter.data.copy_(parameter.data * 0.9 + 0.01)


def without_gradient(change: Callable[[LSTM], Any]) -> Callable[[LSTM], None]:
    def run(module: LSTM) -> None:
        with torch.no_grad():
            change(module)

    return run


CHANGES: dict[str, Callable[[LSTM], Any]] = {
    "SGD": step_of(torch.optim.SGD),
    "AdamW, fused": step_of(torch.optim.AdamW, fused=True),
    "AdamW, one by one": step_of(torch.optim.AdamW, foreach=False),
    "in place": without_gradient(lambda m: m.weight_ih_l0.mul_(1.5)),
    "one element": without_gradient(lambda m: m.weight_hh_l0[3, 5].add_(1.0)),
    "a view": without_gradient(lambda m: m.weight_hh_l0.view(-1)[7:9].zero_()),
    "copy_": without_gradient(lambda m: m.weight_hh_l0.copy_(torch.randn_like(m.weight_hh_l0))),
    "a bias": without_gradient(lambda m: m.bias_hh_l0.add_(1.0)),
    "detached": lambda m: m.weight_hh_l0.detach().mul_(2),
    "init": lambda m: nn.init.orthogonal_(m.weight_hh_l0),
    "reset_parameters": lambda m: m.reset_parameters(),
    "data": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data * 2),
    "data, often": swapped_back_and_forth,
    "data in place": lambda m: m.weight_hh_l0.data.mul_(2),
    "data clamped": lambda m: m.weight_ih_l0.data.clamp_(-0.01, 0.01),
    "averages": averaged,
    "NumPy": lambda m: m.weight_hh_l0.detach().numpy().__imul__(2),
    "another parameter": replaced,
    "load_state_dict": lambda m: m.load_state_dict(other_weights(m)),
    "load_state_dict, assigned": lambda m: m.load_state_dict(other_weights(m), assign=True),
    "to": lambda m: m.to(torch.bfloat16),
    "parametrization": lambda m: nn.utils.parametrize.register_parametrization(m, "weight_hh_l0", Double()),
    "weight_norm": without_gradient(normalised),
    "pruning": lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.5),
    "pruned for good": lambda m: prune.remove(prune.random_unstructured(m, "weight_hh_l0", 0.5), "weight_hh_l0"),
    "vector_to_parameters": doubled,
    "share_memory": lambda m: m.share_memory().weight_hh_l0.data.mul_(2),
    "clipped": without_gradient(lambda m: [p.clamp_(-0.05, 0.05) for p in m.parameters()]),
}


@as_subtests("change", CHANGES)
def test_never_an_answer_from_weights_that_changed(change: str) -> None:
    module = module_of("layers")
    batch = batch_of("layers")
    before = answers(module.prepare_inference(), batch)
    CHANGES[change](module)
    batch = batch.with_values(batch.values.to(next(module.parameters()).dtype))
    found = answers(module, batch)
    again = answers(module, batch)
    expected = answers(copy.deepcopy(module).train().eval(), batch)
    assert not torch.equal(found[0].float(), before[0])
    assert_equal(found, expected)
    assert_equal(again, expected)


@as_subtests("change", ["in place", "SGD", "data in place", "averages"])
def test_what_changed_is_packed_once(change: str, monkeypatch) -> None:
    module, batch = module_of("layers").prepare_inference(), batch_of("layers")
    CHANGES[change](module)
    with torch.no_grad():
        assert uses_packed(module, batch, monkeypatch) == [True] * 3
        packed = module.prepared.packed
        assert uses_packed(module, batch, monkeypatch) == [True] * 3
    assert module.prepared.packed is packed


def saved_and_loaded(module: LSTM) -> LSTM:
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


UNDOING: dict[str, Callable[[LSTM], LSTM]] = {
    "train": lambda m: m.train().eval(),
    "a parent's train": lambda m: nn.Sequential(m).train()[0].eval(),
    "load_state_dict": lambda m: (m.load_state_dict(m.state_dict()), m)[1],
    "a parent's load_state_dict": lambda m: (nn.Sequential(m).load_state_dict(nn.Sequential(m).state_dict()), m)[1],
    "to": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "half": lambda m: m.half().float(),
    "cpu": lambda m: m.cpu(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": saved_and_loaded,
}


@as_subtests("undoing", UNDOING)
def test_undone(undoing: str) -> None:
    module = module_of("odd").prepare_inference()
    assert "prepared=float32" in repr(module)
    after = UNDOING[undoing](module)
    assert after.prepared is None
    assert "prepared" not in repr(after)
    if "copy" in undoing or undoing in ("pickle", "torch.save"):
        assert module.prepared is not None
    answers(after, batch_of("odd"))


def test_stays_through_eval_and_many_calls(monkeypatch) -> None:
    module, batch = module_of("odd").prepare_inference(), batch_of("odd")
    packed = module.prepared.packed
    assert packed.bytes > sum(p.numel() * 4 for p in module.parameters() if p.ndim == 2)
    for _ in range(3):
        answers(module.eval().requires_grad_(False), batch)
    assert module.prepared.packed is packed
    assert uses_packed(module, batch, monkeypatch) == [True]


def test_another_instruction_set_is_another_packing(monkeypatch) -> None:
    module, batch = module_of("odd").prepare_inference(), batch_of("odd")
    for isa in ISAS:
        monkeypatch.setenv("PENSTOCK_ISA", isa)
        found = answers(module, batch)
        assert module.prepared.packed.layers[0].isa == isa
        assert_equal(found, answers(copy.deepcopy(module), batch))


WITH_GRADIENTS: dict[str, Callable[[LSTM, Ragged], Any]] = {
    "weights": lambda m, b: m(b),
    "x": lambda m, b: m.requires_grad_(False)(b.with_values(b.values.clone().requires_grad_())),
    "states": lambda m, b: m.requires_grad_(False)(
        b, tuple(s.clone().requires_grad_() for s in states_of(m, b, torch.float32))
    ),
    "embeddings": lambda m, b: m.requires_grad_(False)(
        b.with_values(torch.zeros(b.values.shape[0], dtype=torch.int32)),
        embeddings=torch.randn(3, 5, requires_grad=True),
    ),
}


@as_subtests("wanted", WITH_GRADIENTS)
def test_gradients_take_the_weights_themselves(wanted: str, monkeypatch) -> None:
    call = WITH_GRADIENTS[wanted]
    module, batch = module_of("odd").prepare_inference(), batch_of("odd")
    stock = module_of("odd")
    torch.manual_seed(5)
    output = call(module, batch)[0].values
    torch.manual_seed(5)
    assert torch.equal(output, call(stock, batch)[0].values)
    output.sum().backward()
    module = module_of("odd").prepare_inference(torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"prepared to answer in bfloat16.*records gradients"):
        call(module, batch)


def compiled_call(module: LSTM, batch: Ragged) -> Tensor:
    return torch.compile(lambda x: module(x)[0], backend="eager")(batch.values[:, None])


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def watched_call(module: LSTM, batch: Ragged) -> Tensor:
    with Watching():
        return module(batch.values[:, None])[0]


WATCHED: dict[str, Callable[[LSTM, Ragged], Tensor]] = {
    "jit.trace": lambda m, b: torch.jit.trace(m, b.values[:, None], check_trace=False)(b.values[:, None])[0],
    "compile": compiled_call,
    "vmap": lambda m, b: torch.vmap(lambda x: m(x[:, None])[0])(b.values[None])[0],
    "a mode": watched_call,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@as_subtests("how", WATCHED)
def test_who_watches_sees_the_weights(how: str) -> None:
    module, batch = module_of("odd").prepare_inference(), batch_of("odd")
    with torch.no_grad():
        torch.testing.assert_close(WATCHED[how](module, batch), module(batch.values[:, None])[0])
        module.prepare_inference(torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"prepared to answer in bfloat16.*traced"):
            WATCHED[how](module, batch)


def test_another_backend_takes_the_weights_themselves() -> None:
    module, batch = module_of("odd").prepare_inference(), batch_of("odd")
    with use_backend("reference"):
        assert_equal(answers(module, batch), answers(copy.deepcopy(module), batch))
        with pytest.raises(RuntimeError, match=r"bfloat16.*the backend is reference"):
            answers(module_prepared_in_bfloat16(), batch)


def module_prepared_in_bfloat16() -> LSTM:
    with use_backend(None):
        return module_of("odd").prepare_inference(torch.bfloat16)


def with_inference_weights() -> LSTM:
    with torch.inference_mode():
        return LSTM(5, 7)


REFUSED: dict[str, tuple[Callable[[], LSTM], str]] = {
    "zoneout": (lambda: LSTM(5, 7, zoneout=0.1), "it has no zoneout"),
    "projection": (lambda: LSTM(5, 7, proj_size=3), "no projection"),
    "float64": (lambda: LSTM(5, 7).double(), "dtype is torch.float64"),
    "float16": (lambda: LSTM(5, 7).half(), "dtype is torch.float16"),
    "meta": (lambda: LSTM(5, 7, device="meta"), "tensors are on meta"),
    "parametrized": (
        lambda: parametrizations.weight_norm(LSTM(5, 7), "weight_hh_l0"),
        "a weight is no parameter but computed",
    ),
    "pruned": (lambda: prune.random_unstructured(LSTM(5, 7), "weight_ih_l0", 0.5), "a weight is no parameter"),
    "inference": (with_inference_weights, "inference_mode"),
}


@as_subtests("what", REFUSED)
def test_refused(what: str) -> None:
    make, reason = REFUSED[what]
    module = make().eval()
    with pytest.raises(ValueError, match=f"prepare_inference packs no weights here: .*{reason}"):
        module.prepare_inference()
    assert module.prepared is None


def test_refused_in_training_and_of_other_dtypes() -> None:
    module = LSTM(5, 7)
    with pytest.raises(RuntimeError, match="call eval\\(\\) first"):
        module.prepare_inference()
    for dtype in (torch.float16, torch.float32, torch.int32, "int8"):
        with pytest.raises(ValueError, match=r"prepare_inference takes None, torch.bfloat16"):
            module.eval().prepare_inference(dtype)


def watched_functions(module: LSTM, batch: Ragged) -> Tensor:
    class Looking(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with torch.device("cpu"), Looking(), torch.device("cpu"):
        return module(batch)[0].values


@as_subtests("dtype", [None, torch.bfloat16, torch.int8])
def test_a_default_device_is_no_mode_that_watches(dtype, monkeypatch) -> None:
    module, batch = module_of("odd").prepare_inference(dtype), batch_of("odd")
    expected = answers(module, batch)
    for device in ("cpu", "meta"):
        with torch.device(device), torch.device("cpu"), torch.no_grad():
            assert_equal(answers(module, batch), expected)
            assert uses_packed(module, batch, monkeypatch) == [True]
        torch.set_default_device(device)
        try:
            assert_equal(answers(module, batch), expected)
        finally:
            torch.set_default_device(None)
    with torch.no_grad():
        if dtype is None:
            assert torch.equal(watched_functions(module, batch), expected[0])
        else:
            with pytest.raises(RuntimeError, match="watched by a mode of torch"):
                watched_functions(module, batch)


@as_subtests("wrong", ["x", "h0", "features"])
def test_the_errors_of_a_call_are_those_of_before(wrong: str) -> None:
    batch = batch_of("odd")
    hx = states_of(module_of("odd"), batch, torch.bfloat16 if wrong == "h0" else torch.float32)
    if wrong == "x":
        batch = batch.with_values(batch.values.bfloat16())
    if wrong == "features":
        batch = batch.with_values(batch.values[:, :4])
    messages = []
    for prepare in (lambda m: m, lambda m: m.prepare_inference(), lambda m: m.prepare_inference(torch.bfloat16)):
        with pytest.raises((TypeError, ValueError)) as caught:
            answers(prepare(module_of("odd")), batch, hx=hx)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


OTHERS: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": "bfloat16"},
    "input_size": {"input_size": 6},
    "hidden_size": {"hidden_size": 8},
    "number of directions": {"weights": [(0, 0, 0, 0)]},
    "instruction set": {"isa": "portable"},
}


@as_subtests("other", OTHERS)
def test_packed_weights_fit_their_call(other: str) -> None:
    """Called past `LSTM`: the C++ takes no packed weights of another layer."""
    if other == "instruction set" and ISAS == ["portable"]:
        pytest.skip("there is one instruction set")
    module = module_of("odd").prepare_inference()
    (packed,) = module.prepared.packed.layers
    calls: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "native", type("Recorded", (), {"forward": lambda self, **given: calls.append(given)})())
        answers(module.train().eval(), batch_of("odd"))
    arguments = {**calls[0], "packed": packed, **OTHERS[other]}
    with pytest.raises(ValueError, match=f"packed weights have another {other}"):
        _native.lstm_cpu.forward(**arguments)
