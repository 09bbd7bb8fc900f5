"""Runs that learn from texts without labels, and what starts from them."""

import json
import shutil

import pytest
import torch
from rank_runs import train_in_ranks
from ranks import run_ranks
from stopping import stop_at
from subtested import as_subtests
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from penstock.engine.cli import app
from penstock.engine.data.prepare import prepare
from penstock.engine.data.store import Store
from penstock.engine.errors import ConfigError, ModelError, PenstockError, RunError, StoreError
from penstock.engine.models import load_model
from penstock.engine.models.pretrained import build_pretraining, load_pretraining
from penstock.engine.training.optimizer import build_optimizer
from penstock.engine.training.recipe import TrainingSet, pretraining_recipe
from penstock.engine.training.setting_use import CLASSIFIER_ONLY
from penstock.engine.training.settings import load_settings
from penstock.engine.training.signals import Interrupted
from penstock.engine.training.train import train
from penstock.engine.training.trained import TrainedRun

TINY = ["model.hidden_size=8", "model.embedding_size=8", "training.tensorboard=false", "training.log_every_steps=1"]
KINDS = ("masked", "replaced", "encoder")


def penstock(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def encoder(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=store.vocab_size, max_position_embeddings=64, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    store.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wanted(settings, encoder):
    """The settings of a pretraining run of a kind."""

    def make(kind, *overrides):
        chosen = ["pretraining.objective=" + ("replaced" if kind == "replaced" else "masked")]
        if kind == "encoder":
            chosen += ["model.kind=encoder", f"model.encoder={encoder}"]
        if kind == "masked":
            chosen += ["pretraining.candidates=40"]
        return settings(*chosen, "training.precision=fp32", *overrides)

    return make


@pytest.fixture(scope="module")
def pretrained(wanted, store, tmp_path_factory):
    """A run of each kind."""
    runs = {}
    for kind in KINDS:
        runs[kind] = tmp_path_factory.mktemp("pretrained") / kind
        train(wanted(kind, "training.max_steps=3"), store, runs[kind], progress="none")
    return runs


def weights(run, name="last"):
    return (run / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_on_other_texts_falls(tmp_path, store, wanted, kind):
    run = tmp_path / "run"
    result = train(wanted(kind, "training.epochs=12", "training.learning_rate=1e-2"), store, run, progress="none")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "validation"]
    assert result.validation.loss == min(losses) < 0.9 * losses[0]
    assert len({line["num_told"] for line in lines if line["split"] == "validation"}) == 1
    assert all(line["loss"] > 0 and 0 <= line["accuracy"] <= 1 for line in lines if line["split"] == "train")


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere_it_ends_as_if_nothing_had_been(tmp_path, store, wanted, kind):
    chosen = wanted(kind, "training.max_steps=6", "training.checkpoint_every_steps=2")
    whole = train(chosen, store, tmp_path / "whole", progress="none")
    for step in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted):
                train(chosen, store, tmp_path / "parts", progress="none")
    again = train(chosen, store, tmp_path / "parts", progress="none")
    assert again.validation == whole.validation
    for name in ("best", "last"):
        assert weights(tmp_path / "whole", name) == weights(tmp_path / "parts", name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "replaced"])
def test_several_processes_hide_the_same_tokens(tmp_path, store, kind):
    chosen = [*TINY, f"pretraining.objective={kind}", "data.tokens_per_batch=128", "data.batches_per_step=4"]
    chosen += ["training.learning_rate=1e-2", "training.max_steps=5", "training.precision=fp32"]
    runs = {}
    for size in (1, 2):
        runs[size] = tmp_path / str(size)
        found = run_ranks(size, train_in_ranks, chosen, store.path, None, runs[size])
        assert all("error" not in one for one in found), found
    losses = []
    for run in runs.values():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["split"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_tokens_end_a_run_and_extend_it(tmp_path, store, wanted):
    run = tmp_path / "run"
    settings = load_settings(
        None, [*TINY, "pretraining.objective=masked", "pretraining.tokens=2000", "training.epochs=9"]
    )
    result = train(settings, store, run, progress="none")
    assert result.stopped_by == "tokens"
    assert result.tokens >= 2000
    longer = train(load_settings(None, ["pretraining.objective=masked", "pretraining.tokens=4000"]), store, run)
    assert longer.tokens >= 4000
    with pytest.raises(ConfigError, match=r"pretraining.tokens=3000: .* has done 4,... tokens already"):
        train(load_settings(None, ["pretraining.objective=masked", "pretraining.tokens=3000"]), store, run)


def test_it_needs_no_labels(tmp_path, texts, store, wanted):
    source = tmp_path / "lists.jsonl"
    rows = [{"text": f"a lovely film {n}", "label": ["a", "b"][: n % 3]} for n in range(60)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lists = prepare(str(source), tmp_path / "lists", tokenizer=str(store.path / "tokenizer"), progress=False)
    assert lists.multi_label
    result = train(wanted("masked", "training.max_steps=2"), lists, tmp_path / "run", progress="none")
    assert result.validation.num_examples == 6
    assert result.thresholds is None


def test_texts_without_labels_prepared_or_raw(tmp_path, texts, store):
    source = tmp_path / "texts.txt"
    lines = (texts["train"]).read_text().splitlines()[1:80]
    source.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    quick = ["training.max_steps=2", *TINY]
    bare = prepare(str(source), tmp_path / "bare", like=store.path, unlabelled=True, progress=False)
    penstock("pretrain", "--texts", bare.path, "--out", tmp_path / "one", *quick)
    assert "3 steps" in penstock("pretrain", "--out", tmp_path / "one", "training.max_steps=3")
    tokenizer = ["--tokenizer", shutil.copytree(store.path / "tokenizer", tmp_path / "tokenizer")]
    penstock("pretrain", "--texts", source, *tokenizer, "--out", tmp_path / "two", *quick)
    shutil.rmtree(tmp_path / "tokenizer")  # which the run has
    for number, same in enumerate((tokenizer, []), 3):
        more = ["--out", tmp_path / "two", f"training.max_steps={number}", *TINY]
        assert f"two: {number} steps" in penstock("pretrain", "--texts", source, *same, *more)
    assert Store.open(tmp_path / "two.texts", labelled=False).num_examples == len(lines)
    tuned = load_settings(None, [f"model.start_from={tmp_path / 'two'}", "training.max_steps=1", *TINY[2:]])
    assert train(tuned, store, tmp_path / "tuned", progress="none").steps == 1
    source.write_text("another film\n")
    for asked in (tokenizer, ["--tokenizer", "train:bpe:300"]):
        with pytest.raises(PenstockError, match=r"two\.texts was prepared from other texts .* gives now: give another"):
            penstock("pretrain", "--texts", source, *asked, "--out", tmp_path / "two", *quick)
    for stated, said in {
        ("--texts", bare.path, *tokenizer): "--tokenizer has no effect: .* is a store",
        tuple(tokenizer): "--tokenizer has no effect: no raw texts are given",
        ("--texts", tmp_path / "nothing.txt"): "nothing.txt",
    }.items():
        with pytest.raises(PenstockError, match=said):
            penstock("pretrain", *stated, "--out", tmp_path / "three")
    assert not (tmp_path / "three").exists()


# what is asked of a pretraining run, or of one of the other kind, and what is said
REFUSED = {
    "predict {run} {texts} --out {out}": "is a pretraining run",
    "evaluate {run} --data {store}": "is a pretraining run",
    "compare {run} {run} --data {store}": "is a pretraining run",
    "train --out {run}": "is a pretraining run",
    "train --train {store} --out {run}": "is a pretraining run",
    "pretrain --texts {store} --out {classifier}": "not a pretraining run",
    "pretrain --out {classifier}": "not a pretraining run",
}


@pytest.fixture(scope="module")
def classifier(settings, store, tmp_path_factory):
    run = tmp_path_factory.mktemp("classifier") / "run"
    train(settings("training.max_steps=2"), store, run, progress="none")
    return run


@pytest.mark.parametrize("kind", ["masked", "encoder"])
def test_each_command_says_what_a_run_is(tmp_path, texts, store, pretrained, classifier, kind):
    places = {"run": pretrained[kind], "classifier": classifier, "texts": texts["train"], "store": store.path}
    for command, said in REFUSED.items():
        words = [word.format(**places, out=tmp_path / "out.csv") for word in command.split()]
        with pytest.raises(RunError, match=said) as caught:
            penstock(*words)
        assert "\n" not in str(caught.value)
    for use in (load_model, TrainedRun.open):
        with pytest.raises((ModelError, RunError), match="penstock train --from"):
            use(pretrained[kind])


VALUES = {
    "model.pooling": "mean",
    "model.start_from": "{run}",
    "training.class_weights": "balanced",
    "training.metric": "macro_f1",
    "model.head_dropout": "0.3",
    "model.encoder_head_dropout": "0.3",
    "model.freeze_layers": "1",
    "model.lora_rank": "2",
    "training.layer_decay": "0.9",
    "training.label_smoothing": "0.1",
}


@as_subtests("key", sorted(CLASSIFIER_ONLY))
def test_pretraining_refuses_what_it_does_not_use(pretrained, encoder, key):
    value = VALUES.get(key, "true").format(run=pretrained["masked"])
    kind = [f"model.encoder={encoder}"] if any(part in key for part in ("encoder", "freeze", "lora")) else []
    with pytest.raises(ConfigError, match=f"{key}=.* has no effect"):
        load_settings(None, ["pretraining.objective=masked", *kind, f"{key}={value}"])


@as_subtests(
    "stated, said",
    [
        (["pretraining.share=0.2"], "penstock pretrain reads it"),
        (["pretraining.objective=masked", "distillation.mix=0.2"], "learns from texts without labels"),
        (["pretraining.tokens=5"], "penstock pretrain reads it"),
        (["pretraining.candidates=5"], "penstock pretrain reads it"),
        (["pretraining.objective=replaced", "pretraining.candidates=5"], "tells no tokens"),
        (["pretraining.objective=replaced", "model.encoder=x"], "this model is an encoder"),
        (["pretraining.objective=masked", "model.encoder=x", "pretraining.candidates=5"], "does not use it"),
        (["pretraining.objective=masked", "model.kind=bag"], "this model is a bag"),
        (["pretraining.objective=else"], "must be masked"),
        (["pretraining.objective=masked", "pretraining.share=0"], "must be between 0.01 and 0.9"),
    ],
)
def test_settings_that_do_not_fit(stated, said):
    with pytest.raises(ConfigError, match=said):
        load_settings(None, stated)


def test_train_does_not_pretrain(tmp_path, store):
    with pytest.raises(ConfigError, match="is for penstock pretrain"):
        penstock("train", "--train", store.path, "--out", tmp_path / "run", "pretraining.objective=masked")


def test_a_tokenizer_without_mask(store, settings):
    chosen, tokenizer = settings("pretraining.objective=masked"), store.tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match=r"no mask token.*set pretraining.objective=replaced"):
        build_pretraining(chosen.model, chosen.pretraining, store.vocab_size, tokenizer)


def test_the_commands(tmp_path, store, encoder):
    run = tmp_path / "run"
    quick = ["training.max_steps=2", "training.tensorboard=false"]
    said = penstock("pretrain", "--texts", store.path, "--out", run, "--dry-run", *TINY, *quick)
    assert "the run: at most 2 steps" in said
    assert not run.exists()
    said = penstock("pretrain", "--model", "lstm", "--texts", store.path, "--out", run, *TINY, *quick)
    assert "tokens told, in 24 texts" in said
    assert said.splitlines()[-2:] == penstock("pretrain", "--out", run).splitlines()[-2:]
    assert "3 steps" in penstock("pretrain", "--out", run, "training.max_steps=3")
    said = penstock("train", "--from", run, "--train", store.path, "--out", tmp_path / "tuned", *quick)
    assert "validation, best at step 2: accuracy" in said
    assert "accuracy" in penstock("evaluate", tmp_path / "tuned", "--data", store.path)
    with pytest.raises(ConfigError, match="give --texts STORE"):
        penstock("pretrain", "--out", tmp_path / "none")


QUICK = ["training.tensorboard=false", "training.max_steps=2", "training.precision=fp32"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_begins_with_what_was_learnt(tmp_path, store, pretrained, kind, capsys):
    run, earlier = tmp_path / "run", tmp_path / "earlier"
    shutil.copytree(pretrained[kind], earlier, symlinks=True)
    chosen = load_settings(None, [f"model.start_from={earlier}", *QUICK, "training.learning_rate=0"])
    train(chosen, store, run, progress="plain")
    assert "pretrained on texts without labels: the classifier is new" in capsys.readouterr().err
    before, after = load_pretraining(earlier, 0.1).state_dict(), load_model(run).state_dict()
    shared = before.keys() & after.keys()
    assert len(shared) >= len(after) - 4
    assert all(torch.equal(before[name], after[name]) for name in shared)
    shutil.rmtree(earlier)
    again = train(load_settings(None, ["training.max_steps=3"]), store, run, progress="none")
    assert again.steps == 3


def test_a_pretrained_encoder_is_one_of_transformers(pretrained, encoder, store, tmp_path):
    before, after = (AutoModelForMaskedLM.from_pretrained(path) for path in (encoder, pretrained["encoder"]))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert not torch.equal(before.bert.embeddings.word_embeddings.weight, after.bert.embeddings.word_embeddings.weight)
    chosen = load_settings(None, [f"model.encoder={pretrained['encoder']}", *QUICK])
    assert train(chosen, store, tmp_path / "run", progress="none").steps == 2


def test_a_tuned_lstm_may_pool_in_another_way(tmp_path, store, pretrained):
    chosen = load_settings(None, [f"model.start_from={pretrained['masked']}", "model.pooling=attention", *QUICK])
    train(chosen, store, tmp_path / "run", progress="none")
    assert load_model(tmp_path / "run").config.pooling == "attention"


def _another_tokenizer(tmp_path, texts, store, run):
    other = prepare(str(texts["train"]), tmp_path / "words", tokenizer="train:wordpiece:110", progress=False)
    return other, [], StoreError, "was prepared with another tokenizer"


def _another_size(tmp_path, texts, store, run):
    return store, ["model.hidden_size=9"], ConfigError, r"model\.hidden_size=9 contradicts model\.start_from"


def _another_depth(tmp_path, texts, store, run):
    return store, ["model.num_layers=2"], ConfigError, r"model\.num_layers=2 contradicts"


def _another_kind(tmp_path, texts, store, run):
    return store, ["model.kind=bag"], ConfigError, r"model\.kind=bag contradicts"


def _another_encoder(tmp_path, texts, store, run):
    return store, ["model.kind=encoder", "model.encoder=x"], ConfigError, r"model\.(kind|encoder)=\S+ contradicts"


def _damaged_weights(tmp_path, texts, store, run):
    file = run / "best" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.resolve().write_bytes(content)
    return store, [], ModelError, "model.safetensors"


def _no_weights(tmp_path, texts, store, run):
    (run / "best" / "model.safetensors").resolve().unlink()
    return store, [], ModelError, "model.safetensors"


def _damaged_record(tmp_path, texts, store, run):
    (run / "run.json").write_text((run / "run.json").read_text()[:-40])
    return store, [], RunError, "run.json"


def _edited_settings(tmp_path, texts, store, run):
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("hidden_size: 8", "hidden_size: 9"))
    return store, [], RunError, "config.yaml is damaged or was edited"


def _no_model(tmp_path, texts, store, run):
    for name in ("best", "config.json", "checkpoints"):
        place = run / name
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    return store, [], ModelError, "no model in"


@pytest.mark.parametrize(
    "spoil",
    [
        _another_tokenizer,
        _another_size,
        _another_depth,
        _another_kind,
        _another_encoder,
        _damaged_weights,
        _no_weights,
        _damaged_record,
        _edited_settings,
        _no_model,
    ],
)
def test_what_a_classifier_cannot_begin_with(tmp_path, texts, store, pretrained, spoil):
    run = tmp_path / "earlier"
    shutil.copytree(pretrained["masked"], run, symlinks=True)
    data, stated, kind, said = spoil(tmp_path, texts, store, run)
    with pytest.raises(PenstockError, match=said) as caught:
        train(load_settings(None, [f"model.start_from={run}", *stated, *QUICK]), data, tmp_path / "run")
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_rates_of_an_lstms_layers(tmp_path, store, pretrained):
    chosen = load_settings(None, [f"model.start_from={pretrained['masked']}", "training.layer_decay=0.5", *QUICK])
    train(chosen, store, tmp_path / "run", progress="none")
    model = load_model(tmp_path / "run")
    groups = build_optimizer(model, learning_rate=1.0, weight_decay=0.0, layer_decay=0.5).param_groups
    shares = {id(parameter): group["share"] for group in groups for parameter in group["params"]}
    found = {name: shares[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["classifier.weight"] == 1.0
    assert found["lstm.weight_hh_l0"] == found["lstm.weight_ih_l0_reverse"] == 0.5
    assert found["embeddings.weight"] == 0.25


@as_subtests(
    "kind, tokens, batch",
    [
        ("lstm", 3_000_000, 2_048),
        ("lstm", 20_000_000, 4_000),
        ("lstm", 250_000_000, 8_192),
        ("lstm", None, 8_192),
        ("encoder", 3_000_000, 8_192),
    ],
)
def test_little_text_is_read_in_small_batches(kind, tokens, batch):
    chosen = pretraining_recipe(kind, TrainingSet(examples=10_000, mean_length=200.0, max_length=1_024), tokens)
    assert chosen["data.tokens_per_batch"] == batch
    assert chosen["data.validation_fraction"] == 0.1
    assert chosen["training.epochs"] == 20
