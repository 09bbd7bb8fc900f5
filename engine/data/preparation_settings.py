"""What a preparation encodes texts with: tokenizer, labels and lengths."""

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock.engine.data.hub_names import why_missing
from penstock.engine.data.job import Job
from penstock.engine.data.manifest import MANIFEST_NAME, Manifest, Truncation
from penstock.engine.data.pair_tokenizing import text_tokenizer
from penstock.engine.data.sources import Reading, Source
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizer_training import parse_train_spec
from penstock.engine.data.tokenizers import TRUNCATIONS, load_tokenizer, own_truncation
from penstock.engine.errors import ConfigError, SourceError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_LENGTH = 4_096  # whole texts, but for the longest: what a run reads of them is its own choice
MAX_LENGTH_OF_PAIRS = 512  # which are cut here or not at all
_FORMER_MAX_LENGTH = 512


class PreparationSettings:
    """Tokenizer, labels and lengths: as given, or as another store has them.

    Everything is checked at once but what takes the tokenizer, whose library is slow to import: `load_tokenizer` comes
    when nothing else is wrong.
    """

    def __init__(
        self,
        tokenizer: str | None,
        max_length: int | None,
        truncation: str | None,
        like: str | os.PathLike | None,
        unlabelled: bool,
    ):
        self.label_names: list[str] | None = None
        self.spec = None
        self.loaded: PreTrainedTokenizerFast | None = None
        self.like: Store | None = None
        if like is not None:
            if tokenizer is not None:
                raise ConfigError("--like takes the tokenizer of another store; leave --tokenizer out")
            self.like = Store.open(like, labelled=not unlabelled)
            self.label_names = None if unlabelled else self.like.label_names
            self.max_length, self.truncation = self.like.max_length, self.like.manifest.truncation
            for name, given, theirs in (
                ("max length", max_length, self.max_length),
                ("truncation", truncation, self.truncation),
            ):
                if given is not None and given != theirs:
                    raise ConfigError(f"--like: {like} has {name} {theirs}, not {given}; leave it out")
            self.origin = self.like.manifest.tokenizer.origin
        elif tokenizer is None:
            raise ConfigError("say which tokenizer: a name, a path, train:bpe:N or train:wordpiece:N, or --like STORE")
        else:
            self.max_length = max_length or 0  # left out: see choose_length
            self.origin = tokenizer
            self.spec = parse_train_spec(tokenizer)
            if self.spec is None and (reason := why_missing(tokenizer)):
                raise TokenizerError(f"tokenizer {tokenizer}: {reason}")
            self.truncation = cast(Truncation, truncation or "")  # left out: the tokenizer's own, once that is loaded
        if self.truncation and self.truncation not in TRUNCATIONS:
            raise TokenizerError(f"truncation must be one of {', '.join(TRUNCATIONS)}, got {self.truncation!r}")
        if max_length is not None and not 1 <= max_length <= 1 << 24:
            raise ConfigError(f"max length must be between 1 and {1 << 24}, got {max_length}")

    def reading(self, given: Reading) -> Reading:
        """How the sources are read; unless something else is given, labels are separated as for the other store."""
        if self.label_names is None or self.like is None or given.label_separator is not None:
            return given
        return replace(given, label_separator=self.like.manifest.label_separator)

    def check_labels(self, source: Source) -> None:
        """Raises SourceError: the other store has lists of labels and the source has not, or the other way round."""
        if self.label_names is None or self.like is None:
            return
        if source.multi_label != self.like.multi_label:
            here, there = ("lists of labels", "one label a row") if source.multi_label else ("one label a row", "lists")
            more = "" if source.multi_label else "; --label-separator says what stands between the labels of a text"
            raise SourceError(
                f"{source.name}: column {source.label!r} has {here}, {self.like.path} given by --like has {there}{more}"
            )

    def choose_length(self, is_pair: bool, folder: Path, overwrite: bool) -> None:
        """Where none was given: the default, or the former one, if the folder's store was made with that."""
        if self.max_length:
            return
        self.max_length = MAX_LENGTH_OF_PAIRS if is_pair else MAX_LENGTH
        if not overwrite:
            there = Manifest.read(folder) if (folder / MANIFEST_NAME).exists() else Job.read(folder)
            if there is not None and there.max_length == _FORMER_MAX_LENGTH:
                self.max_length = _FORMER_MAX_LENGTH

    def load_tokenizer(self, is_pair: bool) -> None:
        """Raises TokenizerError: it cannot be loaded, or not be used with these lengths or for pairs of texts."""
        if self.like is not None and self.like.is_pair != is_pair:
            here, there = ("pairs of texts", "single texts") if is_pair else ("single texts", "pairs of texts")
            raise SourceError(
                f"{self.like.path} has {there} (--text {self.like.manifest.sources[0].text}), the sources give "
                f"{here}: name the same columns with --text"
            )
        if self.like is not None:
            self.loaded = self.like.tokenizer()
        elif self.spec is None:
            self.loaded = load_tokenizer(self.origin)
        self.truncation = self.truncation or ("head" if self.loaded is None else own_truncation(self.loaded))
        if self.loaded is not None:
            tokenizer = text_tokenizer(self.loaded, self.max_length, self.truncation, is_pair)
            self.tokenizer_identity = tokenizer.fingerprint()
        else:
            self.tokenizer_identity = f"{self.origin} by tokenizers {version('tokenizers')}"
