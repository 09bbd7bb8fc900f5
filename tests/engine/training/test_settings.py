import dataclasses

import pytest
import yaml
from subtested import as_subtests

from penstock.engine.errors import ConfigError
from penstock.engine.training import suggestions
from penstock.engine.training.recipe import TrainingSet
from penstock.engine.training.sections import describe_settings
from penstock.engine.training.settings import Settings, load_saved_settings, load_settings

MIDDLING = TrainingSet(examples=20_000, mean_length=50.0, max_length=256)


def test_defaults_depend_on_the_kind_of_model():
    lstm = load_settings().resolve(MIDDLING)
    encoder = load_settings(None, ["model.kind=encoder", "model.encoder=some/encoder"]).resolve(MIDDLING)
    assert (lstm.training.epochs, lstm.data.mode, lstm.training.patience) == (4, "bucket", 4)
    assert (encoder.training.epochs, encoder.data.mode, encoder.training.patience) == (3, "pack", 4)
    assert (lstm.data.tokens_per_batch, encoder.data.tokens_per_batch) == (3200, 1600)
    assert 1e-3 <= lstm.training.learning_rate <= 3e-3
    assert 2e-5 <= encoder.training.learning_rate <= 1e-4


def test_a_limit_in_steps_alone_leaves_the_epochs_open():
    assert load_settings(None, ["training.max_steps=7"]).resolve(MIDDLING).training.epochs is None
    both = load_settings(None, ["training.max_steps=7", "training.epochs=2"]).resolve(MIDDLING).training
    assert (both.max_steps, both.epochs) == (7, 2)


def test_overrides_stand_above_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("training:\n  epochs: 4\n  learning_rate: 1e-3\ndata:\n  tokens_per_batch: 100\n")
    settings = load_settings(file, ["training.epochs=5", "training.wandb_project=null"])
    assert settings.training.epochs == 5
    assert settings.training.learning_rate == 1e-3
    assert settings.training.wandb_project is None
    assert settings.data.tokens_per_batch == 100


def test_an_empty_section_is_none(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model:\ntraining:\n  # epochs: 4\ndata:\n  tokens_per_batch: 100\n")
    assert load_settings(file) == load_settings(None, ["data.tokens_per_batch=100"])


def test_yaml_round_trip():
    settings = load_settings(None, ["training.learning_rate=3e-4", "model.hidden_size=12"]).resolve(MIDDLING)
    sections = yaml.safe_load(settings.to_yaml())
    assert set(sections) == {"model", "data", "training", "distillation"}
    again = load_settings(
        None, [f"{s}.{k}={yaml.safe_dump(v).splitlines()[0]}" for s in sections for k, v in sections[s].items()]
    )
    assert again == settings


@as_subtests(
    "override, message",
    [
        ("training.epoch=3", r"unknown setting 'training.epoch': did you mean 'training.epochs'\?"),
        ("tokens_per_batch=3", r"did you mean 'data.tokens_per_batch'\?"),
        ("train.epochs=3", r"did you mean 'training.epochs'\?"),
        ("xyzzy=3", "the sections are model, data, training"),
        ("training.epochs", "'training.epochs' is no setting: write section.key=value"),
        ("model.lora_targets=", "'model.lora_targets=' has no value: write section.key=value"),
        ("training.wandb_project= ", "'training.wandb_project= ' has no value: write section.key=value"),
        ("model.lora_targets=''", "model.lora_targets='' names no layers: give all, attention, or names"),
        ("model.lora_targets=' , '", "model.lora_targets=' , ' names no layers"),
        ("training.epochs=0", "training.epochs must be at least 1, got 0"),
        ("training.epochs=2.5", "training.epochs must be a whole number or null, got 2.5"),
        ("training.epochs=many", "training.epochs must be a whole number or null, got 'many'"),
        ("training.epochs=true", "must be a whole number or null, got True"),
        ("training.warmup=1.5", "training.warmup must be between 0.0 and 1.0, got 1.5"),
        ("training.learning_rate=nan", "training.learning_rate must be a number or null, got 'nan'"),
        ("training.learning_rate=-1", "training.learning_rate must be at least 0.0"),
        ("training.precision=int8", "training.precision must be auto | fp32 | bf16 | fp16, got 'int8'"),
        ("training.compile=3", "training.compile must be true or false, got 3"),
        ("data.validation_fraction=0.9", "between 0.0 and 0.5"),
        ("model.kind=gru", "model.kind"),
        ("data.tokens_per_batch=[1]", "data.tokens_per_batch must be a whole number"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")) as caught:
        load_settings(None, [override])
    assert "\n" not in str(caught.value)


@as_subtests(
    "text, message",
    [
        ("training:\n  epoch: 3\n", r"config.yaml: unknown setting 'training.epoch': did you mean"),
        ("training: 3\n", "'training' must be a section of keys"),
        ("train:\n", "'train' must be a section of keys"),
        ("training: [\n", r"config.yaml:2: not YAML"),
        ("- a\n", "expected sections"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yaml: No such file"):
        load_settings(tmp_path / "absent.yaml")


def test_every_setting_is_listed_and_frozen():
    listed = [line.split("=")[0] for line in describe_settings().splitlines()]
    assert listed == list(Settings().flat())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().training.epochs = 3


# A value other than the default for every setting of the model that not all kinds read, by a kind that does not.
OF_BAGS = {"model.ngrams": "3", "model.buckets": "1000"}
ELSEWHERE = {
    "lstm": {
        **OF_BAGS,
        "model.encoder_dropout": "0.2",
        "model.encoder_attention_dropout": "0.2",
        "model.encoder_head_dropout": "0.2",
        "model.gradient_checkpointing": "true",
        "model.encoder": "some/encoder",
        "model.freeze_layers": "2",
        "model.lora_rank": "8",
        "model.lora_alpha": "8",
        "model.lora_dropout": "0.1",
        "model.lora_targets": "attention",
    },
    "encoder": {
        **OF_BAGS,
        "model.preset": "lstm-4-256",
        "model.num_layers": "3",
        "model.hidden_size": "12",
        "model.bidirectional": "false",
        "model.embedding_size": "12",
        "model.embeddings": "encoder",
        "model.pooling": "mean",
        "model.embedding_dropout": "0.2",
        "model.dropout": "0.3",
        "model.head_dropout": "0.3",
    },
}
ELSEWHERE["bag"] = {
    key: value
    for key, value in (ELSEWHERE["lstm"] | ELSEWHERE["encoder"] | {"model.freeze_embeddings": "true"}).items()
    if key not in OF_BAGS and key != "model.embedding_size"
}
KIND = {
    "lstm": ["model.kind=lstm"],
    "encoder": ["model.kind=encoder", "model.encoder=some/encoder"],
    "bag": ["model.kind=bag"],
}
ALL = {"model.kind", "model.start_from"}


def test_every_key_of_the_model_is_read_by_one_kind_or_by_all():
    keys = {key for key in Settings().flat() if key.startswith("model.")}
    assert keys == ALL.union(*ELSEWHERE.values())


@as_subtests("kind, key", [(kind, key) for kind in KIND for key in ELSEWHERE[kind]])
def test_what_the_model_does_not_use_is_an_error(tmp_path, kind, key):
    value = ELSEWHERE[kind][key]
    with pytest.raises(ConfigError, match=rf"^{key}=.* has no effect: .*set model\.") as caught:
        load_settings(None, [*KIND[kind], f"{key}={value}"])
    assert "\n" not in str(caught.value)
    file = tmp_path / "config.yaml"
    file.write_text(f"model:\n  {key.partition('.')[2]}: {value}\n")
    with pytest.raises(ConfigError, match=rf"config\.yaml: {key}=.* has no effect"):
        load_settings(file, KIND[kind])


@as_subtests(
    "kind, key",
    [
        (kind, key)
        for key in sorted(ELSEWHERE["lstm"] | ELSEWHERE["encoder"])
        for kind in KIND
        if key not in ELSEWHERE[kind]
    ],
)
def test_what_the_model_uses_is_none(kind, key):
    also = ["model.encoder=some/encoder"] if key == "model.embeddings" else []
    also += ["model.num_layers=2"] if key == "model.dropout" else []
    also += ["model.lora_rank=4"] if key.startswith("model.lora_") and key != "model.lora_rank" else []
    value = (ELSEWHERE["lstm"] | ELSEWHERE["encoder"])[key]
    assert load_settings(None, [*KIND[kind], *also, f"{key}={value}"]).model.kind == kind


def test_dropout_between_the_layers_of_one():
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.3 has no effect: .* this lstm has one"):
        load_settings(None, ["model.dropout=0.3"])
    assert load_settings(None, ["model.dropout=0"]).model.dropout == 0


@as_subtests("override", ["weight_decay=0.1", "precision=bf16", "compile=true", "layer_decay=0.9"])
def test_what_training_a_bag_does_not_use(override):
    with pytest.raises(ConfigError, match=rf"(?i)training\.{override} has no effect: this model is a bag"):
        load_settings(None, ["model.kind=bag", f"training.{override}"])


def test_buckets_without_longer_n_grams():
    with pytest.raises(
        ConfigError, match=r"model\.buckets=64 has no effect: single tokens have embeddings of their own"
    ):
        load_settings(None, ["model.kind=bag", "model.ngrams=1", "model.buckets=64"])


@as_subtests(
    "override",
    [
        "training.patience=2",
        "training.metric=macro_f1",
        "training.evaluate_every_steps=5",
        "training.calibrate=true",
        "data.validation_max=10",
    ],
)
def test_what_needs_validation_rows(override):
    load_settings(None, [override])
    with pytest.raises(ConfigError, match=r"has no effect: data\.validation_fraction=0 leaves no rows"):
        load_settings(None, ["data.validation_fraction=0", override])


@pytest.mark.parametrize("override", ["training.patience=0", "training.calibrate=false", "training.patience=null"])
def test_what_asks_for_nothing_needs_none(override):
    load_settings(None, ["data.validation_fraction=0", override])


def test_a_tracker_that_is_not_installed(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="has no effect: wandb is not installed: pip install"):
        load_settings(None, ["training.wandb_project=p"])
    load_settings()


def test_the_configuration_that_a_run_saved_is_taken_again(tmp_path):
    """Also one of an earlier version, with settings that its model did not use."""
    for overrides in ([], KIND["encoder"], KIND["bag"], ["data.validation_fraction=0"], ["model.preset=lstm-4-512"]):
        file = tmp_path / "config.yaml"
        settings = load_settings(None, overrides).resolve(MIDDLING)
        file.write_text(settings.to_yaml())
        assert load_settings(file) == settings
        assert load_saved_settings(file) == settings
    file.write_text(
        "model: {kind: lstm, encoder: some/encoder, encoder_dropout: 0.1}\ndata: {tokens_per_batch: 8192}\n"
    )
    saved = load_saved_settings(file)
    assert (saved.model.kind, saved.resolve(MIDDLING).data.tokens_per_batch) == ("lstm", 8192)


def test_what_is_given_stands_above_the_recipe():
    given = ["data.tokens_per_batch=77", "training.epochs=9", "training.patience=1", "training.learning_rate=1"]
    settings = load_settings(None, [*given, "data.validation_fraction=0.3", "data.mode=pack"]).resolve(MIDDLING)
    assert (settings.data.tokens_per_batch, settings.data.validation_fraction, settings.data.mode) == (77, 0.3, "pack")
    assert (settings.training.epochs, settings.training.patience, settings.training.learning_rate) == (9, 1, 1.0)


@as_subtests("word", ["yes", "1", "1.0", "null", "true", "spam mail", "0x1f", "2024-01-01"])
def test_labels_of_class_weights_are_text_as_written(tmp_path, word):
    file = tmp_path / "config.yaml"
    file.write_text(f"training:\n  class_weights:\n    {word}: 3\n    other: 1e-1\n")
    for settings in (load_settings(file), load_settings(None, [f"training.class_weights={{{word}: 3, other: 1e-1}}"])):
        assert settings.training.class_weights == {word: 3.0, "other": 0.1}
        file.write_text(settings.to_yaml())
        assert load_saved_settings(file) == settings


@as_subtests("value", ["{a: 0}", "{a: -1}", "{a: x}", "{}", "[1, 2]", "balance", "3", "{a: .nan}", "{a: 1, a: 2}"])
def test_wrong_class_weights(value):
    with pytest.raises(ConfigError, match=r"training\.class_weights must be"):
        load_settings(None, [f"training.class_weights={value}"])


@as_subtests(
    "words, meant",
    [
        ("lr learning-rate --learning_rate LEARNING_RATE base_lr learning_rat", "training.learning_rate"),
        ("batch_size per_device_train_batch_size bs train_batch_size tokens_per_batc", "data.tokens_per_batch"),
        ("num_train_epochs n_epochs num_epochs epochs epoch", "training.epochs"),
        ("warmup_ratio warmup_steps warmup num_warmup_steps", "training.warmup"),
        ("fp16 bf16 mixed_precision", "training.precision"),
        ("label_smoothing_factor label_smoothing label-smoothing", "training.label_smoothing"),
        ("gradient_accumulation_steps accumulate_grad_batches", "data.batches_per_step"),
        ("max_grad_norm gradient_clip_val grad_clip", "training.max_grad_norm"),
        ("weight_decay wd", "training.weight_decay"),
        ("lr_scheduler_type scheduler schedule", "training.schedule"),
        ("seed random_state", "training.seed"),
        ("hidden_dim hidden_size hidden", "model.hidden_size"),
        ("dropout", "model.dropout .*model.encoder_dropout"),
        ("num_layers n_layers", "model.num_layers"),
        ("class_weight class_weights", "training.class_weights"),
        ("from init_from", "model.start_from"),
        ("num_labels num_classes", "the classes are those of the data"),
        ("max_length max_seq_length", "data.max_length"),
        ("truncation truncation_side", "data.truncation"),
    ],
)
def test_the_words_that_people_bring_along(words, meant):
    for word in words.split():
        for key in (word, f"training.{word}", f"model.{word}", f"trainer.{word}"):
            if key in Settings().flat():
                continue
            with pytest.raises(ConfigError, match=f"unknown setting '{key}': .*{meant}"):
                load_settings(None, [f"{key}=1"])


def test_a_setting_without_its_section_finds_itself():
    known = list(Settings().flat())
    for key in known:
        assert key in suggestions.suggest(key.rpartition(".")[2], known), key


@as_subtests("word", ["xyzzy", "foo", "training.foo", "model.x", "data.", ".", "a.b.c", "", "colour", "beta"])
def test_nothing_near_suggests_nothing(word):
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        load_settings(None, [f"{word}=1"])
    assert "did you mean" not in str(caught.value)
    assert "here that is" not in str(caught.value)


def test_every_setting_is_explained():
    for line in describe_settings().splitlines():
        key, _, rest = line.partition("=")
        assert len(rest.split("  ")) >= 3, line
        assert rest.split("  ")[2], key
    listing = describe_settings()
    assert "model.num_layers=null  (a whole number or null)  LSTM layers; null: by preset  [at least 1, lstm" in listing
    assert "[encoder only]" in listing
