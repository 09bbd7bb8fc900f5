"""The shards of a preparation, made by whoever: one process, machines that share a folder, or the tasks of a cluster.

`begin` (in prepare.py) surveys the sources and writes down what is to be made; each `write_part` makes its share of it
from the sources alone; `finalize` joins the shards. Shards are cut by the rows of the sources, never by what an engine
calls a block, so the store's bytes do not depend on who made it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from penstock.engine.data.job import Job, check_tokens, discard_shard, finish_job, finished_shard, locked, write_shard
from penstock.engine.data.manifest import MANIFEST_NAME, TOKENIZER_NAME
from penstock.engine.data.pair_tokenizing import text_tokenizer
from penstock.engine.data.progress import RowProgress
from penstock.engine.data.sources import Reading, Source, open_source
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import TextTokenizer, load_saved_tokenizer
from penstock.engine.data.tokenizing import ShardBuilder, cut_into_shards, encode_pieces
from penstock.engine.errors import ConfigError, SourceError, StoreError, TokenizerError


def make_shards(
    folder: Path, job: Job, sources: Sequence[Source], tokenizer: TextTokenizer, wanted: set[int], progress: bool
) -> Iterator[int]:
    """Reads the sources and writes the wanted shards; yields each when it is on the disk.

    Raises:
        SourceError: a source is not what the survey found. The shards made here are taken back.
    """
    made = []
    shard = ShardBuilder(job, -1)
    try:
        with RowProgress("tokenizing", sum(job.rows_of(k) for k in wanted), progress) as bar:
            for piece, encoded in encode_pieces(cut_into_shards(sources, job, wanted), tokenizer):
                if piece.shard != shard.number:
                    shard = ShardBuilder(job, piece.shard)
                shard.add(piece, encoded)
                bar.advance(len(piece.labels))
                if shard.seen == job.rows_of(shard.number):
                    made.append(shard.number)
                    write_shard(folder, job, shard.number, shard.rows())
                    yield shard.number
    except SourceError:
        for number in made:
            discard_shard(folder, number)
        raise


def write_part(out: str | os.PathLike[str], part: tuple[int, int], *, progress: bool = False) -> int:
    """Makes, for part = (i, n), the i-th of n equal runs of the shards that `begin` wrote down, those not there yet.

    A pure function of the sources and the folder: it may run anywhere, at any time, again, and beside other parts. The
    sources and the folder must be reachable by the names that `begin` was given.

    Args:
        progress: show it on stderr.

    Returns:
        how many shards were made.

    Raises:
        SourceError: a source cannot be read, or is no longer what `begin` found.
        StoreError: nothing was begun in `out`.
        TokenizerError: the tokenizers library here gives other tokens than the one that began.
        DiskError: the disk is full or cannot be written.
    """
    index, parts = part
    if not 0 <= index < parts:
        raise ConfigError(f"shard {index}/{parts}: expected i/n with 0 <= i < n")
    folder = Path(out)
    if (folder / MANIFEST_NAME).exists():
        return 0
    job = Job.read(folder)
    if job is None:
        raise StoreError(f"{folder}: no preparation is under way there")
    with locked(folder, shared=True):
        share = range(job.num_shards * index // parts, job.num_shards * (index + 1) // parts)
        wanted = {k for k in share if finished_shard(folder, job, k) is None}
        if not wanted:
            return 0
        saved = load_saved_tokenizer(folder / TOKENIZER_NAME)
        tokenizer = text_tokenizer(saved, job.max_length, job.truncation, job.is_pair)
        if tokenizer.probes() != job.tokenizer.probes:
            raise TokenizerError(
                f"{folder}: the tokenizers library of this machine gives other tokens than that of the machine that "
                "began; install the same version on both"
            )
        reading = Reading(**job.reading)
        sources = [
            open_source(
                entry.name,
                text=entry.text,
                label=entry.label or None,
                need_label=bool(job.label_names),
                reading=reading,
            )
            for entry in job.sources
        ]
        return sum(1 for _ in make_shards(folder, job, sources, tokenizer, wanted, progress))


def finalize(out: str | os.PathLike[str]) -> Store:
    """Joins the shards, once all of them are there, into a store.

    Raises:
        StoreError: nothing is under way there, or shards are missing or damaged: they are named.
        SourceError: no text has a token.
    """
    folder = Path(out)
    if (folder / MANIFEST_NAME).exists():
        return Store.open(folder, labelled=False)
    job = Job.read(folder)
    if job is None:
        raise StoreError(f"{folder}: no preparation is under way there")
    with locked(folder, shared=False):
        done = [finished_shard(folder, job, k) for k in range(job.num_shards)]
        missing = [k for k, receipt in enumerate(done) if receipt is None]
        if missing:
            listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise StoreError(f"{folder}: {len(missing)} of {job.num_shards} shards are missing or damaged: {listed}")
        receipts = [receipt for receipt in done if receipt is not None]
        check_tokens(job, receipts)
        finish_job(folder, job, receipts)
    return Store.open(folder, labelled=False)
