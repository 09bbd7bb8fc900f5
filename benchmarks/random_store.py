"""A store of any size without texts: random tokens of given lengths, and a tokenizer that has as many words."""

from pathlib import Path

import numpy as np

from penstock.engine.data.job import Job, Receipt, ShardRows, finish_job, start_job, write_shard, write_tokenizer
from penstock.engine.data.manifest import SourceEntry, TokenizerEntry
from penstock.engine.data.store import Store
from penstock.engine.data.tokenizers import crc32_of_files, save_tokenizer

FIRST_TOKEN = 4  # ids below are left to padding and the like


def write_store(folder: Path, lengths: np.ndarray, vocab_size: int = 30_000) -> Store:
    """Two labels in turn; tokens drawn evenly."""
    folder.mkdir(parents=True)
    rows = len(lengths)
    files = save_tokenizer(word_tokenizer(vocab_size), max(1, int(lengths.max())), "head")
    job = Job(
        preparation="benchmark",
        max_length=max(1, int(lengths.max())),
        truncation="head",
        dtype="uint16",
        vocab_size=vocab_size,
        label_names=["0", "1"],
        label_counts=[rows - rows // 2, rows // 2],
        content="random",
        source_contents=["random"],
        rows_per_shard=131_072,
        sources=[SourceEntry("random", "text", "label", "row", rows, 0)],
        tokenizer=TokenizerEntry("none", "none", "none", crc32_of_files(files)),
    )
    start_job(folder, job, shared=False)
    write_tokenizer(folder, files)
    random = np.random.default_rng(1)
    for shard in range(job.num_shards):
        count = job.rows_of(shard)
        positions = np.arange(count, dtype=np.int64) + shard * job.rows_per_shard
        part = lengths[positions]
        values = random.integers(FIRST_TOKEN, vocab_size, int(part.sum()), np.uint16)
        labels = (positions % 2).astype(np.int32)
        write_shard(folder, job, shard, ShardRows([values], part, labels, labels * 0, positions + 1, 0, 0))
    receipts = [Receipt.read(folder, shard) for shard in range(job.num_shards)]
    finish_job(folder, job, [receipt for receipt in receipts if receipt is not None])
    return Store.open(folder)


def word_tokenizer(vocab_size: int):
    """A word a token, padding at 1 as RoBERTa has it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[PAD]": 1} | {f"w{place}": place for place in range(2, vocab_size)}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
