"""Adapters, frozen layers and learning rates by layer."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from subtested import as_subtests
from tiny_encoders import LABELS, VOCAB, stock_model

from penstock.engine.errors import ConfigError, ModelError
from penstock.engine.models import EncoderClassifier, ModelSettings, build_model, load_model
from penstock.engine.models.architectures import layers_of
from penstock.engine.models.fuse import unfuse
from penstock.engine.training.optimizer import build_optimizer
from penstock.engine.training.settings import load_settings
from penstock.kernels import Ragged

LENGTHS = [7, 1, 13, 2]
LABEL = torch.tensor([0, 1, 2, 1])
BATCH = Ragged.from_lengths(
    torch.randint(3, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1), dtype=torch.int32), LENGTHS
)
ARCHITECTURES = ["bert", "electra", "distilbert", "modernbert"]


@pytest.fixture
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    stock_model(getattr(request, "param", "bert")).save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def build(encoder: str, **settings: object) -> EncoderClassifier:
    torch.manual_seed(0)
    chosen = ModelSettings(kind="encoder", encoder=encoder, **settings)
    model = build_model(chosen, vocab_size=VOCAB, num_labels=LABELS)
    assert isinstance(model, EncoderClassifier)
    return model


def trained(model: EncoderClassifier, steps: int = 4) -> list[float]:
    """Losses, without dropout."""
    model.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(BATCH, labels=LABEL).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("targets", ["all", "attention"])
@pytest.mark.parametrize("encoder", ARCHITECTURES, indirect=True)
def test_adapters_train_as_in_the_stock_model_and_merge_into_it(encoder: str, targets: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    model = build(encoder, lora_rank=4, lora_targets=targets)
    plain = copy.deepcopy(model)
    unfuse(plain.model)
    losses = trained(model)
    torch.testing.assert_close(losses, trained(plain), rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0]
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(adapters) == 2 * len(adapted) >= 4 * len(layers_of(model.model))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all("classifier" not in name and "lora_" not in name and "pooler" not in name for name in frozen)
    assert any("embeddings" in name for name in frozen)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run", attn_implementation="eager"
    )
    assert list(stock.state_dict()) == list(stock_model(stock.config.model_type).state_dict())
    with torch.no_grad():
        expected = model(BATCH).logits
        torch.testing.assert_close(load_model(tmp_path / "run").eval()(BATCH).logits, expected, rtol=1e-4, atol=1e-5)
        for row, text in zip(expected, BATCH.values.split(LENGTHS), strict=True):
            torch.testing.assert_close(stock.eval()(input_ids=text[None].long()).logits[0], row, rtol=1e-4, atol=1e-5)


def test_adapters_stand_where_they_are_wanted(encoder: str) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    model = build(encoder, lora_rank=2, lora_targets="query, value", freeze_layers=1, lora_alpha=8, lora_dropout=0.25)
    adapted = {name for name, module in model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {f"bert.encoder.layer.{i}.attention.self.{part}" for i in (1, 2) for part in ("query", "value")}
    one = model.model.bert.encoder.layer[2].attention.self.query
    assert (one.scaling, one.lora_dropout["default"].p) == ({"default": 4.0}, 0.25)
    with pytest.raises(ModelError, match=r"no linear layer is named dens; give all, attention, or some of dense, key"):
        build(encoder, lora_rank=2, lora_targets="query,dens")
    with pytest.raises(ModelError, match="every layer is frozen"):
        build(encoder, lora_rank=2, freeze_layers=3)


def test_without_peft_one_line_says_how_to_get_it(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"model.lora_rank needs peft: pip install 'penstock\[lora\]'"):
        build(encoder, lora_rank=2)


@pytest.mark.parametrize("encoder", ARCHITECTURES, indirect=True)
def test_frozen_layers_are_left_alone(encoder: str) -> None:
    model = build(encoder, freeze_layers=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model, 2)
    stayed = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    layers = layers_of(model.model)
    names = {name for name, parameter in model.named_parameters() if model.depths()[parameter] <= 2}
    assert names == stayed & {name for name, _ in model.named_parameters()}
    assert {id(p) for layer in layers[2:] for p in layer.parameters()}.isdisjoint(
        id(p) for name, p in model.named_parameters() if name in names
    )
    grouped = {
        id(p)
        for group in build_optimizer(model, learning_rate=1e-3, weight_decay=0.1).param_groups
        for p in group["params"]
    }
    assert grouped == {id(p) for name, p in model.named_parameters() if name not in names}
    with pytest.raises(ModelError, match=r"model.freeze_layers=9, but the encoder has [34] layers"):
        build(encoder, freeze_layers=9)


@pytest.mark.parametrize("encoder", ARCHITECTURES, indirect=True)
def test_a_layer_learns_by_its_share_of_the_rate_above_it(encoder: str) -> None:
    model = build(encoder)
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.1, layer_decay=0.5)
    shares = {id(p): group["share"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    layers = list(layers_of(model.model))
    for name, parameter in model.model.named_parameters():
        inside = [i for i, layer in enumerate(layers) if any(parameter is p for p in layer.parameters())]
        top = 0 if "embeddings" in name else inside[0] + 1 if inside else len(layers) + 1
        assert shares[id(parameter)] == 0.5 ** (len(layers) + 1 - top), name
        assert decays[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0)
    assert len(shares) == len(list(model.parameters()))


@as_subtests(
    "overrides, message",
    [
        (["freeze_layers=1"], r"model.freeze_layers=1 has no effect: this model is an lstm"),
        (["lora_rank=8"], r"model.lora_rank=8 has no effect: .*model.kind=encoder"),
        (["lora_rank=8", "lora_alpha=8.0"], r"has no effect: this model is an lstm"),
        (["encoder=x", "lora_targets=all"], r"model.lora_targets=all has no effect: there are no adapters"),
        (["encoder=x", "lora_rank=0"], r"model.lora_rank must be at least 1, got 0"),
        (["encoder=x", "lora_rank=4", "lora_alpha=0.0"], r"model.lora_alpha must be at least"),
        (["encoder=x", "lora_rank=4", "lora_dropout=1.0"], r"model.lora_dropout must be at least 0 and below 1"),
        (["encoder=x", "freeze_layers=-1"], r"model.freeze_layers must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(None, [f"model.{override}" for override in overrides])


def test_layer_decay_is_for_models_with_layers() -> None:
    assert load_settings(None, ["training.layer_decay=0.9"]).training.layer_decay == 0.9
    with pytest.raises(ConfigError, match=r"training.layer_decay=0.9 has no effect: this model is a bag"):
        load_settings(None, ["model.kind=bag", "training.layer_decay=0.9"])
    with pytest.raises(ConfigError, match=r"training.layer_decay must be between 0.0 and 1.0"):
        load_settings(None, ["model.kind=encoder", "model.encoder=x", "training.layer_decay=1.5"])


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_as_if_it_had_not_stopped(encoder: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from penstock.engine.data.prepare import prepare
    from penstock.engine.training.train import train

    words = {f"w{i}": i + 4 for i in range(20)}
    special = {name: i for i, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))}
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = Tokenizer(models.WordLevel({**special, **words}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "plain")
    rows = [f"w{i % 20} w{(i * 7) % 20} w{(i * 3) % 20},{'abc'[i % 3]}" for i in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    store = prepare(
        str(tmp_path / "train.csv"),
        tmp_path / "store",
        tokenizer=str(tmp_path / "tokenizer"),
        max_length=16,
        progress=False,
    )
    bare = stock_model("bert")
    bare.save_pretrained(tmp_path / "plain")
    common = ["model.kind=encoder", f"model.encoder={tmp_path / 'plain'}", "model.lora_rank=2", "model.freeze_layers=1"]
    common += ["training.layer_decay=0.8", "training.tensorboard=false", "data.tokens_per_batch=64"]
    common += ["training.checkpoint_every_steps=2", "training.log_every_steps=1"]
    settings = load_settings(None, [*common, "training.max_steps=6"])
    train(settings, store, tmp_path / "whole", progress="none", device="cpu")

    from penstock.engine.training.loop import Loop

    write, stopped = Loop._checkpoint, []

    def stop_at_two(self: Loop, **kwargs: bool) -> None:
        write(self, **kwargs)
        if self.counters.step == 4 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_checkpoint", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            train(settings, store, tmp_path / "stopped", progress="none", device="cpu")
    train(settings, store, tmp_path / "stopped", progress="none", device="cpu")
    files = [tmp_path / run / "model.safetensors" for run in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    losses = []
    for run in ("whole", "stopped"):
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["split"] == "train"])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
