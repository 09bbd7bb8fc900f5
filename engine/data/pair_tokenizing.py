"""Pairs of texts to ids, as the tokenizer itself makes and cuts pairs."""

from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.data.manifest import digest
from penstock.engine.data.tokenizers import Encoded, TextTokenizer, copy_backend, probe_texts, tokenizer_errors
from penstock.engine.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class PairTokenizer(TextTokenizer):
    """Turns pairs of texts into ids, token by token what transformers gives for `tokenizer([a], [b], truncation=True)`.

    An empty second text is one, and its special tokens are there; `tokenizer(a, "")`, called with strings instead of
    lists, leaves it out.

    The library cuts: tokens are taken one by one from the longer text, at the end, or at the beginning where the
    truncation is "tail".

    Raises:
        TokenizerError: as a `TextTokenizer`; "head+tail"; or a pair whose token types are not zeros, then ones.
    """

    is_pair = True

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_length: int, truncation: str = "head") -> None:
        if truncation == "head+tail":
            raise TokenizerError("truncation head+tail is for single texts: of a pair, head or tail is kept")
        super().__init__(tokenizer, max_length, truncation)
        self._pairs: Any = copy_backend(tokenizer)
        special = self._pairs.num_special_tokens_to_add(True)
        if max_length - special < 2:
            raise TokenizerError(f"max_length {max_length}: no room for two texts beside {special} special tokens")
        direction = "left" if truncation == "tail" else "right"
        self._pairs.enable_truncation(max_length, strategy="longest_first", direction=direction)
        self.gives_types = "token_type_ids" in tokenizer.model_input_names

    def encode(self, texts: list[Any]) -> Encoded:
        """
        Args:
            texts: pairs of strings.

        Returns:
            Their ids and, where the tokenizer gives its model token types, in `seconds` for each pair the number of its
            tokens before the first of type 1.
        """
        with tokenizer_errors(self.tokenizer.name_or_path):
            encodings = self._pairs.encode_batch_fast(texts, add_special_tokens=True)
        lengths = np.fromiter((len(encoding) for encoding in encodings), np.int32, len(encodings))
        total = int(lengths.sum())
        values = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.uint32, total)
        seconds = None
        if self.gives_types:
            types = np.fromiter(chain.from_iterable(encoding.type_ids for encoding in encodings), np.uint32, total)
            ends = np.cumsum(lengths, dtype=np.int64)
            ones = np.concatenate([[0], np.cumsum(types, dtype=np.int64)])
            seconds = lengths - (ones[ends] - ones[ends - lengths]).astype(np.int32)
            expected = np.arange(total) >= np.repeat(ends - lengths + seconds, lengths)
            if not np.array_equal(types, expected):
                raise TokenizerError(
                    f"{self.tokenizer.name_or_path}: the token types of a pair are not zeros, then ones, which is all "
                    "that penstock keeps of them"
                )
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        return Encoded(values, lengths, truncated, seconds)

    def probes(self) -> str:
        texts = list(probe_texts())
        encoded = self.encode(list(pairwise(texts)))
        seconds = None if encoded.seconds is None else encoded.seconds.tolist()
        return digest([encoded.values.tolist(), encoded.lengths.tolist(), seconds])


def text_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", max_length: int, truncation: str, is_pair: bool
) -> TextTokenizer:
    """For single texts or for pairs.

    Raises:
        TokenizerError: it cannot be used for them.
    """
    return (PairTokenizer if is_pair else TextTokenizer)(tokenizer, max_length, truncation)
