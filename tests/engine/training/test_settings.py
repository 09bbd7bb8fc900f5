import dataclasses

import pytest
import yaml

from penstock.engine.errors import ConfigError
from penstock.engine.training.settings import Settings, describe_settings, load_settings


def test_defaults_depend_on_the_kind_of_model():
    lstm = load_settings().resolve()
    encoder = load_settings(None, ["model.kind=encoder", "model.encoder=some/encoder"]).resolve()
    assert (lstm.training.epochs, lstm.data.mode, lstm.training.patience) == (10, "bucket", 3)
    assert (encoder.training.epochs, encoder.data.mode, encoder.training.patience) == (3, "pack", 0)
    assert 1e-3 <= lstm.training.learning_rate <= 3e-3
    assert 2e-5 <= encoder.training.learning_rate <= 1e-4


def test_a_limit_in_steps_alone_leaves_the_epochs_open():
    assert load_settings(None, ["training.max_steps=7"]).resolve().training.epochs is None
    both = load_settings(None, ["training.max_steps=7", "training.epochs=2"]).resolve().training
    assert (both.max_steps, both.epochs) == (7, 2)


def test_overrides_stand_above_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("training:\n  epochs: 4\n  learning_rate: 1e-3\ndata:\n  tokens_per_batch: 100\n")
    settings = load_settings(file, ["training.epochs=5", "training.wandb_project=null"])
    assert settings.training.epochs == 5
    assert settings.training.learning_rate == 1e-3
    assert settings.training.wandb_project is None
    assert settings.data.tokens_per_batch == 100


def test_yaml_round_trip():
    settings = load_settings(None, ["training.learning_rate=3e-4", "model.hidden_size=12"]).resolve()
    sections = yaml.safe_load(settings.to_yaml())
    assert set(sections) == {"model", "data", "training"}
    again = load_settings(
        None, [f"{s}.{k}={yaml.safe_dump(v).splitlines()[0]}" for s in sections for k, v in sections[s].items()]
    )
    assert again == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", r"unknown setting 'training.epoch': did you mean 'training.epochs'\?"),
        ("tokens_per_batch=3", r"did you mean 'data.tokens_per_batch'\?"),
        ("train.epochs=3", r"did you mean 'training.epochs'\?"),
        ("xyzzy=3", "the sections are model, data, training"),
        ("training.epochs", "'training.epochs' is no setting: write section.key=value"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  epoch: 3\n", r"config.yaml: unknown setting 'training.epoch': did you mean"),
        ("training: 3\n", "'training' must be a section of keys"),
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
