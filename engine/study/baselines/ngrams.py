"""TF-IDF of token n-grams, from the ids that a store holds: no text is read again, and no loop runs over tokens.

A single token is its own feature, a longer n-gram one of `BUCKETS` by its hash. Of these, the features that enough
training rows have are kept and numbered; all others say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.data.manifest import TOKENIZER_NAME

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from penstock.engine.data.store import Store

BUCKETS = 1 << 24  # of which a million n-grams share 3% with another one
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


@dataclass(frozen=True)
class Counts:
    """How often each of its n-grams occurs in each text of a chunk, before features are chosen.

    Attributes:
        bounds: int64 (rows + 1,): where each row's n-grams begin and end.
        ngrams: int32, ascending and each once within a row. counts: uint16; 65,535 for more.
    """

    bounds: np.ndarray
    ngrams: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Vocabulary:
    """
    Attributes:
        longest: tokens of the longest n-gram. vocab_size: of the tokenizer.
        silent: bool (vocab_size,): tokens that no n-gram contains, the special ones.
        places: int32 (vocab_size + BUCKETS,): the column of each n-gram; -1 where it is none.
        idf: float32 (columns,).
    """

    longest: int
    vocab_size: int
    silent: np.ndarray
    places: np.ndarray
    idf: np.ndarray

    def tfidf(self, chunk: Counts) -> "csr_matrix":
        """float32 (rows, columns): (1 + log count) * idf, rows of length 1."""
        from scipy.sparse import csr_matrix

        columns = self.places[chunk.ngrams]
        known = columns >= 0
        bounds = np.concatenate([[0], np.cumsum(known)])[chunk.bounds]
        columns = columns[known]
        values = (1 + np.log(chunk.counts[known].astype(np.float32))) * self.idf[columns]
        rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        length = np.sqrt(np.bincount(rows, values.astype(np.float64) ** 2, len(bounds) - 1))
        values /= np.maximum(length, 1e-12).astype(np.float32)[rows]
        made = csr_matrix((values, columns, bounds.astype(np.int32)), (len(bounds) - 1, len(self.idf)))
        made.has_sorted_indices = False
        return made

    def counts(self, values: np.ndarray, bounds: np.ndarray) -> Counts:
        """The n-grams of texts laid end to end, see `Fitted.probabilities`."""
        return count_ngrams(values, bounds, self.silent, self.longest)


def special_tokens(store: "Store") -> np.ndarray:
    """bool (vocab_size,): tokens that stand around texts and between them; not the one for unknown pieces.

    Read from the saved file: transformers would take seconds to import, for a model that trains in as many.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(store.path / TOKENIZER_NAME / "tokenizer.json"))
    unknown = getattr(tokenizer.model, "unk_token", None)
    silent = np.zeros(store.vocab_size, bool)
    for number, token in tokenizer.get_added_tokens_decoder().items():
        if token.special and token.content != unknown and number < len(silent):
            silent[number] = True
    return silent


def count_ngrams(values: np.ndarray, bounds: np.ndarray, silent: np.ndarray, longest: int) -> Counts:
    """The n-grams of 1 to `longest` tokens of each text, none of which contains a silent token or crosses a text's end.

    Args:
        values: int32 (tokens,). bounds: int64 (rows + 1,). silent: bool (vocab_size,).
    """
    rows = len(bounds) - 1
    row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(bounds))
    heard = ~silent[values]
    features = len(silent) + BUCKETS
    keys = [row[heard] * features + values[heard]]
    hashed, whole = values.astype(np.uint64), heard
    for size in range(2, longest + 1):
        last = values[size - 1 :]
        hashed = (hashed[: len(last)] + np.uint64(1)) * _MULTIPLIER
        hashed ^= hashed >> np.uint64(32)
        hashed += last.astype(np.uint64)
        whole = whole[: len(last)] & heard[size - 1 :] & (row[: len(last)] == row[size - 1 :])
        bucket = ((hashed[whole] * _MULTIPLIER) >> np.uint64(64 - 24)).astype(np.int64)
        keys.append(row[: len(last)][whole] * features + len(silent) + bucket)
    found = np.sort(np.concatenate(keys))
    first = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]])) if len(found) else np.empty(0, np.int64)
    counts = np.minimum(np.diff(np.append(first, len(found))), np.iinfo(np.uint16).max).astype(np.uint16)
    found = found[first]
    of_row = found // features
    return Counts(np.searchsorted(of_row, np.arange(rows + 1)), (found - of_row * features).astype(np.int32), counts)


def build_vocabulary(
    chunks: Sequence[Counts], silent: np.ndarray, longest: int, least: int, most: int
) -> tuple[Vocabulary, int]:
    """The n-grams that at least `least` rows have, or all if none has as many; of more than `most` the most frequent.
    Also how many there would be without that limit."""
    frequency = np.zeros(len(silent) + BUCKETS, np.int32)
    rows = 0
    for chunk in chunks:
        frequency += np.bincount(chunk.ngrams, minlength=len(frequency)).astype(np.int32)
        rows += len(chunk.bounds) - 1
    kept = np.flatnonzero(frequency >= least)
    if not len(kept):  # a small set of short texts; one feature at least, be it one that no row has
        kept = np.flatnonzero(frequency) if frequency.any() else np.array([0])
    found = len(kept)
    if found > most:
        order = np.argsort(-frequency[kept], kind="stable")
        kept = np.sort(kept[order[:most]])
    places = np.full(len(frequency), -1, np.int32)
    places[kept] = np.arange(len(kept))
    idf = np.log((1 + rows) / (1 + frequency[kept])) + 1
    return Vocabulary(longest, len(silent), silent, places, idf.astype(np.float32)), found
