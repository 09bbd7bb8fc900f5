"""Tokenizers learned from the texts."""

import string
import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from penstock.engine.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TrainSpec:
    """`train:bpe:N` or `train:wordpiece:N`."""

    model: Literal["bpe", "wordpiece"]
    vocab_size: int


SPECIAL_TOKENS = {
    "bpe": {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
}


def parse_train_spec(name: str) -> TrainSpec | None:
    """
    Returns:
        None when `name` does not ask for training.

    Raises:
        TokenizerError: it does, but wrongly.
    """
    if not name.startswith("train:"):
        return None
    parts = name.split(":")
    if len(parts) != 3 or parts[1] not in SPECIAL_TOKENS or not parts[2].isdecimal():
        raise TokenizerError(
            f"tokenizer {name}: expected train:bpe:N or train:wordpiece:N with N the vocabulary's size"
        )
    smallest = 256 + len(SPECIAL_TOKENS["bpe"]) if parts[1] == "bpe" else 100
    if int(parts[2]) < smallest:
        raise TokenizerError(f"tokenizer {name}: the vocabulary must have {smallest} tokens at least")
    return TrainSpec("bpe" if parts[1] == "bpe" else "wordpiece", int(parts[2]))


def train_tokenizer(
    spec: TrainSpec,
    texts: Callable[[], Iterable[list[str]]],
    advance: Callable[[int], None] = lambda rows: None,
) -> "PreTrainedTokenizerFast":
    """Learns a vocabulary: byte-level BPE as RoBERTa's, or lower-cased WordPiece as BERT's.

    The same texts give the same tokenizer. Memory grows with the number of different words, not of texts.

    Args:
        texts: gives the texts in batches, each time it is called.
        advance: is told the number of texts that were read in the last reading.
    """
    from transformers import PreTrainedTokenizerFast

    def counted() -> Iterable[list[str]]:
        for batch in texts():
            yield batch
            advance(len(batch))

    roles = SPECIAL_TOKENS[spec.model]
    if spec.model == "bpe":
        backend = _train_bpe(spec.vocab_size, list(roles.values()), counted())
        roles = {**roles, "cls_token": "<s>", "sep_token": "</s>"}
    else:
        letters = _commonest_letters(texts(), min(1000, spec.vocab_size // 4))
        backend = _train_wordpiece(spec.vocab_size, list(roles.values()), letters, counted())
    first, last = roles["cls_token"], roles["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, backend.token_to_id(first)), (last, backend.token_to_id(last))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def _train_bpe(vocab_size: int, special: list[str], texts: Iterable[list[str]]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


CONTINUES = "##"  # begins a token that goes on with a word


def _train_wordpiece(vocab_size: int, special: list[str], letters: list[str], texts: Iterable[list[str]]) -> Tokenizer:
    # The trainer numbers letters inside words in the order of a hash table, which differs from run to run, and settles
    # ties between pairs by these numbers. Given as special tokens they are numbered in advance; the tokenizer itself is
    # then built from the vocabulary alone.
    inside = [CONTINUES + letter for letter in letters if not _is_punctuation(letter)]
    learner = _bert_tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special + inside,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    backend = _bert_tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    backend.add_special_tokens(special)
    return backend


def _bert_tokenizer(model: models.WordPiece) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)
    return backend


def _commonest_letters(texts: Iterable[list[str]], limit: int) -> list[str]:
    """The commonest characters of the normalized texts, in the order of their code points."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for batch in texts:
        codes = np.frombuffer(normalizer.normalize_str("\n".join(batch)).encode("utf-32-le"), np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    commonest = np.argsort(-counts, kind="stable")[: limit + 8].tolist()
    letters = [chr(code) for code in commonest if counts[code] and not chr(code).isspace()]
    return sorted(letters[:limit])


def _is_punctuation(letter: str) -> bool:
    """What stands alone as a word."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")
