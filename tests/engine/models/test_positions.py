"""What a saved run computes in stock transformers is what it computed here, for any text."""

from pathlib import Path

import pytest
import torch
import transformers
from tiny_encoders import CONFIGS, LABELS, POSITIONS, stock_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from penstock.engine.errors import ModelError
from penstock.engine.models import EncoderClassifier, ModelSettings, build_model
from penstock.kernels import Ragged

WORDS = ["the", "a", "cat", "sat", "on", "mat", "dog", "ran", "far", "red", "sun"]
TEXTS = [
    "the cat sat",
    "the <pad> cat sat",
    "the cat sat <pad>",
    "<pad> the cat sat",
    "<pad>",
    "<pad> <pad> <pad>",
    "a <pad> dog <pad> <pad> ran",
    "a </s> b <s> c",
    "</s> injected <s>",
    "<mask> the <unk> cat",
    "",
    "cat",
    " ".join(["cat"] * (POSITIONS - 4)),
    " ".join(["<pad>", "dog"] * (POSITIONS // 2 - 2)),
    " ".join(["sun <pad>"] * POSITIONS),  # cut
]


def tokenizer_for(pad: int, types: int = 0) -> transformers.PreTrainedTokenizerFast:
    """Words, and special tokens that are recognised inside texts too; `pad` is the padding token's id."""
    special = ["<unk>", "<s>", "</s>", "<mask>"]
    special.insert(pad, "<pad>")
    ids = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(name, special=True) for name in special])
    inner.post_processor = processors.TemplateProcessing(
        single=f"<s>:{types} $A:{types} </s>:{types}", special_tokens=[(name, ids[name]) for name in ("<s>", "</s>")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", model_max_length=POSITIONS - 2
    )


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "modernbert-biases-yarn"])
def test_special_tokens_inside_texts(name: str, tmp_path: Path) -> None:
    stock = stock_model(name)
    stock.save_pretrained(tmp_path)
    tokenizer = tokenizer_for(stock.config.pad_token_id)
    model = EncoderClassifier.from_pretrained(tmp_path).eval()
    model.save_pretrained(tmp_path / "run")
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run", attn_implementation="eager"
    ).eval()

    rows = [tokenizer(text, truncation=True)["input_ids"] for text in TEXTS]
    assert max(map(len, rows)) == POSITIONS - 2
    ragged = Ragged.from_lengths(
        torch.cat([torch.tensor(row, dtype=torch.int32) for row in rows]), [len(row) for row in rows]
    )
    padded = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    labels = torch.arange(len(TEXTS)) % LABELS
    given = {key: value for key, value in padded.items() if name != "distilbert" or key != "token_type_ids"}
    expected = saved(**given, labels=labels)
    found = model(ragged, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for side in ("right", "left"):
            sided = tokenizer(TEXTS, truncation=True, padding=True, padding_side=side, return_tensors="pt")
            torch.testing.assert_close(model(**sided).logits, found.logits, rtol=1e-5, atol=1e-6)
        alone = torch.cat([saved(input_ids=torch.tensor([row])).logits for row in rows])
        torch.testing.assert_close(alone, found.logits, rtol=1e-4, atol=1e-5)
        unmasked = torch.cat([model(torch.tensor([row])).logits for row in rows])
        torch.testing.assert_close(unmasked, found.logits, rtol=1e-5, atol=1e-6)

    expected.loss.backward()
    found.loss.backward()
    gradients = dict(model.model.named_parameters())
    for key, parameter in saved.named_parameters():
        torch.testing.assert_close(gradients[key].grad, parameter.grad, rtol=1e-3, atol=2e-5, msg=key)
    table = model.get_input_embeddings()
    assert table.padding_idx is None or not table.weight.grad[table.padding_idx].any()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_the_pipeline_serves_what_was_trained(name: str, tmp_path: Path) -> None:
    stock = stock_model(name)
    stock.save_pretrained(tmp_path)
    tokenizer = tokenizer_for(stock.config.pad_token_id)
    tokenizer.save_pretrained(tmp_path)
    check_pipeline(EncoderClassifier.from_pretrained(tmp_path).eval(), tokenizer, tmp_path / "run")


@pytest.mark.parametrize("pooling", ["max", "mean", "last", "attention"])
def test_the_pipeline_serves_an_lstm_that_was_trained(pooling: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(1)
    settings = ModelSettings(hidden_size=8, embedding_size=8, pooling=pooling)
    model = build_model(settings, vocab_size=len(tokenizer), num_labels=LABELS, tokenizer=tokenizer)
    check_pipeline(model.eval(), tokenizer, tmp_path / "run")


def check_pipeline(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    classify = transformers.pipeline("text-classification", str(folder), device="cpu")
    rows = [tokenizer(text, truncation=True)["input_ids"] for text in TEXTS]
    ragged = Ragged.from_lengths(
        torch.cat([torch.tensor(row, dtype=torch.int32) for row in rows]), [len(row) for row in rows]
    )
    with torch.no_grad():
        expected = model(ragged).logits.softmax(-1)
    for batch_size in (1, 4):
        served = classify(TEXTS, top_k=None, truncation=True, batch_size=batch_size)
        for row, scores in zip(expected.tolist(), served, strict=True):
            by_label = {entry["label"]: entry["score"] for entry in scores}
            assert [by_label[f"LABEL_{i}"] for i in range(LABELS)] == pytest.approx(row, abs=1e-5)


def test_token_types_of_a_ragged_batch() -> None:
    model = EncoderClassifier(stock_model("bert"))
    padded = torch.arange(5, 29).view(2, 12)
    types = (torch.arange(12) > 5).long().expand(2, 12)
    ragged = Ragged.from_lengths(padded.flatten().int(), [12, 12])
    expected = model(padded, token_type_ids=types).logits
    assert torch.equal(model(ragged, token_type_ids=types.flatten()).logits, expected)
    assert not torch.allclose(model(ragged).logits, expected)
    with pytest.raises(ValueError, match="token_type_ids has shape"):
        model(ragged, token_type_ids=types[0])


def test_a_tokenizer_whose_texts_have_other_token_types_is_refused(tmp_path: Path) -> None:
    stock_model("bert", vocab_size=16).save_pretrained(tmp_path)
    tokenizer_for(0).save_pretrained(tmp_path)
    settings = ModelSettings(kind="encoder", encoder=str(tmp_path))
    build_model(settings, vocab_size=16, num_labels=LABELS, tokenizer=tokenizer_for(0))
    other = tokenizer_for(0, types=1)
    other.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    with pytest.raises(ModelError, match="token types other than 0"):
        build_model(settings, vocab_size=16, num_labels=LABELS, tokenizer=other)
