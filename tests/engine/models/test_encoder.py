import copy
import logging

import pytest
import torch
import torch._dynamo.utils
import transformers
from subtested import as_subtests
from tiny_encoders import CONFIGS, LABELS, POSITIONS, VOCAB, stock_model
from torch import Tensor

from penstock.engine.errors import ModelError
from penstock.engine.models import EncoderClassifier, encoder_body
from penstock.engine.models.architectures import ARCHITECTURES, layers_of
from penstock.engine.models.fuse import is_fused, unfuse
from penstock.kernels import Ragged, use_backend

LENGTHS = [7, 1, 13, 2, 31]
LABEL = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture(params=CONFIGS)
def stock(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    return stock_model(request.param)


def ragged_form(stock: transformers.PreTrainedModel) -> EncoderClassifier:
    return EncoderClassifier(copy.deepcopy(stock))


def batch_of(lengths: list[int], seed: int = 1) -> tuple[Ragged, Tensor, Tensor]:
    """The same random texts, ragged and padded, with the padded form's mask."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(3, VOCAB, (sum(lengths),), generator=generator, dtype=torch.int32)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded = torch.ones(mask.shape, dtype=torch.int64).masked_scatter(mask, values.long())
    return Ragged.from_lengths(values, lengths), padded, mask.long()


def test_logits_and_gradients_equal_the_padded_eager_model(stock: transformers.PreTrainedModel) -> None:
    ragged, padded, mask = batch_of(LENGTHS)
    model = ragged_form(stock)

    expected = stock(input_ids=padded, attention_mask=mask, labels=LABEL)
    actual = model(ragged, labels=LABEL)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-5)

    expected.loss.backward()
    actual.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.model.named_parameters()}
    total = torch.stack([parameter.grad.norm() for parameter in stock.parameters()]).norm()
    for name, parameter in stock.named_parameters():
        # A key's bias has no effect, so its gradient is rounding alone: the whole gradient's size is the measure there.
        error = (gradients[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=0.01 * total)
        assert error < 1e-5, f"{name}: {error}"


def test_fused_layers_change_nothing_but_speed(stock: transformers.PreTrainedModel) -> None:
    ragged, _, _ = batch_of(LENGTHS)
    fused, plain = ragged_form(stock), ragged_form(stock)
    unfuse(plain.model)
    table = fused.get_input_embeddings()
    assert is_fused(table)
    assert all(map(is_fused, layers_of(fused.model)))
    assert not any(map(is_fused, plain.modules()))
    assert list(fused.state_dict()) == list(plain.state_dict())
    gradients = []
    for model in (fused, plain):
        torch.manual_seed(0)
        # in training, but without the dropout of hidden states: its random numbers depend on what is computed
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(False)
        output = model(ragged, labels=LABEL)
        output.loss.backward()
        gradients.append((output.logits, *(parameter.grad for parameter in model.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["modernbert", "modernbert-local", "modernbert-mean"])
def test_in_bfloat16_pre_norm_layers_are_as_exact_as_stock_ones(name: str) -> None:
    stock = stock_model(name)
    ragged, _, _ = batch_of(LENGTHS)
    results = []
    for takes_back, autocast in ((True, False), (True, True), (False, True)):
        model = ragged_form(stock)
        if takes_back:
            unfuse(model.model)
        streams: list[Tensor] = []
        for layer in layers_of(model.model):
            layer.register_forward_hook(lambda _, __, stream, streams=streams: streams.append(stream))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(ragged, labels=LABEL)
        output.loss.backward()
        assert {stream.dtype for stream in streams} == {torch.float32}
        results.append([output.logits.detach(), *(parameter.grad for parameter in model.parameters())])
    exact, plain, fused = (torch.cat([each.flatten() for each in result]) for result in results)
    assert (fused - exact).norm() <= 1.2 * (plain - exact).norm() <= 0.02 * exact.norm()


def test_padded_input_equals_ragged_input(stock: transformers.PreTrainedModel) -> None:
    ragged, padded, mask = batch_of(LENGTHS)
    model = ragged_form(stock)
    with torch.no_grad():
        expected = model(ragged).logits
        assert torch.equal(model(padded, mask).logits, expected)
        left_padded = torch.stack([row.roll(row.shape[0] - n) for row, n in zip(padded, LENGTHS, strict=True)])
        assert torch.equal(model(left_padded, mask.flip(1)).logits, expected)


@as_subtests("training", [False, True])
def test_one_sequence_never_sees_another(stock: transformers.PreTrainedModel, training: bool) -> None:
    ragged, _, _ = batch_of(LENGTHS)
    model = ragged_form(stock).train(training)

    def logits(batch: Ragged) -> Tensor:
        torch.manual_seed(4)
        with torch.no_grad():
            return model(batch).logits

    before = logits(ragged)
    for changed in range(len(LENGTHS)):
        values = ragged.values.clone()
        start, end = ragged.cu_seqlens[changed : changed + 2].tolist()
        values[start:end] = (values[start:end] + 17) % (VOCAB - 3) + 3
        after = logits(ragged.with_values(values))
        others = torch.arange(len(LENGTHS)) != changed
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[changed], before[changed])


@pytest.mark.parametrize("name", ["bert", "electra", "distilbert", "modernbert"])
def test_training_with_dropout_equals_the_reference(name: str) -> None:
    """Whatever drops, attention weights or hidden states: logits and every gradient."""
    rates = dict.fromkeys(ARCHITECTURES[name].dropouts, 0.3)
    model = EncoderClassifier(stock_model(name, **rates)).train()
    ragged, _, _ = batch_of(LENGTHS)
    found = []
    for backend in ("cpu", "torch", "reference"):
        torch.manual_seed(8)
        model.zero_grad()
        with use_backend(None if backend == "cpu" else backend):
            output = model(ragged, labels=LABEL)
        output.loss.backward()
        found.append([output.logits, *(parameter.grad for parameter in model.parameters())])
    total = torch.stack([gradient.norm() for gradient in found[-1][1:]]).norm()
    for other in found[:-1]:
        for a, b in zip(other, found[-1], strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm().clamp(min=0.01 * total)


@pytest.mark.parametrize(("name", "setting"), [("bert", "hidden_act"), ("modernbert", "hidden_activation")])
def test_another_activation_keeps_its_own_module(name: str, setting: str) -> None:
    stock = stock_model(name, **{setting: "relu"})
    ragged, padded, mask = batch_of(LENGTHS)
    with torch.no_grad():
        expected = stock(input_ids=padded, attention_mask=mask).logits
        torch.testing.assert_close(ragged_form(stock)(ragged).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[7, 1, 13, 2, 31], [32], [8] * 8, [3]])
@pytest.mark.parametrize("positions", [POSITIONS, 34])
def test_a_batch_of_any_size_runs_in_one_of_few_shapes(
    lengths: list[int], positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = EncoderClassifier(stock_model("bert", max_position_embeddings=positions))
    ragged, _, _ = batch_of(lengths)
    seen = []

    def look(_: object, __: tuple, kwargs: dict) -> None:
        seen.append((kwargs["input_ids"].shape[1], len(kwargs["cu_seq_lens_q"]) - 1))

    model.model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        rounded = model(ragged).logits
        monkeypatch.setattr(encoder_body, "_rounded", lambda batch, _: batch)
        plain = model(ragged).logits
    torch.testing.assert_close(rounded, plain)
    assert [size % to for size, to in zip(seen[0], (32, 8), strict=True)] == [0, 0]
    assert seen[1] == (sum(lengths), len(lengths))


def test_padding_texts_fit_the_models_positions() -> None:
    model = EncoderClassifier(stock_model("bert", max_position_embeddings=5))
    ragged, _, _ = batch_of([5, 2])
    assert model(ragged).logits.shape == (2, LABELS)


def test_an_empty_sequence_leaves_the_others_alone(stock: transformers.PreTrainedModel) -> None:
    ragged, _, _ = batch_of([4, 6])
    with_empty = Ragged.from_lengths(ragged.values, [0, 4, 0, 6, 0])
    model = ragged_form(stock)
    with torch.no_grad():
        logits = model(with_empty).logits
        torch.testing.assert_close(logits[[1, 3]], model(ragged).logits)
        torch.testing.assert_close(logits[[0, 2]], logits[[4, 4]])
        with pytest.raises(ValueError, match="no tokens"):
            model(Ragged.from_lengths(ragged.values[:0], [0, 0]))
        assert model(Ragged.from_lengths(ragged.values[:0], [])).logits.shape == (0, logits.shape[1])


def test_gradient_checkpointing_changes_nothing(
    stock: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is said of it."""
    said: list[str] = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda self, line, *_, **__: said.append(line))
    ragged, _, _ = batch_of(LENGTHS)
    gradients = []
    for checkpointing in (False, True):
        model = ragged_form(stock).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        model(ragged, labels=LABEL).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-6, atol=1e-7)
    assert said == []


@pytest.mark.parametrize(
    ("name", "dropouts"),
    [
        ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}),
        ("distilbert", {"dropout": 0.0, "attention_dropout": 0.5, "seq_classif_dropout": 0.0}),
        ("modernbert", {"mlp_dropout": 0.0, "attention_dropout": 0.5}),
    ],
)
def test_attention_dropout_follows_the_example_not_the_batch(name: str, dropouts: dict[str, float]) -> None:
    model = EncoderClassifier(stock_model(name, **dropouts)).train()
    values = batch_of([9, 4, 12])[0].values
    ids = torch.tensor([70, 11, 5_000_000_000])
    together = Ragged.from_lengths(values, [9, 4, 12], ids)
    alone = Ragged.from_lengths(values[9:13], [4], ids[1:2])

    def logits(batch: Ragged, seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(batch).logits

    torch.testing.assert_close(logits(alone, 3)[0], logits(together, 3)[1])
    assert not torch.allclose(logits(together, 3), logits(together, 4), atol=1e-3)


def test_reductions() -> None:
    ragged, _, _ = batch_of(LENGTHS)
    model = EncoderClassifier(stock_model("bert"))
    losses = model(ragged, labels=LABEL.int(), reduction="none").loss
    assert losses.shape == (5,)
    torch.testing.assert_close(model(ragged, labels=LABEL, reduction="sum").loss, losses.sum())
    torch.testing.assert_close(model(ragged, labels=LABEL).loss, losses.mean())
    with pytest.raises(ValueError, match="reduction"):
        model(ragged, labels=LABEL, reduction="total")


def test_token_types_of_text_pairs() -> None:
    stock = stock_model("bert")
    _, padded, mask = batch_of(LENGTHS)
    types = (torch.arange(padded.shape[1]) > 3).long().expand(padded.shape) * mask
    with torch.no_grad():
        expected = stock(input_ids=padded, attention_mask=mask, token_type_ids=types).logits
        actual = ragged_form(stock)(padded, mask, token_type_ids=types).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "limit"), [("bert", POSITIONS), ("roberta", POSITIONS - 2), ("modernbert", POSITIONS)]
)
def test_a_sequence_longer_than_the_positions_is_refused(name: str, limit: int) -> None:
    model = EncoderClassifier(stock_model(name))
    ragged, _, _ = batch_of([3, limit])
    assert model(ragged).logits.shape == (2, LABELS)
    loose = Ragged(ragged.values, ragged.cu_seqlens, 10 * POSITIONS)  # max_seqlen is only an upper bound
    assert torch.equal(model(loose).logits, model(ragged).logits)
    too_long, _, _ = batch_of([3, limit + 1])
    with pytest.raises(ModelError, match=rf"sequence 1 .* {limit + 1} tokens.*data.max_length={limit}\)"):
        model(too_long)


def test_wrong_input_is_refused() -> None:
    model = EncoderClassifier(stock_model("bert"))
    ragged, padded, mask = batch_of(LENGTHS)
    with pytest.raises(ValueError, match="attention_mask goes with padded"):
        model(ragged, mask)
    holes = mask.clone()
    holes[2, 4] = 0
    with pytest.raises(ValueError, match="hole in row 2"):
        model(padded, holes)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(padded, mask[:, :-1])
    with pytest.raises(ValueError, match="padded input_ids must have shape"):
        model(padded[0])
    with pytest.raises(TypeError, match="Ragged or a tensor"):
        model([[1, 2], [3]])
    with pytest.raises(ValueError, match="labels has shape"):
        model(ragged, labels=LABEL[:3])


def test_attention_without_bounds_is_refused() -> None:
    model = EncoderClassifier(stock_model("bert")).model
    _, padded, mask = batch_of(LENGTHS)
    for plain in (False, True):
        if plain:
            unfuse(model)
        with pytest.raises(ValueError, match="needs the sequences' bounds"):
            model(input_ids=padded)
        with pytest.raises(ValueError, match="needs the sequences' bounds"):
            model(input_ids=padded[:1])
        for given in (mask[:1], mask[:1, None, None, :].bool()):
            with pytest.raises(ValueError, match="takes no attention_mask"):
                model(input_ids=padded[:1], attention_mask=given)


@as_subtests(
    "config",
    [
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2),
        transformers.T5Config(d_model=8, d_kv=4, num_layers=1),
        transformers.DebertaV2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2),
        transformers.AlbertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2),
    ],
)
def test_other_architectures_are_refused(config: transformers.PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match=r"cannot run unpadded; use one of the types bert, camembert"):
        EncoderClassifier(model)


def test_a_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="decoder"):
        EncoderClassifier(stock_model("bert", is_decoder=True))


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("bert", "eager"),
        *(pytest.param(name, "aot_eager", marks=SLOW) for name in ("bert", "electra", "modernbert-mean")),
    ],
)
def test_compiles_to_one_graph_for_every_packing(name: str, backend: str) -> None:
    model = EncoderClassifier(stock_model(name, num_hidden_layers=1))
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for lengths in ([7, 1, 13], [5, 5], [1, 30, 3, 9]):
        ragged, _, _ = batch_of(lengths)
        torch.testing.assert_close(compiled(ragged).logits, model(ragged).logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
