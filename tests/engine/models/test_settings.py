import pytest
from subtested import as_subtests

from penstock.engine.errors import ConfigError
from penstock.engine.models import ModelSettings


def test_a_preset_fixes_layers_and_hidden_size() -> None:
    settings = ModelSettings(preset="lstm-4-512")
    assert (settings.num_layers, settings.hidden_size, settings.embedding_size) == (4, 512, 256)
    assert ModelSettings() == ModelSettings(num_layers=1, hidden_size=256)
    assert ModelSettings(hidden_size=32).num_layers == 1
    assert ModelSettings(embeddings="encoder", encoder="somewhere").embedding_size is None


def test_an_encoder_means_the_encoder_unless_the_model_says_otherwise() -> None:
    assert ModelSettings().kind == "lstm"
    assert ModelSettings(encoder="a/b").kind == "encoder"
    assert ModelSettings(encoder="a/b", embeddings="encoder").kind == "lstm"
    assert ModelSettings(encoder="a/b", kind="lstm").kind == "lstm"


@as_subtests(
    "values, message",
    [
        ({"kind": "gru"}, r"model.kind must be lstm \| encoder \| bag or null, got 'gru'"),
        ({"preset": "lstm-3-256"}, r"model.preset must be lstm-1-256 \| lstm-4-256 \| lstm-4-512 or null, got"),
        ({"preset": "lstm-4-512", "hidden_size": 256}, r"model.hidden_size=256 contradicts model.preset=lstm-4-512"),
        ({"pooling": "first"}, r"model.pooling must be max \| mean \| last \| attention, got 'first'"),
        ({"hidden_size": 0}, r"model.hidden_size must be at least 1, got 0"),
        ({"num_layers": 1.5}, r"model.num_layers must be a whole number or null, got 1.5"),
        ({"embedding_size": True}, r"model.embedding_size must be a whole number or null, got True"),
        ({"dropout": 1.0}, r"model.dropout must be at least 0 and below 1, got 1.0"),
        ({"head_dropout": -0.1}, r"model.head_dropout must be at least 0 and below 1, got -0.1"),
        ({"bidirectional": "yes"}, r"model.bidirectional must be true or false"),
        ({"kind": "encoder"}, r"model.kind=encoder needs model.encoder"),
        ({"embeddings": "encoder"}, r"model.embeddings=encoder needs model.encoder"),
        ({"freeze_embeddings": True}, r"would keep random embeddings"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ModelSettings(**values)
    assert "\n" not in str(error.value)
