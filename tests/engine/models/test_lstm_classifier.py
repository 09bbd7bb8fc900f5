import pytest
import torch
import torch._dynamo.utils
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from penstock.engine.models import LSTMClassifier, LSTMClassifierConfig
from penstock.kernels import Ragged

VOCAB, LABELS = 83, 3
LENGTHS = [7, 1, 13, 2, 31]
LABEL = torch.tensor([0, 1, 2, 1, 0])
OFF = {"embedding_dropout": 0.0, "dropout": 0.0, "head_dropout": 0.0}


def classifier(**config: object) -> LSTMClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "embedding_size": 11, "hidden_size": 13, "num_layers": 2, "num_labels": LABELS}
    return LSTMClassifier(LSTMClassifierConfig(**{**sizes, **config}))


def batch_of(lengths: list[int], ids: Tensor | None = None) -> tuple[Ragged, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, VOCAB, (sum(lengths),), generator=generator, dtype=torch.int32)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, values.long())
    return Ragged.from_lengths(values, lengths, ids), padded, mask.long()


def plain_logits(model: LSTMClassifier, padded: Tensor, mask: Tensor) -> Tensor:
    """The same model in torch's modules: padded, packed for nn.LSTM, masked for pooling."""
    config, lengths = model.config, mask.sum(1)
    peer = nn.LSTM(config.embedding_size, config.hidden_size, config.num_layers, bidirectional=config.bidirectional)
    for name, parameter in model.lstm.named_parameters():  # the very same tensors, so gradients meet
        delattr(peer, name)
        setattr(peer, name, parameter)
    packed = pack_padded_sequence(model.embeddings(padded), lengths, batch_first=True, enforce_sorted=False)
    peer._flat_weights = [getattr(peer, name) for name in peer._flat_weights_names]
    y = pad_packed_sequence(peer(packed)[0], batch_first=True)[0]
    outside = mask[:, :, None] == 0
    if config.pooling == "max":
        pooled = y.masked_fill(outside, float("-inf")).amax(1)
    elif config.pooling == "mean":
        pooled = y.masked_fill(outside, 0).sum(1) / lengths[:, None]
    elif config.pooling == "attention":
        weights = model.scores(y).masked_fill(outside, float("-inf")).softmax(1)
        pooled = (weights * y).sum(1)
    else:
        half, last = config.hidden_size, y[torch.arange(len(y)), lengths - 1]
        pooled = torch.cat([last[:, :half], y[:, 0, half:]], 1) if config.bidirectional else last
    return model.classifier(pooled)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("pooling", ["max", "mean", "last", "attention"])
def test_logits_and_gradients_equal_plain_torch(pooling: str, bidirectional: bool) -> None:
    model = classifier(pooling=pooling, bidirectional=bidirectional, **OFF)
    ragged, padded, mask = batch_of(LENGTHS)
    results = []
    for logits in (model(ragged).logits, plain_logits(model, padded, mask)):
        model.zero_grad()
        nn.functional.cross_entropy(logits, LABEL).backward()
        results.append((logits, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (logits, gradients), (expected_logits, expected_gradients) = results
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-6)
    for name, expected in expected_gradients.items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_padded_input_equals_ragged_input() -> None:
    model = classifier().eval()
    ragged, padded, mask = batch_of(LENGTHS)
    with torch.no_grad():
        expected = model(ragged).logits
        assert torch.equal(model(padded, attention_mask=mask).logits, expected)
        assert torch.equal(model(input_ids=padded, attention_mask=mask, return_dict=False)[0], expected)
        assert torch.equal(model(padded[2:3, :13]).logits, model(Ragged.from_lengths(padded[2, :13], [13])).logits)
    with pytest.raises(ValueError, match="attention_mask goes with padded"):
        model(ragged, attention_mask=mask)


def test_one_sequence_never_sees_another() -> None:
    model = classifier().eval()
    ragged, _, _ = batch_of(LENGTHS)
    with torch.no_grad():
        before = model(ragged).logits
        values = ragged.values.clone()
        values[8:21] = (values[8:21] + 5) % VOCAB
        after = model(ragged.with_values(values)).logits
    assert torch.equal(after[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
    assert not torch.equal(after[2], before[2])


def test_texts_without_tokens() -> None:
    model = classifier().eval()
    with torch.no_grad():
        nothing = model(torch.zeros(2, 0, dtype=torch.int64)).logits
    torch.testing.assert_close(nothing, model.classifier.bias.expand(2, LABELS))


def test_dropout_follows_the_example_not_the_batch() -> None:
    model = classifier(embedding_dropout=0.5, dropout=0.5, head_dropout=0.5).train()
    ids = torch.tensor([70, 11, 5_000_000_000])
    ragged, _, _ = batch_of([9, 4, 12], ids)
    alone = Ragged.from_lengths(ragged.values[9:13], [4], ids[1:2])

    def logits(batch: Ragged, seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(batch).logits

    torch.testing.assert_close(logits(alone, 3)[0], logits(ragged, 3)[1])
    assert not torch.allclose(logits(ragged, 3), logits(ragged, 4), atol=1e-3)


def test_reductions() -> None:
    model = classifier().eval()
    ragged, _, _ = batch_of(LENGTHS)
    losses = model(ragged, labels=LABEL, reduction="none").loss
    assert losses.shape == (5,)
    torch.testing.assert_close(model(ragged, labels=LABEL, reduction="sum").loss, losses.sum())
    torch.testing.assert_close(model(ragged, labels=LABEL).loss, losses.mean())


def test_frozen_embeddings_stay() -> None:
    model = classifier(freeze_embeddings=True)
    ragged, _, _ = batch_of(LENGTHS)
    model(ragged, labels=LABEL).loss.backward()
    assert model.embeddings.weight.grad is None
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "embeddings" not in name)


@pytest.mark.slow
def test_compiles_to_one_graph_for_every_packing() -> None:
    model = classifier().eval()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ([7, 1, 13], [5, 5], [1, 30, 3, 9]):
        ragged, _, _ = batch_of(lengths)
        torch.testing.assert_close(compiled(ragged).logits, model(ragged).logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
