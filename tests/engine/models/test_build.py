import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from subtested import as_subtests
from tiny_encoders import CONFIGS, LABELS, VOCAB, stock_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from penstock.engine.errors import ModelError
from penstock.engine.models import EncoderClassifier, LSTMClassifier, ModelSettings, build_model, load_model
from penstock.engine.models.build import check_tokenizer
from penstock.kernels import Ragged

NAMES = ["bad", "fair", "good"]
SIZES = {"vocab_size": VOCAB, "num_labels": LABELS, "label_names": NAMES}
BATCH = Ragged.from_lengths(torch.arange(3, 23, dtype=torch.int32), [8, 12])


def tokenizer(words: int = VOCAB) -> transformers.PreTrainedTokenizerFast:
    vocabulary = {"[UNK]": 0, "[PAD]": 1, **{f"w{i}": i for i in range(2, words)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A bare BERT, without a head, and its tokenizer."""
    stock_model("bert").bert.save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def logits(model: LSTMClassifier | EncoderClassifier) -> Tensor:
    with torch.no_grad():
        return model.eval()(BATCH).logits


def test_lstm_from_scratch_is_reproducible() -> None:
    def build(seed: int) -> LSTMClassifier:
        torch.manual_seed(seed)
        return build_model(ModelSettings(hidden_size=16, embedding_size=8), tokenizer=tokenizer(), **SIZES)

    model = build(1)
    assert isinstance(model, LSTMClassifier)
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert model.config.pad_token_id == 1
    assert torch.equal(logits(model), logits(build(1)))
    assert not torch.equal(logits(model), logits(build(2)))


def test_lstm_starts_from_an_encoders_embeddings(checkpoint: str) -> None:
    settings = ModelSettings(hidden_size=16, embeddings="encoder", encoder=checkpoint, freeze_embeddings=True)
    model = build_model(settings, tokenizer=tokenizer(), **SIZES)
    expected = transformers.AutoModel.from_pretrained(checkpoint).get_input_embeddings().weight
    assert torch.equal(model.embeddings.weight, expected)
    assert not model.embeddings.weight.requires_grad
    wrong = ModelSettings(hidden_size=16, embeddings="encoder", encoder=checkpoint, embedding_size=8)
    with pytest.raises(ModelError, match=r"embedding_size=8, but the token embeddings of .* have 32"):
        build_model(wrong, **SIZES)


def test_encoder_gets_a_fresh_head_quietly_and_reproducibly(checkpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ModelSettings(kind="encoder", encoder=checkpoint, encoder_attention_dropout=0.3, freeze_embeddings=True)

    def build(seed: int) -> EncoderClassifier:
        torch.manual_seed(seed)
        return build_model(settings, tokenizer=tokenizer(), **SIZES)

    model = build(1)
    assert isinstance(model, EncoderClassifier)
    assert capfd.readouterr() == ("", "")
    assert model.config.attention_probs_dropout_prob == 0.3
    assert model.model.bert.encoder.layer[0].attention.self.dropout.p == 0.3
    assert not model.get_input_embeddings().weight.requires_grad
    assert torch.equal(logits(model), logits(build(1)))
    assert not torch.equal(logits(model), logits(build(2)))


def test_a_head_for_other_classes_is_replaced(tmp_path: Path) -> None:
    stock_model("bert", num_labels=7).save_pretrained(tmp_path)
    model = build_model(ModelSettings(kind="encoder", encoder=str(tmp_path)), **SIZES)
    assert logits(model).shape == (2, LABELS)


@pytest.mark.parametrize("kind", ["lstm", "encoder"])
def test_saved_and_loaded_models_agree(kind: str, checkpoint: str, tmp_path: Path) -> None:
    model = build_model(ModelSettings(kind=kind, hidden_size=16, encoder=checkpoint), **SIZES)
    model.save_pretrained(tmp_path / "run" / "best")
    for folder in (tmp_path / "run" / "best", tmp_path / "run"):
        loaded = load_model(folder)
        assert type(loaded) is type(model)
        assert loaded.config.id2label == {0: "bad", 1: "fair", 2: "good"}
        assert torch.equal(logits(loaded), logits(model))


TEXT = "w3 w4 w5 w6 w7 w8 w9 w10"


@pytest.fixture
def saved(checkpoint: str, tmp_path: Path) -> dict[str, tuple[Path, Tensor]]:
    """A saved model of each kind, and its logits for TEXT."""
    made = {}
    for kind, settings in (
        ("encoder", ModelSettings(kind="encoder", encoder=checkpoint)),
        ("lstm", ModelSettings(hidden_size=16)),
    ):
        model = build_model(settings, tokenizer=tokenizer(), **SIZES)
        model.save_pretrained(tmp_path / kind)
        tokenizer().save_pretrained(tmp_path / kind)
        made[kind] = (tmp_path / kind, logits(model)[0])
    return made


@pytest.mark.slow
def test_saved_models_are_served_by_transformers(saved: dict, tmp_path: Path) -> None:
    """An encoder without penstock, an LSTM once it is imported."""
    served, stderr = run(
        f"""
        import sys, transformers
        classify = transformers.pipeline("text-classification", {str(saved["encoder"][0])!r}, device="cpu")
        answers = [classify({TEXT!r}, top_k=None)]
        assert "penstock" not in sys.modules
        import penstock.engine
        classify = transformers.pipeline("text-classification", {str(saved["lstm"][0])!r}, device="cpu")
        print([*answers, classify({TEXT!r}, top_k=None)])
        classify("")
        """,
        tmp_path,
    )
    assert stderr == ""
    for answer, (_, expected) in zip(served, saved.values(), strict=True):
        check_served(answer, expected)


@pytest.mark.slow
def test_penstock_may_be_imported_before_transformers(saved: dict, tmp_path: Path) -> None:
    folder, expected = saved["lstm"]
    served, stderr = run(
        f"""
        import penstock.engine, transformers
        assert transformers.AutoConfig.from_pretrained({str(folder)!r}).model_type == "penstock_lstm"
        model = transformers.AutoModelForSequenceClassification.from_pretrained({str(folder)!r}).eval()
        print(model(**transformers.AutoTokenizer.from_pretrained({str(folder)!r})({TEXT!r}, return_tensors="pt"))[
        "logits"][0].tolist())
        """,
        tmp_path,
    )
    assert stderr == ""
    assert served == pytest.approx(expected.tolist(), abs=1e-5)


def run(program: str, folder: Path) -> tuple[list, str]:
    """Runs a program in a process of its own, away from the sources; what it prints, as Python, and its complaints."""
    lines = [line.strip() for line in program.strip().splitlines()]
    lines.insert(0, "import os; os.environ.update(HF_HUB_OFFLINE='1', HF_HUB_DISABLE_PROGRESS_BARS='1')")
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout), done.stderr


def check_served(served: list[dict], expected: Tensor) -> None:
    scores = {entry["label"]: entry["score"] for entry in served}
    for name, probability in zip(NAMES, expected.softmax(-1).tolist(), strict=True):
        assert scores[name] == pytest.approx(probability, abs=1e-6)


@pytest.mark.slow
def test_packaged_minilm(minilm: str, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    own = transformers.AutoTokenizer.from_pretrained(minilm)
    settings = ModelSettings(kind="encoder", encoder=minilm)
    model = build_model(settings, vocab_size=len(own), num_labels=5, tokenizer=own).eval()
    assert capfd.readouterr().err == ""

    texts = ["A film that never quite finds its feet, but what feet.", "Dull.", "I would see it again. " * 20]
    padded = own(texts, padding=True, return_tensors="pt")
    rows = [own(text)["input_ids"] for text in texts]
    ragged = Ragged.from_lengths(
        torch.cat([torch.tensor(row, dtype=torch.int32) for row in rows]), [len(row) for row in rows]
    )
    torch.manual_seed(0)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        minilm, num_labels=5, attn_implementation="eager"
    )
    stock.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(ragged).logits, stock.eval()(**padded).logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(model(**padded).logits, model(ragged).logits)


def test_what_cannot_be_built_is_refused_in_one_line(checkpoint: str, tmp_path: Path) -> None:
    def refused(message: str, settings: ModelSettings, **changes: object) -> None:
        with pytest.raises(ModelError, match=message) as error:
            build_model(settings, **{**SIZES, **changes})
        assert "\n" not in str(error.value)

    encoder = ModelSettings(kind="encoder", encoder=checkpoint)
    refused(
        r"cannot load model 'no/such-model': there is no such folder",
        ModelSettings(kind="encoder", encoder="no/such-model"),
    )
    refused(r"cannot load model .*: its folder", ModelSettings(kind="encoder", encoder=str(tmp_path)))
    refused(r"at least two classes, the data has 1", ModelSettings(), num_labels=1, label_names=["only"])
    refused(r"2 label names for 3 classes", ModelSettings(), label_names=["a", "b"])
    refused(r"the data has 500 token ids, encoder .* knows 101; prepare it with --tokenizer", encoder, vocab_size=500)
    refused(r"prepared with another tokenizer than encoder", encoder, tokenizer=tokenizer(words=90))
    gpt2 = tmp_path / "gpt2"
    transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2).save_pretrained(gpt2)
    refused(r"is a 'gpt2' model, which cannot run unpadded", ModelSettings(kind="encoder", encoder=str(gpt2)))


@as_subtests("name", CONFIGS)
def test_a_checkpoint_without_a_tokenizer_is_compared_by_the_number_of_ids(name: str, tmp_path: Path) -> None:
    """For some architectures transformers makes one that knows nothing but special tokens."""
    CONFIGS[name]().save_pretrained(tmp_path)
    check_tokenizer(str(tmp_path), 90, tokenizer(words=90))
    with pytest.raises(ModelError, match="the data has 500 token ids"):
        check_tokenizer(str(tmp_path), 500, tokenizer(words=90))


def test_a_checkpoint_without_the_encoders_weights_is_refused(tmp_path: Path) -> None:
    stock = stock_model("bert")
    weights = {name: value for name, value in stock.state_dict().items() if "layer.2" not in name}
    stock.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"lacks 16 weights of its encoder, such as bert.encoder.layer.2"):
        EncoderClassifier.from_pretrained(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model in .*: neither config.json nor best/config.json"):
        load_model(tmp_path)
