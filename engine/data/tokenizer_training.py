"""Tokenizers learned from the texts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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
    spec: TrainSpec, texts: Iterable[list[str]], advance: Callable[[int], None] = lambda rows: None
) -> "PreTrainedTokenizerFast":
    """Learns a vocabulary from batches of texts: byte-level BPE as RoBERTa's, or lower-cased WordPiece as BERT's.

    The same texts give the same tokenizer. Memory grows with the number of different words, not of texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL_TOKENS[spec.model]
    tokens = list(special.values())
    if spec.model == "bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer: trainers.Trainer = trainers.BpeTrainer(
            vocab_size=spec.vocab_size,
            min_frequency=2,
            special_tokens=tokens,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        first, last = "<s>", "</s>"
        roles = {**special, "cls_token": "<s>", "sep_token": "</s>"}
    else:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=spec.vocab_size,
            min_frequency=2,
            special_tokens=tokens,
            limit_alphabet=min(1000, spec.vocab_size // 4),
            show_progress=False,
        )
        first, last = "[CLS]", "[SEP]"
        roles = special

    def counted() -> Iterable[list[str]]:
        for batch in texts:
            yield batch
            advance(len(batch))

    backend.train_from_iterator(counted(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, backend.token_to_id(first)), (last, backend.token_to_id(last))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
