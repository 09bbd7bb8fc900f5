"""A saved tokenizer, used by stock transformers, gives the ids that are in the store, whatever it is set to."""

from pathlib import Path

import pytest
from subtested import as_subtests
from transformers import AutoTokenizer

from penstock.engine.data.prepare import prepare
from penstock.engine.data.tokenizers import TextTokenizer, check_saved, load_tokenizer
from penstock.engine.errors import TokenizerError

TEXTS = [
    "",
    " ",
    "the film was good",
    "the [SEP] cat [PAD] word [CLS] [UNK] x [MASK]",
    "the <s> cat <pad> word </s> <unk>",
    "new <NEW> added<NEW>token",
    "word " * 300 + "end",
    "Ünïcode 電影 🎬 e\u0301 \u200b\u00a0 It 's , fine .",
]

SETTINGS = [
    {},
    {"split_special_tokens": True},
    {"truncation_side": "left"},
    {"truncation_side": "left", "split_special_tokens": True, "padding_side": "left"},
    {"model_max_length": 5},
    {"clean_up_tokenization_spaces": True},
    {"do_lower_case": False},
    {"add_prefix_space": True},
    {"extra_special_tokens": ["<NEW>"]},
]


def ids_of(store) -> list[list[int]]:
    return [store.tokens(row).tolist() for row in range(store.num_examples)]


ROWS = [(text, number % 2) for number, text in enumerate(TEXTS)]

# Every setting with each kind of tokenizer; the side that is cut with all that settings say of it.
CASES = [(learned, None, settings) for learned in ("bpe", "wordpiece") for settings in SETTINGS]
CASES += [(learned, side, settings) for side in ("head", "tail") for learned, settings in (
    ("bpe", SETTINGS[0]), ("wordpiece", SETTINGS[2]), ("bpe", SETTINGS[3]), ("wordpiece", SETTINGS[4]),
)]  # fmt: skip


@pytest.fixture(scope="module")
def learned_tokenizers(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("learned")
    names = ("bpe", "wordpiece")
    return {
        name: prepare(ROWS, folder / name, tokenizer=f"train:{name}:400", progress=False).path / "tokenizer"
        for name in names
    }


@as_subtests("learned, truncation, settings", CASES)
def test_ids_are_the_saved_tokenizers(tmp_path: Path, learned_tokenizers, settings, learned, truncation):
    tokenizer = AutoTokenizer.from_pretrained(learned_tokenizers[learned], **settings)
    tokenizer.save_pretrained(tmp_path / "set")
    store = prepare(
        ROWS, tmp_path / "s", tokenizer=str(tmp_path / "set"), truncation=truncation, max_length=12, progress=False
    )
    side = settings.get("truncation_side") if truncation is None else {"tail": "left"}.get(truncation)
    assert store.manifest.truncation == ("tail" if side == "left" else "head")
    saved = AutoTokenizer.from_pretrained(store.path / "tokenizer")
    assert ids_of(store) == saved(TEXTS, truncation=True)["input_ids"]
    assert ids_of(store) == saved(TEXTS, truncation=True, max_length=12)["input_ids"]


def test_a_setting_that_is_not_kept_is_refused(tokenizer_path):
    tokenizer = load_tokenizer(tokenizer_path)
    encoder = TextTokenizer(tokenizer, 16)
    tokenizer.model_max_length = 16
    check_saved(tokenizer, encoder)
    tokenizer.split_special_tokens = True
    with pytest.raises(TokenizerError, match="other tokens in transformers"):
        check_saved(tokenizer, encoder)
