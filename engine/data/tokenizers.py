"""Tokenizers found by name or path, and their use on whole batches of texts."""

import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from penstock.engine.data.manifest import MANIFEST_NAME, MAX_VOCABULARY, TOKENIZER_NAME, Truncation, digest
from penstock.engine.data.own_code import NONE_IS_RUN, code_of_tokenizer
from penstock.engine.errors import PenstockError, TokenizerError, first_line

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

TRUNCATIONS = get_args(Truncation)

TEMPLATE_PROBES = ("a", "the cat sat", "1 2 3")


@dataclass(frozen=True)
class Encoded:
    """Token ids of a batch of texts, end to end."""

    values: np.ndarray  # uint32, (tokens,)
    lengths: np.ndarray  # int32, (texts,)
    truncated: int  # how many texts were cut
    seconds: np.ndarray | None = None  # with token types: int32, (texts,), tokens before the first of type 1


class TextTokenizer:
    """Turns single texts into ids: the tokenizer's special tokens around at most what `max_length` leaves of the text.

    Cutting is done here on the ids, not by the library, so that it can be counted and can keep both ends.

    Args:
        tokenizer: a fast tokenizer.
        max_length: tokens of a row at most, special tokens included.
        truncation: "head" keeps the beginning of a text that is too long, "tail" its end; "head+tail" its first quarter
            and the end (Sun et al., "How to fine-tune BERT for text classification?", 2019, keep 128 of 510 in front).

    Raises:
        TokenizerError: special tokens that are not a prefix and a suffix, or no room for a text beside them.
    """

    is_pair = False
    gives_types = False  # whether `encode` says where tokens of type 1 begin

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_length: int, truncation: str = "head") -> None:
        if truncation not in TRUNCATIONS:
            raise TokenizerError(f"truncation must be one of {', '.join(TRUNCATIONS)}, got {truncation!r}")
        if not getattr(tokenizer, "is_fast", False):
            raise TokenizerError(
                f"{tokenizer.name_or_path}: has no fast tokenizer (tokenizer.json); penstock needs one"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self._backend: tokenizers.Tokenizer = copy_backend(tokenizer)
        self.prefix, self.suffix = self._special_tokens()
        self.room = max_length - len(self.prefix) - len(self.suffix)
        if self.room < 1:
            special = len(self.prefix) + len(self.suffix)
            raise TokenizerError(f"max_length {max_length} leaves no room for text beside {special} special tokens")
        self.vocab_size = check_ids(self._backend, tokenizer.name_or_path)
        if max([*self.prefix, *self.suffix], default=-1) >= self.vocab_size:
            raise TokenizerError(f"{tokenizer.name_or_path}: its special tokens are not in its vocabulary")

    @property
    def kept(self) -> tuple[int, int]:
        """(first, last): how many tokens at either end are kept of a row that has too many, special ones included."""
        head = {"head": self.room, "tail": 0, "head+tail": self.room // 4}[self.truncation]
        return len(self.prefix) + head, self.room - head + len(self.suffix)

    def encode(self, texts: list[Any]) -> Encoded:
        """Token ids of `texts`; the library's threads do the work and the GIL is released meanwhile."""
        with tokenizer_errors(self.tokenizer.name_or_path):
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
        flat = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.uint32, int(lengths.sum()))
        kept = np.minimum(lengths, self.room)
        truncated = int((lengths > self.room).sum())
        out_lengths = kept + len(self.prefix) + len(self.suffix)
        ends = np.cumsum(out_lengths)
        values = np.empty(int(ends[-1]) if len(ends) else 0, np.uint32)
        starts = ends - out_lengths
        if not truncated:
            body = np.ones(len(values), bool)
            for i, token in enumerate(self.prefix):
                values[starts + i] = token
                body[starts + i] = False
            for i, token in enumerate(self.suffix):
                values[ends - len(self.suffix) + i] = token
                body[ends - len(self.suffix) + i] = False
            values[body] = flat
            return Encoded(values, out_lengths.astype(np.int32), 0)
        head, tail = self.kept[0] - len(self.prefix), self.kept[1] - len(self.suffix)
        begin = 0
        for start, end, length in zip(starts.tolist(), ends.tolist(), lengths.tolist(), strict=True):
            text = flat[begin : begin + length]
            begin += length
            values[start : start + len(self.prefix)] = self.prefix
            body_start, body_end = start + len(self.prefix), end - len(self.suffix)
            if length <= self.room:
                values[body_start:body_end] = text
            else:
                values[body_start : body_start + head] = text[:head]
                values[body_start + head : body_end] = text[length - tail :]
            values[body_end:end] = self.suffix
        return Encoded(values, out_lengths.astype(np.int32), truncated)

    def fingerprint(self) -> str:
        """Identifies the saved tokenizer's content and the library's release; never a live object's state."""
        release = ".".join(version("tokenizers").split(".")[:2])
        content: dict[str, Any] = {"tokenizer": canonical_tokenizer(self._backend), "tokenizers": release}
        if self._backend.encode_special_tokens:
            content["split_special_tokens"] = True
        return digest(content)

    def probes(self) -> str:
        """A digest of the ids of fixed strings: tells apart two libraries that read the same files differently."""
        encoded = self.encode(list(probe_texts()))
        return digest([encoded.values.tolist(), encoded.lengths.tolist()])

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        found: tuple[list[int], list[int]] | None = None
        for text in TEMPLATE_PROBES:
            with tokenizer_errors(self.tokenizer.name_or_path):
                bare = self._backend.encode(text, add_special_tokens=False).ids
                whole = self._backend.encode(text, add_special_tokens=True).ids
            place = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
            if place is None or not bare:
                raise TokenizerError(f"{self.tokenizer.name_or_path}: its special tokens do not stand around the text")
            around = whole[:place], whole[place + len(bare) :]
            if found not in (None, around):
                raise TokenizerError(f"{self.tokenizer.name_or_path}: its special tokens depend on the text")
            found = around
        assert found is not None
        return found


@contextmanager
def tokenizer_errors(name: str) -> Iterator[None]:
    """Turns what the library raises over a tokenizer that contradicts itself into a TokenizerError."""
    try:
        yield
    except BaseException as error:
        if not _of_library(error) or isinstance(error, PenstockError | OSError):
            raise
        raise TokenizerError(f"tokenizer {name}: cannot be used: {first_line(error)}") from error


def _of_library(error: BaseException) -> bool:
    """Rust's panics are not among Python's Exceptions; memory that runs out is nobody's mistake."""
    is_error = isinstance(error, Exception) and not isinstance(error, MemoryError)
    return is_error or type(error).__name__ == "PanicException"


def copy_backend(tokenizer: "PreTrainedTokenizerFast") -> "tokenizers.Tokenizer":
    """The Rust tokenizer without truncation and padding; a copy, for calling a tokenizer changes its own."""
    from tokenizers import Tokenizer

    check_ids(tokenizer.backend_tokenizer, tokenizer.name_or_path)
    with tokenizer_errors(tokenizer.name_or_path):
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    # Not in the Rust tokenizer's file: transformers sets it at every call.
    backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
    return backend


def own_truncation(tokenizer: "PreTrainedTokenizerFast") -> str:
    """What the tokenizer itself keeps of a text that is too long: "head", or "tail" where it cuts on the left."""
    return "tail" if tokenizer.truncation_side == "left" else "head"


def check_saved(saved: "PreTrainedTokenizerFast", encoder: TextTokenizer) -> None:
    """Compares the ids that go into a store with those that stock transformers gives with the saved tokenizer.

    Nothing can be compared beyond the cut where that is "head+tail", which transformers does not have.

    Raises:
        TokenizerError: a setting of the tokenizer makes them differ.
    """
    specials = sorted({str(token) for token in saved.get_added_vocab()})[:50]
    texts = [
        "",
        " ",
        "a",
        " A b\n c ",
        "Don't stop , it 's fine .",
        "Ünïcode 電影 🎬 e\u0301 \u00a0\u200b",
        *probe_texts()[:40],
    ]
    texts += [f"a {token} b{token}" for token in specials] + specials
    long = "one two three " * min(encoder.max_length, 2000)
    if encoder.is_pair:
        firsts, seconds = [*texts, long, "a", long], [*reversed(texts), "a", long, long]
        theirs = saved(firsts, seconds, truncation=True)
        check_same(saved, encoder, list(zip(firsts, seconds, strict=True)), theirs)
        return
    if encoder.truncation != "head+tail":
        texts.append(long)
    else:
        whole = encoder.encode(texts).lengths
        texts = [text for text, length in zip(texts, whole, strict=True) if length < encoder.max_length]
    check_same(saved, encoder, texts, saved(texts, truncation=True))


def check_same(saved: "PreTrainedTokenizerFast", encoder: TextTokenizer, texts: list, theirs: Any) -> None:
    """Compares our ids of texts with those that transformers gave.

    Raises:
        TokenizerError: they differ.
    """
    encoded = encoder.encode(texts)
    ends = np.cumsum(encoded.lengths)
    theirs = theirs["input_ids"]
    for text, end, length, ids in zip(texts, ends, encoded.lengths, theirs, strict=True):
        ours = encoded.values[end - length : end].tolist()
        if ours != ids:
            raise TokenizerError(
                f"tokenizer {saved.name_or_path}: once saved, it would give {str(text)[:40]!r} other tokens in "
                f"transformers ({ids[:6]}...) than here ({ours[:6]}...): a setting that its files do not keep"
            )


def canonical_tokenizer(backend: "tokenizers.Tokenizer") -> dict:
    content = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    return content


@cache
def probe_texts() -> tuple[str, ...]:
    """Fixed strings: words, digits, punctuation, blanks and letters of many scripts, in 1000 mixtures."""
    ranges = [(0x20, 0x7E), (0x61, 0x7A), (0x61, 0x7A), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA)]
    ranges += [(0x620, 0x64A), (0x900, 0x97F), (0xE01, 0xE2E), (0x3041, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF)]
    ranges += [(0x300, 0x33F), (0x2000, 0x206F), (0x1F600, 0x1F64F), (0x1, 0x1F)]
    state = 1
    texts = []
    for _ in range(1000):
        letters = []
        for _ in range(24):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            first, last = ranges[(state >> 33) % len(ranges)]
            letters.append(chr(first + (state >> 45) % (last - first + 1)) if state >> 62 else " ")
        texts.append("".join(letters))
    return tuple(texts)


def load_tokenizer(name: str) -> "PreTrainedTokenizerFast":
    """A tokenizer by local folder, a store's too, tokenizer.json file or hub name.

    Raises:
        TokenizerError: there is none, or it is not a fast one.
    """
    from transformers import PreTrainedTokenizerFast

    path = Path(os.path.expanduser(name))
    if (path / MANIFEST_NAME).is_file() and (path / TOKENIZER_NAME).is_dir():
        path /= TOKENIZER_NAME
    try:
        if path.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            tokenizer = load_with_transformers(str(path) if path.is_dir() else name)
    except TokenizerError:
        raise
    except BaseException as error:  # whatever the library may raise for a name that is none
        if not _of_library(error):
            raise
        if path.is_dir() and not (path / "tokenizer.json").exists():  # of which the library says much, in many lines
            reason = "no tokenizer can be loaded from it: there is no tokenizer.json in this folder"
        elif path.exists():
            reason = f"no tokenizer can be loaded from it: {first_line(error)}"
        elif name.startswith(("/", ".", "~")):
            reason = "no such folder or file"
        else:
            reason = "no local folder has this name and it cannot be had from the hub"
            if os.environ.get("HF_HUB_OFFLINE"):
                reason += " (HF_HUB_OFFLINE is set)"
        raise TokenizerError(f"tokenizer {name}: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(f"tokenizer {name}: has no fast tokenizer (tokenizer.json); penstock needs one")
    check_ids(tokenizer.backend_tokenizer, name)
    with tokenizer_errors(name), _unheard():
        tokenizer.backend_tokenizer.encode("a film")  # a tokenizer that contradicts itself shows it here
    return tokenizer


@contextmanager
def _unheard() -> Iterator[None]:
    """Keeps from stderr what Rust writes there, before Python hears of it, when it ends in a panic."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def check_ids(backend: "tokenizers.Tokenizer", name: str) -> int:
    """The number of ids: one more than the greatest.

    Raises:
        TokenizerError: they are more than a model can have embeddings of. The library, which goes through all numbers
            up to the greatest id when it writes a tokenizer down, would take hours.
    """
    token, greatest = max(backend.get_vocab(with_added_tokens=True).items(), key=lambda one: one[1], default=("", -1))
    if greatest >= MAX_VOCABULARY:
        raise TokenizerError(
            f"tokenizer {name}: token {token!r} has the id {greatest:,}; ids up to {MAX_VOCABULARY - 1:,} can be used"
        )
    return greatest + 1


def load_with_transformers(name: str) -> Any:
    """A tokenizer as the transformers library finds it, with whatever that raises where it finds none.

    Raises:
        TokenizerError: it brings code of its own.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if (code := code_of_tokenizer(get_tokenizer_config(name))) is not None:
        raise TokenizerError(
            f"tokenizer {name}: its tokenizer_config.json asks for code of its own ({code}), {NONE_IS_RUN}; use one "
            "of a class that the transformers library has"
        )
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def load_saved_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that a store holds."""
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder}: holds no tokenizer.json")
    return load_tokenizer(str(folder))


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", max_length: int, truncation: str) -> dict[str, bytes]:
    """The files of a tokenizer as transformers saves them, by name; where texts are cut is the store's."""
    with tempfile.TemporaryDirectory() as folder, tokenizer_errors(tokenizer.name_or_path):
        tokenizer.model_max_length = max_length
        side = "left" if truncation == "tail" else "right"
        if tokenizer.truncation_side != side or "truncation_side" in tokenizer.init_kwargs:
            tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = side
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def crc32_of_files(files: dict[str, bytes]) -> dict[str, int]:
    return {name: zlib.crc32(content) for name, content in files.items()}
