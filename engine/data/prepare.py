"""From labelled texts to a store: survey, tokenizer, shards, manifest."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.engine.data.job import (
    Job,
    Receipt,
    check_tokens,
    clear,
    digest_of_keys,
    finish_job,
    finished_shard,
    is_ours,
    locked,
    remove_leftovers,
    start_job,
    write_clusters,
    write_tokenizer,
)
from penstock.engine.data.manifest import (
    CLUSTERS_FORMAT,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    TokenizerEntry,
    digest,
)
from penstock.engine.data.pair_tokenizing import text_tokenizer
from penstock.engine.data.parts import make_shards, write_part
from penstock.engine.data.preparation_settings import PreparationSettings
from penstock.engine.data.progress import RowProgress
from penstock.engine.data.sources import PLAIN_READING, Reading, Source, open_sources
from penstock.engine.data.sources.alike import Columns, open_alike
from penstock.engine.data.sources.labels import merged_notices, notices, sort_labels
from penstock.engine.data.sources.open import BAD_ROWS, check_once, check_splits
from penstock.engine.data.sources.text_columns import single_texts
from penstock.engine.data.store import Store
from penstock.engine.data.survey import Survey, survey, usable_rows
from penstock.engine.data.tokenizer_training import train_tokenizer
from penstock.engine.data.tokenizers import (
    TextTokenizer,
    check_saved,
    crc32_of_files,
    load_saved_tokenizer,
    save_tokenizer,
)
from penstock.engine.errors import ConfigError, OtherDataError, SourceError, StoreError
from penstock.engine.files import disk_errors, sync_folder, write_committed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENS_PER_SHARD = 1 << 26  # at most: it bounds the memory of a preparation
ROWS_PER_SHARD = 1 << 18


def prepare(
    sources: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    text: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    truncation: str | None = None,
    bad_rows: str = "fail",
    like: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    rows_per_shard: int | None = None,
    progress: bool = True,
    reading: Reading = PLAIN_READING,
    cluster: str | None = None,
    unlabelled: bool = False,
) -> Store:
    """Tokenizes texts, with their labels, into a store.

    An interrupted preparation resumes when it is called again with the same arguments: finished shards are
    checked and kept. Calling it again on a finished store of the same content and settings changes nothing.

    Example:
        >>> from penstock.engine import prepare
        >>> prepare("synthetic:reviews?n=50", "reviews", tokenizer="train:bpe:400", progress=False).num_examples
        50

    Args:
        sources: one or more, read one after the other: names of files, folders or patterns, or Python objects, see
            `penstock.engine.data.sources.open_sources`.
        out: the folder to write; it must be new, empty, or hold an unfinished preparation of the same.
        tokenizer: a hub name, a local path, `train:bpe:N` or `train:wordpiece:N` (learned from these texts).
        text, label: column names; None for the usual ones. "a,b" are two texts that belong together, "a+b" one, joined
            by a newline.
        max_length: longer texts are cut to this many tokens, special ones included, and counted; 4,096 by default,
            pairs of texts to 512. A run may read less of them (`data.max_length`).
        truncation: "head", "tail" or "head+tail", which part of a long text is kept; by default the tokenizer's own.
        bad_rows: "fail" at the first row that cannot be used, or "quarantine" them in OUT.bad-rows.jsonl.
        like: a store whose tokenizer, labels, max_length and truncation are taken: for test sets; of unlabelled texts
            all but the labels. Columns that are not named are those that it was prepared from.
        overwrite: replace what `out` holds, when it is a store or an unfinished one.
        rows_per_shard: rows of each file; by default as many as bound a shard to 2^26 tokens, at most 2^18.
        progress: show it on stderr.
        reading: separator and encoding of the files of text.
        cluster: a column of the sources whose equal values mark rows that belong together (films, cases): kept in the
            store for intervals that resample them whole. A finished store of the same without them gets them.
        unlabelled: the texts alone, for `penstock distil`: whatever labels the sources have are not read, and the store
            has none.

    Raises:
        SourceError: the input cannot be read or used.
        TokenizerError: the tokenizer cannot be found, loaded, trained or used.
        StoreError: `out` holds something else, or the store given by `like` is not one.
        ConfigError: arguments that contradict each other or are out of range.
        DiskError: the disk is full or cannot be written.
    """
    options = _Options(text, label, bad_rows, overwrite, rows_per_shard, progress, reading, cluster, unlabelled)
    settings = PreparationSettings(tokenizer, max_length, truncation, like, unlabelled)
    preparation = _survey(sources, Path(out), settings, options)
    if preparation is not None:
        preparation.run()
    return Store.open(out, labelled=False)


def begin(
    sources: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    text: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    truncation: str | None = None,
    bad_rows: str = "fail",
    like: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    rows_per_shard: int | None = None,
    progress: bool = True,
    reading: Reading = PLAIN_READING,
    cluster: str | None = None,
    unlabelled: bool = False,
) -> None:
    """`prepare` up to the first shard: surveys the sources and writes the tokenizer and what is to be made.

    Parts of it can then be made anywhere by `parts.write_part`, and joined by `parts.finalize`. Does nothing where the
    same preparation is already finished or begun.

    Raises:
        as `prepare`.
    """
    options = _Options(text, label, bad_rows, overwrite, rows_per_shard, progress, reading, cluster, unlabelled)
    settings = PreparationSettings(tokenizer, max_length, truncation, like, unlabelled)
    preparation = _survey(sources, Path(out), settings, options, shared=True)
    if preparation is not None:
        preparation.begin(shared=False)


def prepare_part(
    sources: Any,
    out: str | os.PathLike[str],
    part: tuple[int, int],
    *,
    tokenizer: str | None = None,
    text: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    truncation: str | None = None,
    bad_rows: str = "fail",
    like: str | os.PathLike[str] | None = None,
    rows_per_shard: int | None = None,
    progress: bool = True,
    reading: Reading = PLAIN_READING,
    cluster: str | None = None,
    unlabelled: bool = False,
) -> None:
    """`prepare`, but only the i-th of n shares of the shards, for part = (i, n); `parts.finalize` joins them.

    For machines that know nothing of each other: every part surveys all the sources for itself.

    Raises:
        as `prepare`.
    """
    if not 0 <= part[0] < part[1]:
        raise ConfigError(f"shard {part[0]}/{part[1]}: expected i/n with 0 <= i < n")
    options = _Options(text, label, bad_rows, None, rows_per_shard, progress, reading, cluster, unlabelled)
    settings = PreparationSettings(tokenizer, max_length, truncation, like, unlabelled)
    preparation = _survey(sources, Path(out), settings, options, shared=True)
    if preparation is not None:
        preparation.begin(shared=True)
        write_part(out, part, progress=progress)


@dataclass(frozen=True)
class _Options:
    text: str | None
    label: str | None
    bad_rows: str
    overwrite: bool | None  # None: it cannot be asked for
    rows_per_shard: int | None
    progress: bool
    reading: Reading
    cluster: str | None
    unlabelled: bool

    @property
    def remedy(self) -> str:
        """What to do about a folder that holds something else."""
        if self.overwrite is None:
            return "choose another folder, or remove it before the first share is made"
        return "choose another folder, or --overwrite it"


def _survey(
    sources: Any, folder: Path, settings: PreparationSettings, options: _Options, shared: bool = False
) -> "_Preparation | None":
    """Reads the sources once, to know what is to be made; None if it is there already."""
    bad_rows, overwrite, progress = options.bad_rows, bool(options.overwrite), options.progress
    if bad_rows not in ("fail", "quarantine"):
        raise ConfigError(f"bad rows: expected fail or quarantine, got {bad_rows!r}")
    rows_per_shard = options.rows_per_shard
    if rows_per_shard is not None and rows_per_shard < 1:
        raise ConfigError(f"rows per shard must be 1 at least, got {rows_per_shard}")
    _check_folder(folder, overwrite)
    separator, unlabelled = options.reading.label_separator, options.unlabelled
    for name, value in (("--label", options.label), ("--label-separator", separator)) if unlabelled else ():
        if value is not None:
            raise ConfigError(f"{name} {value} has no effect: --unlabelled reads no labels; leave one of the two out")
    options = replace(options, reading=settings.reading(options.reading))
    wanted: dict[str, Any] = {"text": options.text, "label": options.label, "need_label": not unlabelled}
    wanted |= {"reading": options.reading, "out": folder}
    if settings.like is None:
        opened = open_sources(sources, **wanted)
    else:
        opened = open_alike(sources, Columns.of(settings.like), **wanted)
    check_once(opened)
    if unlabelled and opened[0].label is not None:
        raise SourceError(f"{opened[0].name}: was opened with its labels; open it with need_label=False")
    check_splits(opened, separator)
    settings.check_labels(opened[0])
    if shared and (held := [source.name for source in opened if not source.resumable]):
        raise ConfigError(f"{held[0]}: held by this process only; write it to a file to share the work")
    is_pair = opened[0].is_pair
    settings.choose_length(is_pair, folder, overwrite)
    if rows_per_shard is None:
        rows_per_shard = max(1, min(ROWS_PER_SHARD, TOKENS_PER_SHARD // settings.max_length))
    settings.load_tokenizer(is_pair)

    quarantine = _beside(folder, BAD_ROWS) if bad_rows == "quarantine" else None
    with RowProgress("reading", shown=progress) as bar:
        found = survey(
            opened,
            quarantine=quarantine,
            known_labels=settings.label_names,
            cluster=options.cluster,
            advance=bar.advance,
        )
    label_names = [] if unlabelled else settings.label_names or sort_labels(list(found.label_counts))
    about_labels = notices if settings.label_names is None else merged_notices
    for line in [*found.notes, *about_labels(opened[0].label or "", found.label_spellings)]:
        print(line, file=sys.stderr, flush=True)
    if not label_names and not unlabelled:
        raise SourceError(f"{opened[0].name}: no row has a label: all lists of column {opened[0].label!r} are empty")
    if len(label_names) == 1:
        raise SourceError(f"{opened[0].name}: only one label, {label_names[0]!r}: there is nothing to tell apart")
    preparation = digest(
        {
            "content": found.content,
            "positions": found.positions,
            "rows": [[source.rows, source.bad_rows] for source in found.sources],
            "tokenizer": settings.tokenizer_identity,
            "max_length": settings.max_length,
            "truncation": settings.truncation,
            "label_names": label_names,
            "rows_per_shard": rows_per_shard,
            **({"multi_label": True} if opened[0].multi_label else {}),
            **({"pairs": True} if is_pair else {}),
        }
    )
    if (folder / MANIFEST_NAME).exists() and not overwrite:
        if Manifest.read(folder).preparation != preparation:
            raise OtherDataError(f"{folder}: a store of other data or settings; {options.remedy}")
        with locked(folder, shared=False):
            remove_leftovers(folder)
            if options.cluster is not None and found.clusters is not None:
                _add_clusters(folder, options.cluster, found.clusters, options.remedy)
        return None
    return _Preparation(opened, found, settings, folder, preparation, label_names, rows_per_shard, options)


class _Preparation:
    """One run over one folder."""

    def __init__(
        self,
        sources: list[Source],
        found: Survey,
        settings: PreparationSettings,
        folder: Path,
        preparation: str,
        label_names: list[str],
        rows_per_shard: int,
        options: _Options,
    ) -> None:
        self.sources = sources
        self.found = found
        self.settings = settings
        self.folder = folder
        self.preparation = preparation
        self.label_names = label_names
        self.rows_per_shard = rows_per_shard
        self.options = options
        self.begun = False  # whether the folder is this preparation's, and may be cleared

    def run(self) -> None:
        """From wherever it is to the finished store."""
        finished = 0
        with self._locked(shared=False):
            try:
                job, tokenizer = self._start(shared=False)
                done = {k: finished_shard(self.folder, job, k) for k in range(job.num_shards)}
                finished = sum(receipt is not None for receipt in done.values())
                wanted = {k for k, receipt in done.items() if receipt is None}
                for shard in make_shards(self.folder, job, self.sources, tokenizer, wanted, self.options.progress):
                    finished += 1
                    done[shard] = Receipt.read(self.folder, shard)
                receipts = [receipt for receipt in done.values() if receipt is not None]
                check_tokens(job, receipts)
                finish_job(self.folder, job, receipts)
            except BaseException as error:
                if self.begun and (finished == 0 or isinstance(error, SourceError)):
                    self._abandon()
                raise

    def begin(self, shared: bool) -> None:
        """Up to the first shard; `shared`: others may be working on the same."""
        with self._locked(shared):
            try:
                self._start(shared)
            except BaseException:
                if self.begun and not shared:
                    self._abandon()
                raise

    @contextmanager
    def _locked(self, shared: bool) -> Iterator[None]:
        with disk_errors(self.folder):
            self.begun = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, shared):
            yield

    def _start(self, shared: bool) -> tuple[Job, TextTokenizer]:
        """Goes on with the job in the folder if it is this one, otherwise begins it."""
        with disk_errors(self.folder):
            sync_folder(self.folder.parent)
        job = None if self.options.overwrite else Job.read(self.folder)
        if job is not None and (job.preparation, job.cluster, job.cluster_content) != self._identity:
            raise OtherDataError(
                f"{self.folder}: holds an unfinished preparation of other data or settings; finish that, "
                f"{self.options.remedy}"
            )
        if job is not None and self._has_tokenizer(job):
            self.begun = True
            start_job(self.folder, job, shared)
        else:
            tokenizer = self._tokenizer()
            files = save_tokenizer(tokenizer, self.settings.max_length, self.settings.truncation)
            job = self._new_job(self._encoder(tokenizer), files)
            self.begun = not (self.folder / MANIFEST_NAME).exists()
            start_job(self.folder, job, shared)
            self.begun = True
            write_tokenizer(self.folder, files)
        if self.found.clusters is not None:
            write_clusters(self.folder, self.preparation, self.options.cluster or "", self.found.clusters)
        # As saved: what every later reader uses, and what an interrupted preparation goes on with.
        saved = load_saved_tokenizer(self.folder / TOKENIZER_NAME)
        encoder = self._encoder(saved)
        if self.settings.like is None:
            check_saved(saved, encoder)
        return job, encoder

    @property
    def _identity(self) -> tuple[str, str | None, str | None]:
        """What an unfinished preparation has to be, to go on with it. Clusters do not change the shards."""
        keys = self.found.clusters
        return self.preparation, self.options.cluster, None if keys is None else digest_of_keys(keys)

    def _encoder(self, tokenizer: "PreTrainedTokenizerFast") -> TextTokenizer:
        return text_tokenizer(tokenizer, self.settings.max_length, self.settings.truncation, self.sources[0].is_pair)

    def _new_job(self, encoder: TextTokenizer, files: dict[str, bytes]) -> Job:
        return Job(
            preparation=self.preparation,
            max_length=self.settings.max_length,
            truncation=self.settings.truncation,
            dtype="uint16" if encoder.vocab_size <= 1 << 16 else "uint32",
            vocab_size=encoder.vocab_size,
            label_names=self.label_names,
            label_counts=[self.found.label_counts.get(name, 0) for name in self.label_names],
            content=self.found.content,
            source_contents=self.found.source_contents,
            rows_per_shard=self.rows_per_shard,
            sources=self.found.sources,
            reading=asdict(self.options.reading),
            multi_label=self.sources[0].multi_label,
            like=None if self.settings.like is None else str(self.settings.like.path.resolve()),
            is_pair=encoder.is_pair,
            token_types=encoder.gives_types,
            cluster=self._identity[1],
            cluster_content=self._identity[2],
            cluster_format=CLUSTERS_FORMAT,
            tokenizer=TokenizerEntry(
                self.settings.origin, encoder.fingerprint(), encoder.probes(), crc32_of_files(files)
            ),
        )

    def _has_tokenizer(self, job: Job) -> bool:
        """Whether the saved tokenizer's files are all there and whole."""
        folder = self.folder / TOKENIZER_NAME
        files = {name: (folder / name).read_bytes() for name in job.tokenizer.files if (folder / name).is_file()}
        return crc32_of_files(files) == job.tokenizer.files

    def _tokenizer(self) -> "PreTrainedTokenizerFast":
        if self.settings.loaded is not None:
            return self.settings.loaded
        assert self.settings.spec is not None
        with RowProgress("learning the tokenizer", self.found.rows, self.options.progress) as bar:

            def texts() -> Iterator[list[str]]:
                known = self.settings.label_names
                read = (rows for source in self.sources for rows in usable_rows(source, known))
                return (list(single_texts(rows.texts)) for rows in read)

            texts_a_row = 2 if self.sources[0].is_pair else 1
            return train_tokenizer(self.settings.spec, texts, lambda count: bar.advance(count // texts_a_row))

    def _abandon(self) -> None:
        """Nothing of use was made: leaves nothing behind."""
        clear(self.folder)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _add_clusters(folder: Path, column: str, keys: np.ndarray, remedy: str) -> None:
    """Keeps the rows' clusters in a finished store, which has none yet, or those of an earlier penstock.

    Args:
        remedy: what to do if it has others.

    Raises:
        OtherDataError: it has others.
    """
    store = Store.open(folder, labelled=False)
    there = store.manifest.clusters
    if there is None or store.clusters is None or (there.column == column and there.format != CLUSTERS_FORMAT):
        entry = write_clusters(folder, store.manifest.preparation, column, keys)
        write_committed(folder / MANIFEST_NAME, replace(store.manifest, clusters=entry).to_json())
    elif there.column != column or not np.array_equal(store.clusters, keys):
        raise OtherDataError(f"{folder}: a store with other groups, by column {there.column!r}; {remedy}")


def _beside(folder: Path, ending: str) -> Path:
    """A file next to the folder, whose name begins as the folder's, also where that is given as "." or ends in ".."."""
    whole = folder.resolve()
    if not whole.name:
        raise ConfigError(f"{folder}: has no folder around it for {ending[1:]}; choose another folder")
    return folder.with_name(folder.name + ending) if folder.name not in ("", "..") else Path(f"{whole}{ending}")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuses a place that holds something else, before any work."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StoreError(f"{folder}: a file; a store is a folder")
    if not is_ours(folder):
        raise StoreError(f"{folder}: not empty and not a store; choose another folder")
    if (folder / MANIFEST_NAME).exists() and not overwrite:
        Manifest.read(folder)
