"""`training.shard`: several processes share a model out, and nothing else is different."""

import json

import pytest
import torch
from rank_runs import layers_stay_fused, train_in_ranks
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_encoders import stock_model

QUICK = [
    "data.tokens_per_batch=128",
    "data.batches_per_step=4",
    "training.max_steps=6",
    "training.schedule=constant",
    "training.warmup=0",
    "training.evaluate_every_steps=3",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=2",
    "training.tensorboard=false",
    "training.precision=fp32",
]
VALIDATION_TEXTS = 48  # a fifth of 240
LSTM = ["model.kind=lstm", "model.hidden_size=8", "model.embedding_size=6", "training.learning_rate=1e-2"]
MODELS = {
    "lstm": LSTM,
    "lstm, two layers": [*LSTM, "model.num_layers=2", "model.pooling=last", "model.dropout=0.2"],
    "encoder": [],
    "encoder, dropping": ["model.encoder_dropout=0.3", "training.max_grad_norm=0.1"],
    "encoder, frozen layers": ["model.freeze_layers=1"],
    "encoder, by layer": ["training.layer_decay=0.8", "model.gradient_checkpointing=true"],
    "encoder, adapters": ["model.lora_rank=2", "model.lora_dropout=0.1"],
    "encoder, balanced, in bf16": ["training.class_weights=balanced", "training.precision=bf16"],
    "encoder, calibrated": ["training.calibrate=true", "training.label_smoothing=0.1"],
}
QUICKLY = ("lstm", "encoder, dropping", "encoder, adapters")


@pytest.fixture(scope="module")
def encoder(store, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    stock_model("bert", vocab_size=store.vocab_size).save_pretrained(folder)
    store.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def start(store, test_store, encoder, tmp_path):
    """Runs a model in ranks, and returns the ranks' findings."""

    def ranks(name, size, run, *overrides, shard=True):
        model = MODELS[name]
        if "model.kind=lstm" not in model:
            model = ["model.kind=encoder", f"model.encoder={encoder}", "training.learning_rate=1e-3", *model]
        given = [*QUICK, *model, f"training.shard={str(shard).lower()}", *overrides]
        return run_ranks(size, train_in_ranks, given, store.path, test_store.path, tmp_path / run)

    return ranks


def lines(run, *splits):
    """(splits, figures) of the log's lines of training and evaluation, or of some splits."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in found if line["split"] in (splits or ("train", "validation"))]
    kept = ("step", "loss", "accuracy", "grad_norm", "learning_rate", "examples", "tokens")
    return [line["split"] for line in found], [{key: line[key] for key in kept if key in line} for line in found]


def distance(one, other):
    """The distance of two runs' saved models, relative; they have the same tensors."""
    there, here = (load_file(run / "model.safetensors") for run in (one, other))
    assert {name: (t.shape, t.dtype) for name, t in there.items()} == {n: (t.shape, t.dtype) for n, t in here.items()}
    apart = sum((there[name] - here[name]).double().square().sum() for name in there)
    return float((apart / sum(tensor.double().square().sum() for tensor in there.values())).sqrt())


def same(one, other, *splits, rel=1e-3, texts=0):
    """The bound of tests/engine/training/test_processes.py, and how many `texts` an evaluation may tell otherwise."""
    (splits, figures), (their_splits, theirs) = lines(one, *splits), lines(other, *splits)
    assert splits == their_splits
    assert splits.count("train") == 6
    for here, there in zip(figures, theirs, strict=True):
        # One text of some dozens that lies between two classes moves the accuracy by more than any relative bound.
        right = [line.pop("accuracy", 0.0) * VALIDATION_TEXTS for line in (here, there)]
        assert right[0] == pytest.approx(right[1], abs=texts + 1e-6)
        assert here == pytest.approx(there, rel=rel, abs=1e-6)
    assert distance(one, other) < rel


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICKLY else [pytest.mark.slow]) for name in MODELS]
)
def test_shares_train_as_one_process(start, tmp_path, name):
    (alone,) = start(name, 1, "alone")
    assert "training.shard=true changes nothing here: one process has no others" in alone["said"]
    for size in (2, 4) if name == "lstm" else (2,):
        run = tmp_path / f"by-{size}"
        shares = start(name, size, run.name)
        same(tmp_path / "alone", run, **({"rel": 2e-2, "texts": 2} if "bf16" in name else {}))
        for share in shares:
            assert "error" not in share
            assert share["parameters"] == alone["parameters"]
            assert share["test"] == pytest.approx(alone["test"], rel=2e-2, abs=0.03)  # two of 90 texts
            assert "changes nothing" not in share["said"]
            # of every tensor 1/size of its rows, rounded up
            assert share["held"] < 0.7 * alone["held"]
        held = sum(share["held"] for share in shares)
        assert held == pytest.approx(alone["held"], rel=0.02)
        one, other = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "alone", run))
        temperatures = [config.pop("calibration_temperature", 1.0) for config in (one, other)]
        assert one == other
        assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)


TO_OTHERS = [(2, True, 1, False), (1, False, 2, True), (4, True, 2, True), (2, True, 2, False), (2, False, 4, True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "encoder, adapters"])
@pytest.mark.parametrize(
    ("size", "shard", "size_then", "shard_then"),
    TO_OTHERS,
)
def test_a_checkpoint_is_gone_on_from_by_others(start, tmp_path, name, size, shard, size_then, shard_then):
    start(name, 1, "whole", shard=False)
    start(name, size, "handed-over", "training.max_steps=4", shard=shard)
    state = torch.load(tmp_path / "handed-over/last/training_state.pt", weights_only=True)  # no process group is needed
    kept = [tensor for tensors in state["stepper"]["optimizer"]["state"].values() for tensor in tensors.values()]
    assert {type(tensor) for tensor in kept} == {torch.Tensor}
    found = start(name, size_then, "handed-over", shard=shard_then)
    assert not any("error" in one for one in found)
    # it was evaluated at its first end too
    same(tmp_path / "whole", tmp_path / "handed-over", "train")


@pytest.mark.slow
def test_a_shared_checkpoint_goes_on_to_the_last_bit(start, tmp_path):
    start("encoder, dropping", 2, "whole")
    start("encoder, dropping", 2, "again", "training.max_steps=4")
    start("encoder, dropping", 2, "again")
    one, other = (tmp_path / run / "last" / "model.safetensors" for run in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.compile=true"], "training.compile=true does not go with training.shard=true"),
        (["data.tokens_per_batch=auto"], "data.tokens_per_batch=auto tries whole models"),
    ],
)
def test_what_does_not_go_with_shares_is_refused_in_a_line(start, overrides, words):
    for found in start("lstm", 2, "run", *overrides):
        assert found["error"].startswith(f"ConfigError: {words}")


def test_layers_stay_fused():
    assert run_ranks(2, layers_stay_fused, "bert") == [1, 1]
