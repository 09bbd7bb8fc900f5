"""What pretraining hides, the loss over a sample of the vocabulary, and the models' losses."""

import numpy as np
import pytest
import torch
import transformers
from subtested import as_subtests
from tiny_encoders import CONFIGS, VOCAB
from torch.nn import functional as F

from penstock.engine.models import corruption
from penstock.engine.models.encoder_pretraining import EncoderForPretraining
from penstock.engine.models.lstm_config import LSTMPretrainingConfig
from penstock.engine.models.lstm_pretraining import LSTMForPretraining
from penstock.engine.models.pretraining import Vocabulary
from penstock.engine.models.sampled_softmax import (
    IGNORED,
    draw_candidates,
    exact_cross_entropy,
    inclusion_probabilities,
    sampled_cross_entropy,
)
from penstock.kernels import Ragged

MASK, SPECIAL = 4, (0, 1, 2, 3, 4)


def counts_of(size: int = VOCAB, seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).zipf(1.3, size).clip(max=10**9).astype(np.int64)
    counts[list(SPECIAL)] = 0
    return counts


VOCABULARY = Vocabulary(counts_of(), SPECIAL, MASK)


def texts(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,), generator=draw, dtype=torch.int32) for length in lengths]


def ragged(parts: list[torch.Tensor], ids: list[int]) -> Ragged:
    batch = Ragged.from_lengths(torch.cat(parts), [len(part) for part in parts])
    return Ragged(batch.values, batch.cu_seqlens, batch.max_seqlen, torch.tensor(ids))


def lstm(objective: str = "masked", **sizes: int) -> LSTMForPretraining:
    torch.manual_seed(0)
    entries = {"embedding_size": 6, "hidden_size": 5, "candidates": 20, "share": 0.3} | sizes
    config = LSTMPretrainingConfig(vocab_size=VOCAB, objective=objective, mask_token_id=MASK, **entries)
    model = LSTMForPretraining(config)
    model.learn_from(VOCABULARY)
    return model


@pytest.mark.parametrize(("size", "candidates"), [(7, 1), (101, 20), (101, 100), (101, 101), (5000, 64)])
def test_candidates_come_as_often_as_they_should(size: int, candidates: int) -> None:
    counts = counts_of(size)
    inclusion = inclusion_probabilities(counts, candidates)
    assert inclusion.sum() == pytest.approx(candidates)
    assert (inclusion > 0).all()
    assert (inclusion <= 1).all()
    assert (np.diff(inclusion[np.argsort(counts, kind="stable")]) >= -1e-12).all()
    torch.manual_seed(0)
    draws, seen = 2_000, np.zeros(size)
    for _ in range(draws):
        drawn = draw_candidates(torch.from_numpy(inclusion)).numpy()
        assert len(drawn) == len(set(drawn)) == candidates
        seen[drawn] += 1
    # five standard deviations of a binomial number, and room for what is rarer than once
    assert (
        np.abs(seen - draws * inclusion) <= 5 * np.sqrt(draws * inclusion * (1 - inclusion)) + 3 * (inclusion < 1)
    ).all()


def random_scores() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    hidden, table = torch.randn(9, 6, generator=draw), torch.randn(VOCAB, 6, generator=draw)
    bias, targets = torch.randn(VOCAB, generator=draw), torch.randint(0, VOCAB, (9,), generator=draw)
    targets[3] = IGNORED
    return hidden, table, bias, targets


def test_with_all_tokens_as_candidates_the_loss_is_exact() -> None:
    hidden, table, bias, targets = random_scores()
    leaves = [tensor.requires_grad_() for tensor in (hidden, table, bias)]
    everything = torch.randperm(VOCAB)
    sampled = sampled_cross_entropy(hidden, table, bias, targets, everything, torch.zeros(VOCAB))
    exact = exact_cross_entropy(hidden, table, bias, targets)
    torch.testing.assert_close(sampled[0], exact[0])
    assert sampled[1] == exact[1]
    for one, other in zip(*(torch.autograd.grad(loss, leaves) for loss, _ in (sampled, exact)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_softmax_denominator_is_estimated_without_bias() -> None:
    hidden, table, bias, targets = random_scores()
    hidden, targets = hidden[:1], targets[:1]
    inclusion = torch.from_numpy(inclusion_probabilities(counts_of(), 20))
    scores = (F.linear(hidden, table) + bias)[0].double()
    own = scores[targets[0]]
    torch.manual_seed(0)
    estimates = []
    for _ in range(4_000):
        drawn = draw_candidates(inclusion)
        loss, _ = sampled_cross_entropy(hidden, table, bias, targets, drawn, inclusion.log().float())
        estimates.append((loss.double() + own).exp().item())
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - scores.exp().sum().item()) < 4 * error
    assert error < 0.05 * scores.exp().sum().item(), "the test would see no bias"


def test_a_text_hides_the_same_tokens_in_any_batch() -> None:
    parts = texts([30, 1, 17, 40])
    special = torch.zeros(VOCAB, dtype=torch.bool)
    special[list(SPECIAL)] = True
    cumulative = torch.from_numpy(np.cumsum(counts_of() / counts_of().sum()))
    seed = torch.tensor(123)

    def hidden(order: list[int], seed: torch.Tensor) -> dict[int, tuple]:
        batch = ragged([parts[row] for row in order], [row + 10**10 for row in order])
        chosen = corruption.drawn(batch, 0.4, seed, special)
        assert not (chosen & special[batch.values]).any()
        others = corruption.replaced(batch, chosen.nonzero()[:, 0], seed, cumulative)
        assert torch.equal(others[~chosen], batch.values[~chosen])
        assert not special[others[chosen]].any()
        sizes = batch.lengths.tolist()
        both = zip(order, chosen.split(sizes), others.split(sizes), strict=True)
        return {row: (one.tolist(), other.tolist()) for row, one, other in both}

    whole = hidden([0, 1, 2, 3], seed)
    assert hidden([3, 1, 0, 2], seed) == whole
    assert hidden([2], seed)[2] == whole[2]
    assert hidden([0, 1, 2, 3], torch.tensor(124)) != whole


def test_tokens_are_hidden_and_replaced_as_often_as_they_should_be() -> None:
    batch = ragged(texts([50] * 400), list(range(400)))
    special = torch.zeros(VOCAB, dtype=torch.bool)
    chosen = corruption.drawn(batch, 0.25, torch.tensor(5), special)
    assert chosen.float().mean().item() == pytest.approx(0.25, abs=0.015)
    probabilities = counts_of() / counts_of().sum()
    places = chosen.nonzero()[:, 0]
    drawn = corruption.replaced(batch, places, torch.tensor(5), torch.from_numpy(probabilities.cumsum()))[places]
    found = torch.bincount(drawn, minlength=VOCAB).numpy()
    expected = len(places) * probabilities
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected) + 5).all()
    targets = corruption.places_of(chosen).targets(batch.values, IGNORED)
    assert len(targets) % 32 == 0
    assert torch.equal(targets[: len(places)], batch.values[places].long())
    assert (targets[len(places) :] == IGNORED).all()
    assert (corruption.places_of(torch.zeros(3, dtype=torch.bool)).targets(batch.values, IGNORED) == IGNORED).all()


@pytest.mark.parametrize("sizes", [{}, {"num_layers": 2}, {"bidirectional": False, "num_layers": 3}])
def test_nothing_of_a_hidden_token_reaches_the_head(sizes: dict) -> None:
    model, parts = lstm(**sizes).eval(), texts([12, 7, 20])
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    batch = ragged(parts, [3, 4, 5])
    special = torch.zeros(VOCAB, dtype=torch.bool)
    special[list(SPECIAL)] = True
    chosen = corruption.drawn(batch, 0.3, torch.tensor(0), special)
    assert 3 < chosen.sum() < 30
    changed = batch.values.where(~chosen, 5 + (batch.values + 1) % 90)
    first = model(batch)
    second = model(batch.with_values(changed))
    assert torch.equal(*seen)
    assert first.told == second.told == chosen.sum()
    assert first.loss != second.loss


def test_replaced_tokens_are_told_at_every_token() -> None:
    model, batch = lstm("replaced").eval(), ragged(texts([12, 7, 20]), [3, 4, 5])
    output = model(batch)
    assert output.told == 39
    assert output.loss.item() == pytest.approx(39 * 0.69, rel=0.2)
    output.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@as_subtests("objective", ["masked", "replaced"])
def test_training_draws_from_torchs_generator_and_evaluation_does_not(objective: str) -> None:
    model, batch = lstm(objective), ragged(texts([40, 30]), [0, 1])
    losses = {}
    for mode in (True, False):
        model.train(mode)
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            losses.setdefault(mode, []).append(model(batch).loss.item())
    assert losses[True][0] == losses[True][2] != losses[True][1]
    assert losses[False][0] == losses[False][1] == losses[False][2]


def test_the_loss_of_a_saved_model_is_the_same(tmp_path) -> None:
    model, batch = lstm(num_layers=2).eval(), ragged(texts([40, 30]), [0, 1])
    model.save_pretrained(tmp_path)
    again = LSTMForPretraining.from_pretrained(tmp_path).eval()
    again.learn_from(VOCABULARY)
    assert torch.equal(model(batch).loss, again(batch).loss)
    assert not any("inclusion" in name for name in again.state_dict())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "modernbert-mean"])
def test_an_encoder_has_the_loss_of_the_stock_padded_model(name: str) -> None:
    torch.manual_seed(0)
    stock = transformers.AutoModelForMaskedLM.from_config(CONFIGS[name](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    stock.eval()
    parts, ids = texts([9, 1, 33, 20]), [7, 8, 2**33, 10]
    parts = [part.where(part >= 5, 9) for part in parts]
    batch = ragged(parts, ids)
    special = torch.zeros(VOCAB, dtype=torch.bool)
    special[list(SPECIAL)] = True
    chosen = corruption.drawn(batch, 0.3, torch.tensor(0), special)
    hidden = batch.values.masked_fill(chosen, MASK).split(batch.lengths.tolist())
    truth = batch.values.long().where(chosen, -100).split(batch.lengths.tolist())
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(part), dtype=torch.long) for part in parts], batch_first=True)
    filler = stock.config.pad_token_id or 0
    padded = stock(
        input_ids=pad([part.long() for part in hidden], batch_first=True, padding_value=filler), attention_mask=mask
    )
    wanted = pad(list(truth), batch_first=True, padding_value=-100)
    expected = F.cross_entropy(padded.logits.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=-100)
    names = [key for key, parameter in stock.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in stock.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    model = EncoderForPretraining(stock, 0.3).eval()
    model.learn_from(Vocabulary(counts_of(), SPECIAL, MASK))
    output = model(batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-3)
    assert output.told == chosen.sum()
    found = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    for key, one, other in zip(names, found, gradients, strict=True):
        assert (one is None) == (other is None), key
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


def test_depths_of_an_lstm_follow_its_layers() -> None:
    model = lstm(num_layers=3)
    depths = {name: model.depths()[parameter] for name, parameter in model.named_parameters()}
    assert depths["embeddings.weight"] == 0
    assert {name: depth for name, depth in depths.items() if "lstm" not in name and "emb" not in name} == {
        "head.weight": 4,
        "head.bias": 4,
        "bias": 4,
    }
    for layer in range(3):
        assert {depth for name, depth in depths.items() if f"_l{layer}" in name} == {layer + 1}
