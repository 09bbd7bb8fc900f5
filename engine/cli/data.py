"""The commands that make and check stores."""

from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.engine.cli.options import (
    EncodingOption,
    SeparatorOption,
    TextOption,
    label_separator_option,
    parse_share,
    stated_options,
)

PREPARE_EXAMPLE = """Tokenize labelled texts into a store.

Example: penstock prepare reviews.csv --out stores/train --tokenizer train:bpe:30000 --text review --label stars

A test set with the same tokenizer and labels: penstock prepare test.csv --out stores/test --like stores/train

Texts without labels, for penstock distil: penstock prepare raw.csv --out stores/raw --like stores/train --unlabelled

Where the label column holds lists (jsonl, parquet, arrow), or texts and --label-separator is given, a row has as many
labels as there are in its list, none in an empty one: the model then answers for each label by itself.
"""


def prepare(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Files (csv, tsv, jsonl, parquet, arrow), folders, patterns, hf:..., synthetic:..."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = ...,  # type: ignore[assignment]
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub name, path, store, train:bpe:N or train:wordpiece:N.")
    ] = None,
    text: TextOption = None,
    label: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    separator: SeparatorOption = None,
    encoding: EncodingOption = None,
    label_separator: Annotated[
        str | None, label_separator_option("Each row has several labels, with this between them, such as '|'.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longer texts are cut to this many tokens, for good; a run may read less.  [default: 4096; pairs: 512]"
        ),
    ] = None,
    truncation: Annotated[
        str | None, typer.Option(help="head, tail or head+tail: what is kept of them.  [default: the tokenizer's own]")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Keep which rows have the same value in this column (a film, a case): study and compare --cluster "
            "resample them whole.",
        ),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Take tokenizer, labels, lengths and, unless named, columns from this store.")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The texts alone, for penstock distil: no label is read or kept.")
    ] = False,
    bad_rows: Annotated[str, typer.Option(help="fail, or quarantine: set them aside in OUT.bad-rows.jsonl.")] = "fail",
    rows_per_shard: Annotated[int | None, typer.Option(help="Rows of each file of the store.", hidden=True)] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n, i from 0: make only this share of the files; then --finalize.")
    ] = None,
    finalize: Annotated[bool, typer.Option("--finalize", help="Join what --shard runs have made.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store in OUT.")] = False,
) -> None:
    from penstock.engine.data import parts
    from penstock.engine.data import prepare as preparing
    from penstock.engine.data.job import Job
    from penstock.engine.data.sources import Reading
    from penstock.engine.errors import ConfigError, StoreError

    if finalize:
        if given := [name for name in stated_options(context) if name not in ("--out", "--finalize")]:
            raise ConfigError(f"--finalize joins what is in {out} as it was begun: leave {', '.join(given)} out")
        job = Job.read(out)
        store = parts.finalize(out)
        _describe(store)
        if job is not None and job.like is not None and store.is_labelled:
            try:
                _say_overlap(Path(job.like), store)
            except StoreError as error:  # the store is finished all the same
                typer.echo(f"overlap with {job.like} is not known: {error}", err=True)
        return
    if not sources:
        raise ConfigError("say what to prepare: one source at least")
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text": text,
        "label": label,
        "max_length": max_length,
        "truncation": truncation,
        "like": like,
        "bad_rows": bad_rows,
        "rows_per_shard": rows_per_shard,
        "cluster": cluster,
        "unlabelled": unlabelled,
        "reading": Reading(separator, encoding, label_separator),
    }
    if shard is not None and overwrite:
        raise ConfigError(
            f"--shard cannot --overwrite: others may be making their shares in {out}; remove it before the first begins"
        )
    if shard is not None:
        preparing.prepare_part(sources, out, parse_share(shard), **options)
        return
    store = preparing.prepare(sources, out, overwrite=overwrite, **options)
    _describe(store)
    if like is not None and store.is_labelled:
        _say_overlap(like, store)


def verify(
    store: Annotated[Path, typer.Argument(help="The folder that prepare wrote.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compare every row with the index, and the tokenizer.")
    ] = False,
) -> None:
    """Read a store and compare every file with its checksum.

    Example: penstock verify stores/train --deep
    """
    from penstock.engine.data.store import Store

    opened = Store.open(store, labelled=False)
    files = sum(1 for _ in opened.verify(deep))
    print(f"{store}: sound: {files} files, {opened.num_examples:,} examples, {opened.num_tokens:,} tokens")
    _describe_lengths(opened)


def register(app: typer.Typer) -> None:
    app.command("prepare", help=PREPARE_EXAMPLE)(prepare)
    app.command("verify")(verify)


def _say_overlap(like: Path, store: Any) -> None:
    from penstock.engine.data.clusters import ClusterOverlap, kept_clusters
    from penstock.engine.data.overlap import find_overlap
    from penstock.engine.data.store import Store

    other = Store.open(like)
    print(f"overlap with {like}: {find_overlap(other, store)}")
    theirs, ours = kept_clusters(other), kept_clusters(store)
    if theirs is not None and ours is not None and (both := ClusterOverlap.of(theirs, ours)) is not None:
        print(f"groups: {both}")


def _describe_lengths(store: Any) -> None:
    from penstock.engine.training.reading import recipe_lines, share

    manifest = store.manifest
    cut, rows = manifest.truncated_texts, manifest.num_examples
    of_all = f" ({share(cut, rows)}), {manifest.truncation} kept" if cut else ""
    print(f"cut to {manifest.max_length:,} tokens: {cut:,}{of_all}")
    for line in recipe_lines(store):
        print(line)


def _describe(store) -> None:
    manifest = store.manifest
    mean = manifest.num_tokens / manifest.num_examples
    print(f"{store.path}: {manifest.num_examples:,} examples, {manifest.num_tokens:,} tokens ({mean:.1f} each)")
    labels = ", ".join(
        f"{name}: {n:,}" for name, n in list(zip(manifest.label_names, manifest.label_counts, strict=True))[:20]
    )
    if not store.is_labelled:
        labels = "none (--unlabelled)"
    several = f"multi-label, {sum(manifest.label_counts) / manifest.num_examples:.2f} a row; "
    print(
        f"labels: {several if manifest.multi_label else ''}{labels}"
        + (" ..." if len(manifest.label_names) > 20 else "")
    )
    if manifest.clusters is not None:
        print(f"groups by {manifest.clusters.column!r}: {manifest.clusters.count:,}")
    print(f"empty texts: {manifest.empty_texts:,}; bad rows set aside: {manifest.bad_rows:,}")
    _describe_lengths(store)
