"""`training.cuda_graphs` without a GPU: batches filled up to few shapes give the same losses and gradients, and what is
captured reads nothing but its tensors.

CUDA's graphs are emulated: operations are recorded as torch dispatches them, on their tensors and with all other values
as they are then, and repeated.
"""

import contextlib
import sys
import types
from typing import Any

import pytest
import torch
from tiny_encoders import stock_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import SequenceClassifierOutput

from penstock.engine.data.loader import Batch
from penstock.engine.errors import ConfigError, RunError
from penstock.engine.models import EncoderClassifier, LSTMClassifier, LSTMClassifierConfig
from penstock.engine.training import graphs, step
from penstock.engine.training.distributed import World
from penstock.engine.training.graphs import ABSENT, StepGraphs, check_graphs, filled, present, shape_for
from penstock.engine.training.sections import TrainingSettings
from penstock.engine.training.step import Stepper
from penstock.kernels import Ragged

ALONE = World(0, 1, torch.device("cpu"))
LENGTHS = [[5, 0, 12, 7], [1], [35], [3] * 9, [16, 16], [2, 31, 8, 8, 1]]
LABELS = 3
NUMPY = Tensor.numpy


def batch_of(lengths: list[int], seed: int = 0, lists: bool = False, pairs: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(4, 90, (sum(lengths),), generator=generator, dtype=torch.int32)
    ids = torch.randint(0, 10**6, (len(lengths),), generator=generator)
    labels = torch.randint(0, LABELS, (len(lengths),), generator=generator)
    if lists:
        labels = (torch.rand(len(lengths), LABELS, generator=generator) < 0.5).float()
    seconds = torch.tensor([length // 2 for length in lengths], dtype=torch.int32) if pairs else None
    return Batch(Ragged.from_lengths(values, lengths, ids), labels, seconds)


class Emulated:
    """What stands for torch.cuda.CUDAGraph. Nothing may run while it captures: the gradients are put back."""

    captured = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, before in self.calls:
            now = function(*args, **kwargs)
            if function._schema.is_mutable or function.is_view:
                continue
            for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


class Capturing(TorchDispatchMode):
    def __init__(self, graph: Emulated) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in ("aten::_local_scalar_dense", "aten::nonzero"):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        found = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, found))
        return found


def _unless_ours(method: Any) -> Any:
    """The engine may not ask; what the kernels' stand-ins for a GPU do is their own affair."""

    def asks(self: Tensor, *args: Any) -> Any:
        if "/engine/" in sys._getframe(1).f_code.co_filename:
            raise RuntimeError(f"CUDA error: {method.__name__} is not permitted when stream is capturing")
        return method(self, *args)

    return asks


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> list[Emulated]:
    """CUDA's graphs on the processor; gives those that have been captured."""
    made: list[Emulated] = []
    model: list[nn.Module] = []
    make = StepGraphs.__init__

    def init(self: StepGraphs, compute: Any, *rest: Any) -> None:
        model[:] = [compute.__self__._model]
        make(self, compute, *rest)

    @contextlib.contextmanager
    def graph(captured: Emulated, *, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        before = [(p, p.grad if p.grad is None else p.grad.clone()) for p in model[0].parameters()]
        random = torch.get_rng_state()
        with Capturing(captured), monkeypatch.context() as patch:
            for name in ("tolist", "numpy", "cpu"):  # which torch does not dispatch on the processor
                patch.setattr(Tensor, name, _unless_ours(getattr(Tensor, name)))
            yield
        for parameter, grad in before:
            if grad is not None:
                parameter.grad.copy_(grad)
        torch.set_rng_state(random)
        made.append(captured)

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "Stream": lambda device: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device: stream,
        "graph_pool_handle": lambda: (0, 0),
        "CUDAGraph": Emulated,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(step, "check_graphs", lambda settings, world: None)
    # AdamW makes much of gradients that are zero but for rounding, such as those of the keys' biases
    monkeypatch.setattr(step, "build_optimizer", lambda model, **_: torch.optim.SGD(model.parameters(), lr=1.0))
    monkeypatch.setattr(StepGraphs, "__init__", init)
    return made


# --- filling up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("lists", [False, True])
def test_filling_up_leaves_the_texts_as_they_are(lengths: list[int], lists: bool) -> None:
    batch = batch_of(lengths, lists=lists, pairs=True)
    shape = shape_for(batch, 40)
    full = filled(batch, shape)
    count, tokens = len(batch), batch.num_tokens
    assert (full.num_tokens, len(full), full.tokens.max_seqlen) == shape
    assert full.tokens.cu_seqlens.shape == (shape.texts + 1,)
    assert full.tokens.cu_seqlens[-1] == shape.tokens
    assert torch.equal(full.tokens.values[:tokens], batch.tokens.values)
    assert torch.equal(full.tokens.cu_seqlens[: count + 1], batch.tokens.cu_seqlens)
    assert torch.equal(full.tokens.ids[:count], batch.tokens.ids)
    assert torch.equal(full.labels[:count], batch.labels)
    assert (full.labels[count:] == ABSENT).all()
    assert present(full.labels).tolist() == [True] * count + [False] * (shape.texts - count)
    assert torch.equal(full.types()["token_type_ids"][:tokens], batch.types()["token_type_ids"])
    lengths_now = full.tokens.lengths
    assert (lengths_now >= 0).all()
    assert (lengths_now <= shape.longest).all()


@pytest.mark.parametrize("limit", [None, 40, 384, 512])
def test_shapes_are_few_and_hold_their_batches(limit: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = set()
    for _ in range(2000):
        count = int(torch.randint(1, 400, (), generator=generator))
        lengths = torch.randint(0, (limit or 512) + 1, (count,), generator=generator).tolist()
        tokens = sum(lengths)
        batch = Batch(Ragged.from_lengths(torch.zeros(tokens, dtype=torch.int32), lengths), torch.zeros(count))
        shape = shape_for(batch, limit)
        shapes.add(shape)
        assert tokens <= shape.tokens <= max(tokens * 9 / 8 + 1, 16)
        assert shape.texts >= count - (-(shape.tokens - tokens) // shape.longest)
        assert shape.longest >= batch.tokens.max_seqlen
        assert limit is None or shape.longest <= limit
    assert len(shapes) <= 100  # of 2,000 batches of all sizes


# --- the same step ----------------------------------------------------------------------------------------------------


def lstm(lists: bool = False) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 90, "embedding_size": 12, "hidden_size": 8, "num_layers": 2, "head_dropout": 0.3}
    kind = {"problem_type": "multi_label_classification"} if lists else {}
    return LSTMClassifier(LSTMClassifierConfig(num_labels=LABELS, embedding_dropout=0.2, dropout=0.2, **sizes, **kind))


def encoder(name: str) -> nn.Module:
    dropout = {"attention_dropout" if name == "modernbert" else "attention_probs_dropout_prob": 0.1}
    # the embeddings' dropout is torch's own, which counts on from wherever the batch ends
    none = {"mlp_dropout": 0.0} if name == "modernbert" else {"hidden_dropout_prob": 0.0}
    return EncoderClassifier(stock_model(name, **dropout, **none))


MODELS = {
    "lstm": (lstm, {}),
    "lstm, lists": (lambda: lstm(True), {"lists": True}),
    "bert, pairs": (lambda: encoder("bert"), {"pairs": True}),
    "roberta": (lambda: encoder("roberta"), {}),
    "modernbert": (lambda: encoder("modernbert"), {}),
}


def train(model: nn.Module, data: dict[str, bool], weights: Tensor | None = None, **settings: Any) -> list[Any]:
    """What each step did, and the gradients that it clipped, over batches whose shapes return."""
    given = {"learning_rate": 1.0, "max_grad_norm": 0.1, **settings}
    stepper = Stepper(model, TrainingSettings(**given), "fp32", ALONE, weights)
    found = []
    for number in range(1, 5):
        batches = [batch_of(lengths, 10 * number + i, **data) for i, lengths in enumerate(LENGTHS)]
        batches = batches[: 3 + number % 2 * 3]
        examples = sum(map(len, batches))
        weight = None if weights is None or "lists" in data else float(sum(weights[b.labels].sum() for b in batches))
        report = stepper(batches, step=number, num_examples=examples, learning_rate=1.0, weight=weight)
        found.append((report.loss_sum, report.correct, report.grad_norm))
    return [*found, *(parameter.detach() for parameter in model.parameters())]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_steps_from_graphs_are_the_same_steps(name: str, weighted: bool, emulated: list[Emulated]) -> None:
    make, data = MODELS[name]
    weights = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    smoothing = {} if "lists" in data else {"label_smoothing": 0.1}
    expected = train(make(), data, weights, **smoothing)
    assert not emulated
    found = train(make(), data, weights, cuda_graphs=True, **smoothing)
    assert len(emulated) >= 3
    for (loss, right, norm), (true_loss, true_right, true_norm) in zip(found[:4], expected[:4], strict=True):
        assert loss == pytest.approx(true_loss, rel=1e-5)
        assert right == true_right
        assert norm == pytest.approx(true_norm, rel=1e-4)
    for ours, true in zip(found[4:], expected[4:], strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-5)


def test_the_emulation_shows_a_value_that_was_captured(emulated: list[Emulated], monkeypatch: Any) -> None:
    """The test above would be blind if a number of the first batch served all others without a difference."""
    call = Stepper._train_on

    def with_a_number(self: Stepper, batch: Batch, factor: Any) -> Any:
        return call(self, batch, float(factor))

    def item(self: Tensor) -> float:
        return NUMPY(self.detach()).item()

    monkeypatch.setattr(Tensor, "__float__", item)
    monkeypatch.setattr(step.Stepper, "_train_on", with_a_number)
    found, expected = (train(lstm(), {}, cuda_graphs=on)[:4] for on in (True, False))
    assert any(a[2] != pytest.approx(b[2], rel=1e-3) for a, b in zip(found, expected, strict=True))


def test_gradients_stay_in_place_and_begin_at_zero(emulated: list[Emulated]) -> None:
    model = lstm()
    stepper = Stepper(model, TrainingSettings(learning_rate=1e-3, cuda_graphs=True), "fp32", ALONE)
    places = None
    for number in range(1, 4):
        stepper([batch_of([5, 3], number)], step=number, num_examples=2, learning_rate=1e-3)
        now = [parameter.grad.data_ptr() for parameter in model.parameters()]
        assert places in (None, now)
        assert all(not parameter.grad.any() for parameter in model.parameters())
        places = now
    assert len(emulated) == 1


def test_beyond_the_graphs_that_are_kept_batches_run_without(
    emulated: list[Emulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_MOST_SHAPES", 1)
    found, expected = (train(lstm(), {}, cuda_graphs=on) for on in (True, False))
    assert len(emulated) == 1
    torch.testing.assert_close(found[4:], expected[4:], rtol=1e-4, atol=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------


class Asking(nn.Module):
    """Waits for the device, as no graph can."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(90, LABELS))
        self.ask = ask

    def forward(self, tokens: Ragged) -> SequenceClassifierOutput:
        first = self.table[tokens.values.long()[tokens.cu_seqlens[:-1].clamp(max=tokens.values.shape[0] - 1).long()]]
        return SequenceClassifierOutput(logits=first * (2.0 if self.ask(first.sum()) else 1.0))


@pytest.mark.parametrize("ask", [Tensor.item, bool, lambda x: x.detach().tolist(), lambda x: float(x.detach().cpu())])
def test_a_model_that_cannot_be_captured_is_refused_in_one_line(ask: Any, emulated: list[Emulated]) -> None:
    stepper = Stepper(Asking(ask), TrainingSettings(learning_rate=0.1, cuda_graphs=True), "fp32", ALONE)
    stepper([batch_of([5, 3])], step=1, num_examples=2, learning_rate=0.1)
    with pytest.raises(RunError, match=r"cannot be captured \(CUDA error.*\): set training.cuda_graphs=false$"):
        stepper([batch_of([4, 3])], step=2, num_examples=2, learning_rate=0.1)


@pytest.mark.parametrize(
    ("world", "settings", "why"),
    [
        (ALONE, {}, "needs an NVIDIA GPU"),
        (World(0, 2, torch.device("cuda")), {}, "for one process, this run has 2"),
        (World(0, 1, torch.device("cuda")), {"compile": True}, "training.compile"),
    ],
)
def test_where_there_can_be_no_graphs_it_says_so(world: World, settings: dict[str, bool], why: str) -> None:
    check_graphs(TrainingSettings(**settings), world)
    with pytest.raises(ConfigError, match=why) as refused:
        check_graphs(TrainingSettings(cuda_graphs=True, **settings), world)
    assert "\n" not in str(refused.value)
